#include "mla/model/moe.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mla/kernels/ops.h"

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

/// Indices of the `count` largest values, best first; the lower index first among equals.
void best(const std::vector<float>& values, std::int64_t count, std::vector<std::int32_t>& indices) {
  indices.resize(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) indices[i] = static_cast<std::int32_t>(i);
  std::partial_sort(
      indices.begin(), indices.begin() + count, indices.end(),
      [&](std::int32_t a, std::int32_t b) { return values[a] != values[b] ? values[a] > values[b] : a < b; });
  indices.resize(static_cast<std::size_t>(count));
}

/// One token's choice at a time, in memory that the tokens share.
class Router {
 public:
  Router(const MoeConfig& config, const std::vector<float>& bias)
      : config_(config), bias_(bias), scores_(config.num_experts), choice_(config.num_experts) {}

  void choose(const float* logits, std::int32_t* experts, float* weights) {
    const bool is_softmax = config_.gate == GateKind::softmax;
    (is_softmax ? softmax : sigmoid)(logits, config_.num_experts, scores_.data());
    choice_ = scores_;
    for (std::size_t e = 0; e < bias_.size(); ++e) choice_[e] += bias_[e];
    if (config_.group_rank != GroupRank::none) drop_other_groups();
    best(choice_, config_.experts_per_token, chosen_);
    std::sort(chosen_.begin(), chosen_.end());

    float sum = 0.0f;
    for (const std::int32_t e : chosen_) sum += scores_[e];
    const float norm = config_.normalise ? sum + 1e-20f : 1.0f;
    for (std::size_t i = 0; i < chosen_.size(); ++i) {
      experts[i] = chosen_[i];
      weights[i] = scores_[chosen_[i]] / norm * static_cast<float>(config_.scale);
    }
  }

 private:
  void drop_other_groups() {
    const std::int64_t size = config_.num_experts / config_.num_groups;
    group_scores_.resize(config_.num_groups);
    for (std::int64_t g = 0; g < config_.num_groups; ++g) {
      float first = lowest, second = lowest;
      for (std::int64_t e = g * size; e < (g + 1) * size; ++e) {
        second = std::max(second, std::min(first, choice_[e]));
        first = std::max(first, choice_[e]);
      }
      group_scores_[g] = config_.group_rank == GroupRank::best ? first : first + second;
    }
    best(group_scores_, config_.groups_kept, chosen_);
    kept_.assign(config_.num_groups, false);
    for (const std::int32_t g : chosen_) kept_[g] = true;
    for (std::int64_t e = 0; e < config_.num_experts; ++e) {
      if (!kept_[e / size]) choice_[e] = lowest;
    }
  }

  const MoeConfig& config_;
  const std::vector<float>& bias_;
  std::vector<float> scores_, choice_, group_scores_;
  std::vector<std::int32_t> chosen_;
  std::vector<bool> kept_;
};

/// Adds one expert's weighted output for the tokens in scratch.members.
void add_expert(const MoeConfig& config, const FeedForwardWeights& expert, MatrixView<const float> x,
                DType compute, MoeScratch& scratch, MatrixView<float> out) {
  const auto count = static_cast<std::int64_t>(scratch.members.size());
  MatrixView<float> in = matrix_in(scratch.in, count, x.cols);
  MatrixView<float> result = matrix_in(scratch.out, count, x.cols);
  for (std::int64_t i = 0; i < count; ++i) {
    std::copy_n(x.row(scratch.members[i] / config.experts_per_token), x.cols, in.row(i));
  }
  feed_forward(expert, in, compute, scratch.feed_forward, result);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t token = scratch.members[i] / config.experts_per_token;
    add_scaled(result.block(i, 1), scratch.routing.weights[scratch.members[i]], out.block(token, 1));
  }
}

}  // namespace

void route(const MoeConfig& config, const std::vector<float>& bias, MatrixView<const float> logits,
           Routing& routing) {
  const std::int64_t k = config.experts_per_token;
  routing.experts.resize(logits.rows * k);
  routing.weights.resize(logits.rows * k);
  Router router(config, bias);
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    router.choose(logits.row(t), routing.experts.data() + t * k, routing.weights.data() + t * k);
  }
}

void moe_forward(const MoeConfig& config, const MoeWeights& weights, MatrixView<const float> x, DType compute,
                 MoeScratch& scratch, MatrixView<float> out) {
  MatrixView<float> logits = matrix_in(scratch.logits, x.rows, config.num_experts);
  matmul(x, weights.gate, DType::f32, logits);
  route(config, weights.bias, logits, scratch.routing);

  for (std::int64_t t = 0; t < out.rows; ++t) std::fill_n(out.row(t), out.cols, 0.0f);
  for (std::int64_t e = 0; e < config.num_experts;
       ++e) {  // a token's experts are summed in ascending order, in any company
    scratch.members.clear();
    for (std::size_t i = 0; i < scratch.routing.experts.size(); ++i) {
      if (scratch.routing.experts[i] == e) scratch.members.push_back(static_cast<std::int64_t>(i));
    }
    if (!scratch.members.empty()) add_expert(config, weights.experts[e], x, compute, scratch, out);
  }
  if (weights.shared.gate_proj.empty()) return;
  MatrixView<float> shared = matrix_in(scratch.out, x.rows, x.cols);
  feed_forward(weights.shared, x, compute, scratch.feed_forward, shared);
  add_scaled(shared, 1.0, out);
}

}  // namespace mla
