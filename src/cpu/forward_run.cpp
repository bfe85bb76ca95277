#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "cpu/forward_plan.hpp"

namespace lyc::cpu {
namespace {

using ops::Activation;
using ops::LayerKind;

char *address(const View &view, float *workspace) {
  return static_cast<char *>(view.tensor.data ? view.tensor.data : workspace + view.at);
}

Axes position_axes(const Activation &tensor) {
  Axes axes;
  axes.add(tensor.batch, tensor.stride_batch);
  for (int d = 0; d < ops::kMaxKernelDims; ++d) axes.add(tensor.space[d], tensor.stride_space[d]);
  return axes;
}

Axes channel_axes(const Activation &tensor, std::int64_t channels) {
  Axes axes;
  axes.add(channels, tensor.stride_channel);
  return axes;
}

/// Steps k .. k + steps - 1 of a source's depth, from what read(k, n, values) has of it: numbers, or pairs of bf16 in
/// so many parts, which are `apart`. scale(k, n, values) changes what has no bf16 as it is. Inline, so that the
/// processor looks far enough ahead to read several rows at once.
template <typename Read, typename Scale>
[[gnu::always_inline]] inline void read_steps(const Kernels &kernels, const Source &source, std::int64_t parts,
                                              std::int64_t k, std::int64_t steps, float *values, std::int64_t apart,
                                              Read read, Scale scale) {
  if (!source.pairs) {
    read(k, steps, values);
    return scale(k, steps, values);
  }
  auto *halves = reinterpret_cast<std::uint16_t *>(values);
  const std::int64_t n = std::min(2 * steps, source.depth() - 2 * k);
  if (parts == 1) {
    read(2 * k, n, halves);
  } else {
    float numbers[2 * kDepth];
    read(2 * k, n, numbers);
    scale(2 * k, n, numbers);
    kernels.split(numbers, n, parts, halves, 2 * apart);
  }
  for (std::int64_t part = 0; n < 2 * steps && part < parts; ++part) halves[2 * part * apart + n] = 0;
}

/// Rows of `steps` steps in parts, of which read(i, k, n, values, apart) has n of row i from k on: kDepth of them at a
/// time, as rows of [parts][steps] or, for height kPanel, as a panel [parts][steps][height] whose missing rows are 0.
template <typename Read>
void pack_rows(const Kernels &kernels, std::int64_t parts, std::int64_t count, std::int64_t height, std::int64_t steps,
               float *buffer, float *to, Read read) {
  constexpr std::int64_t kStride = kPanel + 16;
  for (std::int64_t begin = 0; begin < steps; begin += kDepth, to += parts * kDepth * height) {
    const std::int64_t depth = std::min(kDepth, steps - begin);
    if (height != kPanel) {
      for (std::int64_t i = 0; i < count; ++i) read(i, begin, depth, to + i * parts * depth, depth);
      continue;
    }
    if (count < height) std::fill_n(to, parts * depth * height, 0.0f);
    for (std::int64_t k = 0; k < depth; k += kPanel) {
      const std::int64_t n = std::min(kPanel, depth - k);
      for (std::int64_t i = 0; i < count; ++i) read(i, begin + k, n, buffer + i * kStride, count * kStride);
      for (std::int64_t part = 0; part < parts; ++part)
        kernels.transpose(buffer + part * count * kStride, kStride, count, n, to + (part * depth + k) * height, height);
    }
  }
}

struct Place {
  std::int64_t batch, space[ops::kMaxKernelDims];
};

/// Where windows of a source begin, and the values under them: as float32, or bf16 as it is.
class Windows {
 public:
  Windows(const Source &source, const Activation &positions, const Kernels &kernels, float *workspace)
      : s_(source), to_(positions), k_(kernels), x_(address(source.x, workspace)), a_(source.x.tensor) {
    size_ = static_cast<std::int64_t>(dtype_size(a_.dtype));
    for (int d = 0; d < ops::kMaxKernelDims; ++d)
      if (to_.space[d] > 1) inner_ = d;
  }

  /// By position if the channels lie side by side, by place in the window otherwise.
  bool by_position() const { return a_.stride_channel == 1; }

  /// Depth k .. k + n - 1 of one position.
  template <typename Value>
  void at_position(std::int64_t group, std::int64_t position, std::int64_t k, std::int64_t n, Value *values) const {
    const Place place = place_of(position);
    if (s_.taps() == 1) return channels(group, place, reach_of(0), k, n, values);
    if (!s_.taps_outside) {
      for (const Value *end = values + n; values < end; ++k, ++values)
        channels(group, place, reach_of(k % s_.taps()), k / s_.taps(), 1, values);
      return;
    }
    while (n > 0) {
      const std::int64_t part = std::min(n, s_.inputs - k % s_.inputs);
      channels(group, place, reach_of(k / s_.inputs), k % s_.inputs, part, values);
      k += part, n -= part, values += part;
    }
  }

  /// Of n positions from `place` on, one place in the window.
  template <typename Value>
  void at_depth(std::int64_t group, Place place, std::int64_t n, std::int64_t k, Value *values) const {
    const std::int64_t taps = s_.taps();
    const Reach tap = reach_of(s_.taps_outside ? k / s_.inputs : k % taps);
    const std::int64_t channel = s_.taps_outside ? k % s_.inputs : k / taps;
    const char *x = x_ + (group * s_.x.stride_group + channel * a_.stride_channel) * size_;
    while (n > 0) {
      const std::int64_t run = std::min(n, to_.space[inner_] - place.space[inner_]);
      line(x, place, tap, run, values);
      values += run, n -= run;
      next_line(place);
    }
  }

  Place place_of(std::int64_t position) const {
    Place place{};
    for (int d = ops::kMaxKernelDims - 1; d >= 0; --d) {
      place.space[d] = position % to_.space[d];
      position /= to_.space[d];
    }
    place.batch = position;
    return place;
  }

 private:
  /// From a position's first index into x to a tap's, along each axis.
  struct Reach {
    std::int64_t along[ops::kMaxKernelDims];
  };

  Reach reach_of(std::int64_t tap) const {
    Reach reach{};
    for (int d = ops::kMaxKernelDims - 1; d >= 0; --d) {
      reach.along[d] = tap % s_.kernel[d] * s_.window.dilation[d] - s_.window.padding[d];
      tap /= s_.kernel[d];
    }
    return reach;
  }

  void next_line(Place &place) const {
    place.space[inner_] = 0;
    for (int d = inner_ - 1; d >= 0; --d) {
      if (++place.space[d] < to_.space[d]) return;
      place.space[d] = 0;
    }
    ++place.batch;
  }

  // Index into x along an axis; outside it where that is negative or beyond.
  std::int64_t index(const Place &place, const Reach &tap, int d) const {
    return place.space[d] * s_.window.stride[d] + tap.along[d];
  }

  // Offset along all axes but `without`; false where the window is outside.
  bool offset(const Place &place, const Reach &tap, int without, std::int64_t &offset) const {
    offset = place.batch * a_.stride_batch;
    for (int d = 0; d < ops::kMaxKernelDims; ++d) {
      if (d == without) continue;
      const std::int64_t i = index(place, tap, d);
      if (i < 0 || i >= a_.space[d]) return false;
      offset += i * a_.stride_space[d];
    }
    return true;
  }

  template <typename Value>
  void channels(std::int64_t group, const Place &place, const Reach &tap, std::int64_t channel, std::int64_t n,
                Value *values) const {
    std::int64_t at = 0;
    if (!offset(place, tap, -1, at)) return std::fill(values, values + n, Value{});
    at += group * s_.x.stride_group + channel * a_.stride_channel;
    strided(x_ + at * size_, a_.stride_channel, n, values);
  }

  template <typename Value>
  void line(const char *x, const Place &place, const Reach &tap, std::int64_t n, Value *values) const {
    std::int64_t at = 0;
    if (!offset(place, tap, inner_, at)) return std::fill(values, values + n, Value{});
    const std::int64_t first = index(place, tap, inner_), step = s_.window.stride[inner_], extent = a_.space[inner_];
    const std::int64_t begin = std::clamp<std::int64_t>(first < 0 ? ceil_div(-first, step) : 0, 0, n);
    const std::int64_t end = std::clamp<std::int64_t>(extent > first ? ceil_div(extent - first, step) : 0, begin, n);
    std::fill(values, values + begin, Value{});
    std::fill(values + end, values + n, Value{});
    if (begin == end) return;
    at += (first + begin * step) * a_.stride_space[inner_];
    strided(x + at * size_, step * a_.stride_space[inner_], end - begin, values + begin);
  }

  void neighbours(const char *from, std::int64_t n, float *values) const { k_.load(a_.dtype, from, n, values); }
  static void neighbours(const char *from, std::int64_t n, std::uint16_t *values) {
    std::memcpy(values, from, static_cast<std::size_t>(n) * sizeof *values);
  }

  template <typename Value>
  void strided(const char *from, std::int64_t stride, std::int64_t n, Value *values) const {
    if (stride == 1) return neighbours(from, n, values);
    Matrix matrix = {const_cast<char *>(from), a_.dtype, {}, {}};
    matrix.columns.add(n, stride);
    load(k_, matrix, 0, 0, n, values);
  }

  const Source &s_;
  const Activation &to_;
  const Kernels &k_;
  const char *x_;
  const Activation &a_;
  std::int64_t size_;
  int inner_ = 0;  // the axis of space along which positions are neighbours
};

/// Asks for rows that are packed next, while others are multiplied: lines of all rows by turns.
class Fetch {
 public:
  Fetch(const Ahead &ahead, std::int64_t rows)
      : ahead_(ahead), rows_(rows), lines_(rows * ceil_div(ahead.size, kLine)) {}

  /// One of so many equal parts.
  void part(std::int64_t parts) {
    const std::int64_t end = std::min(lines_, next_ + ceil_div(lines_, parts));
    for (; next_ < end; ++next_)
      __builtin_prefetch(ahead_.data + next_ % rows_ * ahead_.stride + next_ / rows_ * kLine, 0, 2);
  }

 private:
  static constexpr std::int64_t kLine = 64;
  Ahead ahead_;
  std::int64_t rows_, lines_, next_ = 0;
};

/// One run.
class ForwardRunner {
 public:
  ForwardRunner(ops::ForwardPlan &plan, const ops::ForwardRun &run)
      : plan_(plan),
        f_(plan.forward),
        recipe_(plan.recipe),
        k_(plan.context.kernels),
        pool_(plan.context.pool),
        multipliers_(run.multipliers),
        workspace_(static_cast<float *>(run.workspace)),
        scratch_(workspace_ + plan.recipe.size) {}

  void run() {
    if (f_.y.positions() == 0 || f_.y.channels == 0) return;
    if (f_.layer.kind == LayerKind::kEmbedding) check_indices();
    active_ = std::any_of(plan_.adapters.begin(), plan_.adapters.end(),
                          [&](const ops::Adapter &adapter) { return multipliers_[adapter.multiplier_index] != 0.0f; });
    if (!active_ && !f_.whole) return;
    for (Rebuild &rebuild : recipe_.rebuilds)
      if (!rebuild.turns) make(rebuild);
    for (const Expansion &expansion : recipe_.expansions)
      if (active_) expand(expansion);
    load_bias();
    for (const Gather &gather : recipe_.gathers)
      if (active_ || !gather.adapter) take_rows(gather);
    if (f_.layer.kind != LayerKind::kConv && f_.layer.kind != LayerKind::kEmbedding) return normalise();
    for (const Sum &sum : recipe_.sums)
      if (active_ || !sum.adapter) {
        add(sum);
        if (sum.turned_by >= 0) make(recipe_.rebuilds[static_cast<std::size_t>(sum.turned_by)]);
      }
  }

 private:
  // -- Before the sums -----------------------------------------------------------------------------------------

  void make(Rebuild &rebuild) {
    constexpr float kOne = 1.0f;
    if (rebuild.norms) return run_norms(*rebuild.plan, multipliers_, scratch_, workspace_ + rebuild.to);
    for (TargetPlan &target : rebuild.plan->targets) {
      target.out.data = reinterpret_cast<char *>(workspace_ + rebuild.to);
      if (rebuild.turns) target.base.data = reinterpret_cast<char *>(workspace_ + rebuild.from);
    }
    ops::RunOptions options{};
    options.op = rebuild.op;
    options.multipliers = rebuild.plain ? &kOne : multipliers_;
    options.workspace = scratch_;
    cpu::run(*rebuild.plan, options);
  }

  void expand(const Expansion &expansion) { expansion.of_columns ? expand_columns(expansion) : expand_rows(expansion); }

  void expand_rows(const Expansion &expansion) {
    const std::int64_t below = expansion.q.rows.size(), columns = expansion.q.columns.size();
    pool_.parallel_for(expansion.p.rows.size() * below, [&](std::int64_t row, int) {
      float p[kPanel];
      float *to = workspace_ + expansion.to + row * columns;
      for (std::int64_t c = 0; c < columns; c += kPanel) {
        const std::int64_t n = std::min(kPanel, columns - c);
        load(k_, expansion.p, row / below, c, n, p);
        load(k_, expansion.q, row % below, c, n, to + c);
        for (std::int64_t i = 0; i < n; ++i) to[c + i] *= p[i];
      }
    });
  }

  void expand_columns(const Expansion &expansion) {
    const std::int64_t rank = expansion.p.columns.size(), beside = expansion.q.columns.size();
    pool_.parallel_for(ceil_div(expansion.p.rows.size(), kPanel), [&](std::int64_t block, int) {
      float p[kPanel];
      for (std::int64_t row = block * kPanel; row < std::min((block + 1) * kPanel, expansion.p.rows.size()); ++row) {
        float *to = workspace_ + expansion.to + row * rank * beside, *q = to + (rank - 1) * beside;
        load(k_, expansion.q, row, 0, beside, q);  // where its last multiple goes
        for (std::int64_t r = 0; r < rank; ++r) {
          if (r % kPanel == 0) load(k_, expansion.p, row, r, std::min(kPanel, rank - r), p);
          k_.scaled(q, p[r % kPanel], beside, {to + r * beside, 0, nullptr, true});
        }
      }
    });
  }

  void load_bias() {
    if (!recipe_.bias) return;
    Matrix row = recipe_.bias;
    std::swap(row.rows, row.columns);
    load(k_, row, 0, 0, row.columns.size(), workspace_ + recipe_.bias_at);
  }

  std::int64_t index_at(std::int64_t position) const {
    const std::int64_t offset = position_axes(f_.x).offset(position);
    return f_.x.dtype == LYC_DTYPE_I64 ? static_cast<const std::int64_t *>(f_.x.data)[offset]
                                       : static_cast<const std::int32_t *>(f_.x.data)[offset];
  }

  void check_indices() const {
    const std::int64_t rows = plan_.targets[0].out.out;
    for (std::int64_t p = 0; p < f_.x.positions(); ++p)
      require(index_at(p) >= 0 && index_at(p) < rows, "x has index ", index_at(p), " at position ", p,
              ", the table has ", rows, " rows");
  }

  void take_rows(const Gather &gather) {
    Matrix table = gather.table;
    if (!table) table.data = reinterpret_cast<char *>(workspace_ + gather.table_at);
    const std::int64_t positions = f_.x.positions(), columns = table.columns.size();
    const Matrix to = {reinterpret_cast<char *>(workspace_ + gather.to.at), LYC_DTYPE_F32,
                       position_axes(gather.to.tensor), channel_axes(gather.to.tensor, columns)};
    pool_.parallel_for(positions, [&](std::int64_t p, int) {
      float values[kPanel];
      for (std::int64_t c = 0; c < columns; c += kPanel) {
        const std::int64_t n = std::min(kPanel, columns - c);
        load(k_, table, index_at(p), c, n, values);
        store(k_, values, n, to, p, c, false);
      }
    });
  }

  // -- Scales --------------------------------------------------------------------------------------------------

  float coefficient(std::int32_t index) const {
    const ops::Term &term = plan_.terms[static_cast<std::size_t>(index)];
    const double scalar = term.scalar.data ? static_cast<double>(read(term.scalar, 0)) : 1.0;
    const double m = adapter().dora_axis == ops::DoraAxis::kNone ? multiplier() : dora().delta;
    return static_cast<float>(term.coefficient * scalar * m);
  }

  // Of a factored recipe.
  const ops::Adapter &adapter() const {
    return plan_.adapters[static_cast<std::size_t>(plan_.targets[0].first_adapter)];
  }
  double multiplier() const { return static_cast<double>(multipliers_[adapter().multiplier_index]); }
  DoraCoefficients dora() const { return dora_coefficients(adapter().dora_rule, multiplier()); }

  // What DoRA takes of one of its lines; nothing of an adapter that is off.
  ChangeFactors dora_factors(const Scaling &scaling, std::int64_t line) const {
    if (!active_) return {scaling.one, 0.0f};
    const ops::Adapter &own = adapter();
    const bool out = scaling.kind == Scaling::Kind::kDora;
    const auto value = [&](const ops::Operand &values) {
      return read(values, line * (out ? values.stride_out : values.stride_in));
    };
    const float norm =
        scaling.vector.data ? value(scaling.vector) : workspace_[scaling.norms_at + static_cast<Position>(line)];
    return change_factors(dora(), static_cast<double>(scaling.one), static_cast<double>(value(own.magnitude)),
                          static_cast<double>(norm) + static_cast<double>(own.epsilon));
  }

  void make_dora_scales(const Source &source, std::int64_t rows) {
    const Scaling &scaling = source.scaling;
    float *to = workspace_ + scaling.at;
    if (scaling.kind == Scaling::Kind::kDora)
      for (std::int64_t r = 0; r < rows; ++r) {
        const ChangeFactors factors = dora_factors(scaling, r);
        to[r] = factors.weight;
        workspace_[scaling.delta_at + static_cast<Position>(r)] = factors.delta;
      }
    else
      for (std::int64_t k = 0; k < source.depth(); ++k) {
        const ChangeFactors factors = dora_factors(scaling, source.input_at(k));
        to[k] = scaling.of_delta ? factors.delta : factors.weight;
      }
  }

  // What multiplies row r or column c of a source's weights.
  void make_scales(const Source &source, std::int64_t rows) {
    const Scaling &scaling = source.scaling;
    if (scaling.kind == Scaling::Kind::kPlain) return;
    if (scaling.kind == Scaling::Kind::kDora || scaling.kind == Scaling::Kind::kDoraIn)
      return make_dora_scales(source, rows);
    float *to = workspace_ + scaling.at;
    const auto value = [](const ops::Operand &vector, std::int64_t offset) {
      return vector.data ? read(vector, offset) : 1.0f;
    };
    if (scaling.kind == Scaling::Kind::kRescale) {
      for (std::int64_t r = 0; r < rows; ++r)
        to[r] = active_ ? value(scaling.vector, r * scaling.vector.stride_out) : 1.0f;
      return;
    }
    const float c = coefficient(scaling.term);
    if (scaling.kind == Scaling::Kind::kRows) {
      for (std::int64_t r = 0; r < rows; ++r)
        to[r] = scaling.one + (active_ ? c * value(scaling.vector, r * scaling.vector.stride_out) : 0.0f);
      return;
    }
    for (std::int64_t k = 0; k < source.depth(); ++k) {
      if (scaling.kind == Scaling::Kind::kTerm)
        to[k] =
            c * value(scaling.vector, k * scaling.vector.stride_out) * value(scaling.mask, k * scaling.mask.stride_out);
      else
        to[k] =
            scaling.one + (active_ ? c * value(scaling.vector, source.input_at(k) * scaling.vector.stride_in) : 0.0f);
    }
  }

  // -- Sums ----------------------------------------------------------------------------------------------------

  bool counts(const Source &source) const { return active_ || !source.adapter; }

  void add(const Sum &sum) {
    for (const Source &source : sum.sources)
      if (counts(source)) make_scales(source, sum.groups * sum.outputs);
    for (std::int64_t begin = 0; begin < sum.positions; begin += sum.block) {
      const std::int64_t count = std::min(sum.block, sum.positions - begin);
      for (std::size_t i = 0; i < sum.sources.size(); ++i)
        if (counts(sum.sources[i])) pack_windows(sum, i, begin, count);
      add_block(sum, begin, count);
    }
  }

  // Positions that are packed together: rows of a left factor, or a panel.
  std::int64_t side(const Sum &sum) const { return sum.positions_in_rows ? k_.row_height : kPanel; }

  struct Scratch {
    float *tile, *weights, *gather, *row;
  };
  Scratch scratch(const Sum &sum, int worker) const {
    float *tile = scratch_ + sum.packed_size + static_cast<Position>(worker) * sum.thread_size;
    float *weights = tile + tile_floats(sum);
    float *gather = weights + weight_floats(sum);
    return {tile, weights, gather, gather + kGatherFloats};
  }

  float *packed(const Sum &sum, std::size_t source, std::int64_t group) const {
    return scratch_ + sum.packed_at[source] +
           static_cast<Position>(group * sum.block * windows_depth(sum.sources[source]));
  }
  static std::int64_t windows_depth(const Source &source) { return source.x_parts * source.steps(); }

  void pack_windows(const Sum &sum, std::size_t index, std::int64_t begin, std::int64_t count) {
    const Source &source = sum.sources[index];
    const Windows windows(source, sum.to.tensor, k_, workspace_);
    if (source.few)
      return pool_.parallel_for(sum.groups * count, [&](std::int64_t item, int) {
        float *row = packed(sum, index, item / count) + item % count * source.depth();
        windows.at_position(item / count, begin + item % count, 0, source.depth(), row);
        scale(source.scaling, 1.0f, 0, source.depth(), row);
      });
    const std::int64_t height = side(sum), blocks = ceil_div(count, height);
    pool_.parallel_for(sum.groups * blocks, [&](std::int64_t item, int worker) {
      const std::int64_t group = item / blocks, block = item % blocks;
      const std::int64_t first = begin + block * height, n = std::min(height, begin + count - first);
      float *to = packed(sum, index, group) + block * height * windows_depth(source);
      if (sum.positions_in_rows || windows.by_position())
        pack_by_position(source, windows, group, first, n, height, scratch(sum, worker).gather, to);
      else if (!source.pairs)
        pack_by_depth(source, windows, group, first, n, height, to);
      else if (source.x_parts == 1)
        zip_by_depth<std::uint16_t>(source, windows, group, first, n, height, to);
      else
        zip_by_depth<float>(source, windows, group, first, n, height, to);
    });
  }

  void pack_by_position(const Source &source, const Windows &windows, std::int64_t group, std::int64_t first,
                        std::int64_t n, std::int64_t height, float *buffer, float *to) const {
    pack_rows(k_, source.x_parts, n, height, source.steps(), buffer, to,
              [&](std::int64_t i, std::int64_t k, std::int64_t part, float *row, std::int64_t apart) {
                const auto read = [&](std::int64_t at, std::int64_t length, auto *values) {
                  windows.at_position(group, first + i, at, length, values);
                };
                const auto change = [&](std::int64_t at, std::int64_t length, float *values) {
                  if (source.scales_windows) scale(source.scaling, 1.0f, at, length, values);
                };
                read_steps(k_, source, source.x_parts, k, part, row, apart, read, change);
              });
  }

  // Step k of the depth at n positions.
  void read_step(const Source &source, const Windows &windows, std::int64_t group, const Place &place, std::int64_t n,
                 std::int64_t k, float *values) const {
    windows.at_depth(group, place, n, k, values);
    if (source.scales_windows)
      k_.scaled(values, workspace_[source.scaling.at + static_cast<Position>(k)], n, {values, 0, nullptr, true});
  }

  void pack_by_depth(const Source &source, const Windows &windows, std::int64_t group, std::int64_t first,
                     std::int64_t n, std::int64_t height, float *to) const {
    const Place place = windows.place_of(first);
    for (std::int64_t k = 0; k < source.depth(); ++k, to += height) {
      read_step(source, windows, group, place, n, k, to);
      std::fill(to + n, to + height, 0.0f);
    }
  }

  // Rows of the depth, two at a time, as pairs, kDepth of them at a time in parts. There is room for a panel.
  template <typename Value>
  void zip_by_depth(const Source &source, const Windows &windows, std::int64_t group, std::int64_t first,
                    std::int64_t n, std::int64_t height, float *to) const {
    const Place place = windows.place_of(first);
    const std::int64_t parts = source.x_parts;
    std::uint16_t halves[2][kMaxParts][kPanel] = {};
    for (std::int64_t begin = 0; begin < source.steps(); begin += kDepth, to += parts * kDepth * height) {
      const std::int64_t depth = std::min(kDepth, source.steps() - begin);
      for (std::int64_t k = 0; k < depth; ++k) {
        for (std::int64_t half = 0; half < 2; ++half) {
          const std::int64_t at = 2 * (begin + k) + half;
          if (at < source.depth())
            read_halves(source, windows, group, place, n, at, halves[half], Value{});
          else
            std::memset(halves[half], 0, sizeof halves[half]);
        }
        for (std::int64_t part = 0; part < parts; ++part)
          zip(halves[0][part], halves[1][part], height, to + (part * depth + k) * height);
      }
    }
  }

  using Halves = std::uint16_t[kPanel];
  static void read_halves(const Source &, const Windows &windows, std::int64_t group, const Place &place,
                          std::int64_t n, std::int64_t k, Halves *halves, std::uint16_t) {
    windows.at_depth(group, place, n, k, halves[0]);
  }
  void read_halves(const Source &source, const Windows &windows, std::int64_t group, const Place &place, std::int64_t n,
                   std::int64_t k, Halves *halves, float) const {
    float values[kPanel];
    read_step(source, windows, group, place, n, k, values);
    k_.split(values, n, source.x_parts, halves[0], kPanel);
  }

  void add_block(const Sum &sum, std::int64_t begin, std::int64_t count) {
    const std::int64_t width = sum.width, tiles = ceil_div(sum.outputs, width), all = tiles * sum.groups;
    const std::int64_t wanted = ceil_div(4 * pool_.threads(), all);
    const std::int64_t part = round_up(ceil_div(count, std::min(wanted, ceil_div(count, kPositions))), kPositions);
    const std::int64_t parts = ceil_div(count, part);
    pool_.parallel_for(all * parts, [&](std::int64_t item, int worker) {
      const std::int64_t tile = item / parts, output = tile % tiles * width, first = item % parts * part;
      compute(
          sum,
          {tile / tiles, output, std::min(width, sum.outputs - output), begin, first, std::min(part, count - first)},
          scratch(sum, worker));
    });
  }

  /// Outputs output .. of a group, at positions begin + first ..
  struct Range {
    std::int64_t group, output, outputs, begin, first, positions;
  };

  std::int64_t tile_stride(const Sum &sum, const Range &range) const {
    return round_up(sum.positions_in_rows ? sum.width : range.positions, kPanel) + 16;
  }

  void compute(const Sum &sum, const Range &range, const Scratch &scratch) {
    bool first = true;
    for (std::size_t i = 0; i < sum.sources.size(); ++i) {
      const Source &source = sum.sources[i];
      if (!counts(source)) continue;
      if (source.few) {
        multiply_few(sum, i, range, scratch, first);
        first = false;
      }
      for (std::int64_t k = 0; !source.few && k < source.steps(); k += kDepth) {
        const std::int64_t steps = std::min(kDepth, source.steps() - k);
        if (!source.as_they_are) pack_weights(sum, source, range, k, steps, scratch);
        multiply(sum, i, range, k, steps, scratch, first, ahead(sum, source, range, k + kDepth));
        first = false;
      }
      if (source.scaling.scales_rows()) scale_outputs(sum, source.scaling, range, scratch);
    }
    finish(sum, range, scratch, first);
  }

  Matrix weight_of(const Source &source) const {
    Matrix weight = source.weight;
    if (!weight) weight.data = reinterpret_cast<char *>(workspace_ + source.weight_at);
    return weight;
  }
  static std::int64_t first_row(const Sum &sum, const Source &source, const Range &range) {
    return (source.shared ? 0 : range.group * sum.outputs) + range.output;
  }

  // Weights from step k on, or behind the last one those of the outputs that follow. Wide tiles of tile registers would
  // wait for them, and have processors that find them.
  Fetch ahead(const Sum &sum, const Source &source, const Range &range, std::int64_t k) const {
    const Matrix weight = weight_of(source);
    std::int64_t row = first_row(sum, source, range);
    if (k >= source.steps()) k = 0, row += range.outputs;
    const std::int64_t rows = std::min(range.outputs, weight.rows.size() - row);
    if (rows <= 0 || !weight.in_rows() || k_.split) return {{}, 1};
    const std::int64_t each = source.pairs ? 2 : 1, size = static_cast<std::int64_t>(dtype_size(weight.dtype));
    const std::int64_t n = std::min(each * kDepth, source.depth() - each * k);
    return {{weight.at(row, each * k), weight.rows.stride[0] * size, n * size}, rows};
  }

  void pack_weights(const Sum &sum, const Source &source, const Range &range, std::int64_t k, std::int64_t steps,
                    const Scratch &scratch) const {
    const Matrix weight = weight_of(source);
    const std::int64_t row = first_row(sum, source, range);
    const std::int64_t height = sum.positions_in_rows ? kPanel : k_.row_height;
    for (std::int64_t block = 0; block < range.outputs; block += height)
      pack_rows(k_, source.weight_parts, std::min(height, range.outputs - block), height, steps, scratch.gather,
                scratch.weights + block * steps * source.weight_parts,
                [&](std::int64_t i, std::int64_t at, std::int64_t n, float *values, std::int64_t apart) {
                  const auto read = [&](std::int64_t column, std::int64_t count, auto *to) {
                    load(k_, weight, row + block + i, column, count, to);
                  };
                  const auto change = [&](std::int64_t column, std::int64_t count, float *to) {
                    if (!source.scales_windows)
                      scale(source.scaling, row_factor(source.scaling, row + block + i), column, count, to);
                  };
                  read_steps(k_, source, source.weight_parts, k + at, n, values, apart, read, change);
                });
  }

  float row_factor(const Scaling &scaling, std::int64_t row) const {
    return scaling.by_row ? workspace_[scaling.delta_at + static_cast<Position>(row)] : 1.0f;
  }

  void scale(const Scaling &scaling, float own, std::int64_t k, std::int64_t n, float *values) const {
    if (scaling.scales_depth()) k_.scaled(values, own, n, {values, 0, workspace_ + scaling.at + k, true});
  }

  void scale_outputs(const Sum &sum, const Scaling &scaling, const Range &range, const Scratch &scratch) const {
    const float *factors = workspace_ + scaling.at + range.group * sum.outputs + range.output;
    const std::int64_t rows = sum.positions_in_rows ? range.positions : range.outputs;
    const std::int64_t columns = sum.positions_in_rows ? range.outputs : range.positions;
    const float *by_column = sum.positions_in_rows ? factors : nullptr;
    float *values = scratch.tile;
    for (std::int64_t i = 0; i < rows; ++i, values += tile_stride(sum, range))
      k_.scaled(values, by_column ? 1.0f : factors[i], columns, {values, 0, by_column, true});
  }

  void multiply(const Sum &sum, std::size_t index, const Range &range, std::int64_t k, std::int64_t steps,
                const Scratch &scratch, bool first, Fetch next) const {
    const Source &source = sum.sources[index];
    const std::int64_t all = windows_depth(source), stride = tile_stride(sum, range), height = side(sum);
    const float *windows = packed(sum, index, range.group) + range.first * all + k * height * source.x_parts;
    const FactorRows weights = weights_in_rows(sum, source, range, k, steps, scratch);
    for (std::int64_t p = 0; p < range.positions; p += height) {
      next.part(ceil_div(range.positions, height));
      if (sum.positions_in_rows)
        k_.row_product({windows + p * all, steps * source.x_parts, source.pairs, source.x_parts},
                       {scratch.weights, source.weight_parts}, steps, std::min(height, range.positions - p),
                       range.outputs, {scratch.tile + p * stride, stride, nullptr, first});
      else
        k_.row_product(weights, {windows + p * all, source.x_parts}, steps, range.outputs,
                       std::min(kPanel, range.positions - p),
                       {scratch.tile + p, stride, nullptr, first, panel_ahead(windows, source, p, range.positions, k)});
    }
  }

  FactorRows weights_in_rows(const Sum &sum, const Source &source, const Range &range, std::int64_t k,
                             std::int64_t steps, const Scratch &scratch) const {
    if (!source.as_they_are) return {scratch.weights, steps * source.weight_parts, source.pairs, source.weight_parts};
    const Matrix weight = weight_of(source);
    const std::int64_t each = source.pairs ? 2 : 1;
    return {reinterpret_cast<const float *>(weight.at(first_row(sum, source, range), each * k)),
            weight.rows.stride[0] / each, source.pairs};
  }

  void multiply_few(const Sum &sum, std::size_t index, const Range &range, const Scratch &scratch, bool first) const {
    const Source &source = sum.sources[index];
    const Matrix weight = weight_of(source);
    const std::int64_t row = first_row(sum, source, range), depth = source.depth();
    const float *factors = source.scaling.by_row ? workspace_ + source.scaling.delta_at + row : nullptr;
    k_.dots({weight.dtype, weight.at(row, 0), weight.rows.stride[0], nullptr, 0}, range.outputs, depth, factors,
            packed(sum, index, range.group) + range.first * depth, depth, range.positions,
            {scratch.tile, tile_stride(sum, range), nullptr, first});
  }

  // The panel of windows that follows, of the same steps or of the next ones.
  static Ahead panel_ahead(const float *windows, const Source &source, std::int64_t p, std::int64_t positions,
                           std::int64_t k) {
    const std::int64_t all = windows_depth(source), each = kPanel * source.x_parts;
    if (p + kPanel >= positions) windows += kDepth * each, k += kDepth, p = -kPanel;
    const std::int64_t steps = std::min(kDepth, source.steps() - k);
    if (steps <= 0) return {};
    return {reinterpret_cast<const char *>(windows + (p + kPanel) * all), 0,
            steps * each * static_cast<std::int64_t>(sizeof(float))};
  }

  // Sums, what was made before, bias, and what is there, rounded once.
  void finish(const Sum &sum, const Range &range, const Scratch &scratch, bool empty) const {
    const std::int64_t stride = tile_stride(sum, range);
    const std::int64_t rows = sum.positions_in_rows ? range.positions : range.outputs;
    const std::int64_t columns = sum.positions_in_rows ? range.outputs : range.positions;
    for (std::int64_t i = 0; empty && i < rows; ++i) std::fill_n(scratch.tile + i * stride, columns, 0.0f);
    if (sum.positions_in_rows == sum.by_position)
      return finish_rows(sum, range, 0, rows, scratch.tile, stride, scratch.row);
    static_assert(kPanel * (kMaxOutputs + 32) <= kGatherFloats);
    const std::int64_t apart = round_up(rows, 16) + 16;
    for (std::int64_t p = 0; p < columns; p += kPanel) {
      const std::int64_t n = std::min(kPanel, columns - p);
      k_.transpose(scratch.tile + p, stride, rows, n, scratch.gather, apart);
      finish_rows(sum, range, p, n, scratch.gather, apart, scratch.row);
    }
  }

  // Positions or outputs of a range, `count` from `begin` on.
  void finish_rows(const Sum &sum, const Range &range, std::int64_t begin, std::int64_t count, float *values,
                   std::int64_t stride, float *buffer) const {
    const Matrix to = matrix(sum, sum.to, range.group), addend = matrix(sum, sum.addend, range.group);
    const bool adds = sum.has_addend && (active_ || !sum.addend_is_adapters);
    const float *bias = workspace_ + recipe_.bias_at + range.group * sum.outputs + range.output;
    const std::int64_t positions = range.begin + range.first,
                       columns = sum.by_position ? range.outputs : range.positions;
    const std::int64_t row0 = sum.by_position ? positions : range.output;
    const std::int64_t column0 = sum.by_position ? range.output : positions;
    for (std::int64_t i = begin; i < begin + count; ++i, values += stride) {
      if (adds) add_row(addend, row0 + i, column0, columns, buffer, values);
      if (sum.has_bias)
        for (std::int64_t j = 0; j < columns; ++j) values[j] += bias[sum.by_position ? j : i];
      if (sum.keep) add_row(to, row0 + i, column0, columns, buffer, values);
      store(k_, values, columns, to, row0 + i, column0, false);
    }
  }

  void add_row(const Matrix &from, std::int64_t row, std::int64_t column, std::int64_t n, float *buffer,
               float *values) const {
    load(k_, from, row, column, n, buffer);
    for (std::int64_t i = 0; i < n; ++i) values[i] += buffer[i];
  }

  Matrix matrix(const Sum &sum, const View &view, std::int64_t group) const {
    const Axes positions = position_axes(view.tensor), channels = channel_axes(view.tensor, sum.outputs);
    Matrix matrix = {address(view, workspace_), view.tensor.dtype, sum.by_position ? positions : channels,
                     sum.by_position ? channels : positions};
    matrix.data += group * view.stride_group * static_cast<std::int64_t>(dtype_size(view.tensor.dtype));
    return matrix;
  }

  // -- Norms ---------------------------------------------------------------------------------------------------

  // One line is what shares a mean: a position's channels, or a group's channels at all positions of a batch entry.
  void normalise() {
    const bool grouped = f_.layer.kind == LayerKind::kGroupNorm;
    const std::int64_t lines = grouped ? f_.x.batch * f_.layer.groups : f_.x.positions();
    pool_.parallel_for(lines, [&](std::int64_t line, int) {
      const Line from = grouped ? group_line(f_.x, line) : position_line(f_.x, line);
      const Line to = grouped ? group_line(f_.y, line) : position_line(f_.y, line);
      normalise(from, to);
    });
  }

  struct Line {
    Matrix values;  // channels x places
    std::int64_t channel;
  };
  Line position_line(const Activation &tensor, std::int64_t position) const {
    Matrix matrix = {static_cast<char *>(tensor.data), tensor.dtype, {}, channel_axes(tensor, tensor.channels)};
    matrix.data += position_axes(tensor).offset(position) * static_cast<std::int64_t>(dtype_size(tensor.dtype));
    return {matrix, 0};
  }
  Line group_line(const Activation &tensor, std::int64_t line) const {
    const std::int64_t channels = tensor.channels / f_.layer.groups, group = line % f_.layer.groups;
    Activation one = tensor;
    one.batch = 1;
    Matrix matrix = {static_cast<char *>(tensor.data), tensor.dtype, channel_axes(tensor, channels),
                     position_axes(one)};
    matrix.data += (line / f_.layer.groups * tensor.stride_batch + group * channels * tensor.stride_channel) *
                   static_cast<std::int64_t>(dtype_size(tensor.dtype));
    return {matrix, group * channels};
  }

  template <typename Visit>
  void for_runs(const Matrix &matrix, Visit visit) const {
    float values[kPanel];
    for (std::int64_t row = 0; row < matrix.rows.size(); ++row)
      for (std::int64_t column = 0; column < matrix.columns.size(); column += kPanel) {
        const std::int64_t n = std::min(kPanel, matrix.columns.size() - column);
        load(k_, matrix, row, column, n, values);
        visit(row, column, n, values);
      }
  }

  void normalise(const Line &from, const Line &to) const {
    const double count = static_cast<double>(from.values.rows.size() * from.values.columns.size());
    double mean = 0.0, squares = 0.0;
    if (f_.layer.kind != LayerKind::kRmsNorm)
      for_runs(from.values, [&](std::int64_t, std::int64_t, std::int64_t n, const float *values) {
        for (std::int64_t i = 0; i < n; ++i) mean += static_cast<double>(values[i]) / count;
      });
    for_runs(from.values, [&](std::int64_t, std::int64_t, std::int64_t n, const float *values) {
      for (std::int64_t i = 0; i < n; ++i) squares += std::pow(static_cast<double>(values[i]) - mean, 2);
    });
    const double scale = 1.0 / std::sqrt(squares / count + f_.layer.epsilon);
    for_runs(from.values, [&](std::int64_t row, std::int64_t column, std::int64_t n, float *values) {
      for (std::int64_t i = 0; i < n; ++i)
        values[i] = static_cast<float>((static_cast<double>(values[i]) - mean) * scale);
      put_normalised(to, row, column, n, values);
    });
  }

  // Along a position's channels each column has its weight, along a group's places each row.
  void put_normalised(const Line &to, std::int64_t row, std::int64_t column, std::int64_t n, float *values) const {
    const bool by_row = f_.layer.kind == LayerKind::kGroupNorm, biased = f_.weights.target_count > 1;
    const bool weighted = f_.whole || plan_.targets[0].adapter_count > 0;
    const float *weight = workspace_ + recipe_.weight_at, *bias = workspace_ + recipe_.bias_at;
    float old[kPanel] = {};
    if (!f_.whole) load(k_, to.values, row, column, n, old);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t channel = to.channel + (by_row ? row : column + i);
      values[i] = (weighted ? values[i] * weight[channel] : 0.0f) + (biased ? bias[channel] : 0.0f) + old[i];
    }
    store(k_, values, n, to.values, row, column, false);
  }

  ops::ForwardPlan &plan_;
  const ops::Forward &f_;
  Recipe &recipe_;
  const Kernels &k_;
  ThreadPool &pool_;
  const float *multipliers_;
  float *workspace_, *scratch_;
  bool active_ = false;
};

}  // namespace

void run(ops::ForwardPlan &plan, const ops::ForwardRun &run) {
  require(run.workspace || workspace_size(plan) == 0, "workspace is absent");
  require(reinterpret_cast<std::uintptr_t>(run.workspace) % 64 == 0, "workspace is not aligned");
  ForwardRunner(plan, run).run();
}

}  // namespace lyc::cpu
