// config.json: what the twelve reference models and eight published ones ask for.
//
// tests/data/configs holds the fields of the config.json files on huggingface.co of deepseek-ai/DeepSeek-V2,
// -V2-Lite, -V3 and -R1, moonshotai/Kimi-K2-Instruct, zai-org/GLM-4.7-Flash, openbmb/MiniCPM3-4B and
// meta-llama/Llama-3.1-8B (facts, written down by hand).
#include "mla/model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "mla/core/error.h"
#include "mla/core/mapped_file.h"
#include "support/configs.h"

namespace mla {
namespace {

using nlohmann::json;
using test::expect_refused;
using test::parse;
using test::reference_config;
namespace fs = std::filesystem;

const fs::path data = MLA_TEST_DATA;

ModelConfig published(const std::string& name) {
  ModelConfig config = read_config(data / "configs" / name);
  EXPECT_TRUE(config.unread_fields.empty()) << name << ": " << config.unread_fields.front();
  return config;
}

std::int64_t experts_layers(const ModelConfig& config) {
  return std::count(config.layer_is_moe.begin(), config.layer_is_moe.end(), true);
}

TEST(Config, ReferenceModelsHaveNoUnreadFields) {
  for (const std::string& name : test::reference_names()) {
    const ModelConfig config = read_config(data / "reference" / name);
    EXPECT_TRUE(config.unread_fields.empty()) << name;
    EXPECT_EQ(config.layer_is_moe.size(), static_cast<std::size_t>(config.num_layers));
    EXPECT_EQ(config.latent_norm_epsilon, 1e-6);
  }
  for (const std::string& name : test::heads_names())
    EXPECT_TRUE(read_config(data / "reference" / name).unread_fields.empty()) << name;
  EXPECT_TRUE(read_config(fs::path(MLA_SOURCE_DIR) / "models" / "default").unread_fields.empty());
}

TEST(Config, DeepSeekV3) {
  for (const char* name : {"DeepSeek-V3", "DeepSeek-R1"}) {
    const ModelConfig config = published(name);
    EXPECT_EQ(config.latent_width(), 576);
    EXPECT_EQ(config.num_heads, 128);
    EXPECT_EQ(config.q_lora_rank, 1536);
    EXPECT_NEAR(config.softmax_scale, 0.1352338, 1e-7);
    EXPECT_EQ(config.rope.scaling, RopeScaling::yarn);
    EXPECT_EQ(config.rope.layout, RopeLayout::interleaved);
    EXPECT_EQ(config.rope.attention_factor, 1.0);
    EXPECT_EQ(config.rope.factor, 40.0);
    EXPECT_EQ(config.rope.original_context, 4096);
    EXPECT_EQ(config.moe.gate, GateKind::sigmoid);
    EXPECT_EQ(config.moe.group_rank, GroupRank::best_two);
    EXPECT_EQ(config.moe.num_groups, 8);
    EXPECT_EQ(config.moe.groups_kept, 4);
    EXPECT_TRUE(config.moe.has_bias && config.moe.normalise);
    EXPECT_EQ(config.moe.scale, 2.5);
    EXPECT_EQ(experts_layers(config), 58);
    EXPECT_FALSE(config.layer_is_moe[2]);
    EXPECT_EQ(config.fp8.rows, 128);
    EXPECT_EQ(config.eos_ids, std::vector<std::int64_t>{1});
  }
}

TEST(Config, DeepSeekV2) {
  const ModelConfig big = published("DeepSeek-V2");
  EXPECT_NEAR(big.softmax_scale, 0.1147214, 1e-7);
  EXPECT_EQ(big.moe.group_rank, GroupRank::best);
  EXPECT_EQ(big.moe.groups_kept, 3);
  EXPECT_EQ(big.moe.scale, 16.0);
  const ModelConfig lite = published("DeepSeek-V2-Lite");
  EXPECT_NEAR(lite.softmax_scale, 0.1147214, 1e-7);
  EXPECT_EQ(lite.q_lora_rank, 0);
  EXPECT_EQ(lite.moe.gate, GateKind::softmax);
  EXPECT_EQ(lite.moe.group_rank, GroupRank::none);
  EXPECT_EQ(lite.moe.num_groups, 1);
  EXPECT_FALSE(lite.moe.has_bias || lite.moe.normalise);
  EXPECT_EQ(experts_layers(lite), 26);
}

TEST(Config, KimiK2) {
  const ModelConfig config = published("Kimi-K2-Instruct");
  EXPECT_EQ(config.moe.num_experts, 384);
  EXPECT_EQ(config.moe.group_rank, GroupRank::none);
  EXPECT_EQ(config.rope.theta, 50000.0);
  EXPECT_EQ(config.rope.beta_fast, 1.0);
  EXPECT_NEAR(config.softmax_scale, std::pow(0.1 * std::log(32.0) + 1.0, 2.0) / std::sqrt(192.0), 1e-12);
}

TEST(Config, Glm) {
  const ModelConfig config = published("GLM-4.7-Flash");
  EXPECT_EQ(config.v_head_dim, 256);
  EXPECT_EQ(config.softmax_scale, 0.0625);
  EXPECT_EQ(config.rope.scaling, RopeScaling::none);
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_EQ(config.norm_epsilon, 1e-5);
  EXPECT_EQ(config.bos_id, -1);
  EXPECT_EQ(config.eos_ids.size(), 3u);
  EXPECT_EQ(experts_layers(config), 46);
}

TEST(Config, MiniCpm3) {
  const ModelConfig config = published("MiniCPM3-4B");
  EXPECT_EQ(config.v_head_dim, 64);
  EXPECT_EQ(config.rope.layout, RopeLayout::half_split);
  EXPECT_EQ(config.rope.scaling, RopeScaling::longrope);
  EXPECT_EQ(config.rope.long_factor.size(), 16u);
  EXPECT_EQ(config.rope.attention_factor, 1.0);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_TRUE(config.tied_head);
  EXPECT_EQ(config.moe.num_experts, 0);
  EXPECT_EQ(config.embedding_scale, 12.0);
  EXPECT_NEAR(config.residual_scale, 1.4 / std::sqrt(62.0), 1e-12);
  EXPECT_NEAR(config.logit_scale, 0.1, 1e-12);
  EXPECT_NEAR(config.softmax_scale, 1.0 / std::sqrt(96.0), 1e-12);
}

TEST(Config, Llama) {
  const ModelConfig config = published("Llama-3.1-8B");
  EXPECT_EQ(config.attention, AttentionKind::heads);
  EXPECT_EQ(config.num_heads, 32);
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 128) << "4096 / 32";
  EXPECT_EQ(config.heads_width(), 2048);
  EXPECT_EQ(config.position, PositionKind::rotary);
  EXPECT_EQ(config.rope.dim, 128);
  EXPECT_EQ(config.rope.layout, RopeLayout::half_split);
  EXPECT_EQ(config.rope.scaling, RopeScaling::llama3);
  EXPECT_EQ(config.rope.theta, 500000.0);
  EXPECT_EQ(config.rope.factor, 8.0);
  EXPECT_EQ(config.rope.low_freq_factor, 1.0);
  EXPECT_EQ(config.rope.high_freq_factor, 4.0);
  EXPECT_EQ(config.rope.original_context, 8192);
  EXPECT_EQ(config.rope.attention_factor, 1.0);
  EXPECT_NEAR(config.softmax_scale, 1.0 / std::sqrt(128.0), 1e-15);
  EXPECT_EQ(experts_layers(config), 0);
  EXPECT_EQ(config.kv_lora_rank + config.qk_rope_head_dim + config.v_head_dim, 0);
  EXPECT_EQ(config.embedding_scale, 1.0);
  EXPECT_FALSE(config.tied_head);
}

TEST(Config, LlamaDefaultsAreTransformers) {
  json config = reference_config("llama-mqa");
  for (const char* field :
       {"num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "tie_word_embeddings", "hidden_act"})
    config.erase(field);
  const ModelConfig read = parse(config);
  EXPECT_EQ(read.num_kv_heads, 4);
  EXPECT_EQ(read.head_dim, 12);
  EXPECT_EQ(read.rope.theta, 10000.0);
  EXPECT_EQ(read.rope.scaling, RopeScaling::none);
  EXPECT_FALSE(read.tied_head);
}

TEST(Config, PositionEncodings) {
  json config = reference_config("llama-mha");
  for (const auto& [name, kind] :
       std::map<std::string, PositionKind>{{"rotary", PositionKind::rotary},
                                           {"none", PositionKind::none},
                                           {"integer", PositionKind::integer},
                                           {"binary", PositionKind::binary},
                                           {"sinusoidal", PositionKind::sinusoidal}}) {
    config["position_encoding"] = name;
    const ModelConfig read = parse(config);
    EXPECT_EQ(read.position, kind);
    EXPECT_EQ(read.rope.dim, name == "rotary" ? 12 : 0);
    EXPECT_TRUE(read.unread_fields.empty());
  }
  config["head_dim"] = 7;  // only rotation needs pairs
  EXPECT_EQ(parse(config).head_dim, 7);
  json plain = reference_config("v3");
  plain["qk_rope_head_dim"] = 0;
  EXPECT_EQ(parse(plain).position, PositionKind::none);
  EXPECT_EQ(parse(plain).rope.dim, 0);
  EXPECT_EQ(parse(plain).latent_width(), 32);
  EXPECT_EQ(parse(reference_config("v3")).position, PositionKind::rotary);
}

TEST(Config, LongropeStretchesTheAttention) {
  json config = reference_config("minicpm3");
  config["max_position_embeddings"] = 2048;  // four times the original 512
  EXPECT_NEAR(parse(config).rope.attention_factor, std::sqrt(1.0 + std::log(4.0) / std::log(512.0)), 1e-12);
  config["rope_scaling"]["factor"] = 2;
  EXPECT_NEAR(parse(config).rope.attention_factor, std::sqrt(1.0 + std::log(2.0) / std::log(512.0)), 1e-12);
  config["rope_scaling"]["attention_factor"] = 1.5;
  EXPECT_EQ(parse(config).rope.attention_factor, 1.5);
}

TEST(Config, YarnFactorsAsInTransformers) {
  json config = reference_config("v3");
  const auto scaled = [&](const json& changes) {
    json changed = config;
    changed["rope_scaling"].update(changes);
    return parse(changed);
  };
  const double plain = 0.1 * std::log(4.0) + 1.0;
  const double base = 1.0 / std::sqrt(24.0);
  EXPECT_NEAR(scaled({{"mscale", 0.5}}).rope.attention_factor, (0.05 * std::log(4.0) + 1.0) / plain, 1e-12);
  EXPECT_NEAR(scaled({{"mscale", nullptr}, {"mscale_all_dim", nullptr}}).rope.attention_factor, plain, 1e-12);
  EXPECT_NEAR(scaled({{"mscale", nullptr}, {"mscale_all_dim", nullptr}}).softmax_scale, base, 1e-12);
  EXPECT_NEAR(scaled({{"mscale_all_dim", 0}}).rope.attention_factor, plain, 1e-12);
  EXPECT_NEAR(scaled({{"attention_factor", 1.25}}).rope.attention_factor, 1.25, 1e-12);
  EXPECT_NEAR(scaled({{"mscale_all_dim", 0.5}}).softmax_scale,
              base * std::pow(0.05 * std::log(4.0) + 1.0, 2.0), 1e-12);
  EXPECT_EQ(scaled({{"factor", 1.0}}).softmax_scale, base);
  EXPECT_FALSE(scaled({{"truncate", false}}).rope.truncate);
}

TEST(Config, BothSpellingsOfRope) {
  const json newer = reference_config("v3-bf16");
  json older = newer;
  older["rope_scaling"] = newer["rope_parameters"];
  older["rope_scaling"].erase("rope_theta");
  older["rope_theta"] = 10000;
  json both = older;
  older.erase("rope_parameters");
  for (const json& config : {newer, older, both}) {
    const ModelConfig read = parse(config);
    EXPECT_EQ(read.rope.factor, 4.0);
    EXPECT_EQ(read.rope.theta, 10000.0);
    EXPECT_EQ(read.softmax_scale, parse(newer).softmax_scale);
  }
  json other = both;
  other["rope_scaling"]["factor"] = 8;
  expect_refused(other, "rope_scaling", "expected the same as in rope_parameters");
  other = both;
  other["rope_theta"] = 20000;
  expect_refused(other, "rope_theta", "found 20000, expected the same as in rope_parameters, 10000.0");
}

TEST(Config, OptionalFields) {
  json config = reference_config("v3");
  config["rope_interleave"] = false;
  config["first_k_dense_replace"] = nullptr;
  config["mlp_layer_types"] = {"sparse", "dense", "sparse"};
  config["eos_token_id"] = {1, 5};
  config["bos_token_id"] = nullptr;
  config["num_key_value_heads"] = nullptr;
  config["sliding_window"] = 4096;
  config["use_sliding_window"] = false;
  config["something_new"] = 1;
  config["n_shared_experts"] = nullptr;
  const ModelConfig read = parse(config);
  EXPECT_EQ(read.rope.layout, RopeLayout::half_split);
  EXPECT_EQ(read.layer_is_moe, (std::vector<bool>{true, false, true}));
  EXPECT_EQ(read.eos_ids, (std::vector<std::int64_t>{1, 5}));
  EXPECT_EQ(read.bos_id, -1);
  EXPECT_EQ(read.moe.shared_experts, 0);
  EXPECT_EQ(read.unread_fields, std::vector<std::string>{"something_new"});

  config.erase("n_routed_experts");
  EXPECT_EQ(experts_layers(parse(config)), 0);
  json strided = reference_config("v3");
  strided["moe_layer_freq"] = 2;
  EXPECT_EQ(parse(strided).layer_is_moe, (std::vector<bool>{false, false, true}));
}

}  // namespace
}  // namespace mla
