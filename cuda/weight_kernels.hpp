// Launching the weight kernels.
#pragma once

#include "launch.hpp"
#include "weight_table.hpp"

namespace lyc::cuda {

/// Multipliers of one run: device memory if not null, else the values.
struct Multipliers {
  const float *device;
  float values[kInlineMultipliers];
};

/// Blocks of this kernel that one multiprocessor of the current device holds at once; also lets the kernel have the
/// shared memory that it needs.
cudaError_t resident_blocks(KernelKind kind, int chunk_capacity, int *blocks);

struct LowRankRun {
  TargetTable table;
  ops::WeightOp op;
  Multipliers multipliers;
  const char *workspace;
};

/// Enqueue one launch for all targets of the table.
cudaError_t launch_low_rank(KernelKind kind, const LowRankRun &run, const Launch &on);

/// Enqueue the copy of host multipliers to device memory, by value through kernel parameters, so that a graph can hold
/// it.
cudaError_t launch_store_multipliers(const float *host, int count, float *device, const Launch &on);
inline constexpr int kStoredPerLaunch = 512;  // 2 KB of the 4 KB that kernel parameters have everywhere
constexpr int store_launches(int count) { return (count + kStoredPerLaunch - 1) / kStoredPerLaunch; }

}  // namespace lyc::cuda
