#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "mla/model/transformer.h"

namespace mla {

/// How a conversation runs.
struct SessionOptions {
  MlaForm form = MlaForm::automatic;  ///< of latent attention
  DType compute = DType::f32;
  DType cache_type = DType::f32;
  std::int64_t chunk = 512;     ///< most tokens of one forward pass
  std::int64_t page_rows = 64;  ///< tokens of one cache page
  std::int64_t max_tokens = 0;  ///< longest the conversation may become; 0: the model's context limit
  HeadsKernels kernels = HeadsKernels::automatic;  ///< of attention with key and value heads
};

/// One conversation with a model: its cache and the logits of what may come next. All that it keeps per token
/// is the token's cache rows. The model must outlive it.
class Session {
 public:
  /// Throws Error if chunk or page_rows is below 1, max_tokens is beyond the model's context limit, or the
  /// model's attention lacks the form or the type of rows.
  Session(const Transformer& model, const SessionOptions& options);

  /// Runs `ids` behind what the conversation holds, chunk by chunk, and returns the logits [vocab] behind the
  /// last one; they stay valid until the next call. Throws Error if ids is empty or has an id outside the
  /// vocabulary, or if the conversation would outgrow max_tokens; the conversation is then as before.
  std::span<const float> feed(std::span<const std::int32_t> ids);

  /// The same without logits: for all but the last part of a long prompt that is fed part by part.
  void append(std::span<const std::int32_t> ids);

  /// The same as feed, with the logits behind every id: out [ids, vocab].
  void feed_all(std::span<const std::int32_t> ids, MatrixView<float> out);

  /// The same as feed, with the stream after each layer instead: [layers + 1][ids][d], as
  /// Transformer::forward's trace.
  std::vector<float> feed_traced(std::span<const std::int32_t> ids);

  /// The form in which the next `tokens` tokens, fed as one chunk, will attend. REQUIRES a model of latent
  /// attention.
  MlaForm form_for(std::int64_t tokens) const;

  std::int64_t length() const { return cache_.length(); }
  std::int64_t max_tokens() const { return max_tokens_; }
  const SessionOptions& options() const { return options_; }
  const KvCache& cache() const { return cache_; }

  /// Forgets all tokens from `length` on.
  void truncate(std::int64_t length) { cache_.truncate(length); }

  /// Another conversation with the same past; cached pages are shared until one of the two writes.
  Session fork() const;

 private:
  Session(const Session& past, KvCache cache);
  ForwardOptions forward_options() const { return {options_.form, options_.compute, options_.kernels}; }
  void check(std::span<const std::int32_t> ids) const;
  MatrixView<float> run(std::span<const std::int32_t> ids, std::vector<float>* trace = nullptr);
  template <class Use>
  void run_chunks(std::span<const std::int32_t> ids, const Use& use);

  const Transformer& model_;
  SessionOptions options_;
  std::int64_t max_tokens_;
  Rotary rotary_;
  KvCache cache_;
  TransformerScratch scratch_;
  Buffer<float> logits_;  // [vocab]
};

}  // namespace mla
