// A checkpoint directory from Python: tokenizer, logits, sampling.
#include "python/model.h"

#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "mla/core/error.h"
#include "mla/model/census.h"
#include "mla/model/sampler.h"
#include "python/bindings.h"

namespace mla::python {

namespace nb = nanobind;
namespace fs = std::filesystem;

Values array_of(std::unique_ptr<float[]> values, std::initializer_list<std::size_t> shape) {
  float* data = values.release();
  return Values(data, shape, nb::capsule(data, [](void* p) noexcept { delete[] static_cast<float*>(p); }));
}

Model::Model(const fs::path& d) : directory(d), transformer(Transformer::load(d)) {
  if (Tokenizer::is_in(d)) tokenizer = Tokenizer::load(d);
}

const Tokenizer& Model::words() const {
  require(tokenizer.has_value(), "{}: found neither tokenizer.json nor tiktoken.model", directory.string());
  return *tokenizer;
}

SessionOptions Model::options(const std::string& attention, const std::string& dtype,
                              const std::string& cache_dtype, std::int64_t max_tokens) const {
  SessionOptions o;
  o.form = form_named(attention, "attention");
  o.compute = dtype.empty() ? transformer.default_compute() : dtype_named(dtype, "dtype");
  require(o.compute == DType::f32 || o.compute == DType::bf16, "dtype: found '{}', expected f32 or bf16",
          dtype);
  o.cache_type = cache_dtype.empty() ? o.compute : dtype_named(cache_dtype, "cache_dtype");
  o.max_tokens = max_tokens;
  return o;
}

InUse::InUse(std::atomic<bool>& flag, const char* what) : flag_(flag) {
  require(!flag.exchange(true), "this {} is in use by another thread: one call at a time", what);
}

namespace {

nb::dict inspect(const Model& model) {
  const ModelConfig& c = model.transformer.config();
  const ParameterCount parameters = count_parameters(c);
  const CacheCensus cache = count_cache(c);
  nb::dict values, all;
  if (cache.mla > 0) values["mla"] = cache.mla;
  values["mha"] = cache.mha;
  values["gqa"] = cache.gqa;
  values["mqa"] = cache.mqa;
  all["model_type"] = c.model_type;
  all["attention"] = attention_name(c);
  all["parameters"] = parameters.total;
  all["active_parameters"] = parameters.active;
  all["weight_bytes"] = model.transformer.checkpoint().total_bytes();
  all["vocab_size"] = c.vocab_size;
  all["hidden_size"] = c.hidden_size;
  all["num_layers"] = c.num_layers;
  all["num_heads"] = c.num_heads;
  all["max_context"] = c.max_context;
  all["cache_values_per_token"] = values;
  if (c.attention == AttentionKind::latent) {
    all["kv_lora_rank"] = c.kv_lora_rank;
    all["qk_rope_head_dim"] = c.qk_rope_head_dim;
  } else {
    all["num_kv_heads"] = c.num_kv_heads;
    all["head_dim"] = c.head_dim;
  }
  all["cache_bytes_per_token"] = c.num_layers * row_layout(c, DType::bf16).bytes();
  return all;
}

}  // namespace

void bind_model(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<Model>(m, "Model")
      .def(nb::init<const fs::path&>(), "directory"_a, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("eos_ids", [](const Model& model) { return model.transformer.config().eos_ids; })
      .def_prop_ro("max_context", [](const Model& model) { return model.transformer.config().max_context; })
      .def("inspect", &inspect)
      .def(
          "encode", [](const Model& model, const std::string& text) { return model.words().encode(text); },
          "text"_a)
      .def(
          "encode_prompt",
          [](const Model& model, const std::string& text) { return model.words().encode_prompt(text); },
          "text"_a)
      .def(
          "decode", [](const Model& model, const Ids& ids) { return model.words().decode(ids); }, "ids"_a);
  nb::class_<Sampler>(m, "Sampler")
      .def(
          "__init__",
          [](Sampler* self, double temperature, std::int64_t top_k, double top_p, std::uint64_t seed) {
            new (self) Sampler({temperature, top_k, top_p, seed});
          },
          "temperature"_a, "top_k"_a, "top_p"_a, "seed"_a)
      .def(
          "next",
          [](Sampler& sampler,
             const nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>& logits) {
            return sampler.next({logits.data(), logits.size()});
          },
          "logits"_a);
  nb::class_<StreamDecoder>(m, "StreamDecoder")
      .def(
          "__init__",
          [](StreamDecoder* self, const Model& model) { new (self) StreamDecoder(model.words()); }, "model"_a)
      .def("push", &StreamDecoder::push, "id"_a)
      .def("finish", &StreamDecoder::finish);
}

}  // namespace mla::python
