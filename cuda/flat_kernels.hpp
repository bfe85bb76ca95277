// Launching the kernel for one weight with one elementwise term.
#pragma once

#include "elementwise_table.hpp"
#include "weight_kernels.hpp"

namespace lyc::cuda {

/// Enqueue one launch.
cudaError_t launch_flat(const FlatTarget &target, ops::WeightOp op, const Multipliers &multipliers,
                        const char *workspace, const Launch &on);

}  // namespace lyc::cuda
