// From a batch of weight targets to the tables that kernels read. Pure host code: no CUDA, no device memory.
#pragma once

#include <string>
#include <vector>

#include "stream_layout.hpp"
#include "weight_table.hpp"

namespace lyc::cuda {

/// Targets for one kernel, with their tile schedule.
struct TargetGroup {
  KernelKind kind;
  std::vector<MatrixTarget> targets;
  std::vector<std::uint32_t> first_tile;
  std::uint32_t tile_count = 0;
  std::int32_t tile_rows = 0;
  std::int32_t chunk_capacity = 0;  // of the target with most ranks, up to what fits
};

struct WeightLayout {
  std::vector<StreamGroup> streams;  // none of them empty; nor of these:
  std::vector<TargetGroup> groups;
  std::vector<LowRankTerm> terms;  // of `groups`
  bool has_all_bases = true;
};

/// Turn every target into a matrix and group them by kernel; `copy_engine`: the device has one. Throws UNSUPPORTED for
/// what no kernel computes yet.
WeightLayout lay_out(const ops::WeightBatch &batch, bool copy_engine = false);

/// Choose the tile height and number the tiles, for a device on which `resident_warps` run at once.
void schedule(TargetGroup &group, std::int64_t resident_warps);

/// One line per group.
std::string describe(const WeightLayout &layout);

}  // namespace lyc::cuda
