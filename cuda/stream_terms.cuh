// What goes on top of a warp's columns of a tile: the terms of a StreamForm, for the kernels whose weights the copy
// engine moves. Slots of shared memory hold a tile, box by box, and its row factors behind it, or column factors.
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
inline constexpr int kTileBytes = kBoxes * kBoxBytes;
inline constexpr int kChunkRowBytes = kChunkRanks * 2;
inline constexpr int kRowChunkBytes = kStreamRows * kChunkRowBytes;
inline constexpr int kColumnChunkBytes = kBoxColumns * kChunkRowBytes;  // of one box
inline constexpr int kSwizzleAlignment = 1024;
inline constexpr int kColumnSlotChunks = 2;  // column factors come in slots of their own
static_assert(kColumnSlotChunks * kBoxes * kColumnChunkBytes <= kTileBytes);

struct Parameters {
  StreamTarget only;  // where the table has no targets
  StreamTable table;
  ops::WeightOp op;
  StreamPass pass;
  Multipliers multipliers;
  char *workspace;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// 16 rows of a warp's columns in the fragments of mma's operand C, n tiles of 8 columns: rows g and g + 8, columns 2 q
/// and 2 q + 1 of each.
template <typename K>
struct Sum {
  static constexpr int kColumns = kStreamColumns / K::kWarps, kPairs = kColumns / 8;
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

__device__ inline float scale_of(const Parameters &p, const StreamTerm &term, bool with_multiplier) {
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
  __device__ LowRank(const Parameters &p, int box, int first_pair, char *)
      : p_(p), box_(box), first_pair_(first_pair) {}

  __device__ bool enter(const StreamTarget &target) {
    bool active = false;
    count_ = target.chunk_count;
    row_transposed_ = column_transposed_ = ends_ = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= count_) break;
      const StreamChunk &chunk = target.chunks[c];
      const StreamTerm &term = target.terms[chunk.term];
      row_transposed_ |= static_cast<unsigned>(chunk.row_transposed) << c;
      column_transposed_ |= static_cast<unsigned>(chunk.column_transposed) << c;
      ends_ |= static_cast<unsigned>(chunk.ends) << c;
      scales_[c] = scale_of(p_, term, !K::kDora);
      active = active || multiplier_at(p_.multipliers, term.multiplier_index) != 0.0f;
    }
    return active;
  }

  __device__ void take_columns(char *slot, int column_slot) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c / kColumnSlotChunks != column_slot) continue;
      const std::uint32_t chunk = shared_address(slot) + (c % kColumnSlotChunks * kBoxes + box_) * kColumnChunkBytes;
#pragma unroll
      for (int n = 0; n < kPairs; n += 2) {
        const uint4 two = load_column_factor(chunk, column_transposed_ >> c & 1, first_pair_ + n);
        columns_[c][n] = make_uint2(two.x, two.y);
        columns_[c][n + 1] = make_uint2(two.z, two.w);
      }
    }
  }

  template <typename At>
  __device__ void prepare(const At &) {}
  __device__ void begin_tile(char *) {}

  __device__ Sum<K> rows(char *slot, int y) const {
    const std::uint32_t row_chunks = shared_address(slot) + kTileBytes;
    if constexpr (K::kForm == StreamForm::kHadamard) return hadamard(row_chunks, y);
    if constexpr (K::kForm == StreamForm::kSeveral) return several(row_chunks, y);
    Sum<K> sum = product<0, kChunks>(row_chunks, y);
    sum.for_each([&](int n, int i) { sum.value[n][i] *= scales_[0]; });
    return sum;
  }

 private:
  template <bool kFirst>
  __device__ void add_chunk(Sum<K> &sum, int c, std::uint32_t row_chunks, int y) const {
    const uint4 rows = load_row_factor(row_chunks + c * kRowChunkBytes, row_transposed_ >> c & 1, y);
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

  /// s P o Q
  __device__ Sum<K> hadamard(std::uint32_t row_chunks, int y) const {
    Sum<K> total = product<0, kChunks / 2>(row_chunks, y);
    total.for_each([&](int n, int i) { total.value[n][i] *= scales_[0]; });
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
      if (!(ends_ >> c & 1)) continue;
      const float scale = scales_[c];  // 0 adds nothing, not even NaN
      if (scale != 0.0f)
        sum.for_each([&](int n, int i) { total.value[n][i] = fmaf(scale, sum.value[n][i], total.value[n][i]); });
      sum.for_each([&](int n, int i) { sum.value[n][i] = 0.0f; });
    }
    return total;
  }

  const Parameters &p_;
  const int box_, first_pair_;
  int count_ = 0;
  unsigned row_transposed_ = 0, column_transposed_ = 0, ends_ = 0;  // a bit for each chunk
  float scales_[kChunks] = {};
  uint2 columns_[kChunks][kPairs];
};

/// A Kronecker product: the strip's part of its right half stays in shared memory, where each thread has what it needs
/// as float32; an element of the left half makes a tile.
template <typename K>
class Kronecker {
  static constexpr int kPairs = Sum<K>::kPairs;

 public:
  __device__ Kronecker(const Parameters &p, int box, int first_pair, char *held)
      : p_(p), box_(box), first_pair_(first_pair), right_(reinterpret_cast<float2 *>(held) + threadIdx.x % 32) {}

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
  __device__ void prepare(const At &at) {
    if (at.begins_strip()) load_right(at);
    const Place place = at.place_of_box(box_);
    left_ = scale_;
    if (left_dtype_ == LYC_DTYPE_NONE || place.j >= at.across() || scale_ == 0.0f) return;
    left_ *= load_float(left_data_, left_dtype_, place.i * left_row_ + place.j * left_column_);
  }

  /// What is multiplied only where it is used.
  struct Rows {
    const float2 *right;
    const float left;

    __device__ float2 pair(int half, int n) const {
      const float2 two = right[(half * kPairs + n) * 32];
      return make_float2(left * two.x, left * two.y);
    }
  };

  __device__ Rows rows(char *, int y) const { return {right_ + y / 8 * kPairs * 32, left_}; }

 private:
  template <typename At>
  __device__ void load_right(const At &at) {
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
    const Place place = at.place_of_box(box_);
    const void *right = resolve(halves_->right, halves_->right_in_workspace, p_.workspace);
    const lyc_dtype dtype = halves_->right_dtype;
    const std::int64_t row_stride = halves_->right_row, column_stride = halves_->right_column;
    const bool pairs = halves_->right_pairs;
    constexpr int kTogether = 8;  // loads under way, all from inside in any case
    for (int first = 0; first < kStreamRows / 8 * kPairs; first += kTogether) {
      float2 values[kTogether];
      const auto row_of = [&](int e) { return place.y + e / kPairs * 8 + g; };
      const auto column_of = [&](int e) { return place.x + (first_pair_ + e % kPairs) * 8 + q * 2; };
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

  const Parameters &p_;
  const int box_, first_pair_;
  float2 *const right_;  // of this thread, from e * 32 to e * 32: rows 8 e / kPairs + g, columns of n tile e % kPairs
  const StreamKronecker *halves_ = nullptr;
  const void *left_data_ = nullptr;
  lyc_dtype left_dtype_ = LYC_DTYPE_NONE;
  std::int64_t left_row_ = 0, left_column_ = 0;
  float scale_ = 0.0f, left_ = 0.0f;
};

/// R' W - W for blocks of rows that a tile holds whole: R - I comes as a packed row factor, the tile is the column one.
template <typename K>
class Rotation {
  static constexpr int kPairs = Sum<K>::kPairs, kDepth = kStreamRows / kChunkRanks;

 public:
  __device__ Rotation(const Parameters &p, int box, int first_pair, char *)
      : p_(p), box_(box), first_pair_(first_pair) {}

  __device__ bool enter(const StreamTarget &target) {
    rescale_ = target.rescale;
    rows_ = target.rows;
    multiplier_ = multiplier_at(p_.multipliers, target.terms[0].multiplier_index);
    return multiplier_ != 0.0f;
  }

  __device__ void take_columns(char *, int) {}

  template <typename At>
  __device__ void prepare(const At &at) {
    if (!rescale_.data) return;
    const int g = static_cast<int>(threadIdx.x % 32) / 4;
#pragma unroll
    for (int r = 0; r < kStreamRows / 8; ++r) factor_[r] = element(rescale_, min(at.place().y + r * 8 + g, rows_ - 1));
  }

  /// The columns are read before any row of them is changed.
  __device__ void begin_tile(char *slot) {
    const std::uint32_t box = shared_address(slot) + box_ * kBoxBytes;
#pragma unroll
    for (int k = 0; k < kDepth; ++k)
#pragma unroll
      for (int n = 0; n < kPairs; n += 2) {
        const uint4 two = load_column_factor(box + k * kChunkRanks * kRowBytes, false, first_pair_ + n);
        columns_[k][n] = make_uint2(two.x, two.y);
        columns_[k][n + 1] = make_uint2(two.z, two.w);
      }
    __syncwarp();
  }

  __device__ Sum<K> rows(char *slot, int y) const {
    const std::uint32_t row_chunks = shared_address(slot) + kTileBytes;
    Sum<K> sum;
    sum.for_each([&](int n, int i) { sum.value[n][i] = 0.0f; });
#pragma unroll
    for (int c = 0; c < K::kChunks; ++c) {
      const uint4 rows = load_row_factor(row_chunks + c * kRowChunkBytes, false, y);
#pragma unroll
      for (int n = 0; n < kPairs; ++n) multiply<K::kBf16Factors>(sum.value[n], rows, columns_[c % kDepth][n]);
    }
    const int lane = static_cast<int>(threadIdx.x % 32);
    const char *box = slot + box_ * kBoxBytes + lane % 4 * 4;
    sum.for_each([&](int n, int i) {
      float &value = sum.value[n][i];
      value *= multiplier_;
      if (!rescale_.data) return;
      const int row = y + i / 2 * 8 + lane / 4;
      const auto *word = reinterpret_cast<const std::uint32_t *>(box + swizzled_128(row, first_pair_ + n));
      const float2 two = K::Element::get(word, 0);
      const float base = i % 2 ? two.y : two.x;
      value = factor_[y / 8 + i / 2] * (base + value) - base;
    });
    return sum;
  }

 private:
  const Parameters &p_;
  const int box_, first_pair_;
  int rows_ = 0;
  Vector rescale_{};
  float multiplier_ = 0.0f, factor_[kStreamRows / 8] = {};
  uint2 columns_[kDepth][kPairs];
};

template <typename K>
using Terms =
    std::conditional_t<K::kRotation, Rotation<K>, std::conditional_t<K::kKronecker, Kronecker<K>, LowRank<K>>>;

#endif

}  // namespace lyc::cuda
