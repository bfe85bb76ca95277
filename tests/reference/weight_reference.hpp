// The formulas of ops/weight.hpp as plain loops in float64: what every back end is compared with.
#pragma once

#include <vector>

#include "ops/weight.hpp"

namespace lyc::test {

/// For each target its values in the order [O, I, K], before any rounding. `multipliers` null = all 1.
std::vector<std::vector<double>> reference_weight(const ops::WeightBatch &batch, ops::WeightOp op,
                                                  const float *multipliers);

}  // namespace lyc::test
