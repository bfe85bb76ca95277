// Writes a model in the form of another: one file for a file, otherwise a folder with the same shards, new indexes, and
// copies of the files beside the weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/os.hpp"
#include "io/container/safetensors_writer.hpp"
#include "io/container/tensor_file.hpp"

namespace lyc::io {

/// Nothing appears at the path before finish(). Several threads may write at once, each byte exactly once.
class ModelWriter {
 public:
  /// `tensors` are the source's, in its order; only their dtypes and sizes may differ. `metadata` says what the header
  /// of a shard's new file holds. The source must stay as long as the writer, and be files, not memory. Errors: IO (a
  /// full disk is noticed here), INVALID_ARGUMENT (`path` is an input).
  ModelWriter(const std::string &path, const TensorFile &source, std::vector<TensorInfo> tensors,
              const std::function<Metadata(const Shard &)> &metadata);

  /// Bytes `begin` .. `begin + size - 1` of a tensor.
  void write(std::size_t tensor, std::uint64_t begin, const void *data, std::size_t size);

  /// The same bytes as they are in the source.
  void copy(std::size_t tensor, std::uint64_t begin, std::uint64_t size);

  /// Check that every tensor is complete, sync, and put file or folder at its path. Errors: as SafetensorsWriter.
  void finish(os::Replace replace);

 private:
  void write_indexes() const;
  std::size_t shard_number(std::size_t tensor) const;

  const TensorFile &source_;
  std::vector<TensorInfo> tensors_;
  std::optional<os::OutputFolder> folder_;  // none for a single file; goes after the files in it
  std::vector<SafetensorsWriter> shards_;
};

}  // namespace lyc::io
