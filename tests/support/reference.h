#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "mla/core/npy.h"

namespace mla::test {

/// tests/data.
std::filesystem::path data();

/// A checkpoint and what transformers computes from it (tests/data/reference/README.md).
struct Reference {
  std::filesystem::path directory;  ///< the checkpoint
  std::vector<std::int32_t> ids;
  NpyArray logits;  ///< [ids, vocab] in float64, rounded
  NpyArray hidden;  ///< [layers + 1, ids, d]
  std::vector<std::int32_t> greedy_prompt, greedy;
  double bf16_mean_kl;  ///< of transformers' own bf16; negative where it was not measured
};

Reference load_reference(const std::string& name);

/// The nine small checkpoints of latent attention.
const std::vector<std::string>& reference_names();

/// The three small checkpoints with key and value heads.
const std::vector<std::string>& heads_names();

/// Largest and mean |a - b|.
struct Difference {
  double max, mean;
};
Difference difference(const std::vector<float>& a, const std::vector<float>& b);

/// Mean over rows of KL(softmax(expected) || softmax(found)).
double mean_kl(const NpyArray& expected, const std::vector<float>& found);

}  // namespace mla::test
