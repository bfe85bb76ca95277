// Which weights the streaming kernel can take, and how it sees them. Pure host code, as weight_layout.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "stream_table.hpp"
#include "weight_table.hpp"

namespace lyc::cuda {

/// A tensor as the copy engine sees it: boxes of a matrix of 16-bit elements.
struct MapSpec {
  void *data;
  bool bf16;
  std::int64_t inner, outer, pitch_bytes;
  std::int32_t box_inner, box_outer;  // box_inner * 2 bytes is also the span that is swizzled
};

/// A StreamTarget before its maps are encoded. Maps that it does not use have no data.
struct StreamWeight {
  StreamKind kind{1, StreamForm::kSingle, true};
  StreamTarget target{};
  MapSpec base{}, out{}, row[kMaxStreamProducts]{}, column[kMaxStreamProducts]{};
};

/// The weight, if every tensor of it lies as the copy engine needs it and its ranks fit into registers.
std::optional<StreamWeight> stream_weight(const MatrixTarget &target, const std::vector<LowRankTerm> &terms);

/// Weights of one launch.
struct StreamGroup {
  StreamKind kind;
  std::vector<StreamWeight> weights;

  /// Tiles before each weight, and of all of them at the end.
  std::vector<std::uint32_t> first_tiles() const;
};

}  // namespace lyc::cuda
