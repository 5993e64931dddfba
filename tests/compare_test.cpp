// What mla compare measures and concludes: closed forms for the heads' diversity, equal parameters, findings.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "mla/compare/findings.h"
#include "mla/compare/report.h"
#include "mla/core/error.h"
#include "mla/core/mapped_file.h"
#include "mla/core/random.h"
#include "mla/model/config.h"
#include "support/files.h"
#include "support/oracle.h"
#include "support/program.h"

namespace mla {
namespace {

/// Queries and keys of one head after another, in rows [k] per kv head.
struct Heads {
  Heads(std::int64_t heads, std::int64_t kv_heads, std::int64_t d, std::int64_t sequences,
        std::int64_t tokens_each)
      : shape{heads, kv_heads, d, d, 1.0f, true},
        length(tokens_each),
        queries(sequences * tokens_each * heads * d),
        keys(sequences * tokens_each * kv_heads * d) {}
  std::int64_t tokens() const { return std::ssize(keys) / (shape.h_kv * shape.d_qk); }
  HeadsSeen seen() const {
    return {shape,
            length,
            {queries.data(), tokens(), shape.h_q * shape.d_qk},
            {keys.data(), tokens(), shape.h_kv * shape.d_qk},
            shape.d_qk};
  }

  AttentionShape shape;
  std::int64_t length;
  std::vector<float> queries, keys;
};

void fill(std::vector<float>& x, std::uint64_t seed) {
  RandomStream random(seed);
  for (float& value : x) value = static_cast<float>(random.normal());
}

TEST(HeadDiversityTest, HeadsThatAreOneHaveNoDistance) {
  Heads heads(4, 1, 3, 2, 9);
  fill(heads.keys, 1);
  for (std::int64_t t = 0; t < heads.tokens(); ++t) {
    for (int h = 0; h < 4; ++h) {
      for (int i = 0; i < 3; ++i) heads.queries[(t * 4 + h) * 3 + i] = static_cast<float>(t % 3 - 1 + i);
    }
  }
  const HeadDiversity diversity = head_diversity(heads.seen());
  EXPECT_EQ(diversity.map_distance, 0);
  for (const double distance : diversity.distances) EXPECT_EQ(distance, 0);
}

/// Two heads whose keys point at different tokens: one looks at a sequence's first, the other at its second.
TEST(HeadDiversityTest, HeadsThatShareNoTokenAreOneApart) {
  Heads heads(2, 2, 1, 3, 5);
  std::fill(heads.queries.begin(), heads.queries.end(), 1.0f);
  for (std::int64_t t = 0; t < heads.tokens(); ++t) {
    heads.keys[t * 2] = t % 5 == 0 ? 500.0f : 0.0f;
    heads.keys[t * 2 + 1] = t % 5 == 1 ? 500.0f : 0.0f;
  }
  const HeadDiversity diversity = head_diversity(heads.seen());
  EXPECT_NEAR(diversity.map_distance, 1, 1e-12);
  EXPECT_NEAR(diversity.distances[1], 1, 1e-12);
  EXPECT_EQ(diversity.distances[1], diversity.distances[2]);
  EXPECT_EQ(diversity.distances[0], 0);
}

/// Three tokens, weights that are easily written down.
TEST(HeadDiversityTest, IsTheRootOfTheJensenShannonDivergence) {
  Heads heads(2, 1, 1, 1, 2);
  heads.keys = {0.0f, 1.0f};
  heads.queries = {0, 0, std::log(3.0f), 0.0f};  // the second token: weights 1/4 3/4 and 1/2 1/2
  const double p[] = {0.25, 0.75}, q[] = {0.5, 0.5};
  double bits = 0;
  for (int i = 0; i < 2; ++i) {
    const double mean = (p[i] + q[i]) / 2;
    bits += p[i] / 2 * std::log2(p[i] / mean) + q[i] / 2 * std::log2(q[i] / mean);
  }
  EXPECT_NEAR(head_diversity(heads.seen()).map_distance, std::sqrt(bits), 1e-6);
}

TEST(HeadDiversityTest, RankCountsTheDirectionsOfKeys) {
  // Four directions in turn, equally often, and a shift of all that must not count.
  Heads four(2, 2, 2, 1, 8);
  for (std::int64_t t = 0; t < 8; ++t) {
    for (int i = 0; i < 4; ++i) four.keys[t * 4 + i] = 100.0f;
    four.keys[t * 4 + t / 2] += t % 2 == 0 ? 1.0f : -1.0f;
  }
  EXPECT_NEAR(head_diversity(four.seen()).key_rank, 4, 1e-9);

  // The same two for both heads: no more than two.
  Heads shared(2, 1, 2, 1, 8);
  for (std::int64_t t = 0; t < 8; ++t) shared.keys[t * 2 + t / 2 % 2] = t % 2 == 0 ? 1.0f : -1.0f;
  EXPECT_NEAR(head_diversity(shared.seen()).key_rank, 2, 1e-9);

  // One direction that all heads' keys move in.
  Heads one(3, 3, 2, 1, 8);
  for (std::int64_t t = 0; t < 8; ++t) {
    for (int i = 0; i < 6; ++i) one.keys[t * 6 + i] = static_cast<float>((t + 1) * (i + 1));
  }
  EXPECT_NEAR(head_diversity(one.seen()).key_rank, 1, 1e-9);

  Heads none(2, 2, 2, 1, 8);
  EXPECT_EQ(head_diversity(none.seen()).key_rank, 0);
}

TEST(HeadDiversityTest, ManyRandomKeysFillAllDirections) {
  Heads heads(3, 3, 4, 8, 64);
  fill(heads.keys, 2);
  fill(heads.queries, 3);
  EXPECT_GT(head_diversity(heads.seen()).key_rank, 11);
  EXPECT_LE(head_diversity(heads.seen()).key_rank, 12);
}

TEST(HeadDiversityTest, RefusesWhatDoesNotFit) {
  const Heads heads(4, 2, 3, 2, 9);
  HeadsSeen seen = heads.seen();
  seen.length = 1;
  EXPECT_THROW(head_diversity(seen), Error);
  seen.length = 7;
  EXPECT_THROW(head_diversity(seen), Error);
  seen = heads.seen();
  seen.shape.h_kv = 3;
  EXPECT_THROW(head_diversity(seen), Error);
  seen = heads.seen();
  seen.shape.d_qk = 4;
  EXPECT_THROW(head_diversity(seen), Error);
}

TEST(ComparisonVariantsTest, DifferInAttentionOrPositionsAlone) {
  const ComparisonSizes sizes;
  const std::vector<Variant> variants = comparison_variants(sizes);
  ASSERT_EQ(variants.size(), 10u);
  EXPECT_EQ(variants.front().name, "MHA");
  int attention = 0, positions = 0, repeats = 0;
  for (const Variant& v : variants) {
    EXPECT_LE(std::abs(v.parameters - variants.front().parameters) * 50, variants.front().parameters)
        << v.name;
    const ModelConfig config = parse_config(v.config, v.name);
    EXPECT_TRUE(config.unread_fields.empty()) << v.name;
    EXPECT_EQ(config.num_heads, sizes.num_heads);
    EXPECT_EQ(config.num_layers, sizes.num_layers);
    attention += v.compares_attention, positions += v.compares_positions, repeats += v.is_repeat;
  }
  EXPECT_EQ(attention, 5);
  EXPECT_EQ(positions, 5);
  EXPECT_EQ(repeats, 1);
}

TEST(ComparisonVariantsTest, RefusesSizesThatCantBeMadeEqual) {
  ComparisonSizes sizes;
  sizes.intermediate_size = 8;  // MLA would need a narrower feed-forward than there is
  sizes.kv_lora_rank = 4096;
  EXPECT_THROW(comparison_variants(sizes), Error);
}

/// Results that hold every claim, made up.
ComparisonResults made_up() {
  ComparisonResults r;
  r.options.steps = 100;
  r.text_bytes = 1000, r.held_back_bytes = 30, r.training_tokens = 300;
  r.cpu = "a <CPU>", r.date = "2026-01-02", r.text_name = "a & b.txt";
  for (const Variant& variant : comparison_variants({})) {
    const std::string& d = variant.directory;
    const double bits = d == "mha"                ? 1.50
                        : d == "mha-another-seed" ? 1.501
                        : d == "gqa"              ? 1.52
                        : d == "mqa"              ? 1.55
                        : d == "mla"              ? 1.49
                        : d == "mla-without-rope" ? 1.60
                        : d == "mha-none"         ? 1.65
                        : d == "mha-integer"      ? 1.80
                        : d == "mha-binary"       ? 1.70
                                                  : 1.55;
    const double kept = d == "mla" || d == "mla-without-rope" ? 300
                        : d == "gqa"                          ? 310
                        : d == "mqa"                          ? 100
                                                              : 900;
    const HeadDiversity layer{d == "mqa" ? 0.3 : 0.5, d == "mqa" ? 10.0 : 30.0, {0, 0.5, 0.5, 0}};
    ComparedModel model{variant, {}, {100, bits, true}, {kept, {{256, 1000}, {4096, 500}}, {layer, layer}}};
    for (std::int64_t step = 10; step <= 100; step += 10) {
      TrainLogRow row;
      row.step = step, row.tokens = 4096 * step, row.loss = 3;
      row.held_back = bits + 1 / static_cast<double>(step);
      model.log.push_back(row);
    }
    r.models.push_back(model);
  }
  return r;
}

TEST(FindingsTest, FollowTheNumbers) {
  ComparisonResults results = made_up();
  EXPECT_DOUBLE_EQ(noise_of(results), 0.004);
  for (const Finding& finding : findings_of(results))
    EXPECT_EQ(finding.verdict, Verdict::holds) << finding.claim;

  // Each claim falls with the number that it stands on, and is open where chance decides.
  const auto with = [&](std::size_t claim, const std::string& directory, double bits) {
    ComparisonResults changed = made_up();
    for (ComparedModel& m : changed.models) {
      if (m.variant.directory == directory) m.best.bits_per_byte = bits;
    }
    return findings_of(changed)[claim].verdict;
  };
  EXPECT_EQ(with(0, "mla", 1.51), Verdict::fails);
  EXPECT_EQ(with(0, "mla", 1.502), Verdict::holds) << "no worse than chance";
  EXPECT_EQ(with(1, "mqa", 1.51), Verdict::fails);
  EXPECT_EQ(with(1, "gqa", 1.50), Verdict::undecided);
  EXPECT_EQ(with(1, "gqa", 1.40), Verdict::fails);
  EXPECT_EQ(with(2, "gqa", 1.48), Verdict::fails);
  EXPECT_EQ(with(2, "gqa", 1.491), Verdict::undecided);
  EXPECT_EQ(with(4, "mla-without-rope", 1.48), Verdict::fails);
  EXPECT_EQ(with(5, "mha-none", 1.50), Verdict::fails);
  EXPECT_EQ(with(6, "mha-sinusoidal", 1.49), Verdict::fails);
  EXPECT_EQ(with(6, "mha-sinusoidal", 1.502), Verdict::undecided);
  EXPECT_EQ(with(2, "mha-another-seed", 1.60), Verdict::undecided) << "so much chance decides nothing";
  for (ComparedModel& m : results.models) {
    if (m.variant.directory == "mla") m.measure.layers[0].map_distance = 0.3;
  }
  EXPECT_EQ(findings_of(results)[3].verdict, Verdict::fails);
}

TEST(ReportTest, HoldsEveryModelAndEveryFinding) {
  const ComparisonResults results = made_up();
  const std::string html = report_html(results);
  const nlohmann::json json = nlohmann::json::parse(results_json(results));
  EXPECT_EQ(json["models"].size(), results.models.size());
  EXPECT_EQ(json["findings"].size(), findings_of(results).size());
  EXPECT_EQ(json["models"][0]["held_back_curve"].size(), 10u);
  EXPECT_EQ(json["models"][0]["cache_bytes_per_token"], 900);
  for (const ComparedModel& m : results.models) EXPECT_NE(html.find(m.variant.name), std::string::npos);
  EXPECT_NE(html.find("a &amp; b.txt"), std::string::npos);
  EXPECT_NE(html.find("a &lt;CPU&gt;"), std::string::npos);
  EXPECT_EQ(html.find("http:"), html.find("http://www.w3.org")) << "nothing from the network";
  EXPECT_EQ(html.find("https:"), std::string::npos);
  std::size_t pictures = 0;
  for (std::size_t at = 0; (at = html.find("<svg", at)) != std::string::npos; ++at) ++pictures;
  EXPECT_EQ(pictures, 5u + 5u + 2u) << "cache, curves, decoding, distances, ranks; maps; positions";
}

/// A comparison that is begun, stopped and gone on with is the one that never stopped.
TEST(ComparisonTest, GoesOnWhereItStopped) {
  const test::TemporaryDirectory parent;
  std::string text;
  for (int i = 0; text.size() < 40'000; ++i)
    text += "In the year " + std::to_string(i * 7919 % 1000) + " nothing much happened.\n";
  ComparisonOptions options;
  options.sizes = {300, 32, 1, 2, 16, 1, 16, 8, 64, 256};
  options.steps = 2;
  options.batch = 2, options.length = 32;
  options.held_back = 0.1;
  const Comparison comparison = Comparison::begin(parent.path() / "whole", text, options);
  EXPECT_THROW(Comparison::begin(parent.path() / "whole", text, options), Error);
  EXPECT_THROW(comparison.measure({}), Error) << "nothing is trained yet";
  for (const Variant& variant : comparison.variants()) {
    TrainingRun run = comparison.run(variant);
    while (!run.is_finished()) run.step();
  }
  MeasureOptions measures;
  measures.contexts = {64, 128};
  measures.seconds = 0.001;
  measures.length = 32;
  const ComparisonResults results = comparison.measure(measures);
  ASSERT_EQ(results.models.size(), 10u);
  EXPECT_EQ(model_named(results, "mha").measure.cache_bytes_per_token, 2 * 2 * 16 * 2);
  EXPECT_EQ(model_named(results, "mqa").measure.cache_bytes_per_token, 2 * 1 * 16 * 2);
  EXPECT_EQ(model_named(results, "mla").measure.cache_bytes_per_token, (16 + 8) * 2);
  EXPECT_EQ(model_named(results, "mla-without-rope").measure.cache_bytes_per_token, 16 * 2);
  for (const ComparedModel& m : results.models) {
    EXPECT_EQ(m.log.size(), 2u);
    EXPECT_EQ(m.measure.layers.size(), 1u);
    EXPECT_GT(mean_map_distance(m.measure), 0) << m.variant.name;
    EXPECT_EQ(m.measure.decode.size(), 2u);
  }
  // Two seeds differ; all models saw the same first batch, whose loss is near that of guessing.
  EXPECT_NE(model_named(results, "mha").log[0].loss, model_named(results, "mha-another-seed").log[0].loss);
  EXPECT_NEAR(model_named(results, "mla").log[0].loss, std::log(300.0), 0.1);

  const Comparison again = Comparison::resume(parent.path() / "whole", text);
  std::vector<std::string> announced;
  const auto announce = [&](const Variant& variant) { announced.push_back(variant.directory); };
  EXPECT_EQ(again.measure(measures, announce).models[4].best.bits_per_byte,
            results.models[4].best.bits_per_byte);
  ASSERT_EQ(announced.size(), 10u);
  EXPECT_EQ(announced[4], results.models[4].variant.directory);
  const auto stop = [](const Variant& variant) { fail("stopped before {}", variant.name); };
  EXPECT_NE(test::error_of([&] { again.measure(measures, stop); }).find("stopped before"), std::string::npos);
  EXPECT_THROW(Comparison::resume(parent.path() / "none", text), Error);
  EXPECT_THROW(Comparison::resume(parent.path() / "whole", text + "x").measure(measures), Error);
}

class CompareProgramTest : public test::WithProgram {};

TEST_F(CompareProgramTest, RefusesInOneLineAndLeavesNothing) {
  const std::string text = (directory / "text").string(), out = (directory / "out-dir").string();
  const auto compare = [&](const std::string& more) {
    return mla("compare --text " + text + " --out " + out + " " + more);
  };
  expect_error(compare("--tokens 4096"), {text});
  std::ofstream(text) << "";
  expect_error(compare(""), {"text: found nothing to learn from"});
  std::ofstream(text) << "A text that is shorter than a sequence.";
  expect_error(compare("--tokens 4096"), {"257"});
  expect_error(compare("--resume"), {out, "no comparison.json"});
  EXPECT_FALSE(std::filesystem::exists(out));
  std::filesystem::create_directory(out);
  expect_error(compare(""), {out, "is there already"});
  EXPECT_EQ(compare("--tokens 4096 --budget 1").status, 2);
}

}  // namespace
}  // namespace mla
