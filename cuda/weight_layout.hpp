// From a batch of weight targets to the tables that kernels read. Pure host code: no CUDA, no device memory.
#pragma once

#include <string>
#include <vector>

#include "base_product_layout.hpp"
#include "elementwise_layout.hpp"
#include "panel_layout.hpp"
#include "stream_layout.hpp"
#include "term_layout.hpp"

namespace lyc::cuda {

/// Targets with low-rank terms alone, for one kernel, with their tile schedule.
struct TargetGroup {
  KernelKind kind;
  std::vector<MatrixTarget> targets;
  std::vector<std::uint32_t> first_tile;
  std::uint32_t tile_count = 0;
  std::int32_t tile_rows = 0;
  std::int32_t chunk_capacity = 0;  // of the target with most ranks, up to what fits
};

struct WeightLayout {
  std::vector<PanelGroup> panels;  // none of them empty; nor of these:
  std::vector<StreamGroup> streams;
  std::vector<BaseGroup> base_products;
  std::vector<TargetGroup> groups;
  std::vector<LowRankTerm> terms;  // of all groups
  ElementwiseLayout elementwise;   // targets with elementwise terms alone
  TermLayout others;               // targets with other terms
  Products products;               // that all of them need
  bool reads_base = false;         // also for a difference
  bool has_all_bases = true;
};

/// What a device can do beyond what all can.
struct DeviceFeatures {
  bool copy_engine = false;
  int largest_cluster = 0;       // blocks that hold rows together, where there is a copy engine
  int shared_bytes = 99 * 1024;  // that a block of threads can have
};

/// Turn every target into a matrix and group them by kernel. Throws for what does not fit together.
WeightLayout lay_out(const ops::WeightBatch &batch, const DeviceFeatures &device = {});

/// Choose the tile height and number the tiles, for a device on which `resident_warps` run at once.
void schedule(TargetGroup &group, std::int64_t resident_warps);

/// One line per group.
std::string describe(const WeightLayout &layout);

}  // namespace lyc::cuda
