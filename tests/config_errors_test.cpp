// config.json: what a broken one is told.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "mla/core/error.h"
#include "mla/model/config.h"
#include "support/configs.h"

namespace mla {
namespace {

using nlohmann::json;
using test::config_error;
using test::expect_refused;
using test::reference_config;

TEST(Config, SizesThatAreNone) {
  const json good = reference_config("v3");
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
  json config = reference_config(GetParam().model);
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
    const std::string message = config_error(text);
    EXPECT_EQ(message.find("some/config.json: "), 0u) << message;
    EXPECT_NE(message.find(says), message.npos) << message;
  }
  EXPECT_THROW(read_config(test::data() / "no such directory"), Error);
}

}  // namespace
}  // namespace mla
