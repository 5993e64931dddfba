// A conversation from Python: a model, its cache and what may come next.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "mla/core/error.h"
#include "python/bindings.h"
#include "python/model.h"

namespace mla::python {
namespace {

namespace nb = nanobind;

/// What forks share, as they share pages. Python's lock guards it.
struct Forks {
  std::atomic<bool> in_use = false;
  std::vector<Session>
      left;  ///< of conversations that ended while another was in use: they go when it is done
};

/// A session, and the model that it keeps alive.
class Conversation {
 public:
  Conversation(std::shared_ptr<const Model> model, Session session, std::shared_ptr<Forks> forks)
      : model_(std::move(model)), session_(std::move(session)), forks_(std::move(forks)) {
    length_ = session_.length();
  }
  ~Conversation() {
    if (forks_->in_use) forks_->left.push_back(std::move(session_));
  }
  Conversation(const Conversation&) = delete;
  Conversation& operator=(const Conversation&) = delete;

  /// [vocab], behind the last of `ids`.
  Values feed(const Ids& ids) {
    const auto vocab = static_cast<std::size_t>(model_->transformer.config().vocab_size);
    std::unique_ptr<float[]> out(new float[vocab]);
    const Turn turn(*this);
    {
      nb::gil_scoped_release released;
      std::ranges::copy(session_.feed(ids), out.get());
    }
    return array_of(std::move(out), {vocab});
  }
  /// [ids, vocab], behind each of them.
  Values feed_all(const Ids& ids) {
    require(!ids.empty(), "ids: found none, expected at least one");
    const auto count = static_cast<std::int64_t>(ids.size()), vocab = model_->transformer.config().vocab_size;
    std::unique_ptr<float[]> out(new float[static_cast<std::size_t>(count * vocab)]);
    const Turn turn(*this);
    {
      nb::gil_scoped_release released;
      session_.feed_all(ids, {out.get(), count, vocab});
    }
    return array_of(std::move(out), {ids.size(), static_cast<std::size_t>(vocab)});
  }
  void append(const Ids& ids) {
    const Turn turn(*this);
    nb::gil_scoped_release released;
    session_.append(ids);
  }
  /// [length, values of a row], as they are kept, decoded.
  Values rows(std::int64_t layer) {
    const std::int64_t layers = model_->transformer.config().num_layers;
    require(layer >= 0 && layer < layers, "layer: found {}, expected 0 to {}", layer, layers - 1);
    const Turn turn(*this);
    const KvView view = session_.cache().view(layer);
    const RowLayout& layout = session_.cache().pool().layout();
    const std::int64_t width = layout.values();
    std::unique_ptr<float[]> out(new float[static_cast<std::size_t>(view.length * width)]);
    for (std::int64_t i = 0; i < view.length; ++i) layout.read(view.row(i), width, out.get() + i * width);
    return array_of(std::move(out), {static_cast<std::size_t>(view.length), static_cast<std::size_t>(width)});
  }
  void truncate(std::int64_t length) {
    const Turn turn(*this);
    session_.truncate(length);
  }
  std::unique_ptr<Conversation> fork() {
    const Turn turn(*this);
    return std::make_unique<Conversation>(model_, session_.fork(), forks_);
  }
  /// As the last call left it: another thread may be feeding.
  std::int64_t length() const { return length_; }
  std::int64_t max_tokens() const { return session_.max_tokens(); }
  std::int64_t cache_bytes() {
    const Turn turn(*this);
    return session_.cache().pool().bytes_in_use();
  }

 private:
  /// One call that uses the session or its pages. Begins and ends with Python's lock held.
  class Turn {
   public:
    explicit Turn(Conversation& of) : of_(of), in_use_(of.forks_->in_use, "session or a fork of it") {}
    ~Turn() {
      of_.forks_->left.clear();
      of_.length_ = of_.session_.length();
    }

   private:
    Conversation& of_;
    InUse in_use_;
  };

  std::shared_ptr<const Model> model_;
  Session session_;
  std::int64_t length_ = 0;
  std::shared_ptr<Forks> forks_;
};

}  // namespace

void bind_session(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<Conversation>(m, "Session")
      .def(
          "__init__",
          [](Conversation* self, std::shared_ptr<Model> model, const std::string& attention,
             const std::string& dtype, const std::string& cache_dtype, std::int64_t max_tokens) {
            const SessionOptions options = model->options(attention, dtype, cache_dtype, max_tokens);
            new (self) Conversation(model, Session(model->transformer, options), std::make_shared<Forks>());
          },
          "model"_a, "attention"_a, "dtype"_a, "cache_dtype"_a, "max_tokens"_a)
      .def("append", &Conversation::append, "ids"_a)
      .def("feed", &Conversation::feed, "ids"_a)
      .def("feed_all", &Conversation::feed_all, "ids"_a)
      .def("rows", &Conversation::rows, "layer"_a)
      .def("truncate", &Conversation::truncate, "length"_a)
      .def("fork", &Conversation::fork)
      .def_prop_ro("length", &Conversation::length)
      .def_prop_ro("max_tokens", &Conversation::max_tokens)
      .def_prop_ro("cache_bytes", &Conversation::cache_bytes);
}

}  // namespace mla::python
