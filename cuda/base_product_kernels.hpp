// Launching the kernel for weights with products of themselves.
#pragma once

#include "base_product_table.hpp"
#include "weight_kernels.hpp"

namespace lyc::cuda {

/// Clusters of so many blocks that the current device holds at once; also lets the kernel have its shared memory.
cudaError_t resident_base_clusters(int cluster, int *clusters);

struct BaseRun {
  BaseTarget only;  // where the table has no targets
  BaseTable table;
  ops::WeightOp op;
  Multipliers multipliers;
  int cluster, clusters;
};

/// Enqueue one launch for all targets of the table.
cudaError_t launch_base_products(const BaseRun &run, const Launch &on);

}  // namespace lyc::cuda
