// The program that the faults happen to: victim file|folder INPUT OUTPUT. Copies a model, half of it by read and write.
// Prints how many calls were counted; exit status 0: done, 1: refused with an Error.
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "io/container/safetensors_writer.hpp"

namespace {

using namespace lyc;

void copy_model(const std::string &input, const std::string &output) {
  const io::TensorFile source = io::TensorFile::open(input);
  io::SafetensorsWriter writer(output, source.metadata(), source.tensors());
  for (std::size_t i = 0; i < source.tensors().size(); ++i) {
    if (i % 2 == 0) {
      writer.copy_from(i, source, i);
    } else {
      std::vector<char> data(source.tensors()[i].size);
      source.read(i, data.data(), 0, data.size());
      writer.write(i, 0, data.data(), data.size());
    }
  }
  writer.finish(os::Replace::kYes);
}

void copy_folder(const std::string &input, const std::string &output) {
  os::OutputFolder folder(output);
  copy_model(input, os::join(folder.staging_path(), "model.safetensors"));
  os::write_text(os::join(folder.staging_path(), "config.json"), "{}");
  folder.commit(os::Replace::kYes);
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  int status = 0;
  try {
    std::strcmp(argv[1], "folder") == 0 ? copy_folder(argv[2], argv[3]) : copy_model(argv[2], argv[3]);
  } catch (const Error &error) {
    std::fprintf(stderr, "%s\n", error.what());
    status = 1;
  }
  const auto count = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "lycoris_call_count"));
  std::printf("%d\n", count ? count() : -1);
  return status;
}
