#pragma once
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "mla/core/mapped_file.h"
#include "mla/model/config.h"
#include "support/oracle.h"
#include "support/reference.h"

namespace mla::test {

/// The config.json of a reference checkpoint.
inline nlohmann::json reference_config(const std::string& name) {
  return nlohmann::json::parse(read_text(data() / "reference" / name / "config.json"));
}

inline ModelConfig parse(const nlohmann::json& config) {
  return parse_config(config.dump(), "some/config.json");
}

/// What parsing `text` is refused with.
inline std::string config_error(const std::string& text) {
  return error_of([&] { parse_config(text, "some/config.json"); });
}

/// Expects the config to be refused by a one-line message that begins with the file and field and contains
/// `found`.
inline void expect_refused(const nlohmann::json& config, const std::string& field, const std::string& found) {
  const std::string message = config_error(config.dump());
  EXPECT_EQ(message.find("some/config.json: " + field + ": found "), 0u) << message;
  EXPECT_NE(message.find(found), message.npos) << message << "\nshould contain " << found;
  EXPECT_EQ(message.find('\n'), message.npos) << message;
}

}  // namespace mla::test
