// A prepared batch: its tables in device memory, and the few launches that run it.
#pragma once

#include <cstddef>
#include <string>

#include "context.hpp"
#include "weight_layout.hpp"

namespace lyc::ops {

struct WeightPlan {
  lyc::cuda::BackendContext *context = nullptr;
  lyc::cuda::WeightLayout layout;  // the host's copy, for explanations
  void *memory = nullptr;          // one allocation for all tables
  std::vector<lyc::cuda::TargetTable> tables;  // of layout.groups
  std::int32_t multiplier_count = 0;
  WeightPlanInfo info{};
};

}  // namespace lyc::ops

namespace lyc::cuda {

ops::WeightPlan *prepare(BackendContext &context, const ops::WeightBatch &batch);
void run(ops::WeightPlan &plan, const ops::RunOptions &options);
std::string explain(const ops::WeightPlan &plan);

/// Waits for the device, because runs may still be reading the tables.
void release(ops::WeightPlan *plan) noexcept;

}  // namespace lyc::cuda
