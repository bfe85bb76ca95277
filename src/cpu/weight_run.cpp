#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "cpu/weight_plan.hpp"

namespace lyc::cpu {
namespace {

using ops::TermKind;
using ops::WeightOp;

// The workspace from where rows of a panel lie in it as the output's do in memory. A load waits for what has been
// stored at the same place within a page, long if that went past the caches: this way four tiles of AVX2 lie
// between the two.
float *beside(const void *out, float *workspace) {
  constexpr std::uintptr_t kRow = kAlignment * sizeof(float), kLine = 64;
  const std::uintptr_t apart =
      (reinterpret_cast<std::uintptr_t>(out) - reinterpret_cast<std::uintptr_t>(workspace)) % kRow;
  return workspace + apart / kLine * (kLine / sizeof(float));
}

/// One run on one target, by all threads of `pool`, or by the calling thread alone if that is null.
class TargetRun {
 public:
  TargetRun(const TargetPlan &target, const Kernels &kernels, ThreadPool *pool, const ops::RunOptions &options,
            float *workspace)
      : t_(target),
        k_(kernels),
        pool_(pool),
        op_(options.op),
        multipliers_(options.multipliers),
        packed_(beside(target.out.data, workspace)),
        scratch_(packed_ + target.packed_size) {
    for (const AdapterPlan &adapter : t_.adapters)
      if (adapter.replaces && active(adapter)) --weights_;
    streams_ = t_.streams && (op_ == WeightOp::kDiff || t_.base.data != t_.out.data);
  }

  void run() {
    if (std::none_of(t_.adapters.begin(), t_.adapters.end(), [&](const AdapterPlan &a) { return active(a); }))
      return keep_base();
    make_factors();
    if (holds_panels()) return change_panels(t_.adapters[0]);
    for (const AdapterPlan &adapter : t_.adapters)
      if (adapter.norm_early && active(adapter)) compute_norms(adapter);
    if (t_.region_rows) return compute_regions();
    if (changes_rows())
      return for_range(ceil_div(t_.rows, kChangedRows), [&](std::int64_t index, int worker) {
        change_rows(t_.adapters[0], index * kChangedRows, worker);
        if (streams_) k_.flush();
      });
    for_tiles(item_rows(), [&](std::int64_t row, std::int64_t column, int worker) {
      compute_rows(row, column, worker);
      if (streams_) k_.flush();
    });
  }

  /// Those of the only adapter.
  void run_norms(float *norms) {
    const AdapterPlan &adapter = t_.adapters[0];
    if (!active(adapter)) return;
    make_factors();
    sum_squares(adapter);
    for (std::int64_t i = 0; i < adapter.magnitudes; ++i) norms[i] = static_cast<float>(norm_of(adapter, i));
  }

 private:
  void make_factors() {
    for_each(t_.pack_left, [&](const Step &step) { pack_left(step); });
    for_each(t_.pack_right, [&](const Step &step) { pack_right(step); });
    for_each(t_.contract, [&](const Step &step, int worker) { contract(step, worker); });
    for_each(t_.materialise, [&](const Step &step, int worker) { materialise(step, worker); });
    if (!t_.projected_rows) for_each(t_.project, [&](const Step &step, int worker) { project(step, worker); });
    for_each(t_.measure, [&](const Step &step, int worker) { measure(step, worker); });
    for_each(t_.derive, [&](const Step &step, int worker) { derive(step, worker); });
  }

  // -- Work to threads -----------------------------------------------------------------------------------------

  template <typename Body>
  void for_range(std::int64_t count, Body &&body) {
    if (pool_) return pool_->parallel_for(count, body);
    for (std::int64_t index = 0; index < count; ++index) body(index, 0);
  }

  template <typename Body>
  void for_each(const std::vector<Step> &steps, Body &&body) {
    if (steps.empty()) return;
    for_range(static_cast<std::int64_t>(steps.size()), [&](std::int64_t index, int worker) {
      const Step &step = steps[static_cast<std::size_t>(index)];
      if (!active(*step.adapter) && !step.term->joined) return;  // what is joined becomes 0
      if constexpr (std::is_invocable_v<Body, const Step &>)
        body(step);
      else
        body(step, worker);
    });
  }

  // Items of `rows` rows by some tiles of columns. Their bounds depend on the shape only.
  template <typename Body>
  void for_tiles(std::int64_t rows, Body &&body) {
    const std::int64_t across = ceil_div(t_.columns, item_columns());
    for_range(ceil_div(t_.rows, rows) * across, [&](std::int64_t index, int worker) {
      body(index / across * rows, index % across * item_columns(), worker);
    });
  }

  // What a thread takes, and how many of these at once.
  std::int64_t item_rows() const { return t_.tiled ? kTiledItemRows : kItemRows; }
  std::int64_t rows_at_once() const { return t_.tiled ? kTiledRows : kTileRows; }

  // A multiple of the tile's, unless that is the whole row.
  std::int64_t item_columns() const {
    if (t_.projected_rows) return round_up(t_.columns, kPanel);
    return t_.tile_columns * std::max<std::int64_t>(1, kItemColumns / t_.tile_columns);
  }
  float *scratch_tile(int worker, int tile) const {
    return scratch_ + static_cast<Position>(worker) * t_.scratch_size +
           static_cast<Position>(tile * kTileRows * t_.tile_stride());
  }
  float *sum_tile(int worker) const { return scratch_tile(worker, 0); }
  float *delta_tile(int worker) const { return scratch_tile(worker, 1); }
  float *hadamard_tile(int worker) const { return scratch_tile(worker, 2); }
  float *row_buffer(int worker) const { return scratch_tile(worker, 3); }
  float *panel_buffer(int worker) const { return row_buffer(worker) + 2 * t_.tile_stride(); }
  float *projecting_buffer(int worker) const { return panel_buffer(worker) + kProjectRows * kPanel; }

  std::int64_t span(std::int64_t column) const { return std::min(t_.tile_columns, t_.columns - column); }
  std::int64_t width(std::int64_t column) const { return std::min(t_.step_columns, t_.columns - column); }
  std::int64_t height(std::int64_t row) const { return std::min(kTileRows, t_.rows - row); }
  std::int64_t tiled_height(std::int64_t row) const { return std::min(kTiledRows, t_.rows - row); }

  // -- Factors -------------------------------------------------------------------------------------------------

  double multiplier(const AdapterPlan &adapter) const {
    return multipliers_ ? static_cast<double>(multipliers_[adapter.multiplier_index]) : 1.0;
  }
  bool active(const AdapterPlan &adapter) const { return multiplier(adapter) != 0.0; }

  float factor(const AdapterPlan &adapter, const TermPlan &term) const {
    const double m = multiplier(adapter);
    const double scalar = term.scalar.data ? static_cast<double>(read(term.scalar, 0)) : 1.0;
    const double delta = adapter.dora()              ? dora_coefficients(adapter.dora_rule, m).delta
                         : adapter.replaces          ? 1.0
                         : op_ == WeightOp::kUnmerge ? -m
                                                     : m;
    return static_cast<float>(term.coefficient * scalar * delta);
  }

  void pack_left(const Step &step) {
    const Factor &factor = *step.factor;
    const bool on = active(*step.adapter);
    if (factor.pairs) {
      if (step.begin == 0 && step.term->joined)
        packed_[joined(*step.adapter).scale_at] = this->factor(*step.adapter, *step.term);
      return pair_left(factor, on, step.begin);
    }
    const float scale = factor.scaled ? this->factor(*step.adapter, *step.term) : 1.0f;
    float *packed = packed_ + factor.at;
    float values[kPanel];
    for (std::int64_t r = 0; r < factor.rank; r += kPanel) {
      const std::int64_t n = std::min(kPanel, factor.rank - r);
      float scales[kPanel];
      for (std::int64_t i = 0; i < n; ++i) scales[i] = on ? scale * along_rank(factor, r + i) : 0.0f;
      for (std::int64_t row = step.begin; row < std::min(factor.lines, step.begin + kPackRows); ++row) {
        if (on)
          load(k_, factor.source, row, r, n, values);
        else
          std::fill_n(values, n, 0.0f);
        for (std::int64_t i = 0; i < n; ++i) packed[left_index(row, r + i, factor.total)] = scales[i] * values[i];
      }
    }
  }

  void pack_right(const Step &step) {
    const Factor &factor = *step.factor;
    const bool on = active(*step.adapter);
    if (factor.pairs) return pair_right(factor, on, step.begin);
    float *packed = packed_ + factor.at;
    for (std::int64_t r = 0; r < factor.rank; ++r) {
      const float scale = (factor.scaled ? this->factor(*step.adapter, *step.term) : 1.0f) * along_rank(factor, r);
      const std::int64_t most = std::min(kPanel, factor.block);
      for (std::int64_t column = step.begin; column < std::min(factor.lines, step.begin + kPackColumns);
           column += most) {
        const std::int64_t n = std::min(most, factor.lines - column);
        float *values = packed + right_index(column, r, factor.total, factor.block);
        if (!on) {
          std::fill_n(values, n, 0.0f);
          continue;
        }
        load(k_, factor.source, r, column, n, values);
        if (scale != 1.0f) k_.scaled(values, scale, n, {values, 0, nullptr, true});
      }
    }
  }

  // The same by pairs of ranks, zeros beyond them.
  void pair_left(const Factor &factor, bool on, std::int64_t begin) {
    std::uint16_t halves[2 * kPanel];
    const std::int64_t height = k_.pair_height;
    for (std::int64_t r = 0; r < 2 * factor.total; r += 2 * kPanel)
      for (std::int64_t row = begin; row < std::min(factor.lines, begin + kPackRows); ++row) {
        const std::int64_t n = std::clamp<std::int64_t>(factor.rank - r, 0, 2 * kPanel);
        load_halves(factor, on && n > 0, row, r, n, halves);
        std::fill(halves + n, std::end(halves), std::uint16_t{0});
        for (std::int64_t i = 0; i < std::min(kPanel, factor.total - r / 2); ++i)
          std::memcpy(packed_ + factor.at + left_index(row, r / 2 + i, factor.total, height), halves + 2 * i,
                      sizeof(float));
      }
  }

  void pair_right(const Factor &factor, bool on, std::int64_t begin) {
    std::uint16_t first[kPanel], second[kPanel];
    for (std::int64_t r = 0; r < 2 * factor.total; r += 2)
      for (std::int64_t column = begin; column < std::min(factor.lines, begin + kPackColumns); column += kPanel) {
        const std::int64_t n = std::min(kPanel, factor.lines - column);
        load_halves(factor, on && r < factor.rank, r, column, n, first);
        load_halves(factor, on && r + 1 < factor.rank, r + 1, column, n, second);
        zip(first, second, n, packed_ + factor.at + right_index(column, r / 2, factor.total));
      }
  }

  void load_halves(const Factor &factor, bool on, std::int64_t row, std::int64_t column, std::int64_t n,
                   std::uint16_t *halves) const {
    if (on)
      load(k_, factor.source, row, column, n, halves);
    else
      std::fill_n(halves, n, std::uint16_t{0});
  }

  const Joined &joined(const AdapterPlan &adapter) const { return adapter.dora() ? adapter.joined : t_.joined; }

  Packed packed(const Joined &group, std::int64_t row, std::int64_t column) const {
    return {packed_ + group.left_at + row * group.rank, packed_ + group.right_at + column * group.rank, group.rank,
            group.pairs, group.pairs ? packed_[group.scale_at] : 1.0f};
  }

  // Of a product of pairs that is not joined, and takes its scale here.
  Packed packed(const ProductPlan &product, float scale, std::int64_t row, std::int64_t column) const {
    const std::int64_t steps = product.left.total;
    return {packed_ + product.left.at + row * steps, packed_ + product.right.at + column * steps, steps, true, scale};
  }

  static float along_rank(const Factor &factor, std::int64_t r) {
    const float diagonal = factor.diagonal.data ? read(factor.diagonal, r * factor.diagonal.stride_out) : 1.0f;
    return factor.mask.data ? diagonal * read(factor.mask, r * factor.mask.stride_out) : diagonal;
  }

  static std::int64_t left_index(std::int64_t row, std::int64_t r, std::int64_t rank, std::int64_t block = kTileRows) {
    return (row / block * rank + r) * block + row % block;
  }
  static std::int64_t right_index(std::int64_t column, std::int64_t r, std::int64_t rank, std::int64_t panel = kPanel) {
    return (column / panel * rank + r) * panel + column % panel;
  }

  // core x down, kTileRows rows of (kernel position, r_up), into the places of a packed factor.
  void contract(const Step &step, int worker) {
    const ProductPlan &product = *step.product;
    const ProductPlan::Contraction &tucker = product.tucker;
    const std::int64_t rank = tucker.core.rank, in = tucker.down.lines;
    const bool to_left = !product.left.source;
    float *to = packed_ + (to_left ? product.left.at : product.right.at);
    float *tile = sum_tile(worker);
    for (std::int64_t begin = 0; begin < in; begin += kPanel) {
      k_.product(packed_ + tucker.core.at + step.begin * rank, packed_ + tucker.down.at + begin * rank, rank, 1,
                 {tile, kPanel, nullptr, true});
      for (std::int64_t row = 0; row < std::min(kTileRows, tucker.core.lines - step.begin); ++row) {
        const std::int64_t position = (step.begin + row) / product.rank, r = (step.begin + row) % product.rank;
        const std::int64_t first = tucker.kernel_index[static_cast<std::size_t>(position)];
        for (std::int64_t i = begin; i < std::min(begin + kPanel, in); ++i) {
          const std::int64_t at = first + i * tucker.in_step;
          to[to_left ? left_index(at, r, product.rank) : right_index(at, r, product.rank)] =
              tile[row * kPanel + i - begin];
        }
      }
    }
  }

  // kTileRows rows of one half of a Kronecker product.
  void materialise(const Step &step, int worker) {
    const TermPlan &term = *step.term;
    const bool left = step.product == &term.p;
    const std::int64_t stride = left ? term.p_stride : term.q_stride;
    float *to = packed_ + (left ? term.p_at : term.q_at) + step.begin * stride;
    const float scale = left ? factor(*step.adapter, term) : 1.0f;
    for (std::int64_t column = 0; column < step.product->columns; column += t_.tile_columns)
      add_product(*step.product, scale, step.begin, std::min(kTileRows, step.product->rows - step.begin), column,
                  std::min(t_.tile_columns, step.product->columns - column), {to + column, stride, nullptr, true},
                  worker);
  }

  void measure(const Step &step, int worker) {
    const RotationPlan &plan = step.term->rotation;
    double *sums = squares_of(plan);
    for (std::int64_t i = step.begin; i < std::min(plan.matrices(), step.begin + kMatrices); ++i)
      sums[i] = squares(k_, plan.rotation, i, scratch_tile(worker, 0));
  }

  void derive(const Step &step, int worker) {
    const RotationPlan &plan = step.term->rotation;
    const double total = plan.measured() ? total_squares(plan.rotation, plan.matrices(), squares_of(plan)) : 0.0;
    for (std::int64_t i = step.begin; i < std::min(plan.matrices(), step.begin + kMatrices); ++i)
      derive_packed(k_, plan, i, total, multiplier(*step.adapter), scratch_tile(worker, 0),
                    packed_ + plan.packed_at + i * plan.packed_floats());
  }

  double *squares_of(const RotationPlan &plan) const { return reinterpret_cast<double *>(packed_ + plan.squares_at); }

  // -- Products with the weight --------------------------------------------------------------------------------

  void project(const Step &step, int worker) {
    const std::int64_t panels = ceil_div(t_.columns, kPanel), panel = step.begin / kPanel;
    if (!active(*step.adapter)) return clear_projection(*step.term, t_.out_in_columns ? panel * kPanel : step.begin);
    if (t_.out_in_columns)
      project_columns(*step.term, panel / panels, panel % panels * kPanel, worker);
    else
      project_rows(*step.term, factor(*step.adapter, *step.term), step.begin, worker);
  }

  float *projected(const TermPlan &term, std::int64_t row, std::int64_t position) const {
    const Projection &projection = term.projection;
    const std::int64_t tile = t_.out_in_columns ? 0 : row / kTileRows;
    const std::int64_t tile_step = projection.copies * projection.made.total * kTileRows;
    return packed_ + projection.made.at + static_cast<Position>(tile * tile_step) +
           static_cast<Position>(position) * projection.step;
  }

  // A row's values of one kernel position, `projected_step` apart along the rank.
  float *projected_row(const TermPlan &term, std::int64_t row, std::int64_t position) const {
    const Projection &projection = term.projection;
    if (!projection.interleaved) return projected(term, row, position) + row % kTileRows;
    return projected(term, row, position / projection.inside) + row % kTileRows * projection.repeated() +
           position % projection.inside;
  }
  static std::int64_t projected_step(const Projection &projection) {
    return kTileRows * (projection.interleaved ? projection.repeated() : 1);
  }

  // Only of what is joined, which has one position.
  void clear_projection(const TermPlan &term, std::int64_t line) {
    const std::int64_t rank = term.p.rank, total = term.projection.made.total;
    if (t_.out_in_columns)
      return void(std::fill_n(projected(term, 0, 0) + right_index(line, 0, total), rank * kPanel, 0.0f));
    for (std::int64_t row = line; row < std::min(line + term.projection.rows, t_.rows); row += kTileRows)
      std::fill_n(projected(term, row, 0), rank * kTileRows, 0.0f);
  }

  // A left factor for each kernel position from some rows of the weight.
  void project_rows(const TermPlan &term, float scale, std::int64_t begin, int worker) {
    const std::int64_t end = std::min(begin + term.projection.rows, t_.rows);
    if (term.projection.up.source)
      multiply_rows(term, scale, begin, end, worker);
    else
      for (std::int64_t row = begin; row < end; ++row) copy_row(term, scale, row, row_buffer(worker));
    for (std::int64_t row = begin; term.projection.interleaved && row < end; row += kTileRows)
      repeat_positions(term, row);
  }

  // The sums have the rank in their lanes: [panel of up][position][row][kTurned].
  void multiply_rows(const TermPlan &term, float scale, std::int64_t begin, std::int64_t end, int worker) {
    const Projection &projection = term.projection;
    const std::int64_t inside = projection.inside, inner = projection.in * inside;
    const std::int64_t rows = round_up(end - begin, kTileRows), lines = projection.positions * rows;
    float *values = projecting_buffer(worker), *sums = values + kTileRows * projection.stride();
    // One tile of float32 need not be loaded first.
    const bool as_it_lies = end - begin == kTileRows && t_.base.in_rows() && t_.base.dtype == LYC_DTYPE_F32;
    const std::int64_t stride = as_it_lies ? t_.base.rows.stride[0] : projection.stride();
    std::fill_n(sums, projection.panels() * lines * kTurned, 0.0f);
    for (std::int64_t column = 0; column < t_.columns;) {
      const std::int64_t input = projection.input(column), first = projection.position(column) * rows;
      const std::int64_t n = std::min(projection.columns(), inner - input * inside);
      for (std::int64_t i = 0; !as_it_lies && i < end - begin; ++i)
        load(k_, t_.base, begin + i, column, n, values + i % kTileRows * stride + i / kTileRows * kTileApart);
      const float *weight = as_it_lies ? reinterpret_cast<const float *>(t_.base.at(begin, column)) : values;
      for (std::int64_t panel = 0; panel < projection.panels(); ++panel)
        k_.project(weight, stride, rows / kTileRows, inside, n / inside,
                   packed_ + projection.up.at + (panel * projection.in + input) * kTurned,
                   sums + (panel * lines + first) * kTurned, panel == 0 ? next_columns(begin, column + n, n) : Ahead{});
      column += n;
    }
    for (std::int64_t row = begin; row < end; ++row)
      for (std::int64_t position = 0; position < projection.positions; ++position) {
        float *to = projected_row(term, row, position);
        const float *from = sums + (position * rows + row - begin) * kTurned;
        for (std::int64_t r = 0; r < term.p.rank; ++r, to += projected_step(projection))
          *to = scale * from[r / kTurned * lines * kTurned + r % kTurned];
      }
  }

  // Of the weight's rows from `row` on.
  Ahead next_columns(std::int64_t row, std::int64_t column, std::int64_t n) const {
    if (!t_.base.in_rows() || column >= t_.columns) return {};
    const std::int64_t size = static_cast<std::int64_t>(dtype_size(t_.base.dtype));
    return {t_.base.at(row, column), t_.base.rows.stride[0] * size, std::min(n, t_.columns - column) * size};
  }

  // Nothing projects: the left factors are the weight itself.
  void copy_row(const TermPlan &term, float scale, std::int64_t row, float *values) {
    const Projection &projection = term.projection;
    for (std::int64_t column = 0; column < t_.columns; column += t_.step_columns) {
      load(k_, t_.base, row, column, width(column), values);
      for (std::int64_t c = column; c < column + width(column); ++c)
        projected_row(term, row, projection.position(c))[projection.input(c) * projected_step(projection)] =
            scale * values[c - column];
    }
  }

  // The kernel positions that are inside lie side by side, as the columns do, and begin anew.
  void repeat_positions(const TermPlan &term, std::int64_t row) {
    const Projection &projection = term.projection;
    const std::int64_t inside = projection.inside, repeated = projection.repeated();
    for (std::int64_t outer = 0; outer < projection.positions / inside; ++outer) {
      float *to = projected(term, row, outer);
      for (std::int64_t i = 0; i < term.p.rank * kTileRows; ++i, to += repeated)
        for (std::int64_t k = inside; k < repeated; ++k) to[k] = to[k - inside];
    }
  }

  // A panel of one kernel position's right factor, from that many columns of the weight.
  void project_columns(const TermPlan &term, std::int64_t position, std::int64_t column, int worker) {
    const Projection &projection = term.projection;
    const std::int64_t rank = term.p.rank, n = std::min(kPanel, t_.columns - column);
    float *to = projected(term, 0, position) + right_index(column, 0, projection.made.total),
          *panel = panel_buffer(worker);
    const auto load_input = [&](std::int64_t i, float *values) {
      load(k_, t_.base, projection.index(position, i), column, n, values);
    };
    if (!projection.up.source) {
      for (std::int64_t i = 0; i < rank; ++i) load_input(i, to + i * kPanel);
      return;
    }
    float *rest = delta_tile(worker);
    for (std::int64_t begin = 0; begin < projection.in; begin += kProjectRows) {
      const std::int64_t count = std::min(kProjectRows, projection.in - begin);
      for (std::int64_t i = 0; i < count; ++i) load_input(begin + i, panel + i * kPanel);
      for (std::int64_t r = 0; r < rank; r += kTileRows)
        k_.product(packed_ + projection.up.at + left_index(r, begin, projection.in), panel, count, 1,
                   {r + kTileRows <= rank ? to + r * kPanel : rest, kPanel, nullptr, begin == 0});
    }
    const std::int64_t whole = rank / kTileRows * kTileRows;
    std::copy_n(rest, (rank - whole) * kPanel, to + whole * kPanel);
  }

  // Each group of kernel positions takes its own lines of the tile: those inside alternate, or there is one.
  void add_base_product(const TermPlan &term, std::int64_t row, std::int64_t column, const Tile &tile, int worker) {
    const Projection &projection = term.projection;
    const bool by_rows = t_.out_in_columns;
    const std::int64_t begin = by_rows ? row : column, count = by_rows ? height(row) : width(column);
    const auto group = [&](std::int64_t index) {
      return projection.interleaved ? projection.position(index) / projection.inside : projection.position(index);
    };
    std::int64_t first = group(begin), last = group(begin + count - 1);  // columns have them in order
    for (std::int64_t i = 0; by_rows && i < count; ++i) {
      first = std::min(first, group(begin + i));
      last = std::max(last, group(begin + i));
    }
    if (first == last) return multiply_projected(term, row, column, first, tile);
    const Tile part = {hadamard_tile(worker), tile.stride, nullptr, true};
    for (std::int64_t position = first; position <= last; ++position) {
      multiply_projected(term, row, column, position, part);
      for (std::int64_t i = 0; i < height(row); ++i)
        for (std::int64_t c = 0; c < width(column); ++c)
          if (group(begin + (by_rows ? i : c)) == position) {
            float &to = tile.data[i * tile.stride + c];
            to = part.data[i * part.stride + c] + (tile.first ? 0.0f : to);
          }
    }
  }

  void multiply_projected(const TermPlan &term, std::int64_t row, std::int64_t column, std::int64_t position,
                          const Tile &tile) {
    const Projection &projection = term.projection;
    const std::int64_t rank = term.p.rank, panels = ceil_div(width(column), kPanel);
    const float *made = projected(term, row, position);
    const float *left = t_.out_in_columns ? packed_ + term.p.left.at + row * rank : made;
    const float *right = t_.out_in_columns ? made : packed_ + term.p.right.at;
    if (projection.interleaved)
      k_.periodic_product(left, projection.repeated(), projection.inside, column, right, term.p.right.block, rank,
                          panels, tile);
    else
      k_.product(left, right + column * rank, rank, panels, tile);
  }

  // -- Deltas --------------------------------------------------------------------------------------------------

  // Packed factors carry the scale already; what is read in place takes it here.
  void add_product(const ProductPlan &product, float scale, std::int64_t row, std::int64_t rows, std::int64_t column,
                   std::int64_t n, const Tile &tile, int worker) {
    if (!product.whole)
      return k_.product(packed_ + product.left.at + row * product.rank,
                        packed_ + product.right.at + column * product.rank, product.rank, ceil_div(n, kPanel), tile);
    float *values = row_buffer(worker);
    for (std::int64_t i = 0; i < rows; ++i) {
      load(k_, product.whole, row + i, column, n, values);
      k_.scaled(values, scale, n, row_of(tile, i));
    }
  }

  static Tile row_of(const Tile &tile, std::int64_t row) {
    return {tile.data + row * tile.stride, tile.stride, tile.times ? tile.times + row * tile.stride : nullptr,
            tile.first};
  }

  void add_term(const AdapterPlan &adapter, const TermPlan &term, std::int64_t row, std::int64_t column, Tile tile,
                int worker) {
    const std::int64_t n = width(column), rows = height(row);
    switch (term.kind) {
      case TermKind::kProduct:
        return add_product(term.p, factor(adapter, term), row, rows, column, n, tile, worker);
      case TermKind::kHadamard: {
        float *half = hadamard_tile(worker);
        add_product(term.p, factor(adapter, term), row, rows, column, n, {half, tile.stride, nullptr, true}, worker);
        tile.times = half;
        return add_product(term.q, 1.0f, row, rows, column, n, tile, worker);
      }
      case TermKind::kKronecker:
        for (std::int64_t i = 0; i < rows; ++i)
          k_.kronecker(packed_ + term.p_at + term.rows.p(row + i) * term.p_stride,
                       packed_ + term.q_at + term.rows.q(row + i) * term.q_stride, term.columns, column, n,
                       row_of(tile, i));
        return;
      case TermKind::kSparse:
        return add_sparse(term, factor(adapter, term), row, column, tile);
      case TermKind::kBaseHadamard: {
        float *base = hadamard_tile(worker);
        for (std::int64_t i = 0; i < rows; ++i) load(k_, t_.base, row + i, column, n, base + i * tile.stride);
        tile.times = base;
        if (term.by_row) return scale_rows(base, row_line(term) + row, rows, n, tile);
        if (term.by_column) return repeat_row(column_line(term) + column, rows, n, tile);
        return add_product(term.p, factor(adapter, term), row, rows, column, n, tile, worker);
      }
      case TermKind::kBaseProduct:
        return add_base_product(term, row, column, tile, worker);
      case TermKind::kRotation:  // added to regions
        return;
    }
  }

  const float *row_line(const TermPlan &term) const { return packed_ + term.p.left.at; }
  const float *column_line(const TermPlan &term) const { return packed_ + term.p.right.at; }

  void scale_rows(const float *base, const float *factors, std::int64_t rows, std::int64_t n, Tile tile) {
    tile.times = nullptr;
    for (std::int64_t i = 0; i < rows; ++i) k_.scaled(base + i * tile.stride, factors[i], n, row_of(tile, i));
  }

  void repeat_row(const float *values, std::int64_t rows, std::int64_t n, const Tile &tile) {
    for (std::int64_t i = 0; i < rows; ++i) k_.scaled(values, 1.0f, n, row_of(tile, i));
  }

  void add_sparse(const TermPlan &term, float scale, std::int64_t row, std::int64_t column, const Tile &tile) {
    const std::int64_t rows = height(row), n = width(column);
    if (tile.first)
      for (std::int64_t i = 0; i < rows; ++i) std::fill_n(tile.data + i * tile.stride, n, 0.0f);
    if (t_.out_in_columns)
      for (std::int64_t c = 0; c < n; ++c)
        add_elements(term.sparse, scale, column + c, row, rows, tile.data + c, tile.stride);
    else
      for (std::int64_t i = 0; i < rows; ++i)
        add_elements(term.sparse, scale, row + i, column, n, tile.data + i * tile.stride, 1);
  }

  // Elements of output feature `out` at inner indices begin .. begin + count - 1: where these are neighbours among
  // the columns of the delta, too, they are found at once.
  static void add_elements(const SparsePlan &sparse, float scale, std::int64_t out, std::int64_t begin,
                           std::int64_t count, float *to, std::int64_t step) {
    const std::int64_t stride = sparse.row_starts.stride_out, all = sparse.values.out;
    const std::int64_t first = std::clamp<std::int64_t>(read_index(sparse.row_starts, out * stride), 0, all);
    const std::int64_t last = std::clamp<std::int64_t>(read_index(sparse.row_starts, (out + 1) * stride), first, all);
    const auto column_at = [&](std::int64_t at) { return read_index(sparse.columns, at * sparse.columns.stride_out); };
    const auto inner = [&](std::int64_t i) { return sparse.inner[static_cast<std::size_t>(begin + i)]; };
    for (std::int64_t i = 0, end = 0; i < count; i = end) {
      for (end = i + 1; end < count && inner(end) == inner(i) + end - i;) ++end;
      std::int64_t at = first;
      for (std::int64_t length = last - first; length > 0;) {  // the first element that is not before inner(i)
        const std::int64_t half = length / 2;
        if (column_at(at + half) < inner(i)) {
          at += half + 1;
          length -= half + 1;
        } else {
          length = half;
        }
      }
      for (; at < last && column_at(at) < inner(i) + end - i; ++at)
        if (column_at(at) >= inner(i))  // files may lie
          to[(i + column_at(at) - inner(i)) * step] += scale * read(sparse.values, at * sparse.values.stride_out);
    }
  }

  // Whether the tile still holds nothing. This comes first: until then it has zeros at most.
  bool add_joined(const Joined &joined, std::int64_t row, std::int64_t column, std::int64_t n, const Tile &tile) {
    if (joined.rank == 0) return true;
    const Packed product = packed(joined, row, column);
    const auto multiply = joined.pairs ? k_.pair_product : k_.product;
    multiply(product.left, product.right, product.rank, ceil_div(n, kPanel), tile);
    for (std::int64_t i = 0; joined.pairs && i < height(row); ++i)
      k_.scaled(row_of(tile, i).data, product.scale, n, {row_of(tile, i).data, 0, nullptr, true});
    return false;
  }

  // D of one adapter, or its addition to what the tile holds.
  void add_delta(const AdapterPlan &adapter, std::int64_t row, std::int64_t column, Tile tile, int worker) {
    tile.first = add_joined(adapter.joined, row, column, width(column), tile) && tile.first;
    for (const TermPlan &term : adapter.terms) {
      if (term.joined) continue;
      add_term(adapter, term, row, column, tile, worker);
      tile.first = false;
    }
  }

  // -- DoRA ----------------------------------------------------------------------------------------------------

  ChangeFactors change_factors(const AdapterPlan &adapter, std::int64_t line, double norm) const {
    const DoraCoefficients rule = dora_coefficients(adapter.dora_rule, multiplier(adapter));
    const std::int64_t index = line / adapter.inside % adapter.magnitudes;
    const double kept = t_.changes_weight && op_ != WeightOp::kDiff ? 1.0 : 0.0;
    return cpu::change_factors(rule, kept, of_magnitude(adapter, adapter.magnitude, index), norm + adapter.epsilon);
  }

  static double of_magnitude(const AdapterPlan &adapter, const ops::Operand &values, std::int64_t index) {
    const bool out = adapter.dora_axis == ops::DoraAxis::kOut;
    return static_cast<double>(read(values, index * (out ? values.stride_out : values.stride_in)));
  }

  // The factors of each line.
  void compute_norms(const AdapterPlan &adapter) {
    if (!adapter.norms.data) sum_squares(adapter);
    for_range(ceil_div(adapter.magnitudes, kPanel), [&](std::int64_t index, int) {
      const std::int64_t first = index * kPanel;
      for (std::int64_t i = first; i < std::min(first + kPanel, adapter.magnitudes); ++i) finish_norm(adapter, i);
    });
  }

  // Squares of V by rows or by columns, in parts that depend on the shape only.
  void sum_squares(const AdapterPlan &adapter) {
    for_tiles(kNormRows, [&](std::int64_t begin, std::int64_t column, int worker) {
      const std::int64_t last = std::min(column + item_columns(), t_.columns);
      for (std::int64_t c = column; c < last; c += t_.step_columns) sum_squares(adapter, begin, c, worker);
    });
  }

  // What kNormRows rows add.
  void sum_squares(const AdapterPlan &adapter, std::int64_t begin, std::int64_t column, int worker) {
    const std::int64_t n = width(column), end = std::min(begin + kNormRows, t_.rows);
    const Tile delta = {delta_tile(worker), t_.tile_stride(), nullptr, true};
    float *partial = packed_ + adapter.partial_at;
    float *sums = partial + begin / kNormRows * t_.columns + column;
    if (!adapter.norm_per_row) std::fill(sums, sums + n, 0.0f);
    const std::int64_t step = rows_at_once();
    for (std::int64_t row = begin; row < end; row += step) {
      double squares[kTiledRows] = {};
      const bool by_row = adapter.norm_per_row, below = row + step < end;
      const void *next = t_.base.at(below ? row + step : begin, below ? column : column + n);
      add_squares(adapter, row, column, n, next, delta, by_row ? squares : nullptr, by_row ? nullptr : sums, worker);
      for (std::int64_t i = 0; by_row && i < std::min(step, end - row); ++i)
        partial[column / t_.step_columns * t_.rows + row + i] = static_cast<float>(squares[i]);
    }
  }

  void finish_norm(const AdapterPlan &adapter, std::int64_t index) {
    const ChangeFactors factors = change_factors(adapter, index * adapter.inside, norm_of(adapter, index));
    for_lines(adapter, index, [&](std::int64_t line) {
      packed_[adapter.weight_factor_at + static_cast<Position>(line)] = factors.weight;
      packed_[adapter.delta_factor_at + static_cast<Position>(line)] = factors.delta;
    });
  }

  double norm_of(const AdapterPlan &adapter, std::int64_t index) const {
    if (adapter.norms.data) return of_magnitude(adapter, adapter.norms, index);
    const std::int64_t lines = norm_lines(adapter);
    const std::int64_t parts =
        adapter.norm_per_row ? ceil_div(t_.columns, t_.step_columns) : ceil_div(t_.rows, kNormRows);
    const float *partial = packed_ + adapter.partial_at;
    double squares = 0.0;
    for_lines(adapter, index, [&](std::int64_t line) {
      for (std::int64_t part = 0; part < parts; ++part) squares += static_cast<double>(partial[part * lines + line]);
    });
    return std::sqrt(squares);
  }

  std::int64_t norm_lines(const AdapterPlan &adapter) const { return adapter.norm_per_row ? t_.rows : t_.columns; }

  // The lines that share magnitude `index`.
  template <typename Visit>
  void for_lines(const AdapterPlan &adapter, std::int64_t index, Visit visit) const {
    const std::int64_t lines = norm_lines(adapter);
    for (std::int64_t begin = index * adapter.inside; begin < lines; begin += adapter.inside * adapter.magnitudes)
      for (std::int64_t line = begin; line < begin + adapter.inside; ++line) visit(line);
  }

  // Of norms that come before the tiles, from a row or a column on.
  Factors early_factors(const AdapterPlan &adapter, std::int64_t row, std::int64_t column) const {
    const std::int64_t line = adapter.norm_per_row ? row : column;
    return {packed_ + adapter.weight_factor_at + line, packed_ + adapter.delta_factor_at + line, !adapter.norm_per_row};
  }

  // Some rows of the base as they lie in memory, or converted.
  WeightRows base_rows(std::int64_t row, std::int64_t column, std::int64_t n, int worker) const {
    if (t_.base.in_rows()) return {t_.base.dtype, t_.base.at(row, column), t_.base.rows.stride[0], nullptr, 0};
    float *values = hadamard_tile(worker);
    for (std::int64_t i = 0; i < height(row); ++i) load(k_, t_.base, row + i, column, n, values + i * t_.tile_stride());
    return {LYC_DTYPE_F32, values, t_.tile_stride(), nullptr, 0};
  }

  // The delta of a row of tiles.
  void add_delta_rows(const AdapterPlan &adapter, std::int64_t row, std::int64_t column, const Tile &delta,
                      int worker) {
    for (std::int64_t c = column; c < column + span(column); c += t_.step_columns)
      add_delta(adapter, row, c, {delta.data + c - column, delta.stride, nullptr, delta.first}, worker);
  }

  // The same of n columns, and the squares of V, `by_row` or `by_column`. What the weight has at `next` comes
  // meanwhile.
  void add_squares(const AdapterPlan &adapter, std::int64_t row, std::int64_t column, std::int64_t n, const void *next,
                   const Tile &delta, double *by_row, float *by_column, int worker) {
    if (t_.tiled)
      return k_.tiled_squares(packed(adapter.joined, row, column), tiled_height(row), n / kPanel,
                              changed_rows(row, column, next), by_row, by_column);
    if (adapter.multiplies && t_.base.in_rows() && height(row) == kTileRows && n % kPanel == 0)
      return k_.product_squares(packed(adapter.joined, row, column), n / kPanel, delta,
                                {t_.base.dtype, t_.base.at(row, column), t_.base.rows.stride[0], nullptr, 0, next},
                                nullptr, by_row, by_column);
    for (std::int64_t c = column; c < column + n; c += t_.step_columns) {
      const Tile part = {delta.data + c - column, delta.stride, nullptr, true};
      add_delta(adapter, row, c, part, worker);
      const WeightRows base = base_rows(row, c, width(c), worker);
      if (by_row)
        k_.row_squares(base, height(row), part.data, part.stride, width(c), by_row);
      else
        k_.column_squares(base, height(row), part.data, part.stride, width(c), by_column + c - column);
    }
  }

  // Pairs have half the steps, too few to write a tile beside them.
  bool changes_rows() const {
    const AdapterPlan &adapter = t_.adapters[0];
    return k_.changes_beside && t_.changes_weight && adapter.multiplies && norms_by_row(adapter) &&
           !adapter.joined.pairs && t_.base.in_rows() && t_.columns % kPanel == 0 && t_.columns <= kChangedColumns;
  }

  // A tile goes onto the weight beside the next one's product.
  void change_rows(const AdapterPlan &adapter, std::int64_t begin, int worker) {
    float weights[2][kTileRows], deltas[2][kTileRows];
    Changed changed = {};
    const std::int64_t end = std::min(begin + kChangedRows, t_.rows), whole = end / kTileRows * kTileRows;
    for (std::int64_t row = begin; row < whole; row += kTileRows) {
      const std::int64_t turn = row / kTileRows % 2;
      const Tile delta = {scratch_tile(worker, 1 + static_cast<int>(turn)), t_.tile_stride(), nullptr, true};
      const WeightRows rows = changed_rows(row, 0, t_.base.at(row + kTileRows, 0));
      double squares[kTileRows] = {};
      k_.product_squares(packed(adapter.joined, row, 0), t_.columns / kPanel, delta, rows,
                         row == begin ? nullptr : &changed, squares, nullptr);
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        const ChangeFactors factors = change_factors(adapter, row + i, std::sqrt(squares[i]));
        weights[turn][i] = factors.weight;
        deltas[turn][i] = factors.delta;
      }
      changed = {rows, delta.data, delta.stride, t_.columns, weights[turn], deltas[turn], streams_};
    }
    if (whole > begin)
      k_.change_weight(changed.rows, kTileRows, keeps(), changed.d, changed.d_stride, changed.n,
                       {changed.weights, changed.deltas, false}, streams_);
    if (whole < end) change_tile(whole, 0, nullptr, worker);
  }

  // To see what a difference takes of the weight, it is read again: of tall panels, no faster than to compute D again.
  bool holds_panels() const { return t_.panels_held && (keeps() || t_.rows <= kNearRows); }

  // What a panel holds waits in cache until its norms are there, and goes onto the weight beside the next ones'
  // products.
  void change_panels(const AdapterPlan &adapter) {
    const std::int64_t panels = t_.columns / kPanel, parts = pool_ ? pool_->threads() : 1;
    const std::int64_t group = round_up(ceil_div(panels, parts), adapter.inside / std::gcd(adapter.inside, kPanel));
    for_range(ceil_div(panels, group), [&](std::int64_t index, int worker) {
      const std::int64_t first = index * group, last = std::min(first + group, panels);
      std::int64_t normed = first * kPanel / adapter.inside;
      for (std::int64_t panel = first; panel < last + t_.panels_held; ++panel) {
        change_panel(adapter, panel, panel < last, panel - t_.panels_held >= first, worker);
        for (; normed < std::min(panel + 1, last) * kPanel / adapter.inside; ++normed) finish_norm(adapter, normed);
      }
      if (t_.streams) k_.flush();
    });
  }

  // What this one holds is computed, or what the one before in its place holds is written, or both. V goes past the
  // caches in place, too: by then the nearest ones have no longer the weight's lines.
  void change_panel(const AdapterPlan &adapter, std::int64_t panel, bool computes, bool writes, int worker) {
    const std::int64_t column = panel * kPanel, written = column - t_.panels_held * kPanel;
    float *values =
        scratch_tile(worker, 0) + t_.held_at + static_cast<Position>(panel % t_.panels_held * t_.rows * kPanel);
    float *sums = packed_ + adapter.partial_at + column;
    const bool is_v = keeps() && dora_coefficients(adapter.dora_rule, multiplier(adapter)).c == 1.0;
    for (std::int64_t row = 0; row < t_.rows; row += kNormRows, sums += t_.columns) {
      const std::int64_t count = std::min(kNormRows, t_.rows - row);
      const Held held = {values + row * kPanel, sums, is_v};
      WeightRows w = {};
      Changed changed = {};
      if (computes) {
        w = {t_.base.dtype, t_.base.at(row, column), t_.base.rows.stride[0], nullptr, 0};
        std::fill_n(sums, kPanel, 0.0f);
      }
      if (writes)
        changed = {changed_rows(row, written),
                   held.values,
                   kPanel,
                   kPanel,
                   packed_ + adapter.weight_factor_at + written,
                   packed_ + adapter.delta_factor_at + written,
                   is_v ? t_.streams : streams_};
      k_.change_panel(packed(adapter.joined, row, computes ? column : 0), count, computes ? &w : nullptr, held,
                      writes ? &changed : nullptr);
    }
  }

  static bool norms_by_row(const AdapterPlan &adapter) {
    return adapter.dora() && adapter.norm_per_row && !adapter.norm_early;
  }

  // visit(i, delta row, factors) for the rows of a tile.
  template <typename Visit>
  void for_changes(const AdapterPlan &adapter, std::int64_t row, std::int64_t column, int worker, Visit visit) {
    const Tile delta = {delta_tile(worker), t_.tile_stride(), nullptr, true};
    double squares[kTileRows] = {};
    const bool by_row = norms_by_row(adapter);
    if (by_row)
      add_squares(adapter, row, column, span(column), t_.base.at(row + kTileRows, column), delta, squares, nullptr,
                  worker);
    else
      add_delta_rows(adapter, row, column, delta, worker);
    for (std::int64_t i = 0; i < height(row); ++i) {
      const float *d = row_of(delta, i).data;
      if (by_row) {
        const ChangeFactors own = change_factors(adapter, row + i, std::sqrt(squares[i]));
        visit(i, d, Factors{&own.weight, &own.delta, false});
      } else {
        visit(i, d, early_factors(adapter, row + i, column));
      }
    }
  }

  void add_dora(const AdapterPlan &adapter, std::int64_t row, std::int64_t column, const Tile &sum, int worker) {
    const std::int64_t n = span(column);
    float *values = row_buffer(worker);
    for_changes(adapter, row, column, worker, [&](std::int64_t i, const float *delta, const Factors &factors) {
      load(k_, t_.base, row + i, column, n, values);
      if (factors.vary)
        k_.changes(values, delta, n, factors.weight, factors.delta, row_of(sum, i));
      else
        k_.change(values, delta, n, *factors.weight, *factors.delta, row_of(sum, i));
    });
  }

  // -- Tiles ---------------------------------------------------------------------------------------------------

  void compute_rows(std::int64_t begin, std::int64_t column, int worker) {
    const std::int64_t end = std::min(begin + item_rows(), t_.rows), step = rows_at_once();
    const std::int64_t last = std::min(column + item_columns(), t_.columns);
    if (t_.changes_weight && !t_.adapters[0].dora()) return scale_weight(begin, end, column, last - column);
    if (direct() && t_.adapters[0].terms[0].kind == TermKind::kKronecker)
      return merge_kronecker(begin, end, column, last - column);
    // Unless rows are projected first: some rows by one tile's columns after another, whose right factor stays in the
    // nearest cache meanwhile. What waits to be written past the caches holds up what comes into it.
    const std::int64_t rows = t_.projected_rows ? kTileRows : end - begin;
    for (std::int64_t first = begin; first < end; first += rows) {
      if (t_.projected_rows && (first - begin) % t_.projected_rows == 0) project_tile(first, worker);
      for (std::int64_t c = column; c < last; c += t_.tile_columns)
        for (std::int64_t row = first; row < first + rows; row += step) {
          const bool below = row + step < first + rows, beside = c + t_.tile_columns < last;
          compute_one(row, c,
                      below    ? next_rows(row + step, c)
                      : beside ? next_rows(first, c + t_.tile_columns)
                               : next_rows(row + step, column),
                      worker);
        }
    }
  }

  void compute_one(std::int64_t row, std::int64_t column, const void *next, int worker) {
    if (t_.tiled)
      merge_tiled(row, column, next);
    else if (t_.changes_weight)
      change_tile(row, column, next, worker);
    else if (direct() && height(row) == kTileRows && span(column) % kPanel == 0)
      merge_product(row, column, next, worker);
    else
      compute_tile(row, column, worker);
  }

  void project_tile(std::int64_t row, int worker) {
    for (const AdapterPlan &adapter : t_.adapters)
      for (const TermPlan &term : adapter.terms) {
        if (term.kind != TermKind::kBaseProduct) continue;
        if (active(adapter))
          project_rows(term, factor(adapter, term), row, worker);
        else if (term.joined)
          clear_projection(term, row);
      }
  }

  // How often the weight itself is in what is stored.
  int weights() const { return weights_ + (op_ == WeightOp::kDiff ? 0 : 1); }
  bool direct() const { return t_.direct && (weights() == 0 || weights() == 1); }

  WeightRows weight_rows(std::int64_t row, std::int64_t column, const void *next = nullptr) const {
    if (weights() != 0) return changed_rows(row, column, next);
    return {t_.out.dtype, nullptr, 0, t_.out.at(row, column), t_.out.rows.stride[0], next};
  }

  WeightRows changed_rows(std::int64_t row, std::int64_t column, const void *next = nullptr) const {
    return {t_.out.dtype,           t_.base.at(row, column), t_.base.rows.stride[0],
            t_.out.at(row, column), t_.out.rows.stride[0],   next};
  }

  // What is read there, or only written.
  const void *next_rows(std::int64_t row, std::int64_t column) const {
    return weights() != 0 || t_.changes_weight ? t_.base.at(row, column) : t_.out.at(row, column);
  }
  bool keeps() const { return op_ != WeightOp::kDiff; }

  // The weight's own rows are changed as they are read: nothing else is added to them.
  void change_tile(std::int64_t row, std::int64_t column, const void *next, int worker) {
    const AdapterPlan &adapter = t_.adapters[0];
    if (adapter.multiplies && adapter.norm_early && height(row) == kTileRows && span(column) % kPanel == 0) {
      const Factors factors = early_factors(adapter, row, column);
      return k_.merge_product(packed(adapter.joined, row, column), span(column) / kPanel,
                              changed_rows(row, column, next), nullptr, 0, &factors, streams_);
    }
    for_changes(t_.adapters[0], row, column, worker, [&](std::int64_t i, const float *delta, const Factors &factors) {
      k_.change_weight(changed_rows(row + i, column), 1, keeps(), delta, 0, span(column), factors, streams_);
    });
  }

  void merge_tiled(std::int64_t row, std::int64_t column, const void *next) {
    const AdapterPlan &adapter = t_.adapters[0];
    const TermPlan &term = adapter.terms[0];
    const std::int64_t count = tiled_height(row), panels = span(column) / kPanel;
    if (adapter.dora()) return change_tiled(adapter, row, column, next);
    if (term.kind == TermKind::kProduct)
      return k_.merge_tiled(packed(t_.joined, row, column), nullptr, count, panels, weight_rows(row, column, next),
                            nullptr, streams_);
    const Packed q = packed(term.q, 1.0f, row, column);
    k_.merge_tiled(packed(term.p, factor(adapter, term), row, column), &q, count, panels,
                   weight_rows(row, column, next), nullptr, streams_);
  }

  // Norms by row, of all columns, are summed up first: what the weight has is near then.
  void change_tiled(const AdapterPlan &adapter, std::int64_t row, std::int64_t column, const void *next) {
    const Packed product = packed(adapter.joined, row, column);
    const std::int64_t count = tiled_height(row), panels = span(column) / kPanel;
    WeightRows rows = changed_rows(row, column, next);
    float weights[kTiledRows], deltas[kTiledRows];
    Factors factors = early_factors(adapter, row, column);
    if (norms_by_row(adapter)) {
      double squares[kTiledRows] = {};
      rows.next = nullptr;
      k_.tiled_squares(product, count, panels, rows, squares, nullptr);
      for (std::int64_t i = 0; i < count; ++i) {
        const ChangeFactors own = change_factors(adapter, row + i, std::sqrt(squares[i]));
        weights[i] = own.weight;
        deltas[i] = own.delta;
      }
      factors = {weights, deltas, false};
      rows.next = next;
    }
    k_.merge_tiled(product, nullptr, count, panels, rows, &factors, streams_);
  }

  void scale_weight(std::int64_t begin, std::int64_t end, std::int64_t column, std::int64_t n) {
    const TermPlan &term = t_.adapters[0].terms[0];
    const auto scale = [&](std::int64_t first, std::int64_t some, const float *factors) {
      k_.change_weight(changed_rows(begin, first), end - begin, keeps(), nullptr, 0, some,
                       {factors, nullptr, term.by_column}, streams_);
    };
    if (term.by_row) return scale(column, n, row_line(term) + begin);
    for (std::int64_t first = column; first < column + n; first += kScaledColumns)
      scale(first, std::min(kScaledColumns, column + n - first), column_line(term) + first);
  }

  void merge_kronecker(std::int64_t begin, std::int64_t end, std::int64_t column, std::int64_t n) {
    const TermPlan &term = t_.adapters[0].terms[0];
    for (std::int64_t row = begin; row < end; ++row)
      k_.merge_kronecker(packed_ + term.p_at + term.rows.p(row) * term.p_stride,
                         packed_ + term.q_at + term.rows.q(row) * term.q_stride, term.columns, column, n,
                         weight_rows(row, column), streams_);
  }

  void merge_product(std::int64_t row, std::int64_t column, const void *next, int worker) {
    const AdapterPlan &adapter = t_.adapters[0];
    const TermPlan &term = adapter.terms[0];
    const ProductPlan &last = term.kind == TermKind::kHadamard ? term.q : term.p;
    const Packed product = t_.joined.rank > 0 ? packed(t_.joined, row, column)
                                              : packed({last.rank, last.left.at, last.right.at}, row, column);
    float *times = nullptr;
    const std::int64_t n = span(column);
    if (term.kind == TermKind::kHadamard) {
      times = hadamard_tile(worker);
      add_product(term.p, factor(adapter, term), row, kTileRows, column, n, {times, t_.tile_stride(), nullptr, true},
                  worker);
    }
    k_.merge_product(product, n / kPanel, weight_rows(row, column, next), times, t_.tile_stride(), nullptr, streams_);
  }

  void compute_tile(std::int64_t row, std::int64_t column, int worker) {
    const Tile sum = {sum_tile(worker), t_.tile_stride(), nullptr, true};
    add_adapters(row, column, sum, worker);
    for (std::int64_t i = 0; i < height(row); ++i) store_row(row + i, column, row_of(sum, i).data, worker);
  }

  void add_adapters(std::int64_t row, std::int64_t column, Tile sum, int worker) {
    sum.first = add_joined(t_.joined, row, column, span(column), sum) && sum.first;
    for (const AdapterPlan &adapter : t_.adapters) {
      if (!active(adapter)) continue;
      if (adapter.dora())
        add_dora(adapter, row, column, sum, worker);
      else
        add_delta_rows(adapter, row, column, sum, worker);
      sum.first = false;
    }
  }

  // -- Regions: lines that turn together -----------------------------------------------------------------------

  void compute_regions() {
    const std::int64_t across = ceil_div(t_.columns, t_.tile_columns);
    for_range(ceil_div(t_.rows, t_.region_rows) * across, [&](std::int64_t index, int worker) {
      const std::int64_t row = index / across * t_.region_rows, column = index % across * t_.tile_columns;
      if (t_.turns_weight)
        turn_weight(row, column, worker);
      else
        compute_region(row, column, worker);
      if (streams_) k_.flush();
    });
  }

  // Nothing of a region is stored before all of it is computed, so it may be in place.
  void compute_region(std::int64_t row, std::int64_t column, int worker) {
    const std::int64_t rows = std::min(t_.region_rows, t_.rows - row), n = span(column), stride = t_.tile_stride();
    float *base = scratch_tile(worker, 0) + t_.region_at, *sum = base + t_.region_size();
    for (std::int64_t i = 0; i < rows; ++i) load(k_, t_.base, row + i, column, n, base + i * stride);
    std::fill(sum, sum + t_.region_size(), 0.0f);
    for (std::int64_t i = 0; i < rows; i += kTileRows)
      add_adapters(row + i, column, {sum + i * stride, stride, nullptr, false}, worker);
    const Region region = {
        row, column, rows, n, {LYC_DTYPE_F32, base, stride}, {LYC_DTYPE_F32, sum, stride}, Region::Onto::kSum, false};
    for (const AdapterPlan &adapter : t_.adapters)
      for (const TermPlan &term : adapter.terms)
        if (term.rotation && active(adapter))
          add_rotation(k_, term.rotation, packed_ + term.rotation.packed_at, rotation_scale(term), region,
                       sum + t_.region_size());
    for (std::int64_t i = 0; i < rows; ++i) store_row(row + i, column, sum + i * stride, worker);
  }

  void turn_weight(std::int64_t row, std::int64_t column, int worker) {
    const RotationPlan &plan = t_.adapters[0].terms[0].rotation;
    add_rotation(
        k_, plan, packed_ + plan.packed_at, 1.0,
        {row, column, std::min(t_.region_rows, t_.rows - row), span(column), rows_at(t_.base, row, column),
         rows_at(t_.out, row, column), weights() == 0 ? Region::Onto::kNothing : Region::Onto::kWeight, streams_},
        scratch_tile(worker, 0) + t_.region_at);
  }

  static Rows rows_at(const Matrix &matrix, std::int64_t row, std::int64_t column) {
    return {matrix.dtype, matrix.at(row, column), matrix.rows.stride[0]};
  }

  static double rotation_scale(const TermPlan &term) {
    return term.coefficient * (term.scalar.data ? static_cast<double>(read(term.scalar, 0)) : 1.0);
  }

  void store_row(std::int64_t row, std::int64_t column, float *sum, int worker) {
    const std::int64_t n = span(column);
    if (weights() == 0) return store(k_, sum, n, t_.out, row, column, streams_);
    if (weights() == 1 && t_.base.contiguous() && t_.out.contiguous())
      return k_.merge(t_.base.dtype, t_.base.at(row, column), sum, n, t_.out.dtype, t_.out.at(row, column), streams_);
    float *values = row_buffer(worker);
    load(k_, t_.base, row, column, n, values);
    k_.scaled(values, static_cast<float>(weights()), n, {sum, 0, nullptr, false});
    store(k_, sum, n, t_.out, row, column, streams_);
  }

  // Nothing to add: every bit stays, or is copied.
  void keep_base() {
    if (op_ != WeightOp::kDiff && t_.base.data == t_.out.data) return;
    for_tiles(kItemRows, [&](std::int64_t begin, std::int64_t column, int worker) {
      const std::int64_t last = std::min(column + item_columns(), t_.columns);
      for (std::int64_t row = begin; row < std::min(begin + kItemRows, t_.rows); ++row)
        for (std::int64_t c = column; c < last; c += t_.tile_columns) keep_row(row, c, row_buffer(worker));
    });
  }

  void keep_row(std::int64_t row, std::int64_t column, float *values) {
    const std::int64_t n = span(column);
    if (op_ != WeightOp::kDiff) return copy(k_, t_.base, t_.out, row, column, n, values);
    std::fill(values, values + n, 0.0f);
    store(k_, values, n, t_.out, row, column, false);
  }

  const TargetPlan &t_;
  const Kernels &k_;
  ThreadPool *pool_;
  WeightOp op_;
  bool streams_ = false;
  int weights_ = 0;  // less one for each adapter that replaces the weight
  const float *multipliers_;
  float *packed_, *scratch_;
};

void check(const ops::WeightPlan &plan, const ops::RunOptions &options) {
  require(options.workspace || plan.workspace_floats == 0, "workspace is absent");
  require(reinterpret_cast<std::uintptr_t>(options.workspace) % 64 == 0, "workspace is not aligned");
  if (options.op == WeightOp::kUnmerge && !plan.invertible)
    fail(LYC_ERROR_UNSUPPORTED, "cannot be unmerged: a delta depends on the pristine weight");
  if (options.op == WeightOp::kDiff) return;
  for (const TargetPlan &target : plan.targets) require(bool(target.base), "base is absent");
}

}  // namespace

void run_norms(const ops::WeightPlan &plan, const float *multipliers, void *workspace, float *norms) {
  ops::RunOptions options{};
  options.op = WeightOp::kDiff;
  options.multipliers = multipliers;
  TargetRun(plan.targets[0], plan.context.kernels, &plan.context.pool, options, static_cast<float *>(workspace))
      .run_norms(norms);
}

void run(const ops::WeightPlan &plan, const ops::RunOptions &options) {
  check(plan, options);
  ops::BackendContext &context = plan.context;
  float *workspace = static_cast<float *>(options.workspace);
  context.pool.parallel_for(static_cast<std::int64_t>(plan.small_count), [&](std::int64_t index, int worker) {
    TargetRun(plan.targets[static_cast<std::size_t>(index)], context.kernels, nullptr, options,
              workspace + static_cast<Position>(worker) * plan.small_floats)
        .run();
  });
  for (std::size_t i = plan.small_count; i < plan.targets.size(); ++i)
    TargetRun(plan.targets[i], context.kernels, &context.pool, options, workspace).run();
}

}  // namespace lyc::cpu
