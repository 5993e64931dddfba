// Written files read back; writes that fail; checkpoints that are replaced while the writer is killed.
#include "mla/model/safetensors_writer.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <limits>

#include "mla/core/directory_update.h"
#include "mla/core/file_update.h"
#include "mla/core/mapped_file.h"
#include "support/oracle.h"

namespace mla {
namespace {

namespace fs = std::filesystem;
using test::error_of;

/// A directory of this test alone, removed with it.
class WriterTest : public ::testing::Test {
 protected:
  WriterTest() { fs::create_directories(root_); }
  ~WriterTest() override { fs::remove_all(root_); }

  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(root_)) found.push_back(entry.path().filename().string());
    std::ranges::sort(found);
    return found;
  }

  // In memory where there is such a place: hundreds of checkpoints are written and waited for.
  const fs::path root_ = (::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : fs::temp_directory_path()) /
                         fmt::format("mla_writer_{}_{}", ::getpid(),
                                     ::testing::UnitTest::GetInstance()->current_test_info()->name());
};

using SafetensorsWriterTest = WriterTest;
using DirectoryUpdateTest = WriterTest;

template <class T>
std::vector<T> values_of(const StoredTensor& tensor) {
  std::vector<T> values(tensor.data.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

TEST_F(SafetensorsWriterTest, ReaderReadsWhatWasWritten) {
  const fs::path path = root_ / "model.safetensors";
  for (const std::int64_t count : {0, 1, 7, 1000, (1 << 16) + 3}) {  // more than one chunk of rounding
    const std::vector<float> floats = test::Random(1).values(count);
    const std::vector<std::int64_t> integers{-1, INT64_MAX, INT64_MIN};
    const std::vector<TensorToWrite> tensors{
        {"b.odd", {count}, floats, StoredType::bf16},
        {"a", {1, count}, floats, StoredType::f32},
        {"step \"1\"\n\u00e9", {3}, integers, StoredType::i64},
        {"A", {count, 1, 1}, floats, StoredType::bf16},
        {"scalar", {}, std::span<const std::int64_t>(integers).first(1), StoredType::i64},
    };
    write_safetensors(path, tensors);
    const SafetensorsFile file(path);
    ASSERT_EQ(file.tensors().size(), tensors.size());
    for (const TensorToWrite& tensor : tensors) {
      const StoredTensor* found = file.find(tensor.name);
      ASSERT_NE(found, nullptr) << tensor.name;
      EXPECT_EQ(found->shape, tensor.shape);
      EXPECT_EQ(found->type, tensor.type);
    }
    EXPECT_EQ(values_of<float>(*file.find("a")), floats);
    std::vector<std::uint16_t> rounded;
    for (const float x : floats) rounded.push_back(test::nearest_bf16(x));
    EXPECT_EQ(values_of<std::uint16_t>(*file.find("A")), rounded);
    EXPECT_EQ(values_of<std::uint16_t>(*file.find("b.odd")), rounded);
    EXPECT_EQ(values_of<std::int64_t>(*file.find(tensors[2].name)), integers);
    EXPECT_EQ(names(), std::vector<std::string>{"model.safetensors"});
  }
}

TEST_F(SafetensorsWriterTest, HeaderIsSortedAndAligned) {
  const std::vector<float> two{1.0f, 2.0f};
  const std::vector<TensorToWrite> tensors{{"b", {2}, two, StoredType::bf16},
                                           {"a", {2}, two, StoredType::f32}};
  write_safetensors(root_ / "x", tensors);
  const std::string text = read_text(root_ / "x");
  std::uint64_t length = 0;
  std::memcpy(&length, text.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  const std::string header = text.substr(8, length);
  EXPECT_EQ(header.substr(0, header.find_last_not_of(' ') + 1),
            R"({"__metadata__":{"format":"pt"},"a":{"data_offsets":[0,8],"dtype":"F32","shape":[2]},)"
            R"("b":{"data_offsets":[8,12],"dtype":"BF16","shape":[2]}})");
  write_safetensors(root_ / "none", {}, {});
  EXPECT_EQ(read_text(root_ / "none").substr(8), "{}      ");
}

TEST_F(SafetensorsWriterTest, RefusesTensorsThatAreNone) {
  const std::vector<float> two(2);
  const std::vector<std::int64_t> integers(2);
  const std::string path = (root_ / "x").string();
  const auto written = [&](std::vector<TensorToWrite> tensors) {
    return error_of([&] { write_safetensors(path, tensors); });
  };
  EXPECT_EQ(written({{"w", {3}, two, StoredType::f32}}),
            path + ": tensor w: found 2 values, expected the shape [3]");
  EXPECT_EQ(written({{"w", {2}, integers, StoredType::f32}}),
            path + ": tensor w: type: found F32, expected I64 for integers");
  EXPECT_EQ(written({{"w", {2}, two, StoredType::f32}, {"w", {2}, two, StoredType::f32}}),
            path + ": tensor w: found twice, expected once");
  EXPECT_NE(written({{"w", {2}, two, StoredType::f16}}), "");
  EXPECT_NE(written({{"w", {-2, -1}, two, StoredType::f32}}), "");
  EXPECT_NE(written({{"w", {INT64_MAX, 4}, two, StoredType::f32}}), "");
  EXPECT_NE(written({{"__metadata__", {2}, two, StoredType::f32}}), "");
  EXPECT_NE(written({{"\xff", {2}, two, StoredType::f32}}), "");
  EXPECT_TRUE(names().empty());
}

/// While this lives, writes beyond `bytes` of a file fail as on a full disk.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    handler_ = ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }
  FullDisk(const FullDisk&) = delete;

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

TEST_F(SafetensorsWriterTest, AFullDiskLeavesTheOldFile) {
  const fs::path path = root_ / "model.safetensors";
  const std::vector<float> few(10, 1.0f), many(100000, 2.0f);
  write_safetensors(path, std::vector<TensorToWrite>{{"w", {10}, few, StoredType::f32}});
  for (const StoredType type : {StoredType::f32, StoredType::bf16}) {
    std::string message;
    {
      const FullDisk disk(50000);
      message = error_of([&] {
        write_safetensors(path, std::vector<TensorToWrite>{{"w", {100000}, many, type}});
      });
    }
    EXPECT_EQ(message, path.string() + ": can't write: File too large");
    EXPECT_EQ(names(), std::vector<std::string>{"model.safetensors"});
    EXPECT_EQ(values_of<float>(*SafetensorsFile(path).find("w")), few);
  }
}

TEST_F(SafetensorsWriterTest, PlacesThatCantBeWritten) {
  const std::vector<float> one(1);
  const std::vector<TensorToWrite> tensors{{"w", {1}, one, StoredType::f32}};
  const std::string missing = (root_ / "missing" / "x").string();
  EXPECT_EQ(error_of([&] { write_safetensors(missing, tensors); }),
            missing + ": can't create: No such file or directory");
  fs::create_directories(root_ / "directory");
  const std::string taken = (root_ / "directory").string();
  EXPECT_EQ(error_of([&] { write_safetensors(taken, tensors); }), taken + ": can't replace: Is a directory");
  EXPECT_EQ(names(), std::vector<std::string>{"directory"});
}

/// A checkpoint of three files that all say which version it is.
const std::vector<std::string> checkpoint_files{"config.json", "model.safetensors", "state"};

void publish(const fs::path& directory, int version, DirectoryUpdate::Exchange exchange, std::size_t size) {
  DirectoryUpdate update(directory, exchange);
  for (const std::string& name : checkpoint_files)
    write_text(update.partial() / name, fmt::format("{:>{}}", version, size));
  update.publish();
}

/// The version of the checkpoint; -1 unless it is whole.
int version_of(const fs::path& directory, std::size_t size) {
  int version = -1;
  for (const std::string& name : checkpoint_files) {
    if (!fs::exists(directory / name)) return -1;
    const std::string text = read_text(directory / name);
    if (text.size() != size) return -1;
    const int found = std::stoi(text);
    if (version >= 0 && found != version) return -1;
    version = found;
  }
  return version;
}

constexpr auto both_ways = {DirectoryUpdate::Exchange::where_possible, DirectoryUpdate::Exchange::never};

TEST_F(DirectoryUpdateTest, ReplacesAndLeavesNothingBeside) {
  for (const auto exchange : both_ways) {
    fs::remove_all(root_ / "out");
    for (int version = 0; version < 3; ++version) {
      publish(root_ / "out" / "", version, exchange, 100);  // a slash at the end
      EXPECT_EQ(version_of(root_ / "out", 100), version);
      EXPECT_EQ(names(), std::vector<std::string>{"out"});
    }
    {
      const DirectoryUpdate update(root_ / "out", exchange);
      write_text(update.partial() / "state", "not published");
    }
    EXPECT_EQ(version_of(root_ / "out", 100), 2);
    EXPECT_EQ(names(), std::vector<std::string>{"out"});
  }
}

TEST_F(DirectoryUpdateTest, FollowsALink) {
  publish(root_ / "real", 1, DirectoryUpdate::Exchange::where_possible, 100);
  fs::create_directory_symlink(root_ / "real", root_ / "link");
  publish(root_ / "link", 2, DirectoryUpdate::Exchange::where_possible, 100);
  EXPECT_TRUE(fs::is_symlink(root_ / "link"));
  EXPECT_EQ(version_of(root_ / "real", 100), 2);
}

TEST_F(DirectoryUpdateTest, DeletesNothingThatIsNotOurs) {
  const fs::path out = root_ / "out";
  for (const auto exchange : both_ways) {
    publish(out, 1, exchange, 100);
    write_text(out / "notes", "mine");
    EXPECT_EQ(
        error_of([&] { publish(out, 2, exchange, 100); }),
        out.string() + ": found notes, expected only files that the new directory replaces: not deleted");
    fs::remove(out / "notes");
    fs::create_directories(out / "sub");
    EXPECT_EQ(error_of([&] { publish(out, 2, exchange, 100); }),
              out.string() + ": found sub, which is no regular file, expected a directory of files only");
    fs::remove(out / "sub");
    EXPECT_EQ(version_of(out, 100), 1);
    EXPECT_EQ(names(), std::vector<std::string>{"out"});
  }
  EXPECT_EQ(error_of([&] { publish(root_ / "no" / "out", 1, DirectoryUpdate::Exchange::never, 100); }),
            (root_ / "no" / "out.partial").string() + ": can't create: No such file or directory");
  EXPECT_NE(error_of([] { DirectoryUpdate update("/"); }), "");
  write_text(root_ / "file", "mine");
  EXPECT_NE(error_of([&] { publish(root_ / "file", 1, DirectoryUpdate::Exchange::never, 100); }), "");
  EXPECT_EQ(read_text(root_ / "file"), "mine");
}

TEST_F(DirectoryUpdateTest, RecoversFromBetweenTheTwoSteps) {
  const fs::path out = root_ / "out";
  publish(out, 1, DirectoryUpdate::Exchange::never, 100);
  fs::rename(out, root_ / "out.partial-old");
  fs::create_directories(root_ / "out.partial");
  recover_directory(out);
  EXPECT_EQ(version_of(out, 100), 1);
  publish(out, 2, DirectoryUpdate::Exchange::never, 100);
  EXPECT_EQ(version_of(out, 100), 2);
  EXPECT_EQ(names(), std::vector<std::string>{"out"});
}

/// Publishes one version after another, and says after each that it is done, until it is killed.
[[noreturn]] void publish_for_ever(const fs::path& out, int version, DirectoryUpdate::Exchange exchange,
                                   int done) {
  try {
    for (;; ++version) {
      publish(out, version, exchange, 20000);
      if (::write(done, &version, sizeof version) != sizeof version) break;
    }
  } catch (const std::exception& error) {
    const char* text = error.what();
    if (::write(2, text, std::strlen(text)) < 0) ::_exit(2);
  }
  ::_exit(1);
}

TEST_F(DirectoryUpdateTest, IsWholeWheneverTheWriterIsKilled) {
  const fs::path out = root_ / "out";
  test::Random random(9);
  int version = 0;
  publish(out, version, DirectoryUpdate::Exchange::where_possible, 20000);
  for (int round = 0; round < 200; ++round) {
    const auto exchange =
        round % 2 ? DirectoryUpdate::Exchange::never : DirectoryUpdate::Exchange::where_possible;
    int done[2];
    ASSERT_EQ(::pipe(done), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) publish_for_ever(out, version + 1, exchange, done[1]);
    ::close(done[1]);
    ::usleep(static_cast<useconds_t>(random.below(4000)));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself";
    int said = version;
    while (::read(done[0], &said, sizeof said) == sizeof said) {
    }
    ::close(done[0]);
    // Found without help, unless it was killed between two steps.
    if (exchange == DirectoryUpdate::Exchange::never) recover_directory(out);
    const int found = version_of(out, 20000);
    ASSERT_GE(found, said) << "round " << round;
    ASSERT_LE(found, said + 1) << "round " << round;
    version = found;
  }
  EXPECT_GT(version, 50) << "too few versions were published for the test to mean much";
}

}  // namespace
}  // namespace mla
