#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "mla/attention/attention.h"
#include "mla/core/cpu.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/core/tensor.h"

namespace mla::test {

/// Numbers that are the same in every run and on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(n));
  }
  /// Uniform in [-1, 1).
  double unit() { return static_cast<double>(engine_() >> 11) * 0x1p-52 - 1.0; }
  /// `n` values of variance about 1, times `scale`.
  std::vector<float> values(std::int64_t n, double scale = 1.0);
  template <class T>
  const T& pick(const std::vector<T>& from) {
    return from[static_cast<std::size_t>(below(static_cast<std::int64_t>(from.size())))];
  }

 private:
  std::mt19937_64 engine_;
};

/// A thread count for as long as this lives.
class Threads {
 public:
  explicit Threads(int count) { set_threads(count); }
  ~Threads() { set_threads(before_); }
  Threads(const Threads&) = delete;

 private:
  int before_ = threads();
};

/// The instruction sets that this machine can run.
std::vector<Isa> supported_isas();

/// The upper 16 bits of the bf16 nearest to `x`, ties to even, found by comparing distances in double.
std::uint16_t nearest_bf16(float x);

/// `x` rounded to `type` (f32, bf16 or f16).
float rounded(float x, DType type);

/// The value of a small float format's code: `exponent_bits`, `mantissa_bits`, subnormals as IEEE has them;
/// no inf, no NaN.
double value_of_code(unsigned code, int exponent_bits, int mantissa_bits);

/// The message of the Error that `action` throws, "" if it throws none.
template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// Rows of a cache as plain numbers: [length][width], head h's key at h * head_width, its value value_offset
/// behind.
struct PlainRows {
  std::vector<float> data;
  std::int64_t length = 0, width = 0, value_offset = 0, head_width = 0;

  const float* key(std::int64_t row, std::int64_t head) const {
    return data.data() + row * width + head * head_width;
  }
  const float* value(std::int64_t row, std::int64_t head) const { return key(row, head) + value_offset; }
};

/// Attention by its definition, in double: [tokens][h_q][d_v], and [tokens][h_q] for lse.
struct AttentionAnswer {
  std::vector<double> out;
  std::vector<double> weight;  ///< sum of p |v|: the size of what was added up for each `out`
  std::vector<double> lse;
  std::vector<double> largest;  ///< scaled score
};
AttentionAnswer plain_attention(const AttentionShape& shape, const QueryView& queries, const PlainRows& rows);

/// y = x W^T in double; W [n, k] as numbers.
std::vector<double> plain_matmul(const std::vector<double>& x, const std::vector<double>& w, std::int64_t m,
                                 std::int64_t n, std::int64_t k);

}  // namespace mla::test
