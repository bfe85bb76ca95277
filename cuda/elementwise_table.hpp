// What the elementwise kernels read: rows of contiguous memory, taken a few columns at a time. Kronecker products,
// whole differences, and both of them times the weight; a vector that scales rows or columns is a Kronecker product,
// too.
#pragma once

#include <cstdint>

#include "term_table.hpp"

namespace lyc::cuda {

/// multiplier * coefficient * scalar * left[y / n, x / k] * right[y % n, x % k], right of n rows and k columns, times
/// the weight's element where `times_base` is 1
struct alignas(16) ElementwiseTerm {
  const void *left, *right;  // or offsets into the workspace; of dtype NONE: 1
  lyc_dtype left_dtype, right_dtype;
  std::int32_t left_in_workspace, right_in_workspace;
  std::int32_t left_row, left_column, right_row, right_column;  // strides in bytes
  Divisor right_rows, right_columns;
  std::int32_t times_base;
  Vector scalar;
  float coefficient;
  std::int32_t multiplier_index;
};

struct alignas(16) ElementwiseTarget {
  const void *base;  // null = absent
  void *out;
  lyc_dtype base_dtype, out_dtype;
  std::int32_t base_row, out_row;  // strides in bytes
  std::int32_t rows, columns;
  Divisor row_vectors;      // that make up a row
  Divisor step;             // between rows that are taken together: the first term's right_rows, if there are many
  std::int32_t together;    // one term, in one type, and such rows meet the same row of its right half
  std::int32_t threads;     // a vector of kElementwiseRows rows each
  std::int32_t reads_base;  // also for a difference
  std::int32_t first_term, term_count;
};

/// One target of the elementwise kernels that is alone: its rows begin on and are whole vectors of 16 bytes, its term's
/// halves are of its own type, or the right one of float32. It travels with the launch.
struct FlatTarget {
  ElementwiseTarget weight;
  ElementwiseTerm term;
  Divisor right_vectors;  // that make up a row of the right half
  std::int32_t vectors;
};

/// Kernels, by what makes one faster than another.
struct ElementwiseKind {
  bool wide;  // base or out is float32, or columns come in fours alone
};
inline constexpr int kElementwiseKinds = 2;
constexpr int index_of(ElementwiseKind kind) { return kind.wide ? 1 : 0; }
constexpr ElementwiseKind elementwise_kind(int index) { return {index != 0}; }

constexpr int elementwise_vector(ElementwiseKind kind) { return kind.wide ? 4 : 8; }  // columns that a thread takes
inline constexpr int kElementwiseThreads = 256;
inline constexpr int kElementwisePieces = 4;  // of a target that a block takes where it has to find the target first
inline constexpr int kElementwiseRows = 4;    // that a thread takes

// With DoRA over rows, and one Kronecker product of two halves or one whole difference, a block is cut into teams of
// warps, each of which has a row. A thread of it has so many vectors of the row, or fewer where they are its last ones:

inline constexpr int kRowVectors[] = {2, 3, 4, 8};
constexpr int full_row_vectors(int vectors) {
  return vectors == 2 ? 0 : vectors == 8 ? 5 : vectors - 1;
}  // that all have

inline constexpr int kRowTeamWarps[] = {1, 2, 3, 4, 6, 8, 12, 16, 24};  // with at most four vectors a thread
inline constexpr int kWideTeamWarps[] = {16, 24, 32};                   // with eight
inline constexpr int kMostTeamWarps = 32;
inline constexpr int kRowBlockWarps = 4;  // of several teams
inline constexpr int kMostRowTeams = kRowBlockWarps, kFewestBlockWarps = 3;

/// Which kernel, and how large blocks are.
struct ElementwiseRowsKind {
  lyc_dtype base, right;     // of the weight and of the right half, whose rows are contiguous
  std::int32_t block_warps;  // 0: any terms in any types, element by element
  std::int32_t vectors;      // of a thread

  bool operator==(const ElementwiseRowsKind &o) const {
    return base == o.base && right == o.right && block_warps == o.block_warps && vectors == o.vectors;
  }
};

struct alignas(16) ElementwiseRows {
  ElementwiseTarget weight;
  ElementwiseTerm term;   // the first one
  Divisor right_vectors;  // that make up a row of the right half
  Divisor team_threads;
  std::int32_t left_columns;
  std::int32_t teams;  // of a block
  DoraParameters dora;
};

}  // namespace lyc::cuda
