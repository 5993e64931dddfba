// How fast Tokenizer::encode is on one thread.
//   tokenizer_bench MODEL_DIRECTORY TEXT_FILE [RUNS]
// Prints one JSON object: ids, checksum (FNV-1a over the ids), load_s, decode_mb_per_s, mb_per_s (the median
// run) and all runs.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <vector>

#include "mla/core/error.h"
#include "mla/core/mapped_file.h"
#include "mla/model/tokenizer.h"

namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::uint64_t checksum(const std::vector<std::int32_t>& ids) {
  std::uint64_t sum = 0xCBF29CE484222325u;
  for (const std::int32_t id : ids) sum = (sum ^ static_cast<std::uint32_t>(id)) * 0x100000001B3u;
  return sum;
}

void run(const std::string& directory, const std::string& file, int runs) {
  const double begin = seconds();
  const auto tokenizer = mla::Tokenizer::load(directory);
  const double load = seconds() - begin;
  const std::string text = mla::read_text(file);
  const double megabytes = static_cast<double>(text.size()) / 1e6;
  std::vector<double> rates;
  std::vector<std::int32_t> ids;
  for (int i = 0; i < runs; ++i) {
    const double start = seconds();
    ids = tokenizer.encode(text);
    rates.push_back(megabytes / (seconds() - start));
  }
  const double start = seconds();
  const std::string decoded = tokenizer.decode(ids, false);
  const double decode = static_cast<double>(decoded.size()) / 1e6 / (seconds() - start);
  const nlohmann::json all = rates;
  std::sort(rates.begin(), rates.end());
  const nlohmann::json result = {{"ids", ids.size()},    {"checksum", fmt::format("{:016x}", checksum(ids))},
                                 {"load_s", load},       {"decode_mb_per_s", decode},
                                 {"runs_mb_per_s", all}, {"mb_per_s", rates[rates.size() / 2]},
                                 {"bytes", text.size()}};
  std::puts(result.dump().c_str());
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::fputs("usage: tokenizer_bench MODEL_DIRECTORY TEXT_FILE [RUNS]\n", stderr);
    return 2;
  }
  try {
    run(arguments[1], arguments[2], count > 3 ? std::max(1, std::atoi(arguments[3])) : 5);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tokenizer_bench: %s\n", error.what());
    return 1;
  }
}
