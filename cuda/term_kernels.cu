// out = f(base, terms of every kind) for weights of any layout and dtype. The weights of a batch take one launch of
// each kernel here that they need:
//
//   contract_kernel  small products into the workspace, as float32
//   term_kernel      <norms> sums of squares for DoRA, per tile
//   factors_kernel   from those to what each row or column takes of W and D
//   term_kernel      <merge> the sum of all terms of all adapters, and the store
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

// -- rotations --------------------------------------------------------------------------------------------------------

constexpr int kRotationThreads = 256;

/// Sum over a block of threads, the same for all of them, in an order of its own.
__device__ float sum_of_block(float value) {
  __shared__ float partial[kRotationThreads / 32];
  value = sum_of_warp(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0.0f;
  for (const float part : partial) sum += part;
  return sum;
}

/// Element (i, j) of a block's Q, before its limit.
__device__ float skew(const RotationTask &task, std::int64_t block, int i, int j) {
  const int b = task.block_size, low = min(i, j), high = max(i, j);
  const auto x = [&](int index) {
    return load_float(task.generators.data, task.generators.dtype,
                      block * task.generators.stride + index * task.generator_stride);
  };
  if (i == j) return 0.0f;
  const float above = task.storage == ops::Rotation::Storage::kTriangle
                          ? x(low * b - low * (low + 1) / 2 + high - low - 1)
                          : x(low * b + high) - x(high * b + low);
  return (i < j ? task.factor : -task.factor) * above;
}

__device__ float squares_of_block(const RotationTask &task, std::int64_t block) {
  const int b = task.block_size;
  float sum = 0.0f;
  for (int e = static_cast<int>(threadIdx.x); e < b * b; e += kRotationThreads) {
    const float q = skew(task, block, e / b, e % b);
    sum = fmaf(q, q, sum);
  }
  return sum;
}

__global__ void __launch_bounds__(kRotationThreads) squares_kernel(const __grid_constant__ TermRun run) {
  const RotationTask &task = run.tables.rotations[blockIdx.x];
  if (task.prepared || task.limited == ops::Rotation::Limit::kNone || task.limited == ops::Rotation::Limit::kBlock)
    return;
  float sum = 0.0f;
  for (std::int64_t block = 0; block < std::int64_t{task.stages} * task.blocks; ++block)
    sum += squares_of_block(task, block);
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) *reinterpret_cast<float *>(run.workspace + task.squares) = sum;
}

/// What brings |Q| to its limit.
__device__ float shrink(const RotationTask &task, std::int64_t block, const char *workspace) {
  constexpr float kTiny = 1e-8f;
  if (task.limited == ops::Rotation::Limit::kNone) return 1.0f;
  if (task.limited == ops::Rotation::Limit::kBlock) {
    const float norm = sqrtf(sum_of_block(squares_of_block(task, block)));
    return norm > task.limit ? task.limit / norm : 1.0f;
  }
  const float norm = sqrtf(*reinterpret_cast<const float *>(workspace + task.squares));
  if (task.limited == ops::Rotation::Limit::kTogether)
    return norm + kTiny > task.limit ? task.limit / (norm + kTiny) : 1.0f;
  return (fminf(norm, task.limit) + kTiny) / (norm + kTiny);
}

/// c = scale * a * b, or with `add` scale * (a * b + a).
__device__ void multiply_blocks(float *c, const float *a, const float *b, int size, float scale, bool add) {
  for (int e = static_cast<int>(threadIdx.x); e < size * size; e += kRotationThreads) {
    const float *row = a + e / size * size;
    float sum = add ? row[e % size] : 0.0f;
    for (int k = 0; k < size; ++k) sum = fmaf(row[k], b[k * size + e % size], sum);
    c[e] = scale * sum;
  }
  __syncthreads();
}

/// The inverse of I - q by Gauss and Jordan, in place; pivots are never small, since q is skew-symmetric.
__device__ void invert(float *a, const float *q, int size) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < size * size; e += kRotationThreads) a[e] = (e / size == e % size ? 1.0f : 0.0f) - q[e];
  __syncthreads();
  for (int k = 0; k < size; ++k) {
    const float pivot = 1.0f / a[k * size + k];
    for (int e = thread; e < size * size; e += kRotationThreads)
      if (const int i = e / size, j = e % size; i != k && j != k)
        a[e] = fmaf(-pivot * a[i * size + k], a[k * size + j], a[e]);
    __syncthreads();
    for (int i = thread; i < size; i += kRotationThreads)
      if (i != k) {
        a[k * size + i] *= pivot;
        a[i * size + k] *= -pivot;
      }
    if (thread == 0) a[k * size + k] = pivot;
    __syncthreads();
  }
}

/// 2 Q (I - Q)^-1, or the series by Horner's rule; `other` is room for a matrix.
__device__ void turn_less_identity(const RotationTask &task, float *rest, const float *q, float *other) {
  const int b = task.block_size, size = b * b;
  if (task.map == ops::Rotation::Map::kCayley) {
    invert(other, q, b);
    multiply_blocks(rest, q, other, b, 2.0f, false);
    return;
  }
  const int terms = task.neumann_terms, last = terms < 3 ? terms - 1 : max(terms, 4) - 1;
  // sum of w_e Q^e: the innermost is w Q, and each step further out Q (2 I + sum).
  for (int e = static_cast<int>(threadIdx.x); e < size; e += kRotationThreads)
    rest[e] = last == 0 ? 0.0f : (terms > 2 ? 1.0f : 2.0f) * q[e];
  __syncthreads();
  for (int exponent = last - 1; exponent >= 1; --exponent) {
    for (int e = static_cast<int>(threadIdx.x); e < size; e += kRotationThreads) other[e] = 0.5f * rest[e];
    __syncthreads();
    multiply_blocks(rest, q, other, b, 2.0f, true);
  }
}

/// As rows of kPackedTurn ranks: the block's columns where they lie among those of its neighbours.
template <typename Type>
__device__ void pack_block(const RotationTask &task, const float *rest, std::int64_t block, char *workspace) {
  const int b = task.block_size, first = static_cast<int>(block * b % kPackedTurn);
  const std::int64_t rows = std::int64_t{task.blocks} * b;
  const std::int64_t lines = (rows + kPackedLines - 1) / kPackedLines * kPackedLines;
  for (int e = static_cast<int>(threadIdx.x); e < b * kPackedTurn; e += kRotationThreads) {
    const int j = e / kPackedTurn, rank = e % kPackedTurn, i = rank - first;
    const float value = i >= 0 && i < b ? rest[j * b + i] : 0.0f;
    store_parts<Type>(workspace + task.packed, lines, kPackedTurn / kChunkRanks, block * b + j, rank, value);
  }
}

constexpr int kSharedBlock = 48;  // up to this size, a block is inverted in shared memory

/// R - I of one block.
__global__ void __launch_bounds__(kRotationThreads)
    rests_kernel(const __grid_constant__ TermRun run, const __grid_constant__ Schedule schedule) {
  __shared__ float shared[2 * kSharedBlock * kSharedBlock];
  const int index = find_entry(schedule.first, schedule.count, blockIdx.x);
  const RotationTask &task = run.tables.rotations[index];
  const std::int64_t block = blockIdx.x - schedule.first[index];
  const int b = task.block_size, size = b * b;
  const float *rest = task.prepared + block * size;
  if (!task.prepared) {
    auto *made = reinterpret_cast<float *>(run.workspace + task.rests) + block * size;
    float *q = b <= kSharedBlock ? shared
                                 : reinterpret_cast<float *>(run.workspace + task.scratch) + 2 * block * size;
    const float scale = shrink(task, block, run.workspace);
    for (int e = static_cast<int>(threadIdx.x); e < size; e += kRotationThreads)
      q[e] = scale * skew(task, block, e / b, e % b);
    __syncthreads();
    turn_less_identity(task, made, q, q + size);
    rest = made;
    __syncthreads();
  }
  if (task.packed_dtype == LYC_DTYPE_BF16) pack_block<Bf16>(task, rest, block, run.workspace);
  if (task.packed_dtype == LYC_DTYPE_F16) pack_block<F16>(task, rest, block, run.workspace);
}

/// Which element stands at `position` in the order of a stage.
__device__ std::int64_t element_at(const RotationTask &task, int stage, std::int64_t position) {
  if (task.order == ops::Rotation::Order::kPlain) return position;
  const std::int64_t half = (std::int64_t{task.block_size} << stage) / 2, window = 2 * half;
  const std::int64_t begin = position / window * window, inside = position - begin;
  if (task.order == ops::Rotation::Order::kInterleave) return begin + inside % 2 * half + inside / 2;
  const std::int64_t part = task.block_size / 2, at = inside / part, parts = half / part;
  return begin + (at % 2 * parts + at / 2) * part + inside % part;
}

__device__ float weight_at(const RotationTask &task, std::int64_t row, std::int64_t column) {
  std::int64_t offset = row * task.base_out;
#pragma unroll
  for (int k = ops::kMaxKernelDims - 1; k >= 0; --k) {
    offset += column % task.kernel[k] * task.base_kernel[k];
    column /= task.kernel[k];
  }
  return load_float(task.base, task.base_dtype, offset + column * task.base_in);
}

/// An element for each thread, neighbours of a row in neighbouring threads.
__global__ void stage_kernel(const __grid_constant__ TermRun run, const __grid_constant__ Schedule schedule,
                             int stage) {
  const int index = find_entry(schedule.first, schedule.count, blockIdx.x);
  const RotationTask &task = run.tables.rotations[index];
  const float m = multiplier_at(run.multipliers, task.multiplier_index);
  const int b = task.block_size;
  const std::int64_t extent = std::int64_t{task.blocks} * b, across = task.by_out ? task.columns : extent;
  const std::int64_t number = std::int64_t{blockIdx.x - schedule.first[index]} * kTurnedPerBlock + threadIdx.x;
  if (m == 0.0f || number >= extent * (task.by_out ? task.columns : task.rows)) return;
  const std::int64_t high = number / across, low = number % across;
  const std::int64_t position = task.by_out ? high : low, line = task.by_out ? low : high;
  const auto *before = reinterpret_cast<const float *>(run.workspace + task.turned[(stage + 1) % 2]);
  const auto place_of = [&](std::int64_t at) { return task.begin + element_at(task, stage, at); };
  const auto value_at = [&](std::int64_t place) {
    const std::int64_t row = task.by_out ? place : line, column = task.by_out ? line : place;
    return stage == 0 ? weight_at(task, row, column) : before[row * task.columns + column];
  };
  const float *rests = task.prepared ? task.prepared : reinterpret_cast<const float *>(run.workspace + task.rests);
  const float *rest = rests + (std::int64_t{stage} * task.blocks + position / b) * b * b + position % b * b;
  float sum = 0.0f;
  for (int i = 0; i < b; ++i) sum = fmaf(__ldg(rest + i), value_at(place_of(position / b * b + i)), sum);
  const std::int64_t place = place_of(position);
  const std::int64_t row = task.by_out ? place : line, column = task.by_out ? line : place;
  reinterpret_cast<float *>(run.workspace + task.turned[stage % 2])[row * task.columns + column] =
      fmaf(m, sum, value_at(place));
}

// -- contractions -----------------------------------------------------------------------------------------------------

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

/// A block computes 32 x 32 elements, a thread four of them in one column.
__global__ void __launch_bounds__(kContractionThreads)
    contract_kernel(const Contraction *contractions, const __grid_constant__ Schedule schedule, char *workspace) {
  constexpr int kTile = kContractionTile, kStep = kContractionThreads / kTile, kOwn = kTile / kStep;
  __shared__ float left[kTile][kTile + 1], right[kTile][kTile + 1];
  const int index = find_entry(schedule.first, schedule.count, blockIdx.x);
  const Contraction &c = contractions[index];
  const int across = (c.b + kTile - 1) / kTile, local = static_cast<int>(blockIdx.x - schedule.first[index]);
  const int rows = c.a * c.kernel[0] * c.kernel[1] * c.kernel[2];
  const int y = local / across * kTile, x = local % across * kTile;
  const int lane = static_cast<int>(threadIdx.x % kTile), group = static_cast<int>(threadIdx.x / kTile);
  const void *left_data = resolve(c.left.data, c.left_in_workspace, workspace);
  const void *right_data = resolve(c.right.data, c.right_in_workspace, workspace);

  float sum[kOwn] = {};
  for (int s = 0; s < c.s; s += kTile) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int line = group + i * kStep;
      left[line][lane] = y + line < rows && s + lane < c.s
                             ? load_float(left_data, c.left.dtype,
                                          row_offset(c, y + line, c.left_a, c.left_kernel) + (s + lane) * c.left_s)
                             : 0.0f;
      right[line][lane] =
          s + line < c.s && x + lane < c.b
              ? element(c.diagonal, s + line) * element(c.mask, s + line) *
                    load_float(right_data, c.right.dtype, (s + line) * c.right_s + (x + lane) * c.right_b)
              : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kTile; ++k)
#pragma unroll
      for (int i = 0; i < kOwn; ++i) sum[i] = fmaf(left[group + i * kStep][k], right[k][lane], sum[i]);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int line = y + group + i * kStep;
    if (line < rows && x + lane < c.b)
      store_result(c, workspace, row_offset(c, line, c.result_a, c.result_kernel) + (x + lane) * c.result_b, sum[i]);
  }
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), unsigned blocks, int threads, cudaStream_t stream,
                   Arguments... arguments) {
  void *addresses[] = {&arguments...};
  return cudaLaunchKernel(reinterpret_cast<const void *>(kernel), dim3(blocks), dim3(static_cast<unsigned>(threads)),
                          addresses, 0, stream);
}

unsigned blocks_of(const Schedule &schedule) { return (schedule.pieces + kWarpsPerBlock - 1) / kWarpsPerBlock; }

}  // namespace

cudaError_t launch_contractions(const Contraction *contractions, const Schedule &schedule, char *workspace,
                                cudaStream_t stream) {
  return launch(contract_kernel, schedule.pieces, kContractionThreads, stream, contractions, schedule, workspace);
}

cudaError_t launch_norms(const TermRun &run, const Schedule &schedule, cudaStream_t stream) {
  return launch(norm_kernel, blocks_of(schedule), kThreads, stream, run, schedule);
}

cudaError_t launch_factors(const FactorTask *tasks, const Schedule &schedule, const Multipliers &multipliers,
                           char *workspace, cudaStream_t stream) {
  return launch(factors_kernel, schedule.pieces, kFactorThreads, stream, tasks, schedule, multipliers, workspace);
}

cudaError_t launch_rotations(const TermRun &run, int rotations, const Schedule &blocks, cudaStream_t stream) {
  const cudaError_t status = launch(squares_kernel, static_cast<unsigned>(rotations), kRotationThreads, stream, run);
  return status == cudaSuccess ? launch(rests_kernel, blocks.pieces, kRotationThreads, stream, run, blocks) : status;
}

cudaError_t launch_stage(const TermRun &run, const Schedule &schedule, int stage, cudaStream_t stream) {
  return launch(stage_kernel, schedule.pieces, kTurnedPerBlock, stream, run, schedule, stage);
}

cudaError_t launch_terms(const TermRun &run, const Schedule &schedule, cudaStream_t stream) {
  return launch(term_kernel, blocks_of(schedule), kThreads, stream, run, schedule);
}

}  // namespace lyc::cuda
