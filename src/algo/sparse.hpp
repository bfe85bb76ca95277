// Sparse differences, which may stand beside low-rank ones.
#pragma once

#include "algo/families.hpp"

namespace lyc::algo {

bool has_sparse(const Factors &factors);
DeltaShape describe_sparse(const Factors &factors, const Traits &traits);
void lower_sparse(Lowering &to);
extern const Rewriting kSparseRewriting;

}  // namespace lyc::algo
