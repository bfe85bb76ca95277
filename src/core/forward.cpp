#include "core/forward.hpp"

#include <algorithm>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "core/batch.hpp"
#include "core/operand.hpp"
#include "core/prepare.hpp"

namespace lyc {
namespace {

using ops::Activation;
using ops::LayerKind;

constexpr double kDefaultEpsilon = 1e-5;

struct Axis {
  std::int64_t extent, x_stride, y_stride;
};

void check_layer(const lyc_layer &layer) {
  require(layer.kind >= LYC_LAYER_LINEAR && layer.kind <= LYC_LAYER_RMS_NORM, "layer.kind is ",
          static_cast<int>(layer.kind), ", must be 0 to 5");
  require(layer.channels == LYC_CHANNELS_FIRST || layer.channels == LYC_CHANNELS_LAST, "layer.channels is ",
          static_cast<int>(layer.channels), ", must be 0 or 1");
  require(layer.path >= LYC_PATH_AUTO && layer.path <= LYC_PATH_REBUILT, "layer.path is ", static_cast<int>(layer.path),
          ", must be 0 to 2");
  require(layer.groups >= 0, "layer.groups is ", layer.groups, ", must not be negative");
  require(layer.epsilon >= 0.0, "layer.epsilon is ", layer.epsilon, ", must not be negative");
  constexpr std::int64_t kMost = 1 << 20;
  for (int d = 0; d < ops::kMaxKernelDims; ++d)
    for (const std::int64_t value : {layer.stride[d], layer.padding[d], layer.dilation[d], layer.kernel[d]})
      require(value >= 0 && value <= kMost, "layer has a stride, padding, dilation or kernel of ", value, " on axis ",
              d);
}

void check_activation(const lyc_context &context, const lyc_tensor &tensor, const char *name) {
  check_tensor(tensor, name);
  require(tensor.device_type == context.options.device_type &&
              (tensor.device_type == LYC_DEVICE_CPU || tensor.device_index == context.options.device_index),
          name, " is not on the context's device");
}

void check_float(const lyc_tensor &tensor, const char *name) {
  if (!is_arithmetic(tensor.dtype))
    fail(LYC_ERROR_UNSUPPORTED, name, " is ", dtype_name(tensor.dtype), "; f32, f16 and bf16 can be computed with");
}

Activation activation(const lyc_tensor &tensor) {
  Activation result;
  result.data = tensor.data;
  result.dtype = tensor.dtype;
  return result;
}

/// [N, C, S...] or [N, S..., C].
Activation spatial_activation(const lyc_tensor &tensor, lyc_channels order, const char *name) {
  require(tensor.ndim >= 2 && tensor.ndim <= 2 + ops::kMaxKernelDims, name, " has ", tensor.ndim,
          " axes; a batch, channels and 1 to 3 axes of space are needed");
  const int channel = order == LYC_CHANNELS_LAST ? tensor.ndim - 1 : 1;
  const int space = order == LYC_CHANNELS_LAST ? 1 : 2;
  Activation result = activation(tensor);
  result.batch = tensor.shape[0];
  result.stride_batch = tensor.strides[0];
  result.channels = tensor.shape[channel];
  result.stride_channel = tensor.strides[channel];
  for (int d = 0; d < tensor.ndim - 2; ++d) {
    result.space[d] = tensor.shape[space + d];
    result.stride_space[d] = tensor.strides[space + d];
  }
  return result;
}

/// The first `count` axes of x and y, neighbours that continue each other in both as one.
std::vector<Axis> leading_axes(const lyc_tensor &x, const lyc_tensor &y, int count) {
  std::vector<Axis> axes;
  for (int d = 0; d < count; ++d) {
    const Axis axis = {x.shape[d], x.strides[d], y.strides[d]};
    if (axis.extent == 1) continue;
    if (!axes.empty() && axes.back().x_stride == axis.x_stride * axis.extent &&
        axes.back().y_stride == axis.y_stride * axis.extent)
      axes.back() = {axes.back().extent * axis.extent, axis.x_stride, axis.y_stride};
    else
      axes.push_back(axis);
  }
  if (axes.size() > 1 + ops::kMaxKernelDims)
    fail(LYC_ERROR_UNSUPPORTED, "x and y have ", axes.size(), " leading axes that do not continue each other; ",
         1 + ops::kMaxKernelDims, " are possible");
  return axes;
}

/// Positions of a layer without windows: the last axis of space moves fastest.
void put_positions(const std::vector<Axis> &axes, Activation &x, Activation &y) {
  const bool batch = axes.size() > ops::kMaxKernelDims;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    if (batch && i == 0) {
      x.batch = y.batch = axes[0].extent;
      x.stride_batch = axes[0].x_stride, y.stride_batch = axes[0].y_stride;
      continue;
    }
    const std::size_t d = i - batch;
    x.space[d] = y.space[d] = axes[i].extent;
    x.stride_space[d] = axes[i].x_stride, y.stride_space[d] = axes[i].y_stride;
  }
}

/// Axes from `begin` on as one axis of features.
void put_features(const lyc_tensor &tensor, int begin, const char *name, Activation &to) {
  lyc_tensor features = tensor;
  std::copy(tensor.shape + begin, tensor.shape + tensor.ndim, features.shape);
  std::copy(tensor.strides + begin, tensor.strides + tensor.ndim, features.strides);
  features.ndim = tensor.ndim - begin;
  if (features.ndim > 1 && !is_contiguous(features))
    fail(LYC_ERROR_UNSUPPORTED, name, " is normalised over axes that do not continue each other");
  to.channels = numel(features);
  to.stride_channel = features.ndim ? features.strides[features.ndim - 1] : 0;
}

ops::Operand extents_only(ops::Operand operand) {
  operand.data = nullptr;
  operand.dtype = LYC_DTYPE_F32;
  return operand;
}

/// Turns one call into an ops::Forward.
class Lowerer {
 public:
  Lowerer(const ForwardCall &call, Definition &definition, std::vector<DeviceBuffer> &derived, WeightArrays &arrays)
      : c_(call), layer_(call.layer), definition_(definition), derived_(derived), arrays_(arrays) {}

  ops::Forward lower() {
    check_layer(layer_);
    check_activations();
    switch (layer_.kind) {
      case LYC_LAYER_LINEAR:
        put_linear();
        break;
      case LYC_LAYER_CONV:
        put_convolution();
        break;
      case LYC_LAYER_EMBEDDING:
        put_embedding();
        break;
      default:
        put_norm();
    }
    f_.path = static_cast<ops::Path>(layer_.path);
    f_.whole = c_.whole;
    lower_weight();
    lower_bias();
    f_.weights = arrays_.view(1);
    return f_;
  }

 private:
  void check_activations() const {
    const lyc_context &context = *c_.module.context;
    check_activation(context, c_.x, "x");
    check_activation(context, c_.y, "y");
    check_float(c_.y, "y");
    if (layer_.kind != LYC_LAYER_EMBEDDING)
      check_float(c_.x, "x");
    else
      require(c_.x.dtype == LYC_DTYPE_I32 || c_.x.dtype == LYC_DTYPE_I64, "x is ", dtype_name(c_.x.dtype),
              ", indices of an embedding are i32 or i64");
    require(!(c_.y.flags & LYC_TENSOR_READ_ONLY), "y is read-only");
    require(!c_.whole || c_.weight, "weight is NULL");
    check_writable();
    for (const lyc_tensor *tensor : {&c_.x, c_.weight, c_.bias})
      require(!tensor || !overlap(*tensor), "y overlaps x, weight or bias");
  }

  // Strides in ascending order must each lead past what the smaller ones reach.
  void check_writable() const {
    std::vector<std::pair<std::int64_t, std::int64_t>> axes;
    for (int d = 0; d < c_.y.ndim; ++d)
      if (c_.y.shape[d] > 1) axes.emplace_back(c_.y.strides[d], c_.y.shape[d]);
    std::sort(axes.begin(), axes.end());
    std::int64_t reach = 0;
    for (const auto &[stride, extent] : axes) {
      require(stride > reach, "y has strides by which elements share memory");
      reach += stride * (extent - 1);
    }
  }

  bool overlap(const lyc_tensor &tensor) const {
    if (tensor.data == nowhere() || c_.y.data == nowhere()) return false;  // only described
    const auto *a = static_cast<const char *>(tensor.data), *b = static_cast<const char *>(c_.y.data);
    return byte_extent(tensor) > 0 && a < b + byte_extent(c_.y) && b < a + byte_extent(tensor);
  }

  void require_same_leading(int count) const {
    for (int d = 0; d < count; ++d)
      if (c_.x.shape[d] != c_.y.shape[d])
        fail(LYC_ERROR_MISMATCH, "x is ", shape_text(shape_of(c_.x)), ", y is ", shape_text(shape_of(c_.y)),
             ": their leading axes differ");
  }

  void put_linear() {
    require(c_.x.ndim >= 1 && c_.y.ndim == c_.x.ndim, "x has ", c_.x.ndim, " axes, y has ", c_.y.ndim,
            "; they must have as many, at least 1");
    const int last = c_.x.ndim - 1;
    require_same_leading(last);
    f_.x = activation(c_.x);
    f_.y = activation(c_.y);
    put_features(c_.x, last, "x", f_.x);
    put_features(c_.y, last, "y", f_.y);
    put_positions(leading_axes(c_.x, c_.y, last), f_.x, f_.y);
    weight_ = find_weight(f_.y.channels, f_.x.channels);
    check_extents(f_.y.channels, f_.x.channels);
  }

  void put_convolution() {
    require(c_.x.ndim >= 3, "x has ", c_.x.ndim, " axes; a convolution has a batch, channels and 1 to 3 axes of space");
    f_.x = spatial_activation(c_.x, layer_.channels, "x");
    f_.y = spatial_activation(c_.y, layer_.channels, "y");
    require(c_.x.ndim == c_.y.ndim, "x has ", c_.x.ndim, " axes, y has ", c_.y.ndim);
    ops::Layer &to = f_.layer;
    to.groups = std::max(1, layer_.groups);
    if (f_.x.channels % to.groups || f_.y.channels % to.groups)
      fail(LYC_ERROR_MISMATCH, f_.x.channels, " and ", f_.y.channels, " channels do not divide into ", to.groups,
           " groups");
    weight_ = find_weight(f_.y.channels, f_.x.channels / to.groups);
    check_extents(f_.y.channels, f_.x.channels / to.groups);
    require(weight_.kernel_dims <= c_.x.ndim - 2, "the kernel has ", weight_.kernel_dims, " axes, x has ",
            c_.x.ndim - 2, " axes of space");
    require(f_.x.batch == f_.y.batch, "x and y differ in batch: ", f_.x.batch, " and ", f_.y.batch);
    for (int d = 0; d < ops::kMaxKernelDims; ++d) put_window(d);
  }

  void put_window(int d) {
    ops::Layer &to = f_.layer;
    to.stride[d] = std::max<std::int64_t>(1, layer_.stride[d]);
    to.dilation[d] = std::max<std::int64_t>(1, layer_.dilation[d]);
    to.padding[d] = layer_.padding[d];
    if (d >= c_.x.ndim - 2) {
      require(to.padding[d] == 0, "padding on axis ", d, ", which x does not have");
      return;
    }
    const std::int64_t reach = to.dilation[d] * (weight_.kernel[d] - 1) + 1;
    const std::int64_t room = f_.x.space[d] + 2 * to.padding[d] - reach;
    const std::int64_t places = room < 0 ? 0 : room / to.stride[d] + 1;
    if (f_.y.space[d] != places)
      fail(LYC_ERROR_MISMATCH, "y has extent ", f_.y.space[d], " on axis ", d, " of space; x, kernel, stride, padding ",
           "and dilation make it ", places);
  }

  void put_embedding() {
    require(c_.y.ndim == c_.x.ndim + 1, "x has ", c_.x.ndim, " axes, y must have one more, for the features");
    require_same_leading(c_.x.ndim);
    f_.layer.kind = LayerKind::kEmbedding;
    f_.x = activation(c_.x);
    f_.y = activation(c_.y);
    put_features(c_.y, c_.x.ndim, "y", f_.y);
    put_positions(leading_axes(c_.x, c_.y, c_.x.ndim), f_.x, f_.y);
    weight_ = find_weight(definition_.shape.out, f_.y.channels);
    check_extents(weight_.out, f_.y.channels);
  }

  void put_norm() {
    const bool grouped = layer_.kind == LYC_LAYER_GROUP_NORM;
    ops::Layer &to = f_.layer;
    to.kind = grouped                               ? LayerKind::kGroupNorm
              : layer_.kind == LYC_LAYER_LAYER_NORM ? LayerKind::kLayerNorm
                                                    : LayerKind::kRmsNorm;
    to.epsilon = layer_.epsilon > 0.0 ? layer_.epsilon : kDefaultEpsilon;
    require(c_.x.ndim == c_.y.ndim, "x has ", c_.x.ndim, " axes, y has ", c_.y.ndim);
    require_same_leading(c_.x.ndim);
    if (grouped) {
      f_.x = spatial_activation(c_.x, layer_.channels, "x");
      f_.y = spatial_activation(c_.y, layer_.channels, "y");
      require(layer_.groups >= 1 && f_.x.channels % layer_.groups == 0, f_.x.channels, " channels do not divide into ",
              layer_.groups, " groups");
      to.groups = layer_.groups;
    } else {
      const int axes = norm_axes();
      require(axes <= c_.x.ndim, "x has ", c_.x.ndim, " axes, the norm is over ", axes);
      f_.x = activation(c_.x);
      f_.y = activation(c_.y);
      put_features(c_.x, c_.x.ndim - axes, "x", f_.x);
      put_features(c_.y, c_.x.ndim - axes, "y", f_.y);
      put_positions(leading_axes(c_.x, c_.y, c_.x.ndim - axes), f_.x, f_.y);
    }
    weight_ = norm_weight();
    if (weight_.numel() != f_.y.channels)
      fail(LYC_ERROR_MISMATCH, "the norm's weight is ", extents_text(weight_), ", y has ", f_.y.channels, " channels");
  }

  // As many as make up the weight's elements.
  int norm_axes() const {
    if (c_.weight) return c_.weight->ndim;
    const std::int64_t values = definition_.shape.out * std::max<std::int64_t>(1, definition_.shape.columns);
    std::int64_t count = 1;
    for (int axes = 1; axes <= c_.x.ndim; ++axes)
      if ((count *= c_.x.shape[c_.x.ndim - axes]) == values) return axes;
    return 1;
  }

  ops::Operand norm_weight() const {
    if (c_.weight) return operand_on(*c_.module.context, *c_.weight, "weight");
    ops::Operand weight;
    weight.out = definition_.shape.out;
    weight.in = std::max<std::int64_t>(1, definition_.shape.columns);
    return weight;
  }

  /// The layer's weight, or its extents where it is not there.
  ops::Operand find_weight(std::int64_t out, std::int64_t in) const {
    if (c_.weight) return operand_on(*c_.module.context, *c_.weight, "weight");
    ops::Operand weight;
    weight.out = out;
    weight.in = in;
    if (layer_.kind != LYC_LAYER_CONV) return weight;
    const Shape &shown = definition_.shape.kernel;
    weight.kernel_dims = c_.x.ndim - 2;
    for (int d = 0; d < weight.kernel_dims; ++d)
      weight.kernel[d] = layer_.kernel[d]                             ? layer_.kernel[d]
                         : static_cast<std::size_t>(d) < shown.size() ? shown[static_cast<std::size_t>(d)]
                                                                      : 1;
    return weight;
  }

  void check_extents(std::int64_t out, std::int64_t in) const {
    if (weight_.out != out || weight_.in != in)
      fail(LYC_ERROR_MISMATCH, "the weight is ", extents_text(weight_), ", x is ", shape_text(shape_of(c_.x)),
           ", y is ", shape_text(shape_of(c_.y)));
  }

  void lower_weight() {
    const bool needed = c_.whole || definition_.needs_base();
    require(!needed || weight_.data, "weight is NULL, but the delta depends on it");
    arrays_.begin_target(needed ? weight_ : ops::Operand(), extents_only(weight_));
    if (!definition_.has_part(LYC_PART_WEIGHT)) return;
    Placement placement;
    placement.forward = true;
    if (definition_.lacks_base_state())
      derive_base_state(*c_.module.context, definition_, weight_, placement, nullptr, derived_);
    lyc::lower(definition_, weight_, placement, arrays_);
    if (definition_.shape.dealt == 1) return;
    if (definition_.shape.dealt != f_.layer.groups)
      fail(LYC_ERROR_MISMATCH, "the factors are for ", definition_.shape.dealt, " groups, the layer has ",
           f_.layer.groups);
    if (f_.path == ops::Path::kRebuilt)
      fail(LYC_ERROR_UNSUPPORTED, "the factors see all groups, a weight only its own: it cannot be rebuilt");
    f_.path = ops::Path::kFactored;
  }

  void lower_bias() {
    const bool changed = definition_.has_part(LYC_PART_BIAS), given = c_.whole && c_.bias;
    if (!changed && !given) return;
    if (layer_.kind == LYC_LAYER_EMBEDDING) fail(LYC_ERROR_UNSUPPORTED, "an embedding has no bias");
    ops::Operand bias, out;
    out.out = f_.y.channels;
    if (f_.layer.kind != LayerKind::kConv) out = extents_only(weight_);
    if (given) {
      bias = operand_on(*c_.module.context, *c_.bias, "bias");
      if (!same_extents(bias, out))
        fail(LYC_ERROR_MISMATCH, "bias is ", extents_text(bias), ", y has ", f_.y.channels, " channels");
    }
    arrays_.begin_target(bias, extents_only(out));
    if (!changed) return;
    Placement placement;
    placement.part = LYC_PART_BIAS;
    const std::size_t first = arrays_.terms.size();
    lyc::lower(definition_, out, placement, arrays_, weight_);
    if (given) return;
    for (std::size_t i = first; i < arrays_.terms.size(); ++i)
      if (ops::reads_base(arrays_.terms[i].kind))
        fail(LYC_ERROR_UNSUPPORTED, "the bias difference depends on the bias, which is not given");
  }

  const ForwardCall &c_;
  const lyc_layer &layer_;
  Definition &definition_;
  std::vector<DeviceBuffer> &derived_;
  WeightArrays &arrays_;
  ops::Operand weight_;
  ops::Forward f_;
};

}  // namespace

Forward::Forward(const ForwardCall &call) : context_(*call.module.context), definition_(call.module.definition) {
  const ops::Backend &backend = *context_.backend;
  if (!backend.forward_prepare)
    fail(LYC_ERROR_UNSUPPORTED, "forward is computed on the CPU only, not yet on CUDA devices");
  const ops::Forward forward = Lowerer(call, definition_, derived_, arrays_).lower();
  ops::Failure failure;
  check(backend.forward_prepare(context_.device, &forward, &plan_, &failure), failure);
}

Forward::~Forward() {
  if (plan_) context_.backend->forward_release(plan_);
}

void Forward::run(float multiplier, const lyc_exec &exec) {
  ops::ForwardRun options{};
  options.multipliers = &multiplier;
  options.stream = exec.stream;
  const Workspace workspace(context_, exec, workspace_size());
  options.workspace = workspace.data();
  ops::Failure failure;
  check(context_.backend->forward_run(plan_, &options, &failure), failure);
}

std::uint64_t Forward::workspace_size() const {
  ops::ForwardPlanInfo info{};
  context_.backend->forward_info(plan_, &info);
  return info.workspace_size;
}

std::string Forward::explain() const {
  std::string text(context_.backend->forward_explain(plan_, nullptr, 0), '\0');
  context_.backend->forward_explain(plan_, text.data(), text.size() + 1);
  return text;
}

}  // namespace lyc
