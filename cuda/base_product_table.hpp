// What the kernel for W + m (W A + B) reads, A and B products of two factors of up to 16 ranks: GLoRA on linear layers.
#pragma once

#include <cstdint>

#include "stream_table.hpp"

namespace lyc::cuda {

inline constexpr int kBaseRows = 16;                            // of a weight, that a cluster of blocks takes at a time
inline constexpr int kBaseWarps = 12;                           // of a block, that compute
inline constexpr int kWarpColumns = 64;                         // 128 bytes of a row
inline constexpr int kBaseColumns = kBaseWarps * kWarpColumns;  // of a block, at most
inline constexpr int kMostBaseCluster = 4;
inline constexpr int kBaseSharedBytes = 200 * 1024;  // that a block takes, at most

/// [rows, rank] times [rank, columns]; ranks of `up` and columns of `down` are contiguous. No rank: absent.
struct BaseFactors {
  const void *up, *down;
  std::int64_t up_row, down_row;  // strides
  std::int32_t rank;
  StreamTerm term;
};

/// A bf16 matrix with contiguous rows, as are its factors.
struct BaseTarget {
  const void *base;
  void *out;
  std::int64_t base_row, out_row;  // strides
  std::int32_t rows, columns;
  std::int32_t columns_of_block;
  std::int32_t runs;         // each has every runs-th kBaseRows rows
  BaseFactors right, added;  // A and B
};

/// Targets that one launch serves. One alone travels with the launch, and `targets` is null.
struct BaseTable {
  const BaseTarget *targets;
  const std::uint32_t *first_run;  // of each target, ascending from 0
  std::int32_t target_count;
  std::uint32_t run_count;
};

}  // namespace lyc::cuda
