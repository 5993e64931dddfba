#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mla/model/tokenizer.h"
#include "mla/model/transformer.h"
#include "mla/runtime/session.h"

/// What the bindings of models, conversations and training share.
namespace mla::python {

using Ids = std::vector<std::int32_t>;
using Values = nanobind::ndarray<nanobind::numpy, float>;

/// A numpy array that owns `values`.
Values array_of(std::unique_ptr<float[]> values, std::initializer_list<std::size_t> shape);

/// A checkpoint directory: the model and its tokenizer, if there is one.
struct Model {
  std::filesystem::path directory;
  Transformer transformer;
  std::optional<Tokenizer> tokenizer;

  explicit Model(const std::filesystem::path& d);
  /// Throws Error without a tokenizer.
  const Tokenizer& words() const;
  /// Of names as Python gives them; an empty dtype is the model's, an empty cache_dtype that of dtype. Throws
  /// Error naming the argument.
  SessionOptions options(const std::string& attention, const std::string& dtype,
                         const std::string& cache_dtype, std::int64_t max_tokens) const;
};

/// Set while a call that leaves Python's lock uses an object that two threads must not use at once. Throws
/// Error if another call does.
class InUse {
 public:
  InUse(std::atomic<bool>& flag, const char* what);
  ~InUse() { flag_ = false; }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;

 private:
  std::atomic<bool>& flag_;
};

}  // namespace mla::python
