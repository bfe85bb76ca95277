// A table of tensors that owns its names and shapes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/tensor_entry.hpp"

namespace lyc::test {

class Table {
 public:
  void add(std::string name, std::vector<std::int64_t> shape, lyc_dtype dtype = LYC_DTYPE_F32) {
    rows_.push_back({std::move(name), std::move(shape), dtype});
  }
  std::vector<io::TensorEntry> entries() const {
    std::vector<io::TensorEntry> list;
    for (const Row &row : rows_)
      list.push_back({row.name, row.dtype, row.shape.data(), static_cast<std::int32_t>(row.shape.size())});
    return list;
  }
  std::optional<std::size_t> find(const std::string &name) const {
    for (std::size_t i = 0; i < rows_.size(); ++i)
      if (rows_[i].name == name) return i;
    return std::nullopt;
  }

 private:
  struct Row {
    std::string name;
    std::vector<std::int64_t> shape;
    lyc_dtype dtype;
  };
  std::vector<Row> rows_;
};

}  // namespace lyc::test
