#include "core/prepare.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "base/tensor.hpp"
#include "core/operand.hpp"

namespace lyc {
namespace {

/// A matrix of one value in the context's memory.
lyc_tensor filled(lyc_context &context, const Shape &shape, float value, std::vector<DeviceBuffer> &buffers) {
  lyc_tensor tensor = make_tensor(nullptr, LYC_DTYPE_F32, shape);
  tensor.device_type = context.options.device_type;
  tensor.device_index = context.options.device_index;
  const std::vector<float> values(static_cast<std::size_t>(numel(tensor)), value);
  buffers.emplace_back(context, values.size() * sizeof(float));
  tensor.data = buffers.back().data();
  write_device(context, tensor.data, values.data(), buffers.back().size());
  return tensor;
}

}  // namespace

TripletRange triplets_of(std::int64_t rank, std::int64_t available, std::uint32_t flags) {
  const std::int64_t count = std::min(rank, available);
  if (flags & LYC_MODULE_LAST) return {available - count, count};
  if (!(flags & LYC_MODULE_MIDDLE)) return {0, count};
  if (rank <= available) return {(available - rank) / 2, count};
  const std::int64_t last = std::min((rank - available + 1) / 2, available);  // the convention of the original
  return {available - last, last};
}

void derive_base_state(lyc_context &context, Definition &definition, const ops::Operand &weight,
                       const Placement &placement, void *stream, std::vector<DeviceBuffer> &buffers) {
  check_fits(definition, weight, placement);
  const algo::DeltaShape &shape = definition.shape;
  if (weight.out != shape.out)
    fail(LYC_ERROR_UNSUPPORTED, "what the ", definition.algorithm->name, " module starts from is made from all ",
         shape.out, " rows of the layer, ", weight.out, " are here; call lyc_module_prepare() with the whole weight");
  if (!context.backend->singular_triplets)
    fail(LYC_ERROR_UNSUPPORTED, "singular values are not computed on this device; prepare a module of a CPU context and ",
         "take its parameters ", definition.algorithm->base_state->u, ", ", definition.algorithm->base_state->sigma,
         " and ", definition.algorithm->base_state->v);
  const lyc_tensor u = filled(context, {shape.out, shape.rank}, 0.0f, buffers);
  const lyc_tensor sigma = filled(context, {1, shape.rank}, kMissingSigma, buffers);
  const lyc_tensor v = filled(context, {shape.rank, shape.columns}, 0.0f, buffers);
  const TripletRange range = triplets_of(shape.rank, std::min(shape.out, shape.columns), definition.flags);
  ops::Operand left = algo::matrix(u), middle = algo::matrix(sigma), right = algo::matrix(v);
  left.in = middle.in = right.out = range.count;
  ops::Failure failure;
  if (weight.data != nowhere())  // a weight that is only described: the state's memory is all that counts
    check(context.backend->singular_triplets(context.device, &weight, range.first, &left, &middle, &right, stream,
                                             &failure),
          failure);
  definition.factors.set(definition.algorithm->base_state->u, u);
  definition.factors.set(definition.algorithm->base_state->sigma, sigma);
  definition.factors.set(definition.algorithm->base_state->v, v);
}

}  // namespace lyc
