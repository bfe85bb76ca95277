// Golden cases for tests of names: headers of safetensors files and the key maps. Not the library's reader, on purpose.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/dtype.hpp"
#include "io/dialect/dialect.hpp"
#include "io/table.hpp"

namespace lyc::test {

/// $LYCORIS_GOLDEN, or golden beside the source tree. Tests skip themselves without it.
inline std::optional<std::filesystem::path> golden_folder() {
  const char *set = std::getenv("LYCORIS_GOLDEN");
  const std::filesystem::path folder =
      set != nullptr ? std::filesystem::path(set) : std::filesystem::path(LYCORIS_SOURCE_DIR) / "../shared/golden";
  if (!std::filesystem::is_directory(folder / "files")) return std::nullopt;
  return folder;
}

inline std::string read_text(const std::filesystem::path &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A safetensors file that is known to be sound.
class SoundFile {
 public:
  explicit SoundFile(const std::filesystem::path &path) : bytes_(read_text(path)) {
    std::uint64_t length;
    std::memcpy(&length, bytes_.data(), sizeof length);
    const auto header = nlohmann::json::parse(bytes_.substr(sizeof length, length));
    for (const auto &[name, entry] : header.items()) {
      if (name == "__metadata__") {
        metadata_ = entry.get<io::Metadata>();
        continue;
      }
      lyc_dtype dtype = LYC_DTYPE_NONE;
      for (const DtypeInfo &info : kDtypes)
        if (info.safetensors == entry["dtype"].get<std::string>()) dtype = info.dtype;
      table_.add(name, entry["shape"].get<std::vector<std::int64_t>>(), dtype);
      const auto offsets = entry["data_offsets"].get<std::vector<std::size_t>>();
      data_.push_back(std::string_view(bytes_).substr(sizeof length + length + offsets[0], offsets[1] - offsets[0]));
    }
  }
  SoundFile(const SoundFile &) = delete;

  const Table &table() const { return table_; }
  const io::Metadata &metadata() const { return metadata_; }
  std::string_view data(std::size_t tensor) const { return data_[tensor]; }

  /// Bytes of one row of the first axis.
  std::string_view row(std::size_t tensor, std::int64_t index) const {
    const io::TensorEntry entry = table_.entries()[tensor];
    const std::size_t size = data_[tensor].size() / static_cast<std::size_t>(entry.dim(0));
    return data_[tensor].substr(static_cast<std::size_t>(index) * size, size);
  }

  std::vector<float> read_rows(std::size_t tensor, std::int64_t first, std::int64_t count) const {
    std::vector<float> values;
    const lyc_dtype dtype = table_.entries()[tensor].dtype;
    for (std::int64_t o = first; o < first + count; ++o) {
      const std::string_view bytes = row(tensor, o);
      for (std::size_t at = 0; at < bytes.size(); at += dtype_size(dtype)) values.push_back(value(&bytes[at], dtype));
    }
    return values;
  }

 private:
  static float value(const char *bytes, lyc_dtype dtype) {
    std::uint16_t half;
    float whole;
    if (dtype == LYC_DTYPE_F32) return std::memcpy(&whole, bytes, sizeof whole), whole;
    std::memcpy(&half, bytes, sizeof half);
    return dtype == LYC_DTYPE_F16 ? f16_to_float(half) : bf16_to_float(half);
  }

  std::string bytes_;
  Table table_;
  io::Metadata metadata_;
  std::vector<std::string_view> data_;
};

/// Lines of a key map, cut at tabs.
inline std::vector<std::vector<std::string>> read_map(const std::filesystem::path &path) {
  std::vector<std::vector<std::string>> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::vector<std::string> columns;
    std::size_t begin = 0;
    for (std::size_t tab; (tab = line.find('\t', begin)) != line.npos; begin = tab + 1)
      columns.push_back(line.substr(begin, tab - begin));
    columns.push_back(line.substr(begin));
    lines.push_back(std::move(columns));
  }
  return lines;
}

inline std::string flat(std::string path) {
  for (char &c : path)
    if (c == '.') c = '_';
  return path;
}

}  // namespace lyc::test
