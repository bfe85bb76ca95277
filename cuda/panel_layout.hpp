// Which weights the panel kernels can take, and how they see them. Pure host code.
#pragma once

#include <optional>
#include <string>
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

struct PanelWeight {
  PanelKind kind;
  PanelTarget target;
};

/// The kernel and the target, if they can take it: contiguous rows of 16-bit elements, aligned factors of one dtype as
/// they are, one product or a Hadamard product of few ranks.
std::optional<PanelWeight> panel_low_rank(const MatrixTarget &target, const std::vector<LowRankTerm> &terms);
/// The same for a target whose one term is a Kronecker product of a whole left half and a right half of few ranks.
std::optional<PanelWeight> panel_kronecker(const ops::WeightBatch &batch, const ops::WeightTarget &target);

void add(PanelGroup &group, const PanelTarget &target);

std::string describe(const PanelGroup &group);

}  // namespace lyc::cuda
