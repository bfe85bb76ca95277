#include "core/match.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "base/wildcard.hpp"
#include "io/names/resolver.hpp"

namespace lyc {
namespace {

bool any_matches(const std::vector<std::string> &patterns, std::string_view tensor, std::string_view layer) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const std::string &pattern) {
    return matches_wildcard(pattern, tensor) || matches_wildcard(pattern, layer);
  });
}

bool is_used(const MatchFilter &filter, std::string_view tensor, std::string_view layer) {
  return (filter.includes.empty() || any_matches(filter.includes, tensor, layer)) &&
         !any_matches(filter.excludes, tensor, layer);
}

class Matcher {
 public:
  Matcher(const std::vector<io::TensorEntry> &base, const MatchFilter &filter)
      : base_(base), filter_(filter), resolver_(base) {}

  LayerMatch add(const std::string &layer, const Definition &definition, std::size_t source, std::size_t index,
                 std::vector<Assignment> &assignments) {
    LayerMatch result{source, index, Outcome::kUnmatched, {}};
    const io::Resolution resolution = resolver_.resolve(layer);
    if (!resolution) {
      result.reason = resolution.failure;
      return result;
    }
    if (resolution.adapter_rows != definition.shape.out)
      fail(LYC_ERROR_MISMATCH, "the delta has ", definition.shape.out, " rows, ", name_of(resolution.targets.front()),
           " takes ", resolution.adapter_rows);
    std::vector<Assignment> found;
    for (lyc_part part : {LYC_PART_WEIGHT, LYC_PART_BIAS}) {
      if (!definition.has_part(part)) continue;
      for (const io::RowTarget &target : resolution.targets) {
        const auto tensor = part == LYC_PART_WEIGHT ? target.weight : target.bias;
        if (!tensor) {
          result.reason = concat("the base's layer has no ", part == LYC_PART_WEIGHT ? "weight" : "bias");
          return result;
        }
        found.push_back({*tensor, source, index, part, target.base_row, target.rows, target.adapter_row,
                         target.transposed && part == LYC_PART_WEIGHT});
      }
    }
    result.outcome = Outcome::kExcluded;
    for (const Assignment &assignment : found) {
      if (!is_used(filter_, base_[assignment.tensor].name, layer)) continue;
      assignments.push_back(assignment);
      result.outcome = Outcome::kMatched;
    }
    return result;
  }

 private:
  std::string name_of(const io::RowTarget &target) const {
    return std::string(base_[target.weight ? *target.weight : *target.bias].name);
  }

  const std::vector<io::TensorEntry> &base_;
  const MatchFilter &filter_;
  io::NameResolver resolver_;
};

}  // namespace

std::size_t Match::count(Outcome outcome) const {
  return static_cast<std::size_t>(std::count_if(layers.begin(), layers.end(),
                                                [&](const LayerMatch &layer) { return layer.outcome == outcome; }));
}

Match match(const std::vector<io::TensorEntry> &base, const std::string &base_name,
            const std::vector<MatchSource> &sources, const MatchFilter &filter) {
  Match result;
  Matcher matcher(base, filter);
  for (std::size_t s = 0; s < sources.size(); ++s)
    for (std::size_t l = 0; l < sources[s].layers.size(); ++l) try {
        result.layers.push_back(
            matcher.add(sources[s].layers[l], *sources[s].definitions[l], s, l, result.assignments));
      } catch (const Error &error) {
        throw Error(error.status(), concat(sources[s].name, " does not fit ", base_name, ": ", sources[s].layers[l],
                                           ": ", error.what()));
      }
  std::stable_sort(result.assignments.begin(), result.assignments.end(),
                   [](const Assignment &a, const Assignment &b) { return a.tensor < b.tensor; });
  return result;
}

void require_matched(const Match &match, const std::string &base_name, const std::vector<MatchSource> &sources,
                     bool allow_unmatched) {
  for (std::size_t s = 0; s < sources.size(); ++s) {
    std::size_t unmatched = 0, others = 0;
    const LayerMatch *first = nullptr;
    for (const LayerMatch &layer : match.layers) {
      if (layer.source != s) continue;
      (layer.outcome == Outcome::kUnmatched ? unmatched : others) += 1;
      if (layer.outcome == Outcome::kUnmatched && !first) first = &layer;
    }
    if (first && others == 0)
      fail(LYC_ERROR_MISMATCH, sources[s].name, " is not for this base: none of its ", unmatched,
           " layers finds a weight in ", base_name, "; ", sources[s].layers[first->layer], ": ", first->reason);
    if (allow_unmatched) continue;
    if (first)
      fail(LYC_ERROR_MISMATCH, sources[s].name, ": ", unmatched, " of ", unmatched + others,
           " layers find no weight in ", base_name, "; ", sources[s].layers[first->layer], ": ", first->reason);
    if (sources[s].leftover_count > 0)
      fail(LYC_ERROR_MISMATCH, sources[s].name, ": ", sources[s].leftover_count, " keys cannot be used; ",
           sources[s].first_leftover);
  }
}

std::vector<Segment> segments(const Assignment *begin, const Assignment *end) {
  std::vector<std::int64_t> cuts;
  for (const Assignment *a = begin; a != end; ++a) {
    cuts.push_back(a->base_row);
    cuts.push_back(a->base_row + a->rows);
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  std::vector<Segment> result;
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
    Segment segment{cuts[i], cuts[i + 1] - cuts[i], {}};
    for (const Assignment *a = begin; a != end; ++a)
      if (a->base_row <= cuts[i] && cuts[i] < a->base_row + a->rows) segment.assignments.push_back(a);
    if (!segment.assignments.empty()) result.push_back(std::move(segment));
  }
  return result;
}

Placement placement_in(const Segment &segment, const Assignment &assignment, std::int32_t multiplier_index) {
  return {assignment.adapter_row + segment.row_begin - assignment.base_row, segment.row_count, multiplier_index,
          assignment.part};
}

}  // namespace lyc
