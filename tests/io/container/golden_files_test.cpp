// Files that other programs wrote are read, and survive being written anew.
#include <cstdlib>
#include <filesystem>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "io/container/safetensors_writer.hpp"
#include "io/container/temporary_folder.hpp"

namespace lyc::io {
namespace {

namespace fs = std::filesystem;

std::string data_of(const TensorFile &file, std::size_t tensor) {
  std::string data(file.tensors()[tensor].size, '\0');
  file.read(tensor, data.data(), 0, data.size());
  return data;
}

void expect_same(const TensorFile &a, const TensorFile &b) {
  EXPECT_EQ(a.metadata(), b.metadata());
  ASSERT_EQ(a.tensors().size(), b.tensors().size());
  for (std::size_t i = 0; i < a.tensors().size(); ++i) {
    const std::size_t j = b.find(a.tensors()[i].name).value();
    EXPECT_EQ(a.tensors()[i].dtype_text, b.tensors()[j].dtype_text);
    EXPECT_EQ(a.tensors()[i].shape, b.tensors()[j].shape);
    EXPECT_TRUE(data_of(a, i) == data_of(b, j));
  }
}

TEST(GoldenFiles, AreReadAndWrittenAnew) {
  const char *variable = std::getenv("LYCORIS_GOLDEN");
  const fs::path golden = variable ? variable : LYCORIS_SOURCE_DIR "/../shared/golden";
  if (!fs::is_directory(golden)) GTEST_SKIP() << "no golden folder; LYCORIS_GOLDEN names one";
  const test::TemporaryFolder folder;
  int count = 0;
  for (const fs::directory_entry &entry : fs::recursive_directory_iterator(golden)) {
    if (entry.path().extension() != ".safetensors") continue;
    SCOPED_TRACE(entry.path().string());
    const TensorFile source = TensorFile::open(entry.path().string());
    SafetensorsWriter writer(folder / "copy.safetensors", source.metadata(), source.tensors());
    for (std::size_t i = 0; i < source.tensors().size(); ++i) writer.copy_from(i, source, i);
    writer.finish(os::Replace::kYes);
    expect_same(source, TensorFile::open(folder / "copy.safetensors"));
    ++count;
  }
  EXPECT_GT(count, 0);
}

}  // namespace
}  // namespace lyc::io
