#include "core/prepare.hpp"

#include <algorithm>
#include <list>

#include "base/error.hpp"
#include "base/tensor.hpp"
#include "core/operand.hpp"
#include "core/transfer.hpp"

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

/// For what a device does not compute itself: the CPU, and operands where it finds them. Everything is waited for.
class HostSide {
 public:
  HostSide(lyc_context &context, void *stream) : context_(context), host_(new lyc_context(host_options(context))) {
    ops::Failure failure;  // what is enqueued may still be writing the operands
    check(context.backend->stream_wait(context.device, stream, &failure), failure);
  }

  ops::Operand fetch(ops::Operand operand) {
    if (!operand.data) return operand;
    std::vector<char> &bytes = copies_.emplace_back(operand_bytes(operand));
    read_device(context_, bytes.data(), operand.data, bytes.size());
    operand.data = bytes.data();
    return operand;
  }
  void store(const ops::Operand &operand, const ops::Operand &fetched) {
    write_device(context_, operand.data, fetched.data, operand_bytes(operand));
  }

  const ops::Backend &backend() const { return *host_->backend; }
  ops::BackendContext *device() const { return host_->device; }

 private:
  static lyc_context_options host_options(const lyc_context &context) {
    lyc_context_options options{};
    options.threads = context.options.threads;
    return options;
  }

  lyc_context &context_;
  Ref<lyc_context> host_;
  std::list<std::vector<char>> copies_;
};

void find_triplets(lyc_context &context, const ops::Operand &weight, std::int64_t first, const ops::Operand &u,
                   const ops::Operand &sigma, const ops::Operand &v, void *stream) {
  ops::Failure failure;
  if (context.backend->singular_triplets)
    return check(context.backend->singular_triplets(context.device, &weight, first, &u, &sigma, &v, stream, &failure),
                 failure);
  HostSide host(context, stream);
  const ops::Operand matrix = host.fetch(weight), left = host.fetch(u), middle = host.fetch(sigma),
                     right = host.fetch(v);
  check(host.backend().singular_triplets(host.device(), &matrix, first, &left, &middle, &right, nullptr, &failure),
        failure);
  host.store(u, left);
  host.store(sigma, middle);
  host.store(v, right);
}

void prepare_rotation(lyc_context &context, const ops::Rotation &rotation, const ops::Operand &rests, void *stream) {
  ops::Failure failure;
  if (context.backend->rotation_prepare)
    return check(context.backend->rotation_prepare(context.device, &rotation, &rests, stream, &failure), failure);
  HostSide host(context, stream);
  ops::Rotation moved = rotation;
  moved.generators = host.fetch(rotation.generators);
  moved.rescale = host.fetch(rotation.rescale);
  const ops::Operand result = host.fetch(rests);
  check(host.backend().rotation_prepare(host.device(), &moved, &result, nullptr, &failure), failure);
  host.store(rests, result);
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
  const lyc_tensor u = filled(context, {shape.out, shape.rank}, 0.0f, buffers);
  const lyc_tensor sigma = filled(context, {1, shape.rank}, kMissingSigma, buffers);
  const lyc_tensor v = filled(context, {shape.rank, shape.columns}, 0.0f, buffers);
  const TripletRange range = triplets_of(shape.rank, std::min(shape.out, shape.columns), definition.flags);
  ops::Operand left = algo::matrix(u), middle = algo::matrix(sigma), right = algo::matrix(v);
  left.in = middle.in = right.out = range.count;
  if (weight.data != nowhere())  // a weight that is only described: the state's memory is all that counts
    find_triplets(context, weight, range.first, left, middle, right, stream);
  definition.factors.set(definition.algorithm->base_state->u, u);
  definition.factors.set(definition.algorithm->base_state->sigma, sigma);
  definition.factors.set(definition.algorithm->base_state->v, v);
}

void prepare_rotations(lyc_context &context, const Definition &definition, const ops::Operand &weight, void *stream,
                       std::vector<ops::Operand> &rests, std::vector<DeviceBuffer> &buffers) {
  WeightArrays arrays;
  arrays.begin_target(weight, weight);
  lower(definition, weight, {}, arrays);
  rests.resize(arrays.rotations.size());
  for (std::size_t i = 0; i < rests.size(); ++i) {
    ops::Rotation &rotation = arrays.rotations[i];
    rotation.prepared = {};
    const std::int64_t count = rotation.stages * rotation.blocks, size = rotation.block_size * rotation.block_size;
    if (rests[i].numel() != count * size || !rests[i].data)
      rests[i] = algo::matrix(filled(context, {count, size}, 0.0f, buffers));
    prepare_rotation(context, rotation, rests[i], stream);
  }
}

ops::Operand prepare_norms(lyc_context &context, const Definition &definition, const ops::Operand &weight,
                           std::vector<float> &memory) {
  if (definition.dora_axis == ops::DoraAxis::kNone || definition.dora_rule == ops::DoraRule::kPeft ||
      !context.backend->dora_norms)
    return {};
  WeightArrays arrays;
  arrays.begin_target(weight, weight);
  lower(definition, weight, {}, arrays);
  const ops::WeightBatch batch = arrays.view(1);
  memory.resize(static_cast<std::size_t>(definition.dora_axis == ops::DoraAxis::kOut ? weight.out : weight.in));
  ops::Failure failure;
  check(context.backend->dora_norms(context.device, &batch, memory.data(), &failure), failure);
  return algo::column(make_tensor(memory.data(), LYC_DTYPE_F32, {static_cast<std::int64_t>(memory.size())}));
}

}  // namespace lyc
