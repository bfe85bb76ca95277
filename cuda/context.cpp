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

/// What a pool keeps of freed memory, so that the next one who asks need not wait for the driver.
constexpr std::uint64_t kKeptBytes = 64u << 20;

cudaMemPool_t create_pool(int device) {
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  cudaMemPool_t pool = nullptr;
  check(cudaMemPoolCreate(&pool, &properties), "cudaMemPoolCreate");
  std::uint64_t kept = kKeptBytes;
  cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept);
  return pool;
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

Context *create_context(const ops::BackendContextOptions &options) {
  const int device = options.device_index, count = device_count();
  if (count == 0) fail(LYC_ERROR_UNSUPPORTED, "no CUDA device, or no driver for CUDA ", CUDART_VERSION / 1000);
  if (device < 0 || device >= count) fail(LYC_ERROR_NOT_FOUND, "CUDA device ", device, " of ", count);
  auto context = std::make_unique<Context>();
  context->device = device;
  context->private_runs = options.private_runs != 0;
  context->multiprocessors = attribute(device, cudaDevAttrMultiProcessorCount);
  context->shared_bytes = attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
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
    if (attribute(device, cudaDevAttrMemoryPoolsSupported)) context->pool = create_pool(device);
  } catch (...) {
    if (context->copies) {
      const DeviceScope scope(*context);
      cudaStreamDestroy(context->copies);
    }
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
    if (context->pool) cudaMemPoolDestroy(context->pool);
  }
  context->release(context->device);
  delete context;
}

void *allocate(Context &context, std::size_t size, cudaStream_t stream) {
  const UncapturedScope uncaptured;
  void *memory = nullptr;
  if (!context.pool) {
    check(cudaMalloc(&memory, size), "cudaMalloc");
    return memory;
  }
  check(cudaMallocFromPoolAsync(&memory, size, context.pool, stream ? stream : context.copies),
        "cudaMallocFromPoolAsync");
  if (!stream) check(cudaStreamSynchronize(context.copies), "cudaStreamSynchronize");
  return memory;
}

void release(Context &context, void *memory, cudaStream_t stream) noexcept {
  const UncapturedScope uncaptured;
  if (context.pool)
    cudaFreeAsync(memory, !stream && context.private_runs ? context.copies : stream);
  else
    cudaFree(memory);
}

void copy(Context &context, void *to, const void *from, std::size_t size, cudaMemcpyKind kind) {
  const UncapturedScope uncaptured;
  check(cudaMemcpyAsync(to, from, size, kind, context.copies), "cudaMemcpyAsync");
  check(cudaStreamSynchronize(context.copies), "cudaStreamSynchronize");
}

void *allocate_tables(Context &context, std::size_t size) {
  if (context.private_runs) return allocate(context, size, nullptr);
  const UncapturedScope uncaptured;
  void *memory = nullptr;
  check(cudaMalloc(&memory, size), "cudaMalloc");
  return memory;
}

void release_tables(Context &context, void *memory) noexcept {
  if (context.private_runs) return release(context, memory, context.copies);
  const UncapturedScope uncaptured;
  cudaFree(memory);
}

void *allocate_host(std::size_t size) {
  const UncapturedScope uncaptured;
  void *memory = nullptr;
  check(cudaHostAlloc(&memory, size, cudaHostAllocDefault), "cudaHostAlloc");
  return memory;
}

cudaStream_t create_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return stream;
}

void wait(cudaStream_t stream) {
  const UncapturedScope uncaptured;
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

}  // namespace lyc::cuda
