// From targets with Kronecker products alone to the tables of their kernels. Pure host code.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "kronecker_table.hpp"
#include "products.hpp"

namespace lyc::cuda {

struct KroneckerGroup {
  std::vector<KroneckerTarget> targets;
  PieceCounter tiles;
};

struct KroneckerLayout {
  std::array<KroneckerGroup, kKroneckerKinds> groups;
  std::vector<KroneckerTerm> terms;  // of all groups
  bool reads_base = false;           // also for a difference
};

class KroneckerLayoutBuilder {
 public:
  KroneckerLayoutBuilder(const ops::WeightBatch &batch, Products &products) : batch_(batch), products_(products) {}

  /// Whether its sum is one of Kronecker products of equal halves, and its memory is what these kernels take.
  bool takes(const ops::WeightTarget &target) const;
  void add(const ops::WeightTarget &target);
  KroneckerLayout take() { return std::move(layout_); }

 private:
  bool takes(const ops::WeightTarget &target, const ops::Term &term) const;
  void add_term(const ops::WeightTarget &target, const ops::Term &term, std::int32_t multiplier_index);

  const ops::WeightBatch &batch_;
  Products &products_;
  KroneckerLayout layout_;
};

std::string describe(const KroneckerLayout &layout);

}  // namespace lyc::cuda
