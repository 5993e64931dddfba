#include "mla/model/config_rope.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace mla {
namespace {

using nlohmann::json;

/// One of the two spellings without its nulls and with `type` called rope_type; an empty object if it is
/// absent.
json spelling(JsonFields& config, const std::string& name) {
  const json* found = config.find(name);
  if (!found) return json::object();
  if (!found->is_object()) config.refuse(name, "an object or null");
  json fields = json::object();
  for (const auto& item : found->items()) {
    if (item.value().is_null()) continue;
    const std::string key = item.key() == "type" ? "rope_type" : item.key();
    const auto [slot, is_new] = fields.emplace(key, item.value());
    if (!is_new && *slot != item.value()) config.refuse(name, "type and rope_type to be the same");
  }
  return fields;
}

/// Adds the field `name` of the top level to `fields`; both may be there if they are equal.
void add_from_top(JsonFields& config, const std::string& name, const std::string& where, json& fields) {
  const json* top = config.find(name);
  if (!top) return;
  const auto [slot, is_new] = fields.emplace(name, *top);
  if (!is_new && *slot != *top) config.refuse(name, "the same as in " + where + ", " + json_text(*slot));
}

void read_yarn(JsonFields& fields, RopeFields& rope) {
  RopeSpec& spec = rope.spec;
  spec.scaling = RopeScaling::yarn;
  fields.need("factor", "a number from 1");
  spec.factor = fields.number_from("factor", 1.0, 1.0);
  spec.original_context = fields.integer("original_max_position_embeddings", 1, max_count);
  spec.truncate = fields.flag("truncate", true);
  if (fields.has("beta_fast")) spec.beta_fast = fields.number_above("beta_fast", 0.0);
  if (fields.has("beta_slow")) spec.beta_slow = fields.number_above("beta_slow", 0.0);
  if (spec.beta_fast < spec.beta_slow) fields.refuse("beta_fast", "a number from beta_slow");

  const double mscale = fields.number_from("mscale", 0.0, 0.0);
  const double mscale_all_dim = fields.number_from("mscale_all_dim", 0.0, 0.0);
  if (fields.has("attention_factor")) {
    spec.attention_factor = fields.number_above("attention_factor", 0.0);
  } else if (mscale > 0.0 && mscale_all_dim > 0.0) {
    spec.attention_factor = yarn_mscale(spec.factor, mscale) / yarn_mscale(spec.factor, mscale_all_dim);
  } else {
    spec.attention_factor = yarn_mscale(spec.factor, 1.0);
  }
  if (mscale_all_dim > 0.0) rope.softmax_factor = std::pow(yarn_mscale(spec.factor, mscale_all_dim), 2.0);
}

std::vector<double> divisors(JsonFields& fields, const std::string& name, std::int64_t dim) {
  std::vector<double> factors = fields.positive_numbers(name);
  if (static_cast<std::int64_t>(factors.size()) != dim / 2) {
    fields.refuse(name,
                  fmt::format("qk_rope_head_dim / 2 = {} numbers instead of {}", dim / 2, factors.size()));
  }
  return factors;
}

void read_longrope(JsonFields& fields, std::int64_t max_context, RopeSpec& spec) {
  spec.scaling = RopeScaling::longrope;
  spec.original_context = fields.integer("original_max_position_embeddings", 2, max_count);
  spec.short_factor = divisors(fields, "short_factor", spec.dim);
  spec.long_factor = divisors(fields, "long_factor", spec.dim);
  const auto original = static_cast<double>(spec.original_context);
  spec.factor = static_cast<double>(max_context) / original;
  if (fields.has("factor")) spec.factor = fields.number_above("factor", 0.0);
  if (fields.has("attention_factor")) {
    spec.attention_factor = fields.number_above("attention_factor", 0.0);
  } else if (spec.factor > 1.0) {
    spec.attention_factor = std::sqrt(1.0 + std::log(spec.factor) / std::log(original));
  }
}

void read_llama3(JsonFields& fields, RopeSpec& spec) {
  spec.scaling = RopeScaling::llama3;
  fields.need("factor", "a number from 1");
  spec.factor = fields.number_from("factor", 1.0, 1.0);
  spec.original_context = fields.integer("original_max_position_embeddings", 1, max_count);
  spec.low_freq_factor = fields.number_above("low_freq_factor", 0.0);
  spec.high_freq_factor = fields.number_above("high_freq_factor", spec.low_freq_factor);
}

/// The fields of whichever spelling is used, completed from the top level; `name` becomes the name of that
/// spelling.
json rope_object(JsonFields& config, std::string& name) {
  json newer = spelling(config, "rope_parameters");
  json older = spelling(config, "rope_scaling");
  if (!newer.empty() && !older.empty()) {
    for (const char* field : {"rope_theta", "partial_rotary_factor"}) {
      if (newer.contains(field)) older.emplace(field, newer[field]);
    }
    if (older != newer) config.refuse("rope_scaling", "the same as in rope_parameters, " + json_text(newer));
  }
  name = newer.empty() ? "rope_scaling" : "rope_parameters";
  json merged = newer.empty() ? older : newer;
  merged.emplace("rope_type", "default");
  add_from_top(config, "rope_theta", name, merged);
  add_from_top(config, "partial_rotary_factor", name, merged);
  if (merged["rope_type"] != "default")
    add_from_top(config, "original_max_position_embeddings", name, merged);
  return merged;
}

}  // namespace

RopeFields read_rope(JsonFields& config, const RopeRules& rules, std::int64_t dim, std::int64_t max_context) {
  if (dim % 2 != 0) config.refuse(rules.dim_field, "an even number");
  std::string name;
  const json merged = rope_object(config, name);
  JsonFields fields(merged, config.source(), name + ".");
  RopeFields rope;
  rope.spec.dim = dim;
  if (config.has("rope_theta") || (rules.default_theta == 0.0 && !fields.has("rope_theta"))) {
    rope.spec.theta = config.number_above("rope_theta", 1.0);
  } else {
    rope.spec.theta = fields.has("rope_theta") ? fields.number_above("rope_theta", 1.0) : rules.default_theta;
  }
  fields.skip({"rope_theta"});
  fields.must_be("partial_rotary_factor", 1);
  const std::string scaling = rules.is_llama ? fields.word("rope_type", {"default", "llama3"})
                                             : fields.word("rope_type", {"default", "yarn", "longrope"});
  if (scaling == "yarn") read_yarn(fields, rope);
  if (scaling == "longrope") read_longrope(fields, max_context, rope.spec);
  if (scaling == "llama3") read_llama3(fields, rope.spec);
  fields.refuse_unread();
  return rope;
}

}  // namespace mla
