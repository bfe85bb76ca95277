// Launching the Kronecker kernels.
#pragma once

#include "kronecker_table.hpp"
#include "weight_kernels.hpp"

namespace lyc::cuda {

struct KroneckerRun {
  const KroneckerTarget *targets;
  const KroneckerTerm *terms;
  Schedule tiles;
  ops::WeightOp op;
  Multipliers multipliers;
  const char *workspace;
};

/// Enqueue one launch for all targets of a kind.
cudaError_t launch_kronecker(KroneckerKind kind, const KroneckerRun &run, cudaStream_t stream);

}  // namespace lyc::cuda
