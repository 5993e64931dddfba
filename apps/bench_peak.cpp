// mla bench peak: what this CPU can do at most.
#include <fmt/format.h>

#include <algorithm>

#include "apps/bench.h"
#include "mla/core/parallel.h"

namespace mla::app {
namespace {

using nlohmann::ordered_json;

class PeakReport {
 public:
  explicit PeakReport(bool json) : json_(json) {
    if (!json)
      say(fmt::format("{}\n{:<10}{:<24}{:>8}{:>10}\n", cpu_name(), "", "instruction", "threads", ""));
  }

  void add(const std::string& of, const std::string& instruction, int threads, double rate, bool reads) {
    const char* const unit = reads ? "GB/s" : "GFLOP/s";
    if (!json_)
      return say(fmt::format("{:<10}{:<24}{:>8}{:>10.1f} {}\n", of, instruction, threads, rate / 1e9, unit));
    ordered_json entry = {{"name", fmt::format("peak {}, {}, {} threads", of, instruction, threads)},
                          {"op", "peak"},
                          {"rows", reads ? ordered_json() : ordered_json(of)},
                          {"heads", nullptr},
                          {"queries", nullptr},
                          {"kv", nullptr},
                          {"gflops", reads ? ordered_json() : ordered_json(rate / 1e9)},
                          {"gbytes_per_s", reads ? ordered_json(rate / 1e9) : ordered_json()},
                          {"ceiling", rate / 1e9},
                          {"ceiling_unit", unit},
                          {"ceiling_of", of},
                          {"share", 1.0},
                          {"instruction", instruction},
                          {"threads", threads},
                          {"cpu", cpu_name()}};
    entries_.push_back(std::move(entry));
  }

  void finish() const {
    if (json_) say(entries_.dump(2) + "\n");
  }

 private:
  bool json_;
  ordered_json entries_ = ordered_json::array();
};

}  // namespace

void bench_peak(const BenchOptions& options) {
  if (options.threads > 0) set_threads(options.threads);
  std::vector<int> counts = {1};
  if (threads() > 1) counts.push_back(threads());
  const PeakTiming timing{std::clamp(options.seconds / 10, 0.0005, 0.05), 10};
  PeakReport report(options.json);
  for (const PeakKernel& kernel : peak_kernels()) {
    for (const int count : counts) {
      report.add(mla::name_of(kernel.type), kernel.instruction, count, peak_operations(kernel, count, timing),
                 false);
    }
  }
  const Buffer<std::byte> memory(options.buffer << 20);
  for (const int count : counts) {
    report.add("read", fmt::format("{} MiB, four streams", options.buffer), count,
               peak_read(memory.span(), count, timing), true);
  }
  report.finish();
}

}  // namespace mla::app
