// MLA in both forms against the paper's formulas in double: every head's keys and values written out, no
// cache, no tricks.
#include "mla/attention/mla.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "mla/attention/form_cost.h"
#include "support/layers.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::as_rows;
using test::difference;
using Layer = test::MlaLayer;
using test::LayerAnswer;
using test::Random;

constexpr RopeLayout pairs = RopeLayout::interleaved, halves = RopeLayout::half_split;
constexpr test::MlaSizes all_sizes[] = {
    {19, 3, 0, 11, 5, 4, 9, pairs}, {19, 3, 7, 11, 5, 4, 9, halves}, {32, 4, 24, 16, 8, 8, 8, pairs},
    {8, 1, 5, 3, 1, 2, 1, halves},  {33, 7, 13, 40, 6, 6, 3, pairs}, {24, 2, 0, 70, 17, 2, 33, halves},
    {20, 3, 7, 12, 6, 0, 8, pairs},  // nothing is rotated
};

/// Runs x [tokens, d] through layer 1 of a two-layer cache in chunks, positions counted from
/// `first_position`.
std::vector<float> run(const Layer& layer, const std::vector<float>& x, KvCache& cache, MlaForm form,
                       std::int64_t chunk, std::int64_t first_position, DType compute = DType::f32) {
  const std::int64_t d = layer.shape.hidden_size, tokens = static_cast<std::int64_t>(x.size()) / d;
  const Rotary rotary(layer.spec, 1);
  Rotary::Table table;
  MlaScratch scratch;
  std::vector<float> out(x.size());
  for (std::int64_t t = 0; t < tokens; t += chunk) {
    const std::int64_t count = std::min(chunk, tokens - t), before = cache.length();
    cache.extend(count);
    rotary.fill(first_position + t, count, table);
    const MlaCall call{1, before, &rotary, &table, form, compute};
    mla_forward(layer.shape, layer.weights(), call, {x.data() + t * d, count, d}, cache, scratch,
                {out.data() + t * d, count, d});
  }
  return out;
}

KvCache new_cache(const Layer& layer, DType type = DType::f32, std::int64_t page_rows = 16) {
  return KvCache(std::make_shared<PagePool>(
      RowLayout::latent(layer.shape.kv_lora_rank, layer.shape.qk_rope_head_dim, type), 2, page_rows, 1000));
}

/// f32 through four products and two norms: some ten roundings of 6e-8 relative to sums a few times larger
/// than results.
constexpr double f32_tolerance = 2e-5;

TEST(MlaTest, BothFormsAreThePapersFormulas) {
  const test::Threads one(1);
  Random random(1);
  for (const test::MlaSizes& sizes : all_sizes) {
    const Layer layer(sizes, random);
    for (const std::int64_t first : {0, 1000, 120'000}) {
      const auto x = random.values(40 * sizes.d);
      const LayerAnswer expected = layer.formulas(as_rows(x, sizes.d), first);
      for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb, MlaForm::automatic}) {
        for (const std::int64_t chunk : {1, 7, 40}) {
          KvCache cache = new_cache(layer);
          const auto found = run(layer, x, cache, form, chunk, first);
          EXPECT_LE(difference(expected.out, found), f32_tolerance)
              << "d " << sizes.d << " first " << first << " form " << static_cast<int>(form) << " chunk "
              << chunk;
          std::vector<float> rows(static_cast<std::size_t>(40 * layer.shape.latent_width()));
          for (std::int64_t t = 0; t < 40; ++t) {
            const std::int64_t width = layer.shape.latent_width();
            cache.pool().layout().read(cache.view(1).row(t), width, rows.data() + t * width);
          }
          EXPECT_LE(difference(expected.rows, rows), f32_tolerance) << "the cached rows";
        }
      }
    }
  }
}

TEST(MlaTest, FormsAreReadByTheirNames) {
  for (const MlaForm form : {MlaForm::automatic, MlaForm::decompress, MlaForm::absorb})
    EXPECT_EQ(form_named(name_of(form), "form"), form);
  EXPECT_EQ(test::error_of([] { form_named("folded", "--attention"); }),
            "--attention: found 'folded', expected auto, explicit or absorbed");
}

TEST(MlaTest, LongPastCrossesTheParts) {
  Random random(2);
  const Layer layer(all_sizes[1], random);
  const auto x = random.values(530 * layer.shape.hidden_size);  // parts end at 256 and 512
  const LayerAnswer expected = layer.formulas(as_rows(x, layer.shape.hidden_size), 5);
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
    for (const std::int64_t chunk : {100, 255, 530}) {
      KvCache cache = new_cache(layer);
      EXPECT_LE(difference(expected.out, run(layer, x, cache, form, chunk, 5)), f32_tolerance) << chunk;
    }
  }
}

TEST(MlaTest, Bf16RowsAndProductsStayNear) {
  Random random(3);
  for (const test::MlaSizes& sizes : all_sizes) {
    const Layer layer(sizes, random);
    const auto x = random.values(20 * sizes.d);
    const LayerAnswer expected = layer.formulas(as_rows(x, sizes.d), 100);
    for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
      for (const DType compute : {DType::f32, DType::bf16}) {
        KvCache cache = new_cache(layer, DType::bf16);
        const double d = difference(expected.out, run(layer, x, cache, form, 7, 100, compute));
        EXPECT_LE(d, compute == DType::f32 ? 0.05 : 0.15);  // bf16 rounds by 4e-3 of each value
        EXPECT_GE(d, 1e-5) << "bf16 must show";
      }
    }
  }
}

TEST(MlaTest, BitsDoNotDependOnChunksPagesOrThreads) {
  Random random(4);
  const Layer layer(all_sizes[4], random);
  const auto x = random.values(300 * layer.shape.hidden_size);
  const test::Threads restored(1);
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
    for (const DType type : {DType::f32, DType::bf16}) {
      set_threads(1);
      KvCache whole = new_cache(layer, type);
      const auto expected = run(layer, x, whole, form, 300, 0, type);
      for (const std::int64_t chunk : {1, 33, 300}) {
        set_threads(3);
        KvCache cache = new_cache(layer, type, chunk == 1 ? 1 : 64);
        EXPECT_EQ(expected, run(layer, x, cache, form, chunk, 0, type)) << chunk;
      }
    }
  }
}

TEST(MlaTest, AutomaticIsTheFormThatItNames) {
  Random random(5);
  const Layer layer(all_sizes[2], random);
  const auto x = random.values(60 * layer.shape.hidden_size);
  for (const std::int64_t chunk : {1, 60}) {
    KvCache a = new_cache(layer), b = new_cache(layer);
    const auto found = run(layer, x, a, MlaForm::automatic, chunk, 0);
    const auto last = run(layer, x, b, choose_form(layer.shape, chunk, 60, DType::f32, DType::f32), chunk, 0);
    const std::int64_t compared = chunk == 1 ? 1 : 60;  // short pasts may choose otherwise
    EXPECT_TRUE(std::equal(found.end() - compared * layer.shape.hidden_size, found.end(),
                           last.end() - compared * layer.shape.hidden_size));
  }
}

TEST(FormTest, DecodeIsAbsorbedAndPrefillExplicit) {
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const DType rows : {DType::f32, DType::bf16}) {
      for (const std::int64_t heads : {8, 20, 128}) {
        const MlaShape v3{7168, heads, 1536, 512, 128, 64, 128, 0.1, 1e-6};
        for (const std::int64_t length : {1024, 4096, 163'840}) {
          for (const std::int64_t tokens : {1, 4}) {  // one, or a few drafted ones
            EXPECT_EQ(choose_form(v3, tokens, length, compute, rows), MlaForm::absorb)
                << tokens << " of " << length;
          }
          EXPECT_EQ(choose_form(v3, 1024, length, compute, compute), MlaForm::decompress)
              << "1024 of " << length;
        }
        EXPECT_EQ(choose_form(v3, 512, 512, compute, compute), MlaForm::decompress) << "a short prompt";
      }
    }
  }
}

/// More new tokens over the same rows never bring the absorbed form back, but where a panel of queries
/// begins: its empty lanes cost the explicit form as much as the others.
TEST(FormTest, ChoiceChangesOnce) {
  const MlaShape shapes[] = {{7168, 128, 1536, 512, 128, 64, 128, 0.1, 1e-6},
                             {2048, 20, 768, 512, 192, 64, 256, 0.1, 1e-6},
                             {2560, 40, 768, 256, 64, 32, 64, 0.1, 1e-6}};
  for (const MlaShape& shape : shapes) {
    for (const DType type : {DType::f32, DType::bf16}) {
      for (const std::int64_t length : {1024, 8192, 100'000}) {
        int changes = 0;
        MlaForm before = MlaForm::absorb;
        for (std::int64_t tokens = 1; tokens <= 1024; tokens += tokens == 1 ? 31 : 32) {
          const MlaForm form = choose_form(shape, tokens, length, type, type);
          changes += form != before;
          before = form;
        }
        EXPECT_LE(changes, 1) << shape.num_heads << " heads, " << length;
        // In f32, which also serves bf16 where the ISA has no pairs of it, wide values make the absorbed form
        // the better one for any number of tokens.
        if (form_costs(type, type).compute == DType::bf16 || shape.v_head_dim <= 128) {
          EXPECT_EQ(before, MlaForm::decompress) << shape.num_heads << " heads, " << length;
        }
      }
    }
  }
}

TEST(FormTest, TermsCountTheArithmetic) {
  const MlaShape shape{64, 3, 0, 16, 8, 4, 6, 0.1, 1e-6};
  // 2 tokens that see 4 and 5 rows.
  const FormTerms explicit_terms = form_terms(MlaForm::decompress, shape, 2, 5, DType::f32);
  EXPECT_EQ(explicit_terms[2], 5 * 3 * 16 * (8 + 6));
  EXPECT_EQ(explicit_terms[4], (4 + 5) * 3 * (8 + 4 + 6));
  const FormTerms absorbed_terms = form_terms(MlaForm::absorb, shape, 2, 5, DType::f32);
  EXPECT_EQ(absorbed_terms[2], 2 * 3 * 16 * (8 + 6));
  EXPECT_EQ(absorbed_terms[4], (4 + 5) * 3 * (16 + 4 + 16));
  const FormCosts costs{DType::f32, DType::f32, {1, 0, 0, 0, 2}, {0, 0, 1, 0, 0}};
  EXPECT_EQ(form_time(costs, MlaForm::decompress, shape, 2, 5), 1 + 2 * explicit_terms[4]);
  EXPECT_EQ(form_time(costs, MlaForm::absorb, shape, 2, 5), absorbed_terms[2]);
}

TEST(FormTest, FitFindsTheCosts) {
  const FormTerms costs{2e7, 25, 0, 100, 5};
  std::vector<FormSample> samples;
  for (const std::int64_t heads : {8, 16, 128}) {
    const MlaShape shape{64, heads, 0, 512, 128, 64, 128, 0.1, 1e-6};
    for (const std::int64_t tokens : {1, 3, 40, 500}) {
      for (const std::int64_t length : {500, 1000, 30'000}) {
        FormSample sample{form_terms(MlaForm::absorb, shape, tokens, length, DType::f32), 0, 1};
        for (std::size_t i = 0; i < costs.size(); ++i) sample.time += costs[i] * sample.terms[i];
        samples.push_back(sample);
      }
    }
  }
  const FormTerms found = fit_form_costs(samples);
  for (std::size_t i = 0; i < costs.size(); ++i) EXPECT_NEAR(found[i], costs[i], 0.01 * costs[i] + 0.01) << i;
  samples[0].time *= 1e-3;  // no costs give this; none falls below 0 for it
  for (const double cost : fit_form_costs(samples)) EXPECT_GE(cost, 0);
}

TEST(FormTest, RefusesWhatNothingComputesIn) {
  EXPECT_NE(test::error_of([] { form_costs(DType::i8, DType::bf16); }), "");
}

TEST(MlaTest, RefusesTokensThatDoNotEndTheCache) {
  Random random(6);
  const Layer layer(all_sizes[0], random);
  KvCache cache = new_cache(layer);
  cache.extend(5);
  const Rotary rotary(layer.spec, 1);
  Rotary::Table table;
  rotary.fill(0, 2, table);
  MlaScratch scratch;
  auto x = random.values(2 * layer.shape.hidden_size);
  MatrixView<float> view(x.data(), 2, layer.shape.hidden_size);
  for (const std::int64_t first : {0, 2, 4}) {
    const MlaCall call{0, first, &rotary, &table, MlaForm::absorb, DType::f32};
    EXPECT_NE(
        test::error_of([&] { mla_forward(layer.shape, layer.weights(), call, view, cache, scratch, view); }),
        "")
        << first;
  }
}

}  // namespace
}  // namespace mla
