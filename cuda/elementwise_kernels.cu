// out[y, x] = round(base[y, x] + sum over terms of s * left[y / n, x / k] * right[y % n, x % k] [* base[y, x]])
//
// for weights whose rows are contiguous. Halves that are products have been multiplied into the workspace before; a
// half that is absent is 1.
//
// Work.     A thread takes eight columns, so one element of the left half and one vector of the right one make all of
//           them, and as many rows at a time as let the loads overlap. Rows of a tile lie n apart where the left half
//           has enough rows: then the vector of the right half serves all of them.
// Traffic.  base read once, out written once, 16 bytes per thread and access: bound by DRAM. The right half of a
//           Kronecker product is as large as the weight over the left half's elements and comes from L2.
// DoRA.     A block takes a few whole rows: sums of squares first, then the rows again, which the caches still hold.
//           Sums go by lanes, then by warps, in an order that depends on shapes alone.
#include <utility>

#include "device.cuh"
#include "elementwise_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kThreads = kWarpsPerBlock * 32;
constexpr int kVector = kElementwiseVector;

template <int kIndex>
struct Kind {
  static constexpr bool kWide = elementwise_kind(kIndex).wide;
  static constexpr bool kDora = elementwise_kind(kIndex).dora;
  static constexpr int kBatch = kWide || kDora ? 4 : 8;  // rows whose loads are under way together
  static constexpr int kRows = tile_rows(elementwise_kind(kIndex));
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

/// Eight neighbours in each of `kCount` rows of a right half, all of them under way together.
template <int kCount>
__device__ void load_right(const void *data, lyc_dtype dtype, const std::int64_t (&offset)[kCount],
                           float (&value)[kCount][kVector]) {
  const bool wide = dtype == LYC_DTYPE_F32;
  uint4 low[kCount], high[kCount];
#pragma unroll
  for (int j = 0; j < kCount; ++j) low[j] = __ldg(reinterpret_cast<const uint4 *>(address_of(data, dtype, offset[j])));
  if (wide) {
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      high[j] = __ldg(reinterpret_cast<const uint4 *>(address_of(data, dtype, offset[j])) + 1);
  }
  with_type<true>(dtype, [&](auto type) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const std::uint32_t word[] = {low[j].x, low[j].y, low[j].z, low[j].w, high[j].x, high[j].y, high[j].z, high[j].w};
#pragma unroll
      for (int i = 0; i < kVector; i += 2) {
        const float2 two = type.get(word, i / 2);
        value[j][i] = two.x, value[j][i + 1] = two.y;
      }
    }
  });
}

/// The rows of a tile: `count` of them, `step` apart.
struct Tile {
  int first, step, count;
};

template <typename K>
__device__ Tile tile_at(const ElementwiseTarget &target, int number) {
  const int blocks = target.rows / target.step, block = number / target.step * K::kRows;
  return {block * target.step + number % target.step, target.step, min(K::kRows, blocks - block)};
}

/// What a warp works on.
template <typename K>
struct Work {
  const ElementwiseRun &run;
  const ElementwiseTarget &target;
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
  __device__ void add_term(Rows<K> &rows, const Packed<K> (&packed)[K::kBatch], const ElementwiseTerm &term,
                           float weight, int begin, int x) const {
    const int first = tile.first + begin * tile.step, last = tile.count - 1 - begin;
    if (tile.step % term.right_rows == 0) {  // all rows meet one row of the right half
      float factor[K::kBatch];
      load_left(factor, term, weight, first / term.right_rows, tile.step / term.right_rows, last, x);
      float vector[1][kVector] = {{1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f}};
      if (term.right_dtype != LYC_DTYPE_NONE)
        load_right({first % term.right_rows * term.right_row + x % term.right_columns}, term, vector);
#pragma unroll
      for (int j = 0; j < K::kBatch; ++j) add_vector(rows.value[j], packed[j], term, factor[j], vector[0]);
      return;
    }
    constexpr int kTogether = 2;
#pragma unroll
    for (int group = 0; group < K::kBatch; group += kTogether) {
      std::int64_t offset[kTogether];
      float factor[kTogether], vector[kTogether][kVector];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int y = first + min(group + j, last) * tile.step;
        offset[j] = y % term.right_rows * term.right_row + x % term.right_columns;
        factor[j] = left_at(term, y / term.right_rows, x);
      }
      load_right(offset, term, vector);
#pragma unroll
      for (int j = 0; j < kTogether; ++j)
        add_vector(rows.value[group + j], packed[group + j], term, weight * factor[j], vector[j]);
    }
  }

  __device__ float left_at(const ElementwiseTerm &term, int y, int x) const {
    if (term.left_dtype == LYC_DTYPE_NONE) return 1.0f;
    return load_float(resolve(term.left, term.left_in_workspace, run.workspace), term.left_dtype,
                      y * term.left_row + x / term.right_columns * term.left_column);
  }

  /// `weight` times the left half's elements for rows y, y + step, ...
  __device__ void load_left(float (&factor)[K::kBatch], const ElementwiseTerm &term, float weight, int y, int step,
                            int last, int x) const {
#pragma unroll
    for (int j = 0; j < K::kBatch; ++j) factor[j] = weight;
    if (term.left_dtype == LYC_DTYPE_NONE) return;
    const void *left = resolve(term.left, term.left_in_workspace, run.workspace);
    const std::int64_t left_x = x / term.right_columns * term.left_column;
    float value[K::kBatch];
    load_floats(left, term.left_dtype, value,
                [&](int j) { return (y + min(j, last) * step) * term.left_row + left_x; });
#pragma unroll
    for (int j = 0; j < K::kBatch; ++j) factor[j] *= value[j];
  }

  template <int kCount>
  __device__ void load_right(const std::int64_t (&offset)[kCount], const ElementwiseTerm &term,
                             float (&vector)[kCount][kVector]) const {
    cuda::load_right(resolve(term.right, term.right_in_workspace, run.workspace), term.right_dtype, offset, vector);
  }

  /// `packed` is the weight's row.
  __device__ void add_vector(float (&row)[kVector], const Packed<K> &packed, const ElementwiseTerm &term, float factor,
                             const float (&vector)[kVector]) const {
    float base[kVector];
    if (term.times_base) widen<K>(packed, target.base_dtype, base);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float value = term.times_base ? factor * base[i] : factor;
      row[i] = fmaf(value, vector[i], row[i]);
    }
  }

  /// All terms; `packed` is the weight.
  __device__ void add_terms(Rows<K> &rows, const Packed<K> (&packed)[K::kBatch], int begin, int x) const {
    for (int t = 0; t < target.term_count; ++t) {
      const ElementwiseTerm &term = run.terms[target.first_term + t];
      const float m = K::kDora ? 1.0f : multiplier(t), sign = run.op == ops::WeightOp::kUnmerge ? -1.0f : 1.0f;
      if (m == 0.0f) continue;
      const float weight = sign * m * term.coefficient * element(term.scalar, 0);
      add_term(rows, packed, term, weight, begin, x);
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
      if (run.op != ops::WeightOp::kDiff || target.reads_base) load(packed, begin, x);
      Rows<K> rows = {};
      add_terms(rows, packed, begin, x);
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
      add_terms(delta, packed, begin, x);
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
__device__ void merge_tile(const ElementwiseRun &run) {
  const std::uint32_t number = blockIdx.x * kWarpsPerBlock + threadIdx.x / 32;
  if (number >= run.tiles.pieces) return;
  const int index = find_entry(run.tiles.first, run.tiles.count, number);
  const ElementwiseTarget &target = run.targets[index];
  const int strips = (target.columns + kElementwiseColumns - 1) / kElementwiseColumns;
  const int local = static_cast<int>(number - run.tiles.first[index]);
  const int x = local % strips * kElementwiseColumns + static_cast<int>(threadIdx.x % 32) * kVector;
  if (x >= target.columns) return;
  const Work<K> work{run, target, tile_at<K>(target, local / strips)};
  if (run.op == ops::WeightOp::kDiff || target.base_dtype != target.out_dtype || !work.idle())
    work.merge(x);
  else if (target.base != target.out)
    work.copy(x);
}

/// A few whole rows for each block.
template <typename K>
__device__ void merge_rows(const ElementwiseRun &run) {
  __shared__ float partial[kWarpsPerBlock][K::kRows];
  __shared__ DoraFactors factors[K::kRows];
  const int index = find_entry(run.tiles.first, run.tiles.count, blockIdx.x);
  const ElementwiseTarget &target = run.targets[index];
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
__global__ void __launch_bounds__(kThreads, 3) elementwise_kernel(const __grid_constant__ ElementwiseRun run) {
  begin_kernel();
  if constexpr (K::kDora)
    merge_rows<K>(run);
  else
    merge_tile<K>(run);
}

using Kernel = void (*)(ElementwiseRun);

template <int... kIndex>
const void *kernel_at(int index, std::integer_sequence<int, kIndex...>) {
  constexpr Kernel kKernels[] = {elementwise_kernel<Kind<kIndex>>...};
  return reinterpret_cast<const void *>(kKernels[index]);
}

}  // namespace

cudaError_t launch_elementwise(ElementwiseKind kind, const ElementwiseRun &run, const Launch &on) {
  const std::uint32_t warps = kind.dora ? kWarpsPerBlock : 1;  // for each tile
  const unsigned blocks = (run.tiles.pieces * warps + kWarpsPerBlock - 1) / kWarpsPerBlock;
  void *arguments[] = {const_cast<ElementwiseRun *>(&run)};
  const void *kernel = kernel_at(index_of(kind), std::make_integer_sequence<int, kElementwiseKinds>());
  return launch_kernel(kernel, blocks, kThreads, 0, on, arguments);
}

}  // namespace lyc::cuda
