// Blocks of a 16-bit weight's rows turned by a rotation of one stage (OFT), on GPUs that have a copy engine (Hopper and
// later): out = s (I + m (R - I)) W, or what that differs from W by.
//
// Work.     Boxes of kTurnRows x kBoxColumns, weight after weight and row after row, are dealt out to one block of
//           threads a multiprocessor, neighbours to each. kWarps of its warps multiply boxes where they lie, each with
//           a ring of its own that the copy engine fills and empties; kInverters others make the factors of groups of
//           rows from their generators, a group each (rotation.cuh), as far ahead as they can.
// Traffic.  The weight read once and written once; generators once more where a block of threads begins inside a group.
//           What limits is the first factor, some 6 us, and memory then. What stands in the queue to memory holds up
//           generators and instructions, so that rings are short, are filled one box after the other, and only once
//           the first generators are there.
// Numerics. m (R - I), float32, comes in two 16-bit parts, which tensor cores multiply exactly and sum in float32. That
//           is added to W in float32; one rounding, at the store. At multiplier 0 boxes pass unchanged.
#include "copy_engine.cuh"
#include "rotation.cuh"

namespace lyc::cuda {
namespace {

constexpr int kWarps = 8, kInverters = 4, kThreads = (kWarps + kInverters) * 32;
constexpr int kMostDepth = 3;                    // boxes of a ring
constexpr int kSteps = kTurnRows / kChunkRanks;  // over rows that are summed over, and over 16 rows at a time
constexpr int kParts = 2;
constexpr int kRowBytes = kBoxColumns * 2, kBoxBytes = kTurnRows * kRowBytes, kBoxAlignment = 1024;

/// What a group of rows is multiplied by.
struct TurnFactor {
  uint4 word[kSteps][kSteps][kParts][32];  // m (R - I) as operand A of mma: rows 16 y on, ranks 16 k on
  float2 row[kTurnRows];                   // of each, what its product is times and what itself is times
  float m;
};

/// Beside the rings.
struct Shared {
  union {
    SmallBlock generators;
    TurnFactor factor;
  } held[kInverters];
  std::uint64_t made[kInverters], taken[kInverters], full[kWarps][kMostDepth];
  std::uint64_t begun;  // the first blocks of the rotation have been loaded
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// The boxes of a block of threads in steps: up to kWarps side by side, one for each warp. Those of a group have the
/// same rows.
class Steps {
 public:
  __device__ explicit Steps(const TurnRun &run)
      : run_(run),
        box_(blockIdx.x * run.boxes + min(blockIdx.x, run.longer)),
        end_(box_ + run.boxes + (blockIdx.x < run.longer ? 1 : 0)) {
    find_group();
  }

  __device__ bool at_end() const { return box_ == end_; }
  __device__ bool begins_group() const { return box_ == group_begin_; }
  __device__ int group() const { return group_; }  // of this block's
  __device__ const TurnTarget &target() const { return *target_; }
  __device__ int y() const { return y_; }
  __device__ int rows() const { return min(kTurnRows, target_->rows - y_); }
  __device__ int boxes() const { return static_cast<int>(min(std::uint32_t{kWarps}, group_end_ - box_)); }
  __device__ Place place(int number) const {
    return {(x_ + static_cast<int>(box_ - group_begin_) + number) * kBoxColumns, 0, y_, 0};
  }

  __device__ void next() {
    box_ += boxes();
    if (box_ == group_end_) find_group();
  }
  __device__ void next_group() {
    box_ = group_end_;
    find_group();
  }

 private:
  __device__ void find_group() {
    if (at_end()) return;
    if (box_ >= target_end_) enter();
    const int local = static_cast<int>(box_ - target_begin_), y = local / across_;
    x_ = local - y * across_;
    y_ = y * kTurnRows;
    group_begin_ = box_;
    group_end_ = min(end_, box_ + across_ - x_);
    ++group_;
  }

  __device__ void enter() {
    const Schedule &pieces = run_.table.pieces;
    target_end_ = pieces.pieces;
    if (run_.table.targets) {
      const int index = find_entry(pieces.first, pieces.count, box_);
      target_ = run_.table.targets + index;
      target_begin_ = pieces.first[index];
      if (index + 1 < pieces.count) target_end_ = pieces.first[index + 1];
    } else {
      target_ = &run_.only;
    }
    across_ = (target_->columns + kBoxColumns - 1) / kBoxColumns;
  }

  const TurnRun &run_;
  const TurnTarget *target_ = nullptr;
  std::uint32_t box_, end_, group_begin_ = 0, group_end_ = 0, target_begin_ = 0, target_end_ = 0;
  int group_ = -1, across_ = 1, x_ = 0, y_ = 0;
};

// -- the warps that make factors --------------------------------------------------------------------------------------

/// A group's blocks of the rotation, on the diagonal: generators, or R - I where it has been computed.
__device__ void load_group(SmallBlock &x, const Steps &at, const char *workspace) {
  const RotationTask &task = at.target().rotation;
  const int b = task.block_size, first = at.y() / b;
  if (task.late) return load_generators(x, task, first, at.rows());
  const void *rests = task.prepared ? static_cast<const void *>(task.prepared) : workspace + task.rests;
  load_blocks(x, {rests, LYC_DTYPE_F32, b * b}, 1, false, first, b, at.rows());
}

__device__ void rest_of_group(Fragment<kTurnRows> &rest, const SmallBlock &x, const Steps &at, const char *workspace) {
  const RotationTask &task = at.target().rotation;
  if (task.late) return turn_less_identity<kTurnRows>(rest, x, task, at.rows(), workspace);
#pragma unroll
  for (int a = 0; a < kTurnRows / 8; ++a)
#pragma unroll
    for (int c = 0; c < kTurnRows / 4; ++c) rest[a][c] = x[row_of(a)][column_of(c)];
}

/// m (R - I) in parts.
template <typename Type>
__device__ void split(TurnFactor &factor, const Fragment<kTurnRows> &rest, float m) {
#pragma unroll
  for (int y = 0; y < kSteps; ++y)
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      std::uint32_t word[kParts][4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float *two = &rest[2 * y + w % 2][4 * k + w / 2 * 2];
        float2 value = make_float2(m * two[0], m * two[1]);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          Type::put(word[part], w, value);
          const float2 taken = Type::get(word[part], w);
          value.x -= taken.x, value.y -= taken.y;
        }
      }
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        factor.word[y][k][part][threadIdx.x % 32] =
            make_uint4(word[part][0], word[part][1], word[part][2], word[part][3]);
    }
}

template <typename Type>
__device__ void make_factors(Shared &shared, const TurnRun &run, int inverter) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const Barrier made{shared_address(&shared.made[inverter])}, taken{shared_address(&shared.taken[inverter])};
  const Barrier begun{shared_address(&shared.begun)};
  auto &held = shared.held[inverter];
  Steps at(run);
  const auto skip = [&](int groups) {
    for (; groups > 0 && !at.at_end(); --groups) at.next_group();
  };
  skip(inverter);
  if (!at.at_end() && at.target().rotation.late)
    prefetch_generators(at.target().rotation, at.y() / at.target().rotation.block_size, at.rows());
  begin_kernel();
  if (at.at_end()) begun.arrive();
  for (int round = 0; !at.at_end(); ++round, skip(kInverters)) {
    taken.wait(round + 1);  // what was here before
    load_group(held.generators, at, run.workspace);
    if (round == 0) begun.arrive();
    const TurnTarget &target = at.target();
    const float m = multiplier_at(run.multipliers, target.rotation.multiplier_index);
    const float scale = element(target.rotation.rescale, min(at.y() + lane, target.rows - 1));
    if (m != 0.0f) {
      Fragment<kTurnRows> rest;
      rest_of_group(rest, held.generators, at, run.workspace);
      __syncwarp();
      split<Type>(held.factor, rest, m);
    } else {
      __syncwarp();
    }
    held.factor.row[lane] = make_float2(scale, run.op == ops::WeightOp::kDiff ? scale - 1.0f : scale);
    if (lane == 0) held.factor.m = m;
    made.arrive();
  }
}

// -- the warps that multiply ------------------------------------------------------------------------------------------

/// A factor in registers.
struct HeldFactor {
  uint4 word[kSteps][kSteps][kParts];
  float2 row[kSteps][2];
  float m;

  __device__ void take(const TurnFactor &from) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    m = from.m;
#pragma unroll
    for (int y = 0; y < kSteps; ++y) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int part = 0; part < kParts; ++part) word[y][k][part] = from.word[y][k][part][lane];
#pragma unroll
      for (int half = 0; half < 2; ++half) row[y][half] = from.row[16 * y + 8 * half + lane / 4];
    }
  }
};

/// One box, in place, 16 columns at a time.
template <typename Type>
__device__ void turn_box(std::uint32_t box, const HeldFactor &factor) {
  constexpr bool kBf16 = std::is_same_v<Type, Bf16>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::uint32_t first = box + swizzled_128(lane % 16, lane / 16);
#pragma unroll
  for (int n = 0; n < kBoxColumns / 8; n += 2) {
    const std::uint32_t at = first ^ n * 16;
    uint4 columns[kSteps], words[kSteps];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      columns[k] = load_matrices<true>(at + k * kChunkRanks * kRowBytes);
      words[k] = load_matrices<false>(at + k * kChunkRanks * kRowBytes);
    }
    __syncwarp();
    float sum[kSteps][2][4] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int y = 0; y < kSteps; ++y) {
          multiply<kBf16>(sum[y][0], factor.word[y][k][part], make_uint2(columns[k].x, columns[k].y));
          multiply<kBf16>(sum[y][1], factor.word[y][k][part], make_uint2(columns[k].z, columns[k].w));
        }
#pragma unroll
    for (int y = 0; y < kSteps; ++y) {
      std::uint32_t word[4] = {words[y].x, words[y].y, words[y].z, words[y].w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 by = factor.row[y][w % 2], base = Type::get(word, w);
        const float *turned = &sum[y][w / 2][w % 2 * 2];
        Type::put(word, w, make_float2(fmaf(by.x, turned[0], by.y * base.x), fmaf(by.x, turned[1], by.y * base.y)));
      }
      store_matrices(at + y * kChunkRanks * kRowBytes, make_uint4(word[0], word[1], word[2], word[3]));
    }
  }
}

__device__ void clear_box(char *box) {
  for (int at = static_cast<int>(threadIdx.x % 32) * 16; at < kBoxBytes; at += 512)
    *reinterpret_cast<uint4 *>(box + at) = make_uint4(0, 0, 0, 0);
}

/// Boxes of one warp: loaded a ring's depth ahead.
template <typename Type>
__device__ void turn_boxes(char *rings, Shared &shared, const TurnRun &run, int warp) {
  const int lane = static_cast<int>(threadIdx.x % 32), depth = run.depth;
  char *ring = rings + warp * depth * kBoxBytes;
  const auto full = [&](int slot) { return Barrier{shared_address(&shared.full[warp][slot])}; };
  const auto after = [&](int slot) { return slot + 1 == depth ? 0 : slot + 1; };

  Steps load(run), at(run);
  if (lane == 0 && !at.at_end()) prefetch(at.target().base), prefetch(at.target().out);
  begin_kernel();
  Barrier{shared_address(&shared.begun)}.wait(0);
  int to = 0;
  const auto load_next = [&] {
    while (!load.at_end() && load.boxes() <= warp) load.next();
    if (load.at_end()) return false;
    if (lane == 0) {
      full(to).arrive_expecting(kBoxBytes);
      copy_in(shared_address(ring + to * kBoxBytes), load.target().base, load.place(warp), full(to));
    }
    to = after(to);
    load.next();
    return true;
  };
  // One after the other: a longer queue holds up generators and instructions, while factors are not ready anyway.
  for (int slot = 0; slot < depth && load_next(); ++slot) full(slot).wait(0);

  HeldFactor factor;
  int slot = 0, round = 0;
  bool first = true;
  for (; !at.at_end(); at.next()) {
    if (at.begins_group()) {
      const int inverter = at.group() % kInverters;
      Barrier{shared_address(&shared.made[inverter])}.wait(at.group() / kInverters);
      factor.take(shared.held[inverter].factor);
      Barrier{shared_address(&shared.taken[inverter])}.arrive();
    }
    if (at.boxes() <= warp) continue;
    char *box = ring + slot * kBoxBytes;
    full(slot).wait(round);
    if (factor.m != 0.0f)
      turn_box<Type>(shared_address(box), factor);
    else if (run.op == ops::WeightOp::kDiff)
      clear_box(box);
    publish_shared();  // the copy engine reads what was written here
    __syncwarp();
    if (lane == 0) copy_out(at.target().out, at.place(warp), shared_address(box));
    commit_copies();
    if (!first && !load.at_end()) {
      wait_until_read<1>();  // the slot before this one is free
      load_next();
    }
    first = false;
    slot = after(slot);
    if (slot == 0) ++round;
  }
  wait_for_copies();
}

#endif

template <typename Type>
__global__ void __launch_bounds__(kThreads, 1) turn_kernel(const __grid_constant__ TurnRun run) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ char raw[];
  const auto unaligned = reinterpret_cast<std::uintptr_t>(raw);
  char *rings = raw + (kBoxAlignment - unaligned % kBoxAlignment) % kBoxAlignment;
  auto &shared = *reinterpret_cast<Shared *>(rings + run.depth * kWarps * kBoxBytes);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  if (thread < kInverters) {
    Barrier{shared_address(&shared.made[thread])}.init(32);
    Barrier{shared_address(&shared.taken[thread])}.init(kWarps * 32);
  }
  if (thread == 0) Barrier{shared_address(&shared.begun)}.init(kInverters * 32);
  if (thread < kWarps * kMostDepth) Barrier{shared_address(&shared.full[0][thread])}.init(1);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  if (warp < kWarps)
    turn_boxes<Type>(rings, shared, run, warp);
  else
    make_factors<Type>(shared, run, warp - kWarps);
#endif
}

const void *kernel_for(bool bf16) {
  return bf16 ? reinterpret_cast<const void *>(turn_kernel<Bf16>) : reinterpret_cast<const void *>(turn_kernel<F16>);
}

int bytes_of(int depth) { return kBoxAlignment + depth * kWarps * kBoxBytes + static_cast<int>(sizeof(Shared)); }

}  // namespace

cudaError_t fit_turns(bool bf16, int shared_bytes, std::int32_t *depth) {
  *depth = kMostDepth;
  while (bytes_of(*depth) > shared_bytes) --*depth;
  return cudaFuncSetAttribute(kernel_for(bf16), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes_of(*depth));
}

cudaError_t launch_turns(bool bf16, const TurnRun &run, const Launch &on) {
  void *arguments[] = {const_cast<TurnRun *>(&run)};
  return launch_kernel(kernel_for(bf16), run.blocks, kThreads, static_cast<std::size_t>(bytes_of(run.depth)), on,
                       arguments);
}

}  // namespace lyc::cuda
