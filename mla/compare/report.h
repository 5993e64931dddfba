#pragma once
#include <string>

#include "mla/compare/comparison.h"

namespace mla {

/// results.json: everything that the report draws, and the findings.
std::string results_json(const ComparisonResults& results);

/// report.html: a page of its own, pictures included, that works from disk, in light and dark.
std::string report_html(const ComparisonResults& results);

}  // namespace mla
