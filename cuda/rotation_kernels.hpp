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
  ops::WeightOp op;
  Multipliers multipliers;
  char *workspace;
};

/// Let the kernel have its shared memory; turn all targets of the table, or `only`.
cudaError_t allow_turns(bool bf16);
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
