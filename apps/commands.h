#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

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
  std::vector<std::string> rows = {"f32", "bf16"};
  std::vector<std::int64_t> heads = {128, 64, 20, 16, 8};
  std::vector<std::int64_t> kv = {4096, 32768};  ///< cached rows
  std::int64_t queries = 1;
  std::int64_t batch = 1;
  std::string variant = "mla";  ///< mla: absorbed; gqa
  std::int64_t kv_heads = 8;    ///< of gqa
  std::int64_t d_qk = 0;        ///< 0: 576 for mla, 128 for gqa
  std::int64_t d_v = 0;         ///< 0: 512 for mla, 128 for gqa
  bool cold = false;            ///< rows come from memory at each call
};
void bench_attention(const AttentionBenchOptions& options);

struct MatmulBenchOptions {
  BenchOptions bench;
  std::vector<std::string> shapes = {"1x2048x2048", "1x8192x8192", "16x2048x2048", "512x2048x2048",
                                     "512x2048x8192"};
  std::vector<std::string> types = {"bf16", "f32"};  ///< of weights and products
};
void bench_matmul(const MatmulBenchOptions& options);
/// Throws mla::Error if `text` is no shape MxNxK.
void check_matmul_shape(const std::string& text);

}  // namespace mla::app
