// Launching the kernels for terms of every kind.
#pragma once

#include "term_table.hpp"
#include "weight_kernels.hpp"

namespace lyc::cuda {

struct TermRun {
  TermTables tables;
  char *workspace;
  ops::WeightOp op;
  Multipliers multipliers;
};

/// Sums of squares of what DoRA normalises.
cudaError_t launch_norms(const TermRun &run, const Schedule &schedule, cudaStream_t stream);

/// From those to the factors of each magnitude or line.
cudaError_t launch_factors(const FactorTask *tasks, const Schedule &schedule, const Multipliers &multipliers,
                           char *workspace, cudaStream_t stream);

/// Everything else, and the store.
cudaError_t launch_terms(const TermRun &run, const Schedule &schedule, cudaStream_t stream);

}  // namespace lyc::cuda
