#pragma once
#include <span>
#include <string_view>

namespace mla::app {

/// A config.json as it was published, compiled into the program.
struct PublishedConfig {
  std::string_view name;    ///< as --shape takes it: "v2-lite"
  std::string_view source;  ///< the folder in tests/data/configs that it comes from: "DeepSeek-V2-Lite"
  std::string_view text;
};

/// All of them; the list stands in CMakeLists.txt.
std::span<const PublishedConfig> published_configs();

}  // namespace mla::app
