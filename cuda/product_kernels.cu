// Small products into the workspace, as float32 or as packed factors.
#include "device.cuh"
#include "product_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kContractionThreads = 256;

/// Row m of the left factor is a and the kernel's places, the last of them the innermost.
__device__ std::int64_t row_offset(const Contraction &c, int m, std::int64_t a, std::int64_t place,
                                   const std::int64_t *kernel) {
  if (c.places == 1) return m * a;
  if (c.even) {
    const int line = m / c.places;
    return line * a + (m - line * c.places) * place;
  }
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

/// What a kernel is launched for.
struct Work {
  ContractionRun run;
  char *workspace;
};

/// Call with the contraction that the block belongs to, and the block's number among those that do. One alone is read
/// by addresses that the code knows; `kPair`: of two, both travel with the launch.
template <bool kPair = false, typename Body>
__device__ void with_contraction(const Work &work, Body body) {
  const ContractionRun &run = work.run;
  const std::uint32_t block = blockIdx.x;
  if (run.schedule.count == 1) return body(run.carried[0], static_cast<int>(block));
  if (kPair && run.schedule.count == kCarriedContractions) {
    const bool second = block >= run.first_of_second;
    return body(run.carried[second], static_cast<int>(block - (second ? run.first_of_second : 0)));
  }
  const int index = find_entry(run.schedule.first, run.schedule.count, block);
  body(run.contractions[index], static_cast<int>(block - run.schedule.first[index]));
}

/// 32 x 32 elements, a thread four of them. Lanes follow the contiguous axis of what they read or write.
__device__ void contract(const Contraction &c, int local, char *workspace) {
  constexpr int kTile = kContractionTile, kStep = kContractionThreads / kTile, kOwn = kTile / kStep;
  __shared__ float left[kTile][kTile + 1], right[kTile][kTile + 1];
  const int across = (c.b + kTile - 1) / kTile;
  const int rows = c.a * c.places;
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
      return row_offset(c, min(y + first(left_lines, i), rows - 1), c.left_a, c.left_place, c.left_kernel) +
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
      store_result(c, workspace, row_offset(c, line, c.result_a, c.result_place, c.result_kernel) + column * c.result_b,
                   sum[i]);
  }
}

__global__ void __launch_bounds__(kContractionThreads) contract_kernel(const __grid_constant__ Work work) {
  begin_kernel();
  with_contraction(work, [&](const Contraction &c, int local) { contract(c, local, work.workspace); });
}

// -- cores ------------------------------------------------------------------------------------------------------------

constexpr int kOwnRanks = 4;    // of a line's 16 at a time, that a thread computes
constexpr int kCoreDepth = 16;  // that goes through shared memory at a time, at most
constexpr int kCoreThreads = kCoreLines * kChunkRanks / kOwnRanks;
static_assert(kCoreThreads == kChunkRanks * kCoreDepth && kCoreThreads % kCoreLines == 0);

/// b and place of a line.
struct CorePlace {
  int column, place;

  __device__ CorePlace(const Contraction &c, int line) {
    const auto n = static_cast<unsigned>(c.places_inside ? c.places : c.b), at = static_cast<unsigned>(line);
    const auto outer = static_cast<int>(at / n), inner = static_cast<int>(at % n);
    column = c.places_inside ? outer : inner;
    place = c.places_inside ? inner : outer;
  }
};

/// 16 ranks of kCoreLines lines. Both factors go through shared memory, the core as [s][place][16 ranks]. There is so
/// little to do that time is that of the way to the first result: loads are under way together, and few instructions.
__device__ void multiply_core(const Contraction &c, int local, char *workspace) {
  constexpr int kTogether = 9, kLines = kCoreDepth * kCoreLines / kCoreThreads;  // loads under way
  __shared__ alignas(16) float core[kCoreStaged];
  __shared__ float columns[kCoreDepth][kCoreLines];
  const int chunks = (c.a + kChunkRanks - 1) / kChunkRanks, chunk = local % chunks;
  const int first_line = local / chunks * kCoreLines, last_line = static_cast<int>(c.lines) - 1;
  const int thread = static_cast<int>(threadIdx.x);
  const void *left = resolve(c.left.data, c.left_in_workspace, workspace);
  const void *right = resolve(c.right.data, c.right_in_workspace, workspace);
  // What a thread loads: all places of a rank and one s in 16; of a line, one s in four.
  const int loaded_rank = chunk * kChunkRanks + thread % kChunkRanks, loaded_line = thread % kCoreLines;
  const std::int64_t left_rank = min(loaded_rank, c.a - 1) * c.left_a;
  const std::int64_t right_line = CorePlace(c, min(first_line + loaded_line, last_line)).column * c.right_b;
  // What it computes.
  const int own_rank = thread % (kChunkRanks / kOwnRanks) * kOwnRanks, own_line = thread / (kChunkRanks / kOwnRanks);
  const int line = first_line + own_line;
  const CorePlace own(c, min(line, last_line));
  const int depth = min(kCoreDepth, kCoreStaged / (kChunkRanks * c.places));
  float sum[kOwnRanks] = {};
  for (int begin = 0; begin < c.s; begin += depth) {
    const int count = min(depth, c.s - begin), s = thread / kChunkRanks;
    float of_line[kLines];
    load_floats(right, c.right.dtype, of_line, [&](int i) {
      return right_line + (begin + min(thread / kCoreLines + i * (kCoreThreads / kCoreLines), count - 1)) * c.right_s;
    });
    const std::int64_t from = left_rank + (begin + min(s, count - 1)) * c.left_s;
    for (int first = 0; first < c.places; first += kTogether) {
      float of_rank[kTogether];
      load_floats(left, c.left.dtype, of_rank,
                  [&](int i) { return from + min(first + i, c.places - 1) * c.left_place; });
      if (first == 0 && begin > 0) __syncthreads();
      float *to = core + (s * c.places + first) * kChunkRanks + thread % kChunkRanks;
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (first + i < c.places && s < count) to[i * kChunkRanks] = loaded_rank < c.a ? of_rank[i] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kLines; ++i)
      columns[thread / kCoreLines + i * (kCoreThreads / kCoreLines)][loaded_line] = of_line[i];
    __syncthreads();
    const float *row = core + own.place * kChunkRanks + own_rank;
#pragma unroll
    for (int i = 0; i < kCoreDepth; ++i, row += c.places * kChunkRanks) {
      if (i >= count) break;
      const float4 four = *reinterpret_cast<const float4 *>(row);
      const float value = columns[i][own_line];
      sum[0] = fmaf(four.x, value, sum[0]), sum[1] = fmaf(four.y, value, sum[1]);
      sum[2] = fmaf(four.z, value, sum[2]), sum[3] = fmaf(four.w, value, sum[3]);
    }
  }
  if (line > last_line) return;
  if (c.packed_lines > 0)
    return store_line_parts<Bf16>(workspace + c.result, c.packed_lines, chunks, line, chunk, own_rank, sum);
  auto *to = reinterpret_cast<float *>(workspace + c.result) + own.column * c.result_b + own.place * c.result_place;
#pragma unroll
  for (int i = 0; i < kOwnRanks; ++i)
    if (const int rank = chunk * kChunkRanks + own_rank + i; rank < c.a) to[rank * c.result_a] = sum[i];
}

__global__ void __launch_bounds__(kCoreThreads) core_kernel(const __grid_constant__ Work work) {
  begin_kernel();
  with_contraction<true>(work, [&](const Contraction &c, int local) { multiply_core(c, local, work.workspace); });
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
/// A thread loads eight neighbours of a row at a time, so columns are taken in an order of our own: of each 32, thread
/// q has 8 q to 8 q + 7, four for the first instruction and four for the second.
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
