// All layers of one adapter file against one base.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "io/names/resolver.hpp"

namespace lyc::io {

/// A layer as the file spells it, and what of it is changed. Borrowed.
struct AdaptedLayer {
  std::string_view name;
  bool weight = false, bias = false;
  bool bias_optional = false;  // a layer of the base without one is no obstacle
};

struct MatchedLayer {
  std::size_t layer;  // in the list of layers
  Resolution resolution;
};

struct UnmatchedLayer {
  std::size_t layer;
  std::string reason;
};

/// Every layer is in one of the two, in the order of the list.
struct Matches {
  std::vector<MatchedLayer> matched;
  std::vector<UnmatchedLayer> unmatched;
};

/// Resolve the layers of one file. Each target of a match has the tensors that the layer changes. Where a file holds a
/// layer twice, under two names or fused and split, the first one is matched and the others say so: no rows of a tensor
/// are taken twice.
Matches match_layers(const std::vector<AdaptedLayer> &layers, const NameResolver &resolver);

}  // namespace lyc::io
