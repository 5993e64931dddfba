// mla compare: MHA, GQA, MQA and MLA, and MHA's positions, trained alike and measured.
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cmath>
#include <ctime>

#include "apps/bench.h"
#include "apps/commands.h"
#include "apps/terminal.h"
#include "apps/training_line.h"
#include "mla/compare/findings.h"
#include "mla/compare/report.h"
#include "mla/core/error.h"
#include "mla/core/mapped_file.h"
#include "mla/core/parallel.h"

namespace mla::app {
namespace {

/// Of a budget, what is left for training when texts are encoded, held-back text is measured 20 times, and
/// the trained models too.
constexpr double training_share = 0.85;

std::int64_t steps_of(const CompareOptions& o, const ComparisonOptions& comparison) {
  if (o.tokens > 0) {
    const std::int64_t step = comparison.batch * comparison.length;
    return std::max<std::int64_t>(1, (o.tokens + step / 2) / step);
  }
  const double rounds = training_share * 60 * o.budget / seconds_per_round(comparison);
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(rounds));
}

ComparisonOptions comparison_options(const CompareOptions& o) {
  ComparisonOptions comparison;
  comparison.seed = o.seed;
  comparison.compute = dtype_named(o.dtype, "--dtype");
  comparison.steps = steps_of(o, comparison);
  return comparison;
}

/// Ends between two models if somebody asks for it: nothing is lost.
ComparisonResults measure(const Comparison& comparison) {
  Progress progress("measuring", std::ssize(comparison.variants()));
  std::int64_t measured = 0;
  return comparison.measure({}, [&](const Variant& variant) {
    progress.show(measured++);
    if (was_interrupted())
      fail("interrupted before {} was measured; the same command with --resume measures again", variant.name);
  });
}

std::string file_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

void print_table(const ComparisonResults& results) {
  std::string table = fmt::format("{:<20}{:>12}{:>14}{:>12}{:>12}{:>14}{:>10}\n", "model", "parameters",
                                  "bytes/token", "bits/byte", "tokens/s", "map distance", "key rank");
  for (const ComparedModel& m : results.models) {
    table += fmt::format("{:<20}{:>12}{:>14.0f}{:>12.4f}{:>12.0f}{:>14.3f}{:>10.1f}\n", m.variant.name,
                         m.variant.parameters, m.measure.cache_bytes_per_token, m.best.bits_per_byte,
                         m.measure.decode.back().tokens_per_second, mean_map_distance(m.measure),
                         mean_key_rank(m.measure));
  }
  for (const Finding& f : findings_of(results))
    table += fmt::format("\n{}: {}\n    {}\n", name_of(f.verdict), f.claim, f.evidence);
  say(table);
}

}  // namespace

void compare(const CompareOptions& options) {
  was_interrupted();  // signals are watched from here on, before other threads exist
  if (options.threads > 0) set_threads(options.threads);
  const std::string text = read_text(options.text);
  if (!options.resume) Comparison::check_new(options.out, text);
  const Comparison comparison = options.resume
                                    ? Comparison::resume(options.out, text)
                                    : Comparison::begin(options.out, text, comparison_options(options));
  std::int64_t number = 0;
  for (const Variant& variant : comparison.variants()) {
    TrainingRun run = comparison.run(variant);
    train_to_the_end(run,
                     fmt::format("{} ({} of {}): ", variant.name, ++number, comparison.variants().size()));
  }
  ComparisonResults results = measure(comparison);
  results.cpu = fmt::format("{}, {} threads", cpu_name(), threads());
  results.date = fmt::format("{:%Y-%m-%d}", fmt::localtime(std::time(nullptr)));
  results.text_name = file_name(options.text);
  const std::filesystem::path out = options.out;
  write_text(out / "results.json", results_json(results));
  write_text(out / "report.html", report_html(results));
  print_table(results);
  say(fmt::format("\n{}\n", (out / "report.html").string()));
}

}  // namespace mla::app
