// out[y, x] = round(base[y, x] + sum over terms of s * left[y / n, x / k] * right[y % n, x % k] [* base[y, x]])
//
// for weights whose rows are contiguous. Halves that are products have been multiplied into the workspace before; a
// half that is absent is 1.
//
// Work.     A thread takes 16 bytes of four rows that lie n apart, so one vector of the right half and four elements of
//           the left one make all of them. Threads and blocks follow memory: a block takes 4 KB in four places and
//           ends, the next one goes on from there.
// Traffic.  base read once, out written once: bound by DRAM, which likes that order. Finding its way costs a thread as
//           many instructions as two vectors' arithmetic; with one vector a thread it would be bound by them. The right
//           half of a Kronecker product, as large as the weight over the left half's elements, comes from the caches.
// DoRA.     A block takes a few whole rows: sums of squares first, then the rows again, which the caches still hold.
//           Sums go by lanes, then by warps, in an order that depends on shapes alone.
#include <utility>

#include "device.cuh"
#include "elementwise_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kDoraThreads = 128, kDoraWarps = kDoraThreads / 32;
constexpr int kBatch = kElementwiseRows;  // rows whose loads are under way together
constexpr int kRows = kElementwiseDoraRows;

template <int kIndex>
struct Kind {
  static constexpr bool kWide = elementwise_kind(kIndex).wide;
  static constexpr bool kDora = elementwise_kind(kIndex).dora;
  static constexpr int kVector = elementwise_vector(elementwise_kind(kIndex));
  static constexpr int kThreads = kDora ? kDoraThreads : kElementwiseThreads, kBlocks = 3;
};

/// A thread's columns in some rows.
template <typename K>
struct Rows {
  float value[kBatch][K::kVector];
};

/// As they are in memory: 16 bytes, or 8 where they are narrower than others of their kind.
struct Packed {
  std::uint32_t word[4];
};

template <typename K>
__device__ bool takes_16_bytes(lyc_dtype dtype) {
  return !K::kWide || dtype == LYC_DTYPE_F32;
}

__device__ inline int size_of(lyc_dtype dtype) { return dtype == LYC_DTYPE_F32 ? 4 : 2; }

/// Rows in bytes.
__device__ inline const char *address_at(const void *data, lyc_dtype dtype, int row, int y, int x) {
  return static_cast<const char *>(data) + std::int64_t{y} * row + std::int64_t{x} * size_of(dtype);
}

template <typename K>
__device__ Packed load_packed(const ElementwiseTarget &target, int y, int x) {
  const lyc_dtype dtype = target.base_dtype;
  const char *from = address_at(target.base, dtype, target.base_row, y, x);
  if (takes_16_bytes<K>(dtype)) {
    const uint4 v = load_streaming(reinterpret_cast<const uint4 *>(from));
    return {{v.x, v.y, v.z, v.w}};
  }
  const uint2 v = load_streaming(reinterpret_cast<const uint2 *>(from));
  return {{v.x, v.y, 0, 0}};
}

template <typename K>
__device__ void store_packed(const Packed &packed, const ElementwiseTarget &target, int y, int x) {
  const lyc_dtype dtype = target.out_dtype;
  char *to = const_cast<char *>(address_at(target.out, dtype, target.out_row, y, x));
  if (takes_16_bytes<K>(dtype))
    store_streaming(reinterpret_cast<uint4 *>(to),
                    make_uint4(packed.word[0], packed.word[1], packed.word[2], packed.word[3]));
  else
    store_streaming(reinterpret_cast<uint2 *>(to), make_uint2(packed.word[0], packed.word[1]));
}

template <typename K>
__device__ void widen(const Packed &packed, lyc_dtype dtype, float (&value)[K::kVector]) {
  with_type<K::kWide>(dtype, [&](auto type) {
#pragma unroll
    for (int i = 0; i < K::kVector; i += 2) {
      const float2 two = type.get(packed.word, i / 2);
      value[i] = two.x, value[i + 1] = two.y;
    }
  });
}

template <typename K>
__device__ Packed round_to(const float (&value)[K::kVector], lyc_dtype dtype) {
  Packed packed = {};
  with_type<K::kWide>(dtype, [&](auto type) {
#pragma unroll
    for (int i = 0; i < K::kVector; i += 2) type.put(packed.word, i / 2, make_float2(value[i], value[i + 1]));
  });
  return packed;
}

/// Neighbours in a row of a right half as they are in memory, so that nothing waits for them yet.
template <typename K>
struct Right {
  std::uint32_t word[K::kVector];
  lyc_dtype dtype;

  /// `step` bytes apart.
  __device__ void load(const char *from, lyc_dtype type, int step) {
    dtype = type;
    if (step != size_of(type)) return gather(from, step);
    if (type == LYC_DTYPE_F32) {
#pragma unroll
      for (int i = 0; i < K::kVector / 4; ++i) take(__ldg(reinterpret_cast<const uint4 *>(from) + i), 4 * i);
    } else if constexpr (K::kVector == 8) {
      take(__ldg(reinterpret_cast<const uint4 *>(from)), 0);
    } else {
      const uint2 v = __ldg(reinterpret_cast<const uint2 *>(from));
      word[0] = v.x, word[1] = v.y;
    }
  }

  __device__ void widen(float (&value)[K::kVector]) const {
    with_type<true>(dtype, [&](auto type) {
#pragma unroll
      for (int i = 0; i < K::kVector; i += 2) {
        const float2 two = type.get(word, i / 2);
        value[i] = two.x, value[i + 1] = two.y;
      }
    });
  }

 private:
  __device__ void take(uint4 v, int at) { word[at] = v.x, word[at + 1] = v.y, word[at + 2] = v.z, word[at + 3] = v.w; }

  __device__ void gather(const char *from, int step) {
    if (dtype == LYC_DTYPE_F32) {
#pragma unroll
      for (int i = 0; i < K::kVector; ++i) word[i] = __ldg(reinterpret_cast<const std::uint32_t *>(from + i * step));
      return;
    }
    const auto half = [&](int i) -> std::uint32_t {
      return __ldg(reinterpret_cast<const std::uint16_t *>(from + i * step));
    };
#pragma unroll
    for (int i = 0; i < K::kVector; i += 2) word[i / 2] = half(i) | half(i + 1) << 16;
  }
};

/// An element that is to be widened later. Two loads, not one or the other, which would wait for each other.
__device__ inline std::uint32_t load_bits(const char *from, lyc_dtype dtype) {
  const auto *half = reinterpret_cast<const std::uint16_t *>(from);
  const std::uint32_t low = __ldg(half);
  std::uint32_t high = 0;
  if (dtype == LYC_DTYPE_F32) high = __ldg(half + 1);
  return low | high << 16;
}

__device__ inline float weight_of(const ElementwiseRun &run, const ElementwiseTerm &term) {
  const float multiplier = multiplier_at(run.multipliers, term.multiplier_index);
  if (multiplier == 0.0f) return 0.0f;
  const float weight = multiplier * term.coefficient * element(term.scalar, 0);
  return run.op == ops::WeightOp::kUnmerge ? -weight : weight;
}

// -- terms ------------------------------------------------------------------------------------------------------------

/// What belongs to row y and column x in the halves of a term.
struct HalfPlaces {
  const char *left, *right;

  __device__ HalfPlaces(const ElementwiseTerm &term, const char *workspace, int y, int x) {
    const int left_y = divide(y, term.right_rows), left_x = divide(x, term.right_columns);
    const int right_y = y - left_y * static_cast<int>(term.right_rows.value);
    const int right_x = x - left_x * static_cast<int>(term.right_columns.value);
    const auto at = [&](const void *half, int in_workspace, int row, int i, int column, int j) {
      const void *data = resolve(half, in_workspace, workspace);
      return static_cast<const char *>(data) + std::int64_t{i} * row + std::int64_t{j} * column;
    };
    left = at(term.left, term.left_in_workspace, term.left_row, left_y, term.left_column, left_x);
    right = at(term.right, term.right_in_workspace, term.right_row, right_y, term.right_column, right_x);
  }
};

/// sum += weight * term at row y, columns from x on; `packed` is the weight.
template <typename K>
__device__ void add_term(float (&sum)[K::kVector], const ElementwiseTerm &term, float weight, const Packed &packed,
                         lyc_dtype base_dtype, const char *workspace, int y, int x) {
  const HalfPlaces at(term, workspace, y, x);
  std::uint32_t left = 0;
  Right<K> right;
  if (term.left_dtype != LYC_DTYPE_NONE) left = load_bits(at.left, term.left_dtype);
  if (term.right_dtype != LYC_DTYPE_NONE) right.load(at.right, term.right_dtype, term.right_column);
  if (term.left_dtype != LYC_DTYPE_NONE) weight *= to_float(left, term.left_dtype);
  float factor[K::kVector];
#pragma unroll
  for (int i = 0; i < K::kVector; ++i) factor[i] = 1.0f;
  if (term.right_dtype != LYC_DTYPE_NONE) right.widen(factor);
  if (term.times_base) {
    float base[K::kVector];
    widen<K>(packed, base_dtype, base);
#pragma unroll
    for (int i = 0; i < K::kVector; ++i) factor[i] *= base[i];
  }
#pragma unroll
  for (int i = 0; i < K::kVector; ++i) sum[i] = fmaf(weight, factor[i], sum[i]);
}

/// Some rows, `step` apart.
struct Lines {
  int first, step, count;

  __device__ int row(int index) const { return first + index * step; }
};

template <typename K>
__device__ void load_lines(Packed (&packed)[kBatch], const ElementwiseTarget &target, const Lines &lines, int x) {
#pragma unroll
  for (int j = 0; j < kBatch; ++j)
    if (j < lines.count) packed[j] = load_packed<K>(target, lines.row(j), x);
}

/// A term on lines that meet one row of its right half.
template <typename K>
struct TermOfLines {
  float left[kBatch], right[K::kVector];

  __device__ TermOfLines(const ElementwiseTerm &term, const char *workspace, const Lines &lines, int x) {
    const HalfPlaces at(term, workspace, lines.first, x);
    Right<K> words;
    if (term.right_dtype != LYC_DTYPE_NONE) words.load(at.right, term.right_dtype, term.right_column);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) left[j] = 1.0f;
    if (term.left_dtype != LYC_DTYPE_NONE) {
      const int step = divide(lines.step, term.right_rows) * term.left_row / size_of(term.left_dtype);
      load_floats(at.left, term.left_dtype, left, [&](int j) { return std::int64_t{min(j, lines.count - 1)} * step; });
    }
#pragma unroll
    for (int i = 0; i < K::kVector; ++i) right[i] = 1.0f;
    if (term.right_dtype != LYC_DTYPE_NONE) words.widen(right);
  }
};

// -- merging ----------------------------------------------------------------------------------------------------------

/// The weight is under way while the term is computed; without a multiplier it stays bit for bit.
template <typename K>
__device__ void merge_together(const ElementwiseRun &run, const ElementwiseTarget &target, const ElementwiseTerm &term,
                               const Lines &lines, int x) {
  const float weight = weight_of(run, term);  // before there is anything else to wait for
  const bool merges = run.op != ops::WeightOp::kDiff, times_base = term.times_base != 0;
  Packed packed[kBatch] = {};
  if (merges || times_base) load_lines<K>(packed, target, lines, x);
  if (weight != 0.0f) {
    const TermOfLines<K> of_lines(term, run.workspace, lines, x);
    with_type<K::kWide>(target.out_dtype, [&](auto type) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const float factor = weight * of_lines.left[j];
#pragma unroll
        for (int i = 0; i < K::kVector; i += 2) {
          const float2 base = type.get(packed[j].word, i / 2);
          float2 change = make_float2(factor * of_lines.right[i], factor * of_lines.right[i + 1]);
          if (times_base) change = make_float2(change.x * base.x, change.y * base.y);
          type.put(packed[j].word, i / 2,
                   merges ? make_float2(base.x + change.x, base.y + change.y) : make_float2(change.x, change.y));
        }
      }
    });
  } else if (!merges) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) packed[j] = {};
  }
#pragma unroll
  for (int j = 0; j < kBatch; ++j)
    if (j < lines.count) store_packed<K>(packed[j], target, lines.row(j), x);
}

/// Any terms on a vector of row y.
template <typename K>
__device__ void merge_line(const ElementwiseRun &run, const ElementwiseTarget &target, const ElementwiseTerm *terms,
                           int y, int x) {
  const bool merges = run.op != ops::WeightOp::kDiff;
  Packed packed = {};
  if (merges || target.reads_base) packed = load_packed<K>(target, y, x);
  float sum[K::kVector] = {};
  bool changed = false;
  for (int t = 0; t < target.term_count; ++t) {
    const float weight = weight_of(run, terms[t]);
    if (weight == 0.0f) continue;
    changed = true;
    add_term<K>(sum, terms[t], weight, packed, target.base_dtype, run.workspace, y, x);
  }
  if (changed || !merges || target.base_dtype != target.out_dtype) {
    if (merges) {
      float base[K::kVector];
      widen<K>(packed, target.base_dtype, base);
#pragma unroll
      for (int i = 0; i < K::kVector; ++i) sum[i] += base[i];
    }
    packed = round_to<K>(sum, target.out_dtype);
  }
  store_packed<K>(packed, target, y, x);
}

/// What a block does with a target: a few lines of one vector for each thread.
template <typename K>
__device__ void merge_target(const ElementwiseRun &run, const ElementwiseTarget &target, const ElementwiseTerm *terms,
                             std::uint32_t block) {
  const int number = static_cast<int>(block * K::kThreads + threadIdx.x);
  if (number >= target.threads) return;
  const int line = divide(number, target.row_vectors), set = divide(line, target.step);
  const int x = (number - line * static_cast<int>(target.row_vectors.value)) * K::kVector;
  const int step = static_cast<int>(target.step.value), first = line + set * (kBatch - 1) * step;
  const Lines lines{first, step, min(kBatch, divide(target.rows - first + step - 1, target.step))};
  if (target.together) return merge_together<K>(run, target, *terms, lines, x);
  for (int j = 0; j < lines.count; ++j) merge_line<K>(run, target, terms, lines.row(j), x);
}

template <typename K>
__device__ void merge_targets(const ElementwiseRun &run) {
  const int index = find_entry(run.tiles.first, run.tiles.count, blockIdx.x);
  const ElementwiseTarget target = run.targets[index];
  const std::uint32_t first = (blockIdx.x - run.tiles.first[index]) * kElementwisePieces;
  for (std::uint32_t piece = 0; piece < kElementwisePieces; ++piece)
    merge_target<K>(run, target, run.terms + target.first_term, first + piece);
}

// -- DoRA -------------------------------------------------------------------------------------------------------------

template <typename K>
__device__ Lines lines_of_block(const ElementwiseTarget &target, int number) {
  const int step = static_cast<int>(target.step.value), blocks = target.rows / step, block = number / step * kRows;
  return {block * step + number % step, step, min(kRows, blocks - block)};
}

/// What a block works on.
template <typename K>
struct Work {
  const ElementwiseRun &run;
  const ElementwiseTarget &target;
  Lines tile;

  __device__ Lines batch(int begin) const { return {tile.row(begin), tile.step, min(kBatch, tile.count - begin)}; }

  __device__ Rows<K> widened(const Packed (&packed)[kBatch]) const {
    Rows<K> rows;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) widen<K>(packed[j], target.base_dtype, rows.value[j]);
    return rows;
  }

  __device__ void store(const Rows<K> &rows, int begin, int x) const {
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
      if (begin + j < tile.count)
        store_packed<K>(round_to<K>(rows.value[j], target.out_dtype), target, tile.row(begin + j), x);
  }

  /// Without multipliers.
  __device__ void add_terms(Rows<K> &rows, const Packed (&packed)[kBatch], const Lines &lines, int x) const {
    for (int t = 0; t < target.term_count; ++t) {
      const ElementwiseTerm &term = run.terms[target.first_term + t];
      const float weight = term.coefficient * element(term.scalar, 0);
      if (target.together)
        add_together(rows, packed, term, weight, lines, x);
      else
#pragma unroll
        for (int j = 0; j < kBatch; ++j)
          if (j < lines.count)
            add_term<K>(rows.value[j], term, weight, packed[j], target.base_dtype, run.workspace, lines.row(j), x);
    }
  }

  __device__ void add_together(Rows<K> &rows, const Packed (&packed)[kBatch], const ElementwiseTerm &term, float weight,
                               const Lines &lines, int x) const {
    const TermOfLines<K> of_lines(term, run.workspace, lines, x);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      float base[K::kVector];
      if (term.times_base) widen<K>(packed[j], target.base_dtype, base);
#pragma unroll
      for (int i = 0; i < K::kVector; ++i)
        rows.value[j][i] = fmaf(weight * of_lines.left[j],
                                term.times_base ? of_lines.right[i] * base[i] : of_lines.right[i], rows.value[j][i]);
    }
  }

  /// Call with the weight and the delta.
  template <typename Visit>
  __device__ void visit(int x, Visit visit) const {
#pragma unroll
    for (int begin = 0; begin < kRows; begin += kBatch) {
      if (begin >= tile.count) break;
      Packed packed[kBatch] = {};
      const Lines lines = batch(begin);
      load_lines<K>(packed, target, lines, x);
      Rows<K> delta = {};
      add_terms(delta, packed, lines, x);
      visit(begin, widened(packed), delta);
    }
  }

  __device__ void add_squares(float (&squares)[kRows], float v, int x) const {
    visit(x, [&](int begin, const Rows<K> &base, const Rows<K> &delta) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
#pragma unroll
        for (int i = 0; i < K::kVector; ++i) {
          const float value = fmaf(v, delta.value[j][i], base.value[j][i]);
          squares[begin + j] = fmaf(value, value, squares[begin + j]);
        }
    });
  }

  __device__ void merge(const DoraFactors *factors, int x) const {
    const float kept = run.op == ops::WeightOp::kDiff ? 0.0f : 1.0f;
    visit(x, [&](int begin, const Rows<K> &base, Rows<K> &delta) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
#pragma unroll
        for (int i = 0; i < K::kVector; ++i) {
          const float change = dora_change(factors[begin + j], base.value[j][i], delta.value[j][i]);
          delta.value[j][i] = kept != 0.0f ? base.value[j][i] + change : change;
        }
      store(delta, begin, x);
    });
  }

  /// What the adapter does not change: bit for bit, in another type, or nothing, of a difference.
  __device__ void keep(int x) const {
    const bool same = run.op != ops::WeightOp::kDiff && target.base_dtype == target.out_dtype;
    if (same && target.base == target.out) return;
    for (int begin = 0; begin < tile.count; begin += kBatch) {
      Packed packed[kBatch] = {};
      if (run.op != ops::WeightOp::kDiff) load_lines<K>(packed, target, batch(begin), x);
      if (!same) {
        store(run.op == ops::WeightOp::kDiff ? Rows<K>{} : widened(packed), begin, x);
        continue;
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        if (begin + j < tile.count) store_packed<K>(packed[j], target, tile.row(begin + j), x);
    }
  }
};

/// A few whole rows for each block.
template <typename K>
__device__ void merge_rows(const ElementwiseRun &run) {
  __shared__ float partial[kDoraWarps][kRows];
  __shared__ DoraFactors factors[kRows];
  const int index = find_entry(run.tiles.first, run.tiles.count, blockIdx.x);
  const ElementwiseTarget &target = run.targets[index];
  const Work<K> work{run, target, lines_of_block<K>(target, static_cast<int>(blockIdx.x - run.tiles.first[index]))};
  const int thread = static_cast<int>(threadIdx.x), begin = thread * K::kVector;
  constexpr int kStep = kDoraThreads * K::kVector;
  const float m = multiplier_at(run.multipliers, run.terms[target.first_term].multiplier_index);
  if (m == 0.0f) {
    for (int x = begin; x < target.columns; x += kStep) work.keep(x);
    return;
  }
  const float v = static_cast<float>(dora_coefficients(target.dora.rule, m).v);
  float squares[kRows] = {};
  for (int x = begin; x < target.columns; x += kStep) work.add_squares(squares, v, x);
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    const float sum = sum_of_warp(squares[j]);
    if (thread % 32 == 0) partial[thread / 32][j] = sum;
  }
  __syncthreads();
  if (thread < work.tile.count) {
    double sum = 0.0;
    for (int warp = 0; warp < kDoraWarps; ++warp) sum += static_cast<double>(partial[warp][thread]);
    factors[thread] = dora_factors(target.dora, m, work.tile.row(thread), sum);
  }
  __syncthreads();
  for (int x = begin; x < target.columns; x += kStep) work.merge(factors, x);
}

template <typename K>
__global__ void __launch_bounds__(K::kThreads, K::kBlocks)
    elementwise_kernel(const __grid_constant__ ElementwiseRun run) {
  begin_kernel();
  if constexpr (K::kDora)
    merge_rows<K>(run);
  else
    merge_targets<K>(run);
}

using Kernel = void (*)(ElementwiseRun);

template <int... kIndex>
const void *kernel_at(int index, std::integer_sequence<int, kIndex...>) {
  constexpr Kernel kKernels[] = {elementwise_kernel<Kind<kIndex>>...};
  return reinterpret_cast<const void *>(kKernels[index]);
}

}  // namespace

cudaError_t launch_elementwise(ElementwiseKind kind, const ElementwiseRun &run, const Launch &on) {
  void *arguments[] = {const_cast<ElementwiseRun *>(&run)};
  const void *kernel = kernel_at(index_of(kind), std::make_integer_sequence<int, kElementwiseKinds>());
  return launch_kernel(kernel, run.tiles.pieces, kind.dora ? kDoraThreads : kElementwiseThreads, 0, on, arguments);
}

}  // namespace lyc::cuda
