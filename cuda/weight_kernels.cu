// out[y, x] = round(base[y, x] + sum over terms of s * sum_r row[y, r] * column[r, x]),  s = multiplier * coefficient *
// scalar
//
// for all weights of a batch in one launch. Matrices and factors may have any strides and dtypes; whole vectors along
// columns are the fast path. out may be base, so neither is __restrict__.
//
// Work.     A tile is 64 columns wide and up to 128 rows high; a warp takes one tile, finds its weight by searching the
//           tiles' prefix sums 32 at a time, stages the tile's column factors in shared memory, and walks down 16 rows
//           a step. The next step's base is on its way while this step is computed. Warps share nothing but the L1
//           cache.
// Traffic.  base read once, out written once, 16 bytes per thread and access: bound by DRAM. Factors come from L2 once
// per
//           tile: rank / 128 of the base's bytes along columns, rank / 64 along rows, shared by the block's warps in
//           L1.
// Numerics. Tensor cores, whose products are exact and whose sums are float32: 16-bit factors of one dtype as they are,
//           others in three bf16 parts. One rounding, at the store. A term whose multiplier is 0 is not touched; if
//           that is all of them, out gets base's bits.
//
// A warp's step is a 64 x 16 piece of the transposed matrix, in the fragments of mma.m16n8k16: the instruction's m runs
// along columns, n along rows, k along ranks. Which column an m stands for is ours to choose, so we let thread (g, q) =
// (lane / 4, lane % 4) own vectors of adjacent columns, and the eight g make up a row's 128 bytes. Ranks are dealt out
// the same way: thread q owns ranks 4q to 4q + 3 of each 16.
#include <type_traits>
#include <utility>

#include "device.cuh"

namespace lyc::cuda {
namespace {

constexpr int kThreads = kWarpsPerBlock * 32;
constexpr int kThreadColumns = 8;            // columns that a thread owns in each of its rows
constexpr int kRowGroups = kStepRows / 8;    // n tiles of a step
constexpr int kThreadRows = 2 * kRowGroups;  // rows that a thread owns in a step
constexpr int kMTiles = kThreadColumns / 2;  // m tiles of a step: a thread owns columns 2j and 2j + 1 of m tile j
constexpr int kThreadRanks = kRankChunk / 4;

/// A kernel's properties as a type.
template <int kIndex>
struct Kind {
  static constexpr bool kWide = kernel_kind(kIndex).wide;
  static constexpr bool kRegular = kernel_kind(kIndex).regular;
  static constexpr bool kNative = kernel_kind(kIndex).native;
  static constexpr bool kHadamard = kernel_kind(kIndex).hadamard;
  static constexpr bool kDora = kernel_kind(kIndex).dora;
  static constexpr int kParts = parts_of(kernel_kind(kIndex));
  static constexpr int kVector = vector_columns(kernel_kind(kIndex));  // columns in one access
};

/// What one thread owns: [row][column].
struct Fragment {
  float value[kThreadRows][kThreadColumns];
};

/// Eight elements of one row as they are in memory: 16-bit ones fill half of the words.
template <typename K>
struct Packed {
  std::uint32_t word[K::kWide ? kThreadColumns : kThreadColumns / 2];
};

using Parameters = LowRankRun;

struct Lane {
  int g, q;
};

__device__ Lane lane_of_thread() { return {static_cast<int>(threadIdx.x % 32) / 4, static_cast<int>(threadIdx.x % 4)}; }

/// Column of the thread's element `index`, from the strip's first column on.
template <typename K>
__device__ int column_of(Lane lane, int index) {
  constexpr int kVec = K::kVector;
  return lane.g * kVec + index / kVec * (8 * kVec) + index % kVec;
}

__device__ int row_of(Lane lane, int index) { return index / 2 * 8 + lane.q * 2 + index % 2; }

/// Out of line: it divides, and whoever needs it is slow anyway.
__device__ __noinline__ std::int64_t nested_offset(const Axis &axis, const AxisStrides &strides, int x) {
  std::int64_t offset = 0;
  for (int l = 0; l < axis.levels; x /= axis.extent[l++]) offset += x % axis.extent[l] * strides.level[l];
  return offset;
}

template <typename K>
__device__ std::int64_t offset_of(const Axis &axis, const AxisStrides &strides, int x) {
  return K::kRegular || axis.levels == 1 ? x * strides.level[0] : nested_offset(axis, strides, x);
}

// -- elements ---------------------------------------------------------------------------------------------------------

__device__ bool is_wide(lyc_dtype dtype) { return dtype == LYC_DTYPE_F32; }

/// Element `index` of a packed row.
template <typename K>
__device__ std::uint32_t unpack(const Packed<K> &row, int index, lyc_dtype dtype) {
  if constexpr (K::kWide)
    if (is_wide(dtype)) return row.word[index];
  return index % 2 ? row.word[index / 2] >> 16 : row.word[index / 2] & 0xffffu;
}

template <typename K>
__device__ void pack(Packed<K> &row, int index, lyc_dtype dtype, std::uint32_t bits) {
  if constexpr (K::kWide)
    if (is_wide(dtype)) {
      row.word[index] = bits;
      return;
    }
  if (index % 2)
    row.word[index / 2] |= bits << 16;
  else
    row.word[index / 2] = bits;
}

// -- rows of a weight -------------------------------------------------------------------------------------------------

__device__ std::uint32_t load_bits(const void *data, lyc_dtype dtype, std::int64_t offset) {
  std::uint32_t wide;
  std::uint16_t narrow;
  if (is_wide(dtype)) {
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(wide) : "l"(static_cast<const std::uint32_t *>(data) + offset));
    return wide;
  }
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(narrow) : "l"(static_cast<const std::uint16_t *>(data) + offset));
  return narrow;
}

__device__ void store_bits(void *data, lyc_dtype dtype, std::int64_t offset, std::uint32_t bits) {
  if (is_wide(dtype))
    asm volatile("st.global.u32 [%0], %1;" ::"l"(static_cast<std::uint32_t *>(data) + offset), "r"(bits));
  else
    asm volatile("st.global.u16 [%0], %1;" ::"l"(static_cast<std::uint16_t *>(data) + offset),
                 "h"(static_cast<std::uint16_t>(bits)));
}

/// Move one vector between a packed row and memory.
template <typename K>
__device__ void load_vector(Packed<K> &row, int part, const char *from, bool wide_elements) {
  if (K::kWide && !wide_elements) {
    const uint2 v = load_streaming(reinterpret_cast<const uint2 *>(from));
    row.word[2 * part] = v.x, row.word[2 * part + 1] = v.y;
  } else {
    const uint4 v = load_streaming(reinterpret_cast<const uint4 *>(from));
    row.word[4 * part] = v.x, row.word[4 * part + 1] = v.y, row.word[4 * part + 2] = v.z, row.word[4 * part + 3] = v.w;
  }
}

template <typename K>
__device__ void store_vector(const Packed<K> &row, int part, char *to, bool wide_elements) {
  if (K::kWide && !wide_elements)
    store_streaming(reinterpret_cast<uint2 *>(to), make_uint2(row.word[2 * part], row.word[2 * part + 1]));
  else
    store_streaming(reinterpret_cast<uint4 *>(to), make_uint4(row.word[4 * part], row.word[4 * part + 1],
                                                              row.word[4 * part + 2], row.word[4 * part + 3]));
}

/// Visit the thread's part of a row: `vector(part, address)` where a whole one can be moved, else `element(index,
/// offset)`.
template <typename K, typename Vector, typename Element>
__device__ void visit_row(const Matrix &matrix, const MatrixTarget &target, Lane lane, int y, int strip_column,
                          Vector vector, Element element) {
  constexpr int kVec = K::kVector;
  const int size = K::kWide && is_wide(matrix.dtype) ? 4 : 2;
  auto *data = static_cast<char *>(matrix.data);
  if constexpr (K::kRegular) {
    char *row = data + static_cast<std::int64_t>(y) * matrix.row_bytes + strip_column * size;
#pragma unroll
    for (int part = 0; part < kThreadColumns / kVec; ++part) vector(part, row + column_of<K>(lane, part * kVec) * size);
  } else {
    const std::int64_t row = offset_of<K>(target.rows, matrix.row, y);
#pragma unroll
    for (int part = 0; part < kThreadColumns / kVec; ++part) {
      const int first = strip_column + column_of<K>(lane, part * kVec);
      if (matrix.vectors && first + kVec <= target.columns.size) {
        vector(part, data + (row + first) * size);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kVec; ++i)
        if (first + i < target.columns.size)
          element(part * kVec + i, row + offset_of<K>(target.columns, matrix.column, first + i));
    }
  }
}

template <typename K>
__device__ void load_rows(Packed<K> (&rows)[kThreadRows], const MatrixTarget &target, Lane lane, int y, int x) {
  const Matrix &base = target.base;
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    const int row = y + row_of(lane, r);
    if (row >= target.rows.size) continue;
    visit_row<K>(
        base, target, lane, row, x,
        [&](int part, const char *from) { load_vector(rows[r], part, from, is_wide(base.dtype)); },
        [&](int index, std::int64_t offset) {
          pack(rows[r], index, base.dtype, load_bits(base.data, base.dtype, offset));
        });
  }
}

template <typename K>
__device__ void store_rows(const Packed<K> (&rows)[kThreadRows], const MatrixTarget &target, Lane lane, int y, int x) {
  const Matrix &out = target.out;
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    const int row = y + row_of(lane, r);
    if (row >= target.rows.size) continue;
    visit_row<K>(
        out, target, lane, row, x, [&](int part, char *to) { store_vector(rows[r], part, to, is_wide(out.dtype)); },
        [&](int index, std::int64_t offset) {
          store_bits(out.data, out.dtype, offset, unpack(rows[r], index, out.dtype));
        });
  }
}

template <typename K>
__device__ Fragment widen(const Packed<K> (&rows)[kThreadRows], lyc_dtype dtype) {
  Fragment wide;
  with_type<K::kWide>(dtype, [&](auto type) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
      for (int c = 0; c < kThreadColumns; c += 2) {
        const float2 value = type.get(rows[r].word, c / 2);
        wide.value[r][c] = value.x, wide.value[r][c + 1] = value.y;
      }
  });
  return wide;
}

template <typename K>
__device__ void round_to(Packed<K> (&rows)[kThreadRows], const Fragment &wide, lyc_dtype dtype) {
  with_type<K::kWide>(dtype, [&](auto type) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
      for (int c = 0; c < kThreadColumns; c += 2)
        type.put(rows[r].word, c / 2, make_float2(wide.value[r][c], wide.value[r][c + 1]));
  });
}

// -- products ---------------------------------------------------------------------------------------------------------

// A factor that the tensor cores do not take as it is, is split into three bf16 parts, v = v0 + v1 + v2 exactly, by
// cutting off 8 bits at a time. Of the nine products the six largest are summed; the others are below 2^-22 of the
// whole.

struct Step {
  Lane lane;
  int y, x;  // of its first row and column
};

/// 16 ranks of one term, ready for multiplication. In shared memory.
struct Chunk {
  const char *rows;  // the row factor at this chunk's first rank
  std::int32_t row_bytes;
  std::int16_t ranks;  // up to 16; the others count as 0
  bool last;           // of its term
  bool bf16;           // the row factor's dtype
  Role role;           // the term's
  const LowRankTerm *term;
  float scale;
};

/// What the column fragments of a warp's tile are made of, in the registers of mma's operand A: [chunk][part][m tile].
/// Each thread reads back what it wrote itself, so this is no more than room that registers lack.
struct Staged {
  Chunk *chunks;
  uint4 *fragments;  // of this thread
  int capacity;      // in chunks

  template <typename K>
  __device__ uint4 &fragment(int chunk, int part, int j) const {
    return fragments[((chunk * K::kParts + part) * kMTiles + j) * 32];
  }
};

template <typename K>
__device__ Staged staged_of_warp(int capacity) {
  extern __shared__ uint4 shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int fragments = capacity * K::kParts * kMTiles * 32;
  auto *chunks = reinterpret_cast<Chunk *>(shared + kWarpsPerBlock * fragments);
  return {chunks + warp * capacity, shared + warp * fragments + lane, capacity};
}

__device__ std::uint32_t pair(std::uint32_t low, std::uint32_t high) { return low | high << 16; }

/// Part `part` of two values, as a register of an operand.
__device__ std::uint32_t cut(float &low, float &high) {
  const std::uint32_t low_bits = __float_as_uint(low) & 0xffff0000u, high_bits = __float_as_uint(high) & 0xffff0000u;
  const auto rest = [](float value, std::uint32_t bits) {
    return isfinite(value) ? value - __uint_as_float(bits) : 0.0f;  // infinity has no rest
  };
  low = rest(low, low_bits);
  high = rest(high, high_bits);
  return low_bits >> 16 | high_bits;
}

__device__ std::uint32_t load_16(const void *data, std::int64_t offset) {
  return __ldg(static_cast<const std::uint16_t *>(data) + offset);
}

/// Four ranks of the thread's columns, whole vectors at once: only where everything is inside and aligned.
template <typename K>
__device__ void stage_vectors(const Staged &staged, int chunk, const Factor &factor, const void *data, int rank,
                              const Step &step) {
  constexpr int kVec = K::kVector;
  std::uint32_t columns[kThreadRanks][kThreadColumns / 2];  // two columns a word
#pragma unroll
  for (int r = 0; r < kThreadRanks; ++r) {
    const auto *from = static_cast<const std::uint16_t *>(data) + (rank + r) * factor.rank_stride + step.x;
#pragma unroll
    for (int part = 0; part < kThreadColumns / kVec; ++part) {
      const auto *at = from + column_of<K>(step.lane, part * kVec);
      if constexpr (K::kWide) {
        const uint2 v = __ldg(reinterpret_cast<const uint2 *>(at));
        columns[r][2 * part] = v.x, columns[r][2 * part + 1] = v.y;
      } else {
        const uint4 v = __ldg(reinterpret_cast<const uint4 *>(at));
        columns[r][0] = v.x, columns[r][1] = v.y, columns[r][2] = v.z, columns[r][3] = v.w;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kMTiles; ++j) {
    constexpr unsigned kLow = 0x5410, kHigh = 0x7632;
    staged.fragment<K>(chunk, 0, j) =
        make_uint4(__byte_perm(columns[0][j], columns[1][j], kLow), __byte_perm(columns[0][j], columns[1][j], kHigh),
                   __byte_perm(columns[2][j], columns[3][j], kLow), __byte_perm(columns[2][j], columns[3][j], kHigh));
  }
}

/// The same, element by element, from any strides and dtype.
template <typename K>
__device__ void stage_elements(const Staged &staged, int chunk, const LowRankTerm &term, const void *data, int rank,
                               const MatrixTarget &target, const Step &step) {
  const Factor &factor = term.column_factor;
  for (int j = 0; j < kMTiles; ++j) {
    std::uint32_t part[K::kParts][4];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int x = step.x + column_of<K>(step.lane, 2 * j + c);
      const bool inside = K::kRegular || x < target.columns.size;
      const std::int64_t column = inside ? offset_of<K>(target.columns, factor.axis, x) : 0;
#pragma unroll
      for (int r = 0; r < kThreadRanks; r += 2) {
        const bool first = inside && rank + r < term.rank, second = inside && rank + r + 1 < term.rank;
        const std::int64_t offset = column + (rank + r) * factor.rank_stride;
        if constexpr (K::kNative) {
          part[0][c + r] =
              pair(first ? load_16(data, offset) : 0, second ? load_16(data, offset + factor.rank_stride) : 0);
        } else {
          float low = first ? load_float(data, factor.dtype, offset) : 0.0f;
          float high = second ? load_float(data, factor.dtype, offset + factor.rank_stride) : 0.0f;
#pragma unroll
          for (int p = 0; p < K::kParts; ++p) part[p][c + r] = cut(low, high);
        }
      }
    }
#pragma unroll
    for (int p = 0; p < K::kParts; ++p)
      staged.fragment<K>(chunk, p, j) = make_uint4(part[p][0], part[p][1], part[p][2], part[p][3]);
  }
}

/// The thread's four ranks of one row in a chunk, as the registers of mma's operand B; 0 beyond the last rank.
template <typename K>
struct RowFragment {
  uint2 part[K::kParts];
};

template <typename K>
__device__ RowFragment<K> load_row_vector(const Chunk &chunk, int y, int rank) {
  RowFragment<K> fragment = {};
  const char *at = chunk.rows + static_cast<std::int64_t>(y) * chunk.row_bytes + rank * sizeof(std::uint16_t);
  if (rank < chunk.ranks) fragment.part[0] = __ldg(reinterpret_cast<const uint2 *>(at));
  return fragment;
}

template <typename K>
__device__ RowFragment<K> load_row_elements(const Chunk &chunk, const MatrixTarget &target, int y, int rank) {
  RowFragment<K> fragment;
  const Factor &factor = chunk.term->row_factor;
  const std::int64_t offset = offset_of<K>(target.rows, factor.axis, y) + rank * factor.rank_stride;
  if constexpr (K::kNative) {
    const auto at = [&](int r) {
      return rank + r < chunk.ranks ? load_16(chunk.rows, offset + r * factor.rank_stride) : 0;
    };
    fragment.part[0] = make_uint2(pair(at(0), at(1)), pair(at(2), at(3)));
  } else {
    float value[kThreadRanks];
#pragma unroll
    for (int r = 0; r < kThreadRanks; ++r)
      value[r] = rank + r < chunk.ranks ? load_float(chunk.rows, factor.dtype, offset + r * factor.rank_stride) : 0.0f;
#pragma unroll
    for (int p = 0; p < K::kParts; ++p) {
      fragment.part[p].x = cut(value[0], value[1]);
      fragment.part[p].y = cut(value[2], value[3]);
    }
  }
  return fragment;
}

/// Sums of a step in the fragments of mma's operand C: [row group][m tile].
struct Sum {
  float value[kRowGroups][kMTiles][4];
};

template <typename K, bool kBf16>
__device__ void multiply_chunk(Sum &sum, const Staged &staged, int chunk, const RowFragment<K> (&rows)[kRowGroups]) {
#pragma unroll
  for (int j = 0; j < kMTiles; ++j) {
    if constexpr (K::kNative) {
      const uint4 column = staged.fragment<K>(chunk, 0, j);
#pragma unroll
      for (int n = 0; n < kRowGroups; ++n) multiply<kBf16>(sum.value[n][j], column, rows[n].part[0]);
    } else {
      const uint4 column[3] = {staged.fragment<K>(chunk, 0, j), staged.fragment<K>(chunk, 1, j),
                               staged.fragment<K>(chunk, 2, j)};
#pragma unroll
      for (int n = 0; n < kRowGroups; ++n) {
        float part[4] = {};  // of this chunk alone: tensor cores truncate, so the long sum is rounded outside them
        multiply<true>(part, column[2], rows[n].part[0]);
        multiply<true>(part, column[1], rows[n].part[1]);
        multiply<true>(part, column[0], rows[n].part[2]);
        multiply<true>(part, column[1], rows[n].part[0]);
        multiply<true>(part, column[0], rows[n].part[1]);
        multiply<true>(part, column[0], rows[n].part[0]);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum.value[n][j][i] += part[i];
      }
    }
  }
}

/// Of a step: the weight, and the first half of a Hadamard product until its second half has been added.
template <typename K>
struct Sums {
  Fragment weight = {};
  Sum held = {};

  __device__ void add(const Chunk &chunk, const Sum &sum) {
    if (K::kHadamard && chunk.role == Role::kHold) {
      for_each([&](int, int, float &h, float s) { h += s; }, sum);
    } else if (K::kHadamard && chunk.role == Role::kMultiply) {
      for_each([&](int r, int i, float &h, float s) { add_to(r, i, chunk.scale, h * s); }, sum);
      if (chunk.last) held = {};
    } else {
      for_each([&](int r, int i, float &, float s) { add_to(r, i, chunk.scale, s); }, sum);
    }
  }

 private:
  __device__ void add_to(int r, int i, float scale, float value) {
    weight.value[r][i] = fmaf(scale, value, weight.value[r][i]);
  }

  template <typename Visit>
  __device__ void for_each(Visit visit, const Sum &sum) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
      for (int i = 0; i < kThreadColumns; ++i)
        visit(r, i, held.value[r / 2][i / 2][i % 2 * 2 + r % 2], sum.value[r / 2][i / 2][i % 2 * 2 + r % 2]);
  }
};

/// Take the chunks that are staged, term by term; of a term whose chunks are staged by turns, as much as there is.
template <typename K>
__device__ void add_staged(Sums<K> &sums, const Staged &staged, int count, const MatrixTarget &target,
                           const Step &step) {
  Sum sum = {};
  for (int c = 0; c < count; ++c) {
    const Chunk &chunk = staged.chunks[c];
    RowFragment<K> rows[kRowGroups];
#pragma unroll
    for (int n = 0; n < kRowGroups; ++n) {
      const int y = min(step.y + n * 8 + step.lane.g, target.rows.size - 1);
      const int rank = step.lane.q * kThreadRanks;
      if constexpr (K::kRegular && K::kNative)
        rows[n] = load_row_vector<K>(chunk, y, rank);
      else
        rows[n] = load_row_elements<K>(chunk, target, y, rank);
    }
    if (!K::kNative || chunk.bf16)
      multiply_chunk<K, true>(sum, staged, c, rows);
    else
      multiply_chunk<K, false>(sum, staged, c, rows);
    if (!chunk.last && c + 1 < count) continue;
    sums.add(chunk, sum);
    sum = {};
  }
}

// -- tiles ------------------------------------------------------------------------------------------------------------

/// The terms of a target, taken chunk by chunk; terms whose multiplier is 0 are passed over.
template <typename K>
class Terms {
 public:
  __device__ Terms(const Parameters &parameters, const MatrixTarget &target)
      : parameters_(parameters), target_(target), terms_(parameters.table.terms + target.first_term) {
    skip_idle();
  }

  __device__ bool at_end() const { return term_ == target_.term_count; }
  __device__ void restart() {
    term_ = 0;
    skip_idle();
  }

  /// Stage as many of the next chunks as there is room for.
  __device__ int stage(const Staged &staged, const Step &step) {
    __syncwarp();  // nobody reads the old chunks any more
    int count = 0;
    for (; count < staged.capacity && !at_end(); ++count) stage_next(staged, count, step);
    __syncwarp();
    return count;
  }

 private:
  __device__ float multiplier(const LowRankTerm &term) const {
    return multiplier_at(parameters_.multipliers, term.multiplier_index);
  }

  __device__ float scale(const LowRankTerm &term) const {
    float scale = K::kDora ? term.coefficient : multiplier(term) * term.coefficient;
    if (term.scalar) scale *= load_float(term.scalar, term.scalar_dtype, 0);
    return parameters_.op == ops::WeightOp::kUnmerge ? -scale : scale;
  }

  __device__ void skip_idle() {
    while (!at_end() && multiplier(terms_[term_]) == 0.0f) ++term_;
  }

  __device__ void stage_next(const Staged &staged, int chunk, const Step &step) {
    const LowRankTerm &term = terms_[term_];
    const Factor &row = term.row_factor, &column = term.column_factor;
    const int ranks = min(term.rank - rank_, kRankChunk);
    const bool last = rank_ + ranks == term.rank;
    if (threadIdx.x % 32 == 0) {
      const std::int64_t skipped = rank_ * row.rank_stride * (is_wide(row.dtype) ? 4 : 2);
      staged.chunks[chunk] = {
          static_cast<const char *>(resolve(row.data, row.in_workspace, parameters_.workspace)) + skipped,
          row.row_bytes,
          static_cast<std::int16_t>(ranks),
          last,
          row.dtype == LYC_DTYPE_BF16,
          term.role,
          &term,
          scale(term)};
    }
    const int rank = rank_ + step.lane.q * kThreadRanks;
    const void *data = resolve(column.data, column.in_workspace, parameters_.workspace);
    const bool inside = K::kRegular || step.x + column_of<K>(step.lane, kThreadColumns - 1) < target_.columns.size;
    if (K::kNative && column.vectors && inside && rank + kThreadRanks <= term.rank)
      stage_vectors<K>(staged, chunk, column, data, rank, step);
    else
      stage_elements<K>(staged, chunk, term, data, rank, target_, step);
    rank_ += ranks;
    if (!last) return;
    rank_ = 0;
    ++term_;
    skip_idle();
  }

  const Parameters &parameters_;
  const MatrixTarget &target_;
  const LowRankTerm *terms_;
  int term_ = 0, rank_ = 0;
};

/// The rows of a strip that a warp works on.
struct Tile {
  int x, y_begin, y_end;
};

/// Bit for bit.
template <typename K>
__device__ void copy_tile(const MatrixTarget &target, Lane lane, const Tile &tile) {
  for (int y = tile.y_begin; y < tile.y_end; y += kStepRows) {
    Packed<K> rows[kThreadRows] = {};
    load_rows<K>(rows, target, lane, y, tile.x);
    store_rows<K>(rows, target, lane, y, tile.x);
  }
}

template <typename K>
__device__ void merge_tile(Terms<K> &terms, const Staged &staged, const MatrixTarget &target, Lane lane,
                           const Tile &tile, bool has_base) {
  Packed<K> rows[kThreadRows] = {};
  if (has_base) load_rows<K>(rows, target, lane, tile.y_begin, tile.x);
  int count = terms.stage(staged, {lane, tile.y_begin, tile.x});
  const bool all_staged = K::kRegular || terms.at_end();

  for (int y = tile.y_begin; y < tile.y_end; y += kStepRows) {
    const Step step{lane, y, tile.x};
    Sums<K> sums;
    if (has_base) {
      sums.weight = widen<K>(rows, target.base.dtype);
      if (y + kStepRows < tile.y_end) load_rows<K>(rows, target, lane, y + kStepRows, tile.x);
    }
    add_staged<K>(sums, staged, count, target, step);
    if (!all_staged) {  // the other chunks, and then the first again, for the next step
      while (!terms.at_end()) {
        count = terms.stage(staged, step);
        add_staged<K>(sums, staged, count, target, step);
      }
      terms.restart();
      count = terms.stage(staged, step);
    }
    Packed<K> merged[kThreadRows];
    round_to<K>(merged, sums.weight, target.out.dtype);
    store_rows<K>(merged, target, lane, y, tile.x);
  }
}

template <typename K>
__device__ void merge_plain(const Parameters &p, const MatrixTarget &target, const Tile &tile) {
  Terms<K> terms(p, target);
  const bool has_base = p.op != ops::WeightOp::kDiff;
  if (has_base && terms.at_end() && target.base.dtype == target.out.dtype) {
    if (target.base.data != target.out.data) copy_tile<K>(target, lane_of_thread(), tile);
  } else {
    merge_tile<K>(terms, staged_of_warp<K>(p.table.chunk_capacity), target, lane_of_thread(), tile, has_base);
  }
}

// -- DoRA by rows -----------------------------------------------------------------------------------------------------

/// Call with the weight and the delta of each of the warp's pieces of 16 rows.
template <typename K, typename Visit>
__device__ void visit_strips(const Parameters &p, const MatrixTarget &target, int y, Visit visit) {
  constexpr int kAhead = kWarpsPerBlock * kStripColumns;
  const Lane lane = lane_of_thread();
  const Staged staged = staged_of_warp<K>(p.table.chunk_capacity);
  Terms<K> terms(p, target);
  int x = static_cast<int>(threadIdx.x / 32) * kStripColumns;
  Packed<K> rows[kThreadRows] = {};
  if (x < target.columns.size) load_rows<K>(rows, target, lane, y, x);
  for (; x < target.columns.size; x += kAhead) {
    const Step step{lane, y, x};
    const Fragment base = widen<K>(rows, target.base.dtype);
    if (x + kAhead < target.columns.size) load_rows<K>(rows, target, lane, y, x + kAhead);
    const int count = terms.stage(staged, step);
    terms.restart();
    Sums<K> sums;
    add_staged<K>(sums, staged, count, target, step);
    visit(base, sums.weight, x);
  }
}

/// Sums over all columns: lanes of a row, strips of a warp, warps, always in this order.
template <typename K>
__device__ void find_factors(const Parameters &p, const MatrixTarget &target, float m, int y, DoraFactors *factors) {
  __shared__ float partial[kWarpsPerBlock][kStepRows];
  const Lane lane = lane_of_thread();
  const float v = static_cast<float>(dora_coefficients(target.dora.rule, m).v);
  float squares[kThreadRows] = {};
  visit_strips<K>(p, target, y, [&](const Fragment &base, const Fragment &delta, int) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
      for (int i = 0; i < kThreadColumns; ++i) {
        const float value = fmaf(v, delta.value[r][i], base.value[r][i]);
        squares[r] = fmaf(value, value, squares[r]);
      }
  });
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) squares[r] += __shfl_xor_sync(~0u, squares[r], distance);
    if (lane.g == 0) partial[threadIdx.x / 32][row_of(lane, r)] = squares[r];
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row < kStepRows && y + row < target.rows.size) {
    double sum = 0.0;
    for (int warp = 0; warp < kWarpsPerBlock; ++warp) sum += static_cast<double>(partial[warp][row]);
    factors[row] = dora_factors(target.dora, m, y + row, sum);
  }
  __syncthreads();
}

template <typename K>
__device__ void merge_rows(const Parameters &p, const MatrixTarget &target, int y) {
  __shared__ DoraFactors factors[kStepRows];
  const float m = multiplier_at(p.multipliers, p.table.terms[target.first_term].multiplier_index);
  if (m == 0.0f) {
    const int first = static_cast<int>(threadIdx.x / 32) * kStripColumns;
    for (int x = first; x < target.columns.size; x += kWarpsPerBlock * kStripColumns)
      merge_plain<K>(p, target, {x, y, min(target.rows.size, y + kStepRows)});
    return;
  }
  find_factors<K>(p, target, m, y, factors);
  const float kept = p.op == ops::WeightOp::kDiff ? 0.0f : 1.0f;
  const Lane lane = lane_of_thread();
  visit_strips<K>(p, target, y, [&](const Fragment &base, Fragment &delta, int x) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const DoraFactors of_row = factors[row_of(lane, r)];
#pragma unroll
      for (int i = 0; i < kThreadColumns; ++i) {
        const float change = dora_change(of_row, base.value[r][i], delta.value[r][i]);
        delta.value[r][i] = kept != 0.0f ? base.value[r][i] + change : change;
      }
    }
    Packed<K> merged[kThreadRows];
    round_to<K>(merged, delta, target.out.dtype);
    store_rows<K>(merged, target, lane, y, x);
  });
}

// -- kernels ----------------------------------------------------------------------------------------------------------

/// Blocks that must fit on a multiprocessor, which bounds the registers.
template <typename K>
constexpr int blocks_wanted = !K::kRegular || (K::kWide && K::kHadamard) ? 2
                              : K::kWide || K::kHadamard || K::kDora     ? 3
                                                                         : 4;

template <typename K>
__global__ void __launch_bounds__(kThreads, blocks_wanted<K>) low_rank_kernel(const __grid_constant__ Parameters p) {
  const std::uint32_t number = K::kDora ? blockIdx.x : blockIdx.x * kWarpsPerBlock + threadIdx.x / 32;
  if (number >= p.table.tile_count) return;
  const int index = find_entry(p.table.first_tile, p.table.target_count, number);
  // A copy lets the few strides of a regular target live in registers; nested ones are read where they are.
  const std::conditional_t<K::kRegular, MatrixTarget, const MatrixTarget &> target = p.table.targets[index];
  const int local = static_cast<int>(number - p.table.first_tile[index]);
  if constexpr (K::kDora) {
    merge_rows<K>(p, target, local * kStepRows);
  } else {
    const int strips = (target.columns.size + kStripColumns - 1) / kStripColumns,
              y = local / strips * p.table.tile_rows;
    merge_plain<K>(p, target, {local % strips * kStripColumns, y, min(target.rows.size, y + p.table.tile_rows)});
  }
}

struct StoredMultipliers {
  float value[kStoredPerLaunch];
};

__global__ void store_multipliers_kernel(const __grid_constant__ StoredMultipliers values, float *to, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) to[i] = values.value[i];
}

using Kernel = void (*)(Parameters);

template <int... kIndex>
const void *kernel_at(int index, std::integer_sequence<int, kIndex...>) {
  constexpr Kernel kKernels[] = {low_rank_kernel<Kind<kIndex>>...};
  return reinterpret_cast<const void *>(kKernels[index]);
}

template <typename... Arguments>
cudaError_t launch(const void *kernel, unsigned blocks, std::size_t shared, cudaStream_t stream,
                   Arguments... arguments) {
  void *addresses[] = {&arguments...};
  return cudaLaunchKernel(kernel, dim3(blocks), dim3(kThreads), addresses, shared, stream);
}

const void *kernel_of(KernelKind kind) {
  return kernel_at(index_of(kind), std::make_integer_sequence<int, kKernelKinds>());
}

std::size_t shared_bytes(KernelKind kind, int chunk_capacity) {
  const std::size_t fragments = sizeof(uint4) * kMTiles * 32 * static_cast<std::size_t>(parts_of(kind));
  return kWarpsPerBlock * static_cast<std::size_t>(chunk_capacity) * (fragments + sizeof(Chunk));
}

}  // namespace

cudaError_t resident_blocks(KernelKind kind, int chunk_capacity, int *blocks) {
  const std::size_t most = shared_bytes(kind, max_chunks(kind));
  const cudaError_t status =
      cudaFuncSetAttribute(kernel_of(kind), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most));
  if (status != cudaSuccess) return status;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel_of(kind), kThreads,
                                                       shared_bytes(kind, chunk_capacity));
}

cudaError_t launch_low_rank(KernelKind kind, const LowRankRun &run, cudaStream_t stream) {
  const unsigned tiles = run.table.tile_count;
  const unsigned blocks = kind.dora ? tiles : (tiles + kWarpsPerBlock - 1) / kWarpsPerBlock;
  return launch(kernel_of(kind), blocks, shared_bytes(kind, run.table.chunk_capacity), stream, run);
}

cudaError_t launch_store_multipliers(const float *host, int count, float *device, cudaStream_t stream) {
  for (int first = 0; first < count; first += kStoredPerLaunch) {
    const int part = count - first < kStoredPerLaunch ? count - first : kStoredPerLaunch;
    StoredMultipliers values{};
    for (int i = 0; i < part; ++i) values.value[i] = host[first + i];
    const cudaError_t status =
        launch(reinterpret_cast<const void *>(store_multipliers_kernel), 1, 0, stream, values, device + first, part);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace lyc::cuda
