// The program as a user or a script meets it: options, output, errors, exit status.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "mla/core/mapped_file.h"
#include "support/reference.h"

namespace mla {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Outcome {
  int status;
  std::string out, err;
};

class ProgramTest : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(directory); }
  void TearDown() override { fs::remove_all(directory); }

  /// Runs `mla ARGUMENTS` in a shell, standard input from `input`.
  Outcome mla(const std::string& arguments, const std::string& input = "") {
    std::ofstream(directory / "in") << input;
    const std::string path = directory.string();
    const std::string command =
        fmt::format("{} {} < {}/in > {}/out 2> {}/err", MLA_PROGRAM, arguments, path, path, path);
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(directory / "out"),
            read_text(directory / "err")};
  }

  /// An error is status 1 and one line on standard error that has all of `parts`; standard output stays
  /// empty.
  void expect_error(const Outcome& run, const std::vector<std::string>& parts) {
    EXPECT_EQ(run.status, 1);
    EXPECT_EQ(run.out, "");
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
    for (const std::string& part : parts)
      EXPECT_NE(run.err.find(part), std::string::npos) << run.err << "lacks " << part;
  }

  fs::path directory = fs::temp_directory_path() / fmt::format("mla_program_test_{}", ::getpid());
  std::string v3 = (test::data() / "reference" / "v3").string();
  std::string greedy = "--temperature 0 --max-tokens 32 --ignore-eos";
};

TEST_F(ProgramTest, GeneratesFromTheModelThatShipsWithIt) {
  const Outcome run = mla("generate --max-tokens 30");
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(run.err, "");
  EXPECT_EQ(run.out.substr(0, 16), "In the beginning");
  EXPECT_GT(run.out.size(), 60u);
  EXPECT_EQ(run.out, mla("generate --max-tokens 30").out) << "the same seed gives the same text";
  EXPECT_NE(run.out, mla("generate --max-tokens 30 --seed 7").out);
}

TEST_F(ProgramTest, GreedyTextIsTransformersText) {
  const json reference = json::parse(read_text(test::data() / "default" / "reference.json"));
  for (const std::string form : {"explicit", "absorbed", "auto"}) {
    const std::string options =
        "generate --temperature 0 --max-tokens 64 --dtype f32 --prompt 'And God said' --attention ";
    EXPECT_EQ(mla(options + form).out, reference.at("greedy_text").get<std::string>() + "\n") << form;
    const json found = json::parse(mla(options + form + " --json").out);
    EXPECT_EQ(found.at("ids"), reference.at("greedy"));
    EXPECT_EQ("And God said" + found.at("text").get<std::string>(), reference.at("greedy_text"));
  }
}

TEST_F(ProgramTest, JsonReportSaysWhatHappened) {
  const json report =
      json::parse(mla("generate --json --attention absorbed --cache-dtype f32 --max-tokens 100").out);
  EXPECT_EQ(report.at("ids").size(), 100u);
  EXPECT_EQ(report.at("attention"), (json{{"prefill", "absorbed"}, {"decode", "absorbed"}}));
  EXPECT_EQ(report.at("cache_bytes_per_token"), 4 * (64 + 16) * 4);
  // 4 prompt tokens and 99 fed ones lie on two pages of 64.
  EXPECT_EQ(report.at("cache_bytes"), 2 * 64 * 4 * (64 + 16) * 4);
  EXPECT_EQ(report.at("prompt_tokens"), 4);
  EXPECT_GT(report.at("prefill_tokens_per_s"), 0);
  EXPECT_GT(report.at("decode_tokens_per_s"), 0);
  EXPECT_GT(report.at("peak_rss_bytes"), 1 << 20);
}

TEST_F(ProgramTest, PromptFromStandardInputAndIds) {
  EXPECT_EQ(mla("generate --max-tokens 5 --prompt -", "And God said").out,
            mla("generate --max-tokens 5 --prompt 'And God said'").out);
  const test::Reference reference = test::load_reference("v3");
  std::string ids;
  for (const std::int32_t id : reference.greedy_prompt)
    ids += fmt::format("{}{}", ids.empty() ? "" : ",", id);
  const json found =
      json::parse(mla(fmt::format("generate --model {} --ids {} --json {}", v3, ids, greedy)).out);
  EXPECT_EQ(found.at("ids").get<std::vector<std::int32_t>>(), reference.greedy);
}

TEST_F(ProgramTest, LogitsAreWrittenAsNpy) {
  const test::Reference reference = test::load_reference("v3");
  std::string ids;
  for (const std::int32_t id : reference.ids) ids += fmt::format("{}{}", ids.empty() ? "" : ", ", id);
  const std::string file = (directory / "logits.npy").string();
  for (const std::string chunk : {"1", "7", "512"}) {
    const Outcome run =
        mla(fmt::format("logits --model {} --ids '{}' --out {} --chunk {}", v3, ids, file, chunk));
    ASSERT_EQ(run.status, 0) << run.err;
    const NpyArray found = read_npy(file);
    EXPECT_EQ(found.shape, reference.logits.shape);
    EXPECT_LE(test::difference(found.data, reference.logits.data).max, 5e-4);
  }
}

TEST_F(ProgramTest, ScoresTheHeldBackText) {
  const std::string file = (test::data() / "default" / "heldback.txt").string();
  const json report = json::parse(mla("score --json --window 256 --text-file " + file).out);
  EXPECT_NEAR(report.at("bits_per_byte"), 1.5757, 0.02);  // what its training reported, in windows of 256
  EXPECT_EQ(report.at("predicted_tokens"), report.at("tokens").get<int>() - 1);
  EXPECT_NEAR(report.at("perplexity"),
              std::exp(report.at("bits_per_byte").get<double>() * std::log(2) *
                       report.at("bytes").get<double>() / report.at("predicted_tokens").get<double>()),
              1e-6);
}

TEST_F(ProgramTest, TokenizesBothWays) {
  const std::string model = "--model " + (test::data() / "tokenizer" / "deepseek-v3").string();
  EXPECT_EQ(mla("tokenize --text 'Hello, world!' " + model).out, "19923,14,2058,3\n");
  EXPECT_EQ(mla("tokenize --text 'Hello, world!' --json " + model).out, "{\"ids\":[19923,14,2058,3]}\n");
  EXPECT_EQ(mla("tokenize --ids 19923,14,2058,3 " + model).out, "Hello, world!\n");
  EXPECT_EQ(mla("tokenize --ids 19923,14 --json " + model).out, "{\"text\":\"Hello,\"}\n");
  EXPECT_EQ(mla("tokenize --lines " + model, "\"a\"\n\"\"\n\"Hello, world!\"\n").out,
            "[67]\n[]\n[19923,14,2058,3]\n");
  expect_error(mla("tokenize --lines " + model, "nonsense\n"), {"standard input, line 1", "JSON"});
  expect_error(mla("tokenize --ids 99999999 " + model), {"99999999"});
}

TEST_F(ProgramTest, InspectsShapesParametersAndCache) {
  const json report = json::parse(mla("inspect --json --model " + v3).out);
  EXPECT_EQ(report.at("model_type"), "deepseek_v3");
  EXPECT_EQ(report.at("shape").at("kv_lora_rank"), 32);
  EXPECT_EQ(report.at("next_token_layer_tensors").size(), 3u);
  EXPECT_EQ(report.at("cache").at("mla").at("values_per_token"), 3 * (32 + 8));
  EXPECT_NEAR(report.at("cache").at("mha_over_mla"), 4.0 * (16 + 12) / (32 + 8), 1e-9);
  const Outcome run = mla("inspect --model " + v3);
  EXPECT_EQ(run.status, 0);
  for (const char* part :
       {"deepseek_v3", "model.layers.3.eh_proj.weight", "MHA keeps 3x", "sigmoid gate, 2 of 4 groups"}) {
    EXPECT_NE(run.out.find(part), std::string::npos) << part << " is missing from\n" << run.out;
  }
}

TEST_F(ProgramTest, InspectsAConfigWithoutWeights) {
  const Outcome run = mla("inspect --model " + (test::data() / "configs" / "DeepSeek-V3").string());
  EXPECT_EQ(run.status, 0) << run.err;
  for (const char* part :
       {"none in this directory", "MHA keeps 57x", "64x without the rotary key", "671026"}) {
    EXPECT_NE(run.out.find(part), std::string::npos) << part << " is missing from\n" << run.out;
  }
}

TEST_F(ProgramTest, ErrorsAreOneLineAndStatusOne) {
  expect_error(mla("generate --model /nowhere --ids 1"), {"/nowhere/config.json"});
  expect_error(mla("generate --model /nowhere"), {"/nowhere/tokenizer.json"});
  expect_error(mla(fmt::format("generate --model {} --ids 1,2,320", v3)), {"320", "0 to 319"});
  expect_error(mla(fmt::format("generate --model {} --ids 1,-5", v3)), {"-5", "0 to 319"});
  expect_error(mla(fmt::format("generate --model {} --ids 1,x", v3)), {"--ids", "1,x"});
  expect_error(mla(fmt::format("generate --model {} --ids 99999999999", v3)), {"--ids"});
  expect_error(mla(fmt::format("generate --model {} --ids ''", v3)), {"--ids"});
  expect_error(mla("generate --prompt ''"), {"--prompt", "empty"});
  expect_error(mla("generate --temperature -1"), {"temperature", "-1"});
  expect_error(mla("generate --top-p 0"), {"top-p", "0"});
  expect_error(mla("generate --top-k -3"), {"top-k", "-3"});
  expect_error(mla("generate --prompt -", std::string("\xff\xfe", 2)), {"UTF-8"});
  expect_error(mla("generate --cache-dtype fp8"), {"cache rows of fp8", "not supported yet"});
  expect_error(mla("generate --prompt -", std::string(9000, 'x')), {"context limit", "1024"});
  expect_error(mla("logits --out x.npy"), {"--ids or --text"});
  expect_error(mla("logits --text hello --out /nowhere/x.npy"), {"/nowhere/x.npy"});
  expect_error(mla("score --text-file /nowhere"), {"/nowhere"});
  expect_error(mla("score --window 5000 --text-file " + (test::data() / "default" / "heldback.txt").string()),
               {"--window", "1024"});
}

TEST_F(ProgramTest, WrongUsageIsStatusTwo) {
  for (const char* arguments :
       {"", "nonsense", "generate --nonsense", "generate --max-tokens -1", "generate --threads 0",
        "generate --attention both", "generate --prompt a --ids 1", "logits --ids 1"}) {
    EXPECT_EQ(mla(arguments).status, 2) << arguments;
  }
  EXPECT_EQ(mla("--help").status, 0);
  EXPECT_EQ(mla("generate --help").status, 0);
  EXPECT_EQ(mla("--version").out, "0.1.0\n");
}

TEST_F(ProgramTest, UnwritableOutputLeavesNothingBehind) {
  const fs::path target = directory / "taken";
  fs::create_directories(target);
  expect_error(mla("logits --text hello --out " + target.string()), {target.string()});
  for (const auto& entry : fs::directory_iterator(directory)) {
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos) << entry.path();
  }
  std::ofstream(directory / "full.sh") << MLA_PROGRAM << " inspect > /dev/full";
  EXPECT_NE(std::system(("sh " + (directory / "full.sh").string() + " 2> /dev/null").c_str()), 0);
}

TEST_F(ProgramTest, StopsAtTheContextLimit) {
  const std::string long_text(2000, 'a');
  const json report =
      json::parse(mla("generate --json --ignore-eos --max-tokens 5000 --prompt -", "In the beginning").out);
  EXPECT_EQ(report.at("stop_reason"), "context limit");
  EXPECT_EQ(report.at("prompt_tokens").get<std::size_t>() + report.at("ids").size(), 1025u);
}

TEST_F(ProgramTest, ControlCEndsWithWhatWasSaidSoFar) {
  const std::string out = (directory / "out").string();
  const pid_t child = ::fork();
  if (child == 0) {
    if (!std::freopen(out.c_str(), "w", stdout)) ::_exit(127);
    ::execl(MLA_PROGRAM, "mla", "generate", "--ignore-eos", "--max-tokens", "1000", nullptr);
    ::_exit(127);
  }
  while (!fs::exists(out) || fs::file_size(out) < 40) ::usleep(1000);  // it has begun to speak
  ::kill(child, SIGINT);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  const std::string text = read_text(out);
  EXPECT_EQ(text.substr(0, 16), "In the beginning");
  EXPECT_EQ(text.back(), '\n');
}

}  // namespace
}  // namespace mla
