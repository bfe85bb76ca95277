// Which dialect a file is taken for, and that the ones without a reader are refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.hpp"
#include "io/dialect/adapter.hpp"

namespace lyc::io {
namespace {

using test::Adapter;

std::string dialect_of(const Adapter &adapter) { return std::string(find_dialect(adapter.keys()).name); }

TEST(Dialects, AreFoundByMetadataThenKeysThenPrefixes) {
  EXPECT_EQ(dialect_of({{{"lycoris_a.diff", {2, 2}}}}), "lycoris");
  EXPECT_EQ(dialect_of({{{"lora_unet_a.diff", {2, 2}}}, {{"ss_network_module", "lycoris.kohya"}}}), "lycoris");
  EXPECT_EQ(dialect_of({{{"lora_unet_a.diff", {2, 2}}}, {{"ss_network_module", "networks.lora"}}}), "kohya");
  EXPECT_EQ(dialect_of({{{"lora_te1_a.diff", {2, 2}}}}), "kohya");
  EXPECT_EQ(dialect_of({{{"diffusion_model.a.lora_A.weight", {2, 2}}}}), "original");
  EXPECT_EQ(dialect_of({{{"double_blocks.0.img_attn.qkv.lora_A.weight", {2, 2}}}}), "original");
}

TEST(Dialects, KohyasOftIsReadByItsOwnRules) {
  for (const Adapter &adapter :
       {Adapter{{{"oft_unet_a.oft_blocks", {2, 2, 2}}, {"oft_unet_a.alpha", {}}}},
        Adapter{{{"lora_unet_a.oft_R.weight", {2, 2}}}, {{"ss_network_module", "networks.oft_v2"}}}}) {
    const AdapterRecords records = read_adapter(adapter.keys());
    EXPECT_EQ(records.dialect, "kohya OFT");
    EXPECT_EQ(records.origin, LYC_ORIGIN_KOHYA);
    EXPECT_EQ(records.layers.size(), 1u);
  }
}

struct Refused {
  const char *dialect;
  Adapter adapter;
};

TEST(Dialects, WithoutAReaderAreRefusedByName) {
  const Refused cases[] = {
      {"PEFT", {{{"base_model.model.a.lora_A.weight", {2, 2}}}}},
      {"OneTrainer", {{{"lora_unet_a.lora_up.weight", {2, 2}}}, {{"ot_branch", "master"}}}},
      {"GGUF", {{{"blk.0.attn_q.weight.lora_a", {2, 2}}}}},
      {"xlabs", {{{"double_blocks.0.processor.qkv_lora1.down.weight", {2, 2}}}}},
      {"ai-toolkit", {{{"diffusion_model.a.lora_A.weight", {2, 2}}, {"diffusion_model.a.magnitude", {2}}}}},
      {"SAI control-lora", {{{"lora_controlnet", {}}, {"a.up", {2, 2}}}}},
      {"HCP", {{{"a.___.layer.W_up", {2, 2}}}}},
      {"LLLite control net", {{{"lllite_unet_a.down.0.weight", {2, 2}}}}},
      {"IP-adapter", {{{"image_proj.norm.weight", {2}}}}},
      {"diffusers", {{{"unet.a.lora_A.weight", {2, 2}}}}},
      {"diffusers", {{{"transformer.a.lora_A.weight", {2, 2}}}}},
  };
  for (const Refused &refused : cases) {
    try {
      read_adapter(refused.adapter.keys());
      ADD_FAILURE() << refused.dialect << " was read";
    } catch (const Error &error) {
      EXPECT_EQ(error.status(), LYC_ERROR_UNSUPPORTED);
      EXPECT_STREQ(error.what(),
                   concat("adapter files of the dialect '", refused.dialect, "' are not supported yet").c_str());
    }
  }
}

TEST(Dialects, OtherFilesAreNoAdapters) {
  const Adapter empty({}), model({{"model.a.weight", {2, 2}}, {"model.a.bias", {2}}});
  for (const Adapter *adapter : {&empty, &model}) {
    try {
      read_adapter(adapter->keys());
      ADD_FAILURE();
    } catch (const Error &error) {
      EXPECT_EQ(error.status(), LYC_ERROR_FORMAT);
      EXPECT_THAT(error.what(), testing::StartsWith("not an adapter: "));
    }
  }
}

}  // namespace
}  // namespace lyc::io
