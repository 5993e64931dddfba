// Layers of attention backward, with key and value heads and with latents: against central differences of
// their formulas in double.
#include <gtest/gtest.h>

#include <cmath>

#include "support/layers.h"

namespace mla {
namespace {

using test::HeadsLayer;
using test::HeadsSizes;
using test::MlaLayer;
using test::MlaSizes;
using test::Random;
using test::Tensor;

/// Tapes and working memory, kept from case to case: what an earlier one left must not matter.
struct Memory {
  HeadsTape heads_tape;
  HeadsTrainingScratch heads;
  MlaTape mla_tape;
  MlaTrainingScratch mla;
};

/// How one case computes; the form matters to latents only.
struct Case {
  TokenBlock block;
  MlaForm form = MlaForm::decompress;
  DType compute = DType::f32;
};

/// Input and output of a layer, and the gradient by the output, which stands for a loss: their inner product.
struct Streams {
  Streams(const TokenBlock& block, std::int64_t d, Random& random)
      : x(block.tokens(), d, random), out(block.tokens(), d, random), d_out(block.tokens(), d, random) {}
  Tensor x, out, d_out;
};

void forward_and_back(HeadsLayer& l, const MlaTraining& how, Streams& s, Memory& m) {
  heads_taped(l.shape, l.trained(), how, s.x.view(), m.heads_tape, m.heads, s.out.view());
  heads_backward(l.shape, l.trained(), how, s.x.view(), s.d_out.view(), m.heads_tape, m.heads,
                 s.x.gradient_view());
}

void forward_and_back(MlaLayer& l, const MlaTraining& how, Streams& s, Memory& m) {
  mla_taped(l.shape, l.trained(), how, s.x.view(), m.mla_tape, m.mla, s.out.view());
  mla_backward(l.shape, l.trained(), how, s.x.view(), s.d_out.view(), m.mla_tape, m.mla, s.x.gradient_view());
}

template <class Layer>
void forward_and_back(Layer& layer, const Case& c, Streams& streams, Memory& memory) {
  const Rotary rotary(layer.spec, c.block.length);
  Rotary::Table table;
  rotary.fill(0, c.block.length, table);
  forward_and_back(layer, MlaTraining{{c.block, &rotary, &table, c.compute}, c.form}, streams, memory);
}

/// The layer's formulas of each sequence, one behind another, each from position 0.
template <class Layer>
std::vector<double> exact_output(const Layer& layer, const TokenBlock& block, const Tensor& x) {
  std::vector<double> all;
  const test::Matrix rows = test::as_rows(x.exact, x.cols);
  for (auto first = rows.begin(); first != rows.end(); first += block.length) {
    for (const auto& row : layer.formulas({first, first + block.length}, 0).out)
      all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

/// f32 through some four products and a softmax, there and back, is off by 1e-6 of a gradient's size.
constexpr double tolerance = 1e-5;

template <class Layer>
void expect_gradients(Layer layer, const Case& c, Random& random, Memory& memory) {
  Streams s(c.block, layer.shape.hidden_size, random);
  forward_and_back(layer, c, s, memory);
  const std::vector<double> expected = exact_output(layer, c.block, s.x);
  EXPECT_LE(test::difference(test::as_rows(expected, s.x.cols), s.out.values), 2e-5);
  const auto loss = [&] { return test::inner(s.d_out.exact, exact_output(layer, c.block, s.x)); };
  // A token alone has but itself to attend to: gradients by queries and keys are 0, but for rounding.
  const double floor = c.block.length == 1 ? 5e-5 : 1e-8;
  s.x.expect_gradient(loss, tolerance, "x", floor);
  for (const auto& named : layer.tensors())
    named.second->expect_gradient(loss, tolerance, named.first, floor);

  const std::vector<float> d_x = s.x.gradient;
  std::vector<std::vector<float>> once;
  for (const auto& named : layer.tensors()) once.push_back(named.second->gradient);
  forward_and_back(layer, c, s, memory);
  EXPECT_EQ(d_x, s.x.gradient) << "d_x is written";
  for (std::size_t i = 0; i < once.size(); ++i) {
    const auto [name, tensor] = layer.tensors()[i];
    for (std::size_t k = 0; k < once[i].size(); ++k)
      EXPECT_NEAR(tensor->gradient[k], 2 * once[i][k], 1e-5 * (1 + std::abs(once[i][k]))) << name << " adds";
  }
}

TEST(TrainHeadsTest, GradientsAreThoseOfTheFormulas) {
  Random random(1);
  Memory memory;
  const HeadsSizes all_sizes[] = {
      {9, 3, 3, 4, true},   // MHA
      {8, 4, 4, 3, false},  // MHA, no rotary positions: any width
      {10, 6, 2, 4, true},  // GQA, wider than the stream
      {7, 9, 3, 2, true},   // GQA, odd numbers of heads
      {6, 4, 2, 5, false},  // GQA
      {8, 5, 1, 6, true},   // MQA
      {5, 11, 1, 2, true},  // MQA, more heads than attend_backward takes at a time
      {6, 3, 1, 3, false},  // MQA
      {4, 1, 1, 2, true},
  };
  for (const HeadsSizes& s : all_sizes) {
    for (const TokenBlock& block : {TokenBlock{1, 9}, {3, 5}, {2, 1}}) {
      SCOPED_TRACE(testing::Message() << s.heads << " heads over " << s.kv_heads << " of " << s.head_dim
                                      << ", " << block.sequences << " sequences of " << block.length);
      expect_gradients(HeadsLayer(s, random), {block}, random, memory);
    }
  }
}

constexpr RopeLayout pairs = RopeLayout::interleaved, halves = RopeLayout::half_split;

TEST(TrainMlaTest, GradientsAreThoseOfTheFormulas) {
  Random random(2);
  Memory memory;
  const MlaSizes all_sizes[] = {
      {9, 3, 0, 5, 4, 2, 3, pairs},   // no query compression
      {9, 3, 0, 5, 4, 4, 3, halves},  //
      {8, 2, 6, 7, 3, 4, 5, pairs},   // query compression
      {8, 2, 6, 7, 3, 6, 5, halves},  //
      {7, 9, 4, 3, 2, 2, 2, halves},  // more heads than attend_backward takes at a time
      {8, 3, 0, 6, 5, 0, 4, pairs},   // nothing is rotated
      {8, 3, 5, 6, 5, 0, 4, halves},  //
      {4, 1, 3, 2, 1, 2, 1, pairs},
  };
  for (const MlaSizes& s : all_sizes) {
    for (const TokenBlock& block : {TokenBlock{1, 9}, {3, 5}, {2, 1}}) {
      for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
        SCOPED_TRACE(testing::Message() << s.heads << " heads, query latent " << s.q_rank << ", rotated "
                                        << s.d_r << ", form " << static_cast<int>(form) << ", "
                                        << block.sequences << " sequences of " << block.length);
        expect_gradients(MlaLayer(s, random), {block, form}, random, memory);
      }
    }
  }
}

/// YaRN's factor of cosines and sines turns up in the gradient once more.
TEST(TrainAttentionTest, RotationThatScales) {
  Random random(3);
  Memory memory;
  HeadsLayer heads({8, 4, 2, 4, true}, random);
  heads.spec.attention_factor = 1.3;
  expect_gradients(heads, {{2, 6}}, random, memory);
  MlaLayer latent({8, 3, 5, 6, 3, 4, 4, pairs}, random);
  latent.spec.attention_factor = 1.3;
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb})
    expect_gradients(latent, {{2, 6}, form}, random, memory);
}

/// Large enough for several threads.
template <class Layer>
void expect_same_bits(const Layer& layer, const Case& c, std::uint64_t seed) {
  const test::Threads restored(1);
  std::vector<std::vector<float>> expected;
  for (const int count : {1, 2, 3}) {
    set_threads(count);
    Random random(seed);
    Layer own = layer;
    Streams s(c.block, layer.shape.hidden_size, random);
    Memory memory;
    forward_and_back(own, c, s, memory);
    std::vector<std::vector<float>> found{s.out.values, s.x.gradient};
    for (const auto& named : own.tensors()) found.push_back(named.second->gradient);
    if (count == 1) expected = found;
    EXPECT_EQ(expected, found) << count << " threads";
  }
}

TEST(TrainAttentionTest, SameBitsAtAnyNumberOfThreads) {
  Random random(4);
  const TokenBlock block{3, 70};
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const std::int64_t kv_heads : {8, 2, 1})
      expect_same_bits(HeadsLayer({96, 8, kv_heads, 32, true}, random), {block, {}, compute}, 5);
    const MlaLayer latent({96, 8, 48, 64, 24, 8, 24, pairs}, random);
    for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb})
      expect_same_bits(latent, {block, form, compute}, 6);
  }
}

TEST(TrainAttentionTest, RefusesOtherNumbersOfTokens) {
  Random random(7);
  Memory memory;
  HeadsLayer heads({8, 4, 2, 4, true}, random);
  MlaLayer latent({8, 3, 5, 6, 3, 4, 4, pairs}, random);
  Streams six({2, 3}, 8, random);
  EXPECT_EQ(test::error_of([&] {
              forward_and_back(heads, Case{{2, 4}}, six, memory);
            }),
            "heads: found 6 tokens, expected 2 sequences of 4");
  EXPECT_EQ(test::error_of([&] {
              forward_and_back(latent, Case{{2, 4}}, six, memory);
            }),
            "mla: found 6 tokens, expected 2 sequences of 4");
}

}  // namespace
}  // namespace mla
