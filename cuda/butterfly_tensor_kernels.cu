// Rotations of many stages (BOFT) of a 16-bit weight's rows on the tensor cores, several stages at a time.
//
// A stage turns blocks of b rows made of two atoms, b / 2 neighbouring rows each, that lie 2^stage atoms apart. So the
// 2^n atoms whose numbers differ in n neighbouring bits, a cone, are closed under n stages.
//
// Work.     A warp has 16 columns of a cone in registers, as float32. Lanes share out a column in quads, a row of each
//           for every four lanes: so what a stage leaves behind in the fragments of operand C is there, too, for
//           operand A of the next one, whatever atoms it puts together, and nothing moves between lanes. Columns are
//           the rows of mma's operands, rows their ranks and columns; a cone's matrices R - I are operand B, from
//           shared memory, where a block of threads keeps them for all its columns.
// Traffic.  With passes of four stages ten of them read and write the weight three times; in between it is float32, in
//           the order of the registers. What limits is the multiplying: 3 b multiplications and additions an element
//           and stage.
// Numerics. Both factors come in two bf16 parts, of which three products count, and are summed in float32: about 2^-16
//           of what is added, where f16 rounds at 2^-12. The weight itself stays float32 throughout.
#include "device.cuh"
#include "rotation_kernels.hpp"

namespace lyc::cuda {
namespace {

/// An instance's properties as a type.
template <ConeKind kKind, int kWarpsOfBlock, int kBlocksWanted>
struct Shape {
  static constexpr int kQuads = quads_of(kKind), kStages = kTensorStages, kColumns = columns_of_piece(kKind);
  static constexpr int kWarps = kWarpsOfBlock, kBlocks = kBlocksWanted;  // blocks wanted on a multiprocessor
  static constexpr int kAtoms = 1 << kStages, kThreads = kWarps * 32;
  static constexpr int kWords = turn_words(kQuads);  // of a lane, of a matrix
};

/// The part of a rotation that one block of threads turns in one pass: a cone, or neighbouring ones where they are
/// small, of kAtoms atoms in all. What is beyond the last cone repeats that and is not stored.
template <typename S>
class Cones {
 public:
  __device__ Cones(const RotationTask &task, int pass, int piece)
      : part_(task.block_size / 2),
        first_stage_(pass * task.fused),
        stages_(min(task.fused, task.stages - first_stage_)),
        cones_((2 * task.blocks) >> stages_) {
    const int across = (static_cast<int>(task.columns) + S::kColumns - 1) / S::kColumns;
    group_ = piece / across;
    first_column_ = piece % across * S::kColumns;
    end_column_ = min(first_column_ + S::kColumns, static_cast<int>(task.columns));
    first_cone_ = group_ << (S::kStages - stages_);
  }

  __device__ int stages() const { return stages_; }
  /// Places with an atom of this weight.
  __device__ int atoms() const { return min(S::kAtoms, (cones_ - first_cone_) << stages_); }
  __device__ int first_column() const { return first_column_; }
  __device__ int end_column() const { return end_column_; }

  __device__ bool inside(int place) const { return first_cone_ + (place >> stages_) < cones_; }
  /// Among all atoms of the weight.
  __device__ int atom(int place) const {
    const int cone = min(first_cone_ + (place >> stages_), cones_ - 1), in_cone = place & ((1 << stages_) - 1);
    return cone >> first_stage_ << (first_stage_ + stages_) | in_cone << first_stage_ |
           (cone & ((1 << first_stage_) - 1));
  }
  __device__ std::int64_t row(int place) const { return std::int64_t{atom(place)} * part_; }

  /// In shared memory, and those of all groups before this one.
  __device__ int matrices() const { return stages_ * S::kAtoms / 2; }
  __device__ std::int64_t first_matrix() const {
    const int groups = (cones_ + (1 << (S::kStages - stages_)) - 1) >> (S::kStages - stages_);
    return (std::int64_t{first_stage_} * groups + std::int64_t{group_} * stages_) * (S::kAtoms / 2);
  }
  __device__ bool has_matrix(int matrix) const {
    const int stage = matrix / (S::kAtoms / 2), unit = matrix % (S::kAtoms / 2);
    return inside(unit >> stage << (stage + 1));
  }

 private:
  const int part_, first_stage_, stages_, cones_;
  int group_, first_cone_, first_column_, end_column_;
};

/// One warp's columns: lane 4 g + q has columns 2 g and 2 g + 1 of rows 4 s + q of each atom. Rows beyond an atom's
/// last repeat that, and the matrices have zeros there.
template <typename S>
struct Columns {
  float value[S::kAtoms][S::kQuads][2];
};

__device__ inline int lane_of_thread() { return static_cast<int>(threadIdx.x % 32); }

/// Where this lane's rows of an atom's quads are, from its first row on, in elements.
template <typename S>
struct QuadRows {
  std::int64_t offset[S::kQuads];

  __device__ QuadRows(const RotationTask &task, const Strided &weight) : last_(task.block_size / 2 - 1) {
#pragma unroll
    for (int s = 0; s < S::kQuads; ++s) offset[s] = row(s) * weight.out;
  }

  __device__ bool inside(int s) const { return 4 * s + lane_of_thread() % 4 <= last_; }
  __device__ int row(int s) const { return min(4 * s + lane_of_thread() % 4, last_); }

 private:
  const int last_;
};

template <typename S>
__device__ void load_weight(Columns<S> &x, const RotationTask &task, const Cones<S> &cones, std::int64_t column) {
  const QuadRows<S> rows(task, task.base);
  with_type<false>(task.base.dtype, [&](auto type) {
#pragma unroll
    for (int place = 0; place < S::kAtoms; ++place) {
      const std::int64_t first = cones.row(place) * task.base.out + column;
#pragma unroll
      for (int s = 0; s < S::kQuads; ++s) {
        const float2 two = type.load_pair(task.base.data, first + rows.offset[s]);
        x.value[place][s][0] = two.x, x.value[place][s][1] = two.y;
      }
    }
  });
}

/// Where this lane's part of the first atom's first quad lies between two passes; quads follow at 32, atoms at 32
/// kQuads.
template <typename S>
__device__ float2 *between(const RotationTask &task, int first_column, char *workspace) {
  const std::int64_t tile = first_column / kTurnColumns;
  return reinterpret_cast<float2 *>(workspace + task.turned[0]) + tile * 2 * task.blocks * S::kQuads * 32 +
         lane_of_thread();
}

template <typename S>
__device__ void load_between(Columns<S> &x, const Cones<S> &cones, const float2 *first) {
#pragma unroll
  for (int place = 0; place < S::kAtoms; ++place) {
    const float2 *of_atom = first + std::int64_t{cones.atom(place)} * S::kQuads * 32;
#pragma unroll
    for (int s = 0; s < S::kQuads; ++s) {
      const float2 two = of_atom[s * 32];
      x.value[place][s][0] = two.x, x.value[place][s][1] = two.y;
    }
  }
}

template <typename S>
__device__ void store_between(const Columns<S> &x, const Cones<S> &cones, float2 *first) {
#pragma unroll
  for (int place = 0; place < S::kAtoms; ++place) {
    if (!cones.inside(place)) continue;
    float2 *of_atom = first + std::int64_t{cones.atom(place)} * S::kQuads * 32;
#pragma unroll
    for (int s = 0; s < S::kQuads; ++s) of_atom[s * 32] = make_float2(x.value[place][s][0], x.value[place][s][1]);
  }
}

/// Factors of rows, and for a difference the weight taken off.
template <typename S>
__device__ void finish(Columns<S> &x, const RotationTask &task, ops::WeightOp op, const Cones<S> &cones,
                       std::int64_t column) {
  const QuadRows<S> rows(task, task.base);
  const bool difference = op == ops::WeightOp::kDiff;
  with_type<false>(task.base.dtype, [&](auto type) {
#pragma unroll
    for (int place = 0; place < S::kAtoms; ++place) {
      const std::int64_t row = cones.row(place), first = row * task.base.out + column;
#pragma unroll
      for (int s = 0; s < S::kQuads; ++s) {
        const float factor = element(task.rescale, row + rows.row(s));
        const float2 base = type.load_pair(task.base.data, first + rows.offset[s]);
        x.value[place][s][0] = fmaf(factor, x.value[place][s][0], difference ? -base.x : 0.0f);
        x.value[place][s][1] = fmaf(factor, x.value[place][s][1], difference ? -base.y : 0.0f);
      }
    }
  });
}

template <typename S>
__device__ void store_weight(const Columns<S> &x, const RotationTask &task, const Cones<S> &cones,
                             std::int64_t column) {
  const QuadRows<S> rows(task, task.result);
  auto *result = static_cast<std::uint16_t *>(task.result.data) + column;
  const bool has_columns = column < task.columns;
  with_type<false>(task.result.dtype, [&](auto type) {
#pragma unroll
    for (int place = 0; place < S::kAtoms; ++place) {
      std::uint16_t *first = result + cones.row(place) * task.result.out;
      const bool inside = has_columns && cones.inside(place);
#pragma unroll
      for (int s = 0; s < S::kQuads; ++s) {
        std::uint32_t word;
        type.put(&word, 0, make_float2(x.value[place][s][0], x.value[place][s][1]));
        if (inside && rows.inside(s)) *reinterpret_cast<std::uint32_t *>(first + rows.offset[s]) = word;
      }
    }
  });
}

/// d += a b: 16 x 8 times 8 x 8.
__device__ inline void multiply_half(float (&d)[4], uint2 a, std::uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(b));
}

/// x + m (R - I) x for two atoms, in place. A pair of quads makes 8 ranks, or an n tile; of the products of parts count
/// high by high, low by high and high by low. A matrix has for each n tile and two pairs of ranks their high parts and
/// then their low ones, which is where mma wants them; a last pair of ranks has both parts side by side.
template <typename S>
__device__ void turn(float (&low)[S::kQuads][2], float (&high)[S::kQuads][2], const char *matrix, float m) {
  constexpr int kQuads = S::kQuads, kTwos = kQuads / 2;
  const char *fours = matrix + lane_of_thread() * 16, *twos = matrix + kQuads * kTwos * 512 + lane_of_thread() * 8;
  const auto value = [&](int quad, int c) -> float & { return quad < kQuads ? low[quad][c] : high[quad - kQuads][c]; };
  uint2 parts[2][kQuads];
#pragma unroll
  for (int k = 0; k < kQuads; ++k) {
    const auto split = [&](int c, std::uint32_t &first, std::uint32_t &second) {
      const float2 two = make_float2(value(2 * k, c), value(2 * k + 1, c));
      Bf16::put(&first, 0, two);
      const float2 taken = Bf16::get(&first, 0);
      Bf16::put(&second, 0, make_float2(two.x - taken.x, two.y - taken.y));
    };
    split(0, parts[0][k].x, parts[1][k].x);
    split(1, parts[0][k].y, parts[1][k].y);
  }
  const auto both = [](uint2 a, uint2 b) { return make_uint4(a.x, a.y, b.x, b.y); };
  float d[kQuads][4];
#pragma unroll
  for (int t = 0; t < kQuads; ++t) {
#pragma unroll
    for (int k = 0; k < kTwos; ++k) {
      const uint4 four = *reinterpret_cast<const uint4 *>(fours + (t * kTwos + k) * 512);
      const uint4 of_high = both(parts[0][2 * k], parts[0][2 * k + 1]);
      if (k == 0)
        multiply<true, true>(d[t], of_high, make_uint2(four.x, four.y));
      else
        multiply<true>(d[t], of_high, make_uint2(four.x, four.y));
      multiply<true>(d[t], both(parts[1][2 * k], parts[1][2 * k + 1]), make_uint2(four.x, four.y));
      multiply<true>(d[t], of_high, make_uint2(four.z, four.w));
    }
    if constexpr (kQuads % 2 != 0) {
      const uint2 two = *reinterpret_cast<const uint2 *>(twos + t * 256);
      multiply<true>(d[t], both(parts[0][kQuads - 1], parts[0][kQuads - 1]), two);
      multiply_half(d[t], parts[1][kQuads - 1], two.x);
    }
  }
#pragma unroll
  for (int t = 0; t < kQuads; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float &of = value(2 * t + i % 2, i / 2);
      of = fmaf(m, d[t][i], of);
    }
}

template <typename S>
__device__ void turn_all(Columns<S> &x, int stages, int atoms, const char *matrices, float m) {
  constexpr int kUnits = S::kAtoms / 2, kBytes = S::kWords * 128, kUnitsTogether = 2;
#pragma unroll
  for (int stage = 0; stage < S::kStages; ++stage) {
    if (stage >= stages) break;
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int low = unit >> stage << (stage + 1) | (unit & ((1 << stage) - 1));
      if (unit % kUnitsTogether == 0 && low >= atoms) break;  // also keeps later units' values out of registers
      turn<S>(x.value[low], x.value[low | 1 << stage], matrices + (stage * kUnits + unit) * kBytes, m);
    }
  }
}

/// What no multiplier changes: bit for bit, in another type, or nothing, of a difference.
template <typename S>
__device__ void keep(const RotationTask &task, ops::WeightOp op, const Cones<S> &cones, std::int64_t column) {
  const bool difference = op == ops::WeightOp::kDiff, same = task.base.dtype == task.result.dtype && !difference;
  if ((same && task.base.data == task.result.data) || column >= task.columns) return;
  const QuadRows<S> rows(task, task.result);
#pragma unroll 1
  for (int place = 0; place < S::kAtoms; ++place) {
#pragma unroll 1
    for (int s = 0; s < S::kQuads; ++s) {
      if (!cones.inside(place) || !rows.inside(s)) continue;
      const std::int64_t row = cones.row(place) + rows.row(s);
      const auto *from = static_cast<const std::uint16_t *>(task.base.data) + row * task.base.out + column;
      std::uint32_t word = difference ? 0 : *reinterpret_cast<const std::uint32_t *>(from);
      if (!difference && !same)
        with_type<false>(task.base.dtype, [&](auto type) {
          const float2 two = type.get(&word, 0);
          with_type<false>(task.result.dtype, [&](auto other) { other.put(&word, 0, two); });
        });
      auto *to = static_cast<std::uint16_t *>(task.result.data) + row * task.result.out + column;
      *reinterpret_cast<std::uint32_t *>(to) = word;
    }
  }
}

/// Begin to fetch the matrices.
template <typename S>
__device__ void fetch_matrices(char *to, const char *from, const Cones<S> &cones) {
  constexpr int kBytes = S::kWords * 128;
  const std::uint32_t first = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  const bool all = cones.inside(S::kAtoms - 1);
  for (int at = static_cast<int>(threadIdx.x) * 16; at < cones.matrices() * kBytes; at += S::kThreads * 16)
    if (all || cones.has_matrix(at / kBytes))
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(first + at), "l"(from + at) : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    tensor_cone_kernel(const __grid_constant__ RotationRun run, const __grid_constant__ Schedule schedule, int pass) {
  begin_kernel();
  extern __shared__ __align__(16) char matrices[];
  const int index = find_entry(schedule.first, schedule.count, blockIdx.x);
  const RotationTask &task = run.rotations[index];
  int piece = static_cast<int>(blockIdx.x - schedule.first[index]);
  const Cones<S> cones(task, pass, piece);
  const bool first = pass == 0, last = (pass + 1) * task.fused >= task.stages;
  const float m = multiplier_at(run.multipliers, task.multiplier_index);
  if (m != 0.0f)
    fetch_matrices<S>(matrices, run.workspace + task.matrices + cones.first_matrix() * S::kWords * 128, cones);
  bool fetched = false;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int set = cones.first_column(); set < cones.end_column(); set += S::kWarps * kTurnColumns) {
    const int first_column = set + warp * kTurnColumns;
    const std::int64_t column = first_column + lane_of_thread() / 4 * 2, near = min(column, task.columns - 2);
    if (m == 0.0f) {
      if (last) keep<S>(task, run.op, cones, column);
      continue;
    }
    const bool works = first_column < cones.end_column();
    Columns<S> x;
    float2 *stored = between<S>(task, first_column, run.workspace);
    // Where rows are is found again each time: registers are full of the weight.
    const auto again = [&] {
      asm volatile("" : "+r"(piece));
      return Cones<S>(task, pass, piece);
    };
    if (works && first) load_weight<S>(x, task, again(), near);
    if (works && !first) load_between<S>(x, again(), stored);
    if (!fetched) {
      asm volatile("cp.async.wait_all;" ::: "memory");
      __syncthreads();
      fetched = true;
    }
    if (!works) continue;
    turn_all<S>(x, cones.stages(), cones.atoms(), matrices, m);
    if (!last) {
      store_between<S>(x, again(), stored);
      continue;
    }
    if (task.rescale.data || run.op == ops::WeightOp::kDiff) finish<S>(x, task, run.op, again(), near);
    store_weight<S>(x, task, again(), column);
  }
}

struct Instance {
  void (*kernel)(RotationRun, Schedule, int);
  int threads;
};

template <typename S>
constexpr Instance instance() {
  return {tensor_cone_kernel<S>, S::kThreads};
}

// By ConeKind, but for that of float32.
constexpr Instance kInstances[] = {instance<Shape<ConeKind::kThreeQuads, 4, 3>>(),
                                   instance<Shape<ConeKind::kFourQuads, 8, 1>>()};

}  // namespace

cudaError_t allow_tensor_cones(ConeKind kind) {
  const Instance &instance = kInstances[static_cast<int>(kind) - 1];
  return cudaFuncSetAttribute(reinterpret_cast<const void *>(instance.kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, cone_bytes(kind));
}

cudaError_t launch_tensor_cones(ConeKind kind, const RotationRun &run, const Schedule &schedule, int pass,
                                const Launch &on) {
  const Instance &instance = kInstances[static_cast<int>(kind) - 1];
  void *arguments[] = {const_cast<RotationRun *>(&run), const_cast<Schedule *>(&schedule), &pass};
  return launch_kernel(reinterpret_cast<const void *>(instance.kernel), schedule.pieces, instance.threads,
                       static_cast<std::size_t>(cone_bytes(kind)), on, arguments);
}

}  // namespace lyc::cuda
