#include "core/definition.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "core/operand.hpp"

namespace lyc {
namespace {

constexpr const char *kOnInputName = "on_input", *kReshapeName = "reshape_weight", *kDenseName = "bias_size";

/// The axis of a DoRA magnitude, from its shape alone: [O, 1...] or [1, I, 1...]; 1-D where only one side fits.
ops::DoraAxis magnitude_axis(const lyc_tensor &magnitude, const algo::DeltaShape &shape) {
  const Shape extents = shape_of(magnitude);
  const std::int64_t count = numel(magnitude);
  const std::int64_t in = shape.columns / std::max<std::int64_t>(1, algo::LayerShape{0, 0, shape.kernel}.kernel_size());
  const bool by_column = shape.transposed && extents.size() == 1;
  if (!by_column && !extents.empty() && extents[0] == count && count == shape.out) return ops::DoraAxis::kOut;
  if (extents.size() >= 2 && extents[0] == 1 && extents[1] == count && shape.columns % count == 0)
    return ops::DoraAxis::kIn;
  if (extents.size() == 1 && count == in) return ops::DoraAxis::kIn;
  fail(LYC_ERROR_FORMAT, kMagnitudeName, " has shape ", shape_text(extents),
       ", which is neither one value per output (", shape.out, ") nor one per input (", in, ")");
}

/// Names that the core itself gives a meaning.
bool is_common(const algo::Algorithm &algorithm, std::string_view name) {
  return (algorithm.dora && name == kMagnitudeName) || (algorithm.low_rank && name == kScalarName) ||
         (algorithm.rank_mask && name == kRankMaskName);
}

void check_factor(const algo::Algorithm &algorithm, const std::string &name, const lyc_tensor &tensor) {
  if (!is_arithmetic(tensor.dtype) && !is_stored(algorithm, name))
    fail(LYC_ERROR_UNSUPPORTED, name, " is ", dtype_name(tensor.dtype), "; f32, f16 and bf16 can be computed with");
  if (numel(tensor) == 0) fail(LYC_ERROR_FORMAT, name, " is empty: shape ", shape_text(shape_of(tensor)));
}

/// Of the factors that every family can have.
void check_sizes(const Definition &definition) {
  const auto require_count = [&](std::string_view name, std::int64_t count) {
    const lyc_tensor *tensor = definition.factors.find(name);
    if (tensor && numel(*tensor) != count)
      fail(LYC_ERROR_FORMAT, name, " has shape ", shape_text(shape_of(*tensor)), ", must have ", count,
           count == 1 ? " value" : " values");
  };
  require_count(kScalarName, 1);
  require_count(kRankMaskName, definition.shape.rank);
  const lyc_tensor *bias = definition.factors.find(definition.algorithm->bias);
  if (bias && definition.shape.out && bias->shape[0] != definition.shape.out)
    require_count(definition.algorithm->bias, definition.shape.out);
}

bool kernel_is_one(const Shape &kernel) {
  return std::all_of(kernel.begin(), kernel.end(), [](std::int64_t extent) { return extent == 1; });
}

ops::Adapter dora_adapter(const Definition &definition, const Placement &placement, std::int64_t rows) {
  ops::Adapter adapter;
  adapter.dora_axis = definition.dora_axis;
  adapter.dora_rule = definition.dora_rule;
  if (definition.dora_axis == ops::DoraAxis::kNone) return adapter;
  adapter.epsilon = definition.dora_rule == ops::DoraRule::kPeft ? 0.0f : FLT_EPSILON;
  adapter.magnitude = algo::column(definition.factors.at(kMagnitudeName));
  adapter.norms = definition.prepared_norms;
  for (ops::Operand *values : {&adapter.magnitude, &adapter.norms}) {
    if (!values->data) continue;
    if (definition.dora_axis == ops::DoraAxis::kOut) {
      *values = slice_rows(*values, placement.row_begin, rows);
    } else {
      std::swap(values->out, values->in);
      std::swap(values->stride_out, values->stride_in);
    }
  }
  return adapter;
}

Shape extents_of(std::string_view name, const std::vector<double> &values) {
  Shape extents;
  for (const double value : values) {
    if (!(value >= 1 && value <= 0x1p53 && value == std::floor(value)))
      fail(LYC_ERROR_FORMAT, name, " has an extent of ", value);
    extents.push_back(static_cast<std::int64_t>(value));
  }
  checked_numel(extents.data(), extents.size(), std::string(name));
  return extents;
}

void mask_ranks(ops::Product &product, const lyc_tensor &mask) {
  if (product.whole()) return;
  if (product.rank() != numel(mask))
    fail(LYC_ERROR_FORMAT, kRankMaskName, " has ", numel(mask), " values for ", product.rank(), " ranks");
  product.mask = algo::column(mask);
}

}  // namespace

bool is_setting(std::string_view name) {
  return name == kAlphaName || name == kOnInputName || name == kReshapeName || name == kDenseName;
}

bool is_stored(const algo::Algorithm &algorithm, std::string_view name) {
  return algorithm.rewriting && algo::contains(algorithm.rewriting->stored, name);
}

void Request::set(std::string_view name, const std::vector<double> &values) {
  if (name == kReshapeName || name == kDenseName) {
    (name == kReshapeName ? reshape : traits.dense) = extents_of(name, values);
    return;
  }
  if (values.size() != 1) fail(LYC_ERROR_FORMAT, name, " has ", values.size(), " values, must be a single number");
  if (name == kAlphaName) {
    traits.alpha = values[0];
  } else {
    if (values[0] != 0.0 && values[0] != 1.0) fail(LYC_ERROR_FORMAT, name, " is ", values[0], ", must be 0 or 1");
    traits.flags = (traits.flags & ~std::uint32_t{LYC_MODULE_ON_INPUT}) | (values[0] != 0.0 ? LYC_MODULE_ON_INPUT : 0u);
  }
}

bool Definition::lacks_base_state() const { return algorithm->base_state && !factors.has(algorithm->base_state->u); }

bool Definition::has_part(lyc_part part) const {
  return part == LYC_PART_BIAS ? shape.bias || factors.has(algorithm->bias) : shape.weight;
}

double resolve_scale(const Request &request, std::int64_t rank) {
  if (rank == 0) return 1.0;
  const double parts = static_cast<double>(request.divisor_parts), whole_rank = static_cast<double>(rank);
  const double alpha = request.traits.alpha.value_or(0.0) != 0.0 ? *request.traits.alpha : whole_rank / parts;
  if (!std::isfinite(alpha)) fail(LYC_ERROR_FORMAT, "alpha is ", alpha, ", must be a finite number");
  return alpha / (request.rank_stabilised ? std::sqrt(whole_rank / parts) : whole_rank / parts);
}

Definition define(const algo::Factors &tensors, const std::vector<std::string> &names, const Request &request) {
  Definition result;
  result.algorithm = request.algorithm ? request.algorithm : algo::recognise(tensors);
  if (!result.algorithm) {
    std::string list;
    for (const std::string &name : names) list += (list.empty() ? "" : ", ") + name;
    fail(LYC_ERROR_UNSUPPORTED, "no adapter family that the library knows has the tensors ", list);
  }
  for (const std::string &name : names) {
    if (is_setting(name)) continue;
    if (!is_common(*result.algorithm, name) && !algo::contains(result.algorithm->suffixes, name))
      fail(LYC_ERROR_FORMAT, name, " does not belong to a ", result.algorithm->name, " adapter");
    if (name != result.algorithm->marker) check_factor(*result.algorithm, name, tensors.at(name));
    if (name != kRankMaskName) result.names.push_back(name);
    result.factors.set(name, tensors.at(name));
  }
  result.traits = request.traits;
  result.reshape = request.reshape;
  result.shape = result.algorithm->describe(result.factors, result.traits);
  check_sizes(result);
  result.scale = resolve_scale(request, result.shape.rank);
  result.alpha = request.traits.alpha.value_or(static_cast<double>(result.shape.rank));
  if ((request.traits.flags & LYC_MODULE_LAST) && (request.traits.flags & LYC_MODULE_MIDDLE))
    fail(LYC_ERROR_INVALID_ARGUMENT, "flags ask for the last and for the middle singular values");
  result.flags = result.shape.flags | (request.rank_stabilised ? LYC_MODULE_RANK_STABILISED : 0u) |
                 (result.algorithm->base_state ? request.traits.flags & (LYC_MODULE_LAST | LYC_MODULE_MIDDLE) : 0u) |
                 (result.factors.has(kScalarName) ? LYC_MODULE_SCALAR : 0u) |
                 (result.factors.has(result.algorithm->bias) ? LYC_MODULE_BIAS : 0u);
  if (const lyc_tensor *magnitude = result.factors.find(kMagnitudeName)) {
    result.dora_axis = magnitude_axis(*magnitude, result.shape);
    result.dora_rule = request.dora_rule;
    if (result.shape.experts > 1) fail(LYC_ERROR_UNSUPPORTED, "DoRA on a stack of matrices");
  }
  return result;
}

void check_fits(const Definition &definition, const ops::Operand &weight, const Placement &placement) {
  const algo::DeltaShape &shape = definition.shape;
  const std::int64_t all = shape.out ? shape.out : placement.row_begin + weight.out;
  const std::int64_t rows = placement.row_count ? placement.row_count : all;
  const auto mismatch = [&](const auto &...why) {
    fail(LYC_ERROR_MISMATCH, "the delta is ", shape.out, " x ", shape.columns, ", the weight ", extents_text(weight),
         ": ", why...);
  };
  if (placement.row_begin < 0 || rows < 0 || placement.row_begin > all - rows)
    mismatch("rows ", placement.row_begin, " to ", placement.row_begin + rows, " are not all in the delta");
  if (weight.out != rows) mismatch("rows do not fit");
  if (placement.part == LYC_PART_BIAS) {
    const lyc_tensor *bias = definition.factors.find(definition.algorithm->bias);
    const std::int64_t columns = bias && shape.out ? numel(*bias) / shape.out : 1;  // norms may have more axes
    if (weight.in * weight.kernel_size() != columns) mismatch("a bias has one axis");
    return;
  }
  if (shape.dealt > 1 && !placement.forward)
    fail(LYC_ERROR_UNSUPPORTED, "the factors see all ", shape.dealt,
         " groups of the convolution, a weight only its own: there is a forward, but nothing to merge");
  if (shape.columns && weight.in * weight.kernel_size() * shape.dealt != shape.columns) mismatch("columns do not fit");
  if (shape.whole_rows && rows != all)
    fail(LYC_ERROR_UNSUPPORTED, definition.algorithm->name, " mixes all ", all,
         " rows of the layer; it cannot be applied to ", rows, " of them");
  const Shape kernel(weight.kernel, weight.kernel + weight.kernel_dims);
  if (!shape.kernel.empty() && !(kernel_is_one(shape.kernel) && kernel_is_one(kernel)) && kernel != shape.kernel)
    mismatch("the delta's kernel is ", shape_text(shape.kernel));
  if (definition.dora_axis == ops::DoraAxis::kIn) {
    if (numel(definition.factors.at(kMagnitudeName)) != weight.in)
      mismatch("dora_scale has ", numel(definition.factors.at(kMagnitudeName)), " values for ", weight.in, " inputs");
    if (rows != shape.out)
      fail(LYC_ERROR_UNSUPPORTED, "DoRA over inputs takes its norm over all ", shape.out,
           " rows of the layer; it cannot be applied to ", rows, " of them");
  }
}

void WeightArrays::begin_target(const ops::Operand &base, const ops::Operand &out) {
  ops::WeightTarget target;
  target.base = base;
  target.out = out;
  target.first_adapter = static_cast<std::int32_t>(adapters.size());
  targets.push_back(target);
}

ops::WeightBatch WeightArrays::view(std::int32_t multiplier_count) const {
  ops::WeightBatch batch;
  batch.targets = targets.data();
  batch.adapters = adapters.data();
  batch.terms = terms.data();
  batch.rotations = rotations.data();
  batch.target_count = static_cast<std::int64_t>(targets.size());
  batch.adapter_count = static_cast<std::int64_t>(adapters.size());
  batch.term_count = static_cast<std::int64_t>(terms.size());
  batch.rotation_count = static_cast<std::int64_t>(rotations.size());
  batch.multiplier_count = multiplier_count;
  return batch;
}

void lower(const Definition &definition, const ops::Operand &target, const Placement &placement, WeightArrays &arrays,
           const ops::Operand &weight) {
  check_fits(definition, target, placement);
  const auto first = arrays.terms.size(), first_rotation = arrays.rotations.size();
  ops::Adapter adapter;
  const algo::Algorithm &algorithm = *definition.algorithm;
  const algo::LayerShape layer{definition.shape.out ? definition.shape.out : placement.row_begin + target.out,
                               target.in, Shape(target.kernel, target.kernel + target.kernel_dims)};
  algo::Lowering to{definition.factors, layer,  definition.shape, definition.traits,
                    placement.expert,   weight, arrays.terms,     arrays.rotations,
                    definition.scale};
  if (placement.part == LYC_PART_WEIGHT) {
    if (definition.lacks_base_state())
      fail(LYC_ERROR_UNSUPPORTED, "the ", algorithm.name,
           " module was not prepared: what it starts from is made from the pristine weight by lyc_module_prepare()");
    algorithm.lower(to);
    for (std::size_t i = 0; i < definition.prepared_rotations.size(); ++i)
      arrays.rotations[first_rotation + i].prepared = definition.prepared_rotations[i];
    adapter = dora_adapter(definition, placement, target.out);
    for (std::size_t i = first; i < arrays.terms.size(); ++i) {
      arrays.terms[i].coefficient *= definition.scale;
      if (const lyc_tensor *scalar = definition.factors.find(kScalarName))
        arrays.terms[i].scalar = algo::column(*scalar);
      if (const lyc_tensor *mask = definition.factors.find(kRankMaskName)) mask_ranks(arrays.terms[i].p, *mask);
    }
  } else if (algorithm.lower_bias) {
    algorithm.lower_bias(to);
  } else {
    to.add().p.down = algo::taps(definition.factors.at(algorithm.bias), layer.in, layer.kernel);
  }
  adapter.replaces = definition.shape.replaces;
  for (std::size_t i = first; i < arrays.terms.size(); ++i) arrays.terms[i].row_begin = placement.row_begin;
  adapter.first_term = static_cast<std::int32_t>(first);
  adapter.term_count = static_cast<std::int32_t>(arrays.terms.size() - first);
  adapter.multiplier_index = placement.multiplier_index;
  arrays.adapters.push_back(adapter);
  ++arrays.targets.back().adapter_count;
}

}  // namespace lyc
