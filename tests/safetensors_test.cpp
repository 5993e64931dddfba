// The safetensors reader against files made here: good ones, and every way that a header can lie.
#include "mla/model/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "mla/core/error.h"

namespace mla {
namespace {

namespace fs = std::filesystem;

/// A file's bytes: the header, padded with spaces to a multiple of 8 as the format's writers do, and `data`
/// zero bytes.
std::string file_of(std::string header, std::size_t data) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string bytes(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data, '\0');
}

std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"w":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

std::string error_of(const std::string& bytes) {
  const std::string aligned = bytes;  // std::string's heap memory is aligned for 8 bytes
  try {
    parse_safetensors(std::as_bytes(std::span(aligned)), "some/model.safetensors");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void expect_refused(const std::string& bytes, const std::string& says) {
  const std::string message = error_of(bytes);
  EXPECT_EQ(message.find("some/model.safetensors: "), 0u) << message;
  EXPECT_NE(message.find(says), message.npos) << message << "\nshould contain " << says;
  EXPECT_EQ(message.find('\n'), message.npos) << message;
}

TEST(Safetensors, ReadsTensorsInOrderOfNames) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},)"
      R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
      R"("empty":{"dtype":"F8_E4M3","shape":[0,9223372036854775807],"data_offsets":[16,16]}})";
  std::string bytes = file_of(header, 16);
  const float value = 1.5f;
  std::memcpy(bytes.data() + bytes.size() - 16, &value, 4);
  const std::vector<StoredTensor> tensors = parse_safetensors(std::as_bytes(std::span(bytes)), "x");
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].type, StoredType::f32);
  EXPECT_EQ(tensors[0].elements(), 1);
  float read = 0.0f;
  std::memcpy(&read, tensors[0].data.data(), 4);
  EXPECT_EQ(read, value);
  EXPECT_EQ(tensors[1].shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_STREQ(name_of(tensors[1].type), "BF16");
  EXPECT_EQ(tensors[1].elements(), 6);
  EXPECT_EQ(tensors[2].elements(), 0);
  const std::string none = file_of("{}", 0);
  EXPECT_TRUE(parse_safetensors(std::as_bytes(std::span(none)), "x").empty());
}

TEST(Safetensors, KnowsEveryTypeOfTheFormat) {
  for (const auto& [name, bits] : std::vector<std::pair<std::string, int>>{
           {"BOOL", 8}, {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
           {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},
           {"U16", 16}, {"F16", 16},    {"BF16", 16},   {"I32", 32},    {"U32", 32},
           {"F32", 32}, {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}}) {
    const std::string bytes = file_of(one('"' + name + '"', "[8]", "[0," + std::to_string(bits) + "]"),
                                      static_cast<std::size_t>(bits));
    const std::vector<StoredTensor> tensors = parse_safetensors(std::as_bytes(std::span(bytes)), "x");
    EXPECT_EQ(name_of(tensors.at(0).type), name);
    EXPECT_EQ(tensors.at(0).elements(), 8);
  }
}

TEST(Safetensors, RefusesBrokenFrames) {
  const std::string good = file_of(one(R"("F32")", "[2]", "[0,8]"), 8);
  EXPECT_EQ(error_of(good), "no error");
  for (std::size_t size = 0; size < good.size(); ++size) {
    expect_refused(good.substr(0, size), size < 8 ? "expected at least the 8" : "found");
  }
  expect_refused(good + "x", "found 9 bytes of data, expected 8");
  expect_refused(std::string(7, '\0') + '\x80' + "{}", "header length: found 9223372036854775808");
  expect_refused(std::string(8, '\xff') + "{}", "header length: found 18446744073709551615");
  expect_refused(std::string("\x03\0\0\0\0\0\0\0{}", 10),
                 "header length: found 3, expected at most the 2 bytes");
  expect_refused(file_of("", 0), "not valid JSON");
  expect_refused(file_of("[]", 0), "header: found [], expected an object");
  expect_refused(file_of("{", 0), "not valid JSON");
  expect_refused(file_of("{\"\xff\":1}", 0), "not valid JSON");
  expect_refused(file_of(R"({"w":1,"w":2})", 0), "key 'w' occurs twice");
  expect_refused(file_of(R"({"w":)" + std::string(200, '[') + std::string(200, ']') + "}", 0),
                 "nested deeper than 64");
}

TEST(Safetensors, RefusesLyingTensors) {
  struct Case {
    std::string header;
    std::size_t data;
    std::string says;
  };
  const std::string w = "tensor \"w\": ";
  const std::vector<Case> cases{
      {R"({"w":7})", 0, w + "found 7, expected an object"},
      {R"({"w":{"shape":[2],"data_offsets":[0,8]}})", 8, w + "dtype: found nothing"},
      {R"({"w":{"dtype":"F32","data_offsets":[0,8]}})", 8, w + "shape: found nothing"},
      {R"({"w":{"dtype":"F32","shape":[2]}})", 8, w + "data_offsets: found nothing"},
      {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8, w + "found field \"x\""},
      {one(R"("F33")", "[2]", "[0,8]"), 8, w + "dtype: found \"F33\""},
      {one("4", "[2]", "[0,8]"), 8, w + "dtype: found 4"},
      {one(R"("F32")", "2", "[0,8]"), 8, w + "shape: found 2"},
      {one(R"("F32")", "[-2]", "[0,8]"), 8, w + "shape: found -2"},
      {one(R"("F32")", "[2.0]", "[0,8]"), 8, w + "shape: found 2.0"},
      {one(R"("F32")", "[18446744073709551615]", "[0,8]"), 8, w + "shape: found 18446744073709551615"},
      {one(R"("F32")", "[4294967296,4294967296]", "[0,8]"), 8, w + "shape: found [4294967296, 4294967296]"},
      {one(R"("F32")", "[3]", "[0,8]"), 8, w + "data_offsets: found 8 bytes, expected 12 for F32 [3]"},
      {one(R"("BF16")", "[2]", "[0,8]"), 8, w + "data_offsets: found 8 bytes, expected 4 for BF16 [2]"},
      {one(R"("F4")", "[3]", "[0,2]"), 2, w + "shape: found [3]"},
      {one(R"("F32")", "[2]", "[0]"), 8, w + "data_offsets: found 1 integers, expected 2"},
      {one(R"("F32")", "[2]", "[8,0]"), 8, w + "data_offsets: found [8, 0]"},
      {one(R"("F32")", "[2]", "[8,16]"), 8,
       w + "data_offsets: found [8, 16], expected a range within the 8 bytes"},
      {one(R"("F32")", "[2]", "[9223372036854775800,9223372036854775807]"), 8,
       w + "data_offsets: found [92233"},
      {one(R"("F32")", "[2]", "[0,18446744073709551615]"), 8, w + "data_offsets: found 18446744073709551615"},
      {one(R"("F32")", "[1]", "[1,5]"), 5, w + "data_offsets: found the data at byte"},
      {one(R"("F32")", "[1]", "[4,8]"), 8, w + "data_offsets: found the begin 4, expected 0"},
      {one(R"("F32")", "[1]", "[0,4]"), 8, "found 8 bytes of data, expected 4"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"w":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
       6, w + "data_offsets: found the begin 2, expected 4"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
       4, "data_offsets: found the begin 0, expected 4"},
      {R"({"__metadata__":7})", 0, "__metadata__: found 7"},
      {R"({"__metadata__":{"format":7}})", 0, "__metadata__: \"format\": found 7, expected a string"},
  };
  for (const Case& bad : cases) expect_refused(file_of(bad.header, bad.data), bad.says);
}

TEST(Safetensors, FindsInReferenceFiles) {
  const SafetensorsFile file(fs::path(MLA_TEST_DATA) / "reference" / "v3-fp8" / "model.safetensors");
  const StoredTensor* weight = file.find("model.layers.0.self_attn.o_proj.weight");
  ASSERT_NE(weight, nullptr);
  EXPECT_EQ(weight->type, StoredType::f8_e4m3);
  EXPECT_EQ(weight->shape, (std::vector<std::int64_t>{192, 180}));
  const StoredTensor* scale = file.find("model.layers.0.self_attn.o_proj.weight_scale_inv");
  ASSERT_NE(scale, nullptr);
  EXPECT_EQ(scale->shape, (std::vector<std::int64_t>{2, 2}));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(scale->data.data()) % 4, 0u);
  EXPECT_EQ(file.find("model.layers.0"), nullptr);
  EXPECT_THROW(SafetensorsFile("/no/such/file.safetensors"), Error);
}

}  // namespace
}  // namespace mla
