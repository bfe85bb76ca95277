// Rotations of many stages (BOFT) of a weight's rows, several stages at a time.
//
// A stage turns blocks of b rows made of two atoms, b / 2 neighbouring rows each, that lie 2^stage atoms apart. So the
// 2^n atoms whose numbers differ in n neighbouring bits are closed under n stages.
//
// Work.     A block of threads takes such atoms, 64 columns wide, into shared memory, as float32, turns them n times
// and
//           sends them on: to a float32 copy, or, after the last stage, to the result. A warp turns one block of rows,
//           a thread two of its columns, which it has in registers.
// Traffic.  With passes of five stages ten of them read and write the weight twice, not ten times. What limits is the
//           multiplying: b multiplications and additions an element and stage, in float32 as everywhere.
#include "device.cuh"
#include "rotation_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kConeColumns = columns_of_piece(ConeKind::kFloat);

/// Two columns of a row, of any type.
__device__ float2 load_two(const Strided &weight, std::int64_t row, std::int64_t column) {
  float2 two;
  with_type<true>(weight.dtype, [&](auto type) { two = type.load_pair(weight.data, row * weight.out + column); });
  return two;
}

__device__ void store_two(const Strided &weight, std::int64_t row, std::int64_t column, float2 two) {
  const std::int64_t offset = row * weight.out + column;
  if (weight.dtype == LYC_DTYPE_F32) {
    *reinterpret_cast<float2 *>(static_cast<float *>(weight.data) + offset) = two;
    return;
  }
  std::uint32_t word;
  with_type<false>(weight.dtype, [&](auto type) { type.put(&word, 0, two); });
  *reinterpret_cast<std::uint32_t *>(static_cast<std::uint16_t *>(weight.data) + offset) = word;
}

/// The part of a rotation that one block of threads turns in one pass.
class Cone {
 public:
  __device__ Cone(const RotationTask &task, int pass, int piece)
      : task_(task), first_stage_(pass * task.fused), stages_(min(task.fused, task.stages - first_stage_)) {
    const int across = (static_cast<int>(task.columns) + kConeColumns - 1) / kConeColumns, group = piece / across;
    part_ = task.block_size / 2;
    first_column_ = piece % across * kConeColumns;
    first_atom_ = (group >> first_stage_) << (first_stage_ + stages_) | (group & ((1 << first_stage_) - 1));
  }

  __device__ int stages() const { return stages_; }
  __device__ int rows() const { return part_ << stages_; }
  __device__ int units() const { return 1 << (stages_ - 1); }  // blocks of rows
  /// In the weight.
  __device__ std::int64_t row(int local) const {
    const int atom = local / part_;
    return std::int64_t{first_atom_ + (atom << first_stage_)} * part_ + local - atom * part_;
  }
  __device__ std::int64_t column() const { return first_column_ + static_cast<int>(threadIdx.x % 32) * 2; }
  __device__ bool inside() const { return column() < task_.columns; }

  /// The lower atom of a unit in this pass's stage `stage`, as numbered here; the upper one has that bit, too.
  __device__ int lower_atom(int stage, int unit) const {
    return (unit >> stage) << (stage + 1) | (unit & ((1 << stage) - 1));
  }
  /// Where position i of a unit lies.
  __device__ int local_row(int stage, int unit, int i) const {
    const int low = lower_atom(stage, unit);
    const bool interleaved = task_.order == ops::Rotation::Order::kInterleave;
    const int upper = interleaved ? i & 1 : i >= part_, inside = interleaved ? i >> 1 : i - upper * part_;
    return (low | upper << stage) * part_ + inside;
  }
  /// R - I of a unit.
  __device__ const float *rest(const float *rests, int stage, int unit) const {
    const int absolute = first_stage_ + stage, atom = first_atom_ + (lower_atom(stage, unit) << first_stage_);
    const std::int64_t block = std::int64_t{atom >> (absolute + 1)} << absolute | (atom & ((1 << absolute) - 1));
    return rests + (std::int64_t{absolute} * task_.blocks + block) * task_.block_size * task_.block_size;
  }

 private:
  const RotationTask &task_;
  const int first_stage_, stages_;
  int part_, first_column_, first_atom_;
};

/// x + m (R - I) x for the b <= kMost rows of a unit, in place; `rows[i]` is where position i of this thread's columns
/// is.
template <int kMost, typename Row>
__device__ void turn(const float *rest, int b, float m, Row row) {
  constexpr int kFours = kMost / 4;
  float2 x[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i) x[i] = i < b ? *row(i) : make_float2(0.0f, 0.0f);
  const auto load = [&](float4(&four)[kFours], int j) {
#pragma unroll
    for (int q = 0; q < kFours; ++q)
      four[q] = q * 4 < b ? __ldg(reinterpret_cast<const float4 *>(rest + min(j, b - 1) * b) + q)
                          : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  };
  float4 four[kFours], next[kFours];
  load(four, 0);
#pragma unroll 1
  for (int j = 0; j < b; ++j) {
    load(next, j + 1);
    float2 sum = make_float2(0.0f, 0.0f), other = sum;
#pragma unroll
    for (int q = 0; q < kFours; ++q) {
      sum.x = fmaf(four[q].x, x[4 * q].x, sum.x), sum.y = fmaf(four[q].x, x[4 * q].y, sum.y);
      other.x = fmaf(four[q].y, x[4 * q + 1].x, other.x), other.y = fmaf(four[q].y, x[4 * q + 1].y, other.y);
      sum.x = fmaf(four[q].z, x[4 * q + 2].x, sum.x), sum.y = fmaf(four[q].z, x[4 * q + 2].y, sum.y);
      other.x = fmaf(four[q].w, x[4 * q + 3].x, other.x), other.y = fmaf(four[q].w, x[4 * q + 3].y, other.y);
    }
    float2 *cell = row(j);
    cell->x = fmaf(m, sum.x + other.x, cell->x);
    cell->y = fmaf(m, sum.y + other.y, cell->y);
#pragma unroll
    for (int q = 0; q < kFours; ++q) four[q] = next[q];
  }
}

/// What no multiplier changes: bit for bit, in another type, or nothing, of a difference.
__device__ void keep(const RotationTask &task, ops::WeightOp op, const Cone &cone) {
  const bool same = task.base.dtype == task.result.dtype && op != ops::WeightOp::kDiff;
  if ((same && task.base.data == task.result.data) || !cone.inside()) return;
  for (int local = static_cast<int>(threadIdx.x / 32); local < cone.rows(); local += kWarps) {
    const std::int64_t row = cone.row(local), column = cone.column();
    const std::int64_t from = row * task.base.out + column, to = row * task.result.out + column;
    if (!same)
      store_two(task.result, row, column,
                op == ops::WeightOp::kDiff ? make_float2(0.0f, 0.0f) : load_two(task.base, row, column));
    else if (task.base.dtype == LYC_DTYPE_F32)
      *reinterpret_cast<uint2 *>(static_cast<float *>(task.result.data) + to) =
          *reinterpret_cast<const uint2 *>(static_cast<const float *>(task.base.data) + from);
    else
      *reinterpret_cast<std::uint32_t *>(static_cast<std::uint16_t *>(task.result.data) + to) =
          *reinterpret_cast<const std::uint32_t *>(static_cast<const std::uint16_t *>(task.base.data) + from);
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    cone_kernel(const __grid_constant__ RotationRun run, const __grid_constant__ Schedule schedule, int pass) {
  begin_kernel();
  extern __shared__ float2 tile[];  // [rows][32]
  const int index = find_entry(schedule.first, schedule.count, blockIdx.x);
  const RotationTask &task = run.rotations[index];
  const Cone cone(task, pass, static_cast<int>(blockIdx.x - schedule.first[index]));
  const bool last = (pass + 1) * task.fused >= task.stages;
  const float m = multiplier_at(run.multipliers, task.multiplier_index);
  if (m == 0.0f) {
    if (last) keep(task, run.op, cone);
    return;
  }
  const auto copy = [&](int which) {
    Strided t{run.workspace + task.turned[which], LYC_DTYPE_F32, task.columns, 1, {}};
    return t;
  };
  const Strided source = pass == 0 ? task.base : copy((pass + 1) % 2), sink = last ? task.result : copy(pass % 2);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int b = task.block_size, rows = cone.rows();
  const std::int64_t column = cone.inside() ? cone.column() : 0;

  constexpr int kTogether = 8;  // loads under way
  for (int first = warp; first < rows; first += kWarps * kTogether) {
    float2 values[kTogether];
    with_type<true>(source.dtype, [&](auto type) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        values[i] = type.load_pair(source.data, cone.row(min(first + i * kWarps, rows - 1)) * source.out + column);
    });
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      if (first + i * kWarps < rows) tile[(first + i * kWarps) * 32 + lane] = values[i];
  }
  __syncthreads();

  const float *rests = task.prepared ? task.prepared : reinterpret_cast<const float *>(run.workspace + task.rests);
  for (int stage = 0; stage < cone.stages(); ++stage) {
    for (int unit = warp; unit < cone.units(); unit += kWarps) {
      const float *rest = cone.rest(rests, stage, unit);
      const auto row = [&](int i) { return tile + cone.local_row(stage, unit, i) * 32 + lane; };
      if (b <= 8)
        turn<8>(rest, b, m, row);
      else if (b <= 16)
        turn<16>(rest, b, m, row);
      else if (b <= 24)
        turn<24>(rest, b, m, row);
      else
        turn<32>(rest, b, m, row);
    }
    __syncthreads();
  }

  if (!cone.inside()) return;
  for (int local = warp; local < rows; local += kWarps) {
    const std::int64_t row = cone.row(local);
    float2 value = tile[local * 32 + lane];
    if (last && task.rescale.data) {
      const float factor = element(task.rescale, row);
      value.x *= factor, value.y *= factor;
    }
    if (last && run.op == ops::WeightOp::kDiff) {
      const float2 base = load_two(task.base, row, column);
      value.x -= base.x, value.y -= base.y;
    }
    store_two(sink, row, column, value);
  }
}

std::size_t shared_bytes(int rows) { return static_cast<std::size_t>(rows) * kConeColumns * sizeof(float); }

}  // namespace

cudaError_t allow_cones(ConeKind kind) {
  if (kind != ConeKind::kFloat) return allow_tensor_cones(kind);
  return cudaFuncSetAttribute(reinterpret_cast<const void *>(cone_kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shared_bytes(kConeRows)));
}

cudaError_t launch_cones(ConeKind kind, const RotationRun &run, const Schedule &schedule, int pass, int rows,
                         const Launch &on) {
  if (kind != ConeKind::kFloat) return launch_tensor_cones(kind, run, schedule, pass, on);
  void *arguments[] = {const_cast<RotationRun *>(&run), const_cast<Schedule *>(&schedule), &pass};
  return launch_kernel(reinterpret_cast<const void *>(cone_kernel), schedule.pieces, kThreads, shared_bytes(rows), on,
                       arguments);
}

}  // namespace lyc::cuda
