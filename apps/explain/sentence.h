#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "apps/explain/topics.h"
#include "mla/attention/mla.h"
#include "mla/cache/kv_cache.h"

namespace mla::app {

/// Some words that the embedded model has read, and what attention in its last layer works with: what most
/// topics show on real weights.
struct Sentence {
  std::vector<std::int32_t> ids;
  std::vector<std::string> tokens;  ///< the text of each
  MlaShape shape;
  const MlaWeights* weights = nullptr;
  std::int64_t layer = 0;
  std::vector<float> stream;   ///< [tokens, d] what the layer's attention reads, normed
  std::vector<float> queries;  ///< [tokens, n_h (d_n + d_r)], rotated
  std::vector<float> rows;     ///< [tokens, d_c + d_r]: c_kv, and the rotated key

  std::int64_t size() const { return static_cast<std::int64_t>(ids.size()); }
  const float* query(std::int64_t token, std::int64_t head) const {
    return queries.data() + (token * shape.num_heads + head) * shape.qk_head_dim();
  }
  const float* row(std::int64_t token) const { return rows.data() + token * shape.latent_width(); }
};

/// The model reads `text`. The layers before the last run as in `mla generate`; the last one's inputs are
/// made here by the library's own steps.
Sentence read_sentence(Explained& with, const std::string& text);

/// The text that topics read.
inline constexpr const char* usual_text = "In the beginning God created the heaven and the earth.";

/// W_UK [d_n, d_c] or W_UV [d_v, d_c] of a head as f32, row by row.
std::vector<float> dense(const Weight& weight);

double dot(const float* a, const float* b, std::int64_t n);

/// The sizes of a published model, by its name in published_configs(): "v3".
ModelConfig published(std::string_view name);

}  // namespace mla::app
