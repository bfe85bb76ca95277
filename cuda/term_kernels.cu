// out = f(base, terms of every kind) for weights of any layout and dtype. The weights of a batch take one launch of
// each kernel here that they need:
//
//   norm_kernel     sums of squares for DoRA, per tile
//   factors_kernel  from those to what each row or column takes of W and D
//   term_kernel     the sum of all terms of all adapters, and the store
//
// A warp takes a tile of 64 columns, 8 rows a step; a thread owns two columns, 32 apart, of each row: what lies along
// columns is loaded by neighbours together, what lies along rows once for the warp. Everything is float32, multiplied
// and added by ordinary instructions in an order that depends on shapes alone; one rounding, at the store.
#include "device.cuh"
#include "term_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kThreads = kWarpsPerBlock * 32;
constexpr int kRows = 8;     // of a step, all of them the thread's
constexpr int kColumns = 2;  // of a step, the thread's
constexpr int kTermStepColumns = kColumns * 32;
static_assert(kTermStepColumns == kStripColumns && kTermTileRows % kRows == 0 && kNormRows % kRows == 0);

/// What one thread owns.
struct Fragment {
  float value[kRows][kColumns];
};

template <typename Visit>
__device__ void for_each(Visit visit) {
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = 0; c < kColumns; ++c) visit(r, c);
}

// -- places -----------------------------------------------------------------------------------------------------------

/// A row or column: where it is on each level of its axis.
struct Line {
  int at[kMaxLevels];
};

__device__ Line line_at(const Axis &axis, int x) {
  Line line = {x, 0, 0, 0};
  if (axis.levels == 1) return line;
#pragma unroll
  for (int l = 0; l < kMaxLevels; ++l) {
    line.at[l] = x % axis.extent[l];
    x /= axis.extent[l];
  }
  return line;
}

__device__ std::int64_t offset_of(const Line &line, const AxisStrides &strides, int levels) {
  std::int64_t offset = line.at[0] * strides.level[0];
  if (levels == 1) return offset;
#pragma unroll
  for (int l = 1; l < kMaxLevels; ++l) offset += line.at[l] * strides.level[l];
  return offset;
}

__device__ int place_on(const Line &line, int level) {
  int place = line.at[0];
#pragma unroll
  for (int l = 1; l < kMaxLevels; ++l) place = level == l ? line.at[l] : place;
  return place;
}

__device__ Line with_place(Line line, int level, int place) {
#pragma unroll
  for (int l = 0; l < kMaxLevels; ++l)
    if (level == l) line.at[l] = place;
  return line;
}

/// The thread's rows and columns in a step. Those outside stand for the last one inside and are not stored.
struct Step {
  const TermTarget &target;
  int y;
  int x[kColumns];
  Line columns[kColumns];

  __device__ Line row(int r) const { return line_at(target.rows, min(y + r, target.rows.size - 1)); }
  __device__ bool inside(int r, int c) const { return y + r < target.rows.size && x[c] < target.columns.size; }
};

__device__ Step first_step(const TermTarget &target, int y, int x) {
  Step step{target, y, {}, {}};
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    step.x[c] = x + c * 32 + static_cast<int>(threadIdx.x % 32);
    step.columns[c] = line_at(target.columns, min(step.x[c], target.columns.size - 1));
  }
  return step;
}

/// Offsets of a tensor's elements in a step.
struct Offsets {
  std::int64_t row[kRows], column[kColumns];
};

__device__ Offsets offsets_of(const View &view, const Step &step) {
  Offsets offsets;
#pragma unroll
  for (int r = 0; r < kRows; ++r) offsets.row[r] = offset_of(step.row(r), view.row, step.target.rows.levels);
#pragma unroll
  for (int c = 0; c < kColumns; ++c)
    offsets.column[c] = offset_of(step.columns[c], view.column, step.target.columns.levels);
  return offsets;
}

// -- elements ---------------------------------------------------------------------------------------------------------

__device__ const void *address(const View &view, const char *workspace) {
  return resolve(view.data, view.in_workspace, workspace);
}

__device__ std::int64_t position(const Vector &vector, std::int64_t index) {
  return __ldg(static_cast<const std::int64_t *>(vector.data) + index * vector.stride);
}

/// Weights may be written by this launch, each element after the thread that owns it has read it.
__device__ std::uint32_t load_bits(const View &view, std::int64_t offset) {
  std::uint32_t bits;
  asm volatile(
      "{\n .reg .pred wide;\n setp.ne.s32 wide, %2, 0;\n"
      " @wide ld.global.b32 %0, [%1];\n @!wide ld.global.u16 %0, [%1];\n}"
      : "=r"(bits)
      : "l"(address_of(view.data, view.dtype, offset)), "r"(static_cast<int>(view.dtype == LYC_DTYPE_F32)));
  return bits;
}

__device__ void store_bits(const View &view, std::int64_t offset, std::uint32_t bits) {
  void *data = const_cast<void *>(view.data);
  if (view.dtype == LYC_DTYPE_F32)
    static_cast<std::uint32_t *>(data)[offset] = bits;
  else
    static_cast<std::uint16_t *>(data)[offset] = static_cast<std::uint16_t>(bits);
}

__device__ std::uint32_t round_to(float value, lyc_dtype dtype) {
  if (dtype == LYC_DTYPE_F32) return __float_as_uint(value);
  if (dtype == LYC_DTYPE_BF16) return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  return __half_as_ushort(__float2half_rn(value));
}

__device__ Fragment load_weight(const View &view, const Step &step) {
  const Offsets offsets = offsets_of(view, step);
  Fragment weight;
  for_each([&](int r, int c) {
    weight.value[r][c] = to_float(load_bits(view, offsets.row[r] + offsets.column[c]), view.dtype);
  });
  return weight;
}

__device__ void store_weight(const View &view, const Step &step, const Fragment &weight) {
  const Offsets offsets = offsets_of(view, step);
  for_each([&](int r, int c) {
    if (step.inside(r, c))
      store_bits(view, offsets.row[r] + offsets.column[c], round_to(weight.value[r][c], view.dtype));
  });
}

// -- terms ------------------------------------------------------------------------------------------------------------

__device__ Fragment load_whole(const View &view, const Offsets &offsets, const char *workspace) {
  const void *data = address(view, workspace);
  Fragment whole;
  for_each([&](int r, int c) { whole.value[r][c] = load_float(data, view.dtype, offsets.row[r] + offsets.column[c]); });
  return whole;
}

__device__ __noinline__ Fragment product(const ProductView &p, const Step &step, const char *workspace) {
  Offsets offsets = offsets_of(p.row, step);
  if (p.rank == 0) return load_whole(p.row, offsets, workspace);
  const void *rows = address(p.row, workspace), *columns = address(p.column, workspace);
#pragma unroll
  for (int c = 0; c < kColumns; ++c)
    offsets.column[c] = offset_of(step.columns[c], p.column.column, step.target.columns.levels);
  Fragment sum = {};
  for (int rank = 0; rank < p.rank; ++rank) {
    const float between = element(p.diagonal, rank) * element(p.mask, rank);
    float column[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      column[c] = between * load_float(columns, p.column.dtype, offsets.column[c] + rank * p.column_rank_stride);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float row = load_float(rows, p.row.dtype, offsets.row[r] + rank * p.row_rank_stride);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sum.value[r][c] = fmaf(row, column[c], sum.value[r][c]);
    }
  }
  return sum;
}

/// Where a line lies in the left or right half of a Kronecker product.
__device__ Line half_line(const Line &line, const Split &split, bool left) {
  const std::int64_t place = place_on(line, split.level) + split.begin;
  return with_place(line, split.level, static_cast<int>(left ? place / split.size : place % split.size));
}

__device__ Fragment kronecker_half(const View &view, const TermEntry &term, const Step &step, bool left,
                                   const char *workspace) {
  Offsets offsets;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    offsets.row[r] = offset_of(half_line(step.row(r), term.rows, left), view.row, kMaxLevels);
#pragma unroll
  for (int c = 0; c < kColumns; ++c)
    offsets.column[c] = offset_of(half_line(step.columns[c], term.columns, left), view.column, kMaxLevels);
  return load_whole(view, offsets, workspace);
}

/// A row's elements are in the order of their columns.
__device__ float sparse_element(const SparseView &sparse, std::int64_t row, std::int64_t column) {
  std::int64_t first = position(sparse.row_starts, row);
  const std::int64_t end = position(sparse.row_starts, row + 1);
  for (std::int64_t count = end - first; count > 0;) {
    const std::int64_t half = count / 2;
    const bool below = position(sparse.columns, first + half) < column;
    first = below ? first + half + 1 : first;
    count = below ? count - half - 1 : half;
  }
  float sum = 0.0f;
  for (; first < end && position(sparse.columns, first) == column; ++first) sum += element(sparse.values, first);
  return sum;
}

__device__ __noinline__ Fragment sparse_values(const SparseView &sparse, const Step &step) {
  const TermTarget &target = step.target;
  Fragment values;
  for_each([&](int r, int c) {
    const Line row = step.row(r), column = step.columns[c];
    const Line &out = target.out_is_row ? row : column, &side = target.out_is_row ? column : row;
    values.value[r][c] = sparse_element(sparse, out.at[0], offset_of(side, target.position, kMaxLevels));
  });
  return values;
}

/// R'(W) - W
__device__ Fragment rotated_values(const TermEntry &term, const Step &step, const Fragment &base,
                                   const char *workspace) {
  const TermTarget &target = step.target;
  const RotatedView &rotated = term.rotated;
  Fragment values = load_whole(term.p.row, offsets_of(term.p.row, step), workspace);
  for_each([&](int r, int c) {
    const Line row = step.row(r), column = step.columns[c];
    const Line &out = target.out_is_row ? row : column, &side = target.out_is_row ? column : row;
    const std::int64_t place = rotated.by_out ? out.at[0] : offset_of(side, target.position, kMaxLevels);
    const bool inside = place >= rotated.begin && place < rotated.end;
    float &value = values.value[r][c];
    value = inside ? element(rotated.rescale, out.at[0]) * value - base.value[r][c] : 0.0f;
  });
  return values;
}

__device__ void multiply(Fragment &a, const Fragment &b) {
  for_each([&](int r, int c) { a.value[r][c] *= b.value[r][c]; });
}

__device__ Fragment term_values(const TermEntry &term, const Step &step, const Fragment &base, const char *workspace) {
  if (term.kind == ops::TermKind::kSparse) return sparse_values(term.sparse, step);
  if (term.kind == ops::TermKind::kRotation) return rotated_values(term, step, base, workspace);
  if (term.kind == ops::TermKind::kKronecker) {
    Fragment values = kronecker_half(term.p.row, term, step, true, workspace);
    multiply(values, kronecker_half(term.q.row, term, step, false, workspace));
    return values;
  }
  Fragment values = product(term.p, step, workspace);
  if (term.kind == ops::TermKind::kHadamard) multiply(values, product(term.q, step, workspace));
  if (term.kind == ops::TermKind::kBaseHadamard) multiply(values, base);
  return values;
}

/// D of an adapter, or the sum of its rotations, in which the multiplier is already.
__device__ Fragment raw_delta(const TermRun &run, const AdapterEntry &adapter, const Step &step, const Fragment &base,
                              bool rotations) {
  Fragment delta = {};
  for (int t = 0; t < adapter.term_count; ++t) {
    const TermEntry &term = run.tables.terms[adapter.first_term + t];
    if ((term.kind == ops::TermKind::kRotation) != rotations) continue;
    const float scale = term.coefficient * element(term.scalar, 0);
    const Fragment values = term_values(term, step, base, run.workspace);
    for_each([&](int r, int c) { delta.value[r][c] = fmaf(scale, values.value[r][c], delta.value[r][c]); });
  }
  return delta;
}

/// What the adapters so far add to `kept` of the weight.
struct Change {
  Fragment sum;
  float kept;
};

__device__ void add_change(const TermRun &run, const AdapterEntry &adapter, float m, const Step &step,
                           const Fragment &base, Change &change) {
  if (adapter.has_rotations) {
    const Fragment turned = raw_delta(run, adapter, step, base, true);
    for_each([&](int r, int c) { change.sum.value[r][c] += turned.value[r][c]; });
  }
  const Fragment delta = raw_delta(run, adapter, step, base, false);
  if (adapter.dora_axis == ops::DoraAxis::kNone) {
    const float of_delta = adapter.replaces ? 1.0f : m;
    if (adapter.replaces) change.kept -= 1.0f;
    for_each([&](int r, int c) { change.sum.value[r][c] = fmaf(of_delta, delta.value[r][c], change.sum.value[r][c]); });
    return;
  }
  const auto *factors = reinterpret_cast<const DoraFactors *>(run.workspace + adapter.factors);
  for_each([&](int r, int c) {
    const Line line = adapter.magnitude_rows ? step.row(r) : step.columns[c];
    change.sum.value[r][c] +=
        dora_change(factors[place_on(line, adapter.magnitude_level)], base.value[r][c], delta.value[r][c]);
  });
}

// -- tiles ------------------------------------------------------------------------------------------------------------

/// The rows of a strip that a warp works on.
struct Tile {
  int x, y_begin, y_end;
};

__device__ Tile tile_at(const TermTarget &target, std::uint32_t number, int rows) {
  const int strips = (target.columns.size + kStripColumns - 1) / kStripColumns;
  const int y = static_cast<int>(number) / strips * rows;
  return {static_cast<int>(number) % strips * kStripColumns, y, min(target.rows.size, y + rows)};
}

__device__ bool idle(const TermRun &run, const TermTarget &target) {
  for (int a = 0; a < target.adapter_count; ++a)
    if (multiplier_at(run.multipliers, run.tables.adapters[target.first_adapter + a].multiplier_index) != 0.0f)
      return false;
  return true;
}

/// Bit for bit.
__device__ void copy_step(const TermTarget &target, const Step &step) {
  const Offsets from = offsets_of(target.base, step), to = offsets_of(target.out, step);
  for_each([&](int r, int c) {
    if (step.inside(r, c))
      store_bits(target.out, to.row[r] + to.column[c], load_bits(target.base, from.row[r] + from.column[c]));
  });
}

__device__ void merge_step(const TermRun &run, const TermTarget &target, const Step &step) {
  Fragment base = {};
  if (target.base.data) base = load_weight(target.base, step);
  Change change = {{}, run.op == ops::WeightOp::kDiff ? 0.0f : 1.0f};
  for (int a = 0; a < target.adapter_count; ++a) {
    const AdapterEntry &adapter = run.tables.adapters[target.first_adapter + a];
    const float m = multiplier_at(run.multipliers, adapter.multiplier_index);
    if (m != 0.0f) add_change(run, adapter, m, step, base, change);
  }
  const float sign = run.op == ops::WeightOp::kUnmerge ? -1.0f : 1.0f;
  for_each([&](int r, int c) {
    float &value = change.sum.value[r][c];
    value *= sign;
    if (change.kept != 0.0f) value = fmaf(change.kept, base.value[r][c], value);
  });
  store_weight(target.out, step, change.sum);
}

__global__ void __launch_bounds__(kThreads, 3)
    term_kernel(const __grid_constant__ TermRun run, const __grid_constant__ Schedule schedule) {
  const std::uint32_t number = blockIdx.x * kWarpsPerBlock + threadIdx.x / 32;
  if (number >= schedule.pieces) return;
  const int index = find_entry(schedule.first, schedule.count, number);
  const TermTarget &target = run.tables.targets[index];
  const Tile tile = tile_at(target, number - schedule.first[index], kTermTileRows);
  const bool copies = run.op != ops::WeightOp::kDiff && target.base.dtype == target.out.dtype && idle(run, target);
  if (copies && target.base.data == target.out.data) return;
  Step step = first_step(target, tile.y_begin, tile.x);
  for (; step.y < tile.y_end; step.y += kRows) copies ? copy_step(target, step) : merge_step(run, target, step);
}

// -- DoRA -------------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads, 3)
    norm_kernel(const __grid_constant__ TermRun run, const __grid_constant__ Schedule schedule) {
  const std::uint32_t number = blockIdx.x * kWarpsPerBlock + threadIdx.x / 32;
  if (number >= schedule.pieces) return;
  const int index = find_entry(schedule.first, schedule.count, number);
  const NormTask &task = run.tables.norms[index];
  const TermTarget &target = run.tables.targets[task.target];
  const AdapterEntry &adapter = run.tables.adapters[task.adapter];
  const float m = multiplier_at(run.multipliers, adapter.multiplier_index);
  if (m == 0.0f) return;
  const float v = static_cast<float>(dora_coefficients(adapter.dora.rule, m).v);
  const Tile tile = tile_at(target, number - schedule.first[index], kNormRows);
  auto *partial = reinterpret_cast<float *>(run.workspace + task.partial);
  float column_sums[kColumns] = {};
  Step step = first_step(target, tile.y_begin, tile.x);
  for (; step.y < tile.y_end; step.y += kRows) {
    const Fragment base = load_weight(target.base, step);
    const Fragment delta = raw_delta(run, adapter, step, base, false);
    float row_sums[kRows] = {};
    for_each([&](int r, int c) {
      const float value = step.inside(r, c) ? fmaf(v, delta.value[r][c], base.value[r][c]) : 0.0f;
      row_sums[r] = fmaf(value, value, row_sums[r]);
      column_sums[c] = fmaf(value, value, column_sums[c]);
    });
    if (!adapter.magnitude_rows) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = sum_of_warp(row_sums[r]);
      const std::int64_t piece = tile.x / kStripColumns;
      if (threadIdx.x % 32 == 0 && step.y + r < tile.y_end) partial[piece * task.lines + step.y + r] = sum;
    }
  }
  if (adapter.magnitude_rows) return;
#pragma unroll
  for (int c = 0; c < kColumns; ++c)
    if (step.x[c] < task.lines)
      partial[std::int64_t{tile.y_begin / kNormRows} * task.lines + step.x[c]] = column_sums[c];
}

constexpr int kFactorThreads = 256;

/// A lane for each magnitude; warps share out the pieces of its lines.
__global__ void __launch_bounds__(kFactorThreads)
    factors_kernel(const FactorTask *tasks, const __grid_constant__ Schedule schedule,
                   const __grid_constant__ Multipliers multipliers, char *workspace) {
  constexpr int kWarps = kFactorThreads / 32;
  static_assert(kMagnitudesPerBlock == 32);
  __shared__ double partial_sums[kWarps][32];
  const int index = find_entry(schedule.first, schedule.count, blockIdx.x);
  const FactorTask &task = tasks[index];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int magnitude = static_cast<int>(blockIdx.x - schedule.first[index]) * kMagnitudesPerBlock + lane;
  const float m = multiplier_at(multipliers, task.multiplier_index);
  if (m == 0.0f) return;
  const auto *partial = reinterpret_cast<const float *>(workspace + task.partial);
  const bool there = magnitude < task.magnitudes;
  const int period = task.inside * task.magnitudes;
  double squares = 0.0;
  for (int begin = magnitude * task.inside; there && begin < task.lines; begin += period)
    for (int line = begin; line < begin + task.inside; ++line)
#pragma unroll 4
      for (std::int64_t piece = warp; piece < task.pieces; piece += kWarps)
        squares += static_cast<double>(__ldg(partial + piece * task.lines + line));
  partial_sums[warp][lane] = squares;
  __syncthreads();
  if (warp > 0 || !there) return;
  for (int w = 1; w < kWarps; ++w) squares += partial_sums[w][lane];
  const DoraFactors found = dora_factors(task.dora, m, magnitude, squares);
  auto *factors = reinterpret_cast<DoraFactors *>(workspace + task.factors);
  if (!task.by_line) factors[magnitude] = found;
  for (int begin = magnitude * task.inside; task.by_line && begin < task.lines; begin += period)
    for (int line = begin; line < begin + task.inside; ++line) factors[line] = found;
}

unsigned blocks_of(const Schedule &schedule) { return (schedule.pieces + kWarpsPerBlock - 1) / kWarpsPerBlock; }

}  // namespace

cudaError_t launch_norms(const TermRun &run, const Schedule &schedule, cudaStream_t stream) {
  return launch_kernel(norm_kernel, blocks_of(schedule), kThreads, stream, run, schedule);
}

cudaError_t launch_factors(const FactorTask *tasks, const Schedule &schedule, const Multipliers &multipliers,
                           char *workspace, cudaStream_t stream) {
  return launch_kernel(factors_kernel, schedule.pieces, kFactorThreads, stream, tasks, schedule, multipliers, workspace);
}

cudaError_t launch_terms(const TermRun &run, const Schedule &schedule, cudaStream_t stream) {
  return launch_kernel(term_kernel, blocks_of(schedule), kThreads, stream, run, schedule);
}

}  // namespace lyc::cuda
