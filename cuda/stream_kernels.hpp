// Launching the streaming kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/weight.hpp"
#include "stream_table.hpp"
#include "weight_kernels.hpp"

namespace lyc::cuda {

/// With DoRA: sums of squares into the workspace first, then, once they have become factors, the merge.
enum class StreamPass : std::int32_t { kMerge, kNorms };

struct StreamRun {
  ops::WeightOp op;
  StreamPass pass;
  Multipliers multipliers;
  char *workspace;
};

/// Blocks that one multiprocessor of the current device holds at once; also lets the kernel have its shared memory.
cudaError_t resident_blocks(StreamKind kind, int *blocks);

/// Enqueue one launch of at most `blocks` blocks for all targets of the table, or for `only` if it has none.
cudaError_t launch_stream(StreamKind kind, const StreamTable &table, const StreamTarget &only, int blocks,
                          const StreamRun &run, cudaStream_t stream);

}  // namespace lyc::cuda
