#include "mla/compare/findings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "mla/core/error.h"

namespace mla {
namespace {

double bits(const ComparisonResults& results, const std::string& directory) {
  return model_named(results, directory).best.bits_per_byte;
}

Verdict verdict_of(bool holds) {
  return holds ? Verdict::holds : Verdict::fails;
}

/// Of a claim that each number is lower than the next one: it holds if all are, beyond chance, and fails if
/// one is higher beyond chance.
Verdict rises(std::initializer_list<double> bits, double noise) {
  Verdict verdict = Verdict::holds;
  for (const double* next = bits.begin() + 1; next < bits.end(); ++next) {
    if (next[0] < next[-1] - noise) return Verdict::fails;
    if (next[0] <= next[-1] + noise) verdict = Verdict::undecided;
  }
  return verdict;
}

Finding cache_for_free(const ComparisonResults& r) {
  const ComparedModel &mla = model_named(r, "mla"), &mha = model_named(r, "mha");
  const double share = mla.measure.cache_bytes_per_token / mha.measure.cache_bytes_per_token;
  const double worse = mla.best.bits_per_byte - mha.best.bits_per_byte;
  return {"MLA keeps the quality of MHA with a fraction of its cache (3.1, 3.5.1).",
          verdict_of(worse <= noise_of(r) && share < 1),
          fmt::format("MLA {:.4f}, MHA {:.4f} bits per byte ({:+.4f}); {:.0f} bytes per token against {:.0f} "
                      "({:.0f} %).",
                      mla.best.bits_per_byte, mha.best.bits_per_byte, worse,
                      mla.measure.cache_bytes_per_token, mha.measure.cache_bytes_per_token, 100 * share)};
}

Finding sharing_costs(const ComparisonResults& r) {
  const double mha = bits(r, "mha"), gqa = bits(r, "gqa"), mqa = bits(r, "mqa");
  return {"Heads that share keys and values lose quality: GQA some, MQA more (3.1).",
          rises({mha, gqa, mqa}, noise_of(r)),
          fmt::format("MHA {:.4f}, GQA {:.4f}, MQA {:.4f} bits per byte.", mha, gqa, mqa)};
}

Finding better_than_sharing(const ComparisonResults& r) {
  const ComparedModel &mla = model_named(r, "mla"), &gqa = model_named(r, "gqa");
  return {"A latent is worth more than shared heads that take about the same cache (3.1).",
          rises({mla.best.bits_per_byte, gqa.best.bits_per_byte}, noise_of(r)),
          fmt::format("MLA {:.4f} bits per byte with {:.0f} bytes per token, GQA {:.4f} with {:.0f}.",
                      mla.best.bits_per_byte, mla.measure.cache_bytes_per_token, gqa.best.bits_per_byte,
                      gqa.measure.cache_bytes_per_token)};
}

Finding diversity_survives(const ComparisonResults& r) {
  const auto maps = [&](const char* name) { return mean_map_distance(model_named(r, name).measure); };
  const auto ranks = [&](const char* name) { return mean_key_rank(model_named(r, name).measure); };
  return {
      "Heads stay as different under MLA as under MHA, since each makes its own keys from the latent "
      "(3.5.2).",
      verdict_of(maps("mla") >= 0.95 * maps("mha") && ranks("mla") > ranks("mqa")),
      fmt::format("distance between the heads' attention maps: MLA {:.3f}, MHA {:.3f}, GQA {:.3f}, MQA "
                  "{:.3f}; effective rank of their keys: {:.1f}, {:.1f}, {:.1f}, {:.1f}.",
                  maps("mla"), maps("mha"), maps("gqa"), maps("mqa"), ranks("mla"), ranks("mha"),
                  ranks("gqa"), ranks("mqa"))};
}

Finding rope_is_missed(const ComparisonResults& r) {
  const double with = bits(r, "mla"), without = bits(r, "mla-without-rope");
  return {"A latent without positions loses; the decoupled rope repairs it (3.7, the fused architecture).",
          rises({with, without}, noise_of(r)),
          fmt::format("MLA {:.4f} bits per byte, without rope {:.4f}.", with, without)};
}

Finding ladder_climbs(const ComparisonResults& r) {
  const double integer = bits(r, "mha-integer"), binary = bits(r, "mha-binary"),
               sinusoidal = bits(r, "mha-sinusoidal"), rotary = bits(r, "mha");
  return {
      "Each step from integers over bits and waves to rotation is better than the last (3.8 to 3.10, RoPE).",
      rises({rotary, sinusoidal, binary, integer}, noise_of(r)),
      fmt::format("integer {:.4f}, binary {:.4f}, sinusoidal {:.4f}, rotary {:.4f} bits per byte.", integer,
                  binary, sinusoidal, rotary)};
}

Finding positions_matter(const ComparisonResults& r) {
  const double none = bits(r, "mha-none"), rotary = bits(r, "mha"), integer = bits(r, "mha-integer");
  const bool both = rises({rotary, none}, noise_of(r)) == Verdict::holds &&
                    rises({rotary, integer}, noise_of(r)) == Verdict::holds;
  return {
      "Without positions attention can't tell order but by the causal mask; integers drown the word (3.7, "
      "3.8).",
      verdict_of(both),
      fmt::format("none {:.4f}, integer {:.4f}, rotary {:.4f} bits per byte.", none, integer, rotary)};
}

}  // namespace

const char* name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::holds:
      return "holds";
    case Verdict::fails:
      return "does not hold";
    default:
      return "not decided";
  }
}

const ComparedModel& model_named(const ComparisonResults& results, const std::string& directory) {
  const auto found = std::ranges::find_if(
      results.models, [&](const ComparedModel& model) { return model.variant.directory == directory; });
  require(found != results.models.end(), "comparison: found no model '{}'", directory);
  return *found;
}

double mean_map_distance(const ModelMeasure& measure) {
  double sum = 0;
  for (const HeadDiversity& layer : measure.layers) sum += layer.map_distance;
  return sum / static_cast<double>(measure.layers.size());
}

double mean_key_rank(const ModelMeasure& measure) {
  double sum = 0;
  for (const HeadDiversity& layer : measure.layers) sum += layer.key_rank;
  return sum / static_cast<double>(measure.layers.size());
}

double noise_of(const ComparisonResults& results) {
  return std::max(0.004, 2 * std::abs(bits(results, "mha") - bits(results, "mha-another-seed")));
}

std::vector<Finding> findings_of(const ComparisonResults& results) {
  return {cache_for_free(results),     sharing_costs(results),  better_than_sharing(results),
          diversity_survives(results), rope_is_missed(results), positions_matter(results),
          ladder_climbs(results)};
}

}  // namespace mla
