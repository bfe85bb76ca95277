#include "io/container/safetensors_writer.hpp"

#include <cstring>
#include <gtest/gtest.h>
#include <string>
#include <thread>
#include <vector>

#include "io/container/temporary_folder.hpp"

namespace lyc::io {
namespace {

using test::contents;
using test::expect_error;
using test::image_of;
using test::TemporaryFolder;

TEST(SafetensorsWriter, WritesWhatIsReadBack) {
  const TemporaryFolder folder;
  const Metadata metadata = {{"format", "pt"}, {"text \"\n\u00e9", "\\ \t"}};
  SafetensorsWriter writer(folder / "m.safetensors", metadata,
                           {make_tensor_info("w", LYC_DTYPE_BF16, {3, 1}), make_tensor_info("alpha", LYC_DTYPE_F32, {}),
                            make_tensor_info("none", LYC_DTYPE_I64, {0, 5})});
  writer.write(1, 0, "4444", 4);
  writer.write(0, 2, "cdef", 4);
  writer.write(0, 0, "ab", 2);
  writer.finish(os::Replace::kNo);
  const TensorFile file = TensorFile::open(folder / "m.safetensors");
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensors()[0].name, "w");
  EXPECT_EQ(file.tensors()[0].offset % 8, 0u);
  EXPECT_EQ(file.tensors()[0].shape, (std::vector<std::int64_t>{3, 1}));
  EXPECT_EQ(file.tensors()[*file.find("none")].shape, (std::vector<std::int64_t>{0, 5}));
  char data[6];
  file.read(0, data, 0, 6);
  EXPECT_EQ(std::string(data, 6), "abcdef");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"m.safetensors"});
}

TEST(SafetensorsWriter, WritesAnEmptyFile) {
  const TemporaryFolder folder;
  SafetensorsWriter(folder / "m.safetensors", {}, {}).finish(os::Replace::kNo);
  EXPECT_TRUE(TensorFile::open(folder / "m.safetensors").tensors().empty());
}

TEST(SafetensorsWriter, CopiesTensorsOfAnyTypeByteForByte) {
  const TemporaryFolder folder;
  const std::string path = folder.put(
      "in.safetensors",
      test::image(
          R"({"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]},"b":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[1,5]}})",
          "x1234"));
  const TensorFile source = TensorFile::open(path);
  SafetensorsWriter writer(folder / "out.safetensors", source.metadata(), source.tensors());
  writer.copy_from(0, source, 0);
  writer.copy_from(1, source, 1, 2, 2);
  writer.copy_from(1, source, 1, 0, 2);
  writer.finish(os::Replace::kNo);
  const TensorFile copy = TensorFile::open(folder / "out.safetensors");
  EXPECT_EQ(copy.tensors()[0].dtype_text, "F4");
  char data[4];
  copy.read(1, data, 0, 4);
  EXPECT_EQ(std::string(data, 4), "1234");
}

TEST(SafetensorsWriter, TakesConcurrentWrites) {
  const TemporaryFolder folder;
  constexpr std::size_t kSize = 100'000;
  std::vector<TensorInfo> tensors;
  for (int t = 0; t < 8; ++t) tensors.push_back(make_tensor_info(concat("t", t), LYC_DTYPE_U8, {kSize}));
  SafetensorsWriter writer(folder / "m.safetensors", {}, tensors);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      const std::string data(kSize / 10, static_cast<char>('a' + t));
      for (std::size_t part = 0; part < 10; ++part) writer.write(t, part * data.size(), data.data(), data.size());
    });
  for (std::thread &thread : threads) thread.join();
  writer.finish(os::Replace::kNo);
  const TensorFile file = TensorFile::open(folder / "m.safetensors");
  std::string data(kSize, '\0');
  for (std::size_t t = 0; t < 8; ++t) {
    file.read(t, data.data(), 0, kSize);
    EXPECT_TRUE(data == std::string(kSize, static_cast<char>('a' + t)));
  }
}

TEST(SafetensorsWriter, LeavesNothingWhenItIsGivenUp) {
  const TemporaryFolder folder;
  const std::string path = folder.put("m.safetensors", "old");
  {
    SafetensorsWriter writer(path, {}, {make_tensor_info("w", LYC_DTYPE_U8, {4})});
    writer.write(0, 0, "123", 3);
    expect_error(LYC_ERROR_INTERNAL, {"'w'", "3 were written"}, [&] { writer.finish(os::Replace::kYes); });
  }
  EXPECT_EQ(contents(path), "old");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"m.safetensors"});
}

TEST(SafetensorsWriter, ReplacesItsOwnInputWhole) {
  const TemporaryFolder folder;
  const std::string path = folder.put("m.safetensors", image_of({{"a", "12345"}}));
  const TensorFile source = TensorFile::open(path);
  SafetensorsWriter writer(path, {{"k", "v"}}, source.tensors());
  writer.copy_from(0, source, 0);
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {path}, [&] { writer.finish(os::Replace::kNo); });
  writer.finish(os::Replace::kYes);
  EXPECT_EQ(TensorFile::open(path).metadata().at("k"), "v");
  char data[5];
  source.read(0, data, 0, 5);  // still the old file
  EXPECT_EQ(std::string(data, 5), "12345");
}

TEST(SafetensorsWriter, ChecksNamesAndRanges) {
  const TemporaryFolder folder;
  const auto create = [&](const std::vector<TensorInfo> &tensors, const Metadata &metadata = {}) {
    SafetensorsWriter(folder / "m.safetensors", metadata, tensors);
  };
  const TensorInfo w = make_tensor_info("w", LYC_DTYPE_U8, {4});
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"'w'", "twice"}, [&] { create({w, w}); });
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"UTF-8"}, [&] { create({make_tensor_info("\xff", LYC_DTYPE_U8, {4})}); });
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"metadata", "UTF-8"}, [&] { create({w}, {{"k", "\xff"}}); });
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"__metadata__"},
               [&] { create({make_tensor_info("__metadata__", LYC_DTYPE_U8, {4})}); });
  SafetensorsWriter writer(folder / "m.safetensors", {}, {w});
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"'w'", "4 bytes"}, [&] { writer.write(0, 2, "abc", 3); });
}

TEST(RenderIndex, IsReadBack) {
  const TemporaryFolder folder;
  folder.put("1.safetensors", image_of({{"a", "1"}}));
  folder.put("2.safetensors", image_of({{"b", "2"}}));
  folder.put("m.safetensors.index.json", render_index({{"a", "1.safetensors"}, {"b", "2.safetensors"}}, 2));
  EXPECT_EQ(TensorFile::open(folder.path()).tensors().size(), 2u);
  EXPECT_EQ(render_index({}, 0).find("{\n  \"metadata\": {\n    \"total_size\": 0"), 0u);
}

}  // namespace
}  // namespace lyc::io
