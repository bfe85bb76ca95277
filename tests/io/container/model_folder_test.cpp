#include "io/container/model_folder.hpp"

#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "io/container/temporary_folder.hpp"

namespace lyc::io {
namespace {

using Names = std::vector<std::string>;
using test::expect_error;

WeightSet choose(const Names &names) { return choose_weights(names, "folder"); }

TEST(ChooseWeights, TakesTheOnlyFile) {
  EXPECT_EQ(choose({"config.json", "model.safetensors"}).files, Names{"model.safetensors"});
  EXPECT_TRUE(choose({"config.json", "pytorch_model.bin"}).files.empty());
}

TEST(ChooseWeights, PrefersPlainNamesToVariants) {
  EXPECT_EQ(choose({"m.fp16.safetensors", "m.non_ema.safetensors", "m.safetensors"}).files, Names{"m.safetensors"});
  EXPECT_EQ(choose({"m.fp16.safetensors"}).files, Names{"m.fp16.safetensors"});
  EXPECT_EQ(choose({"m.fp16-00001-of-00001.safetensors", "m.safetensors"}).files, Names{"m.safetensors"});
  EXPECT_EQ(choose({"m-00001-of-00001.fp16.safetensors", "m.safetensors.index.fp16.json", "m.safetensors"}).files,
            Names{"m.safetensors"});
}

TEST(ChooseWeights, PrefersAnIndex) {
  const WeightSet set = choose({"consolidated.safetensors", "m-00001-of-00002.safetensors",
                                "m-00002-of-00002.safetensors", "m.safetensors.index.json"});
  EXPECT_EQ(set.index, "m.safetensors.index.json");
  EXPECT_TRUE(set.files.empty());
  EXPECT_EQ(choose({"m.safetensors.index.fp16.json", "m.safetensors.index.json"}).index, "m.safetensors.index.json");
}

TEST(ChooseWeights, TakesShardsWithoutAnIndex) {
  const Names shards = {"m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"};
  EXPECT_EQ(choose(shards).files, shards);
  expect_error(LYC_ERROR_FORMAT, {"folder", "1 of the 2"}, [] { choose({"m-00001-of-00002.safetensors"}); });
}

TEST(ChooseWeights, RefusesToGuess) {
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"folder", "'a.safetensors'", "'b.safetensors'"}, [] {
    choose({"a.safetensors", "b.safetensors"});
  });
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"'m.safetensors'", "'m-00001-of-00001.safetensors'"}, [] {
    choose({"m-00001-of-00001.safetensors", "m.safetensors"});
  });
}

TEST(WeightNames, AreKnownInEveryFormat) {
  for (const char *name : {"a.safetensors", "a.bin", "a.ckpt", "a.safetensors.index.json", "a.bin.index.fp16.json"})
    EXPECT_TRUE(is_weight_name(name)) << name;
  for (const char *name : {"config.json", "tokenizer.model", "README.md", "model_index.json"})
    EXPECT_FALSE(is_weight_name(name)) << name;
}

}  // namespace
}  // namespace lyc::io
