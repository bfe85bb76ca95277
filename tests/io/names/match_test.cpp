// Whole adapters against a base: what is missing, and what is there twice.
#include "io/names/match.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/table.hpp"

namespace lyc::io {
namespace {

AdaptedLayer layer(const char *name, bool weight = true, bool bias = false) { return {name, weight, bias}; }

struct MatchLayers : testing::Test {
  MatchLayers() {
    table.add("unet.down_blocks.0.resnets.0.conv1.weight", {4, 4, 3, 3});
    table.add("unet.down_blocks.0.resnets.0.conv1.bias", {4});
    table.add("unet.x.weight", {4, 4});
    table.add("transformer.double_blocks.0.img_attn.qkv.weight", {12, 4});
    entries = table.entries();
  }
  /// "layer" if matched, "layer: reason" if not.
  std::vector<std::string> match(const std::vector<AdaptedLayer> &layers) const {
    const Matches matches = match_layers(layers, NameResolver(entries));
    std::vector<std::string> all(layers.size());
    for (const MatchedLayer &matched : matches.matched) all[matched.layer] = layers[matched.layer].name;
    for (const UnmatchedLayer &unmatched : matches.unmatched)
      all[unmatched.layer] = std::string(layers[unmatched.layer].name) + ": " + unmatched.reason;
    return all;
  }
  test::Table table;
  std::vector<TensorEntry> entries;
};

TEST_F(MatchLayers, TwoNamesOfOneLayerCountOnce) {
  EXPECT_THAT(
      match({layer("lora_unet_down_blocks_0_resnets_0_conv1"), layer("lora_unet_input_blocks_1_0_in_layers_2")}),
      testing::ElementsAre("lora_unet_down_blocks_0_resnets_0_conv1",
                           "lora_unet_input_blocks_1_0_in_layers_2: means the same rows of the base as "
                           "lora_unet_down_blocks_0_resnets_0_conv1, which is used"));
}

TEST_F(MatchLayers, WeightAndBiasAreDifferentTensors) {
  const char *name = "lora_unet_down_blocks_0_resnets_0_conv1";
  EXPECT_THAT(match({layer(name, true, false), layer(name, false, true)}), testing::ElementsAre(name, name));
}

TEST_F(MatchLayers, FusedAndSplitCopiesCountOnce) {
  EXPECT_THAT(
      match({layer("lora_unet_transformer_blocks_0_attn_to_q"), layer("lora_unet_transformer_blocks_0_attn_to_k"),
             layer("lora_unet_double_blocks_0_img_attn_qkv")}),
      testing::ElementsAre("lora_unet_transformer_blocks_0_attn_to_q", "lora_unet_transformer_blocks_0_attn_to_k",
                           testing::HasSubstr("means the same rows")));
}

TEST_F(MatchLayers, WhatTheBaseLacks) {
  EXPECT_THAT(
      match({layer("lora_unet_x", true, true), layer("lora_unet_y")}),
      testing::ElementsAre("lora_unet_x: the base's layer has no bias", "lora_unet_y: no such layer in the base"));
}

}  // namespace
}  // namespace lyc::io
