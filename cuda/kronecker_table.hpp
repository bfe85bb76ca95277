// What the Kronecker kernels read: rows of contiguous memory, taken eight columns at a time.
#pragma once

#include <cstdint>

#include "term_table.hpp"

namespace lyc::cuda {

/// multiplier * coefficient * scalar * left[y / n, x / k] * right[y % n, x % k], right of n rows and k columns
struct KroneckerTerm {
  const void *left, *right;  // or offsets into the workspace
  lyc_dtype left_dtype, right_dtype;
  std::int32_t left_in_workspace, right_in_workspace;
  std::int64_t left_row, left_column, right_row;  // strides
  Vector scalar;
  float coefficient;
  std::int32_t multiplier_index;
};

struct KroneckerTarget {
  const void *base;  // null = absent
  void *out;
  lyc_dtype base_dtype, out_dtype;
  std::int64_t base_row, out_row;  // strides
  std::int32_t rows, columns;
  std::int32_t right_rows, right_columns;  // of all its terms
  std::int32_t step;                       // from row to row of a tile: right_rows, where that leaves tiles full, or 1
  std::int32_t first_term, term_count;
  DoraParameters dora;  // of the one adapter of a target with DoRA
};

/// Kernels, by what makes one faster than another.
struct KroneckerKind {
  bool wide;  // base or out is float32
  bool dora;  // over rows: a block takes whole rows, and takes them twice, the second time from the caches
};
inline constexpr int kKroneckerKinds = 4;
constexpr int index_of(KroneckerKind kind) { return (kind.wide ? 1 : 0) + (kind.dora ? 2 : 0); }
constexpr KroneckerKind kronecker_kind(int index) { return {(index & 1) != 0, (index & 2) != 0}; }

inline constexpr int kKroneckerVector = 8;                       // columns that a thread takes
inline constexpr int kKroneckerColumns = 32 * kKroneckerVector;  // that a warp takes
inline constexpr int kKroneckerRows = 32;                        // of a tile, a warp's piece of work
inline constexpr int kKroneckerDoraRows = 8;                     // that a block takes whole
constexpr int tile_rows(KroneckerKind kind) { return kind.dora ? kKroneckerDoraRows : kKroneckerRows; }

}  // namespace lyc::cuda
