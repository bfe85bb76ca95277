// R - I of a small block: a warp has it in registers.
#pragma once

#include "device.cuh"
#include "rotation_kernels.hpp"

namespace lyc::cuda {

inline constexpr int kSmallBlock = 32;               // rows of a block that a warp inverts, at most
inline constexpr int kSmallPitch = kSmallBlock + 1;  // of its rows in shared memory, so that columns do not share banks
using SmallBlock = float[kSmallBlock][kSmallPitch];

/// Generator `index` of a block.
__device__ inline float generator(const RotationTask &task, std::int64_t block, int index) {
  return load_float(task.generators.data, task.generators.dtype,
                    block * task.generators.stride + index * task.generator_stride);
}

/// What brings |Q| to its limit. `squares()`: |Q|^2 of the block; that of all blocks is in the workspace.
template <typename Squares>
__device__ float shrink(const RotationTask &task, const char *workspace, Squares squares) {
  constexpr float kTiny = 1e-8f;
  if (task.limited == ops::Rotation::Limit::kNone) return 1.0f;
  if (task.limited == ops::Rotation::Limit::kBlock) {
    const float norm = sqrtf(squares());
    return norm > task.limit ? task.limit / norm : 1.0f;
  }
  const float norm = sqrtf(*reinterpret_cast<const float *>(workspace + task.squares));
  if (task.limited == ops::Rotation::Limit::kTogether)
    return norm + kTiny > task.limit ? task.limit / (norm + kTiny) : 1.0f;
  return (fminf(norm, task.limit) + kTiny) / (norm + kTiny);
}

/// A warp takes a block's generators into shared memory, X or what of it is above the diagonal, by rows.
__device__ inline void load_generators(SmallBlock &x, const RotationTask &task, std::int64_t block) {
  const int lane = static_cast<int>(threadIdx.x % 32), b = task.block_size;
  const bool triangle = task.storage == ops::Rotation::Storage::kTriangle;
  constexpr int kTogether = 8;  // loads under way
  for (int first = 0; first < b; first += kTogether) {
    float values[kTogether];
    load_floats(task.generators.data, task.generators.dtype, values, [&](int i) {
      const int row = min(first + i, b - 1), column = min(lane, b - 1);
      const int place = triangle ? row * b - row * (row + 1) / 2 + column - row - 1 : row * b + column;
      return block * task.generators.stride + max(place, 0) * task.generator_stride;
    });
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      if (first + i < b) x[first + i][lane] = lane < b && (!triangle || lane > first + i) ? values[i] : 0.0f;
  }
  __syncwarp();
}

/// 1 / pivot for one that is 1 at least.
__device__ inline float inverse_of(float pivot) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(pivot));
  return fmaf(inverse, fmaf(-pivot, inverse, 1.0f), inverse);
}

/// F of I + F becomes that of its inverse I + F' by Gauss and Jordan, a row in each lane: nothing cancels where F is
/// small. Pivots are never small where F is skew-symmetric. A step takes the pivot's row from its lane and shifts
/// columns by one, so that the next pivot's column is the first again: after `steps` of them column j is in place j -
/// steps, modulo kSize. The next pivot is on its way while a step goes on.
template <int kSize>
__device__ void invert(float (&row)[kSize], int steps) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float above = __shfl_sync(~0u, row[0], 0);
#pragma unroll 1
  for (int k = 0; k < steps; ++k) {
    const bool own = lane == k;
    const float inverse = inverse_of(1.0f + above), others = -row[0] * inverse;
    const float by = own ? inverse : others, last = own ? -above * inverse : others;
    const auto step = [&](int j) {
      const float of_pivot = __shfl_sync(~0u, row[j], k);
      row[j - 1] = fmaf(by, of_pivot, own ? 0.0f : row[j]);
    };
    step(1);
    above = __shfl_sync(~0u, row[0], k + 1);
#pragma unroll
    for (int j = 2; j < kSize; ++j) step(j);
    row[kSize - 1] = last;
  }
}

/// R - I = 2 ((I - Q)^-1 - I) of blocks of b rows side by side along the diagonal, by Cayley's map, from their
/// generators, in place, by one warp: `size` <= kSize rows in all. b = size, or a power of two.
template <int kSize>
__device__ void turn_less_identity(SmallBlock &block, const RotationTask &task, int size, int b,
                                   const char *workspace) {
  const int lane = static_cast<int>(threadIdx.x % 32), i = min(lane, size - 1);
  float row[kSize], squares = 0.0f;
#pragma unroll
  for (int j = 0; j < kSize; ++j) {
    row[j] = j < size && lane < size ? task.factor * (block[j][i] - block[i][min(j, size - 1)]) : 0.0f;  // of -Q
    squares = fmaf(row[j], row[j], squares);
  }
  const float scale = shrink(task, workspace, [&] {
    if (b == size) return sum_of_warp(squares);
    for (int distance = 1; distance < b; distance *= 2) squares += __shfl_xor_sync(~0u, squares, distance);
    return squares;
  });
#pragma unroll
  for (int j = 0; j < kSize; ++j) row[j] *= scale;
  invert(row, size);
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kSize; ++r) {
    const int j = r + size < kSize ? r + size : r + size - kSize;
    if (lane < size && j < size) block[lane][j] = 2.0f * row[r];
  }
  __syncwarp();
}

}  // namespace lyc::cuda
