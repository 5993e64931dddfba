// Attention of several sequences with keys and values of their own (flash_attn_varlen_func), and its
// gradient.
#include <algorithm>
#include <cstring>
#include <vector>

#include "mla/attention/attention.h"
#include "mla/attention/backward.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "python/arrays.h"
#include "python/bindings.h"

namespace mla::python {
namespace {

/// Offsets of the sequences, checked to rise from 0 to `total`.
Buffer<std::int32_t> offsets(const char* name, const Input& array, std::int64_t total) {
  Buffer<std::int32_t> o = integers(name, array, 1);
  require(o.size() >= 1 && o[0] == 0 && o[o.size() - 1] == total, "{}: expected offsets from 0 to {}", name,
          total);
  for (std::int64_t i = 1; i < o.size(); ++i)
    require(o[i] >= o[i - 1], "{}[{}]: found {} behind {}, expected offsets that don't fall", name, i, o[i],
            o[i - 1]);
  return o;
}

/// What forward and backward are told.
struct Call {
  Floats q, k, v;
  Buffer<std::int32_t> q_offsets, kv_offsets;
  AttentionShape shape;

  Call(const Input& q_array, const Input& k_array, const Input& v_array, const Input& cu_seqlens_qo,
       const Input& cu_seqlens_kv, float scale, bool causal)
      : q(floats("q", q_array, 3)),
        k(floats("k", k_array, 3)),
        v(floats("v", v_array, 3)),
        q_offsets(offsets("cu_seqlens_qo", cu_seqlens_qo, q.shape[0])),
        kv_offsets(offsets("cu_seqlens_kv", cu_seqlens_kv, k.shape[0])),
        shape{q.shape[1], k.shape[1], q.shape[2], v.shape[2], scale, causal} {
    expect_size(k, 2, q.shape[2]);
    expect_size(v, 0, k.shape[0]);
    expect_size(v, 1, k.shape[1]);
    require(k.shape[1] >= 1 && q.shape[1] % k.shape[1] == 0,
            "q: found {} heads, expected a multiple of k's {}", q.shape[1], k.shape[1]);
    require(q_offsets.size() == kv_offsets.size(),
            "cu_seqlens_kv: found {} sequences, expected {}, as cu_seqlens_qo has", kv_offsets.size() - 1,
            q_offsets.size() - 1);
    require(scale > 0, "softmax_scale: found {}, expected a positive number", scale);
  }

  std::int64_t sequences() const { return q_offsets.size() - 1; }
  std::int64_t tokens(std::int64_t s) const { return q_offsets[s + 1] - q_offsets[s]; }
  std::int64_t length(std::int64_t s) const { return kv_offsets[s + 1] - kv_offsets[s]; }
};

/// Rows [k | v] of each kv head, as kernels take them, of bf16 if both are that, else of f32.
const std::byte* interleave(const Call& c, DType type, Buffer<std::byte>& memory) {
  const std::int64_t element = size_of(type), head = (c.shape.d_qk + c.shape.d_v) * element;
  const std::int64_t width = c.shape.h_kv * head;
  std::byte* rows = memory.resize(c.k.shape[0] * width);
  Buffer<float> keys_memory, values_memory;
  const bool copies = type == DType::bf16 && c.k.strides[2] == 2 && c.v.strides[2] == 2;
  const float* keys = copies ? nullptr : contiguous(c.k, keys_memory);
  const float* values = copies ? nullptr : contiguous(c.v, values_memory);
  const LeafKernels& leaf = leaf_kernels();
  const auto place = [&](const Floats& from, const float* wide, std::int64_t d, std::int64_t r,
                         std::int64_t h, std::byte* to) {
    if (copies) return void(std::memcpy(to, from.at(r, h), static_cast<std::size_t>(2 * d)));
    const float* value = wide + (r * c.shape.h_kv + h) * d;
    if (type == DType::f32) return void(std::memcpy(to, value, static_cast<std::size_t>(4 * d)));
    leaf.f32_to_bf16(value, reinterpret_cast<bf16*>(to), d);
  };
  parallel_for(c.k.shape[0], width, [&](std::int64_t r) {
    for (std::int64_t h = 0; h < c.shape.h_kv; ++h) {
      std::byte* to = rows + r * width + h * head;
      place(c.k, keys, c.shape.d_qk, r, h, to);
      place(c.v, values, c.shape.d_v, r, h, to + c.shape.d_qk * element);
    }
  });
  return rows;
}

void varlen_forward(const Input& q, const Input& k, const Input& v, const Input& cu_seqlens_qo,
                    const Input& cu_seqlens_kv, const Output& out_array, const Output& lse_array, float scale,
                    bool causal) {
  const Call c(q, k, v, cu_seqlens_qo, cu_seqlens_kv, scale, causal);
  const Floats out = floats("out", out_array, 3), lse = floats("lse", lse_array, 2);
  const DType type = c.k.type == DType::bf16 && c.v.type == DType::bf16 ? DType::bf16 : DType::f32;

  nb::gil_scoped_release released;
  Buffer<float> queries_memory;
  const float* queries = contiguous(c.q, queries_memory);
  Buffer<std::byte> rows_memory;
  const std::byte* rows = interleave(c, type, rows_memory);
  const AttentionShape& s = c.shape;
  Buffer<float> results(c.q.shape[0] * s.h_q * s.d_v), sums(c.q.shape[0] * s.h_q);
  const RowLayout layout = RowLayout::heads(s.h_kv, s.d_qk, s.d_v, type);
  std::vector<const std::byte*> pages(static_cast<std::size_t>(c.sequences()));
  std::vector<AttentionSequence> sequences;
  for (std::int64_t i = 0; i < c.sequences(); ++i) {
    const std::int64_t first = c.q_offsets[i];
    pages[i] = rows + c.kv_offsets[i] * layout.bytes();
    sequences.push_back({{queries + first * s.h_q * s.d_qk, c.tokens(i), s.h_q * s.d_qk, s.d_qk},
                         dense_view(layout, pages[i], c.length(i)),
                         results.data() + first * s.h_q * s.d_v,
                         sums.data() + first * s.h_q});
  }
  attend(s, sequences);
  write(results.data(), out);
  write(sums.data(), lse);
}

/// Takes keys' or values' gradients [rows][kv heads][d] out of rows of [k | v].
void take(const float* rows, std::int64_t offset, std::int64_t row_width, std::int64_t head_width,
          const Floats& out) {
  Buffer<float> dense(out.shape[0] * out.shape[1] * out.shape[2]);
  parallel_for(out.shape[0], row_width, [&](std::int64_t r) {
    for (std::int64_t h = 0; h < out.shape[1]; ++h)
      std::copy_n(rows + r * row_width + h * head_width + offset, out.shape[2],
                  dense.data() + (r * out.shape[1] + h) * out.shape[2]);
  });
  write(dense.data(), out);
}

void varlen_backward(const Input& d_out_array, const Input& q, const Input& k, const Input& v,
                     const Input& out_array, const Input& lse_array, const Input& cu_seqlens_qo,
                     const Input& cu_seqlens_kv, const Output& dq_array, const Output& dk_array,
                     const Output& dv_array, float scale, bool causal) {
  const Call c(q, k, v, cu_seqlens_qo, cu_seqlens_kv, scale, causal);
  const Floats d_out = floats("do", d_out_array, 3), out = floats("out", out_array, 3),
               lse = floats("lse", lse_array, 2);
  const Floats dq = floats("dq", dq_array, 3), dk = floats("dk", dk_array, 3), dv = floats("dv", dv_array, 3);

  nb::gil_scoped_release released;
  Buffer<float> memory[4];
  const float* queries = contiguous(c.q, memory[0]);
  const float* outs = contiguous(out, memory[1]);
  const float* d_outs = contiguous(d_out, memory[2]);
  const float* sums = contiguous(lse, memory[3]);
  Buffer<std::byte> rows_memory;
  const auto* rows = reinterpret_cast<const float*>(interleave(c, DType::f32, rows_memory));
  const AttentionShape& s = c.shape;
  const std::int64_t head = s.d_qk + s.d_v, width = s.h_kv * head;
  Buffer<float> d_queries(c.q.shape[0] * s.h_q * s.d_qk), d_rows(c.k.shape[0] * width);
  std::vector<AttentionGradient> sequences;
  for (std::int64_t i = 0; i < c.sequences(); ++i) {
    const std::int64_t first = c.q_offsets[i], row = c.kv_offsets[i];
    sequences.push_back({{queries + first * s.h_q * s.d_qk, c.tokens(i), s.h_q * s.d_qk, s.d_qk},
                         rows + row * width,
                         c.length(i),
                         outs + first * s.h_q * s.d_v,
                         sums + first * s.h_q,
                         d_outs + first * s.h_q * s.d_v,
                         d_queries.data() + first * s.h_q * s.d_qk,
                         d_rows.data() + row * width});
  }
  attend_backward(s, {width, head, s.d_qk}, sequences);
  write(d_queries.data(), dq);
  take(d_rows.data(), 0, width, head, dk);
  take(d_rows.data(), s.d_qk, width, head, dv);
}

}  // namespace

void bind_varlen(nb::module_& m) {
  using namespace nb::literals;
  m.def("varlen_forward", &varlen_forward, "q"_a, "k"_a, "v"_a, "cu_seqlens_qo"_a, "cu_seqlens_kv"_a, "out"_a,
        "lse"_a, "scale"_a, "causal"_a,
        "Attention of q [tokens, h_q, d_qk] over k [rows, h_kv, d_qk] and v [rows, h_kv, d_v], sequence by "
        "sequence.");
  m.def("varlen_backward", &varlen_backward, "do"_a, "q"_a, "k"_a, "v"_a, "out"_a, "lse"_a, "cu_seqlens_qo"_a,
        "cu_seqlens_kv"_a, "dq"_a, "dk"_a, "dv"_a, "scale"_a, "causal"_a,
        "The gradient of varlen_forward, written to dq, dk and dv.");
}

}  // namespace mla::python
