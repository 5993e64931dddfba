// The log of a training run: written, read, cut back; its chart; the presets.
#include "mla/train/train_log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>
#include <sstream>

#include "mla/core/mapped_file.h"
#include "mla/model/config.h"
#include "mla/train/presets.h"
#include "support/oracle.h"
#include "support/svg.h"

namespace mla {
namespace {

namespace fs = std::filesystem;
using test::count;
using test::error_of;
using test::path_of;

const std::string heading =
    "step,tokens,loss,learning_rate,gradient_norm,tokens_per_second,held_back_bits_per_byte\n";

class TrainLogTest : public ::testing::Test {
 protected:
  ~TrainLogTest() override { fs::remove(path_); }

  const fs::path path_ = fs::temp_directory_path() / fmt::format("mla_train_log_{}.csv", ::getpid());
};

TrainLogRow row_of(std::int64_t step) {
  const auto x = static_cast<double>(step);
  TrainLogRow row{step, step * 4096, 7.6 / x, 1e-3 * x, 0.5, 12345.6, {}};
  if (step % 2 == 0) row.held_back = 2.5;
  return row;
}

TEST_F(TrainLogTest, ReadsBackWhatWasAppended) {
  TrainLog log(path_);
  EXPECT_EQ(read_text(path_), heading);
  log.append(row_of(1));
  EXPECT_EQ(read_text(path_), heading + "1,4096,7.6,0.001,0.5,12346,\n");
  log.append(row_of(2));
  const std::vector<TrainLogRow> rows = parse_train_log(read_text(path_), "log");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].step, 1);
  EXPECT_EQ(rows[0].tokens, 4096);
  EXPECT_EQ(rows[0].loss, 7.6);
  EXPECT_EQ(rows[0].held_back, std::nullopt);
  EXPECT_EQ(rows[1].learning_rate, 2e-3);
  EXPECT_EQ(rows[1].gradient_norm, 0.5);
  EXPECT_EQ(rows[1].tokens_per_second, 12346);
  EXPECT_EQ(rows[1].held_back, 2.5);
}

TEST_F(TrainLogTest, WritesWhatIsNotFinite) {
  TrainLog log(path_);
  TrainLogRow row = row_of(2);
  row.loss = std::numeric_limits<double>::quiet_NaN();
  row.gradient_norm = std::numeric_limits<double>::infinity();
  log.append(row);
  const std::vector<TrainLogRow> rows = parse_train_log(read_text(path_), "log");
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_TRUE(std::isnan(rows[0].loss));
  EXPECT_TRUE(std::isinf(rows[0].gradient_norm));
}

TEST_F(TrainLogTest, IsCutBackToTheResumedStep) {
  {
    TrainLog log(path_);
    for (std::int64_t step = 1; step <= 5; ++step) log.append(row_of(step));
  }
  const std::string whole = read_text(path_);
  write_text(path_, whole + "6,2457");  // a kill in the middle of a line
  {
    TrainLog log(path_, 3);
    EXPECT_EQ(read_text(path_), whole.substr(0, whole.find("4,16384")));
    log.append(row_of(4));
    log.append(row_of(5));
  }
  EXPECT_EQ(read_text(path_), whole);
  { const TrainLog log(path_, 100); }
  EXPECT_EQ(read_text(path_), whole);
  { const TrainLog log(path_); }
  EXPECT_EQ(read_text(path_), heading);
  fs::remove(path_);
  { const TrainLog log(path_, 3); }  // the log was lost: no reason not to train
  EXPECT_EQ(read_text(path_), heading);
}

TEST_F(TrainLogTest, ErrorsNameTheLine) {
  const auto read = [](const std::string& text) {
    return error_of([&] { parse_train_log(text, "log.csv"); });
  };
  EXPECT_EQ(
      read(heading + "1,2,3,4,5,6,\n1,2,3,4,5,x,\n"),
      "log.csv: line 3: found '1,2,3,4,5,x,', expected numbers for " + heading.substr(0, heading.size() - 1));
  EXPECT_NE(read(heading + "1,2,3,4,5,6\n"), "");
  EXPECT_NE(read(heading + "1,2,3,4,5,6,7,8\n"), "");
  EXPECT_NE(read(heading + "1.5,2,3,4,5,6,\n"), "");
  EXPECT_NE(read(heading + "\n"), "");
  EXPECT_NE(read("step,loss\n"), "");
  EXPECT_EQ(read(heading + "\x01\xff\n")
                .find("log.csv: line 2: found '?"
                      "?', "),
            0u);
  EXPECT_EQ(read(""), "");
  const std::string missing = (path_ / "missing").string();
  EXPECT_NE(error_of([&] { TrainLog log(missing); }).find(missing), std::string::npos);
}

TEST(LossCurveTest, BothLossesInBitsPerByte) {
  // 4 bytes per token: a loss of 4 ln 2 nats per token is one bit per byte.
  std::vector<TrainLogRow> rows;
  for (std::int64_t step = 1; step <= 5; ++step) {
    rows.push_back({step, 0, static_cast<double>(step) * 4 * std::numbers::ln2, 0, 0, 0, {}});
    if (step % 2) rows.back().held_back = static_cast<double>(step);
  }
  const std::string svg = loss_curve_svg(rows, 4);
  const std::vector<ChartPoint> training = path_of(svg, "mla-line mla-s0"),
                                held_back = path_of(svg, "mla-line mla-s1");
  ASSERT_EQ(training.size(), 5u);
  ASSERT_EQ(held_back.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(held_back[i].x, training[2 * i].x);
    EXPECT_EQ(held_back[i].y, training[2 * i].y);
  }
  EXPECT_NE(error_of([&] { loss_curve_svg(rows, 0); }), "");
  EXPECT_EQ(count(loss_curve_svg(std::span(rows).first(0), 4), "<svg"), 1);
}

TEST(LossCurveTest, LongRunsAreMeans) {
  std::vector<TrainLogRow> rows;
  for (std::int64_t step = 1; step <= 1000; ++step)
    rows.push_back({step, 0, step % 2 ? 1.0 : 3.0, 0, 0, 0, {}});
  const std::string svg = loss_curve_svg(rows, 1 / std::numbers::ln2);  // so that the unit is the loss's
  EXPECT_EQ(path_of(svg, "mla-line mla-s0").size(), 250u);
  EXPECT_NE(svg.find("training (means of 4 steps)"), svg.npos);
  for (const ChartPoint& point : path_of(svg, "mla-line mla-s0"))
    EXPECT_EQ(point.y, path_of(svg, "mla-line mla-s0")[0].y);
}

std::int64_t parameters(const ModelConfig& c) {
  const std::int64_t attention = c.hidden_size * (c.q_lora_rank + c.latent_width()) + c.q_lora_rank +
                                 c.kv_lora_rank + c.q_lora_rank * c.num_heads * c.qk_head_dim() +
                                 c.kv_lora_rank * c.num_heads * (c.qk_nope_head_dim + c.v_head_dim) +
                                 c.num_heads * c.v_head_dim * c.hidden_size;
  std::int64_t all = 2 * c.vocab_size * c.hidden_size + c.hidden_size;
  for (const bool is_moe : c.layer_is_moe) {
    const std::int64_t experts = c.moe.num_experts + c.moe.shared_experts;
    const std::int64_t mixture =
        3 * experts * c.moe.intermediate_size * c.hidden_size + c.moe.num_experts * (c.hidden_size + 1);
    all += attention + 2 * c.hidden_size + (is_moe ? mixture : 3 * c.hidden_size * c.intermediate_size);
  }
  return all;
}

TEST(PresetsTest, SmallIsTheEmbeddedModel) {
  const fs::path path = fs::path(MLA_SOURCE_DIR) / "models/default/config.json";
  EXPECT_EQ(nlohmann::json::parse(preset_config("small", {4096, 0, 1})),
            nlohmann::json::parse(read_text(path)));
}

TEST(PresetsTest, AreModelsOfTheirSize) {
  const ModelConfig tiny = parse_config(preset_config("tiny"), "tiny");
  const ModelConfig small = parse_config(preset_config("small"), "small");
  EXPECT_EQ(tiny.vocab_size, 1024);
  EXPECT_NEAR(static_cast<double>(parameters(tiny)), 1.0e6, 0.1e6);
  EXPECT_NEAR(static_cast<double>(parameters(small)), 6.0e6, 0.1e6);
  for (const ModelConfig& config : {tiny, small}) {
    EXPECT_TRUE(config.unread_fields.empty());
    EXPECT_EQ(config.bos_id, 0);
    EXPECT_EQ(config.eos_ids, std::vector<std::int64_t>{1});
  }
  const ModelConfig none = parse_config(preset_config("tiny", {300, -1, -1}), "tiny");
  EXPECT_EQ(none.vocab_size, 300);
  EXPECT_EQ(none.bos_id, -1);
  EXPECT_TRUE(none.eos_ids.empty());
}

TEST(PresetsTest, Errors) {
  EXPECT_EQ(error_of([] { preset_config("huge"); }), "preset: found 'huge', expected tiny or small");
  EXPECT_EQ(error_of([] {
              preset_config("tiny", {100, 0, 100});
            }),
            "eos_token_id: found 100, expected -1 (none) or an id below 100");
  EXPECT_EQ(error_of([] { preset_config("tiny", {-1}); }),
            "vocabulary: found -1 tokens, expected 1 to 2^31 - 1");
  for (const std::string_view name : preset_names()) EXPECT_NE(preset_config(name, {10}), "");
}

}  // namespace
}  // namespace mla
