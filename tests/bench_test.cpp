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
  if (supports_bf16_products()) {
    EXPECT_EQ(peak_kernel(DType::bf16, Isa::avx512).type, DType::bf16);
    EXPECT_EQ(peak_kernel(DType::f8_e4m3, Isa::avx512).type, DType::bf16);
    EXPECT_EQ(peak_kernel(DType::f32, Isa::avx512).type, DType::f32);
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
                                "attention --op prefill",
                                "matmul --shapes 1x2",
                                "matmul --shapes 1x2x3x4",
                                "matmul --shapes 1x2x0",
                                "matmul --shapes 1x2x99999999999999999999",
                                "matmul --dtype int8"}) {
    const Run run = bench(arguments);
    EXPECT_EQ(run.status, 2) << arguments;
    EXPECT_EQ(run.out, "") << arguments;
  }
}

TEST_F(BenchTest, ErrorsAreOneLineAndStatusOne) {
  for (const auto& [arguments, part] : {std::pair("attention --variant gqa --heads 3", "--kv-heads 8"),
                                        std::pair("attention --d-qk 64", "--d-v 512"),
                                        std::pair("attention --kv 4 --queries 5", "--queries 5"),
                                        std::pair("attention --kv 16777216 --batch 16384", "memory")}) {
    const Run run = bench(std::string(arguments) + " --json");
    EXPECT_EQ(run.status, 1) << arguments;
    EXPECT_EQ(run.out, "") << arguments;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
    EXPECT_NE(run.err.find(part), std::string::npos) << run.err;
  }
}

}  // namespace
}  // namespace mla
