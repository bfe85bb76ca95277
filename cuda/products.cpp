#include "products.hpp"

#include <algorithm>
#include <limits>
#include <optional>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "stream_table.hpp"

namespace lyc::cuda {
namespace {

using ops::Operand;

constexpr std::uint64_t kAlignment = 256;

/// Contiguous strides in the memory order of `weight`.
Operand laid_out_alike(Operand t, const Operand &weight) {
  AxisOrder order = axes_by_stride(weight);
  for (int axis = kAxes - 1; axis >= 0; --axis)
    if (std::find(order.begin(), order.end(), axis) == order.end()) order.push_back(axis);
  std::int64_t step = 1;
  for (int axis : order) {
    (axis == kOutAxis ? t.stride_out : axis == kInAxis ? t.stride_in : t.stride_kernel[axis - kFirstKernelAxis]) = step;
    step *= extent(t, axis);
  }
  return t;
}

/// A contraction's factors, as yet without extents.
Contraction factors(const Source &left, std::int64_t left_a, std::int64_t left_s, const Source &right,
                    std::int64_t right_s, std::int64_t right_b) {
  Contraction sum{};
  sum.left = {left.operand.data, left.operand.dtype, 0};
  sum.left_in_workspace = left.in_workspace;
  sum.left_a = left_a, sum.left_s = left_s;
  sum.right = {right.operand.data, right.operand.dtype, 0};
  sum.right_in_workspace = right.in_workspace;
  sum.right_s = right_s, sum.right_b = right_b;
  return sum;
}

/// From one place of a kernel to the next, if that is the same everywhere.
std::optional<std::int64_t> even_step(const std::int32_t *kernel, const std::int64_t *strides) {
  std::int64_t size = 1, step = 0;
  for (int k = ops::kMaxKernelDims - 1; k >= 0; --k) {
    if (kernel[k] == 1) continue;
    if (size == 1) step = strides[k];
    if (strides[k] != size * step) return std::nullopt;
    size *= kernel[k];
  }
  return step;
}

void number_places(Contraction &sum) {
  sum.places = sum.kernel[0] * sum.kernel[1] * sum.kernel[2];
  const auto left = even_step(sum.kernel, sum.left_kernel), result = even_step(sum.kernel, sum.result_kernel);
  sum.even = left && result;
  if (sum.even) sum.left_place = *left, sum.result_place = *result;
}

/// A long matrix of contiguous rows times a narrow one, both of one 16-bit type, as the copy of 16 bytes wants them.
bool is_tall(const Contraction &sum) {
  constexpr std::int64_t kVector = 8;
  const auto vectors = [](const Vector &data, std::int64_t inner, std::int64_t outer) {
    return inner == 1 && outer % kVector == 0 && reinterpret_cast<std::uintptr_t>(data.data) % 16 == 0;
  };
  const bool plain =
      !sum.left_in_workspace && !sum.right_in_workspace && !sum.diagonal.data && !sum.mask.data && sum.places == 1;
  return plain && sum.left.dtype == sum.right.dtype && sum.left.dtype != LYC_DTYPE_F32 && sum.b <= kChunkRanks &&
         sum.b % kVector == 0 && sum.s % kVector == 0 && vectors(sum.left, sum.left_s, sum.left_a) &&
         vectors(sum.right, sum.right_b, sum.right_s);
}

}  // namespace

ProductSource Products::without_core(const ops::Product &product, const Operand &weight, std::int64_t row_begin) {
  if (product.whole()) return {{}, {rows_from(product.down, row_begin)}, {}, {}};
  ProductSource source{{rows_from(product.up, row_begin)}, {product.down}, product.diagonal, product.mask};
  if (!product.tucker()) return source;
  const Operand &core = product.core, &down = product.down;
  Operand result = core;
  result.in = down.in;
  const Contraction sum = factors({core}, core.stride_out, core.stride_in, {down}, down.stride_out, down.stride_in);
  source.down = contract(0, sum, core, core.in, result, true, weight);
  Contraction &stored = contractions[0].back();
  if (!stored.even || stored.places * kChunkRanks > kCoreStaged) return source;
  stored.kind = ContractionKind::kCore;
  stored.lines = std::int64_t{stored.b} * stored.places;
  stored.places_inside = stored.result_place < stored.result_b;
  return source;
}

Source Products::whole(const ops::Product &product, const Operand &weight) {
  const ProductSource source = without_core(product, weight);
  if (source.rank() == 0) return source.down;
  const Operand &up = source.up.operand, &down = source.down.operand;
  // The kernel is the lower factor's, so that is the left one.
  Contraction sum = factors(source.down, down.stride_in, down.stride_out, source.up, up.stride_in, up.stride_out);
  sum.diagonal = vector_of(source.diagonal);
  sum.mask = vector_of(source.mask);
  Operand result = down;
  result.out = up.out;
  return contract(1, sum, down, up.in, result, false, weight);
}

ProductSource Products::right_of(const Operand &base, const ops::Product &product, const Operand &weight) {
  const ProductSource right = without_core(product, weight);
  const Operand &first = right.rank() == 0 ? right.down.operand : right.up.operand;
  Operand result = base;
  result.in = first.in;
  const Source left =
      contract(0, factors({base}, base.stride_out, base.stride_in, {first}, first.stride_out, first.stride_in), base,
               base.in, result, true, weight);
  if (right.rank() == 0) return {{}, left, {}, {}};
  if (weight.kernel_size() == 1) return {left, right.down, right.diagonal, right.mask};

  const Operand &above = left.operand, &below = right.down.operand;
  Contraction sum = factors(left, above.stride_out, above.stride_in, right.down, below.stride_out, below.stride_in);
  sum.diagonal = vector_of(right.diagonal);
  sum.mask = vector_of(right.mask);
  result.in = weight.in;
  return {{}, contract(1, sum, above, above.in, result, true, weight), {}, {}};
}

std::uint64_t Products::pack(std::int32_t stage, std::int32_t contraction, bool rank_is_inner, std::int64_t ranks,
                             std::int64_t lines) {
  const std::int64_t padded = ceil_div(lines, kPackedLines) * kPackedLines;
  const std::int64_t chunks = ceil_div(ranks, kChunkRanks);
  Contraction &sum = contractions[static_cast<std::size_t>(stage)][static_cast<std::size_t>(contraction)];
  sum.packed_lines = padded;
  sum.packed_ranks = narrow(ranks, "a rank");
  sum.rank_is_inner = rank_is_inner;
  sum.lines = lines;
  sum.result = reserve(kPackedParts * chunks * padded * kChunkRanks / 2);  // of half a float each
  if (is_tall(sum)) sum.kind = ContractionKind::kTall;
  return sum.result;
}

void Products::cut(int multiprocessors) {
  constexpr std::int64_t kManyTiles = 16;  // beginning does not tell then, nor does the end
  for (std::vector<Contraction> &stage : contractions) {
    std::int64_t tiles = 0, tall = 0;
    for (const Contraction &sum : stage)
      if (sum.kind == ContractionKind::kTall) tiles += ceil_div(sum.a, kTallRows), ++tall;
    const std::int64_t height =
        std::min(ceil_div(tiles, multiprocessors), tall == 1 ? std::int64_t{kMostTallTiles} : kManyTiles);
    for (Contraction &sum : stage) {
      const std::int64_t rows = std::int64_t{sum.a} * sum.places;
      const std::int64_t pieces =
          sum.kind == ContractionKind::kCore   ? ceil_div(sum.lines, kCoreLines) * ceil_div(sum.a, kChunkRanks)
          : sum.kind == ContractionKind::kTall ? ceil_div(ceil_div(sum.a, kTallRows), height)
                                               : ceil_div(rows, kContractionTile) * ceil_div(sum.b, kContractionTile);
      sum.pieces = narrow(pieces, "the number of tiles");
    }
  }
}

PieceCounter Products::pieces(std::size_t stage, ContractionKind kind) const {
  PieceCounter counter;
  for (const Contraction &sum : contractions[stage]) counter.add(sum.kind == kind ? sum.pieces : 0);
  return counter;
}

RotationTask Products::rotation(const ops::Rotation &rotation, std::int32_t multiplier_index) {
  require(rotation.stages >= 1 && rotation.stages <= kMaxStages, "a rotation of ", rotation.stages, " stages");
  RotationTask task{};
  task.storage = rotation.storage;
  task.map = rotation.map;
  task.order = rotation.order;
  task.limited = rotation.limited;
  task.neumann_terms = rotation.neumann_terms;
  task.stages = rotation.stages;
  task.blocks = narrow(rotation.blocks, "the number of blocks");
  task.block_size = narrow(rotation.block_size, "a block's size");
  task.by_out = rotation.axis == ops::Rotation::Axis::kOut;
  task.multiplier_index = multiplier_index;
  task.begin = rotation.begin;
  task.factor = static_cast<float>(rotation.factor);
  task.limit = static_cast<float>(rotation.limit);
  task.by_warp = task.block_size <= 32 && (rotation.prepared.data || task.map == ops::Rotation::Map::kCayley);
  if (rotation.prepared.data) {
    require(rotation.prepared.dtype == LYC_DTYPE_F32, "prepared rotations must be f32");
    task.prepared = static_cast<const float *>(rotation.prepared.data);
    return task;
  }
  const Operand &x = rotation.generators;
  check(x, "generators");
  task.generators = vector_of(x);
  task.generator_stride = narrow(x.stride_in, "a generator's stride");
  return task;
}

void Products::add(RotationTask &task) {
  const std::int64_t matrices = std::int64_t{task.stages} * task.blocks;
  const std::int64_t elements = matrices * task.block_size * task.block_size;
  const bool done = task.late || (task.prepared && task.quads == 0);
  if (!task.prepared) {
    if (!done && (task.quads == 0 || !task.by_warp)) task.rests = reserve(elements);
    if (!task.by_warp) task.scratch = reserve(2 * elements);
    task.squares = reserve(1);
  }
  rotations.push_back(task);
  rotation_blocks.add(done ? 0 : task.by_warp ? ceil_div(matrices, kRestsTogether) : matrices);
}

void Products::add(const FactorTask &task) {
  dora_factors.push_back(task);
  dora_factor_blocks.add(ceil_div(task.magnitudes, kMagnitudesPerBlock));
}

std::uint64_t Products::reserve(std::int64_t floats) {
  const std::uint64_t at = workspace_size;
  workspace_size += (static_cast<std::uint64_t>(floats) * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
  return at;
}

/// Finish a contraction over `length` whose left factor has the kernel of `kernel`. `result` has the extents: rows are
/// `a` and columns `b`, or the other way round.
Source Products::contract(int stage, Contraction sum, const Operand &kernel, std::int64_t length, Operand result,
                          bool a_is_out, const Operand &weight) {
  result = laid_out_alike(result, weight);
  result.dtype = LYC_DTYPE_F32;
  sum.result = reserve(result.numel());
  result.data = reinterpret_cast<void *>(sum.result);
  sum.a = narrow(a_is_out ? result.out : result.in, "a factor's extent");
  sum.b = narrow(a_is_out ? result.in : result.out, "a factor's extent");
  sum.s = narrow(length, "a rank");
  sum.result_a = a_is_out ? result.stride_out : result.stride_in;
  sum.result_b = a_is_out ? result.stride_in : result.stride_out;
  for (int k = 0; k < ops::kMaxKernelDims; ++k) {
    sum.kernel[k] = narrow(kernel.kernel[k], "a kernel");
    sum.left_kernel[k] = kernel.stride_kernel[k];
    sum.result_kernel[k] = result.stride_kernel[k];
  }
  number_places(sum);
  const auto at = static_cast<std::size_t>(stage);
  contractions[at].push_back(sum);
  return {result, true, stage, static_cast<std::int32_t>(contractions[at].size()) - 1};
}

void PieceCounter::add(std::int64_t count) {
  require(count <= std::numeric_limits<std::int32_t>::max() - std::int64_t{pieces},
          "a batch of more than 2^31 tiles; split it");
  first.push_back(pieces);
  pieces += static_cast<std::uint32_t>(count);
}

std::int32_t narrow(std::int64_t value, const char *what) {
  require(value <= std::numeric_limits<std::int32_t>::max(), what, " is ", value, ", at most 2^31-1");
  return static_cast<std::int32_t>(value);
}

Divisor divisor(std::int64_t value, const char *what) {
  Divisor by{static_cast<std::uint32_t>(narrow(value, what)), 0, 0};
  while ((std::int64_t{1} << by.shift) < value) ++by.shift;
  const auto wide = static_cast<std::uint64_t>(value);
  by.magic = static_cast<std::uint32_t>((((std::uint64_t{1} << by.shift) - wide) << 32) / wide + 1);
  return by;
}

void check_multiplier(const ops::Adapter &adapter, const ops::WeightBatch &batch) {
  require(adapter.multiplier_index >= 0 && adapter.multiplier_index < batch.multiplier_count, "multiplier index ",
          adapter.multiplier_index, " of ", batch.multiplier_count);
}

void check(const Operand &operand, const char *what) {
  require(operand.data, what, " is absent");
  if (!is_arithmetic(operand.dtype))
    fail(LYC_ERROR_UNSUPPORTED, what, " has dtype ", dtype_name(operand.dtype), ", must be f32, f16 or bf16");
}

void check_product(const ops::Product &product) {
  check(product.down, "a factor");
  if (product.whole()) return;
  check(product.up, "a factor");
  if (product.tucker()) check(product.core, "a core");
  const std::int64_t below = product.tucker() ? product.core.out : product.down.out;
  require(product.up.in == below, "up has rank ", product.up.in, " and what it multiplies has ", below);
  if (product.tucker())
    require(product.core.in == product.down.out, "a core has rank ", product.core.in, " and down has ",
            product.down.out);
  for (const Operand *ranks : {&product.diagonal, &product.mask}) {
    if (!ranks->data) continue;
    check(*ranks, "a vector of ranks");
    require(ranks->out == product.rank(), "a vector has ", ranks->out, " ranks, must have ", product.rank());
  }
}

void check_fit(std::int64_t rows, std::int64_t in, const Operand &holder, const ops::Term &term,
               const Operand &weight) {
  require(term.row_begin >= 0 && term.row_begin <= rows - weight.out, "rows ", term.row_begin, " to ",
          term.row_begin + weight.out, " of a delta with ", rows, " rows");
  require(in == weight.in && holder.kernel_size() == weight.kernel_size(), "a delta of ", in, " x ",
          holder.kernel_size(), " columns on a weight of ", weight.in, " x ", weight.kernel_size());
}

void check_kronecker(const ops::Term &term, const Operand &weight) {
  check_product(term.p);
  check_product(term.q);
  require(term.p.kernel_holder().kernel_size() == 1, "the left half of a Kronecker product has a kernel");
  check_fit(term.p.out() * term.q.out(), term.p.in() * term.q.in(), term.q.kernel_holder(), term, weight);
}

void check_base_product(const ops::Product &product, const Operand &weight) {
  check_product(product);
  require(product.kernel_holder().kernel_size() == 1 && product.out() == weight.in && product.in() == weight.in,
          "a factor of ", product.out(), " x ", product.in(), " right of a weight with ", weight.in, " input features");
}

DoraParameters dora_parameters(const ops::Adapter &adapter, const Operand &weight) {
  const Operand &magnitude = adapter.magnitude;
  check(magnitude, "a magnitude");
  const bool out = adapter.dora_axis == ops::DoraAxis::kOut;
  const std::int64_t given = out ? magnitude.out : magnitude.in, wanted = out ? weight.out : weight.in;
  require(given == wanted, "a magnitude has ", given, " entries, must have ", wanted);
  return {adapter.dora_rule,
          adapter.epsilon,
          {magnitude.data, magnitude.dtype, stride(magnitude, out ? kOutAxis : kInAxis)}};
}

std::int64_t extent(const Operand &t, int axis) {
  return axis == kOutAxis ? t.out : axis == kInAxis ? t.in : t.kernel[axis - kFirstKernelAxis];
}

std::int64_t stride(const Operand &t, int axis) {
  if (extent(t, axis) == 1) return 0;
  return axis == kOutAxis ? t.stride_out : axis == kInAxis ? t.stride_in : t.stride_kernel[axis - kFirstKernelAxis];
}

std::int64_t column_step(const Operand &t) {
  for (int axis = kAxes - 1; axis > kOutAxis; --axis)
    if (extent(t, axis) > 1) return stride(t, axis);
  return 1;
}

bool has_even_columns(const Operand &t) {
  std::int64_t step = column_step(t);
  for (int axis = kAxes - 1; axis > kOutAxis; --axis) {
    if (extent(t, axis) > 1 && stride(t, axis) != step) return false;
    step *= extent(t, axis);
  }
  return true;
}

Operand rows_from(Operand operand, std::int64_t begin) {
  operand.data = static_cast<char *>(operand.data) +
                 begin * operand.stride_out * static_cast<std::int64_t>(dtype_size(operand.dtype));
  operand.out -= begin;
  return operand;
}

AxisOrder axes_by_stride(const Operand &t) {
  AxisOrder order;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    if (extent(t, axis) <= 1) continue;
    const auto behind = [&](std::int64_t step, int other) { return step < stride(t, other); };
    int *const place = std::upper_bound(order.begin(), order.end(), stride(t, axis), behind);
    order.push_back(axis);
    std::rotate(place, order.end() - 1, order.end());
  }
  return order;
}

Vector rescale_of(const ops::Rotation &rotation, std::int64_t row_begin) {
  Vector rescale = vector_of(rotation.rescale);
  if (rescale.data)
    rescale.data = static_cast<const char *>(rescale.data) +
                   row_begin * rescale.stride * static_cast<std::int64_t>(dtype_size(rescale.dtype));
  return rescale;
}

}  // namespace lyc::cuda
