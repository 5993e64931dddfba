// mla logits: the logits behind every token, for comparing with other engines.
#include <optional>

#include "apps/commands.h"
#include "apps/load.h"
#include "apps/terminal.h"
#include "mla/core/error.h"
#include "mla/core/npy.h"

namespace mla::app {

void logits(const LogitsOptions& options) {
  const auto directory = model_directory(options.model.model);
  require(options.input.text || options.input.ids, "logits: expected --ids or --text");
  std::optional<Tokenizer> tokenizer;
  const std::vector<std::int32_t> ids = input_ids(options.input, "", directory, tokenizer);
  const Transformer model = load_model(options.model);
  const auto count = static_cast<std::int64_t>(ids.size());
  const std::int64_t vocab = model.config().vocab_size;
  require(count >= 1, "logits: found no tokens, expected at least one");
  Session session(model, session_options(options.model, model, count));

  NpyArray out{{count, vocab}, std::vector<float>(static_cast<std::size_t>(count * vocab))};
  Progress progress("running", count);
  for (std::int64_t done = 0; done < count; done = session.length()) {
    const std::int64_t part = std::min(options.model.chunk, count - done);
    session.feed_all(std::span(ids).subspan(done, part), {out.data.data() + done * vocab, part, vocab});
    progress.show(session.length());
    if (was_interrupted()) fail("interrupted");
  }
  write_npy(options.out, out);
}

}  // namespace mla::app
