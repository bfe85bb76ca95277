// The vocabulary of forward: what a layer makes of its activations, with adapters on its weight. Plain data, as in
// ops/weight.hpp.
//
//   add     y += op(x, dW) + dB
//   whole   y  = op(x, W + dW) + B + dB
//
// op, with W [O, I, K], G groups, positions p of y (a batch entry n and a place in space):
//
//   kConv       y[n, g O/G + o, p] = sum_ik x[n, g I + i, p stride - padding + k dilation] W[g O/G + o, i, k]
//               x is 0 outside its bounds. A linear layer is one with K = 1, whose leading axes are n and p.
//   kEmbedding  y[n, i, p] = W[x[n, p], i]
//   kLayerNorm  y[n, c, p] = W[c] (x - mean) / sqrt(variance + epsilon)      both over c
//   kRmsNorm    y[n, c, p] = W[c] x / sqrt(mean of x^2 + epsilon)            over c
//   kGroupNorm  as kLayerNorm, over the channels of a group and all of p
//
// Everything is float32, rounded once at the store of y.
#pragma once

#include <cstdint>

#include "ops/weight.hpp"

namespace lyc::ops {

enum class LayerKind : std::int32_t { kConv, kEmbedding, kLayerNorm, kRmsNorm, kGroupNorm };

struct Layer {
  LayerKind kind = LayerKind::kConv;
  std::int32_t reserved = 0;
  std::int64_t groups = 1;
  std::int64_t stride[kMaxKernelDims] = {1, 1, 1};
  std::int64_t padding[kMaxKernelDims] = {0, 0, 0};
  std::int64_t dilation[kMaxKernelDims] = {1, 1, 1};
  double epsilon = 0.0;
};

/// A borrowed tensor [N, C, S...] of any strides. Indices of an embedding have no channels, and are I32 or I64.
struct Activation {
  void *data = nullptr;
  lyc_dtype dtype = LYC_DTYPE_NONE;
  std::int32_t reserved = 0;
  std::int64_t batch = 1, channels = 1;
  std::int64_t space[kMaxKernelDims] = {1, 1, 1};
  std::int64_t stride_batch = 0, stride_channel = 0;
  std::int64_t stride_space[kMaxKernelDims] = {0, 0, 0};

  std::int64_t positions() const { return batch * space[0] * space[1] * space[2]; }
};

enum class Path : std::int32_t { kAuto, kFactored, kRebuilt };

/// targets[0] of `weights` is the layer's weight, targets[1], where it is there, its bias with what changes it. Their
/// `out` has the extents only; `base` is absent where nothing needs it. A target without adapters stays as it is.
struct Forward {
  Layer layer;
  Activation x, y;
  WeightBatch weights;
  Path path = Path::kAuto;
  std::int32_t whole = 0;
};

struct ForwardPlanInfo {
  std::uint64_t workspace_size;  // bytes for one run, 256-byte aligned
  std::int32_t launches;         // kernels enqueued by one run; 0 on the CPU
  std::int32_t reserved;
};

struct ForwardRun {
  const float *multipliers;  // WeightBatch::multiplier_count values
  void *stream;
  void *workspace;                     // at least ForwardPlanInfo::workspace_size bytes
  std::int32_t multipliers_on_device;  // 1: `multipliers` is device memory, read in stream order
  std::int32_t reserved;
};

}  // namespace lyc::ops
