#include "mla/model/moe.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mla/core/parallel.h"
#include "mla/kernels/ops.h"
#include "mla/kernels/panel_matmul.h"

namespace mla {
namespace {

constexpr float lowest = -std::numeric_limits<float>::infinity();

void softmax(const float* logits, std::int64_t n, float* scores) {
  const float top = *std::max_element(logits, logits + n);
  float sum = 0.0f;
  for (std::int64_t i = 0; i < n; ++i) sum += scores[i] = std::exp(logits[i] - top);
  for (std::int64_t i = 0; i < n; ++i) scores[i] /= sum;
}

void sigmoid(const float* logits, std::int64_t n, float* scores) {
  for (std::int64_t i = 0; i < n; ++i) scores[i] = 1.0f / (1.0f + std::exp(-logits[i]));
}

/// Memory of one thread's choices.
struct Choosing {
  std::vector<float> scores, choice, group_scores;
  std::vector<std::int32_t> chosen;
  std::vector<char> kept;
};

/// Indices of the `count` largest values, best first; the lower index first among equals.
void best(const std::vector<float>& values, std::int64_t count, std::vector<std::int32_t>& indices) {
  indices.resize(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) indices[i] = static_cast<std::int32_t>(i);
  std::partial_sort(
      indices.begin(), indices.begin() + count, indices.end(),
      [&](std::int32_t a, std::int32_t b) { return values[a] != values[b] ? values[a] > values[b] : a < b; });
  indices.resize(static_cast<std::size_t>(count));
}

void drop_other_groups(const MoeConfig& config, Choosing& m) {
  const std::int64_t size = config.num_experts / config.num_groups;
  m.group_scores.resize(config.num_groups);
  for (std::int64_t g = 0; g < config.num_groups; ++g) {
    float first = lowest, second = lowest;
    for (std::int64_t e = g * size; e < (g + 1) * size; ++e) {
      second = std::max(second, std::min(first, m.choice[e]));
      first = std::max(first, m.choice[e]);
    }
    m.group_scores[g] = config.group_rank == GroupRank::best ? first : first + second;
  }
  best(m.group_scores, config.groups_kept, m.chosen);
  m.kept.assign(config.num_groups, 0);
  for (const std::int32_t g : m.chosen) m.kept[g] = 1;
  for (std::int64_t e = 0; e < config.num_experts; ++e) {
    if (!m.kept[e / size]) m.choice[e] = lowest;
  }
}

/// One token's experts, in ascending order, and their weights.
void choose(const MoeConfig& config, const std::vector<float>& bias, const float* logits, Choosing& m,
            std::int32_t* experts, float* weights) {
  m.scores.resize(config.num_experts);
  gate_scores(config.gate, logits, config.num_experts, m.scores.data());
  m.choice = m.scores;
  for (std::size_t e = 0; e < bias.size(); ++e) m.choice[e] += bias[e];
  if (config.group_rank != GroupRank::none) drop_other_groups(config, m);
  best(m.choice, config.experts_per_token, m.chosen);
  std::sort(m.chosen.begin(), m.chosen.end());

  float sum = 0.0f;
  for (const std::int32_t e : m.chosen) sum += m.scores[e];
  const float norm = config.normalise ? sum + 1e-20f : 1.0f;
  for (std::size_t i = 0; i < m.chosen.size(); ++i) {
    experts[i] = m.chosen[i];
    weights[i] = m.scores[m.chosen[i]] / norm * static_cast<float>(config.scale);
  }
}

/// Finds scratch.first and scratch.place.
void group_by_expert(const MoeConfig& config, MoeScratch& scratch) {
  const std::vector<std::int32_t>& experts = scratch.routing.experts;
  scratch.first.assign(static_cast<std::size_t>(config.num_experts + 1), 0);
  for (const std::int32_t e : experts) ++scratch.first[e + 1];
  for (std::int64_t e = 0; e < config.num_experts; ++e) scratch.first[e + 1] += scratch.first[e];
  scratch.place.resize(experts.size());
  for (std::size_t i = 0; i < experts.size(); ++i) scratch.place[i] = scratch.first[experts[i]]++;
  for (std::int64_t e = config.num_experts; e > 0; --e) scratch.first[e] = scratch.first[e - 1];
  scratch.first[0] = 0;
}

/// Copies each choice's token to its place.
void gather(const MoeConfig& config, MatrixView<const float> x, MoeScratch& scratch) {
  const std::int64_t k = config.experts_per_token;
  MatrixView<float> in = matrix_in(scratch.in, x.rows * k, x.cols);
  parallel_for(x.rows, k * x.cols * work_of_value, [&](std::int64_t t) {
    for (std::int64_t i = t * k; i < (t + 1) * k; ++i)
      std::copy_n(x.row(t), x.cols, in.row(scratch.place[i]));
  });
}

/// A run for each expert that was chosen, and one for the shared experts.
void list_runs(const MoeConfig& config, const MoeWeights& weights, MatrixView<const float> x,
               MoeScratch& scratch) {
  const std::int64_t choices = x.rows * config.experts_per_token, width = config.intermediate_size;
  const MatrixView<float> in(scratch.in.data(), choices, x.cols);
  const MatrixView<float> gate = matrix_in(scratch.gate, choices, width);
  const MatrixView<float> up = matrix_in(scratch.up, choices, width);
  const MatrixView<float> hidden = scratch.for_training ? matrix_in(scratch.hidden, choices, width) : gate;
  const MatrixView<float> out = matrix_in(scratch.out, choices, x.cols);
  scratch.runs.clear();
  for (std::int64_t e = 0; e < config.num_experts; ++e) {
    const std::int64_t first = scratch.first[e], count = scratch.first[e + 1] - first;
    if (count == 0) continue;
    scratch.runs.push_back({&weights.experts[e], in.block(first, count), gate.block(first, count),
                            up.block(first, count), hidden.block(first, count), out.block(first, count)});
  }
  if (weights.shared.gate_proj.empty()) return;
  const std::int64_t shared_width = weights.shared.gate_proj.rows;
  const MatrixView<float> shared_gate = matrix_in(scratch.shared.gate, x.rows, shared_width);
  const MatrixView<float> shared_hidden =
      scratch.for_training ? matrix_in(scratch.shared_hidden, x.rows, shared_width) : shared_gate;
  scratch.runs.push_back({&weights.shared, x, shared_gate, matrix_in(scratch.shared.up, x.rows, shared_width),
                          shared_hidden, matrix_in(scratch.shared_out, x.rows, x.cols)});
}

/// A token's experts are summed in ascending order, in any company; the shared ones come last.
void sum_experts(const MoeConfig& config, bool has_shared, MoeScratch& scratch, MatrixView<float> out) {
  const std::int64_t k = config.experts_per_token;
  const MatrixView<float> results(scratch.out.data(), out.rows * k, out.cols);
  const MatrixView<float> shared(scratch.shared_out.data(), out.rows, out.cols);
  parallel_for(out.rows, (k + 1) * out.cols * work_of_value, [&](std::int64_t t) {
    std::fill_n(out.row(t), out.cols, 0.0f);
    for (std::int64_t i = t * k; i < (t + 1) * k; ++i)
      add_scaled(results.block(scratch.place[i], 1), scratch.routing.weights[i], out.block(t, 1));
    if (has_shared) add_scaled(shared.block(t, 1), 1.0, out.block(t, 1));
  });
}

}  // namespace

void gate_scores(GateKind gate, const float* logits, std::int64_t experts, float* scores) {
  (gate == GateKind::softmax ? softmax : sigmoid)(logits, experts, scores);
}

void route(const MoeConfig& config, const std::vector<float>& bias, MatrixView<const float> logits,
           Routing& routing) {
  const std::int64_t k = config.experts_per_token;
  routing.experts.resize(logits.rows * k);
  routing.weights.resize(logits.rows * k);
  parallel_for(logits.rows, config.num_experts * work_of_exp, [&](std::int64_t t) {
    thread_local Choosing memory;
    choose(config, bias, logits.row(t), memory, routing.experts.data() + t * k,
           routing.weights.data() + t * k);
  });
}

void moe_forward(const MoeConfig& config, const MoeWeights& weights, MatrixView<const float> x, DType compute,
                 MoeScratch& scratch, MatrixView<float> out) {
  MatrixView<float> logits = matrix_in(scratch.logits, x.rows, config.num_experts);
  matmul(x, weights.gate, DType::f32, logits);
  route(config, weights.bias, logits, scratch.routing);
  group_by_expert(config, scratch);
  gather(config, x, scratch);
  list_runs(config, weights, x, scratch);
  feed_forward(scratch.runs, compute, scratch.for_training ? panel_matmul : matmul);
  sum_experts(config, !weights.shared.gate_proj.empty(), scratch, out);
}

}  // namespace mla
