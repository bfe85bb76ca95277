#include "io/container/safetensors_writer.hpp"

#include <utility>

#define JSON_NO_IO
#include <nlohmann/json.hpp>

#include "base/error.hpp"

namespace lyc::io {

SafetensorsWriter::SafetensorsWriter(const std::string &path, const Metadata &metadata, std::vector<TensorInfo> tensors)
    : file_(path), tensors_(std::move(tensors)), written_(new std::atomic<std::uint64_t>[tensors_.size()]()) {
  const std::string header = render_header(metadata, tensors_);
  file_.reserve(tensors_.empty() ? header.size() : tensors_.back().offset + tensors_.back().size);
  file_.write(0, header.data(), header.size());
}

void SafetensorsWriter::write(std::size_t tensor, std::uint64_t begin, const void *data, std::size_t size) {
  count(tensor, begin, size);
  file_.write(tensors_[tensor].offset + begin, data, size);
}

void SafetensorsWriter::copy_from(std::size_t tensor, const TensorFile &source, std::size_t source_tensor,
                                  std::uint64_t begin, std::uint64_t size) {
  const TensorInfo &info = source.tensors()[source_tensor];
  require_range(info, begin, size);
  const std::optional<os::File> &file = source.shard_of(source_tensor).file;
  require(file.has_value(), "tensors are copied from files, not from memory");
  count(tensor, begin, size);
  file_.copy_from(*file, info.offset + begin, tensors_[tensor].offset + begin, size);
}

void SafetensorsWriter::copy_from(std::size_t tensor, const TensorFile &source, std::size_t source_tensor) {
  copy_from(tensor, source, source_tensor, 0, source.tensors()[source_tensor].size);
}

void SafetensorsWriter::finish(os::Replace replace) {
  for (std::size_t i = 0; i < tensors_.size(); ++i)
    if (written_[i] != tensors_[i].size)
      fail(LYC_ERROR_INTERNAL, "tensor ", quote_name(tensors_[i].name), " has ", tensors_[i].size, " bytes, but ",
           written_[i].load(), " were written");
  file_.commit(replace);
}

void SafetensorsWriter::count(std::size_t tensor, std::uint64_t begin, std::uint64_t size) {
  require_range(tensors_[tensor], begin, size);
  written_[tensor] += size;
}

std::string render_index(const std::map<std::string, std::string> &weight_map, std::uint64_t total_size) {
  return nlohmann::ordered_json{{"metadata", {{"total_size", total_size}}}, {"weight_map", weight_map}}.dump(2) + "\n";
}

}  // namespace lyc::io
