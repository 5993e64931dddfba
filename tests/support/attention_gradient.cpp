#include "support/attention_gradient.h"

#include <algorithm>
#include <cmath>

namespace mla::test {
namespace {

/// One query of one head; its rows' gradients are added to `answer`, its own lie at `place`.
struct Query {
  const AttentionShape& shape;
  const float* q;
  const float* d_out;
  std::int64_t seen, kv_head, place;

  double score(const float* key) const {
    double sum = 0;
    for (std::int64_t i = 0; i < shape.d_qk; ++i) sum += static_cast<double>(q[i]) * key[i];
    return sum * static_cast<double>(shape.scale);
  }

  void add(const PlainRows& rows, GradientAnswer& answer) const {
    std::vector<double> p, d_p, d_p_size;
    for (std::int64_t r = 0; r < seen; ++r) {
      const float* v = rows.value(r, kv_head);
      p.push_back(score(rows.key(r, kv_head)));
      double sum = 0, size = 0;
      for (std::int64_t i = 0; i < shape.d_v; ++i) {
        sum += static_cast<double>(d_out[i]) * v[i];
        size += std::abs(static_cast<double>(d_out[i]) * v[i]);
      }
      d_p.push_back(sum);
      d_p_size.push_back(size);
    }
    const double top = *std::max_element(p.begin(), p.end());
    double sum = 0, mean = 0, mean_size = 0;
    for (double& x : p) sum += x = std::exp(x - top);
    for (std::int64_t r = 0; r < seen; ++r) {
      p[r] /= sum;
      mean += p[r] * d_p[r];
      mean_size += p[r] * d_p_size[r];
    }
    const auto scale = static_cast<double>(shape.scale);
    for (std::int64_t r = 0; r < seen; ++r)
      add_row(rows, r, p[r], scale * p[r] * (d_p[r] - mean), scale * p[r] * (d_p_size[r] + mean_size),
              answer);
  }

  void add_row(const PlainRows& rows, std::int64_t r, double p, double d_score, double size,
               GradientAnswer& answer) const {
    const float* k = rows.key(r, kv_head);
    const std::int64_t key = k - rows.data.data(), value = rows.value(r, kv_head) - rows.data.data();
    for (std::int64_t i = 0; i < shape.d_qk; ++i) {
      answer.d_queries[place + i] += d_score * static_cast<double>(k[i]);
      answer.d_queries_size[place + i] += size * std::abs(static_cast<double>(k[i]));
      answer.d_rows[key + i] += d_score * static_cast<double>(q[i]);
      answer.d_rows_size[key + i] += size * std::abs(static_cast<double>(q[i]));
    }
    for (std::int64_t i = 0; i < shape.d_v; ++i) {
      answer.d_rows[value + i] += p * static_cast<double>(d_out[i]);
      answer.d_rows_size[value + i] += p * std::abs(static_cast<double>(d_out[i]));
    }
  }
};

}  // namespace

GradientAnswer plain_attention_gradient(const AttentionShape& shape, const QueryView& queries,
                                        const PlainRows& rows, const std::vector<float>& d_out) {
  GradientAnswer answer;
  answer.d_queries.resize(static_cast<std::size_t>(queries.tokens * shape.h_q * shape.d_qk));
  answer.d_queries_size.resize(answer.d_queries.size());
  answer.d_rows.resize(rows.data.size());
  answer.d_rows_size.resize(rows.data.size());
  for (std::int64_t t = 0; t < queries.tokens; ++t) {
    const std::int64_t seen = shape.causal ? rows.length - (queries.tokens - 1 - t) : rows.length;
    for (std::int64_t h = 0; h < shape.h_q && seen > 0; ++h) {
      const std::int64_t place = t * shape.h_q + h;
      const Query query{shape,
                        queries.data + t * queries.token_stride + h * queries.head_stride,
                        d_out.data() + place * shape.d_v,
                        seen,
                        h * shape.h_kv / shape.h_q,
                        place * shape.d_qk};
      query.add(rows, answer);
    }
  }
  return answer;
}

}  // namespace mla::test
