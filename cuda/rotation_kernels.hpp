// Launching the kernels of rotations.
#pragma once

#include "term_table.hpp"
#include "weight_kernels.hpp"

namespace lyc::cuda {

struct RotationRun {
  const RotationTask *rotations;
  char *workspace;
  ops::WeightOp op;
  Multipliers multipliers;
};

/// |Q| of the first `limited` rotations, 0 if none wants it, then R - I of each stage and block.
cudaError_t launch_rotations(const RotationRun &run, int limited, const Schedule &blocks, const Launch &on);

/// Turn the weight by one stage of all rotations that have it.
cudaError_t launch_stage(const RotationRun &run, const Schedule &schedule, int stage, const Launch &on);

/// Let the kernel of launch_cones() have the shared memory that any pass takes.
cudaError_t allow_cones();

/// Turn the weight by several stages, one pass of all rotations that go so; none has more than `rows` rows at a time.
cudaError_t launch_cones(const RotationRun &run, const Schedule &schedule, int pass, int rows, const Launch &on);

}  // namespace lyc::cuda
