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

/// Small products that others read: Tucker cores with what is below them, halves of Kronecker products, the weight
/// with a factor.
cudaError_t launch_contractions(const Contraction *contractions, const Schedule &schedule, char *workspace,
                                cudaStream_t stream);

/// Sums of squares of what DoRA normalises.
cudaError_t launch_norms(const TermRun &run, const Schedule &schedule, cudaStream_t stream);

/// From those to the factors of each magnitude or line.
cudaError_t launch_factors(const FactorTask *tasks, const Schedule &schedule, const Multipliers &multipliers,
                           char *workspace, cudaStream_t stream);

/// |Q| of all rotations, then R - I of each stage and block.
cudaError_t launch_rotations(const TermRun &run, int rotations, const Schedule &blocks, cudaStream_t stream);

/// Turn the weight by one stage of all rotations that have it.
cudaError_t launch_stage(const TermRun &run, const Schedule &schedule, int stage, cudaStream_t stream);

/// Everything else, and the store.
cudaError_t launch_terms(const TermRun &run, const Schedule &schedule, cudaStream_t stream);

}  // namespace lyc::cuda
