// The one symbol that liblycoris_cuda.so exports: the back-end table. No exception leaves it.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "context.hpp"
#include "weight_plan.hpp"

namespace lyc::cuda {
namespace {

using ops::Failure;
using ops::WeightPlan;

lyc_status report(Failure *failure, lyc_status status, const char *message, int native_code = 0) noexcept {
  if (failure) {
    failure->status = status;
    failure->native_code = native_code;
    std::snprintf(failure->message, sizeof failure->message, "%s", message);
  }
  return status;
}

template <typename Body>
lyc_status boundary(Failure *failure, Body &&body) noexcept {
  try {
    body();
    return LYC_OK;
  } catch (const Error &error) {
    return report(failure, error.status(), error.what(), error.native_code());
  } catch (const std::bad_alloc &) {
    return report(failure, LYC_ERROR_OUT_OF_MEMORY, "host allocation failed");
  } catch (const std::exception &error) {
    return report(failure, LYC_ERROR_INTERNAL, error.what());
  }
}

lyc_status backend_device_count(std::int32_t *count, Failure *failure) {
  return boundary(failure, [&] { *count = device_count(); });
}

lyc_status backend_device_info(std::int32_t index, lyc_device_info *info, Failure *failure) {
  return boundary(failure, [&] { device_info(index, info); });
}

lyc_status context_create(const ops::BackendContextOptions *options, BackendContext **context, Failure *failure) {
  return boundary(failure, [&] { *context = create_context(options->device_index); });
}

void context_destroy(BackendContext *context) {
  boundary(nullptr, [&] { destroy_context(context); });
}

std::int32_t context_threads(const BackendContext *) { return 0; }

lyc_status memory_allocate(BackendContext *context, std::size_t size, void *stream, void **memory, Failure *failure) {
  return boundary(failure, [&] {
    const DeviceScope scope(*context);
    *memory = allocate(*context, size, static_cast<cudaStream_t>(stream));
  });
}

void memory_release(BackendContext *context, void *memory, std::size_t, void *stream) {
  boundary(nullptr, [&] {
    const DeviceScope scope(*context);
    release(*context, memory, static_cast<cudaStream_t>(stream));
  });
}

lyc_status memory_write(BackendContext *context, void *device, const void *host, std::size_t size, Failure *failure) {
  return boundary(failure, [&] {
    const DeviceScope scope(*context);
    copy(*context, device, host, size, cudaMemcpyHostToDevice);
  });
}

lyc_status memory_read(BackendContext *context, void *host, const void *device, std::size_t size, Failure *failure) {
  return boundary(failure, [&] {
    const DeviceScope scope(*context);
    copy(*context, host, device, size, cudaMemcpyDeviceToHost);
  });
}

lyc_status weight_prepare(BackendContext *context, const ops::WeightBatch *batch, WeightPlan **plan, Failure *failure) {
  return boundary(failure, [&] { *plan = prepare(*context, *batch); });
}

void weight_info(const WeightPlan *plan, ops::WeightPlanInfo *info) { *info = plan->info; }

lyc_status weight_run(WeightPlan *plan, const ops::RunOptions *options, Failure *failure) {
  return boundary(failure, [&] { run(*plan, *options); });
}

std::size_t weight_explain(const WeightPlan *plan, char *buffer, std::size_t capacity) {
  std::size_t length = 0;
  boundary(nullptr, [&] {
    const std::string text = explain(*plan);
    length = text.size();
    std::snprintf(buffer, capacity, "%s", text.c_str());
  });
  return length;
}

void weight_release(WeightPlan *plan) {
  boundary(nullptr, [&] { release(plan); });
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
                                   weight_prepare,
                                   weight_info,
                                   weight_run,
                                   weight_explain,
                                   weight_release};

}  // namespace
}  // namespace lyc::cuda

extern "C" LYC_API const lyc::ops::Backend *LYC_CUDA_ENTRY() { return &lyc::cuda::kBackend; }
