// Launching the panel kernels.
#pragma once

#include "launch.hpp"
#include "panel_table.hpp"
#include "weight_kernels.hpp"

namespace lyc::cuda {

struct PanelRun {
  PanelTarget only;  // the first: one alone travels with the launch
  const PanelTarget *targets;
  Schedule blocks;
  int multiprocessors;
  int rows;  // of a panel
  ops::WeightOp op;
  Multipliers multipliers;
};

/// Enqueue one launch for all targets of a kind.
cudaError_t launch_panels(const PanelKind &kind, const PanelRun &run, const Launch &on);

}  // namespace lyc::cuda
