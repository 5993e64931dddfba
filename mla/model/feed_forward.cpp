#include "mla/model/feed_forward.h"

#include <algorithm>
#include <vector>

#include "mla/core/parallel.h"
#include "mla/kernels/leaf.h"

namespace mla {
namespace {

/// Outputs of a piece are a multiple of this, matmul's own block: so the cut changes no bit.
constexpr std::int64_t block_outputs = 64;
/// Enough that the threads end together, few enough that packing the tokens anew for each is nothing.
constexpr std::int64_t pieces_per_thread = 8;

/// Some outputs of one product of a run.
struct Piece {
  const FeedForwardRun* run;
  std::int64_t first, count;
};

/// Multiply-adds of one output; a few tokens cost as much as one, since the weights must be read.
std::int64_t work_of_output(const FeedForwardRun& run, std::int64_t depth) {
  return std::max(run.x.rows, std::int64_t{4}) * depth;
}

/// Cuts the outputs [0, outputs(run)) of each run, products over depth(run) values, into pieces of about the
/// same work and calls body(piece) for all of them on the threads.
template <class Outputs, class Depth, class Body>
void for_pieces(std::span<const FeedForwardRun> runs, const Outputs& outputs, const Depth& depth,
                const Body& body) {
  std::int64_t total = 0;
  for (const FeedForwardRun& run : runs) total += outputs(run) * work_of_output(run, depth(run));
  const std::int64_t share = total / (pieces_per_thread * threads());
  thread_local std::vector<Piece> memory;
  memory.clear();
  for (const FeedForwardRun& run : runs) {
    const std::int64_t blocks = share / (block_outputs * work_of_output(run, depth(run))) + 1;
    const std::int64_t size = blocks * block_outputs;
    for (std::int64_t first = 0; first < outputs(run); first += size)
      memory.push_back({&run, first, std::min(size, outputs(run) - first)});
  }
  const Piece* pieces = memory.data();  // this thread's, for all threads
  const auto count = static_cast<std::int64_t>(memory.size());
  parallel_for(count, count > 0 ? total / count : 0, [&](std::int64_t i) { body(pieces[i]); });
}

/// Outputs [first, first + count) of silu(gate x) * up x.
void hidden_piece(const Piece& piece, DType compute, MatmulFunction product) {
  const FeedForwardRun& run = *piece.run;
  const MatrixView<float> gate = run.gate.columns(piece.first, piece.count);
  const MatrixView<float> up = run.up.columns(piece.first, piece.count);
  product(run.x, run.weights->gate_proj.row_block(piece.first, piece.count), compute, gate);
  product(run.x, run.weights->up_proj.row_block(piece.first, piece.count), compute, up);
  const MatrixView<float> hidden = run.hidden.columns(piece.first, piece.count);
  for (std::int64_t t = 0; t < gate.rows; ++t)
    leaf_kernels().swiglu(gate.row(t), up.row(t), hidden.row(t), piece.count);
}

}  // namespace

void feed_forward(const FeedForwardWeights& weights, MatrixView<const float> x, DType compute,
                  FeedForwardScratch& scratch, MatrixView<float> out) {
  const std::int64_t width = weights.gate_proj.rows;
  MatrixView<float> gate = matrix_in(scratch.gate, x.rows, width);
  MatrixView<float> up = matrix_in(scratch.up, x.rows, width);
  matmul(x, weights.gate_proj, compute, gate);
  matmul(x, weights.up_proj, compute, up);
  leaf_kernels().swiglu(gate.data, up.data, gate.data, x.rows * width);
  matmul(gate, weights.down_proj, compute, out);
}

void feed_forward(std::span<const FeedForwardRun> runs, DType compute, MatmulFunction product) {
  const auto width = [](const FeedForwardRun& run) { return run.gate.cols; };
  const auto hidden_size = [](const FeedForwardRun& run) { return run.x.cols; };
  const auto both = [](const FeedForwardRun& run) { return 2 * run.x.cols; };  // gate and up
  for_pieces(runs, width, both, [&](const Piece& piece) { hidden_piece(piece, compute, product); });
  for_pieces(runs, hidden_size, width, [&](const Piece& piece) {
    const FeedForwardRun& run = *piece.run;
    product(run.hidden, run.weights->down_proj.row_block(piece.first, piece.count), compute,
            run.out.columns(piece.first, piece.count));
  });
}

}  // namespace mla
