#include "term_layout.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc::cuda {
namespace {

using ops::Operand;
using ops::TermKind;

constexpr std::uint64_t kAlignment = 256;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::int32_t narrow(std::int64_t value, const char *what) {
  require(value <= std::numeric_limits<std::int32_t>::max(), what, " is ", value, ", at most 2^31-1");
  return static_cast<std::int32_t>(value);
}

/// An operand of the batch, or one that a run computes: its data is an offset into the workspace then.
struct Source {
  Operand operand;
  bool in_workspace = false;
};

struct ProductSource {
  Source up, down;  // up absent: whole
  Operand diagonal, mask;
  std::int64_t rank() const { return up.operand.dtype == LYC_DTYPE_NONE ? 0 : up.operand.in; }
};

// -- checks -----------------------------------------------------------------------------------------------------------

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

void check_rows(std::int64_t rows, const ops::Term &term, const Operand &weight) {
  require(term.row_begin >= 0 && term.row_begin <= rows - weight.out, "rows ", term.row_begin, " to ",
          term.row_begin + weight.out, " of a delta with ", rows, " rows");
}

void check_columns(std::int64_t in, const Operand &kernel, const Operand &weight) {
  require(in == weight.in && kernel.kernel_size() == weight.kernel_size(), "a delta of ", in, " x ",
          kernel.kernel_size(), " columns on a weight of ", weight.in, " x ", weight.kernel_size());
}

Operand rows_from(Operand operand, std::int64_t begin) {
  operand.data = static_cast<char *>(operand.data) +
                 begin * operand.stride_out * static_cast<std::int64_t>(dtype_size(operand.dtype));
  operand.out -= begin;
  return operand;
}

// -- axes -------------------------------------------------------------------------------------------------------------

/// Axes of a weight: O is 0, I is 1, then the kernel's.
constexpr int kOutAxis = 0, kInAxis = 1, kFirstKernelAxis = 2, kAxes = kFirstKernelAxis + ops::kMaxKernelDims;

std::int64_t extent(const Operand &t, int axis) {
  return axis == kOutAxis ? t.out : axis == kInAxis ? t.in : t.kernel[axis - kFirstKernelAxis];
}

std::int64_t stride(const Operand &t, int axis) {
  if (extent(t, axis) == 1) return 0;
  return axis == kOutAxis ? t.stride_out : axis == kInAxis ? t.stride_in : t.stride_kernel[axis - kFirstKernelAxis];
}

void set_stride(Operand &t, int axis, std::int64_t value) {
  (axis == kOutAxis ? t.stride_out : axis == kInAxis ? t.stride_in : t.stride_kernel[axis - kFirstKernelAxis]) = value;
}

/// All axes of more than one element, those with the smallest steps first.
std::vector<int> axes_by_stride(const Operand &t) {
  std::vector<int> axes;
  for (int axis = kAxes - 1; axis >= 0; --axis)
    if (extent(t, axis) > 1) axes.push_back(axis);
  std::stable_sort(axes.begin(), axes.end(), [&](int a, int b) { return stride(t, a) < stride(t, b); });
  return axes;
}

/// How a target's axes become rows and columns: columns are the side with the output's smallest step.
class Frame {
 public:
  explicit Frame(const Operand &out) : out_(out) {
    order_ = axes_by_stride(out);
    out_is_row_ = order_.empty() || order_.front() != kOutAxis;
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
    view.diagonal = vector(source.diagonal);
    view.mask = vector(source.mask);
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

  /// Contiguous strides in the memory order of the output.
  Operand laid_out_alike(Operand t) const {
    std::int64_t step = 1;
    std::vector<int> order = order_;
    for (int axis = kAxes - 1; axis >= 0; --axis)
      if (std::find(order.begin(), order.end(), axis) == order.end()) order.push_back(axis);
    for (int axis : order) {
      set_stride(t, axis, step);
      step *= extent(t, axis);
    }
    return t;
  }

  static Vector vector(const Operand &operand) { return {operand.data, operand.dtype, operand.stride_out}; }

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
  std::vector<int> order_, side_;
};

// -- one target -------------------------------------------------------------------------------------------------------

class TargetBuilder {
 public:
  TargetBuilder(const ops::WeightBatch &batch, const ops::WeightTarget &target, TermLayout &layout)
      : batch_(batch), target_(target), weight_(target.out), frame_(target.out), layout_(layout) {}

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
    layout_.tiles.add(strips_ * ceil_div(rows_, kTermTileRows));
  }

 private:
  void add_adapter(const ops::Adapter &adapter) {
    require(adapter.multiplier_index >= 0 && adapter.multiplier_index < batch_.multiplier_count, "multiplier index ",
            adapter.multiplier_index, " of ", batch_.multiplier_count);
    AdapterEntry entry{};
    entry.first_term = static_cast<std::int32_t>(layout_.terms.size());
    entry.term_count = adapter.term_count;
    entry.multiplier_index = adapter.multiplier_index;
    entry.dora_axis = adapter.dora_axis;
    entry.dora_rule = adapter.dora_rule;
    entry.replaces = adapter.replaces;
    entry.epsilon = adapter.epsilon;
    if (adapter.replaces) need_base("a term that replaces the weight");
    if (adapter.dora_axis != ops::DoraAxis::kNone) add_norms(adapter, entry);
    for (std::int32_t t = 0; t < adapter.term_count; ++t) add_term(batch_.terms[adapter.first_term + t]);
    layout_.adapters.push_back(entry);
  }

  void add_norms(const ops::Adapter &adapter, AdapterEntry &entry) {
    need_base("DoRA");
    check(adapter.magnitude, "a magnitude");
    const bool out = adapter.dora_axis == ops::DoraAxis::kOut;
    const std::int64_t magnitudes = out ? weight_.out : weight_.in;
    const std::int64_t given = out ? adapter.magnitude.out : adapter.magnitude.in;
    require(given == magnitudes, "a magnitude has ", given, " entries, must have ", magnitudes);
    entry.magnitude = {adapter.magnitude.data, adapter.magnitude.dtype,
                       out ? adapter.magnitude.stride_out : adapter.magnitude.stride_in};
    entry.magnitude_rows = out == frame_.out_is_row();
    entry.magnitude_level = out ? 0 : frame_.in_level();
    entry.factors = reserve(2 * magnitudes);

    NormTask task{};
    task.target = static_cast<std::int32_t>(layout_.targets.size());
    task.adapter = static_cast<std::int32_t>(layout_.adapters.size());
    const std::int64_t pieces = entry.magnitude_rows ? strips_ : ceil_div(rows_, kNormRows);
    const std::int64_t lines = entry.magnitude_rows ? rows_ : columns_;
    task.partial = reserve(pieces * lines);
    task.pieces = static_cast<std::int32_t>(pieces);
    task.lines = static_cast<std::int32_t>(lines);
    task.inside = static_cast<std::int32_t>(out ? 1 : frame_.inside_in());
    task.magnitudes = static_cast<std::int32_t>(magnitudes);
    layout_.norms.push_back(task);
    layout_.norm_tiles.add(strips_ * ceil_div(rows_, kNormRows));
    layout_.magnitudes.add(ceil_div(magnitudes, kMagnitudesPerBlock));
  }

  void add_term(const ops::Term &term) {
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
        entry.p = frame_.product(fitting(term.p, term));
        break;
      case TermKind::kHadamard:
        entry.p = frame_.product(fitting(term.p, term));
        entry.q = frame_.product(fitting(term.q, term));
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
        entry.p = frame_.product(base_product(term.p));
        break;
      case TermKind::kRotation:
        fail(LYC_ERROR_UNSUPPORTED, "the CUDA back end does not compute rotations (OFT, BOFT) yet");
    }
    layout_.terms.push_back(entry);
  }

  void need_base(const char *what) {
    require(target_.base.data, what, " needs the base weight");
    layout_.reads_base = true;
  }

  /// A product of the weight's shape, from the target's first row on.
  ProductSource fitting(const ops::Product &product, const ops::Term &term) {
    check_product(product);
    check_rows(product.out(), term, weight_);
    check_columns(product.in(), product.kernel_holder(), weight_);
    ops::Product rows = product;
    (rows.whole() ? rows.down : rows.up) = rows_from(product.whole() ? product.down : product.up, term.row_begin);
    return contracted(rows);
  }

  /// A core goes into the factor below it.
  ProductSource contracted(const ops::Product &product) {
    if (product.whole()) return {{}, {product.down}, {}, {}};
    ProductSource source{{product.up}, {product.down}, product.diagonal, product.mask};
    if (!product.tucker()) return source;
    const Operand &core = product.core, &down = product.down;
    Contraction sum{};
    sum.left = {core.data, core.dtype, 0};
    sum.left_a = core.stride_out, sum.left_s = core.stride_in;
    sum.right = {down.data, down.dtype, 0};
    sum.right_s = down.stride_out, sum.right_b = down.stride_in;
    Operand result = core;
    result.in = down.in;
    source.down = contract(0, sum, core, core.in, result, true);
    return source;
  }

  /// Finish a contraction over `length` whose left factor has the kernel of `kernel`. `result` has the extents: rows are
  /// `a` and columns `b`, or the other way round.
  Source contract(int stage, Contraction sum, const Operand &kernel, std::int64_t length, Operand result,
                  bool a_is_out) {
    result = frame_.laid_out_alike(result);
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
    const std::int64_t rows = std::int64_t{sum.a} * kernel.kernel_size();
    const auto at = static_cast<std::size_t>(stage);
    layout_.contractions[at].push_back(sum);
    layout_.contraction_tiles[at].add(ceil_div(rows, kContractionTile) * ceil_div(sum.b, kContractionTile));
    return {result, true};
  }

  /// up * down as one whole tensor, the ranks' vectors with it.
  Source multiplied(const ProductSource &product) {
    if (product.rank() == 0) return product.down;
    const Operand &up = product.up.operand, &down = product.down.operand;
    Contraction sum{};  // the kernel is the lower factor's, so that is the left one
    sum.left = {down.data, down.dtype, 0};
    sum.left_in_workspace = product.down.in_workspace;
    sum.left_a = down.stride_in, sum.left_s = down.stride_out;
    sum.right = {up.data, up.dtype, 0};
    sum.right_in_workspace = product.up.in_workspace;
    sum.right_s = up.stride_in, sum.right_b = up.stride_out;
    sum.diagonal = Frame::vector(product.diagonal);
    sum.mask = Frame::vector(product.mask);
    Operand result = down;
    result.out = up.out;
    return contract(1, sum, down, up.in, result, false);
  }

  void add_kronecker(const ops::Term &term, TermEntry &entry) {
    check_product(term.p);
    check_product(term.q);
    const std::int64_t rows = term.q.out(), columns = term.q.in();
    require(term.p.kernel_holder().kernel_size() == 1, "the left half of a Kronecker product has a kernel");
    check_rows(term.p.out() * rows, term, weight_);
    check_columns(term.p.in() * columns, term.q.kernel_holder(), weight_);
    entry.p.row = frame_.view(multiplied(contracted(term.p)));
    entry.q.row = frame_.view(multiplied(contracted(term.q)));
    entry.rows = {0, narrow(rows, "the rows of a Kronecker product's half"), term.row_begin};
    entry.columns = {frame_.in_level(), narrow(columns, "the columns of a Kronecker product's half"), 0};
    if (!frame_.out_is_row()) std::swap(entry.rows, entry.columns);
  }

  void add_sparse(const ops::Term &term, TermEntry &entry) {
    const ops::Sparse &sparse = term.sparse;
    check(sparse.values, "the values of a sparse term");
    require(sparse.row_starts.dtype == LYC_DTYPE_I64 && sparse.columns.dtype == LYC_DTYPE_I64,
            "the positions of a sparse term must be i64");
    check_rows(sparse.row_starts.out - 1, term, weight_);
    Vector starts = Frame::vector(sparse.row_starts);
    starts.data = static_cast<const std::int64_t *>(starts.data) + term.row_begin * starts.stride;
    entry.sparse = {starts, Frame::vector(sparse.columns), Frame::vector(sparse.values)};
  }

  /// W P as a product: (W up) down where that is a matrix, else whole.
  ProductSource base_product(const ops::Product &product) {
    check_product(product);
    require(product.kernel_holder().kernel_size() == 1 && product.out() == weight_.in && product.in() == weight_.in,
            "a factor of ", product.out(), " x ", product.in(), " right of a weight with ", weight_.in,
            " input features");
    const Operand &base = target_.base;
    ProductSource right = contracted(product);
    const Operand &factor = right.rank() == 0 ? right.down.operand : right.up.operand;
    Contraction sum{};
    sum.left = {base.data, base.dtype, 0};
    sum.left_a = base.stride_out, sum.left_s = base.stride_in;
    sum.right = {factor.data, factor.dtype, 0};
    sum.right_s = factor.stride_out, sum.right_b = factor.stride_in;
    Operand result = base;
    result.in = factor.in;
    const Source left = contract(0, sum, base, base.in, result, true);
    if (right.rank() == 0) return {{}, left, {}, {}};
    if (weight_.kernel_size() == 1) return {left, right.down, right.diagonal, right.mask};

    const Operand &below = right.down.operand;
    Contraction outer{};
    outer.left = {left.operand.data, LYC_DTYPE_F32, 0};
    outer.left_in_workspace = 1;
    outer.left_a = left.operand.stride_out, outer.left_s = left.operand.stride_in;
    outer.right = {below.data, below.dtype, 0};
    outer.right_in_workspace = right.down.in_workspace;
    outer.right_s = below.stride_out, outer.right_b = below.stride_in;
    outer.diagonal = Frame::vector(right.diagonal);
    outer.mask = Frame::vector(right.mask);
    result.in = weight_.in;
    return {{}, contract(1, outer, left.operand, factor.in, result, true), {}, {}};
  }

  std::uint64_t reserve(std::int64_t floats) {
    const std::uint64_t at = layout_.workspace_size;
    layout_.workspace_size += (static_cast<std::uint64_t>(floats) * sizeof(float) + kAlignment - 1) / kAlignment *
                              kAlignment;
    return at;
  }

  const ops::WeightBatch &batch_;
  const ops::WeightTarget &target_;
  const Operand &weight_;
  const Frame frame_;
  TermLayout &layout_;
  std::int64_t strips_ = 0, rows_ = 0, columns_ = 0;
};

}  // namespace

void PieceCounter::add(std::int64_t count) {
  require(count <= std::numeric_limits<std::int32_t>::max() - std::int64_t{pieces},
          "a batch of more than 2^31 tiles; split it");
  first.push_back(pieces);
  pieces += static_cast<std::uint32_t>(count);
}

void TermLayoutBuilder::add(const ops::WeightTarget &target) { TargetBuilder(batch_, target, layout_).build(); }

std::string describe(const TermLayout &layout) {
  if (layout.targets.empty()) return {};
  return concat("terms of any kind: ", layout.targets.size(), " weights, ", layout.tiles.pieces, " tiles of ",
                kTermTileRows, " x ", kStripColumns, ", ",
                layout.contractions[0].size() + layout.contractions[1].size(), " small products, ",
                layout.norms.size(), " norms\n");
}

}  // namespace lyc::cuda
