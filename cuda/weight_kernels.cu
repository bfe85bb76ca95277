// out[y, x] = round(base[y, x] + sum over terms of s * sum_r row[y, r] * column[r, x]),  s = multiplier * coefficient *
// scalar
//
// for all weights of a batch in one launch. Matrices and factors may have any strides and dtypes; whole vectors along
// columns are the fast path. out may be base, so neither is __restrict__.
//
// Work.     A tile is 64 columns wide and up to 128 rows high; a warp takes one tile, finds its weight by searching the
//           tiles' prefix sums 32 at a time, and walks down 16 rows a step. The next step's base is on its way while
//           this step is computed. Warps share nothing but the L1 cache, which holds the factors of their tiles.
// Traffic.  base read once, out written once, 16 bytes per thread and access: bound by DRAM. Factors come from L2 once
// per
//           tile (rank / 128 of the base's bytes along columns, rank / 64 along rows) and from L1 once per step.
// Numerics. 16-bit factors: tensor cores, whose products are exact and whose sums are float32. Otherwise float32 FMA.
// One
//           rounding, at the store. No term is touched whose multiplier is 0; if that is all of them, out gets base's
//           bits.
//
// A warp's step is a 64 x 16 piece of the transposed matrix, in the fragments of mma.m16n8k16: the instruction's m runs
// along columns, n along rows, k along ranks. Which column an m stands for is ours to choose, so we let thread (g, q) =
// (lane / 4, lane % 4) own vectors of adjacent columns, and the eight g make up a row's 128 bytes. Ranks are dealt out
// the same way: thread q owns ranks 4q to 4q + 3 of each 16.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "weight_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kThreads = kWarpsPerBlock * 32;
constexpr int kThreadColumns = 8;            // columns that a thread owns in each of its rows
constexpr int kRowGroups = kStepRows / 8;    // n tiles of a step
constexpr int kThreadRows = 2 * kRowGroups;  // rows that a thread owns in a step
constexpr int kMTiles = kThreadColumns / 2;  // m tiles of a step: a thread owns columns 2j and 2j + 1 of m tile j
constexpr int kRankChunk = 16;               // k of the instruction
constexpr int kThreadRanks = kRankChunk / 4;

/// A kernel's properties as a type.
template <int kIndex>
struct Kind {
  static constexpr bool kWide = kernel_kind(kIndex).wide;
  static constexpr bool kRegular = kernel_kind(kIndex).regular;
  static constexpr bool kTensorCores = kernel_kind(kIndex).tensor_cores;
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

struct Parameters {
  TargetTable table;
  ops::WeightOp op;
  Multipliers multipliers;
};

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

/// Two neighbours of a packed row, by element type.
struct F32 {
  static __device__ float2 get(const std::uint32_t *word, int pair) {
    return make_float2(__uint_as_float(word[2 * pair]), __uint_as_float(word[2 * pair + 1]));
  }
  static __device__ void put(std::uint32_t *word, int pair, float2 value) {
    word[2 * pair] = __float_as_uint(value.x), word[2 * pair + 1] = __float_as_uint(value.y);
  }
};
struct F16 {
  static __device__ float2 get(const std::uint32_t *word, int pair) {
    return __half22float2(*reinterpret_cast<const __half2 *>(&word[pair]));
  }
  static __device__ void put(std::uint32_t *word, int pair, float2 value) {
    const __half2 rounded = __float22half2_rn(value);
    word[pair] = *reinterpret_cast<const std::uint32_t *>(&rounded);
  }
};
struct Bf16 {
  static __device__ float2 get(const std::uint32_t *word, int pair) {
    return make_float2(__uint_as_float(word[pair] << 16), __uint_as_float(word[pair] & 0xffff0000u));
  }
  static __device__ void put(std::uint32_t *word, int pair, float2 value) {
    const __nv_bfloat162 rounded = __float22bfloat162_rn(value);
    word[pair] = *reinterpret_cast<const std::uint32_t *>(&rounded);
  }
};

/// Call with the element type as a value: the one dispatch on a weight's dtype, outside all loops.
template <typename K, typename Body>
__device__ void with_type(lyc_dtype dtype, Body body) {
  if (K::kWide && dtype == LYC_DTYPE_F32)
    body(F32{});
  else if (dtype == LYC_DTYPE_BF16)
    body(Bf16{});
  else
    body(F16{});
}

/// An element of a factor.
__device__ float load_float(const void *data, lyc_dtype dtype, std::int64_t offset) {
  if (dtype == LYC_DTYPE_F32) return __ldg(static_cast<const float *>(data) + offset);
  const unsigned short bits = __ldg(static_cast<const unsigned short *>(data) + offset);
  return dtype == LYC_DTYPE_BF16 ? __uint_as_float(std::uint32_t{bits} << 16) : __half2float(__ushort_as_half(bits));
}

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

// Weights are read and written by these alone. They are read once, so they must not push the factors out of L1. Being
// opaque, and volatile so as to stay in order, they let the compiler keep descriptors in registers across a store.
__device__ uint4 load_streaming(const uint4 *from) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
__device__ uint2 load_streaming(const uint2 *from) {
  uint2 v;
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
  return v;
}

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

__device__ void store_streaming(uint4 *to, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w));
}
__device__ void store_streaming(uint2 *to, uint2 v) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(v.x), "r"(v.y));
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
  const std::int64_t row = offset_of<K>(target.rows, matrix.row, y);
#pragma unroll
  for (int part = 0; part < kThreadColumns / kVec; ++part) {
    const int first = strip_column + column_of<K>(lane, part * kVec);
    if (K::kRegular || (matrix.vectors && first + kVec <= target.columns.size)) {
      vector(part, static_cast<char *>(matrix.data) + (row + first) * (is_wide(matrix.dtype) ? 4 : 2));
    } else {
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
  with_type<K>(dtype, [&](auto type) {
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
  with_type<K>(dtype, [&](auto type) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
      for (int c = 0; c < kThreadColumns; c += 2)
        type.put(rows[r].word, c / 2, make_float2(wide.value[r][c], wide.value[r][c + 1]));
  });
}

// -- products ---------------------------------------------------------------------------------------------------------

/// The part of a term's product that a step covers.
struct Step {
  const MatrixTarget &target;
  Lane lane;
  int y, x;  // of its first row and column
};

__device__ std::uint32_t pair(std::uint32_t low, std::uint32_t high) { return low | high << 16; }

/// The m fragments of one rank chunk: the thread's ranks x its columns, as the registers of mma's operand A.
struct ColumnFragment {
  std::uint32_t a[kMTiles][4];
};

template <typename K>
__device__ void load_column_vectors(ColumnFragment &fragment, const LowRankTerm &term, int rank, const Step &step) {
  const Factor &factor = term.column_factor;
  constexpr int kVec = K::kVector;
  std::uint32_t columns[kThreadRanks][kThreadColumns / 2];  // two columns a word
#pragma unroll
  for (int r = 0; r < kThreadRanks; ++r) {
    const auto *from = static_cast<const std::uint16_t *>(factor.data) + (rank + r) * factor.rank_stride;
#pragma unroll
    for (int part = 0; part < kThreadColumns / kVec; ++part) {
      const auto *at = from + step.x + column_of<K>(step.lane, part * kVec);
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
    fragment.a[j][0] = __byte_perm(columns[0][j], columns[1][j], kLow);
    fragment.a[j][1] = __byte_perm(columns[0][j], columns[1][j], kHigh);
    fragment.a[j][2] = __byte_perm(columns[2][j], columns[3][j], kLow);
    fragment.a[j][3] = __byte_perm(columns[2][j], columns[3][j], kHigh);
  }
}

/// Four ranks of one row or column of a 16-bit factor; 0 beyond the last rank.
template <bool kAlongRank>
__device__ uint2 load_ranks(const Factor &factor, std::int64_t offset, int rank, int rank_end) {
  const auto *from = static_cast<const std::uint16_t *>(factor.data) + offset;
  if (kAlongRank || (factor.load == FactorLoad::kAlongRank && rank + kThreadRanks <= rank_end))
    return rank < rank_end ? __ldg(reinterpret_cast<const uint2 *>(from + rank)) : make_uint2(0, 0);
  const auto at = [&](int r) -> std::uint32_t { return r < rank_end ? __ldg(from + r * factor.rank_stride) : 0; };
  return make_uint2(pair(at(rank), at(rank + 1)), pair(at(rank + 2), at(rank + 3)));
}

template <typename K>
__device__ ColumnFragment load_columns(const LowRankTerm &term, int rank, const Step &step) {
  ColumnFragment fragment;
  const Axis &columns = step.target.columns;
  const bool inside = K::kRegular || step.x + column_of<K>(step.lane, kThreadColumns - 1) < columns.size;
  if (term.column_factor.load == FactorLoad::kAlongAxis && rank + kThreadRanks <= term.rank && inside) {
    load_column_vectors<K>(fragment, term, rank, step);
    return fragment;
  }
#pragma unroll
  for (int c = 0; c < kThreadColumns; ++c) {
    const int x = step.x + column_of<K>(step.lane, c);
    uint2 ranks = make_uint2(0, 0);
    if (K::kRegular || x < columns.size)
      ranks = load_ranks<K::kRegular>(term.column_factor, offset_of<K>(columns, term.column_factor.axis, x), rank,
                                      term.rank);
    fragment.a[c / 2][c % 2] = ranks.x;
    fragment.a[c / 2][c % 2 + 2] = ranks.y;
  }
  return fragment;
}

template <bool kBf16>
__device__ void multiply(float (&d)[4], const std::uint32_t (&a)[4], uint2 b) {
  if constexpr (kBf16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

template <bool kBf16>
__device__ void multiply_chunk(float (&sum)[kRowGroups][kMTiles][4], const ColumnFragment &columns,
                               const uint2 (&rows)[kRowGroups]) {
#pragma unroll
  for (int n = 0; n < kRowGroups; ++n)
#pragma unroll
    for (int j = 0; j < kMTiles; ++j) multiply<kBf16>(sum[n][j], columns.a[j], rows[n]);
}

/// wide += scale * product, on tensor cores.
template <typename K>
__device__ void add_product_mma(Fragment &wide, const LowRankTerm &term, float scale, const Step &step) {
  float sum[kRowGroups][kMTiles][4] = {};
  for (int chunk = 0; chunk < term.rank; chunk += kRankChunk) {
    const int rank = chunk + step.lane.q * kThreadRanks;
    const ColumnFragment columns = load_columns<K>(term, rank, step);
    uint2 rows[kRowGroups];
#pragma unroll
    for (int n = 0; n < kRowGroups; ++n) {
      const int y = min(step.y + n * 8 + step.lane.g, step.target.rows.size - 1);
      rows[n] =
          load_ranks<false>(term.row_factor, offset_of<K>(step.target.rows, term.row_factor.axis, y), rank, term.rank);
    }
    if (term.row_factor.dtype == LYC_DTYPE_BF16)
      multiply_chunk<true>(sum, columns, rows);
    else
      multiply_chunk<false>(sum, columns, rows);
  }
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
    for (int c = 0; c < kThreadColumns; ++c)
      wide.value[r][c] = fmaf(scale, sum[r / 2][c / 2][c % 2 * 2 + r % 2], wide.value[r][c]);
}

/// The thread's columns of one rank, in float32.
template <typename K>
__device__ void load_columns_f32(float (&value)[kThreadColumns], const LowRankTerm &term, int rank, const Step &step) {
  const Factor &factor = term.column_factor;
  const Axis &columns = step.target.columns;
  const std::int64_t from = rank * factor.rank_stride;
  if (factor.load == FactorLoad::kAlongAxis && factor.dtype == LYC_DTYPE_F32 &&
      (K::kRegular || step.x + column_of<K>(step.lane, kThreadColumns - 1) < columns.size)) {
#pragma unroll
    for (int c = 0; c < kThreadColumns; c += 4) {
      const auto *at = static_cast<const float *>(factor.data) + from + step.x + column_of<K>(step.lane, c);
      const float4 v = __ldg(reinterpret_cast<const float4 *>(at));
      value[c] = v.x, value[c + 1] = v.y, value[c + 2] = v.z, value[c + 3] = v.w;
    }
    return;
  }
#pragma unroll
  for (int c = 0; c < kThreadColumns; ++c) {
    const int x = step.x + column_of<K>(step.lane, c);
    value[c] = K::kRegular || x < columns.size
                   ? load_float(factor.data, factor.dtype, from + offset_of<K>(columns, factor.axis, x))
                   : 0.0f;
  }
}

/// Four ranks of one row, in float32; 0 beyond the last rank.
__device__ float4 load_ranks_f32(const Factor &factor, std::int64_t offset, int rank, int rank_end) {
  if (factor.load == FactorLoad::kAlongRank && factor.dtype == LYC_DTYPE_F32 && rank + 4 <= rank_end)
    return __ldg(reinterpret_cast<const float4 *>(static_cast<const float *>(factor.data) + offset + rank));
  const auto at = [&](int r) {
    return r < rank_end ? load_float(factor.data, factor.dtype, offset + r * factor.rank_stride) : 0.0f;
  };
  return make_float4(at(rank), at(rank + 1), at(rank + 2), at(rank + 3));
}

/// wide += scale * product, in float32 FMA.
template <typename K>
__device__ void add_product_fma(Fragment &wide, const LowRankTerm &term, float scale, const Step &step) {
  Fragment sum = {};
  for (int rank = 0; rank < term.rank; rank += 4) {
    float4 row[kThreadRows];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const int y = min(step.y + row_of(step.lane, r), step.target.rows.size - 1);
      row[r] =
          load_ranks_f32(term.row_factor, offset_of<K>(step.target.rows, term.row_factor.axis, y), rank, term.rank);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (rank + k >= term.rank) break;
      float column[kThreadColumns];
      load_columns_f32<K>(column, term, rank + k, step);
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
        const float value = k == 0 ? row[r].x : k == 1 ? row[r].y : k == 2 ? row[r].z : row[r].w;
#pragma unroll
        for (int c = 0; c < kThreadColumns; ++c) sum.value[r][c] = fmaf(value, column[c], sum.value[r][c]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
    for (int c = 0; c < kThreadColumns; ++c) wide.value[r][c] = fmaf(scale, sum.value[r][c], wide.value[r][c]);
}

// -- tiles ------------------------------------------------------------------------------------------------------------

/// The target that a tile belongs to: the last one whose first tile is not behind it. Called by whole warps.
__device__ int find_target(const TargetTable &table, std::uint32_t tile) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int first = 0, count = table.target_count;
  while (count > 1) {
    const int stride = (count + 31) / 32, probe = lane * stride;
    const bool reached = probe < count && table.first_tile[first + probe] <= tile;
    const int last = (__popc(__ballot_sync(~0u, reached)) - 1) * stride;
    first += last;
    count = min(stride, count - last);
  }
  return first;
}

__device__ float multiplier_of(const Parameters &p, const LowRankTerm &term) {
  return p.multipliers.device ? p.multipliers.device[term.multiplier_index]
                              : p.multipliers.values[term.multiplier_index];
}

/// The terms of a target at the multipliers of this run.
template <typename K>
struct TermSum {
  const Parameters &parameters;
  const LowRankTerm *terms;
  int count;

  __device__ bool is_off() const {
    for (int t = 0; t < count; ++t)
      if (multiplier_of(parameters, terms[t]) != 0.0f) return false;
    return true;
  }

  __device__ void add_to(Fragment &wide, const Step &step) const {
    for (int t = 0; t < count; ++t) {
      const LowRankTerm &term = terms[t];
      float scale = multiplier_of(parameters, term);
      if (scale == 0.0f) continue;
      scale *= term.coefficient;
      if (term.scalar) scale *= load_float(term.scalar, term.scalar_dtype, 0);
      if (parameters.op == ops::WeightOp::kUnmerge) scale = -scale;
      if constexpr (K::kTensorCores)
        add_product_mma<K>(wide, term, scale, step);
      else
        add_product_fma<K>(wide, term, scale, step);
    }
  }
};

/// Blocks that must fit on a multiprocessor, which bounds the registers: 168 and 128 for the fast kernels.
template <typename K>
constexpr int blocks_wanted = K::kRegular ? (K::kWide ? 3 : 4) : 2;

template <typename K>
__global__ void __launch_bounds__(kThreads, blocks_wanted<K>) low_rank_kernel(const __grid_constant__ Parameters p) {
  const std::uint32_t tile = blockIdx.x * kWarpsPerBlock + threadIdx.x / 32;
  if (tile >= p.table.tile_count) return;
  const int index = find_target(p.table, tile);
  const MatrixTarget &target = p.table.targets[index];
  const int strips = (target.columns.size + kStripColumns - 1) / kStripColumns;
  const int local = static_cast<int>(tile - p.table.first_tile[index]);
  const int x = local % strips * kStripColumns, y_begin = local / strips * p.table.tile_rows;
  const int y_end = min(target.rows.size, y_begin + p.table.tile_rows);

  const Lane lane = lane_of_thread();
  const bool has_base = p.op != ops::WeightOp::kDiff;
  Packed<K> next[kThreadRows] = {};
  if (has_base) load_rows<K>(next, target, lane, y_begin, x);

  const TermSum<K> terms{p, p.table.terms + target.first_term, target.term_count};
  const bool keep_bits = has_base && target.base.dtype == target.out.dtype && terms.is_off();
  if (keep_bits && target.base.data == target.out.data) return;

  for (int y = y_begin; y < y_end; y += kStepRows) {
    Packed<K> rows[kThreadRows];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) rows[r] = next[r];
    if (has_base && y + kStepRows < y_end) load_rows<K>(next, target, lane, y + kStepRows, x);
    if (!keep_bits) {
      Fragment wide = {};
      if (has_base) wide = widen<K>(rows, target.base.dtype);
      terms.add_to(wide, {target, lane, y, x});
      round_to<K>(rows, wide, target.out.dtype);
    }
    store_rows<K>(rows, target, lane, y, x);
  }
}

struct StoredMultipliers {
  float value[kStoredPerLaunch];
};

__global__ void store_multipliers_kernel(const __grid_constant__ StoredMultipliers values, float *to, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) to[i] = values.value[i];
}

using Kernel = void (*)(Parameters);

constexpr Kernel kKernels[kKernelKinds] = {low_rank_kernel<Kind<0>>, low_rank_kernel<Kind<1>>, low_rank_kernel<Kind<2>>,
                                           low_rank_kernel<Kind<3>>, low_rank_kernel<Kind<4>>, low_rank_kernel<Kind<5>>,
                                           low_rank_kernel<Kind<6>>, low_rank_kernel<Kind<7>>};

template <typename... Arguments>
cudaError_t launch(const void *kernel, unsigned blocks, cudaStream_t stream, Arguments... arguments) {
  void *addresses[] = {&arguments...};
  return cudaLaunchKernel(kernel, dim3(blocks), dim3(kThreads), addresses, 0, stream);
}

}  // namespace

cudaError_t resident_blocks(KernelKind kind, int *blocks) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kKernels[index_of(kind)], kThreads, 0);
}

cudaError_t launch_low_rank(KernelKind kind, const TargetTable &table, ops::WeightOp op, const Multipliers &multipliers,
                            cudaStream_t stream) {
  const unsigned blocks = (table.tile_count + kWarpsPerBlock - 1) / kWarpsPerBlock;
  return launch(reinterpret_cast<const void *>(kKernels[index_of(kind)]), blocks, stream,
                Parameters{table, op, multipliers});
}

cudaError_t launch_store_multipliers(const float *host, int count, float *device, cudaStream_t stream) {
  for (int first = 0; first < count; first += kStoredPerLaunch) {
    const int part = count - first < kStoredPerLaunch ? count - first : kStoredPerLaunch;
    StoredMultipliers values{};
    for (int i = 0; i < part; ++i) values.value[i] = host[first + i];
    const cudaError_t status =
        launch(reinterpret_cast<const void *>(store_multipliers_kernel), 1, stream, values, device + first, part);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace lyc::cuda
