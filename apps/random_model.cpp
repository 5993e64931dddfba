// A model of random weights: see random_model.h.
#include "apps/random_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <vector>

#include "apps/bench.h"
#include "apps/published_configs.h"
#include "mla/core/error.h"
#include "mla/model/census.h"

namespace mla::app {
namespace {

constexpr std::int64_t piece = 256;  // values that are copied at a time
constexpr std::int64_t line = 64;    // bytes that a matrix begins at a multiple of
constexpr std::int64_t table_size = 1 << 16;

std::int64_t whole_lines(std::int64_t bytes) {
  return (bytes + line - 1) / line * line;
}

/// Hands out matrices one behind another, filled from a table of values of the right variance.
class Filler {
 public:
  Filler(DType type, std::int64_t bytes) : type_(type), memory_(bytes) {}

  Weight matrix(std::int64_t rows, std::int64_t cols, double deviation) {
    Weight weight{type_, memory_.data() + used_, rows, cols};
    const std::int64_t size = size_of(type_), count = rows * cols;
    const std::byte* table = table_of(deviation).data();
    for (std::int64_t done = 0; done < count; done += piece) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      const std::int64_t from = static_cast<std::int64_t>((state_ >> 33) % table_size);
      std::memcpy(memory_.data() + used_ + done * size, table + from * size,
                  static_cast<std::size_t>(std::min(piece, count - done) * size));
    }
    used_ += whole_lines(count * size);
    return weight;
  }

  Weight matrix(std::int64_t rows, std::int64_t cols) {
    return matrix(rows, cols, 1 / std::sqrt(static_cast<double>(cols)));
  }

  Buffer<std::byte> take() { return std::move(memory_); }

 private:
  const std::vector<std::byte>& table_of(double deviation) {
    std::vector<std::byte>& table = tables_[deviation];
    if (!table.empty()) return table;
    table.resize(static_cast<std::size_t>((table_size + piece) * size_of(type_)));
    RandomValues values(table_size + piece);
    const float* from = values.next(table_size + piece);
    for (std::int64_t i = 0; i < table_size + piece; ++i) {
      const float value = from[i] * static_cast<float>(deviation);
      const bf16 rounded = to_bf16(value);
      const void* stored = type_ == DType::f32 ? static_cast<const void*>(&value) : &rounded;
      std::memcpy(table.data() + i * size_of(type_), stored, static_cast<std::size_t>(size_of(type_)));
    }
    return table;
  }

  DType type_;
  Buffer<std::byte> memory_;
  std::int64_t used_ = 0;
  std::uint64_t state_ = 1;
  std::map<double, std::vector<std::byte>> tables_;  // by standard deviation
};

std::vector<float> ones(std::int64_t count) {
  return std::vector<float>(static_cast<std::size_t>(count), 1.0f);
}

FeedForwardWeights feed_forward(const ModelConfig& c, std::int64_t width, Filler& filler) {
  return {filler.matrix(width, c.hidden_size), filler.matrix(width, c.hidden_size),
          filler.matrix(c.hidden_size, width)};
}

void fill_mla(const ModelConfig& c, Filler& filler, LayerWeights& layer) {
  MlaWeights& w = layer.mla;
  const std::int64_t query_width = c.num_heads * c.qk_head_dim();
  if (c.q_lora_rank > 0) {
    w.q_a_proj = filler.matrix(c.q_lora_rank, c.hidden_size);
    layer.q_a_norm = ones(c.q_lora_rank);
    w.q_a_norm = layer.q_a_norm;
    w.q_b_proj = filler.matrix(query_width, c.q_lora_rank);
  } else {
    w.q_proj = filler.matrix(query_width, c.hidden_size);
  }
  w.kv_a_proj = filler.matrix(c.latent_width(), c.hidden_size);
  layer.kv_a_norm = ones(c.kv_lora_rank);
  w.kv_a_norm = layer.kv_a_norm;
  w.kv_b_proj = filler.matrix(c.num_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank);
  w.o_proj = filler.matrix(c.hidden_size, c.num_heads * c.v_head_dim);
}

HeadsWeights make_heads(const ModelConfig& c, Filler& filler) {
  const std::int64_t query_width = c.num_heads * c.head_dim, key_width = c.num_kv_heads * c.head_dim;
  return {filler.matrix(query_width, c.hidden_size), filler.matrix(key_width, c.hidden_size),
          filler.matrix(key_width, c.hidden_size), filler.matrix(c.hidden_size, query_width)};
}

LayerWeights make_layer(const ModelConfig& c, bool is_moe, Filler& filler) {
  LayerWeights layer;
  layer.input_norm = layer.post_attention_norm = ones(c.hidden_size);
  if (c.attention == AttentionKind::latent) {
    fill_mla(c, filler, layer);
  } else {
    layer.heads = make_heads(c, filler);
  }
  layer.is_moe = is_moe;
  if (!is_moe) {
    layer.feed_forward = feed_forward(c, c.intermediate_size, filler);
    return layer;
  }
  layer.moe.gate = filler.matrix(c.moe.num_experts, c.hidden_size);
  if (c.moe.has_bias) layer.moe.bias.assign(static_cast<std::size_t>(c.moe.num_experts), 0.0f);
  for (std::int64_t e = 0; e < c.moe.num_experts; ++e)
    layer.moe.experts.push_back(feed_forward(c, c.moe.intermediate_size, filler));
  if (c.moe.shared_experts > 0)
    layer.moe.shared = feed_forward(c, c.moe.shared_experts * c.moe.intermediate_size, filler);
  return layer;
}

}  // namespace

ModelConfig config_of_shape(const std::string& shape) {
  std::string names;
  for (const PublishedConfig& config : published_configs()) {
    if (config.name == shape) return parse_config(config.text, fmt::format("{}/config.json", config.source));
    names += fmt::format("{}, ", config.name);
  }
  std::error_code ignored;
  require(std::filesystem::is_directory(shape, ignored),
          "bench: found --shape {}, expected {}or a directory with a config.json", shape, names);
  return read_config(shape);
}

std::int64_t random_model_bytes(const ModelConfig& c, DType type) {
  const std::int64_t matrices = 8 + c.num_layers * (16 + 3 * c.moe.num_experts);  // at most
  return count_parameters(c).total * size_of(type) + matrices * line;
}

Transformer random_model(const ModelConfig& c, DType type) {
  Filler filler(type, random_model_bytes(c, type));
  ModelWeights weights;
  weights.embedding = filler.matrix(c.vocab_size, c.hidden_size, 1.0);
  for (const bool is_moe : c.layer_is_moe) weights.layers.push_back(make_layer(c, is_moe, filler));
  weights.final_norm = ones(c.hidden_size);
  weights.head = c.tied_head ? weights.embedding : filler.matrix(c.vocab_size, c.hidden_size);
  return Transformer::in_memory(c, std::move(weights), filler.take());
}

}  // namespace mla::app
