// The program `mla`: reads the command line and calls one command. Exit status 0, 1 for an error, 2 for wrong
// usage.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "apps/commands.h"
#include "apps/training_commands.h"
#include "mla/core/error.h"

namespace mla::app {
namespace {

void add_json(CLI::App* command, bool& json) {
  command->add_flag("--json", json, "Print JSON");
}

void add_directory(CLI::App* command, std::string& model) {
  command
      ->add_option("--model", model,
                   "Checkpoint directory: config.json, safetensors, tokenizer.json or tiktoken.model")
      ->type_name("DIR")
      ->default_str("the model that ships with the program");
}

void add_cache_dtype(CLI::App* command, std::string& cache_dtype) {
  command->add_option("--cache-dtype", cache_dtype, "Type of the cached rows")
      ->check(CLI::IsMember({"f32", "bf16", "fp8", "int8"}))
      ->default_str("as --dtype");
}

void add_model(CLI::App* command, ModelOptions& o) {
  add_directory(command, o.model);
  command
      ->add_option("--attention", o.attention,
                   "explicit: rebuild K and V from the latents; absorbed: attend to them")
      ->check(CLI::IsMember({"auto", "explicit", "absorbed"}))
      ->capture_default_str();
  command->add_option("--dtype", o.dtype, "Arithmetic of the products")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->default_str("f32 for f32 checkpoints, else bf16");
  add_cache_dtype(command, o.cache_dtype);
  command->add_option("--chunk", o.chunk, "Most prompt tokens of one forward pass")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("--threads", o.threads, "Threads")
      ->check(CLI::Range(1, 1024))
      ->default_str("one per processor");
  command->add_flag("--oversubscribe", o.oversubscribe,
                    "Load a checkpoint that does not fit into memory all the same");
}

/// One of `text_name` and --ids.
void add_input(CLI::App* command, InputOptions& o, const char* text_name, const char* text_help) {
  CLI::Option* text = command->add_option(text_name, o.text, text_help)->type_name("TEXT");
  command->add_option("--ids", o.ids, "Token ids, as 1,2,3")->type_name("IDS")->excludes(text);
}

void add_generate(CLI::App& app, GenerateOptions& o, std::function<void()>& run) {
  CLI::App* command = app.add_subcommand("generate", "Continue a text");
  add_model(command, o.model);
  add_input(command, o.input, "--prompt", "Text to continue; - reads standard input");
  command->add_option("--max-tokens", o.max_tokens, "Most new tokens")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 31))
      ->capture_default_str();
  command->add_option("--temperature", o.temperature, "0 is greedy")->capture_default_str();
  command->add_option("--top-p", o.top_p, "Keep the likeliest tokens that reach this probability")
      ->capture_default_str();
  command->add_option("--top-k", o.top_k, "Keep that many of the likeliest tokens; 0 keeps all")
      ->capture_default_str();
  command->add_option("--seed", o.seed, "The same seed gives the same text")->capture_default_str();
  command->add_flag("--ignore-eos", o.ignore_eos, "Go on behind the end-of-text token");
  add_json(command, o.json);
  command->callback([&] { run = [&o] { generate(o); }; });
}

void add_logits(CLI::App& app, LogitsOptions& o, std::function<void()>& run) {
  CLI::App* command =
      app.add_subcommand("logits", "Write the logits behind every token as f32 .npy [tokens, vocab]");
  add_model(command, o.model);
  add_input(command, o.input, "--text", "Text to run");
  command->add_option("--out", o.out, "File to write")->type_name("FILE.npy")->required();
  command->callback([&] { run = [&o] { logits(o); }; });
}

void add_score(CLI::App& app, ScoreOptions& o, std::function<void()>& run) {
  CLI::App* command = app.add_subcommand("score", "Perplexity and bits per byte of a text");
  add_model(command, o.model);
  command->add_option("--text-file", o.text_file, "UTF-8 text to score")->type_name("FILE")->required();
  command->add_option("--window", o.window, "Tokens of one window")
      ->check(CLI::Range(std::int64_t{2}, std::int64_t{1} << 31))
      ->default_str("the context limit, at most 1024");
  add_json(command, o.json);
  command->callback([&] { run = [&o] { score(o); }; });
}

void add_tokenize(CLI::App& app, TokenizeOptions& o, std::function<void()>& run) {
  CLI::App* command = app.add_subcommand("tokenize", "Text to token ids and back");
  add_directory(command, o.model);
  add_input(command, o.input, "--text", "Text to encode");
  command
      ->add_flag("--lines", o.lines,
                 "Standard input: one JSON string per line; output: one JSON array of ids per line")
      ->excludes("--text", "--ids");
  add_json(command, o.json);
  command->callback([&] { run = [&o] { tokenize(o); }; });
}

void add_inspect(CLI::App& app, InspectOptions& o, std::function<void()>& run) {
  CLI::App* command =
      app.add_subcommand("inspect", "Architecture, parameters, and the cache beside MHA, GQA and MQA");
  add_directory(command, o.model);
  add_json(command, o.json);
  command->callback([&] { run = [&o] { inspect(o); }; });
}

void add_bench_options(CLI::App* command, BenchOptions& o) {
  command->add_option("--seconds", o.seconds, "Time to measure each figure for")
      ->check(CLI::Range(0.001, 3600.0))
      ->capture_default_str();
  command->add_option("--threads", o.threads, "Threads")
      ->check(CLI::Range(1, 1024))
      ->default_str("one per processor");
  command->add_option("--buffer", o.buffer, "MiB that read bandwidth is measured on")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 16))
      ->capture_default_str();
  add_json(command, o.json);
}

void add_bench_attention(CLI::App* bench, AttentionBenchOptions& o, std::function<void()>& run) {
  const CLI::Range sizes(std::int64_t{1}, std::int64_t{1} << 24);
  const CLI::Range counts(std::int64_t{1}, std::int64_t{1} << 14);
  CLI::App* command = bench->add_subcommand("attention", "Attention over pages in shuffled order");
  command
      ->add_option("--op", o.op,
                   "What is measured: decode (absorbed), prefill (explicit), backward (explicit)")
      ->check(CLI::IsMember({"decode", "prefill", "backward"}))
      ->capture_default_str();
  command->add_option("--rows", o.rows, "Types of the cached rows: f32, bf16, fp8, int8")
      ->check(CLI::IsMember({"f32", "bf16", "fp8", "int8"}))
      ->delimiter(',')
      ->default_str("f32,bf16; prefill: bf16; backward: f32");
  const auto list = [&](const char* name, std::vector<std::int64_t>& values, const char* help) {
    return command->add_option(name, values, help)->delimiter(',');
  };
  const auto number = [&](const char* name, std::int64_t& value, const char* help) {
    return command->add_option(name, value, help)->check(counts);
  };
  list("--heads", o.heads, "Query heads")
      ->check(counts)
      ->default_str("128,64,20,16,8; prefill, backward: 16");
  list("--kv", o.kv, "Rows, those of the queries included")
      ->check(sizes)
      ->default_str("4096,32768; prefill, backward: as many as queries");
  list("--queries", o.queries, "Query tokens, causal")
      ->check(counts)
      ->default_str("1; prefill: 512, 4096, 256 after 8192; backward: 512,4096");
  number("--batch", o.batch, "Sequences in one call")->capture_default_str();
  number("--shortest", o.shortest, "Rows of the batch's shortest sequence; the others' lie evenly between")
      ->default_str("as many as --kv");
  command->add_option("--variant", o.variant, "mla: latents; gqa: --kv-heads heads of rows [k | v]")
      ->check(CLI::IsMember({"mla", "gqa"}))
      ->capture_default_str();
  number("--kv-heads", o.kv_heads, "Kv heads of gqa")->capture_default_str();
  number("--d-qk", o.d_qk, "Width of queries and keys")
      ->default_str("128 for gqa; mla: 576, prefill and backward: 192");
  number("--d-v", o.d_v, "Width of values")->default_str("128; decode of mla: 512");
  command->add_flag("--cold", o.cold, "Take turns with more caches than the CPU's caches hold");
  add_bench_options(command, o.bench);
  command->callback([&] { run = [&o] { bench_attention(o); }; });
}

void add_bench_matmul(CLI::App* bench, MatmulBenchOptions& o, std::function<void()>& run) {
  CLI::App* command = bench->add_subcommand("matmul", "Matrix products with weights that come from memory");
  const CLI::Validator is_shape(
      [](std::string& text) {
        try {
          check_matmul_shape(text);
        } catch (const Error& error) {
          return std::string(error.what());
        }
        return std::string();
      },
      "MxNxK");
  command->add_option("--shapes", o.shapes, "Tokens x outputs x inputs, as 16x2048x2048")
      ->check(is_shape)
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--dtype", o.types, "Types of the weights and of the arithmetic: bf16, f32")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->delimiter(',')
      ->capture_default_str();
  add_bench_options(command, o.bench);
  command->callback([&] { run = [&o] { bench_matmul(o); }; });
}

void add_types(CLI::App* command, TypeOptions& o) {
  command->add_option("--dtype", o.dtype, "Type of the weights and of the arithmetic")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  add_cache_dtype(command, o.cache_dtype);
}

void add_bench_model(CLI::App* bench, ModelBenchOptions& o, std::function<void()>& run) {
  const CLI::Range counts(std::int64_t{1}, std::int64_t{1} << 20);
  CLI::App* command = bench->add_subcommand("model", "A model of random weights: prefill and decode");
  command
      ->add_option("--shape", o.shape,
                   "v2-lite, v2, v3, kimi-k2, glm-4.7-flash, minicpm3, or a directory with a config.json")
      ->capture_default_str();
  command->add_option("--layers", o.layers, "Layers, fewer than the model's; one has experts if any do")
      ->check(counts)
      ->capture_default_str();
  command->add_option("--experts", o.experts, "Routed experts to build; a token does not touch the others")
      ->check(counts)
      ->default_str("all of the model's");
  add_types(command, o.types);
  command->add_option("--attention", o.attention, "Form of attention")
      ->check(CLI::IsMember({"auto", "explicit", "absorbed"}))
      ->capture_default_str();
  command->add_option("--context", o.contexts, "Cached tokens that one decoded token attends to")
      ->check(counts)
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--prompt", o.prompt, "Tokens of the prefill")->check(counts)->capture_default_str();
  add_bench_options(command, o.bench);
  command->callback([&] { run = [&o] { bench_model(o); }; });
}

void add_bench_train(CLI::App* bench, TrainBenchOptions& o, std::function<void()>& run) {
  const CLI::Range counts(std::int64_t{1}, std::int64_t{1} << 20);
  CLI::App* command = bench->add_subcommand("train", "Steps of training on random tokens");
  command->add_option("--model", o.model, "Directory whose config.json says the shape")
      ->default_str("the model that ships");
  command->add_option("--batch", o.batch, "Sequences of a step")->check(counts)->capture_default_str();
  command->add_option("--slice", o.slice, "Sequences of one pass")->check(counts)->capture_default_str();
  command->add_option("--length", o.length, "Tokens of a sequence")->check(counts)->capture_default_str();
  command->add_option("--dtype", o.types, "Types of the arithmetic")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--attention", o.attention, "Forms of attention")
      ->check(CLI::IsMember({"explicit", "absorbed"}))
      ->delimiter(',')
      ->capture_default_str();
  add_bench_options(command, o.bench);
  command->callback([&] { run = [&o] { bench_train(o); }; });
}

void add_bench_forms(CLI::App* bench, FormsBenchOptions& o, std::function<void()>& run) {
  const CLI::Range counts(std::int64_t{1}, std::int64_t{1} << 14);
  CLI::App* command =
      bench->add_subcommand("forms", "The explicit against the absorbed form, and what auto chooses");
  command->add_option("--shape", o.shape, "Widths of heads and latent: as of mla bench model")
      ->capture_default_str();
  command->add_option("--heads", o.heads, "Query heads")
      ->check(counts)
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--new", o.tokens, "New tokens")->check(counts)->delimiter(',')->capture_default_str();
  command->add_option("--cached", o.cached, "Tokens before them")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 24))
      ->delimiter(',')
      ->capture_default_str();
  add_types(command, o.types);
  CLI::Option* fit =
      command->add_flag("--fit", o.fit, "End with the costs that fit the times, as mla/attention has them");
  add_bench_options(command, o.bench);
  fit->excludes("--json");
  command->callback([&] { run = [&o] { bench_forms(o); }; });
}

void add_explain(CLI::App& app, ExplainOptions& o, std::function<void()>& run, bool& is_true) {
  CLI::App* command = app.add_subcommand("explain", "MLA, claim by claim, each checked by running it");
  command->add_option("topic", o.topic, "A topic, or all")
      ->type_name("TOPIC")
      ->default_str("the list of topics");
  command->add_flag("--list", o.list, "The topics");
  CLI::Option* html =
      command->add_option("--html", o.html, "Directory to write the pages to")->type_name("DIR");
  CLI::Option* json = command->add_flag("--json", o.json, "Print JSON")->excludes(html);
  command->add_flag("--map", o.map, "Print which code each section is, as docs/chapter.md has it")
      ->excludes(html, json);
  command->add_flag("--break", o.broken, "Get one input of each topic wrong, to see its check fail");
  command->add_option("--threads", o.threads, "Threads")
      ->check(CLI::Range(1, 1024))
      ->default_str("one per processor");
  command->callback([&] { run = [&] { is_true = explain(o); }; });
}

/// Options of the benchmarks.
struct AllBenchOptions {
  BenchOptions peak;
  AttentionBenchOptions attention;
  MatmulBenchOptions matmul;
  ModelBenchOptions model;
  FormsBenchOptions forms;
  TrainBenchOptions train;
};

void add_bench(CLI::App& app, AllBenchOptions& o, std::function<void()>& run) {
  CLI::App* bench = app.add_subcommand("bench", "Speed, as shares of what this CPU can do at most");
  bench->require_subcommand(1);
  CLI::App* peak = bench->add_subcommand("peak", "What this CPU can do at most: arithmetic and reading");
  add_bench_options(peak, o.peak);
  peak->callback([&] { run = [&o] { bench_peak(o.peak); }; });
  add_bench_attention(bench, o.attention, run);
  add_bench_matmul(bench, o.matmul, run);
  add_bench_model(bench, o.model, run);
  add_bench_forms(bench, o.forms, run);
  add_bench_train(bench, o.train, run);
}

int main(int argc, char** argv) {
  CLI::App app("Multi-Head Latent Attention: runs DeepSeek-architecture checkpoints on CPUs.", "mla");
  app.require_subcommand(1);
  app.set_version_flag("--version", MLA_VERSION);
  GenerateOptions generate_options;
  LogitsOptions logits_options;
  ScoreOptions score_options;
  TokenizeOptions tokenize_options;
  InspectOptions inspect_options;
  TrainingCommands training;
  ExplainOptions explain_options;
  AllBenchOptions bench_options;
  std::function<void()> run;
  bool is_true = true;  // what explain checks
  add_generate(app, generate_options, run);
  add_logits(app, logits_options, run);
  add_score(app, score_options, run);
  add_tokenize(app, tokenize_options, run);
  add_inspect(app, inspect_options, run);
  add_training_commands(app, training, run);
  add_explain(app, explain_options, run, is_true);
  add_bench(app, bench_options, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  run();
  return is_true ? 0 : 1;
}

}  // namespace
}  // namespace mla::app

/// Threads that wait for work spin for microseconds, then sleep. gcc's OpenMP spins for milliseconds by
/// default, which costs most of the speed as soon as another program wants a core; it reads the setting
/// before main, so the program starts itself again with it. Whoever sets OMP_WAIT_POLICY or GOMP_SPINCOUNT
/// has decided otherwise.
static void spin_briefly(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  ::setenv("GOMP_SPINCOUNT", "10000", 0);
  ::execv("/proc/self/exe", argv);  // returns only if it fails; then the program runs as it is
}

int main(int argc, char** argv) {
  spin_briefly(argv);
  try {
    return mla::app::main(argc, argv);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "mla: out of memory\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "mla: {}\n", error.what());
  }
  return 1;
}
