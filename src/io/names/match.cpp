#include "io/names/match.hpp"

#include <unordered_map>

#include "base/error.hpp"

namespace lyc::io {
namespace {

/// Which rows of which tensors are taken, and by whom.
class TakenRows {
 public:
  /// The record that has some of these rows already.
  std::optional<std::size_t> find(std::size_t tensor, const RowTarget &rows) const {
    const auto ranges = ranges_.find(tensor);
    if (ranges == ranges_.end()) return std::nullopt;
    for (const Range &range : ranges->second)
      if (rows.base_row < range.end && range.begin < rows.base_row + rows.rows) return range.record;
    return std::nullopt;
  }
  void add(std::size_t tensor, const RowTarget &rows, std::size_t record) {
    ranges_[tensor].push_back({rows.base_row, rows.base_row + rows.rows, record});
  }

 private:
  struct Range {
    std::int64_t begin, end;
    std::size_t record;
  };
  std::unordered_map<std::size_t, std::vector<Range>> ranges_;
};

/// Calls use(tensor, target) for what a record changes.
template <typename Use>
void for_each_tensor(const LayerRecord &record, const Resolution &resolution, Use &&use) {
  for (const RowTarget &target : resolution.targets) {
    if (record.weight && target.weight) use(*target.weight, target);
    if (record.bias && target.bias) use(*target.bias, target);
  }
}

std::string why_not(const std::vector<LayerRecord> &records, const LayerRecord &record, const Resolution &resolution,
                    const TakenRows &taken) {
  if (!resolution) return resolution.failure;
  for (const RowTarget &target : resolution.targets) {
    if (record.weight && !target.weight) return "the base's layer has no weight";
    if (record.bias && !target.bias) return "the base's layer has no bias";
  }
  std::string reason;
  for_each_tensor(record, resolution, [&](std::size_t tensor, const RowTarget &target) {
    if (const auto other = taken.find(tensor, target))
      reason = concat("means the same rows of the base as ", records[*other].layer, ", which is used");
  });
  return reason;
}

}  // namespace

Matches match_layers(const std::vector<LayerRecord> &records, const NameResolver &resolver) {
  Matches matches;
  TakenRows taken;
  for (std::size_t i = 0; i < records.size(); ++i) {
    Resolution resolution = resolver.resolve(records[i].layer);
    std::string reason = why_not(records, records[i], resolution, taken);
    if (!reason.empty()) {
      matches.unmatched.push_back({i, std::move(reason)});
      continue;
    }
    for_each_tensor(records[i], resolution,
                    [&](std::size_t tensor, const RowTarget &target) { taken.add(tensor, target, i); });
    matches.matched.push_back({i, std::move(resolution)});
  }
  return matches;
}

}  // namespace lyc::io
