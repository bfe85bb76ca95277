#include "weight_layout.hpp"

#include <algorithm>
#include <limits>

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc::cuda {
namespace {

using ops::Operand;

/// A product as it meets its target: the rows of `up` that the target takes, and whose multiplier counts.
struct Part {
  const ops::Term *term;
  Source up, down;
  std::int32_t multiplier_index;
  Role role;
};

/// Rows or columns of a weight as nested levels, the innermost first: the output's axes of more than one element, by
/// their strides, neighbours joined where all tensors are contiguous.
struct Side {
  int levels = 1;
  std::int64_t extent[kMaxLevels] = {1, 1, 1, 1};
  AxisOrder axes;  // that lead along the levels; none: all is one element
};

/// What is O, or what is not.
Side make_side(const ops::WeightTarget &target, const std::vector<Part> &parts, const AxisOrder &order, bool is_out) {
  Side side;
  for (int axis : order) {
    if ((axis == kOutAxis) != is_out) continue;
    const std::size_t level = side.axes.size();
    const auto continues = [&](const Operand &t) {
      return stride(t, axis) == stride(t, side.axes[level - 1]) * side.extent[level - 1];
    };
    const auto part_continues = [&](const Part &part) { return continues((is_out ? part.up : part.down).operand); };
    if (level > 0 && continues(target.base) && continues(target.out) &&
        std::all_of(parts.begin(), parts.end(), part_continues)) {
      side.extent[level - 1] *= extent(target.out, axis);
      continue;
    }
    side.extent[level] = extent(target.out, axis);
    side.axes.push_back(axis);
    side.levels = static_cast<int>(side.axes.size());
  }
  return side;
}

Axis make_axis(const Side &side) {
  Axis axis{1, side.levels, {1, 1, 1, 1}};
  std::int64_t size = 1;
  for (int l = 0; l < side.levels; ++l) {
    size *= side.extent[l];
    require(size <= std::numeric_limits<std::int32_t>::max(), "a weight has ", size,
            " rows or columns, at most 2^31-1");
    axis.extent[l] = static_cast<std::int32_t>(side.extent[l]);
  }
  axis.size = static_cast<std::int32_t>(size);
  return axis;
}

AxisStrides strides_of(const Side &side, const Operand &t) {
  AxisStrides strides{};
  if (side.axes.empty()) strides.level[0] = 1;
  for (std::size_t l = 0; l < side.axes.size(); ++l) strides.level[l] = stride(t, side.axes[l]);
  return strides;
}

bool multiples_of(const AxisStrides &strides, std::int64_t elements) {
  return std::all_of(std::begin(strides.level), std::end(strides.level),
                     [&](std::int64_t stride) { return stride % elements == 0; });
}

bool aligned(const void *data, std::int64_t bytes) { return reinterpret_cast<std::uintptr_t>(data) % bytes == 0; }

/// From one element of an axis to the next; 0 if that is none or too far for 32 bits, and so not regular.
std::int32_t step_bytes(const Axis &axis, const AxisStrides &strides, lyc_dtype dtype) {
  const std::int64_t bytes = strides.level[0] * static_cast<std::int64_t>(dtype_size(dtype));
  return axis.levels == 1 && bytes <= std::numeric_limits<std::int32_t>::max() ? static_cast<std::int32_t>(bytes) : 0;
}

bool contiguous(const Axis &axis, const AxisStrides &strides) { return axis.levels == 1 && strides.level[0] == 1; }

/// The matrix a weight becomes.
struct Sides {
  Side rows, columns;
  bool out_is_row;
};

/// Columns are the side that holds the output's smallest stride.
Sides choose_sides(const ops::WeightTarget &target, const std::vector<Part> &parts) {
  const AxisOrder order = axes_by_stride(target.out);
  const bool out_is_row = order.empty() || order[0] != kOutAxis;
  return {make_side(target, parts, order, out_is_row), make_side(target, parts, order, !out_is_row), out_is_row};
}

Matrix make_matrix(const Operand &operand, const Sides &sides, const MatrixTarget &target, int vector) {
  Matrix matrix{operand.data, operand.dtype, 0, strides_of(sides.rows, operand), strides_of(sides.columns, operand), 0};
  const auto bytes = static_cast<std::int64_t>(dtype_size(operand.dtype)) * vector;
  matrix.vectors = operand.data && contiguous(target.columns, matrix.column) && multiples_of(matrix.row, vector) &&
                   aligned(operand.data, bytes);
  matrix.row_bytes = step_bytes(target.rows, matrix.row, operand.dtype);
  return matrix;
}

Factor make_factor(const Source &source, std::int64_t rank_stride, const Side &side) {
  const Operand &t = source.operand;
  return {t.data, t.dtype,      source.in_workspace, 0, rank_stride, strides_of(side, t),
          0,      source.stage, source.contraction};
}

constexpr int kRankVector = 4;  // ranks that one thread takes at a time

/// Row factors are taken four ranks at a time, 16-bit column factors a vector of columns.
void find_vectors(Factor &row, Factor &column, const Axis &columns, int vector) {
  const auto size = static_cast<std::int64_t>(dtype_size(row.dtype));
  row.vectors = row.rank_stride == 1 && multiples_of(row.axis, kRankVector) && aligned(row.data, size * kRankVector);
  column.vectors = column.dtype != LYC_DTYPE_F32 && contiguous(columns, column.axis) &&
                   column.rank_stride % vector == 0 && aligned(column.data, 2 * vector);
}

/// Low-rank once its core is gone, without anything between the factors.
bool is_low_rank(const ops::Product &product) {
  return !product.whole() && !product.diagonal.data && !product.mask.data;
}

bool is_low_rank(const ops::Term &term) {
  if (term.kind == ops::TermKind::kHadamard) return is_low_rank(term.p) && is_low_rank(term.q);
  if (term.kind == ops::TermKind::kBaseProduct) return is_low_rank(term.p);
  return term.kind == ops::TermKind::kProduct && is_low_rank(term.p);
}

void check_dtype(const Operand &operand, const char *what) {
  if (operand.data && !is_arithmetic(operand.dtype))
    fail(LYC_ERROR_UNSUPPORTED, what, " has dtype ", dtype_name(operand.dtype), ", must be f32, f16 or bf16");
}

bool is_native(const Part &part) {
  return part.up.operand.dtype == part.down.operand.dtype && part.up.operand.dtype != LYC_DTYPE_F32;
}

int chunks_of(const std::vector<LowRankTerm> &terms) {
  int chunks = 0;
  for (const LowRankTerm &term : terms) chunks += (term.rank + kRankChunk - 1) / kRankChunk;
  return chunks;
}

/// Whether the kernels that check nothing can take it.
bool is_regular(const MatrixTarget &target, const std::vector<LowRankTerm> &terms, KernelKind kind) {
  const auto whole = [](const Matrix &matrix) { return !matrix.data || (matrix.vectors && matrix.row_bytes > 0); };
  const auto direct = [&](const LowRankTerm &term) {
    const bool vectors = term.row_factor.vectors && term.row_factor.row_bytes > 0 && term.rank % kRankVector == 0;
    return !kind.native || vectors;
  };
  return whole(target.base) && whole(target.out) && target.rows.levels == 1 && target.columns.levels == 1 &&
         target.columns.size % kStripColumns == 0 && chunks_of(terms) <= max_chunks(kind) &&
         std::all_of(terms.begin(), terms.end(), direct);
}

LowRankTerm make_term(const Part &part, const Sides &sides, const MatrixTarget &target, int vector) {
  const ops::Term &term = *part.term;
  Factor row = make_factor(part.up, part.up.operand.stride_in, sides.out_is_row ? sides.rows : sides.columns);
  Factor column = make_factor(part.down, part.down.operand.stride_out, sides.out_is_row ? sides.columns : sides.rows);
  if (!sides.out_is_row) std::swap(row, column);
  find_vectors(row, column, target.columns, vector);
  row.row_bytes = step_bytes(target.rows, row.axis, row.dtype);
  return {row,
          column,
          term.scalar.data,
          term.scalar.dtype,
          narrow(part.up.operand.in, "a rank"),
          static_cast<float>(term.coefficient),
          part.multiplier_index,
          part.role};
}

class Builder {
 public:
  Builder(const ops::WeightBatch &batch, const DeviceFeatures &device, WeightLayout &layout)
      : batch_(batch),
        layout_(layout),
        elementwise_(batch, layout_.products, layout_.elementwise),
        others_(batch, device.shared_bytes, layout_.products, layout_.others),
        device_(device) {}

  void add(const ops::WeightTarget &target) {
    if (target.out.numel() == 0) return;
    check_dtype(target.base, "a weight");
    check_dtype(target.out, "an output");
    if (!target.base.data) layout_.has_all_bases = false;
    const bool dora = with_dora(target);
    if (device_.copy_engine && device_.shared_bytes >= kBaseSharedBytes)
      if (const auto weight = base_product(batch_, target, device_.largest_cluster)) return add(*weight);
    if (const auto weight = panel_kronecker(batch_, target)) return add(*weight);
    if (elementwise_.takes(target)) return elementwise_.add(target);
    if (device_.copy_engine)
      if (const auto weight = stream_term(batch_, target, device_.largest_cluster, layout_.products))
        return add(*weight);
    if (!is_low_rank(target)) return others_.add(target);
    const std::vector<Part> parts = parts_of(target);
    KernelKind kind{target.base.dtype == LYC_DTYPE_F32 || target.out.dtype == LYC_DTYPE_F32, false,
                    std::all_of(parts.begin(), parts.end(), is_native),
                    std::any_of(parts.begin(), parts.end(), [](const Part &part) { return part.role != Role::kAdd; }),
                    dora};
    const int vector = vector_columns(kind);

    const Sides sides = choose_sides(target, parts);
    MatrixTarget matrix{};
    matrix.rows = make_axis(sides.rows);
    matrix.columns = make_axis(sides.columns);
    matrix.base = make_matrix(target.base, sides, matrix, vector);
    matrix.out = make_matrix(target.out, sides, matrix, vector);
    std::vector<LowRankTerm> terms;
    terms.reserve(parts.size());
    for (const Part &part : parts) terms.push_back(make_term(part, sides, matrix, vector));

    if (!dora)
      if (const auto weight = panel_low_rank(matrix, terms)) return add(*weight);
    if (device_.copy_engine && add_stream(target, sides, matrix, terms)) return;
    kind.regular = is_regular(matrix, terms, kind);
    if (dora && (!kind.regular || !magnitudes_are_rows(target, sides))) return others_.add(target);
    if (dora) add_dora(target, matrix);
    matrix.first_term = static_cast<std::int32_t>(layout_.terms.size());
    matrix.term_count = static_cast<std::int32_t>(terms.size());
    layout_.terms.insert(layout_.terms.end(), terms.begin(), terms.end());
    TargetGroup &group = group_of(kind);
    group.targets.push_back(matrix);
    group.chunk_capacity = std::max(group.chunk_capacity, std::min(chunks_of(terms), max_chunks(kind)));
  }

  void finish() {
    others_.finish();
    layout_.reads_base |= layout_.elementwise.reads_base || layout_.others.reads_base;
  }

 private:
  /// In the order of kernels.
  TargetGroup &group_of(KernelKind kind) {
    auto &groups = layout_.groups;
    const auto group = std::find_if(groups.begin(), groups.end(),
                                    [&](const TargetGroup &g) { return index_of(g.kind) >= index_of(kind); });
    if (group != groups.end() && index_of(group->kind) == index_of(kind)) return *group;
    return *groups.insert(group, {kind, {}, {}});
  }

  bool add_stream(const ops::WeightTarget &target, const Sides &sides, const MatrixTarget &matrix,
                  const std::vector<LowRankTerm> &terms) {
    const bool dora = with_dora(target);
    StreamMagnitudes magnitudes{};
    if (dora) magnitudes = magnitudes_of(target, sides);
    const auto weight =
        stream_low_rank(matrix, terms, dora ? &magnitudes : nullptr, device_.largest_cluster, layout_.products);
    if (weight) add(*weight);
    return weight.has_value();
  }

  StreamMagnitudes magnitudes_of(const ops::WeightTarget &target, const Sides &sides) const {
    require(target.base.data, "DoRA needs the base weight");
    const ops::Adapter &adapter = batch_.adapters[target.first_adapter];
    const Operand &weight = target.out;
    const bool out = adapter.dora_axis == ops::DoraAxis::kOut;
    const Side &side = sides.out_is_row ? sides.columns : sides.rows;
    const std::int64_t inside = weight.in > 1 ? weight.stride_in / stride(weight, side.axes[0]) : weight.kernel_size();
    return {dora_parameters(adapter, weight), out == sides.out_is_row, out ? 1 : inside, out ? weight.out : weight.in};
  }

  void add(const PanelWeight &weight) {
    cuda::add(find_or_add(layout_.panels, &PanelGroup::kind, weight.kind), weight.target);
  }

  void add(const StreamWeight &weight) {
    layout_.reads_base |= weight.kind.dora || weight.kind.form == StreamForm::kRotation;
    find_or_add(layout_.streams, &StreamGroup::kind, weight.kind).weights.push_back(weight);
  }

  void add(const BaseTarget &weight) {
    layout_.reads_base = true;
    find_or_add(layout_.base_products, &BaseGroup::cluster, cluster_of(weight)).targets.push_back(weight);
  }

  /// Whether its sum is one of low-rank products. With DoRA, of one adapter's and as they are: what needs a product
  /// first would need it for nothing if the weight proves to be irregular.
  bool is_low_rank(const ops::WeightTarget &target) const {
    const ops::Adapter *adapters = batch_.adapters + target.first_adapter;
    const bool dora = with_dora(target);
    if (dora && (target.adapter_count > 1 || adapters->term_count == 0)) return false;
    return std::all_of(adapters, adapters + target.adapter_count, [&](const ops::Adapter &adapter) {
      const ops::Term *terms = batch_.terms + adapter.first_term;
      return !adapter.replaces && std::all_of(terms, terms + adapter.term_count, [&](const ops::Term &term) {
        if (dora && (term.kind == ops::TermKind::kBaseProduct || term.p.tucker() || term.q.tucker())) return false;
        return cuda::is_low_rank(term) && (term.kind != ops::TermKind::kBaseProduct || target.out.kernel_size() == 1);
      });
    });
  }

  bool with_dora(const ops::WeightTarget &target) const {
    const ops::Adapter *adapters = batch_.adapters + target.first_adapter;
    return std::any_of(adapters, adapters + target.adapter_count,
                       [](const ops::Adapter &adapter) { return adapter.dora_axis != ops::DoraAxis::kNone; });
  }

  bool magnitudes_are_rows(const ops::WeightTarget &target, const Sides &sides) const {
    const bool out = batch_.adapters[target.first_adapter].dora_axis == ops::DoraAxis::kOut;
    return out == sides.out_is_row && (out || target.out.kernel_size() == 1);
  }

  void add_dora(const ops::WeightTarget &target, MatrixTarget &matrix) {
    require(target.base.data, "DoRA needs the base weight");
    matrix.dora = dora_parameters(batch_.adapters[target.first_adapter], target.out);
    layout_.reads_base = true;
  }

  std::vector<Part> parts_of(const ops::WeightTarget &target) {
    std::vector<Part> parts;
    for (int a = 0; a < target.adapter_count; ++a) {
      const ops::Adapter &adapter = batch_.adapters[target.first_adapter + a];
      check_multiplier(adapter, batch_);
      for (int t = 0; t < adapter.term_count; ++t)
        add_parts(target, adapter.multiplier_index, batch_.terms[adapter.first_term + t], parts);
    }
    return parts;
  }

  void add_parts(const ops::WeightTarget &target, std::int32_t multiplier_index, const ops::Term &term,
                 std::vector<Part> &parts) {
    if (term.scalar.data) check(term.scalar, "a scalar");
    const auto add = [&](const ProductSource &source, Role role) {
      parts.push_back({&term, source.up, source.down, multiplier_index, role});
    };
    const auto fitting = [&](const ops::Product &product) {
      check_product(product);
      check_fit(product.out(), product.in(), product.kernel_holder(), term, target.out);
      return layout_.products.without_core(product, target.out, term.row_begin);
    };
    if (term.kind == ops::TermKind::kBaseProduct) {
      require(target.base.data, "a term made from the weight needs the base weight");
      check_base_product(term.p, target.out);
      layout_.reads_base = true;
      add(layout_.products.right_of(target.base, term.p, target.out), Role::kAdd);
    } else {
      add(fitting(term.p), term.kind == ops::TermKind::kHadamard ? Role::kHold : Role::kAdd);
      if (term.kind == ops::TermKind::kHadamard) add(fitting(term.q), Role::kMultiply);
    }
  }

  const ops::WeightBatch &batch_;
  WeightLayout &layout_;
  ElementwiseLayoutBuilder elementwise_;
  TermLayoutBuilder others_;
  const DeviceFeatures device_;
};

std::int64_t strips_of(const MatrixTarget &target) { return (target.columns.size + kStripColumns - 1) / kStripColumns; }

std::int64_t tiles_of(const TargetGroup &group, const MatrixTarget &target, std::int64_t tile_rows) {
  return (group.kind.dora ? 1 : strips_of(target)) * ((target.rows.size + tile_rows - 1) / tile_rows);
}

/// Time in rows: as many rounds as it takes to give every tile a warp, times a tile's mean height. Finding its weight
/// and loading its first rows costs a tile about as much as half a step.
double cost(const TargetGroup &group, std::int64_t tile_rows, std::int64_t resident_warps) {
  constexpr double kStartRows = kStepRows / 2;
  double rows = 0.0;
  std::int64_t tiles = 0;
  for (const MatrixTarget &target : group.targets) {
    tiles += tiles_of(group, target, tile_rows);
    rows += static_cast<double>(strips_of(target)) * target.rows.size;
  }
  const auto rounds = static_cast<double>((tiles + resident_warps - 1) / resident_warps);
  return rounds * (rows / static_cast<double>(tiles) + kStartRows);
}

}  // namespace

WeightLayout lay_out(const ops::WeightBatch &batch, const DeviceFeatures &device) {
  WeightLayout layout;
  Builder builder(batch, device, layout);
  for (std::int64_t t = 0; t < batch.target_count; ++t) builder.add(batch.targets[t]);
  builder.finish();
  return layout;
}

void schedule(TargetGroup &group, std::int64_t resident_warps) {
  double best = std::numeric_limits<double>::infinity();
  for (int rows = group.kind.dora ? kStepRows : kMaxTileRows; rows >= kStepRows; rows -= kStepRows) {
    const double price = cost(group, rows, resident_warps);
    if (price >= best) continue;
    best = price;
    group.tile_rows = rows;
  }
  std::int64_t tile = 0;
  group.first_tile.clear();
  for (const MatrixTarget &target : group.targets) {
    group.first_tile.push_back(static_cast<std::uint32_t>(tile));
    tile += tiles_of(group, target, group.tile_rows);
    require(tile <= std::numeric_limits<std::int32_t>::max(), "a batch of more than 2^31 tiles; split it");
  }
  group.tile_count = static_cast<std::uint32_t>(tile);
}

std::string describe(const WeightLayout &layout) {
  std::string text;
  for (const PanelGroup &group : layout.panels) text += describe(group);
  for (const StreamGroup &group : layout.streams) text += describe(group);
  for (const BaseGroup &group : layout.base_products) text += describe(group);
  for (const TargetGroup &group : layout.groups)
    text +=
        concat(group.kind.dora ? "DoRA by rows, " : "", group.kind.hadamard ? "low-rank and Hadamard, " : "low-rank, ",
               group.kind.native ? "16-bit factors, " : "factors in three parts, ", group.kind.wide ? "32" : "16",
               "-bit weights", group.kind.regular ? ": " : ", any strides: ", group.targets.size(), " weights, ",
               group.tile_count, " tiles of ", group.tile_rows, " x ", kStripColumns, "\n");
  text += describe(layout.elementwise) + describe(layout.others);
  const auto &products = layout.products.contractions;
  return text + concat(products[0].size() + products[1].size(), " small products\n");
}

}  // namespace lyc::cuda
