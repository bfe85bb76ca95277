// Tensors by name, wherever they are: one safetensors file, an image of one in memory, a model in several files with
// or without an index, a folder with one of these, or a diffusers folder of components.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/os.hpp"
#include "io/container/safetensors.hpp"

namespace lyc::io {

enum class SourceKind {
  kMemory,
  kFile,
  kFolder,     // a folder whose weights are one file
  kSharded,    // several files, opened by their index or their folder
  kDiffusers,  // model_index.json and a folder for each component
};

/// "memory", "file", "folder", "sharded", "diffusers".
const char *source_kind_name(SourceKind kind);

/// One of the files that a model consists of.
struct Shard {
  std::string path;                  // relative to the root, "unet/diffusion_pytorch_model.safetensors"
  std::string prefix;                // in front of the names of its tensors: "unet.", else ""
  std::string index;                 // its index relative to the root, "" if there is none
  Metadata metadata;                 // of its header
  std::size_t first = 0, count = 0;  // its tensors in the list of all, in the order of their data
  std::optional<os::File> file;      // none for memory
};

/// Immutable once open; any number of threads may read.
class TensorFile {
 public:
  /// Errors: IO, NOT_FOUND, FORMAT, UNSUPPORTED (other formats), INVALID_ARGUMENT (a folder of several models).
  static TensorFile open(const std::string &path);

  /// A safetensors image, which must stay as long as the object.
  static TensorFile open_memory(const void *data, std::size_t size);

  SourceKind kind() const { return kind_; }

  /// The model's folder, or the folder that the file is in; "" for memory.
  const std::string &root() const { return root_; }

  const std::vector<TensorInfo> &tensors() const { return tensors_; }
  const std::vector<Shard> &shards() const { return shards_; }
  const Metadata &metadata() const { return shards_.front().metadata; }

  std::optional<std::size_t> find(std::string_view name) const;
  const Shard &shard_of(std::size_t tensor) const;

  /// Bytes `begin` .. `begin + size - 1` of a tensor.
  void read(std::size_t tensor, void *data, std::uint64_t begin, std::size_t size) const;

  /// Files of the model beside its weights (configurations, tokenizers), relative to the root; none for a single file.
  /// PyTorch and other copies of the weights are not among them, unless they are the only ones of their component.
  const std::vector<std::string> &other_files() const { return other_files_; }

  /// Whether `path` is one of the files that the tensors are read from, or the folder of a model that is one.
  bool is_input(const std::string &path) const;

 private:
  TensorFile() = default;
  void open_file(const std::string &path);
  void open_index(const std::string &path);
  void open_folder(const std::string &path);
  void open_weights(const std::string &folder, const std::string &prefix);
  void open_diffusers();
  void open_shard(const std::string &path, const std::string &prefix, const std::string &index);
  void add_shard(Shard shard, Header header);
  void add_index(const std::string &index, const std::string &prefix);
  void list_other_files(const std::string &folder, bool has_weights);
  void finish();

  SourceKind kind_ = SourceKind::kFile;
  std::string root_;
  std::string_view memory_;
  std::vector<Shard> shards_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::string> other_files_;
  std::unordered_map<std::string_view, std::size_t> numbers_;  // keys are the names in tensors_
};

}  // namespace lyc::io
