// Whole adapters against a base: what is missing, and what is there twice.
#include "io/names/match.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/table.hpp"

namespace lyc::io {
namespace {

LayerRecord record(const char *layer, bool weight = true, bool bias = false) {
  LayerRecord r;
  r.layer = layer;
  r.algo = LYC_ALGO_FULL;
  r.weight = weight;
  r.bias = bias;
  return r;
}

struct MatchLayers : testing::Test {
  MatchLayers() {
    table.add("unet.down_blocks.0.resnets.0.conv1.weight", {4, 4, 3, 3});
    table.add("unet.down_blocks.0.resnets.0.conv1.bias", {4});
    table.add("unet.x.weight", {4, 4});
    table.add("transformer.double_blocks.0.img_attn.qkv.weight", {12, 4});
    entries = table.entries();
  }
  /// "layer" if matched, "layer: reason" if not.
  std::vector<std::string> match(const std::vector<LayerRecord> &records) const {
    const Matches matches = match_layers(records, NameResolver(entries));
    std::vector<std::string> all(records.size());
    for (const MatchedLayer &layer : matches.matched) all[layer.record] = records[layer.record].layer;
    for (const UnmatchedLayer &layer : matches.unmatched)
      all[layer.record] = records[layer.record].layer + ": " + layer.reason;
    return all;
  }
  test::Table table;
  std::vector<TensorEntry> entries;
};

TEST_F(MatchLayers, TwoNamesOfOneLayerCountOnce) {
  EXPECT_THAT(
      match({record("lora_unet_down_blocks_0_resnets_0_conv1"), record("lora_unet_input_blocks_1_0_in_layers_2")}),
      testing::ElementsAre("lora_unet_down_blocks_0_resnets_0_conv1",
                           "lora_unet_input_blocks_1_0_in_layers_2: means the same rows of the base as "
                           "lora_unet_down_blocks_0_resnets_0_conv1, which is used"));
}

TEST_F(MatchLayers, WeightAndBiasAreDifferentTensors) {
  const char *layer = "lora_unet_down_blocks_0_resnets_0_conv1";
  EXPECT_THAT(match({record(layer, true, false), record(layer, false, true)}), testing::ElementsAre(layer, layer));
}

TEST_F(MatchLayers, FusedAndSplitCopiesCountOnce) {
  EXPECT_THAT(
      match({record("lora_unet_transformer_blocks_0_attn_to_q"), record("lora_unet_transformer_blocks_0_attn_to_k"),
             record("lora_unet_double_blocks_0_img_attn_qkv")}),
      testing::ElementsAre("lora_unet_transformer_blocks_0_attn_to_q", "lora_unet_transformer_blocks_0_attn_to_k",
                           testing::HasSubstr("means the same rows")));
}

TEST_F(MatchLayers, WhatTheBaseLacks) {
  EXPECT_THAT(
      match({record("lora_unet_x", true, true), record("lora_unet_y")}),
      testing::ElementsAre("lora_unet_x: the base's layer has no bias", "lora_unet_y: no such layer in the base"));
}

}  // namespace
}  // namespace lyc::io
