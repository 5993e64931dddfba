#pragma once
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mla {

/// The ids that go before and behind a prompt.
class PromptTemplate {
 public:
  /// Reads the field `post_processor` (nullptr: none): ByteLevel (changes no ids), TemplateProcessing (its
  /// `single`), or a Sequence of them. `vocab_size` bounds the ids. Throws Error naming file and field for
  /// anything else.
  static PromptTemplate parse(const nlohmann::json* value, const std::string& source,
                              std::int64_t vocab_size);

  /// Applies a tokenizer_config.json: bos_token, eos_token, add_bos_token, add_eos_token. Throws Error naming
  /// file and field if one is broken or names a token that `id_of` doesn't know.
  void configure(const nlohmann::json& config, const std::string& source,
                 const std::function<std::optional<std::int32_t>(std::string_view)>& id_of);

  const std::vector<std::int32_t>& before() const { return before_; }
  const std::vector<std::int32_t>& behind() const { return behind_; }
  std::optional<std::int32_t> bos() const;
  std::optional<std::int32_t> eos() const;

 private:
  void read(const nlohmann::json& value, const std::string& source, const std::string& path,
            std::int64_t vocab_size);
  void read_template(class TokenizerFields& fields, std::int64_t vocab_size);

  std::vector<std::int32_t> before_, behind_;
  std::optional<std::int32_t> bos_, eos_;
};

}  // namespace mla
