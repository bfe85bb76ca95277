// What the kernels for terms of every kind read. A target is the matrix of weight_table.hpp, but its axes stay apart,
// and a tensor is found by its strides along them. What a run computes first lies in the workspace, always as float32.
#pragma once

#include <cstdint>

#include "weight_table.hpp"

namespace lyc::cuda {

/// A number that others below 2^31 are divided by: n / value = (n + (n * magic >> 32)) >> shift.
struct Divisor {
  std::uint32_t value, magic, shift;
};

/// A tensor as the lines of a target see it.
struct View {
  const void *data;  // or an offset into the workspace
  lyc_dtype dtype;   // NONE = absent
  std::int32_t in_workspace;
  AxisStrides row, column;
};

/// Whole: `row` has all strides and `rank` is 0. Else sum_r row[y, r] * l[r] * column[r, x].
struct ProductView {
  View row, column;
  std::int64_t row_rank_stride, column_rank_stride;
  Vector diagonal, mask;
  std::int32_t rank;
};

/// Of a line's place on one level, `(place + begin) / size` belongs to the left half of a Kronecker product and the
/// remainder to the right one.
struct Split {
  std::int32_t level, size;
  std::int64_t begin;
};

struct SparseView {
  Vector row_starts, columns, values;
};

/// A rotated weight, [O, I * K] in float32 in the workspace, as ProductView::row of its term has it; outside
/// [begin, end) along its axis the term is 0.
struct RotatedView {
  std::int32_t by_out;
  std::int64_t begin, end;
  Vector rescale;
};

struct TermEntry {
  ops::TermKind kind;
  float coefficient;
  Vector scalar;
  ProductView p, q;
  Split rows, columns;  // kKronecker
  SparseView sparse;
  RotatedView rotated;
};

/// What DoRA makes of a magnitude's line: the change is x * (v * D + w * W) + y * W. Where x is large, D and W may
/// nearly cancel, and w is 1 so that they do before they are multiplied; elsewhere w is 0 and y says how little of W
/// changes.
struct alignas(16) DoraFactors {
  float x, y, v, w;
};

struct AdapterEntry {
  std::int32_t first_term, term_count;
  std::int32_t multiplier_index;
  ops::DoraAxis dora_axis;
  std::int32_t replaces, has_rotations;
  DoraParameters dora;
  std::int32_t magnitude_rows;   // 1: magnitudes belong to rows, 0: to columns
  std::int32_t magnitude_level;  // the level of that axis which counts magnitudes
  std::uint64_t factors;         // DoraFactors of all magnitudes: offset into the workspace
};

struct TermTarget {
  View base, out;
  Axis rows, columns;    // levels apart, of one element left out
  AxisStrides position;  // along the axis that is not O: i * kernel_size + k
  std::int32_t out_is_row;
  std::int32_t first_adapter, adapter_count;
};

/// The part of a target that one adapter's norms are summed over, in pieces: partial[piece][line].
struct NormTask {
  std::int32_t target, adapter;
  std::uint64_t partial;  // offset into the workspace
  std::int32_t lines;     // rows or columns
};

/// From sums of squares to DoraFactors. Offsets are into the workspace.
struct FactorTask {
  DoraParameters dora;
  std::int32_t multiplier_index;
  std::int32_t by_line;             // 1: factors for every line, 0: for every magnitude
  std::int32_t pieces, lines;       // of partial[piece][line]
  std::int32_t inside, magnitudes;  // line -> magnitude is line / inside % magnitudes
  std::uint64_t partial, factors;
};

/// Which kernel computes a contraction: any; one of a core, where a is a rank; a packed factor whose lines are the rows
/// of a long matrix, on the tensor cores.
enum class ContractionKind : std::int32_t { kAny, kCore, kTall };
inline constexpr int kContractionKinds = 3;

/// result[a, b, k] = sum_s left[a, s, k] * l[s] * right[s, b], in float32
struct Contraction {
  Vector left, right;  // of one element: where they begin
  std::int32_t left_in_workspace, right_in_workspace;
  Vector diagonal, mask;
  std::int32_t a, b, s;
  std::int32_t kernel[ops::kMaxKernelDims];
  std::int64_t left_a, left_s, left_kernel[ops::kMaxKernelDims];
  std::int64_t right_s, right_b;
  std::uint64_t result;  // offset into the workspace
  std::int64_t result_a, result_b, result_kernel[ops::kMaxKernelDims];
  // Where the result is a packed factor (stream_table.hpp), a place in [lines, ranks] or [ranks, lines]:
  std::int64_t packed_lines, lines;  // with and without padding; 0: it is not
  std::int32_t packed_ranks, rank_is_inner;
  // Places of the kernel, and from one to the next where that is the same everywhere: `even`.
  std::int32_t places, even;
  std::int64_t left_place, result_place;
  std::int32_t places_inside;  // 1: of kCore, a line is b and inside it the place; 0: the other way round
  ContractionKind kind;
  std::int32_t pieces;
};

/// A weight by its strides.
struct Strided {
  void *data;
  lyc_dtype dtype;
  std::int64_t out, in, kernel[ops::kMaxKernelDims];
};

/// Which kernel turns several stages of a rotation's rows at a time: with float32 multiplications, or on the tensor
/// cores, with so many quads of rows in half a block.
enum class ConeKind : std::int32_t { kFloat, kThreeQuads, kFourQuads };
inline constexpr int kConeKinds = 3;

inline constexpr int kTensorStages = 4;  // that are turned on the tensor cores at a time, at most
inline constexpr int kTurnColumns = 16;  // that a warp turns there at a time

/// Columns of a cone that a block of threads turns, with the same matrices.
constexpr int columns_of_piece(ConeKind kind) {
  return kind == ConeKind::kFloat ? 64 : kind == ConeKind::kThreeQuads ? 128 : 256;
}
constexpr int quads_of(ConeKind kind) { return kind == ConeKind::kFourQuads ? 4 : 3; }
/// Of a matrix R - I in two bf16 parts, as the fragments of operand B of mma, a lane has so many.
constexpr int turn_words(int quads) { return 2 * quads * quads; }
/// All of a pass, in shared memory.
constexpr int cone_bytes(ConeKind kind) {
  return (kTensorStages << (kTensorStages - 1)) * turn_words(quads_of(kind)) * 128;
}

/// R - I of all stages and blocks, and what they make of a weight, stage after stage.
struct RotationTask {
  ops::Rotation::Storage storage;
  ops::Rotation::Map map;
  ops::Rotation::Order order;
  ops::Rotation::Limit limited;
  std::int32_t neumann_terms, stages, blocks, block_size;
  std::int32_t by_out;
  std::int32_t multiplier_index;
  std::int64_t begin;
  float factor, limit;
  Vector generators;              // of a block, from block to block
  std::int32_t generator_stride;  // from element to element
  const float *prepared;          // R - I; null = computed into `rests`
  std::uint64_t rests, scratch;   // offsets into the workspace; scratch: two matrices for each stage and block
  std::uint64_t squares;          // |Q|^2 over all stages and blocks
  std::int32_t staged;            // 1: turn the weight by stages, with what follows
  std::uint64_t turned[2];        // stage t, or pass, goes into t % 2
  std::int32_t fused;             // stages of a pass, where several at a time are turned; else 0
  ConeKind cone;                  // by this kernel
  std::int32_t quads;             // of rows in half a block, on the tensor cores; else 0
  std::int32_t by_warp;           // 1: R - I of a block takes a warp
  std::int32_t late;              // 1: and that of the kernel that turns the weight
  std::uint64_t matrices;         // for the tensor cores, by pass, cone, stage and block: offset into the workspace
  std::int32_t kernel[ops::kMaxKernelDims];
  Strided base;
  Strided result;  // where the last stage ends, rows times `rescale`; no data: in `turned`, for the terms' kernel
  Vector rescale;
  std::int64_t rows, columns;
};

/// Work of one kind, cut into pieces that are numbered through: entry e has those from first[e] on.
struct Schedule {
  const std::uint32_t *first;
  std::int32_t count;
  std::uint32_t pieces;
};

struct TermTables {
  const TermTarget *targets;
  const AdapterEntry *adapters;
  const TermEntry *terms;
  const NormTask *norms;
};

inline constexpr int kContractionTile = 32;                   // a and k together, and b, that a block computes
inline constexpr int kNormRows = 64;                          // rows whose squares a warp sums
inline constexpr int kTermTileRows = 32;                      // rows of a tile, a warp's piece of work, 64 columns wide
inline constexpr int kTurnedPlaces = 32, kTurnedLines = 128;  // of a stage: places of a block, and lines across
inline constexpr int kConeRows = 384;      // of a pass of several stages, at most, that a block turns in float32
inline constexpr int kMostTurned = 32;     // rows of a rotation's block there, a multiple of four
inline constexpr int kCoreLines = 64;      // of a core's result, that a block computes
inline constexpr int kCoreStaged = 4096;   // floats of the core that it has at hand
inline constexpr int kTallRows = 8;        // of a long matrix, that a block takes at a time
inline constexpr int kMostTallTiles = 24;  // of so many rows, that a block takes
inline constexpr int kRestsTogether = 8;   // blocks whose R - I are computed by a warp each, in one block of threads
inline constexpr int kTurnRows = 32;       // that are turned by one factor, where the copy engine moves them
inline constexpr int kMaxStages = 24;
inline constexpr int kMagnitudesPerBlock = 32;
inline constexpr int kContractionStages = 2;  // the second one reads what the first one wrote

}  // namespace lyc::cuda
