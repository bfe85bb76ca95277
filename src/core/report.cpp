#include "core/report.hpp"

namespace lyc {
namespace {

std::string family_name(const Definition &definition) {
  return std::string(definition.algorithm->name) + (definition.dora_axis != ops::DoraAxis::kNone ? "+dora" : "");
}

}  // namespace

Json describe_layer(const std::string &name, const Definition &definition) {
  Json layer = {{"layer", name}, {"algorithm", definition.algorithm->name}};
  if (definition.shape.rank > 0) {
    layer["rank"] = definition.shape.rank;
    layer["alpha"] = definition.alpha;
  }
  layer["scale"] = definition.scale;
  layer["out"] = definition.shape.out;
  layer["columns"] = definition.shape.columns;
  if (definition.flags & LYC_MODULE_TUCKER) layer["tucker"] = true;
  if (definition.flags & LYC_MODULE_BIAS) layer["bias"] = true;
  if (definition.needs_base()) layer["needs_base"] = true;
  if (definition.dora_axis != ops::DoraAxis::kNone)
    layer["dora"] = definition.dora_axis == ops::DoraAxis::kOut ? "out" : "in";
  return layer;
}

Json count_algorithms(const std::vector<const Definition *> &definitions) {
  Json counts = Json::object();
  for (const Definition *definition : definitions) {
    Json &count = counts[family_name(*definition)];
    count = count.is_null() ? 1 : count.get<int>() + 1;
  }
  return counts;
}

Json describe_match(const Match &match, const std::vector<io::TensorEntry> &base,
                    const std::vector<MatchSource> &sources) {
  Json layers = Json::array();
  std::vector<std::vector<std::size_t>> first_of(sources.size());
  for (std::size_t s = 0; s < sources.size(); ++s) first_of[s].resize(sources[s].layers.size());
  for (const LayerMatch &layer : match.layers) {
    Json entry =
        describe_layer(sources[layer.source].layers[layer.layer], *sources[layer.source].definitions[layer.layer]);
    entry["adapter"] = layer.source;
    entry["outcome"] = layer.outcome == Outcome::kMatched    ? "matched"
                       : layer.outcome == Outcome::kExcluded ? "excluded"
                                                             : "unmatched";
    if (!layer.reason.empty()) entry["reason"] = layer.reason;
    first_of[layer.source][layer.layer] = layers.size();
    layers.push_back(std::move(entry));
  }
  for (const Assignment &assignment : match.assignments)
    layers[first_of[assignment.source][assignment.layer]]["targets"].push_back(
        {{"tensor", base[assignment.tensor].name},
         {"row", assignment.base_row},
         {"rows", assignment.rows},
         {"from_row", assignment.adapter_row}});
  return layers;
}

Json describe_leftovers(const AdapterFile &adapter) {
  Json list = Json::array();
  for (const io::Leftover &leftover : adapter.leftovers) {
    Json keys = Json::array();
    for (std::size_t index : leftover.tensors) keys.push_back(adapter.file.tensors()[index].name);
    list.push_back({{"layer", leftover.layer}, {"keys", keys}, {"reason", leftover.reason}});
  }
  return list;
}

void count_match(const Match &match, lyc_report_info &info) {
  info.layer_count = match.layers.size();
  info.matched_count = match.count(Outcome::kMatched);
  info.excluded_count = match.count(Outcome::kExcluded);
  info.unmatched_count = match.count(Outcome::kUnmatched);
}

}  // namespace lyc
