#include "apps/explain/render.h"

namespace mla::app {

nlohmann::ordered_json render_json(const Told& told) {
  using nlohmann::ordered_json;
  ordered_json checks = ordered_json::array(), code = ordered_json::array();
  for (const Block& block : told.page.blocks) {
    if (const Check* check = std::get_if<Check>(&block))
      checks.push_back({{"claim", check->claim}, {"holds", check->holds}, {"evidence", check->evidence}});
  }
  for (const CodePlace& place : told.page.code)
    code.push_back({{"file", place.file}, {"function", place.function}});
  return {{"topic", told.topic->name},
          {"section", told.topic->section},
          {"title", told.topic->title},
          {"holds", holds(told.page)},
          {"checks", checks},
          {"numbers", told.page.numbers},
          {"code", code}};
}

}  // namespace mla::app
