// Singular values of weights.
#pragma once

#include "ops/weight.hpp"

namespace lyc::cpu {

/// As ops::Backend::singular_triplets. In float64: the values at the small end are as good as those at the large one.
void singular_triplets(const ops::Operand &matrix, std::int64_t first, const ops::Operand &u, const ops::Operand &sigma,
                       const ops::Operand &v);

}  // namespace lyc::cpu
