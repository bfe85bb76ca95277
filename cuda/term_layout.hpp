// From targets with terms of any kind to the tables of their kernels. Pure host code: no CUDA, no device memory.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "term_table.hpp"

namespace lyc::cuda {

/// Entries of one kind of work with the pieces that they are cut into.
struct PieceCounter {
  std::vector<std::uint32_t> first;
  std::uint32_t pieces = 0;

  void add(std::int64_t count);
};

struct TermLayout {
  std::vector<TermTarget> targets;
  std::vector<AdapterEntry> adapters;
  std::vector<TermEntry> terms;
  std::vector<NormTask> norms;
  std::array<std::vector<Contraction>, kContractionStages> contractions;

  PieceCounter tiles, norm_tiles, magnitudes;
  std::array<PieceCounter, kContractionStages> contraction_tiles;
  std::uint64_t workspace_size = 0;  // bytes
  bool reads_base = false;           // also for a difference
};

/// Adds targets one by one. Throws for what does not fit together.
class TermLayoutBuilder {
 public:
  explicit TermLayoutBuilder(const ops::WeightBatch &batch) : batch_(batch) {}

  void add(const ops::WeightTarget &target);
  TermLayout take() { return std::move(layout_); }

 private:
  const ops::WeightBatch &batch_;
  TermLayout layout_;
};

std::string describe(const TermLayout &layout);

}  // namespace lyc::cuda
