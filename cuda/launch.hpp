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

/// A multiple of `cluster` blocks; so many of them at a time can reach each other's shared memory, where it is not 1.
inline cudaError_t launch_kernel(const void *kernel, unsigned blocks, int threads, std::size_t shared_bytes,
                                 const Launch &on, void **arguments, int cluster = 1) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (on.early) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(cluster);
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = on.stream;
  config.attrs = attributes;
  config.numAttrs = count;
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
