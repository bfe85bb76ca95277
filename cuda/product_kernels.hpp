// Launching small products that others read: Tucker cores with what is below them, halves of Kronecker products, the
// weight with a factor.
#pragma once

#include <cuda_runtime_api.h>

#include "term_table.hpp"

namespace lyc::cuda {

/// All contractions of one kind and stage.
cudaError_t launch_contractions(ContractionKind kind, const Contraction *contractions, const Schedule &schedule,
                                char *workspace, cudaStream_t stream);

}  // namespace lyc::cuda
