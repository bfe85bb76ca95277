#include "context.hpp"

#include <algorithm>
#include <cstring>
#include <memory>

namespace lyc::cuda {
namespace {

template <typename Function>
void find_driver_function(Function &function, const char *name) {
  void *address = nullptr;
  cudaDriverEntryPointQueryResult found;
  check(cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &found), name);
  if (found != cudaDriverEntryPointSuccess) fail(LYC_ERROR_UNSUPPORTED, "the CUDA driver has no ", name);
  function = reinterpret_cast<Function>(address);
}

int attribute(int device, cudaDeviceAttr name) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

int device_count() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver) return 0;
  check(status, "cudaGetDeviceCount");
  return count;
}

void device_info(int index, lyc_device_info *info) {
  const int count = device_count();
  if (index < 0 || index >= count) fail(LYC_ERROR_NOT_FOUND, "CUDA device ", index, " of ", count);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  info->multiprocessors = properties.multiProcessorCount;
  info->compute_major = properties.major;
  info->compute_minor = properties.minor;
  info->memory_bytes = properties.totalGlobalMem;
  std::strncpy(info->name, properties.name, sizeof info->name - 1);
  info->name[sizeof info->name - 1] = '\0';
}

Context *create_context(int device) {
  const int count = device_count();
  if (count == 0) fail(LYC_ERROR_UNSUPPORTED, "no CUDA device, or no driver for CUDA ", CUDART_VERSION / 1000);
  if (device < 0 || device >= count) fail(LYC_ERROR_NOT_FOUND, "CUDA device ", device, " of ", count);
  auto context = std::make_unique<Context>();
  context->device = device;
  context->multiprocessors = attribute(device, cudaDevAttrMultiProcessorCount);
  context->has_memory_pools = attribute(device, cudaDevAttrMemoryPoolsSupported) != 0;
  find_driver_function(context->push, "cuCtxPushCurrent");
  find_driver_function(context->pop, "cuCtxPopCurrent");
  find_driver_function(context->retain, "cuDevicePrimaryCtxRetain");
  find_driver_function(context->release, "cuDevicePrimaryCtxRelease");
  constexpr int kHopper = 9;
  if (attribute(device, cudaDevAttrComputeCapabilityMajor) >= kHopper)
    find_driver_function(context->encode_map, "cuTensorMapEncodeTiled");
  if (context->retain(&context->primary, device) != CUDA_SUCCESS)
    fail(LYC_ERROR_DEVICE, "CUDA device ", device, " cannot be opened");
  try {
    const DeviceScope scope(*context);
    check(cudaStreamCreateWithFlags(&context->copies, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  } catch (...) {
    context->release(device);
    throw;
  }
  return context.release();
}

void destroy_context(Context *context) {
  if (!context) return;
  {
    const DeviceScope scope(*context);
    cudaStreamDestroy(context->copies);
  }
  context->release(context->device);
  delete context;
}

void *allocate(Context &context, std::size_t size, cudaStream_t stream) {
  const UncapturedScope uncaptured;
  void *memory = nullptr;
  if (!context.has_memory_pools) {
    check(cudaMalloc(&memory, size), "cudaMalloc");
    return memory;
  }
  check(cudaMallocAsync(&memory, size, stream ? stream : context.copies), "cudaMallocAsync");
  if (!stream) check(cudaStreamSynchronize(context.copies), "cudaStreamSynchronize");
  return memory;
}

void release(Context &context, void *memory, cudaStream_t stream) noexcept {
  const UncapturedScope uncaptured;
  if (context.has_memory_pools)
    cudaFreeAsync(memory, stream);
  else
    cudaFree(memory);
}

void copy(Context &context, void *to, const void *from, std::size_t size, cudaMemcpyKind kind) {
  const UncapturedScope uncaptured;
  check(cudaMemcpyAsync(to, from, size, kind, context.copies), "cudaMemcpyAsync");
  check(cudaStreamSynchronize(context.copies), "cudaStreamSynchronize");
}

}  // namespace lyc::cuda
