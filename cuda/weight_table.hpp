// What the weight kernels read: targets turned into matrices, laid out in device memory by weight_plan.cpp.
//
// A weight [O, I, K...] is seen as a matrix whose columns run along its contiguous axis: rows are O and columns are I,
// K for PyTorch's layouts; the other way round for [I, O] and [K..., I, O]. A low-rank term is a row factor [rows,
// rank] times a column factor [rank, columns], whichever of up and down that is.
#pragma once

#include <cstdint>

#include "ops/backend.hpp"

namespace lyc::cuda {

inline constexpr int kMaxLevels = 4;  // the side of a convolution's weight that is not O: I and three kernel axes

/// Rows or columns as nested axes, the innermost first; nearly always one.
struct Axis {
  std::int32_t size, levels;
  std::int32_t extent[kMaxLevels];
};

/// Where element x of an axis lies in one tensor: strides that belong to Axis::extent.
struct AxisStrides {
  std::int64_t level[kMaxLevels];
};

/// A vector: a value per rank, per magnitude or per row; stride 0 and one element is a scalar.
struct Vector {
  const void *data;  // null = absent: all 1
  lyc_dtype dtype;
  std::int64_t stride;
};

struct DoraParameters {
  ops::DoraRule rule;
  float epsilon;
  Vector magnitude;
};

struct Matrix {
  void *data;  // null = absent
  lyc_dtype dtype;
  std::int32_t vectors;  // 1: whole vectors of a thread are aligned and contiguous along columns
  AxisStrides row, column;
  std::int32_t row_bytes;  // of a regular target: from row to row
};

struct Factor {
  const void *data;  // or an offset into the workspace
  lyc_dtype dtype;
  std::int32_t in_workspace;
  std::int32_t vectors;  // 1: what a thread takes at once is contiguous and aligned: columns, or four ranks of a row
  std::int64_t rank_stride;
  AxisStrides axis;
  std::int32_t row_bytes;           // of a regular target's row factor: from row to row
  std::int32_t stage, contraction;  // that computes it, if in the workspace
};

/// What becomes of a product: it is added to the weight, or it is the first half of a Hadamard product and the next
/// term's product, the second half, takes it times itself to the weight.
enum class Role : std::int32_t { kAdd, kHold, kMultiply };

/// multiplier * coefficient * scalar * row_factor column_factor
struct LowRankTerm {
  Factor row_factor, column_factor;
  const void *scalar;  // one element; null = 1
  lyc_dtype scalar_dtype;
  std::int32_t rank;
  float coefficient;
  std::int32_t multiplier_index;
  Role role;
};

struct MatrixTarget {
  Matrix base, out;
  Axis rows, columns;
  std::int32_t first_term, term_count;  // in the plan's terms
  DoraParameters dora;                  // of the one adapter of a target with DoRA
};

/// Targets that one launch serves. A tile is kStripColumns wide and `tile_rows` high; each warp takes one. With DoRA a
/// tile is as wide as its weight, and a block takes it.
struct TargetTable {
  const MatrixTarget *targets;
  const LowRankTerm *terms;
  const std::uint32_t *first_tile;  // of each target, ascending from 0
  std::int32_t target_count;
  std::uint32_t tile_count;
  std::int32_t tile_rows;
  std::int32_t chunk_capacity;  // that a warp stages at a time
};

inline constexpr int kStripColumns = 64;
inline constexpr int kStepRows = 16;           // a warp computes its tile in steps of this many rows
inline constexpr int kMaxTileRows = 128;       // taller tiles no longer save factor loads that matter
inline constexpr int kRankChunk = 16;          // ranks that one instruction takes
inline constexpr int kWarpsPerBlock = 4;       // warps share nothing but the L1 cache
inline constexpr int kInlineMultipliers = 64;  // by value in a kernel's parameters; more go through the workspace

/// Kernels, by what makes one faster than another.
struct KernelKind {
  bool wide;      // base or out is float32, so a 16-byte vector has 4 elements, else 8
  bool regular;   // everything is aligned and moves by whole vectors, columns come in whole strips, chunks fit at once
  bool native;    // 16-bit factors of one dtype, as tensor cores take them; others go there in three parts
  bool hadamard;  // some product is held for the next one, in as many registers again
  bool dora;      // over rows: a block takes 16 whole rows, and takes them twice, the second time from the caches
};
constexpr int index_of(KernelKind kind) {
  const int index = (kind.wide ? 1 : 0) + (kind.native ? 0 : 2) + (kind.hadamard ? 4 : 0);
  return index + (kind.dora ? 16 : kind.regular ? 0 : 8);
}
inline constexpr int kKernelKinds = 24;  // DoRA comes with regular alone
constexpr KernelKind kernel_kind(int index) {
  return {(index & 1) != 0, (index & 8) == 0, (index & 2) == 0, (index & 4) != 0, (index & 16) != 0};
}
constexpr int vector_columns(KernelKind kind) { return kind.wide ? 4 : 8; }
constexpr int parts_of(KernelKind kind) { return kind.native ? 1 : 3; }

/// Chunks of ranks that a warp can stage: 24 KB, which lets two blocks share a multiprocessor. More go by turns.
constexpr int max_chunks(KernelKind kind) { return 12 / parts_of(kind); }

}  // namespace lyc::cuda
