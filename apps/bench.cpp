// What the benchmarks share: see bench.h.
#include "apps/bench.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <random>

#include "mla/core/clock.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/model/checkpoint.h"

namespace mla::app {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t mebibyte = std::int64_t{1} << 20;
constexpr std::int64_t table_values = 1 << 16;
constexpr std::int64_t least_read = 1 << 16;  // bytes that a read ceiling is measured on at least

int use_threads(const BenchOptions& options) {
  if (options.threads > 0) set_threads(options.threads);
  return threads();
}

/// What the first core's largest cache holds, by the kernel's account.
std::int64_t largest_cache() {
  std::int64_t kibibytes = 0;
  for (int index = 0; index < 5; ++index) {
    std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/size", index));
    std::int64_t size = 0;
    if (file >> size) kibibytes = std::max(kibibytes, size);  // "32768K"
  }
  return kibibytes > 0 ? kibibytes << 10 : 32 * mebibyte;
}

}  // namespace

std::int64_t bytes_beyond_caches() {
  static const std::int64_t bytes = 3 * largest_cache() + 1;
  return bytes;
}

void check_bench_fits(std::int64_t bytes) {
  check_fits(bytes, available_memory(), "bench");
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string name = "unknown", family, model;
  for (std::string line; std::getline(file, line) && !line.empty();) {  // of the first processor
    const std::size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    const std::string value = line.substr(colon + 2);
    if (line.starts_with("model name")) {
      name = value;
    } else if (line.starts_with("cpu family")) {
      family = value;
    } else if (line.starts_with("model")) {
      model = value;
    }
  }
  return family.empty() ? name : fmt::format("{} (family {}, model {})", name, family, model);
}

std::shared_ptr<PagePool> shuffled_pool(const RowLayout& layout, std::int64_t page_rows, std::int64_t pages) {
  auto pool = std::make_shared<PagePool>(layout, 1, page_rows, pages);
  std::vector<std::int64_t> order(pages);
  for (std::int64_t& page : order) page = pool->take();
  std::shuffle(order.begin(), order.end(), std::mt19937(2));
  for (const std::int64_t page : order) pool->drop(page);
  return pool;
}

RandomValues::RandomValues(std::int64_t longest, std::uint32_t seed) : table_(table_values + longest) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (float& value : table_) value = normal(random);
}

const float* RandomValues::next(std::int64_t count) {
  require(count <= static_cast<std::int64_t>(table_.size()) - table_values,
          "random values: found {} asked for, expected at most {}", count, table_.size() - table_values);
  state_ = state_ * 6364136223846793005u + 1442695040888963407u;
  return table_.data() + (state_ >> 33) % table_values;
}

void RandomValues::fill(float* out, std::int64_t count) {
  for (std::int64_t done = 0; done < count; done += 256) {
    const std::int64_t part = std::min<std::int64_t>(256, count - done);
    std::copy_n(next(part), part, out + done);
  }
}

Buffer<std::byte> random_weights(DType type, std::int64_t values) {
  check_bench_fits(values * size_of(type));
  Buffer<std::byte> bytes(values * size_of(type));
  RandomValues random(256);
  for (std::int64_t done = 0; done < values; done += 256) {
    const std::int64_t part = std::min<std::int64_t>(256, values - done);
    const float* from = random.next(part);
    if (type == DType::f32) {
      std::copy_n(from, part, reinterpret_cast<float*>(bytes.data()) + done);
    } else {
      for (std::int64_t i = 0; i < part; ++i)
        reinterpret_cast<bf16*>(bytes.data())[done + i] = to_bf16(from[i]);
    }
  }
  return bytes;
}

Bench::Bench(const BenchOptions& options, std::int64_t entries)
    : options_(options),
      threads_(use_threads(options)),
      timing_{std::clamp(options.seconds / 10, 0.0005, 0.05), 3},
      memory_(options.buffer * mebibyte),
      progress_("measuring", entries) {
  if (options.json) return;
  say(fmt::format("{}, {} threads, {}\n", cpu_name(), threads_, mla::name_of(selected_isa())));
  say(fmt::format("{:<44}{:>10}{:>10}{:>9}   {:<18}{:>6}\n", "", "ms", "GFLOP/s", "GB/s", "ceiling",
                  "share"));
}

/// Warm data are read again and again, so their ceiling is that of the cache which holds them.
void Bench::raise(Ceilings& ceilings, const BenchWork& work) {
  const std::int64_t least = std::max(least_read, 512 * static_cast<std::int64_t>(threads_));
  const std::int64_t bytes =
      work.cold ? memory_.size() : std::clamp(work.bytes, std::min(least, memory_.size()), memory_.size());
  const auto memory = std::span<const std::byte>(memory_.span()).first(bytes);
  ceilings.operations =
      std::max(ceilings.operations, peak_operations(peak_kernel(work.type), threads_, timing_));
  ceilings.bytes = std::max(ceilings.bytes, peak_read(memory, threads_, timing_));
}

double Bench::median_seconds(const BenchWork& work, std::int64_t& calls) const {
  work.call();  // wakes the threads, and touches what is allocated once
  std::vector<double> times;
  const double begin = seconds_now();
  double last = begin;
  while (times.size() < 3 || last - begin < options_.seconds) {
    work.call();
    const double time = seconds_now();
    times.push_back(time - last);
    last = time;
  }
  calls = static_cast<std::int64_t>(times.size());
  const auto middle = times.begin() + calls / 2;
  std::nth_element(times.begin(), middle, times.end());
  return std::max(*middle, 1e-9);
}

void Bench::run(const BenchWork& work) {
  Ceilings ceilings;
  std::int64_t calls = 0;
  raise(ceilings, work);
  const double seconds = median_seconds(work, calls);
  raise(ceilings, work);
  const double compute = work.operations / ceilings.operations;
  const double read = static_cast<double>(work.bytes) / ceilings.bytes;
  const bool reads = read > compute;
  const double ceiling = (reads ? ceilings.bytes : ceilings.operations) / 1e9;
  const char* const unit = reads ? "GB/s" : "GFLOP/s";
  const std::string of = reads ? "read" : mla::name_of(peak_kernel(work.type).type);
  const double share = std::max(compute, read) / seconds;
  const double gflops = work.operations / seconds / 1e9;
  const double gbytes = static_cast<double>(work.bytes) / seconds / 1e9;
  if (!options_.json) {
    const std::string rate =
        work.tokens > 0 ? fmt::format("{:>10.2f} tokens/s", work.tokens / seconds) : std::string();
    return say(fmt::format("{:<44}{:>10.3f}{:>10.1f}{:>9.1f}   {:<18}{:>5.0f}%{}\n", work.name, 1e3 * seconds,
                           gflops, gbytes, fmt::format("{:.0f} {} {}", ceiling, unit, of), 100 * share,
                           rate));
  }
  ordered_json entry = {{"name", work.name}, {"op", work.op}, {"rows", mla::name_of(work.type)}};
  entry.update(work.fields);
  if (work.tokens > 0) {
    entry.update({{"tokens_per_s", work.tokens / seconds},
                  {"limit_tokens_per_s", work.tokens / std::max(compute, read)}});
  }
  entry.update({{"gflops", gflops},
                {"gbytes_per_s", gbytes},
                {"ceiling", ceiling},
                {"ceiling_unit", unit},
                {"ceiling_of", of},
                {"share", share},
                {"seconds", seconds},
                {"calls", calls},
                {"cold", work.cold},
                {"threads", threads_},
                {"isa", mla::name_of(selected_isa())},
                {"cpu", cpu_name()}});
  entries_.push_back(std::move(entry));
  progress_.show(static_cast<std::int64_t>(entries_.size()));
}

void Bench::finish() {
  if (options_.json) say(entries_.dump(2) + "\n");
}

}  // namespace mla::app
