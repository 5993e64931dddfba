#pragma once
#include <filesystem>
#include <span>
#include <string>

#include "apps/explain/topics.h"

namespace mla::app {

/// A topic with what it told.
struct Told {
  const Topic* topic;
  Page page;
};

/// The page in at most 80 columns; with colours if `coloured`.
std::string render_terminal(const Told& told, bool coloured);

/// {topic, section, title, holds, checks: [{claim, holds, evidence}], numbers, code}.
nlohmann::ordered_json render_json(const Told& told);

/// docs/chapter.md: a table from sections to topics to code.
std::string render_map(std::span<const Told> all);

/// A site that works from disk: index.html, one page a topic, one style sheet and one script beside them.
/// Writes each file beside and puts it in place. Throws Error naming what can't be written.
void write_site(const std::filesystem::path& directory, std::span<const Told> all);

}  // namespace mla::app
