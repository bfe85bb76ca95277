// What goes on top of a warp's columns of a tile: the terms of a StreamForm, for the kernels whose weights the copy
// engine moves. Slots of shared memory hold the row factors of a tile, then its boxes; or column factors, box by box.
//
// Numerics. Tensor cores multiply 16-bit factors exactly and sum in float32; factors that a run computes come in three
//           16-bit parts. A term whose multiplier is 0 adds nothing, not even NaN.
#pragma once

#include <type_traits>

#include "copy_engine.cuh"
#include "stream_kernels.hpp"

namespace lyc::cuda {

inline constexpr int kRowBytes = kBoxColumns * 2;
inline constexpr int kBoxBytes = kStreamRows * kRowBytes;
inline constexpr int kChunkRowBytes = kChunkRanks * 2;
inline constexpr int kRowChunkBytes = kStreamRows * kChunkRowBytes;
inline constexpr int kColumnChunkBytes = kBoxColumns * kChunkRowBytes;  // of one box
inline constexpr int kSwizzleAlignment = 1024;
inline constexpr int kColumnSlotChunks = 2;  // column factors come in slots of their own
static_assert(kColumnSlotChunks * kColumnChunkBytes <= kBoxBytes && kRowChunkBytes % kSwizzleAlignment == 0);

/// What an instance of a kernel computes, as a type.
template <int kMostChunks, StreamForm kTheForm, bool kBf16, bool kWithDora, int kWarpsOfBox>
struct TermsKind {
  static constexpr int kChunks = kMostChunks, kWarpsPerBox = kWarpsOfBox;
  static constexpr StreamForm kForm = kTheForm;
  static constexpr bool kBf16Factors = kBf16, kDora = kWithDora;
  static constexpr bool kKronecker = kForm == StreamForm::kKronecker, kLowRank = !kKronecker;
  static constexpr int kColumnSlots = kLowRank ? (kChunks + kColumnSlotChunks - 1) / kColumnSlotChunks : 0;
  static constexpr int kHeldBytes = kKronecker ? kStreamRows * kBoxColumns * 4 : 0;  // of a box
  using Element = std::conditional_t<kBf16Factors, Bf16, F16>;                       // of factors
};

struct StreamParameters {
  StreamTarget only;  // where the table has no targets
  StreamTable table;
  ops::WeightOp op;
  StreamPass pass;
  Multipliers multipliers;
  char *workspace;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// -- slots ------------------------------------------------------------------------------------------------------------

template <typename K>
__device__ char *box_of(char *slot, int box) {
  return slot + K::kChunks * kRowChunkBytes + box * kBoxBytes;
}

__device__ inline std::uint32_t column_chunk(std::uint32_t slot, int box, int chunk) {
  return slot + (box * kColumnSlotChunks + chunk % kColumnSlotChunks) * kColumnChunkBytes;
}

/// From line `line` on in one chunk of a packed factor.
__device__ inline const char *packed_lines(const StreamParameters &p, std::uint64_t packed, int extent, int chunk,
                                           int line) {
  const std::int64_t lines = (extent + kPackedLines - 1) / kPackedLines * kPackedLines;
  return p.workspace + packed + (chunk * lines + line) * kChunkRowBytes;
}

/// The row factors of kStreamRows rows from `y` on.
template <typename K>
__device__ void load_row_factors(const StreamParameters &p, std::uint32_t slot, const StreamTarget &target, int chunks,
                                 int rows, int y, Barrier full) {
#pragma unroll
  for (int c = 0; c < K::kChunks; ++c) {
    if (c >= chunks) continue;
    const StreamChunk &chunk = target.chunks[c];
    const int rank = chunk.row_chunk * kChunkRanks;
    const std::uint32_t to = slot + c * kRowChunkBytes;
    if (chunk.row_packed)
      copy_in(to, packed_lines(p, target.packed_row[chunk.product], rows, chunk.row_chunk, y), kRowChunkBytes, full);
    else
      copy_in(to, target.row[chunk.product], chunk.row_transposed ? y : rank, chunk.row_transposed ? rank : y, full);
  }
}

/// One chunk of the column factors of a box whose columns begin at `x`.
__device__ inline void load_column_factor(const StreamParameters &p, std::uint32_t to, const StreamTarget &target,
                                          const StreamChunk &chunk, int columns, int x, Barrier full) {
  const int rank = chunk.column_chunk * kChunkRanks;
  if (chunk.column_packed)
    copy_in(to, packed_lines(p, target.packed_column[chunk.product], columns, chunk.column_chunk, x), kColumnChunkBytes,
            full);
  else
    copy_in(to, target.column[chunk.product], chunk.column_transposed ? rank : x, chunk.column_transposed ? x : rank,
            full);
}

// -- terms ------------------------------------------------------------------------------------------------------------

__device__ inline int target_of_run(const StreamTable &table, std::uint32_t run) {
  int first = 0, last = table.target_count - 1;  // it is among these
  while (first < last) {
    const int middle = (first + last + 1) / 2;
    if (table.first_run[middle] <= run)
      first = middle;
    else
      last = middle - 1;
  }
  return first;
}

/// 16 rows of a warp's columns in the fragments of mma's operand C, n tiles of 8 columns: rows g and g + 8, columns 2 q
/// and 2 q + 1 of each.
template <typename K>
struct Sum {
  static constexpr int kPairs = kBoxColumns / 8 / K::kWarpsPerBox;
  float value[kPairs][4];

  __device__ float2 pair(int half, int n) const { return make_float2(value[n][2 * half], value[n][2 * half + 1]); }

  template <typename Visit>
  __device__ static void for_each(Visit visit) {
#pragma unroll
    for (int n = 0; n < kPairs; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) visit(n, i);
  }
};

/// A warp's columns of the tiles in slots: those of a box from the n tile `first_pair` on.
template <typename K>
class WarpColumns {
  static constexpr int kPairs = Sum<K>::kPairs;

 public:
  __device__ explicit WarpColumns(int warp)
      : box_(warp / K::kWarpsPerBox), first_pair_(warp % K::kWarpsPerBox * kPairs) {}

  __device__ int box() const { return box_; }
  __device__ int first_pair() const { return first_pair_; }

  /// 16 rows of the warp's columns as they lie in the tile, two neighbours a word. All of them are loaded before any is
  /// stored, so that loads overlap.
  struct Words {
    std::uint32_t word[2][kPairs];
  };

  /// Row y + 8 half + g, y a multiple of 16: so of the row only g swaps columns about (swizzled_128), which for the
  /// n tiles of a warp comes to changing bits of one address.
  __device__ std::uint32_t *word_at(char *slot, int y, int half, int n) const {
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
    const std::uint32_t first = shared_address(box_of<K>(slot, box_)) + g * kRowBytes + (first_pair_ ^ g) * 16 + q * 4;
    auto *at = static_cast<char *>(__cvta_shared_to_generic(first ^ n * 16));
    return reinterpret_cast<std::uint32_t *>(at + (y + half * 8) * kRowBytes);
  }

  template <typename Visit>
  __device__ void for_words(char *slot, int y, Visit visit) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < kPairs; ++n) visit(half, n, word_at(slot, y, half, n));
  }

  __device__ Words load(char *slot, int y) const {
    Words words;
    for_words(slot, y, [&](int half, int n, const std::uint32_t *at) { words.word[half][n] = *at; });
    return words;
  }

  /// Replace each pair of neighbours by what `change(half, n, pair)` makes of it.
  template <typename Type, typename Change>
  __device__ void replace(char *slot, int y, Words words, Change change) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < kPairs; ++n)
        Type::put(&words.word[half][n], 0, change(half, n, Type::get(&words.word[half][n], 0)));
    for_words(slot, y, [&](int half, int n, std::uint32_t *at) { *at = words.word[half][n]; });
  }

  __device__ void clear(char *slot) const {
#pragma unroll
    for (int y = 0; y < kStreamRows; y += 16) for_words(slot, y, [](int, int, std::uint32_t *at) { *at = 0; });
  }

 private:
  const int box_, first_pair_;
};

__device__ inline float scale_of(const StreamParameters &p, const StreamTerm &term, bool with_multiplier) {
  const float multiplier = multiplier_at(p.multipliers, term.multiplier_index);
  if (multiplier == 0.0f) return 0.0f;
  const float scale = (with_multiplier ? multiplier : 1.0f) * term.coefficient * element(term.scalar, 0);
  return p.op == ops::WeightOp::kUnmerge ? -scale : scale;
}

/// Low-rank products: what one warp adds to its columns of every tile.
template <typename K>
class LowRank {
  static constexpr int kPairs = Sum<K>::kPairs, kChunks = K::kChunks;

 public:
  struct Tile {};  // what it needs of a tile beyond its slot

  __device__ LowRank(const StreamParameters &p, const WarpColumns<K> &my, char *) : p_(p), my_(my) {}

  __device__ bool enter(const StreamTarget &target) {
    bool active = false;
    count_ = target.chunk_count;
    traits_ = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= count_) break;
      const StreamChunk &chunk = target.chunks[c];
      const StreamTerm &term = target.terms[chunk.term];
      traits_ |= static_cast<unsigned>(chunk.row_transposed) << (kRowTransposed + c);
      traits_ |= static_cast<unsigned>(chunk.column_transposed) << (kColumnTransposed + c);
      traits_ |= static_cast<unsigned>(chunk.ends) << (kEnds + c);
      scales_[c] = scale_of(p_, term, !K::kDora);
      active = active || multiplier_at(p_.multipliers, term.multiplier_index) != 0.0f;
    }
    return active;
  }

  __device__ void take_columns(char *slot, int column_slot) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c / kColumnSlotChunks != column_slot) continue;
      const std::uint32_t chunk = column_chunk(shared_address(slot), my_.box(), c);
#pragma unroll
      for (int n = 0; n < kPairs; n += 2) {
        const uint4 two = load_column_factor(chunk, has(kColumnTransposed + c), my_.first_pair() + n);
        columns_[c][n] = make_uint2(two.x, two.y);
        columns_[c][n + 1] = make_uint2(two.z, two.w);
      }
    }
  }

  template <typename At>
  __device__ Tile prepare(const At &, const Place &) const {
    return {};
  }
  __device__ void begin_tile(char *) {}

  /// D is factor() times these.
  __device__ Sum<K> bare_rows(char *slot, int y) const {
    const std::uint32_t row_chunks = shared_address(slot);
    if constexpr (K::kForm == StreamForm::kHadamard) return hadamard(row_chunks, y);
    if constexpr (K::kForm == StreamForm::kSeveral) return several(row_chunks, y);
    return product<0, kChunks>(row_chunks, y);
  }
  __device__ float factor(Tile) const { return K::kForm == StreamForm::kSeveral ? 1.0f : scales_[0]; }

  __device__ Sum<K> rows(char *slot, int y, Tile tile) const {
    Sum<K> sum = bare_rows(slot, y);
    if constexpr (K::kForm != StreamForm::kSeveral)
      sum.for_each([&](int n, int i) { sum.value[n][i] *= factor(tile); });
    return sum;
  }

 private:
  enum Trait { kRowTransposed = 0, kColumnTransposed = 8, kEnds = 16 };  // of the first chunk; a bit for each

  __device__ bool has(int trait) const { return traits_ >> trait & 1; }

  template <bool kFirst>
  __device__ void add_chunk(Sum<K> &sum, int c, std::uint32_t row_chunks, int y) const {
    const uint4 rows = load_row_factor(row_chunks + c * kRowChunkBytes, has(kRowTransposed + c), y);
#pragma unroll
    for (int n = 0; n < kPairs; ++n) multiply<K::kBf16Factors, kFirst>(sum.value[n], rows, columns_[c][n]);
  }

  /// P of some chunks, the first of which is there.
  template <int kFirst, int kCount>
  __device__ Sum<K> product(std::uint32_t row_chunks, int y) const {
    Sum<K> sum;
    add_chunk<true>(sum, kFirst, row_chunks, y);
#pragma unroll
    for (int c = kFirst + 1; c < kFirst + kCount; ++c)
      if (K::kForm == StreamForm::kHadamard || c < count_) add_chunk<false>(sum, c, row_chunks, y);
    return sum;
  }

  /// P o Q
  __device__ Sum<K> hadamard(std::uint32_t row_chunks, int y) const {
    Sum<K> total = product<0, kChunks / 2>(row_chunks, y);
    const Sum<K> other = product<kChunks / 2, kChunks / 2>(row_chunks, y);
    total.for_each([&](int n, int i) { total.value[n][i] *= other.value[n][i]; });
    return total;
  }

  /// The sum of s P over products.
  __device__ Sum<K> several(std::uint32_t row_chunks, int y) const {
    Sum<K> total, sum;
    sum.for_each([&](int n, int i) { sum.value[n][i] = total.value[n][i] = 0.0f; });
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= count_) break;
      add_chunk<false>(sum, c, row_chunks, y);
      if (!has(kEnds + c)) continue;
      const float scale = scales_[c];  // 0 adds nothing, not even NaN
      if (scale != 0.0f)
        sum.for_each([&](int n, int i) { total.value[n][i] = fmaf(scale, sum.value[n][i], total.value[n][i]); });
      sum.for_each([&](int n, int i) { sum.value[n][i] = 0.0f; });
    }
    return total;
  }

  const StreamParameters &p_;
  const WarpColumns<K> my_;  // a copy: what refers to another member is not kept in registers
  int count_ = 0;
  unsigned traits_ = 0;
  float scales_[kChunks] = {};
  uint2 columns_[kChunks][kPairs];
};

/// A Kronecker product: the strip's part of its right half stays in shared memory, where each thread has what it needs
/// as float32; an element of the left half makes a tile.
template <typename K>
class Kronecker {
  static constexpr int kPairs = Sum<K>::kPairs;

 public:
  struct Tile {
    float left;
  };

  __device__ Kronecker(const StreamParameters &p, const WarpColumns<K> &my, char *held)
      : p_(p), my_(my), right_(reinterpret_cast<float2 *>(held) + threadIdx.x % 32) {}

  __device__ bool enter(const StreamTarget &target) {
    halves_ = &target.kronecker;
    left_data_ = resolve(halves_->left, halves_->left_in_workspace, p_.workspace);
    left_dtype_ = halves_->left_dtype;
    left_row_ = halves_->left_row;
    left_column_ = halves_->left_column;
    scale_ = scale_of(p_, target.terms[0], !K::kDora);
    return multiplier_at(p_.multipliers, target.terms[0].multiplier_index) != 0.0f;
  }

  __device__ void take_columns(char *, int) {}
  __device__ void begin_tile(char *) {}

  template <typename At>
  __device__ Tile prepare(const At &at, const Place &place) const {
    if (at.begins_run()) load_right(at, place);
    if (place.j >= at.across() || scale_ == 0.0f) return {scale_};
    return {scale_ * load_float(left_data_, left_dtype_, place.i * left_row_ + place.j * left_column_)};
  }

  struct BareRows {
    const float2 *right;

    __device__ float2 pair(int half, int n) const { return right[(half * kPairs + n) * 32]; }
  };
  /// What is multiplied only where it is used.
  struct Rows {
    const BareRows bare;
    const float left;

    __device__ float2 pair(int half, int n) const {
      const float2 two = bare.pair(half, n);
      return make_float2(left * two.x, left * two.y);
    }
  };

  /// D is factor() times these.
  __device__ BareRows bare_rows(char *, int y) const { return {right_ + y / 8 * kPairs * 32}; }
  __device__ float factor(Tile tile) const { return tile.left; }
  __device__ Rows rows(char *slot, int y, Tile tile) const { return {bare_rows(slot, y), tile.left}; }

 private:
  template <typename At>
  __device__ void load_right(const At &at, const Place &place) const {
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
    const void *right = resolve(halves_->right, halves_->right_in_workspace, p_.workspace);
    const lyc_dtype dtype = halves_->right_dtype;
    const std::int64_t row_stride = halves_->right_row, column_stride = halves_->right_column;
    const bool pairs = halves_->right_pairs;
    constexpr int kTogether = 8;  // loads under way, all from inside in any case
    for (int first = 0; first < kStreamRows / 8 * kPairs; first += kTogether) {
      float2 values[kTogether];
      const auto row_of = [&](int e) { return place.y + e / kPairs * 8 + g; };
      const auto column_of = [&](int e) { return place.x + (my_.first_pair() + e % kPairs) * 8 + q * 2; };
      with_type<true>(dtype, [&](auto type) {
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const std::int64_t offset = min(row_of(first + i), at.rows() - 1) * row_stride +
                                      min(column_of(first + i), at.columns() - 2) * column_stride;
          values[i] = pairs ? type.load_pair(right, offset)
                            : make_float2(type.load(right, offset), type.load(right, offset + column_stride));
        }
      });
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int e = first + i;
        const bool inside = row_of(e) < at.rows() && column_of(e) < at.columns() && scale_ != 0.0f;
        right_[e * 32] = inside ? values[i] : make_float2(0.0f, 0.0f);
      }
    }
  }

  const StreamParameters &p_;
  const WarpColumns<K> my_;
  float2 *const right_;  // of this thread, from e * 32 to e * 32: rows 8 e / kPairs + g, columns of n tile e % kPairs
  const StreamKronecker *halves_ = nullptr;
  const void *left_data_ = nullptr;
  lyc_dtype left_dtype_ = LYC_DTYPE_NONE;
  std::int64_t left_row_ = 0, left_column_ = 0;
  float scale_ = 0.0f;
};

template <typename K>
using Terms = std::conditional_t<K::kKronecker, Kronecker<K>, LowRank<K>>;

#endif

}  // namespace lyc::cuda
