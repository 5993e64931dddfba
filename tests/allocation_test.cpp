// A decode step of a warm conversation takes no memory from the heap.
#include <gtest/gtest.h>

#include "mla/runtime/session.h"
#include "support/allocations.h"

namespace mla {
namespace {

/// Of one step behind 20 tokens, in the middle of a page.
std::int64_t allocations_of_a_step(const Transformer& model, DType type) {
  SessionOptions options;
  options.compute = options.cache_type = type;
  Session session(model, options);
  for (std::int32_t id = 1; id <= 20; ++id) session.feed({&id, 1});
  const std::int64_t before = test::allocations();
  const std::int32_t id = 7;
  session.feed({&id, 1});
  return test::allocations() - before;
}

TEST(AllocationTest, WarmDecodeTakesNoMemory) {
  if (test::allocations() < 0) GTEST_SKIP() << "the sanitizer counts its own way";
  for (const char* name : {"v2-lite", "v3-bf16", "minicpm3"}) {
    const Transformer model = Transformer::load(std::string(MLA_TEST_DATA) + "/reference/" + name);
    for (const DType type : {DType::f32, DType::bf16})
      EXPECT_EQ(allocations_of_a_step(model, type), 0) << name << " " << name_of(type);
  }
}

}  // namespace
}  // namespace mla
