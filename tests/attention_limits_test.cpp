// Attention at the true shapes within FlashMLA's tolerances, and at the edge of readable memory.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "mla/attention/attention.h"
#include "support/attention_problem.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Pages;
using test::Problem;
using test::Random;
using test::Result;

/// FlashMLA's test of its dense decoding: each output within 8e-4 or 2.01/128 of itself, all of them within a
/// cosine distance of 5e-6, each log-sum-exp within 1e-6 or 8.01/65536 of itself.
void expect_flash_mla_tolerances(const test::AttentionAnswer& expected, const Result& found,
                                 const std::string& where) {
  double dot = 0, squares = 0;
  for (std::size_t i = 0; i < expected.out.size(); ++i) {
    const double error = std::abs(expected.out[i] - found.out[i]);
    ASSERT_TRUE(error <= 8e-4 || error <= 2.01 / 128 * std::abs(expected.out[i]))
        << where << ": " << found.out[i] << " for " << expected.out[i];
    dot += 2 * expected.out[i] * found.out[i];
    squares += expected.out[i] * expected.out[i] + static_cast<double>(found.out[i]) * found.out[i];
  }
  EXPECT_LE(1 - dot / squares, 5e-6) << where;
  for (std::size_t i = 0; i < expected.lse.size(); ++i) {
    const double error = std::abs(expected.lse[i] - found.lse[i]);
    ASSERT_TRUE(error <= 1e-6 || error <= 8.01 / 65536 * std::abs(expected.lse[i])) << where;
  }
}

TEST(AttentionLimitsTest, TrueShapesStayWithinFlashMlasTolerances) {
  struct Case {
    std::int64_t heads, tokens, length, d_qk, d_v;
  };
  Random random(11);
  for (const Case& c : std::vector<Case>{{128, 1, 333, 576, 512},
                                         {64, 1, 700, 576, 512},
                                         {20, 1, 1030, 576, 512},
                                         {16, 4, 515, 576, 512},
                                         {13, 1, 260, 576, 512},
                                         {8, 2, 777, 576, 512},
                                         {7, 1, 97, 576, 512},
                                         {3, 8, 65, 576, 512},
                                         {1, 1, 1030, 576, 512},
                                         {40, 1, 300, 288, 256},
                                         {16, 3, 300, 192, 128}}) {
    for (const DType type : {DType::bf16, DType::f32}) {
      const bool latent = c.d_v > 128;
      Problem p({c.heads, latent ? 1 : c.heads, c.d_qk, c.d_v, 1.0f, true}, c.tokens, c.length, type, latent,
                random);
      for (float& q : p.queries)
        q = test::rounded(std::clamp(q / 10, -1.0f, 1.0f), type);  // as FlashMLA's are
      for (float& x : p.rows.data) x = test::rounded(std::clamp(x / 10, -1.0f, 1.0f), type);
      const auto expected = test::plain_attention(p.shape, p.query_view(), p.rows);
      const Pages pages(p.layout, p.rows, 64);
      for (const Isa isa : test::supported_isas()) {
        if (isa == Isa::scalar && c.heads * c.tokens * c.length > 30000) continue;
        expect_flash_mla_tolerances(expected, p.run(pages.view(), leaf_kernels(isa)),
                                    fmt::format("{} heads, {} tokens, {} rows of {}, {}", c.heads, c.tokens,
                                                c.length, name_of(type), name_of(isa)));
      }
    }
  }
}

/// Memory whose last byte is followed by a page that must not be touched.
class GuardedBytes {
 public:
  explicit GuardedBytes(std::size_t size) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    mapped_ = (size + page - 1) / page * page + page;
    base_ = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    std::byte* const guard = static_cast<std::byte*>(base_) + mapped_ - page;
    ::mprotect(guard, page, PROT_NONE);
    data_ = guard - size;
  }
  ~GuardedBytes() { ::munmap(base_, mapped_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  std::byte* data() const { return data_; }

 private:
  void* base_;
  std::size_t mapped_;
  std::byte* data_;
};

/// Neither rows nor queries are read behind their last byte, whatever the widths, tails and page sizes.
TEST(AttentionLimitsTest, NothingIsReadBehindTheLastRowOrQuery) {
  Random random(12);
  for (const auto& [d_qk, d_v, latent] : std::vector<std::tuple<std::int64_t, std::int64_t, bool>>{
           {576, 512, true}, {40, 32, true}, {23, 17, true}, {5, 5, true}, {64, 64, false}, {7, 9, false}}) {
    for (const std::int64_t heads : {1, 2, 4, 5, 8, 13, 20}) {
      for (const std::int64_t length : {1, 3, 64, 65, 300}) {
        for (const DType type : {DType::bf16, DType::f32}) {
          const Problem p({heads, 1, d_qk, d_v, 1.0f, true}, 2, length, type, latent, random);
          const Pages pages(p.layout, p.rows, 64);
          const auto row_bytes = static_cast<std::size_t>(p.layout.bytes());
          GuardedBytes rows(static_cast<std::size_t>(length) * row_bytes);
          for (std::int64_t r = 0; r < length; ++r)
            std::memcpy(rows.data() + static_cast<std::size_t>(r) * row_bytes, pages.view().row(r),
                        row_bytes);
          const std::int64_t query_values = 2 * heads * d_qk;
          GuardedBytes queries(static_cast<std::size_t>(query_values) * sizeof(float));
          float* q = reinterpret_cast<float*>(queries.data());
          for (std::int64_t i = 0; i < 2 * heads; ++i)
            std::memcpy(q + i * d_qk,
                        p.query_view().data + i / heads * p.token_stride + i % heads * p.head_stride,
                        static_cast<std::size_t>(d_qk) * sizeof(float));
          const std::byte* page = rows.data();
          for (const Isa isa : test::supported_isas()) {
            Result found = p.empty(2);
            attend(p.shape, {q, 2, heads * d_qk, d_qk}, dense_view(p.layout, page, length), found.out.data(),
                   found.lse.data(), leaf_kernels(isa));
            EXPECT_EQ(p.run(pages.view(), leaf_kernels(isa)), found) << d_qk << " " << heads << " " << length;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mla
