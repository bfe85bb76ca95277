// What the streaming kernels read: weights whose tiles the copy engine moves, with the terms that go on top.
//
// A weight is a matrix as in weight_table.hpp, cut into a grid of equal blocks: one block, but for a Kronecker product,
// whose right half is as large as a block. A tile is kStreamRows rows of kBoxes boxes of kBoxColumns columns each, side
// by side: neighbours in a block, or, where blocks are narrow, of neighbouring blocks. Tiles are numbered strip by
// strip, weight by weight. The tiles of a strip share what is held at hand: the column factors of kStreamColumns
// columns, from top to bottom, or the same part of the right half, in every block.
#pragma once

#include <cstdint>

#include "weight_table.hpp"

namespace lyc::cuda {

inline constexpr int kStreamRows = 32;
inline constexpr int kBoxColumns = 64;  // 128 bytes: the widest box that the copy engine swizzles
inline constexpr int kBoxes = 4;
inline constexpr int kStreamColumns = kBoxes * kBoxColumns;
inline constexpr int kChunkRanks = 16;      // what one instruction takes
inline constexpr int kMaxStreamChunks = 8;  // column factors live in registers: 8 or 16 of them a chunk
inline constexpr int kMaxStreamProducts = 4;

/// What is added: one product, the sum of several terms, two halves that are multiplied, a Kronecker product of whole
/// halves or what can be seen as one; or blocks of rows are turned, by a kernel of its own (turn_kernels.cu).
enum class StreamForm : std::int32_t { kSingle, kSeveral, kHadamard, kKronecker, kRotation };

/// Which instance of the kernel.
struct StreamKind {
  std::int32_t chunks;  // at most
  StreamForm form;
  bool bf16_factors;  // else f16
  bool dora;
  std::int32_t cluster = 0;  // blocks that hold whole rows together (row_kernels.cu); 0: tiles

  bool operator==(const StreamKind &o) const {
    return chunks == o.chunks && form == o.form && bf16_factors == o.bf16_factors && dora == o.dora &&
           cluster == o.cluster;
  }
};

/// Warps that compute a box: as many as it takes to have factors and sums in registers.
constexpr int stream_warps_per_box(int chunks, StreamForm form) {
  const bool many = form == StreamForm::kHadamard || (form <= StreamForm::kSeveral && chunks >= 4);
  return many ? 2 : 1;
}

// Where a cluster of blocks takes whole rows, a tile is a band: kStreamRows rows. Each block of the cluster has as many
// of its boxes, side by side; a strip is all bands of a weight.
inline constexpr int kMostCluster = 16, kPortableCluster = 8;
inline constexpr int kRowBoxes = 6;  // wanted of a block, so that two of them share a multiprocessor

/// Warps that compute a box of a band, registers of each thread, and how many such warps a block has at most. Two
/// Hadamard factors are many, and computing them from a few columns at a time costs more than other warps would hide.
constexpr int row_warps_per_box(StreamForm form) { return form == StreamForm::kSeveral ? 4 : 2; }
constexpr int row_registers(StreamForm form) { return form == StreamForm::kHadamard ? 128 : 72; }
constexpr int most_row_warps(StreamForm form) { return form == StreamForm::kHadamard ? 12 : 24; }
inline constexpr int kMostRowWarps = 24;

/// CUtensorMap, without its header.
struct alignas(128) TensorMap {
  std::uint64_t opaque[16];
};

// A packed factor is one that a run computes, as the kernel wants it in shared memory: for each of kPackedParts parts
// and each chunk of 16 ranks an array [lines][16 ranks] of 16-bit numbers, swizzled. The parts add up to the value.
inline constexpr int kPackedParts = 3;
inline constexpr int kPackedLines = 64;  // lines come in multiples of these

struct StreamChunk {
  std::int8_t product, term;
  std::int8_t row_chunk, column_chunk;            // in units of 16 ranks; of a packed factor: part * chunks + chunk
  std::int8_t row_transposed, column_transposed;  // the factor's contiguous axis is not the rank; is the rank
  std::int8_t row_packed, column_packed;
  std::int8_t ends;  // 1: the last of its product, but for the second half of a Hadamard product
  std::int8_t reserved[3];
};

/// multiplier * coefficient * scalar
struct StreamTerm {
  Vector scalar;
  float coefficient;
  std::int32_t multiplier_index;
};

/// left[i, j] * right[y, x] on block (i, j). A half in the workspace is an offset.
struct StreamKronecker {
  const void *left, *right;
  lyc_dtype left_dtype, right_dtype;
  std::int32_t left_in_workspace, right_in_workspace;
  std::int64_t left_row, left_column, right_row, right_column;  // strides
  std::int32_t right_pairs;                                     // 1: two neighbours of a row can be loaded at once
};

/// What DoRA needs of lines, rows or columns: partial[piece][line], sums of squares, and factors[line]; or, where a
/// cluster takes whole rows, the magnitude of each.
struct StreamDora {
  std::int32_t by_row;
  std::int32_t lines;
  DoraParameters parameters;
  std::uint64_t partial, factors;  // offsets into the workspace
};

struct StreamTarget {
  TensorMap base, out, row[kMaxStreamProducts], column[kMaxStreamProducts];
  std::uint64_t packed_row[kMaxStreamProducts], packed_column[kMaxStreamProducts];  // offsets into the workspace
  std::int32_t rows, columns;                                                       // of a block
  std::int32_t down, across;                                                        // blocks
  std::int32_t boxes_across;    // of a tile's boxes, or of a band's, those that are neighbours in one block
  std::int32_t boxes;           // of a band, that a block of a cluster has
  std::int32_t strips, height;  // tiles of a strip
  std::int32_t groups;          // runs of a strip
  std::int32_t bf16;            // the weight's dtype; else f16
  std::int32_t chunk_count, term_count;
  StreamChunk chunks[kMaxStreamChunks];
  StreamTerm terms[kMaxStreamProducts];
  StreamKronecker kronecker;
  StreamDora dora;
};

/// Targets that one launch serves. One alone travels with the launch, and `targets` is null.
struct StreamTable {
  const StreamTarget *targets;
  const std::uint32_t *first_run;  // of each target, ascending from 0
  std::int32_t target_count;
  std::uint32_t run_count;
};

}  // namespace lyc::cuda
