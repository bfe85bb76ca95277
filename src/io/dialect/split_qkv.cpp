#include "io/dialect/split_qkv.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "base/text.hpp"

namespace lyc::io {
namespace {

constexpr std::size_t kMaxArgumentText = 1 << 20;  // metadata is untrusted; real ones have a few hundred bytes

bool trained_split(const Metadata &metadata) {
  const auto entry = metadata.find("ss_network_args");
  if (entry == metadata.end() || entry->second.size() > kMaxArgumentText) return false;
  const auto arguments = nlohmann::json::parse(entry->second, nullptr, /*allow_exceptions=*/false);
  if (!arguments.is_object() || !arguments.contains("split_qkv")) return false;
  const auto &value = arguments["split_qkv"];
  return value == true || value == "True" || value == "true";
}

/// Rows of the parts of a fused projection that kohya splits; none if this is not one. Queries are as wide as the
/// input, keys and values share the rest of a qkv, and "linear1" of single blocks has the MLP's rows after them.
std::vector<std::int64_t> part_rows(std::string_view layer, std::int64_t out, std::int64_t in) {
  if (ends_with(layer, "qkv") && out > in && (out - in) % 2 == 0) return {in, (out - in) / 2, (out - in) / 2};
  if (ends_with(layer, "linear1") && out / 3 > in) return {in, in, in, out - 3 * in};
  return {};
}

/// Whether rows [begin, begin + count) are zero outside columns [first, first + width).
bool zero_outside(const AdapterKeys &keys, std::size_t up, std::int64_t rank, std::int64_t begin, std::int64_t count,
                  std::int64_t first, std::int64_t width) {
  const std::vector<float> values = keys.read_rows(up, begin, count);
  if (values.size() != static_cast<std::size_t>(count * rank))
    fail(LYC_ERROR_INTERNAL, "read ", values.size(), " values of ", count * rank);
  for (std::int64_t o = 0; o < count; ++o)
    for (std::int64_t r = 0; r < rank; ++r)
      if ((r < first || r >= first + width) && values[o * rank + r] != 0.0f) return false;
  return true;
}

bool block_diagonal(const AdapterKeys &keys, std::size_t up, std::int64_t rank, const std::vector<std::int64_t> &rows) {
  const std::int64_t width = rank / static_cast<std::int64_t>(rows.size());
  // The first row of every part settles nearly all ordinary files, so the rest is not read for nothing.
  for (const bool first_row_only : {true, false}) {
    std::int64_t begin = 0, column = 0;
    for (const std::int64_t count : rows) {
      if (!zero_outside(keys, up, rank, begin, first_row_only ? 1 : count, column, width)) return false;
      begin += count;
      column += width;
    }
  }
  return true;
}

}  // namespace

void find_split_qkv(const AdapterKeys &keys, LayerRecord &record, std::vector<std::string> &notes) {
  const std::ptrdiff_t up = record.find("lora_up.weight"), down = record.find("lora_down.weight");
  if (up < 0 || down < 0 || record.find("lora_mid.weight") >= 0 || !record.has_alpha()) return;
  const TensorEntry &b = keys.tensors[up], &a = keys.tensors[down];
  if (b.ndim < 2 || a.ndim < 2) return;
  for (std::int32_t axis = 2; axis < b.ndim; ++axis)
    if (b.dim(axis) != 1) return;  // not an up factor; whoever builds the module says so
  const std::int64_t rank = b.dim(1);
  const std::vector<std::int64_t> rows = part_rows(record.layer, b.dim(0), a.dim(1));
  const auto parts = static_cast<std::int64_t>(rows.size());
  if (parts == 0 || rank % parts != 0) return;

  const bool declared = trained_split(keys.metadata);
  if (!keys.read_rows || !is_arithmetic(b.dtype)) {
    if (declared) notes.push_back(concat(record.layer, ": split_qkv is declared, and its factor could not be checked"));
    return;
  }
  const bool seen = block_diagonal(keys, static_cast<std::size_t>(up), rank, rows);
  if (declared && seen) record.scale_divisor_parts = static_cast<std::int32_t>(parts);
  if (declared && !seen)
    notes.push_back(concat(record.layer, ": split_qkv is declared, but lora_up.weight is not block-diagonal; ",
                           "alpha is taken for the whole rank"));
  if (!declared && seen)
    notes.push_back(concat(record.layer, ": lora_up.weight is block-diagonal, but no metadata declares split_qkv; ",
                           "alpha is taken for the whole rank"));
}

}  // namespace lyc::io
