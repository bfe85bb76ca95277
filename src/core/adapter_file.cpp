#include "core/adapter_file.hpp"

#include <algorithm>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "core/module.hpp"

namespace lyc {
namespace {

std::vector<char> read_tensor(const io::TensorFile &file, std::size_t index) {
  std::vector<char> bytes(file.tensors()[index].size);
  file.read(index, bytes.data(), 0, bytes.size());
  return bytes;
}

std::vector<float> read_rows(const io::TensorFile &file, std::size_t index, std::int64_t first, std::int64_t count) {
  const io::TensorInfo &info = file.tensors()[index];
  const std::uint64_t row_bytes = info.size / static_cast<std::uint64_t>(std::max<std::int64_t>(1, info.shape.at(0)));
  std::vector<char> bytes(static_cast<std::uint64_t>(count) * row_bytes);
  file.read(index, bytes.data(), static_cast<std::uint64_t>(first) * row_bytes, bytes.size());
  std::vector<float> values(bytes.size() / dtype_size(info.dtype));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(read_element(bytes.data(), info.dtype, static_cast<std::int64_t>(i)));
  return values;
}

std::vector<double> read_setting(const io::TensorFile &file, std::size_t index, std::string_view name) {
  const io::TensorInfo &info = file.tensors()[index];
  const std::uint64_t count = info.size / dtype_size(info.dtype);
  if (count < 1 || count > kMaxSettingValues)
    fail(LYC_ERROR_FORMAT, name, " has shape ", shape_text(info.shape), ", must have a few values");
  const std::vector<char> bytes = read_tensor(file, index);
  std::vector<double> values;
  for (std::uint64_t i = 0; i < count; ++i)
    values.push_back(read_element(bytes.data(), info.dtype, static_cast<std::int64_t>(i)));
  return values;
}

/// Records of the same layer, one of its weight and one of its bias, are one layer.
AdapterLayer read_layer(const AdapterFile &adapter, const std::vector<io::LayerRecord> &records, std::size_t begin,
                        std::size_t end, ops::DoraRule dora_rule, lyc_origin origin) {
  AdapterLayer layer;
  layer.name = records[begin].layer;
  Request request;
  request.dora_rule = dora_rule;
  request.traits.origin = origin;
  algo::Factors factors;
  std::vector<std::string> names;
  for (std::size_t i = begin; i < end; ++i) {
    request.divisor_parts = std::max<std::int64_t>(request.divisor_parts, records[i].scale_divisor_parts);
    for (const io::Factor &factor : records[i].factors) {
      const io::TensorInfo &info = adapter.file.tensors()[factor.tensor];
      names.emplace_back(factor.name);
      factors.set(names.back(), make_tensor(nullptr, info.dtype, info.shape));
      if (is_setting(factor.name))
        request.set(factor.name, read_setting(adapter.file, factor.tensor, factor.name));
      else
        layer.tensors.emplace_back(factor.name, factor.tensor);
    }
  }
  layer.definition = define(factors, names, request);
  return layer;
}

}  // namespace

std::string leftover_text(const AdapterFile &adapter) {
  const io::Leftover &first = adapter.leftovers.front();
  return (first.layer.empty() ? adapter.file.tensors()[first.tensors.front()].name : first.layer) + ": " + first.reason;
}

std::vector<io::FamilySuffix> family_suffixes() {
  std::vector<io::FamilySuffix> all;
  const auto add = [&](const char *const *names, lyc_algo id) {
    for (; *names; ++names)
      if (std::none_of(all.begin(), all.end(), [&](const io::FamilySuffix &known) { return known.name == *names; }))
        all.push_back({*names, id});
  };
  for (const algo::Algorithm *algorithm : algo::algorithms()) add(algorithm->signature, algorithm->id);
  for (const algo::Algorithm *algorithm : algo::algorithms()) add(algorithm->suffixes, algorithm->id);
  return all;
}

std::vector<io::TensorEntry> entries_of(const io::TensorFile &file) {
  std::vector<io::TensorEntry> entries;
  entries.reserve(file.tensors().size());
  for (const io::TensorInfo &info : file.tensors())
    entries.push_back({info.name, info.dtype, info.shape.data(), static_cast<std::int32_t>(info.shape.size())});
  return entries;
}

AdapterFile open_adapter(const std::string &path, lyc_dora_rule dora_rule) {
  AdapterFile adapter{path, io::TensorFile::open(path), {}, {}, {}, {}};
  const std::vector<io::TensorEntry> entries = entries_of(adapter.file);
  try {
    io::AdapterRecords records = io::read_adapter({entries, adapter.file.metadata(),
                                                   [&](std::size_t index, std::int64_t first, std::int64_t count) {
                                                     return read_rows(adapter.file, index, first, count);
                                                   },
                                                   family_suffixes()});
    adapter.dialect = records.dialect;
    adapter.leftovers = std::move(records.leftovers);
    adapter.notes = std::move(records.notes);
    const ops::DoraRule rule = resolve_dora_rule(dora_rule, static_cast<ops::DoraRule>(records.dora_rule));
    for (std::size_t i = 0, end; i < records.layers.size(); i = end) {
      for (end = i + 1; end < records.layers.size() && records.layers[end].layer == records.layers[i].layer;) ++end;
      try {
        adapter.layers.push_back(read_layer(adapter, records.layers, i, end, rule, records.origin));
      } catch (const Error &error) {
        throw Error(error.status(), concat(records.layers[i].layer, ": ", error.what()), error.native_code());
      }
    }
  } catch (const Error &error) {
    throw Error(error.status(), concat(path, ": ", error.what()), error.native_code());
  }
  if (adapter.layers.empty() && !adapter.leftovers.empty())
    fail(adapter.leftovers.front().status, path, " has no layer that can be used; ", leftover_text(adapter));
  if (adapter.layers.empty()) fail(LYC_ERROR_FORMAT, path, " has no tensors");
  return adapter;
}

std::uint64_t room_for(const AdapterFile &adapter, const AdapterLayer &layer) {
  std::uint64_t room = 0;
  for (const auto &[name, index] : layer.tensors) room += Uploader::room_for(adapter.file.tensors()[index].size);
  return room;
}

Definition load_layer(const AdapterFile &adapter, const AdapterLayer &layer, Uploader &uploader,
                      std::vector<DeviceBuffer> &buffers) {
  Definition definition = layer.definition;
  std::vector<std::vector<char>> stored;
  for (const auto &[name, index] : layer.tensors) {
    const io::TensorInfo &info = adapter.file.tensors()[index];
    if (is_stored(*definition.algorithm, name)) {
      stored.push_back(read_tensor(adapter.file, index));
      definition.factors.set(name, make_tensor(stored.back().data(), info.dtype, info.shape));
      continue;
    }
    const auto read = [&file = adapter.file, tensor = index](char *to, std::uint64_t begin, std::size_t size) {
      file.read(tensor, to, begin, size);
    };
    definition.factors.set(name, uploader.place(info.dtype, info.shape, read, buffers));
  }
  rewrite_stored(uploader, definition, buffers);
  return definition;
}

}  // namespace lyc
