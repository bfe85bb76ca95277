// R - I of a small block: a warp has it in registers.
#pragma once

#include "device.cuh"
#include "rotation_kernels.hpp"

namespace lyc::cuda {

inline constexpr int kSmallBlock = 32;               // rows of a block that a warp inverts, at most
inline constexpr int kSmallPitch = kSmallBlock + 4;  // of its rows in shared memory: what a warp reads is in all banks
using SmallBlock = float[kSmallBlock][kSmallPitch];

/// kSize x kSize elements as operand A of mma has them: a lane's element [a][c] is that of row row_of(a) and column
/// column_of(c).
template <int kSize>
using Fragment = float[kSize / 8][kSize / 4];

__device__ inline int row_of(int a) { return 8 * a + static_cast<int>(threadIdx.x % 32 / 4); }
__device__ inline int column_of(int c) { return c / 2 * 8 + static_cast<int>(threadIdx.x % 4) * 2 + c % 2; }

/// Generator `index` of a block.
__device__ inline float generator(const RotationTask &task, std::int64_t block, int index) {
  return load_float(task.generators.data, task.generators.dtype,
                    block * task.generators.stride + std::int64_t{index} * task.generator_stride);
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

/// A warp takes blocks of b rows into shared memory, side by side along the diagonal of `size` rows, from block `first`
/// on, and 0 elsewhere; b = size, or a power of two. Elements are `step` apart; `triangle`: there are those above the
/// diagonal.
__device__ inline void load_blocks(SmallBlock &x, const Vector &blocks, int step, bool triangle, std::int64_t first,
                                   int b, int size) {
  const int lane = static_cast<int>(threadIdx.x % 32), column = lane % b - triangle;
  const int width = lane >= size ? 0 : b == size ? kSmallBlock : b;  // rows of the lane's block differ in lower bits
  const std::int64_t block = (first + (width > 0 ? lane / b : 0)) * blocks.stride;
  int row = 0, place = column;
  float values[kSmallBlock];
  load_floats(blocks.data, blocks.dtype, values, [&](int) {
    const std::int64_t at = block + std::int64_t{max(place, 0)} * step;
    ++row;
    place += triangle ? b - 1 - row : b;
    if (row == b) row = 0, place = column;
    return at;
  });
#pragma unroll
  for (int i = 0; i < kSmallBlock; ++i) {
    const bool inside = (i ^ lane) < width && i < size && (!triangle || lane > i);
    x[i][lane] = inside ? values[i] : 0.0f;
  }
  __syncwarp();
}

/// Generators of so many blocks: X or what of it is above the diagonal.
__device__ inline void load_generators(SmallBlock &x, const RotationTask &task, std::int64_t first, int size) {
  load_blocks(x, task.generators, task.generator_stride, task.storage == ops::Rotation::Storage::kTriangle, first,
              task.block_size, size);
}

/// Ask for them ahead, also before the kernel that writes them has ended: the second level of cache is where it does.
__device__ inline void prefetch_generators(const RotationTask &task, std::int64_t first, int size) {
  const int b = task.block_size, place = static_cast<int>(threadIdx.x % 32) * kSmallBlock;  // 64 or 128 bytes apart
  const int elements = task.storage == ops::Rotation::Storage::kTriangle ? b * (b - 1) / 2 : b * b;
  if (place >= size / b * elements) return;
  const std::int64_t at =
      (first + place / elements) * task.generators.stride + std::int64_t{place % elements} * task.generator_stride;
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address_of(task.generators.data, task.generators.dtype, at)));
}

/// 1 / pivot for one that is 1 at least.
__device__ inline float inverse_of(float pivot) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(pivot));
  return fmaf(inverse, fmaf(-pivot, inverse, 1.0f), inverse);
}

/// F of I + F becomes that of its inverse I + F' by Gauss and Jordan: nothing cancels where F is small. Pivots are
/// never small where F is skew-symmetric. A step takes the pivot's row and column from the lanes that have them; after
/// eight of them the next eight rows and columns become the first, so that registers have fixed numbers.
template <int kSize>
__device__ void invert(Fragment<kSize> &f) {
  constexpr int kRows = kSize / 8, kColumns = kSize / 4;
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
#pragma unroll 1
  for (int eight = 0; eight < kRows; ++eight) {
#pragma unroll 1
    for (int two = 0; two < 4; ++two)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int k = 2 * two + e;
        const float inverse = inverse_of(1.0f + __shfl_sync(~0u, f[0][e], 4 * k + two));
        float row[kColumns], by[kRows];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) row[c] = __shfl_sync(~0u, f[0][c], 4 * k + q);
#pragma unroll
        for (int a = 0; a < kRows; ++a) by[a] = -inverse * __shfl_sync(~0u, f[a][e], 4 * g + two);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          f[0][c] = fmaf(g == k ? inverse : by[0], row[c], g == k ? 0.0f : f[0][c]);
#pragma unroll
          for (int a = 1; a < kRows; ++a) f[a][c] = fmaf(by[a], row[c], f[a][c]);
        }
#pragma unroll
        for (int a = 0; a < kRows; ++a) f[a][e] = q == two ? by[a] : f[a][e];
      }
    Fragment<kSize> next;
#pragma unroll
    for (int a = 0; a < kRows; ++a)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) next[a][c] = f[(a + 1) % kRows][(c + 2) % kColumns];
#pragma unroll
    for (int a = 0; a < kRows; ++a)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) f[a][c] = next[a][c];
  }
}

/// The sum over its block in place of that over a lane's part of each row.
template <int kRows>
__device__ void sum_blocks(float (&sums)[kRows], int size, int b) {
  if (b == size) {
    float all = 0.0f;
#pragma unroll
    for (int a = 0; a < kRows; ++a) all += sums[a];
    all = sum_of_warp(all);
#pragma unroll
    for (int a = 0; a < kRows; ++a) sums[a] = all;
    return;
  }
  for (int distance = 1; distance < 4 * min(b, 8); distance *= 2)
#pragma unroll
    for (int a = 0; a < kRows; ++a) sums[a] += __shfl_xor_sync(~0u, sums[a], distance);
  if (b > 8)
#pragma unroll
    for (int a = 0; a + 1 < kRows; a += 2) sums[a] = sums[a + 1] = sums[a] + sums[a + 1];
}

/// R - I = 2 ((I - Q)^-1 - I) of what load_generators() has loaded, by Cayley's map, by one warp: `size` <= kSize.
template <int kSize>
__device__ void turn_less_identity(Fragment<kSize> &rest, const SmallBlock &x, const RotationTask &task, int size,
                                   const char *workspace) {
  constexpr int kRows = kSize / 8, kColumns = kSize / 4;
#pragma unroll
  for (int a = 0; a < kRows; ++a)
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int i = row_of(a), j = column_of(c);
      rest[a][c] = task.factor * (x[j][i] - x[i][j]);  // of -Q
    }
  if (task.limited != ops::Rotation::Limit::kNone) {
    float squares[kRows] = {};
#pragma unroll
    for (int a = 0; a < kRows; ++a)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) squares[a] = fmaf(rest[a][c], rest[a][c], squares[a]);
    sum_blocks(squares, size, task.block_size);
#pragma unroll
    for (int a = 0; a < kRows; ++a) {
      const float scale = shrink(task, workspace, [&] { return squares[a]; });
#pragma unroll
      for (int c = 0; c < kColumns; ++c) rest[a][c] *= scale;
    }
  }
  invert<kSize>(rest);
#pragma unroll
  for (int a = 0; a < kRows; ++a)
#pragma unroll
    for (int c = 0; c < kColumns; ++c) rest[a][c] *= 2.0f;
}

}  // namespace lyc::cuda
