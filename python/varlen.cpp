// Attention of several sequences with keys and values of their own (flash_attn_varlen_func), and its
// gradient.
#include <algorithm>
#include <cstring>
#include <vector>

#include "mla/attention/attention.h"
#include "mla/attention/backward.h"
#include "mla/attention/forward.h"
#include "mla/cache/row_layout.h"
#include "mla/core/cpu.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "python/arrays.h"
#include "python/bindings.h"

namespace mla::python {
namespace {

/// Offsets of the sequences, checked to rise from 0 to `total` at most.
std::vector<std::int64_t> offsets(const char* name, const Input& array, std::int64_t total) {
  const Buffer<std::int32_t> o = integers(name, array, 1);
  require(o.size() >= 1 && o[0] == 0 && o[o.size() - 1] <= total, "{}: expected offsets from 0 to at most {}",
          name, total);
  for (std::int64_t i = 1; i < o.size(); ++i)
    require(o[i] >= o[i - 1], "{}[{}]: found {} behind {}, expected offsets that don't fall", name, i, o[i],
            o[i - 1]);
  return {o.data(), o.data() + o.size()};
}

/// What forward and backward are told.
struct Call {
  Floats q, k, v;
  std::vector<std::int64_t> q_offsets, kv_offsets;
  AttentionShape shape;

  Call(const Input& q_array, const Input& k_array, const Input& v_array, const Input& cu_seqlens_qo,
       const Input& cu_seqlens_kv, float scale, bool causal)
      : q(floats("q", q_array, 3)),
        k(floats("k", k_array, 3)),
        v(floats("v", v_array, 3)),
        q_offsets(offsets("cu_seqlens_qo", cu_seqlens_qo, q.shape[0])),
        kv_offsets(offsets("cu_seqlens_kv", cu_seqlens_kv, k.shape[0])),
        shape{q.shape[1], k.shape[1], q.shape[2], v.shape[2], scale, causal} {
    require(k.shape[1] >= 1, "k: found no heads");
    expect_size(k, 2, q.shape[2]);
    expect_size(v, 0, k.shape[0]);
    expect_size(v, 1, k.shape[1]);
    require(q.shape[1] % k.shape[1] == 0, "q: found {} heads, expected a multiple of k's {}", q.shape[1],
            k.shape[1]);
    require(q_offsets.size() == kv_offsets.size(),
            "cu_seqlens_kv: found {} sequences, expected {}, as cu_seqlens_qo has", kv_offsets.size() - 1,
            q_offsets.size() - 1);
    add_rest();
  }
  /// Tokens and rows behind the last sequence: two more sequences, of which one sees nothing and nobody sees
  /// the other.
  void add_rest() {
    const std::int64_t tokens = q.shape[0], rows = k.shape[0];
    if (q_offsets.back() == tokens && kv_offsets.back() == rows) return;
    q_offsets.insert(q_offsets.end(), 2, tokens);
    kv_offsets.insert(kv_offsets.end(), {kv_offsets.back(), rows});
  }

  std::int64_t row_values() const { return shape.d_qk + shape.d_v; }
  std::int64_t sequences() const { return static_cast<std::int64_t>(q_offsets.size()) - 1; }
  std::int64_t tokens(std::int64_t s) const { return q_offsets[s + 1] - q_offsets[s]; }
  std::int64_t length(std::int64_t s) const { return kv_offsets[s + 1] - kv_offsets[s]; }
};

/// Some of a call's kv heads, with their query heads. A call goes through memory in such parts, since its
/// tensors take several times as much in f32.
struct Part {
  const Call& call;
  std::int64_t first;    // kv head
  AttentionShape shape;  // of the part

  Floats of_queries(const Floats& all) const {
    return part(all, first * (shape.h_q / shape.h_kv), shape.h_q, 1);
  }
  Floats of_keys(const Floats& all) const { return part(all, first, shape.h_kv, 1); }
  /// Of interleave()'s rows of f32.
  RowShape row_shape() const { return {call.row_values(), call.k.shape[0] * call.row_values(), shape.d_qk}; }
  /// Query heads of the sequences before.
  std::int64_t heads_before(std::int64_t s) const { return call.q_offsets[s] * shape.h_q; }
  /// Of a sequence, in `all` [tokens][h_q][d_qk].
  QueryView queries(const float* all, std::int64_t s) const {
    return {all + heads_before(s) * shape.d_qk, call.tokens(s), shape.h_q * shape.d_qk, shape.d_qk};
  }
};

/// Calls use(part) for parts of a multiple of `together` kv heads, as few as take part_bytes or more.
template <class Use>
void for_parts(const Call& c, std::int64_t together, const Use& use) {
  constexpr std::int64_t part_bytes = 256 << 20;
  const std::int64_t group = c.shape.h_q / c.shape.h_kv;
  const std::int64_t values = (c.q.shape[0] * group + c.k.shape[0]) * c.row_values();  // of a kv head
  const std::int64_t most =
      parts(parts(part_bytes, std::max(4 * values, std::int64_t{1})), together) * together;
  for (std::int64_t first = 0; first < c.shape.h_kv; first += most) {
    AttentionShape shape = c.shape;
    shape.h_kv = std::min(most, c.shape.h_kv - first);
    shape.h_q = shape.h_kv * group;
    use(Part{c, first, shape});
  }
}

/// Rows [k | v] of `type`, as kernels take them: all of a kv head, then those of the next.
const std::byte* interleave(const Part& p, DType type, Buffer<std::byte>& memory) {
  const Floats k = p.of_keys(p.call.k), v = p.of_keys(p.call.v);
  const std::int64_t element = size_of(type), row_bytes = p.call.row_values() * element;
  const std::int64_t head_bytes = k.shape[0] * row_bytes;
  std::byte* rows = memory.resize(p.shape.h_kv * head_bytes);
  Buffer<float> keys_memory, values_memory;
  const bool copies = type == DType::bf16 && k.strides[2] == 2 && v.strides[2] == 2;
  const float* keys = copies ? nullptr : contiguous(k, keys_memory);
  const float* values = copies ? nullptr : contiguous(v, values_memory);
  const LeafKernels& leaf = leaf_kernels();
  const auto place = [&](const Floats& from, const float* wide, std::int64_t d, std::int64_t r,
                         std::int64_t h, std::byte* to) {
    if (copies) return void(std::memcpy(to, from.at(r, h), static_cast<std::size_t>(2 * d)));
    const float* value = wide + (r * p.shape.h_kv + h) * d;
    if (type == DType::f32) return void(std::memcpy(to, value, static_cast<std::size_t>(4 * d)));
    leaf.f32_to_bf16(value, reinterpret_cast<bf16*>(to), d);
  };
  parallel_for(k.shape[0], p.shape.h_kv * row_bytes, [&](std::int64_t r) {
    for (std::int64_t h = 0; h < p.shape.h_kv; ++h) {
      std::byte* to = rows + h * head_bytes + r * row_bytes;
      place(k, keys, p.shape.d_qk, r, h, to);
      place(v, values, p.shape.d_v, r, h, to + p.shape.d_qk * element);
    }
  });
  return rows;
}

/// A part's attention: sequences of many_tokens_from tokens or more over f32 go to the kernels of training.
class Forward {
 public:
  Forward(const Part& part, DType type, const float* queries, const std::byte* rows, float* out, float* lse)
      : part_(part), type_(type), queries_(queries), rows_(rows), out_(out), lse_(lse) {}

  void run() const {
    const AttentionShape& s = part_.shape;
    const Call& call = part_.call;
    const std::int64_t row_bytes = call.row_values() * size_of(type_);
    std::vector<const std::byte*> pages(static_cast<std::size_t>(call.sequences()));
    std::vector<AttentionSequence> few;
    std::vector<AttentionForward> many;
    for (std::int64_t i = 0; i < call.sequences(); ++i) {
      const std::int64_t heads = part_.heads_before(i), tokens = call.tokens(i), length = call.length(i);
      const QueryView queries = part_.queries(queries_, i);
      float *out = out_ + heads * s.d_v, *lse = lse_ + heads;
      pages[i] = rows_ + call.kv_offsets[i] * row_bytes;
      if (type_ == DType::f32 && tokens >= many_tokens_from)
        many.push_back({queries, reinterpret_cast<const float*>(pages[i]), length, out, lse});
      else
        few.push_back({queries, view(pages[i], length), out, lse, nullptr, tokens >= many_tokens_from});
    }
    attend(s, few);
    attend_forward(s, part_.row_shape(), many);
  }

 private:
  KvView view(const std::byte* const& page, std::int64_t length) const {
    const AttentionShape& s = part_.shape;
    KvView kv = dense_view(RowLayout::heads(1, s.d_qk, s.d_v, type_), page, length);
    kv.head_bytes = part_.call.k.shape[0] * kv.row_bytes;
    return kv;
  }

  const Part& part_;
  DType type_;
  const float* queries_;
  const std::byte* rows_;
  float *out_, *lse_;
};

void varlen_forward(const Input& q, const Input& k, const Input& v, const Input& cu_seqlens_qo,
                    const Input& cu_seqlens_kv, const Output& out_array, const Output& lse_array, float scale,
                    bool causal) {
  const Call c(q, k, v, cu_seqlens_qo, cu_seqlens_kv, scale, causal);
  const Floats out = floats("out", out_array, 3), lse = floats("lse", lse_array, 2);
  const bool is_bf16 = c.k.type == DType::bf16 && c.v.type == DType::bf16;
  const DType type = is_bf16 && selected_isa() == Isa::avx512_bf16 ? DType::bf16 : DType::f32;

  nb::gil_scoped_release released;
  Buffer<float> queries_memory, results, sums;
  Buffer<std::byte> rows_memory;
  for_parts(c, 1, [&](const Part& p) {
    const float* queries = contiguous(p.of_queries(c.q), queries_memory);
    const std::byte* rows = interleave(p, type, rows_memory);
    const std::int64_t places = c.q.shape[0] * p.shape.h_q;
    results.resize(places * c.shape.d_v);
    sums.resize(places);
    Forward(p, type, queries, rows, results.data(), sums.data()).run();
    write(results.data(), p.of_queries(out));
    write(sums.data(), p.of_queries(lse));
  });
}

/// Takes keys' or values' gradients [rows][kv heads][d] out of rows as interleave() lays them.
void take(const float* rows, const RowShape& shape, std::int64_t offset, const Floats& out) {
  Buffer<float> dense(out.shape[0] * out.shape[1] * out.shape[2]);
  parallel_for(out.shape[0], out.shape[1] * out.shape[2], [&](std::int64_t r) {
    for (std::int64_t h = 0; h < out.shape[1]; ++h)
      std::copy_n(rows + r * shape.row_stride + h * shape.head_stride + offset, out.shape[2],
                  dense.data() + (r * out.shape[1] + h) * out.shape[2]);
  });
  write(dense.data(), out);
}

/// What a call left, and the gradient by its output.
struct Outcome {
  const Floats &d_out, &out, &lse;
};
struct Gradients {
  const Floats &q, &k, &v;
};

void backward_of(const Part& p, const Outcome& of, const Gradients& to) {
  const Call& c = p.call;
  Buffer<float> memory[4];
  const float* queries = contiguous(p.of_queries(c.q), memory[0]);
  const float* outs = contiguous(p.of_queries(of.out), memory[1]);
  const float* d_outs = contiguous(p.of_queries(of.d_out), memory[2]);
  const float* sums = contiguous(p.of_queries(of.lse), memory[3]);
  Buffer<std::byte> rows_memory;
  const auto* rows = reinterpret_cast<const float*>(interleave(p, DType::f32, rows_memory));
  const AttentionShape& s = p.shape;
  const RowShape row = p.row_shape();
  Buffer<float> d_queries(c.q.shape[0] * s.h_q * s.d_qk), d_rows(s.h_kv * row.head_stride);
  std::vector<AttentionGradient> sequences;
  for (std::int64_t i = 0; i < c.sequences(); ++i) {
    const std::int64_t heads = p.heads_before(i), first_row = c.kv_offsets[i] * row.row_stride;
    sequences.push_back({p.queries(queries, i), rows + first_row, c.length(i), outs + heads * s.d_v,
                         sums + heads, d_outs + heads * s.d_v, d_queries.data() + heads * s.d_qk,
                         d_rows.data() + first_row});
  }
  attend_backward(s, row, sequences);
  write(d_queries.data(), p.of_queries(to.q));
  take(d_rows.data(), row, 0, p.of_keys(to.k));
  take(d_rows.data(), row, s.d_qk, p.of_keys(to.v));
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
  // Threads have a kv head each; how many there are changes no bit.
  for_parts(c, threads(), [&](const Part& p) { backward_of(p, {d_out, out, lse}, {dq, dk, dv}); });
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
