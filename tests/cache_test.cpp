// The latent cache: bytes of a row, pages and their references, and long random lives against plain vectors.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <list>
#include <set>

#include "mla/cache/kv_cache.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::error_of;
using test::Random;

TEST(RowLayoutTest, CountsBytes) {
  struct {
    RowLayout layout;
    std::int64_t values, bytes, value_offset, head_bytes;
  } const cases[] = {
      {RowLayout::latent(512, 64, DType::bf16), 576, 1152, 0, 1152},
      {RowLayout::latent(512, 64, DType::f32), 576, 2304, 0, 2304},
      {RowLayout::latent(3, 0, DType::bf16), 3, 6, 0, 6},
      {RowLayout::heads(128, 192, 128, DType::bf16), 40960, 81920, 384, 640},
      {RowLayout::heads(2, 5, 3, DType::f32), 16, 64, 20, 32},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(c.layout.values(), c.values);
    EXPECT_EQ(c.layout.bytes(), c.bytes);
    EXPECT_EQ(c.layout.key_offset(), 0);
    EXPECT_EQ(c.layout.value_offset(), c.value_offset);
    EXPECT_EQ(c.layout.head_bytes(), c.head_bytes);
  }
  EXPECT_NE(error_of([] { RowLayout::latent(0, 64, DType::f32); }), "");
  EXPECT_NE(error_of([] { RowLayout::latent(8, -1, DType::f32); }), "");
  EXPECT_NE(error_of([] { RowLayout::heads(0, 1, 1, DType::f32); }), "");
  EXPECT_NE(error_of([] { RowLayout::heads(1, 0, 1, DType::f32); }), "");
  EXPECT_NE(error_of([] { RowLayout::heads(1, 1, 0, DType::f32); }), "");
  EXPECT_NE(error_of([] { RowLayout::latent(8, 2, DType::f16); }), "");
}

TEST(RowLayoutTest, ReadsWhatItWrote) {
  Random random(1);
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const std::int64_t d : {1, 7, 16, 33, 576}) {
      const RowLayout layout = RowLayout::latent(d, 2, type);
      const auto values = random.values(layout.values());
      std::vector<std::byte> row(static_cast<std::size_t>(layout.bytes() + 4), std::byte{0x5a});
      layout.write(values.data(), row.data());
      EXPECT_EQ(row[static_cast<std::size_t>(layout.bytes())], std::byte{0x5a}) << "wrote too far";
      std::vector<float> read(values.size() + 1, 7.0f);
      layout.read(row.data(), layout.values(), read.data());
      for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(read[i], test::rounded(values[i], type));
      EXPECT_EQ(read.back(), 7.0f);
    }
  }
}

TEST(KvViewTest, DenseTensorIsOnePage) {
  const RowLayout layout = RowLayout::heads(2, 3, 2, DType::f32);
  const std::vector<std::byte> memory(5 * 40);
  const std::byte* page = memory.data();
  const KvView view = dense_view(layout, page, 5);
  for (std::int64_t r = 0; r < 5; ++r) EXPECT_EQ(view.row(r), page + r * 40);
  EXPECT_EQ(view.length, 5);
  EXPECT_EQ(view.value_offset, 12);
  EXPECT_EQ(view.head_bytes, 20);
  EXPECT_EQ(dense_view(layout, page, 0).length, 0);
}

TEST(PagePoolTest, CountsReferencesAndReusesPages) {
  PagePool pool(RowLayout::latent(4, 2, DType::f32), 3, 5, 2);
  EXPECT_EQ(pool.layer_bytes(), 5 * 24);
  EXPECT_EQ(pool.page_bytes(), 3 * 5 * 24);
  const std::int64_t a = pool.take();
  std::byte* memory = pool.data(a);
  const std::int64_t b = pool.take();
  EXPECT_NE(a, b);
  EXPECT_EQ(pool.bytes_in_use(), 2 * 360);
  EXPECT_NE(error_of([&] { pool.take(); }).find("2 pages"), std::string::npos);
  EXPECT_EQ(pool.pages_in_use(), 2);
  EXPECT_EQ(pool.data(a), memory) << "pages never move";

  EXPECT_FALSE(pool.is_shared(a));
  pool.share(a);
  EXPECT_TRUE(pool.is_shared(a));
  pool.drop(a);
  EXPECT_FALSE(pool.is_shared(a));
  EXPECT_EQ(pool.pages_in_use(), 2);
  pool.drop(a);
  EXPECT_EQ(pool.pages_in_use(), 1);
  EXPECT_EQ(pool.data(pool.take()), memory) << "a free page is used again";

  EXPECT_NE(error_of([] { PagePool(RowLayout::latent(4, 2, DType::f32), 0, 5, 2); }), "");
  EXPECT_NE(error_of([] { PagePool(RowLayout::latent(4, 2, DType::f32), 1, 0, 2); }), "");
  EXPECT_NE(error_of([] { PagePool(RowLayout::latent(4, 2, DType::f32), 1, 5, -1); }), "");
  PagePool none(RowLayout::latent(4, 2, DType::f32), 1, 5, 0);
  EXPECT_NE(error_of([&] { none.take(); }), "");
}

TEST(PagePoolTest, PagesOfRowsOfAnEvenNumberOfLinesLieALineFurtherApart) {
  const auto distance = [](std::int64_t latent, std::int64_t page_rows) {
    PagePool pool(RowLayout::latent(latent, 64, DType::bf16), 1, page_rows, 2);
    const std::byte* first = pool.data(pool.take());
    return pool.data(pool.take()) - first - pool.page_bytes();
  };
  EXPECT_EQ(distance(512, 64), 64);  // 18 lines
  EXPECT_EQ(distance(480, 64), 0);   // 17 lines
  EXPECT_EQ(distance(512, 2), 0) << "of small pages it would be too much";
}

TEST(PagePoolTest, RowsOfWholeKibibytesLieALineFurtherApart) {
  auto pool = std::make_shared<PagePool>(RowLayout::heads(2, 64, 64, DType::f32), 2, 3, 4);
  EXPECT_EQ(pool->row_stride(), 1024 + 64);
  EXPECT_EQ(pool->page_bytes(), 2 * 3 * (1024 + 64));
  KvCache cache(pool);
  cache.extend(7);
  std::vector<float> values(256);
  const auto fill = [&](std::int64_t layer, std::int64_t t) {
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(1000 * layer + 100 * t) + static_cast<float>(i);
  };
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    for (std::int64_t t = 0; t < 7; ++t) {
      fill(layer, t);
      cache.write(layer, t, values.data());
    }
  }
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    const KvView view = cache.view(layer);
    EXPECT_EQ(view.row_bytes, pool->row_stride());
    EXPECT_EQ(view.head_bytes, 512);
    for (std::int64_t t = 0; t < 7; ++t) {
      fill(layer, t);
      EXPECT_EQ(std::memcmp(view.row(t), values.data(), 1024), 0) << layer << ' ' << t;
    }
  }
}

/// A cache and what it should hold: for each token, one number that all its values are made of.
struct Life {
  explicit Life(std::shared_ptr<PagePool> pool) : cache(std::move(pool)) {}
  Life(KvCache cache_, std::vector<float> tokens_) : cache(std::move(cache_)), tokens(std::move(tokens_)) {}
  KvCache cache;
  std::vector<float> tokens;
};

constexpr std::int64_t num_layers = 2, row_values = 5;

float value_of(float token, std::int64_t layer, std::int64_t i) {
  return token * 100 + static_cast<float>(layer * 10 + i);
}

void append(Life& life, std::int64_t count, float& next_token) {
  const std::int64_t before = life.cache.length();
  life.cache.extend(count);
  for (std::int64_t t = before; t < before + count; ++t) {
    life.tokens.push_back(next_token++);
    for (std::int64_t layer = 0; layer < num_layers; ++layer) {
      float row[row_values];
      for (std::int64_t i = 0; i < row_values; ++i) row[i] = value_of(life.tokens.back(), layer, i);
      life.cache.write(layer, t, row);
    }
  }
}

void expect_holds(const Life& life) {
  ASSERT_EQ(life.cache.length(), static_cast<std::int64_t>(life.tokens.size()));
  ASSERT_EQ(life.cache.pages(),
            (life.cache.length() + life.cache.pool().page_rows() - 1) / life.cache.pool().page_rows());
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    const KvView view = life.cache.view(layer);
    ASSERT_EQ(view.length, life.cache.length());
    for (std::int64_t t = 0; t < view.length; ++t) {
      float row[row_values];
      life.cache.pool().layout().read(view.row(t), row_values, row);
      for (std::int64_t i = 0; i < row_values; ++i)
        ASSERT_EQ(row[i], value_of(life.tokens[t], layer, i)) << t;
    }
  }
}

std::shared_ptr<PagePool> new_pool(std::int64_t page_rows, std::int64_t max_pages) {
  return std::make_shared<PagePool>(RowLayout::latent(3, 2, DType::f32), num_layers, page_rows, max_pages);
}

/// Pages that the caches' block tables name, each counted once.
std::int64_t distinct_pages(const std::list<Life>& lives) {
  std::set<const std::byte*> pages;
  for (const Life& life : lives)
    pages.insert(life.cache.view(0).pages, life.cache.view(0).pages + life.cache.pages());
  return static_cast<std::int64_t>(pages.size());
}

std::int64_t holders(const std::list<Life>& lives, const std::byte* page) {
  return std::count_if(lives.begin(), lives.end(), [&](const Life& life) {
    const auto* table = life.cache.view(0).pages;
    return std::find(table, table + life.cache.pages(), page) != table + life.cache.pages();
  });
}

TEST(KvCacheTest, RandomLivesMatchPlainVectors) {
  for (const std::int64_t page_rows : {1, 3, 8}) {
    Random random(static_cast<std::uint64_t>(page_rows));
    constexpr std::int64_t max_pages = 14;
    const auto pool = new_pool(page_rows, max_pages);
    std::list<Life> lives;
    lives.emplace_back(pool);
    float next_token = 1;
    std::int64_t refused = 0, copied = 0;
    for (int step = 0; step < 4000; ++step) {
      auto at = std::next(lives.begin(), random.below(static_cast<std::int64_t>(lives.size())));
      switch (random.below(8)) {
        case 0:
          if (lives.size() < 6) lives.emplace_back(at->cache.fork(), at->tokens);
          break;
        case 1:
          if (lives.size() > 1) lives.erase(at);
          break;
        case 2: {
          const std::int64_t length = random.below(at->cache.length() + 1);
          at->cache.truncate(length);
          at->tokens.resize(static_cast<std::size_t>(length));
          break;
        }
        case 3:  // moved here and there: the tokens move with the pages
          if (lives.size() > 1) at->cache = KvCache(std::move(at->cache));
          break;
        default: {
          const std::int64_t count = random.below(2 * page_rows + 3), length = at->cache.length();
          const bool copies = count > 0 && length % page_rows != 0 &&
                              holders(lives, at->cache.view(0).pages[length / page_rows]) > 1;
          const std::int64_t fresh =
              (length + count + page_rows - 1) / page_rows - at->cache.pages() + (copies ? 1 : 0);
          const bool fits = pool->pages_in_use() + fresh <= max_pages;
          const std::int64_t in_use = pool->pages_in_use();
          const std::string error = error_of([&] { append(*at, count, next_token); });
          ASSERT_EQ(error.empty(), fits) << error;
          ASSERT_TRUE(fits || pool->pages_in_use() == in_use) << "a refusal changes nothing";
          refused += !fits;
          copied += fits && copies;
        }
      }
      ASSERT_EQ(pool->pages_in_use(), distinct_pages(lives)) << step;
      ASSERT_EQ(pool->bytes_in_use(), distinct_pages(lives) * pool->page_bytes());
      for (const Life& life : lives) expect_holds(life);
    }
    EXPECT_GT(refused, 50) << "the walk must meet a full pool";
    EXPECT_GE(copied, page_rows > 1 ? 50 : 0) << "and shared last pages";
    lives.clear();
    EXPECT_EQ(pool->pages_in_use(), 0);
  }
}

TEST(KvCacheTest, ForksWriteApartInBothDirections) {
  const auto pool = new_pool(4, 100);
  for (const bool fork_writes_first : {true, false}) {
    std::list<Life> lives;
    float next = 1;
    append(lives.emplace_back(pool), 6, next);
    lives.emplace_back(lives.front().cache.fork(), lives.front().tokens);
    EXPECT_EQ(pool->pages_in_use(), 2) << "nothing is copied yet";
    append(fork_writes_first ? lives.back() : lives.front(), 1, next);
    EXPECT_EQ(pool->pages_in_use(), 3) << "only the page that is written";
    append(fork_writes_first ? lives.front() : lives.back(), 1, next);
    EXPECT_EQ(pool->pages_in_use(), 3) << "the other one is alone with its page now";
    for (const Life& life : lives) expect_holds(life);
    EXPECT_EQ(lives.front().cache.view(0).pages[0], lives.back().cache.view(0).pages[0])
        << "the full page stays shared";
  }
}

TEST(KvCacheTest, ForkAtAPageEndCopiesNothing) {
  const auto pool = new_pool(4, 100);
  Life a(pool);
  float next = 1;
  append(a, 8, next);
  Life b(a.cache.fork(), a.tokens);
  append(b, 1, next);
  append(a, 1, next);
  EXPECT_EQ(pool->pages_in_use(), 4);
  expect_holds(a);
  expect_holds(b);
}

TEST(KvCacheTest, TruncatedPastCanBeWrittenAgainBesideAFork) {
  const auto pool = new_pool(4, 100);
  Life a(pool);
  float next = 1;
  append(a, 8, next);
  Life b(a.cache.fork(), a.tokens);
  a.cache.truncate(6);
  a.tokens.resize(6);
  append(a, 2, next);
  expect_holds(a);
  expect_holds(b);
}

TEST(KvCacheTest, RefusalsLeaveItAsItWas) {
  const auto pool = new_pool(4, 3);
  Life life(pool);
  float next = 1;
  append(life, 9, next);
  for (const std::int64_t count : {std::int64_t{4}, std::int64_t{100}, std::int64_t{-1}}) {
    EXPECT_NE(error_of([&] { life.cache.extend(count); }), "") << count;
    expect_holds(life);
    EXPECT_EQ(pool->pages_in_use(), 3);
  }
  for (const std::int64_t length : {10, -1})
    EXPECT_NE(error_of([&] { life.cache.truncate(length); }), "") << length;
  life.cache.extend(0);
  expect_holds(life);
  append(life, 3, next);  // what was left of the last page
  expect_holds(life);
}

}  // namespace
}  // namespace mla
