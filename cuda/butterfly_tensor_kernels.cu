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
// Traffic.  With passes of five stages ten of them read and write the weight twice; in between it is float32, in the
//           order of the registers. What limits is the multiplying: 3 b multiplications and additions an element and
//           stage.
// Numerics. Both factors come in two bf16 parts, of which three products count, and are summed in float32: about 2^-16
//           of what is added, where f16 rounds at 2^-12. The weight itself stays float32 throughout.
#include "device.cuh"
#include "rotation_kernels.hpp"

namespace lyc::cuda {
namespace {

/// An instance's properties as a type.
template <ConeKind kKind, int kWarpsOfBlock, int kBlocksWanted>
struct Shape {
  static constexpr int kQuads = quads_of(kKind), kStages = stages_of(kKind), kColumns = columns_of_piece(kKind);
  static constexpr int kWarps = kWarpsOfBlock, kBlocks = kBlocksWanted;  // blocks wanted on a multiprocessor
  static constexpr int kAtoms = 1 << kStages, kThreads = kWarps * 32;
  static constexpr int kWords = turn_words(kQuads);  // of a lane, of a matrix
};

/// The part of a rotation that one block of threads turns in one pass.
class Cone {
 public:
  __device__ Cone(const RotationTask &task, int pass, int piece, int width)
      : task_(task), first_stage_(pass * task.fused), stages_(min(task.fused, task.stages - first_stage_)) {
    const int across = (static_cast<int>(task.columns) + width - 1) / width;
    number_ = piece / across;
    first_column_ = piece % across * width;
    end_column_ = min(first_column_ + width, static_cast<int>(task.columns));
    first_atom_ = (number_ >> first_stage_) << (first_stage_ + stages_) | (number_ & ((1 << first_stage_) - 1));
  }

  __device__ int stages() const { return stages_; }
  __device__ int atoms() const { return 1 << stages_; }
  __device__ int units() const { return 1 << (stages_ - 1); }  // blocks of rows
  __device__ int first_column() const { return first_column_; }
  __device__ int end_column() const { return end_column_; }
  /// Among all atoms.
  __device__ int atom(int local) const { return first_atom_ + (local << first_stage_); }
  __device__ int all_atoms() const { return 2 * task_.blocks; }
  __device__ int matrices() const { return stages_ * units(); }
  __device__ std::int64_t first_matrix() const {
    return std::int64_t{first_stage_} * task_.blocks + std::int64_t{number_} * matrices();
  }

 private:
  const RotationTask &task_;
  const int first_stage_, stages_;
  int number_, first_column_, end_column_, first_atom_;
};

/// One warp's columns of a cone: lane 4 g + q has columns 2 g and 2 g + 1 of rows 4 s + q of each atom. Rows beyond an
/// atom's last repeat that, and the matrices have zeros there.
template <typename S>
struct Columns {
  float value[S::kAtoms][S::kQuads][2];
};

__device__ inline int lane_of_thread() { return static_cast<int>(threadIdx.x % 32); }

/// Call with where in the weight each atom's quad of this lane's rows begins, as far as the first column.
template <typename S, typename Visit>
__device__ void for_rows(const RotationTask &task, const Cone &cone, Visit visit) {
  const int part = task.block_size / 2, q = lane_of_thread() % 4;
#pragma unroll
  for (int atom = 0; atom < S::kAtoms; ++atom) {
    if (atom >= cone.atoms()) break;
    const std::int64_t first = std::int64_t{cone.atom(atom)} * part;
#pragma unroll
    for (int s = 0; s < S::kQuads; ++s) visit(atom, s, first + min(4 * s + q, part - 1), 4 * s + q < part);
  }
}

template <typename S>
__device__ void load_weight(Columns<S> &x, const RotationTask &task, const Cone &cone, std::int64_t column) {
  with_type<false>(task.base.dtype, [&](auto type) {
    for_rows<S>(task, cone, [&](int atom, int s, std::int64_t row, bool) {
      const float2 two = type.load_pair(task.base.data, row * task.base.out + column);
      x.value[atom][s][0] = two.x, x.value[atom][s][1] = two.y;
    });
  });
}

/// Where this lane's part of the first atom's first quad lies between two passes; quads follow at 32, atoms at 32
/// kQuads.
template <typename S>
__device__ float2 *between(const RotationTask &task, const Cone &cone, int first_column, char *workspace) {
  const std::int64_t tile = first_column / kTurnColumns;
  return reinterpret_cast<float2 *>(workspace + task.turned[0]) + tile * cone.all_atoms() * S::kQuads * 32 +
         lane_of_thread();
}

template <typename S, typename Visit>
__device__ void for_quads(const Cone &cone, float2 *first, Visit visit) {
#pragma unroll
  for (int atom = 0; atom < S::kAtoms; ++atom) {
    if (atom >= cone.atoms()) break;
    float2 *of_atom = first + std::int64_t{cone.atom(atom)} * S::kQuads * 32;
#pragma unroll
    for (int s = 0; s < S::kQuads; ++s) visit(atom, s, of_atom + s * 32);
  }
}

template <typename S>
__device__ void store_weight(const Columns<S> &x, const RotationTask &task, ops::WeightOp op, const Cone &cone,
                             std::int64_t column) {
  const bool inside = column < task.columns, difference = op == ops::WeightOp::kDiff;
  with_type<false>(task.result.dtype, [&](auto type) {
    for_rows<S>(task, cone, [&](int atom, int s, std::int64_t row, bool has_row) {
      if (!inside || !has_row) return;
      float2 two = make_float2(x.value[atom][s][0], x.value[atom][s][1]);
      if (task.rescale.data) {
        const float factor = element(task.rescale, row);
        two.x *= factor, two.y *= factor;
      }
      if (difference) {
        const float2 base = type.load_pair(task.base.data, row * task.base.out + column);
        two.x -= base.x, two.y -= base.y;
      }
      std::uint32_t word;
      type.put(&word, 0, two);
      auto *to = static_cast<std::uint16_t *>(task.result.data) + row * task.result.out + column;
      *reinterpret_cast<std::uint32_t *>(to) = word;
    });
  });
}

/// d += a b: 16 x 8 times 8 x 8.
__device__ inline void multiply_half(float (&d)[4], uint2 a, std::uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(b));
}

/// x + m (R - I) x for two atoms, in place. A pair of quads makes 8 ranks, or an n tile; a product of parts follows the
/// other, 8 ranks at a time: high by high, low by high, high by low.
template <typename S>
__device__ void turn(float (&low)[S::kQuads][2], float (&high)[S::kQuads][2], const char *matrix, float m) {
  constexpr int kQuads = S::kQuads, kWords = S::kWords, kSteps = 3 * kQuads;
  std::uint32_t b[kWords];
  const int lane = lane_of_thread();
#pragma unroll
  for (int w = 0; w + 4 <= kWords; w += 4) {
    const uint4 four = *reinterpret_cast<const uint4 *>(matrix + w * 128 + lane * 16);
    b[w] = four.x, b[w + 1] = four.y, b[w + 2] = four.z, b[w + 3] = four.w;
  }
  if constexpr (kWords % 4 != 0) {
    const uint2 two = *reinterpret_cast<const uint2 *>(matrix + kWords / 4 * 512 + lane * 8);
    b[kWords - 2] = two.x, b[kWords - 1] = two.y;
  }
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
  const auto a_of = [&](int step) { return parts[step / kQuads == 1][step % kQuads]; };
  const auto b_of = [&](int t, int step) { return b[(t * kQuads + step % kQuads) * 2 + (step / kQuads == 2)]; };
  float d[kQuads][4];
#pragma unroll
  for (int step = 0; step < kSteps; step += 2)
#pragma unroll
    for (int t = 0; t < kQuads; ++t) {
      const uint2 a = a_of(step);
      if (step + 1 == kSteps) {
        multiply_half(d[t], a, b_of(t, step));
        continue;
      }
      const uint2 next = a_of(step + 1);
      const uint4 both = make_uint4(a.x, a.y, next.x, next.y);
      const uint2 factor = make_uint2(b_of(t, step), b_of(t, step + 1));
      if (step == 0)
        multiply<true, true>(d[t], both, factor);
      else
        multiply<true>(d[t], both, factor);
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
__device__ void turn_all(Columns<S> &x, const Cone &cone, const char *matrices, float m) {
#pragma unroll
  for (int stage = 0; stage < S::kStages; ++stage) {
    if (stage >= cone.stages()) break;
#pragma unroll
    for (int unit = 0; unit < S::kAtoms / 2; ++unit) {
      if (unit >= cone.units()) break;
      const int low = (unit >> stage) << (stage + 1) | (unit & ((1 << stage) - 1));
      turn<S>(x.value[low], x.value[low | 1 << stage], matrices + (stage * cone.units() + unit) * S::kWords * 128, m);
    }
  }
}

/// What no multiplier changes: bit for bit, in another type, or nothing, of a difference.
template <typename S>
__device__ void keep(const RotationTask &task, ops::WeightOp op, const Cone &cone, std::int64_t column) {
  const bool same = task.base.dtype == task.result.dtype && op != ops::WeightOp::kDiff;
  if ((same && task.base.data == task.result.data) || column >= task.columns) return;
  for_rows<S>(task, cone, [&](int, int, std::int64_t row, bool has_row) {
    if (!has_row) return;
    const auto *from = static_cast<const std::uint16_t *>(task.base.data) + row * task.base.out + column;
    std::uint32_t word = op == ops::WeightOp::kDiff ? 0 : *reinterpret_cast<const std::uint32_t *>(from);
    if (task.base.dtype != task.result.dtype && op != ops::WeightOp::kDiff)
      with_type<false>(task.base.dtype, [&](auto type) {
        const float2 two = type.get(&word, 0);
        with_type<false>(task.result.dtype, [&](auto other) { other.put(&word, 0, two); });
      });
    auto *to = static_cast<std::uint16_t *>(task.result.data) + row * task.result.out + column;
    *reinterpret_cast<std::uint32_t *>(to) = word;
  });
}

/// Begin to fetch a cone's matrices.
template <typename S>
__device__ void fetch_matrices(char *to, const char *from, int count) {
  const std::uint32_t first = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  for (int at = static_cast<int>(threadIdx.x) * 16; at < count * S::kWords * 128; at += S::kThreads * 16)
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
  const Cone cone(task, pass, static_cast<int>(blockIdx.x - schedule.first[index]), S::kColumns);
  const bool first = pass == 0, last = (pass + 1) * task.fused >= task.stages;
  const float m = multiplier_at(run.multipliers, task.multiplier_index);
  if (m != 0.0f)
    fetch_matrices<S>(matrices, run.workspace + task.matrices + cone.first_matrix() * S::kWords * 128, cone.matrices());
  bool fetched = false;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int set = cone.first_column(); set < cone.end_column(); set += S::kWarps * kTurnColumns) {
    const int first_column = set + warp * kTurnColumns;
    const std::int64_t column = first_column + lane_of_thread() / 4 * 2, near = min(column, task.columns - 2);
    if (m == 0.0f) {
      if (last) keep<S>(task, run.op, cone, column);
      continue;
    }
    const bool works = first_column < cone.end_column();
    Columns<S> x;
    float2 *stored = between<S>(task, cone, first_column, run.workspace);
    if (works && first) load_weight<S>(x, task, cone, near);
    if (works && !first)
      for_quads<S>(cone, stored, [&](int atom, int s, const float2 *at) {
        const float2 two = *at;
        x.value[atom][s][0] = two.x, x.value[atom][s][1] = two.y;
      });
    if (!fetched) {
      asm volatile("cp.async.wait_all;" ::: "memory");
      __syncthreads();
      fetched = true;
    }
    if (!works) continue;
    turn_all<S>(x, cone, matrices, m);
    if (last)
      store_weight<S>(x, task, run.op, cone, column);
    else
      for_quads<S>(cone, stored,
                   [&](int atom, int s, float2 *at) { *at = make_float2(x.value[atom][s][0], x.value[atom][s][1]); });
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
constexpr Instance kInstances[] = {instance<Shape<ConeKind::kThreeFive, 8, 1>>(),
                                   instance<Shape<ConeKind::kThreeFour, 4, 3>>(),
                                   instance<Shape<ConeKind::kFourFour, 8, 1>>()};

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
