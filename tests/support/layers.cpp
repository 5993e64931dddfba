#include "support/layers.h"

#include <algorithm>
#include <cmath>
#include <complex>

namespace mla::test {
namespace {

Tensor matrix(std::int64_t rows, std::int64_t cols, Random& random) {
  return {rows, cols, random, 1.2 / std::sqrt(static_cast<double>(cols))};
}

std::vector<double> times(const Tensor& w, const std::vector<double>& x) {
  return plain_matmul(x, w.exact, 1, w.rows, w.cols);
}

std::vector<double> normed(std::vector<double> x, const Tensor& weight, double epsilon) {
  double squares = 0;
  for (const double v : x) squares += v * v;
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] *= weight.exact[i] / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
  return x;
}

/// Turns `dim` values from `x` as complex numbers. The angle is the f32 product that the models were trained
/// with.
void turn(double* x, const RopeSpec& spec, std::int64_t position) {
  const bool is_interleaved = spec.layout == RopeLayout::interleaved;
  for (std::int64_t i = 0; i < spec.dim / 2; ++i) {
    const auto frequency = static_cast<float>(
        1 / std::pow(spec.theta, static_cast<double>(2 * i) / static_cast<double>(spec.dim)));
    double& a = x[is_interleaved ? 2 * i : i];
    double& b = x[is_interleaved ? 2 * i + 1 : i + spec.dim / 2];
    const std::complex<double> z =
        std::complex(a, b) *
        std::polar(spec.attention_factor, static_cast<double>(static_cast<float>(position) * frequency));
    a = z.real();
    b = z.imag();
  }
}

/// exp of each score over their sum.
std::vector<double> softmax(std::vector<double> scores) {
  double sum = 0;
  for (double& p : scores) sum += p = std::exp(p);
  for (double& p : scores) p /= sum;
  return scores;
}

}  // namespace

// ---------------------------------------------------------------- key and value heads

HeadsLayer::HeadsLayer(const HeadsSizes& s, Random& random)
    : shape{s.d, s.heads, s.kv_heads, s.head_dim, 1 / std::sqrt(static_cast<double>(s.head_dim))},
      q_proj(matrix(s.heads * s.head_dim, s.d, random)),
      k_proj(matrix(s.kv_heads * s.head_dim, s.d, random)),
      v_proj(matrix(s.kv_heads * s.head_dim, s.d, random)),
      o_proj(matrix(s.d, s.heads * s.head_dim, random)) {
  spec.dim = s.is_rotated ? s.head_dim : 0;
  spec.layout = RopeLayout::half_split;
}

HeadsWeights HeadsLayer::weights() const {
  return {as_weight(q_proj.view()), as_weight(k_proj.view()), as_weight(v_proj.view()),
          as_weight(o_proj.view())};
}

TrainedHeads HeadsLayer::trained() {
  return {q_proj.trained(), k_proj.trained(), v_proj.trained(), o_proj.trained()};
}

NamedTensors HeadsLayer::tensors() {
  return {{"q_proj", &q_proj}, {"k_proj", &k_proj}, {"v_proj", &v_proj}, {"o_proj", &o_proj}};
}

LayerAnswer HeadsLayer::formulas(const Matrix& x, std::int64_t first_position) const {
  const std::int64_t dim = shape.head_dim;
  LayerAnswer answer;
  for (std::size_t t = 0; t < x.size(); ++t) {
    const std::int64_t position = first_position + static_cast<std::int64_t>(t);
    std::vector<double> q = times(q_proj, x[t]), k = times(k_proj, x[t]), row;
    const std::vector<double> v = times(v_proj, x[t]);
    for (std::int64_t h = 0; h < shape.num_kv_heads; ++h) {
      turn(k.data() + h * dim, spec, position);
      row.insert(row.end(), k.begin() + h * dim, k.begin() + (h + 1) * dim);
      row.insert(row.end(), v.begin() + h * dim, v.begin() + (h + 1) * dim);
    }
    answer.rows.push_back(row);

    std::vector<double> concatenated;
    for (std::int64_t h = 0; h < shape.num_heads; ++h) {
      const std::int64_t key = h * shape.num_kv_heads / shape.num_heads * 2 * dim;
      double* query = q.data() + h * dim;
      turn(query, spec, position);
      std::vector<double> scores(t + 1);
      for (std::size_t j = 0; j <= t; ++j) {
        for (std::int64_t i = 0; i < dim; ++i)
          scores[j] += query[i] * answer.rows[j][key + i] * shape.softmax_scale;
      }
      const std::vector<double> p = softmax(scores);
      for (std::int64_t i = 0; i < dim; ++i) {
        double value = 0;
        for (std::size_t j = 0; j <= t; ++j) value += p[j] * answer.rows[j][key + dim + i];
        concatenated.push_back(value);
      }
    }
    answer.out.push_back(times(o_proj, concatenated));
  }
  return answer;
}

// ---------------------------------------------------------------- latent attention

MlaLayer::MlaLayer(const MlaSizes& s, Random& random)
    : shape{s.d,   s.heads, s.q_rank, s.d_c,
            s.d_n, s.d_r,   s.d_v,    1 / std::sqrt(static_cast<double>(s.d_n + s.d_r)),
            1e-6} {
  spec.dim = s.d_r;
  spec.layout = s.layout;
  if (s.q_rank > 0) q_a_proj = matrix(s.q_rank, s.d, random);
  q_proj = matrix(s.heads * (s.d_n + s.d_r), s.q_rank > 0 ? s.q_rank : s.d, random);
  if (s.q_rank > 0) q_a_norm = Tensor(1, s.q_rank, random);
  kv_a_proj = matrix(s.d_c + s.d_r, s.d, random);
  kv_a_norm = Tensor(1, s.d_c, random);
  kv_b_proj = matrix(s.heads * (s.d_n + s.d_v), s.d_c, random);
  o_proj = matrix(s.d, s.heads * s.d_v, random);
}

MlaWeights MlaLayer::weights() const {
  MlaWeights w;
  const bool compresses = shape.q_lora_rank > 0;
  if (compresses) w.q_a_proj = as_weight(q_a_proj.view());
  w.q_a_norm = q_a_norm.values;
  (compresses ? w.q_b_proj : w.q_proj) = as_weight(q_proj.view());
  w.kv_a_proj = as_weight(kv_a_proj.view());
  w.kv_a_norm = kv_a_norm.values;
  w.kv_b_proj = as_weight(kv_b_proj.view());
  w.o_proj = as_weight(o_proj.view());
  return w;
}

TrainedMla MlaLayer::trained() {
  TrainedMla w;
  const bool compresses = shape.q_lora_rank > 0;
  if (compresses) w.q_a_proj = q_a_proj.trained();
  if (compresses) w.q_a_norm = q_a_norm.trained();
  (compresses ? w.q_b_proj : w.q_proj) = q_proj.trained();
  w.kv_a_proj = kv_a_proj.trained();
  w.kv_a_norm = kv_a_norm.trained();
  w.kv_b_proj = kv_b_proj.trained();
  w.o_proj = o_proj.trained();
  return w;
}

NamedTensors MlaLayer::tensors() {
  NamedTensors all{{"kv_a_proj", &kv_a_proj},
                   {"kv_a_norm", &kv_a_norm},
                   {"kv_b_proj", &kv_b_proj},
                   {"o_proj", &o_proj},
                   {"q_proj", &q_proj}};
  if (shape.q_lora_rank > 0) all.insert(all.end(), {{"q_a_proj", &q_a_proj}, {"q_a_norm", &q_a_norm}});
  return all;
}

LayerAnswer MlaLayer::formulas(const Matrix& x, std::int64_t first_position) const {
  const MlaShape& s = shape;
  const std::int64_t d_n = s.qk_nope_head_dim, d_r = s.qk_rope_head_dim, d_v = s.v_head_dim,
                     d_c = s.kv_lora_rank;
  LayerAnswer answer;
  Matrix decompressed;  // [tokens][per head: k_nope, v]
  for (std::size_t t = 0; t < x.size(); ++t) {
    const std::int64_t position = first_position + static_cast<std::int64_t>(t);
    std::vector<double> row = times(kv_a_proj, x[t]);
    const std::vector<double> c = normed({row.begin(), row.begin() + d_c}, kv_a_norm, s.norm_epsilon);
    std::copy(c.begin(), c.end(), row.begin());
    turn(row.data() + d_c, spec, position);
    answer.rows.push_back(row);
    decompressed.push_back(times(kv_b_proj, c));

    const auto latent = s.q_lora_rank > 0 ? normed(times(q_a_proj, x[t]), q_a_norm, s.norm_epsilon) : x[t];
    std::vector<double> q = times(q_proj, latent), concatenated;
    for (std::int64_t h = 0; h < s.num_heads; ++h) {
      double* query = q.data() + h * (d_n + d_r);
      turn(query + d_n, spec, position);
      std::vector<double> scores(t + 1);
      for (std::size_t j = 0; j <= t; ++j) {
        double score = 0;
        for (std::int64_t i = 0; i < d_n; ++i) score += query[i] * decompressed[j][h * (d_n + d_v) + i];
        for (std::int64_t i = 0; i < d_r; ++i) score += query[d_n + i] * answer.rows[j][d_c + i];
        scores[j] = score * s.softmax_scale;
      }
      const std::vector<double> p = softmax(scores);
      for (std::int64_t i = 0; i < d_v; ++i) {
        double value = 0;
        for (std::size_t j = 0; j <= t; ++j) value += p[j] * decompressed[j][h * (d_n + d_v) + d_n + i];
        concatenated.push_back(value);
      }
    }
    answer.out.push_back(times(o_proj, concatenated));
  }
  return answer;
}

}  // namespace mla::test
