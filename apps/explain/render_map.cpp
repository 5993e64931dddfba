#include <fmt/format.h>

#include "apps/explain/render.h"

namespace mla::app {

std::string render_map(std::span<const Told> all) {
  std::string out =
      "# The chapter, its topics and the code\n\nThe sections are those of a chapter on MLA that is not part "
      "of "
      "this repository;\neach topic says its section's claim itself: `mla explain TOPIC` tells one. Made by\n"
      "`mla explain all --map`; a test holds it to what that prints.\n\n"
      "| section | topic | title | in the code |\n|---|---|---|---|\n";
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
