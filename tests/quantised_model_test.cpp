// Attention over fp8 and int8 latents of the embedded model.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <tuple>

#include "mla/attention/attention.h"
#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "mla/model/transformer.h"
#include "support/latent_pages.h"
#include "support/oracle.h"
#include "support/reference.h"

namespace mla {
namespace {

/// a . b / (|a| |b|).
double cosine(std::span<const float> a, std::span<const float> b) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ab += static_cast<double>(a[i]) * b[i];
    aa += static_cast<double>(a[i]) * a[i];
    bb += static_cast<double>(b[i]) * b[i];
  }
  return ab / std::sqrt(aa * bb);
}

/// Latents and absorbed queries of the embedded model's last layer, on held-back text: outputs over quantised
/// rows beside those over f32 rows. A single query's output may be off by more: that is the rounding of the
/// rows (with f32 queries and weights the worst one is as far off).
TEST(QuantisedAttentionTest, OutputsOnTheEmbeddedModelPointTheSameWay) {
  const Transformer model = Transformer::load(std::filesystem::path(MLA_SOURCE_DIR) / "models" / "default");
  const ModelConfig& config = model.config();
  const auto ids = parse_json(read_text(test::data() / "default" / "reference.json"), "reference.json")
                       .at("ids")
                       .get<std::vector<std::int32_t>>();
  const auto count = static_cast<std::int64_t>(ids.size());
  ASSERT_GE(count, 200);
  KvCache cache(model.make_pool(DType::f32, 64, 1000));
  TransformerScratch scratch;
  model.forward(ids, {MlaForm::absorb, DType::f32}, Rotary(config.rope, config.max_context), cache, scratch);

  const std::int64_t width = config.latent_width(), out_width = config.num_heads * config.kv_lora_rank;
  const AttentionShape shape{
      config.num_heads, 1, width, config.kv_lora_rank, static_cast<float>(config.softmax_scale), true};
  const QueryView queries{scratch.mla.absorbed.data(), count, config.num_heads * width, width};
  const KvView rows = cache.view(config.num_layers - 1);
  std::vector<float> exact(static_cast<std::size_t>(count * out_width)), found(exact.size());
  attend(shape, queries, rows, exact.data(), nullptr);
  std::vector<float> values;
  for (std::int64_t r = 0; r < count; ++r) {
    const auto* row = reinterpret_cast<const float*>(rows.row(r));
    values.insert(values.end(), row, row + width);
  }
  for (const auto& [type, least, least_of_one] :
       {std::tuple{DType::i8, 0.9999, 0.999}, std::tuple{DType::f8_e4m3, 0.999, 0.99}}) {
    const test::LatentPages pages(RowLayout::latent(config.kv_lora_rank, config.qk_rope_head_dim, type),
                                  values, count, 64);
    for (const Isa isa : test::supported_isas()) {
      attend(shape, queries, pages.view(), found.data(), nullptr, leaf_kernels(isa));
      const double all = cosine(exact, found);
      double worst = 1;
      for (std::size_t i = 0; i < exact.size(); i += static_cast<std::size_t>(config.kv_lora_rank)) {
        const auto one = static_cast<std::size_t>(config.kv_lora_rank);
        worst = std::min(worst, cosine(std::span(exact).subspan(i, one), std::span(found).subspan(i, one)));
      }
      EXPECT_GE(all, least) << name_of(type) << " " << name_of(isa);
      EXPECT_GE(worst, least_of_one) << name_of(type) << " " << name_of(isa);
      RecordProperty(fmt::format("cosine_{}_{}", name_of(type), name_of(isa)), fmt::format("{:.7f}", all));
      RecordProperty(fmt::format("worst_{}_{}", name_of(type), name_of(isa)), fmt::format("{:.7f}", worst));
    }
  }
}

}  // namespace
}  // namespace mla
