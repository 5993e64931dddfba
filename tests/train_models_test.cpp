// Small models as a whole, of either kind of attention and with every kind of position: the loss is that of
// the engine's logits, and its gradient that of its finite differences.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "mla/model/safetensors_writer.h"
#include "mla/runtime/session.h"
#include "mla/train/presets.h"
#include "mla/train/trained_transformer.h"
#include "support/files.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Random;

struct SmallModel {
  std::string name, config;
  MlaForm form;
};

void PrintTo(const SmallModel& model, std::ostream* out) {
  *out << model.name;
}

SmallModel heads_model(const std::string& position, std::int64_t heads, std::int64_t kv_heads,
                       std::int64_t head_dim, bool tied_head = false) {
  const nlohmann::json config{{"model_type", "llama"},
                              {"vocab_size", 40},
                              {"hidden_size", 24},
                              {"intermediate_size", 32},
                              {"num_hidden_layers", 2},
                              {"num_attention_heads", heads},
                              {"num_key_value_heads", kv_heads},
                              {"head_dim", head_dim},
                              {"max_position_embeddings", 64},
                              {"rms_norm_eps", 1e-5},
                              {"hidden_act", "silu"},
                              {"position_encoding", position},
                              {"tie_word_embeddings", tied_head}};
  return {fmt::format("{}_heads_over_{}_{}", heads, kv_heads, position), config.dump(), MlaForm::decompress};
}

/// A dense DeepSeek-V3: where a router chooses, the loss has steps.
SmallModel latent_model(std::int64_t rope_dim, MlaForm form) {
  nlohmann::json config = nlohmann::json::parse(preset_config("tiny", {40}));
  config["hidden_size"] = 24;
  config["intermediate_size"] = 32;
  config["num_hidden_layers"] = config["first_k_dense_replace"] = 2;
  config["q_lora_rank"] = 12;
  config["kv_lora_rank"] = 10;
  config["qk_nope_head_dim"] = 6;
  config["qk_rope_head_dim"] = rope_dim;
  config["qk_head_dim"] = config["head_dim"] = 6 + rope_dim;
  config["v_head_dim"] = 5;
  return {fmt::format("latent_{}_rotated_{}", form == MlaForm::absorb ? "absorbed" : "explicit", rope_dim),
          config.dump(), form};
}

class TrainModelsTest : public testing::TestWithParam<SmallModel> {
 protected:
  static constexpr TokenBlock block{3, 11};

  /// Weights under which each part of a layer matters.
  void SetUp() override {
    Random random(1);
    Parameters& parameters = model.parameters();
    for (std::size_t i = 0; i < parameters.specs().size(); ++i) {
      const MatrixView<float> value = parameters.at(i).value;
      const bool is_norm = parameters.specs()[i].shape.size() == 1;
      const double scale = is_norm ? 0.2 : 1 / std::sqrt(static_cast<double>(value.cols));
      const std::vector<float> drawn = random.values(value.rows * value.cols, scale);
      for (std::size_t k = 0; k < drawn.size(); ++k) value.data[k] = drawn[k] + (is_norm ? 1.0f : 0.0f);
    }
    for (std::int64_t t = 0; t < block.tokens(); ++t) {
      ids.push_back(static_cast<std::int32_t>(random.below(40)));
      targets.push_back(t % 7 == 5 ? -1 : static_cast<std::int32_t>(random.below(40)));
    }
  }

  TrainingBatch batch() const { return {block, ids, targets}; }
  double loss() { return model.loss(batch(), {GetParam().form, DType::f32}, memory); }

  /// The slope of the loss along `direction` at the model's values, right to the sixth power of the step.
  double slope(const std::vector<float>& direction) {
    constexpr double step = 1e-2;
    const std::span<float> values = model.parameters().values();
    const std::vector<float> before(values.begin(), values.end());
    const auto loss_at = [&](double distance) {
      for (std::size_t i = 0; i < before.size(); ++i)
        values[i] = before[i] + static_cast<float>(distance) * direction[i];
      return loss();
    };
    const auto rise = [&](int steps) { return loss_at(steps * step) - loss_at(-steps * step); };
    const double found = (45 * rise(1) - 9 * rise(2) + rise(3)) / (60 * step);
    std::copy(before.begin(), before.end(), values.begin());
    return found;
  }

  TrainedTransformer model{parse_config(GetParam().config, GetParam().name)};
  TrainingMemory memory;
  std::vector<std::int32_t> ids, targets;
};

TEST_P(TrainModelsTest, LossIsThatOfTheEnginesLogits) {
  test::TemporaryDirectory directory;
  std::ofstream(directory.path() / "config.json") << GetParam().config;
  std::vector<TensorToWrite> tensors;
  for (std::size_t i = 0; i < model.parameters().specs().size(); ++i) {
    const auto& [name, shape] = model.parameters().specs()[i];
    const MatrixView<float> value = model.parameters().at(i).value;
    const std::span<const float> all(value.data, static_cast<std::size_t>(value.rows * value.cols));
    tensors.push_back({name, shape, all, StoredType::f32});
  }
  write_safetensors(directory.path() / "model.safetensors", tensors);
  const Transformer engine = Transformer::load(directory.path());
  const std::int64_t vocab = engine.config().vocab_size;
  double expected = 0;
  for (std::int64_t first = 0; first < block.tokens(); first += block.length) {
    SessionOptions options;
    if (engine.config().attention == AttentionKind::latent) options.form = GetParam().form;
    Session session(engine, options);
    std::vector<float> logits(static_cast<std::size_t>(block.length * vocab));
    session.feed_all(std::span(ids).subspan(first, block.length), {logits.data(), block.length, vocab});
    for (std::int64_t t = 0; t < block.length; ++t) {
      const float* at = logits.data() + t * vocab;
      double sum = 0;
      for (std::int64_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(at[v]));
      if (targets[first + t] >= 0) expected += std::log(sum) - at[targets[first + t]];
    }
  }
  EXPECT_NEAR(loss(), expected, 1e-6 * expected);
}

/// Along a random direction in each tensor, as large as the tensor, and along some in all of them. What the
/// slope is measured by: the length of the gradient there, times the root mean square of the direction. The
/// loss, in f32, is right to 1e-8 of itself, which leaves 7e-4 of that.
TEST_P(TrainModelsTest, GradientIsThatOfFiniteDifferences) {
  Parameters& parameters = model.parameters();
  const double both = model.loss_and_gradient(batch(), 1.0, {GetParam().form, DType::f32}, memory);
  EXPECT_EQ(both, loss());
  Random random(2);
  const auto all = static_cast<std::int64_t>(parameters.specs().size());
  for (std::int64_t trial = 0; trial < all + 3; ++trial) {
    std::vector<float> direction(parameters.values().size());
    double expected = 0, gradient = 0, values = 0, count = 0;
    for (std::int64_t i = trial < all ? trial : 0; i < (trial < all ? trial + 1 : all); ++i) {
      const Trained tensor = parameters.at(static_cast<std::size_t>(i));
      for (std::int64_t k = 0; k < tensor.value.rows * tensor.value.cols; ++k) {
        const double size = std::abs(tensor.value.data[k]), g = tensor.gradient.data[k];
        const auto v = static_cast<float>(size * (random.below(2) ? 1 : -1));
        direction[tensor.value.data - parameters.values().data() + k] = v;
        expected += g * v;
        gradient += g * g;
        values += size * size;
        ++count;
      }
    }
    EXPECT_NEAR(slope(direction), expected, 2e-3 * std::sqrt(gradient * values / count))
        << (trial < all ? parameters.specs()[static_cast<std::size_t>(trial)].name : "all");
    EXPECT_GT(gradient, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Small, TrainModelsTest,
    testing::Values(heads_model("rotary", 4, 4, 6), heads_model("rotary", 6, 3, 8),
                    heads_model("rotary", 5, 1, 6, true), heads_model("none", 6, 2, 5),
                    heads_model("integer", 6, 2, 5), heads_model("binary", 6, 2, 5),
                    heads_model("sinusoidal", 6, 2, 5), heads_model("sinusoidal", 3, 1, 7, true),
                    latent_model(4, MlaForm::decompress), latent_model(4, MlaForm::absorb),
                    latent_model(0, MlaForm::decompress), latent_model(0, MlaForm::absorb)),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace mla
