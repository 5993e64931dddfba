#include "apps/explain/topics.h"

namespace mla::app {

// Each in a file of its own name.
Page tell_best_of_both(Explained&);
Page tell_query_path(Explained&);
Page tell_kv_path(Explained&);
Page tell_derivation(Explained&);
Page tell_absorption(Explained&);
Page tell_context_vector(Explained&);
Page tell_new_token(Explained&);
Page tell_latent_cache(Explained&);
Page tell_decompress(Explained&);
Page tell_cache_formula(Explained&);
Page tell_head_diversity(Explained&);
Page tell_module(Explained&);
Page tell_order(Explained&);
Page tell_integer(Explained&);
Page tell_binary(Explained&);
Page tell_sinusoidal(Explained&);
Page tell_rotary(Explained&);
Page tell_decoupled(Explained&);

namespace {

constexpr Topic all[] = {
    {"best-of-both", "3.1", "Full heads and a small cache", tell_best_of_both},
    {"query-path", "3.2.1", "The way to the queries", tell_query_path},
    {"kv-path", "3.2.2", "The way to keys and values", tell_kv_path},
    {"derivation", "3.3.1", "Queries, keys and values, step by step", tell_derivation},
    {"absorption", "3.3.2", "The absorption trick", tell_absorption},
    {"context-vector", "3.3.3", "The context vector", tell_context_vector},
    {"new-token", "3.4.1", "What a new token computes", tell_new_token},
    {"latent-cache", "3.4.2", "The latent is all that is kept", tell_latent_cache},
    {"decompress", "3.4.3", "Rebuilding keys and values, or not", tell_decompress},
    {"cache-formula", "3.5.1", "The size of the cache", tell_cache_formula},
    {"head-diversity", "3.5.2", "Heads stay different", tell_head_diversity},
    {"module", "3.6", "The module from scratch", tell_module},
    {"order", "3.7", "Attention does not know order", tell_order},
    {"integer", "3.8.1–2", "Integers as positions", tell_integer},
    {"binary", "3.9.1–3", "Binary positions", tell_binary},
    {"sinusoidal", "3.10.1–2", "Sine and cosine instead of bits", tell_sinusoidal},
    {"rotary", "RoPE", "Rotary positions", tell_rotary},
    {"decoupled", "decoupled", "Why a rotated part stands beside the latent", tell_decoupled},
};

}  // namespace

std::span<const Topic> topics() {
  return all;
}

}  // namespace mla::app
