// mla bench matmul: matrix products beside the ceilings of the CPU.
#include <fmt/format.h>

#include <charconv>

#include "apps/bench.h"
#include "mla/core/error.h"
#include "mla/kernels/matmul.h"

namespace mla::app {
namespace {

/// y [tokens, outputs] = x [tokens, inputs] W^T.
struct Shape {
  std::int64_t tokens, outputs, inputs;
};

constexpr std::int64_t largest = 1 << 20;

/// Reads "16x2048x2048".
Shape parse_shape(const std::string& text) {
  std::int64_t sizes[3] = {};
  const char* at = text.data();
  const char* const end = at + text.size();
  bool good = true;
  for (int i = 0; i < 3 && good; ++i) {
    const auto [next, error] = std::from_chars(at, end, sizes[i]);
    good = error == std::errc{} && sizes[i] >= 1 && sizes[i] <= largest &&
           (i == 2 ? next == end : next != end && *next == 'x');
    at = next + (i < 2);
  }
  require(good, "found '{}', expected MxNxK: tokens, outputs, inputs, each from 1 to {}", text, largest);
  return {sizes[0], sizes[1], sizes[2]};
}

void run_shape(Bench& bench, const Shape& s, DType type) {
  const std::int64_t bytes = s.outputs * s.inputs * size_of(type);
  const std::int64_t count = bytes_beyond_caches() / bytes + 1;
  // Distinct ones, more than the caches hold: a model's weights come from memory, too.
  const Buffer<std::byte> weights = random_weights(type, count * s.outputs * s.inputs);
  Buffer<float> x(s.tokens * s.inputs), y(s.tokens * s.outputs);
  RandomValues(256).fill(x.data(), x.size());
  std::int64_t next = 0;
  const auto call = [&] {
    Weight weight{type, weights.data() + next * bytes, s.outputs, s.inputs};
    matmul({x.data(), s.tokens, s.inputs}, weight, type, {y.data(), s.tokens, s.outputs});
    next = (next + 1) % count;
  };
  const double operations = 2 * static_cast<double>(s.tokens) * static_cast<double>(s.outputs * s.inputs);
  const nlohmann::ordered_json fields = {{"heads", nullptr}, {"queries", s.tokens}, {"kv", nullptr},
                                         {"m", s.tokens},    {"n", s.outputs},      {"k", s.inputs}};
  bench.run({fmt::format("matmul {}, {} x {} x {}", mla::name_of(type), s.tokens, s.outputs, s.inputs),
             "matmul", type, operations, bytes, true, fields, call});
}

}  // namespace

void check_matmul_shape(const std::string& text) {
  parse_shape(text);
}

void bench_matmul(const MatmulBenchOptions& options) {
  Bench bench(options.bench, static_cast<std::int64_t>(options.types.size() * options.shapes.size()));
  for (const std::string& type : options.types) {
    for (const std::string& shape : options.shapes)
      run_shape(bench, parse_shape(shape), dtype_named(type, "--dtype"));
  }
  bench.finish();
}

}  // namespace mla::app
