#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mla {

/// Token texts and their ids, both ways. Ids may have gaps.
class Vocabulary {
 public:
  static constexpr std::int64_t max_id = (1 << 24) - 1;

  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  /// Adds a token; false if its text or its id is there already. `id` is from 0 to max_id.
  bool add(const std::string& token, std::int32_t id) {
    if (id < size() && at_[static_cast<std::size_t>(id)] != nullptr) return false;
    const auto [place, is_new] = ids_.emplace(token, id);
    if (!is_new) return false;
    if (id >= size()) at_.resize(static_cast<std::size_t>(id) + 1, nullptr);
    at_[static_cast<std::size_t>(id)] = &place->first;
    return true;
  }

  std::optional<std::int32_t> find(std::string_view token) const {
    const auto place = ids_.find(token);
    if (place == ids_.end()) return std::nullopt;
    return place->second;
  }

  /// The text of an id, or nullptr if no token has it.
  const std::string* token(std::int64_t id) const {
    return id < 0 || id >= size() ? nullptr : at_[static_cast<std::size_t>(id)];
  }

  /// Highest id + 1.
  std::int64_t size() const { return static_cast<std::int64_t>(at_.size()); }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::unordered_map<std::string, std::int32_t, Hash, std::equal_to<>> ids_;
  std::vector<const std::string*> at_;  // by id; the map never moves its keys
};

}  // namespace mla
