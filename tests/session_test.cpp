// One conversation: chunks, forgetting, forking, refusals, what it keeps in memory; and the embedded model's
// answers.
#include "mla/runtime/session.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "support/oracle.h"
#include "support/reference.h"

#if defined(__SANITIZE_ADDRESS__)
#define MLA_NO_MALLOC_COUNTS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MLA_NO_MALLOC_COUNTS 1
#endif
#endif

namespace mla {
namespace {

using Ids = std::vector<std::int32_t>;
using test::error_of;

constexpr MlaForm forms[] = {MlaForm::decompress, MlaForm::absorb};

SessionOptions options(MlaForm form = MlaForm::absorb, std::int64_t chunk = 512,
                       std::int64_t page_rows = 64) {
  SessionOptions o;
  o.form = form;
  o.chunk = chunk;
  o.page_rows = page_rows;
  return o;
}

std::vector<float> copy(std::span<const float> x) {
  return {x.begin(), x.end()};
}

/// A small model and tokens for it.
class SessionTest : public testing::Test {
 protected:
  Ids part(std::size_t begin, std::size_t end) const { return {ids.begin() + begin, ids.begin() + end}; }
  std::vector<float> answer(const SessionOptions& o, const Ids& all) const {
    return copy(Session(model, o).feed(all));
  }

  const test::Threads one{1};  // reference_test.cpp takes several: the bits are the same
  const test::Reference reference = test::load_reference("v3");
  const Ids ids = reference.ids;  // 96
  const Transformer model = Transformer::load(reference.directory);
};

TEST_F(SessionTest, AllWaysOfFeedingGiveTheSameBits) {
  for (const MlaForm form : forms) {
    const std::int64_t vocab = model.config().vocab_size;
    std::vector<float> all(ids.size() * static_cast<std::size_t>(vocab));
    Session(model, options(form)).feed_all(ids, {all.data(), 96, vocab});
    const std::vector<float> last(all.end() - vocab, all.end());
    EXPECT_EQ(answer(options(form), ids), last);
    EXPECT_EQ(answer(options(form, 5, 3), ids), last) << "chunks and pages of odd sizes";
    Session piecewise(model, options(form, 64, 1));
    piecewise.append(part(0, 1));
    EXPECT_EQ(copy(piecewise.feed(part(1, 40))),
              std::vector<float>(all.begin() + 39 * vocab, all.begin() + 40 * vocab));
    piecewise.append(part(40, 95));
    EXPECT_EQ(copy(piecewise.feed(part(95, 96))), last);
    EXPECT_EQ(piecewise.length(), 96);
    const auto trace = Session(model, options(form)).feed_traced(ids);
    EXPECT_EQ(static_cast<std::int64_t>(trace.size()),
              (model.config().num_layers + 1) * 96 * model.config().hidden_size);
  }
}

TEST_F(SessionTest, ForgettingAndFeedingAgainGivesTheSameBits) {
  for (const MlaForm form : forms) {
    const auto expected = answer(options(form, 512, 8), ids);
    Session session(model, options(form, 512, 8));
    session.feed(ids);
    for (const std::size_t kept : {95u, 90u, 88u, 17u, 1u, 0u}) {
      session.truncate(static_cast<std::int64_t>(kept));
      EXPECT_EQ(session.length(), static_cast<std::int64_t>(kept));
      session.feed(Ids(96 - kept, 7));  // something else lies there now
      session.truncate(static_cast<std::int64_t>(kept));
      EXPECT_EQ(copy(session.feed(part(kept, 96))), expected) << kept;
    }
    EXPECT_NE(error_of([&] { session.truncate(97); }), "");
    EXPECT_NE(error_of([&] { session.truncate(-1); }), "");
    EXPECT_EQ(session.length(), 96);
  }
}

TEST_F(SessionTest, ForksGoTheirOwnWay) {
  for (const std::int64_t page_rows : {1, 8, 64}) {
    const SessionOptions o = options(MlaForm::absorb, 16, page_rows);
    auto original = std::make_unique<Session>(model, o);
    original->feed(part(0, 30));
    Session fork = original->fork();
    const std::int64_t in_use = original->cache().pool().pages_in_use();
    EXPECT_EQ(in_use, (30 + page_rows - 1) / page_rows) << "pages are shared";
    const auto ours = copy(original->feed(part(30, 60)));
    const auto theirs = copy(fork.feed(part(50, 80)));
    EXPECT_EQ(ours, answer(o, part(0, 60)));
    Ids other = part(0, 30);
    other.insert(other.end(), ids.begin() + 50, ids.begin() + 80);
    EXPECT_EQ(theirs, answer(o, other));
    Session second = fork.fork();
    original.reset();
    second.truncate(30);
    EXPECT_EQ(copy(second.feed(part(30, 60))), ours) << "the past outlives the conversation that made it";
    EXPECT_EQ(fork.length(), 60);
  }
}

TEST_F(SessionTest, RefusalsLeaveTheConversationAsItWas) {
  SessionOptions o = options(MlaForm::absorb, 4, 8);
  o.max_tokens = 40;
  Session session(model, o);
  session.feed(part(0, 30));
  const auto vocab = static_cast<std::int32_t>(model.config().vocab_size);
  const std::pair<Ids, std::string> cases[] = {
      {{}, "no tokens"},
      {part(30, 41), "expected at most 40"},
      {{1, 2, 3, 4, 5, 6, -1}, "found -1"},
      {{vocab}, "found 320, expected 0 to 319"},
      {{1, std::numeric_limits<std::int32_t>::max()}, "2147483647"},
      {{std::numeric_limits<std::int32_t>::min()}, "-2147483648"},
  };
  std::vector<float> out(64 * static_cast<std::size_t>(vocab));
  for (const auto& [bad, says] : cases) {
    const auto count = static_cast<std::int64_t>(bad.size());
    for (const std::string& message :
         {error_of([&bad = bad, &session] { session.feed(bad); }),
          error_of([&bad = bad, &session] { session.append(bad); }),
          error_of([&bad = bad, &session] { session.feed_traced(bad); }), error_of([&, &bad = bad] {
            session.feed_all(bad, {out.data(), count, vocab});
          })}) {
      EXPECT_NE(message.find(says), message.npos) << message << ", expected " << says;
    }
    EXPECT_EQ(session.length(), 30);
    EXPECT_EQ(session.cache().pool().pages_in_use(), 4);
  }
  EXPECT_EQ(copy(session.feed(part(30, 40))), answer(options(), part(0, 40))) << "exactly to the limit";
  EXPECT_NE(error_of([&] { session.feed(part(40, 41)); }), "");
  EXPECT_EQ(session.length(), 40);
}

TEST_F(SessionTest, RefusesBadOptions) {
  const auto refused = [&](auto change) {
    SessionOptions o;
    change(o);
    return !error_of([&] { Session session(model, o); }).empty();
  };
  EXPECT_FALSE(refused([](SessionOptions&) {}));
  EXPECT_FALSE(refused([](SessionOptions& o) { o.max_tokens = 128; }));
  EXPECT_TRUE(refused([](SessionOptions& o) { o.max_tokens = 129; })) << "beyond max_position_embeddings";
  EXPECT_TRUE(refused([](SessionOptions& o) { o.max_tokens = -1; }));
  EXPECT_TRUE(refused([](SessionOptions& o) { o.chunk = 0; }));
  EXPECT_TRUE(refused([](SessionOptions& o) { o.page_rows = 0; }));
  EXPECT_TRUE(refused([](SessionOptions& o) { o.compute = DType::f16; }));
  EXPECT_TRUE(refused([](SessionOptions& o) { o.cache_type = DType::f16; }));
}

TEST_F(SessionTest, PagesHoldTheRowsAndNothingElse) {
  const std::pair<DType, std::int64_t> row_bytes[] = {
      {DType::f32, 160}, {DType::bf16, 80}, {DType::f8_e4m3, 52}, {DType::i8, 64}};
  for (const auto& [type, bytes] : row_bytes) {
    SessionOptions o = options(MlaForm::absorb, 512, 8);
    o.cache_type = type;
    Session session(model, o);
    EXPECT_EQ(session.cache().pool().bytes_in_use(), 0);
    for (const std::size_t length : {1u, 8u, 9u, 96u}) {
      session.feed(part(static_cast<std::size_t>(session.length()), length));
      const std::int64_t rows = (static_cast<std::int64_t>(length) + 7) / 8 * 8;
      EXPECT_EQ(session.cache().pool().bytes_in_use(), rows * 3 * bytes) << "3 layers of c_kv and k_rope";
    }
  }
}

/// The embedded model, and what transformers says about it.
class EmbeddedModelTest : public testing::Test {
 protected:
  const test::Threads one{1};
  const Transformer model = Transformer::load(std::filesystem::path(MLA_SOURCE_DIR) / "models" / "default");
  const nlohmann::json reference =
      parse_json(read_text(test::data() / "default" / "reference.json"), "reference.json");
  const Ids ids = reference.at("ids").get<Ids>();
};

TEST_F(EmbeddedModelTest, LogitsOfHeldBackTextAreTransformers) {
  const NpyArray expected = read_npy(test::data() / "default" / "logits.npy");
  const std::int64_t count = 64;  // of the ids
  ASSERT_EQ(expected.shape, (std::vector<std::int64_t>{count, model.config().vocab_size}));
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb, MlaForm::automatic}) {
    std::vector<float> logits(expected.data.size());
    Session(model, options(form, 25))
        .feed_all(std::span(ids).first(count), {logits.data(), count, model.config().vocab_size});
    const auto d = test::difference(expected.data, logits);
    RecordProperty("max_of_form_" + std::to_string(static_cast<int>(form)), std::to_string(d.max));
    RecordProperty("mean_of_form_" + std::to_string(static_cast<int>(form)), std::to_string(d.mean));
    EXPECT_LE(d.max, 1e-4);
    EXPECT_LE(d.mean, 1e-5);
  }
}

TEST_F(EmbeddedModelTest, GreedyTextIsTransformers) {
  const auto expected = reference.at("greedy").get<Ids>();
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb, MlaForm::automatic}) {
    Session session(model, options(form));
    auto logits = session.feed(reference.at("greedy_prompt").get<Ids>());
    Ids found;
    while (found.size() < expected.size()) {
      found.push_back(
          static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
      logits = session.feed(std::span(found).last(1));
    }
    EXPECT_EQ(found, expected) << static_cast<int>(form);
  }
}

/// Bytes that malloc has given out.
[[maybe_unused]] std::int64_t allocated() {
  const auto info = ::mallinfo2();
  return static_cast<std::int64_t>(info.uordblks + info.hblkhd);
}

/// What a longer conversation holds more is its pages, and a few bytes for each page's place in the block
/// table.
TEST_F(EmbeddedModelTest, NothingButTheCacheGrowsWithLength) {
#ifdef MLA_NO_MALLOC_COUNTS
  GTEST_SKIP() << "the sanitizer's allocator does not count";
#else
  for (const auto& [form, chunk] : {std::pair{MlaForm::absorb, 1}, std::pair{MlaForm::decompress, 32}}) {
    Session session(model, options(form, chunk));
    const auto feed = [&](std::int64_t count) {
      Ids some(static_cast<std::size_t>(count));
      for (std::size_t i = 0; i < some.size(); ++i)
        some[i] = ids[(i + static_cast<std::size_t>(session.length())) % ids.size()];
      session.append(some);
    };
    feed(576);  // beyond the part of 512 rows that decompressing and attending work on at a time
    for (const std::int64_t more : {64, 320}) {
      const std::int64_t before = allocated(), pages = session.cache().pool().bytes_in_use();
      feed(more);
      const std::int64_t growth = allocated() - before,  // pages do not come from malloc
          page_growth = session.cache().pool().bytes_in_use() - pages;
      EXPECT_EQ(page_growth, more * 4 * (64 + 16) * 4) << "4 layers of 64 + 16 values in f32";
      EXPECT_NEAR(static_cast<double>(growth), 0, 4096) << "beside the pages, after " << more << " tokens";
    }
  }
#endif
}

}  // namespace
}  // namespace mla
