// mla generate: the inference loop (chapter 3.4). Prompt in, then one token at a time: logits, draw, feed.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/commands.h"
#include "apps/load.h"
#include "apps/terminal.h"
#include "mla/core/clock.h"
#include "mla/core/error.h"
#include "mla/model/sampler.h"

namespace mla::app {
namespace {

constexpr const char* default_prompt = "In the beginning";

/// What one run did, for --json.
struct Report {
  std::string text;               // of the new tokens
  std::vector<std::int32_t> ids;  // the new tokens
  std::int64_t prompt_tokens = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;
  std::int64_t decoded = 0;  // tokens fed one at a time
  std::string prefill_form, decode_form;
  const char* stop_reason = "length";
};

/// Notes the form in which the next tokens attend; "mixed" once they differ.
void note_form(std::string& forms, const Transformer& model, const Session& session, std::int64_t tokens) {
  const bool is_latent = model.config().attention == AttentionKind::latent;
  const std::string form = is_latent ? name_of(session.form_for(tokens)) : "heads";
  forms = forms.empty() || forms == form ? form : "mixed";
}

/// Feeds the prompt chunk by chunk and returns the logits behind it; nothing if the user interrupts.
std::optional<std::span<const float>> prefill(const Transformer& model, Session& session,
                                              std::span<const std::int32_t> ids, Report& report) {
  Progress progress("reading the prompt", static_cast<std::int64_t>(ids.size()));
  const double start = seconds_now();
  while (true) {
    const auto count = std::min(ids.size(), static_cast<std::size_t>(session.options().chunk));
    const auto tokens = static_cast<std::int64_t>(count);
    note_form(report.prefill_form, model, session, tokens);
    if (count == ids.size()) {
      const std::span<const float> logits = session.feed(ids);
      report.prefill_seconds = seconds_now() - start;
      return logits;
    }
    session.append(ids.first(count));
    ids = ids.subspan(count);
    progress.show(session.length());
    if (was_interrupted()) return std::nullopt;
  }
}

/// New text as it comes: to standard output, or kept for the JSON object.
class Output {
 public:
  Output(const std::optional<Tokenizer>& tokenizer, bool quiet) : quiet_(quiet) {
    if (tokenizer) decoder_.emplace(*tokenizer);
  }
  void add(std::int32_t id, Report& report) {
    if (decoder_) {
      emit(decoder_->push(id), report);
    } else {
      emit(fmt::format("{}{}", report.ids.size() > 1 ? "," : "", id),
           report);  // no tokenizer: ids are all there is
    }
  }
  void finish(Report& report) {
    if (decoder_) emit(decoder_->finish(), report);
    if (!quiet_) say("\n");
  }

 private:
  void emit(const std::string& piece, Report& report) {
    report.text += piece;
    if (!quiet_ && !piece.empty()) say(piece);
  }
  std::optional<StreamDecoder> decoder_;
  bool quiet_;
};

void decode(const Transformer& model, const GenerateOptions& options, Session& session,
            std::span<const float> logits, Output& output, Report& report) {
  Sampler sampler({options.temperature, options.top_k, options.top_p, options.seed});
  const std::vector<std::int64_t>& eos = model.config().eos_ids;
  const double start = seconds_now();
  for (std::int64_t i = 0; i < options.max_tokens; ++i) {
    if (was_interrupted()) {
      report.stop_reason = "interrupted";
      break;
    }
    const std::int32_t id = sampler.next(logits);
    report.ids.push_back(id);
    if (!options.ignore_eos && std::find(eos.begin(), eos.end(), id) != eos.end()) {
      report.stop_reason = "end of text";
      break;
    }
    output.add(id, report);
    if (i + 1 == options.max_tokens) break;
    if (session.length() == session.max_tokens()) {
      report.stop_reason = "context limit";
      break;
    }
    note_form(report.decode_form, model, session, 1);
    logits = session.feed({&report.ids.back(), 1});
    ++report.decoded;
  }
  report.decode_seconds = seconds_now() - start;
}

double rate(std::int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

std::string to_json(const Report& report, const Session& session) {
  const PagePool& pool = session.cache().pool();
  nlohmann::ordered_json json;
  json["text"] = report.text;
  json["ids"] = report.ids;
  json["stop_reason"] = report.stop_reason;
  json["prompt_tokens"] = report.prompt_tokens;
  json["prefill_tokens_per_s"] = rate(report.prompt_tokens, report.prefill_seconds);
  json["decode_tokens_per_s"] = rate(report.decoded, report.decode_seconds);
  json["cache_bytes"] = pool.bytes_in_use();
  json["cache_bytes_per_token"] = pool.num_layers() * pool.layout().bytes();
  json["attention"] = {{"prefill", report.prefill_form}, {"decode", report.decode_form}};
  json["peak_rss_bytes"] = peak_rss_bytes();
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

void generate(const GenerateOptions& options) {
  const Sampler check_options({options.temperature, options.top_k, options.top_p, options.seed});
  const auto directory = model_directory(options.model.model);
  std::optional<Tokenizer> tokenizer;
  if (!options.input.ids || Tokenizer::is_in(directory)) tokenizer = Tokenizer::load(directory);
  const std::vector<std::int32_t> ids = input_ids(options.input, default_prompt, directory, tokenizer);
  require(
      !ids.empty(),
      "--prompt: found an empty text and the model has no begin-of-text token, expected at least one token");

  const Transformer model = load_model(options.model);
  const auto prompt_tokens = static_cast<std::int64_t>(ids.size());
  require(prompt_tokens <= model.config().max_context,
          "prompt of {} tokens: expected at most {}, the model's context limit", prompt_tokens,
          model.config().max_context);
  const std::int64_t longest = std::min(prompt_tokens + options.max_tokens, model.config().max_context);
  Session session(model, session_options(options.model, model, longest));

  Report report;
  report.prompt_tokens = prompt_tokens;
  if (!options.json && tokenizer) say(tokenizer->decode(ids));
  Output output(tokenizer, options.json);
  if (const auto logits = prefill(model, session, ids, report)) {
    decode(model, options, session, *logits, output, report);
  } else {
    report.stop_reason = "interrupted";
  }
  output.finish(report);
  if (options.json) say(to_json(report, session));
}

}  // namespace mla::app
