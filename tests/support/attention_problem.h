#pragma once
// Attention problems for tests: random queries and rows, the rows in pages as a cache lays them out.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "mla/attention/attention.h"
#include "support/oracle.h"

namespace mla::test {

inline constexpr float nan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float infinity = std::numeric_limits<float>::infinity();

/// Rows laid out as a cache does it: pages in shuffled order, another layer before, NaN wherever no row is.
class Pages {
 public:
  Pages(const RowLayout& layout, const PlainRows& rows, std::int64_t page_rows) {
    const std::int64_t element = size_of(layout.type());
    const std::int64_t offset = 3 * layout.bytes() + element;  // rows need only their element's alignment
    const std::int64_t count = (rows.length + page_rows - 1) / page_rows;
    memory_.assign(static_cast<std::size_t>(2 * count + 1), {});
    for (auto& page : memory_)
      page.assign(static_cast<std::size_t>(offset + (page_rows + 2) * layout.bytes()), std::byte{0xff});
    for (std::int64_t i = 0; i < count; ++i) table_.push_back(memory_[2 * (count - i) - 1].data());
    view_ = {layout.type(),       table_.data(),         offset,
             page_rows,           layout.bytes(),        rows.length,
             layout.key_offset(), layout.value_offset(), layout.head_bytes()};
    for (std::int64_t r = 0; r < rows.length; ++r) {
      std::byte* to = const_cast<std::byte*>(view_.row(r));
      for (std::int64_t i = 0; i < rows.width; ++i, to += element) {
        const float value = rows.data[r * rows.width + i];
        if (layout.type() == DType::f32) std::memcpy(to, &value, 4);
        const std::uint16_t upper = nearest_bf16(value);
        if (layout.type() == DType::bf16) std::memcpy(to, &upper, 2);
      }
    }
  }
  Pages(const Pages&) = delete;
  const KvView& view() const { return view_; }

 private:
  std::vector<std::vector<std::byte>> memory_;  // every second one is not in the table
  std::vector<const std::byte*> table_;
  KvView view_;
};

struct Result {
  std::vector<float> out, lse;
  bool operator==(const Result& other) const {
    return out.size() == other.out.size() && lse.size() == other.lse.size() &&
           std::memcmp(out.data(), other.out.data(), out.size() * 4) == 0 &&
           std::memcmp(lse.data(), other.lse.data(), lse.size() * 4) == 0;
  }
};

/// Random queries and rows of one shape. Queries lie strided, with NaN between them.
struct Problem {
  Problem(const AttentionShape& shape_, std::int64_t tokens_, std::int64_t length, DType type, bool latent,
          Random& random)
      : shape(shape_),
        tokens(tokens_),
        layout(latent ? RowLayout::latent(shape_.d_v, shape_.d_qk - shape_.d_v, type)
                      : RowLayout::heads(shape_.h_kv, shape_.d_qk, shape_.d_v, type)) {
    shape.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.d_qk)));
    head_stride = shape.d_qk + 3;
    token_stride = shape.h_q * head_stride + 5;
    queries.assign(static_cast<std::size_t>(tokens * token_stride), nan);
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t h = 0; h < shape.h_q; ++h) {
        const auto q = random.values(shape.d_qk);
        std::copy(q.begin(), q.end(), queries.begin() + t * token_stride + h * head_stride);
      }
    }
    const std::int64_t element = size_of(type);
    rows.length = length;
    rows.width = layout.values();
    rows.value_offset = layout.value_offset() / element;
    rows.head_width = layout.head_bytes() / element;
    rows.data = random.values(length * rows.width);
    for (float& x : rows.data) x = rounded(x, type);
  }

  QueryView query_view(std::int64_t first = 0, std::int64_t count = -1) const {
    return {queries.data() + first * token_stride, count < 0 ? tokens : count, token_stride, head_stride};
  }
  Result run(const KvView& view, const LeafKernels& leaf = leaf_kernels()) const {
    return run(query_view(), view, leaf);
  }
  Result run(const QueryView& q, const KvView& view, const LeafKernels& leaf = leaf_kernels()) const {
    Result r = empty(q.tokens);
    const AttentionSequence one{q, view, r.out.data(), r.lse.data(), nullptr, many_tokens};
    attend(shape, {&one, 1}, leaf);
    return r;
  }
  Result empty(std::int64_t count) const {
    return {std::vector<float>(static_cast<std::size_t>(count * shape.h_q * shape.d_v), nan),
            std::vector<float>(static_cast<std::size_t>(count * shape.h_q), nan)};
  }

  AttentionShape shape;
  std::int64_t tokens;
  RowLayout layout;
  std::int64_t head_stride, token_stride;
  std::vector<float> queries;
  PlainRows rows;
  bool many_tokens = false;  ///< AttentionSequence::many_tokens
};

}  // namespace mla::test
