// Small products into the workspace, as float32 or as packed factors.
#include "device.cuh"
#include "product_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kContractionThreads = 256;

/// Row m of the left factor is a and the kernel's places, the last of them the innermost.
__device__ std::int64_t row_offset(const Contraction &c, int m, std::int64_t a, const std::int64_t *kernel) {
  std::int64_t offset = 0;
#pragma unroll
  for (int k = ops::kMaxKernelDims - 1; k >= 0; --k) {
    offset += m % c.kernel[k] * kernel[k];
    m /= c.kernel[k];
  }
  return offset + m * a;
}

__device__ void store_result(const Contraction &c, char *workspace, std::int64_t offset, float value) {
  if (c.packed_lines == 0) {
    reinterpret_cast<float *>(workspace + c.result)[offset] = value;
    return;
  }
  const int ranks = c.packed_ranks, chunks = (ranks + kChunkRanks - 1) / kChunkRanks;
  const auto rank = static_cast<int>(c.rank_is_inner ? offset % ranks : offset / c.lines);
  const std::int64_t line = c.rank_is_inner ? offset / ranks : offset % c.lines;
  store_parts<Bf16>(workspace + c.result, c.packed_lines, chunks, line, rank, value);
  // The last rank stands for those that fill up the chunk, too.
  for (int r = rank + 1; rank + 1 == ranks && r < chunks * kChunkRanks; ++r)
    store_parts<Bf16>(workspace + c.result, c.packed_lines, chunks, line, r, 0.0f);
}

/// What a kernel is launched for: contractions in a table, or one that comes along, so that nobody has to look it up.
struct Work {
  Contraction only;
  const Contraction *contractions;
  Schedule schedule;
  char *workspace;
};

/// Call with the contraction that the block belongs to, and the block's number among those that do.
template <typename Body>
__device__ void with_contraction(const Work &work, Body body) {
  if (work.schedule.count == 1) return body(work.only, static_cast<int>(blockIdx.x));
  const int index = find_entry(work.schedule.first, work.schedule.count, blockIdx.x);
  body(work.contractions[index], static_cast<int>(blockIdx.x - work.schedule.first[index]));
}

/// 32 x 32 elements, a thread four of them. Lanes follow the contiguous axis of what they read or write.
__device__ void contract(const Contraction &c, int local, char *workspace) {
  constexpr int kTile = kContractionTile, kStep = kContractionThreads / kTile, kOwn = kTile / kStep;
  __shared__ float left[kTile][kTile + 1], right[kTile][kTile + 1];
  const int across = (c.b + kTile - 1) / kTile;
  const int rows = c.a * c.kernel[0] * c.kernel[1] * c.kernel[2];
  const int y = local / across * kTile, x = local % across * kTile;
  const int lane = static_cast<int>(threadIdx.x % kTile), group = static_cast<int>(threadIdx.x / kTile);
  const void *left_data = resolve(c.left.data, c.left_in_workspace, workspace);
  const void *right_data = resolve(c.right.data, c.right_in_workspace, workspace);
  // The first and the second place of a thread's element i, lanes along the one or the other.
  const auto first = [&](bool lanes_first, int i) { return lanes_first ? lane : group + i * kStep; };
  const auto second = [&](bool lanes_first, int i) { return lanes_first ? group + i * kStep : lane; };
  const bool left_lines = c.left_s != 1, right_depth = c.right_s == 1, result_lines = c.result_b != 1;

  float sum[kOwn] = {};
  for (int s = 0; s < c.s; s += kTile) {
    float from_left[kOwn], from_right[kOwn];
    // From inside in any case.
    load_floats(left_data, c.left.dtype, from_left, [&](int i) {
      return row_offset(c, min(y + first(left_lines, i), rows - 1), c.left_a, c.left_kernel) +
             min(s + second(left_lines, i), c.s - 1) * c.left_s;
    });
    load_floats(right_data, c.right.dtype, from_right, [&](int i) {
      return min(s + first(right_depth, i), c.s - 1) * c.right_s + min(x + second(right_depth, i), c.b - 1) * c.right_b;
    });
    if (c.diagonal.data || c.mask.data)
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int at = min(s + first(right_depth, i), c.s - 1);
        from_right[i] *= element(c.diagonal, at) * element(c.mask, at);
      }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int line = first(left_lines, i), left_s = second(left_lines, i);
      const int right_s = first(right_depth, i), column = second(right_depth, i);
      left[line][left_s] = y + line < rows && s + left_s < c.s ? from_left[i] : 0.0f;
      right[right_s][column] = s + right_s < c.s && x + column < c.b ? from_right[i] : 0.0f;
    }
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < min(kTile, c.s - s); ++k)
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
        sum[i] = fmaf(left[first(result_lines, i)][k], right[k][second(result_lines, i)], sum[i]);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int line = y + first(result_lines, i), column = x + second(result_lines, i);
    if (line < rows && column < c.b)
      store_result(c, workspace, row_offset(c, line, c.result_a, c.result_kernel) + column * c.result_b, sum[i]);
  }
}

__global__ void __launch_bounds__(kContractionThreads) contract_kernel(const __grid_constant__ Work work) {
  begin_kernel();
  with_contraction(work, [&](const Contraction &c, int local) { contract(c, local, work.workspace); });
}

// -- packed factors, a line for each thread ---------------------------------------------------------------------------

/// Where a line of the result lies along the axis with this stride.
__device__ std::int64_t place_of(const Contraction &c, std::int64_t line, std::int64_t stride, std::int64_t extent) {
  const std::int64_t step = c.rank_is_inner ? c.packed_ranks : 1;
  return extent == 1 ? 0 : line * step / stride % extent;
}

/// 16 ranks of one line: a is the rank, b and the kernel make up the line, numbered as it lies in memory. The left
/// factor goes through shared memory, as [s][kernel][16 ranks], as much of it at a time as there is room for.
__device__ void pack(const Contraction &c, int local, char *workspace) {
  constexpr int kTogether = 8;  // loads under way
  __shared__ alignas(16) float staged[kPackStaged];
  __shared__ std::int64_t kernel_offset[kPackStaged / kChunkRanks];
  const int chunks = (c.packed_ranks + kChunkRanks - 1) / kChunkRanks, kernel = c.kernel[0] * c.kernel[1] * c.kernel[2];
  const int chunk = local % chunks;
  const int first_rank = chunk * kChunkRanks, ranks = min(kChunkRanks, c.packed_ranks - first_rank);
  const std::int64_t line = std::int64_t{local / chunks} * kPackThreads + threadIdx.x;
  const std::int64_t near_line = min(line, c.lines - 1);
  const void *left = resolve(c.left.data, c.left_in_workspace, workspace);
  const void *right = resolve(c.right.data, c.right_in_workspace, workspace);
  int own_kernel = 0;
#pragma unroll
  for (int k = 0; k < ops::kMaxKernelDims; ++k)
    own_kernel = own_kernel * c.kernel[k] + static_cast<int>(place_of(c, near_line, c.result_kernel[k], c.kernel[k]));
  const std::int64_t right_offset = place_of(c, near_line, c.result_b, c.b) * c.right_b;
  const int depth = min(c.s, kPackStaged / (kChunkRanks * kernel));
  for (int k = static_cast<int>(threadIdx.x); k < kernel; k += kPackThreads)
    kernel_offset[k] = row_offset(c, k, 0, c.left_kernel);
  float sum[kChunkRanks] = {};
  for (int begin = 0; begin < c.s; begin += depth) {
    const int count = min(depth, c.s - begin);
    __syncthreads();
    const int a = static_cast<int>(threadIdx.x % kChunkRanks);
    for (int s = static_cast<int>(threadIdx.x / kChunkRanks); s < count; s += kPackThreads / kChunkRanks)
      for (int first = 0; first < kernel; first += kTogether) {
        float values[kTogether];
        load_floats(left, c.left.dtype, values, [&](int i) {
          return kernel_offset[min(first + i, kernel - 1)] + (begin + s) * c.left_s +
                 (first_rank + min(a, ranks - 1)) * c.left_a;
        });
#pragma unroll
        for (int i = 0; i < kTogether; ++i)
          if (first + i < kernel) staged[(s * kernel + first + i) * kChunkRanks + a] = a < ranks ? values[i] : 0.0f;
      }
    __syncthreads();
    for (int first = 0; first < count; first += kTogether) {
      float values[kTogether];
      load_floats(right, c.right.dtype, values,
                  [&](int i) { return right_offset + (begin + min(first + i, count - 1)) * c.right_s; });
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (first + i >= count) break;
        const auto *row = reinterpret_cast<const float4 *>(staged + ((first + i) * kernel + own_kernel) * kChunkRanks);
#pragma unroll
        for (int a = 0; a < kChunkRanks; a += 4) {
          const float4 four = row[a / 4];
          sum[a] = fmaf(four.x, values[i], sum[a]), sum[a + 1] = fmaf(four.y, values[i], sum[a + 1]);
          sum[a + 2] = fmaf(four.z, values[i], sum[a + 2]), sum[a + 3] = fmaf(four.w, values[i], sum[a + 3]);
        }
      }
    }
  }
  if (line < c.lines) store_line_parts<Bf16>(workspace + c.result, c.packed_lines, chunks, line, chunk, sum);
}

__global__ void __launch_bounds__(kPackThreads) pack_kernel(const __grid_constant__ Work work) {
  begin_kernel();
  with_contraction(work, [&](const Contraction &c, int local) { pack(c, local, work.workspace); });
}

// -- packed factors, rows of a matrix times a narrow one --------------------------------------------------------------

constexpr int kTallWarps = 8, kTallDepth = 64;  // a warp's share of the depth is taken in steps
static_assert(kTallRows == 16);

/// 16 rows of [a, s] times [s, 16] on the tensor cores: warps share out the depth, then add up. A thread loads eight
/// neighbours of a row at a time, so ranks of depth are taken in an order of our own: of each 32, thread q has 8 q to
/// 8 q + 7, four for the first instruction and four for the second.
template <bool kBf16>
__device__ void multiply_rows(const Contraction &c, std::int64_t first_row, char *workspace) {
  __shared__ alignas(16) char staged[kTallWarps][kTallDepth * kChunkRanks * 2];
  __shared__ float sums[kTallWarps][kTallRows][kChunkRanks];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4, q = lane % 4;
  const auto *left = static_cast<const std::uint16_t *>(c.left.data);
  const auto *right = static_cast<const std::uint16_t *>(c.right.data);
  const std::uint16_t *row[2];
  for (int half = 0; half < 2; ++half)
    row[half] = left + min(first_row + half * 8 + g, std::int64_t{c.a - 1}) * c.left_a + q * 8;
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(staged[warp]));
  constexpr int kOwn = kTallDepth * 2 / 32;  // pieces of 16 bytes that a lane stages
  uint4 rows[2][kTallDepth / 32], columns[kOwn];
  const auto load = [&](int s) {
    const uint4 zero = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int step = 0; step < kTallDepth / 32; ++step)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = s + step * 32;
        rows[half][step] = at + q * 8 < c.s ? load_streaming(reinterpret_cast<const uint4 *>(row[half] + at)) : zero;
      }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int depth = (lane + i * 32) / 2, part = lane % 2;
      const auto *from = right + (s + depth) * c.right_s + part * 8;
      columns[i] = s + depth < c.s && part * 8 < c.b ? __ldg(reinterpret_cast<const uint4 *>(from)) : zero;
    }
  };
  float sum[2][4] = {};
  int s = warp * kTallDepth;
  if (s < c.s) load(s);
  for (; s < c.s; s += kTallWarps * kTallDepth) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      *reinterpret_cast<uint4 *>(staged[warp] + swizzled_32((lane + i * 32) / 2, lane % 2)) = columns[i];
    uint4 now[2][kTallDepth / 32];
#pragma unroll
    for (int step = 0; step < kTallDepth / 32; ++step) now[0][step] = rows[0][step], now[1][step] = rows[1][step];
    __syncwarp();
    if (s + kTallWarps * kTallDepth < c.s) load(s + kTallWarps * kTallDepth);
#pragma unroll
    for (int step = 0; step < kTallDepth / 32; ++step)
#pragma unroll
      for (int part = 0; part < 2; ++part) {  // of each thread's eight
        // Row `lane % 8 + 8` of operand B follows row `lane % 8`; lanes from 16 on see to the other eight columns.
        const int logical = lane % 16, pair = logical % 8 / 2, inside = logical % 2 + logical / 8 * 2;
        const int depth = step * 32 + pair * 8 + part * 4 + inside;
        uint4 two;
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(two.x), "=r"(two.y), "=r"(two.z), "=r"(two.w)
                     : "r"(to + swizzled_32(depth, lane / 16)));
        const uint4 a = part == 0 ? make_uint4(now[0][step].x, now[1][step].x, now[0][step].y, now[1][step].y)
                                  : make_uint4(now[0][step].z, now[1][step].z, now[0][step].w, now[1][step].w);
        multiply<kBf16>(sum[0], a, make_uint2(two.x, two.y));
        multiply<kBf16>(sum[1], a, make_uint2(two.z, two.w));
      }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[warp][g + i / 2 * 8][n * 8 + q * 2 + i % 2] = sum[n][i];
  __syncthreads();
  const int line = static_cast<int>(threadIdx.x / kChunkRanks), rank = static_cast<int>(threadIdx.x % kChunkRanks);
  float total = 0.0f;
  for (int w = 0; w < kTallWarps; ++w) total += sums[w][line][rank];
  if (first_row + line < c.a) store_parts<Bf16>(workspace + c.result, c.packed_lines, 1, first_row + line, rank, total);
}

__global__ void __launch_bounds__(kTallWarps * 32) tall_kernel(const __grid_constant__ Work work) {
  begin_kernel();
  static_assert(kTallWarps * 32 == kTallRows * kChunkRanks);
  with_contraction(work, [&](const Contraction &c, int local) {
    const std::int64_t first_row = std::int64_t{local} * kTallRows;
    if (c.left.dtype == LYC_DTYPE_BF16)
      multiply_rows<true>(c, first_row, work.workspace);
    else
      multiply_rows<false>(c, first_row, work.workspace);
  });
}

}  // namespace

cudaError_t launch_contractions(ContractionKind kind, const Contraction &first, const Contraction *contractions,
                                const Schedule &schedule, char *workspace, const Launch &on) {
  const auto kernel = kind == ContractionKind::kPack   ? pack_kernel
                      : kind == ContractionKind::kTall ? tall_kernel
                                                       : contract_kernel;
  const int threads = kind == ContractionKind::kPack   ? kPackThreads
                      : kind == ContractionKind::kTall ? kTallWarps * 32
                                                       : kContractionThreads;
  return launch_kernel(kernel, schedule.pieces, threads, on, Work{first, contractions, schedule, workspace});
}

}  // namespace lyc::cuda
