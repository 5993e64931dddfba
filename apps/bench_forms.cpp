// mla bench forms: the two forms of MLA side by side, over new and cached tokens, and what `auto` chooses.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "apps/bench.h"
#include "apps/load.h"
#include "apps/random_model.h"
#include "mla/attention/form_cost.h"
#include "mla/core/clock.h"
#include "mla/core/parallel.h"

namespace mla::app {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t page_rows = 64;
/// A form that should take this much longer than the other is not timed, and none that takes this many times
/// --seconds.
constexpr double hopeless = 4, too_long = 20;

/// One point of the grid.
struct Cell {
  std::int64_t heads, tokens, cached;
  MlaForm choice;
  std::optional<double> decompress, absorb;  // seconds, unless not timed

  std::int64_t rows() const { return cached + tokens; }
  bool timed() const { return decompress && absorb; }
  /// What the choice costs more than the better form, of which a form that was not timed is none.
  double excess() const {
    const double chosen = choice == MlaForm::decompress ? *decompress : *absorb;
    return chosen / std::min(*decompress, *absorb) - 1;
  }
};

/// The attention of one number of heads: weights, a cache, queries of the most tokens.
class Layer {
 public:
  Layer(const FormsBenchOptions& o, const MlaShape& shape)
      : shape_(shape),
        compute_(o.types.compute()),
        layout_(RowLayout::latent(shape.kv_lora_rank, shape.qk_rope_head_dim, o.types.cached())) {
    const std::int64_t outputs = shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim);
    const std::int64_t tokens = *std::ranges::max_element(o.tokens);
    const std::int64_t rows = *std::ranges::max_element(o.cached) + tokens;
    const std::int64_t per_token = shape.num_heads * (2 * shape.kv_lora_rank + 512);
    check_bench_fits(2 * outputs * shape.kv_lora_rank * size_of(compute_) + rows * layout_.bytes() +
                     tokens * per_token * size_of(DType::f32));
    memory_ = random_weights(compute_, outputs * shape.kv_lora_rank);
    weights_.kv_b_proj = {compute_, memory_.data(), outputs, shape.kv_lora_rank};
    queries_.resize(tokens * shape.num_heads * shape.qk_head_dim());
    RandomValues(256).fill(queries_.data(), queries_.size());
    values_.resize(tokens * shape.num_heads * shape.v_head_dim);
    cache_ = std::make_unique<KvCache>(
        std::make_shared<PagePool>(layout_, 1, page_rows, (rows + page_rows - 1) / page_rows));
    RandomValues random(layout_.values());
    cache_->extend(rows);
    for (std::int64_t row = 0; row < rows; ++row) cache_->write(0, row, random.next(layout_.values()));
    set_rows(tokens);
    for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) seconds(form, tokens);  // takes memory
  }

  /// Rows of the cache that calls attend to; at most as many as it was made with.
  void set_rows(std::int64_t rows) {
    cache_->truncate(std::min(rows, cache_->length()));
    cache_->extend(rows - cache_->length());
  }

  double seconds(MlaForm form, std::int64_t tokens) {
    MlaCall call;
    call.form = form;
    call.compute = compute_;
    const std::int64_t q = shape_.num_heads * shape_.qk_head_dim(), v = shape_.num_heads * shape_.v_head_dim;
    const double begin = seconds_now();
    mla_attend(shape_, weights_, call, {queries_.data(), tokens, q}, *cache_, scratch_,
               {values_.data(), tokens, v});
    return seconds_now() - begin;
  }

  const MlaShape& shape() const { return shape_; }
  DType compute() const { return compute_; }
  DType rows_type() const { return layout_.type(); }

 private:
  MlaShape shape_;
  DType compute_;
  RowLayout layout_;
  MlaWeights weights_;
  Buffer<std::byte> memory_;
  Buffer<float> queries_, values_;
  std::unique_ptr<KvCache> cache_;
  MlaScratch scratch_;
};

/// Which forms are worth timing, by `costs`.
struct Plan {
  bool decompress, absorb;
};

Plan plan(const FormCosts& costs, const MlaShape& shape, const Cell& cell, double seconds) {
  const auto expected = [&](MlaForm form) {
    return 1e-12 * form_time(costs, form, shape, cell.tokens, cell.rows());
  };
  const double decompress = expected(MlaForm::decompress), absorb = expected(MlaForm::absorb);
  const double bound =
      std::max(seconds, std::min(hopeless * std::min(decompress, absorb), too_long * seconds));
  return {decompress <= bound, absorb <= bound};
}

/// The least time of each form, the forms taking turns: three rounds at least, but long calls are made once.
void time_cell(Layer& layer, const Plan& wanted, double seconds, Cell& cell) {
  layer.set_rows(cell.rows());
  const auto time = [&](MlaForm form, std::optional<double>& best) {
    const double took = layer.seconds(form, cell.tokens);
    if (!best || took < *best) best = took;
    return took;
  };
  double spent = 0;
  for (int round = 0; (round < 3 && spent < too_long * seconds) || spent < 2 * seconds; ++round) {
    if (wanted.decompress) spent += time(MlaForm::decompress, cell.decompress);
    if (wanted.absorb) spent += time(MlaForm::absorb, cell.absorb);
    if (!wanted.decompress && !wanted.absorb) break;
  }
}

std::string milliseconds(const std::optional<double>& seconds) {
  return seconds ? fmt::format("{:.3f}", 1e3 * *seconds) : "-";
}

/// The report: rows of a table as they are ready, or entries.
class FormsReport {
 public:
  FormsReport(const FormsBenchOptions& o)
      : options_(o),
        kernel_(peak_kernel(o.types.compute())),
        ceiling_(peak_operations(kernel_, threads(), {std::clamp(o.bench.seconds / 10, 0.0005, 0.05), 5}) /
                 1e9),
        entries_(ordered_json::array()),
        progress_("measuring", cells_of(o)) {
    if (o.bench.json) return;
    say(fmt::format("{}, {} threads, {}, {} products, {} rows\n", cpu_name(), threads(),
                    mla::name_of(selected_isa()), mla::name_of(o.types.compute()),
                    mla::name_of(o.types.cached())));
    say(fmt::format("{:>6}{:>6}{:>8}{:>15}{:>15}{:>19}   {:<10}{}\n", "heads", "new", "cached", "explicit ms",
                    "absorbed ms", "explicit/absorbed", "auto", "loses"));
  }

  void add(const Layer& layer, const Cell& cell) {
    cells_.push_back(cell);
    if (options_.bench.json) {
      entries_.push_back(entry(layer, cell));
      return progress_.show(static_cast<std::int64_t>(cells_.size()));
    }
    const std::string ratio = cell.timed() ? fmt::format("{:.2f}", *cell.decompress / *cell.absorb) : "-";
    const std::string loses = cell.timed() ? fmt::format("{:.1f}%", 100 * cell.excess()) : "-";
    say(fmt::format("{:>6}{:>6}{:>8}{:>15}{:>15}{:>19}   {:<10}{}\n", cell.heads, cell.tokens, cell.cached,
                    milliseconds(cell.decompress), milliseconds(cell.absorb), ratio, name_of(cell.choice),
                    loses));
  }

  void finish(const MlaShape& shape, DType compute, DType rows) const {
    if (options_.bench.json) return say(entries_.dump(2) + "\n");
    const Cell* worst = nullptr;
    std::int64_t timed = 0, close = 0;
    for (const Cell& cell : cells_) {
      if (!cell.timed()) continue;
      ++timed;
      close += cell.excess() <= 0.05;
      if (!worst || cell.excess() > worst->excess()) worst = &cell;
    }
    if (worst) {
      say(fmt::format(
          "auto is within 5 % of the better form at {} of {} points where both were timed; it loses "
          "most, {:.1f} %, at {} heads, {} new, {} cached\n",
          close, timed, 100 * worst->excess(), worst->heads, worst->tokens, worst->cached));
    }
    if (options_.fit) say_costs(shape, compute, rows);
  }

 private:
  static std::int64_t cells_of(const FormsBenchOptions& o) {
    return static_cast<std::int64_t>(o.heads.size() * o.tokens.size() * o.cached.size());
  }

  ordered_json entry(const Layer& layer, const Cell& cell) const {
    const auto or_null = [](const std::optional<double>& value) {
      return value ? ordered_json(*value) : ordered_json();
    };
    const std::optional<double>& chosen = cell.choice == MlaForm::decompress ? cell.decompress : cell.absorb;
    // Of f32: the work itself, without the lanes that a panel of bf16 leaves empty.
    const FormTerms terms = form_terms(cell.choice, layer.shape(), cell.tokens, cell.rows(), DType::f32);
    const bool timed = cell.timed();
    std::optional<double> gflops, share;
    if (chosen) gflops = 2e-9 * (terms[2] + terms[4]) / *chosen;
    if (chosen) share = *gflops / ceiling_;
    return {{"name", fmt::format("forms {} heads, {} new, {} cached", cell.heads, cell.tokens, cell.cached)},
            {"op", "forms"},
            {"rows", mla::name_of(layer.rows_type())},
            {"heads", cell.heads},
            {"queries", cell.tokens},
            {"kv", cell.rows()},
            {"cached", cell.cached},
            {"dtype", mla::name_of(layer.compute())},
            {"explicit_seconds", or_null(cell.decompress)},
            {"absorbed_seconds", or_null(cell.absorb)},
            {"ratio", timed ? ordered_json(*cell.decompress / *cell.absorb) : ordered_json()},
            {"auto", name_of(cell.choice)},
            {"excess", timed ? ordered_json(cell.excess()) : ordered_json()},
            {"gflops", or_null(gflops)},
            {"gbytes_per_s", nullptr},
            {"ceiling", ceiling_},
            {"ceiling_unit", "GFLOP/s"},
            {"ceiling_of", mla::name_of(kernel_.type)},
            {"share", or_null(share)},
            {"threads", threads()},
            {"isa", mla::name_of(selected_isa())},
            {"cpu", cpu_name()}};
  }

  /// Costs must be right where the forms are close; where they are far apart, any will do.
  static double weight(const Cell& cell) {
    if (!cell.timed()) return 0.1;
    const double distance = std::log(*cell.decompress / *cell.absorb) / 0.5;
    return 1 / (1 + distance * distance);
  }

  /// A line for the table of mla/attention/form_cost.cpp.
  void say_costs(const MlaShape& shape, DType compute, DType rows) const {
    const auto fit = [&](MlaForm form) {
      std::vector<FormSample> samples;
      for (const Cell& cell : cells_) {
        const std::optional<double>& seconds = form == MlaForm::decompress ? cell.decompress : cell.absorb;
        MlaShape s = shape;
        s.num_heads = cell.heads;
        if (seconds)
          samples.push_back(
              {form_terms(form, s, cell.tokens, cell.rows(), compute), 1e12 * *seconds, weight(cell)});
      }
      FormTerms costs = fit_form_costs(samples);
      for (double& cost : costs) cost = cost < 1e-3 ? 0 : cost;  // what the fit left of a cost that is none
      return fmt::format("{{{:.4g}}}", fmt::join(costs, ", "));
    };
    const auto type = [](DType t) {
      return t == DType::f8_e4m3 ? "f8_e4m3" : t == DType::i8 ? "i8" : mla::name_of(t);
    };
    say(fmt::format("{{DType::{}, DType::{}, {}, {}}},\n", type(compute), type(rows),
                    fit(MlaForm::decompress), fit(MlaForm::absorb)));
  }

  const FormsBenchOptions& options_;
  PeakKernel kernel_;
  double ceiling_;  // GFLOP/s
  std::vector<Cell> cells_;
  ordered_json entries_;
  Progress progress_;
};

MlaShape shape_of(const ModelConfig& c, std::int64_t heads) {
  MlaShape shape;
  shape.num_heads = heads;
  shape.kv_lora_rank = c.kv_lora_rank;
  shape.qk_nope_head_dim = c.qk_nope_head_dim;
  shape.qk_rope_head_dim = c.qk_rope_head_dim;
  shape.v_head_dim = c.v_head_dim;
  shape.softmax_scale = c.softmax_scale;
  return shape;
}

}  // namespace

void bench_forms(const FormsBenchOptions& options) {
  if (options.bench.threads > 0) set_threads(options.bench.threads);
  const ModelConfig config = config_of_shape(options.shape);
  require(config.attention == AttentionKind::latent,
          "bench forms: found --shape {}, expected latent attention", options.shape);
  FormsReport report(options);
  const DType compute = options.types.compute();
  const DType rows = options.types.cached();
  // What is to be fitted does not choose what is timed.
  const double each = compute == DType::f32 ? 20 : 5;
  const FormCosts arithmetic{compute, rows, {0, 0, each, 0, each}, {0, 0, each, 0, each}};
  const FormCosts& costs = options.fit ? arithmetic : form_costs(compute, rows);
  for (const std::int64_t heads : options.heads) {
    Layer layer(options, shape_of(config, heads));
    for (const std::int64_t tokens : options.tokens) {
      for (const std::int64_t cached : options.cached) {
        const MlaForm choice = choose_form(layer.shape(), tokens, cached + tokens, compute, rows);
        Cell cell{heads, tokens, cached, choice, {}, {}};
        time_cell(layer, plan(costs, layer.shape(), cell, options.bench.seconds), options.bench.seconds,
                  cell);
        report.add(layer, cell);
      }
    }
  }
  report.finish(shape_of(config, 0), compute, rows);
}

}  // namespace mla::app
