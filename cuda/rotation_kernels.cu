// Rotations: R - I of each block from its generators, for the kernels that turn the weight, one of which is here: stage
// by stage, into float32 copies.
#include "rotation.cuh"

namespace lyc::cuda {
namespace {

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

/// The elements of a matrix, shared out to the threads of a block.
template <typename Visit>
__device__ void for_elements(int rows, int columns, Visit visit) {
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x / 32); i < rows; i += kRotationThreads / 32)
    for (int j = static_cast<int>(threadIdx.x % 32); j < columns; j += 32) visit(i, j);
}

/// Element (i, j) of a block's Q, before its limit.
__device__ float skew(const RotationTask &task, std::int64_t block, int i, int j) {
  const int b = task.block_size, low = min(i, j), high = max(i, j);
  const auto x = [&](int index) { return generator(task, block, index); };
  if (i == j) return 0.0f;
  const float above = task.storage == ops::Rotation::Storage::kTriangle
                          ? x(low * b - low * (low + 1) / 2 + high - low - 1)
                          : x(low * b + high) - x(high * b + low);
  return (i < j ? task.factor : -task.factor) * above;
}

__device__ float squares_of_block(const RotationTask &task, std::int64_t block) {
  const int b = task.block_size;
  float sum = 0.0f;
  for_elements(b, b, [&](int i, int j) {
    const float q = skew(task, block, i, j);
    sum = fmaf(q, q, sum);
  });
  return sum;
}

__global__ void __launch_bounds__(kRotationThreads) squares_kernel(const __grid_constant__ RotationRun run) {
  begin_kernel();
  const RotationTask &task = run.rotations[blockIdx.x];
  if (task.prepared || task.limited == ops::Rotation::Limit::kNone || task.limited == ops::Rotation::Limit::kBlock)
    return;
  float sum = 0.0f;
  for (std::int64_t block = 0; block < std::int64_t{task.stages} * task.blocks; ++block)
    sum += squares_of_block(task, block);
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) *reinterpret_cast<float *>(run.workspace + task.squares) = sum;
}

/// c = scale * a * b, or with `add` scale * (a * b + a).
__device__ void multiply_blocks(float *c, const float *a, const float *b, int size, float scale, bool add) {
  for_elements(size, size, [&](int i, int j) {
    const float *row = a + i * size;
    float sum = add ? row[j] : 0.0f;
#pragma unroll 4
    for (int k = 0; k < size; ++k) sum = fmaf(row[k], b[k * size + j], sum);
    c[i * size + j] = scale * sum;
  });
  __syncthreads();
}

/// The inverse of I - q by Gauss and Jordan, in place; pivots are never small, since q is skew-symmetric.
__device__ void invert(float *a, const float *q, int size) {
  for_elements(size, size, [&](int i, int j) { a[i * size + j] = (i == j ? 1.0f : 0.0f) - q[i * size + j]; });
  __syncthreads();
  for (int k = 0; k < size; ++k) {
    const float pivot = 1.0f / a[k * size + k];
    for_elements(size, size, [&](int i, int j) {
      if (i != k && j != k) a[i * size + j] = fmaf(-pivot * a[i * size + k], a[k * size + j], a[i * size + j]);
    });
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < size; i += kRotationThreads)
      if (i != k) {
        a[k * size + i] *= pivot;
        a[i * size + k] *= -pivot;
      }
    if (threadIdx.x == 0) a[k * size + k] = pivot;
    __syncthreads();
  }
}

/// 2 Q (I - Q)^-1, or the series by Horner's rule; `other` is room for a matrix.
__device__ void rest_of_block(const RotationTask &task, float *rest, const float *q, float *other) {
  const int b = task.block_size;
  if (task.map == ops::Rotation::Map::kCayley) {
    invert(other, q, b);
    multiply_blocks(rest, q, other, b, 2.0f, false);
    return;
  }
  const int terms = task.neumann_terms, last = terms < 3 ? terms - 1 : max(terms, 4) - 1;
  // sum of w_e Q^e: the innermost is w Q, and each step further out Q (2 I + sum).
  const auto set = [&](float *to, float factor, const float *from) {
    for_elements(b, b, [&](int i, int j) { to[i * b + j] = factor * from[i * b + j]; });
    __syncthreads();
  };
  set(rest, last == 0 ? 0.0f : terms > 2 ? 1.0f : 2.0f, q);
  for (int exponent = last - 1; exponent >= 1; --exponent) {
    set(other, 0.5f, rest);
    multiply_blocks(rest, q, other, b, 2.0f, true);
  }
}

/// Where a matrix is among those that butterfly_tensor_kernels.cu reads: by pass, group of cones, stage and block.
__device__ std::int64_t place_of_matrix(const RotationTask &task, int absolute, int block) {
  const int first = absolute / task.fused * task.fused, stages = min(task.fused, task.stages - first);
  const auto low_bits = [](int number, int bits) { return number & ((1 << bits) - 1); };
  const int atom = block >> absolute << (absolute + 1) | low_bits(block, absolute);  // the lower one
  const int cone = atom >> (first + stages) << first | low_bits(atom, first), sets = kTensorStages - stages;
  const int group = cone >> sets, place = low_bits(cone, sets) << stages | low_bits(atom >> first, stages);
  const int stage = absolute - first, unit = place >> (stage + 1) << stage | low_bits(place, stage);
  const int groups = (((2 * task.blocks) >> stages) + (1 << sets) - 1) >> sets;
  return ((std::int64_t{first} * groups + std::int64_t{group} * stages + stage) << (kTensorStages - 1)) + unit;
}

/// As operand B of mma, in two bf16 parts, the way butterfly_tensor_kernels.cu has rows in quads: rank 2 q + e of 8 is
/// row q of quad e, and so are columns of an n tile. `rest(j, i)`: R - I. By one warp.
template <int kQuads, typename Rest>
__device__ void pack_matrix(const RotationTask &task, std::int64_t matrix, char *workspace, Rest rest) {
  constexpr int kWords = 2 * kQuads * kQuads, kTwos = kQuads / 2;
  const int part = task.block_size / 2, lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
  const bool interleaved = task.order == ops::Rotation::Order::kInterleave;
  const std::int64_t place =
      place_of_matrix(task, static_cast<int>(matrix / task.blocks), static_cast<int>(matrix % task.blocks));
  char *to = workspace + task.matrices + place * kWords * 128;
  const auto position = [&](int quad, int in_quad) {  // -1: beyond the last row
    const int upper = quad >= kQuads, row = (quad - upper * kQuads) * 4 + in_quad;
    return row >= part ? -1 : interleaved ? 2 * row + upper : upper * part + row;
  };
  int out[kQuads], in[kQuads][2];
#pragma unroll
  for (int k = 0; k < kQuads; ++k) {
    out[k] = position(2 * k + g % 2, g / 2);
    in[k][0] = position(2 * k, q), in[k][1] = position(2 * k + 1, q);
  }
  const auto parts_of = [&](int tile, int step) {  // high, then low
    const int j = out[tile], *i = in[step];
    const auto at = [&](int c) { return j < 0 || i[c] < 0 ? 0.0f : rest(j, i[c]); };
    const float2 value = make_float2(at(0), at(1));
    std::uint32_t parts[2];
    Bf16::put(parts, 0, value);
    const float2 taken = Bf16::get(parts, 0);
    Bf16::put(parts, 1, make_float2(value.x - taken.x, value.y - taken.y));
    return make_uint2(parts[0], parts[1]);
  };
#pragma unroll
  for (int tile = 0; tile < kQuads; ++tile) {
#pragma unroll
    for (int k = 0; k < kTwos; ++k) {
      const uint2 a = parts_of(tile, 2 * k), b = parts_of(tile, 2 * k + 1);
      *reinterpret_cast<uint4 *>(to + (tile * kTwos + k) * 512 + lane * 16) = make_uint4(a.x, b.x, a.y, b.y);
    }
    if constexpr (kQuads % 2 != 0)
      *reinterpret_cast<uint2 *>(to + kQuads * kTwos * 512 + tile * 256 + lane * 8) = parts_of(tile, kQuads - 1);
  }
}

template <typename Rest>
__device__ void pack_matrix(const RotationTask &task, std::int64_t matrix, char *workspace, Rest rest) {
  if (task.quads == 4)
    pack_matrix<4>(task, matrix, workspace, rest);
  else
    pack_matrix<3>(task, matrix, workspace, rest);
}

/// R - I of a block whose generators are in shared memory, in their place.
template <int kSize>
__device__ void turn_in_place(SmallBlock &shared, const RotationTask &task, const char *workspace) {
  Fragment<kSize> rest;
  turn_less_identity<kSize>(rest, shared, task, task.block_size, workspace);
  __syncwarp();
#pragma unroll
  for (int a = 0; a < kSize / 8; ++a)
#pragma unroll
    for (int c = 0; c < kSize / 4; ++c) shared[row_of(a)][column_of(c)] = rest[a][c];
  __syncwarp();
}

/// R - I of blocks that a warp can invert, or that has been computed before, a warp each.
__device__ void small_rests(const RotationRun &run, const RotationTask &task, std::int64_t matrix, SmallBlock &shared) {
  const int b = task.block_size, lane = static_cast<int>(threadIdx.x % 32);
  if (matrix >= std::int64_t{task.stages} * task.blocks) return;
  if (task.prepared) {
    const float *rest = task.prepared + matrix * b * b;
    pack_matrix(task, matrix, run.workspace, [&](int j, int i) { return __ldg(rest + j * b + i); });
    return;
  }
  load_generators(shared, task, matrix, b);
  if (b <= 24)
    turn_in_place<24>(shared, task, run.workspace);
  else
    turn_in_place<32>(shared, task, run.workspace);
  if (task.quads > 0) {
    pack_matrix(task, matrix, run.workspace, [&](int j, int i) { return shared[j][i]; });
    return;
  }
  float *rest = reinterpret_cast<float *>(run.workspace + task.rests) + matrix * b * b;
  for (int j = 0; j < b; ++j)
    if (lane < b) rest[j * b + lane] = shared[j][lane];
}

constexpr int kSharedBlock = 48;  // up to this size, a block is inverted in shared memory

/// R - I of one block, or of kRestsTogether.
__global__ void __launch_bounds__(kRotationThreads)
    rests_kernel(const __grid_constant__ RotationRun run, const __grid_constant__ Schedule schedule) {
  begin_kernel();
  constexpr int kSmall = kRestsTogether * kSmallBlock * kSmallPitch, kLarge = 3 * kSharedBlock * kSharedBlock;
  static_assert(kRestsTogether * 32 == kRotationThreads);
  __shared__ float shared[kSmall > kLarge ? kSmall : kLarge];
  const int index = find_entry(schedule.first, schedule.count, blockIdx.x), warp = static_cast<int>(threadIdx.x / 32);
  const RotationTask &task = run.rotations[index];
  const std::int64_t block = blockIdx.x - schedule.first[index];
  if (task.by_warp)
    return small_rests(run, task, block * kRestsTogether + warp, reinterpret_cast<SmallBlock *>(shared)[warp]);
  const int b = task.block_size, size = b * b;
  const float *rest = task.prepared + block * size;
  if (!task.prepared) {
    auto *stored = reinterpret_cast<float *>(run.workspace + task.rests) + block * size;
    float *q = b <= kSharedBlock ? shared : reinterpret_cast<float *>(run.workspace + task.scratch) + 2 * block * size;
    float *made = b <= kSharedBlock ? shared + 2 * size : stored;
    const float scale = shrink(task, run.workspace, [&] { return sum_of_block(squares_of_block(task, block)); });
    for_elements(b, b, [&](int i, int j) { q[i * b + j] = scale * skew(task, block, i, j); });
    __syncthreads();
    rest_of_block(task, made, q, q + size);
    rest = made;
    __syncthreads();
    if (task.quads == 0 && made != stored)
      for_elements(b, b, [&](int i, int j) { stored[i * b + j] = made[i * b + j]; });
  }
  if (task.quads > 0 && warp == 0)
    pack_matrix(task, block, run.workspace, [&](int j, int i) { return rest[j * b + i]; });
}

// -- stages -----------------------------------------------------------------------------------------------------------

/// Which element stands at `position` in the order of a stage.
__device__ std::int64_t element_at(const RotationTask &task, int stage, std::int64_t position) {
  if (task.order == ops::Rotation::Order::kPlain) return position;
  const std::int64_t half = (std::int64_t{task.block_size} << stage) / 2, window = 2 * half;
  const std::int64_t begin = position / window * window, inside = position - begin;
  if (task.order == ops::Rotation::Order::kInterleave) return begin + inside % 2 * half + inside / 2;
  const std::int64_t part = task.block_size / 2, at = inside / part, parts = half / part;
  return begin + (at % 2 * parts + at / 2) * part + inside % part;
}

/// An input feature and a place in the kernel, counted together.
__device__ std::int64_t column_offset(const Strided &t, const RotationTask &task, std::int64_t column) {
  std::int64_t offset = 0;
#pragma unroll
  for (int k = ops::kMaxKernelDims - 1; k >= 0; --k) {
    offset += column % task.kernel[k] * t.kernel[k];
    column /= task.kernel[k];
  }
  return offset + column * t.in;
}

/// Where a row or a column lies in what a stage reads, in what it writes, and in the weight.
struct Offset {
  std::int64_t from, to, base;
};

/// What a stage reads and writes: float32 copies of the weight, [rows, columns], but for the weight itself at first and
/// the result at last.
struct Stage {
  const RotationTask &task;
  int number;
  bool last;  // and ends in the result

  __device__ Offset row(std::int64_t row) const {
    const std::int64_t base = row * task.base.out, copy = row * task.columns;
    return {number == 0 ? base : copy, last ? row * task.result.out : copy, base};
  }
  __device__ Offset column(std::int64_t column) const {
    const std::int64_t base = number == 0 || last ? column_offset(task.base, task, column) : 0;
    return {number == 0 ? base : column, last ? column_offset(task.result, task, column) : column, base};
  }
  __device__ Offset at(bool is_row, std::int64_t index) const { return is_row ? row(index) : column(index); }
};

constexpr int kStep = 32;  // elements of a block that are summed over at a time
constexpr int kStageThreads = 128;
constexpr int kOwnPlaces = 8;  // outputs of a thread along the axis that turns
constexpr int kOwnLines = 4;   // and along the other one
constexpr int kLineLanes = kTurnedLines / kOwnLines;
static_assert(kTurnedPlaces * kTurnedLines == kStageThreads * kOwnPlaces * kOwnLines);
static_assert(kTurnedPlaces == kStep && kLineLanes == 32);

__device__ void store_value(const Strided &to, std::int64_t offset, float value) {
  if (to.dtype == LYC_DTYPE_F32)
    static_cast<float *>(to.data)[offset] = value;
  else if (to.dtype == LYC_DTYPE_BF16)
    static_cast<__nv_bfloat16 *>(to.data)[offset] = __float2bfloat16_rn(value);
  else
    static_cast<__half *>(to.data)[offset] = __float2half_rn(value);
}

/// At multiplier 0, the weight bit for bit, or no difference.
__device__ void keep_value(const RotationTask &task, ops::WeightOp op, const Offset &place, const Offset &line) {
  const std::int64_t from = place.base + line.base, to = place.to + line.to;
  if (op == ops::WeightOp::kDiff)
    store_value(task.result, to, 0.0f);
  else if (task.base.dtype != task.result.dtype)
    store_value(task.result, to, load_float(task.base.data, task.base.dtype, from));
  else if (task.base.dtype == LYC_DTYPE_F32)
    static_cast<std::uint32_t *>(task.result.data)[to] = static_cast<const std::uint32_t *>(task.base.data)[from];
  else
    static_cast<std::uint16_t *>(task.result.data)[to] = static_cast<const std::uint16_t *>(task.base.data)[from];
}

/// What a stage reads of a block's elements and of the lines across; the rest of them 0.
using StageTile = float[kStep][kTurnedLines + 4];

__device__ void load_elements(StageTile &in, const RotationTask &task, const void *source, lyc_dtype dtype,
                              const Offset *place, const Offset *line, int count) {
  constexpr int kTogether = 8;  // loads under way
  const int thread = static_cast<int>(threadIdx.x);
  for (int first = thread; first < kStep * kTurnedLines; first += kTogether * kStageThreads) {
    float values[kTogether];
    const auto cell = [&](int load) {  // neighbours in memory in neighbouring threads
      const int e = first + load * kStageThreads;
      return task.by_out ? make_int2(e / kTurnedLines, e % kTurnedLines) : make_int2(e % kStep, e / kStep);
    };
    load_floats(source, dtype, values, [&](int load) {
      const int2 at = cell(load);
      return place[at.x].from + line[at.y].from;
    });
#pragma unroll
    for (int load = 0; load < kTogether; ++load) {
      const int2 at = cell(load);
      in[at.x][at.y] = at.x < count ? values[load] : 0.0f;
    }
  }
}

/// The same from a float32 copy, `lines` being the thread's own.
__device__ void load_vectors(StageTile &in, const Offset *place, int count, const float *lines) {
  constexpr int kWarps = kStageThreads / 32, kLoads = kStep / kWarps;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  float4 values[kLoads];
#pragma unroll
  for (int load = 0; load < kLoads; ++load)
    values[load] = __ldg(reinterpret_cast<const float4 *>(lines + place[warp + load * kWarps].from));
#pragma unroll
  for (int load = 0; load < kLoads; ++load) {
    const bool there = warp + load * kWarps < count;
    *reinterpret_cast<float4 *>(&in[warp + load * kWarps][lane * kOwnLines]) =
        there ? values[load] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
}

/// out[j] = in[j] + m sum_i (R - I)[j, i] in[i]: kTurnedPlaces elements of a block on kTurnedLines lines.
__global__ void __launch_bounds__(kStageThreads)
    stage_kernel(const __grid_constant__ RotationRun run, const __grid_constant__ Schedule schedule, int number) {
  begin_kernel();
  __shared__ alignas(16) StageTile in;
  __shared__ alignas(16) float rest[kStep][kTurnedPlaces + 4];  // transposed
  __shared__ Offset place[kStep], own[kTurnedPlaces], line[kTurnedLines];
  const int index = find_entry(schedule.first, schedule.count, blockIdx.x);
  const RotationTask &task = run.rotations[index];
  const float m = multiplier_at(run.multipliers, task.multiplier_index);
  const Stage stage{task, number, number + 1 == task.stages && task.result.data};
  const bool by_out = task.by_out, copies = m == 0.0f;
  if (copies && (!stage.last || (run.op != ops::WeightOp::kDiff && task.base.data == task.result.data))) return;
  const int b = task.block_size, thread = static_cast<int>(threadIdx.x);
  const int parts = (b + kTurnedPlaces - 1) / kTurnedPlaces;  // of a block
  const std::int64_t piece = blockIdx.x - schedule.first[index], lines = by_out ? task.columns : task.rows;
  const std::int64_t line_groups = (lines + kTurnedLines - 1) / kTurnedLines;
  // Neighbours along columns in neighbouring blocks of threads.
  const std::int64_t turn = by_out ? piece / line_groups : piece % (std::int64_t{task.blocks} * parts);
  const std::int64_t group = by_out ? piece % line_groups : piece / (std::int64_t{task.blocks} * parts);
  const std::int64_t block = turn / parts, first_line = group * kTurnedLines;
  const int first = static_cast<int>(turn % parts) * kTurnedPlaces;

  const auto offset_of_place = [&](int i) {
    return stage.at(by_out, task.begin + element_at(task, number, block * b + min(i, b - 1)));
  };
  line[thread] = stage.at(!by_out, min(first_line + thread, lines - 1));
  if (thread < kTurnedPlaces) own[thread] = offset_of_place(first + thread);
  __syncthreads();
  const int first_place = thread / kLineLanes * kOwnPlaces, own_line = thread % kLineLanes * kOwnLines;
  if (copies) {
    for (int j = first_place; j < min(first_place + kOwnPlaces, b - first); ++j)
      for (int l = own_line; l < own_line + kOwnLines; ++l)
        if (first_line + l < lines) keep_value(task, run.op, own[j], line[l]);
    return;
  }

  const void *source = number == 0 ? task.base.data : run.workspace + task.turned[(number + 1) % 2];
  const lyc_dtype source_dtype = number == 0 ? task.base.dtype : LYC_DTYPE_F32;
  const float *rests = task.prepared ? task.prepared : reinterpret_cast<const float *>(run.workspace + task.rests);
  rests += (std::int64_t{number} * task.blocks + block) * b * b;
  // Columns of the copies are neighbours in memory; a thread's four are all inside or all outside.
  const bool whole_vectors = by_out && task.columns % kOwnLines == 0;
  const std::int64_t near_lines = min(first_line + own_line, lines - kOwnLines);
  float sum[kOwnPlaces][kOwnLines] = {};
  for (int begin = 0; begin < b; begin += kStep) {
    const int count = min(kStep, b - begin);
    if (thread < kStep) place[thread] = offset_of_place(begin + thread);
    __syncthreads();
    if (whole_vectors && number > 0)
      load_vectors(in, place, count, static_cast<const float *>(source) + near_lines);
    else
      load_elements(in, task, source, source_dtype, place, line, count);
    constexpr int kRests = kTurnedPlaces * kStep / kStageThreads;
    float rest_values[kRests];
#pragma unroll
    for (int load = 0; load < kRests; ++load) {
      const int e = thread + load * kStageThreads;
      rest_values[load] = __ldg(rests + min(first + e / kStep, b - 1) * b + min(begin + e % kStep, b - 1));
    }
#pragma unroll
    for (int load = 0; load < kRests; ++load) {
      const int e = thread + load * kStageThreads;
      rest[e % kStep][e / kStep] = e % kStep < count ? rest_values[load] : 0.0f;
    }
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const float4 values = *reinterpret_cast<const float4 *>(&in[i][own_line]);
      const float of_line[kOwnLines] = {values.x, values.y, values.z, values.w};
      float of_place[kOwnPlaces];
#pragma unroll
      for (int j = 0; j < kOwnPlaces; j += 4) {
        const float4 four = *reinterpret_cast<const float4 *>(&rest[i][first_place + j]);
        of_place[j] = four.x, of_place[j + 1] = four.y, of_place[j + 2] = four.z, of_place[j + 3] = four.w;
      }
#pragma unroll
      for (int j = 0; j < kOwnPlaces; ++j)
#pragma unroll
        for (int l = 0; l < kOwnLines; ++l) sum[j][l] = fmaf(of_place[j], of_line[l], sum[j][l]);
    }
    __syncthreads();
  }

  auto *turned = reinterpret_cast<float *>(run.workspace + task.turned[number % 2]);
#pragma unroll
  for (int j = 0; j < kOwnPlaces; ++j) {
    const int at = first_place + j;
    if (first + at >= b) break;
    const Offset where = own[at];
    float values[kOwnLines];
    if (b > kStep)
      load_floats(source, source_dtype, values, [&](int l) { return where.from + line[own_line + l].from; });
    else
#pragma unroll
      for (int l = 0; l < kOwnLines; ++l) values[l] = in[at][own_line + l];
#pragma unroll
    for (int l = 0; l < kOwnLines; ++l) values[l] = fmaf(m, sum[j][l], values[l]);
    if (!stage.last && whole_vectors) {
      if (first_line + own_line < lines)
        *reinterpret_cast<float4 *>(turned + where.to + near_lines) =
            make_float4(values[0], values[1], values[2], values[3]);
      continue;
    }
#pragma unroll
    for (int l = 0; l < kOwnLines; ++l) {
      if (first_line + own_line + l >= lines) break;
      const Offset &of_line = line[own_line + l];
      if (!stage.last) {
        turned[where.to + of_line.to] = values[l];
        continue;
      }
      const std::int64_t row = by_out ? element_at(task, number, block * b + first + at) : first_line + own_line + l;
      if (task.rescale.data) values[l] *= element(task.rescale, row);
      if (run.op == ops::WeightOp::kDiff)
        values[l] -= load_float(task.base.data, task.base.dtype, where.base + of_line.base);
      store_value(task.result, where.to + of_line.to, values[l]);
    }
  }
}

}  // namespace

cudaError_t launch_rotations(const RotationRun &run, int limited, const Schedule &blocks, const Launch &on) {
  if (limited > 0) {
    const cudaError_t status = launch_kernel(squares_kernel, static_cast<unsigned>(limited), kRotationThreads, on, run);
    if (status != cudaSuccess || blocks.pieces == 0) return status;
  }
  return launch_kernel(rests_kernel, blocks.pieces, kRotationThreads, on, run, blocks);
}

cudaError_t launch_stage(const RotationRun &run, const Schedule &schedule, int stage, const Launch &on) {
  return launch_kernel(stage_kernel, schedule.pieces, kStageThreads, on, run, schedule, stage);
}

}  // namespace lyc::cuda
