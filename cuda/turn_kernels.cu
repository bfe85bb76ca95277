// Blocks of a 16-bit weight's rows turned by a rotation of one stage (OFT), on GPUs that have a copy engine (Hopper and
// later): out = s (I + m (R - I)) W, or what that differs from W by.
//
// Work.     A block of threads has kTurnRows rows, one block of the rotation or several small ones, and up to
// kTurnBoxes
//           boxes of columns. The copy engine fetches them while one warp inverts I - Q in its registers
//           (rotation.cuh); then each warp multiplies boxes where they lie and sends them back.
// Traffic.  The weight read once and written once, and generators, so often as there are blocks of threads side by
// side.
//           What limits is memory: a block of threads lives some 6 us, of which the inversion takes 3, and three of
//           them on a multiprocessor have 144 KB on the way.
// Numerics. I + m (R - I), float32, comes in three 16-bit parts, which tensor cores multiply exactly and sum in
// float32;
//           one rounding, at the store. At multiplier 0 boxes pass unchanged.
#include "copy_engine.cuh"
#include "rotation.cuh"

namespace lyc::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kResident = 3;
constexpr int kDepth = kTurnRows / kChunkRanks;  // steps over rows that are summed over, and 16 rows at a time
constexpr int kParts = 3;
constexpr int kRowBytes = kBoxColumns * 2, kBoxBytes = kTurnRows * kRowBytes, kBoxAlignment = 1024;
static_assert(kTurnRows == kSmallBlock && kDepth * kDepth == kWarps);

/// As the fragments of operand A of mma: a lane's four words of each part of rows 16 y on and ranks 16 k on.
struct TurnFactor {
  uint4 word[kDepth][kDepth][kParts][32];
};

struct Shared {
  char boxes[kTurnBoxes * kBoxBytes];
  TurnFactor factor;
  SmallBlock block;
  std::uint64_t full;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// The rows and columns of one block of threads.
struct Area {
  int y, x, boxes;
};

__device__ Area area_of(const TurnTarget &target, int piece) {
  const int width = kTurnBoxes * kBoxColumns, across = (target.columns + width - 1) / width, x = piece % across * width;
  return {piece / across * kTurnRows, x, min(kTurnBoxes, (target.columns - x + kBoxColumns - 1) / kBoxColumns)};
}

/// Fill in the area's rows of a block diagonal matrix: `offset_of(b, i, j)`: where element (i, j) of the rotation's
/// block b is; -1: nowhere, it is 0.
template <typename Offset>
__device__ void load_rows(SmallBlock &block, const TurnTarget &target, const Area &area, const void *data,
                          lyc_dtype dtype, Offset offset_of) {
  constexpr int kRows = kTurnRows / kWarps;
  const int first = static_cast<int>(threadIdx.x / 32) * kRows, lane = static_cast<int>(threadIdx.x % 32);
  const int b = target.rotation.block_size, shift = __ffs(b) - 1;
  std::int64_t offsets[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = first + r;
    const bool inside = row >> shift == lane >> shift && area.y + row < target.rows;
    offsets[r] = inside ? offset_of(std::int64_t{(area.y + row) >> shift}, row & (b - 1), lane & (b - 1)) : -1;
  }
  float values[kRows];
  load_floats(data, dtype, values, [&](int r) { return max(offsets[r], std::int64_t{0}); });
#pragma unroll
  for (int r = 0; r < kRows; ++r) block[first + r][lane] = offsets[r] >= 0 ? values[r] : 0.0f;
}

/// R - I of an area's rows, by all threads.
__device__ void rest_of_rows(SmallBlock &block, const TurnTarget &target, const Area &area, const char *workspace) {
  const RotationTask &task = target.rotation;
  const int b = task.block_size;
  if (!task.late) {
    const void *rests = task.prepared ? static_cast<const void *>(task.prepared) : workspace + task.rests;
    load_rows(block, target, area, rests, LYC_DTYPE_F32,
              [&](std::int64_t number, int i, int j) { return number * b * b + i * b + j; });
    __syncthreads();
    return;
  }
  const bool triangle = task.storage == ops::Rotation::Storage::kTriangle;
  load_rows(block, target, area, task.generators.data, task.generators.dtype,
            [&](std::int64_t number, int i, int j) -> std::int64_t {
              if (triangle && i >= j) return -1;
              const int place = triangle ? i * b - i * (i + 1) / 2 + j - i - 1 : i * b + j;
              return number * task.generators.stride + place * task.generator_stride;
            });
  __syncthreads();
  if (threadIdx.x < 32) turn_less_identity<kTurnRows>(block, task, kTurnRows, b, workspace);
  __syncthreads();
}

/// I + m (R - I), or without I, in parts: a warp has one of the factor's fragments.
template <typename Type>
__device__ void split(TurnFactor &factor, const SmallBlock &block, float m, bool difference) {
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
  const int y = static_cast<int>(threadIdx.x) / 32 / kDepth, k = static_cast<int>(threadIdx.x) / 32 % kDepth;
  float2 rest[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const int row = y * 16 + g + w % 2 * 8, column = k * 16 + q * 2 + w / 2 * 8;
    const auto at = [&](int c) { return fmaf(m, block[row][c], row == c && !difference ? 1.0f : 0.0f); };
    rest[w] = make_float2(at(column), at(column + 1));
  }
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    std::uint32_t word[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      Type::put(word, w, rest[w]);
      const float2 taken = Type::get(word, w);
      rest[w].x -= taken.x, rest[w].y -= taken.y;
    }
    factor.word[y][k][part][lane] = make_uint4(word[0], word[1], word[2], word[3]);
  }
}

/// Row 8 r + g of a box, two columns of n tile n: of the row only g swaps columns about (swizzled_128).
__device__ std::uint32_t *word_at(char *box, int r, int n) {
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4;
  char *first = box + g * kRowBytes + lane % 4 * 4;
  return reinterpret_cast<std::uint32_t *>(first + r * 8 * kRowBytes + (n ^ g) * 16);
}

/// One box, in place, by a warp.
template <typename Type>
__device__ void turn_box(char *box, const TurnFactor &factor, const Vector &rescale, const float (&factors)[4],
                         bool difference) {
  constexpr int kTiles = kBoxColumns / 8;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::uint32_t address = shared_address(box);
  uint2 columns[kDepth][kTiles];
#pragma unroll
  for (int k = 0; k < kDepth; ++k)
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      const uint4 two = load_column_factor(address + k * kChunkRanks * kRowBytes, false, n);
      columns[k][n] = make_uint2(two.x, two.y), columns[k][n + 1] = make_uint2(two.z, two.w);
    }
  __syncwarp();
#pragma unroll
  for (int y = 0; y < kDepth; ++y) {
    float sum[kTiles][4] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
        const uint4 rows = factor.word[y][k][part][lane];
#pragma unroll
        for (int n = 0; n < kTiles; ++n) multiply<std::is_same_v<Type, Bf16>>(sum[n], rows, columns[k][n]);
      }
    if (rescale.data)
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 base = Type::get(word_at(box, y * 2 + half, n), 0);
          const float by = factors[y * 2 + half];
          sum[n][2 * half] = fmaf(by, sum[n][2 * half], difference ? -base.x : 0.0f);
          sum[n][2 * half + 1] = fmaf(by, sum[n][2 * half + 1], difference ? -base.y : 0.0f);
        }
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        Type::put(word_at(box, y * 2 + half, n), 0, make_float2(sum[n][2 * half], sum[n][2 * half + 1]));
  }
}

__device__ void clear_box(char *box) {
  for (int at = static_cast<int>(threadIdx.x % 32) * 16; at < kBoxBytes; at += 512)
    *reinterpret_cast<uint4 *>(box + at) = make_uint4(0, 0, 0, 0);
}

/// The area of one block of threads. With factors of rows a difference takes the weight off at the end.
template <typename Type>
__device__ void turn_area(Shared &shared, const TurnTarget &target, const Area &area, const TurnRun &run) {
  const RotationTask &task = target.rotation;
  const float m = multiplier_at(run.multipliers, task.multiplier_index);
  const bool difference = run.op == ops::WeightOp::kDiff;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  float factors[4] = {};
  if (m != 0.0f) {
    if (task.rescale.data)
      for (int r = 0; r < 4; ++r) factors[r] = element(task.rescale, min(area.y + r * 8 + lane / 4, target.rows - 1));
    rest_of_rows(shared.block, target, area, run.workspace);
    split<Type>(shared.factor, shared.block, m, difference && !task.rescale.data);
    __syncthreads();
  }
  Barrier{shared_address(&shared.full)}.wait(0);
  for (int number = warp; number < area.boxes; number += kWarps) {
    char *box = shared.boxes + number * kBoxBytes;
    if (m != 0.0f)
      turn_box<Type>(box, shared.factor, task.rescale, factors, difference);
    else if (difference)
      clear_box(box);
    publish_shared();  // the copy engine reads what was written here
    __syncwarp();
    if (lane == 0) copy_out(target.out, {area.x + number * kBoxColumns, 0, area.y, 0}, shared_address(box));
  }
  commit_copies();
  wait_for_copies();
}

#endif

template <typename Type>
__global__ void __launch_bounds__(kThreads, kResident) turn_kernel(const __grid_constant__ TurnRun run) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ char raw[];
  const auto unaligned = reinterpret_cast<std::uintptr_t>(raw);
  auto &shared = *reinterpret_cast<Shared *>(raw + (kBoxAlignment - unaligned % kBoxAlignment) % kBoxAlignment);
  const Barrier full{shared_address(&shared.full)};
  if (threadIdx.x == 0) {
    full.init(1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  begin_kernel();
  const bool alone = !run.table.targets;
  const int index = alone ? 0 : find_entry(run.table.pieces.first, run.table.pieces.count, blockIdx.x);
  const TurnTarget &target = alone ? run.only : run.table.targets[index];
  const Area area = area_of(target, static_cast<int>(blockIdx.x - (alone ? 0 : run.table.pieces.first[index])));
  if (threadIdx.x == 0) {
    full.arrive_expecting(area.boxes * kBoxBytes);
    for (int box = 0; box < area.boxes; ++box)
      copy_in(shared_address(shared.boxes + box * kBoxBytes), target.base, {area.x + box * kBoxColumns, 0, area.y, 0},
              full);
  }
  turn_area<Type>(shared, target, area, run);
#endif
}

constexpr std::size_t kSharedBytes = sizeof(Shared) + kBoxAlignment;

const void *kernel_for(bool bf16) {
  return bf16 ? reinterpret_cast<const void *>(turn_kernel<Bf16>) : reinterpret_cast<const void *>(turn_kernel<F16>);
}

}  // namespace

cudaError_t allow_turns(bool bf16) {
  return cudaFuncSetAttribute(kernel_for(bf16), cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
}

cudaError_t launch_turns(bool bf16, const TurnRun &run, const Launch &on) {
  void *arguments[] = {const_cast<TurnRun *>(&run)};
  return launch_kernel(kernel_for(bf16), run.table.pieces.pieces, kThreads, kSharedBytes, on, arguments);
}

}  // namespace lyc::cuda
