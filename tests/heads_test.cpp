// Models with key and value heads: MHA, GQA and MQA checkpoints against Hugging Face transformers in float64,
// the positions that are added to an embedding, and what such a model refuses.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "mla/core/mapped_file.h"
#include "mla/core/parallel.h"
#include "mla/kernels/prefill.h"
#include "mla/runtime/session.h"
#include "support/oracle.h"
#include "support/reference.h"

namespace mla {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::Reference;
using Ids = std::vector<std::int32_t>;

SessionOptions options(std::int64_t chunk, DType type = DType::f32,
                       HeadsKernels kernels = HeadsKernels::automatic) {
  SessionOptions o;
  o.chunk = chunk;
  o.compute = o.cache_type = type;
  o.kernels = kernels;
  return o;
}

std::vector<float> all_logits(const Transformer& model, const SessionOptions& o, const Ids& ids) {
  Session session(model, o);
  std::vector<float> logits(ids.size() * static_cast<std::size_t>(model.config().vocab_size));
  session.feed_all(ids, {logits.data(), static_cast<std::int64_t>(ids.size()), model.config().vocab_size});
  return logits;
}

class HeadsTest : public testing::TestWithParam<std::string> {
 protected:
  Reference reference = test::load_reference(GetParam());
  Transformer model = Transformer::load(reference.directory);
};

TEST_P(HeadsTest, HiddenStatesMatchLayerByLayer) {
  const std::int64_t layer_size = reference.hidden.shape[1] * reference.hidden.shape[2];
  const std::vector<float> trace = Session(model, options(512)).feed_traced(reference.ids);
  ASSERT_EQ(trace.size(), reference.hidden.data.size());
  for (std::int64_t layer = 0; layer < reference.hidden.shape[0]; ++layer) {
    const auto at = [&](const std::vector<float>& v) {
      return std::vector<float>(v.begin() + layer * layer_size, v.begin() + (layer + 1) * layer_size);
    };
    EXPECT_LE(test::difference(at(trace), at(reference.hidden.data)).max, 2e-5) << "after layer " << layer;
  }
}

TEST_P(HeadsTest, LogitsMatchInEveryChunk) {
  for (const std::int64_t chunk : {1, 7, 64, 512}) {
    const auto d = test::difference(all_logits(model, options(chunk), reference.ids), reference.logits.data);
    RecordProperty("max_of_chunk_" + std::to_string(chunk), std::to_string(d.max * 1e6) + "e-6");
    RecordProperty("mean_of_chunk_" + std::to_string(chunk), std::to_string(d.mean * 1e6) + "e-6");
    EXPECT_LE(d.max, 2e-5) << "chunk " << chunk;  // transformers' own f32 is off by 4e-6 to 9e-6
    EXPECT_LE(d.mean, 2e-6) << "chunk " << chunk;
  }
}

TEST_P(HeadsTest, GreedyTokensAreIdentical) {
  Session session(model, options(512));
  auto logits = session.feed(reference.greedy_prompt);
  Ids found;
  while (found.size() < reference.greedy.size()) {
    found.push_back(
        static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    logits = session.feed(std::span(found).last(1));
  }
  EXPECT_EQ(found, reference.greedy);
}

TEST_P(HeadsTest, SameBitsAtAnyChunkAndThreadCount) {
  const test::Threads restored(1);
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const HeadsKernels kernels : {HeadsKernels::online, HeadsKernels::panels}) {
      if (kernels == HeadsKernels::panels && (type == DType::f32 || !has_prefill())) continue;
      set_threads(1);
      const auto expected = all_logits(model, options(512, type, kernels), reference.ids);
      for (const int count : {1, 2, 3}) {
        set_threads(count);
        for (const std::int64_t chunk : {1, 7, 64, 512}) {
          EXPECT_EQ(expected, all_logits(model, options(chunk, type, kernels), reference.ids))
              << mla::name_of(type) << ", chunk " << chunk << ", threads " << count;
        }
      }
    }
  }
}

/// KL divergence of our bf16 to the float64 reference, beside transformers' own bf16.
TEST_P(HeadsTest, Bf16IsNoWorseThanTwiceTransformers) {
  for (const std::int64_t chunk : {1, 512}) {  // in both kinds of kernels, where there are two
    const double kl =
        test::mean_kl(reference.logits, all_logits(model, options(chunk, DType::bf16), reference.ids));
    EXPECT_LE(kl, 2 * reference.bf16_mean_kl) << "chunk " << chunk;
    EXPECT_GT(kl, 0);
  }
}

TEST_P(HeadsTest, PagesHoldTheRowsOfTheKvHeads) {
  const ModelConfig& c = model.config();
  for (const DType type : {DType::f32, DType::bf16}) {
    SessionOptions o = options(512, type);
    o.page_rows = 8;
    Session session(model, o);
    session.feed(reference.greedy_prompt);  // 24 tokens
    EXPECT_EQ(session.cache().pool().bytes_in_use(),
              24 * c.num_layers * c.num_kv_heads * 2 * c.head_dim * size_of(type));
  }
}

TEST_P(HeadsTest, ForgettingAndForkingGiveTheSameBits) {
  const Ids& ids = reference.ids;
  const auto part = [&](std::size_t begin, std::size_t end) {
    return Ids(ids.begin() + begin, ids.begin() + end);
  };
  const auto copy = [](std::span<const float> x) { return std::vector<float>(x.begin(), x.end()); };
  const auto expected = copy(Session(model, options(512)).feed(ids));
  Session session(model, options(16));
  session.feed(part(0, 50));
  Session fork = session.fork();
  fork.feed(Ids(20, 7));
  EXPECT_EQ(copy(session.feed(part(50, 96))), expected);
  fork.truncate(33);
  EXPECT_EQ(copy(fork.feed(part(33, 96))), expected);
}

TEST_P(HeadsTest, RefusesWhatOnlyLatentsHave) {
  for (const DType type : {DType::f8_e4m3, DType::i8}) {
    SessionOptions o = options(512);
    o.cache_type = type;
    const std::string message = error_of([&] { Session session(model, o); });
    EXPECT_NE(message.find(std::string("cache rows of ") + mla::name_of(type) + ": expected f32 or bf16"),
              std::string::npos)
        << message;
  }
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
    SessionOptions o = options(512);
    o.form = form;
    const std::string message = error_of([&] { Session session(model, o); });
    EXPECT_NE(message.find("expected automatic"), std::string::npos) << message;
  }
  EXPECT_NE(error_of([&] { Session(model, options(512)).form_for(1); }), "");
}

INSTANTIATE_TEST_SUITE_P(Three, HeadsTest, testing::ValuesIn(test::heads_names()),
                         [](const auto& checkpoint) {
                           std::string name = checkpoint.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

/// llama-gqa with another config.json in front of its weights.
class PositionEncodingTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(directory);
    fs::copy_file(reference.directory / "model.safetensors", directory / "model.safetensors",
                  fs::copy_options::overwrite_existing);
  }
  void TearDown() override { fs::remove_all(directory); }

  Transformer load(const std::string& encoding, std::int64_t layers = 2) const {
    auto config = nlohmann::json::parse(read_text(reference.directory / "config.json"));
    config["position_encoding"] = encoding;
    config["num_hidden_layers"] = layers;  // weights of later layers are then those of next-token layers
    if (encoding != "rotary") config.erase("rope_parameters");
    write_text(directory / "config.json", config.dump());
    return Transformer::load(directory);
  }

  std::vector<float> trace(const Transformer& model, std::int64_t chunk) const {
    Session session(model, options(512));
    std::vector<float> embedded;
    for (std::size_t at = 0; at < reference.ids.size(); at += static_cast<std::size_t>(chunk)) {
      const std::size_t count = std::min(static_cast<std::size_t>(chunk), reference.ids.size() - at);
      const auto all = session.feed_traced(std::span(reference.ids).subspan(at, count));
      embedded.insert(embedded.end(), all.begin(),
                      all.begin() + static_cast<std::ptrdiff_t>(count) * model.config().hidden_size);
    }
    return embedded;
  }

  const test::Threads one{1};
  const Reference reference = test::load_reference("llama-gqa");
  const fs::path directory =
      fs::temp_directory_path() / ("mla_position_encoding_test_" + std::to_string(::getpid()));
};

/// Chapter 3.8 to 3.10 by their formulas: what stands in the stream before the first layer.
TEST_F(PositionEncodingTest, IsAddedToTheEmbedding) {
  for (const std::string encoding : {"rotary", "none", "integer", "binary", "sinusoidal"}) {
    const Transformer model = load(encoding);
    const std::int64_t d = model.config().hidden_size;
    const double scale = encoding == "rotary" || encoding == "none" ? 1.0 : std::sqrt(static_cast<double>(d));
    const auto added = [&](std::int64_t position, std::int64_t i) {
      if (encoding == "integer") return static_cast<double>(position);
      if (encoding == "binary") return static_cast<double>(i < 7 ? position >> i & 1 : 0);  // 96 < 2^7
      if (encoding != "sinusoidal") return 0.0;
      const double pair = static_cast<double>(i / 2 * 2) / static_cast<double>(d);
      const double angle = static_cast<double>(position) / std::pow(10000.0, pair);
      return i % 2 ? std::cos(angle) : std::sin(angle);
    };
    for (const std::int64_t chunk : {1, 7, 96}) {
      const std::vector<float> found = trace(model, chunk);
      ASSERT_EQ(found.size(), reference.ids.size() * static_cast<std::size_t>(d));
      for (std::int64_t t = 0; t < 96; ++t) {
        for (std::int64_t i = 0; i < d; ++i) {
          const double expected = scale * reference.hidden.data[t * d + i] + added(t, i);
          ASSERT_NEAR(found[t * d + i], expected, 1e-6 * (1 + std::abs(expected)))
              << encoding << ", chunk " << chunk << ", position " << t << ", value " << i;
        }
      }
    }
  }
}

/// Chapter 3.7: without positions, one layer sees a set. Turned about, the words before the last one predict
/// the same; with any encoding they don't.
TEST_F(PositionEncodingTest, OnlyWithoutItOrderIsUnknown) {
  Ids ids(reference.ids.begin(), reference.ids.begin() + 30), reversed = ids;
  std::reverse(reversed.begin(), reversed.end() - 1);
  for (const std::string encoding : {"rotary", "none", "integer", "binary", "sinusoidal"}) {
    const Transformer model = load(encoding, 1);
    const auto last = [&](const Ids& fed) {
      Session session(model, options(512));
      const auto logits = session.feed(fed);
      return std::vector<float>(logits.begin(), logits.end());
    };
    const double moved = test::difference(last(ids), last(reversed)).max;
    if (encoding == "none") {
      EXPECT_LE(moved, 1e-5);
    } else {
      EXPECT_GE(moved, 0.01) << encoding;  // integers move 0.07: they drown the words (chapter 3.8)
    }
  }
}

TEST_F(PositionEncodingTest, BitsDoNotDependOnChunks) {
  for (const std::string encoding : {"none", "integer", "binary", "sinusoidal"}) {
    const Transformer model = load(encoding);
    const auto expected = all_logits(model, options(512), reference.ids);
    for (const std::int64_t chunk : {1, 7, 64})
      EXPECT_EQ(expected, all_logits(model, options(chunk), reference.ids)) << encoding;
  }
}

}  // namespace
}  // namespace mla
