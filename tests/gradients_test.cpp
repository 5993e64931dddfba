// Loss and gradients of the reference checkpoints against Hugging Face transformers in float64.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "mla/core/parallel.h"
#include "mla/model/safetensors.h"
#include "mla/train/trained_transformer.h"
#include "support/oracle.h"
#include "support/reference.h"

namespace mla {
namespace {

using test::Reference;

/// The reference's ids as one sequence; the last token has no target.
struct Sequence {
  explicit Sequence(const Reference& reference) : ids(reference.ids) {
    targets.assign(ids.begin() + 1, ids.end());
    targets.push_back(-1);
  }
  std::int64_t size() const { return static_cast<std::int64_t>(ids.size()); }
  TrainingBatch batch() const { return {{1, size()}, ids, targets}; }

  std::vector<std::int32_t> ids, targets;
};

double norm_of(const std::vector<float>& x) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * v;
  return std::sqrt(sum);
}

std::vector<float> minus(std::vector<float> a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

class GradientsTest : public testing::TestWithParam<std::string> {
 protected:
  Reference reference = test::load_reference(GetParam());
  Checkpoint checkpoint = Checkpoint::open(reference.directory);
  TrainedTransformer model{read_config(reference.directory)};
  TrainingMemory memory;
  Sequence sequence{reference};

  void SetUp() override { model.read(checkpoint); }

  std::vector<float> gradient(std::size_t i) {
    const MatrixView<float> g = model.parameters().at(i).gradient;
    return {g.data, g.data + g.rows * g.cols};
  }

  double mean_loss_and_gradient(const TrainingOptions& options) {
    const double tokens = static_cast<double>(sequence.size() - 1);
    model.parameters().clear_gradients();
    return model.loss_and_gradient(sequence.batch(), 1 / tokens, options, memory) / tokens;
  }
};

TEST_P(GradientsTest, MatchTransformers) {
  const SafetensorsFile file(reference.directory / "gradients.safetensors");
  const auto values = [&](const std::string& name) {
    const StoredTensor* stored = file.find(name);
    std::vector<float> v(stored ? static_cast<std::size_t>(stored->elements()) : 0);
    if (stored) std::memcpy(v.data(), stored->data.data(), v.size() * 4);
    return v;
  };
  std::vector<MlaForm> forms{MlaForm::decompress};
  if (model.config().attention == AttentionKind::latent) forms.push_back(MlaForm::absorb);
  for (const MlaForm form : forms) {
    const double loss = mean_loss_and_gradient({form, DType::f32});
    EXPECT_NEAR(loss, values("loss")[0], 1e-5);
    std::size_t compared = 0;
    for (std::size_t i = 0; i < model.parameters().specs().size(); ++i) {
      const std::string& name = model.parameters().specs()[i].name;
      const std::vector<float> expected = values(name), found = gradient(i);
      if (name.ends_with("e_score_correction_bias")) {
        EXPECT_EQ(norm_of(found), 0) << "only load moves " << name;
        continue;
      }
      ASSERT_EQ(expected.size(), found.size()) << name;
      EXPECT_LE(norm_of(minus(found, expected)), 1e-4 * norm_of(expected)) << name;
      ++compared;
    }
    EXPECT_GE(compared, 20u);
  }
}

TEST_P(GradientsTest, SameBitsAtAnyNumberOfThreads) {
  for (const DType compute : {DType::f32, DType::bf16}) {
    std::vector<std::vector<float>> expected;
    test::Threads restored(1);
    for (const int threads : {1, 2, 3}) {
      set_threads(threads);
      mean_loss_and_gradient({MlaForm::decompress, compute});
      for (std::size_t i = 0; i < model.parameters().specs().size(); ++i) {
        if (threads == 1)
          expected.push_back(gradient(i));
        else
          EXPECT_EQ(expected[i], gradient(i)) << model.parameters().specs()[i].name;
      }
    }
  }
}

/// A sequence's gradient is the same beside another, and those of two batches add up.
TEST_P(GradientsTest, BatchesAddUp) {
  mean_loss_and_gradient({});
  std::vector<std::vector<float>> one;
  for (std::size_t i = 0; i < model.parameters().specs().size(); ++i) one.push_back(gradient(i));
  Sequence twice = sequence;
  twice.ids.insert(twice.ids.end(), sequence.ids.begin(), sequence.ids.end());
  twice.targets.insert(twice.targets.end(), sequence.targets.begin(), sequence.targets.end());
  const double weight = 1 / static_cast<double>(sequence.size() - 1);
  model.loss_and_gradient({{2, sequence.size()}, twice.ids, twice.targets}, weight, {}, memory);
  for (std::size_t i = 0; i < one.size(); ++i) {
    std::vector<float> three = one[i];
    for (float& g : three) g *= 3;
    EXPECT_LE(norm_of(minus(gradient(i), three)), 1e-5 * norm_of(three) + 1e-12)
        << model.parameters().specs()[i].name;
  }
}

/// Rounding operands to bf16 (8 bits) moves a gradient by a few times 2^-9 relative to its size; where there
/// are experts, some tokens get others, whose gradients are others altogether. A wrong term would cost more
/// than half.
TEST_P(GradientsTest, Bf16IsNear) {
  mean_loss_and_gradient({});
  std::vector<std::vector<float>> exact;
  for (std::size_t i = 0; i < model.parameters().specs().size(); ++i) exact.push_back(gradient(i));
  mean_loss_and_gradient({MlaForm::decompress, DType::bf16});
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    difference += std::pow(norm_of(minus(gradient(i), exact[i])), 2);
    size += std::pow(norm_of(exact[i]), 2);
  }
  EXPECT_LE(std::sqrt(difference / size), model.config().moe.num_experts > 0 ? 0.3 : 0.05);
  EXPECT_GT(difference, 0);
}

TEST_P(GradientsTest, RefusesIdsOutsideTheVocabulary) {
  Sequence wrong = sequence;
  wrong.ids[3] = static_cast<std::int32_t>(model.config().vocab_size);
  EXPECT_THROW(model.loss(wrong.batch(), {}, memory), Error);
  wrong = sequence;
  wrong.targets[0] = -2;
  EXPECT_THROW(model.loss(wrong.batch(), {}, memory), Error);
  wrong.ids.pop_back();
  EXPECT_THROW(model.loss(wrong.batch(), {}, memory), Error);
}

INSTANTIATE_TEST_SUITE_P(Eight, GradientsTest,
                         testing::Values("v2-lite", "v2", "v3", "glm4-moe-lite", "minicpm3", "llama-mha",
                                         "llama-gqa", "llama-mqa"),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace mla
