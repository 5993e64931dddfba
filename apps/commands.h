#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "mla/core/dtype.h"

/// The program's commands. Each is one file, takes its options as they were typed, and returns or throws
/// mla::Error.
namespace mla::app {

/// Options of every command that loads a model.
struct ModelOptions {
  std::string model;               ///< directory; empty: the model that ships with the program
  std::string attention = "auto";  ///< auto, explicit or absorbed
  std::string dtype;               ///< f32 or bf16; empty: f32 for f32 checkpoints, else bf16
  std::string cache_dtype;         ///< f32, bf16, fp8 or int8; empty: as dtype
  std::int64_t chunk = 512;        ///< most prompt tokens of one forward pass
  int threads = 0;                 ///< 0: one per processor
  bool oversubscribe = false;      ///< load even what does not fit into memory
};

/// What to run: exactly one of these, or neither for the default.
struct InputOptions {
  std::optional<std::string> text;
  std::optional<std::string> ids;  ///< "1,2,3"
};

struct GenerateOptions {
  ModelOptions model;
  InputOptions input;
  std::int64_t max_tokens = 200;
  double temperature = 0.7;
  double top_p = 0.95;
  std::int64_t top_k = 0;
  std::uint64_t seed = 0;
  bool ignore_eos = false;
  bool json = false;
};
void generate(const GenerateOptions& options);

struct LogitsOptions {
  ModelOptions model;
  InputOptions input;
  std::string out;
};
void logits(const LogitsOptions& options);

struct ScoreOptions {
  ModelOptions model;
  std::string text_file;
  std::int64_t window = 0;  ///< tokens; 0: the model's context limit, at most 1024
  bool json = false;
};
void score(const ScoreOptions& options);

struct TokenizeOptions {
  std::string model;
  InputOptions input;
  bool lines = false;
  bool json = false;
};
void tokenize(const TokenizeOptions& options);

struct InspectOptions {
  std::string model;
  bool json = false;
};
void inspect(const InspectOptions& options);

struct TrainOptions {
  std::string text;  ///< file
  std::string out;   ///< directory that must not be there, or with `resume` that of a run
  std::string preset = "tiny";
  std::string config;           ///< a config.json instead of the preset
  std::int64_t vocabulary = 0;  ///< of a preset; 0: what it is made for
  std::int64_t steps = 1000;
  std::int64_t batch = 16;
  std::int64_t length = 256;
  double learning_rate = 2e-3;
  double weight_decay = 0.1;
  double held_back = 0.03;         ///< share of the text
  std::int64_t measure_every = 0;  ///< steps; 0: a twentieth of all
  std::string dtype = "bf16";
  std::string attention = "explicit";
  std::uint64_t seed = 0;
  int threads = 0;
  bool resume = false;
};
void train(const TrainOptions& options);

struct CompareOptions {
  std::string text;         ///< file
  std::string out;          ///< directory that must not be there, or with `resume` that of a comparison
  double budget = 60;       ///< minutes for all models together, where tokens is 0
  std::int64_t tokens = 0;  ///< that each model is trained on
  std::string dtype = "bf16";
  std::uint64_t seed = 0;
  int threads = 0;
  bool resume = false;
};
void compare(const CompareOptions& options);

struct ExplainOptions {
  std::string topic;  ///< a name, all, or empty: the list
  bool list = false;
  std::string html;  ///< directory for a site instead of the terminal
  bool json = false;
  bool map = false;     ///< the table that docs/chapter.md is
  bool broken = false;  ///< one input of each topic is wrong: its check must fail
  int threads = 0;
};
/// Whether every claim told holds.
bool explain(const ExplainOptions& options);

/// Options of every benchmark.
struct BenchOptions {
  double seconds = 0.5;       ///< that each figure is measured for
  int threads = 0;            ///< 0: one per processor
  std::int64_t buffer = 256;  ///< MiB that read bandwidth is measured on
  bool json = false;
};
void bench_peak(const BenchOptions& options);

struct AttentionBenchOptions {
  BenchOptions bench;
  std::string op = "decode";        ///< decode, prefill or backward; empty lists below: what is usual for it
  std::vector<std::string> rows;    ///< decode: f32, bf16; prefill: bf16; backward: f32
  std::vector<std::int64_t> heads;  ///< decode: 128, 64, 20, 16, 8; else 16
  std::vector<std::int64_t> kv;     ///< rows, new tokens included; decode: 4096, 32768; else queries
  /// New tokens; decode: 1; prefill: 512, 4096, 256 after 8192; backward: 512, 4096.
  std::vector<std::int64_t> queries;
  std::int64_t batch = 1;
  std::int64_t shortest = 0;  // 0: as long as the longest
  /// mla: absorbed to decode, from latents of 512 + 64 to prefill, rows [k | v] of each head backward; gqa
  std::string variant = "mla";
  std::int64_t kv_heads = 8;  ///< of gqa
  std::int64_t d_qk = 0;      ///< 0: 128 for gqa, for mla 576 to decode, else 192
  std::int64_t d_v = 0;       ///< 0: 128, 512 for mla to decode
  bool cold = false;          ///< rows come from memory at each call
};
void bench_attention(const AttentionBenchOptions& options);
/// bench_attention with op prefill.
void bench_prefill(const AttentionBenchOptions& options);
/// bench_attention with op backward.
void bench_backward(const AttentionBenchOptions& options);

struct MatmulBenchOptions {
  BenchOptions bench;
  std::vector<std::string> shapes = {"1x2048x2048", "1x8192x8192", "16x2048x2048", "512x2048x2048",
                                     "512x2048x8192"};
  std::vector<std::string> types = {"bf16", "f32"};  ///< of weights and products
};
void bench_matmul(const MatmulBenchOptions& options);
/// Throws mla::Error if `text` is no shape MxNxK.
void check_matmul_shape(const std::string& text);

/// Types that a benchmark of a model's shape computes in and caches in.
struct TypeOptions {
  std::string dtype = "bf16";
  std::string cache_dtype;  ///< empty: as dtype

  DType compute() const { return dtype_named(dtype, "--dtype"); }
  DType cached() const { return cache_dtype.empty() ? compute() : dtype_named(cache_dtype, "--cache-dtype"); }
};

struct ModelBenchOptions {
  BenchOptions bench;
  std::string shape = "v2-lite";  ///< a name of published_configs(), or a directory with a config.json
  std::int64_t layers = 4;
  std::int64_t experts = 0;  ///< routed ones that are built; 0: all
  TypeOptions types;
  std::string attention = "auto";
  std::vector<std::int64_t> contexts = {1024, 8192};  ///< cached tokens that a decode step attends to
  std::int64_t prompt = 512;                          ///< tokens of the prefill
};
void bench_model(const ModelBenchOptions& options);

struct TrainBenchOptions {
  BenchOptions bench;
  std::string model;  ///< directory whose config.json says the shape; empty: the model that ships
  std::int64_t batch = 16, slice = 4, length = 256;
  std::vector<std::string> types = {"bf16", "f32"};
  std::vector<std::string> attention = {"explicit"};
};
void bench_train(const TrainBenchOptions& options);

struct FormsBenchOptions {
  BenchOptions bench{.seconds = 0.05};
  std::string shape = "v3";  ///< as of ModelBenchOptions; only the widths of a head and of the latent count
  std::vector<std::int64_t> heads = {8, 16, 128};
  std::vector<std::int64_t> tokens = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};  ///< new ones
  std::vector<std::int64_t> cached = {0, 256, 1024, 4096, 8192, 32768};
  TypeOptions types;
  bool fit = false;
};
void bench_forms(const FormsBenchOptions& options);

}  // namespace mla::app
