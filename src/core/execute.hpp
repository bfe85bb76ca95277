// Arrays of targets run at once and forgotten: what file-to-file work needs, where every block is another one.
#pragma once

#include <vector>

#include "core/context.hpp"
#include "core/definition.hpp"
#include "core/transfer.hpp"

namespace lyc {

/// Merge (or, with `op`, take the difference of) all targets; the work is done on return.
void run_weights(lyc_context &context, Stream &stream, const WeightArrays &arrays,
                 const std::vector<float> &multipliers, ops::WeightOp op = ops::WeightOp::kMerge);

}  // namespace lyc
