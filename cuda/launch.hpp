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

/// A launch's configuration with room for its attributes. A multiple of `cluster` blocks; so many of them at a time can
/// reach each other's shared memory, where it is not 1.
class LaunchConfig {
 public:
  LaunchConfig(unsigned blocks, int threads, std::size_t shared_bytes, int cluster) {
    config_.gridDim = dim3(blocks);
    config_.blockDim = dim3(static_cast<unsigned>(threads));
    config_.dynamicSmemBytes = shared_bytes;
    config_.attrs = attributes_;
    if (cluster == 1) return;
    cudaLaunchAttribute &attribute = attributes_[config_.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  LaunchConfig(const LaunchConfig &) = delete;  // it points into itself
  LaunchConfig &operator=(const LaunchConfig &) = delete;

  void put(const Launch &on) {
    config_.stream = on.stream;
    if (!on.early) return;
    cudaLaunchAttribute &attribute = attributes_[config_.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }

  const cudaLaunchConfig_t *get() const { return &config_; }

 private:
  cudaLaunchAttribute attributes_[2] = {};
  cudaLaunchConfig_t config_ = {};
};

inline cudaError_t launch_kernel(const void *kernel, unsigned blocks, int threads, std::size_t shared_bytes,
                                 const Launch &on, void **arguments, int cluster = 1) {
  LaunchConfig config(blocks, threads, shared_bytes, cluster);
  config.put(on);
  return cudaLaunchKernelExC(config.get(), kernel, arguments);
}

/// How many clusters the device holds at once; 0 where it cannot hold one.
inline cudaError_t resident_clusters(const void *kernel, int threads, std::size_t shared_bytes, int cluster,
                                     int *clusters) {
  *clusters = 0;
  const LaunchConfig config(static_cast<unsigned>(cluster), threads, shared_bytes, cluster);
  const cudaError_t status = cudaOccupancyMaxActiveClusters(clusters, kernel, config.get());
  return status == cudaErrorInvalidClusterSize ? cudaSuccess : status;
}

/// The same with the arguments' types checked.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), unsigned blocks, int threads, const Launch &on,
                          Arguments... arguments) {
  void *addresses[] = {&arguments...};
  return launch_kernel(reinterpret_cast<const void *>(kernel), blocks, threads, 0, on, addresses);
}

}  // namespace lyc::cuda
