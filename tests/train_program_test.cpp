// mla train as a user meets it: killed, interrupted, full disk, wrong options.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>

#include "mla/core/file_lock.h"
#include "mla/core/mapped_file.h"
#include "mla/model/transformer.h"
#include "mla/train/train_log.h"
#include "support/files.h"
#include "support/reference.h"

namespace mla {
namespace {

namespace fs = std::filesystem;

class TrainProgramTest : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(text) << read_text(test::data() / "default" / "heldback.txt").substr(0, 4000);
  }

  /// Starts `mla train` into `out`; standard output goes to the file "out", errors to "err".
  pid_t start(const fs::path& out, const std::vector<std::string>& more,
              std::int64_t most_file_bytes = -1) const {
    std::vector<std::string> words{MLA_PROGRAM, "train", "--text", text.string(), "--out", out.string()};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const std::string out_file = (parent.path() / "out").string(),
                      err_file = (parent.path() / "err").string();
    const pid_t child = ::fork();
    if (child != 0) return child;
    ::dup2(::open(out_file.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600), STDOUT_FILENO);
    ::dup2(::open(err_file.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600), STDERR_FILENO);
    if (most_file_bytes >= 0) {  // a disk that is full after so many bytes of a file
      const rlimit limit{static_cast<rlim_t>(most_file_bytes), static_cast<rlim_t>(most_file_bytes)};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      ::signal(SIGXFSZ, SIG_IGN);
    }
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }

  static int wait_for(pid_t child) {
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  int train(const fs::path& out, const std::vector<std::string>& more) const {
    return wait_for(start(out, more));
  }
  std::string printed(const char* file) const { return read_text(parent.path() / file); }

  test::TemporaryDirectory parent;
  fs::path text = parent.path() / "text";
  std::vector<std::string> options{"--vocabulary", "300", "--steps",         "12", "--batch",     "2",
                                   "--length",     "32",  "--measure-every", "2",  "--held-back", "0.2"};
};

TEST_F(TrainProgramTest, KilledAtAnyMomentItGoesOnToTheSameModel) {
  const fs::path whole = parent.path() / "whole", killed = parent.path() / "killed";
  ASSERT_EQ(train(whole, options), 0) << printed("err");
  EXPECT_NE(printed("out").find("bits per byte"), std::string::npos);
  EXPECT_EQ(printed("err"), "");

  std::mt19937 random(1);
  int kills = 0;
  for (int attempt = 0; attempt < 200; ++attempt) {
    std::vector<std::string> more = options;
    if (fs::exists(killed)) more = {"--resume"};
    const pid_t child = start(killed, more);
    if (kills < 12) ::usleep(static_cast<useconds_t>(20'000 + random() % 150'000)), ::kill(child, SIGKILL);
    const int status = wait_for(child);
    if (fs::exists(killed / "model.safetensors")) Transformer::load(killed);  // whole at every moment
    if (status == 0) break;
    ASSERT_EQ(status, -SIGKILL) << printed("err");
    ++kills;
  }
  EXPECT_GE(kills, 1);
  for (const char* file :
       {"model.safetensors", "training_state.safetensors", "training.json", "tokenizer.json"})
    EXPECT_TRUE(read_text(whole / file) == read_text(killed / file)) << file;
  EXPECT_EQ(parse_train_log(read_text(killed / "train_log.csv"), "log").size(), 12u);
  EXPECT_TRUE(fs::exists(killed / "loss.svg"));
}

/// MQA from a config of one's own, down to text: from the same command the same model.
TEST_F(TrainProgramTest, TrainsKeyAndValueHeads) {
  const fs::path config = parent.path() / "heads.json", once = parent.path() / "once",
                 again = parent.path() / "again";
  std::ofstream(config) << R"({"model_type": "llama", "vocab_size": 300, "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "hidden_act": "silu", "bos_token_id": 0,
    "eos_token_id": 1})";
  std::vector<std::string> more(options.begin() + 2, options.end());  // the vocabulary is the config's
  more.insert(more.end(), {"--config", config.string()});
  for (const fs::path& out : {once, again}) ASSERT_EQ(train(out, more), 0) << printed("err");
  EXPECT_TRUE(read_text(once / "model.safetensors") == read_text(again / "model.safetensors"));
  EXPECT_EQ(Transformer::load(once).config().attention, AttentionKind::heads);
  more.insert(more.end(), {"--attention", "absorbed"});
  EXPECT_EQ(train(parent.path() / "absorbed", more), 1);
  EXPECT_NE(printed("err").find("heads.json: model_type"), std::string::npos) << printed("err");
}

/// The instant that chance seldom finds: the state is written, what follows it is not.
TEST_F(TrainProgramTest, AKillBehindTheStateLosesNothing) {
  const fs::path out = parent.path() / "run";
  ASSERT_EQ(train(out, options), 0) << printed("err");
  const std::string description = read_text(out / "training.json"), picture = read_text(out / "loss.svg");
  std::string older = description;
  const std::string done = "\"steps_done\": 12";
  ASSERT_NE(older.find(done), std::string::npos) << older;
  older.replace(older.find(done), done.size(), "\"steps_done\": 9");
  write_text(out / "training.json", older);
  fs::remove(out / "loss.svg");
  ASSERT_EQ(train(out, {"--resume"}), 0) << printed("err");
  EXPECT_EQ(read_text(out / "training.json"), description);
  EXPECT_EQ(read_text(out / "loss.svg"), picture);
}

TEST_F(TrainProgramTest, ControlCLosesNothing) {
  const fs::path whole = parent.path() / "whole", stopped = parent.path() / "stopped";
  options[3] = "60";
  options[9] = "30";
  const pid_t child = start(stopped, options);
  for (int i = 0;
       i < 2000 && (!fs::exists(stopped / "train_log.csv") || fs::file_size(stopped / "train_log.csv") < 500);
       ++i)
    ::usleep(5000);
  ::kill(child, SIGINT);
  EXPECT_EQ(wait_for(child), 1);
  EXPECT_NE(printed("err").find("--resume goes on"), std::string::npos) << printed("err");
  const std::size_t done = parse_train_log(read_text(stopped / "train_log.csv"), "log").size();
  EXPECT_GT(done, 0u);
  EXPECT_EQ(train(stopped, {"--resume"}), 0) << printed("err");
  EXPECT_EQ(train(whole, options), 0) << printed("err");
  EXPECT_TRUE(read_text(whole / "model.safetensors") == read_text(stopped / "model.safetensors"));
}

/// The limit on a file's size stands for a full disk: the model can't be written, or the state behind it.
TEST_F(TrainProgramTest, AFullDiskIsOneErrorAndLeavesWholeFiles) {
  for (const std::int64_t bytes : {1'000, 500'000, 5'000'000}) {
    const fs::path out = parent.path() / fmt::format("full-{}", bytes);
    EXPECT_EQ(wait_for(start(out, options, bytes)), 1);
    const std::string error = printed("err");
    EXPECT_EQ(std::count(error.begin(), error.end(), '\n'), 1) << error;
    EXPECT_NE(error.find(out.string()), std::string::npos) << error;
    if (fs::exists(out / "model.safetensors")) Transformer::load(out);
    for (const auto& entry : fs::recursive_directory_iterator(parent.path()))
      EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos) << entry.path();
  }
}

TEST_F(TrainProgramTest, TwoProcessesDoNotTrainInOneDirectory) {
  const fs::path out = parent.path() / "run";
  ASSERT_EQ(train(out, options), 0) << printed("err");
  const FileLock other(out / "config.json", "held");
  EXPECT_EQ(train(out, {"--resume"}), 1);
  EXPECT_NE(printed("err").find("config.json: another process trains here"), std::string::npos)
      << printed("err");
}

TEST_F(TrainProgramTest, RefusesInOneLine) {
  const fs::path out = parent.path() / "out-directory";
  const auto expect_error = [&](const std::vector<std::string>& more, const std::string& part,
                                int status = 1) {
    EXPECT_EQ(train(out, more), status) << printed("err");
    EXPECT_NE(printed("err").find(part), std::string::npos) << printed("err");
    const std::string error = printed("err");
    if (status == 1) {
      EXPECT_EQ(std::count(error.begin(), error.end(), '\n'), 1) << error;
    }
    EXPECT_FALSE(fs::exists(out));
  };
  expect_error({"--resume"}, "training.json");
  expect_error({"--length", "2000"}, "max_position_embeddings");
  expect_error({"--length", "1000"}, "found");  // longer than the text
  expect_error({"--config", text.string()}, "not valid JSON");
  expect_error({"--preset", "huge"}, "huge", 2);
  expect_error({"--steps", "0"}, "--steps", 2);
  std::ofstream(text) << "";
  expect_error(options, "nothing to learn from");
  std::ofstream(text) << "\xff\xfe binary";
  expect_error(options, "UTF-8");
  fs::remove(text);
  expect_error(options, text.string());
}

}  // namespace
}  // namespace mla
