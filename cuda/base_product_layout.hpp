// Which weights the kernel for products of the weight can take (base_product_kernels.cu). Pure host code.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base_product_table.hpp"
#include "products.hpp"

namespace lyc::cuda {

/// Weights whose rows as many blocks share out, in one launch.
struct BaseGroup {
  int cluster = 2;
  std::vector<BaseTarget> targets;
  std::vector<std::uint32_t> first_run;  // of each
  std::uint32_t run_count = 0;
};

/// The target, if it has one product of the weight and at most one other term, both of plain factors.
std::optional<BaseTarget> base_product(const ops::WeightBatch &batch, const ops::WeightTarget &target,
                                       int largest_cluster);
int cluster_of(const BaseTarget &target);

/// Cut targets into runs, for a device on which so many clusters run at once.
void schedule(BaseGroup &group, int clusters);

std::string describe(const BaseGroup &group);

}  // namespace lyc::cuda
