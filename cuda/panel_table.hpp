// What the panel kernels read: 16-bit weights in contiguous rows, with products of 16-bit factors on top. What are rows
// and columns, and factors of them, is as in weight_table.hpp.
#pragma once

#include <cstdint>

#include "stream_table.hpp"
#include "term_table.hpp"

namespace lyc::cuda {

/// Which instance of the kernel.
struct PanelKind {
  StreamForm form;      // kSingle or kHadamard
  std::int32_t chunks;  // of ranks, at most, of each product
  bool bf16_factors;    // else f16

  bool operator==(const PanelKind &o) const {
    return form == o.form && chunks == o.chunks && bf16_factors == o.bf16_factors;
  }
};

inline constexpr int kPanelColumns = 64;  // of a panel, a warp's piece of work: 128 bytes of each row
inline constexpr int kPanelWarps = 4;     // of a block, which takes panels side by side

/// Rows of a panel. The more, the seldomer column factors are fetched, which is much of what a difference moves; the
/// fewer, the more warps there are to wait for the base. Of several targets panels are alike whatever is done.
constexpr int panel_rows(StreamForm form, int chunks, bool alone, bool merges) {
  const bool one = form == StreamForm::kSingle && chunks == 1;
  return !alone || one != merges ? 32 : merges ? 16 : 64;
}

/// How a factor lies in memory: the ranks of a line, which is a row or a column, are neighbours, or the lines of a
/// rank.
enum class PanelOrder : std::int32_t { kRanks, kLines };

struct PanelFactor {
  const void *data;
  PanelOrder order;
  std::int32_t step;  // bytes from line to line, or from rank to rank
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

struct alignas(16) PanelTarget {
  const void *base;  // where it is absent: out
  void *out;
  std::int32_t base_row, out_row;  // bytes from row to row
  std::int32_t rows, columns;
  Divisor strips;           // of kPanelColumns
  std::int32_t bf16;        // the weight's dtype; else f16
  PanelProduct product[2];  // one, or two that are multiplied
};

}  // namespace lyc::cuda
