#include "core/module.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "core/batch.hpp"
#include "core/prepare.hpp"

namespace {

using namespace lyc;

constexpr std::uint32_t kOptionFlags = 2 * LYC_MODULE_MIDDLE - 1;  // all that there are

algo::LayerShape layer_shape(const lyc_module_options &options) {
  require(options.ndim >= 1 && options.ndim <= 5, "ndim is ", options.ndim, ", must be 1 to 5");
  for (int d = 0; d < options.ndim; ++d)
    require(options.shape[d] >= 1, "the weight's shape is ",
            shape_text(options.shape, static_cast<std::size_t>(options.ndim)), ", all extents must be at least 1");
  checked_numel(options.shape, static_cast<std::size_t>(options.ndim), "the weight");
  algo::LayerShape layer;
  layer.out = options.shape[0];
  if (options.ndim > 1) layer.in = options.shape[1];
  if (options.ndim > 2) layer.kernel.assign(options.shape + 2, options.shape + options.ndim);
  return layer;
}

algo::Spec checked_spec(const algo::Algorithm &algorithm, const lyc_module_options &options,
                        const algo::LayerShape &layer) {
  const std::uint32_t excess = options.flags & ~algorithm.flags;
  require(excess == 0, algorithm.name, " does not have the options ", excess, " in flags");
  require(!algorithm.low_rank || options.rank >= 1, "rank is ", options.rank, ", must be at least 1");
  require(options.factor >= -1, "factor is ", options.factor,
          ", must be positive, or 0 or -1 for as square as possible");
  require(algorithm.dora || options.dora_axis == LYC_DORA_AXIS_NONE, "DoRA does not go on top of ", algorithm.name);
  require(options.dora_axis >= LYC_DORA_AXIS_NONE && options.dora_axis <= LYC_DORA_AXIS_IN, "dora_axis is ",
          static_cast<int>(options.dora_axis), ", must be 0, 1 or 2");
  require(!(options.flags & LYC_MODULE_TUCKER) || layer.has_kernel(),
          "a Tucker core needs a convolution with a kernel above 1");
  require(options.ndim != 1 || algorithm.id == LYC_ALGO_NORM || algorithm.id == LYC_ALGO_FULL, algorithm.name,
          " does not exist for weights of one axis");
  return {options.rank, options.flags, options.factor};
}

std::vector<algo::FactorSpec> parameters(const algo::Algorithm &algorithm, const lyc_module_options &options) {
  const algo::LayerShape layer = layer_shape(options);
  std::vector<algo::FactorSpec> list = algorithm.factors(checked_spec(algorithm, options, layer), layer);
  if (options.flags & LYC_MODULE_SCALAR) list.push_back({kScalarName, {}});
  const Shape ones(layer.kernel.size(), 1);
  Shape magnitude = options.dora_axis == LYC_DORA_AXIS_OUT ? Shape{layer.out, 1} : Shape{1, layer.in};
  magnitude.insert(magnitude.end(), ones.begin(), ones.end());
  if (options.dora_axis != LYC_DORA_AXIS_NONE) list.push_back({kMagnitudeName, magnitude});
  return list;
}

Request request_of(const lyc_module_options &options) {
  Request request;
  require(std::isfinite(options.alpha), "alpha is ", options.alpha, ", must be a finite number");
  require((options.flags & ~kOptionFlags) == 0, "flags has unknown bits: ", options.flags & ~kOptionFlags);
  if (options.alpha != 0.0) request.traits.alpha = options.alpha;
  require(options.origin >= LYC_ORIGIN_LYCORIS && options.origin <= LYC_ORIGIN_ONETRAINER, "origin is ",
          static_cast<int>(options.origin), ", must be 0 to 3");
  require(options.neumann_terms >= -1 && options.neumann_terms <= 64, "neumann_terms is ", options.neumann_terms,
          ", must be -1 to 64");
  require(std::isfinite(options.coft_epsilon) && options.coft_epsilon >= 0, "coft_epsilon is ", options.coft_epsilon,
          ", must be 0 or positive");
  request.traits.origin = options.origin;
  request.traits.flags = options.flags;
  request.traits.neumann_terms = options.neumann_terms;
  request.traits.coft_epsilon = options.coft_epsilon;
  require(options.experts >= 0, "experts is ", options.experts, ", must not be negative");
  request.traits.experts = std::max<std::int64_t>(options.experts, 1);
  request.rank_stabilised = options.flags & LYC_MODULE_RANK_STABILISED;
  request.dora_rule = resolve_dora_rule(options.dora_rule, ops::DoraRule::kInterpolate);
  return request;
}

void require_on_device(const lyc_context &context, const lyc_tensor &tensor, const std::string &name) {
  require(tensor.device_type == context.options.device_type &&
              (tensor.device_type == LYC_DEVICE_CPU || tensor.device_index == context.options.device_index),
          name, " is not on the context's device");
}

/// The bytes of a contiguous tensor, wherever it is.
std::vector<char> bytes_of(lyc_context &context, const lyc_tensor &tensor, const std::string &name) {
  std::vector<char> bytes(byte_extent(tensor));
  if (tensor.device_type == LYC_DEVICE_CPU) {
    std::memcpy(bytes.data(), tensor.data, bytes.size());
  } else {
    require_on_device(context, tensor, name);
    read_device(context, bytes.data(), tensor.data, bytes.size());
  }
  return bytes;
}

std::vector<double> read_setting(lyc_context &context, const lyc_tensor &tensor, const std::string &name) {
  const std::int64_t count = numel(tensor);
  if (count < 1 || count > kMaxSettingValues)
    fail(LYC_ERROR_FORMAT, name, " has shape ", shape_text(shape_of(tensor)), ", must have a few values");
  const std::vector<char> bytes = bytes_of(context, tensor, name);
  std::vector<double> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(read_element(bytes.data(), tensor.dtype, i));
  return values;
}

/// Bring a definition's factors to the context's device: those in CPU memory are copied, those that are there stay.
void place_factors(lyc_context &context, Definition &definition, std::vector<DeviceBuffer> &buffers) {
  std::vector<std::string> names;
  Uploader uploader(context);
  for (const auto &name : definition.names)
    if (!is_stored(*definition.algorithm, name)) names.push_back(name);
  if (definition.factors.has(kRankMaskName)) names.push_back(kRankMaskName);
  for (const std::string &name : names) uploader.expect(Uploader::room_for(byte_extent(definition.factors.at(name))));
  for (const std::string &name : names) {
    const lyc_tensor &tensor = definition.factors.at(name);
    if (tensor.device_type == LYC_DEVICE_CPU)
      definition.factors.set(name, uploader.copy(tensor, buffers));
    else
      require_on_device(context, tensor, name);
  }
  rewrite_stored(uploader, definition, buffers);
  uploader.finish();
}

}  // namespace

namespace lyc {

ops::DoraRule resolve_dora_rule(lyc_dora_rule requested, ops::DoraRule otherwise) {
  require(requested >= LYC_DORA_RULE_DEFAULT && requested <= LYC_DORA_RULE_PEFT, "dora_rule is ",
          static_cast<int>(requested), ", must be 0 to 3");
  return requested == LYC_DORA_RULE_DEFAULT ? otherwise : static_cast<ops::DoraRule>(requested);
}

void rewrite_stored(Uploader &uploader, Definition &definition, std::vector<DeviceBuffer> &buffers) {
  const algo::Rewriting *rewriting = definition.algorithm->rewriting;
  if (!rewriting || !definition.factors.has(rewriting->stored[0])) return;
  algo::Factors stored;
  std::vector<std::vector<char>> bytes;
  for (const char *const *name = rewriting->stored; *name; ++name) {
    const lyc_tensor *tensor = definition.factors.find(*name);
    if (!tensor) continue;
    bytes.push_back(bytes_of(uploader.context(), *tensor, *name));
    stored.set(*name, make_tensor(bytes.back().data(), tensor->dtype, shape_of(*tensor)));
    definition.factors.erase(*name);
    definition.names.erase(std::find(definition.names.begin(), definition.names.end(), *name));
  }
  for (algo::Rewritten &factor : rewriting->rewrite(stored, definition.traits)) {
    if (is_arithmetic(factor.dtype)) definition.names.push_back(factor.name);
    const lyc_tensor tensor = make_tensor(factor.bytes.data(), factor.dtype, factor.shape);
    definition.factors.set(factor.name, uploader.copy(tensor, buffers));
  }
}

}  // namespace lyc

lyc_module::lyc_module(Ref<lyc_context> owner, Definition what, std::vector<DeviceBuffer> owned)
    : context(std::move(owner)), definition(std::move(what)), owned_(std::move(owned)) {
  if (!definition.reshape.empty())
    fail(LYC_ERROR_UNSUPPORTED, "reshape_weight makes the layer's weight larger, which only lyc_merge_files() can do");
}

lyc_module::~lyc_module() { forget_call(); }

Ref<lyc_module> lyc_module::create(lyc_context &context, const lyc_module_options &options) {
  const algo::Algorithm *algorithm = algo::find_algorithm(options.algo);
  require(algorithm != nullptr, "algo is ", static_cast<int>(options.algo), ", not a family that can be created");
  const lyc_dtype dtype = options.dtype == LYC_DTYPE_NONE ? LYC_DTYPE_F32 : options.dtype;
  require(is_arithmetic(dtype), "dtype is ", dtype_name(dtype), ", parameters are f32, f16 or bf16");
  require(algorithm->factors != nullptr, algorithm->name, " modules come from tensors only");
  require(options.experts <= 1, "experts is ", options.experts, "; modules of stacks come from tensors only");
  Request request = request_of(options);
  request.algorithm = algorithm;
  std::vector<DeviceBuffer> owned;
  std::vector<std::string> names;
  algo::Factors factors;
  const std::vector<algo::FactorSpec> list = parameters(*algorithm, options);
  Uploader uploader(context);
  for (const algo::FactorSpec &parameter : list)
    uploader.expect(Uploader::room_for(make_tensor(nullptr, dtype, parameter.shape).capacity));
  for (const algo::FactorSpec &parameter : list) {
    names.push_back(parameter.name);
    const auto zeros = [](char *to, std::uint64_t, std::size_t size) { std::memset(to, 0, size); };
    factors.set(parameter.name, uploader.place(dtype, parameter.shape, zeros, owned));
  }
  uploader.finish();
  Definition definition = define(factors, names, request);
  return Ref<lyc_module>(new lyc_module(Ref<lyc_context>::share(context), std::move(definition), std::move(owned)));
}

Ref<lyc_module> lyc_module::create(lyc_context &context, const lyc_module_options &options,
                                   const std::vector<std::string> &names, const lyc_tensor *tensors) {
  Request request = request_of(options);
  request.algorithm = algo::find_algorithm(options.algo);
  require(options.algo == LYC_ALGO_NONE || request.algorithm, "algo is ", static_cast<int>(options.algo),
          ", not a family that is known");
  algo::Factors factors;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const lyc_tensor &tensor = tensors[i];
    require(!factors.has(names[i]), names[i], " is there twice");
    check_tensor(tensor, names[i]);
    require(is_contiguous(tensor), names[i], " is not contiguous");
    factors.set(names[i], tensor);
    if (is_setting(names[i])) request.set(names[i], read_setting(context, tensor, names[i]));
  }
  Definition definition = define(factors, names, request);
  if (definition.shape.experts != request.traits.experts)
    fail(LYC_ERROR_UNSUPPORTED, definition.algorithm->name, " has no factors for a stack of matrices");
  std::vector<DeviceBuffer> owned;
  place_factors(context, definition, owned);
  if (options.ndim != 0) {
    const algo::LayerShape layer = layer_shape(options);
    const auto differs = [](std::int64_t known, std::int64_t wanted) { return known != 0 && known != wanted; };
    if (differs(definition.shape.out, layer.out) || differs(definition.shape.columns, layer.in * layer.kernel_size()))
      fail(LYC_ERROR_MISMATCH, "the tensors make a delta of ", definition.shape.out, " x ", definition.shape.columns,
           ", the layer's shape is ", shape_text(options.shape, static_cast<std::size_t>(options.ndim)));
  }
  return Ref<lyc_module>(new lyc_module(Ref<lyc_context>::share(context), std::move(definition), std::move(owned)));
}

const lyc_tensor &lyc_module::factor(const std::string &name) const {
  const lyc_tensor *tensor = definition.factors.find(name);
  if (!tensor || !is_arithmetic(tensor->dtype)) fail(LYC_ERROR_NOT_FOUND, "the module has no parameter ", name);
  return *tensor;
}

/// A mask is there from when it is first spoken of.
void lyc_module::add_rank_mask(const std::string &name) {
  if (name != kRankMaskName || !definition.algorithm->rank_mask || definition.factors.has(name)) return;
  const std::vector<float> ones(static_cast<std::size_t>(definition.shape.rank), 1.0f);
  const lyc_tensor mask = make_tensor(const_cast<float *>(ones.data()), LYC_DTYPE_F32, {definition.shape.rank});
  Uploader uploader(*context);
  definition.factors.set(name, uploader.copy(mask, owned_));
  uploader.finish();
}

void lyc_module::bind(const std::string &name, const lyc_tensor &tensor) {
  add_rank_mask(name);
  const lyc_tensor &known = factor(name);
  check_tensor(tensor, name);
  require_on_device(*context, tensor, name);
  require(is_arithmetic(tensor.dtype), name, " is ", dtype_name(tensor.dtype), ", parameters are f32, f16 or bf16");
  require(shape_of(tensor) == shape_of(known), name, " has shape ", shape_text(shape_of(tensor)), ", must be ",
          shape_text(shape_of(known)));
  require(is_contiguous(tensor), name, " is not contiguous");
  definition.factors.set(name, tensor);
  definition.forget_prepared();
  forget_call();
}

namespace {

/// Values of one contiguous tensor in the dtype of another, in CPU memory.
std::vector<char> converted(const void *source, lyc_dtype from, lyc_dtype to, std::int64_t count) {
  std::vector<char> result(static_cast<std::size_t>(count) * dtype_size(to));
  if (from == to) {
    std::memcpy(result.data(), source, result.size());
    return result;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<float>(read_element(source, from, i));
    char *at = result.data() + i * static_cast<std::int64_t>(dtype_size(to));
    const std::uint16_t half = to == LYC_DTYPE_BF16 ? float_to_bf16(value) : float_to_f16(value);
    std::memcpy(at, to == LYC_DTYPE_F32 ? static_cast<const void *>(&value) : &half, dtype_size(to));
  }
  return result;
}

void check_host_copy(const lyc_tensor &tensor, const lyc_tensor &known, const std::string &name) {
  check_tensor(tensor, name);
  require(tensor.device_type == LYC_DEVICE_CPU, name, ": values are copied from and to CPU tensors only");
  require(is_arithmetic(tensor.dtype), name, " is ", dtype_name(tensor.dtype), ", must be f32, f16 or bf16");
  require(shape_of(tensor) == shape_of(known) && is_contiguous(tensor), name, " must be contiguous with shape ",
          shape_text(shape_of(known)));
}

}  // namespace

void lyc_module::write(const std::string &name, const lyc_tensor &tensor) {
  add_rank_mask(name);
  const lyc_tensor &known = factor(name);
  check_host_copy(tensor, known, name);
  require(!(known.flags & LYC_TENSOR_READ_ONLY), name, " is bound to read-only memory");
  definition.forget_prepared();
  forget_call();
  const std::vector<char> values = converted(tensor.data, tensor.dtype, known.dtype, numel(known));
  write_device(*context, known.data, values.data(), values.size());
}

void lyc_module::read(const std::string &name, const lyc_tensor &tensor) const {
  const lyc_tensor &known = factor(name);
  check_host_copy(tensor, known, name);
  require(!(tensor.flags & LYC_TENSOR_READ_ONLY), name, ": the tensor to fill is read-only");
  std::vector<char> stored(byte_extent(known));
  read_device(*context, stored.data(), known.data, stored.size());
  const std::vector<char> values = converted(stored.data(), known.dtype, tensor.dtype, numel(known));
  std::memcpy(tensor.data, values.data(), values.size());
}

void lyc_module::prepare(const lyc_tensor *base, void *stream) {
  if (!definition.needs_base()) return;
  require(base != nullptr, "base is NULL, but the delta depends on the weight");
  forget_call();
  const ops::Operand weight = operand_on(*context, *base, "base");
  if (definition.lacks_base_state()) derive_base_state(*context, definition, weight, {}, stream, owned_);
  prepare_rotations(*context, definition, weight, stream, rests_, owned_);
  definition.prepared_rotations = rests_;
  definition.prepared_norms = prepare_norms(*context, definition, weight, norms_);
}

namespace {

std::vector<BatchItem> items_for(lyc_module &module, const lyc_tensor *base, const lyc_tensor *out) {
  lyc_batch_item item{};
  item.module = &module;
  item.base = base;
  item.out = out;
  return checked_items(*module.context, &item, 1);
}

/// The same descriptor has the same plan, and needs no second check. It has no padding.
bool same(const lyc_tensor &known, const lyc_tensor *given) {
  static constexpr lyc_tensor kAbsent{};
  static_assert(sizeof(lyc_tensor) == 2 * 8 + 6 * 4 + 2 * 8 * LYC_MAX_DIMS + 3 * 8);
  return std::memcmp(&known, given ? given : &kAbsent, sizeof known) == 0;
}

}  // namespace

/// What one call on a weight prepared.
struct lyc_module::Call {
  Call(lyc_module &module, const lyc_tensor *base_tensor, const lyc_tensor *out_tensor)
      : weights(*module.context, items_for(module, base_tensor, out_tensor)) {
    if (base_tensor) base = *base_tensor;
    if (out_tensor) out = *out_tensor;
  }

  lyc_tensor base{}, out{};  // zeros: not given
  PreparedWeights weights;
};

void lyc_module::forget_call() { delete last_call_.exchange(nullptr); }

void lyc_module::run(const lyc_tensor *base, const lyc_tensor *out, lyc_batch_op op, float multiplier,
                     const lyc_exec &exec) {
  std::unique_ptr<Call> call(last_call_.exchange(nullptr));
  if (!call || !same(call->base, base) || !same(call->out, out)) call = std::make_unique<Call>(*this, base, out);
  call->weights.run(op, &multiplier, false, exec);
  // What is derived from the weight's values is of this call only.
  if (!definition.lacks_base_state()) call.reset(last_call_.exchange(call.release()));
}

std::uint64_t lyc_module::workspace_size(const lyc_tensor &weight) {
  return PreparedWeights(*context, items_for(*this, &weight, nullptr)).workspace_size();
}
