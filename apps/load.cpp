#include "apps/load.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "apps/terminal.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/model/census.h"

namespace mla::app {
namespace {

namespace fs = std::filesystem;

/// Touches every page of the weights, so that the first token doesn't pay for reading them.
void read_in(const Checkpoint& checkpoint) {
  Progress progress("reading " + checkpoint.source(), checkpoint.total_bytes());
  std::int64_t done = 0;
  for (const std::string& name : checkpoint.names()) {
    const std::span<const std::byte> data = checkpoint.find(name)->data;
    const volatile std::byte* bytes = data.data();  // volatile: the reads themselves are what counts
    for (std::size_t i = 0; i < data.size(); i += 4096) static_cast<void>(bytes[i]);
    done += static_cast<std::int64_t>(data.size());
    progress.show(done);
    if (was_interrupted()) fail("interrupted");
  }
}

}  // namespace

fs::path model_directory(const std::string& model) {
  if (!model.empty()) return model;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  for (const char* relative : {"../models/default", "../share/mla/models/default"}) {
    const fs::path candidate = (program.parent_path() / relative).lexically_normal();
    if (fs::exists(candidate / "config.json", error)) return candidate;
  }
  fail("no model beside the program (looked for models/default from {}): use --model DIR",
       program.parent_path().string());
}

Transformer load_model(const ModelOptions& options) {
  was_interrupted();  // watch for Ctrl-C before there are other threads
  if (options.threads > 0) set_threads(options.threads);
  const fs::path directory = model_directory(options.model);
  Transformer model = Transformer::load(directory);
  if (!model.config().unread_fields.empty()) {
    fmt::print(stderr, "mla: {}: fields that this program does not know: {}\n",
               (directory / "config.json").string(), fmt::join(model.config().unread_fields, ", "));
  }
  if (!options.oversubscribe) {
    check_fits(model.checkpoint().total_bytes(), available_memory(), directory.string());
    read_in(model.checkpoint());
  }
  return model;
}

SessionOptions session_options(const ModelOptions& options, const Transformer& model,
                               std::int64_t max_tokens) {
  SessionOptions session;
  session.form = form_named(options.attention, "--attention");
  const ModelConfig& config = model.config();
  require(session.form == MlaForm::automatic || config.attention == AttentionKind::latent,
          "--attention: found {}, expected auto: {} models have no latents that could have forms",
          options.attention, attention_name(config));
  session.compute = options.dtype.empty() ? model.default_compute() : dtype_named(options.dtype, "--dtype");
  session.cache_type =
      options.cache_dtype.empty() ? session.compute : dtype_named(options.cache_dtype, "--cache-dtype");
  const bool is_latent_type = session.cache_type == DType::f8_e4m3 || session.cache_type == DType::i8;
  require(!is_latent_type || config.attention == AttentionKind::latent,
          "--cache-dtype: found {}, expected f32 or bf16: {} models have no latents to be kept so",
          options.cache_dtype, attention_name(config));
  session.chunk = options.chunk;
  session.max_tokens = max_tokens;
  return session;
}

std::vector<std::int32_t> parse_ids(const std::string& text) {
  std::vector<std::int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    while (at != end && *at == ' ') ++at;
    std::int32_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    require(error == std::errc{} && (next == end || *next == ',' || *next == ' '),
            "--ids: found '{}' at character {}, expected token ids as 1,2,3", text, at - text.data() + 1);
    ids.push_back(id);
    at = next;
    while (at != end && *at == ' ') ++at;
    if (at == end) return ids;
    if (*at == ',') ++at;
  }
}

std::vector<std::int32_t> input_ids(const InputOptions& input, const std::string& otherwise,
                                    const fs::path& directory, std::optional<Tokenizer>& tokenizer) {
  if (input.ids) return parse_ids(*input.ids);
  if (!tokenizer) tokenizer = Tokenizer::load(directory);
  std::string text = input.text.value_or(otherwise);
  if (text == "-") text.assign(std::istreambuf_iterator<char>(std::cin), {});
  return tokenizer->encode_prompt(text);
}

}  // namespace mla::app
