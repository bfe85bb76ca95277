// Which weights the streaming kernels can take, and how they see them. Pure host code, as weight_layout.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "products.hpp"
#include "stream_table.hpp"

namespace lyc::cuda {

/// A tensor of 16-bit elements as the copy engine sees it, the innermost axis first, which is contiguous: a weight's
/// four, or a factor's two.
struct MapSpec {
  void *data;
  bool bf16;
  std::int32_t axes;
  std::int64_t extent[4], pitch_bytes[3];  // pitches of all axes but the innermost
  std::int32_t box[4];                     // box[0] * 2 bytes is also the span that is swizzled
};

/// A StreamTarget before its maps are encoded, or a TurnTarget. Maps that it does not use have no data.
struct StreamWeight {
  StreamKind kind{1, StreamForm::kSingle, true, false};
  StreamTarget target{};
  MapSpec base{}, out{}, row[kMaxStreamProducts]{}, column[kMaxStreamProducts]{};
  RotationTask rotation{};  // kRotation
};

/// The adapter of a target with DoRA, whose magnitudes belong to lines: line -> magnitude is line / inside % count.
struct StreamMagnitudes {
  DoraParameters dora;
  bool by_row;
  std::int64_t inside, count;
};

/// The weight, if every tensor of it lies as the copy engine needs it and its ranks fit into registers. What a run
/// computes for it is in `products` already, and is packed now.
/// DoRA over rows takes whole ones where a cluster of at most `largest_cluster` blocks holds them.
std::optional<StreamWeight> stream_low_rank(const MatrixTarget &target, const std::vector<LowRankTerm> &terms,
                                            const StreamMagnitudes *magnitudes, int largest_cluster,
                                            Products &products);

/// The same for a target whose one term is a Kronecker product under DoRA or a rotation of its rows, which goes into
/// `products`.
std::optional<StreamWeight> stream_term(const ops::WeightBatch &batch, const ops::WeightTarget &target,
                                        int largest_cluster, Products &products);

/// Weights of one launch.
struct StreamGroup {
  StreamKind kind;
  std::vector<StreamWeight> weights;
  std::vector<std::uint32_t> first_run;  // of each weight
  std::uint32_t run_count = 0;

  std::int64_t tiles() const;
  /// Boxes of a band that a block of a cluster has at most.
  std::int32_t boxes() const;
};

/// Cut strips into runs, for a device on which so many blocks, or clusters of them, run at once.
void schedule(StreamGroup &group, std::int64_t resident_blocks);

/// How the work of rotations is cut: the kernel for these has no strips.
PieceCounter pieces_of_turns(const StreamGroup &group);

std::string describe(const StreamGroup &group);

}  // namespace lyc::cuda
