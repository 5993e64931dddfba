// config.json: what the twelve reference models and eight published ones ask for, and what a broken one is
// told.
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
#include "support/reference.h"

namespace mla {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

const fs::path data = MLA_TEST_DATA;

ModelConfig published(const std::string& name) {
  ModelConfig config = read_config(data / "configs" / name);
  EXPECT_TRUE(config.unread_fields.empty()) << name << ": " << config.unread_fields.front();
  return config;
}

json reference(const std::string& name) {
  return json::parse(read_text(data / "reference" / name / "config.json"));
}

ModelConfig parse(const json& config) {
  return parse_config(config.dump(), "some/config.json");
}

std::string error_of(const std::string& text) {
  try {
    parse_config(text, "some/config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

/// Expects the config to be refused by a one-line message that begins with the file and field and contains
/// `found`.
void expect_refused(const json& config, const std::string& field, const std::string& found) {
  const std::string message = error_of(config.dump());
  EXPECT_EQ(message.find("some/config.json: " + field + ": found "), 0u) << message;
  EXPECT_NE(message.find(found), message.npos) << message << "\nshould contain " << found;
  EXPECT_EQ(message.find('\n'), message.npos) << message;
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
  json config = reference("llama-mqa");
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
  json config = reference("llama-mha");
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
  json plain = reference("v3");
  plain["qk_rope_head_dim"] = 0;
  EXPECT_EQ(parse(plain).position, PositionKind::none);
  EXPECT_EQ(parse(plain).rope.dim, 0);
  EXPECT_EQ(parse(plain).latent_width(), 32);
  EXPECT_EQ(parse(reference("v3")).position, PositionKind::rotary);
}

TEST(Config, LongropeStretchesTheAttention) {
  json config = reference("minicpm3");
  config["max_position_embeddings"] = 2048;  // four times the original 512
  EXPECT_NEAR(parse(config).rope.attention_factor, std::sqrt(1.0 + std::log(4.0) / std::log(512.0)), 1e-12);
  config["rope_scaling"]["factor"] = 2;
  EXPECT_NEAR(parse(config).rope.attention_factor, std::sqrt(1.0 + std::log(2.0) / std::log(512.0)), 1e-12);
  config["rope_scaling"]["attention_factor"] = 1.5;
  EXPECT_EQ(parse(config).rope.attention_factor, 1.5);
}

TEST(Config, YarnFactorsAsInTransformers) {
  json config = reference("v3");
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
  const json newer = reference("v3-bf16");
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
  json config = reference("v3");
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
  json strided = reference("v3");
  strided["moe_layer_freq"] = 2;
  EXPECT_EQ(parse(strided).layer_is_moe, (std::vector<bool>{false, false, true}));
}

TEST(Config, SizesThatAreNone) {
  const json good = reference("v3");
  for (const char* field : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
                            "qk_rope_head_dim", "v_head_dim", "max_position_embeddings", "n_routed_experts",
                            "num_experts_per_tok", "n_group", "topk_group", "moe_intermediate_size"}) {
    for (const char* value : {"0", "-3", "9223372036854775807", "18446744073709551615", "1e300", "64.0",
                              "1.5", "\"64\"", "true", "[64]"}) {
      if (field == std::string("qk_rope_head_dim") && value == std::string("0")) continue;  // no rotation
      json config = good;
      config[field] = json::parse(value);
      expect_refused(config, field,
                     std::string("found ") + (value == std::string("1e300") ? "1e+300" : value));
    }
    if (std::string(field) == "n_routed_experts") continue;  // its absence means a dense model
    json config = good;
    config.erase(field);
    expect_refused(config, field, "found nothing");
  }
}

/// One change of a reference config, and what the message must say.
struct Bad {
  const char* model;
  const char* changes;  // a JSON merge patch; null removes
  const char* field;
  const char* says;
};

class ConfigRefuses : public testing::TestWithParam<Bad> {};

TEST_P(ConfigRefuses, WithFieldAndReason) {
  json config = reference(GetParam().model);
  config.merge_patch(json::parse(GetParam().changes));
  expect_refused(config, GetParam().field, GetParam().says);
}

INSTANTIATE_TEST_SUITE_P(
    Families, ConfigRefuses,
    testing::Values(
        Bad{"v3", R"({"model_type":"mistral"})", "model_type",
            "\"mistral\", expected deepseek_v2 or deepseek_v3 or kimi_k2 or glm4_moe_lite or minicpm3 or "
            "llama"},
        Bad{"v3", R"({"model_type":null})", "model_type", "nothing"},
        Bad{"v3", R"({"hidden_act":"gelu"})", "hidden_act", "\"gelu\", expected \"silu\""},
        Bad{"v3", R"({"attention_bias":true})", "attention_bias", "true, expected false"},
        Bad{"v2", R"({"mlp_bias":true})", "mlp_bias", "true, expected false"},
        Bad{"v3", R"({"sliding_window":4096})", "sliding_window", "4096, expected null"},
        Bad{"v3", R"({"num_key_value_heads":2})", "num_key_value_heads",
            "2, expected num_attention_heads = 4"},
        Bad{"v3", R"({"head_dim":12})", "head_dim", "12"},
        Bad{"v3", R"({"qk_head_dim":12})", "qk_head_dim", "12, expected 24"},
        Bad{"v3", R"({"qk_rope_head_dim":7})", "qk_rope_head_dim", "7, expected an even number"},
        Bad{"v3", R"({"rms_norm_eps":0})", "rms_norm_eps", "0, expected a number above 0"},
        Bad{"v3", R"({"rms_norm_eps":null})", "rms_norm_eps", "nothing"},
        Bad{"v3", R"({"pretraining_tp":2})", "pretraining_tp", "2, expected 1"},
        Bad{"v3", R"({"tie_word_embeddings":1})", "tie_word_embeddings", "1, expected true or false"},
        Bad{"v3", R"({"scale_emb":12})", "scale_emb", "12, expected no such field for deepseek_v3"},
        // experts
        Bad{"v3", R"({"num_experts_per_tok":17})", "num_experts_per_tok",
            "17, expected an integer from 1 to 16"},
        Bad{"v3", R"({"num_experts_per_tok":9})", "num_experts_per_tok", "9, expected at most 8"},
        Bad{"v3", R"({"n_group":3})", "n_group", "3, expected a divisor of n_routed_experts 16"},
        Bad{"v3", R"({"n_group":16})", "n_group", "16, expected at most 8"},
        Bad{"v3", R"({"topk_group":5})", "topk_group", "5, expected an integer from 1 to 4"},
        Bad{"v3", R"({"scoring_func":"softmax"})", "scoring_func", "\"softmax\", expected \"sigmoid\""},
        Bad{"v3", R"({"topk_method":"greedy"})", "topk_method", "\"greedy\", expected \"noaux_tc\""},
        Bad{"v3", R"({"norm_topk_prob":null})", "norm_topk_prob", "nothing"},
        Bad{"v3", R"({"routed_scaling_factor":-1})", "routed_scaling_factor",
            "-1, expected a number above 0"},
        Bad{"v3", R"({"first_k_dense_replace":null})", "first_k_dense_replace", "nothing"},
        Bad{"v3", R"({"n_shared_experts":null})", "n_shared_experts", "nothing"},
        Bad{"v2", R"({"scoring_func":"sigmoid"})", "scoring_func", "\"sigmoid\", expected \"softmax\""},
        Bad{"v2", R"({"topk_method":"noaux_tc"})", "topk_method", "expected greedy or group_limited_greedy"},
        Bad{"v2", R"({"topk_method":null})", "topk_method", "nothing"},
        Bad{"v2", R"({"norm_topk_prob":true})", "norm_topk_prob", "true, expected false"},
        Bad{"v2", R"({"rope_interleave":false})", "rope_interleave", "false, expected true"},
        Bad{"minicpm3", R"({"rope_interleave":true})", "rope_interleave", "true, expected false"},
        Bad{"glm4-moe-lite", R"({"mlp_layer_types":["dense","sparse"]})", "mlp_layer_types",
            "num_hidden_layers = 3"},
        Bad{"glm4-moe-lite", R"({"mlp_layer_types":["dense","sparse","new"]})", "mlp_layer_types",
            "dense or sparse"},
        Bad{"glm4-moe-lite", R"({"mlp_layer_types":["dense","dense","sparse"]})", "mlp_layer_types",
            "the same as first_k_dense_replace says"},
        // positions
        Bad{"v3", R"({"rope_theta":null})", "rope_theta", "nothing"},
        Bad{"v3", R"({"rope_theta":1})", "rope_theta", "1, expected a number above 1"},
        Bad{"v3", R"({"rope_scaling":7})", "rope_scaling", "7, expected an object"},
        Bad{"v3", R"({"rope_scaling":{"type":"linear"}})", "rope_scaling.rope_type",
            "\"linear\", expected default or yarn or longrope"},
        Bad{"v3", R"({"rope_scaling":{"rope_type":"longrope"}})", "rope_scaling",
            "type and rope_type to be the same"},
        Bad{"v3", R"({"rope_scaling":{"type":null}})", "rope_scaling.beta_fast", "expected no such field"},
        Bad{"v3", R"({"rope_scaling":{"factor":0.5}})", "rope_scaling.factor",
            "0.5, expected a number from 1"},
        Bad{"v3", R"({"rope_scaling":{"factor":null}})", "rope_scaling.factor", "nothing"},
        Bad{"v3", R"({"rope_scaling":{"beta_fast":0.5}})", "rope_scaling.beta_fast",
            "0.5, expected a number from beta_slow"},
        Bad{"v3", R"({"rope_scaling":{"mscale":"1"}})", "rope_scaling.mscale", "\"1\""},
        Bad{"v3", R"({"rope_scaling":{"original_max_position_embeddings":null}})",
            "rope_scaling.original_max_position_embeddings", "nothing"},
        Bad{"v3", R"({"rope_scaling":{"new":1}})", "rope_scaling.new", "1, expected no such field"},
        Bad{"v3", R"({"original_max_position_embeddings":64})", "original_max_position_embeddings",
            "64, expected the same as in rope_scaling, 32"},
        Bad{"v3", R"({"partial_rotary_factor":0.5})", "rope_scaling.partial_rotary_factor",
            "0.5, expected 1"},
        Bad{"minicpm3", R"({"rope_scaling":{"short_factor":[1,2,3]}})", "rope_scaling.short_factor",
            "expected qk_rope_head_dim / 2 = 4 numbers instead of 3"},
        Bad{"minicpm3", R"({"rope_scaling":{"long_factor":[1,2,3,0]}})", "rope_scaling.long_factor",
            "numbers above 0"},
        Bad{"minicpm3", R"({"rope_scaling":{"long_factor":null}})", "rope_scaling.long_factor", "nothing"},
        // MiniCPM3's own
        Bad{"minicpm3", R"({"scale_emb":null})", "scale_emb", "nothing"},
        Bad{"minicpm3", R"({"scale_depth":null})", "scale_depth", "nothing"},
        Bad{"minicpm3", R"({"dim_model_base":0})", "dim_model_base", "0"},
        Bad{"minicpm3", R"({"v_head_dim":null,"num_attention_heads":5,"num_key_value_heads":5})",
            "num_attention_heads", "5, expected a divisor of hidden_size 64"},
        // ids
        Bad{"v3", R"({"bos_token_id":320})", "bos_token_id", "320, expected ids below vocab_size = 320"},
        Bad{"v3", R"({"eos_token_id":[1,320]})", "eos_token_id", "[1,320]"},
        Bad{"v3", R"({"eos_token_id":-1})", "eos_token_id", "-1"},
        Bad{"v3", R"({"eos_token_id":18446744073709551615})", "eos_token_id", "18446744073709551615"},
        Bad{"v3-fp8", R"({"quantization_config":{"weight_block_size":[128,18446744073709551615]}})",
            "quantization_config.weight_block_size", "[128,18446744073709551615]"},
        // quantisation
        Bad{"v3-fp8", R"({"quantization_config":{"quant_method":"gptq"}})",
            "quantization_config.quant_method", "\"gptq\", expected fp8"},
        Bad{"v3-fp8", R"({"quantization_config":{"fmt":"e5m2"}})", "quantization_config.fmt", "\"e5m2\""},
        Bad{"v3-fp8", R"({"quantization_config":{"bits":4}})", "quantization_config.bits",
            "4, expected no such field"},
        Bad{"v3-fp8", R"({"quantization_config":{"weight_block_size":[128,0]}})",
            "quantization_config.weight_block_size", "[128,0]"},
        Bad{"v3-fp8", R"({"quantization_config":{"weight_block_size":null}})",
            "quantization_config.weight_block_size", "nothing"},
        // products
        Bad{"v3", R"({"vocab_size":2147483648,"hidden_size":16777216})", "vocab_size",
            "2147483648 x 16777216"},
        Bad{"v3", R"({"num_attention_heads":16777216,"num_key_value_heads":16777216,"v_head_dim":16777216})",
            "num_attention_heads", "at most 2^40"},
        Bad{"v3", R"({"num_hidden_layers":65536,"hidden_size":65536,"intermediate_size":16777216})",
            "num_hidden_layers", "weights in all"},
        Bad{"v3", R"({"num_hidden_layers":65536,"max_position_embeddings":2147483648})",
            "max_position_embeddings", "2147483648"}));

INSTANTIATE_TEST_SUITE_P(
    Heads, ConfigRefuses,
    testing::Values(
        Bad{"llama-gqa", R"({"num_key_value_heads":4})", "num_key_value_heads",
            "4, expected a divisor of num_attention_heads 6"},
        Bad{"llama-gqa", R"({"num_key_value_heads":12})", "num_key_value_heads", "12"},
        Bad{"llama-gqa", R"({"num_key_value_heads":0})", "num_key_value_heads", "0"},
        Bad{"llama-gqa", R"({"head_dim":0})", "head_dim", "0"},
        Bad{"llama-gqa", R"({"head_dim":15})", "head_dim", "15, expected an even number"},
        Bad{"llama-mha", R"({"num_attention_heads":5,"num_key_value_heads":5})", "num_attention_heads",
            "5, expected a divisor of hidden_size 48"},
        Bad{"llama-gqa", R"({"attention_bias":true})", "attention_bias", "true, expected false"},
        Bad{"llama-gqa", R"({"mlp_bias":true})", "mlp_bias", "true, expected false"},
        Bad{"llama-gqa", R"({"hidden_act":"gelu"})", "hidden_act", "\"gelu\", expected \"silu\""},
        Bad{"llama-gqa", R"({"sliding_window":128})", "sliding_window", "128"},
        Bad{"llama-gqa", R"({"kv_lora_rank":32})", "kv_lora_rank", "32, expected no such field for llama"},
        Bad{"llama-gqa", R"({"num_local_experts":8})", "num_local_experts", "8"},
        Bad{"llama-gqa", R"({"scale_emb":12})", "scale_emb", "12, expected no such field for llama"},
        Bad{"llama-gqa", R"({"rope_interleave":true})", "rope_interleave", "true, expected false"},
        Bad{"llama-gqa", R"({"max_position_embeddings":null})", "max_position_embeddings", "nothing"},
        Bad{"llama-gqa", R"({"rms_norm_eps":null})", "rms_norm_eps", "nothing"},
        Bad{"llama-gqa", R"({"rope_parameters":{"rope_type":"yarn"}})", "rope_parameters.rope_type",
            "\"yarn\", expected default or llama3"},
        Bad{"llama-gqa", R"({"rope_parameters":{"rope_type":"default"}})", "rope_parameters.factor",
            "8.0, expected no such field"},
        Bad{"llama-gqa", R"({"rope_parameters":{"factor":0.5}})", "rope_parameters.factor", "0.5"},
        Bad{"llama-gqa", R"({"rope_parameters":{"low_freq_factor":0}})", "rope_parameters.low_freq_factor",
            "0, expected a number above 0"},
        Bad{"llama-gqa", R"({"rope_parameters":{"high_freq_factor":1}})", "rope_parameters.high_freq_factor",
            "1, expected a number above 1"},
        Bad{"llama-gqa", R"({"rope_parameters":{"original_max_position_embeddings":null}})",
            "rope_parameters.original_max_position_embeddings", "nothing"},
        Bad{"llama-mqa", R"({"partial_rotary_factor":0.5})", "rope_scaling.partial_rotary_factor", "0.5"},
        Bad{"llama-mqa", R"({"rope_scaling":{"rope_type":"linear"}})", "rope_scaling.rope_type",
            "\"linear\""},
        Bad{"llama-mha", R"({"position_encoding":"alibi"})", "position_encoding",
            "\"alibi\", expected rotary or none or integer or binary or sinusoidal"},
        Bad{"llama-mha", R"({"position_encoding":1})", "position_encoding", "1"},
        Bad{"llama-mqa", R"({"position_encoding":"none"})", "position_encoding",
            "\"none\", expected rotary beside a rope_type"},
        Bad{"v3", R"({"position_encoding":"none"})", "position_encoding", "\"none\", expected \"rotary\""},
        Bad{"v2", R"({"qk_rope_head_dim":0})", "qk_rope_head_dim", "0, expected an integer from 1"},
        Bad{"v3", R"({"rope_scaling":{"rope_type":"llama3","type":null}})", "rope_scaling.rope_type",
            "\"llama3\", expected default or yarn or longrope"},
        // products
        Bad{"llama-gqa", R"({"num_attention_heads":16777216,"head_dim":16777216})", "num_attention_heads",
            "at most 2^40"},
        Bad{"llama-gqa", R"({"num_attention_heads":1,"num_key_value_heads":1,"head_dim":16777216,
                             "num_hidden_layers":8,"max_position_embeddings":2147483648})",
            "max_position_embeddings", "2147483648"}));

TEST(Config, TextThatIsNoConfig) {
  const std::string deep = std::string(100, '[') + std::string(100, ']');
  for (const auto& [text, says] : std::vector<std::pair<std::string, std::string>>{
           {"", "not valid JSON"},
           {"{\"model_type\": \"deepseek_v3\"", "not valid JSON"},
           {"[1]", "found [1], expected an object"},
           {R"({"model_type":"deepseek_v3","model_type":"deepseek_v2"})", "'model_type' occurs twice"},
           {"{\"model_type\": \"\xff\"}", "not valid JSON"},
           {"{\"rope_theta\": 1e999}", "not valid JSON"},
           {deep, "nested deeper"}}) {
    const std::string message = error_of(text);
    EXPECT_EQ(message.find("some/config.json: "), 0u) << message;
    EXPECT_NE(message.find(says), message.npos) << message;
  }
  EXPECT_THROW(read_config(data / "no such directory"), Error);
}

}  // namespace
}  // namespace mla
