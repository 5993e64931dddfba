// Training as a whole: the trainer learns, its bits depend on nothing but text, options and seed, and a run
// goes on where it stopped.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "mla/core/cpu.h"
#include "mla/core/mapped_file.h"
#include "mla/core/parallel.h"
#include "mla/model/tokenizer.h"
#include "mla/runtime/session.h"
#include "mla/train/presets.h"
#include "mla/train/run.h"
#include "support/files.h"
#include "support/oracle.h"
#include "support/reference.h"

namespace mla {
namespace {

/// The first `bytes` of the embedded model's held-back text, cut at a line.
std::string text_of(std::size_t bytes) {
  const std::string all = read_text(test::data() / "default" / "heldback.txt");
  return all.substr(0, all.rfind('\n', bytes) + 1);
}

/// A config with every part of a layer, as small as can be.
std::string small_config(std::int64_t vocabulary, std::int64_t hidden_size = 64) {
  std::string text = preset_config("tiny", {vocabulary});
  const auto set = [&](const std::string& field, const std::string& value) {
    const std::size_t at = text.find("\"" + field + "\": ");
    ASSERT_NE(at, std::string::npos) << field;
    const std::size_t begin = at + field.size() + 4;
    text.replace(begin, text.find_first_of(",\n", begin) - begin, value);
  };
  set("hidden_size", std::to_string(hidden_size));
  set("intermediate_size", "96");
  set("moe_intermediate_size", "48");
  set("num_hidden_layers", "2");
  return text;
}

/// The same with key and value heads, three to a kv head, and positions that are added.
std::string small_heads_config(std::int64_t vocabulary) {
  return fmt::format(R"({{"model_type": "llama", "vocab_size": {}, "hidden_size": 48, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "hidden_act": "silu", "bos_token_id": 0,
    "eos_token_id": 1, "position_encoding": "sinusoidal"}})",
                     vocabulary);
}

RunOptions small_options(const std::string& config = small_config(300)) {
  RunOptions o;
  o.config = config;
  o.config_name = "config.json";
  o.steps = 8;
  o.measure_every = 3;
  o.held_back = 0.2;
  o.trainer.length = 32;
  o.trainer.batch = 4;
  o.trainer.slice = 2;
  o.trainer.schedule = {3e-3, 3e-4, 2, o.steps};
  return o;
}

std::vector<float> values_of(Trainer& trainer) {
  const std::span<float> values = trainer.model().parameters().values();
  return {values.begin(), values.end()};
}

std::vector<std::byte> bytes_of(const std::filesystem::path& path) {
  const MappedFile file(path);
  return {file.bytes().begin(), file.bytes().end()};
}

TEST(TrainerTest, FirstLossIsThatOfNoKnowledge) {
  const ModelConfig config = parse_config(preset_config("tiny"), "config");
  std::vector<std::int32_t> ids;
  for (std::int32_t i = 0; i < 600; ++i) ids.push_back(i * 37 % 1024);
  TrainerOptions o;
  o.length = 64;
  o.batch = o.slice = 2;
  o.schedule.total_steps = 2;
  Trainer trainer(config, ids, o);
  const double loss = trainer.step().loss;
  EXPECT_NEAR(loss, std::log(1024.0), 0.05 * std::log(1024.0));
}

/// 2 kB by heart; a tenth of it where arithmetic is slow. The first tokens of a window can't be known, nearly
/// 8 nats in all: so windows are long.
TEST(TrainerTest, LearnsAShortTextByHeart) {
#ifdef NDEBUG
  const bool is_fast = selected_isa() >= Isa::avx512;
#else
  const bool is_fast = false;
#endif
  const std::string text = text_of(is_fast ? 2048 : 400);
  const ModelConfig config = parse_config(small_config(258, 128), "config");
  TrainerOptions o;
  o.length = is_fast ? 512 : 192;
  o.batch = o.slice = 3;
  o.adamw.weight_decay = 0;
  o.schedule = {4e-3, 4e-4, 20, 500};
  o.computing = {MlaForm::decompress, DType::bf16};
  test::Threads one(1);  // other tests have the other cores
  Trainer trainer(config, {text.begin(), text.end()}, o);
  double loss = 1e9;
  for (int i = 0; i < 500 && loss >= 0.05; ++i) loss = trainer.step().loss;
  EXPECT_LT(loss, 0.05);
}

TEST(TrainerTest, SameWeightsAtAnyNumberOfThreads) {
  const std::string text = text_of(2000);
  const std::vector<std::int32_t> ids(text.begin(), text.end());
  for (const std::string& json : {small_config(258), small_heads_config(258)}) {
    const ModelConfig config = parse_config(json, "config");
    TrainerOptions o = small_options().trainer;
    std::vector<float> expected;
    test::Threads restored(1);
    for (const int threads : {1, 2, 3}) {
      set_threads(threads);
      Trainer trainer(config, ids, o);
      for (int i = 0; i < 4; ++i) trainer.step();
      if (threads == 1) expected = values_of(trainer);
      EXPECT_TRUE(expected == values_of(trainer)) << config.model_type << ", threads " << threads;
    }
    o.seed = 1;
    Trainer other(config, ids, o);
    for (int i = 0; i < 4; ++i) other.step();
    EXPECT_NE(expected, values_of(other));
  }
}

/// A measurement moves nothing: not the weights, and not the load that the next step moves the biases by.
TEST(TrainerTest, MeasuringChangesNothing) {
  const ModelConfig config = parse_config(small_config(258), "config");
  const std::string text = text_of(2000);
  const std::vector<std::int32_t> ids(text.begin(), text.end());
  Trainer plain(config, ids, small_options().trainer), measured(config, ids, small_options().trainer);
  for (int i = 0; i < 3; ++i) {
    plain.step();
    measured.step();
    measured.surprise(ids, 32);
    EXPECT_EQ(plain.model().load(), measured.model().load());
  }
  EXPECT_TRUE(values_of(plain) == values_of(measured));
}

TEST(TrainerTest, StopsAtALossThatIsNoNumber) {
  const ModelConfig config = parse_config(small_config(258), "config");
  const std::string text = text_of(2000);
  TrainerOptions o = small_options().trainer;
  Trainer trainer(config, {text.begin(), text.end()}, o);
  trainer.step();
  trainer.model().parameters().at("model.norm.weight").value.data[3] =
      std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> before = values_of(trainer);
  const std::string error = test::error_of([&] { trainer.step(); });
  EXPECT_NE(error.find("step 2"), std::string::npos) << error;
  EXPECT_NE(error.find("nan"), std::string::npos) << error;
  EXPECT_EQ(0, std::memcmp(before.data(), values_of(trainer).data(), before.size() * 4));
  EXPECT_EQ(trainer.steps(), 1);
}

class TrainingRunTest : public testing::Test {
 protected:
  test::TemporaryDirectory parent;
  std::filesystem::path directory = parent.path() / "run";
  std::string text = text_of(6000);
};

TEST_F(TrainingRunTest, ARunIsAModel) {
  for (const std::string& config : {small_config(300), small_heads_config(300)}) {
    TrainingRun run = TrainingRun::begin(directory, text, small_options(config));
    while (!run.is_finished()) run.step();
    const Transformer model = Transformer::load(directory);
    const Tokenizer tokenizer = Tokenizer::load(directory);
    EXPECT_EQ(model.config().vocab_size, 300);
    EXPECT_LE(tokenizer.vocab_size(), 300);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode("And God said")), "And God said");
    EXPECT_TRUE(std::filesystem::exists(directory / "loss.svg"));
    const auto log = parse_train_log(read_text(directory / "train_log.csv"), "log");
    EXPECT_EQ(log.size(), 8u);
    EXPECT_LT(log.back().loss, 0.95 * log.front().loss) << model.config().model_type << " learns";
    std::filesystem::remove_all(directory);
  }
}

/// What training measures is what the engine computes from the files.
TEST_F(TrainingRunTest, MeasuresWhatTheEngineComputes) {
  RunOptions o = small_options();
  o.trainer.computing.compute = DType::f32;
  TrainingRun run = TrainingRun::begin(directory, text, o);
  run.step();
  const std::filesystem::path model_directory = parent.path() / "model";
  std::filesystem::create_directory(model_directory);
  std::filesystem::copy(directory / "config.json", model_directory / "config.json");
  run.trainer().write_weights(model_directory / "model.safetensors", DType::f32);
  const Transformer model = Transformer::load(model_directory);
  const std::vector<std::int32_t> ids = Tokenizer::load(directory).encode(text_of(500));
  const auto count = static_cast<std::int64_t>(ids.size()), vocab = model.config().vocab_size;
  double expected = 0;
  for (std::int64_t begin = 0; begin + 1 < count; begin += 39) {
    const std::int64_t end = std::min(begin + 40, count);
    SessionOptions session_options;
    session_options.compute = session_options.cache_type = DType::f32;
    Session session(model, session_options);
    std::vector<float> logits(static_cast<std::size_t>((end - begin) * vocab));
    session.feed_all(std::span(ids).subspan(begin, end - begin), {logits.data(), end - begin, vocab});
    for (std::int64_t i = 0; i + 1 < end - begin; ++i) {
      double sum = 0;
      for (std::int64_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(logits[i * vocab + v]));
      expected += std::log(sum) - logits[i * vocab + ids[begin + i + 1]];
    }
  }
  EXPECT_NEAR(run.trainer().surprise(ids, 40), expected, 1e-4 * expected);
}

TEST_F(TrainingRunTest, GoingOnEqualsNeverStopping) {
  TrainingRun whole = TrainingRun::begin(directory, text, small_options());
  while (!whole.is_finished()) whole.step();
  for (const int stop : {1, 3, 5, 7}) {
    const std::filesystem::path other = parent.path() / fmt::format("stopped-{}", stop);
    {
      TrainingRun first = TrainingRun::begin(other, text, small_options());
      for (int i = 0; i < stop; ++i) first.step();
      if (stop == 5) first.save();  // as after Ctrl-C; else killed, which loses what came after a measurement
    }
    TrainingRun second = TrainingRun::resume(other, text);
    EXPECT_EQ(second.steps(), stop == 5 ? 5 : stop / 3 * 3);
    while (!second.is_finished()) second.step();
    for (const char* file :
         {"model.safetensors", "training_state.safetensors", "training.json", "tokenizer.json"})
      EXPECT_TRUE(bytes_of(directory / file) == bytes_of(other / file))
          << file << " after a stop at " << stop;
    const auto log = parse_train_log(read_text(other / "train_log.csv"), "log"),
               expected = parse_train_log(read_text(directory / "train_log.csv"), "log");
    ASSERT_EQ(log.size(), expected.size());
    for (std::size_t i = 0; i < log.size(); ++i) {
      EXPECT_EQ(log[i].loss, expected[i].loss);
      EXPECT_EQ(log[i].held_back, expected[i].held_back);
    }
  }
}

/// The weights in model.safetensors are those of the best measurement, not the last.
TEST_F(TrainingRunTest, KeepsTheBestWeights) {
  RunOptions o = small_options();
  o.steps = 60;
  o.measure_every = 5;
  o.trainer.schedule = {2e-2, 2e-2, 2, o.steps};  // so high that it soon gets worse
  TrainingRun run = TrainingRun::begin(directory, text, o);
  double best = 1e9;
  std::vector<std::byte> best_file;
  bool got_worse = false;
  while (!run.is_finished()) {
    const RunStep step = run.step();
    if (!step.measure) continue;
    EXPECT_EQ(step.measure->is_best, step.measure->bits_per_byte < best);
    got_worse |= !step.measure->is_best;
    if (!step.measure->is_best) continue;
    best = step.measure->bits_per_byte;
    best_file = bytes_of(directory / "model.safetensors");
  }
  EXPECT_TRUE(got_worse);
  EXPECT_EQ(run.best().bits_per_byte, best);
  EXPECT_TRUE(bytes_of(directory / "model.safetensors") == best_file);
}

TEST_F(TrainingRunTest, RefusesWhatItCannotDo) {
  const auto begin_error = [&](const std::string& words, const RunOptions& o) {
    const std::string error = test::error_of([&] { TrainingRun::begin(directory, words, o); });
    EXPECT_FALSE(std::filesystem::exists(directory)) << error;
    return error;
  };
  EXPECT_NE(begin_error("", small_options()), "");
  EXPECT_NE(begin_error("too short", small_options()), "");
  RunOptions o = small_options();
  o.config = "{}";
  EXPECT_NE(begin_error(text, o).find("config.json"), std::string::npos);
  o.config = small_heads_config(300);
  o.trainer.computing.form = MlaForm::absorb;
  EXPECT_EQ(begin_error(text, o),
            "config.json: model_type: found llama, expected latent attention beside the absorbed form: no "
            "other has forms");
  o = small_options();
  o.trainer.length = 1 << 20;
  EXPECT_NE(begin_error(text, o).find("max_position_embeddings"), std::string::npos);
  o = small_options();
  o.trainer.slice = 3;
  EXPECT_NE(begin_error(text, o), "");

  std::filesystem::create_directory(directory);
  EXPECT_NE(
      test::error_of([&] { TrainingRun::begin(directory, text, small_options()); }).find("is there already"),
      std::string::npos);
  EXPECT_NE(test::error_of([&] { TrainingRun::resume(directory, text); }).find("training.json"),
            std::string::npos);
  std::filesystem::remove(directory);
  TrainingRun::begin(directory, text, small_options());
  EXPECT_NE(test::error_of([&] { TrainingRun::resume(directory, text + "more"); }).find("another text"),
            std::string::npos);
  std::ofstream(directory / "training_state.safetensors") << "broken";
  EXPECT_NE(test::error_of([&] { TrainingRun::resume(directory, text); }).find("training_state"),
            std::string::npos);
}

}  // namespace
}  // namespace mla
