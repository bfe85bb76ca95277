// Launching the kernels for elementwise terms with DoRA over rows.
#pragma once

#include "elementwise_table.hpp"
#include "weight_kernels.hpp"

namespace lyc::cuda {

struct ElementwiseRowsRun {
  ElementwiseRows only;  // the first: one alone travels with the launch
  const ElementwiseRows *targets;
  const ElementwiseTerm *terms;
  Schedule tiles;
  std::int32_t scales;  // of a block, at most: what its rows of the right half are multiplied by
  ops::WeightOp op;
  Multipliers multipliers;
  const char *workspace;
};

/// Enqueue one launch for all targets of a kind.
cudaError_t launch_elementwise_rows(const ElementwiseRowsKind &kind, const ElementwiseRowsRun &run, const Launch &on);

}  // namespace lyc::cuda
