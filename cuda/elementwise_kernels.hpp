// Launching the elementwise kernels.
#pragma once

#include "elementwise_table.hpp"
#include "weight_kernels.hpp"

namespace lyc::cuda {

struct ElementwiseRun {
  const ElementwiseTarget *targets;
  const ElementwiseTerm *terms;
  Schedule tiles;
  ops::WeightOp op;
  Multipliers multipliers;
  const char *workspace;
};

/// Enqueue one launch for all targets of a kind.
cudaError_t launch_elementwise(ElementwiseKind kind, const ElementwiseRun &run, const Launch &on);

}  // namespace lyc::cuda
