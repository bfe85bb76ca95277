// The vocabulary of weight computation: plain data that says what to compute, executed by src/cpu and cuda/.
//
//   out = f(base, dW(m)),   dW = sum over the adapters of a target,   all of it against the pristine base.
//
// One adapter's raw delta D is a sum of terms, each `coefficient * scalar *` one of
//
//   kProduct     P                       low-rank, Tucker, or whole (dense)
//   kHadamard    P o Q                   elementwise
//   kKronecker   P (x) Q                 [o1*OQ + o2, i1*IQ + i2, k] = P[o1, i1] * Q[o2, i2, k]
//
// where a product P is   whole:    down[o, i, k]
//                        low-rank: sum_r up[o, r] * down[r, i, k]
//                        Tucker:   sum_pq up[o, p] * core[p, q, k] * down[q, i]
//
// and what the adapter adds to the weight W, at multiplier m, is
//
//   no DoRA          m * D
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
  Operand up;    // [O, r]
  Operand core;  // [r_up, r_down, K]
  Operand down;  // [r, I, K]; [r_down, I] with a core; [O, I, K] when whole

  bool whole() const { return up.data == nullptr; }
  bool tucker() const { return core.data != nullptr; }
  std::int64_t out() const { return whole() ? down.out : up.out; }
  std::int64_t in() const { return down.in; }
  std::int64_t rank() const { return whole() ? 0 : up.in; }
  const Operand &kernel_holder() const { return tucker() ? core : down; }
};

enum class TermKind : std::int32_t { kProduct, kHadamard, kKronecker };

struct Term {
  TermKind kind = TermKind::kProduct;
  std::int32_t reserved = 0;
  double coefficient = 1.0;    // the resolved scale
  Operand scalar;              // one element that multiplies the coefficient (a trained scalar); absent = 1
  Product p, q;                // q is unused by kProduct
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
  float epsilon = 0.0f;  // added to the norm
  Operand magnitude;     // kOut: [O] in `out`; kIn: [I] in `in`
};

/// One weight and all that is added to it. base and out have the same extents and may be the same memory.
/// base is absent where only the difference is wanted and nothing needs it.
struct WeightTarget {
  Operand base, out;
  std::int32_t first_adapter = 0, adapter_count = 0;  // in WeightBatch::adapters
};

struct WeightBatch {
  const WeightTarget *targets = nullptr;
  const Adapter *adapters = nullptr;
  const Term *terms = nullptr;
  std::int64_t target_count = 0, adapter_count = 0, term_count = 0;
  std::int32_t multiplier_count = 0;
};

/// kMerge: out = base + dW. kUnmerge: out = base - dW (no DoRA). kDiff: out = dW.
enum class WeightOp : std::int32_t { kMerge = 0, kUnmerge = 1, kDiff = 2 };

}  // namespace lyc::ops
