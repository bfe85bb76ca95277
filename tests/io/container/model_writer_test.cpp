#include "io/container/model_writer.hpp"

#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "io/container/temporary_folder.hpp"

namespace lyc::io {
namespace {

using test::contents;
using test::expect_error;
using test::image_of;
using test::TemporaryFolder;

/// The old metadata and these entries.
std::function<Metadata(const Shard &)> adding(Metadata additions) {
  return [additions](const Shard &shard) {
    Metadata metadata = shard.metadata;
    for (const auto &[key, value] : additions) metadata[key] = value;
    return metadata;
  };
}

void copy_everything(ModelWriter &writer, const TensorFile &source) {
  for (std::size_t i = 0; i < source.tensors().size(); ++i) writer.copy(i, 0, source.tensors()[i].size);
}

std::string text_of(const TensorFile &file, const std::string &name) {
  const std::size_t tensor = file.find(name).value();
  std::string text(file.tensors()[tensor].size, '\0');
  file.read(tensor, text.data(), 0, text.size());
  return text;
}

TEST(ModelWriter, WritesAFileForAFile) {
  const TemporaryFolder folder;
  const TensorFile source =
      TensorFile::open(folder.put("in.safetensors", image_of({{"a", "1"}, {"b", "22"}}, R"({"k":"v","l":"old"})")));
  ModelWriter writer(folder / "out.safetensors", source, source.tensors(), adding({{"l", "new"}}));
  writer.write(0, 0, "x", 1);
  writer.copy(1, 0, 2);
  writer.finish(os::Replace::kNo);
  const TensorFile out = TensorFile::open(folder / "out.safetensors");
  EXPECT_EQ(text_of(out, "a"), "x");
  EXPECT_EQ(text_of(out, "b"), "22");
  EXPECT_EQ(out.metadata(), (Metadata{{"k", "v"}, {"l", "new"}}));
}

TEST(ModelWriter, WritesAFolderForAFolder) {
  const TemporaryFolder folder;
  folder.put("in/model_index.json", R"({"unet":["d","U"],"text":["t","C"],"tokenizer":["t","T"]})");
  folder.put("in/unet/m.safetensors", image_of({{"w", "unet"}}, R"({"format":"pt"})"));
  folder.put("in/unet/config.json", "{}");
  folder.put("in/tokenizer/vocab.json", "[]");
  folder.put("in/text/m-1.safetensors", image_of({{"w", "text"}}));
  folder.put("in/text/m-2.safetensors", image_of({{"v", "more"}}));
  folder.put("in/text/m.safetensors.index.json", R"({"weight_map":{"w":"m-1.safetensors","v":"m-2.safetensors"}})");
  const TensorFile source = TensorFile::open(folder / "in");
  std::vector<TensorInfo> tensors = source.tensors();
  const std::size_t changed = source.find("text.v").value();
  tensors[changed] = make_tensor_info("text.v", LYC_DTYPE_F32, {4});
  {
    ModelWriter writer(folder / "out", source, tensors, adding({{"by", "test"}}));
    for (std::size_t i = 0; i < tensors.size(); ++i)
      if (i != changed) writer.copy(i, 0, tensors[i].size);
    writer.write(changed, 0, "0123456789abcdef", 16);
    EXPECT_EQ(os::file_type(folder / "out"), os::FileType::kMissing);
    writer.finish(os::Replace::kNo);
  }
  const TensorFile out = TensorFile::open(folder / "out");
  EXPECT_EQ(out.kind(), SourceKind::kDiffusers);
  EXPECT_EQ(text_of(out, "unet.w"), "unet");
  EXPECT_EQ(text_of(out, "text.w"), "text");
  EXPECT_EQ(text_of(out, "text.v"), "0123456789abcdef");
  EXPECT_EQ(out.other_files(), source.other_files());
  EXPECT_EQ(contents(folder / "out/tokenizer/vocab.json"), "[]");
  EXPECT_NE(contents(folder / "out/text/m.safetensors.index.json").find("\"total_size\": 20"), std::string::npos);
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"in", "out"}));
}

TEST(ModelWriter, LeavesNothingWhenItIsGivenUp) {
  const TemporaryFolder folder;
  folder.put("in/m.safetensors", image_of({{"a", "1"}}));
  const TensorFile source = TensorFile::open(folder / "in");
  { ModelWriter writer(folder / "out", source, source.tensors(), adding({})); }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"in"});
}

TEST(ModelWriter, RefusesItsInputAsOutput) {
  const TemporaryFolder folder;
  const std::string path = folder.put("in/m.safetensors", image_of({{"a", "1"}}));
  for (const std::string &input : {path, folder / "in"}) {
    const TensorFile source = TensorFile::open(input);
    expect_error(LYC_ERROR_INVALID_ARGUMENT, {input, "input"},
                 [&] { ModelWriter(input, source, source.tensors(), adding({})); });
  }
}

TEST(ModelWriter, ReplacesAFolderOnlyWhenAllowed) {
  const TemporaryFolder folder;
  folder.put("in/m.safetensors", image_of({{"a", "1"}}));
  folder.put("out/m.safetensors", "old");
  const TensorFile source = TensorFile::open(folder / "in");
  const auto write = [&](os::Replace replace) {
    ModelWriter writer(folder / "out", source, source.tensors(), adding({}));
    copy_everything(writer, source);
    writer.finish(replace);
  };
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"out", "exists"}, [&] { write(os::Replace::kNo); });
  EXPECT_EQ(contents(folder / "out/m.safetensors"), "old");
  write(os::Replace::kYes);
  EXPECT_EQ(text_of(TensorFile::open(folder / "out"), "a"), "1");
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"in", "out"}));
}

}  // namespace
}  // namespace lyc::io
