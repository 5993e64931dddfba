// Parameters and cache sizes of published models against what their reports say, and against the tensors
// themselves.
#include <gtest/gtest.h>

#include "mla/model/census.h"
#include "mla/model/transformer.h"
#include "support/reference.h"

namespace mla {
namespace {

ModelConfig published(const std::string& name) {
  return read_config(test::data() / "configs" / name);
}

TEST(Census, ParametersOfPublishedModels) {
  // Billions, as the models' reports and cards give them.
  const struct {
    const char* name;
    double total, active, tolerance;
  } cases[] = {
      {"DeepSeek-V3", 671, 37, 0.02},         // arXiv 2412.19437: 671B, 37B activated
      {"DeepSeek-V2", 236, 21, 0.02},         // arXiv 2405.04434: 236B, 21B activated
      {"DeepSeek-V2-Lite", 15.7, 2.4, 0.15},  // arXiv 2405.04434, appendix B: 15.7B, 2.4B (which leaves the
                                              // embedding out)
      {"Kimi-K2-Instruct", 1000, 32, 0.04},   // arXiv 2507.20534: 1T, 32B activated
      {"MiniCPM3-4B", 4.0, 4.0, 0.05},
      {"Llama-3.1-8B", 8.03, 8.03, 1e-3},  // its model card: 8.03B
  };
  for (const auto& c : cases) {
    const ParameterCount count = count_parameters(published(c.name));
    EXPECT_NEAR(static_cast<double>(count.total) * 1e-9 / c.total, 1, c.tolerance) << c.name;
    EXPECT_NEAR(static_cast<double>(count.active) * 1e-9 / c.active, 1, c.tolerance) << c.name;
  }
}

TEST(Census, CacheOfDeepSeekV3IsSixtyFourTimesSmallerThanMha) {
  const CacheCensus cache = count_cache(published("DeepSeek-V3"));
  EXPECT_EQ(cache.mla, 61 * 576);
  EXPECT_EQ(cache.mha, 61 * 2 * 128 * 128);
  EXPECT_EQ(cache.mha, 64 * cache.latent_only);
  EXPECT_NEAR(static_cast<double>(cache.mha) / static_cast<double>(cache.mla), 57, 0.2);
  EXPECT_EQ(cache.gqa, cache.mha / 16);
  EXPECT_EQ(cache.mqa, cache.mha / 128);
}

TEST(Census, CacheOfHeadsIsTheirOwn) {
  const auto count = [](const std::string& name) {
    return count_cache(read_config(test::data() / "reference" / name));
  };
  const CacheCensus mha = count("llama-mha"), gqa = count("llama-gqa"), mqa = count("llama-mqa");
  EXPECT_EQ(mha.kept, 2 * 4 * 2 * 12);
  EXPECT_EQ(mha.kept, mha.mha);
  EXPECT_EQ(gqa.kept, 2 * 2 * 2 * 16);
  EXPECT_EQ(gqa.kept, gqa.gqa);
  EXPECT_EQ(gqa.gqa_groups, 2);
  EXPECT_EQ(gqa.mha, 3 * gqa.kept);
  EXPECT_EQ(mqa.kept, 2 * 1 * 2 * 20);
  EXPECT_EQ(mqa.kept, mqa.mqa);
  EXPECT_EQ(mqa.mla, 0);
  const CacheCensus v3 = count_cache(published("DeepSeek-V3"));
  EXPECT_EQ(v3.kept, v3.mla);
  const CacheCensus llama = count_cache(published("Llama-3.1-8B"));
  EXPECT_EQ(llama.kept, 32 * 2 * 1024);
  EXPECT_EQ(llama.gqa_groups, 8);
  const auto name = [](const std::string& folder) {
    return std::string(attention_name(read_config(test::data() / "reference" / folder)));
  };
  EXPECT_EQ(name("llama-mha") + name("llama-gqa") + name("llama-mqa") + name("v3"), "MHAGQAMQAMLA");
}

TEST(Census, CountsWhatTheTensorsHold) {
  std::vector<std::string> names = test::reference_names();
  names.insert(names.end(), test::heads_names().begin(), test::heads_names().end());
  for (const std::string& name : names) {
    const Transformer model = Transformer::load(test::data() / "reference" / name);
    std::int64_t held = 0;
    for (const std::string& tensor : model.checkpoint().names()) {
      if (!tensor.ends_with("_scale_inv")) held += model.checkpoint().find(tensor)->elements();
    }
    for (const std::string& unused : model.weights().not_used)
      held -= model.checkpoint().find(unused)->elements();
    EXPECT_EQ(count_parameters(model.config()).total, held) << name;
  }
}

}  // namespace
}  // namespace mla
