// mla score: how well the model predicts a text.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "apps/commands.h"
#include "apps/load.h"
#include "apps/terminal.h"
#include "mla/core/error.h"
#include "mla/core/mapped_file.h"

namespace mla::app {
namespace {

/// -ln p(id) under softmax(logits).
double surprise(MatrixView<const float> logits, std::int64_t row, std::int32_t id) {
  const float* values = logits.row(row);
  const double top = *std::max_element(values, values + logits.cols);
  double sum = 0;
  for (std::int64_t i = 0; i < logits.cols; ++i) sum += std::exp(values[i] - top);
  return top + std::log(sum) - values[id];
}

struct Score {
  double nats = 0;
  std::int64_t predicted = 0;
};

/// Windows of `window` tokens, each by itself; a window begins with the last token of the one before, so that
/// every token but the text's first is predicted exactly once.
Score score_windows(const Transformer& model, const SessionOptions& options,
                    std::span<const std::int32_t> ids, std::int64_t window) {
  const auto count = static_cast<std::int64_t>(ids.size());
  const std::int64_t vocab = model.config().vocab_size;
  Buffer<float> memory;
  Progress progress("scoring", count);
  Score score;
  for (std::int64_t begin = 0; begin + 1 < count; begin += window - 1) {
    const std::int64_t end = std::min(begin + window, count);
    Session session(model, options);
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t part = std::min(options.chunk, end - at);
      const MatrixView<float> logits = matrix_in(memory, part, vocab);
      session.feed_all(ids.subspan(at, part), logits);
      for (std::int64_t i = 0; i < part && at + i + 1 < end; ++i) {
        score.nats += surprise(logits, i, ids[at + i + 1]);
        ++score.predicted;
      }
      at += part;
      progress.show(at);
      if (was_interrupted()) fail("interrupted");
    }
  }
  return score;
}

}  // namespace

void score(const ScoreOptions& options) {
  const auto directory = model_directory(options.model.model);
  const std::string text = read_text(options.text_file);
  const std::vector<std::int32_t> ids = Tokenizer::load(directory).encode(text);
  require(ids.size() >= 2, "{}: found {} tokens, expected at least 2", options.text_file, ids.size());
  const Transformer model = load_model(options.model);
  const std::int64_t context = model.config().max_context;
  const std::int64_t window = options.window > 0 ? options.window : std::min<std::int64_t>(context, 1024);
  require(window >= 2 && window <= context, "--window: found {}, expected 2 to {}, the model's context limit",
          window, context);
  const Score result = score_windows(model, session_options(options.model, model, window), ids, window);

  const double bits_per_byte = result.nats / std::numbers::ln2 / static_cast<double>(text.size());
  const double perplexity = std::exp(result.nats / static_cast<double>(result.predicted));
  if (options.json) {
    const nlohmann::ordered_json json = {{"perplexity", perplexity}, {"bits_per_byte", bits_per_byte},
                                         {"tokens", ids.size()},     {"predicted_tokens", result.predicted},
                                         {"bytes", text.size()},     {"window", window}};
    say(json.dump() + "\n");
  } else {
    say(
        fmt::format("perplexity     {:.4f} per token\nbits per byte  {:.4f}\ntext           {} tokens, {} "
                    "bytes, in windows of {}\n",
                    perplexity, bits_per_byte, ids.size(), text.size(), window));
  }
}

}  // namespace mla::app
