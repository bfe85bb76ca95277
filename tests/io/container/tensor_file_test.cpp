#include "io/container/tensor_file.hpp"

#include <filesystem>
#include <gtest/gtest.h>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

#include "io/container/temporary_folder.hpp"

namespace lyc::io {
namespace {

using Names = std::vector<std::string>;
using test::expect_error;
using test::image_of;
using test::TemporaryFolder;

std::string text_of(const TensorFile &file, const std::string &name) {
  const std::optional<std::size_t> tensor = file.find(name);
  if (!tensor) return "(not found)";
  std::string text(file.tensors()[*tensor].size, '\0');
  file.read(*tensor, text.data(), 0, text.size());
  return text;
}

std::string index_of(const std::string &weight_map) {
  return "{\"metadata\":{\"total_size\":1},\"weight_map\":" + weight_map + "}";
}

TEST(TensorFile, OpensOneFile) {
  const TemporaryFolder folder;
  folder.put("config.json", "{}");
  const TensorFile file =
      TensorFile::open(folder.put("m.safetensors", image_of({{"a", "1"}, {"b", "22"}}, R"({"k":"v"})")));
  EXPECT_EQ(file.kind(), SourceKind::kFile);
  EXPECT_EQ(file.root(), folder.path());
  EXPECT_EQ(file.metadata().at("k"), "v");
  EXPECT_EQ(text_of(file, "a"), "1");
  EXPECT_EQ(text_of(file, "b"), "22");
  EXPECT_TRUE(file.other_files().empty());
  EXPECT_EQ(file.shards()[0].path, "m.safetensors");
}

TEST(TensorFile, NamesMissingAndForeignFiles) {
  const TemporaryFolder folder;
  expect_error(LYC_ERROR_NOT_FOUND, {"none.safetensors"}, [&] { TensorFile::open(folder / "none.safetensors"); });
  expect_error(LYC_ERROR_NOT_FOUND, {folder.path(), "no safetensors"}, [&] { TensorFile::open(folder.path()); });
  folder.put("pytorch_model.bin", "PK\x03\x04 and more");
  expect_error(LYC_ERROR_UNSUPPORTED, {"pytorch_model.bin", "pickle"}, [&] { TensorFile::open(folder.path()); });
}

TEST(TensorFile, ReadsWhatIsNotAligned) {
  const TemporaryFolder folder;
  const TensorFile file = TensorFile::open(folder.put(
      "m.safetensors",
      test::image(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
          std::string("x\0\0\x80\x3f", 5))));
  float value = 0;
  file.read(*file.find("b"), &value, 0, sizeof value);
  EXPECT_EQ(value, 1.0f);
}

TEST(TensorFile, ReadsBeyondFourGigabytes) {
  const TemporaryFolder folder;
  constexpr std::uint64_t kCount = (std::uint64_t{1} << 31) + 5;
  const std::string header =
      test::image(concat(R"({"t":{"dtype":"F16","shape":[)", kCount, R"(],"data_offsets":[0,)", 2 * kCount, "]}}"), "");
  const std::string path = folder.put("m.safetensors", header);
  ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(header.size() + 2 * kCount)), 0);  // a hole on the disk
  const TensorFile file = TensorFile::open(path);
  EXPECT_EQ(file.tensors()[0].size, 2 * kCount);
  char last[2] = {1, 1};
  file.read(0, last, 2 * kCount - 2, 2);
  EXPECT_EQ(last[0], 0);
}

TEST(TensorFile, OpensAnIndexByItsNameOrFolder) {
  const TemporaryFolder folder;
  folder.put("config.json", "{}");
  folder.put("pytorch_model.bin", "PK");
  folder.put("m-2.safetensors", image_of({{"b", "22"}, {"c", ""}}));
  folder.put("m-1.safetensors", image_of({{"z", "1"}}, R"({"format":"pt"})"));
  const std::string index = folder.put(
      "m.safetensors.index.json", index_of(R"({"b":"m-2.safetensors","c":"m-2.safetensors","z":"m-1.safetensors"})"));
  for (const std::string &path : {index, folder.path()}) {
    const TensorFile file = TensorFile::open(path);
    EXPECT_EQ(file.kind(), SourceKind::kSharded);
    ASSERT_EQ(file.shards().size(), 2u);
    EXPECT_EQ(file.shards()[1].path, "m-2.safetensors");
    EXPECT_EQ(file.shards()[1].index, "m.safetensors.index.json");
    EXPECT_EQ(file.shards()[1].first, 1u);
    EXPECT_EQ(file.shards()[1].count, 2u);
    EXPECT_EQ(file.shard_of(*file.find("c")).path, "m-2.safetensors");
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_EQ(text_of(file, "z"), "1");
    EXPECT_EQ(text_of(file, "b"), "22");
    EXPECT_EQ(file.other_files(), Names{"config.json"});
  }
}

TEST(TensorFile, ChecksIndexesAgainstShards) {
  const TemporaryFolder folder;
  folder.put("1.safetensors", image_of({{"a", "1"}}));
  folder.put("2.safetensors", image_of({{"b", "2"}}));
  const auto open = [&](const std::string &text) { TensorFile::open(folder.put("m.safetensors.index.json", text)); };
  open(index_of(R"({"a":"1.safetensors"})"));
  expect_error(LYC_ERROR_FORMAT, {"'x'", "'1.safetensors'", "is not"},
               [&] { open(index_of(R"({"x":"1.safetensors"})")); });
  expect_error(LYC_ERROR_FORMAT, {"'b'", "'1.safetensors'"},
               [&] { open(index_of(R"({"a":"1.safetensors","b":"1.safetensors"})")); });
  expect_error(LYC_ERROR_NOT_FOUND, {"3.safetensors"}, [&] { open(index_of(R"({"a":"3.safetensors"})")); });
  expect_error(LYC_ERROR_FORMAT, {"no weight_map"}, [&] { open("{}"); });
  expect_error(LYC_ERROR_FORMAT, {"empty"}, [&] { open(index_of("{}")); });
  expect_error(LYC_ERROR_FORMAT, {"not a JSON object"}, [&] { open("{"); });
  expect_error(LYC_ERROR_FORMAT, {"not a JSON object"}, [&] { open(std::string(1'000'000, '[')); });
  expect_error(LYC_ERROR_FORMAT, {"'a'", "no shard"}, [&] { open(index_of(R"({"a":1})")); });
}

TEST(TensorFile, RefusesShardsInOtherFolders) {
  const TemporaryFolder folder;
  folder.put("secret.safetensors", image_of({{"a", "1"}}));
  for (const std::string shard : {"../secret.safetensors", "..", ".", "", "sub/a.safetensors", "..\\\\a.safetensors",
                                  "/etc/passwd", "a\\u0000.safetensors"})
    expect_error(LYC_ERROR_FORMAT, {"'a'", "same folder"}, [&] {
      TensorFile::open(folder.put("model/m.safetensors.index.json", index_of("{\"a\":\"" + shard + "\"}")));
    });
}

TEST(TensorFile, RefusesATensorInTwoShards) {
  const TemporaryFolder folder;
  folder.put("m-00001-of-00002.safetensors", image_of({{"a", "1"}}));
  folder.put("m-00002-of-00002.safetensors", image_of({{"a", "2"}}));
  expect_error(LYC_ERROR_FORMAT, {"'a'", "'m-00001-of-00002.safetensors'", "'m-00002-of-00002.safetensors'"},
               [&] { TensorFile::open(folder.path()); });
}

TEST(TensorFile, OpensAnAdapterFolder) {
  const TemporaryFolder folder;
  folder.put("adapter_config.json", "{}");
  folder.put("adapter_model.safetensors", image_of({{"a", "1"}}));
  folder.put(".cache/x.safetensors", "hidden");
  folder.put(".hidden.safetensors", "hidden");
  const TensorFile file = TensorFile::open(folder.path());
  EXPECT_EQ(file.kind(), SourceKind::kFolder);
  EXPECT_EQ(file.other_files(), Names{"adapter_config.json"});
}

/// A text encoder in two shards with an index, a UNet in two variants, a checker that is only there as a pickle.
void put_diffusers(const TemporaryFolder &folder) {
  folder.put("model_index.json",
             R"({"_class_name":"Pipeline","scheduler":["d","S"],"text_encoder":["t","C"],"unet":["d","U"],
    "safety_checker":["s","C"],"feature_extractor":[null,null],"force_zeros":true})");
  folder.put("model.safetensors", "the whole model once more");
  folder.put("README.md", "hello");
  folder.put("scheduler/scheduler_config.json", "{}");
  folder.put("text_encoder/model-00001-of-00002.safetensors", image_of({{"w", "te1"}}));
  folder.put("text_encoder/model-00002-of-00002.safetensors", image_of({{"v", "te2"}}));
  folder.put("text_encoder/model.safetensors.index.json",
             index_of(R"({"w":"model-00001-of-00002.safetensors","v":"model-00002-of-00002.safetensors"})"));
  folder.put("unet/config.json", "{}");
  folder.put("unet/diffusion_pytorch_model.safetensors", image_of({{"w", "unet"}}));
  folder.put("unet/diffusion_pytorch_model.fp16.safetensors", image_of({{"w", "half"}}));
  folder.put("unet/diffusion_pytorch_model.bin", "PK");
  folder.put("safety_checker/pytorch_model.bin", "PK");
  folder.put("unrelated/notes.safetensors", "notes");
}

TEST(TensorFile, OpensADiffusersFolder) {
  const TemporaryFolder folder;
  put_diffusers(folder);
  const TensorFile file = TensorFile::open(folder.path());
  EXPECT_EQ(file.kind(), SourceKind::kDiffusers);
  EXPECT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(text_of(file, "text_encoder.w"), "te1");
  EXPECT_EQ(text_of(file, "text_encoder.v"), "te2");
  EXPECT_EQ(text_of(file, "unet.w"), "unet");
  const Shard &shard = file.shard_of(*file.find("text_encoder.v"));
  EXPECT_EQ(shard.path, "text_encoder/model-00002-of-00002.safetensors");
  EXPECT_EQ(shard.prefix, "text_encoder.");
  EXPECT_EQ(shard.index, "text_encoder/model.safetensors.index.json");
  EXPECT_EQ(file.other_files(), (Names{"README.md", "model_index.json", "safety_checker/pytorch_model.bin",
                                       "scheduler/scheduler_config.json", "unet/config.json"}));
}

TEST(TensorFile, RefusesComponentsInOtherFolders) {
  const TemporaryFolder folder;
  folder.put("secret/m.safetensors", image_of({{"a", "1"}}));
  folder.put("model/model_index.json", R"({"../secret":["d","U"]})");
  expect_error(LYC_ERROR_NOT_FOUND, {"model_index.json"}, [&] { TensorFile::open(folder / "model"); });
}

TEST(TensorFile, KnowsItsInputs) {
  const TemporaryFolder folder;
  put_diffusers(folder);
  std::filesystem::create_symlink("unet/diffusion_pytorch_model.safetensors", folder / "link");
  const TensorFile model = TensorFile::open(folder.path());
  EXPECT_TRUE(model.is_input(folder / "link"));
  EXPECT_TRUE(model.is_input(folder / "unet/.."));
  EXPECT_FALSE(model.is_input(folder / "unet/diffusion_pytorch_model.fp16.safetensors"));
  EXPECT_FALSE(model.is_input(folder / "none"));
  EXPECT_FALSE(TensorFile::open(folder / "link").is_input(folder.path()));
}

TEST(TensorFile, IsReadByManyThreads) {
  const TemporaryFolder folder;
  put_diffusers(folder);
  const TensorFile file = TensorFile::open(folder.path());
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) EXPECT_EQ(text_of(file, "unet.w"), "unet");
    });
  for (std::thread &thread : threads) thread.join();
}

TEST(TensorFile, SaysThatAFileShrank) {
  const TemporaryFolder folder;
  const std::string path = folder.put("m.safetensors", image_of({{"a", "12345"}}));
  const TensorFile file = TensorFile::open(path);
  ASSERT_EQ(truncate(path.c_str(), 20), 0);
  expect_error(LYC_ERROR_IO, {path, "shorter"}, [&] { text_of(file, "a"); });
}

TEST(TensorFile, StaysUsableWhenMoved) {
  const TemporaryFolder folder;
  TensorFile first = TensorFile::open(folder.put("m.safetensors", image_of({{"a", "1"}})));
  const TensorFile second = std::move(first);
  EXPECT_EQ(text_of(second, "a"), "1");
}

}  // namespace
}  // namespace lyc::io
