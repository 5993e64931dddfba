// The nine reference checkpoints against Hugging Face transformers in float64.
#include <gtest/gtest.h>

#include <algorithm>

#include "mla/core/parallel.h"
#include "mla/runtime/session.h"
#include "support/reference.h"

namespace mla {
namespace {

using test::Reference;

constexpr MlaForm all_forms[] = {MlaForm::decompress, MlaForm::absorb, MlaForm::automatic};

SessionOptions options(MlaForm form, std::int64_t chunk, DType type = DType::f32) {
  SessionOptions o;
  o.form = form;
  o.chunk = chunk;
  o.compute = o.cache_type = type;
  return o;
}

std::vector<float> all_logits(const Transformer& model, const SessionOptions& o,
                              const std::vector<std::int32_t>& ids) {
  Session session(model, o);
  std::vector<float> logits(ids.size() * static_cast<std::size_t>(model.config().vocab_size));
  session.feed_all(ids, {logits.data(), static_cast<std::int64_t>(ids.size()), model.config().vocab_size});
  return logits;
}

class ReferenceTest : public testing::TestWithParam<std::string> {
 protected:
  Reference reference = test::load_reference(GetParam());
  Transformer model = Transformer::load(reference.directory);
};

TEST_P(ReferenceTest, HiddenStatesMatchLayerByLayer) {
  const std::int64_t layer_size = reference.hidden.shape[1] * reference.hidden.shape[2];
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
    const std::vector<float> trace = Session(model, options(form, 512)).feed_traced(reference.ids);
    ASSERT_EQ(trace.size(), reference.hidden.data.size());
    for (std::int64_t layer = 0; layer < reference.hidden.shape[0]; ++layer) {
      const auto at = [&](const std::vector<float>& v) {
        return std::vector<float>(v.begin() + layer * layer_size, v.begin() + (layer + 1) * layer_size);
      };
      const auto d = test::difference(at(trace), at(reference.hidden.data));
      EXPECT_LE(d.max, 5e-4) << name_of(form) << ", after layer " << layer;
    }
  }
}

TEST_P(ReferenceTest, LogitsMatchInEveryFormAndChunk) {
  for (const MlaForm form : all_forms) {
    for (const std::int64_t chunk : {1, 7, 64, 512}) {
      const auto d =
          test::difference(all_logits(model, options(form, chunk), reference.ids), reference.logits.data);
      // 5e-4 and 2e-5 are promised; 1e-4 and 6e-6 are reached. The mean bound is so tight because a norm's
      // epsilon of 1e-6 in place of 1e-5 moves it to 8e-6.
      EXPECT_LE(d.max, 2e-4) << name_of(form) << ", chunk " << chunk;
      EXPECT_LE(d.mean, 7e-6) << name_of(form) << ", chunk " << chunk;
    }
  }
}

TEST_P(ReferenceTest, FormsAgreeInF32) {
  const auto decompressed = all_logits(model, options(MlaForm::decompress, 64), reference.ids);
  const auto absorbed = all_logits(model, options(MlaForm::absorb, 64), reference.ids);
  EXPECT_LE(test::difference(decompressed, absorbed).max, 1e-3);
}

TEST_P(ReferenceTest, GreedyTokensAreIdentical) {
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
    Session session(model, options(form, 512));
    auto logits = session.feed(reference.greedy_prompt);
    std::vector<std::int32_t> found;
    for (std::size_t i = 0; i < reference.greedy.size(); ++i) {
      const std::int32_t id[] = {
          static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())};
      found.push_back(id[0]);
      logits = session.feed(id);
    }
    EXPECT_EQ(found, reference.greedy) << name_of(form);
  }
}

TEST_P(ReferenceTest, SameBitsAtAnyChunkAndThreadCount) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
      set_threads(1);
      const auto expected = all_logits(model, options(form, 512, type), reference.ids);
      for (const int count : {1, 2, 3}) {
        set_threads(count);
        for (const std::int64_t chunk : {1, 7, 64, 512}) {
          EXPECT_EQ(expected, all_logits(model, options(form, chunk, type), reference.ids))
              << name_of(form) << ", " << mla::name_of(type) << ", chunk " << chunk << ", threads " << count;
        }
      }
    }
  }
}

/// KL divergence of our bf16 to the float64 reference, beside transformers' own bf16.
TEST_P(ReferenceTest, Bf16IsNoWorseThanTwiceTransformers) {
  // transformers was not measured on the fp8 checkpoint; what it shows on the others is 0.0001 to 0.05.
  const double theirs = reference.bf16_mean_kl < 0 ? 0.01 : reference.bf16_mean_kl;
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
    const double kl =
        test::mean_kl(reference.logits, all_logits(model, options(form, 512, DType::bf16), reference.ids));
    EXPECT_LE(kl, 2 * theirs) << name_of(form);
    EXPECT_GT(kl, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Nine, ReferenceTest, testing::ValuesIn(test::reference_names()),
                         [](const auto& checkpoint) {
                           std::string name = checkpoint.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(ReferenceBf16Test, MeanOverCheckpointsIsWithinAQuarterOfTransformers) {
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
    double ours = 0, theirs = 0;
    for (const std::string& name : test::reference_names()) {
      const Reference reference = test::load_reference(name);
      if (reference.bf16_mean_kl < 0) continue;
      const Transformer model = Transformer::load(reference.directory);
      const double kl =
          test::mean_kl(reference.logits, all_logits(model, options(form, 512, DType::bf16), reference.ids));
      RecordProperty(name + "_kl_over_transformers", std::to_string(kl / reference.bf16_mean_kl));
      ours += kl;
      theirs += reference.bf16_mean_kl;
    }
    EXPECT_LE(ours, 1.25 * theirs) << name_of(form);
  }
}

}  // namespace
}  // namespace mla
