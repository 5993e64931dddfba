#include "mla/compare/head_diversity.h"

#include <algorithm>
#include <cmath>

#include "mla/core/error.h"
#include "mla/core/parallel.h"

namespace mla {
namespace {

const float* key_of(const HeadsSeen& s, std::int64_t token, std::int64_t head) {
  return s.rows.row(token) + head / (s.shape.h_q / s.shape.h_kv) * s.key_stride;
}

/// maps [h_q][seen]: where each head of the query `token` looks, of its sequence's `seen` first tokens.
void attention_maps(const HeadsSeen& s, std::int64_t token, std::int64_t seen, std::vector<double>& maps) {
  const std::int64_t first = token - (seen - 1);
  maps.resize(s.shape.h_q * seen);
  for (std::int64_t h = 0; h < s.shape.h_q; ++h) {
    const float* query = s.queries.row(token) + h * s.shape.d_qk;
    double* map = maps.data() + h * seen;
    for (std::int64_t t = 0; t < seen; ++t) {
      const float* key = key_of(s, first + t, h);
      double score = 0;
      for (std::int64_t i = 0; i < s.shape.d_qk; ++i) score += static_cast<double>(query[i]) * key[i];
      map[t] = score * s.shape.scale;
    }
    const double highest = *std::max_element(map, map + seen);
    double sum = 0;
    for (std::int64_t t = 0; t < seen; ++t) sum += map[t] = std::exp(map[t] - highest);
    for (std::int64_t t = 0; t < seen; ++t) map[t] /= sum;
  }
}

double jensen_shannon_distance(const double* p, const double* q, std::int64_t n) {
  double bits = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double mean = 0.5 * (p[i] + q[i]);
    if (p[i] > 0) bits += 0.5 * p[i] * std::log2(p[i] / mean);
    if (q[i] > 0) bits += 0.5 * q[i] * std::log2(q[i] / mean);
  }
  return std::sqrt(std::clamp(bits, 0.0, 1.0));  // rounding may leave the range by 1e-16
}

/// Sums of the distances of all pairs over one sequence's queries: distances [h_q][h_q], upper half.
std::vector<double> sequence_distances(const HeadsSeen& s, std::int64_t sequence) {
  const std::int64_t heads = s.shape.h_q;
  std::vector<double> distances(heads * heads), maps;
  for (std::int64_t t = 1; t < s.length; ++t) {
    attention_maps(s, sequence * s.length + t, t + 1, maps);
    for (std::int64_t a = 0; a < heads; ++a) {
      for (std::int64_t b = a + 1; b < heads; ++b)
        distances[a * heads + b] +=
            jensen_shannon_distance(maps.data() + a * (t + 1), maps.data() + b * (t + 1), t + 1);
    }
  }
  return distances;
}

/// [tokens][h_q d_qk], centred.
std::vector<double> stacked_keys(const HeadsSeen& s) {
  const std::int64_t d = s.shape.d_qk, width = s.shape.h_q * d, tokens = s.rows.rows;
  std::vector<double> keys(tokens * width), mean(width);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t h = 0; h < s.shape.h_q; ++h) std::copy_n(key_of(s, t, h), d, &keys[t * width + h * d]);
    for (std::int64_t i = 0; i < width; ++i) mean[i] += keys[t * width + i] / static_cast<double>(tokens);
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < width; ++i) keys[t * width + i] -= mean[i];
  }
  return keys;
}

/// The eigenvalues' sums come from the covariance itself: its trace, and the sum of its squared entries.
double effective_rank(const std::vector<double>& keys, std::int64_t width) {
  const std::int64_t tokens = std::ssize(keys) / width;
  std::vector<double> traces(width), squares(width);
  parallel_for(width, tokens * width, [&](std::int64_t i) {
    std::vector<double> row(width);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const double* key = &keys[t * width];
      for (std::int64_t j = 0; j < width; ++j) row[j] += key[i] * key[j];
    }
    traces[i] = row[i];
    for (const double x : row) squares[i] += x * x;
  });
  double trace = 0, square = 0;
  for (std::int64_t i = 0; i < width; ++i) trace += traces[i], square += squares[i];
  return square > 0 ? trace * trace / square : 0;
}

void check(const HeadsSeen& s) {
  const AttentionShape& a = s.shape;
  require(a.h_q >= 1 && a.h_kv >= 1 && a.h_q % a.h_kv == 0 && a.d_qk >= 1 && s.length >= 2,
          "head diversity: found {} query heads on {} of keys, width {}, sequences of {} tokens, expected a "
          "multiple of the kv heads and at least 2 tokens",
          a.h_q, a.h_kv, a.d_qk, s.length);
  require(s.queries.cols == a.h_q * a.d_qk && s.queries.rows == s.rows.rows && s.rows.rows % s.length == 0 &&
              s.rows.rows > 0 && s.rows.cols >= (a.h_kv - 1) * s.key_stride + a.d_qk,
          "head diversity: found queries [{}, {}] and rows [{}, {}], expected sequences of {} tokens with {} "
          "heads of {}",
          s.queries.rows, s.queries.cols, s.rows.rows, s.rows.cols, s.length, a.h_q, a.d_qk);
}

}  // namespace

HeadDiversity head_diversity(const HeadsSeen& s) {
  check(s);
  const std::int64_t heads = s.shape.h_q, sequences = s.rows.rows / s.length;
  std::vector<std::vector<double>> sums(sequences);
  parallel_for(sequences, s.length * s.length * heads * s.shape.d_qk,
               [&](std::int64_t i) { sums[i] = sequence_distances(s, i); });

  HeadDiversity diversity;
  diversity.distances.resize(heads * heads);
  const auto queries = static_cast<double>(sequences * (s.length - 1));
  for (std::int64_t a = 0; a < heads; ++a) {
    for (std::int64_t b = a + 1; b < heads; ++b) {
      double sum = 0;
      for (const std::vector<double>& one : sums) sum += one[a * heads + b];
      diversity.distances[a * heads + b] = diversity.distances[b * heads + a] = sum / queries;
      diversity.map_distance += sum / queries / static_cast<double>(heads * (heads - 1) / 2);
    }
  }
  diversity.key_rank = effective_rank(stacked_keys(s), heads * s.shape.d_qk);
  return diversity;
}

}  // namespace mla
