#include "cpu/forward_plan.hpp"

#include <algorithm>

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc::cpu {
namespace {

using ops::Activation;
using ops::LayerKind;
using ops::Operand;
using ops::TermKind;

constexpr double kPricePerByte = 2.0;  // in multiplications: what a core does while it moves a byte
constexpr double kPriceOfPart = 0.2;   // of a product of parts, of a pair each

Operand scratch_matrix(std::int64_t rows, std::int64_t columns) {
  static char nowhere;  // the address comes at the run
  Operand operand;
  operand.data = &nowhere;
  operand.dtype = LYC_DTYPE_F32;
  operand.out = rows;
  operand.in = columns;
  operand.stride_out = columns;
  operand.stride_in = 1;
  return operand;
}

/// A float32 copy of an operand's extents, dense; kernel axes outside the inputs or inside.
Operand scratch_like(const Operand &like, bool taps_outside) {
  Operand operand = scratch_matrix(like.out, like.in);
  operand.kernel_dims = like.kernel_dims;
  std::int64_t step = taps_outside ? like.in : 1;
  for (int d = ops::kMaxKernelDims - 1; d >= 0; --d) {
    operand.kernel[d] = like.kernel[d];
    operand.stride_kernel[d] = step;
    step *= like.kernel[d];
  }
  operand.stride_in = taps_outside ? 1 : step;
  operand.stride_out = like.in * like.kernel_size();
  return operand;
}

/// Channels as outputs of a weight, positions as its inputs; in the workspace where there is no data.
Operand as_weight(const Activation &tensor) {
  Operand operand = scratch_matrix(tensor.channels, tensor.batch);
  if (tensor.data) operand.data = tensor.data;
  operand.dtype = tensor.dtype;
  operand.stride_out = tensor.stride_channel;
  operand.stride_in = tensor.stride_batch;
  operand.kernel_dims = ops::kMaxKernelDims;
  std::copy(tensor.space, tensor.space + ops::kMaxKernelDims, operand.kernel);
  std::copy(tensor.stride_space, tensor.stride_space + ops::kMaxKernelDims, operand.stride_kernel);
  return operand;
}

Matrix as_matrix(const Operand &operand, bool taps_outside) {
  Matrix matrix = {static_cast<char *>(operand.data), operand.dtype, {}, {}};
  matrix.rows.add(operand.out, operand.stride_out);
  if (!taps_outside) matrix.columns.add(operand.in, operand.stride_in);
  for (int d = 0; d < ops::kMaxKernelDims; ++d) matrix.columns.add(operand.kernel[d], operand.stride_kernel[d]);
  if (taps_outside) matrix.columns.add(operand.in, operand.stride_in);
  return matrix;
}

bool absent(const Operand &operand) { return operand.data == nullptr; }

/// Multiplications to make one element of a term.
double depth_of(const ops::Product &product) {
  return product.whole() ? 1.0 : static_cast<double>(product.rank()) + (product.tucker() ? 1.0 : 0.0);
}

double depth_of(const ops::Term &term, const ops::WeightBatch &batch) {
  switch (term.kind) {
    case TermKind::kHadamard:
      return depth_of(term.p) + depth_of(term.q);
    case TermKind::kKronecker:
    case TermKind::kSparse:
      return 1.0;
    case TermKind::kRotation: {
      const ops::Rotation &rotation = batch.rotations[term.rotation];
      return static_cast<double>(rotation.stages * rotation.block_size);
    }
    default:
      return depth_of(term.p);
  }
}

/// Builds one recipe; `refuse` where the path does not exist.
class Builder {
 public:
  Builder(ops::BackendContext &context, const ops::Forward &forward)
      : context_(context), f_(forward), weight_(forward.weights.targets[0].out) {
    x_.tensor = f_.x;
    y_.tensor = f_.y;
  }

  Recipe rebuilt() {
    add_bias();
    switch (f_.layer.kind) {
      case LayerKind::kConv:
        add_whole_weight();
        break;
      case LayerKind::kEmbedding:
        add_rows_of_table();
        break;
      default:
        recipe_.weight_at = rebuild_weight(0, scratch_like(weight_, false));
        recipe_.price += 8.0 * static_cast<double>(f_.x.positions() * f_.x.channels);
    }
    return finish();
  }

  Recipe factored() {
    add_bias();
    const bool embedding = f_.layer.kind == LayerKind::kEmbedding;
    if (f_.layer.kind != LayerKind::kConv && !embedding) refuse("a norm has no factored form");
    const ops::WeightTarget &target = f_.weights.targets[0];
    if (target.adapter_count != 1) refuse("it is for one adapter");
    const ops::Adapter &adapter = f_.weights.adapters[target.first_adapter];
    const bool dora = adapter.dora_axis != ops::DoraAxis::kNone;
    if (dora && embedding) refuse("DoRA scales rows or columns of the table");
    if (adapter.replaces) refuse("the adapter is a whole weight");
    Sum last = last_sum();
    Source base = source(x_, weight_, target.base, true);
    if (adapter.dora_axis == ops::DoraAxis::kIn) scale_inputs(base);
    if (f_.whole && embedding) add_table(last, as_matrix(target.base, false));
    for (std::int32_t i = 0; i < adapter.term_count; ++i)
      embedding ? add_embedding_term(adapter.first_term + i, last) : add_term(adapter.first_term + i, last, base);
    if (adapter.dora_axis == ops::DoraAxis::kOut) scale_outputs(last, base);
    if (!embedding && !turned_ && (f_.whole || base_used_)) last.sources.insert(last.sources.begin(), base);
    add_sum(std::move(last));
    return finish();
  }

 private:
  [[noreturn]] static void refuse(const char *why) { fail(LYC_ERROR_UNSUPPORTED, "no factored form: ", why); }

  Recipe finish() {
    recipe_.size = layout_.size();
    return std::move(recipe_);
  }

  // -- Rebuilt -------------------------------------------------------------------------------------------------

  Position rebuild(const ops::WeightBatch &batch, ops::WeightTarget target, const Operand &out, ops::WeightOp op,
                   bool plain) {
    target.out = out;
    if (op == ops::WeightOp::kDiff && !needs_base(batch, target)) target.base = {};
    ops::WeightBatch one = batch;
    one.targets = &target;
    one.target_count = 1;
    Rebuild item;
    item.plan = prepare(context_, one);
    item.op = op;
    item.plain = plain;
    recipe_.price += price_of_pass(batch, target, 2.0, static_cast<double>(dtype_size(LYC_DTYPE_F32)));
    return add_rebuild(std::move(item), out.numel());
  }

  Position add_rebuild(Rebuild item, std::int64_t size) {
    item.to = layout_.take(static_cast<Position>(size));
    recipe_.scratch = std::max(recipe_.scratch, item.plan->workspace_floats);
    recipe_.rebuilds.push_back(std::move(item));
    return recipe_.rebuilds.back().to;
  }

  /// Through a weight, of which so many bytes are written. DoRA may compute its delta more often.
  static double price_of_pass(const ops::WeightBatch &batch, const ops::WeightTarget &target, double doras,
                              double written) {
    double depth = 0.0;
    for (std::int32_t a = 0; a < target.adapter_count; ++a) {
      const ops::Adapter &adapter = batch.adapters[target.first_adapter + a];
      const double times = adapter.dora_axis == ops::DoraAxis::kNone ? 1.0 : doras;
      for (std::int32_t t = 0; t < adapter.term_count; ++t)
        depth += times * depth_of(batch.terms[adapter.first_term + t], batch);
    }
    const double bytes = written + (absent(target.base) ? 0.0 : static_cast<double>(dtype_size(target.base.dtype)));
    return static_cast<double>(target.out.numel()) * (depth + kPricePerByte * bytes);
  }

  static bool needs_base(const ops::WeightBatch &batch, const ops::WeightTarget &target) {
    for (std::int32_t a = 0; a < target.adapter_count; ++a) {
      const ops::Adapter &adapter = batch.adapters[target.first_adapter + a];
      if (adapter.dora_axis != ops::DoraAxis::kNone || adapter.replaces) return true;
      for (std::int32_t t = 0; t < adapter.term_count; ++t)
        if (reads_base(batch.terms[adapter.first_term + t].kind)) return true;
    }
    return false;
  }

  Position rebuild_weight(std::int64_t target, const Operand &out) {
    return rebuild(f_.weights, f_.weights.targets[target], out,
                   f_.whole && !absent(f_.weights.targets[target].base) ? ops::WeightOp::kMerge : ops::WeightOp::kDiff,
                   false);
  }

  /// A product alone, as a matrix.
  Position rebuild_product(const ops::Product &product, const Operand &out) {
    ops::Term term;
    term.p = product;
    ops::Adapter adapter;
    adapter.term_count = 1;
    ops::WeightBatch batch;
    batch.terms = &term;
    batch.adapters = &adapter;
    batch.term_count = batch.adapter_count = batch.multiplier_count = 1;
    ops::WeightTarget target;
    target.adapter_count = 1;
    return rebuild(batch, target, out, ops::WeightOp::kDiff, true);
  }

  void add_bias() {
    if (f_.weights.target_count < 2) return;
    const ops::WeightTarget &target = f_.weights.targets[1];
    if (target.adapter_count) {
      recipe_.bias_at = rebuild_weight(1, scratch_like(target.out, false));
    } else {
      recipe_.bias = as_matrix(target.base, false);
      recipe_.bias_at = layout_.take(static_cast<Position>(target.out.out));
    }
  }

  void add_whole_weight() {
    Sum last = last_sum();
    const bool base_only = f_.whole && f_.weights.targets[0].adapter_count == 0;
    if (f_.weights.targets[0].adapter_count || base_only) {
      Source weight = source(x_, weight_, base_only ? f_.weights.targets[0].base : Operand(), true);
      if (!base_only) {
        const Operand out = scratch_like(weight_, weight.taps_outside);
        weight.weight = as_matrix(out, weight.taps_outside);
        weight.weight.data = nullptr;
        weight.weight_at = rebuild_weight(0, out);
      }
      last.sources.push_back(weight);
    }
    add_sum(std::move(last));
  }

  void add_rows_of_table() {
    Sum last = last_sum();
    const ops::WeightTarget &target = f_.weights.targets[0];
    if (target.adapter_count) {
      const Operand out = scratch_like(weight_, false);
      Matrix table = as_matrix(out, false);
      table.data = nullptr;
      add_table(last, table);
      recipe_.gathers.back().table_at = rebuild_weight(0, out);
    } else if (f_.whole) {
      add_table(last, as_matrix(target.base, false));
    }
    add_sum(std::move(last));
  }

  // Rows of a table, gathered, go into the sum.
  void add_table(Sum &sum, const Matrix &table) {
    sum.has_addend = true;
    sum.addend = scratch_view(f_.y, table.columns.size(), table.columns.size());
    recipe_.gathers.push_back({table, 0, sum.addend, false});
  }

  // -- Factored ------------------------------------------------------------------------------------------------

  void add_term(std::int32_t index, Sum &last, Source &base) {
    const ops::Term &term = f_.weights.terms[index];
    if (term.row_begin != 0) refuse("the adapter is a part of another");
    switch (term.kind) {
      case TermKind::kProduct:
        return term.p.whole() ? add_whole(index, last) : add_low_rank(index, last);
      case TermKind::kKronecker:
        return add_kronecker(index, last);
      case TermKind::kBaseHadamard:
        return scale_base(index, base);
      case TermKind::kBaseProduct:
        return turn_input(index, base);
      case TermKind::kHadamard:
        return add_hadamard(index, last);
      case TermKind::kSparse:
        refuse("single elements are added to the weight");
      case TermKind::kRotation:
        return f_.weights.rotations[term.rotation].axis == ops::Rotation::Axis::kOut ? turn_outputs(last, base)
                                                                                     : turn_inputs(index, base);
    }
  }

  // D x, with the weight where it is.
  void add_whole(std::int32_t index, Sum &last) {
    const Operand &whole = f_.weights.terms[index].p.down;
    if (inputs_.kind != Scaling::Kind::kPlain) refuse("DoRA scales inputs of factors");
    last.sources.push_back(scaled(source(x_, weight_, whole, true), index));
  }

  // up (l * (down x)); with a core, up (l * (core (down x))), the core having the window.
  void add_low_rank(std::int32_t index, Sum &last) {
    const ops::Product &p = f_.weights.terms[index].p;
    // PEFT's grouped convolutions: the first factor sees all groups, its outputs are dealt to them.
    const bool dealt = p.down.in != weight_.in;
    if (dealt && inputs_.kind != Scaling::Kind::kPlain) refuse("DoRA scales inputs that the groups share");
    const std::int64_t groups = dealt ? 1 : f_.layer.groups;
    if (dealt && (p.tucker() || p.down.in != f_.x.channels || p.down.out != p.up.in * f_.layer.groups))
      refuse("the factors see other inputs than the weight");
    const Operand &holder = p.kernel_holder();
    View hidden = x_;
    if (p.tucker()) hidden = product(of_inputs(source(x_, p.down, p.down, false)), f_.x, groups, p.down.out);
    const Source windows = source(hidden, holder, holder, true);
    hidden = product(p.tucker() ? windows : of_inputs(windows), f_.y, groups, holder.out);
    hidden.stride_group = hidden.tensor.stride_channel * p.up.in;
    Source out = scaled(source(hidden, p.up, p.up, false), index);
    out.scaling.vector = p.diagonal;
    out.scaling.mask = p.mask;
    last.sources.push_back(out);
  }

  // (a b o c d) x: columns of a and c, each with each, and rows of b and d are the factors of one product (Khatri-Rao).
  void add_hadamard(std::int32_t index, Sum &last) {
    const ops::Product &p = f_.weights.terms[index].p, &q = f_.weights.terms[index].q;
    for (const ops::Product *half : {&p, &q})
      if (half->whole() || half->tucker() || !absent(half->diagonal) || !absent(half->mask))
        refuse("only a Hadamard product of two low-rank products splits");
    const std::int64_t rank = p.rank() * q.rank();
    Operand shape = p.down;
    shape.out = rank;
    const bool outside = taps_outside(x_, shape);
    Source down = source(x_, shape, scratch_like(shape, outside), true);
    down.weight.data = nullptr;
    down.weight_at = expand({as_matrix(p.down, outside), as_matrix(q.down, outside)}, rank * down.depth());
    const View hidden = product(of_inputs(down), f_.y, f_.layer.groups, rank);

    const Operand up = scratch_matrix(weight_.out, rank);
    Source out = scaled(source(hidden, up, up, false), index);
    out.weight.data = nullptr;
    out.weight_at = expand({as_matrix(p.up, false), as_matrix(q.up, false), true}, weight_.out * rank);
    last.sources.push_back(out);
  }

  Position expand(Expansion expansion, std::int64_t size) {
    expansion.to = layout_.take(static_cast<Position>(size));
    recipe_.price += static_cast<double>(size) * (1.0 + kPricePerByte * static_cast<double>(sizeof(float)));
    recipe_.expansions.push_back(expansion);
    return expansion.to;
  }

  // h[i1] = Q x[i1], as so many groups; y[o1, o2] = sum_i1 P[o1, i1] h[i1, o2], o2 a part of the position.
  void add_kronecker(std::int32_t index, Sum &last) {
    if (f_.layer.groups != 1) refuse("the groups of a convolution cut a Kronecker product");
    if (inputs_.kind != Scaling::Kind::kPlain) refuse("inputs of a Kronecker product's halves are not the layer's");
    if (last.has_addend) refuse("several Kronecker products");
    const ops::Term &term = f_.weights.terms[index];
    const std::int64_t p_in = term.p.in(), p_out = term.p.out(), q_out = term.q.out();
    Sum first = between(f_.y, p_in, q_out);
    View parts = x_;
    parts.stride_group = term.q.in() * parts.tensor.stride_channel;
    Source inner = half(parts, term.q, true);
    inner.shared = inner.adapter = true;
    first.sources.push_back(inner);
    first.adapter = true;
    const View hidden = by_place(first.to, q_out);
    add_sum(std::move(first));

    Sum second;
    second.outputs = p_out;
    const View all = scratch_view(f_.y, p_out * q_out, q_out);
    second.to = by_place(all, q_out);
    second.sources.push_back(scaled(half(hidden, term.p, false), index));
    second.adapter = true;
    add_sum(std::move(second));
    last.has_addend = last.addend_is_adapters = true;
    last.addend = all;
  }

  // One of its factors: where it is if it is whole, otherwise rebuilt.
  Source half(const View &x, const ops::Product &product, bool window) {
    const Operand shape = extents(product);
    if (product.whole()) return source(x, shape, product.down, window);
    const Operand out = scratch_like(shape, taps_outside(x, shape));
    Source result = source(x, shape, out, window);
    result.weight.data = nullptr;
    result.weight_at = rebuild_product(product, out);
    return result;
  }

  // What is between, its channels a * parts + b as channels a at positions that have b, too.
  static View by_place(View view, std::int64_t parts) {
    Activation &t = view.tensor;
    const std::int64_t positions = t.positions(), step = t.stride_channel;
    const bool by_channel = step >= positions;
    t.batch = by_channel ? parts : positions;
    t.stride_batch = by_channel ? step : t.channels;
    t.space[0] = by_channel ? positions : parts;
    t.stride_space[0] = 1;
    for (int d = 1; d < ops::kMaxKernelDims; ++d) t.space[d] = 1;
    t.channels /= parts;
    t.stride_channel = parts * step;
    view.stride_group = 0;
    return view;
  }

  // (v o W) x, v by row or by column: where the base is read, it is multiplied.
  void scale_base(std::int32_t index, Source &base) {
    const Operand &v = f_.weights.terms[index].p.down;
    const bool flat = v.stride_kernel[0] == 0 && v.stride_kernel[1] == 0 && v.stride_kernel[2] == 0;
    const bool rows = v.stride_in == 0, columns = v.stride_out == 0;
    if (!f_.weights.terms[index].p.whole() || !flat || !(rows || columns)) refuse("a Hadamard product does not split");
    use_base(base);
    base.scaling.kind = rows ? Scaling::Kind::kRows : Scaling::Kind::kColumns;
    base.scaling.term = index;
    base.scaling.vector = v;
    base.scaling.one = f_.whole ? 1.0f : 0.0f;
    base.scaling.at = layout_.take(static_cast<Position>(rows ? weight_.out : weight_.in * weight_.kernel_size()));
  }

  Position make_norms(std::int64_t count) {
    Rebuild item;
    item.norms = true;
    ops::WeightBatch one = f_.weights;
    one.target_count = 1;
    item.plan = prepare_norms(context_, one);
    recipe_.price += price_of_pass(f_.weights, f_.weights.targets[0], 1.0, 0.0);
    return add_rebuild(std::move(item), count);
  }

  Scaling by_norms(Scaling::Kind kind, std::int64_t count) {
    const ops::Adapter &adapter = f_.weights.adapters[f_.weights.targets[0].first_adapter];
    if (adapter.magnitude.numel() != count || (!absent(adapter.norms) && adapter.norms.numel() != count))
      fail(LYC_ERROR_INVALID_ARGUMENT, "magnitude and norms are not one for each of ", count);
    Scaling scaling;
    scaling.kind = kind;
    scaling.one = f_.whole ? 1.0f : 0.0f;
    scaling.vector = adapter.norms;
    if (absent(adapter.norms)) scaling.norms_at = make_norms(count);
    return scaling;
  }

  // Each column of W and of D by its own factor, before the terms are added.
  void scale_inputs(Source &base) {
    use_base(base);
    inputs_ = by_norms(Scaling::Kind::kDoraIn, weight_.in);
    base.scaling = inputs_;
    base.scaling.at = layout_.take(static_cast<Position>(base.depth()));
  }

  /// What sees the layer's inputs.
  Source of_inputs(Source result) {
    if (inputs_.kind == Scaling::Kind::kPlain) return result;
    result.scaling = inputs_;
    result.scaling.of_delta = true;
    result.scaling.at = layout_.take(static_cast<Position>(result.depth()));
    return result;
  }

  // Each row of W x and of D x by its own factor.
  void scale_outputs(Sum &last, Source &base) {
    if (last.has_addend) refuse("rows of a Kronecker product are not outputs");
    use_base(base);
    base.scaling = by_norms(Scaling::Kind::kDora, weight_.out);
    base.scaling.at = layout_.take(static_cast<Position>(weight_.out));
    base.scaling.delta_at = layout_.take(static_cast<Position>(weight_.out));
    for (Source &delta : last.sources) {
      delta.scaling.by_row = true;
      delta.scaling.delta_at = base.scaling.delta_at;
    }
  }

  // (W P) x = W (P x): in y = W (x + P x) the base is read once.
  void turn_input(std::int32_t index, Source &base) {
    const ops::Product &p = f_.weights.terms[index].p;
    use_base(base);
    View hidden = x_;
    if (!p.whole()) hidden = product(source(x_, p.down, p.down, false), f_.x, f_.layer.groups, p.down.out);
    Sum sum = between(f_.x, f_.layer.groups, p.out());
    const Operand &last = p.whole() ? p.down : p.up;
    Source turned = scaled(source(hidden, last, last, false), index);
    turned.scaling.vector = p.diagonal;
    turned.scaling.mask = p.mask;
    turned.shared = true;
    sum.sources.push_back(turned);
    if (f_.whole) {
      sum.has_addend = true;
      sum.addend = x_;
      sum.addend.stride_group = p.out() * x_.tensor.stride_channel;
    }
    sum.adapter = !f_.whole;
    const View to = sum.to;
    add_sum(std::move(sum));
    const Operand weight = f_.weights.targets[0].base;
    base = source(to, weight_, weight, true);
  }

  ops::WeightOp turning_op() const { return f_.whole ? ops::WeightOp::kMerge : ops::WeightOp::kDiff; }

  void refuse_beside_rotation() const {
    if (f_.weights.adapters[f_.weights.targets[0].first_adapter].term_count != 1)
      refuse("a rotation beside other terms");
  }

  // (W R'^T) x = W (R'^T x): the activations are turned as a weight of so many rows as channels.
  void turn_inputs(std::int32_t index, Source &base) {
    const ops::Term &term = f_.weights.terms[index];
    const ops::Rotation &rotation = f_.weights.rotations[term.rotation];
    refuse_beside_rotation();
    if (f_.layer.groups != 1 || weight_.kernel_size() != 1) refuse("a rotation of what windows see");
    if (rotation.rescale.data &&
        (!f_.whole || term.coefficient != 1.0 || !absent(term.scalar) || rotation.extent() != weight_.in))
      refuse("what is rescaled is added to what is not");
    use_base(base);
    std::vector<ops::Rotation> rotations(f_.weights.rotations, f_.weights.rotations + f_.weights.rotation_count);
    ops::Rotation &turning = rotations[static_cast<std::size_t>(term.rotation)];
    turning.axis = ops::Rotation::Axis::kOut;
    turning.rescale = {};
    ops::WeightBatch batch = f_.weights;
    batch.rotations = rotations.data();

    ops::WeightTarget target = f_.weights.targets[0];
    target.base = as_weight(f_.x);
    View turned = dense(f_.x, f_.x.channels, f_.x.channels);
    turned.at = rebuild(batch, target, as_weight(turned.tensor), turning_op(), false);
    for (TargetPlan &activations : recipe_.rebuilds.back().plan->targets)  // none without positions
      activations.adapters[0].terms[0].rotation.transposed = true;

    base = source(turned, weight_, f_.weights.targets[0].base, true);
    if (!rotation.rescale.data) return;
    base.scaling.kind = Scaling::Kind::kRescale;
    base.scaling.vector = rotation.rescale;
    base.scaling.at = layout_.take(static_cast<Position>(weight_.out));
  }

  // R'(W) x = R'(W x), the weight as it is: what it makes is turned as a weight of so many columns as positions.
  void turn_outputs(Sum &last, const Source &base) {
    ops::WeightTarget target = f_.weights.targets[0];
    refuse_beside_rotation();
    if (f_.layer.groups != 1) refuse("the groups of a convolution cut what a rotation turns");
    use_base(base);
    turned_ = true;
    Sum sum = between(f_.y, last.groups, last.outputs);
    sum.sources.push_back(base);
    last.has_addend = true;
    last.addend = sum.to;

    target.base = as_weight(sum.to.tensor);
    last.addend.at = rebuild(f_.weights, target, target.base, turning_op(), false);
    recipe_.rebuilds.back().turns = true;
    recipe_.rebuilds.back().from = sum.to.at;
    sum.turned_by = static_cast<int>(recipe_.rebuilds.size()) - 1;
    add_sum(std::move(sum));
  }

  void use_base(const Source &base) {
    if (base_used_) refuse("several terms that are made from the weight");
    if (!base.weight) fail(LYC_ERROR_INVALID_ARGUMENT, "the weight is absent");
    base_used_ = true;
  }

  // Rows of `up`, gathered, times `down`.
  void add_embedding_term(std::int32_t index, Sum &last) {
    const ops::Term &term = f_.weights.terms[index];
    if (term.kind != TermKind::kProduct || term.p.whole() || term.p.tucker())
      refuse("only low-rank products split into rows of a table");
    Gather gather = {as_matrix(term.p.up, false), 0, scratch_view(f_.y, term.p.rank(), term.p.rank()), true};
    recipe_.gathers.push_back(gather);
    Operand down = term.p.down;
    std::swap(down.out, down.in);
    std::swap(down.stride_out, down.stride_in);
    Source source_of_rows = scaled(source(gather.to, down, down, false), index);
    source_of_rows.scaling.vector = term.p.diagonal;
    source_of_rows.scaling.mask = term.p.mask;
    last.sources.push_back(source_of_rows);
  }

  static Operand extents(const ops::Product &product) {
    Operand shape = product.kernel_holder();
    shape.out = product.out();
    shape.in = product.in();
    return shape;
  }

  // -- Parts ---------------------------------------------------------------------------------------------------

  Sum last_sum() const {
    Sum sum;
    sum.groups = f_.layer.groups;
    sum.outputs = f_.y.channels / f_.layer.groups;
    sum.to = y_;
    sum.to.stride_group = sum.outputs * y_.tensor.stride_channel;
    sum.keep = !f_.whole;
    sum.has_bias = f_.weights.target_count > 1;
    return sum;
  }

  /// float32 activations with the positions of another tensor: position after position as there, or channel after
  /// channel, also where `outputs` that are made at a time would leave a part of their panels empty.
  static View dense(const Activation &like, std::int64_t channels, std::int64_t outputs) {
    View view;
    view.tensor = like;
    view.tensor.data = nullptr;
    view.tensor.dtype = LYC_DTYPE_F32;
    view.tensor.channels = channels;
    const bool by_position = like.stride_channel == 1 && outputs >= kPanel;
    std::int64_t step = by_position ? channels : 1;
    for (int d = ops::kMaxKernelDims - 1; d >= 0; --d) {
      view.tensor.stride_space[d] = step;
      step *= like.space[d];
    }
    view.tensor.stride_batch = step;
    view.tensor.stride_channel = by_position ? 1 : step * like.batch;
    return view;
  }
  View scratch_view(const Activation &like, std::int64_t channels, std::int64_t outputs) {
    View view = dense(like, channels, outputs);
    view.at = layout_.take(static_cast<Position>(like.positions() * channels));
    return view;
  }

  static bool taps_outside(const View &x, const Operand &weight) {
    return x.tensor.stride_channel == 1 && weight.kernel_size() > 1;
  }

  /// Activations through `weight` (of the extents of `shape`), with the layer's window or none.
  Source source(View x, const Operand &shape, const Operand &weight, bool window) const {
    Source result;
    if (x.stride_group == 0) x.stride_group = shape.in * x.tensor.stride_channel;
    result.x = x;
    result.inputs = shape.in;
    if (window) result.window = f_.layer;
    std::copy(shape.kernel, shape.kernel + ops::kMaxKernelDims, result.kernel);
    result.taps_outside = taps_outside(x, shape);
    result.weight = as_matrix(weight, result.taps_outside);
    return result;
  }

  Source scaled(Source result, std::int32_t term) {
    result.adapter = true;
    result.scaling.kind = Scaling::Kind::kTerm;
    result.scaling.term = term;
    result.scaling.at = layout_.take(static_cast<Position>(result.depth()));
    return result;
  }

  /// Into the workspace, at the positions of another tensor.
  Sum between(const Activation &positions, std::int64_t groups, std::int64_t outputs) {
    Sum sum;
    sum.groups = groups;
    sum.outputs = outputs;
    sum.to = scratch_view(positions, groups * outputs, outputs);
    sum.to.stride_group = outputs * sum.to.tensor.stride_channel;
    return sum;
  }

  /// weight x for each group: what lies between two factors.
  View product(Source only, const Activation &positions, std::int64_t groups, std::int64_t outputs) {
    Sum sum = between(positions, groups, outputs);
    only.shared = only.adapter = true;
    sum.sources.push_back(std::move(only));
    sum.adapter = true;
    View to = sum.to;
    to.stride_group = 0;
    add_sum(std::move(sum));
    return to;
  }

  void add_sum(Sum sum) {
    sum.positions = sum.to.tensor.positions();
    sum.by_position = sum.to.tensor.stride_channel == 1;
    std::int64_t packed = 0, steps = 0;  // depth of weights that are packed, less that of weights as they are
    for (Source &source : sum.sources) {
      multiply_pairs(source);
      source.few = takes_few(sum, source);
      source.as_they_are = takes_as_they_are(source);
      packed += source.as_they_are && !source.few ? -source.depth() : source.depth();
    }
    sum.positions_in_rows = sum.by_position && (packed >= 0 || wide_tiles());
    for (Source &source : sum.sources) {
      source.few &= sum.positions_in_rows;
      source.as_they_are &= !sum.positions_in_rows;
      if (source.few) multiply_numbers(source);
      steps += source.steps() * source.x_parts;
    }
    const std::int64_t across = std::max<std::int64_t>(1, steps * sum.groups);
    const std::int64_t fitting = std::clamp(kPackedFloats / across, kPositions, kMaxPositions);
    const std::int64_t blocks = std::max<std::int64_t>(1, ceil_div(sum.positions, fitting));
    sum.block = round_up(std::max<std::int64_t>(1, ceil_div(sum.positions, blocks)), kPositions);
    Layout scratch;
    for (const Source &source : sum.sources)
      sum.packed_at.push_back(scratch.take(multiply(sum.block, source.steps() * source.x_parts * sum.groups)));
    sum.packed_size = scratch.size();
    sum.width = outputs_at_once(sum);
    sum.thread_size = thread_floats(sum);
    const auto threads = static_cast<Position>(context_.pool.threads());
    recipe_.scratch = std::max(recipe_.scratch, sum.packed_size + threads * sum.thread_size);
    add_price(sum, blocks);
    recipe_.sums.push_back(std::move(sum));
  }

  /// Of kernels that take many rows at once. They are not worth transposing.
  bool wide_tiles() const { return context_.kernels.row_height > kTileRows; }

  /// Fast products want wide tiles, for which few windows are read again, of one size, a multiple of threads of them.
  std::int64_t outputs_at_once(const Sum &sum) const {
    if (!wide_tiles() || std::none_of(sum.sources.begin(), sum.sources.end(), [](const Source &s) { return s.pairs; }))
      return sum.positions_in_rows ? kPanel : kMaxOutputs;
    const std::int64_t tiles = round_up(ceil_div(sum.outputs, kMaxPairOutputs), context_.pool.threads());
    const std::int64_t unit = sum.positions_in_rows ? kPanel : context_.kernels.row_height;
    return std::max(round_up(ceil_div(sum.outputs, tiles), unit), unit);
  }

  /// Bf16 on both sides, as the caller has it; with parts, all. What is scaled is float32 then: the side that has more
  /// parts already, or the windows, which are packed once.
  void multiply_pairs(Source &source) const {
    std::int64_t x = parts_of(source.x.tensor.dtype), weight = parts_of(source.weight.dtype);
    if (source.scaling.scales_depth()) {
      source.scales_windows = x >= weight && !source.scaling.by_row;
      (source.scales_windows ? x : weight) = parts_of(LYC_DTYPE_F32);
    }
    source.pairs = context_.kernels.pair_product && (context_.kernels.split || (x == 1 && weight == 1));
    if (!source.pairs) return;
    source.x_parts = x;
    source.weight_parts = weight;
  }

  static void multiply_numbers(Source &source) {
    source.pairs = false;
    source.x_parts = source.weight_parts = 1;
  }

  /// Nothing about the weights changes: whole words, and whole steps of them.
  static bool takes_as_they_are(const Source &source) {
    const Matrix &weight = source.weight;
    const bool changed = source.scaling.by_row || (source.scaling.scales_depth() && !source.scales_windows);
    const std::int64_t each = source.pairs ? 2 : 1;
    return !changed && weight.in_rows() && source.weight_parts == 1 &&
           weight.dtype == (source.pairs ? LYC_DTYPE_BF16 : LYC_DTYPE_F32) && source.depth() % each == 0 &&
           weight.rows.stride[0] % each == 0 && reinterpret_cast<std::uintptr_t>(weight.data) % sizeof(float) == 0;
  }

  /// Rows of weights, where a position's activations are a row, too.
  static bool takes_few(const Sum &sum, const Source &source) {
    const bool fast = source.pairs && source.x_parts * source.weight_parts == 1;
    return sum.by_position && sum.positions <= (fast ? kFewOfPairs : kFewPositions) && source.weight.in_rows() &&
           (source.taps() == 1 || source.taps_outside);
  }

  /// Two parts of a float32 are 256 times as exact as an output of 16 bits.
  std::int64_t parts_of(lyc_dtype dtype) const {
    if (dtype == LYC_DTYPE_BF16) return 1;
    return dtype == LYC_DTYPE_F16 || f_.y.dtype != LYC_DTYPE_F32 ? 2 : kMaxParts;
  }

  /// Of a step, which may be a pair.
  double price_of(const Source &source) const {
    if (!context_.kernels.split) return 1.0;
    const std::int64_t parts = source.x_parts * source.weight_parts;
    return kPriceOfPart * static_cast<double>(std::min<std::int64_t>(parts, 6));  // of nine
  }

  static Position thread_floats(const Sum &sum) {
    return static_cast<Position>(tile_floats(sum) + weight_floats(sum) + kGatherFloats + 2 * row_floats(sum));
  }

  void add_price(const Sum &sum, std::int64_t blocks) {
    const double positions = static_cast<double>(sum.positions * sum.groups);
    const double outputs = static_cast<double>(round_up(sum.outputs, sum.positions_in_rows ? kPanel : kTileRows));
    for (const Source &source : sum.sources) {
      const double depth = static_cast<double>(source.depth()), steps = static_cast<double>(source.steps());
      const double weights = depth * static_cast<double>(sum.outputs * (source.shared ? 1 : sum.groups));
      const double element = static_cast<double>(dtype_size(source.weight.dtype));
      recipe_.price += positions * steps * outputs * price_of(source);
      recipe_.price += kPricePerByte * (weights * element * static_cast<double>(blocks) + 8.0 * positions * steps);
    }
    recipe_.price += kPricePerByte * 8.0 * positions * static_cast<double>(sum.outputs);
  }

  ops::BackendContext &context_;
  const ops::Forward &f_;
  const Operand weight_;
  View x_, y_;
  bool base_used_ = false, turned_ = false;
  Scaling inputs_;  // DoRA's over inputs
  Layout layout_;
  Recipe recipe_;
};

void check(const ops::Forward &f) {
  require(f.weights.target_count >= 1 && f.weights.target_count <= 2, "forward is for a weight and its bias");
}

}  // namespace

std::unique_ptr<ops::ForwardPlan> prepare(ops::BackendContext &context, const ops::Forward &forward) {
  check(forward);
  auto plan = std::make_unique<ops::ForwardPlan>(context);
  const ops::WeightBatch &batch = forward.weights;
  plan->targets.assign(batch.targets, batch.targets + batch.target_count);
  plan->adapters.assign(batch.adapters, batch.adapters + batch.adapter_count);
  plan->terms.assign(batch.terms, batch.terms + batch.term_count);
  plan->rotations.assign(batch.rotations, batch.rotations + batch.rotation_count);
  plan->forward = forward;
  ops::WeightBatch &own = plan->forward.weights;
  own.targets = plan->targets.data();
  own.adapters = plan->adapters.data();
  own.terms = plan->terms.data();
  own.rotations = plan->rotations.data();

  Recipe factored, rebuilt;
  if (forward.path != ops::Path::kRebuilt && own.targets[0].adapter_count > 0) try {
      factored = Builder(context, plan->forward).factored();
      plan->factored = true;
      plan->prices[0] = factored.price;
    } catch (const Error &error) {
      if (error.status() != LYC_ERROR_UNSUPPORTED || forward.path == ops::Path::kFactored) throw;
      plan->refusal = error.what();
    }
  if (forward.path != ops::Path::kFactored || own.targets[0].adapter_count == 0) {
    rebuilt = Builder(context, plan->forward).rebuilt();
    plan->prices[1] = rebuilt.price;
    if (rebuilt.price < factored.price) plan->factored = false;
  }
  plan->recipe = std::move(plan->factored ? factored : rebuilt);
  return plan;
}

std::uint64_t workspace_size(const ops::ForwardPlan &plan) {
  constexpr std::uint64_t kUnit = 256;
  return ((plan.recipe.size + plan.recipe.scratch) * sizeof(float) + kUnit - 1) / kUnit * kUnit;
}

std::string explain(const ops::ForwardPlan &plan) {
  const auto price = [](double value) { return value > 0.0 ? concat(static_cast<std::int64_t>(value)) : "none"; };
  std::string text = concat("cpu ", plan.context.kernels.name, ", threads ", plan.context.pool.threads(), ", path ",
                            plan.factored ? "factored" : "rebuilt", ", price factored ", price(plan.prices[0]),
                            ", rebuilt ", price(plan.prices[1]), ", workspace ", workspace_size(plan), " bytes\n");
  if (!plan.refusal.empty()) text += plan.refusal + "\n";
  for (const Rebuild &rebuild : plan.recipe.rebuilds)
    text += (rebuild.norms ? "norms " : rebuild.turns ? "turn " : "rebuild ") + explain(*rebuild.plan);
  for (const Expansion &expansion : plan.recipe.expansions)
    text += concat("expand ", expansion.p.rows.size(), " x ", expansion.p.columns.size(), " by ",
                   expansion.of_columns ? "columns" : "rows", "\n");
  for (const Gather &gather : plan.recipe.gathers) text += concat("gather rows of ", gather.table.columns.size(), "\n");
  for (const Sum &sum : plan.recipe.sums) {
    text += concat("sum ", sum.positions, " positions (", sum.block, " at a time) x ", sum.groups * sum.outputs,
                   " outputs, groups ", sum.groups, ":");
    for (const Source &source : sum.sources)
      text += concat(source.adapter ? " adapter" : " weight", " depth ", source.depth(),
                     source.pairs ? " by pairs" : "", source.few || source.as_they_are ? " as it is read" : "");
    text += sum.has_addend ? " and what was made before\n" : "\n";
  }
  return text;
}

}  // namespace lyc::cpu
