// Whatever the bytes are: they are refused as an Error, or all that the header promises can be read and written again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "base/error.hpp"
#include "io/container/tensor_file.hpp"

namespace {

void expect(bool condition) {
  if (!condition) std::abort();
}

void read_everything(const lyc::io::TensorFile &file, std::size_t file_size) {
  std::size_t total = 0;
  for (std::size_t i = 0; i < file.tensors().size(); ++i) {
    const lyc::io::TensorInfo &tensor = file.tensors()[i];
    expect(file.find(tensor.name) == i && tensor.shape.size() <= LYC_MAX_DIMS && tensor.size <= file_size);
    std::vector<char> data(tensor.size);
    file.read(i, data.data(), 0, data.size());
    total += tensor.size;
  }
  expect(total <= file_size);
}

/// The header of what was read, rendered and read once more, must be the same.
void render_and_parse(const lyc::io::TensorFile &file) {
  std::vector<lyc::io::TensorInfo> tensors = file.tensors();
  const std::string text = lyc::io::render_header(file.metadata(), tensors);
  std::uint64_t size = text.size();
  for (const lyc::io::TensorInfo &tensor : tensors) size += tensor.size;
  const lyc::io::Header again = lyc::io::parse_header(text.substr(lyc::io::kLengthSize), size, "again");
  expect(again.metadata == file.metadata() && again.tensors.size() == tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) expect(again.tensors[i].offset == tensors[i].offset);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  try {
    const lyc::io::TensorFile file = lyc::io::TensorFile::open_memory(data, size);
    read_everything(file, size);
    render_and_parse(file);
  } catch (const lyc::Error &) {
  }
  return 0;
}
