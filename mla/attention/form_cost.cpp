#include "mla/attention/form_cost.h"

#include <algorithm>
#include <cmath>

#include "mla/attention/attention.h"
#include "mla/core/cpu.h"
#include "mla/core/error.h"
#include "mla/core/parts.h"
#include "mla/kernels/prefill.h"

namespace mla {
namespace {

// Measured with two threads of a Zen 4 (AVX-512 with bf16), the line of f32 over f32 of a Zen 3 (AVX2), which
// has no other; V3's widths, 8 to 128 heads: bench/fit_forms writes these lines. Only ratios within a line
// count.
constexpr FormCosts table[] = {
    {DType::bf16, DType::bf16, {0, 42.7, 4.72, 0, 4.838}, {0, 31.22, 7.421, 12.9, 5.18}},
    {DType::f32, DType::bf16, {0, 49.64, 12.3, 0, 26.89}, {0, 48.05, 15.89, 1.285, 5.437}},
    {DType::bf16, DType::f32, {0, 50.98, 5.393, 0, 5.249}, {0, 43.3, 11.67, 25, 10.45}},
    {DType::f32, DType::f32, {0, 61.71, 13.63, 0, 14.87}, {0, 66.32, 16.84, 41.27, 12.6}},
};

bool has_pairs() {
  static const bool pairs = selected_isa() == Isa::avx512_bf16;
  return pairs;
}

double parts_of(std::int64_t n, std::int64_t size) {
  return static_cast<double>(parts(n, size));
}

}  // namespace

FormTerms form_terms(MlaForm form, const MlaShape& s, std::int64_t tokens, std::int64_t length,
                     DType compute) {
  // Doubles, since the products of real lengths are large.
  const auto m = static_cast<double>(tokens), n = static_cast<double>(length);
  const auto heads = static_cast<double>(s.num_heads);
  const auto d_c = static_cast<double>(s.kv_lora_rank);
  const double pairs = heads * (m * n - m * (m - 1) / 2);  // of a query and a row that it sees
  const double up = heads * d_c * static_cast<double>(s.qk_nope_head_dim + s.v_head_dim);
  if (form == MlaForm::decompress) {
    const auto width = static_cast<double>(s.qk_head_dim() + s.v_head_dim);
    if (compute != DType::bf16 || !has_prefill())
      return {1, up * parts_of(length, OnlineAttention::part_rows), n * up, n * heads * width, pairs * width};
    // Queries go in panels, whose empty lanes cost what the others do.
    const double empty = heads * n * (parts_of(tokens, prefill_queries) * prefill_queries - m);
    return {1, up, n * up, n * heads * width, (pairs + empty) * width};
  }
  const auto width = static_cast<double>(s.latent_width() + s.kv_lora_rank);
  const double blocks = parts_of(tokens * s.num_heads, AttendQueries::max_count);
  return {1, up, m * up, n * width * blocks, pairs * width};
}

const FormCosts& form_costs(DType compute, DType rows) {
  require(compute == DType::f32 || compute == DType::bf16,
          "form costs: found compute type {}, expected f32 or bf16", name_of(compute));
  const DType products = has_pairs() ? compute : DType::f32, stored = has_pairs() ? rows : DType::f32;
  const FormCosts* best = nullptr;  // the same products, and if possible the same rows
  for (const FormCosts& costs : table) {
    if (costs.compute == products && (!best || costs.rows == stored)) best = &costs;
  }
  return *best;
}

double form_time(const FormCosts& costs, MlaForm form, const MlaShape& shape, std::int64_t tokens,
                 std::int64_t length) {
  const FormTerms terms = form_terms(form, shape, tokens, length, costs.compute);
  const FormTerms& each = form == MlaForm::decompress ? costs.decompress : costs.absorb;
  double time = 0;
  for (std::size_t i = 0; i < terms.size(); ++i) time += terms[i] * each[i];
  return time;
}

FormTerms fit_form_costs(std::span<const FormSample> samples) {
  // Normal equations of the relative errors, solved by coordinate descent, which keeps costs from falling
  // below zero (Franc, Hlavac & Navara 2005, sequential coordinate-wise non-negative least squares).
  constexpr std::size_t size = FormTerms().size();
  double matrix[size][size] = {}, right[size] = {};
  FormTerms scale{};  // the terms differ by many orders of magnitude
  for (const FormSample& sample : samples) {
    for (std::size_t i = 0; i < size; ++i) scale[i] = std::max(scale[i], sample.terms[i]);
  }
  for (const FormSample& sample : samples) {
    const auto share = [&](std::size_t i) {
      return scale[i] > 0 ? sample.terms[i] / scale[i] / sample.time : 0;
    };
    for (std::size_t i = 0; i < size; ++i) {
      right[i] += sample.weight * share(i);
      for (std::size_t j = 0; j < size; ++j) matrix[i][j] += sample.weight * share(i) * share(j);
    }
  }
  FormTerms costs{};
  for (int round = 0; round < 200'000; ++round) {
    for (std::size_t i = 0; i < size; ++i) {
      double rest = right[i];
      for (std::size_t j = 0; j < size; ++j) rest -= matrix[i][j] * costs[j];
      if (matrix[i][i] > 0) costs[i] = std::max(0.0, costs[i] + rest / matrix[i][i]);
    }
  }
  for (std::size_t i = 0; i < size; ++i) costs[i] /= scale[i] > 0 ? scale[i] : 1;
  return costs;
}

MlaForm choose_form(const MlaShape& shape, std::int64_t tokens, std::int64_t length, DType compute,
                    DType rows) {
  const FormCosts& costs = form_costs(compute, rows);
  const auto time = [&](MlaForm form) { return form_time(costs, form, shape, tokens, length); };
  return time(MlaForm::decompress) < time(MlaForm::absorb) ? MlaForm::decompress : MlaForm::absorb;
}

}  // namespace mla
