// Which layer of an adapter goes to which rows of which tensor of a base.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/definition.hpp"
#include "io/dialect/dialect.hpp"
#include "io/tensor_entry.hpp"

namespace lyc {

/// The layers of one adapter, wherever they are.
struct MatchSource {
  std::string name;  // for messages
  std::vector<std::string> layers;
  std::vector<const Definition *> definitions;  // beside `layers`
  std::size_t leftover_count = 0;               // keys that are no layer
  std::string first_leftover;                   // and the reason of the first
};

struct MatchFilter {
  std::vector<std::string> includes, excludes;  // shell wildcards over the tensor's or the layer's name
};

/// Rows of a tensor and the adapter that changes them.
struct Assignment {
  std::size_t tensor = 0;  // in the base
  std::size_t source = 0, layer = 0;
  lyc_part part = LYC_PART_WEIGHT;
  std::int64_t base_row = 0, rows = 0, adapter_row = 0;
  bool transposed = false;  // the base stores this weight as [in, out]
  std::optional<std::size_t> weight;  // of a bias: its layer's weight, with the same rows
};

enum class Outcome { kMatched, kExcluded, kUnmatched };

struct LayerMatch {
  std::size_t source = 0, layer = 0;
  Outcome outcome = Outcome::kUnmatched;
  std::string reason;  // of kUnmatched
};

struct Match {
  std::vector<Assignment> assignments;  // ordered by tensor
  std::vector<LayerMatch> layers;       // all of them
  std::size_t count(Outcome outcome) const;
};

/// Errors: MISMATCH (a layer that found its weight does not fit it).
Match match(const std::vector<io::TensorEntry> &base, const std::string &base_name,
            const std::vector<MatchSource> &sources, const MatchFilter &filter);

/// MISMATCH unless every layer and key found its place, or `allow_unmatched` and some did.
void require_matched(const Match &match, const std::string &base_name, const std::vector<MatchSource> &sources,
                     bool allow_unmatched);

/// A run of rows of one tensor to which the same assignments apply.
struct Segment {
  std::int64_t row_begin = 0, row_count = 0;
  std::vector<const Assignment *> assignments;
};

/// Cut the rows of one tensor where assignments begin and end: what lies between has the same adapters all along.
/// Rows that nothing changes are left out.
std::vector<Segment> segments(const Assignment *begin, const Assignment *end);

/// Where the delta's rows of an assignment go in a segment.
Placement placement_in(const Segment &segment, const Assignment &assignment, std::int32_t multiplier_index);

}  // namespace lyc
