#include "mla/runtime/session.h"

#include <algorithm>
#include <limits>

#include "mla/core/error.h"

namespace mla {
namespace {

/// Of pages: a conversation is held to its tokens, and its forks need pages of their own.
constexpr std::int64_t no_limit = std::numeric_limits<std::int64_t>::max();

/// The conversation's limit: what was asked for, within the model's own.
std::int64_t limit(const Transformer& model, const SessionOptions& options) {
  require(options.chunk >= 1, "chunk: found {}, expected at least 1", options.chunk);
  require(options.page_rows >= 1, "page rows: found {}, expected at least 1", options.page_rows);
  require(options.compute == DType::f32 || options.compute == DType::bf16,
          "compute type: found {}, expected f32 or bf16", name_of(options.compute));
  const ModelConfig& config = model.config();
  require(
      options.form == MlaForm::automatic || config.attention == AttentionKind::latent,
      "attention: found the explicit or absorbed form, expected automatic: a {} model has no latents that "
      "could have forms",
      config.model_type);
  const std::int64_t context = config.max_context;
  require(
      options.max_tokens >= 0 && options.max_tokens <= context,
      "conversation of {} tokens: expected at most {}, the model's context limit (max_position_embeddings)",
      options.max_tokens, context);
  return options.max_tokens > 0 ? options.max_tokens : context;
}

}  // namespace

Session::Session(const Transformer& model, const SessionOptions& options)
    : model_(model),
      options_(options),
      max_tokens_(limit(model, options)),
      rotary_(model.config().rope, max_tokens_),
      cache_(model.make_pool(options.cache_type, options.page_rows, no_limit)) {}

Session::Session(const Session& past, KvCache cache)
    : model_(past.model_),
      options_(past.options_),
      max_tokens_(past.max_tokens_),
      rotary_(past.rotary_),
      cache_(std::move(cache)) {}

Session Session::fork() const {
  return {*this, cache_.fork()};
}

MlaForm Session::form_for(std::int64_t tokens) const {
  return model_.form_for(forward_options(), options_.cache_type, tokens, length() + tokens);
}

void Session::check(std::span<const std::int32_t> ids) const {
  require(!ids.empty(), "no tokens to run");
  const auto count = static_cast<std::int64_t>(ids.size());
  require(count <= max_tokens_ - length(),
          "{} tokens behind {}: expected at most {} in all (the context limit)", count, length(),
          max_tokens_);
  for (const std::int32_t id : ids) {
    require(id >= 0 && id < model_.config().vocab_size, "token id: found {}, expected 0 to {}", id,
            model_.config().vocab_size - 1);
  }
}

MatrixView<float> Session::run(std::span<const std::int32_t> ids, std::vector<float>* trace) {
  return model_.forward(ids, forward_options(), rotary_, cache_, scratch_, trace);
}

/// Calls use(hidden, index of its first token) for each chunk; whatever fails, the cache is then as before.
template <class Use>
void Session::run_chunks(std::span<const std::int32_t> ids, const Use& use) {
  check(ids);
  const std::int64_t before = length();
  try {
    for (std::size_t done = 0; done < ids.size();) {
      const std::size_t count = std::min(ids.size() - done, static_cast<std::size_t>(options_.chunk));
      use(run(ids.subspan(done, count)), static_cast<std::int64_t>(done));
      done += count;
    }
  } catch (...) {
    cache_.truncate(before);
    throw;
  }
}

std::span<const float> Session::feed(std::span<const std::int32_t> ids) {
  const MatrixView<float> out = matrix_in(logits_, 1, model_.config().vocab_size);
  run_chunks(ids, [&](MatrixView<float> hidden, std::int64_t first) {
    if (first + hidden.rows < static_cast<std::int64_t>(ids.size())) return;
    model_.logits(hidden.block(hidden.rows - 1, 1), options_.compute, out);
  });
  return logits_.span();
}

void Session::append(std::span<const std::int32_t> ids) {
  run_chunks(ids, [](MatrixView<float>, std::int64_t) {});
}

void Session::feed_all(std::span<const std::int32_t> ids, MatrixView<float> out) {
  run_chunks(ids, [&](MatrixView<float> hidden, std::int64_t first) {
    model_.logits(hidden, options_.compute, out.block(first, hidden.rows));
  });
}

std::vector<float> Session::feed_traced(std::span<const std::int32_t> ids) {
  check(ids);
  const std::int64_t before = length();
  std::vector<float> trace;
  try {
    run(ids, &trace);
  } catch (...) {
    cache_.truncate(before);
    throw;
  }
  return trace;
}

}  // namespace mla
