#include "io/names/resolver.hpp"

#include <algorithm>
#include <map>

#include "base/error.hpp"
#include "base/text.hpp"
#include "io/names/component.hpp"
#include "io/names/family.hpp"

namespace lyc::io {
namespace {

std::string flat(std::string_view path) {
  std::string text(path);
  std::replace(text.begin(), text.end(), '.', '_');
  return text;
}

/// A layer of the base under its full path.
struct Tensors {
  std::optional<std::size_t> weight, bias;
  bool bare = false;
};

using Layers = std::map<std::string_view, Tensors>;  // ordered, so that messages do not depend on hashing

/// From a tensor's name to its layer's, if it ends with this parameter; also "in_proj_weight", as PyTorch's attention
/// calls the weight of "in_proj".
bool strip(std::string_view &name, std::string_view parameter) {
  if (!ends_with(name, parameter)) return false;
  const std::string_view rest = name.substr(0, name.size() - parameter.size());
  if (rest.size() < 2 || (!ends_with(rest, ".") && !ends_with(rest, "in_proj_"))) return false;
  name = rest.substr(0, rest.size() - 1);
  return true;
}

Layers collect_layers(const std::vector<TensorEntry> &base) {
  Layers layers;
  std::vector<std::size_t> others;
  for (std::size_t i = 0; i < base.size(); ++i) {
    std::string_view path = base[i].name;
    if (strip(path, "weight"))
      layers[path].weight = i;
    else if (strip(path, "bias"))
      layers[path].bias = i;
    else
      others.push_back(i);
  }
  for (const std::size_t i : others) {
    std::string_view path = base[i].name;
    // Norms of Flux call their weight "scale"; beside a weight it is something else (quantisation).
    const bool scale = strip(path, "scale") && (layers.count(path) == 0 || !layers.at(path).weight);
    Tensors &layer = layers[scale ? path : base[i].name];
    if (!layer.weight) layer.weight = i;
    layer.bare = !scale;
  }
  return layers;
}

constexpr std::string_view kNotFound = "no such layer in the base";

}  // namespace

NameResolver::NameResolver(const std::vector<TensorEntry> &base) : base_(base) {
  std::map<std::string_view, std::uint32_t> origins;  // one a component prefix
  std::uint32_t next_own_origin = 0;
  std::vector<Alias> found;
  for (const auto &[full_path, tensors] : collect_layers(base)) {
    const TensorEntry &shape = base[tensors.weight ? *tensors.weight : *tensors.bias];
    const ComponentPath split = split_base_name(full_path);
    const BaseLayer layer = {split.path, shape.dim(0), shape.dim(1) * (shape.ndim > 1), tensors.bare};
    const RowTarget whole = {tensors.weight, tensors.bias, 0, layer.out, 0, false};

    found.clear();
    for (const Family *family : families())
      if (family->components & split.components) family->append_aliases(layer, found);
    const std::string_view prefix = full_path.substr(0, full_path.size() - split.path.size());
    const std::uint32_t origin = origins.try_emplace(prefix, static_cast<std::uint32_t>(origins.size())).first->second;
    bool renamed = false;
    for (auto alias = found.begin(); alias != found.end(); ++alias) {
      if (std::find(found.begin(), alias, *alias) != alias) continue;  // families may agree
      renamed = renamed || alias->path == layer.path;
      RowTarget target = whole;
      target.base_row = alias->base_row;
      target.rows = alias->rows;
      target.transposed = alias->transposed;
      add(aliases_, {alias->path, split.components, origin, alias->part, alias->parts, target});
    }
    if (renamed) continue;
    const std::uint32_t own_origin = next_own_origin++;
    add(own_, {std::string(layer.path), split.components, own_origin, 0, 1, whole});
    if (!prefix.empty()) add(own_, {std::string(full_path), kAnyComponent, own_origin, 0, 1, whole});
  }
}

void NameResolver::add(Index &index, Spelling spelling) { index[flat(spelling.path)].push_back(std::move(spelling)); }

Resolution NameResolver::resolve(std::string_view layer) const {
  constexpr std::string_view kPeftRoot = "base_model.model.";
  if (starts_with(layer, kPeftRoot)) layer.remove_prefix(kPeftRoot.size());
  const ComponentPath split = split_adapter_name(layer);
  for (const Index *index : {&own_, &aliases_}) {
    for (const auto &[components, path] : {split, ComponentPath{kAnyComponent, layer}}) {
      Resolution resolution = look_up(*index, path, components);
      if (resolution || resolution.failure != kNotFound) return resolution;
    }
  }
  return {{}, 0, std::string(kNotFound)};
}

Resolution NameResolver::look_up(const Index &index, std::string_view path, std::uint32_t components) const {
  const auto entry = index.find(flat(path));
  std::vector<const Spelling *> matches;
  if (entry != index.end())
    for (const Spelling &spelling : entry->second)
      if ((spelling.components & components) && (!contains(path, ".") || spelling.path == path))
        matches.push_back(&spelling);
  if (matches.empty()) return {{}, 0, std::string(kNotFound)};
  return assemble(std::move(matches));
}

Resolution NameResolver::assemble(std::vector<const Spelling *> matches) const {
  const auto name = [&](const Spelling &spelling) {
    const RowTarget &target = spelling.target;
    return base_[target.weight ? *target.weight : *target.bias].name;
  };
  std::stable_sort(matches.begin(), matches.end(),
                   [](const Spelling *a, const Spelling *b) { return a->part < b->part; });
  for (const Spelling *match : matches)
    if (match->origin != matches[0]->origin || (match != matches[0] && match->part == matches[0]->part))
      return {{}, 0, concat("ambiguous: matches ", name(*matches[0]), " and ", name(*match))};

  Resolution resolution;
  for (const Spelling *match : matches) {
    const auto expected = static_cast<std::int32_t>(resolution.targets.size());
    if (match->part < expected)
      return {{}, 0, concat("ambiguous: matches ", name(*matches[expected - 1]), " and ", name(*match))};
    if (match->part > expected) break;
    resolution.targets.push_back(match->target);
    resolution.targets.back().adapter_row = resolution.adapter_rows;
    resolution.adapter_rows += match->target.rows;
  }
  if (static_cast<std::int32_t>(resolution.targets.size()) != matches[0]->parts)
    return {{},
            0,
            concat("the base has only a part of this fused layer: ", matches.size(), " of ", matches[0]->parts,
                   ", among them ", name(*matches[0]))};
  return resolution;
}

}  // namespace lyc::io
