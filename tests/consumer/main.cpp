// A program outside the project that uses the installed library: one query over two rows [k | v], both keys
// orthogonal to it, so its answer is the mean of the values, 1 and 3, and the log-sum-exp is ln 2.
#include <mla/attention/attention.h>

#include <cstddef>
#include <cstdio>

int main() {
  const float rows[] = {1, 0, 1, -1, 0, 3}, query[] = {0, 1};
  const auto* page = reinterpret_cast<const std::byte*>(rows);
  const auto layout = mla::RowLayout::heads(1, 2, 1, mla::DType::f32);
  float out = 0, lse = 0;
  mla::attend({1, 1, 2, 1}, {query, 1, 2, 2}, mla::dense_view(layout, page, 2), &out, &lse);
  std::printf("%s attention: %.3f, log-sum-exp %.3f\n", name_of(mla::selected_isa()), out, lse);
}
