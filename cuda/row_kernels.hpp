// Launching the kernels that hold whole rows on the chip.
#pragma once

#include "stream_kernels.hpp"

namespace lyc::cuda {

/// How a device takes the rows of a group of weights.
struct RowShape {
  int boxes;     // of a band, that a block has at most
  int slots;     // bands that it has in shared memory
  int clusters;  // that the device holds at once; 0: not one
};

/// The best one for the current device; also lets the kernel have its shared memory.
cudaError_t fit_rows(const StreamKind &kind, int boxes, RowShape *shape);

/// Enqueue one launch for all targets of the table, or for `only` if it has none.
cudaError_t launch_rows(const StreamKind &kind, const RowShape &shape, const StreamTable &table,
                        const StreamTarget &only, const StreamRun &run, const Launch &on);

}  // namespace lyc::cuda
