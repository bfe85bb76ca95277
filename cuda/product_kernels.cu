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

struct Work {
  ContractionRun run;
  char *workspace;
};

/// Call with the contraction that the block belongs to, and the block's number among those that do.
template <typename Body>
__device__ void with_contraction(const Work &work, Body body) {
  const ContractionRun &run = work.run;
  if (run.schedule.count <= kCarriedContractions) {
    const bool second = blockIdx.x >= run.first_of_second;
    return body(run.carried[second], static_cast<int>(blockIdx.x - (second ? run.first_of_second : 0)));
  }
  const int index = find_entry(run.schedule.first, run.schedule.count, blockIdx.x);
  body(run.contractions[index], static_cast<int>(blockIdx.x - run.schedule.first[index]));
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

// -- cores ------------------------------------------------------------------------------------------------------------

constexpr int kOwnRanks = 4;  // of a line's 16 at a time, that a thread computes
constexpr int kCoreThreads = kCoreLines * kChunkRanks / kOwnRanks;

/// The places of a core's kernel, the last axis the innermost; after the last one the first.
class KernelWalk {
 public:
  __device__ explicit KernelWalk(const Contraction &c) : c_(c) {}

  __device__ std::int64_t offset() const { return offset_; }
  __device__ void next() {
#pragma unroll
    for (int k = ops::kMaxKernelDims - 1; k >= 0; --k) {
      offset_ += c_.left_kernel[k];
      if (++at_[k] < c_.kernel[k]) return;
      offset_ -= c_.kernel[k] * c_.left_kernel[k];
      at_[k] = 0;
    }
  }

 private:
  const Contraction &c_;
  int at_[ops::kMaxKernelDims] = {};
  std::int64_t offset_ = 0;
};

/// Where a line of the result lies along an axis.
__device__ int place_of(int line, int step, int extent) { return extent == 1 ? 0 : line / step % extent; }

/// 16 ranks of kCoreLines lines. The core goes through shared memory, as [s][kernel][16 ranks], as much of it at a time
/// as there is room for. There is so little to do that the time is that of loading, so all loads are under way at once.
__device__ void multiply_core(const Contraction &c, int local, char *workspace) {
  constexpr int kDepth = 16, kPlaces = 9;  // loads under way
  __shared__ alignas(16) float staged[kCoreStaged];
  const int chunks = (c.a + kChunkRanks - 1) / kChunkRanks, kernel = c.kernel[0] * c.kernel[1] * c.kernel[2];
  const int chunk = local % chunks;
  const int lane_rank = static_cast<int>(threadIdx.x) % (kChunkRanks / kOwnRanks) * kOwnRanks;
  const int line = local / chunks * kCoreLines + static_cast<int>(threadIdx.x) / (kChunkRanks / kOwnRanks);
  const int near_line = min(line, static_cast<int>(c.lines) - 1);
  const void *left = resolve(c.left.data, c.left_in_workspace, workspace);
  const void *right = resolve(c.right.data, c.right_in_workspace, workspace);
  const std::int64_t column = place_of(near_line, c.line_b, c.b);
  int own_place = 0;
  std::int64_t result = column * c.result_b;
#pragma unroll
  for (int k = 0; k < ops::kMaxKernelDims; ++k) {
    const int place = place_of(near_line, c.line_kernel[k], c.kernel[k]);
    own_place = own_place * c.kernel[k] + place;
    result += place * c.result_kernel[k];
  }
  // A thread stages all places of one of 16 ranks, and of one s in 16.
  const int rank = chunk * kChunkRanks + static_cast<int>(threadIdx.x) % kChunkRanks;
  const std::int64_t left_offset = min(rank, c.a - 1) * c.left_a;
  const int depth = min(c.s, kCoreStaged / (kCorePitch * kernel));
  float sum[kOwnRanks] = {};
  for (int begin = 0; begin < c.s; begin += depth) {
    const int count = min(depth, c.s - begin);
    float values[kDepth];
    const auto load_column = [&](int first) {
      load_floats(right, c.right.dtype, values,
                  [&](int i) { return column * c.right_b + (begin + min(first + i, count - 1)) * c.right_s; });
    };
    load_column(0);
    __syncthreads();
    for (int s = static_cast<int>(threadIdx.x) / kChunkRanks; s < count; s += kCoreThreads / kChunkRanks) {
      KernelWalk walk(c);
      for (int first = 0; first < kernel; first += kPlaces) {
        std::int64_t offsets[kPlaces];
        float places[kPlaces];
#pragma unroll
        for (int i = 0; i < kPlaces; ++i, walk.next()) offsets[i] = left_offset + (begin + s) * c.left_s + walk.offset();
        load_floats(left, c.left.dtype, places, [&](int i) { return offsets[i]; });
#pragma unroll
        for (int i = 0; i < kPlaces; ++i)
          if (first + i < kernel)
            staged[(s * kernel + first + i) * kCorePitch + threadIdx.x % kChunkRanks] = rank < c.a ? places[i] : 0.0f;
      }
    }
    __syncthreads();
    for (int first = 0; first < count; first += kDepth) {
      if (first > 0) load_column(first);
#pragma unroll
      for (int i = 0; i < kDepth; ++i) {
        if (first + i >= count) break;
        const float4 four = *reinterpret_cast<const float4 *>(
            staged + ((first + i) * kernel + own_place) * kCorePitch + lane_rank);
        sum[0] = fmaf(four.x, values[i], sum[0]), sum[1] = fmaf(four.y, values[i], sum[1]);
        sum[2] = fmaf(four.z, values[i], sum[2]), sum[3] = fmaf(four.w, values[i], sum[3]);
      }
    }
  }
  if (line >= c.lines) return;
  if (c.packed_lines > 0)
    return store_line_parts<Bf16>(workspace + c.result, c.packed_lines, chunks, line, chunk, lane_rank, sum);
  auto *to = reinterpret_cast<float *>(workspace + c.result) + result;
#pragma unroll
  for (int i = 0; i < kOwnRanks; ++i)
    if (const int at = chunk * kChunkRanks + lane_rank + i; at < c.a) to[at * c.result_a] = sum[i];
}

__global__ void __launch_bounds__(kCoreThreads) core_kernel(const __grid_constant__ Work work) {
  begin_kernel();
  with_contraction(work, [&](const Contraction &c, int local) { multiply_core(c, local, work.workspace); });
}

// -- packed factors, rows of a matrix times a narrow one --------------------------------------------------------------

constexpr int kTallWarps = 16;
constexpr int kTallStep = 64, kTallSteps = 3;  // columns: 128 bytes of a row at a time, so often
constexpr int kTallPanel = kTallWarps * kTallSteps * kTallStep;
constexpr int kTallPitch = 20;  // floats of a row's 16 sums, spread over the banks
static_assert(kTallRows == 8 && kTallRows * kChunkRanks <= kTallWarps * 32);

/// Rows of [a, s] times [s, 16] on the tensor cores, which see the narrow factor as operand A and rows as columns of
/// operand B. Warps share out the columns of a panel, keep their part of the narrow factor in registers and walk down
/// the rows, 8 at a time; what they come to is added up in shared memory. All blocks walk side by side, from the last
/// row to the first: what reads the matrix next begins with what the cache holds.
///
/// A thread loads eight neighbours of a row at a time, so columns are taken in an order of our own: of each 32, thread q
/// has 8 q to 8 q + 7, four for the first instruction and four for the second.
struct TallShared {
  union {
    float sums[2][kTallWarps][kTallRows * kTallPitch];
    char factor[kTallWarps][kTallStep * kChunkRanks * 2];  // before there are sums
  };
  float held[kMostTallTiles][kTallRows * kChunkRanks];  // of earlier panels
};

template <bool kBf16>
class TallProduct {
  static constexpr int kLoads = kTallStep * kTallSteps / 32, kPieces = kTallStep / 16;

 public:
  __device__ TallProduct(const Contraction &c, int local, char *workspace, TallShared &shared)
      : c_(c), local_(local), tiles_((c.a + kTallRows - 1) / kTallRows), workspace_(workspace), shared_(shared) {}

  __device__ void run() {
    for (int begin = 0; begin < c_.s; begin += kTallPanel) run_panel(begin);
  }

 private:
  __device__ void run_panel(int begin) {
    const int width = min(kTallPanel, c_.s - begin);
    const int own = (width + kTallWarps * kTallStep - 1) / (kTallWarps * kTallStep) * kTallStep;
    first_ = begin + static_cast<int>(threadIdx.x) / 32 * own;
    end_ = min(first_ + own, begin + width);
    load_rows(0);
    load_factor();
    const int row = static_cast<int>(threadIdx.x) / kChunkRanks, rank = static_cast<int>(threadIdx.x) % kChunkRanks;
    for (int round = 0; tile_of(round) >= 0; ++round) {
      multiply_rows(shared_.sums[round % 2][threadIdx.x / 32]);
      load_rows(round + 1);
      __syncthreads();
      if (row >= kTallRows) continue;
      float total = begin > 0 ? shared_.held[round][threadIdx.x] : 0.0f;
#pragma unroll
      for (int w = 0; w < kTallWarps; ++w) total += shared_.sums[round % 2][w][row * kTallPitch + rank];
      const int line = tile_of(round) * kTallRows + row;
      if (begin + width < c_.s)
        shared_.held[round][threadIdx.x] = total;
      else if (line < c_.a)
        store_parts<Bf16>(workspace_ + c_.result, c_.packed_lines, 1, line, rank, total);
    }
    __syncthreads();
  }

  /// Below 0: there is none.
  __device__ int tile_of(int round) const { return tiles_ - 1 - local_ - round * c_.pieces; }

  /// Rows of the next tile, eight columns at a time, 0 beyond the warp's.
  __device__ void load_rows(int round) {
    const int lane = static_cast<int>(threadIdx.x) % 32, tile = tile_of(round);
    const int row = min(tile * kTallRows + lane / 4, c_.a - 1);
    const auto *from = static_cast<const std::uint16_t *>(c_.left.data) + row * c_.left_a;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int column = first_ + i * 32 + lane % 4 * 8;
      rows_[i] = make_uint4(0, 0, 0, 0);
      if (tile >= 0 && column < end_) rows_[i] = load_again(reinterpret_cast<const uint4 *>(from + column));
    }
  }

  /// The warp's columns' part of the narrow factor.
  __device__ void load_factor() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    char *staged = shared_.factor[threadIdx.x / 32];
    const auto *right = static_cast<const std::uint16_t *>(c_.right.data);
    uint4 pieces[kTallSteps][kPieces];
#pragma unroll
    for (int step = 0; step < kTallSteps; ++step)
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int column = first_ + step * kTallStep + (lane + i * 32) / 2, rank = lane % 2 * 8;
        const auto *from = reinterpret_cast<const uint4 *>(right + column * c_.right_s + rank);
        pieces[step][i] = column < end_ && rank < c_.b ? __ldg(from) : make_uint4(0, 0, 0, 0);
      }
    const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(staged));
#pragma unroll
    for (int step = 0; step < kTallSteps; ++step) {
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
        *reinterpret_cast<uint4 *>(staged + swizzled_32((lane + i * 32) / 2, lane % 2)) = pieces[step][i];
      __syncwarp();
#pragma unroll
      for (int part = 0; part < kTallStep / 16; ++part) {
        // Lane l has row l % 8 of the matrix l / 8: ranks to 7 and from 8 on, the same of the columns' other half.
        const int row = lane % 8, matrix = lane / 8;
        const int column = part / 2 * 32 + row / 2 * 8 + part % 2 * 4 + matrix / 2 * 2 + row % 2;
        uint4 &a = factor_[step * (kTallStep / 16) + part];
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w)
                     : "r"(at + swizzled_32(column, matrix % 2)));
      }
    }
    __syncthreads();
  }

  __device__ void multiply_rows(float *to) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
    float sum[2][4] = {};
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      multiply<kBf16>(sum[0], factor_[2 * i], make_uint2(rows_[i].x, rows_[i].y));
      multiply<kBf16>(sum[1], factor_[2 * i + 1], make_uint2(rows_[i].z, rows_[i].w));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) to[(q * 2 + i % 2) * kTallPitch + i / 2 * 8 + g] = sum[0][i] + sum[1][i];
  }

  const Contraction &c_;
  const int local_, tiles_;
  char *const workspace_;
  TallShared &shared_;
  int first_ = 0, end_ = 0;  // the warp's columns
  uint4 factor_[2 * kLoads], rows_[kLoads];
};

__global__ void __launch_bounds__(kTallWarps * 32, 1) tall_kernel(const __grid_constant__ Work work) {
  __shared__ alignas(16) TallShared shared;
  begin_kernel();
  with_contraction(work, [&](const Contraction &c, int local) {
    if (c.left.dtype == LYC_DTYPE_BF16)
      TallProduct<true>(c, local, work.workspace, shared).run();
    else
      TallProduct<false>(c, local, work.workspace, shared).run();
  });
}

}  // namespace

cudaError_t launch_contractions(ContractionKind kind, const ContractionRun &run, char *workspace, const Launch &on) {
  const auto kernel = kind == ContractionKind::kCore   ? core_kernel
                      : kind == ContractionKind::kTall ? tall_kernel
                                                       : contract_kernel;
  const int threads = kind == ContractionKind::kCore   ? kCoreThreads
                      : kind == ContractionKind::kTall ? kTallWarps * 32
                                                       : kContractionThreads;
  return launch_kernel(kernel, run.schedule.pieces, threads, on, Work{run, workspace});
}

}  // namespace lyc::cuda
