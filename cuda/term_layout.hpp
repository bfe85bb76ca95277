// From targets with terms of any kind to the tables of their kernels. Pure host code: no CUDA, no device memory.
#pragma once

#include <string>
#include <vector>

#include "products.hpp"

namespace lyc::cuda {

struct TermLayout {
  std::vector<TermTarget> targets;
  std::vector<AdapterEntry> adapters;
  std::vector<TermEntry> terms;
  std::vector<NormTask> norms;
  std::vector<PieceCounter> stages;  // of each stage, an entry for each rotation: none where it has fewer
  std::vector<std::array<PieceCounter, kConeKinds>> passes;  // of several stages each, likewise, by kernel
  std::int32_t cone_rows = 0;                                // that a block of threads takes at most in one, in float32
  PieceCounter tiles, norm_tiles;
  bool reads_base = false;  // also for a difference
};

/// Adds targets one by one. Throws for what does not fit together.
class TermLayoutBuilder {
 public:
  /// Blocks of threads can have `shared_bytes` of shared memory.
  TermLayoutBuilder(const ops::WeightBatch &batch, int shared_bytes, Products &products, TermLayout &layout)
      : batch_(batch), shared_bytes_(shared_bytes), products_(products), layout_(layout) {}

  void add(const ops::WeightTarget &target);
  void finish();  // after the last one

 private:
  const ops::WeightBatch &batch_;
  const int shared_bytes_;
  Products &products_;
  TermLayout &layout_;
};

std::string describe(const TermLayout &layout);

}  // namespace lyc::cuda
