#include "support/reference.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "mla/core/json.h"
#include "mla/core/mapped_file.h"

namespace mla::test {

std::filesystem::path data() {
  return MLA_TEST_DATA;
}

Reference load_reference(const std::string& name) {
  Reference r;
  r.directory = data() / "reference" / name;
  const auto json = parse_json(read_text(r.directory / "reference.json"), name);
  r.ids = json.at("ids").get<std::vector<std::int32_t>>();
  r.greedy_prompt = json.at("greedy_prompt").get<std::vector<std::int32_t>>();
  r.greedy = json.at("greedy").get<std::vector<std::int32_t>>();
  r.bf16_mean_kl = json.value("transformers_bf16_mean_kl", -1.0);
  r.logits = read_npy(r.directory / "logits.npy");
  r.hidden = read_npy(r.directory / "hidden.npy");
  return r;
}

const std::vector<std::string>& reference_names() {
  static const std::vector<std::string> names{
      "v2-lite", "v2", "v3", "v3-bf16", "v3-fp8", "v3-true-heads", "kimi-k2", "glm4-moe-lite", "minicpm3"};
  return names;
}

const std::vector<std::string>& heads_names() {
  static const std::vector<std::string> names{"llama-mha", "llama-gqa", "llama-mqa"};
  return names;
}

Difference difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return {INFINITY, INFINITY};
  Difference d{0, 0};
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double error = std::abs(static_cast<double>(a[i]) - b[i]);
    d.max = error <= d.max ? d.max : error;  // a NaN becomes the maximum
    d.mean += error / static_cast<double>(a.size());
  }
  return d;
}

namespace {

std::vector<double> log_softmax(const float* logits, std::int64_t n) {
  const double top = *std::max_element(logits, logits + n);
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += std::exp(logits[i] - top);
  std::vector<double> result(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) result[i] = logits[i] - top - std::log(sum);
  return result;
}

}  // namespace

double mean_kl(const NpyArray& expected, const std::vector<float>& found) {
  const std::int64_t rows = expected.shape[0], vocab = expected.shape[1];
  double total = 0;
  for (std::int64_t t = 0; t < rows; ++t) {
    const auto p = log_softmax(expected.data.data() + t * vocab, vocab);
    const auto q = log_softmax(found.data() + t * vocab, vocab);
    for (std::int64_t i = 0; i < vocab; ++i) total += std::exp(p[i]) * (p[i] - q[i]);
  }
  return total / static_cast<double>(rows);
}

}  // namespace mla::test
