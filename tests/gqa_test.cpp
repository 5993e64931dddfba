// Attention with key and value heads against its formulas in double: every head written out, no cache.
#include "mla/attention/gqa.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "mla/kernels/prefill.h"
#include "support/layers.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::as_rows;
using test::difference;
using Layer = test::HeadsLayer;
using test::LayerAnswer;
using test::Random;

constexpr test::HeadsSizes all_sizes[] = {
    {19, 3, 3, 6, true},   // MHA
    {32, 4, 4, 16, true},  // MHA
    {24, 6, 2, 10, true},  // GQA, wider than the stream
    {33, 6, 3, 34, true},  // GQA
    {16, 5, 1, 8, true},   // MQA
    {8, 1, 1, 2, true},    //
    {20, 4, 2, 7, false},  // no rotary positions: any width
};

KvCache new_cache(const Layer& layer, DType type = DType::f32, std::int64_t page_rows = 16) {
  const HeadsShape& s = layer.shape;
  return KvCache(std::make_shared<PagePool>(RowLayout::heads(s.num_kv_heads, s.head_dim, s.head_dim, type), 2,
                                            page_rows, 1000));
}

/// Runs x [tokens, d] through layer 1 of a two-layer cache in chunks, positions counted from
/// `first_position`.
std::vector<float> run(const Layer& layer, const std::vector<float>& x, KvCache& cache, std::int64_t chunk,
                       std::int64_t first_position, HeadsKernels kernels = HeadsKernels::automatic,
                       DType compute = DType::f32) {
  const std::int64_t d = layer.shape.hidden_size, tokens = static_cast<std::int64_t>(x.size()) / d;
  const Rotary rotary(layer.spec, 1);
  Rotary::Table table;
  HeadsScratch scratch;
  std::vector<float> out(x.size());
  for (std::int64_t t = 0; t < tokens; t += chunk) {
    const std::int64_t count = std::min(chunk, tokens - t), before = cache.length();
    cache.extend(count);
    rotary.fill(first_position + t, count, table);
    gqa_forward(layer.shape, layer.weights(), {1, before, &rotary, &table, kernels, compute},
                {x.data() + t * d, count, d}, cache, scratch, {out.data() + t * d, count, d});
  }
  return out;
}

/// f32 through three products and a softmax: some ten roundings of 6e-8 relative to sums a few times larger
/// than results.
constexpr double f32_tolerance = 2e-5;

TEST(GqaTest, IsItsFormulas) {
  const test::Threads one(1);
  Random random(1);
  for (const test::HeadsSizes& sizes : all_sizes) {
    const Layer layer(sizes, random);
    const std::int64_t width = 2 * sizes.kv_heads * sizes.head_dim;
    for (const std::int64_t first : {0, 1000, 120'000}) {
      const auto x = random.values(40 * sizes.d);
      const LayerAnswer expected = layer.formulas(as_rows(x, sizes.d), first);
      for (const std::int64_t chunk : {1, 7, 40}) {
        KvCache cache = new_cache(layer);
        const auto found = run(layer, x, cache, chunk, first);
        EXPECT_LE(difference(expected.out, found), f32_tolerance)
            << "heads " << sizes.heads << " of " << sizes.kv_heads << " first " << first << " chunk "
            << chunk;
        std::vector<float> rows(static_cast<std::size_t>(40 * width));
        for (std::int64_t t = 0; t < 40; ++t)
          cache.pool().layout().read(cache.view(1).row(t), width, rows.data() + t * width);
        EXPECT_LE(difference(expected.rows, rows), f32_tolerance) << "the cached rows";
      }
    }
  }
}

TEST(GqaTest, Bf16RowsAndProductsStayNear) {
  Random random(3);
  for (const test::HeadsSizes& sizes : all_sizes) {
    const Layer layer(sizes, random);
    const auto x = random.values(70 * sizes.d);
    const LayerAnswer expected = layer.formulas(as_rows(x, sizes.d), 100);
    for (const DType compute : {DType::f32, DType::bf16}) {
      for (const std::int64_t chunk : {1, 7, 70}) {  // automatic takes the panels for 70
        KvCache cache = new_cache(layer, DType::bf16);
        const auto found = run(layer, x, cache, chunk, 100, HeadsKernels::automatic, compute);
        EXPECT_LE(difference(expected.out, found), compute == DType::f32 ? 0.05 : 0.15)
            << "bf16 rounds by 4e-3 of each value";
        EXPECT_GE(difference(expected.out, found), 1e-5) << "bf16 must show";
      }
    }
  }
}

TEST(GqaTest, BitsDoNotDependOnChunksPagesOrThreads) {
  Random random(4);
  const test::Threads restored(1);
  for (const std::size_t which : {1u, 3u, 4u}) {
    const Layer layer(all_sizes[which], random);
    const auto x = random.values(300 * layer.shape.hidden_size);
    for (const HeadsKernels kernels : {HeadsKernels::online, HeadsKernels::panels}) {
      for (const DType type : {DType::f32, DType::bf16}) {
        if (kernels == HeadsKernels::panels && (type == DType::f32 || !has_prefill())) continue;
        set_threads(1);
        KvCache whole = new_cache(layer, type);
        const auto expected = run(layer, x, whole, 300, 0, kernels, type);
        for (const std::int64_t chunk : {1, 33, 300}) {
          set_threads(3);
          KvCache cache = new_cache(layer, type, chunk == 1 ? 1 : 64);
          EXPECT_EQ(expected, run(layer, x, cache, chunk, 0, kernels, type)) << chunk;
        }
      }
    }
  }
}

TEST(GqaTest, AutomaticIsWhatItNames) {
  for (const std::int64_t tokens : {1, 4, 5, 19, 20, 63, 64, 512}) {
    for (const std::int64_t kv_heads : {1, 4, 16}) {
      const HeadsShape shape{64, 16, kv_heads, 8, 1.0};
      EXPECT_EQ(choose_kernels(shape, tokens, DType::f32, DType::bf16), HeadsKernels::online);
      EXPECT_EQ(choose_kernels(shape, tokens, DType::bf16, DType::f32), HeadsKernels::online);
      const std::int64_t from = kv_heads == 1 ? 64 : kv_heads == 4 ? 20 : 5;
      const bool panels = has_prefill() && tokens >= from;
      EXPECT_EQ(choose_kernels(shape, tokens, DType::bf16, DType::bf16),
                panels ? HeadsKernels::panels : HeadsKernels::online)
          << tokens << " tokens, " << kv_heads << " kv heads";
    }
  }
  if (!has_prefill()) return;
  Random random(5);
  const Layer layer(all_sizes[1], random);
  const auto x = random.values(40 * layer.shape.hidden_size);
  const auto with = [&](HeadsKernels kernels, std::int64_t chunk) {
    KvCache cache = new_cache(layer, DType::bf16);
    return run(layer, x, cache, chunk, 0, kernels, DType::bf16);
  };
  EXPECT_EQ(with(HeadsKernels::automatic, 40), with(HeadsKernels::panels, 40));
  EXPECT_EQ(with(HeadsKernels::automatic, 4), with(HeadsKernels::online, 40));
  EXPECT_NE(with(HeadsKernels::panels, 40), with(HeadsKernels::online, 40)) << "or the test sees nothing";
}

TEST(GqaTest, RefusesTokensThatDoNotEndTheCache) {
  Random random(6);
  const Layer layer(all_sizes[2], random);
  KvCache cache = new_cache(layer);
  cache.extend(5);
  const Rotary rotary(layer.spec, 1);
  Rotary::Table table;
  rotary.fill(0, 2, table);
  HeadsScratch scratch;
  auto x = random.values(2 * layer.shape.hidden_size);
  MatrixView<float> view(x.data(), 2, layer.shape.hidden_size);
  for (const std::int64_t first : {0, 2, 4}) {
    const HeadsCall call{0, first, &rotary, &table, HeadsKernels::automatic, DType::f32};
    EXPECT_NE(
        test::error_of([&] { gqa_forward(layer.shape, layer.weights(), call, view, cache, scratch, view); }),
        "")
        << first;
  }
}

TEST(GqaTest, RefusesPanelsOfOtherTypes) {
  Random random(7);
  const Layer layer(all_sizes[0], random);
  const auto x = random.values(3 * layer.shape.hidden_size);
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const DType rows : {DType::f32, DType::bf16}) {
      KvCache cache = new_cache(layer, rows);
      const std::string message =
          test::error_of([&] { run(layer, x, cache, 3, 0, HeadsKernels::panels, compute); });
      const bool fits = has_prefill() && compute == DType::bf16 && rows == DType::bf16;
      EXPECT_EQ(message.find("expected bf16 over bf16") == std::string::npos, fits) << message;
    }
  }
}

}  // namespace
}  // namespace mla
