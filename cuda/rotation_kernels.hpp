// Launching the kernels of rotations.
#pragma once

#include "stream_table.hpp"
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

/// A weight whose rows a rotation of one stage turns, where the copy engine moves it.
struct TurnTarget {
  TensorMap base, out;
  RotationTask rotation;
  std::int32_t rows, columns;
};

/// One alone travels with the launch, and `targets` is null.
struct TurnTable {
  const TurnTarget *targets;
  Schedule pieces;
};

struct TurnRun {
  TurnTarget only;  // where the table has no targets
  TurnTable table;
  std::uint32_t blocks, boxes, longer;  // boxes of each block of threads; the first `longer` have one more
  std::int32_t depth;                   // of a warp's ring
  ops::WeightOp op;
  Multipliers multipliers;
  char *workspace;
};

/// Let the kernel have all shared memory that a block can have, which gives the depth of its rings; turn all targets of
/// the table, or `only`.
cudaError_t fit_turns(bool bf16, int shared_bytes, std::int32_t *depth);
cudaError_t launch_turns(bool bf16, const TurnRun &run, const Launch &on);

/// Let the kernel of launch_cones() have the shared memory that any pass takes.
cudaError_t allow_cones(ConeKind kind);

/// Turn the weight by several stages, one pass of all rotations that go so; in float32 none has more than `rows` rows
/// at a time.
cudaError_t launch_cones(ConeKind kind, const RotationRun &run, const Schedule &schedule, int pass, int rows,
                         const Launch &on);

/// The same on the tensor cores.
cudaError_t allow_tensor_cones(ConeKind kind);
cudaError_t launch_tensor_cones(ConeKind kind, const RotationRun &run, const Schedule &schedule, int pass,
                                const Launch &on);

}  // namespace lyc::cuda
