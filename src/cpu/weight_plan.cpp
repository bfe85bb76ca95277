#include "cpu/weight_plan.hpp"

#include <algorithm>
#include <map>
#include <numeric>

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc::cpu {
namespace {

using ops::Operand;
using ops::TermKind;

void check_operand(const Operand &operand, const char *name) {
  require(operand.data != nullptr, name, " is absent");
  require(is_arithmetic(operand.dtype), name, " is ", dtype_name(operand.dtype), ", must be f32, f16 or bf16");
}

bool same_kernel(const Operand &a, const Operand &b) { return std::equal(a.kernel, a.kernel + 3, b.kernel); }

// The extents of the product, which no single operand of it has.
Operand shape_of(const ops::Product &product) {
  Operand shape = product.kernel_holder();
  shape.out = product.out();
  shape.in = product.in();
  return shape;
}

void check_along_rank(const Operand &operand, std::int64_t rank, const char *name) {
  if (!operand.data) return;
  check_operand(operand, name);
  require(operand.out == rank, name, " has ", operand.out, " entries, the rank is ", rank);
}

void check_product(const ops::Product &product) {
  check_operand(product.down, "down factor");
  if (product.whole()) return;
  check_operand(product.up, "up factor");
  check_along_rank(product.diagonal, product.up.in, "diagonal");
  check_along_rank(product.mask, product.up.in, "mask");
  if (product.tucker()) check_operand(product.core, "core");
  const std::int64_t above = product.tucker() ? product.core.out : product.down.out;
  require(product.up.in == above, "up factor has rank ", product.up.in, ", what it multiplies has ", above);
  if (product.tucker())
    require(product.core.in == product.down.out, "core has rank ", product.core.in, ", down factor has ",
            product.down.out);
}

// The same for every kernel position of `weight`.
Operand spread(Operand operand, const Operand &weight) {
  std::copy(weight.kernel, weight.kernel + ops::kMaxKernelDims, operand.kernel);
  std::fill(operand.stride_kernel, operand.stride_kernel + ops::kMaxKernelDims, 0);
  return operand;
}

void check_fit(const ops::Term &term, const Operand &product, const Operand &weight) {
  require(term.row_begin >= 0 && term.row_begin <= product.out - weight.out, "rows ", term.row_begin, " to ",
          term.row_begin + weight.out, " of a delta that has ", product.out);
  require(product.in == weight.in && same_kernel(product, weight),
          "delta and weight differ in input features or kernel: ", product.in, " and ", weight.in);
}

// Rows begin .. begin + rows - 1 of a product.
ops::Product slice(ops::Product product, std::int64_t begin, std::int64_t rows) {
  Operand &holder = product.whole() ? product.down : product.up;
  holder.data = static_cast<char *>(holder.data) +
                begin * holder.stride_out * static_cast<std::int64_t>(dtype_size(holder.dtype));
  holder.out = rows;
  return product;
}

class TargetBuilder {
 public:
  TargetBuilder(const ops::WeightBatch &batch, const ops::WeightTarget &target, const Kernels &kernels,
                bool norms_only = false)
      : batch_(batch), weight_(target.out), frame_(target.out), kernels_(kernels), norms_only_(norms_only) {
    check_operand(target.out, "out");
    plan_.out = frame_.weight(target.out);
    plan_.out_in_columns = frame_.out_in_columns();
    plan_.rows = plan_.out.rows.size();
    plan_.columns = plan_.out.columns.size();
    if (target.base.data) {
      check_operand(target.base, "base");
      require(target.base.out == weight_.out && target.base.in == weight_.in && same_kernel(target.base, weight_),
              "base and out differ in shape");
      plan_.base = frame_.weight(target.base);
    }
    for (std::int32_t i = 0; i < target.adapter_count; ++i) add_adapter(batch.adapters[target.first_adapter + i]);
    place_factors();
    finish_tiles();
    // Addresses of adapters and terms are final from here on.
    for (const AdapterPlan &adapter : plan_.adapters)
      for (const TermPlan &term : adapter.terms) add_steps(adapter, term);
    plan_.packed_size = layout_.size();
    const bool rows_alone = plan_.region_rows == 0 && !frame_.out_in_columns() &&
                            std::none_of(plan_.adapters.begin(), plan_.adapters.end(),
                                         [](const AdapterPlan &adapter) { return adapter.norm_early; });
    if (rows_alone && !plan_.project.empty()) plan_.projected_rows = plan_.project[0].term->projection.rows;
  }

  TargetPlan take() { return std::move(plan_); }

 private:
  void add_adapter(const ops::Adapter &adapter) {
    require(adapter.multiplier_index >= 0 && adapter.multiplier_index < batch_.multiplier_count, "multiplier index ",
            adapter.multiplier_index, " of ", batch_.multiplier_count);
    require(adapter.term_count > 0, "adapter without terms");
    AdapterPlan plan = {};
    plan.multiplier_index = adapter.multiplier_index;
    plan.dora_axis = adapter.dora_axis;
    plan.dora_rule = adapter.dora_rule;
    plan.epsilon = adapter.dora_rule == ops::DoraRule::kPeft ? 0.0 : static_cast<double>(adapter.epsilon);
    plan.magnitude = adapter.magnitude;
    if (!norms_only_) plan.norms = adapter.norms;
    plan.replaces = adapter.replaces != 0;
    if (plan.replaces)
      require(bool(plan_.base) && !plan.dora(), "what replaces the weight needs it, and takes no DoRA");
    for (std::int32_t i = 0; i < adapter.term_count; ++i)
      plan.terms.push_back(term_plan(batch_.terms[adapter.first_term + i]));
    if (plan.dora()) add_norms(plan);
    plan_.adapters.push_back(std::move(plan));
  }

  TermPlan term_plan(const ops::Term &term) {
    TermPlan plan = {};
    plan.kind = term.kind;
    plan.coefficient = term.coefficient;
    plan.scalar = term.scalar;
    if (term.scalar.data) check_operand(term.scalar, "scalar");
    if (ops::reads_base(term.kind)) require(bool(plan_.base), "a term reads the base weight, which is absent");
    switch (term.kind) {
      case TermKind::kProduct:
        plan.p = weight_product(term, term.p, true);
        break;
      case TermKind::kBaseHadamard:
        plan.p = weight_product(term, term.p, true);
        add_line(plan);
        break;
      case TermKind::kHadamard:
        plan.p = weight_product(term, term.p, true);
        plan.q = weight_product(term, term.q, false);
        break;
      case TermKind::kKronecker:
        add_kronecker(term, plan);
        break;
      case TermKind::kSparse:
        add_sparse(term, plan);
        break;
      case TermKind::kBaseProduct:
        add_base_product(term.p, plan);
        break;
      case TermKind::kRotation:
        add_rotation(term, plan);
        break;
    }
    return plan;
  }

  // A product whose rows and columns are the weight's.
  ProductPlan weight_product(const ops::Term &term, const ops::Product &product, bool scaled) {
    check_product(product);
    check_fit(term, shape_of(product), weight_);
    return product_plan(slice(product, term.row_begin, weight_.out), scaled);
  }

  void add_line(TermPlan &plan) {
    const Matrix whole = plan.p.whole;
    plan.by_row = whole && whole.columns.constant();
    plan.by_column = whole && !plan.by_row && whole.rows.constant();
    if (!plan.by_row && !plan.by_column) return;
    plan.p.whole = {};
    Factor &line = plan.by_row ? plan.p.left : plan.p.right;
    line = plan.by_row ? left_factor(whole, plan_.rows, 1) : right_factor(whole, plan_.columns, 1);
    line.scaled = true;
  }

  void add_kronecker(const ops::Term &term, TermPlan &plan) {
    check_product(term.p);
    check_product(term.q);
    const Operand p = shape_of(term.p), q = shape_of(term.q);
    require(p.kernel_size() == 1, "left half of a Kronecker product has a kernel");
    Operand whole = q;
    whole.out = static_cast<std::int64_t>(multiply(p.out, q.out));
    whole.in = static_cast<std::int64_t>(multiply(p.in, q.in));
    check_fit(term, whole, weight_);
    plan.p = product_plan(term.p, true);
    plan.q = product_plan(term.q, false);
    const Split out = {p.out, q.out, term.row_begin}, in = {p.in, q.in * frame_.inside_in(q), 0};
    plan.rows = frame_.out_in_columns() ? in : out;
    plan.columns = frame_.out_in_columns() ? out : in;
    plan.p_stride = round_up(plan.p.columns, kPanel);
    plan.q_stride = round_up(plan.q.columns, kPanel);
    plan.p_at = layout_.take(multiply(round_up(plan.p.rows, kTileRows), plan.p_stride));
    plan.q_at = layout_.take(multiply(round_up(plan.q.rows, kTileRows), plan.q_stride));
  }

  void add_rotation(const ops::Term &term, TermPlan &plan) {
    require(term.rotation >= 0 && term.rotation < batch_.rotation_count, "rotation ", term.rotation, " of ",
            batch_.rotation_count);
    plan.rotation = plan_rotation(batch_.rotations[term.rotation], frame_, weight_, term.row_begin);
    const RotationPlan &rotation = plan.rotation;
    if (rotation.measured()) plan.rotation.squares_at = layout_.take(multiply(rotation.matrices(), 2));
    plan.rotation.packed_at = layout_.take(multiply(rotation.matrices(), rotation.packed_floats()));
  }

  void add_sparse(const ops::Term &term, TermPlan &plan) {
    const ops::Sparse &sparse = term.sparse;
    require(sparse.row_starts.data && sparse.row_starts.dtype == LYC_DTYPE_I64, "row starts must be i64");
    require(sparse.columns.data && sparse.columns.dtype == LYC_DTYPE_I64, "columns must be i64");
    check_operand(sparse.values, "values");
    require(sparse.columns.out == sparse.values.out, "there are ", sparse.columns.out, " columns, ", sparse.values.out,
            " values");
    require(term.row_begin >= 0 && term.row_begin + weight_.out < sparse.row_starts.out, "rows ", term.row_begin,
            " to ", term.row_begin + weight_.out, " of a delta that has ", sparse.row_starts.out - 1);
    plan.sparse = {sparse.row_starts, sparse.columns, sparse.values, frame_.inner_indices(weight_)};
    plan.sparse.row_starts.data =
        static_cast<std::int64_t *>(sparse.row_starts.data) + term.row_begin * sparse.row_starts.stride_out;
  }

  void add_base_product(const ops::Product &product, TermPlan &plan) {
    check_product(product);
    require(!product.tucker() && product.down.kernel_size() == 1, "what multiplies the weight must be a matrix");
    require(product.out() == weight_.in && product.in() == weight_.in, "the weight has ", weight_.in,
            " input features, what multiplies it is ", product.out(), " x ", product.in());
    const bool columns = frame_.out_in_columns();
    const Operand down = spread(product.down, weight_);
    plan.p.rows = plan_.rows;
    plan.p.columns = plan_.columns;
    plan.p.rank = down.out;
    Projection &projection = plan.projection;
    projection.interleaved = !columns && frame_.inside_in(weight_) > 1;
    Factor &factor = columns ? plan.p.left : plan.p.right;
    factor = columns                  ? left_factor(frame_.left(down, down), plan_.rows, down.out)
             : projection.interleaved ? repeating_factor(product.down)
                                      : right_factor(frame_.right(down, down), plan_.columns, down.out);
    factor.scaled = columns;
    factor.diagonal = product.diagonal;
    factor.mask = product.mask;

    projection.in = weight_.in;
    projection.inside = frame_.inside_in(weight_);
    projection.positions = weight_.kernel_size();
    projection.copies = projection.positions;
    if (projection.interleaved) projection.copies = projection.positions / projection.inside * projection.repeated();
    projection.rows = projection.interleaved ? kTileRows : kItemRows;
    projection.made = columns ? right_factor({}, plan_.columns, down.out) : left_factor({}, plan_.rows, down.out);
    if (product.whole()) return;
    projection.up = projecting_factor(product.up);
    if (columns) return;
    const std::int64_t lines = projection.positions * projection.panels();
    const Position sums = multiply(multiply(projection.rows, kTurned), static_cast<Position>(lines));
    const Position values = multiply(kTileRows, projection.stride());
    plan_.projecting_size = std::max(plan_.projecting_size, sums + values);
  }

  // Each input feature once for every outer kernel position: [rank][features], and what a panel reads beyond them.
  Factor repeating_factor(const Operand &down) {
    Matrix source = plain_matrix(down);
    source.columns = {};
    source.columns.add(weight_.kernel_size() / frame_.inside_in(weight_), 0);
    source.columns.add(down.in, down.stride_in);
    const std::int64_t features = source.columns.size();
    return factor(source, features, down.out, round_up(features, kPanel) + kPanel);
  }

  // As what the weight is multiplied by: on the left of its rows, or along them.
  Factor projecting_factor(const Operand &up) {
    if (!frame_.out_in_columns()) return factor(plain_matrix(up), up.in, up.out, kTurned);
    Operand turned = up;
    std::swap(turned.out, turned.in);
    std::swap(turned.stride_out, turned.stride_in);
    return left_factor(plain_matrix(turned), turned.out, turned.in);
  }

  // Exactly one product of a term is `scaled`: takes the term's coefficient.
  ProductPlan product_plan(const ops::Product &product, bool scaled) {
    const Operand shape = shape_of(product);
    const Matrix extents = frame_.weight(shape);
    ProductPlan plan;
    plan.rows = extents.rows.size();
    plan.columns = extents.columns.size();
    if (product.whole()) {
      plan.whole = frame_.weight(product.down);
      return plan;
    }
    plan.rank = product.rank();
    plan.left = left_factor(frame_.left(product.up, product.down), plan.rows, plan.rank);
    plan.left.scaled = scaled;
    plan.right = right_factor(frame_.right(product.up, product.down), plan.columns, plan.rank);
    Factor &up = frame_.out_in_columns() ? plan.right : plan.left;
    up.diagonal = product.diagonal;
    up.mask = product.mask;
    if (product.tucker()) add_contraction(product, shape, scaled, plan);
    return plan;
  }

  // The side of I and K is computed, the other one packed; the coefficient goes where a left factor is packed.
  void add_contraction(const ops::Product &product, const Operand &shape, bool scaled, ProductPlan &plan) {
    (frame_.out_in_columns() ? plan.left : plan.right).source = {};
    plan.left.scaled = false;
    ProductPlan::Contraction &tucker = plan.tucker;
    const std::int64_t positions = product.core.kernel_size();
    tucker.in_step = frame_.inside_in(shape);
    for (std::int64_t k = 0; k < positions; ++k) tucker.kernel_index.push_back(frame_.kernel_index(shape, k));
    tucker.core = left_factor(frame_.core(product.core), positions * product.core.out, product.core.in);
    tucker.core.scaled = scaled;
    tucker.down = right_factor(plain_matrix(product.down), product.down.in, product.core.in);
  }

  static Matrix plain_matrix(const Operand &operand) {
    Matrix matrix = {static_cast<char *>(operand.data), operand.dtype, {}, {}};
    matrix.rows.add(operand.out, operand.stride_out);
    matrix.columns.add(operand.in, operand.stride_in);
    return matrix;
  }

  Factor left_factor(const Matrix &source, std::int64_t rows, std::int64_t rank) {
    return factor(source, rows, rank, kTileRows);
  }
  Factor right_factor(const Matrix &source, std::int64_t columns, std::int64_t rank) {
    return factor(source, columns, rank, kPanel);
  }
  Factor factor(const Matrix &source, std::int64_t lines, std::int64_t rank, std::int64_t block) {
    Factor factor;
    factor.source = source;
    factor.lines = lines;
    factor.rank = rank;
    factor.total = rank;
    factor.block = block;
    return factor;
  }

  // Where what is packed and computed lies: all is known of all adapters.
  void place_factors() {
    for (AdapterPlan &adapter : plan_.adapters) {
      for (TermPlan &term : adapter.terms) join(term, adapter.dora() ? adapter.joined : plan_.joined);
      adapter.multiplies = adapter.dora() && std::all_of(adapter.terms.begin(), adapter.terms.end(),
                                                         [](const TermPlan &term) { return term.joined; });
    }
    plan_.direct = same_rows() && direct();
    plan_.changes_weight = same_rows() && changes_weight();
    plan_.tiled = tiled();
    for (AdapterPlan &adapter : plan_.adapters)
      for (TermPlan &term : adapter.terms) pair_up(term, adapter.dora() ? adapter.joined : plan_.joined);
    place(plan_.joined);
    for (AdapterPlan &adapter : plan_.adapters) {
      place(adapter.joined);
      for (TermPlan &term : adapter.terms) place(term, adapter.dora() ? adapter.joined : plan_.joined);
    }
  }

  static void join(TermPlan &term, Joined &group) {
    const bool projects = term.kind == TermKind::kBaseProduct;
    term.joined = projects ? term.projection.positions == 1
                           : term.kind == TermKind::kProduct && !term.p.whole && !term.p.contracted();
    if (!term.joined) return;
    for (Factor *factor : {&term.p.left, &term.p.right, &term.projection.made}) factor->first = group.rank;
    group.rank += term.p.rank;
  }

  // One product of bf16 factors, or two that are multiplied, onto rows of whole panels.
  bool tiled() const {
    if (!kernels_.merge_tiled || plan_.columns % kPanel != 0 || plan_.adapters.size() != 1) return false;
    const AdapterPlan &adapter = plan_.adapters[0];
    if (adapter.terms.size() != 1 || adapter.replaces ||
        !(plan_.direct || (plan_.changes_weight && adapter.multiplies)))
      return false;
    const TermPlan &term = adapter.terms[0];
    return (term.kind == TermKind::kProduct && of_pairs(term.p)) ||
           (term.kind == TermKind::kHadamard && of_pairs(term.p) && of_pairs(term.q));
  }

  static bool of_pairs(const ProductPlan &product) {
    const auto suits = [](const Factor &factor) {
      return factor.source && factor.source.dtype == LYC_DTYPE_BF16 && !factor.diagonal.data && !factor.mask.data;
    };
    return product.rank > 0 && suits(product.left) && suits(product.right);
  }

  void pair_up(TermPlan &term, Joined &group) const {
    if (plan_.tiled) {
      const std::int64_t pairs = ceil_div(std::max(term.p.rank, term.q.rank), 2);
      const std::int64_t total = pairs > kTiledPairs ? round_up(pairs, kTiledPairs) : pairs;
      for (Factor *factor : {&term.p.left, &term.p.right, &term.q.left, &term.q.right}) {
        factor->pairs = factor->lines > 0;
        factor->total = total;
      }
      if (!term.joined) return;
      group.rank = total;
    } else {
      if (!kernels_.pair_product || kernels_.merge_tiled || !term.joined || term.kind != TermKind::kProduct ||
          term.p.rank < group.rank || !of_pairs(term.p))
        return;
      term.p.left.pairs = term.p.right.pairs = true;
      group.rank = ceil_div(group.rank, 2);
    }
    group.pairs = true;
  }

  void place(Joined &group) {
    if (group.rank == 0) return;
    group.left_at = layout_.take(multiply(round_up(plan_.rows, kTileRows), group.rank));
    group.right_at = layout_.take(multiply(round_up(plan_.columns, kPanel), group.rank));
    if (group.pairs) group.scale_at = layout_.take(1);
  }

  void place(TermPlan &term, const Joined &group) {
    Projection &projection = term.projection;
    // By row tiles the positions lie inside each, by columns one after the other.
    projection.step = frame_.out_in_columns()
                          ? size_of(projection.made)
                          : static_cast<Position>(projection.made.rank * kTileRows *
                                                  (projection.interleaved ? projection.repeated() : 1));
    for (Factor *factor : {&term.p.left, &term.p.right, &projection.made}) {
      if (factor->lines == 0) continue;
      if (term.joined) {
        factor->total = group.rank;
        factor->at = (factor->block == kTileRows ? group.left_at : group.right_at) +
                     static_cast<Position>(factor->first * factor->block);
      } else {
        const std::int64_t copies = factor == &projection.made ? projection.copies : 1;
        factor->at = layout_.take(multiply(size_of(*factor), static_cast<Position>(copies)));
      }
    }
    for (Factor *factor : {&term.q.left, &term.q.right, &term.p.tucker.core, &term.p.tucker.down, &term.q.tucker.core,
                           &term.q.tucker.down, &projection.up})
      factor->at = layout_.take(size_of(*factor));
  }

  static Position size_of(const Factor &factor) {
    return factor.lines == 0 ? 0 : multiply(round_up(factor.lines, factor.block), factor.total);
  }

  void add_norms(AdapterPlan &plan) {
    check_operand(plan.magnitude, "magnitude");
    require(bool(plan_.base), "DoRA needs the base weight");
    const bool out = plan.dora_axis == ops::DoraAxis::kOut;
    plan.norm_per_row = out != frame_.out_in_columns();
    plan.magnitudes = out ? weight_.out : weight_.in;
    plan.inside = out ? 1 : frame_.inside_in(weight_);
    const std::int64_t given = out ? plan.magnitude.out : plan.magnitude.in;
    require(given == plan.magnitudes, "magnitude has ", given, " entries, must have ", plan.magnitudes);
    const bool prepared = plan.norms.data;
    require(!prepared || (plan.norms.out == plan.magnitude.out && plan.norms.in == plan.magnitude.in),
            "there are not as many norms as magnitudes");
    const std::int64_t lines = plan.norm_per_row ? plan_.rows : plan_.columns;
    plan.norm_early = !plan.norm_per_row || lines != plan.magnitudes || prepared || norms_only_;
    if (!plan.norm_early) return;
    const std::int64_t parts = plan.norm_per_row ? ceil_div(plan_.columns, kPanel) : ceil_div(plan_.rows, kNormRows);
    if (!prepared) plan.partial_at = layout_.take(multiply(multiply(parts, lines), 1));
    plan.weight_factor_at = layout_.take(static_cast<Position>(lines));
    plan.delta_factor_at = layout_.take(static_cast<Position>(lines));
  }

  void finish_tiles() {
    const std::int64_t columns = round_up(plan_.columns, kPanel);
    plan_.tile_columns = std::min(columns, plan_.tiled ? kTiledColumns : kTileColumns);
    for (const AdapterPlan &adapter : plan_.adapters)  // a row's norm comes before its store
      if (adapter.dora() && !adapter.norm_early) plan_.tile_columns = columns;
    plan_.panels_held = panels_held();
    plan_.streams = plan_.out.contiguous() && plan_.rows * plan_.columns >= kSmallTarget;
    widen_steps();
    finish_scratch();
    finish_regions();
  }

  std::int64_t panels_held() const {
    if (!kernels_.holds_panels || plan_.tiled || !plan_.changes_weight) return 0;
    const AdapterPlan &adapter = plan_.adapters[0];
    if (norms_only_ || adapter.norms.data) return 0;
    if (!adapter.multiplies || !adapter.dora() || adapter.norm_per_row || plan_.columns % kPanel != 0 ||
        plan_.columns != adapter.magnitudes * adapter.inside || adapter.inside > kPanel || plan_.rows > kHeldRows)
      return 0;
    return kPanel % adapter.inside == 0 ? 1 : 2;  // a norm may go on in the next one
  }

  // All that is inside meets all places in a panel.
  void widen_steps() {
    for (const AdapterPlan &adapter : plan_.adapters)
      for (const TermPlan &term : adapter.terms)
        if (term.projection.interleaved) {
          widest_step_ = std::lcm(kPanel, term.projection.inside);
          plan_.tile_columns = std::max(plan_.tile_columns, std::min(widest_step_, round_up(plan_.columns, kPanel)));
        }
  }

  void finish_scratch() {
    plan_.step_columns = std::min(plan_.tile_columns, widest_step_);
    while (plan_.tile_columns < plan_.columns && plan_.tile_columns % plan_.step_columns) plan_.step_columns -= kPanel;
    // Three tiles (sum, delta, Hadamard's first half), two rows, a panel of the weight, and projections.
    plan_.scratch_size = aligned(multiply(3 * kTileRows + 2, plan_.tile_stride()) + multiply(kProjectRows, kPanel) +
                                 plan_.projecting_size);
    if (!plan_.panels_held) return;
    plan_.held_at = plan_.scratch_size;
    plan_.scratch_size += multiply(plan_.panels_held * plan_.rows, kPanel);
  }

  template <typename Visit>
  void for_rotations(Visit visit) const {
    for (const AdapterPlan &adapter : plan_.adapters)
      for (const TermPlan &term : adapter.terms)
        if (term.rotation) visit(adapter, term);
  }

  // Rows and columns that turn together are computed together; other terms want whole tiles of them.
  void finish_regions() {
    plan_.turns_weight = whole_rows() && turns_weight();
    std::int64_t rows = plan_.turns_weight ? 1 : kTileRows, columns = kPanel;
    std::int64_t at_least = plan_.turns_weight ? kItemRows : kRegionRows;
    Position matrices = 0;
    for_rotations([&](const AdapterPlan &adapter, const TermPlan &term) {
      require(!adapter.dora() && !adapter.replaces,
              "DoRA does not go on top of a rotation, nor replaces it the weight");
      const bool along_rows = term.rotation.along_rows;
      if (along_rows) at_least = term.rotation.by_rows() ? kRegionRows : kPanel;  // or rows become lanes of a panel
      std::int64_t &lines = along_rows ? columns : rows;
      lines = common_lines(term.rotation, lines, along_rows ? round_up(plan_.columns, kPanel) : plan_.rows);
      matrices = std::max(matrices, matrix_scratch(term.rotation.rotation));
    });
    if (matrices == 0) return;
    plan_.region_rows = std::min(plan_.rows, rows * std::max<std::int64_t>(1, at_least / rows));
    const std::int64_t most = plan_.turns_weight ? kItemColumns : kTileColumns;
    const std::int64_t more_columns = std::min(most, kRegionSize / plan_.region_rows) / columns;
    if (plan_.tile_columns <= kTileColumns)  // otherwise they are whole rows
      plan_.tile_columns = std::min(round_up(plan_.columns, kPanel), columns * std::max<std::int64_t>(1, more_columns));
    finish_scratch();
    plan_.region_at = plan_.scratch_size;
    Position turning = 0;
    for_rotations([&](const AdapterPlan &, const TermPlan &term) {
      turning = std::max(turning, region_scratch(term.rotation, plan_.region_rows, plan_.tile_columns));
    });
    plan_.scratch_size = std::max(plan_.region_at + 2 * plan_.region_size() + turning, matrices);
    plan_.scratch_size = aligned(plan_.scratch_size);
  }

  // One rotation and nothing else, of all its lines.
  bool turns_weight() const {
    const std::vector<AdapterPlan> &adapters = plan_.adapters;
    if (adapters.size() != 1 || adapters[0].terms.size() != 1 || !adapters[0].terms[0].rotation) return false;
    const TermPlan &term = adapters[0].terms[0];
    const RotationPlan &plan = term.rotation;
    return term.coefficient == 1.0 && !term.scalar.data && !plan.rotation.rescale.data &&
           plan.rotation.extent() == (plan.along_rows ? plan_.columns : plan_.rows) &&
           (plan.by_rows() || (!plan.along_rows && plan.lines.empty()));
  }

  // Rows of base and out lie in one piece each, and of one type.
  bool whole_rows() const { return plan_.out.in_rows() && (!plan_.base || plan_.base.in_rows()); }
  bool same_rows() const { return whole_rows() && (!plan_.base || plan_.base.dtype == plan_.out.dtype); }

  // One product of one adapter, or all of them joined.
  bool direct() const {
    const std::vector<AdapterPlan> &adapters = plan_.adapters;
    const auto joined = [](const TermPlan &term) { return term.joined; };
    if (std::any_of(adapters.begin(), adapters.end(), [](const AdapterPlan &adapter) { return adapter.dora(); }))
      return false;
    if (plan_.joined.rank > 0)
      return std::all_of(adapters.begin(), adapters.end(), [&](const AdapterPlan &adapter) {
        return std::all_of(adapter.terms.begin(), adapter.terms.end(), joined);
      });
    if (adapters.size() != 1 || adapters[0].terms.size() != 1) return false;
    const TermPlan &term = adapters[0].terms[0];
    return term.kind == TermKind::kKronecker || (term.kind == TermKind::kHadamard && !term.q.whole) ||
           (term.kind == TermKind::kProduct && !term.p.whole);
  }

  bool changes_weight() const {
    if (plan_.adapters.size() != 1 || plan_.adapters[0].replaces) return false;
    const AdapterPlan &adapter = plan_.adapters[0];
    if (adapter.dora()) return true;
    return adapter.terms.size() == 1 && (adapter.terms[0].by_row || adapter.terms[0].by_column);
  }

  void add_steps(const AdapterPlan &adapter, const TermPlan &term) {
    for (const ProductPlan *product : {&term.p, &term.q}) {
      const Step step = {&adapter, &term, product, nullptr, 0};
      add_packing(step, product->left, product->right);
      add_packing(step, product->tucker.core, product->tucker.down);
      if (product->contracted()) add(plan_.contract, step, product->tucker.core.lines, kTileRows);
      if (term.kind == TermKind::kKronecker) add(plan_.materialise, step, product->rows, kTileRows);
    }
    if (term.kind == TermKind::kBaseProduct) add_projection({&adapter, &term, &term.p, nullptr, 0});
    if (!term.rotation) return;
    const Step step = {&adapter, &term, nullptr, nullptr, 0};
    if (term.rotation.measured()) add(plan_.measure, step, term.rotation.matrices(), kMatrices);
    add(plan_.derive, step, term.rotation.matrices(), kMatrices);
  }

  void add_packing(Step step, const Factor &left, const Factor &right) {
    step.factor = &left;
    if (left.source) add(plan_.pack_left, step, left.lines, kPackRows);
    step.factor = &right;
    if (right.source) add(plan_.pack_right, step, right.lines, kPackColumns);
  }

  void add_projection(const Step &step) {
    const Factor none, &up = step.term->projection.up;
    if (!frame_.out_in_columns()) {
      add_packing(step, none, up);
      return add(plan_.project, step, plan_.rows, step.term->projection.rows);
    }
    add_packing(step, up, none);
    add(plan_.project, step, step.term->projection.positions * round_up(plan_.columns, kPanel), kPanel);
  }

  static void add(std::vector<Step> &steps, Step step, std::int64_t count, std::int64_t by) {
    for (step.begin = 0; step.begin < count; step.begin += by) steps.push_back(step);
  }

  const ops::WeightBatch &batch_;
  const Operand weight_;
  const Frame frame_;
  const Kernels &kernels_;
  const bool norms_only_;
  std::int64_t widest_step_ = kTileColumns;
  Layout layout_;
  TargetPlan plan_;
};

bool small(const TargetPlan &target) { return target.rows * target.columns < kSmallTarget; }

bool invertible(const AdapterPlan &adapter) {
  return !adapter.dora() && !adapter.replaces &&
         std::none_of(adapter.terms.begin(), adapter.terms.end(),
                      [](const TermPlan &term) { return ops::reads_base(term.kind); });
}

// Small targets go first, and side by side if there are enough of them to keep the threads busy.
void arrange(ops::WeightPlan &plan) {
  const auto middle = std::stable_partition(plan.targets.begin(), plan.targets.end(), small);
  const int threads = plan.context.pool.threads();
  plan.small_count = static_cast<std::size_t>(middle - plan.targets.begin());
  if (threads == 1 || plan.small_count < 2 * static_cast<std::size_t>(threads)) plan.small_count = 0;
  const Position workers = static_cast<Position>(threads);
  for (std::size_t i = 0; i < plan.targets.size(); ++i) {
    const TargetPlan &target = plan.targets[i];
    const Position packed = target.packed_size + kAlignment;  // which begins where it suits the target's output
    if (i < plan.small_count)
      plan.small_floats = std::max(plan.small_floats, packed + target.scratch_size);
    else
      plan.workspace_floats = std::max(plan.workspace_floats, packed + multiply(workers, target.scratch_size));
  }
  plan.workspace_floats = std::max(plan.workspace_floats, multiply(workers, plan.small_floats));
}

const char *kind_name(TermKind kind) {
  switch (kind) {
    case TermKind::kProduct:
      return "product";
    case TermKind::kHadamard:
      return "hadamard";
    case TermKind::kKronecker:
      return "kronecker";
    case TermKind::kSparse:
      return "sparse";
    case TermKind::kBaseHadamard:
      return "base hadamard";
    case TermKind::kBaseProduct:
      return "base product";
    case TermKind::kRotation:
      break;
  }
  return "rotation";
}

std::string describe(const ProductPlan &product) {
  if (product.whole) return "whole";
  return concat(product.contracted() ? "tucker " : "rank ", product.rank);
}

std::string describe(const RotationPlan &plan) {
  return concat("rotation of ", plan.along_rows ? "columns" : "rows", " by ", plan.rotation.blocks, " blocks of ",
                plan.rotation.block_size, ", stages ", plan.rotation.stages);
}

std::string describe(const TermPlan &term) {
  if (term.rotation) return describe(term.rotation);
  if (term.kind == TermKind::kSparse) return concat(kind_name(term.kind), " ", term.sparse.values.out);
  std::string text = concat(kind_name(term.kind), " ", describe(term.p));
  const bool two = term.kind == TermKind::kHadamard || term.kind == TermKind::kKronecker;
  return two ? concat(text, " and ", describe(term.q)) : text;
}

std::string describe(const TargetPlan &target) {
  std::string text = concat(target.rows, " x ", target.columns, target.out_in_columns ? " (in x out) " : " (out x in) ",
                            dtype_name(target.out.dtype), target.out.contiguous() ? "" : " scattered", ", tiles ",
                            target.tiled ? kTiledRows : kTileRows, " x ", target.tile_columns,
                            target.tiled ? " by tile registers:" : ":");
  for (const AdapterPlan &adapter : target.adapters) {
    if (adapter.dora())
      text += adapter.norms.data   ? " dora (norms prepared)"
              : target.panels_held ? " dora (norms by panel)"
              : adapter.norm_early ? " dora (norms first)"
                                   : " dora (norms by row)";
    if (adapter.replaces) text += " replaced by";
    for (const TermPlan &term : adapter.terms) text += concat(" ", describe(term));
  }
  return text;
}

}  // namespace

DoraCoefficients dora_coefficients(ops::DoraRule rule, double m) {
  switch (rule) {
    case ops::DoraRule::kInterpolate:
      return {1.0, 0.0, m, m};
    case ops::DoraRule::kLycoris:
      return {1.0, 1.0 - m, m, 1.0};
    case ops::DoraRule::kPeft:
      return {m, 0.0, 1.0, 1.0};
  }
  fail(LYC_ERROR_INTERNAL, "unknown DoRA rule");
}

ChangeFactors change_factors(const DoraCoefficients &rule, double kept, double magnitude, double norm) {
  const double blend = rule.b * magnitude / norm;
  return {static_cast<float>(kept + rule.a - rule.c + blend), static_cast<float>(rule.a + blend)};
}

std::unique_ptr<ops::WeightPlan> prepare(ops::BackendContext &context, const ops::WeightBatch &batch) {
  auto plan = std::make_unique<ops::WeightPlan>(context);
  plan->multiplier_count = batch.multiplier_count;
  plan->targets.reserve(static_cast<std::size_t>(batch.target_count));
  for (std::int64_t i = 0; i < batch.target_count; ++i) {
    if (batch.targets[i].out.numel() == 0) continue;
    plan->targets.push_back(TargetBuilder(batch, batch.targets[i], context.kernels).take());
    for (const AdapterPlan &adapter : plan->targets.back().adapters) plan->invertible &= invertible(adapter);
  }
  arrange(*plan);
  return plan;
}

std::unique_ptr<ops::WeightPlan> prepare_norms(ops::BackendContext &context, const ops::WeightBatch &batch) {
  require(batch.target_count == 1 && batch.targets[0].adapter_count == 1 &&
              batch.adapters[batch.targets[0].first_adapter].dora_axis != ops::DoraAxis::kNone,
          "norms are those of one adapter with DoRA on one weight");
  ops::WeightTarget target = batch.targets[0];
  require(target.base.data, "base is absent");
  target.out = target.base;
  auto plan = std::make_unique<ops::WeightPlan>(context);
  plan->multiplier_count = batch.multiplier_count;
  plan->targets.push_back(TargetBuilder(batch, target, context.kernels, true).take());
  arrange(*plan);
  return plan;
}

std::string explain(const ops::WeightPlan &plan) {
  std::map<std::string, std::int64_t> groups;
  for (const TargetPlan &target : plan.targets) ++groups[describe(target)];
  std::string text = concat("cpu ", plan.context.kernels.name, ", threads ", plan.context.pool.threads(), ", weights ",
                            plan.targets.size(), " (", plan.small_count, " of them one to a thread), workspace ",
                            plan.workspace_floats * sizeof(float), " bytes\n");
  for (const auto &[group, count] : groups) text += concat(count, " x ", group, "\n");
  return text;
}

}  // namespace lyc::cpu
