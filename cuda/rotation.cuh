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

/// F of I + F becomes that of its inverse I + F' by Gauss and Jordan, two pivots at a time: nothing cancels where F is
/// small. Determinants are 1 at least where F is skew-symmetric. A step takes the pivots' rows and columns from the
/// lanes that have them; the next pivots are on their way while it goes on. After four steps the next eight rows and
/// columns become the first, so that registers have fixed numbers.
template <int kSize>
__device__ void invert(Fragment<kSize> &f) {
  constexpr int kRows = kSize / 8, kColumns = kSize / 4;
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
  const auto from = [](float value, int source) { return __shfl_sync(~0u, value, source); };
  float a = from(f[0][0], 0), b = from(f[0][1], 0), c = from(f[0][0], 4), d = from(f[0][1], 4);
#pragma unroll 1
  for (int eight = 0; eight < kRows; ++eight) {
#pragma unroll 1
    for (int two = 0; two < 4; ++two) {
      float row[2][kColumns], column[2][kRows];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) row[e][j] = from(f[0][j], 8 * two + 4 * e + q);
#pragma unroll
        for (int i = 0; i < kRows; ++i) column[e][i] = from(f[i][e], 4 * g + two);
      }
      const float bc = b * c, inverse = inverse_of(fmaf(1.0f + a, 1.0f + d, -bc));
      const float p[2][2] = {{(1.0f + d) * inverse, -b * inverse}, {-c * inverse, (1.0f + a) * inverse}};
      const float less[2] = {(bc - a * (1.0f + d)) * inverse, (bc - d * (1.0f + a)) * inverse};  // p[e][e] - 1
      const bool own = g / 2 == two, second = g % 2 != 0;
      float by[2][kRows];
#pragma unroll
      for (int e = 0; e < 2; ++e)
#pragma unroll
        for (int i = 0; i < kRows; ++i) by[e][i] = -fmaf(column[0][i], p[0][e], column[1][i] * p[1][e]);
      const float first[2] = {!own     ? by[0][0]
                              : second ? p[1][0]
                                       : p[0][0],
                              !own     ? by[1][0]
                              : second ? p[1][1]
                                       : p[0][1]};
      const auto update = [&](int i, int j) {
        const float with = i == 0 && own ? 0.0f : f[i][j];
        f[i][j] = fmaf(i == 0 ? first[0] : by[0][i], row[0][j], fmaf(i == 0 ? first[1] : by[1][i], row[1][j], with));
      };
      update(0, 0), update(0, 1), update(1, 2), update(1, 3);
      const float x = two < 3 ? f[0][0] : f[1][2], y = two < 3 ? f[0][1] : f[1][3];
      const int next = (two + 1) % 4 * 9;
      a = from(x, next), b = from(y, next), c = from(x, next + 4), d = from(y, next + 4);
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          if ((i > 0 || j > 1) && (i != 1 || j / 2 != 1)) update(i, j);
      const bool own_column = q == two;
#pragma unroll
      for (int e = 0; e < 2; ++e)
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const float pivots = second ? (e == 0 ? p[1][0] : less[1]) : (e == 0 ? less[0] : p[0][1]);
          const float value = i == 0 && own ? pivots : by[e][i];
          f[i][e] = own_column ? value : f[i][e];
        }
    }
    Fragment<kSize> next;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) next[i][j] = f[(i + 1) % kRows][(j + 2) % kColumns];
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) f[i][j] = next[i][j];
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
