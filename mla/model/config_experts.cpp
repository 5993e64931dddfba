#include "mla/model/config_experts.h"

#include <nlohmann/json.hpp>

namespace mla {
namespace {

using nlohmann::json;

/// DeepSeek-V2's gate. norm_topk_prob true is refused: transformers ignores it and DeepSeek's own code then
/// leaves out the scale, so no answer would be the right one.
void read_softmax_gate(JsonFields& fields, MoeConfig& moe) {
  fields.must_be("scoring_func", "softmax");
  fields.must_be("norm_topk_prob", false);
  const bool has_groups =
      fields.word("topk_method", {"greedy", "group_limited_greedy"}) == "group_limited_greedy";
  if (has_groups) moe.group_rank = GroupRank::best;
  fields.skip({"n_group", "topk_group"});  // greedy looks at no groups
}

/// DeepSeek-V3's gate.
void read_sigmoid_gate(JsonFields& fields, MoeConfig& moe) {
  fields.must_be("scoring_func", "sigmoid");
  fields.must_be("topk_method", "noaux_tc");
  fields.need("norm_topk_prob", "true or false");
  moe.normalise = fields.flag("norm_topk_prob", false);
  moe.has_bias = true;
  moe.group_rank = GroupRank::best_two;
}

void read_groups(JsonFields& fields, MoeConfig& moe) {
  moe.num_groups = fields.size("n_group");
  if (moe.num_experts % moe.num_groups != 0) {
    fields.refuse("n_group", fmt::format("a divisor of n_routed_experts {}", moe.num_experts));
  }
  moe.groups_kept = fields.integer("topk_group", 1, moe.num_groups);
  const std::int64_t group_size = moe.num_experts / moe.num_groups;
  if (moe.num_groups == 1) {
    moe.group_rank = GroupRank::none;
  } else if (moe.group_rank == GroupRank::best_two && group_size < 2) {
    fields.refuse("n_group",
                  fmt::format("at most {}: a group is ranked by its best two experts", moe.num_experts / 2));
  }
  if (moe.experts_per_token > moe.groups_kept * group_size) {
    fields.refuse("num_experts_per_tok",
                  fmt::format("at most {}, the experts of the topk_group = {} groups kept",
                              moe.groups_kept * group_size, moe.groups_kept));
  }
}

/// Which layers have experts: mlp_layer_types lists them; first_k_dense_replace and moe_layer_freq count
/// them. Both may be given if they agree.
std::vector<bool> read_layer_kinds(JsonFields& fields, std::int64_t num_layers) {
  std::vector<bool> counted, listed;
  if (!fields.has("mlp_layer_types") || fields.has("first_k_dense_replace")) {
    const std::int64_t first = fields.integer("first_k_dense_replace", 0, max_layers);
    const std::int64_t every = fields.has("moe_layer_freq") ? fields.size("moe_layer_freq") : 1;
    for (std::int64_t i = 0; i < num_layers; ++i) counted.push_back(i >= first && i % every == 0);
  }
  fields.skip({"moe_layer_freq"});
  const json* types = fields.find("mlp_layer_types");
  if (!types) return counted;
  const std::string expected =
      fmt::format("a list of num_hidden_layers = {} times dense or sparse", num_layers);
  if (!types->is_array() || static_cast<std::int64_t>(types->size()) != num_layers) {
    fields.refuse("mlp_layer_types", expected);
  }
  for (const json& type : *types) {
    if (type != "dense" && type != "sparse") fields.refuse("mlp_layer_types", expected);
    listed.push_back(type == "sparse");
  }
  if (!counted.empty() && counted != listed)
    fields.refuse("mlp_layer_types", "the same as first_k_dense_replace says");
  return listed;
}

}  // namespace

void read_experts(JsonFields& fields, GateKind gate, ModelConfig& config) {
  if (!fields.has("n_routed_experts")) {  // dense, as DeepSeek's own code takes it
    fields.skip({"n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace",
                 "moe_layer_freq", "mlp_layer_types", "n_group", "topk_group", "topk_method", "scoring_func",
                 "norm_topk_prob", "routed_scaling_factor"});
    return;
  }
  MoeConfig& moe = config.moe;
  moe.num_experts = fields.size("n_routed_experts");
  moe.experts_per_token = fields.integer("num_experts_per_tok", 1, moe.num_experts);
  if (!fields.is_written("n_shared_experts"))
    fields.refuse("n_shared_experts", "an integer, or null for none");
  moe.shared_experts = fields.has("n_shared_experts") ? fields.integer("n_shared_experts", 0, max_size) : 0;
  moe.intermediate_size = fields.size("moe_intermediate_size");
  moe.scale = fields.number_above("routed_scaling_factor", 0.0);
  moe.gate = gate;
  if (moe.gate == GateKind::softmax) read_softmax_gate(fields, moe);
  if (moe.gate == GateKind::sigmoid) read_sigmoid_gate(fields, moe);
  if (moe.group_rank != GroupRank::none) read_groups(fields, moe);
  config.layer_is_moe = read_layer_kinds(fields, config.num_layers);
}

}  // namespace mla
