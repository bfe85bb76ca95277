// What kernels share: elements of factors, multipliers, and the search for the entry that a piece of work belongs to.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "weight_kernels.hpp"

namespace lyc::cuda {

/// An element of what no kernel of this launch writes.
__device__ inline float load_float(const void *data, lyc_dtype dtype, std::int64_t offset) {
  if (dtype == LYC_DTYPE_F32) return __ldg(static_cast<const float *>(data) + offset);
  const unsigned short bits = __ldg(static_cast<const unsigned short *>(data) + offset);
  return dtype == LYC_DTYPE_BF16 ? __uint_as_float(std::uint32_t{bits} << 16) : __half2float(__ushort_as_half(bits));
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

}  // namespace lyc::cuda
