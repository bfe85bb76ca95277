// Rules of name resolution that need no golden files, and a few names of every family.
#include "io/names/resolver.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/table.hpp"

namespace lyc::io {
namespace {

using Shape = std::vector<std::int64_t>;
using testing::ElementsAre;
using testing::HasSubstr;

struct Base {
  explicit Base(std::initializer_list<std::pair<const char *, Shape>> tensors) {
    for (const auto &[name, shape] : tensors) table.add(name, shape);
    entries = table.entries();
    resolver.emplace(entries);
  }
  /// "tensor[begin:end]" of the targets, "+ bias" where there is one; or the failure.
  std::vector<std::string> resolve(const char *layer) const {
    const Resolution resolution = resolver->resolve(layer);
    if (!resolution) return {resolution.failure};
    std::vector<std::string> found;
    for (const RowTarget &target : resolution.targets) {
      std::string text(target.weight ? entries[*target.weight].name : "");
      text += '[' + std::to_string(target.base_row) + ':' + std::to_string(target.base_row + target.rows) + ']';
      if (target.transposed) text += "^T";
      if (target.bias) text += "+" + std::string(entries[*target.bias].name);
      found.push_back(text);
    }
    return found;
  }
  test::Table table;
  std::vector<TensorEntry> entries;
  std::optional<NameResolver> resolver;
};

TEST(NameResolver, TakesDotsAndUnderscoresFromTheBase) {
  const Base base({{"blocks.0.cross_attn.q_proj.weight", {4, 4}}, {"blocks.0.cross_attn.q_proj.bias", {4}}});
  for (const char *layer : {"lycoris_blocks_0_cross_attn_q_proj", "lora_unet_blocks_0_cross_attn_q_proj",
                            "lora_unet__blocks_0_cross_attn_q_proj", "diffusion_model.blocks.0.cross_attn.q_proj",
                            "model.diffusion_model.blocks.0.cross_attn.q_proj", "blocks.0.cross_attn.q_proj",
                            "base_model.model.blocks.0.cross_attn.q_proj"})
    EXPECT_THAT(base.resolve(layer),
                ElementsAre("blocks.0.cross_attn.q_proj.weight[0:4]+blocks.0.cross_attn.q_proj.bias"))
        << layer;
  EXPECT_THAT(base.resolve("blocks.0.cross.attn.q_proj"), ElementsAre("no such layer in the base"));
}

TEST(NameResolver, ListsBothLayersOfAnAmbiguousName) {
  const Base base({{"a.b_c.weight", {4, 4}}, {"a_b.c.weight", {4, 4}}});
  EXPECT_THAT(base.resolve("lycoris_a_b_c"), ElementsAre("ambiguous: matches a.b_c.weight and a_b.c.weight"));
  EXPECT_THAT(base.resolve("a.b_c"), ElementsAre("a.b_c.weight[0:4]")) << "dots say which";
}

TEST(NameResolver, KeepsComponentsApart) {
  const Base base({{"unet.x.weight", {4, 4}}, {"text_encoder.x.weight", {4, 4}}, {"text_encoder_2.x.weight", {4, 4}}});
  EXPECT_THAT(base.resolve("lora_unet_x"), ElementsAre("unet.x.weight[0:4]"));
  EXPECT_THAT(base.resolve("lora_te_x"), ElementsAre("text_encoder.x.weight[0:4]"));
  EXPECT_THAT(base.resolve("lora_te1_x"), ElementsAre("text_encoder.x.weight[0:4]"));
  EXPECT_THAT(base.resolve("lora_te2_x"), ElementsAre("text_encoder_2.x.weight[0:4]"));
  EXPECT_THAT(base.resolve("lora_te3_x"), ElementsAre("text_encoder_2.x.weight[0:4]")) << "T5 of a Flux folder";
  EXPECT_THAT(base.resolve("text_encoder.x"), ElementsAre("text_encoder.x.weight[0:4]"));
  EXPECT_THAT(base.resolve("lycoris_x"), ElementsAre(HasSubstr("ambiguous: matches ")));
  EXPECT_THAT(base.resolve("lycoris_text_encoder_x"), ElementsAre("text_encoder.x.weight[0:4]"));
}

TEST(NameResolver, FindsNormsBiasesAndBareParameters) {
  const Base base({{"norm.scale", {4}},
                   {"norm.bias", {4}},
                   {"lone.bias", {5}},
                   {"blocks.0.modulation", {1, 6, 8}},
                   {"q.weight", {4, 4}},
                   {"q.scale", {}}});
  EXPECT_THAT(base.resolve("diffusion_model.norm"), ElementsAre("norm.scale[0:4]+norm.bias"));
  EXPECT_THAT(base.resolve("diffusion_model.lone"), ElementsAre("[0:5]+lone.bias"));
  EXPECT_THAT(base.resolve("diffusion_model.blocks.0.modulation"), ElementsAre("blocks.0.modulation[0:1]"));
  EXPECT_THAT(base.resolve("diffusion_model.q"), ElementsAre("q.weight[0:4]"));
}

TEST(NameResolver, NeverMatchesByShape) {
  const Base base({{"blocks.0.q.weight", {4, 4}}});
  EXPECT_THAT(base.resolve("lora_unet_blocks_1_q"), ElementsAre("no such layer in the base"));
  EXPECT_THAT(base.resolve(""), ElementsAre("no such layer in the base"));
  EXPECT_THAT(base.resolve("lora_unet_"), ElementsAre("no such layer in the base"));
}

TEST(NameResolver, StableDiffusionBothWays) {
  const Base native({{"model.diffusion_model.input_blocks.4.1.proj_in.weight", {8, 8, 1, 1}},
                     {"model.diffusion_model.output_blocks.2.1.conv.weight", {8, 8, 3, 3}},
                     {"model.diffusion_model.middle_block.2.emb_layers.1.weight", {8, 4}},
                     {"cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight", {8, 8}}});
  EXPECT_THAT(native.resolve("lora_unet_down_blocks_1_attentions_0_proj_in"),
              ElementsAre("model.diffusion_model.input_blocks.4.1.proj_in.weight[0:8]"));
  EXPECT_THAT(native.resolve("lora_unet_up_blocks_0_upsamplers_0_conv"),
              ElementsAre("model.diffusion_model.output_blocks.2.1.conv.weight[0:8]"));
  EXPECT_THAT(native.resolve("lora_unet_mid_block_resnets_1_time_emb_proj"),
              ElementsAre("model.diffusion_model.middle_block.2.emb_layers.1.weight[0:8]"));
  EXPECT_THAT(native.resolve("lora_te_text_model_encoder_layers_0_mlp_fc1"),
              ElementsAre("cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight[0:8]"));

  const Base diffusers({{"unet.down_blocks.0.downsamplers.0.conv.weight", {8, 8, 3, 3}},
                        {"unet.up_blocks.1.upsamplers.0.conv.weight", {8, 8, 3, 3}},
                        {"unet.add_embedding.linear_2.weight", {8, 8}}});
  EXPECT_THAT(diffusers.resolve("lora_unet_input_blocks_3_0_op"),
              ElementsAre("unet.down_blocks.0.downsamplers.0.conv.weight[0:8]"));
  EXPECT_THAT(diffusers.resolve("lora_unet_output_blocks_5_2_conv"),
              ElementsAre("unet.up_blocks.1.upsamplers.0.conv.weight[0:8]"));
  EXPECT_THAT(diffusers.resolve("lora_unet_label_emb_0_2"), ElementsAre("unet.add_embedding.linear_2.weight[0:8]"));
}

TEST(NameResolver, OpenClipFusesProjectionsAndTransposesOne) {
  const Base native({{"conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight", {12, 4}},
                     {"conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_bias", {12}},
                     {"conditioner.embedders.1.model.text_projection", {4, 6}}});
  const std::string fused = "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_";
  EXPECT_THAT(native.resolve("lora_te2_text_model_encoder_layers_3_self_attn_k_proj"),
              ElementsAre(fused + "weight[4:8]+" + fused + "bias"));
  EXPECT_THAT(native.resolve("lora_te2_text_projection"),
              ElementsAre("conditioner.embedders.1.model.text_projection[0:6]^T"));

  const Base split({{"text_encoder_2.text_projection.weight", {6, 4}}});
  EXPECT_THAT(split.resolve("lora_te2_text_projection"), ElementsAre("text_encoder_2.text_projection.weight[0:6]"));
}

TEST(NameResolver, FluxFusedOnSplitBase) {
  const Base base({{"transformer.single_transformer_blocks.0.attn.to_q.weight", {4, 4}},
                   {"transformer.single_transformer_blocks.0.attn.to_k.weight", {4, 4}},
                   {"transformer.single_transformer_blocks.0.attn.to_v.weight", {4, 4}},
                   {"transformer.single_transformer_blocks.0.proj_mlp.weight", {9, 4}},
                   {"transformer.transformer_blocks.0.attn.to_q.weight", {4, 4}},
                   {"transformer.transformer_blocks.0.attn.to_v.weight", {4, 4}},
                   {"transformer.norm_out.linear.weight", {8, 4}}});
  const Resolution fused = base.resolver->resolve("lora_unet_single_blocks_0_linear1");
  ASSERT_EQ(fused.targets.size(), 4u);
  EXPECT_EQ(fused.adapter_rows, 21);
  EXPECT_EQ(fused.targets[3].adapter_row, 12);
  EXPECT_EQ(fused.targets[3].rows, 9);
  EXPECT_THAT(base.resolve("lora_unet_double_blocks_0_img_attn_qkv"),
              ElementsAre(HasSubstr("the base has only a part of this fused layer: 2 of 3")));
  EXPECT_THAT(base.resolve("lora_unet_final_layer_adaLN_modulation_1"),
              ElementsAre("transformer.norm_out.linear.weight[4:8]", "transformer.norm_out.linear.weight[0:4]"));
}

TEST(NameResolver, FluxSplitOnFusedBase) {
  const Base base({{"single_blocks.0.linear1.weight", {21, 4}},
                   {"double_blocks.0.txt_attn.qkv.weight", {12, 4}},
                   {"double_blocks.0.txt_attn.qkv.bias", {12}}});
  EXPECT_THAT(base.resolve("lora_transformer_single_transformer_blocks_0_proj_mlp"),
              ElementsAre("single_blocks.0.linear1.weight[12:21]"));
  EXPECT_THAT(base.resolve("transformer.transformer_blocks.0.attn.add_v_proj"),
              ElementsAre("double_blocks.0.txt_attn.qkv.weight[8:12]+double_blocks.0.txt_attn.qkv.bias"));
}

}  // namespace
}  // namespace lyc::io
