// All layers of one adapter file against one base.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "io/dialect/dialect.hpp"
#include "io/names/resolver.hpp"

namespace lyc::io {

struct MatchedLayer {
  std::size_t record;  // in the list of records
  Resolution resolution;
};

struct UnmatchedLayer {
  std::size_t record;
  std::string reason;
};

/// Every record is in one of the two, in the order of the records.
struct Matches {
  std::vector<MatchedLayer> matched;
  std::vector<UnmatchedLayer> unmatched;
};

/// Resolve the records of one file. Each target of a match has the tensors that the record changes. Where a file holds
/// a layer twice, under two names or fused and split, the first one is matched and the others say so: no rows of a
/// tensor are taken twice.
Matches match_layers(const std::vector<LayerRecord> &records, const NameResolver &resolver);

}  // namespace lyc::io
