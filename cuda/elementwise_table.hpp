// What the elementwise kernels read: rows of contiguous memory, taken a few columns at a time. Kronecker products,
// whole differences, and both of them times the weight; a vector that scales rows or columns is a Kronecker product,
// too.
#pragma once

#include <cstdint>

#include "term_table.hpp"

namespace lyc::cuda {

/// A number that others below 2^31 are divided by: n / value = (n + (n * magic >> 32)) >> shift.
struct Divisor {
  std::uint32_t value, magic, shift;
};

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
  std::int32_t together;    // one term, and such rows meet the same row of its right half; without DoRA, in one type
  std::int32_t threads;     // a vector of kElementwiseRows rows each; not with DoRA
  std::int32_t reads_base;  // also for a difference
  std::int32_t first_term, term_count;
  DoraParameters dora;  // of the one adapter of a target with DoRA
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
  bool dora;  // over rows: a block takes whole rows, and takes them twice, the second time from the caches
};
inline constexpr int kElementwiseKinds = 4;
constexpr int index_of(ElementwiseKind kind) { return (kind.wide ? 1 : 0) + (kind.dora ? 2 : 0); }
constexpr ElementwiseKind elementwise_kind(int index) { return {(index & 1) != 0, (index & 2) != 0}; }

constexpr int elementwise_vector(ElementwiseKind kind) { return kind.wide ? 4 : 8; }  // columns that a thread takes
inline constexpr int kElementwiseThreads = 256;
inline constexpr int kElementwisePieces = 4;    // of a target that a block takes where it has to find the target first
inline constexpr int kElementwiseRows = 4;      // that a thread takes
inline constexpr int kElementwiseDoraRows = 8;  // that a block takes whole

}  // namespace lyc::cuda
