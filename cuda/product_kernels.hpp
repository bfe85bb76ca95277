// Launching small products that others read: Tucker cores with what is below them, halves of Kronecker products, the
// weight with a factor.
#pragma once

#include "launch.hpp"
#include "term_table.hpp"

namespace lyc::cuda {

/// All contractions of one kind and stage; `first` is the first of them, which travels with the launch if it is alone.
cudaError_t launch_contractions(ContractionKind kind, const Contraction &first, const Contraction *contractions,
                                const Schedule &schedule, char *workspace, const Launch &on);

}  // namespace lyc::cuda
