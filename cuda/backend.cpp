// The one symbol that liblycoris_cuda.so exports: the back-end table. No exception leaves it.
#include <cstdio>

#include "context.hpp"
#include "ops/guard.hpp"
#include "weight_plan.hpp"

namespace lyc::cuda {
namespace {

using ops::BackendContext;
using ops::Failure;
using ops::guard;

// The table's opaque types are ours by another name: STATIC builds hold the CPU's structs of those names, too.
Context &own(ops::BackendContext *context) { return *reinterpret_cast<Context *>(context); }
WeightPlan &own(ops::WeightPlan *plan) { return *reinterpret_cast<WeightPlan *>(plan); }
const WeightPlan &own(const ops::WeightPlan *plan) { return *reinterpret_cast<const WeightPlan *>(plan); }

lyc_status backend_device_count(std::int32_t *count, Failure *failure) {
  return guard(failure, [&] { *count = device_count(); });
}

lyc_status backend_device_info(std::int32_t index, lyc_device_info *info, Failure *failure) {
  return guard(failure, [&] { device_info(index, info); });
}

lyc_status context_create(const ops::BackendContextOptions *options, BackendContext **context, Failure *failure) {
  return guard(failure, [&] { *context = reinterpret_cast<BackendContext *>(create_context(*options)); });
}

void context_destroy(BackendContext *context) {
  guard(nullptr, [&] { destroy_context(&own(context)); });
}

std::int32_t context_threads(const BackendContext *) { return 0; }

lyc_status memory_allocate(BackendContext *context, std::size_t size, void *stream, void **memory, Failure *failure) {
  return guard(failure, [&] {
    const DeviceScope scope(own(context));
    *memory = allocate(own(context), size, static_cast<cudaStream_t>(stream));
  });
}

void memory_release(BackendContext *context, void *memory, std::size_t, void *stream) {
  guard(nullptr, [&] {
    const DeviceScope scope(own(context));
    release(own(context), memory, static_cast<cudaStream_t>(stream));
  });
}

lyc_status memory_write(BackendContext *context, void *device, const void *host, std::size_t size, Failure *failure) {
  return guard(failure, [&] {
    const DeviceScope scope(own(context));
    copy(own(context), device, host, size, cudaMemcpyHostToDevice);
  });
}

lyc_status memory_read(BackendContext *context, void *host, const void *device, std::size_t size, Failure *failure) {
  return guard(failure, [&] {
    const DeviceScope scope(own(context));
    copy(own(context), host, device, size, cudaMemcpyDeviceToHost);
  });
}

lyc_status host_allocate(BackendContext *context, std::size_t size, void **memory, Failure *failure) {
  return guard(failure, [&] {
    const DeviceScope scope(own(context));
    *memory = allocate_host(size);
  });
}

void host_release(BackendContext *context, void *memory) {
  guard(nullptr, [&] {
    const DeviceScope scope(own(context));
    const UncapturedScope uncaptured;
    cudaFreeHost(memory);
  });
}

lyc_status stream_create(BackendContext *context, void **stream, Failure *failure) {
  return guard(failure, [&] {
    const DeviceScope scope(own(context));
    *stream = create_stream();
  });
}

void stream_destroy(BackendContext *context, void *stream) {
  guard(nullptr, [&] {
    const DeviceScope scope(own(context));
    cudaStreamDestroy(static_cast<cudaStream_t>(stream));
  });
}

lyc_status enqueue_copy(BackendContext *context, void *stream, void *to, const void *from, std::size_t size,
                        cudaMemcpyKind kind, Failure *failure) {
  return guard(failure, [&] {
    const DeviceScope scope(own(context));
    check(cudaMemcpyAsync(to, from, size, kind, static_cast<cudaStream_t>(stream)), "cudaMemcpyAsync");
  });
}

lyc_status stream_write(BackendContext *context, void *stream, void *device, const void *host, std::size_t size,
                        Failure *failure) {
  return enqueue_copy(context, stream, device, host, size, cudaMemcpyHostToDevice, failure);
}

lyc_status stream_read(BackendContext *context, void *stream, void *host, const void *device, std::size_t size,
                       Failure *failure) {
  return enqueue_copy(context, stream, host, device, size, cudaMemcpyDeviceToHost, failure);
}

lyc_status stream_wait(BackendContext *context, void *stream, Failure *failure) {
  return guard(failure, [&] {
    const DeviceScope scope(own(context));
    wait(static_cast<cudaStream_t>(stream));
  });
}

lyc_status weight_prepare(BackendContext *context, const ops::WeightBatch *batch, ops::WeightPlan **plan,
                          Failure *failure) {
  return guard(failure, [&] { *plan = reinterpret_cast<ops::WeightPlan *>(prepare(own(context), *batch)); });
}

void weight_info(const ops::WeightPlan *plan, ops::WeightPlanInfo *info) { *info = own(plan).info; }

lyc_status weight_run(ops::WeightPlan *plan, const ops::RunOptions *options, Failure *failure) {
  return guard(failure, [&] { run(own(plan), *options); });
}

std::size_t weight_explain(const ops::WeightPlan *plan, char *buffer, std::size_t capacity) {
  std::size_t length = 0;
  guard(nullptr, [&] {
    const std::string text = explain(own(plan));
    length = text.size();
    std::snprintf(buffer, capacity, "%s", text.c_str());
  });
  return length;
}

void weight_release(ops::WeightPlan *plan) {
  guard(nullptr, [&] { release(&own(plan)); });
}

constexpr ops::Backend kBackend = {sizeof(ops::Backend),
                                   LYC_DEVICE_CUDA,
                                   LYCORIS_VERSION,
                                   backend_device_count,
                                   backend_device_info,
                                   context_create,
                                   context_destroy,
                                   context_threads,
                                   memory_allocate,
                                   memory_release,
                                   memory_write,
                                   memory_read,
                                   host_allocate,
                                   host_release,
                                   stream_create,
                                   stream_destroy,
                                   stream_write,
                                   stream_read,
                                   stream_wait,
                                   weight_prepare,
                                   weight_info,
                                   weight_run,
                                   weight_explain,
                                   weight_release,
                                   nullptr,  // rotations prepared
                                   nullptr,  // singular triplets
                                   nullptr,  // norms of DoRA
                                   nullptr,  // forward
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};

}  // namespace
}  // namespace lyc::cuda

extern "C" LYC_API const lyc::ops::Backend *LYC_CUDA_ENTRY() { return &lyc::cuda::kBackend; }
