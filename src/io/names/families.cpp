// The one list of families, and what the tables of most of them mean.
#include "io/names/component.hpp"
#include "io/names/family.hpp"

namespace lyc::io {
namespace {

constexpr const Family *kFamilies[] = {&kSdUnet, &kFlux, &kOpenClip};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// Whether `path` is `pattern` with numbers for '#'; then `other` with the same numbers goes to `result`.
bool translate(std::string_view path, std::string_view pattern, std::string_view other, std::string &result) {
  std::vector<std::string_view> numbers;
  std::size_t at = 0;
  for (const char expected : pattern) {
    const std::size_t begin = at;
    if (expected == '#') {
      while (at < path.size() && is_digit(path[at])) ++at;
      if (at == begin) return false;
      numbers.push_back(path.substr(begin, at - begin));
    } else if (at == path.size() || path[at++] != expected) {
      return false;
    }
  }
  if (at != path.size()) return false;
  result.clear();
  auto number = numbers.begin();
  for (const char c : other) {
    if (c == '#')
      result += *number++;
    else
      result += c;
  }
  return true;
}

/// Two aliases of the whole layer: the first half of the alias' rows is the second one of the layer's.
void append_swapped_halves(const BaseLayer &layer, const std::string &name, std::vector<Alias> &out) {
  if (layer.out % 2 != 0) return;
  const std::int64_t half = layer.out / 2;
  out.push_back({name, 0, 2, half, half, false});
  out.push_back({name, 1, 2, 0, half, false});
}

/// A native layer under a diffusers name.
void append_of_native(const MapRow &row, const BaseLayer &layer, const std::string &name, std::vector<Alias> &out) {
  switch (row.rows) {
    case Rows::kSame:
      out.push_back({name, 0, 1, 0, layer.out, false});
      return;
    case Rows::kThird: {
      const std::int64_t third = layer.out / 3;
      if (layer.out % 3 == 0) out.push_back({name, 0, 1, row.part * third, third, false});
      return;
    }
    case Rows::kInputWide: {
      const std::int64_t rest = layer.out - 3 * layer.in;
      if (layer.in > 0 && rest > 0)
        out.push_back({name, 0, 1, row.part * layer.in, row.part < 3 ? layer.in : rest, false});
      return;
    }
    case Rows::kSwappedHalves:
      append_swapped_halves(layer, name, out);
      return;
  }
}

/// A diffusers layer under a native name.
void append_of_diffusers(const MapRow &row, const BaseLayer &layer, const std::string &name, std::vector<Alias> &out) {
  switch (row.rows) {
    case Rows::kSame:
      out.push_back({name, 0, 1, 0, layer.out, false});
      return;
    case Rows::kThird:
      out.push_back({name, row.part, 3, 0, layer.out, false});
      return;
    case Rows::kInputWide:
      out.push_back({name, row.part, 4, 0, layer.out, false});
      return;
    case Rows::kSwappedHalves:
      append_swapped_halves(layer, name, out);
      return;
  }
}

}  // namespace

FamilyList families() { return {kFamilies, sizeof kFamilies / sizeof kFamilies[0]}; }

void append_table_aliases(const MapRow *table, std::size_t count, const BaseLayer &layer, std::vector<Alias> &out) {
  std::string name;
  for (const MapRow *row = table; row != table + count; ++row) {
    if (translate(layer.path, row->native, row->diffusers, name)) append_of_native(*row, layer, name, out);
    if (translate(layer.path, row->diffusers, row->native, name)) append_of_diffusers(*row, layer, name, out);
  }
}

}  // namespace lyc::io
