#include "cpu/rotation.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "cpu/context.hpp"
#include "cpu/weight_plan.hpp"

namespace lyc::cpu {
namespace {

using ops::Rotation;

bool identity(const std::vector<std::int64_t> &lines) {
  for (std::size_t i = 0; i < lines.size(); ++i)
    if (lines[i] != static_cast<std::int64_t>(i)) return false;
  return true;
}

void check(const Rotation &rotation) {
  const std::int64_t b = rotation.block_size;
  require(rotation.blocks > 0 && b > 0 && rotation.stages > 0 && rotation.stages < 32, "a rotation of ",
          rotation.blocks, " blocks of ", b, " in ", rotation.stages, " stages");
  require(rotation.order == Rotation::Order::kPlain || b % 2 == 0, "blocks of ", b, " have no halves");
  require(rotation.blocks % (std::int64_t{1} << (rotation.stages - 1)) == 0, rotation.stages, " stages do not fit ",
          rotation.blocks, " blocks");
  const ops::Operand &given = rotation.prepared.data ? rotation.prepared : rotation.generators;
  require(given.data && is_arithmetic(given.dtype), "generators of a rotation must be f32, f16 or bf16");
  const bool square = rotation.prepared.data || rotation.storage == Rotation::Storage::kSquare;
  require(given.in == (square ? b * b : b * (b - 1) / 2) && (given.in <= 1 || given.stride_in == 1), "blocks of ", b,
          " cannot have ", given.in, " generators");
  require(!rotation.prepared.data || rotation.prepared.dtype == LYC_DTYPE_F32, "prepared rotations are f32");
}

// -- Matrices --------------------------------------------------------------------------------------------------

/// Q of one block as loaded: factor * shrink * x for i < j, from either storage.
class Skew {
 public:
  Skew(const Kernels &kernels, const Rotation &rotation, std::int64_t matrix, float *values)
      : values_(values), n_(rotation.block_size), square_(rotation.storage == Rotation::Storage::kSquare) {
    const ops::Operand &x = rotation.generators;
    const char *row =
        static_cast<const char *>(x.data) + matrix * x.stride_out * static_cast<std::int64_t>(dtype_size(x.dtype));
    kernels.load(x.dtype, row, x.in, values);
  }

  /// factor * Q, row-major.
  void write(double factor, double *q) const {
    const float *above = values_;
    for (std::int64_t i = 0; i < n_; ++i) {
      q[i * n_ + i] = 0.0;
      for (std::int64_t j = i + 1; j < n_; ++j) {
        const double x = square_ ? static_cast<double>(values_[i * n_ + j]) - static_cast<double>(values_[j * n_ + i])
                                 : static_cast<double>(*above++);
        q[i * n_ + j] = factor * x;
        q[j * n_ + i] = -factor * x;
      }
    }
  }

 private:
  const float *values_;
  std::int64_t n_;
  bool square_;
};

double sum_of_squares(const double *values, std::int64_t count) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < count; ++i) sum += values[i] * values[i];
  return sum;
}

/// What Q is multiplied by so that it keeps the limit.
double shrinking(const Rotation &rotation, double squares) {
  const double norm = std::sqrt(squares), limit = rotation.limit;
  switch (rotation.limited) {
    case Rotation::Limit::kNone:
      return 1.0;
    case Rotation::Limit::kTogether:
      return norm + 1e-8 > limit ? limit / (norm + 1e-8) : 1.0;
    case Rotation::Limit::kAlways:
      return (std::min(norm, limit) + 1e-8) / (norm + 1e-8);
    case Rotation::Limit::kBlock:
      return norm > limit ? limit / norm : 1.0;
  }
  fail(LYC_ERROR_INTERNAL, "unknown limit of a rotation");
}

/// -Q becomes (R - I) / 2 = (I - Q)^-1 - I. Where the symmetric part of a matrix is I, that of what is left after each
/// step of its inversion is I and something positive: no pivot is below 1, and nothing need be exchanged.
void cayley(const Kernels &kernels, double *q, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) q[i * n + i] += 1.0;
  kernels.invert(q, n);
  for (std::int64_t i = 0; i < n; ++i) q[i * n + i] -= 1.0;
}

/// Half of the series without I, by Horner's scheme, in one of two matrices beside q.
double *neumann(const Kernels &kernels, const double *q, std::int64_t n, int terms, double *sum, double *next) {
  for (std::int64_t i = 0; i < n * n; ++i) sum[i] = terms == 1 ? 0.0 : terms == 2 ? q[i] : 0.5 * q[i];
  if (terms < 3) return sum;
  for (int step = 2; step < std::max(terms, 4); ++step) {
    std::copy(q, q + n * n, next);
    kernels.add_matrix_product(q, sum, n, next);
    std::swap(sum, next);
  }
  return sum;
}

// Where the matrix counts element i of the block, whose runs follow each other.
std::int64_t place(const RotationPlan &plan, std::int64_t i) {
  const std::int64_t length = plan.run_length();
  return plan.rotation.order == Rotation::Order::kInterleave ? i % length * 2 + i / length : i;
}

// kLines rows of `rest`, or columns where the plan is transposed, from the block's element `begin` on, side by side;
// those from `end` on are 0.
template <std::int64_t kLines>
void pack_lines(const RotationPlan &plan, const float *rest, float m, std::int64_t begin, std::int64_t end,
                float *packed) {
  const std::int64_t n = plan.rotation.block_size, down = plan.transposed ? 1 : n, across = plan.transposed ? n : 1;
  const float *rows[kLines];
  for (std::int64_t i = 0; i < kLines; ++i) rows[i] = rest + place(plan, std::min(begin + i, end - 1)) * down;
  const std::int64_t length = plan.run_length();
  const std::int64_t step = plan.rotation.order == Rotation::Order::kInterleave ? 2 * across : across;
  for (std::int64_t run = 0; run < n; run += length) {
    std::int64_t from = place(plan, run) * across;
    for (std::int64_t k = 0; k < length; ++k, from += step, packed += kLines)
      for (std::int64_t i = 0; i < kLines; ++i) packed[i] = begin + i < end ? m * rows[i][from] : 0.0f;
  }
}

void pack_rows(const RotationPlan &plan, const float *rest, float m, float *packed) {
  const std::int64_t n = plan.rotation.block_size, length = plan.run_length();
  for (std::int64_t run = 0; run < n; run += length)
    for (std::int64_t begin = run; begin < run + length; begin += kTileRows, packed += n * kTileRows)
      pack_lines<kTileRows>(plan, rest, m, begin, run + length, packed);
}

void pack_columns(const RotationPlan &plan, const float *rest, float m, float *packed) {
  const std::int64_t n = plan.rotation.block_size;
  for (std::int64_t begin = 0; begin < n; begin += kTurned, packed += n * kTurned)
    pack_lines<kTurned>(plan, rest, m, begin, n, packed);
}

}  // namespace

std::int64_t RotationPlan::matrices() const {
  const ops::Operand &given = rotation.prepared.data ? rotation.prepared : rotation.generators;
  return given.stride_out == 0 ? 1 : rotation.stages * rotation.blocks;
}

std::int64_t RotationPlan::packed_floats() const {
  if (by_rows()) return round_up(rotation.block_size, kTurned) * rotation.block_size;
  return runs() * round_up(run_length(), kTileRows) * rotation.block_size;
}

bool RotationPlan::measured() const {
  return !rotation.prepared.data &&
         (rotation.limited == Rotation::Limit::kTogether || rotation.limited == Rotation::Limit::kAlways);
}

RotationPlan plan_rotation(const Rotation &rotation, const Frame &frame, const ops::Operand &weight,
                           std::int64_t row_begin) {
  check(rotation);
  RotationPlan plan;
  plan.rotation = rotation;
  const bool out = rotation.axis == Rotation::Axis::kOut;
  const std::int64_t extent = out ? weight.out : weight.in * weight.kernel_size();
  require(rotation.begin >= 0 && rotation.begin <= extent - rotation.extent(), "a rotation of ", rotation.extent(),
          " from ", rotation.begin, " on, along an axis of ", extent);
  require(!out || row_begin == 0, "rows turn together; they cannot begin at row ", row_begin);
  plan.along_rows = out == frame.out_in_columns();
  if (!out) {
    const std::vector<std::int64_t> elements = frame.inner_indices(weight);
    plan.lines.resize(elements.size());
    for (std::size_t line = 0; line < elements.size(); ++line)
      plan.lines[static_cast<std::size_t>(elements[line])] = static_cast<std::int64_t>(line);
    if (identity(plan.lines)) plan.lines.clear();
  }
  ops::Operand &rescale = plan.rotation.rescale;
  if (rescale.data) {
    require(is_arithmetic(rescale.dtype) && rescale.out >= row_begin + weight.out, "rescale has ", rescale.out,
            " values for ", weight.out, " rows");
    rescale.data = static_cast<char *>(rescale.data) +
                   row_begin * rescale.stride_out * static_cast<std::int64_t>(dtype_size(rescale.dtype));
  }
  return plan;
}

std::int64_t common_lines(const RotationPlan &plan, std::int64_t unit, std::int64_t all) {
  const std::int64_t window = plan.window();
  if (!plan.lines.empty() || plan.rotation.begin % window != 0 || unit >= all) return all;
  const std::int64_t steps = window / std::gcd(unit, window);
  return steps > all / unit ? all : unit * steps;
}

std::uint64_t matrix_scratch(const Rotation &rotation) {
  const auto b = static_cast<std::uint64_t>(rotation.block_size);
  const std::uint64_t doubles = rotation.map == Rotation::Map::kNeumann ? 3 : 1;
  return (2 * doubles + 2) * b * b;
}

double squares(const Kernels &kernels, const Rotation &rotation, std::int64_t matrix, float *scratch) {
  const std::int64_t n = rotation.block_size;
  double *q = reinterpret_cast<double *>(scratch);
  Skew(kernels, rotation, matrix, scratch + 2 * n * n).write(rotation.factor, q);
  return sum_of_squares(q, n * n);
}

void derive(const Kernels &kernels, const Rotation &rotation, std::int64_t matrix, double squares, float *scratch,
            float *rest) {
  const std::int64_t n = rotation.block_size, size = n * n;
  const bool series = rotation.map == Rotation::Map::kNeumann;
  double *const q = reinterpret_cast<double *>(scratch), *half = q;
  const Skew skew(kernels, rotation, matrix, scratch + (series ? 6 : 2) * size);
  skew.write(series ? rotation.factor : -rotation.factor, q);
  const double shrink =
      shrinking(rotation, rotation.limited == Rotation::Limit::kBlock ? sum_of_squares(q, size) : squares);
  if (shrink != 1.0)
    for (std::int64_t i = 0; i < size; ++i) q[i] *= shrink;
  if (series)
    half = neumann(kernels, q, n, rotation.neumann_terms, q + size, q + 2 * size);
  else
    cayley(kernels, q, n);
  for (std::int64_t i = 0; i < size; ++i) rest[i] = static_cast<float>(2.0 * half[i]);
}

void derive_packed(const Kernels &kernels, const RotationPlan &plan, std::int64_t matrix, double squares,
                   double multiplier, float *scratch, float *packed) {
  const Rotation &rotation = plan.rotation;
  const std::int64_t n = rotation.block_size;
  const float *rest;
  if (rotation.prepared.data) {
    rest = static_cast<const float *>(rotation.prepared.data) + matrix * rotation.prepared.stride_out;
  } else {
    float *derived = scratch + matrix_scratch(rotation) - static_cast<std::uint64_t>(n * n);
    derive(kernels, rotation, matrix, squares, scratch, derived);
    rest = derived;
  }
  if (plan.by_rows())
    pack_columns(plan, rest, static_cast<float>(multiplier), packed);
  else
    pack_rows(plan, rest, static_cast<float>(multiplier), packed);
}

double total_squares(const Rotation &rotation, std::int64_t matrices, const double *squares) {
  const double sum = std::accumulate(squares, squares + matrices, 0.0);
  return matrices == 1 ? sum * static_cast<double>(rotation.stages * rotation.blocks) : sum;
}

void prepare_rotation(ops::BackendContext &context, const Rotation &given, const ops::Operand &rests) {
  Rotation rotation = given;
  rotation.prepared = {};
  check(rotation);
  const std::int64_t n = rotation.block_size, count = rotation.stages * rotation.blocks;
  require(rests.data && rests.dtype == LYC_DTYPE_F32 && rests.out == count && rests.in == n * n && rests.stride_in == 1,
          "prepared rotations are f32, ", count, " x ", n * n);
  RotationPlan plan;
  plan.rotation = rotation;
  const std::uint64_t each = matrix_scratch(rotation) + matrix_scratch(rotation) % 2;
  std::vector<float> scratch(each * static_cast<std::uint64_t>(context.pool.threads()));
  std::vector<double> sums(plan.measured() ? static_cast<std::size_t>(plan.matrices()) : 0);
  const auto own = [&](int worker) { return scratch.data() + each * static_cast<std::uint64_t>(worker); };
  context.pool.parallel_for(static_cast<std::int64_t>(sums.size()), [&](std::int64_t matrix, int worker) {
    sums[static_cast<std::size_t>(matrix)] = squares(context.kernels, rotation, matrix, own(worker));
  });
  const double total = plan.measured() ? total_squares(rotation, plan.matrices(), sums.data()) : 0.0;
  context.pool.parallel_for(count, [&](std::int64_t matrix, int worker) {
    derive(context.kernels, rotation, matrix, total, own(worker),
           static_cast<float *>(rests.data) + matrix * rests.stride_out);
  });
}

// -- Application -----------------------------------------------------------------------------------------------

namespace {

std::int64_t stride_bytes(const Rows &rows) { return rows.stride * static_cast<std::int64_t>(dtype_size(rows.dtype)); }

const char *at(const Rows &rows, std::int64_t row, std::int64_t column) {
  return static_cast<const char *>(rows.data) + row * stride_bytes(rows) +
         column * static_cast<std::int64_t>(dtype_size(rows.dtype));
}

/// How a sum of differences takes a rotation: scale * (rescale * (W + change) - W).
class Scaling {
 public:
  Scaling(const Kernels &kernels, const Rotation &rotation, double scale)
      : k_(kernels), rescale_(rotation.rescale), scale_(scale) {}

  bool none() const { return scale_ == 1.0 && !rescale_.data; }

  /// The weight's rows `row` and on have factors of their own.
  void set_rows(std::int64_t row, std::int64_t n, float *weight, float *change) const {
    for (std::int64_t i = 0; i < n; ++i) set(row + i, weight[i], change[i]);
  }
  void set(std::int64_t row, float &weight, float &change) const {
    const double factor = rescale_.data ? static_cast<double>(read(rescale_, row * rescale_.stride_out)) : 1.0;
    weight = static_cast<float>(scale_ * (factor - 1.0));
    change = static_cast<float>(scale_ * factor);
  }

  /// One output's elements.
  void add(std::int64_t row, const float *weight, const float *change, std::int64_t n, const Tile &to) const {
    if (!rescale_.data) return k_.scaled(change, static_cast<float>(scale_), n, to);
    float of_weight, of_change;
    set(row, of_weight, of_change);
    k_.change(weight, change, n, of_weight, of_change, to);
  }

 private:
  const Kernels &k_;
  const ops::Operand &rescale_;
  double scale_;
};

/// Lines are rows of the region, or, where `along_rows`, its columns made rows; kPanel lanes at a time, a lane being
/// the other axis of the weight. The elements of the region's windows are `begin_` .. `end_` of the rotation.
class LineRun {
 public:
  LineRun(const Kernels &kernels, const RotationPlan &plan, const float *left, double scale, const Region &region,
          float *scratch)
      : k_(kernels),
        plan_(plan),
        r_(plan.rotation),
        left_(left),
        scaling_(kernels, plan.rotation, scale),
        region_(region),
        runs_(plan.runs()),
        length_(plan.run_length()),
        matrix_step_(plan.matrices() == 1 ? 0 : plan.packed_floats()) {
    first_ = plan.along_rows ? region.column : region.row;
    const std::int64_t count = plan.along_rows ? region.columns : region.rows;
    begin_ = plan.lines.empty() ? std::max(r_.begin, first_) - r_.begin : 0;
    end_ = plan.lines.empty() ? std::min(r_.begin + r_.extent(), first_ + count) - r_.begin : r_.extent();
    stores_ = !plan.along_rows && plan.lines.empty() && scaling_.none();
    tile_ = scratch;
    weight_factors_ = tile_ + kPanel * kPanel;
    change_factors_ = weight_factors_ + kPanel;
    gathered_ = change_factors_ + kPanel;
    weight_ = gathered_ + r_.block_size * kPanel;
    change_ = weight_ + count * kPanel;
  }

  void run() {
    if (begin_ >= end_) return;
    const std::int64_t lanes = plan_.along_rows ? region_.rows : region_.columns;
    for (lane_ = 0; lane_ < lanes; lane_ += kPanel) {
      lanes_ = std::min(kPanel, lanes - lane_);
      if (plan_.along_rows) take_columns();
      for (std::int64_t at = begin_; at < end_; at += plan_.window()) turn(r_.stages - 1, at);
      if (stores_) continue;
      if (plan_.along_rows)
        add_columns();
      else
        for (std::int64_t at = begin_; at < end_; ++at) finish(at, {sum(line(at), lane_), 0, nullptr, false});
    }
  }

 private:
  // Within the region, of an element of the rotation.
  std::int64_t line(std::int64_t element) const {
    const std::int64_t at = r_.begin + element;
    return (plan_.lines.empty() ? at : plan_.lines[static_cast<std::size_t>(at)]) - first_;
  }
  float *weight(std::int64_t element) const { return weight_ + (element - begin_) * kPanel; }
  float *change(std::int64_t element) const { return change_ + (element - begin_) * kPanel; }
  float *sum(std::int64_t row, std::int64_t column) const {
    return reinterpret_cast<float *>(const_cast<char *>(at(region_.out, row, column)));
  }

  // -- Lanes that are rows: lines become rows for the time being -----------------------------------------------

  void take_columns() {
    const float *rows = reinterpret_cast<const float *>(at(region_.weight, lane_, 0));
    const std::int64_t stride = region_.weight.stride;
    if (plan_.lines.empty()) return k_.transpose(rows + line(begin_), stride, lanes_, end_ - begin_, weight_, kPanel);
    for (std::int64_t row = 0; row < lanes_; ++row)
      for (std::int64_t at = begin_; at < end_; ++at) weight(at)[row] = rows[row * stride + line(at)];
  }

  void add_columns() {
    for (std::int64_t at = begin_; at < end_; ++at) finish(at, {change(at), 0, nullptr, true});
    for (std::int64_t at = begin_; at < end_; at += kPanel) {
      const std::int64_t n = std::min(kPanel, end_ - at);
      k_.transpose(change(at), kPanel, n, lanes_, tile_, kPanel);
      for (std::int64_t row = 0; row < lanes_; ++row) add_row(tile_ + row * kPanel, at, n, sum(lane_ + row, 0));
    }
  }

  void add_row(const float *values, std::int64_t at, std::int64_t n, float *row) const {
    if (plan_.lines.empty()) return k_.scaled(values, 1.0f, n, {row + line(at), 0, nullptr, false});
    for (std::int64_t i = 0; i < n; ++i) row[line(at + i)] += values[i];
  }

  // -- Stages --------------------------------------------------------------------------------------------------

  // All stages up to `stage` in the window that begins at `at`: its halves first, or last where that is transposed.
  void turn(std::int64_t stage, std::int64_t at) {
    const std::int64_t blocks = std::int64_t{1} << stage, half = r_.block_size * blocks / 2;
    if (stage == (plan_.transposed ? r_.stages - 1 : 0)) begin(stage, at, r_.block_size * blocks);
    if (stage > 0 && !plan_.transposed) turn(stage - 1, at), turn(stage - 1, at + half);
    for (std::int64_t block = 0; block < blocks; ++block) turn_block(stage, at, block);
    if (stage > 0 && plan_.transposed) turn(stage - 1, at), turn(stage - 1, at + half);
  }

  void begin(std::int64_t stage, std::int64_t at, std::int64_t lines) {
    load_lines(at, lines);
    if (!unchanged(stage)) std::fill_n(change(at), lines * kPanel, 0.0f);
  }

  // Nothing has been added yet to what this stage takes, which lies side by side.
  bool unchanged(std::int64_t stage) const { return stage == 0 && (r_.stages == 1 || !plan_.transposed); }
  bool last(std::int64_t stage) const { return stage == (plan_.transposed ? 0 : r_.stages - 1); }

  void turn_block(std::int64_t stage, std::int64_t window, std::int64_t block) {
    const bool first = unchanged(stage), stores = stores_ && last(stage);
    const std::int64_t start = window + block * (runs_ == 1 ? r_.block_size : length_);
    const Lines lines = {weight(start), first ? nullptr : change(start), gathered_, runs_, length_, length_ << stage};
    const float *matrix = left_ + (stage * r_.blocks + window / r_.block_size + block) * matrix_step_;
    k_.turn(matrix, lines, stores ? lanes_ : kPanel, stores ? stored(stage, start) : kept(stage, start),
            first ? ahead(start) : following(matrix));
  }

  // A window's lines as they are.
  void load_lines(std::int64_t start, std::int64_t lines) {
    if (plan_.along_rows) return;
    const Rows &rows = region_.weight;
    const auto load = [&](std::int64_t element, std::int64_t count) {
      k_.load_panel(rows.dtype, at(rows, line(element), lane_), rows.stride, count, lanes_, weight(element));
    };
    if (plan_.lines.empty()) return load(start, lines);
    for (std::int64_t i = 0; i < lines; ++i) load(start + i, 1);
  }

  Turned kept(std::int64_t stage, std::int64_t element) const {
    float *to = change(element);
    return {nullptr, 0, unchanged(stage) ? nullptr : to, LYC_DTYPE_F32, to, kPanel, false};
  }

  Turned stored(std::int64_t stage, std::int64_t element) const {
    const bool sums = region_.onto == Region::Onto::kSum;
    const float *base = sums                                    ? sum(line(element), lane_)
                        : region_.onto == Region::Onto::kWeight ? weight(element)
                                                                : nullptr;
    return {base,
            sums ? region_.out.stride : kPanel,
            unchanged(stage) ? nullptr : change(element),
            region_.out.dtype,
            const_cast<char *>(at(region_.out, line(element), lane_)),
            region_.out.stride,
            region_.stream};
  }

  // The stage's next matrix, if there are too many for a near cache.
  Ahead following(const float *matrix) const {
    constexpr std::int64_t kNearFloats = std::int64_t{1} << 20;
    if (plan_.matrices() * matrix_step_ <= kNearFloats) return {};
    const std::int64_t line = matrix_step_ / r_.block_size * std::int64_t{sizeof(float)};
    return {reinterpret_cast<const char *>(matrix + matrix_step_), line, line};
  }

  // What the first stage takes next: the next panel of these lines or, where all lines of a panel come first, those of
  // the next block.
  Ahead ahead(std::int64_t element) const {
    if (plan_.along_rows || !plan_.lines.empty()) return {};
    const bool down = end_ - begin_ > r_.block_size;
    return {at(region_.weight, line(element) + (down ? r_.block_size : 0), lane_ + (down ? 0 : kPanel)),
            stride_bytes(region_.weight), kPanel * static_cast<std::int64_t>(dtype_size(region_.weight.dtype))};
  }

  // -- The difference ------------------------------------------------------------------------------------------

  void finish(std::int64_t element, const Tile &to) {
    if (r_.axis == Rotation::Axis::kOut || !r_.rescale.data)
      return scaling_.add(r_.begin + element, weight(element), change(element), lanes_, to);
    if (element == begin_)
      scaling_.set_rows((plan_.along_rows ? region_.row : region_.column) + lane_, lanes_, weight_factors_,
                        change_factors_);
    k_.changes(weight(element), change(element), lanes_, weight_factors_, change_factors_, to);
  }

  const Kernels &k_;
  const RotationPlan &plan_;
  const Rotation &r_;
  const float *left_;
  const Scaling scaling_;
  const Region &region_;
  const std::int64_t runs_, length_, matrix_step_;
  std::int64_t first_, begin_, end_, lane_ = 0, lanes_ = 0;
  bool stores_;  // the last stage does
  float *tile_, *weight_factors_, *change_factors_, *gathered_, *weight_, *change_;
};

/// Rows as they lie, kTurnedRows by whole blocks of columns at a time.
class RowRun {
 public:
  RowRun(const Kernels &kernels, const RotationPlan &plan, const float *right, double scale, const Region &region,
         float *scratch)
      : k_(kernels),
        plan_(plan),
        r_(plan.rotation),
        right_(right),
        scaling_(kernels, plan.rotation, scale),
        region_(region) {
    begin_ = std::max(r_.begin, region.column);
    end_ = std::min(r_.begin + r_.extent(), region.column + region.columns);
    weight_ = scratch;
    change_ = weight_ + kTileRows * tile_stride(plan);
    weight_factors_ = change_ + rows(plan) * stride(plan);
    change_factors_ = weight_factors_ + stride(plan);
  }

  static std::uint64_t scratch(const RotationPlan &plan) {
    return static_cast<std::uint64_t>(kTileRows * tile_stride(plan) + (rows(plan) + 2) * stride(plan));
  }

  void run() {
    for (std::int64_t column = begin_; column < end_; column += columns(plan_))
      for (std::int64_t row = 0; row < region_.rows; row += rows(plan_))
        turn(row, std::min(rows(plan_), region_.rows - row), column, std::min(columns(plan_), end_ - column));
  }

 private:
  /// Columns and rows that are turned at a time: tiles lie side by side, unless a block is too large for that.
  static std::int64_t columns(const RotationPlan &plan) {
    const std::int64_t block = plan.rotation.block_size;
    return std::max<std::int64_t>(1, kTileColumns / block) * block;
  }
  static std::int64_t rows(const RotationPlan &plan) { return columns(plan) <= kTileColumns ? kTurnedRows : kTileRows; }
  static std::int64_t tile_stride(const RotationPlan &plan) { return rows(plan) / kTileRows * stride(plan); }
  static std::int64_t stride(const RotationPlan &plan) {
    return columns(plan) <= kTileColumns ? kTileApart : round_up(columns(plan), kTurned) + kTurned;
  }
  float *weight(std::int64_t row) const {
    return weight_ + row % kTileRows * tile_stride(plan_) + row / kTileRows * kTileApart;
  }
  float *change(std::int64_t row) const { return change_ + row * stride(plan_); }

  void turn(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t n) {
    const std::int64_t c = column - region_.column, block = r_.block_size;
    for (std::int64_t i = 0; i < rows; ++i) k_.load(region_.weight.dtype, at(region_.weight, row + i, c), n, weight(i));
    const std::int64_t step = plan_.matrices() == 1 ? 0 : plan_.packed_floats();
    const bool below = row + rows < region_.rows;  // or the first rows of the next columns
    const Ahead ahead = {at(region_.weight, below ? row + rows : 0, below ? c : c + n), stride_bytes(region_.weight),
                         n * static_cast<std::int64_t>(dtype_size(region_.weight.dtype))};
    const bool sums = region_.onto == Region::Onto::kSum;
    Turned to = {nullptr, 0, nullptr, LYC_DTYPE_F32, change_, stride(plan_), false};
    if (!sums) {
      to.dtype = region_.out.dtype;
      to.out = const_cast<char *>(at(region_.out, row, c));
      to.out_stride = region_.out.stride;
      to.stream = region_.stream;
    }
    k_.turn_columns(weight_, tile_stride(plan_), rows, right_ + (column - r_.begin) / block * step, block, n / block,
                    step, region_.onto == Region::Onto::kWeight, to, ahead);
    if (sums) add_scaled(row, rows, column, n);
  }

  // Outputs are the rows, or the columns where those turn.
  void add_scaled(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t n) {
    const bool out = r_.axis == Rotation::Axis::kOut;
    if (out) scaling_.set_rows(column, n, weight_factors_, change_factors_);
    for (std::int64_t i = 0; i < rows; ++i) {
      float *sum = reinterpret_cast<float *>(const_cast<char *>(at(region_.out, row + i, column - region_.column)));
      if (out)
        k_.changes(weight(i), change(i), n, weight_factors_, change_factors_, {sum, 0, nullptr, false});
      else
        scaling_.add(region_.row + row + i, weight(i), change(i), n, {sum, 0, nullptr, false});
    }
  }

  const Kernels &k_;
  const RotationPlan &plan_;
  const Rotation &r_;
  const float *right_;
  const Scaling scaling_;
  const Region &region_;
  std::int64_t begin_, end_;
  float *weight_, *change_, *weight_factors_, *change_factors_;
};

}  // namespace

std::uint64_t region_scratch(const RotationPlan &plan, std::int64_t rows, std::int64_t columns) {
  if (plan.by_rows()) return RowRun::scratch(plan);
  const std::int64_t lines = plan.along_rows ? columns : rows;
  return static_cast<std::uint64_t>((kPanel + 2 + plan.rotation.block_size + 2 * lines) * kPanel);
}

void add_rotation(const Kernels &kernels, const RotationPlan &plan, const float *packed, double scale,
                  const Region &region, float *scratch) {
  if (plan.by_rows())
    RowRun(kernels, plan, packed, scale, region, scratch).run();
  else
    LineRun(kernels, plan, packed, scale, region, scratch).run();
}

}  // namespace lyc::cpu
