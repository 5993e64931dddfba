#include <fmt/format.h>

#include "apps/explain/render.h"

namespace mla::app {

std::string render_map(std::span<const Told> all) {
  std::string out =
      "# The chapter, its topics and the code\n\nMade by `mla explain all --map`; a test holds it to what "
      "that prints. "
      "`mla explain TOPIC` tells one.\n\n| section | topic | says | in the code |\n|---|---|---|---|\n";
  for (const Told& told : all) {
    std::string code;
    for (const CodePlace& place : told.page.code)
      code += fmt::format("{}`{}` in [{}](../{})", code.empty() ? "" : "<br>", place.function, place.file,
                          place.file);
    out += fmt::format("| {} | `{}` | {} | {} |\n", told.topic->section, told.topic->name, told.topic->title,
                       code);
  }
  return out;
}

}  // namespace mla::app
