// Launching the streaming kernel.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/weight.hpp"
#include "stream_table.hpp"
#include "weight_kernels.hpp"

namespace lyc::cuda {

/// Blocks that one multiprocessor of the current device holds at once; also lets the kernel have its shared memory.
cudaError_t resident_blocks(StreamKind kind, int *blocks);

/// Enqueue one launch of at most `blocks` blocks for all targets of the table, or for `only` if it has none.
cudaError_t launch_stream(StreamKind kind, const StreamTable &table, const StreamTarget &only, int blocks,
                          ops::WeightOp op, const Multipliers &multipliers, cudaStream_t stream);

}  // namespace lyc::cuda
