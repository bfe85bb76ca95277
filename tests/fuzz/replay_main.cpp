// Runs a fuzz target over the files of folders, for compilers without libFuzzer: replay FOLDER...
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

#include "base/os.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size);

int main(int argc, char **argv) {
  std::size_t count = 0;
  for (int i = 1; i < argc; ++i)
    for (const std::string &name : lyc::os::list_folder(argv[i])) {
      const std::string text = lyc::os::read_text(lyc::os::join(argv[i], name), std::size_t{1} << 26);
      LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t *>(text.data()), text.size());
      ++count;
    }
  std::printf("%zu inputs\n", count);
  return count > 0 ? 0 : 1;
}
