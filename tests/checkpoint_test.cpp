// Checkpoint directories made here: one file or several, with every way that an index can be wrong.
#include "mla/model/checkpoint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "mla/core/error.h"
#include "mla/core/mapped_file.h"
#include "support/reference.h"

namespace mla {
namespace {

namespace fs = std::filesystem;

/// A new directory that goes away with the test.
class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    directory = fs::temp_directory_path() / ("mla_checkpoint_test_" + std::to_string(::getpid()));
    fs::remove_all(directory);
    fs::create_directories(directory);
  }
  void TearDown() override { fs::remove_all(directory); }

  void write(const fs::path& name, const std::string& text) {
    fs::create_directories((directory / name).parent_path());
    write_text(directory / name, text);
  }

  /// Writes a file of F32 tensors of two values each.
  void write_tensors(const std::string& file, const std::vector<std::string>& names) {
    std::string header = "{";
    for (std::size_t i = 0; i < names.size(); ++i) {
      header += (i ? ",\"" : "\"") + names[i] + R"(":{"dtype":"F32","shape":[2],"data_offsets":[)" +
                std::to_string(8 * i) + "," + std::to_string(8 * i + 8) + "]}";
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    std::string bytes(8, '\0');
    const std::uint64_t length = header.size();
    std::memcpy(bytes.data(), &length, 8);
    write(file, bytes + header + std::string(8 * names.size(), '\0'));
  }

  void expect_refused(const std::string& where, const std::string& says) {
    try {
      Checkpoint::open(directory);
      ADD_FAILURE() << "no error, expected " << says;
    } catch (const Error& error) {
      const std::string message = error.what();
      const std::string file = where.empty() ? directory.string() : (directory / where).string();
      EXPECT_EQ(message.find(file + ": "), 0u) << message;
      EXPECT_NE(message.find(says), message.npos) << message << "\nshould contain " << says;
    }
  }

  fs::path directory;
  const std::string index = "model.safetensors.index.json";
};

TEST_F(CheckpointTest, OneFile) {
  write_tensors("model.safetensors", {"a", "b"});
  const Checkpoint checkpoint = Checkpoint::open(directory);
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(checkpoint.total_bytes(), 16);
  EXPECT_EQ(checkpoint.file_of("b"), (directory / "model.safetensors").string());
  EXPECT_EQ(checkpoint.find("c"), nullptr);
  EXPECT_THROW(checkpoint.file_of("c"), Error);
}

TEST_F(CheckpointTest, SeveralFiles) {
  write_tensors("1.safetensors", {"a", "d"});
  write_tensors("2.safetensors", {"b"});
  write(
      index,
      R"({"metadata":{"total_size":24},"weight_map":{"a":"1.safetensors","b":"2.safetensors","d":"1.safetensors"}})");
  Checkpoint opened = Checkpoint::open(directory);
  const Checkpoint checkpoint = std::move(opened);  // tensors must survive the move
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b", "d"}));
  EXPECT_EQ(checkpoint.total_bytes(), 24);
  EXPECT_EQ(checkpoint.file_of("b"), (directory / "2.safetensors").string());
  EXPECT_EQ(checkpoint.tensor("d", {2}, {StoredType::f32}).data.size(), 8u);
}

TEST_F(CheckpointTest, RefusesDirectoriesWithoutWeights) {
  EXPECT_THROW(
      {
        try {
          Checkpoint::open(directory);
        } catch (const Error& error) {
          EXPECT_EQ(error.what(), directory.string() +
                                      ": found no weights, expected model.safetensors.index.json or "
                                      "model.safetensors");
          throw;
        }
      },
      Error);
}

TEST_F(CheckpointTest, RefusesWrongIndexes) {
  write_tensors("1.safetensors", {"a"});
  write_tensors("2.safetensors", {"b"});
  const std::string a = R"("a":"1.safetensors")";
  const std::string b = R"("b":"2.safetensors")";
  const auto index_of = [](const std::string& map) { return R"({"weight_map":{)" + map + "}}"; };
  struct Case {
    std::string text;
    std::string where;
    std::string says;
  };
  for (const Case& bad : std::vector<Case>{
           {"{", index, "not valid JSON"},
           {"{}", index, "weight_map: found nothing"},
           {R"({"weight_map":7})", index, "weight_map: found 7"},
           {index_of(""), index, "weight_map: found {}"},
           {index_of(a + R"(,"b":7)"), index, "weight_map: \"b\": found 7"},
           {index_of(a + "," + a), index, "key 'a' occurs twice"},
           {index_of(a + R"(,"b":"../2.safetensors")"), index,
            "weight_map: \"b\": found \"../2.safetensors\""},
           {index_of(a + R"(,"b":"/2.safetensors")"), index, "weight_map: \"b\": found \"/2.safetensors\""},
           {index_of(a + R"(,"b":"..")"), index, "weight_map: \"b\": found \"..\""},
           {index_of(a + R"(,"b":"")"), index, "weight_map: \"b\": found \"\""},
           {index_of(a + R"(,"b":"3.safetensors")"), "3.safetensors", "found no such file"},
           {index_of(a + "," + b + R"(,"c":"2.safetensors")"), index,
            "weight_map: \"c\": found no such tensor"},
           {index_of(a + R"(,"b":"1.safetensors")"), index, "weight_map: \"b\": found no such tensor"},
           {index_of(R"("a":"2.safetensors","b":"1.safetensors")"), index, "weight_map: \"a\": found it in"},
           {index_of(a + R"(,"c":"1.safetensors")"), index, "weight_map: \"c\": found no such tensor"},
       }) {
    write(index, bad.text);
    expect_refused(bad.where, bad.says);
  }
  write(index, index_of(a + "," + b));
  EXPECT_EQ(Checkpoint::open(directory).names().size(), 2u);
  write_tensors("2.safetensors", {"b", "surplus"});
  expect_refused("2.safetensors", "tensor \"surplus\": found it in the file, expected only what");
  write_tensors("2.safetensors", {"a", "b"});
  expect_refused("2.safetensors", "tensor \"a\": found it here and in");
  write_tensors("2.safetensors", {"b"});
  write_tensors("model.safetensors", {"a"});
  expect_refused("", "found a model.safetensors that model.safetensors.index.json leaves out");
}

TEST_F(CheckpointTest, RefusesBrokenFiles) {
  write("model.safetensors", "tiny");
  expect_refused("model.safetensors", "found 4 bytes");
  fs::remove(directory / "model.safetensors");
  fs::create_directories(directory / "model.safetensors");
  expect_refused("model.safetensors", "found a directory, expected a regular file");
}

TEST_F(CheckpointTest, ChecksTensorsOnDemand) {
  write_tensors("model.safetensors", {"a"});
  const Checkpoint checkpoint = Checkpoint::open(directory);
  const auto error_of = [&](std::string_view name, std::initializer_list<std::int64_t> shape,
                            StoredType type) {
    try {
      checkpoint.tensor(name, shape, {type, StoredType::bf16});
    } catch (const Error& error) {
      return std::string(error.what()).substr(directory.string().size());
    }
    return std::string("no error");
  };
  EXPECT_EQ(error_of("a", {2}, StoredType::f32), "no error");
  EXPECT_EQ(error_of("z", {2, 3}, StoredType::f32), ": tensor z: found nothing, expected F32 or BF16 [2, 3]");
  EXPECT_EQ(error_of("a", {3}, StoredType::f32),
            "/model.safetensors: tensor a: found F32 [2], expected F32 or BF16 [3]");
  EXPECT_EQ(error_of("a", {2}, StoredType::f16),
            "/model.safetensors: tensor a: found F32 [2], expected F16 or BF16 [2]");
}

TEST(Checkpoint, OpensEveryReference) {
  for (const std::string& name : test::reference_names()) {
    const Checkpoint checkpoint = Checkpoint::open(test::data() / "reference" / name);
    EXPECT_NE(checkpoint.find("model.embed_tokens.weight"), nullptr) << name;
    EXPECT_GT(checkpoint.total_bytes(), 400000);
  }
}

TEST(Memory, SaysWhatDoesNotFit) {
  constexpr std::int64_t gib = std::int64_t{1} << 30;
  EXPECT_NO_THROW(check_fits(gib, gib, "some/model"));
  try {
    check_fits(642 * gib + gib / 2, 20 * gib, "some/model");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "some/model: needs 642.5 GiB of memory, 20.0 GiB are available");
  }
}

TEST_F(CheckpointTest, AvailableMemoryMindsControlGroups) {
  EXPECT_GT(available_memory(), 0);
  EXPECT_THROW(available_memory(directory), Error);
  write("proc/meminfo", "MemTotal:  9000 kB\nMemAvailable:    4000 kB\n");
  EXPECT_EQ(available_memory(directory), 4000 * 1024);
  // Version 2: the group above sets the limit, half of what it uses are file pages; "max" is no limit.
  write("proc/self/cgroup", "0::/box/inner\n");
  write("sys/fs/cgroup/box/inner/memory.max", "max\n");
  write("sys/fs/cgroup/box/memory.max", "3000000\n");
  write("sys/fs/cgroup/box/memory.current", "2000000\n");
  write("sys/fs/cgroup/box/memory.stat", "anon 1000000\nfile 1000000\nfile_mapped 5\n");
  EXPECT_EQ(available_memory(directory), 2000000);
  // Version 1, in a container that sees its own group as the root.
  write("proc/self/cgroup", "4:cpu,memory:/not/here\n0::/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n");
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", "400000\n");
  write("sys/fs/cgroup/memory/memory.stat", "cache 7\ntotal_cache 100000\n");
  EXPECT_EQ(available_memory(directory), 700000);
}

}  // namespace
}  // namespace mla
