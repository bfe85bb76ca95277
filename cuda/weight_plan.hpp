// A prepared batch: its tables in device memory, and the few launches that run it.
#pragma once

#include <cstddef>
#include <string>

#include "context.hpp"
#include "elementwise_kernels.hpp"
#include "rotation_kernels.hpp"
#include "row_kernels.hpp"
#include "weight_layout.hpp"

namespace lyc::cuda {

struct WeightPlan {
  Context *context = nullptr;
  WeightLayout layout;                                          // the host's copy, for explanations
  void *memory = nullptr;                                       // one allocation for all tables
  std::vector<TargetTable> tables;                              // of layout.groups
  std::vector<StreamTarget> only;                               // the first of each of layout.streams
  std::vector<StreamTable> streams;                             // of layout.streams
  std::vector<int> stream_blocks;                               // that the device holds at once, of tiles
  std::vector<RowShape> row_shapes;                             // of whole rows
  std::vector<TurnRun> turns;                                   // likewise, of layout.streams
  std::array<ElementwiseRun, kElementwiseKinds> elementwise{};  // what is known before a run; no tiles: nothing to do
  TermTables terms{};                                           // of layout.others, and how their work is cut
  Schedule tiles{}, norms{}, rotation_blocks{}, factor_blocks{};
  const FactorTask *factors = nullptr;
  const RotationTask *rotations = nullptr;
  std::int32_t limited_rotations = 0;
  std::vector<Schedule> stages;
  std::vector<std::array<Schedule, kConeKinds>> passes;
  std::array<std::array<Schedule, kContractionKinds>, kContractionStages> contraction_pieces{};
  std::array<const Contraction *, kContractionStages> contractions{};
  std::int32_t multiplier_count = 0;
  ops::WeightPlanInfo info{};
};

WeightPlan *prepare(Context &context, const ops::WeightBatch &batch);
void run(WeightPlan &plan, const ops::RunOptions &options);
std::string explain(const WeightPlan &plan);

/// Waits for the device where runs may still be reading the tables.
void release(WeightPlan *plan) noexcept;

}  // namespace lyc::cuda
