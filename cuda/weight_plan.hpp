// A prepared batch: its tables in device memory, and the few launches that run it.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>

#include "base_product_kernels.hpp"
#include "context.hpp"
#include "elementwise_kernels.hpp"
#include "elementwise_rows.hpp"
#include "flat_kernels.hpp"
#include "panel_kernels.hpp"
#include "product_kernels.hpp"
#include "rotation_kernels.hpp"
#include "row_kernels.hpp"
#include "weight_layout.hpp"

namespace lyc::cuda {

struct WeightPlan {
  Context *context = nullptr;
  WeightLayout layout;                                            // the host's copy, for explanations
  void *memory = nullptr;                                         // one allocation for all tables
  std::vector<PanelRun> panels;                                   // of layout.panels, what is known before a run
  std::vector<TargetTable> tables;                                // of layout.groups
  std::vector<StreamTarget> only;                                 // the first of each of layout.streams
  std::vector<StreamTable> streams;                               // of layout.streams
  std::vector<int> stream_blocks;                                 // that the device holds at once, of tiles
  std::vector<RowShape> row_shapes;                               // of whole rows
  std::vector<TurnRun> turns;                                     // likewise, of layout.streams
  std::vector<BaseRun> base_products;                             // of layout.base_products, likewise
  std::array<ElementwiseRun, kElementwiseKinds> elementwise{};    // what is known before a run; no tiles: nothing to do
  std::vector<ElementwiseRowsRun> elementwise_rows;               // of layout.elementwise.rows
  std::array<std::optional<FlatTarget>, kElementwiseKinds> flat;  // in place of it
  TermTables terms{};                                             // of layout.others, and how their work is cut
  Schedule tiles{}, norms{}, rotation_blocks{}, factor_blocks{};
  const FactorTask *factors = nullptr;
  const RotationTask *rotations = nullptr;
  std::int32_t limited_rotations = 0;
  std::vector<Schedule> stages;
  std::vector<std::array<Schedule, kConeKinds>> passes;
  std::vector<std::array<ContractionRun, kContractionKinds>> contractions;  // of stages, if any; no pieces: none
  std::int32_t multiplier_count = 0;
  ops::WeightPlanInfo info{};
};

WeightPlan *prepare(Context &context, const ops::WeightBatch &batch);
void run(WeightPlan &plan, const ops::RunOptions &options);
std::string explain(const WeightPlan &plan);

/// Waits for the device where runs may still be reading the tables.
void release(WeightPlan *plan) noexcept;

}  // namespace lyc::cuda
