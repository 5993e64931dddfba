#pragma once
#include <array>
#include <cstdint>

#include "mla/attention/mla.h"

namespace mla {

/// What the time of one form is made of: amounts that a call has of each, times a cost of each. Number 0
/// counts calls, 4 the multiply-adds of attention. Explicit: 1 values of W_UK and W_UV, as often as they are
/// read; 2 multiply-adds of the decompression; 3 values of keys and values, written and read once. Absorbed:
/// 1 values of W_UK and W_UV, each read once; 2 their multiply-adds; 3 values of the rows, read once by each
/// block of queries.
using FormTerms = std::array<double, 5>;

/// The amounts of `tokens` new tokens over `length` rows in all, where products compute in `compute`.
/// REQUIRES form is not automatic.
FormTerms form_terms(MlaForm form, const MlaShape& shape, std::int64_t tokens, std::int64_t length,
                     DType compute);

/// Picoseconds of each term, where products compute in `compute` and rows are stored as `rows`.
struct FormCosts {
  DType compute, rows;
  FormTerms decompress, absorb;
};

/// The costs on this CPU: bf16 without products of bf16 pairs costs what f32 does. Throws Error for a compute
/// type other than f32 and bf16.
const FormCosts& form_costs(DType compute, DType rows);

/// Picoseconds of a call by these costs: good for comparing the forms, not for a promise.
double form_time(const FormCosts& costs, MlaForm form, const MlaShape& shape, std::int64_t tokens,
                 std::int64_t length);

/// A call that was timed.
struct FormSample {
  FormTerms terms;
  double time;    ///< picoseconds
  double weight;  ///< of its squared relative error
};

/// Costs at least 0 that give the samples' times with the least weighted sum of squared relative errors.
FormTerms fit_form_costs(std::span<const FormSample> samples);

}  // namespace mla
