// What the elementwise kernels read: rows of contiguous memory, taken eight columns at a time. Kronecker products,
// whole differences, and both of them times the weight; a vector that scales rows or columns is a Kronecker product,
// too.
#pragma once

#include <cstdint>

#include "term_table.hpp"

namespace lyc::cuda {

/// multiplier * coefficient * scalar * left[y / n, x / k] * right[y % n, x % k], right of n rows and k columns, times
/// the weight's element where `times_base` is 1
struct ElementwiseTerm {
  const void *left, *right;  // or offsets into the workspace; of dtype NONE: 1
  lyc_dtype left_dtype, right_dtype;
  std::int32_t left_in_workspace, right_in_workspace;
  std::int64_t left_row, left_column, right_row;  // strides
  std::int32_t right_rows, right_columns;
  std::int32_t times_base;
  Vector scalar;
  float coefficient;
  std::int32_t multiplier_index;
};

struct ElementwiseTarget {
  const void *base;  // null = absent
  void *out;
  lyc_dtype base_dtype, out_dtype;
  std::int64_t base_row, out_row;  // strides
  std::int32_t rows, columns;
  std::int32_t step;        // from row to row of a tile: a term's right_rows, where that leaves tiles full, or 1
  std::int32_t reads_base;  // also for a difference
  std::int32_t first_term, term_count;
  DoraParameters dora;  // of the one adapter of a target with DoRA
};

/// Kernels, by what makes one faster than another.
struct ElementwiseKind {
  bool wide;  // base or out is float32
  bool dora;  // over rows: a block takes whole rows, and takes them twice, the second time from the caches
};
inline constexpr int kElementwiseKinds = 4;
constexpr int index_of(ElementwiseKind kind) { return (kind.wide ? 1 : 0) + (kind.dora ? 2 : 0); }
constexpr ElementwiseKind elementwise_kind(int index) { return {(index & 1) != 0, (index & 2) != 0}; }

inline constexpr int kElementwiseVector = 8;                         // columns that a thread takes
inline constexpr int kElementwiseColumns = 32 * kElementwiseVector;  // that a warp takes
inline constexpr int kElementwiseRows = 32;                          // of a tile, a warp's piece of work
inline constexpr int kElementwiseDoraRows = 8;                       // that a block takes whole
constexpr int tile_rows(ElementwiseKind kind) { return kind.dora ? kElementwiseDoraRows : kElementwiseRows; }

}  // namespace lyc::cuda
