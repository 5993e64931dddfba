#include "mla/compare/measure.h"

#include <algorithm>

#include "mla/core/clock.h"
#include "mla/core/error.h"
#include "mla/runtime/session.h"
#include "mla/train/trained_transformer.h"

namespace mla {
namespace {

/// The median of the times of single tokens, as a rate.
DecodeSpeed decode_speed(Session& session, std::int32_t id, double seconds_to_spend) {
  const std::int64_t context = session.length();
  std::vector<double> times;
  for (const double end = seconds_now() + seconds_to_spend; times.size() < 3 || seconds_now() < end;) {
    const double start = seconds_now();
    session.feed({&id, 1});
    times.push_back(seconds_now() - start);
    session.truncate(context);
  }
  std::ranges::nth_element(times, times.begin() + std::ssize(times) / 2);
  return {context, 1 / times[times.size() / 2]};
}

void measure_decode(const std::filesystem::path& directory, std::span<const std::int32_t> ids,
                    const MeasureOptions& options, ModelMeasure& measure) {
  const Transformer model = Transformer::load(directory);
  SessionOptions how;
  how.compute = how.cache_type = DType::bf16;
  Session session(model, how);
  std::int64_t next = 0;
  for (const std::int64_t context : options.contexts) {
    std::vector<std::int32_t> more;
    while (session.length() + std::ssize(more) < context) more.push_back(ids[next++ % std::ssize(ids)]);
    session.append(more);
    measure.cache_bytes_per_token =
        static_cast<double>(session.cache().pool().bytes_in_use()) / static_cast<double>(session.length());
    measure.decode.push_back(decode_speed(session, ids[next % std::ssize(ids)], options.seconds));
  }
}

/// What forward left of a layer, as head_diversity reads it.
HeadsSeen heads_of(const ModelConfig& c, LayerTape& tape, const TokenBlock& block) {
  const auto scale = static_cast<float>(c.softmax_scale);
  const std::int64_t tokens = block.tokens();
  if (c.attention == AttentionKind::heads) {
    const std::int64_t d = c.head_dim;
    return {{c.num_heads, c.num_kv_heads, d, d, scale, true},
            block.length,
            matrix_in(tape.heads.queries, tokens, c.num_heads * d),
            matrix_in(tape.heads.rows, tokens, c.heads_width()),
            2 * d};
  }
  const std::int64_t d = c.qk_head_dim(), row = d + c.v_head_dim;
  return {{c.num_heads, c.num_heads, d, c.v_head_dim, scale, true},
          block.length,
          matrix_in(tape.mla.queries, tokens, c.num_heads * d),
          matrix_in(tape.mla.rows, tokens, c.num_heads * row),
          row};
}

void watch_heads(const std::filesystem::path& directory, std::span<const std::int32_t> ids,
                 const MeasureOptions& options, ModelMeasure& measure) {
  TrainedTransformer model(read_config(directory));
  model.read(Checkpoint::open(directory));
  const std::int64_t whole = std::ssize(ids) / options.length;
  require(whole >= 1, "comparison: found {} tokens of held-back text, expected a sequence of {}", ids.size(),
          options.length);
  const TokenBlock block{std::min(whole, options.sequences), options.length};
  const std::vector<std::int32_t> none(static_cast<std::size_t>(block.tokens()), -1);
  TrainingMemory memory;
  model.loss({block, ids.first(static_cast<std::size_t>(block.tokens())), none}, {}, memory);
  for (LayerTape& tape : memory.layers)
    measure.layers.push_back(head_diversity(heads_of(model.config(), tape, block)));
}

}  // namespace

ModelMeasure measure_model(const std::filesystem::path& directory, std::span<const std::int32_t> ids,
                           const MeasureOptions& options) {
  ModelMeasure measure;
  watch_heads(directory, ids, options, measure);
  measure_decode(directory, ids, options, measure);
  return measure;
}

}  // namespace mla
