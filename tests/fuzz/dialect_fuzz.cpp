// Keys of an adapter and names of a base from bytes: nothing may crash, every key must be used or named, and what is
// resolved must lie inside the base.
//
// Input: lines. "@key=value" is metadata, "+name shape..." a tensor of the base, anything else a key of the adapter
// with its shape, numbers from 0 to 9 as single digits: "lora_unet_x.lora_up.weight 42".
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "core/adapter_file.hpp"
#include "io/dialect/dialect.hpp"
#include "io/names/resolver.hpp"

namespace {

using namespace lyc;
using namespace lyc::io;

void check(bool condition) {
  if (!condition) std::abort();
}

struct Row {
  std::string_view name;
  std::vector<std::int64_t> shape;
};

/// Splits "name 42" at its last blank; names may be anything.
Row parse_row(std::string_view line) {
  Row row{line, {}};
  const std::size_t blank = line.rfind(' ');
  if (blank == line.npos) return row;
  row.name = line.substr(0, blank);
  for (const char c : line.substr(blank + 1))
    if (c >= '0' && c <= '9' && row.shape.size() < LYC_MAX_DIMS) row.shape.push_back(c - '0');
  return row;
}

std::vector<TensorEntry> entries_of(const std::vector<Row> &rows) {
  std::vector<TensorEntry> entries;
  std::set<std::string_view> names;  // containers let no name through twice
  for (const Row &row : rows)
    if (names.insert(row.name).second)
      entries.push_back({row.name, LYC_DTYPE_F32, row.shape.data(), static_cast<std::int32_t>(row.shape.size())});
  return entries;
}

void check_all_named(const AdapterRecords &records, std::size_t tensor_count) {
  std::multiset<std::size_t> named;
  for (const LayerRecord &record : records.layers) {
    check(record.algo != LYC_ALGO_NONE && (record.weight || record.bias) && record.scale_divisor_parts >= 1);
    for (const Factor &factor : record.factors) named.insert(factor.tensor);
  }
  for (const Leftover &leftover : records.leftovers) {
    check(!leftover.tensors.empty() && !leftover.reason.empty());
    named.insert(leftover.tensors.begin(), leftover.tensors.end());
  }
  check(named.size() == tensor_count);
  for (std::size_t i = 0; i < tensor_count; ++i) check(named.count(i) == 1);
}

void check_inside(const Resolution &resolution, const std::vector<TensorEntry> &base) {
  check(resolution.targets.empty() != resolution.failure.empty());
  std::int64_t next = 0;
  for (const RowTarget &target : resolution.targets) {
    check(target.weight || target.bias);
    check(target.rows >= 0 && target.base_row >= 0 && target.adapter_row == next);
    next += target.rows;
    if (target.weight) check(*target.weight < base.size());
    if (target.bias) check(*target.bias < base.size());
    const TensorEntry &tensor = base[target.weight ? *target.weight : *target.bias];
    check(target.base_row + target.rows <= tensor.dim(target.transposed ? 1 : 0));
  }
  check(resolution.adapter_rows == next);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  std::string_view text(reinterpret_cast<const char *>(data), size);
  std::vector<Row> adapter, base;
  Metadata metadata;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const std::size_t equals = line.find('=');
    if (!line.empty() && line[0] == '@' && equals != line.npos)
      metadata.emplace(line.substr(1, equals - 1), line.substr(equals + 1));
    else if (!line.empty() && line[0] == '+')
      base.push_back(parse_row(line.substr(1)));
    else
      adapter.push_back(parse_row(line));
  }
  const std::vector<TensorEntry> tensors = entries_of(adapter), weights = entries_of(base);
  const AdapterKeys keys = {tensors, metadata,
                            [&](std::size_t index, std::int64_t first, std::int64_t count) {
                              const TensorEntry &tensor = tensors[index];
                              check(first >= 0 && count >= 0 && first + count <= tensor.dim(0));
                              std::int64_t width = 1;
                              for (std::int32_t axis = 1; axis < tensor.ndim; ++axis) width *= tensor.shape[axis];
                              return std::vector<float>(static_cast<std::size_t>(count * width));
                            },
                            family_suffixes()};
  const NameResolver resolver(weights);
  try {
    const AdapterRecords records = read_adapter(keys);
    check_all_named(records, tensors.size());
    for (const LayerRecord &record : records.layers) check_inside(resolver.resolve(record.layer), weights);
  } catch (const Error &error) {
    check(error.status() == LYC_ERROR_FORMAT || error.status() == LYC_ERROR_UNSUPPORTED);
  }
  for (const TensorEntry &tensor : tensors) check_inside(resolver.resolve(tensor.name), weights);
  return 0;
}
