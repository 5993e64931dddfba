// The ground floor: number formats by their definitions, buffers, JSON, files, CPU choice, threads.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>

#include "mla/core/buffer.h"
#include "mla/core/dtype.h"
#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "mla/core/npy.h"
#include "mla/core/parallel.h"
#include "mla/core/tensor.h"
#include "support/oracle.h"

namespace mla {
namespace {

namespace fs = std::filesystem;
using test::error_of;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

TEST(DTypeTest, NamesAreReadBack) {
  for (const DType type : {DType::f32, DType::bf16, DType::f8_e4m3, DType::i8})
    EXPECT_EQ(dtype_named(name_of(type), "type"), type);
  EXPECT_EQ(error_of([] { dtype_named("f64", "--dtype"); }),
            "--dtype: found 'f64', expected f32, bf16, fp8 or int8");
}

TEST(DTypeTest, EveryF16Code) {
  for (unsigned code = 0; code < 65536; ++code) {
    const float found = f16_to_float(static_cast<std::uint16_t>(code));
    ASSERT_EQ(std::signbit(found), code >= 0x8000) << code;
    if ((code & 0x7c00) != 0x7c00)
      ASSERT_EQ(static_cast<double>(found), test::value_of_code(code, 5, 10)) << code;
    else if (code & 0x3ff)
      ASSERT_TRUE(std::isnan(found)) << code;
    else
      ASSERT_TRUE(std::isinf(found)) << code;
  }
}

/// Every f16 value, and just below, at and above the tie to the next one.
TEST(DTypeTest, F16RoundsToNearestTiesToEven) {
  for (unsigned code = 0; code < 0x7c00; ++code) {
    const float value = f16_to_float(static_cast<std::uint16_t>(code));
    const float next = code == 0x7bff ? 65536.0f : f16_to_float(static_cast<std::uint16_t>(code + 1));
    const float tie = value + (next - value) / 2;  // exact
    ASSERT_EQ(to_f16(value), code);
    ASSERT_EQ(to_f16(std::nextafter(tie, value)), code);
    ASSERT_EQ(to_f16(tie), code + code % 2);
    ASSERT_EQ(to_f16(std::nextafter(tie, next)), code + 1);
    ASSERT_EQ(to_f16(-value), code | 0x8000);
  }
  EXPECT_EQ(to_f16(std::numeric_limits<float>::infinity()), 0x7c00);
  EXPECT_TRUE(std::isnan(f16_to_float(to_f16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(DTypeTest, EveryF8Code) {
  for (unsigned code = 0; code < 256; ++code) {
    const float found = f8_e4m3_to_float(static_cast<std::uint8_t>(code));
    ASSERT_EQ(std::signbit(found), code >= 0x80) << code;
    if ((code & 0x7f) == 0x7f)
      ASSERT_TRUE(std::isnan(found)) << code;
    else
      ASSERT_EQ(static_cast<double>(found), test::value_of_code(code, 4, 3)) << code;
  }
  EXPECT_EQ(f8_e4m3_to_float(0x7e), 448.0f);
}

TEST(DTypeTest, EveryBf16Code) {
  for (unsigned code = 0; code < 65536; ++code) {
    const bf16 value{static_cast<std::uint16_t>(code)};
    const float found = to_float(value);
    ASSERT_EQ(std::signbit(found), code >= 0x8000) << code;
    if ((code & 0x7f80) != 0x7f80)
      ASSERT_EQ(static_cast<double>(found), test::value_of_code(code, 8, 7)) << code;
    else if (code & 0x7f)
      ASSERT_TRUE(std::isnan(found)) << code;
    else
      ASSERT_TRUE(std::isinf(found)) << code;
    if (!std::isnan(found))
      ASSERT_EQ(to_bf16(found).bits, code);
    else
      ASSERT_TRUE(std::isnan(to_float(to_bf16(found)))) << code;
  }
}

/// Around every bf16 value: itself, a hair off, just below, at and above the tie to the next one.
TEST(DTypeTest, Bf16RoundsToNearestTiesToEven) {
  for (std::uint32_t code = 0; code < 65536; ++code) {
    for (const std::uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const float x = std::bit_cast<float>(code << 16 | low);
      if (std::isnan(x))
        ASSERT_TRUE(std::isnan(to_float(to_bf16(x)))) << code;
      else
        ASSERT_EQ(to_bf16(x).bits, test::nearest_bf16(x)) << code << " " << low;
    }
  }
}

TEST(DTypeTest, SizesAndNames) {
  EXPECT_EQ(size_of(DType::f32), 4);
  EXPECT_EQ(size_of(DType::bf16), 2);
  EXPECT_EQ(size_of(DType::f16), 2);
  EXPECT_EQ(size_of(DType::f8_e4m3), 1);
  EXPECT_EQ(size_of(DType::i8), 1);
  EXPECT_STREQ(name_of(DType::f8_e4m3), "fp8");
  EXPECT_STREQ(name_of(DType::bf16), "bf16");
}

TEST(BufferTest, IsAlignedZeroedAndReused) {
  Buffer<float> buffer(1000);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0u);
  EXPECT_TRUE(std::all_of(buffer.span().begin(), buffer.span().end(), [](float x) { return x == 0.0f; }));
  buffer[3] = 5;
  const float* data = buffer.data();
  EXPECT_EQ(buffer.resize(10), data);
  EXPECT_EQ(buffer.size(), 10);
  EXPECT_EQ(buffer.resize(1000), data) << "memory is kept";
  EXPECT_EQ(buffer[3], 5);
  buffer.resize(1001);
  EXPECT_EQ(buffer[3], 0);

  Buffer<float> other(std::move(buffer));
  EXPECT_EQ(other.size(), 1001);
  EXPECT_EQ(buffer.size(), 0);
  buffer = std::move(other);
  EXPECT_EQ(buffer.size(), 1001);
  EXPECT_EQ(Buffer<float>(0).data(), nullptr);
  EXPECT_NE(error_of([] { Buffer<float> wrong{-1}; }), "");
  EXPECT_NE(error_of([] { Buffer<float> wrong{std::numeric_limits<std::int64_t>::max()}; }), "");
  EXPECT_NE(error_of([] { Buffer<float> wrong{(std::int64_t{1} << 44) + 1}; }), "");
}

TEST(MatrixViewTest, BlocksAndColumnsKeepTheStride) {
  std::vector<int> values(5 * 7);
  std::iota(values.begin(), values.end(), 0);
  const auto view = MatrixView<int>(values.data(), 5, 6, 7).block(2, 3).columns(4, 2);
  EXPECT_EQ(view.rows, 3);
  EXPECT_EQ(view.cols, 2);
  EXPECT_EQ(view.row(1)[1], 3 * 7 + 5);
}

TEST(JsonTest, AcceptsWhatIsJson) {
  const auto json = parse_json(R"({"a": [1, -2, 2.5, true, null, "é"], "b": {"a": {}}, "": 0})", "here");
  EXPECT_EQ(json.dump(), R"({"":0,"a":[1,-2,2.5,true,null,"é"],"b":{"a":{}}})");
  EXPECT_EQ(parse_json("3", "here").get<int>(), 3);
  EXPECT_NO_THROW(parse_json(std::string(64, '[') + std::string(64, ']'), "here"));
  // the same key in two objects is fine
  EXPECT_NO_THROW(parse_json(R"([{"a":1},{"a":2,"b":{"a":3}}])", "here"));
}

TEST(JsonTest, RefusesEverythingElseInOneLine) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "not valid JSON"},
      {"{", "not valid JSON"},
      {R"({"a":1,})", "not valid JSON"},
      {"[1 2]", "not valid JSON"},
      {"{} x", "not valid JSON"},
      {"\n\n{'a':1}", "not valid JSON"},
      {"{\"a\":\"\xff\xfe\"}", "not valid JSON"},
      {"{\"a\xc3\":1}", "not valid JSON"},
      {"\"\xed\xa0\x80\"", "not valid JSON"},  // a surrogate in UTF-8
      {"[1e999]", "not valid JSON"},
      {"[NaN]", "not valid JSON"},
      {std::string("[1\0]", 4), "not valid JSON"},
      {R"({"a":1,"b":2,"a":3})", "'a' occurs twice"},
      {R"([{"x":{"k":1,"k":1}}])", "'k' occurs twice"},
      {R"({"a\nb":1,"a\nb":2})", "occurs twice"},
      {std::string(65, '[') + std::string(65, ']'), "deeper than 64"},
      {std::string(1'000'000, '['), "deeper than 64"},
      {[] {
         std::string text;
         for (int i = 0; i < 100'000; ++i) text += "{\"a\":";
         return text;
       }(),
       "deeper than 64"},
  };
  for (const auto& [text, says] : cases) {
    const std::string message = error_of([&text = text] { parse_json(text, "file.json"); });
    EXPECT_EQ(message.find("file.json: "), 0u) << text.substr(0, 40) << ": " << message;
    EXPECT_TRUE(contains(message, says)) << message;
    EXPECT_FALSE(contains(message, "\n")) << message;
  }
}

class FilesTest : public testing::Test {
 protected:
  void SetUp() override {
    directory = fs::temp_directory_path() / ("mla_core_test_" + std::to_string(::getpid()));
    fs::remove_all(directory);
    fs::create_directories(directory);
  }
  void TearDown() override { fs::remove_all(directory); }
  std::int64_t entries() const {
    return std::distance(fs::directory_iterator(directory), fs::directory_iterator());
  }

  fs::path directory;
};

TEST_F(FilesTest, ReadsBackWhatWasWritten) {
  const std::string text = std::string("a\0b\n", 4) + std::string(300'000, 'x');
  write_text(directory / "f", text);
  EXPECT_EQ(read_text(directory / "f"), text);
  write_text(directory / "f", "");
  EXPECT_EQ(read_text(directory / "f"), "");
  EXPECT_EQ(entries(), 1);
}

/// A reader that has the old file keeps it whole: the new one is another file under the same name.
TEST_F(FilesTest, ReplacesRatherThanOverwrites) {
  write_text(directory / "f", "old");
  const MappedFile reader(directory / "f");
  write_text(directory / "f", "brand new");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(reader.bytes().data()), reader.bytes().size()), "old");
  EXPECT_EQ(read_text(directory / "f"), "brand new");
}

TEST_F(FilesTest, UnwritablePlacesAreErrorsAndLeaveNothing) {
  write_text(directory / "file", "x");
  fs::create_directories(directory / "taken" / "inside");
  for (const fs::path& path :
       {directory / "missing" / "f", directory / "file" / "f", directory / "taken", fs::path("/proc/f")}) {
    const std::string message = error_of([&] { write_text(path, "x"); });
    EXPECT_TRUE(contains(message, path.string() + ": can't ")) << message;
  }
  EXPECT_EQ(entries(), 2);
  EXPECT_TRUE(fs::exists(directory / "taken" / "inside"));
}

TEST_F(FilesTest, MappedFileNamesWhatItCannotOpen) {
  for (const fs::path& path : {directory / "missing", directory, fs::path("/dev/null")}) {
    const std::string message = error_of([&] { MappedFile file(path); });
    EXPECT_TRUE(contains(message, path.string())) << message;
  }
  write_text(directory / "f", "abc");
  MappedFile a(directory / "f");
  MappedFile b(std::move(a));
  EXPECT_EQ(a.bytes().size(), 0u);
  EXPECT_EQ(b.bytes().size(), 3u);
  a = std::move(b);
  EXPECT_EQ(a.bytes().size(), 3u);
}

TEST_F(FilesTest, NpyRoundTrips) {
  test::Random random(1);
  for (const std::vector<std::int64_t>& shape :
       std::vector<std::vector<std::int64_t>>{{}, {1}, {7}, {0}, {3, 0, 2}, {2, 3}, {2, 3, 4, 5}, {123456}}) {
    std::int64_t count = 1;
    for (const std::int64_t side : shape) count *= side;
    const NpyArray array{shape, random.values(count)};
    write_npy(directory / "a.npy", array);
    const NpyArray back = read_npy(directory / "a.npy");
    EXPECT_EQ(back.shape, shape);
    EXPECT_EQ(back.data, array.data);
    EXPECT_EQ((fs::file_size(directory / "a.npy") - static_cast<std::size_t>(count) * 4) % 64, 0u);
  }
}

/// A version 1.0 file with `header`.
std::string npy(std::string header, std::size_t data_bytes) {
  header += '\n';
  const std::string size{static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  return std::string("\x93NUMPY\x01\x00", 8) + size + header + std::string(data_bytes, '\0');
}

TEST_F(FilesTest, NpyErrorsSayWhatWasFound) {
  const auto header = [](const std::string& type, const std::string& order, const std::string& shape) {
    return "{'descr': '" + type + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
  };
  EXPECT_EQ(error_of([&] {
              write_text(directory / "a.npy", npy(header("<f4", "False", "(2, 3)"), 24));
              EXPECT_EQ(read_npy(directory / "a.npy").shape, (std::vector<std::int64_t>{2, 3}));
            }),
            "");
  const std::pair<std::string, std::string> cases[] = {
      {"", "not a version 1.0"},
      {"\x93NUMPY", "not a version 1.0"},
      {std::string("\x93NUMPY\x02\x00\x10\x00", 10), "not a version 1.0"},
      {npy(header("<f4", "False", "(2, 3)"), 0).substr(0, 30), "ends inside its header"},
      {npy(header("<f4", "False", "(2, 3)"), 23), "23 bytes"},
      {npy(header("<f4", "False", "(2, 3)"), 20), "20 bytes"},
      {npy(header("<f4", "False", "(2, 3)"), 28), "28 bytes"},
      {npy(header("<f8", "False", "(2, 3)"), 48), "<f8"},
      {npy(header(">f4", "False", "(2, 3)"), 24), ">f4"},
      {npy(header("<f4", "True", "(2, 3)"), 24), "Fortran"},
      {npy(header("<f4", "False", "(2, -3)"), 24), "shape"},
      {npy(header("<f4", "False", "(2, x)"), 24), "shape"},
      {npy(header("<f4", "False", "(4294967296, 4294967296, 4294967296)"), 24), "too large"},
      {npy(header("<f4", "False", "(99999999999999999999,)"), 24), "shape"},
      {npy(header("<f4", "False", "(2, 3"), 24), "shape"},
      {npy("{'descr': '<f4', 'fortran_order': False}", 24), "lacks 'shape'"},
  };
  for (const auto& [bytes, says] : cases) {
    write_text(directory / "bad.npy", bytes);
    const std::string message = error_of([&] { read_npy(directory / "bad.npy"); });
    EXPECT_EQ(message.find((directory / "bad.npy").string() + ": "), 0u) << message << says;
    EXPECT_TRUE(contains(message, says)) << message << ", expected " << says;
  }
}

TEST(CpuTest, IsaIsChosenByName) {
  EXPECT_EQ(choose_isa("scalar"), Isa::scalar);
  const auto all = test::supported_isas();
  EXPECT_EQ(choose_isa(""), all.back()) << "the best one unless told";
  for (const Isa isa : all) EXPECT_EQ(choose_isa(name_of(isa)), isa);
  for (const Isa isa : {Isa::avx2, Isa::avx512, Isa::avx512_bf16}) {
    if (supports(isa)) continue;
    EXPECT_TRUE(contains(error_of([&] { choose_isa(name_of(isa)); }), name_of(isa)));
  }
  for (const char* wrong : {"AVX2", "avx", "sse2", " scalar"}) {
    const std::string message = error_of([&] { choose_isa(wrong); });
    EXPECT_TRUE(contains(message, std::string("'") + wrong + "'") && contains(message, "MLA_ISA")) << message;
  }
  const char* wanted = std::getenv("MLA_ISA");
  EXPECT_EQ(selected_isa(), choose_isa(wanted ? wanted : ""));
}

class ParallelTest : public testing::Test {
 private:
  test::Threads restored_{1};
};

TEST_F(ParallelTest, ThreadCountIsBounded) {
  for (const int count : {1, 2, 1024}) {
    set_threads(count);
    EXPECT_EQ(threads(), count);
  }
  for (const int count : {0, -1, 1025, std::numeric_limits<int>::min()}) {
    EXPECT_TRUE(contains(error_of([&] { set_threads(count); }), std::to_string(count)));
    EXPECT_EQ(threads(), 1024) << "unchanged";
  }
}

TEST_F(ParallelTest, UnlessAskedForAreAsManyAsOpenMpWouldTake) {
  std::vector<int> found;
  std::thread([&] {  // nothing was asked for in it
    found.push_back(threads());
    omp_set_num_threads(3);
    found.push_back(threads());
    omp_set_num_threads(5000);
    found.push_back(threads());
  })
      .join();
  EXPECT_EQ(found, (std::vector{omp_get_max_threads(), 3, 1024}));
}

TEST_F(ParallelTest, RunsEachIndexOnceAlsoNested) {
  for (const int count : {1, 2, 5}) {
    set_threads(count);
    for (const std::int64_t n : {0, 1, 2, 100}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(n * 3));
      parallel_for(n, [&](std::int64_t i) { parallel_for(3, [&](std::int64_t j) { ++seen[i * 3 + j]; }); });
      EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [](const auto& x) { return x == 1; })) << n;
    }
    parallel_for(-3, [](std::int64_t) { FAIL(); });
  }
}

TEST_F(ParallelTest, RethrowsAnErrorAlsoNested) {
  for (const int count : {1, 2, 5}) {
    set_threads(count);
    for (const std::int64_t n : {1, 2, 50}) {
      EXPECT_EQ(
          error_of([&] { parallel_for(n, [&](std::int64_t i) { require(i != n - 1, "number {}", i); }); }),
          fmt::format("number {}", n - 1));
      EXPECT_EQ(error_of([&] {
                  parallel_for(n, [](std::int64_t) { parallel_for(4, [](std::int64_t) { fail("deep"); }); });
                }),
                "deep");
    }
    std::atomic<int> after = 0;
    parallel_for(10, [&](std::int64_t) { ++after; });
    EXPECT_EQ(after, 10) << "the pool still works";
  }
}

}  // namespace
}  // namespace mla
