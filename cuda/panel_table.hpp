// What the panel kernels read: 16-bit weights in contiguous rows, with products of 16-bit factors on top. What are rows
// and columns, and factors of them, is as in weight_table.hpp.
#pragma once

#include <cstdint>

#include "stream_table.hpp"
#include "term_table.hpp"

namespace lyc::cuda {

/// Which instance of the kernel.
struct PanelKind {
  StreamForm form;      // kSingle, kHadamard or kKronecker
  std::int32_t chunks;  // of ranks, at most, of each product
  bool bf16_factors;    // else f16

  bool operator==(const PanelKind &o) const {
    return form == o.form && chunks == o.chunks && bf16_factors == o.bf16_factors;
  }
};

/// Ranks of 16, 32, 64 and 128 of the usual bf16 factors have their own instances, as have halves of a Hadamard product
/// and right halves of a Kronecker product of 16 and 32; of f16 ones up to 32 make do with the larger. A right half of
/// more ranks is better computed once, before the weight.
inline constexpr PanelKind kPanelKinds[] = {
    {StreamForm::kSingle, 1, true},    {StreamForm::kSingle, 2, true},     {StreamForm::kSingle, 4, true},
    {StreamForm::kSingle, 8, true},    {StreamForm::kHadamard, 1, true},   {StreamForm::kHadamard, 2, true},
    {StreamForm::kKronecker, 1, true}, {StreamForm::kKronecker, 2, true},  {StreamForm::kSingle, 2, false},
    {StreamForm::kHadamard, 2, false}, {StreamForm::kKronecker, 2, false},
};
constexpr int all_chunks(StreamForm form, int chunks) { return form == StreamForm::kHadamard ? 2 * chunks : chunks; }

inline constexpr int kPanelColumns = 64;  // of a panel, a warp's piece of work: 128 bytes of each row
inline constexpr int kPanelWarps = 4;     // of a block, which takes panels side by side

/// Rows that the right half of a Kronecker product must have: a kernel's step meets two blocks at most.
inline constexpr int kPanelBlockRows = 16;

/// Rows of a panel where there are many targets, whatever is done with them. The more, the seldomer column factors are
/// fetched; the fewer, the nearer are the blocks that are at work.
constexpr int panel_rows(const PanelKind &kind) {
  const int chunks = all_chunks(kind.form, kind.chunks);
  return chunks == 1 ? 32 : kind.form == StreamForm::kHadamard && chunks == 2 ? 96 : chunks == 2 ? 48 : 256;
}

/// A factor [lines, ranks] or [ranks, lines], the latter contiguous: a row factor, or a column factor.
struct PanelFactor {
  const void *data;
  std::int32_t step;  // bytes from line to line of a row factor, from rank to rank of a column factor
};

/// multiplier * coefficient * scalar * row_factor column_factor; or the second half of a Hadamard product, which has
/// none of the first three
struct PanelProduct {
  PanelFactor row, column;
  std::int32_t rank;
  Vector scalar;
  float coefficient;
  std::int32_t multiplier_index;
};

/// The left half of a Kronecker product, of the factors' dtype. The target's product is the right one, [rows, columns];
/// row y of the target is row y + row_begin of the whole.
struct PanelLeft {
  const void *data;
  std::int32_t row, column;  // bytes from element to element
  Divisor rows, columns;
  std::int32_t row_begin;
};

struct alignas(16) PanelTarget {
  const void *base;  // where it is absent: out
  void *out;
  std::int32_t base_row, out_row;  // bytes from row to row
  std::int32_t rows, columns;
  Divisor strips;           // of kPanelColumns
  std::int32_t bf16;        // the weight's dtype; else f16
  PanelProduct product[2];  // one, or two that are multiplied
  PanelLeft left;
};

}  // namespace lyc::cuda
