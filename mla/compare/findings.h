#pragma once
#include <string>
#include <vector>

#include "mla/compare/comparison.h"

namespace mla {

enum class Verdict {
  holds,
  fails,
  undecided,  ///< the differences are within chance
};

/// A claim of the chapter, and what the trained models say to it.
struct Finding {
  std::string claim;
  Verdict verdict = Verdict::undecided;
  std::string evidence;  ///< the numbers that decide
};

/// Bits per byte below which two models count as equal: twice the difference between MHA and MHA from another
/// seed, at least 0.004.
double noise_of(const ComparisonResults& results);

/// "holds", "does not hold" or "not decided".
const char* name_of(Verdict verdict);

/// The claims, each decided by the numbers alone. REQUIRES all models of comparison_variants.
std::vector<Finding> findings_of(const ComparisonResults& results);

/// A model's means over its layers.
double mean_map_distance(const ModelMeasure& measure);
double mean_key_rank(const ModelMeasure& measure);

/// The model of that directory name. Throws Error if there is none.
const ComparedModel& model_named(const ComparisonResults& results, const std::string& directory);

}  // namespace mla
