// From targets with elementwise terms alone to the tables of their kernels. Pure host code.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "elementwise_table.hpp"
#include "products.hpp"

namespace lyc::cuda {

struct ElementwiseGroup {
  std::vector<ElementwiseTarget> targets;
  PieceCounter tiles;
};

struct ElementwiseRowsGroup {
  ElementwiseRowsKind kind;
  std::vector<ElementwiseRows> targets;
  PieceCounter tiles;
  std::int32_t scales = 0;  // of a block, at most
};

struct ElementwiseLayout {
  std::array<ElementwiseGroup, kElementwiseKinds> groups;
  std::vector<ElementwiseRowsGroup> rows;  // none of them empty
  std::vector<ElementwiseTerm> terms;      // of all groups
  bool reads_base = false;                 // also for a difference
};

class ElementwiseLayoutBuilder {
 public:
  ElementwiseLayoutBuilder(const ops::WeightBatch &batch, Products &products, ElementwiseLayout &layout)
      : batch_(batch), products_(products), layout_(layout) {}

  /// Whether its terms and its memory are what these kernels take.
  bool takes(const ops::WeightTarget &target) const;
  void add(const ops::WeightTarget &target);

 private:
  bool takes_vectors(const ops::WeightTarget &target, std::int64_t vector) const;
  void add_rows(const ElementwiseTarget &entry, const DoraParameters &dora);
  void add_term(const ops::WeightTarget &target, const ops::Term &term, std::int32_t multiplier_index, bool turned);

  const ops::WeightBatch &batch_;
  Products &products_;
  ElementwiseLayout &layout_;
};

/// The only target of a group, if the kernel for one alone takes it.
std::optional<FlatTarget> flat_target(const ElementwiseLayout &layout, ElementwiseKind kind);

std::string describe(const ElementwiseLayout &layout);

}  // namespace lyc::cuda
