// Binding checkpoints to configs: the small reference checkpoints, taken apart and put together wrong in one
// place.
#include "mla/model/weights.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "mla/kernels/matmul.h"
#include "support/oracle.h"
#include "support/reference.h"

namespace mla {
namespace {

namespace fs = std::filesystem;
using test::error_of;

struct Tensor {
  std::string type;
  std::vector<std::int64_t> shape;
  std::string bytes;
};
using Tensors = std::map<std::string, Tensor>;

/// A checkpoint in memory that tests change and write to a directory of their own.
class WeightsTest : public testing::Test {
 protected:
  void SetUp() override {
    directory = fs::temp_directory_path() / ("mla_weights_test_" + std::to_string(::getpid()));
    fs::remove_all(directory);
    fs::create_directories(directory);
  }
  void TearDown() override { fs::remove_all(directory); }

  void load(const std::string& name) {
    const fs::path from = test::data() / "reference" / name;
    config = parse_json(read_text(from / "config.json"), name);
    tensors.clear();
    const Checkpoint checkpoint = Checkpoint::open(from);
    for (const std::string& key : checkpoint.names()) {
      const StoredTensor& t = *checkpoint.find(key);
      tensors[key] = {
          name_of(t.type), t.shape, {reinterpret_cast<const char*>(t.data.data()), t.data.size()}};
    }
  }

  /// Writes what `change` makes of it. Larger elements come first, so that each lies at a multiple of its
  /// size.
  void save(const std::function<void(Tensors&, nlohmann::json&)>& change = [](auto&, auto&) {}) const {
    Tensors all = tensors;
    nlohmann::json settings = config, header = nlohmann::json::object();
    change(all, settings);
    std::string data;
    for (const std::size_t size : {8u, 4u, 2u, 1u}) {
      for (const auto& [name, t] : all) {
        std::int64_t count = 1;
        for (const std::int64_t side : t.shape) count *= side;
        if (t.bytes.size() != size * static_cast<std::size_t>(count)) continue;
        header[name] = {{"dtype", t.type},
                        {"shape", t.shape},
                        {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
        data += t.bytes;
      }
    }
    ASSERT_EQ(header.size(), all.size()) << "a tensor's bytes do not fit its shape";
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const std::uint64_t length = text.size();
    std::string file(8, '\0');
    std::memcpy(file.data(), &length, 8);
    write_text(directory / "model.safetensors", file + text + data);
    write_text(directory / "config.json", settings.dump());
  }

  /// Saves a changed checkpoint and expects binding it to fail with a message that begins with the file (or,
  /// for a tensor that no file has, the directory) and has all of `says`.
  void expect_refused(const std::function<void(Tensors&, nlohmann::json&)>& change,
                      const std::vector<std::string>& says, bool names_file = true) const {
    save(change);
    const std::string message = error_of([&] {
      const Checkpoint checkpoint = Checkpoint::open(directory);
      bind_weights(read_config(directory), checkpoint);
    });
    const std::string place = (names_file ? directory / "model.safetensors" : directory).string() + ": ";
    EXPECT_EQ(message.find(place), 0u) << message;
    for (const std::string& part : says) {
      EXPECT_NE(message.find(part), message.npos) << "found   : " << message << "\nexpected: " << part;
    }
  }

  fs::path directory;
  nlohmann::json config;
  Tensors tensors;
};

std::string zeros(std::size_t bytes) {
  return std::string(bytes, '\0');
}

const std::string attention = "model.layers.1.self_attn.";
const std::string kv_b = attention + "kv_b_proj.weight";

TEST_F(WeightsTest, EveryReferenceCheckpointBindsAndKeepsItsTypes) {
  for (const std::string& name : test::reference_names()) {
    const fs::path from = test::data() / "reference" / name;
    const ModelConfig c = read_config(from);
    const Checkpoint checkpoint = Checkpoint::open(from);
    const ModelWeights w = bind_weights(c, checkpoint);
    ASSERT_EQ(static_cast<std::int64_t>(w.layers.size()), c.num_layers) << name;
    const StoredTensor& stored = *checkpoint.find("model.layers.0.self_attn.kv_b_proj.weight");
    EXPECT_EQ(w.layers[0].mla.kv_b_proj.data, stored.data.data()) << "a view, not a copy";
    EXPECT_EQ(static_cast<std::int64_t>(stored.data.size()), w.layers[0].mla.kv_b_proj.rows *
                                                                 w.layers[0].mla.kv_b_proj.cols *
                                                                 size_of(w.layers[0].mla.kv_b_proj.dtype));
    for (std::int64_t i = 0; i < c.num_layers; ++i) EXPECT_EQ(w.layers[i].is_moe, c.layer_is_moe[i]);
    EXPECT_EQ(w.head.data == w.embedding.data, c.tied_head);
    // the norms' spans look into the layer that owns them, also after it moved
    EXPECT_EQ(w.layers.back().mla.kv_a_norm.data(), w.layers.back().kv_a_norm.data());
  }
}

TEST_F(WeightsTest, CopyOfACheckpointBinds) {
  for (const char* name : {"v3", "v2-lite", "v3-fp8", "v3-bf16", "minicpm3"}) {
    load(name);
    save();
    const Checkpoint checkpoint = Checkpoint::open(directory);
    EXPECT_NO_THROW(bind_weights(read_config(directory), checkpoint)) << name;
  }
}

TEST_F(WeightsTest, HeadsBindAndKeepTheirTypes) {
  for (const std::string& name : test::heads_names()) {
    const fs::path from = test::data() / "reference" / name;
    const ModelConfig c = read_config(from);
    const Checkpoint checkpoint = Checkpoint::open(from);
    const ModelWeights w = bind_weights(c, checkpoint);
    ASSERT_EQ(static_cast<std::int64_t>(w.layers.size()), c.num_layers) << name;
    const HeadsWeights& heads = w.layers[1].heads;
    for (const auto& [tensor, weight] : std::map<std::string, Weight>{
             {"q", heads.q_proj}, {"k", heads.k_proj}, {"v", heads.v_proj}, {"o", heads.o_proj}}) {
      const StoredTensor& stored = *checkpoint.find(attention + tensor + "_proj.weight");
      EXPECT_EQ(weight.data, stored.data.data()) << "a view, not a copy";
      EXPECT_EQ(stored.shape, (std::vector<std::int64_t>{weight.rows, weight.cols}));
      EXPECT_EQ(weight.dtype, name == "llama-gqa" ? DType::bf16 : DType::f32);
    }
    EXPECT_TRUE(w.layers[1].mla.o_proj.empty());
    EXPECT_EQ(w.head.data == w.embedding.data, c.tied_head);
  }
}

TEST_F(WeightsTest, HeadsAreCheckedAsOthersAre) {
  load("llama-mqa");
  for (const char* part : {"q", "k", "v", "o"}) {
    const std::string name = attention + part + "_proj.weight";
    expect_refused([&](Tensors& t, auto&) { t.erase(name); }, {"tensor " + name + ": found nothing"}, false);
  }
  const std::string k = attention + "k_proj.weight";
  expect_refused([&](Tensors& t, auto&) { t.at(k).shape = {48, 20}; }, {k, "[48, 20]", "[20, 48]"});
  expect_refused([&](Tensors&, nlohmann::json& c) { c["num_key_value_heads"] = 2; },
                 {"k_proj", "[20, 48]", "[40, 48]"});
  for (const char* surplus : {"q_proj.bias", "kv_b_proj.weight"}) {
    expect_refused(
        [&](Tensors& t, auto&) {
          t[attention + surplus] = {"F32", {3}, zeros(12)};
        },
        {surplus, "uses it"});
  }
  expect_refused(
      [&](Tensors& t, auto&) {
        t.at(k) = {"I32", {20, 48}, zeros(4 * 20 * 48)};
      },
      {k, "found I32"});
}

TEST_F(WeightsTest, MissingTensorsAreNamed) {
  load("v3");
  for (const std::string& name :
       {kv_b, std::string("model.embed_tokens.weight"), std::string("lm_head.weight"),
        std::string("model.norm.weight"), std::string("model.layers.2.input_layernorm.weight"),
        attention + "q_a_layernorm.weight", attention + "kv_a_layernorm.weight",
        std::string("model.layers.1.mlp.gate.e_score_correction_bias"),
        std::string("model.layers.2.mlp.experts.15.up_proj.weight"),
        std::string("model.layers.1.mlp.shared_experts.down_proj.weight"),
        std::string("model.layers.0.mlp.gate_proj.weight")}) {
    ASSERT_TRUE(tensors.contains(name));
    expect_refused([&](Tensors& t, auto&) { t.erase(name); }, {"tensor " + name + ": found nothing"}, false);
  }
}

TEST_F(WeightsTest, SurplusTensorsAreNamed) {
  load("v3");
  for (const std::string& name :
       {std::string("extra"), attention + "q_proj.weight", kv_b + "_scale_inv",
        std::string("model.layers.2.mlp.experts.16.up_proj.weight"), std::string("model.layers.1.extra"),
        std::string("model.layers.-1.extra"), std::string("model.layers.99999999999999999999.extra"),
        std::string("model.layers.3extra"), std::string("model.layers.0.mlp.gate.weight")}) {
    expect_refused(
        [&](Tensors& t, auto&) {
          t[name] = {"F32", {3}, zeros(12)};
        },
        {"'" + name + "'", "uses it"});
  }
}

TEST_F(WeightsTest, NextTokenLayersAndRotaryBuffersAreLetBe) {
  load("v3");
  std::erase_if(tensors, [](const auto& t) { return t.first.starts_with("model.layers.3."); });
  save([](Tensors& t, auto&) {
    t["model.layers.3.eh_proj.weight"] = {"BF16", {2}, zeros(4)};
    t["model.layers.61.shared_head.norm.weight"] = {"F32", {2}, zeros(8)};
    t["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {4}, zeros(16)};
  });
  const Checkpoint checkpoint = Checkpoint::open(directory);
  EXPECT_EQ(
      bind_weights(read_config(directory), checkpoint).not_used,
      (std::vector<std::string>{"model.layers.3.eh_proj.weight", "model.layers.61.shared_head.norm.weight"}));
}

TEST_F(WeightsTest, WrongShapesSayBoth) {
  load("v3");
  const auto reshape = [&](const std::string& name, std::vector<std::int64_t> shape, const std::string& found,
                           const std::string& expected) {
    expect_refused([&](Tensors& t, auto&) { t.at(name).shape = shape; },
                   {name, "found F32 " + found, "expected ", expected});
  };
  reshape(kv_b, {32, 112}, "[32, 112]", "[112, 32]");
  reshape(kv_b, {112 * 32}, "[3584]", "[112, 32]");
  reshape(kv_b, {1, 112, 32}, "[1, 112, 32]", "[112, 32]");
  reshape("lm_head.weight", {64, 320}, "[64, 320]", "[320, 64]");
  reshape(attention + "kv_a_layernorm.weight", {32, 1}, "[32, 1]", "[32]");
  reshape("model.layers.1.mlp.gate.e_score_correction_bias", {4, 4}, "[4, 4]", "[16]");
  expect_refused(
      [&](Tensors& t, auto&) {
        t.at("model.norm.weight") = {"F32", {63}, zeros(252)};
      },
      {"model.norm.weight", "[63]", "[64]"});
  expect_refused([&](Tensors&, nlohmann::json& c) { c["kv_lora_rank"] = 31; },
                 {"kv_a_proj_with_mqa", "[40, 64]", "[39, 64]"});
}

TEST_F(WeightsTest, WrongTypesSayBoth) {
  load("v3");
  const auto retype = [&](const std::string& name, const std::string& type, std::size_t size) {
    expect_refused(
        [&](Tensors& t, auto&) {
          t.at(name) = {type, t.at(name).shape, zeros(t.at(name).bytes.size() / 4 * size)};
        },
        {name, "found " + type, "expected F32 or F16 or BF16"});
  };
  for (const auto& [type, size] : std::map<std::string, std::size_t>{
           {"I32", 4}, {"F64", 8}, {"I8", 1}, {"U8", 1}, {"F8_E5M2", 1}, {"BOOL", 1}}) {
    retype(kv_b, type, size);
  }
  retype("model.norm.weight", "F8_E4M3", 1);
  retype("model.layers.1.mlp.gate.e_score_correction_bias", "F8_E4M3", 1);
}

TEST_F(WeightsTest, SmallVectorsAreReadFromAnyFloatType) {
  load("v3");
  const auto norm = [&](const std::string& type, const std::string& bytes) {
    save([&](Tensors& t, auto&) { t.at("model.norm.weight") = {type, {64}, bytes}; });
    const Checkpoint checkpoint = Checkpoint::open(directory);
    return bind_weights(read_config(directory), checkpoint).final_norm;
  };
  std::string bf16_bytes, f16_bytes;
  for (int i = 0; i < 64; ++i) {
    bf16_bytes += {0, '\x40'};  // 2 in bf16
    f16_bytes += {0, '\x3e'};   // 1.5 in f16
  }
  EXPECT_EQ(norm("BF16", bf16_bytes), std::vector<float>(64, 2.0f));
  EXPECT_EQ(norm("F16", f16_bytes), std::vector<float>(64, 1.5f));
}

TEST_F(WeightsTest, Fp8NeedsItsBlocksAndScales) {
  load("v3-fp8");
  const std::string scales = kv_b + "_scale_inv";
  ASSERT_EQ(tensors.at(kv_b).type, "F8_E4M3");
  expect_refused([](auto&, nlohmann::json& c) { c.erase("quantization_config"); },
                 {".weight", "F8_E4M3", "quantization_config"});
  expect_refused([&](Tensors& t, auto&) { t.erase(scales); },
                 {"tensor " + scales + ": found nothing", "[3, 2]"}, false);
  expect_refused([&](Tensors& t, auto&) { t.at(scales).shape = {2, 3}; }, {scales, "[2, 3]", "[3, 2]"});
  expect_refused(
      [&](Tensors& t, auto&) {
        t.at(scales) = {"BF16", {3, 2}, zeros(12)};
      },
      {scales, "found BF16", "F32"});
  // a weight that is not fp8 has no scales: then they are surplus
  expect_refused(
      [&](Tensors& t, auto&) {
        t.at(kv_b) = {"BF16", t.at(kv_b).shape, zeros(2 * t.at(kv_b).bytes.size())};
      },
      {"'" + scales + "'", "uses it"});
}

TEST_F(WeightsTest, TiedHeadMayBeACopyAndNothingElse) {
  load("minicpm3");
  const std::string embedding = "model.embed_tokens.weight", head = "lm_head.weight";
  save([&](Tensors& t, auto&) { t[head] = t.at(embedding); });
  EXPECT_EQ(error_of([&] { bind_weights(read_config(directory), Checkpoint::open(directory)); }), "");
  expect_refused([&](Tensors& t, auto&) { (t[head] = t.at(embedding)).bytes[5] ^= 1; },
                 {head, "tie_word_embeddings"});
  expect_refused(
      [&](Tensors& t, auto&) {
        t[head] = {"F32", {2, 2}, zeros(16)};
      },
      {head, "tie_word_embeddings"});
}

}  // namespace
}  // namespace mla
