#include "mla/attention/prefill.h"

#include <algorithm>
#include <vector>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/core/parts.h"
#include "mla/kernels/leaf.h"
#include "mla/kernels/prefill.h"

namespace mla {
namespace {

constexpr std::int64_t tile_runs = prefill_tile / 4;
/// Heads that share the conversion of a tile of rows.
constexpr std::int64_t heads_at_once = 4;

/// A thread's memory, reused from call to call: one allocation, so that it lies in huge pages.
struct Memory {
  Buffer<std::byte> all;
  Buffer<bf16> rows;  // of a tile, where the cached ones are not bf16
  Buffer<std::byte> copies;
  const std::byte* runs[tile_runs];
};

Memory& thread_memory() {
  thread_local Memory memory;
  return memory;
}

/// Hands out parts of memory: whole cache lines. Without memory it counts.
class Parts {
 public:
  explicit Parts(std::byte* memory) : memory_(memory) {}
  template <class T>
  T* take(std::int64_t count) {
    T* part = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += round_up(count * static_cast<std::int64_t>(sizeof(T)), 64);
    return part;
  }
  std::int64_t used() const { return used_; }

 private:
  std::byte* memory_;
  std::int64_t used_ = 0;
};

/// Rows that lie in the cache as bf16: `bytes` of each from `offset` on.
PrefillRows rows_in_place(const KvView& kv, std::int64_t first, std::int64_t count, std::int64_t offset,
                          std::int64_t bytes, Memory& m) {
  kv.list_runs(first, count, offset, bytes, m.runs, m.copies);
  return {m.runs, kv.row_bytes, count};
}

/// Rows of the cache, tile by tile, as bf16.
class TileRows {
 public:
  TileRows(const KvView& kv, const RowLayout& layout) : kv_(kv), layout_(layout) {}

  bool in_place() const { return kv_.type == DType::bf16; }

  PrefillRows get(std::int64_t first, std::int64_t count, Memory& m) const {
    return in_place() ? rows_in_place(kv_, first, count, 0, layout_.bytes(), m) : converted(first, count, m);
  }

 private:
  PrefillRows converted(std::int64_t first, std::int64_t count, Memory& m) const {
    const std::int64_t width = layout_.values(), padded = (count + 3) / 4 * 4;
    bf16* rows = m.rows.resize(prefill_tile * width);
    parallel_for(count, width, [&](std::int64_t i) {
      thread_local Buffer<float> memory;
      float* values = memory.resize(width);
      layout_.read(kv_.row(first + i), width, values);
      leaf_kernels().f32_to_bf16(values, rows + i * width, width);
    });
    std::fill(rows + count * width, rows + padded * width, bf16{0});
    const std::int64_t row_bytes = width * size_of(DType::bf16);
    for (std::int64_t r = 0; r < padded / 4; ++r)
      m.runs[r] = reinterpret_cast<const std::byte*>(rows) + 4 * r * row_bytes;
    return {m.runs, row_bytes, count};
  }

  const KvView& kv_;
  const RowLayout& layout_;
};

/// Keys and values that are rebuilt from latents.
class LatentSource {
 public:
  LatentSource(const LatentShape& shape, const Weight& weight, const KvView& kv, const RowLayout& layout)
      : shape_(shape), weight_(weight), rows_(kv, layout) {}

  bool in_place() const { return rows_.in_place(); }
  PrefillRows rows(std::int64_t first, std::int64_t count, std::int64_t, Memory& m) const {
    return rows_.get(first, count, m);
  }

  std::int64_t weight_values() const { return chunks() * PrefillWeights::chunk_values(shape_.kv_lora_rank); }

  /// Packs the head's weights: chunks of W_UK, then of W_UV.
  void prepare(std::int64_t head, bf16* packed) const {
    const std::int64_t size = PrefillWeights::chunk_values(shape_.kv_lora_rank);
    parallel_for(chunks(), size, [&](std::int64_t i) {
      const Chunk c = chunk(i);
      pack_chunk(head * (shape_.qk_nope_head_dim + shape_.v_head_dim) + c.row, c.count, packed + i * size);
    });
  }

  void fill(const PrefillRows& rows, const bf16* packed, const PrefillTile& tile) const {
    const PrefillWeights weights{shape_.kv_lora_rank, shape_.qk_nope_head_dim, shape_.v_head_dim, packed};
    parallel_for(parts(rows.count, prefill_block), prefill_block * weight_values(),
                 [&](std::int64_t i) { decompress_block(rows, i * prefill_block, weights, tile); });
  }

 private:
  struct Chunk {
    std::int64_t row, count;  // of the head's weights
  };
  std::int64_t chunks() const {
    return prefill_chunks(shape_.qk_nope_head_dim) + prefill_chunks(shape_.v_head_dim);
  }
  Chunk chunk(std::int64_t i) const {
    const std::int64_t of_keys = prefill_chunks(shape_.qk_nope_head_dim), d_n = shape_.qk_nope_head_dim;
    const std::int64_t first = (i < of_keys ? i : i - of_keys) * prefill_chunk;
    const std::int64_t width = i < of_keys ? d_n : shape_.v_head_dim;
    return {i < of_keys ? first : d_n + first, std::min(prefill_chunk, width - first)};
  }
  void pack_chunk(std::int64_t row, std::int64_t count, bf16* packed) const {
    const std::int64_t d_c = shape_.kv_lora_rank;
    if (weight_.dtype == DType::bf16) {
      const auto* stored = reinterpret_cast<const bf16*>(weight_.data) + (weight_.first_row + row) * d_c;
      return pack_prefill_weights(stored, d_c, count, d_c, packed);
    }
    thread_local Buffer<float> values;
    thread_local Buffer<bf16> rounded;
    values.resize(d_c);
    rounded.resize(prefill_chunk * d_c);
    for (std::int64_t i = 0; i < count; ++i) {
      read_row(weight_, row + i, values.data());
      leaf_kernels().f32_to_bf16(values.data(), rounded.data() + i * d_c, d_c);
    }
    pack_prefill_weights(rounded.data(), d_c, count, d_c, packed);
  }

  const LatentShape& shape_;
  const Weight& weight_;
  TileRows rows_;
};

/// Keys and values that lie in the rows.
class HeadSource {
 public:
  HeadSource(const AttentionShape& shape, const KvView& kv)
      : group_(shape.h_q / shape.h_kv), bytes_(kv.head_row_bytes(shape.d_qk, shape.d_v)), kv_(kv) {}

  bool in_place() const { return true; }
  PrefillRows rows(std::int64_t first, std::int64_t count, std::int64_t head, Memory& m) const {
    return rows_in_place(kv_, first, count, head / group_ * kv_.head_bytes, bytes_, m);
  }
  std::int64_t weight_values() const { return 0; }
  void prepare(std::int64_t, bf16*) const {}
  void fill(const PrefillRows& rows, const bf16*, const PrefillTile& tile) const {
    parallel_for(
        parts(rows.count, prefill_block), prefill_block * (tile.d_qk + tile.d_v),
        [&](std::int64_t i) { copy_block(rows, i * prefill_block, kv_.key_offset, kv_.value_offset, tile); });
  }

 private:
  std::int64_t group_, bytes_;
  const KvView& kv_;
};

/// All heads of a call: heads run side by side, and those that are left over when every thread has had as
/// many run one after another, by all threads.
template <class Source>
class Prefill {
 public:
  Prefill(const Source& source, const AttentionShape& shape, QueryView queries, std::int64_t length,
          float* out)
      : source_(source), shape_(shape), queries_(queries), length_(length), out_(out) {
    panels_ = parts(queries.tokens, prefill_queries);
    Parts parts(nullptr);
    parts.take<bf16>(PrefillPanel::query_values(shape.d_qk));
    parts.take<float>(PrefillPanel::state_values(shape.d_v));
    panel_bytes_ = parts.used();
  }

  void run() const {
    const std::int64_t size =
        source_.in_place() ? 1 : std::clamp(shape_.h_q / threads(), std::int64_t{1}, heads_at_once);
    const std::int64_t groups = parts(shape_.h_q, size), alone = groups / threads() * threads();
    const std::int64_t work = size * (length_ * queries_.tokens * (shape_.d_qk + shape_.d_v) / 2 +
                                      source_.weight_values() * (length_ + work_of_value));
    const auto group = [&](std::int64_t g) {
      attend_heads(g * size, std::min(size, shape_.h_q - g * size), thread_memory());
    };
    parallel_for(alone, work, group);
    for (std::int64_t g = alone; g < groups; ++g) group(g);
  }

 private:
  /// Memory of one head: weights, and of each panel its queries and what is summed for them.
  struct Head {
    bf16* weights;
    std::byte* panels;
  };
  struct Work {
    Head heads[heads_at_once];
    PrefillTile tile;
  };

  Work lay_out(Parts& parts, std::int64_t count) const {
    Work work;
    work.tile = {shape_.d_qk, shape_.d_v, parts.take<bf16>(PrefillTile::key_values(shape_.d_qk)),
                 parts.take<bf16>(PrefillTile::value_values(shape_.d_v))};
    for (std::int64_t h = 0; h < count; ++h) {
      work.heads[h] = {parts.take<bf16>(source_.weight_values()),
                       parts.take<std::byte>(panels_ * panel_bytes_)};
    }
    return work;
  }

  PrefillPanel panel(std::int64_t p, const Head& head) const {
    const std::int64_t first = p * prefill_queries;
    Parts parts(head.panels + p * panel_bytes_);
    PrefillPanel panel;
    panel.queries = parts.take<bf16>(PrefillPanel::query_values(shape_.d_qk));
    panel.state = parts.take<float>(PrefillPanel::state_values(shape_.d_v));
    panel.count = std::min(prefill_queries, queries_.tokens - first);
    panel.first_row = length_ - queries_.tokens + first;
    panel.ahead = head.panels + (p + 1 < panels_ ? p + 1 : p) * panel_bytes_;
    panel.ahead_bytes = panel_bytes_;
    return panel;
  }

  /// Panel `p` of a head against the tile at `row`: its queries are packed before the first tile, its results
  /// written behind the last one that it sees.
  void attend_panel(std::int64_t p, std::int64_t head, const Head& memory, const PrefillTile& tile,
                    std::int64_t row, std::int64_t rows) const {
    const PrefillPanel work = panel(p, memory);
    const std::int64_t token = p * prefill_queries;
    if (row == 0) {
      const float* at = queries_.data + token * queries_.token_stride + head * queries_.head_stride;
      pack_prefill_queries(at, queries_.token_stride, work.count, shape_.d_qk, shape_.scale, work.queries);
      begin_prefill(work);
    }
    attend_prefill(work, tile, row, rows);
    if (work.first_row + work.count <= row + rows) {
      const std::int64_t stride = shape_.h_q * shape_.d_v;
      end_prefill(work, shape_.d_v, out_ + token * stride + head * shape_.d_v, stride);
    }
  }

  /// Heads [first, first + count).
  void attend_heads(std::int64_t first, std::int64_t count, Memory& memory) const {
    Parts counted(nullptr);
    lay_out(counted, count);
    Parts parts(memory.all.resize(counted.used()));
    const Work work = lay_out(parts, count);
    for (std::int64_t h = 0; h < count; ++h) source_.prepare(first + h, work.heads[h].weights);
    for (std::int64_t row = 0; row < length_; row += prefill_tile) {
      const std::int64_t rows = std::min(prefill_tile, length_ - row);
      const PrefillRows cached = source_.rows(row, rows, first, memory);
      // Panels before see none of the tile: their last query is before row.
      const std::int64_t hidden =
          std::max(std::int64_t{0}, row - (length_ - queries_.tokens)) / prefill_queries;
      for (std::int64_t h = 0; h < count; ++h) {
        source_.fill(cached, work.heads[h].weights, work.tile);
        parallel_for(panels_ - hidden, prefill_queries * rows * (shape_.d_qk + shape_.d_v),
                     [&](std::int64_t p) {
                       attend_panel(hidden + p, first + h, work.heads[h], work.tile, row, rows);
                     });
      }
    }
  }

  const Source& source_;
  const AttentionShape& shape_;
  QueryView queries_;
  std::int64_t length_;
  float* out_;
  std::int64_t panels_, panel_bytes_;
};

}  // namespace

void prefill_latents(const LatentShape& s, const Weight& kv_b_proj, MatrixView<const float> queries,
                     const KvView& kv, const RowLayout& rows, MatrixView<float> out) {
  const AttentionShape shape{s.num_heads, s.num_heads, s.qk_head_dim(), s.v_head_dim, s.scale, true};
  require(queries.cols == shape.h_q * shape.d_qk && out.cols == shape.h_q * shape.d_v &&
              out.stride == out.cols && queries.rows == out.rows && queries.rows <= kv.length,
          "prefill: queries [{}, {}], out [{}, {}] and {} rows do not fit", queries.rows, queries.cols,
          out.rows, out.cols, kv.length);
  require(kv_b_proj.rows == s.num_heads * (s.qk_nope_head_dim + s.v_head_dim) &&
              kv_b_proj.cols == s.kv_lora_rank && rows.values() == s.kv_lora_rank + s.qk_rope_head_dim,
          "prefill: kv_b_proj [{}, {}] and rows of {} values do not fit", kv_b_proj.rows, kv_b_proj.cols,
          rows.values());
  const LatentSource source(s, kv_b_proj, kv, rows);
  Prefill(source, shape, {queries.data, queries.rows, queries.stride, shape.d_qk}, kv.length, out.data).run();
}

void prefill_heads(const AttentionShape& shape, QueryView queries, const KvView& kv, float* out) {
  check_shape("prefill", shape);
  require(shape.causal && kv.type == DType::bf16 && queries.tokens <= kv.length,
          "prefill: found causal {}, rows of {}, {} tokens over {} rows, expected causal attention over bf16 "
          "rows",
          shape.causal, name_of(kv.type), queries.tokens, kv.length);
  const HeadSource source(shape, kv);
  Prefill(source, shape, queries, kv.length, out).run();
}

}  // namespace mla
