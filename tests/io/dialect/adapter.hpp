// Adapters of test cases, written down as keys and shapes.
#pragma once

#include <initializer_list>
#include <utility>

#include "core/adapter_file.hpp"
#include "io/table.hpp"

namespace lyc::test {

struct Adapter {
  Adapter(std::initializer_list<std::pair<const char *, std::vector<std::int64_t>>> tensors, io::Metadata header = {})
      : metadata(std::move(header)) {
    for (const auto &[name, shape] : tensors) table.add(name, shape);
    entries = table.entries();
  }
  io::AdapterKeys keys() const { return {entries, metadata, read_rows, family_suffixes()}; }

  Table table;
  std::vector<io::TensorEntry> entries;
  io::Metadata metadata;
  std::function<std::vector<float>(std::size_t, std::int64_t, std::int64_t)> read_rows;
};

}  // namespace lyc::test
