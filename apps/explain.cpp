// mla explain: every section of the chapter as a claim, checked by running it.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "apps/commands.h"
#include "apps/explain/render.h"
#include "apps/load.h"
#include "apps/terminal.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"

namespace mla::app {

const Transformer& Explained::model() {
  if (!model_) model_.emplace(Transformer::load(model_directory("")));
  return *model_;
}

const Tokenizer& Explained::tokenizer() {
  if (!tokenizer_) tokenizer_.emplace(Tokenizer::load(model_directory("")));
  return *tokenizer_;
}

namespace {

/// The topics that a name means.
std::span<const Topic> chosen(const std::string& name) {
  if (name == "all") return topics();
  const auto found = std::ranges::find(topics(), name, &Topic::name);
  if (found == topics().end()) fail("topic: found '{}', expected all or one of `mla explain --list`", name);
  return {&*found, 1};
}

void list() {
  std::string out;
  for (const Topic& topic : topics())
    out += fmt::format("{:<16}{:<12}{}\n", topic.name, topic.section, topic.title);
  say(out);
}

}  // namespace

bool explain(const ExplainOptions& options) {
  if (options.threads > 0) set_threads(options.threads);
  if (options.list || options.topic.empty()) return list(), true;
  Explained with(options.broken);
  const std::span<const Topic> asked = chosen(options.topic);
  std::vector<Told> all;
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  const bool to_terminal = options.html.empty() && !options.json && !options.map;
  const bool coloured = ::isatty(STDOUT_FILENO) == 1;
  for (const Topic& topic : asked) {
    all.push_back({&topic, topic.tell(with)});
    if (to_terminal) say(render_terminal(all.back(), coloured) + (&topic == &asked.back() ? "" : "\n\n"));
    if (options.json) json.push_back(render_json(all.back()));
  }
  if (!options.html.empty()) write_site(options.html, all);
  if (options.json) say(json.dump(1) + "\n");
  if (options.map) say(render_map(all));
  return std::ranges::all_of(all, [](const Told& told) { return holds(told.page); });
}

}  // namespace mla::app
