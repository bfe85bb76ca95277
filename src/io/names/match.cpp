#include "io/names/match.hpp"

#include <unordered_map>

#include "base/error.hpp"

namespace lyc::io {
namespace {

/// Which rows of which tensors are taken, and by whom.
class TakenRows {
 public:
  /// The layer that has some of these rows already.
  std::optional<std::size_t> find(std::size_t tensor, const RowTarget &rows) const {
    const auto ranges = ranges_.find(tensor);
    if (ranges == ranges_.end()) return std::nullopt;
    for (const Range &range : ranges->second)
      if (rows.base_row < range.end && range.begin < rows.base_row + rows.rows) return range.layer;
    return std::nullopt;
  }
  void add(std::size_t tensor, const RowTarget &rows, std::size_t layer) {
    ranges_[tensor].push_back({rows.base_row, rows.base_row + rows.rows, layer});
  }

 private:
  struct Range {
    std::int64_t begin, end;
    std::size_t layer;
  };
  std::unordered_map<std::size_t, std::vector<Range>> ranges_;
};

/// Calls use(tensor, target) for what a layer changes.
template <typename Use>
void for_each_tensor(const AdaptedLayer &layer, const Resolution &resolution, Use &&use) {
  for (const RowTarget &target : resolution.targets) {
    if (layer.weight && target.weight) use(*target.weight, target);
    if (layer.bias && target.bias) use(*target.bias, target);
  }
}

std::string why_not(const std::vector<AdaptedLayer> &layers, const AdaptedLayer &layer, const Resolution &resolution,
                    const TakenRows &taken) {
  if (!resolution) return resolution.failure;
  for (const RowTarget &target : resolution.targets) {
    if (layer.weight && !target.weight) return "the base's layer has no weight";
    if (layer.bias && !layer.bias_optional && !target.bias) return "the base's layer has no bias";
  }
  std::string reason;
  for_each_tensor(layer, resolution, [&](std::size_t tensor, const RowTarget &target) {
    if (const auto other = taken.find(tensor, target))
      reason = concat("means the same rows of the base as ", layers[*other].name, ", which is used");
  });
  return reason;
}

}  // namespace

Matches match_layers(const std::vector<AdaptedLayer> &layers, const NameResolver &resolver) {
  Matches matches;
  TakenRows taken;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    Resolution resolution = resolver.resolve(layers[i].name);
    std::string reason = why_not(layers, layers[i], resolution, taken);
    if (!reason.empty()) {
      matches.unmatched.push_back({i, std::move(reason)});
      continue;
    }
    for_each_tensor(layers[i], resolution,
                    [&](std::size_t tensor, const RowTarget &target) { taken.add(tensor, target, i); });
    matches.matched.push_back({i, std::move(resolution)});
  }
  return matches;
}

}  // namespace lyc::io
