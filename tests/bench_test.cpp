// mla bench: what it reports, never how fast anything is.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "mla/core/buffer.h"
#include "mla/core/error.h"
#include "mla/core/mapped_file.h"
#include "mla/kernels/peak.h"
#include "mla/kernels/prefill.h"

namespace mla {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr PeakTiming quick{0.0005, 1};

class BenchTest : public testing::Test {
 protected:
  struct Run {
    int status;
    std::string out, err;
  };

  void SetUp() override { fs::create_directories(directory); }
  void TearDown() override { fs::remove_all(directory); }

  Run bench(const std::string& arguments) {
    const std::string path = directory.string();
    const std::string command =
        fmt::format("{} bench {} > {}/out 2> {}/err < /dev/null", MLA_PROGRAM, arguments, path, path);
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(directory / "out"),
            read_text(directory / "err")};
  }

  /// The entries of a quick run with --json.
  json entries(const std::string& arguments) {
    const Run run = bench(arguments + " --json --seconds 0.01 --buffer 4");
    EXPECT_EQ(run.status, 0) << run.err;
    EXPECT_EQ(run.err, "");
    return json::parse(run.out);
  }

  void expect_figures(const json& entry) {
    for (const char* field : {"name", "op", "rows", "heads", "queries", "kv", "threads", "cpu"})
      EXPECT_TRUE(entry.contains(field)) << entry << " lacks " << field;
    for (const char* field : {"gflops", "gbytes_per_s", "ceiling", "share"}) {
      const double value = entry.at(field).get<double>();
      EXPECT_TRUE(std::isfinite(value) && value > 0) << field << " in " << entry;
    }
    const bool reads = entry.at("ceiling_unit") == "GB/s";
    EXPECT_EQ(reads, entry.at("ceiling_of") == "read") << entry;
    const double rate = entry.at(reads ? "gbytes_per_s" : "gflops").get<double>();
    EXPECT_NEAR(entry.at("share").get<double>() * entry.at("ceiling").get<double>(), rate, 1e-6 * rate);
  }

  fs::path directory = fs::temp_directory_path() / fmt::format("mla_bench_test_{}", ::getpid());
};

TEST_F(BenchTest, EveryPeakKernelRuns) {
  std::vector<PeakKernel> kernels = peak_kernels();
  ASSERT_FALSE(kernels.empty());
  for (const PeakKernel& kernel : kernels) {
    EXPECT_TRUE(supports(kernel.isa));
    EXPECT_EQ(kernel.run(30), 3 * kernel.run(10)) << kernel.instruction;
    const double rate = peak_operations(kernel, 2, quick);
    EXPECT_TRUE(std::isfinite(rate) && rate > 0) << kernel.instruction;
  }
}

TEST_F(BenchTest, CeilingIsThatOfTheInstructionSetInUse) {
  EXPECT_EQ(peak_kernel(DType::bf16, Isa::scalar).type, DType::f32);
  EXPECT_EQ(peak_kernel(DType::i8, Isa::scalar).isa, Isa::scalar);
  if (supports(Isa::avx2)) {
    EXPECT_EQ(peak_kernel(DType::f8_e4m3, Isa::avx2).isa, Isa::avx2);
  }
  if (supports(Isa::avx512_bf16)) {
    EXPECT_EQ(peak_kernel(DType::bf16, Isa::avx512_bf16).type, DType::bf16);
    EXPECT_EQ(peak_kernel(DType::f8_e4m3, Isa::avx512_bf16).type, DType::bf16);
    EXPECT_EQ(peak_kernel(DType::f32, Isa::avx512_bf16).type, DType::f32);
  }
}

TEST_F(BenchTest, ReadsMemoryOfAnySize) {
  for (const std::int64_t bytes : {1024, 1025, 5000, 1 << 20}) {
    const Buffer<std::byte> memory(bytes);
    const double rate = peak_read(memory.span(), 2, quick);
    EXPECT_TRUE(std::isfinite(rate) && rate > 0) << bytes;
  }
  const Buffer<std::byte> memory(1 << 16);
  EXPECT_GT(peak_read(memory.span().subspan(3), 1, quick), 0) << "any alignment will do";
  const Buffer<std::byte> small(1023);
  EXPECT_THROW(peak_read(small.span(), 2, quick), Error);
  EXPECT_THROW(peak_read(small.span(), 0, quick), Error);
}

TEST_F(BenchTest, ReportsPeaks) {
  const json found = entries("peak --threads 2");
  EXPECT_EQ(found.size(), 2 * (peak_kernels().size() + 1));
  for (const json& entry : found) {
    const bool reads = entry.at("rows").is_null();
    EXPECT_GT(entry.at(reads ? "gbytes_per_s" : "gflops").get<double>(), 0) << entry;
    EXPECT_EQ(entry.at("ceiling"), entry.at(reads ? "gbytes_per_s" : "gflops"));
    EXPECT_TRUE(entry.at("threads") == 1 || entry.at("threads") == 2);
    EXPECT_NE(entry.at("cpu"), "");
  }
}

TEST_F(BenchTest, ReportsAttention) {
  const json found = entries("attention --heads 3,8 --kv 100 --queries 2 --batch 2 --threads 2");
  ASSERT_EQ(found.size(), 4u);
  std::string rows, heads;
  for (const json& entry : found) {
    expect_figures(entry);
    EXPECT_EQ(entry.at("op"), "decode");
    EXPECT_EQ(entry.at("queries"), 2);
    EXPECT_EQ(entry.at("kv"), 100);
    EXPECT_EQ(entry.at("d_qk"), 576);
    EXPECT_EQ(entry.at("threads"), 2);
    rows += entry.at("rows").get<std::string>() + " ";
    heads += fmt::format("{} ", entry.at("heads").get<int>());
    // The first query sees 99 rows, the second one 100, in each of two sequences.
    const double operations = 2.0 * 2 * (99 + 100) * entry.at("heads").get<double>() * (576 + 512);
    const double seconds = entry.at("seconds").get<double>();
    EXPECT_NEAR(entry.at("gflops").get<double>() * 1e9 * seconds, operations, 1e-6 * operations);
    const double bytes = 2.0 * 100 * 576 * (entry.at("rows") == "f32" ? 4 : 2);
    EXPECT_NEAR(entry.at("gbytes_per_s").get<double>() * 1e9 * seconds, bytes, 1e-6 * bytes);
  }
  EXPECT_EQ(rows, "f32 f32 bf16 bf16 ");
  EXPECT_EQ(heads, "3 8 3 8 ");
}

TEST_F(BenchTest, ReportsGroupedHeadsAndColdRows) {
  const json found = entries(
      "attention --variant gqa --heads 4 --kv-heads 2 --kv 100,65 --d-qk 24 --d-v 16 --rows bf16 --batch "
      "500");
  ASSERT_EQ(found.size(), 2u);
  for (const json& entry : found) {
    expect_figures(entry);
    EXPECT_EQ(entry.at("kv_heads"), 2);
    EXPECT_EQ(entry.at("cold"), false);
  }
  const json cold = entries("attention --cold --heads 3 --kv 9000 --rows bf16");
  ASSERT_EQ(cold.size(), 1u);
  expect_figures(cold[0]);
  EXPECT_EQ(cold[0].at("cold"), true);
}

TEST_F(BenchTest, ReportsPrefill) {
  const std::string arguments = "attention --op prefill --threads 2 --heads 3 --queries 20 --kv 20,100";
  if (!has_prefill()) {
    EXPECT_EQ(bench(arguments).status, 1);
    return;
  }
  const json found = entries(arguments);
  ASSERT_EQ(found.size(), 2u);
  for (const json& entry : found) {
    expect_figures(entry);
    EXPECT_EQ(entry.at("op"), "prefill");
    EXPECT_EQ(entry.at("rows"), "bf16");
    const double kv = entry.at("kv"), pairs = 20 * (kv - 20) + 210;
    const double operations = 2 * 3 * (pairs * (192 + 128) + kv * 512 * (128 + 128));
    const double seconds = entry.at("seconds").get<double>();
    EXPECT_NEAR(entry.at("gflops").get<double>() * 1e9 * seconds, operations, 1e-6 * operations);
  }
  EXPECT_EQ(entries("attention --op prefill --variant gqa --heads 4 --kv-heads 2 --queries 9").size(), 1u);
}

TEST_F(BenchTest, ReportsBackward) {
  const json found =
      entries("attention --op backward --threads 2 --heads 3 --queries 20 --kv 20,100 --batch 2 --d-v 16");
  ASSERT_EQ(found.size(), 2u);
  for (const json& entry : found) {
    expect_figures(entry);
    EXPECT_EQ(entry.at("op"), "backward");
    EXPECT_EQ(entry.at("rows"), "f32");
    EXPECT_EQ(entry.at("batch"), 2);
    const double kv = entry.at("kv"), pairs = 20 * (kv - 20) + 210;
    const double operations = 2 * 2 * 3 * pairs * (3 * 192 + 2 * 16);
    const double seconds = entry.at("seconds").get<double>();
    EXPECT_NEAR(entry.at("gflops").get<double>() * 1e9 * seconds, operations, 1e-6 * operations);
  }
  EXPECT_EQ(entries("attention --op backward --variant gqa --heads 4 --kv-heads 2 --queries 9").size(), 1u);
  for (const char* wrong : {"--rows bf16", "--kv 9", "--cold", "--queries 9 --kv 8"})
    EXPECT_EQ(bench(fmt::format("attention --op backward {}", wrong)).status, 1) << wrong;
}

TEST_F(BenchTest, ReportsProducts) {
  const json found = entries("matmul --shapes 1x1000x1000,3x640x1000");
  ASSERT_EQ(found.size(), 4u);
  for (const json& entry : found) {
    expect_figures(entry);
    EXPECT_EQ(entry.at("op"), "matmul");
    const double m = entry.at("m"), n = entry.at("n"), k = entry.at("k"), seconds = entry.at("seconds");
    EXPECT_NEAR(entry.at("gflops").get<double>() * 1e9 * seconds, 2 * m * n * k, 1);
  }
  EXPECT_EQ(found[0].at("rows"), "bf16");
  EXPECT_EQ(found[3].at("rows"), "f32");
}

/// A model of true widths would take a second to make; that of a test checkpoint takes none.
TEST_F(BenchTest, ReportsModels) {
  const std::string shape = std::string(" --shape ") + MLA_TEST_DATA + "/reference/v2-lite";
  const json found = entries("model --layers 2 --context 20,70 --prompt 5 --threads 2" + shape);
  ASSERT_EQ(found.size(), 3u);
  for (const json& entry : found) {
    expect_figures(entry);
    EXPECT_EQ(entry.at("layers"), 2);
    EXPECT_EQ(entry.at("moe_layers"), 1);
    EXPECT_EQ(entry.at("cache_rows"), "bf16");
    const double rate = entry.at("tokens_per_s"), limit = entry.at("limit_tokens_per_s");
    EXPECT_NEAR(rate / limit, entry.at("share").get<double>(), 1e-9);
    EXPECT_NEAR(rate * entry.at("seconds").get<double>(), entry.at("queries").get<double>(), 1e-9);
  }
  EXPECT_EQ(found[0].at("op"), "prefill");
  EXPECT_EQ(found[0].at("kv"), 5);
  EXPECT_EQ(found[2].at("op"), "decode");
  EXPECT_EQ(found[2].at("kv"), 71);
  const double more = found[2].at("gbytes_per_s").get<double>() * found[2].at("seconds").get<double>() -
                      found[1].at("gbytes_per_s").get<double>() * found[1].at("seconds").get<double>();
  EXPECT_NEAR(more * 1e9, 2 * 50 * (32 + 8) * 2, 1) << "two layers' rows of 50 tokens in bf16";
}

TEST_F(BenchTest, OneLayerOfAMixtureHasExperts) {
  const std::string shape = std::string(" --shape ") + MLA_TEST_DATA + "/reference/v3";
  const json found = entries("model --layers 1 --experts 8 --dtype f32 --context 3 --prompt 2" + shape);
  for (const json& entry : found) {
    EXPECT_EQ(entry.at("moe_layers"), 1);
    EXPECT_EQ(entry.at("experts"), 8);
    EXPECT_EQ(entry.at("rows"), "f32");
  }
}

TEST_F(BenchTest, ReportsForms) {
  const json found = entries("forms --heads 2,3 --new 1,5 --cached 0,40 --cache-dtype f32 --threads 2");
  ASSERT_EQ(found.size(), 8u);
  for (const json& entry : found) {
    EXPECT_EQ(entry.at("op"), "forms");
    EXPECT_EQ(entry.at("rows"), "f32");
    EXPECT_EQ(entry.at("dtype"), "bf16");
    EXPECT_EQ(entry.at("kv").get<int>(), entry.at("cached").get<int>() + entry.at("queries").get<int>());
    const double one = entry.at("explicit_seconds"), other = entry.at("absorbed_seconds");
    EXPECT_DOUBLE_EQ(entry.at("ratio"), one / other);
    const double chosen = entry.at("auto") == "explicit" ? one : other;
    EXPECT_DOUBLE_EQ(entry.at("excess"), chosen / std::min(one, other) - 1);
    const double rate = entry.at("gflops"), ceiling = entry.at("ceiling");
    EXPECT_GT(rate, 0);
    EXPECT_DOUBLE_EQ(entry.at("share"), rate / ceiling);
  }
  EXPECT_EQ(found[7].at("heads"), 3);
}

TEST_F(BenchTest, FitsForms) {
  const Run run = bench("forms --heads 2,3 --new 1,5 --cached 0,40 --seconds 0.001 --fit");
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_NE(run.out.find("\n{DType::bf16, DType::bf16, {"), std::string::npos) << run.out;
}

TEST_F(BenchTest, PrintsTables) {
  const Run peak = bench("peak --seconds 0.01 --buffer 4");
  EXPECT_EQ(peak.status, 0) << peak.err;
  EXPECT_NE(peak.out.find("f32"), std::string::npos) << peak.out;
  EXPECT_NE(peak.out.find("GB/s"), std::string::npos) << peak.out;
  const Run run = bench("attention --heads 3 --kv 100 --seconds 0.01 --buffer 4");
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(std::count(run.out.begin(), run.out.end(), '\n'), 4) << run.out;
  EXPECT_NE(run.out.find("decode mla bf16 rows, 3 heads, 100"), std::string::npos) << run.out;
}

TEST_F(BenchTest, WrongUsageIsStatusTwo) {
  for (const char* arguments : {"",
                                "nonsense",
                                "peak --seconds 0",
                                "peak --seconds x",
                                "peak --threads 0",
                                "peak --buffer 0",
                                "attention --rows f64",
                                "attention --rows f32,bf17",
                                "attention --heads 0",
                                "attention --heads 3,x",
                                "attention --kv -1",
                                "attention --queries 0",
                                "attention --batch 0",
                                "attention --variant mha",
                                "attention --op train",
                                "matmul --shapes 1x2",
                                "matmul --shapes 1x2x3x4",
                                "matmul --shapes 1x2x0",
                                "matmul --shapes 1x2x99999999999999999999",
                                "matmul --dtype int8",
                                "model --layers 0",
                                "model --dtype int8",
                                "model --context x",
                                "model --attention none",
                                "forms --new 0",
                                "forms --cached -1",
                                "forms --fit --json"}) {
    const Run run = bench(arguments);
    EXPECT_EQ(run.status, 2) << arguments;
    EXPECT_EQ(run.out, "") << arguments;
  }
}

TEST_F(BenchTest, ErrorsAreOneLineAndStatusOne) {
  for (const auto& [arguments, part] :
       {std::pair("attention --variant gqa --heads 3", "--kv-heads 8"),
        std::pair("attention --d-qk 64", "--d-v 512"),
        std::pair("attention --kv 4 --queries 5", "--queries 5"),
        std::pair("attention --kv 16777216 --batch 16384", "memory"),
        std::pair("model --shape v9", "v2-lite"), std::pair("forms --shape v9", "v2-lite"),
        std::pair("model --layers 28", "at most 27"), std::pair("model --experts 5", "6 to 64"),
        std::pair("model --context 1000000", "163840"),
        std::pair("model --shape v3 --layers 61", "memory")}) {
    const Run run = bench(std::string(arguments) + " --json");
    EXPECT_EQ(run.status, 1) << arguments;
    EXPECT_EQ(run.out, "") << arguments;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
    EXPECT_NE(run.err.find(part), std::string::npos) << run.err;
  }
}

}  // namespace
}  // namespace mla
