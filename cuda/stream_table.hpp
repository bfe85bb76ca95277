// What the streaming kernel reads: weights whose tiles the copy engine moves, with the low-rank factors that go on top.
//
// A weight is a matrix as in weight_table.hpp. Strips of kStreamColumns columns are cut into tiles of kStreamRows rows;
// tiles are numbered down a strip, strip by strip, weight by weight. A chunk is 16 ranks of one product.
#pragma once

#include <cstdint>

#include "lycoris.h"

namespace lyc::cuda {

inline constexpr int kStreamRows = 32;
inline constexpr int kStreamColumns = 256;
inline constexpr int kBoxColumns = 64;      // 128 bytes: the widest box that the copy engine swizzles
inline constexpr int kChunkRanks = 16;      // what one instruction takes
inline constexpr int kMaxStreamChunks = 4;  // column factors live in registers: 16 of them a chunk
inline constexpr int kMaxStreamProducts = 4;

/// What a target's chunks come to: one product, several terms, or two halves that are multiplied.
enum class StreamForm : std::int32_t { kSingle, kSeveral, kHadamard };

/// Which instance of the kernel.
struct StreamKind {
  std::int32_t chunks;  // at most; 1, 2 or 4
  StreamForm form;
  bool bf16_factors;  // else f16

  bool operator==(const StreamKind &o) const {
    return chunks == o.chunks && form == o.form && bf16_factors == o.bf16_factors;
  }
};

/// CUtensorMap, without its header.
struct alignas(128) TensorMap {
  std::uint64_t opaque[16];
};

/// What is done with the sum when a chunk is the last of its product.
enum class ChunkEnd : std::int8_t { kGoOn, kAdd, kKeep, kAddTimesKept };

struct StreamChunk {
  std::int8_t product, first_rank;                // first_rank / 16
  std::int8_t row_transposed, column_transposed;  // the factor's contiguous axis is not the rank; is the rank
  ChunkEnd end;
  std::int8_t term, reserved[2];
};

/// multiplier * coefficient * scalar
struct StreamTerm {
  const void *scalar;  // one element; null = 1
  lyc_dtype scalar_dtype;
  float coefficient;
  std::int32_t multiplier_index, reserved;
};

struct StreamTarget {
  TensorMap base, out, row[kMaxStreamProducts], column[kMaxStreamProducts];
  std::int32_t columns, strips, row_tiles;
  std::int32_t bf16;  // the weight's dtype; else f16
  std::int32_t chunk_count, term_count;
  StreamChunk chunks[kMaxStreamChunks];
  StreamTerm terms[kMaxStreamProducts];
};

/// Targets that one launch serves. One alone travels with the launch, and `targets` is null.
struct StreamTable {
  const StreamTarget *targets;
  const std::uint32_t *first_tile;  // of each target, ascending from 0
  std::int32_t target_count;
  std::uint32_t tile_count;
};

}  // namespace lyc::cuda
