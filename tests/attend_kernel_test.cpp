// The kernels that attend in f32, of every instruction set and row type, against the definition in double;
// and a query's bits against its company. Rows end at an unreadable page.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "mla/core/buffer.h"
#include "mla/kernels/attend.h"
#include "support/edge.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Edge;
using test::Random;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

/// Rows of [key | value], or of a key whose first part is the value, in runs of four; what lies behind the
/// last row is zero.
struct Rows {
  Rows(DType type_, std::int64_t count_, std::int64_t d_qk_, std::int64_t d_v_, bool is_latent, double spread,
       Random& random)
      : type(type_), count(count_), d_qk(d_qk_), d_v(d_v_), value_at(is_latent ? 0 : d_qk_) {
    width = std::max(d_qk, value_at + d_v);
    values = random.values(count * width);
    for (std::int64_t i = 0; i < count * width; ++i)
      values[i] = test::rounded(values[i] * (i % width < d_qk ? static_cast<float>(spread) : 1.0f), type);
    store();
  }
  void store() {
    memory.clear();
    runs.clear();
    for (std::int64_t first = 0; first < count; first += AttendRows::run) {
      const std::int64_t element = size_of(type), size = AttendRows::run * width;
      memory.push_back(std::make_unique<Edge<std::byte>>(size * element));
      std::byte* to = memory.back()->data();
      for (std::int64_t i = 0; i < size; ++i, to += element) {
        const float value = first * width + i < count * width ? values[first * width + i] : 0.0f;
        const std::uint16_t narrow = type == DType::f16 ? to_f16(value) : to_bf16(value).bits;
        std::memcpy(to, type == DType::f32 ? static_cast<const void*>(&value) : &narrow,
                    static_cast<std::size_t>(element));
      }
      runs.push_back(memory.back()->data());
    }
  }
  const float* row(std::int64_t i) const { return values.data() + i * width; }

  DType type;
  std::int64_t count, d_qk, d_v, value_at, width;
  std::vector<float> values;
  std::vector<std::unique_ptr<Edge<std::byte>>> memory;
  std::vector<const std::byte*> runs;
};

struct Sums {
  std::vector<float> max, sum, acc;
  bool has_bits_of(const Sums& all, std::int64_t query, std::int64_t d_v) const {
    return std::memcmp(max.data(), &all.max[query], 4) == 0 &&
           std::memcmp(sum.data(), &all.sum[query], 4) == 0 &&
           std::memcmp(acc.data(), &all.acc[query * d_v], static_cast<std::size_t>(d_v) * 4) == 0;
  }
};

/// Attends to the rows in parts of `part` rows; visible counts from the first row of all.
Sums run(const AttendKernel& kernel, const QueryKinds& kinds, const std::vector<float>& queries,
         const std::vector<std::int64_t>& visible, const Rows& rows,
         std::int64_t part = AttendRows::max_count) {
  const std::int64_t count = kinds.count(), element = size_of(rows.type);
  std::vector<const float*> query_rows;
  for (std::int64_t i = 0; i < count; ++i) query_rows.push_back(queries.data() + i * rows.d_qk);
  Buffer<std::byte> packed(kernel.packed_bytes(kinds, rows.d_qk, rows.d_v)),
      state(kernel.state_bytes(kinds, rows.d_v));
  kernel.pack(query_rows.data(), kinds, rows.d_qk, rows.d_v, packed.data());
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(rows.d_qk)));
  const AttendQueries q{packed.data(), kinds, rows.d_qk, rows.d_v, scale};
  std::memset(state.data(), 0xff, static_cast<std::size_t>(state.size()));
  kernel.begin(q, state.data());
  for (std::int64_t first = 0; first < rows.count; first += part) {
    const std::int64_t here = std::min(part, rows.count - first);
    std::vector<std::int32_t> seen;
    for (const std::int64_t n : visible)
      seen.push_back(static_cast<std::int32_t>(std::clamp(n - first, std::int64_t{0}, here)));
    const std::int64_t most = *std::max_element(seen.begin(), seen.end());
    if (most == 0) continue;
    kernel.attend(q,
                  {rows.runs.data() + first / AttendRows::run, rows.width * element, most,
                   rows.count - first - most, seen.data(), 0, rows.value_at * element},
                  state.data());
  }
  Sums sums{std::vector<float>(static_cast<std::size_t>(count), -infinity),
            std::vector<float>(static_cast<std::size_t>(count)),
            std::vector<float>(static_cast<std::size_t>(count * rows.d_v))};
  std::vector<AttendSums> into;
  for (std::int64_t i = 0; i < count; ++i)
    into.push_back({&sums.max[i], &sums.sum[i], &sums.acc[i * rows.d_v]});
  kernel.fold(q, state.data(), nullptr, into.data());
  return sums;
}

/// Each query against the definition. The tolerances are those of attention_test.cpp; the error of a score
/// grows with its size.
void check_answer(const Sums& sums, const std::vector<float>& queries,
                  const std::vector<std::int64_t>& visible, const Rows& rows, double spread) {
  for (std::size_t i = 0; i < visible.size(); ++i) {
    if (visible[i] == 0) {
      EXPECT_EQ(sums.sum[i], 0.0f);
      EXPECT_EQ(sums.max[i], -infinity);
      continue;
    }
    const test::PlainRows plain{rows.values, visible[i], rows.width, rows.value_at, rows.width};
    const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(rows.d_qk)));
    const auto expected =
        test::plain_attention({1, 1, rows.d_qk, rows.d_v, scale, false},
                              {queries.data() + static_cast<std::int64_t>(i) * rows.d_qk, 1, 0, 0}, plain);
    const double tolerance = 2e-6 * (1 + spread);
    ASSERT_NEAR(sums.max[i] + std::log(sums.sum[i]), expected.lse[0],
                tolerance * std::max(1.0, std::abs(expected.lse[0])))
        << "query " << i << " of " << visible.size() << " sees " << visible[i];
    for (std::int64_t d = 0; d < rows.d_v; ++d) {
      ASSERT_NEAR(sums.acc[static_cast<std::int64_t>(i) * rows.d_v + d] / sums.sum[i], expected.out[d],
                  tolerance * expected.weight[d] + 1e-30)
          << "query " << i << " of " << visible.size() << " sees " << visible[i] << " d_qk " << rows.d_qk
          << " d_v " << rows.d_v << " rows " << rows.count;
    }
  }
}

/// How many rows each query sees: within a kind rising, by up to `step` from query to query.
std::vector<std::int64_t> rising(const QueryKinds& kinds, std::int64_t rows, std::int64_t step,
                                 Random& random) {
  std::vector<std::int64_t> visible;
  for (const std::int64_t count : {kinds.eights, kinds.fours, kinds.twos, kinds.ones}) {
    std::vector<std::int64_t> falling;
    std::int64_t n = rows;
    for (std::int64_t i = 0; i < count; ++i, n = std::max(std::int64_t{0}, n - random.below(step + 1)))
      falling.push_back(n);
    visible.insert(visible.end(), falling.rbegin(), falling.rend());
  }
  return visible;
}

using Param = std::tuple<Isa, DType>;

class AttendKernelTest : public testing::TestWithParam<Param> {
 protected:
  const AttendKernel& kernel =
      f32_attend_kernel(std::get<DType>(GetParam()), leaf_kernels(std::get<Isa>(GetParam())));
  DType type = std::get<DType>(GetParam());
  Random random{1};

  void check(const QueryKinds& kinds, std::int64_t count, std::int64_t d_qk, std::int64_t d_v, bool is_latent,
             std::int64_t step, double spread = 1) {
    const Rows rows(type, count, d_qk, is_latent ? std::min(d_v, d_qk) : d_v, is_latent, spread, random);
    const std::vector<float> queries = random.values(kinds.count() * d_qk);
    const std::vector<std::int64_t> visible = rising(kinds, count, step, random);
    check_answer(run(kernel, kinds, queries, visible, rows), queries, visible, rows, spread);
  }
};

TEST_P(AttendKernelTest, MatchesItsDefinition) {
  for (std::int64_t d = 1; d <= 70; ++d) {  // every width of vector tail, many row counts
    const QueryKinds kinds{random.below(20), random.below(7), random.below(4), 1 + random.below(3)};
    check(kinds, 1 + d * 37 % 200, d, 71 - d, d % 3 == 0, d % 4);
  }
  check({128, 0, 0, 0}, 190, 64, 48, false, 0);
  check({16, 4, 2, 1}, 512, 576, 512, true, 1);
}

TEST_P(AttendKernelTest, EveryRowCountAndKind) {
  for (std::int64_t count = 1; count <= 40; ++count) check({9, 5, 3, 2}, count, 24, 20, false, 2);
  for (const std::int64_t count : {179, 180, 181, 359, 361, 511, 512, 513, 700})
    check({9, 5, 3, 2}, count, 5, 3, false, 90);
  for (std::int64_t n = 1; n <= 26; ++n) {
    check({n, 0, 0, 0}, 23, 17, 33, false, 1);
    check({0, n, 0, 0}, 23, 17, 33, false, 1);
    check({0, 0, n, 0}, 23, 17, 33, false, 1);
    check({0, 0, 0, n}, 23, 17, 33, false, 1);
  }
}

/// Scores of some 300: most exps are exactly 0, and the maximum moves from tile to tile.
TEST_P(AttendKernelTest, LargeScores) {
  for (int i = 0; i < 10; ++i) check({3, 2, 1, 1}, 400, 8, 5, false, 3, 150);
}

/// Alone, in parts that end at a tile, and with NaN in all rows that it does not see, a query gets the same
/// bits.
TEST_P(AttendKernelTest, AQueryDoesNotKnowItsCompany) {
  const QueryKinds kinds{11, 6, 3, 2};
  for (const std::int64_t count : {30, 200, 600}) {
    Rows rows(type, count, 37, 21, false, 1, random);
    const std::vector<float> queries = random.values(kinds.count() * rows.d_qk);
    const std::vector<std::int64_t> visible = rising(kinds, count, 3, random);
    const Sums all = run(kernel, kinds, queries, visible, rows);
    for (std::int64_t i = 0; i < kinds.count(); ++i) {
      const bool is_eight = i < kinds.eights, is_four = !is_eight && i < kinds.eights + kinds.fours;
      const bool is_two = !is_eight && !is_four && i < kinds.count() - kinds.ones;
      const QueryKinds alone{is_eight, is_four, is_two, !is_eight && !is_four && !is_two};
      const std::vector<float> query(queries.begin() + i * rows.d_qk, queries.begin() + (i + 1) * rows.d_qk);
      Rows poisoned = Rows(type, 1, 1, 1, false, 1, random);
      poisoned.count = count, poisoned.d_qk = rows.d_qk, poisoned.d_v = rows.d_v;
      poisoned.value_at = rows.value_at, poisoned.width = rows.width, poisoned.values = rows.values;
      std::fill(poisoned.values.begin() + visible[i] * rows.width, poisoned.values.end(), nan);
      poisoned.store();
      EXPECT_TRUE(run(kernel, alone, query, {visible[i]}, poisoned).has_bits_of(all, i, rows.d_v)) << i;
      // the same query beside one of its kind that sees every row
      std::vector<float> two = query;
      two.insert(two.end(), query.begin(), query.end());
      const QueryKinds pair{2 * alone.eights, 2 * alone.fours, 2 * alone.twos, 2 * alone.ones};
      Sums both = run(kernel, pair, two, {visible[i], count}, poisoned);
      both.max.resize(1), both.sum.resize(1), both.acc.resize(static_cast<std::size_t>(rows.d_v));
      EXPECT_TRUE(both.has_bits_of(all, i, rows.d_v)) << i << " sees " << visible[i] << " of " << count;
    }
  }
}

/// A broken key must not pass for one that nobody looks at.
TEST_P(AttendKernelTest, ANanKeyShowsInTheResult) {
  for (const QueryKinds& kinds :
       {QueryKinds{1, 0, 0, 0}, QueryKinds{0, 1, 0, 0}, QueryKinds{0, 0, 1, 0}, QueryKinds{0, 0, 0, 1}}) {
    Rows rows(type, 7, 3, 2, false, 1, random);
    rows.values[4 * rows.width + 1] = nan;
    rows.store();
    const Sums sums = run(kernel, kinds, {1.0f, 1.0f, 1.0f}, {7}, rows);
    EXPECT_TRUE(std::isnan(sums.acc[0] / sums.sum[0]));
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, AttendKernelTest,
                         testing::Combine(testing::ValuesIn(test::supported_isas()),
                                          testing::Values(DType::f32, DType::bf16, DType::f16)),
                         [](const auto& test) {
                           return std::string(name_of(std::get<Isa>(test.param))) + "_" +
                                  name_of(std::get<DType>(test.param));
                         });

}  // namespace
}  // namespace mla
