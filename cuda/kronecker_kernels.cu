// out[y, x] = round(base[y, x] + sum over terms of s * left[y / n, x / k] * right[y % n, x % k])
//
// for weights whose rows are contiguous. Halves that are products have been multiplied into the workspace before.
//
// Work.     A thread takes eight columns, so one element of the left half and one vector of the right one make all of
//           them, and as many rows at a time as let the loads overlap. Rows of a tile lie n apart where the left half
//           has enough rows: then the vector of the right half serves all of them.
// Traffic.  base read once, out written once, 16 bytes per thread and access: bound by DRAM. The right half is as large
//           as the weight over the left half's elements and comes from L2.
// DoRA.     A block takes a few whole rows: sums of squares first, then the rows again, which the caches still hold.
//           Sums go by lanes, then by warps, in an order that depends on shapes alone.
#include <utility>

#include "device.cuh"
#include "kronecker_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kThreads = kWarpsPerBlock * 32;
constexpr int kVector = kKroneckerVector;

template <int kIndex>
struct Kind {
  static constexpr bool kWide = kronecker_kind(kIndex).wide;
  static constexpr bool kDora = kronecker_kind(kIndex).dora;
  static constexpr int kBatch = kWide || kDora ? 4 : 8;  // rows whose loads are under way together
  static constexpr int kRows = tile_rows(kronecker_kind(kIndex));
};

/// A thread's columns in some rows.
template <typename K>
struct Rows {
  float value[K::kBatch][kVector];
};

/// As they are in memory: 16-bit elements fill half of the words.
template <typename K>
struct Packed {
  std::uint32_t word[K::kWide ? kVector : kVector / 2];
};

template <typename K>
__device__ Packed<K> load_packed(const void *data, lyc_dtype dtype, std::int64_t offset) {
  Packed<K> packed = {};
  if constexpr (K::kWide)
    if (dtype == LYC_DTYPE_F32) {
      const auto *from = reinterpret_cast<const uint4 *>(static_cast<const float *>(data) + offset);
      const uint4 low = load_streaming(from), high = load_streaming(from + 1);
      packed.word[0] = low.x, packed.word[1] = low.y, packed.word[2] = low.z, packed.word[3] = low.w;
      packed.word[4] = high.x, packed.word[5] = high.y, packed.word[6] = high.z, packed.word[7] = high.w;
      return packed;
    }
  const uint4 v = load_streaming(reinterpret_cast<const uint4 *>(static_cast<const std::uint16_t *>(data) + offset));
  packed.word[0] = v.x, packed.word[1] = v.y, packed.word[2] = v.z, packed.word[3] = v.w;
  return packed;
}

template <typename K>
__device__ void store_packed(const Packed<K> &packed, void *data, lyc_dtype dtype, std::int64_t offset) {
  const uint4 low = make_uint4(packed.word[0], packed.word[1], packed.word[2], packed.word[3]);
  if constexpr (K::kWide)
    if (dtype == LYC_DTYPE_F32) {
      auto *to = reinterpret_cast<uint4 *>(static_cast<float *>(data) + offset);
      store_streaming(to, low);
      store_streaming(to + 1, make_uint4(packed.word[4], packed.word[5], packed.word[6], packed.word[7]));
      return;
    }
  store_streaming(reinterpret_cast<uint4 *>(static_cast<std::uint16_t *>(data) + offset), low);
}

template <typename K>
__device__ void widen(const Packed<K> &packed, lyc_dtype dtype, float (&value)[kVector]) {
  with_type<K::kWide>(dtype, [&](auto type) {
#pragma unroll
    for (int i = 0; i < kVector; i += 2) {
      const float2 two = type.get(packed.word, i / 2);
      value[i] = two.x, value[i + 1] = two.y;
    }
  });
}

template <typename K>
__device__ Packed<K> round_to(const float (&value)[kVector], lyc_dtype dtype) {
  Packed<K> packed;
  with_type<K::kWide>(dtype, [&](auto type) {
#pragma unroll
    for (int i = 0; i < kVector; i += 2) type.put(packed.word, i / 2, make_float2(value[i], value[i + 1]));
  });
  return packed;
}

/// Eight neighbours of a right half.
__device__ void load_right(const void *data, lyc_dtype dtype, std::int64_t offset, float (&value)[kVector]) {
  std::uint32_t word[kVector];
  const auto *from = reinterpret_cast<const uint4 *>(static_cast<const char *>(data) +
                                                     offset * (dtype == LYC_DTYPE_F32 ? 4 : 2));
  const uint4 low = __ldg(from);
  word[0] = low.x, word[1] = low.y, word[2] = low.z, word[3] = low.w;
  if (dtype == LYC_DTYPE_F32) {
    const uint4 high = __ldg(from + 1);
    word[4] = high.x, word[5] = high.y, word[6] = high.z, word[7] = high.w;
  }
  with_type<true>(dtype, [&](auto type) {
#pragma unroll
    for (int i = 0; i < kVector; i += 2) {
      const float2 two = type.get(word, i / 2);
      value[i] = two.x, value[i + 1] = two.y;
    }
  });
}

/// The rows of a tile: `count` of them, `step` apart.
struct Tile {
  int first, step, count;
};

template <typename K>
__device__ Tile tile_at(const KroneckerTarget &target, int number) {
  if (target.step == 1) return {number * K::kRows, 1, min(K::kRows, target.rows - number * K::kRows)};
  const int blocks = target.rows / target.right_rows, block = number / target.right_rows * K::kRows;
  return {block * target.right_rows + number % target.right_rows, target.right_rows, min(K::kRows, blocks - block)};
}

/// What a warp works on.
template <typename K>
struct Work {
  const KroneckerRun &run;
  const KroneckerTarget &target;
  Tile tile;

  __device__ std::int64_t row(int index) const { return tile.first + index * tile.step; }

  __device__ float multiplier(int term) const {
    return multiplier_at(run.multipliers, run.terms[target.first_term + term].multiplier_index);
  }

  __device__ bool idle() const {
    for (int t = 0; t < target.term_count; ++t)
      if (multiplier(t) != 0.0f) return false;
    return true;
  }

  __device__ void load(Packed<K> (&packed)[K::kBatch], int begin, int x) const {
#pragma unroll
    for (int j = 0; j < K::kBatch; ++j)
      if (begin + j < tile.count)
        packed[j] = load_packed<K>(target.base, target.base_dtype, row(begin + j) * target.base_row + x);
  }

  __device__ Rows<K> widened(const Packed<K> (&packed)[K::kBatch]) const {
    Rows<K> rows;
#pragma unroll
    for (int j = 0; j < K::kBatch; ++j) widen<K>(packed[j], target.base_dtype, rows.value[j]);
    return rows;
  }

  __device__ void store(const Rows<K> &rows, int begin, int x) const {
#pragma unroll
    for (int j = 0; j < K::kBatch; ++j)
      if (begin + j < tile.count)
        store_packed<K>(round_to<K>(rows.value[j], target.out_dtype), target.out, target.out_dtype,
                        row(begin + j) * target.out_row + x);
  }

  /// rows += weight * term
  __device__ void add_term(Rows<K> &rows, const KroneckerTerm &term, float weight, int begin, int x) const {
    const void *left = resolve(term.left, term.left_in_workspace, run.workspace);
    const void *right = resolve(term.right, term.right_in_workspace, run.workspace);
    const std::int64_t left_x = x / target.right_columns * term.left_column;
    const int right_x = x % target.right_columns, first = static_cast<int>(row(begin));
    float factor[K::kBatch];
    if (tile.step != 1) {  // one row of the right half
      const std::int64_t left_y = first / target.right_rows;
#pragma unroll
      for (int j = 0; j < K::kBatch; ++j)
        factor[j] = load_float(left, term.left_dtype, (left_y + min(j, tile.count - 1 - begin)) * term.left_row + left_x);
      float vector[kVector];
      load_right(right, term.right_dtype, first % target.right_rows * term.right_row + right_x, vector);
#pragma unroll
      for (int j = 0; j < K::kBatch; ++j) add_vector(rows.value[j], weight * factor[j], vector);
      return;
    }
#pragma unroll
    for (int j = 0; j < K::kBatch; ++j) {
      const int y = first + min(j, tile.count - 1 - begin);
      factor[j] = load_float(left, term.left_dtype, y / target.right_rows * term.left_row + left_x);
      float vector[kVector];
      load_right(right, term.right_dtype, y % target.right_rows * term.right_row + right_x, vector);
      add_vector(rows.value[j], weight * factor[j], vector);
    }
  }

  static __device__ void add_vector(float (&row)[kVector], float factor, const float (&vector)[kVector]) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) row[i] = fmaf(factor, vector[i], row[i]);
  }

  /// Each term times `weight`, or its own multiplier instead where that is 0.
  __device__ void add_terms(Rows<K> &rows, int begin, int x) const {
    for (int t = 0; t < target.term_count; ++t) {
      const KroneckerTerm &term = run.terms[target.first_term + t];
      const float m = K::kDora ? 1.0f : multiplier(t), sign = run.op == ops::WeightOp::kUnmerge ? -1.0f : 1.0f;
      if (m != 0.0f) add_term(rows, term, sign * m * term.coefficient * element(term.scalar, 0), begin, x);
    }
  }

  /// Bit for bit.
  __device__ void copy(int x) const {
    for (int begin = 0; begin < tile.count; begin += K::kBatch) {
      Packed<K> packed[K::kBatch] = {};
      load(packed, begin, x);
#pragma unroll
      for (int j = 0; j < K::kBatch; ++j)
        if (begin + j < tile.count)
          store_packed<K>(packed[j], target.out, target.out_dtype, row(begin + j) * target.out_row + x);
    }
  }

  /// The weight is under way while the terms are computed.
  __device__ void merge(int x) const {
    for (int begin = 0; begin < tile.count; begin += K::kBatch) {
      Packed<K> packed[K::kBatch] = {};
      if (run.op != ops::WeightOp::kDiff) load(packed, begin, x);
      Rows<K> rows = {};
      add_terms(rows, begin, x);
      if (run.op != ops::WeightOp::kDiff) {
        const Rows<K> base = widened(packed);
#pragma unroll
        for (int j = 0; j < K::kBatch; ++j)
#pragma unroll
          for (int i = 0; i < kVector; ++i) rows.value[j][i] += base.value[j][i];
      }
      store(rows, begin, x);
    }
  }

  /// Call with the weight and the delta.
  template <typename Visit>
  __device__ void visit(int x, Visit visit) const {
#pragma unroll
    for (int begin = 0; begin < K::kRows; begin += K::kBatch) {
      if (begin >= tile.count) break;
      Packed<K> packed[K::kBatch] = {};
      load(packed, begin, x);
      Rows<K> delta = {};
      add_terms(delta, begin, x);
      visit(begin, widened(packed), delta);
    }
  }

  __device__ void add_squares(float (&squares)[K::kRows], float v, int x) const {
    visit(x, [&](int begin, const Rows<K> &base, const Rows<K> &delta) {
#pragma unroll
      for (int j = 0; j < K::kBatch; ++j)
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          const float value = fmaf(v, delta.value[j][i], base.value[j][i]);
          squares[begin + j] = fmaf(value, value, squares[begin + j]);
        }
    });
  }

  __device__ void merge_dora(const DoraFactors *factors, int x) const {
    const float kept = run.op == ops::WeightOp::kDiff ? 0.0f : 1.0f;
    visit(x, [&](int begin, const Rows<K> &base, Rows<K> &delta) {
#pragma unroll
      for (int j = 0; j < K::kBatch; ++j)
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          const float change = dora_change(factors[begin + j], base.value[j][i], delta.value[j][i]);
          delta.value[j][i] = kept != 0.0f ? base.value[j][i] + change : change;
        }
      store(delta, begin, x);
    });
  }

  /// What no adapter changes, in another type; nothing, of a difference.
  __device__ void keep(int x) const {
    for (int begin = 0; begin < tile.count; begin += K::kBatch) {
      Packed<K> packed[K::kBatch] = {};
      if (run.op != ops::WeightOp::kDiff) load(packed, begin, x);
      store(run.op == ops::WeightOp::kDiff ? Rows<K>{} : widened(packed), begin, x);
    }
  }
};

/// A tile for each warp, 256 columns of 32 rows.
template <typename K>
__device__ void merge_tile(const KroneckerRun &run) {
  const std::uint32_t number = blockIdx.x * kWarpsPerBlock + threadIdx.x / 32;
  if (number >= run.tiles.pieces) return;
  const int index = find_entry(run.tiles.first, run.tiles.count, number);
  const KroneckerTarget &target = run.targets[index];
  const int strips = (target.columns + kKroneckerColumns - 1) / kKroneckerColumns;
  const int local = static_cast<int>(number - run.tiles.first[index]);
  const int x = local % strips * kKroneckerColumns + static_cast<int>(threadIdx.x % 32) * kVector;
  if (x >= target.columns) return;
  const Work<K> work{run, target, tile_at<K>(target, local / strips)};
  if (run.op == ops::WeightOp::kDiff || target.base_dtype != target.out_dtype || !work.idle())
    work.merge(x);
  else if (target.base != target.out)
    work.copy(x);
}

/// A few whole rows for each block.
template <typename K>
__device__ void merge_rows(const KroneckerRun &run) {
  __shared__ float partial[kWarpsPerBlock][K::kRows];
  __shared__ DoraFactors factors[K::kRows];
  const int index = find_entry(run.tiles.first, run.tiles.count, blockIdx.x);
  const KroneckerTarget &target = run.targets[index];
  const Work<K> work{run, target, tile_at<K>(target, static_cast<int>(blockIdx.x - run.tiles.first[index]))};
  const int thread = static_cast<int>(threadIdx.x), begin = thread * kVector;
  const float m = work.multiplier(0);
  if (m == 0.0f) {
    for (int x = begin; x < target.columns; x += kThreads * kVector)
      if (run.op == ops::WeightOp::kDiff || target.base_dtype != target.out_dtype)
        work.keep(x);
      else if (target.base != target.out)
        work.copy(x);
    return;
  }
  const float v = static_cast<float>(dora_coefficients(target.dora.rule, m).v);
  float squares[K::kRows] = {};
  for (int x = begin; x < target.columns; x += kThreads * kVector) work.add_squares(squares, v, x);
#pragma unroll
  for (int j = 0; j < K::kRows; ++j) {
    const float sum = sum_of_warp(squares[j]);
    if (thread % 32 == 0) partial[thread / 32][j] = sum;
  }
  __syncthreads();
  if (thread < work.tile.count) {
    double sum = 0.0;
    for (int warp = 0; warp < kWarpsPerBlock; ++warp) sum += static_cast<double>(partial[warp][thread]);
    factors[thread] = dora_factors(target.dora, m, static_cast<int>(work.row(thread)), sum);
  }
  __syncthreads();
  for (int x = begin; x < target.columns; x += kThreads * kVector) work.merge_dora(factors, x);
}

template <typename K>
__global__ void __launch_bounds__(kThreads, 3) kronecker_kernel(const __grid_constant__ KroneckerRun run) {
  if constexpr (K::kDora)
    merge_rows<K>(run);
  else
    merge_tile<K>(run);
}

using Kernel = void (*)(KroneckerRun);

template <int... kIndex>
const void *kernel_at(int index, std::integer_sequence<int, kIndex...>) {
  constexpr Kernel kKernels[] = {kronecker_kernel<Kind<kIndex>>...};
  return reinterpret_cast<const void *>(kKernels[index]);
}

}  // namespace

cudaError_t launch_kronecker(KroneckerKind kind, const KroneckerRun &run, cudaStream_t stream) {
  const std::uint32_t warps = kind.dora ? kWarpsPerBlock : 1;  // for each tile
  const unsigned blocks = (run.tiles.pieces * warps + kWarpsPerBlock - 1) / kWarpsPerBlock;
  void *arguments[] = {const_cast<KroneckerRun *>(&run)};
  return cudaLaunchKernel(kernel_at(index_of(kind), std::make_integer_sequence<int, kKroneckerKinds>()), dim3(blocks),
                          dim3(kThreads), arguments, 0, stream);
}

}  // namespace lyc::cuda
