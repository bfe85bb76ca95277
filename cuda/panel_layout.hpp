// Which weights the panel kernels can take, and how they see them. Pure host code.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "panel_table.hpp"
#include "products.hpp"

namespace lyc::cuda {

/// Weights of one launch.
struct PanelGroup {
  PanelKind kind;
  std::vector<PanelTarget> targets;
  PieceCounter blocks;
};

/// The kernel and the target, if they can take it: contiguous rows of 16-bit elements, aligned factors of one dtype as
/// they are, one product or a Hadamard product of few ranks.
std::optional<std::pair<PanelKind, PanelTarget>> panel_target(const MatrixTarget &target,
                                                              const std::vector<LowRankTerm> &terms);

void add(PanelGroup &group, const PanelTarget &target);

std::string describe(const PanelGroup &group);

}  // namespace lyc::cuda
