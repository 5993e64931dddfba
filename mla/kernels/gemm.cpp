#include "mla/kernels/gemm.h"

#include <omp.h>

#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <utility>

#include "mla/core/cpu.h"
#include "mla/core/error.h"

namespace mla {
namespace {

using dnnl::memory;

/// One oneDNN product of fixed shape, with memory objects whose data pointers are set at each call.
struct Primitive {
  dnnl::matmul run;
  memory a, b, c;
};

dnnl::matmul::primitive_desc describe(const memory::desc& a, const memory::desc& b, const memory::desc& c,
                                      const dnnl::engine& engine) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, a, b, c};
#else
  return {dnnl::matmul::desc(a, b, c), engine};
#endif
}

dnnl::engine& cpu_engine() {
  static dnnl::engine engine = [] {
    if (selected_isa() == Isa::avx2) dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
    return dnnl::engine(dnnl::engine::kind::cpu, 0);
  }();
  return engine;
}

/// The primitives that one thread has made so far. oneDNN plans for the number of threads it sees, so each is
/// made and run with one: the plan, and with it every bit of the result, is the same on any machine size.
class PrimitiveCache {
 public:
  PrimitiveCache() : stream_(cpu_engine()) {}

  void run(std::int64_t n, std::int64_t k, const float* a, const float* b, float* c) {
    const int outer = omp_get_max_threads();
    omp_set_num_threads(1);
    try {
      auto [at, is_new] = primitives_.try_emplace({n, k});
      if (is_new) at->second = make(n, k);
      Primitive& primitive = at->second;
      primitive.a.set_data_handle(const_cast<float*>(a));
      primitive.b.set_data_handle(const_cast<float*>(b));
      primitive.c.set_data_handle(c);
      primitive.run.execute(
          stream_,
          {{DNNL_ARG_SRC, primitive.a}, {DNNL_ARG_WEIGHTS, primitive.b}, {DNNL_ARG_DST, primitive.c}});
      stream_.wait();
    } catch (const dnnl::error& error) {
      omp_set_num_threads(outer);
      fail("oneDNN: product of [{}, {}] and [{}, {}]: {}", n, k, k, gemm_tokens, error.what());
    }
    omp_set_num_threads(outer);
  }

 private:
  using Key = std::pair<std::int64_t, std::int64_t>;  // n, k

  static Primitive make(std::int64_t n, std::int64_t k) {
    constexpr auto element = memory::data_type::f32;
    const memory::desc a({n, k}, element, memory::dims{k, 1});
    const memory::desc b({k, gemm_tokens}, element, memory::dims{1, k});
    const memory::desc c({n, gemm_tokens}, element, memory::dims{gemm_tokens, 1});
    dnnl::engine& engine = cpu_engine();
    return {dnnl::matmul(describe(a, b, c, engine)), memory(a, engine, nullptr), memory(b, engine, nullptr),
            memory(c, engine, nullptr)};
  }

  dnnl::stream stream_;
  std::map<Key, Primitive> primitives_;
};

void gemm_block_scalar(std::int64_t n, std::int64_t k, const float* a, const float* b, std::int64_t tokens,
                       float* c) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float* row = a + i * k;
    for (std::int64_t t = 0; t < tokens; t += 4) {  // four sums at a time hide the latency of an addition
      float sums[4] = {};
      for (std::int64_t j = 0; j < k; ++j) {
        for (std::int64_t u = 0; u < 4; ++u) sums[u] += row[j] * b[(t + u) * k + j];
      }
      for (std::int64_t u = 0; u < 4; ++u) c[i * gemm_tokens + t + u] = sums[u];
    }
  }
}

}  // namespace

void gemm_block(std::int64_t n, std::int64_t k, const float* a, const float* b, std::int64_t tokens,
                float* c) {
  if (selected_isa() == Isa::scalar) return gemm_block_scalar(n, k, a, b, tokens, c);
  thread_local PrimitiveCache cache;
  cache.run(n, k, a, b, c);
}

}  // namespace mla
