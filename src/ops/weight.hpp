// The vocabulary of weight computation: plain data that says what to compute, executed by src/cpu and cuda/.
//
//   out = f(base, dW(m)),   dW = sum over the adapters of a target,   all of it against the pristine base.
//
// One adapter's raw delta D is a sum of terms, each `coefficient * scalar *` one of
//
//   kProduct       P                     low-rank, Tucker, or whole (dense)
//   kHadamard      P o Q                 elementwise
//   kKronecker     P (x) Q               [o1*OQ + o2, i1*IQ + i2, k] = P[o1, i1] * Q[o2, i2, k]
//   kSparse        S                     some elements, by row
//   kBaseHadamard  P o W                 P's operands may have stride 0: a value per row or column scales it
//   kBaseProduct   W P                   [o, j, k] = sum_i W[o, i, k] * P[i, j]
//   kRotation      R'(W) - W             see Rotation
//
// where a product P is   whole:    down[o, i, k]
//                        low-rank: sum_r up[o, r] * l[r] * down[r, i, k]
//                        Tucker:   sum_pq up[o, p] * l[p] * core[p, q, k] * down[q, i]
//
// with l = diagonal * mask, each 1 where absent. What the adapter adds to the weight W, at multiplier m, is
//
//   no DoRA          m * D, but for a rotation R'(W) - W, whose R' depends on m
//   replaces         D - W for every m but 0: the result is D itself, and what other adapters add
//   DoRA             (a + b * g / n) * V - c * W,  V = W + v * D,  n = |V| along the axis (+ epsilon)
//                    kInterpolate  v = 1, a = 0,     b = m, c = m
//                    kLycoris      v = 1, a = 1 - m, b = m, c = 1
//                    kPeft         v = m, a = 0,     b = 1, c = 1, epsilon 0
//
// Whatever the rule, m = 0 adds nothing, bit for bit. Everything is computed in float32 and rounded once at the store.
// The structs cross into the CUDA back end, which is always of the same version: standard layout, no virtuals.
#pragma once

#include <cstdint>

#include "lycoris.h"

namespace lyc::ops {

inline constexpr int kMaxKernelDims = 3;

/// A borrowed tensor with canonical axes: element (o, i, k) lies at data[o*stride_out + i*stride_in + sum
/// k_d*stride_k_d]. For factors, `out` or `in` may be a rank. Layouts have ended before this: a slice or a transpose is
/// just strides.
struct Operand {
  void *data = nullptr;  // null = absent
  lyc_dtype dtype = LYC_DTYPE_NONE;
  std::int32_t kernel_dims = 0;
  std::int64_t out = 1, in = 1;
  std::int64_t kernel[kMaxKernelDims] = {1, 1, 1};
  std::int64_t stride_out = 0, stride_in = 0;
  std::int64_t stride_kernel[kMaxKernelDims] = {0, 0, 0};

  std::int64_t kernel_size() const { return kernel[0] * kernel[1] * kernel[2]; }
  std::int64_t numel() const { return out * in * kernel_size(); }
};

/// Whole if `up` is absent, Tucker if `core` is present, low-rank otherwise.
struct Product {
  Operand up;              // [O, r]
  Operand core;            // [r_up, r_down, K]
  Operand down;            // [r, I, K]; [r_down, I] with a core; [O, I, K] when whole
  Operand diagonal, mask;  // [r] in `out`, of the rank that `up` has; may be absent

  bool whole() const { return up.data == nullptr; }
  bool tucker() const { return core.data != nullptr; }
  std::int64_t out() const { return whole() ? down.out : up.out; }
  std::int64_t in() const { return down.in; }
  std::int64_t rank() const { return whole() ? 0 : up.in; }
  const Operand &kernel_holder() const { return tucker() ? core : down; }
};

/// Some elements of a delta, ordered by row, in a row by column. Positions and columns are I64.
struct Sparse {
  Operand row_starts;  // [O + 1] in `out`: where a row's elements begin
  Operand columns;     // [n]: i * kernel_size + k
  Operand values;      // [n]
};

/// R' turns blocks of neighbours along one axis of the weight, stage after stage:
///
///   out[j] = sum_i R'[j, i] in[i]       within a block, for every position of the other axis
///   R'     = I + m (R - I)              R = map(Q), Q skew-symmetric from `generators` X, then limited
///
/// and multiplies row o of the result by rescale[o], whatever m is. Elements outside [begin, begin + blocks *
/// block_size) stay; R'(W) - W is 0 there. arXiv:2306.07280 (OFT), arXiv:2311.06243 (BOFT).
struct Rotation {
  enum class Axis : std::int32_t { kOut = 1, kIn = 2 };  // kIn counts i * kernel_size + k
  /// Q = factor * (X - X^T), or X holds the elements above Q's diagonal, row by row, Q[i, j] = factor * x for i < j.
  enum class Storage : std::int32_t { kSquare, kTriangle };
  /// (I + Q)(I - Q)^-1, or its series I + 2Q + 2Q^2 + ... of `neumann_terms`, the last one with weight 1:
  /// 1 term is I, 2 are I + 2Q, 3 and 4 are I + 2Q + 2Q^2 + Q^3.
  enum class Map : std::int32_t { kCayley, kNeumann };
  /// Stage t works on an order of its own; nothing is moved for good. In windows of 2h, h = 2^t * block_size / 2,
  ///   kInterleave  position 2e + g holds element g * h + e                                           LyCORIS
  ///   kHalves      the same with half blocks (block_size / 2 elements each) in the place of elements  PEFT
  enum class Order : std::int32_t { kPlain, kInterleave, kHalves };
  /// What limits Q. kTogether: |Q| over all stages and blocks, + 1e-8, is brought down to `limit` where above it.
  /// kAlways: Q * (min(|Q|, limit) + 1e-8) / (|Q| + 1e-8), so a limit of 0 leaves next to nothing. kBlock: |Q| of each.
  enum class Limit : std::int32_t { kNone, kTogether, kAlways, kBlock };

  Axis axis = Axis::kOut;
  Storage storage = Storage::kSquare;
  Map map = Map::kCayley;
  Order order = Order::kPlain;
  Limit limited = Limit::kNone;
  std::int32_t neumann_terms = 0;
  std::int32_t stages = 1, reserved = 0;
  std::int64_t blocks = 0, block_size = 0, begin = 0;
  double factor = 1.0;  // negative: the other direction
  double limit = 0.0;
  Operand generators;  // [stages * blocks, b * b or b (b - 1) / 2]; stride_out 0: one for all blocks
  Operand rescale;     // [O] in `out`, or absent
  Operand prepared;    // [stages * blocks, b * b] F32: R - I, computed before; absent = compute

  std::int64_t extent() const { return blocks * block_size; }
};

enum class TermKind : std::int32_t { kProduct, kHadamard, kKronecker, kSparse, kBaseHadamard, kBaseProduct, kRotation };

/// Whether the term is made from the weight.
constexpr bool reads_base(TermKind kind) { return kind >= TermKind::kBaseHadamard; }

struct Term {
  TermKind kind = TermKind::kProduct;
  std::int32_t rotation = -1;  // kRotation: in WeightBatch::rotations
  double coefficient = 1.0;    // the resolved scale
  Operand scalar;              // one element that multiplies the coefficient (a trained scalar); absent = 1
  Product p, q;                // q: kHadamard and kKronecker; none: kSparse and kRotation
  Sparse sparse;               // kSparse
  std::int64_t row_begin = 0;  // the target's row 0 is this row of the term (a fused adapter on split weights)
};

enum class DoraAxis : std::int32_t { kNone = 0, kOut = 1, kIn = 2 };
enum class DoraRule : std::int32_t { kInterpolate = 1, kLycoris = 2, kPeft = 3 };

/// What one module adds to one weight.
struct Adapter {
  std::int32_t first_term = 0, term_count = 0;  // in WeightBatch::terms
  std::int32_t multiplier_index = 0;
  DoraAxis dora_axis = DoraAxis::kNone;
  DoraRule dora_rule = DoraRule::kInterpolate;
  std::int32_t replaces = 0;  // 1: the terms are the new weight
  float epsilon = 0.0f;       // added to the norm
  Operand magnitude;          // kOut: [O] in `out`; kIn: [I] in `in`
  Operand norms;              // of V, prepared, as the magnitude; may be absent, or left unused
};

/// One weight and all that is added to it. base and out have the same extents and may be the same memory.
/// base is absent where only the difference is wanted and no term or magnitude needs it.
struct WeightTarget {
  Operand base, out;
  std::int32_t first_adapter = 0, adapter_count = 0;  // in WeightBatch::adapters
};

struct WeightBatch {
  const WeightTarget *targets = nullptr;
  const Adapter *adapters = nullptr;
  const Term *terms = nullptr;
  const Rotation *rotations = nullptr;
  std::int64_t target_count = 0, adapter_count = 0, term_count = 0, rotation_count = 0;
  std::int32_t multiplier_count = 0;
};

/// kMerge: out = base + dW. kUnmerge: out = base - dW (where nothing reads the base). kDiff: out = dW.
enum class WeightOp : std::int32_t { kMerge = 0, kUnmerge = 1, kDiff = 2 };

}  // namespace lyc::ops
