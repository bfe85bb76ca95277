// out[y, x] = round(base[y, x] + weight * left[y / n, x / k] * right[y % n, x % k] [* base[y, x]])
//
// for one weight of contiguous rows that is alone in its batch: what the elementwise kernels compute, with all that is
// known of it decided when it is launched.
//
// Work.     A thread takes one vector of 16 bytes and ends; of a difference two, since the device cannot start blocks as
//           fast as they would be done with one.
// Traffic.  base read once, out written once, in the order of memory: bound by DRAM, 3 to 5 % above the floor where the
//           weight is large. For that the instructions must be few, since the shorter a warp's way from its first load to
//           its store, the more bytes are under way. Hints for the caches cost 2 %.
#include <type_traits>

#include "base/dtype.hpp"
#include "device.cuh"
#include "flat_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kThreads = 256;
/// Vectors that a thread takes, and blocks that a multiprocessor holds.
__host__ __device__ constexpr int vectors_of(bool merges) { return merges ? 1 : 2; }
constexpr int blocks_of(bool merges) { return merges ? 8 : 5; }

/// A launch's parameters: offsets are bytes, columns are counted in vectors.
struct Flat {
  const char *base, *left, *right;  // of a half that is absent: null
  char *out;
  std::int32_t base_row, out_row;
  Divisor row_vectors, right_rows, right_vectors;
  std::int32_t vectors;
  std::int32_t left_row, left_column;  // elements
  std::int32_t right_row, right_step;
  std::int32_t wide_right;         // float32 beside a weight of 16 bits
  const float *device_multiplier;  // or null, and `multiplier` holds
  float multiplier, coefficient;
  Vector scalar;
};

struct Words {
  std::uint32_t word[4];
};

__device__ inline Words words(uint4 v) { return {{v.x, v.y, v.z, v.w}}; }
__device__ inline Words load_words(const char *from) { return words(load_vector(reinterpret_cast<const uint4 *>(from))); }
__device__ inline Words load_factors(const char *from) { return words(__ldg(reinterpret_cast<const uint4 *>(from))); }
__device__ inline void store_words(char *to, const Words &w) {
  store_vector(reinterpret_cast<uint4 *>(to), make_uint4(w.word[0], w.word[1], w.word[2], w.word[3]));
}

/// A vector in a matrix.
__device__ inline const char *vector_at(const char *data, int row, int step, int y, int x) {
  return data + std::int64_t{y} * row + std::int64_t{x} * step;
}

__device__ inline float weight_of(const Flat &flat) {
  const float multiplier = flat.device_multiplier ? *flat.device_multiplier : flat.multiplier;
  return multiplier == 0.0f ? 0.0f : multiplier * flat.coefficient * element(flat.scalar, 0);
}

/// Vectors that lie `kStep` apart: all of their loads first.
template <typename Type, bool kMerges, bool kTimesBase, int kVectors, int kStep>
__device__ void merge_vectors(const Flat &flat, int first) {
  constexpr int kPairs = std::is_same_v<Type, F32> ? 2 : 4;
  constexpr bool kReads = kMerges || kTimesBase;
  Words packed[kVectors] = {}, right[kVectors] = {}, more[kVectors] = {};
  float left[kVectors];
  char *out[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int number = min(first + v * kStep, flat.vectors - 1);
    const int y = divide(number, flat.row_vectors), x = number - y * static_cast<int>(flat.row_vectors.value);
    if (kReads) packed[v] = load_words(vector_at(flat.base, flat.base_row, 16, y, x));
    out[v] = const_cast<char *>(vector_at(flat.out, flat.out_row, 16, y, x));
    const int left_y = divide(y, flat.right_rows), left_x = divide(x, flat.right_vectors);
    left[v] = 1.0f;
    if (flat.left) left[v] = Type::load(flat.left, left_y * flat.left_row + left_x * flat.left_column);
    if (!flat.right) continue;
    const int right_y = y - left_y * static_cast<int>(flat.right_rows.value);
    const int right_x = x - left_x * static_cast<int>(flat.right_vectors.value);
    const char *from = vector_at(flat.right, flat.right_row, flat.right_step, right_y, right_x);
    right[v] = load_factors(from);
    if (flat.wide_right) more[v] = load_factors(from + 16);
  }
  const float weight = weight_of(flat);
  const auto change = [&](auto right_at) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const float2 base = Type::get(packed[v].word, i), factor = right_at(v, i);
        float2 value = make_float2(weight * left[v] * factor.x, weight * left[v] * factor.y);
        if (kTimesBase) value = make_float2(value.x * base.x, value.y * base.y);
        if (kMerges) value = make_float2(base.x + value.x, base.y + value.y);
        Type::put(packed[v].word, i, value);
      }
  };
  if (weight == 0.0f)  // then a merge keeps the weight bit for bit
    for (int v = 0; v < kVectors; ++v) packed[v] = kMerges ? packed[v] : Words{};
  else if (!flat.right)
    change([](int, int) { return make_float2(1.0f, 1.0f); });
  else if (flat.wide_right)
    change([&](int v, int i) { return F32::get(i < 2 ? right[v].word : more[v].word, i % 2); });
  else
    change([&](int v, int i) { return Type::get(right[v].word, i); });
#pragma unroll
  for (int v = 0; v < kVectors; ++v)
    if (first + v * kStep < flat.vectors) store_words(out[v], packed[v]);
}

template <typename Type, bool kMerges, bool kTimesBase>
__global__ void __launch_bounds__(kThreads, blocks_of(kMerges)) flat_kernel(const __grid_constant__ Flat flat) {
  begin_kernel();
  constexpr int kVectors = vectors_of(kMerges);
  const auto first = static_cast<int>(blockIdx.x * kVectors * kThreads + threadIdx.x);
  if (first < flat.vectors) merge_vectors<Type, kMerges, kTimesBase, kVectors, kThreads>(flat, first);
}

using Kernel = void (*)(Flat);

/// By what decides how a vector is computed.
template <typename Type>
Kernel kernel_for(bool merges, bool times_base) {
  if (merges) return times_base ? flat_kernel<Type, true, true> : flat_kernel<Type, true, false>;
  return times_base ? flat_kernel<Type, false, true> : flat_kernel<Type, false, false>;
}

const char *find(const void *data, lyc_dtype dtype, int in_workspace, const char *workspace) {
  if (dtype == LYC_DTYPE_NONE) return nullptr;
  return in_workspace ? workspace + reinterpret_cast<std::uintptr_t>(data) : static_cast<const char *>(data);
}

}  // namespace

cudaError_t launch_flat(const FlatTarget &target, ops::WeightOp op, const Multipliers &multipliers,
                        const char *workspace, const Launch &on) {
  const ElementwiseTarget &weight = target.weight;
  const ElementwiseTerm &term = target.term;
  const bool merges = op != ops::WeightOp::kDiff, times_base = term.times_base != 0;
  Flat flat{};
  flat.base = static_cast<const char *>(weight.base);
  flat.out = static_cast<char *>(weight.out);
  flat.left = find(term.left, term.left_dtype, term.left_in_workspace, workspace);
  flat.right = find(term.right, term.right_dtype, term.right_in_workspace, workspace);
  flat.base_row = weight.base_row, flat.out_row = weight.out_row;
  flat.row_vectors = weight.row_vectors, flat.right_rows = term.right_rows, flat.right_vectors = target.right_vectors;
  flat.vectors = target.vectors;
  const auto size = static_cast<std::int32_t>(dtype_size(weight.out_dtype));
  flat.left_row = term.left_row / size, flat.left_column = term.left_column / size;
  flat.right_row = term.right_row;
  flat.wide_right = term.right_dtype == LYC_DTYPE_F32 && weight.out_dtype != LYC_DTYPE_F32;
  flat.right_step = flat.wide_right ? 32 : 16;
  if (multipliers.device)
    flat.device_multiplier = multipliers.device + term.multiplier_index;
  else
    flat.multiplier = multipliers.values[term.multiplier_index];
  flat.coefficient = op == ops::WeightOp::kUnmerge ? -term.coefficient : term.coefficient;
  flat.scalar = term.scalar;
  const Kernel kernel = weight.out_dtype == LYC_DTYPE_F32    ? kernel_for<F32>(merges, times_base)
                        : weight.out_dtype == LYC_DTYPE_BF16 ? kernel_for<Bf16>(merges, times_base)
                                                             : kernel_for<F16>(merges, times_base);
  const int block = vectors_of(merges) * kThreads;
  return launch_kernel(kernel, static_cast<unsigned>((target.vectors - 1) / block + 1), kThreads, on, flat);
}

}  // namespace lyc::cuda
