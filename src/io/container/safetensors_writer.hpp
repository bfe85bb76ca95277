// Writes a safetensors file whose tensors are all known by name, dtype and shape before the first byte of data.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/os.hpp"
#include "io/container/safetensors.hpp"
#include "io/container/tensor_file.hpp"

namespace lyc::io {

/// Nothing appears at the path before finish(). Several threads may write at once, each byte exactly once.
class SafetensorsWriter {
 public:
  /// The data is laid out in the order of `tensors`; their offsets need not be set.
  SafetensorsWriter(const std::string &path, const Metadata &metadata, std::vector<TensorInfo> tensors);

  const std::vector<TensorInfo> &tensors() const { return tensors_; }

  /// Bytes `begin` .. `begin + size - 1` of a tensor.
  void write(std::size_t tensor, std::uint64_t begin, const void *data, std::size_t size);

  /// The same range of a tensor of another file; by the whole tensor where no range is given.
  void copy_from(std::size_t tensor, const TensorFile &source, std::size_t source_tensor, std::uint64_t begin,
                 std::uint64_t size);
  void copy_from(std::size_t tensor, const TensorFile &source, std::size_t source_tensor);

  /// Check that every tensor is complete, sync, and put the file at its path.
  /// Errors: IO, INVALID_ARGUMENT (something is there, and Replace::kNo), INTERNAL (bytes are missing).
  void finish(os::Replace replace);

 private:
  void count(std::size_t tensor, std::uint64_t begin, std::uint64_t size);

  os::OutputFile file_;
  std::vector<TensorInfo> tensors_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> written_;  // bytes, by tensor
};

/// Contents of a `.safetensors.index.json`: `weight_map` from tensor to file name, `total_size` in bytes of data.
std::string render_index(const std::map<std::string, std::string> &weight_map, std::uint64_t total_size);

}  // namespace lyc::io
