// The program as a user or a script meets it: options, output, errors, exit status.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "mla/core/cpu.h"
#include "mla/core/mapped_file.h"
#include "mla/runtime/session.h"
#include "support/program.h"
#include "support/reference.h"

namespace mla {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

using test::Outcome;

class ProgramTest : public test::WithProgram {
 protected:
  /// A file of the first `bytes` of the held-back text.
  std::string beginning_of_heldback(std::size_t bytes) {
    const fs::path file = directory / "text";
    std::ofstream(file) << read_text(test::data() / "default" / "heldback.txt").substr(0, bytes);
    return file.string();
  }

  const bool is_slow = selected_isa() == Isa::scalar;  // the whole text would take minutes
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
  // 3 prompt tokens and 99 fed ones lie on two pages of 64.
  EXPECT_EQ(report.at("cache_bytes"), 2 * 64 * 4 * (64 + 16) * 4);
  EXPECT_EQ(report.at("prompt_tokens"), 3);
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
  std::string file = (test::data() / "default" / "heldback.txt").string();
  double expected = 1.3545;  // what transformers measures, in windows of 256
  if (is_slow) {
    file = beginning_of_heldback(20000);
    expected = 1.4464;  // what avx512 makes of the beginning
  }
  const json report = json::parse(mla("score --json --window 256 --text-file " + file).out);
  EXPECT_NEAR(report.at("bits_per_byte"), expected, 0.002);
  EXPECT_EQ(report.at("predicted_tokens"), report.at("tokens").get<int>() - 1);
  EXPECT_NEAR(report.at("perplexity"),
              std::exp(report.at("bits_per_byte").get<double>() * std::log(2) *
                       report.at("bytes").get<double>() / report.at("predicted_tokens").get<double>()),
              1e-6);
}

/// The same held-back text through quantised caches, in the form that attends to the rows as they are.
TEST_F(ProgramTest, QuantisedRowsPredictAsWellAsBf16) {
  const std::string file = beginning_of_heldback(is_slow ? 10000 : 20000);
  const auto perplexity = [&](const std::string& type) {
    return json::parse(mla("score --json --window 256 --attention absorbed --cache-dtype " + type +
                           " --text-file " + file)
                           .out)
        .at("perplexity")
        .get<double>();
  };
  const double expected = perplexity("bf16");
  const double fp8 = perplexity("fp8"), int8 = perplexity("int8");
  EXPECT_NEAR(fp8 / expected, 1, 0.01);
  EXPECT_NEAR(int8 / expected, 1, 0.002);
  EXPECT_NE(fp8, expected);
  EXPECT_NE(int8, expected);
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
  EXPECT_EQ(report.at("cache").at("mla_bytes_per_token"),
            json({{"f32", 480}, {"bf16", 240}, {"fp8", 156}, {"int8", 192}}));
  EXPECT_NEAR(report.at("cache").at("mha_over_mla"), 4.0 * (16 + 12) / (32 + 8), 1e-9);
  const Outcome run = mla("inspect --model " + v3);
  EXPECT_EQ(run.status, 0);
  for (const char* part :
       {"deepseek_v3", "model.layers.3.eh_proj.weight", "MHA keeps 2.8x", "sigmoid gate, 2 of 4 groups"}) {
    EXPECT_NE(run.out.find(part), std::string::npos) << part << " is missing from\n" << run.out;
  }
}

TEST_F(ProgramTest, InspectsAConfigWithoutWeights) {
  const Outcome run = mla("inspect --model " + (test::data() / "configs" / "DeepSeek-V3").string());
  EXPECT_EQ(run.status, 0) << run.err;
  for (const char* part : {"none in this directory", "MHA keeps 56.9x",
                           "64.0x what its latents take without the rotary key", "671026"}) {
    EXPECT_NE(run.out.find(part), std::string::npos) << part << " is missing from\n" << run.out;
  }
}

TEST_F(ProgramTest, RunsModelsWithKeyAndValueHeads) {
  for (const std::string& name : test::heads_names()) {
    const test::Reference reference = test::load_reference(name);
    const std::string model = "--model " + reference.directory.string();
    const json report = json::parse(mla(fmt::format("generate --json --dtype f32 {} --ids {} {}", model,
                                                    fmt::join(reference.greedy_prompt, ","), greedy))
                                        .out);
    EXPECT_EQ(report.at("ids"), json(reference.greedy)) << name;
    EXPECT_EQ(report.at("attention"), json({{"prefill", "heads"}, {"decode", "heads"}}));
    const json shape = json::parse(mla("inspect --json " + model).out);
    EXPECT_EQ(shape.at("cache").at("bytes_per_token").at("f32"), report.at("cache_bytes_per_token"));
    EXPECT_EQ(shape.at("shape").contains("kv_lora_rank"), false);

    const fs::path out = directory / "logits.npy";
    EXPECT_EQ(mla(fmt::format("logits {} --chunk 7 --dtype f32 --out {} --ids {}", model, out.string(),
                              fmt::join(reference.ids, ",")))
                  .status,
              0);
    EXPECT_LE(test::difference(read_npy(out).data, reference.logits.data).max, 2e-5) << name;

    for (const char* form : {"explicit", "absorbed"}) {
      expect_error(mla(fmt::format("generate {} --ids 1 --attention {}", model, form)),
                   {"--attention", form, "expected auto"});
    }
    for (const char* type : {"fp8", "int8"}) {
      expect_error(mla(fmt::format("generate {} --ids 1 --cache-dtype {}", model, type)),
                   {"--cache-dtype", type, "expected f32 or bf16"});
    }
  }
  const Outcome run = mla("inspect --model " + (test::data() / "configs" / "Llama-3.1-8B").string());
  for (const char* part : {"32 heads of 128, 8 kv heads", "attention      GQA", "8030261248", "GQA (8)",
                           "llama3 by 8", "f32 262144, bf16 131072"}) {
    EXPECT_NE(run.out.find(part), std::string::npos) << part << " is missing from\n" << run.out;
  }
}

/// A text of bytes that are ids: perplexity is then that of the reference's logits.
TEST_F(ProgramTest, ScoresModelsWithKeyAndValueHeads) {
  const test::Reference reference = test::load_reference("llama-mha");
  const fs::path model = directory / "model";
  fs::create_directories(model);
  for (const char* file : {"config.json", "model.safetensors"})
    fs::copy_file(reference.directory / file, model / file);
  json vocab = json::object();
  const std::string letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
  for (std::size_t i = 0; i < letters.size(); ++i) vocab[std::string(1, letters[i])] = i + 2;
  const json tokenizer = {{"added_tokens", json::array()},
                          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
                          {"decoder", {{"type", "ByteLevel"}}},
                          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
  std::ofstream(model / "tokenizer.json") << tokenizer.dump();
  std::ofstream(directory / "text") << letters;
  const auto score = [&](const std::string& more) {
    const Outcome run = mla(fmt::format("score --json --model {} --text-file {}/text {}", model.string(),
                                        directory.string(), more));
    EXPECT_EQ(run.status, 0) << run.err;
    return json::parse(run.out);
  };
  const json whole = score("--dtype f32");
  EXPECT_EQ(whole.at("tokens"), letters.size());
  EXPECT_EQ(whole, score("--dtype f32 --chunk 7"));
  const Transformer loaded = Transformer::load(model);
  Session session(loaded, {});
  std::vector<std::int32_t> ids(letters.size());
  std::iota(ids.begin(), ids.end(), 2);
  double nats = 0;
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    const auto logits = session.feed(std::span(ids).subspan(i, 1));
    double sum = 0;
    for (const float x : logits) sum += std::exp(static_cast<double>(x));
    nats += std::log(sum) - logits[static_cast<std::size_t>(ids[i + 1])];
  }
  EXPECT_NEAR(whole.at("perplexity").get<double>(), std::exp(nats / static_cast<double>(ids.size() - 1)),
              1e-4 * std::exp(nats / static_cast<double>(ids.size() - 1)));
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
