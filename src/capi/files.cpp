#include <algorithm>

#include "base/dtype.hpp"
#include "base/tensor.hpp"
#include "capi/boundary.hpp"
#include "core/file.hpp"
#include "io/container/safetensors_writer.hpp"

using namespace lyc;
using namespace lyc::capi;

namespace {

const io::TensorInfo &tensor_at(const lyc_file &file, size_t index) {
  if (index >= file.file.tensors().size())
    fail(LYC_ERROR_NOT_FOUND, "there is no tensor ", index, ", the file has ", file.file.tensors().size());
  return file.file.tensors()[index];
}

void require_unfinished(const lyc_writer &writer) {
  require(!writer.finished, "the writer has finished; it can only be released");
}

}  // namespace

lyc_status lyc_file_open(const char *path, lyc_file **out_file) {
  return boundary([&] {
    clear(out_file, "out_file");
    *out_file = new lyc_file(io::TensorFile::open(&needed(path, "path")));
  });
}

lyc_status lyc_file_open_memory(const void *data, size_t size, lyc_file **out_file) {
  return boundary([&] {
    clear(out_file, "out_file");
    require(data != nullptr, "data is NULL");
    *out_file = new lyc_file(io::TensorFile::open_memory(data, size));
  });
}

void lyc_file_retain(lyc_file *file) { capi::retain(file); }
void lyc_file_release(lyc_file *file) { capi::release(file); }

lyc_status lyc_file_tensor_count(const lyc_file *file, size_t *out_count) {
  return boundary([&] { needed(out_count, "out_count") = checked(file, "file").file.tensors().size(); });
}

lyc_status lyc_file_get_tensor(const lyc_file *file, size_t index, const char **out_name, lyc_tensor *out_tensor) {
  return boundary([&] {
    const io::TensorInfo &info = tensor_at(checked(file, "file"), index);
    if (out_name) *out_name = info.name.c_str();
    if (!out_tensor) return;
    *out_tensor = make_tensor(nullptr, info.dtype, info.shape);
    out_tensor->capacity = info.size;
  });
}

lyc_status lyc_file_find_tensor(const lyc_file *file, const char *name, size_t *out_index) {
  return boundary([&] {
    const auto index = checked(file, "file").file.find(&needed(name, "name"));
    if (!index) fail(LYC_ERROR_NOT_FOUND, "the file has no tensor ", io::quote_name(name));
    needed(out_index, "out_index") = *index;
  });
}

lyc_status lyc_file_read_tensor(const lyc_file *file, size_t index, void *data, size_t size) {
  return boundary([&] {
    const io::TensorInfo &info = tensor_at(checked(file, "file"), index);
    require(size >= info.size, io::quote_name(info.name), " has ", info.size, " bytes, there is room for ", size);
    require(data != nullptr || info.size == 0, "data is NULL");
    file->file.read(index, data, 0, info.size);
  });
}

lyc_status lyc_file_metadata_count(const lyc_file *file, size_t *out_count) {
  return boundary([&] { needed(out_count, "out_count") = checked(file, "file").metadata.size(); });
}

lyc_status lyc_file_get_metadata(const lyc_file *file, size_t index, const char **out_key, const char **out_value) {
  return boundary([&] {
    const auto &metadata = checked(file, "file").metadata;
    if (index >= metadata.size())
      fail(LYC_ERROR_NOT_FOUND, "there is no metadata entry ", index, ", the file has ", metadata.size());
    if (out_key) *out_key = metadata[index].first.c_str();
    if (out_value) *out_value = metadata[index].second.c_str();
  });
}

lyc_status lyc_writer_create(const char *path, lyc_writer **out_writer) {
  return boundary([&] {
    clear(out_writer, "out_writer");
    require(needed(path, "path") != '\0', "path is empty");
    *out_writer = new lyc_writer(path);
  });
}

lyc_status lyc_writer_set_metadata(lyc_writer *writer, const char *key, const char *value) {
  return boundary([&] {
    lyc_writer &object = checked(writer, "writer");
    require_unfinished(object);
    object.metadata[&needed(key, "key")] = &needed(value, "value");
  });
}

lyc_status lyc_writer_add(lyc_writer *writer, const char *name, const lyc_tensor *tensor) {
  return boundary([&] {
    lyc_writer &object = checked(writer, "writer");
    require_unfinished(object);
    const std::string text = &needed(name, "name");
    check_tensor(needed(tensor, "tensor"), text);
    require(tensor->device_type == LYC_DEVICE_CPU, text, " is not in CPU memory");
    require(is_contiguous(*tensor), text, " is not contiguous");
    require(std::none_of(object.tensors.begin(), object.tensors.end(),
                         [&](const io::TensorInfo &known) { return known.name == text; }),
            io::quote_name(text), " is there already");
    object.tensors.push_back(io::make_tensor_info(text, tensor->dtype, shape_of(*tensor)));
    object.data.push_back(tensor->data);
  });
}

lyc_status lyc_writer_finish(lyc_writer *writer) {
  return boundary([&] {
    lyc_writer &object = checked(writer, "writer");
    require_unfinished(object);
    io::SafetensorsWriter file(object.path, object.metadata, object.tensors);
    for (size_t i = 0; i < object.tensors.size(); ++i)
      if (object.tensors[i].size > 0) file.write(i, 0, object.data[i], object.tensors[i].size);
    file.finish(os::Replace::kYes);
    object.finished = true;
  });
}

void lyc_writer_release(lyc_writer *writer) { capi::release(writer); }
