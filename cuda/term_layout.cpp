#include "term_layout.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc::cuda {
namespace {

using ops::Operand;
using ops::TermKind;

/// How a target's axes become rows and columns: columns are the side with the output's smallest step.
class Frame {
 public:
  explicit Frame(const Operand &out) : out_(out) {
    order_ = axes_by_stride(out);
    out_is_row_ = order_.empty() || order_[0] != kOutAxis;
    for (int axis : order_)
      if (axis != kOutAxis) side_.push_back(axis);
  }

  bool out_is_row() const { return out_is_row_; }
  Axis rows() const { return axis(out_is_row_); }
  Axis columns() const { return axis(!out_is_row_); }

  /// The level of the other axis than O that counts input features; one that is always 0 if there is but one feature.
  std::int32_t in_level() const {
    const auto found = std::find(side_.begin(), side_.end(), kInAxis);
    return found == side_.end() ? kMaxLevels - 1 : static_cast<std::int32_t>(found - side_.begin());
  }

  /// Columns that lie between neighbouring input features.
  std::int64_t inside_in() const {
    std::int64_t inside = 1;
    for (std::size_t l = 0; l < side_.size() && side_[l] != kInAxis; ++l) inside *= extent(out_, side_[l]);
    return inside;
  }

  View view(const Source &source, bool with_out = true, bool with_side = true) const {
    const Operand &t = source.operand;
    View view{t.data, t.dtype, source.in_workspace, {}, {}};
    AxisStrides &out = out_is_row_ ? view.row : view.column, &side = out_is_row_ ? view.column : view.row;
    if (with_out) out.level[0] = stride(t, kOutAxis);
    for (std::size_t l = 0; with_side && l < side_.size(); ++l) side.level[l] = stride(t, side_[l]);
    return view;
  }

  ProductView product(const ProductSource &source) const {
    ProductView view{};
    view.rank = narrow(source.rank(), "a rank");
    view.diagonal = vector_of(source.diagonal);
    view.mask = vector_of(source.mask);
    if (view.rank == 0) return view.row = this->view(source.down), view;
    view.row = this->view(source.up, true, false);
    view.column = this->view(source.down, false, true);
    view.row_rank_stride = source.up.operand.stride_in;
    view.column_rank_stride = source.down.operand.stride_out;
    if (out_is_row_) return view;
    std::swap(view.row, view.column);
    std::swap(view.row_rank_stride, view.column_rank_stride);
    return view;
  }

  /// i * kernel_size + k
  AxisStrides position() const {
    AxisStrides strides{};
    for (std::size_t l = 0; l < side_.size(); ++l) {
      strides.level[l] = 1;
      for (int inner = std::max(side_[l], kInAxis) + 1; inner < kAxes; ++inner) strides.level[l] *= extent(out_, inner);
    }
    return strides;
  }

 private:
  Axis axis(bool is_out) const {
    Axis axis{1, 1, {1, 1, 1, 1}};
    std::int64_t size = is_out ? out_.out : 1;
    if (is_out) axis.extent[0] = narrow(out_.out, "the number of rows");
    for (std::size_t l = 0; !is_out && l < side_.size(); ++l) {
      size *= extent(out_, side_[l]);
      axis.extent[l] = narrow(extent(out_, side_[l]), "an axis");
      axis.levels = static_cast<std::int32_t>(l) + 1;
    }
    axis.size = narrow(size, "the number of rows or columns");
    return axis;
  }

  const Operand out_;
  bool out_is_row_ = true;
  AxisOrder order_, side_;
};

/// Cones of a pass of so many stages on the tensor cores, in groups of as many atoms as the longest pass has in one.
std::int64_t tensor_groups(const RotationTask &task, int stages) {
  return ceil_div((2 * std::int64_t{task.blocks}) >> stages, std::int64_t{1} << (kTensorStages - stages));
}

// -- one target -------------------------------------------------------------------------------------------------------

class TargetBuilder {
 public:
  TargetBuilder(const ops::WeightBatch &batch, const ops::WeightTarget &target, int shared_bytes, Products &products,
                TermLayout &layout)
      : batch_(batch),
        target_(target),
        weight_(target.out),
        frame_(target.out),
        shared_bytes_(shared_bytes),
        products_(products),
        layout_(layout) {}

  void build() {
    TermTarget target{};
    check(weight_, "an output");
    target.out = frame_.view({weight_});
    if (target_.base.data) {
      check(target_.base, "a weight");
      target.base = frame_.view({target_.base});
    }
    target.rows = frame_.rows();
    target.columns = frame_.columns();
    target.position = frame_.position();
    target.out_is_row = frame_.out_is_row();
    target.first_adapter = static_cast<std::int32_t>(layout_.adapters.size());
    target.adapter_count = target_.adapter_count;
    strips_ = ceil_div(target.columns.size, kStripColumns);
    rows_ = target.rows.size;
    columns_ = target.columns.size;
    for (std::int32_t a = 0; a < target_.adapter_count; ++a) add_adapter(batch_.adapters[target_.first_adapter + a]);
    layout_.targets.push_back(target);
    layout_.tiles.add(merged_by_rotation_ ? 0 : strips_ * ceil_div(rows_, kTermTileRows));
  }

 private:
  void add_adapter(const ops::Adapter &adapter) {
    check_multiplier(adapter, batch_);
    AdapterEntry entry{};
    entry.first_term = static_cast<std::int32_t>(layout_.terms.size());
    entry.term_count = adapter.term_count;
    entry.multiplier_index = adapter.multiplier_index;
    entry.dora_axis = adapter.dora_axis;
    entry.replaces = adapter.replaces;
    if (adapter.replaces) need_base("a term that replaces the weight");
    if (adapter.dora_axis != ops::DoraAxis::kNone) add_norms(adapter, entry);
    for (std::int32_t t = 0; t < adapter.term_count; ++t)
      entry.has_rotations |= batch_.terms[adapter.first_term + t].kind == TermKind::kRotation;
    for (std::int32_t t = 0; t < adapter.term_count; ++t)
      add_term(batch_.terms[adapter.first_term + t], adapter.multiplier_index);
    layout_.adapters.push_back(entry);
  }

  void add_norms(const ops::Adapter &adapter, AdapterEntry &entry) {
    need_base("DoRA");
    entry.dora = dora_parameters(adapter, weight_);
    const bool out = adapter.dora_axis == ops::DoraAxis::kOut;
    const std::int64_t magnitudes = out ? weight_.out : weight_.in;
    entry.magnitude_rows = out == frame_.out_is_row();
    entry.magnitude_level = out ? 0 : frame_.in_level();
    entry.factors = products_.reserve(magnitudes * sizeof(DoraFactors) / sizeof(float));

    const std::int64_t pieces = entry.magnitude_rows ? strips_ : ceil_div(rows_, kNormRows);
    const auto lines = static_cast<std::int32_t>(entry.magnitude_rows ? rows_ : columns_);
    const std::uint64_t partial = products_.reserve(pieces * lines);
    layout_.norms.push_back({static_cast<std::int32_t>(layout_.targets.size()),
                             static_cast<std::int32_t>(layout_.adapters.size()), partial, lines});
    layout_.norm_tiles.add(strips_ * ceil_div(rows_, kNormRows));
    products_.add(FactorTask{entry.dora, adapter.multiplier_index, 0, narrow(pieces, "the number of tiles"), lines,
                             static_cast<std::int32_t>(out ? 1 : frame_.inside_in()),
                             static_cast<std::int32_t>(magnitudes), partial, entry.factors});
  }

  void add_term(const ops::Term &term, std::int32_t multiplier_index) {
    TermEntry entry{};
    entry.kind = term.kind;
    entry.coefficient = static_cast<float>(term.coefficient);
    if (term.scalar.data) {
      check(term.scalar, "a scalar");
      entry.scalar = {term.scalar.data, term.scalar.dtype, 0};
    }
    switch (term.kind) {
      case TermKind::kProduct:
      case TermKind::kBaseHadamard:
        if (ops::reads_base(term.kind)) need_base("a term made from the weight");
        entry.p = fitting(term.p, term);
        break;
      case TermKind::kHadamard:
        entry.p = fitting(term.p, term);
        entry.q = fitting(term.q, term);
        break;
      case TermKind::kKronecker:
        add_kronecker(term, entry);
        break;
      case TermKind::kSparse:
        add_sparse(term, entry);
        break;
      case TermKind::kBaseProduct:
        need_base("a term made from the weight");
        entry.kind = TermKind::kProduct;
        check_base_product(term.p, weight_);
        entry.p = frame_.product(products_.right_of(target_.base, term.p, weight_));
        break;
      case TermKind::kRotation:
        need_base("a rotation");
        add_rotation(term, multiplier_index, entry);
    }
    layout_.terms.push_back(entry);
  }

  static Strided strided(const Operand &t) {
    return {t.data, t.dtype, t.stride_out, t.stride_in, {t.stride_kernel[0], t.stride_kernel[1], t.stride_kernel[2]}};
  }

  bool is_all_there_is(const ops::Term &term) const {
    const ops::Adapter &adapter = batch_.adapters[target_.first_adapter];
    return target_.adapter_count == 1 && adapter.term_count == 1 && adapter.dora_axis == ops::DoraAxis::kNone &&
           !adapter.replaces && term.coefficient == 1.0 && !term.scalar.data;
  }

  void add_rotation(const ops::Term &term, std::int32_t multiplier_index, TermEntry &entry) {
    const ops::Rotation &rotation = batch_.rotations[term.rotation];
    const bool by_out = rotation.axis == ops::Rotation::Axis::kOut;
    const std::int64_t columns = weight_.in * weight_.kernel_size(), lines = by_out ? weight_.out : columns;
    require(rotation.begin >= 0 && rotation.begin + rotation.extent() <= lines, "a rotation of ", rotation.extent(),
            " elements from ", rotation.begin, " on, along an axis of ", lines);
    RotationTask task = products_.rotation(rotation, multiplier_index);
    task.staged = 1;
    task.base = strided(target_.base);
    for (int k = 0; k < ops::kMaxKernelDims; ++k) task.kernel[k] = narrow(weight_.kernel[k], "a kernel");
    // Other blocks may still read what a single stage would write in place.
    if (is_all_there_is(term) && rotation.stages > 1 && rotation.begin == 0 && rotation.extent() == lines) {
      task.result = strided(weight_);
      task.rescale = rescale_of(rotation, term.row_begin);
      merged_by_rotation_ = true;
    }
    task.rows = weight_.out;
    task.columns = columns;
    fuse_stages(task);
    reserve_turned(task);
    products_.add(task);
    if (task.fused > 0) {
      const auto passes = static_cast<std::size_t>(ceil_div(task.stages, task.fused));
      layout_.passes.resize(std::max(layout_.passes.size(), passes));
      if (task.cone == ConeKind::kFloat)
        layout_.cone_rows = std::max(layout_.cone_rows, task.block_size / 2 << task.fused);
    } else {
      layout_.stages.resize(std::max<std::size_t>(layout_.stages.size(), static_cast<std::size_t>(rotation.stages)));
    }

    Operand turned = weight_;
    turned.data = reinterpret_cast<void *>(task.turned[(rotation.stages - 1) % 2]);
    turned.dtype = LYC_DTYPE_F32;
    turned.stride_out = columns;
    turned.stride_in = weight_.kernel_size();
    std::int64_t step = 1;
    for (int k = ops::kMaxKernelDims - 1; k >= 0; --k)
      turned.stride_kernel[k] = std::exchange(step, step * turned.kernel[k]);
    entry.p.row = frame_.view({turned, true});
    entry.rotated = {by_out, rotation.begin, rotation.begin + rotation.extent(), rescale_of(rotation, term.row_begin)};
  }

  /// Find the kernel that turns several stages at a time, and how many, passes being as even as they can be; where
  /// there is none, one at a time is left to the kernel that takes any layout.
  void fuse_stages(RotationTask &task) const {
    const auto in_pairs = [](const Operand &t) {
      const auto size = static_cast<std::uintptr_t>(dtype_size(t.dtype));
      return has_plain_columns(t) && t.stride_out % 2 == 0 &&
             reinterpret_cast<std::uintptr_t>(t.data) % (2 * size) == 0;
    };
    if (!merged_by_rotation_ || !task.by_out || task.order == ops::Rotation::Order::kPlain ||
        task.block_size > kMostTurned || task.columns % 2 != 0 || !in_pairs(target_.base) || !in_pairs(weight_))
      return;
    std::int32_t most = 1;
    if (target_.base.dtype != LYC_DTYPE_F32 && weight_.dtype != LYC_DTYPE_F32) {
      task.cone = task.block_size > 8 * quads_of(ConeKind::kThreeQuads) ? ConeKind::kFourQuads : ConeKind::kThreeQuads;
      if (cone_bytes(task.cone) > shared_bytes_) task.cone = ConeKind::kFloat;
    }
    if (task.cone != ConeKind::kFloat) {
      task.quads = quads_of(task.cone);
      most = kTensorStages;
    } else {
      const bool aligned = reinterpret_cast<std::uintptr_t>(task.prepared) % 16 == 0;
      if (task.block_size % 4 != 0 || !aligned) return;
      while (task.block_size / 2 << (most + 1) <= kConeRows) ++most;
    }
    task.fused = static_cast<std::int32_t>(ceil_div(task.stages, ceil_div(task.stages, most)));
    if (task.quads == 0) return;
    std::int64_t matrices = 0;
    for (int first = 0; first < task.stages; first += task.fused) {
      const int stages = std::min(task.fused, task.stages - first);
      matrices += tensor_groups(task, stages) * stages << (kTensorStages - 1);
    }
    task.matrices = products_.reserve(matrices * turn_words(task.quads) * 32);
  }

  /// What goes from a stage or a pass to the next one.
  void reserve_turned(RotationTask &task) const {
    if (task.quads > 0) {
      const std::int64_t rows = std::int64_t{task.blocks} * 2 * task.quads * 4;
      if (task.stages > task.fused)
        task.turned[0] = products_.reserve(rows * ceil_div(task.columns, kTurnColumns) * kTurnColumns);
      return;
    }
    for (std::uint64_t &turned : task.turned) turned = products_.reserve(weight_.numel());
  }

  void need_base(const char *what) {
    require(target_.base.data, what, " needs the base weight");
    layout_.reads_base = true;
  }

  /// A product of the weight's shape, from the target's first row on.
  ProductView fitting(const ops::Product &product, const ops::Term &term) {
    check_product(product);
    check_fit(product.out(), product.in(), product.kernel_holder(), term, weight_);
    return frame_.product(products_.without_core(product, weight_, term.row_begin));
  }

  void add_kronecker(const ops::Term &term, TermEntry &entry) {
    check_kronecker(term, weight_);
    entry.p.row = frame_.view(products_.whole(term.p, weight_));
    entry.q.row = frame_.view(products_.whole(term.q, weight_));
    entry.rows = {0, narrow(term.q.out(), "the rows of a Kronecker product's half"), term.row_begin};
    entry.columns = {frame_.in_level(), narrow(term.q.in(), "the columns of a Kronecker product's half"), 0};
    if (!frame_.out_is_row()) std::swap(entry.rows, entry.columns);
  }

  void add_sparse(const ops::Term &term, TermEntry &entry) {
    const ops::Sparse &sparse = term.sparse;
    if (sparse.values.data) check(sparse.values, "the values of a sparse term");
    require(sparse.row_starts.dtype == LYC_DTYPE_I64 && sparse.columns.dtype == LYC_DTYPE_I64,
            "the positions of a sparse term must be i64");
    check_fit(sparse.row_starts.out - 1, weight_.in, weight_, term, weight_);
    Vector starts = vector_of(sparse.row_starts);
    starts.data = static_cast<const std::int64_t *>(starts.data) + term.row_begin * starts.stride;
    entry.sparse = {starts, vector_of(sparse.columns), vector_of(sparse.values)};
  }

  const ops::WeightBatch &batch_;
  const ops::WeightTarget &target_;
  const Operand &weight_;
  const Frame frame_;
  const int shared_bytes_;
  Products &products_;
  TermLayout &layout_;
  std::int64_t strips_ = 0, rows_ = 0, columns_ = 0;
  bool merged_by_rotation_ = false;
};

}  // namespace

/// Every stage and every pass has an entry for every rotation.
void TermLayoutBuilder::finish() {
  for (std::size_t pass = 0; pass < layout_.passes.size(); ++pass)
    for (const RotationTask &task : products_.rotations) {
      const int first = static_cast<int>(pass) * task.fused, stages = std::min(task.fused, task.stages - first);
      const bool turns = task.fused > 0 && stages > 0;
      const std::int64_t cones = !turns            ? 0
                                 : task.quads == 0 ? (2 * std::int64_t{task.blocks}) >> stages
                                                   : tensor_groups(task, stages);
      for (int kind = 0; kind < kConeKinds; ++kind)
        layout_.passes[pass][static_cast<std::size_t>(kind)].add(
            kind == static_cast<int>(task.cone) ? cones * ceil_div(task.columns, columns_of_piece(task.cone)) : 0);
    }
  for (std::size_t stage = 0; stage < layout_.stages.size(); ++stage)
    for (const RotationTask &task : products_.rotations) {
      const std::int64_t lines = task.by_out ? task.columns : task.rows;
      const std::int64_t turned =
          task.blocks * ceil_div(task.block_size, kTurnedPlaces) * ceil_div(lines, kTurnedLines);
      const bool turns = task.staged && task.fused == 0 && static_cast<int>(stage) < task.stages;
      layout_.stages[stage].add(turns ? turned : 0);
    }
}

void TermLayoutBuilder::add(const ops::WeightTarget &target) {
  TargetBuilder(batch_, target, shared_bytes_, products_, layout_).build();
}

std::string describe(const TermLayout &layout) {
  if (layout.targets.empty()) return {};
  return concat("terms of any kind: ", layout.targets.size(), " weights, ", layout.tiles.pieces, " tiles of ",
                kTermTileRows, " x ", kStripColumns, ", ", layout.norms.size(), " norms\n");
}

}  // namespace lyc::cuda
