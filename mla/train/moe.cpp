#include <algorithm>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/kernels/leaf.h"
#include "mla/kernels/ops.h"
#include "mla/train/feed_forward.h"

namespace mla {
namespace {

/// The gradient of one token's gate logits from that of its experts' weights. Scores s come of the logits of
/// all experts; the weights of the chosen ones are w = scale s / (sum of the chosen s + 1e-20) if they are
/// normalised, else scale s. Who is chosen has no gradient.
void gate_backward(const MoeConfig& config, const float* logits, const std::int32_t* chosen,
                   const float* d_weights, float* d_logits) {
  const std::int64_t n = config.num_experts, k = config.experts_per_token;
  thread_local std::vector<float> scores;
  scores.resize(static_cast<std::size_t>(n));
  gate_scores(config.gate, logits, n, scores.data());
  const auto scale = static_cast<float>(config.scale);
  float sum = 0.0f, pull = 0.0f;  // pull: the sum of w / scale times d_w
  for (std::int64_t i = 0; i < k; ++i) sum += scores[chosen[i]];
  const float norm = config.normalise ? sum + 1e-20f : 1.0f;
  for (std::int64_t i = 0; i < k && config.normalise; ++i) pull += scores[chosen[i]] / norm * d_weights[i];

  // d_logits holds the gradients of the scores first.
  std::fill_n(d_logits, n, 0.0f);
  for (std::int64_t i = 0; i < k; ++i) d_logits[chosen[i]] = scale / norm * (d_weights[i] - pull);
  if (config.gate == GateKind::sigmoid) {
    for (std::int64_t i = 0; i < k; ++i) {
      const float s = scores[chosen[i]];
      d_logits[chosen[i]] *= s * (1.0f - s);
    }
    return;
  }
  float mean = 0.0f;
  for (std::int64_t i = 0; i < k; ++i) mean += scores[chosen[i]] * d_logits[chosen[i]];
  for (std::int64_t e = 0; e < n; ++e) d_logits[e] = scores[e] * (d_logits[e] - mean);
}

/// Each choice's gradient to its place among the grouped ones, and each token's to its gate logits.
void scatter(const MoeConfig& config, MatrixView<const float> d_out, MoeScratch& forward,
             MatrixView<float> d_choices, MatrixView<float> d_logits) {
  const std::int64_t k = config.experts_per_token, d = d_out.cols;
  const MatrixView<const float> results(forward.out.data(), d_out.rows * k, d);
  const MatrixView<const float> logits(forward.logits.data(), d_out.rows, config.num_experts);
  parallel_for(d_out.rows, k * d * work_of_value, [&](std::int64_t t) {
    thread_local std::vector<float> d_weights;
    d_weights.resize(static_cast<std::size_t>(k));
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int64_t place = forward.place[t * k + i];
      const float weight = forward.routing.weights[t * k + i];
      d_weights[i] = leaf_kernels().dot(d_out.row(t), results.row(place), d);
      for (std::int64_t c = 0; c < d; ++c) d_choices.row(place)[c] = weight * d_out.row(t)[c];
    }
    gate_backward(config, logits.row(t), forward.routing.experts.data() + t * k, d_weights.data(),
                  d_logits.row(t));
  });
}

/// Writes d_in, the gradients of the grouped choices' inputs.
void experts_backward(const MoeConfig& config, const TrainedMoe& weights, MatrixView<const float> d_choices,
                      DType compute, MoeScratch& forward, MatrixView<float> d_hidden,
                      MatrixView<float> d_in) {
  const std::int64_t choices = d_in.rows, width = config.intermediate_size;
  const MatrixView<const float> in(forward.in.data(), choices, d_in.cols);
  const MatrixView<const float> hidden(forward.hidden.data(), choices, width);
  const MatrixView<float> gate(forward.gate.data(), choices, width), up(forward.up.data(), choices, width);
  const auto run = [&](std::int64_t e) {
    const std::int64_t first = forward.first[e], count = forward.first[e + 1] - first;
    if (count == 0) return;
    feed_forward_backward(
        weights.experts[static_cast<std::size_t>(e)],
        {in.block(first, count), gate.block(first, count), up.block(first, count), hidden.block(first, count),
         d_choices.block(first, count), d_hidden.block(first, count), d_in.block(first, count), false},
        compute);
  };
  // Many experts are dealt out to the threads, which then don't wait for each other; few share each one.
  const std::int64_t experts = config.num_experts;
  if (experts >= 4 * threads())
    parallel_for(experts, 9 * choices * width * d_in.cols / experts, run);
  else
    for (std::int64_t e = 0; e < experts; ++e) run(e);
}

}  // namespace

MoeWeights TrainedMoe::weights() const {
  MoeWeights all;
  all.gate = gate.weight();
  if (!bias.empty()) all.bias.assign(bias.vector().begin(), bias.vector().end());
  for (const TrainedFeedForward& expert : experts) all.experts.push_back(expert.weights());
  if (!shared.empty()) all.shared = shared.weights();
  return all;
}

void moe_taped(const MoeConfig& config, const TrainedMoe& weights, MatrixView<const float> x, DType compute,
               MoeTape& tape, MatrixView<float> out, std::span<std::int64_t> load) {
  require(load.empty() || static_cast<std::int64_t>(load.size()) == config.num_experts,
          "mixture: found {} loads, expected none or {}", load.size(), config.num_experts);
  tape.forward.for_training = true;
  moe_forward(config, weights.weights(), x, compute, tape.forward, out);
  tape.forward.runs.clear();  // they point to weights that are gone
  for (std::size_t e = 0; e < load.size(); ++e) load[e] += tape.forward.first[e + 1] - tape.forward.first[e];
}

void moe_backward(const MoeConfig& config, const TrainedMoe& weights, MatrixView<const float> x,
                  MatrixView<const float> d_out, DType compute, MoeTape& tape,
                  FeedForwardBackwardScratch& scratch, MatrixView<float> d_x) {
  MoeScratch& forward = tape.forward;
  const std::int64_t k = config.experts_per_token, choices = x.rows * k, width = config.intermediate_size;
  const MatrixView<float> d_choices = matrix_in(scratch.d_out, choices, x.cols);
  const MatrixView<float> d_in = matrix_in(scratch.d_in, choices, x.cols);
  const MatrixView<float> d_logits = matrix_in(scratch.d_logits, x.rows, config.num_experts);
  scatter(config, d_out, forward, d_choices, d_logits);
  experts_backward(config, weights, d_choices, compute, forward, matrix_in(scratch.d_hidden, choices, width),
                   d_in);

  linear_backward(x, weights.gate, d_logits, DType::f32, d_x);
  parallel_for(x.rows, k * x.cols * work_of_value, [&](std::int64_t t) {
    for (std::int64_t i = t * k; i < (t + 1) * k; ++i)
      add_scaled(d_in.block(forward.place[i], 1), 1.0, d_x.block(t, 1));
  });
  if (weights.shared.empty()) return;
  const std::int64_t shared = weights.shared.gate_proj.value.rows;
  const auto view = [&](Buffer<float>& buffer) { return MatrixView<float>(buffer.data(), x.rows, shared); };
  feed_forward_backward(weights.shared,
                        {x, view(forward.shared.gate), view(forward.shared.up), view(forward.shared_hidden),
                         d_out, matrix_in(scratch.d_hidden, x.rows, shared), d_x, true},
                        compute);
}

void move_bias(std::span<const std::int64_t> load, double rate, const Trained& bias) {
  const auto experts = static_cast<std::int64_t>(load.size());
  require(bias.value.cols == experts, "bias: found {} loads, expected {}", experts, bias.value.cols);
  std::int64_t total = 0;
  for (const std::int64_t tokens : load) total += tokens;
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int64_t more = load[e] * experts - total;  // than the mean, times experts
    if (more != 0) bias.value.data[e] += static_cast<float>(more < 0 ? rate : -rate);
  }
}

}  // namespace mla
