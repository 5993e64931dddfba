#pragma once
#include <cstdint>
#include <optional>
#include <string>

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

}  // namespace mla::app
