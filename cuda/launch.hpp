// Enqueuing a kernel.
#pragma once

#include <cstddef>
#include <cuda_runtime_api.h>

namespace lyc::cuda {

/// Where to. `early`: a kernel may be set up while the one before it ends, which takes Hopper or later; every kernel of
/// ours waits for that one in begin_kernel(), before it touches memory.
struct Launch {
  cudaStream_t stream;
  bool early;
};

inline cudaError_t launch_kernel(const void *kernel, unsigned blocks, int threads, std::size_t shared_bytes,
                                 const Launch &on, void **arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = on.stream;
  config.attrs = &attribute;
  config.numAttrs = on.early ? 1 : 0;
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

/// The same with the arguments' types checked.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), unsigned blocks, int threads, const Launch &on,
                          Arguments... arguments) {
  void *addresses[] = {&arguments...};
  return launch_kernel(reinterpret_cast<const void *>(kernel), blocks, threads, 0, on, addresses);
}

}  // namespace lyc::cuda
