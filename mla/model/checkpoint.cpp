#include "mla/model/checkpoint.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <sstream>

#include "mla/core/error.h"
#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "mla/model/config_fields.h"

namespace mla {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

/// tensor > file, as the index says. Its files must be plain names: a path could lead out of the directory.
std::map<std::string, std::string> read_index(const fs::path& path) {
  const std::string source = path.string();
  const json root = parse_json(read_text(path), source);
  JsonFields fields(root, source);
  const json& weight_map = fields.need("weight_map", "an object of tensor names and files");
  if (!weight_map.is_object() || weight_map.empty()) {
    fields.refuse("weight_map", "an object of tensor names and files");
  }
  std::map<std::string, std::string> files;
  for (const auto& [name, file] : weight_map.items()) {
    const std::string text = file.is_string() ? file.get<std::string>() : "";
    const bool is_plain = !text.empty() && text != "." && text != ".." && text.find('/') == text.npos &&
                          text.find('\0') == text.npos;
    require(is_plain, "{}: weight_map: {}: found {}, expected the name of a file in the same directory",
            source, json_text(name), json_text(file));
    files.emplace(name, text);
  }
  return files;
}

/// What a small file of /proc or /sys says, or nothing.
std::optional<std::string> system_text(const fs::path& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// The number that follows `key` in `text`, or nothing. "max", the absence of a limit, is nothing too.
std::optional<std::int64_t> number_after(const std::string& text, const std::string& key) {
  std::size_t at = 0;
  while (!key.empty()) {  // the key must begin a line
    at = text.find(key, at);
    if (at == text.npos) return std::nullopt;
    if (at == 0 || text[at - 1] == '\n') break;
    at += key.size();
  }
  at = text.find_first_not_of(" \t", at + key.size());
  if (at == text.npos) return std::nullopt;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), value);
  return error == std::errc{} ? std::optional(value) : std::nullopt;
}

std::optional<std::int64_t> number_in(const fs::path& path, const std::string& key = "") {
  const std::optional<std::string> text = system_text(path);
  return text ? number_after(*text, key) : std::nullopt;
}

/// What the control group at `group` still allows; nothing if it sets no limit.
std::optional<std::int64_t> left_in_group(const fs::path& group, const char* limit_file,
                                          const char* used_file, const char* cache_key) {
  const std::optional<std::int64_t> limit = number_in(group / limit_file);
  if (!limit) return std::nullopt;
  const std::int64_t used = number_in(group / used_file).value_or(0);
  const std::int64_t cached = number_in(group / "memory.stat", cache_key).value_or(0);
  return std::max<std::int64_t>(*limit - std::max<std::int64_t>(used - cached, 0), 0);
}

/// The least that the group `name` and the groups above it allow. In a container the name may not exist below
/// `mount`: what exists counts.
std::int64_t left_in_groups(const fs::path& mount, fs::path name, const char* limit_file,
                            const char* used_file, const char* cache_key) {
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  name = name.relative_path();
  while (true) {
    least = std::min(least, left_in_group(mount / name, limit_file, used_file, cache_key).value_or(least));
    if (name.empty()) return least;
    name = name.parent_path();
  }
}

}  // namespace

Checkpoint Checkpoint::open(const fs::path& directory) {
  Checkpoint checkpoint;
  checkpoint.source_ = directory.string();
  const fs::path index = directory / "model.safetensors.index.json";
  const fs::path single = directory / "model.safetensors";
  if (!is_there(index)) {
    require(is_there(single),
            "{}: found no weights, expected model.safetensors.index.json or model.safetensors",
            checkpoint.source_);
    checkpoint.add_file(single);
    return checkpoint;
  }
  const std::map<std::string, std::string> weight_map = read_index(index);
  std::set<std::string> files;
  for (const auto& [name, file] : weight_map) files.insert(file);
  require(!is_there(single) || files.contains("model.safetensors"),
          "{}: found a model.safetensors that {} leaves out, expected only one of the two",
          checkpoint.source_, index.filename().string());
  for (const std::string& file : files) {
    require(is_there(directory / file), "{}: found no such file, expected it as {} names it",
            (directory / file).string(), index.filename().string());
    checkpoint.add_file(directory / file);
  }
  checkpoint.check_index(weight_map, index.string());
  return checkpoint;
}

void Checkpoint::add_file(const fs::path& path) {
  files_.emplace_back(path);
  paths_.push_back(path.string());
  for (const StoredTensor& tensor : files_.back().tensors()) {
    const auto [slot, is_new] = places_.try_emplace(tensor.name, Place{&tensor, files_.size() - 1});
    require(is_new, "{}: tensor {}: found it here and in {}, expected it once", paths_.back(),
            json_text(tensor.name), paths_[slot->second.file]);
  }
}

void Checkpoint::check_index(const std::map<std::string, std::string>& weight_map,
                             const std::string& index) const {
  for (const auto& [name, file] : weight_map) {
    const auto place = places_.find(name);
    const std::string found =
        place == places_.end() ? "no such tensor" : "it in " + paths_[place->second.file];
    const bool is_there = place != places_.end() && fs::path(paths_[place->second.file]).filename() == file;
    require(is_there, "{}: weight_map: {}: found {}, expected it in {}", index, json_text(name), found, file);
  }
  for (const auto& [name, place] : places_) {
    require(weight_map.contains(name), "{}: tensor {}: found it in the file, expected only what {} names",
            paths_[place.file], json_text(name), index);
  }
}

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto place = places_.find(name);
  return place == places_.end() ? nullptr : place->second.tensor;
}

const StoredTensor& Checkpoint::tensor(std::string_view name, std::span<const std::int64_t> shape,
                                       std::initializer_list<StoredType> types) const {
  std::vector<std::string> type_names;
  for (const StoredType type : types) type_names.emplace_back(name_of(type));
  const std::string expected = fmt::format("{} {}", fmt::join(type_names, " or "), shape_text(shape));
  const StoredTensor* found = find(name);
  require(found != nullptr, "{}: tensor {}: found nothing, expected {}", source_, name, expected);
  const bool fits =
      std::ranges::find(types, found->type) != types.end() && std::ranges::equal(found->shape, shape);
  require(fits, "{}: tensor {}: found {} {}, expected {}", file_of(name), name, name_of(found->type),
          shape_text(found->shape), expected);
  return *found;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

const std::string& Checkpoint::file_of(std::string_view name) const {
  const auto place = places_.find(name);
  require(place != places_.end(), "{}: tensor {}: found nothing, expected it in one of the files", source_,
          name);
  return paths_[place->second.file];
}

std::int64_t Checkpoint::total_bytes() const {
  std::int64_t total = 0;
  for (const auto& [name, place] : places_) total += static_cast<std::int64_t>(place.tensor->data.size());
  return total;
}

void check_fits(std::int64_t needed, std::int64_t available, const std::string& source) {
  constexpr double gib = 1024.0 * 1024.0 * 1024.0;
  require(needed <= available, "{}: needs {:.1f} GiB of memory, {:.1f} GiB are available", source,
          static_cast<double>(needed) / gib, static_cast<double>(available) / gib);
}

std::int64_t available_memory(const fs::path& root) {
  const fs::path meminfo = root / "proc/meminfo";
  const std::optional<std::int64_t> kib = number_in(meminfo, "MemAvailable:");
  require(kib.has_value() && *kib >= 0 && *kib < (std::int64_t{1} << 50),
          "{}: MemAvailable: found no size, expected one", meminfo.string());
  std::int64_t least = *kib * 1024;
  std::istringstream groups(system_text(root / "proc/self/cgroup").value_or(""));
  const fs::path mount = root / "sys/fs/cgroup";
  for (std::string line; std::getline(groups, line);) {  // number:controllers:name
    const std::size_t first = line.find(':');
    const std::size_t second = first == line.npos ? first : line.find(':', first + 1);
    if (second == line.npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const fs::path name = line.substr(second + 1);
    if (controllers == ",,") {
      least = std::min(least, left_in_groups(mount, name, "memory.max", "memory.current", "file "));
    } else if (controllers.find(",memory,") != controllers.npos) {
      least = std::min(least, left_in_groups(mount / "memory", name, "memory.limit_in_bytes",
                                             "memory.usage_in_bytes", "total_cache "));
    }
  }
  return least;
}

}  // namespace mla
