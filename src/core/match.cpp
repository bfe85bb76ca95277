#include "core/match.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "base/wildcard.hpp"
#include "io/names/match.hpp"

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

std::vector<io::AdaptedLayer> adapted_layers(const MatchSource &source) {
  std::vector<io::AdaptedLayer> layers;
  for (std::size_t i = 0; i < source.layers.size(); ++i)
    layers.push_back({source.layers[i], source.definitions[i]->has_part(LYC_PART_WEIGHT),
                      source.definitions[i]->has_part(LYC_PART_BIAS), source.definitions[i]->shape.bias_optional});
  return layers;
}

/// What a layer that found its tensors changes, as far as the filter lets it.
std::vector<Assignment> assign(const io::Resolution &resolution, const Definition &definition,
                               const std::vector<io::TensorEntry> &base, std::string_view layer,
                               const MatchFilter &filter) {
  std::vector<Assignment> assignments;
  for (lyc_part part : {LYC_PART_WEIGHT, LYC_PART_BIAS}) {
    if (!definition.has_part(part)) continue;
    for (const io::RowTarget &target : resolution.targets) {
      if (part == LYC_PART_BIAS && !target.bias) continue;  // it is optional
      const std::size_t tensor = part == LYC_PART_WEIGHT ? *target.weight : *target.bias;
      const bool padded = part == LYC_PART_WEIGHT && !definition.reshape.empty();
      if (padded && (resolution.targets.size() != 1 || target.base_row != 0 || target.rows != base[tensor].dim(0)))
        fail(LYC_ERROR_UNSUPPORTED, "reshape_weight on a part of ", base[tensor].name);
      const std::int64_t rows = padded ? definition.reshape[0] : resolution.adapter_rows;
      if (definition.shape.out && rows != definition.shape.out)
        fail(LYC_ERROR_MISMATCH, "the delta has ", definition.shape.out, " rows, ", base[tensor].name, " takes ", rows);
      if (!is_used(filter, base[tensor].name, layer)) continue;
      Assignment assignment;
      assignment.tensor = tensor;
      assignment.part = part;
      assignment.base_row = target.base_row;
      assignment.rows = padded ? rows : target.rows;
      assignment.adapter_row = target.adapter_row;
      assignment.transposed = target.transposed && part == LYC_PART_WEIGHT;
      if (part == LYC_PART_BIAS) assignment.weight = target.weight;
      assignments.push_back(assignment);
    }
  }
  return assignments;
}

}  // namespace

std::size_t Match::count(Outcome outcome) const {
  return static_cast<std::size_t>(
      std::count_if(layers.begin(), layers.end(), [&](const LayerMatch &layer) { return layer.outcome == outcome; }));
}

Match match(const std::vector<io::TensorEntry> &base, const std::string &base_name,
            const std::vector<MatchSource> &sources, const MatchFilter &filter) {
  Match result;
  const io::NameResolver resolver(base);
  for (std::size_t s = 0; s < sources.size(); ++s) {
    const MatchSource &source = sources[s];
    const io::Matches found = io::match_layers(adapted_layers(source), resolver);
    for (const io::MatchedLayer &layer : found.matched) try {
        std::vector<Assignment> assignments =
            assign(layer.resolution, *source.definitions[layer.layer], base, source.layers[layer.layer], filter);
        result.layers.push_back(
            {s, layer.layer, assignments.empty() ? Outcome::kExcluded : Outcome::kMatched, std::string()});
        for (Assignment &assignment : assignments) {
          assignment.source = s;
          assignment.layer = layer.layer;
          result.assignments.push_back(assignment);
        }
      } catch (const Error &error) {
        throw Error(error.status(), concat(source.name, " does not fit ", base_name, ": ", source.layers[layer.layer],
                                           ": ", error.what()));
      }
    for (const io::UnmatchedLayer &layer : found.unmatched)
      result.layers.push_back({s, layer.layer, Outcome::kUnmatched, layer.reason});
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
