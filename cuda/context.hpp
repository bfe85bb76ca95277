// An opened device. Every entry point works inside a DeviceScope, so that the caller's current context is back on exit,
// also where there was none.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "base/error.hpp"
#include "ops/backend.hpp"

namespace lyc::cuda {

struct Context {
  int device = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;           // that a block of threads can have
  cudaMemPool_t pool = nullptr;   // ours, so that nobody else's is kept from shrinking; null where there are none
  cudaStream_t copies = nullptr;  // ours: never blocks on, or is blocked by, the legacy default stream
  bool private_runs = false;      // ops::BackendContextOptions

  // From the driver, by address: the file must load where there is no driver.
  CUcontext primary = nullptr;
  decltype(&cuCtxPushCurrent) push = nullptr;
  decltype(&cuCtxPopCurrent) pop = nullptr;
  decltype(&cuDevicePrimaryCtxRetain) retain = nullptr;
  decltype(&cuDevicePrimaryCtxRelease) release = nullptr;
  decltype(&cuTensorMapEncodeTiled) encode_map = nullptr;  // null where the device has no copy engine for tensors
};

/// Throw DEVICE, or OUT_OF_MEMORY, unless the call succeeded. Errors that others left in the runtime are neither read
/// nor cleared: only return codes count.
inline void check(cudaError_t status, const char *what) {
  if (status == cudaSuccess) return;
  throw Error(status == cudaErrorMemoryAllocation ? LYC_ERROR_OUT_OF_MEMORY : LYC_ERROR_DEVICE,
              concat(what, " failed: ", cudaGetErrorString(status)), static_cast<int>(status));
}

class DeviceScope {
 public:
  explicit DeviceScope(const Context &context) : pop_(context.pop) {
    if (context.push(context.primary) != CUDA_SUCCESS)
      fail(LYC_ERROR_DEVICE, "the primary context of CUDA device ", context.device, " cannot be made current");
  }
  ~DeviceScope() {
    CUcontext ours;
    pop_(&ours);
  }
  DeviceScope(const DeviceScope &) = delete;
  DeviceScope &operator=(const DeviceScope &) = delete;

 private:
  decltype(&cuCtxPopCurrent) pop_;
};

/// Allow allocation and synchronisation of ours while another thread captures a stream of its own.
class UncapturedScope {
 public:
  UncapturedScope() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~UncapturedScope() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  UncapturedScope(const UncapturedScope &) = delete;
  UncapturedScope &operator=(const UncapturedScope &) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

/// Devices of this machine; 0 without a driver.
int device_count();
void device_info(int index, lyc_device_info *info);

Context *create_context(const ops::BackendContextOptions &options);
void destroy_context(Context *context);

/// On the default stream, memory is ready for every stream at once; on another one, in that stream's order.
void *allocate(Context &context, std::size_t size, cudaStream_t stream);
void release(Context &context, void *memory, cudaStream_t stream) noexcept;

/// Copy through the context's own stream and wait for that: not ordered with work on other streams.
void copy(Context &context, void *to, const void *from, std::size_t size, cudaMemcpyKind kind);

/// Memory for the tables of a plan. Releasing waits for the device, because runs may still be reading them, unless runs
/// are private.
void *allocate_tables(Context &context, std::size_t size);
void release_tables(Context &context, void *memory) noexcept;

// What pipelines are made of: ops::Backend says what each does.
void *allocate_host(std::size_t size);
cudaStream_t create_stream();
void wait(cudaStream_t stream);

}  // namespace lyc::cuda
