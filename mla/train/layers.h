#pragma once
#include <cstdint>
#include <span>

#include "mla/core/tensor.h"
#include "mla/kernels/panel_matmul.h"
#include "mla/train/parameters.h"

// The layers that most others are made of, backward. d_y is the gradient of the loss by y. Gradients of
// weights are added to what is there; of d_x each function says whether it is written or added to. Sums over
// tokens are taken in an order that depends on neither threads nor memory: the same call gives the same bits
// at any number of threads.

namespace mla {

/// y = x W^T, as matmul but for the order of the sums.
void linear(MatrixView<const float> x, const Trained& weight, DType compute, MatrixView<float> y);

/// Of linear: d_x = d_y W unless d_x is empty, added to what is there if `adds`; d_W += d_y^T x.
void linear_backward(MatrixView<const float> x, const Trained& weight, MatrixView<const float> d_y,
                     DType compute, MatrixView<float> d_x, bool adds = false);

/// A linear layer on its way back.
struct LinearGradient {
  const Trained& weight;
  MatrixView<const float> d_y;
};
/// Of two linear layers of the same x: d_x = d_y W of both, added to what is there if `adds`.
void linear_pair_backward(MatrixView<const float> x, const LinearGradient& one, const LinearGradient& other,
                          DType compute, MatrixView<float> d_x, bool adds);

/// Of y = rms_norm(x, weight, epsilon): d_x += and d_weight +=. y isn't needed: it is computed again.
void rms_norm_backward(MatrixView<const float> x, const Trained& weight, double epsilon,
                       MatrixView<const float> d_y, MatrixView<float> d_x);

/// Of hidden = silu(gate) * up, element by element: writes d_gate and d_up (which may be gate and up
/// themselves) from d_hidden.
void swiglu_backward(MatrixView<const float> gate, MatrixView<const float> up,
                     MatrixView<const float> d_hidden, MatrixView<float> d_gate, MatrixView<float> d_up);

/// Of stream[t] = scale * embedding[ids[t]]: d_embedding +=.
void embedding_backward(std::span<const std::int32_t> ids, double scale, MatrixView<const float> d_stream,
                        const Trained& embedding);

/// Memory that calls of cross_entropy reuse: of a few tokens at a time, never of all.
struct CrossEntropyScratch {
  Buffer<float> logits;          // [some tokens, vocab]
  PanelFactor output, backward;  // the head, packed for logits and for d_hidden
};

/// The sum over tokens of -log softmax(logit_scale * head hidden[t])[targets[t]], in nats; a target of -1
/// leaves its token out. If d_hidden isn't empty: writes d_hidden and adds to the head's gradient, both
/// multiplied by `weight`.
double cross_entropy(MatrixView<const float> hidden, const Trained& head, double logit_scale,
                     std::span<const std::int32_t> targets, double weight, DType compute,
                     CrossEntropyScratch& scratch, MatrixView<float> d_hidden);

}  // namespace mla
