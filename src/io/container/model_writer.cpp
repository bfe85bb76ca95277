#include "io/container/model_writer.hpp"

#include <map>
#include <utility>

#include "base/error.hpp"

namespace lyc::io {
namespace {

/// The part of the list that belongs to a shard, under the names that its file gives them.
std::vector<TensorInfo> tensors_of(const Shard &shard, const std::vector<TensorInfo> &tensors) {
  const auto first = tensors.begin() + static_cast<std::ptrdiff_t>(shard.first);
  std::vector<TensorInfo> own(first, first + static_cast<std::ptrdiff_t>(shard.count));
  for (TensorInfo &tensor : own) tensor.name.erase(0, shard.prefix.size());
  return own;
}

}  // namespace

ModelWriter::ModelWriter(const std::string &path, const TensorFile &source, std::vector<TensorInfo> tensors,
                         const std::function<Metadata(const Shard &)> &metadata)
    : source_(source), tensors_(std::move(tensors)) {
  require(source.kind() != SourceKind::kMemory, "a model in memory cannot be written anew");
  require(!source.is_input(path), "'", path, "' is an input and cannot be the output");
  if (source.kind() != SourceKind::kFile) folder_.emplace(path);
  for (const Shard &shard : source.shards()) {
    const std::string file = folder_ ? os::join(folder_->staging_path(), shard.path) : path;
    if (folder_) os::make_folder(os::parent_folder(file));
    shards_.emplace_back(file, metadata(shard), tensors_of(shard, tensors_));
  }
}

void ModelWriter::write(std::size_t tensor, std::uint64_t begin, const void *data, std::size_t size) {
  const std::size_t shard = shard_number(tensor);
  shards_[shard].write(tensor - source_.shards()[shard].first, begin, data, size);
}

void ModelWriter::copy(std::size_t tensor, std::uint64_t begin, std::uint64_t size) {
  const std::size_t shard = shard_number(tensor);
  shards_[shard].copy_from(tensor - source_.shards()[shard].first, source_, tensor, begin, size);
}

void ModelWriter::finish(os::Replace replace) {
  for (SafetensorsWriter &shard : shards_) shard.finish(folder_ ? os::Replace::kNo : replace);
  if (!folder_) return;
  write_indexes();
  for (const std::string &name : source_.other_files()) {
    const std::string copy = os::join(folder_->staging_path(), name);
    os::make_folder(os::parent_folder(copy));
    os::copy_file(os::join(source_.root(), name), copy);
  }
  folder_->commit(replace);
}

void ModelWriter::write_indexes() const {
  struct Index {
    std::map<std::string, std::string> weight_map;
    std::uint64_t total_size = 0;
  };
  std::map<std::string, Index> indexes;
  for (const Shard &shard : source_.shards()) {
    if (shard.index.empty()) continue;
    Index &index = indexes[shard.index];
    for (const TensorInfo &tensor : tensors_of(shard, tensors_)) {
      index.weight_map[tensor.name] = os::file_name(shard.path);
      index.total_size += tensor.size;
    }
  }
  for (const auto &[path, index] : indexes)
    os::write_text(os::join(folder_->staging_path(), path), render_index(index.weight_map, index.total_size));
}

std::size_t ModelWriter::shard_number(std::size_t tensor) const {
  return static_cast<std::size_t>(&source_.shard_of(tensor) - source_.shards().data());
}

}  // namespace lyc::io
