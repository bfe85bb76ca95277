// What kernels share: elements, multipliers, the search for the entry that a piece of work belongs to, DoRA's factors.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "elementwise_table.hpp"
#include "launch.hpp"
#include "stream_table.hpp"
#include "term_table.hpp"
#include "weight_kernels.hpp"

namespace lyc::cuda {

/// First of all in every kernel: wait until the kernels before it have ended, and let the next one be set up.
__device__ inline void begin_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ inline float to_float(std::uint32_t bits, lyc_dtype dtype) {
  if (dtype == LYC_DTYPE_F32) return __uint_as_float(bits);
  return dtype == LYC_DTYPE_BF16 ? __uint_as_float(bits << 16)
                                 : __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

__device__ inline const char *address_of(const void *data, lyc_dtype dtype, std::int64_t offset) {
  return static_cast<const char *>(data) + (offset << (dtype == LYC_DTYPE_F32 ? 2 : 1));
}

/// An element of what no kernel of this launch writes.
__device__ inline float load_float(const void *data, lyc_dtype dtype, std::int64_t offset) {
  if (dtype == LYC_DTYPE_F32) return __ldg(static_cast<const float *>(data) + offset);
  return to_float(__ldg(static_cast<const unsigned short *>(data) + offset), dtype);
}

/// An element that is to be widened later. Two loads, not one or the other, which would wait for each other.
__device__ inline std::uint32_t load_bits(const char *from, lyc_dtype dtype) {
  const auto *half = reinterpret_cast<const std::uint16_t *>(from);
  const std::uint32_t low = __ldg(half);
  std::uint32_t high = 0;
  if (dtype == LYC_DTYPE_F32) high = __ldg(half + 1);
  return low | high << 16;
}

/// Of a vector that may be absent.
__device__ inline float element(const Vector &vector, std::int64_t index) {
  return vector.data ? load_float(vector.data, vector.dtype, index * vector.stride) : 1.0f;
}

__device__ inline const void *resolve(const void *data, int in_workspace, const char *workspace) {
  return in_workspace ? workspace + reinterpret_cast<std::uintptr_t>(data) : data;
}

__device__ inline int divide(int n, const Divisor &by) {
  const auto number = static_cast<std::uint32_t>(n);
  return static_cast<int>((number + __umulhi(number, by.magic)) >> by.shift);
}

__device__ inline float multiplier_at(const Multipliers &multipliers, int index) {
  return multipliers.device ? multipliers.device[index] : multipliers.values[index];
}

/// The last of `count` entries whose first piece is not behind `piece`. Called by whole warps.
__device__ inline int find_entry(const std::uint32_t *first_piece, int count, std::uint32_t piece) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int first = 0;
  while (count > 1) {
    const int stride = (count + 31) / 32, probe = lane * stride;
    const bool reached = probe < count && first_piece[first + probe] <= piece;
    const int last = (__popc(__ballot_sync(~0u, reached)) - 1) * stride;
    first += last;
    count = min(stride, count - last);
  }
  return first;
}

// -- DoRA -------------------------------------------------------------------------------------------------------------

/// What a rule takes of V, of the weight and of the delta, as in ops/weight.hpp.
struct DoraCoefficients {
  double v, a, b, c;
};

__device__ inline DoraCoefficients dora_coefficients(ops::DoraRule rule, double m) {
  if (rule == ops::DoraRule::kInterpolate) return {1.0, 0.0, m, m};
  if (rule == ops::DoraRule::kLycoris) return {1.0, 1.0 - m, m, 1.0};
  return {m, 0.0, 1.0, 1.0};
}

/// One over the norm of V along a line, from the sum of squares.
__device__ inline double dora_inverse(const DoraParameters &dora, double squares) {
  return 1.0 / (sqrt(squares) + (dora.rule == ops::DoraRule::kPeft ? 0.0 : static_cast<double>(dora.epsilon)));
}

/// From that and the magnitude that the line is to have.
__device__ inline DoraFactors dora_factors_of(ops::DoraRule of, float m, float magnitude, double inverse) {
  const DoraCoefficients rule = dora_coefficients(of, m);
  const double blend = rule.a + rule.b * static_cast<double>(magnitude) * inverse;
  const bool cancels = fabs(blend) > 4.0 * fabs(rule.c);
  return {static_cast<float>(blend), static_cast<float>(cancels ? -rule.c : blend - rule.c), static_cast<float>(rule.v),
          cancels ? 1.0f : 0.0f};
}

/// From the sum of squares of V along a line and the magnitude that it is to have.
__device__ inline DoraFactors dora_factors_for(const DoraParameters &dora, float m, float magnitude, double squares) {
  return dora_factors_of(dora.rule, m, magnitude, dora_inverse(dora, squares));
}

/// The same with the index of the magnitude.
__device__ inline DoraFactors dora_factors(const DoraParameters &dora, float m, int index, double squares) {
  return dora_factors_for(dora, m, element(dora.magnitude, index), squares);
}

__device__ inline float dora_change(const DoraFactors &factors, float base, float delta) {
  return fmaf(factors.x, fmaf(factors.v, delta, factors.w * base), factors.y * base);
}

/// Over the lanes whose numbers differ in the bits from kFirst to below kEnd.
template <int kFirst, int kEnd>
__device__ float sum_over(float value) {
#pragma unroll
  for (int distance = kFirst; distance < kEnd; distance *= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

__device__ inline float sum_of_warp(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// -- elements that lie side by side -----------------------------------------------------------------------------------

/// Two neighbours of a packed row, by element type.
struct F32 {
  static __device__ float2 get(const std::uint32_t *word, int pair) {
    return make_float2(__uint_as_float(word[2 * pair]), __uint_as_float(word[2 * pair + 1]));
  }
  static __device__ void put(std::uint32_t *word, int pair, float2 value) {
    word[2 * pair] = __float_as_uint(value.x), word[2 * pair + 1] = __float_as_uint(value.y);
  }
  static __device__ float load(const void *data, std::int64_t offset) {
    return __ldg(static_cast<const float *>(data) + offset);
  }
  static __device__ float2 load_pair(const void *data, std::int64_t offset) {
    return __ldg(reinterpret_cast<const float2 *>(static_cast<const float *>(data) + offset));
  }
};
/// How 16-bit elements are loaded, whichever type they have.
template <typename Type>
struct Narrow {
  static __device__ float load(const void *data, std::int64_t offset) {
    const std::uint32_t word = __ldg(static_cast<const std::uint16_t *>(data) + offset);
    return Type::get(&word, 0).x;
  }
  static __device__ float2 load_pair(const void *data, std::int64_t offset) {
    const auto *at = reinterpret_cast<const std::uint32_t *>(static_cast<const std::uint16_t *>(data) + offset);
    const std::uint32_t word = __ldg(at);
    return Type::get(&word, 0);
  }
};
struct F16 : Narrow<F16> {
  static __device__ float2 get(const std::uint32_t *word, int pair) {
    return __half22float2(*reinterpret_cast<const __half2 *>(&word[pair]));
  }
  static __device__ void put(std::uint32_t *word, int pair, float2 value) {
    const __half2 rounded = __float22half2_rn(value);
    word[pair] = *reinterpret_cast<const std::uint32_t *>(&rounded);
  }
};
struct Bf16 : Narrow<Bf16> {
  static __device__ float2 get(const std::uint32_t *word, int pair) {
    return make_float2(__uint_as_float(word[pair] << 16), __uint_as_float(word[pair] & 0xffff0000u));
  }
  static __device__ void put(std::uint32_t *word, int pair, float2 value) {
    const __nv_bfloat162 rounded = __float22bfloat162_rn(value);
    word[pair] = *reinterpret_cast<const std::uint32_t *>(&rounded);
  }
};

/// Call with the element type as a value: the one dispatch on a weight's dtype, outside all loops.
template <bool kWide, typename Body>
__device__ void with_type(lyc_dtype dtype, Body body) {
  if (kWide && dtype == LYC_DTYPE_F32)
    body(F32{});
  else if (dtype == LYC_DTYPE_BF16)
    body(Bf16{});
  else
    body(F16{});
}

/// Elements at `offset_of(i)` of what no kernel of this launch writes: one dispatch for all of them, so that their
/// loads are under way together.
template <int kCount, typename Offset>
__device__ void load_floats(const void *data, lyc_dtype dtype, float (&value)[kCount], Offset offset_of) {
  with_type<true>(dtype, [&](auto type) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) value[i] = type.load(data, offset_of(i));
  });
}

/// d += a b on the tensor cores, or d = a b: 16 x 16 times 16 x 8, 16-bit factors, float32 sums.
template <bool kBf16, bool kFirst = false>
__device__ inline void multiply(float (&d)[4], uint4 a, uint2 b) {
  const float c0 = kFirst ? 0.0f : d[0], c1 = kFirst ? 0.0f : d[1], c2 = kFirst ? 0.0f : d[2],
              c3 = kFirst ? 0.0f : d[3];
  if constexpr (kBf16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
}

// -- packed factors ---------------------------------------------------------------------------------------------------

/// 32 bytes of each row, swapped about so that neighbouring rows do not share banks: also the copy engine's order.
__device__ inline int swizzled_32(int row, int part) { return row * 32 + (part ^ (row / 4 & 1)) * 16; }

/// Write one value of a packed factor as kPackedParts 16-bit numbers that add up to it: see stream_table.hpp.
template <typename Type>
__device__ void store_parts(char *packed, std::int64_t lines, int chunks, std::int64_t line, int rank, float value) {
  const int chunk = rank / kChunkRanks, in_chunk = rank % kChunkRanks;
  char *at = packed + line / kPackedLines * kPackedLines * kChunkRanks * 2 +
             swizzled_32(static_cast<int>(line % kPackedLines), in_chunk / 8) + in_chunk % 8 * 2;
#pragma unroll
  for (int part = 0; part < kPackedParts; ++part) {
    std::uint32_t bits;
    Type::put(&bits, 0, make_float2(value, 0.0f));
    *reinterpret_cast<std::uint16_t *>(at + (part * chunks + chunk) * lines * kChunkRanks * 2) =
        static_cast<std::uint16_t>(bits);
    const float taken = Type::get(&bits, 0).x;
    value = isfinite(taken) ? value - taken : 0.0f;
  }
}

/// The same for four ranks of a chunk, from `rank` on.
template <typename Type>
__device__ void store_line_parts(char *packed, std::int64_t lines, int chunks, std::int64_t line, int chunk, int rank,
                                 float (&value)[4]) {
  char *at = packed + line / kPackedLines * kPackedLines * kChunkRanks * 2 +
             swizzled_32(static_cast<int>(line % kPackedLines), rank / 8) + rank % 8 * 2;
#pragma unroll
  for (int part = 0; part < kPackedParts; ++part) {
    std::uint32_t word[2];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      Type::put(word, pair, make_float2(value[2 * pair], value[2 * pair + 1]));
      const float2 taken = Type::get(word, pair);
      value[2 * pair] = isfinite(taken.x) ? value[2 * pair] - taken.x : 0.0f;
      value[2 * pair + 1] = isfinite(taken.y) ? value[2 * pair + 1] - taken.y : 0.0f;
    }
    *reinterpret_cast<uint2 *>(at + (part * chunks + chunk) * lines * kChunkRanks * 2) = make_uint2(word[0], word[1]);
  }
}

// Weights are read and written by these alone. They are read once, so they must not push the factors out of L1. Being
// opaque, and volatile so as to stay in order, they let the compiler keep descriptors in registers across a store.
__device__ inline uint4 load_streaming(const uint4 *from) {
  uint4 v;
  asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
}
__device__ inline uint2 load_streaming(const uint2 *from) {
  uint2 v;
  asm volatile("ld.global.cs.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
  return v;
}

/// What is soon read once more.
__device__ inline uint4 load_again(const uint4 *from) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
}

__device__ inline void store_streaming(uint4 *to, uint4 v) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w));
}
__device__ inline void store_streaming(uint2 *to, uint2 v) {
  asm volatile("st.global.cs.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(v.x), "r"(v.y));
}

// The same without a hint: 2 % faster where a kernel has hardly any factors.
__device__ inline uint4 load_vector(const uint4 *from) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
}

__device__ inline void store_vector(uint4 *to, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w));
}

}  // namespace lyc::cuda
