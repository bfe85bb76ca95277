// Launching small products that others read: Tucker cores with what is below them, halves of Kronecker products, the
// weight with a factor.
#pragma once

#include "launch.hpp"
#include "term_table.hpp"

namespace lyc::cuda {

inline constexpr int kCarriedContractions = 2;

/// All contractions of one kind and stage. So few travel with the launch, so that nobody has to look them up.
struct ContractionRun {
  Contraction carried[kCarriedContractions];
  const Contraction *contractions;
  Schedule schedule;
  std::uint32_t first_of_second;  // piece
};

cudaError_t launch_contractions(ContractionKind kind, const ContractionRun &run, char *workspace, const Launch &on);

}  // namespace lyc::cuda
