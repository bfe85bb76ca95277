// Flux.1 and Chroma: Black Forest Labs' names <-> diffusers. Native projections are fused.
#include "io/names/component.hpp"
#include "io/names/family.hpp"

namespace lyc::io {
namespace {

constexpr MapRow kTable[] = {
    {"img_in", "x_embedder"},
    {"txt_in", "context_embedder"},
    {"time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"},
    {"time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"},
    {"vector_in.in_layer", "time_text_embed.text_embedder.linear_1"},
    {"vector_in.out_layer", "time_text_embed.text_embedder.linear_2"},
    {"guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"},
    {"guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"},

    {"double_blocks.#.img_mod.lin", "transformer_blocks.#.norm1.linear"},
    {"double_blocks.#.txt_mod.lin", "transformer_blocks.#.norm1_context.linear"},
    {"double_blocks.#.img_attn.qkv", "transformer_blocks.#.attn.to_q", Rows::kThird, 0},
    {"double_blocks.#.img_attn.qkv", "transformer_blocks.#.attn.to_k", Rows::kThird, 1},
    {"double_blocks.#.img_attn.qkv", "transformer_blocks.#.attn.to_v", Rows::kThird, 2},
    {"double_blocks.#.txt_attn.qkv", "transformer_blocks.#.attn.add_q_proj", Rows::kThird, 0},
    {"double_blocks.#.txt_attn.qkv", "transformer_blocks.#.attn.add_k_proj", Rows::kThird, 1},
    {"double_blocks.#.txt_attn.qkv", "transformer_blocks.#.attn.add_v_proj", Rows::kThird, 2},
    {"double_blocks.#.img_attn.norm.query_norm", "transformer_blocks.#.attn.norm_q"},
    {"double_blocks.#.img_attn.norm.key_norm", "transformer_blocks.#.attn.norm_k"},
    {"double_blocks.#.txt_attn.norm.query_norm", "transformer_blocks.#.attn.norm_added_q"},
    {"double_blocks.#.txt_attn.norm.key_norm", "transformer_blocks.#.attn.norm_added_k"},
    {"double_blocks.#.img_attn.proj", "transformer_blocks.#.attn.to_out.0"},
    {"double_blocks.#.txt_attn.proj", "transformer_blocks.#.attn.to_add_out"},
    {"double_blocks.#.img_mlp.0", "transformer_blocks.#.ff.net.0.proj"},
    {"double_blocks.#.img_mlp.2", "transformer_blocks.#.ff.net.2"},
    {"double_blocks.#.txt_mlp.0", "transformer_blocks.#.ff_context.net.0.proj"},
    {"double_blocks.#.txt_mlp.2", "transformer_blocks.#.ff_context.net.2"},

    {"single_blocks.#.modulation.lin", "single_transformer_blocks.#.norm.linear"},
    {"single_blocks.#.linear1", "single_transformer_blocks.#.attn.to_q", Rows::kInputWide, 0},
    {"single_blocks.#.linear1", "single_transformer_blocks.#.attn.to_k", Rows::kInputWide, 1},
    {"single_blocks.#.linear1", "single_transformer_blocks.#.attn.to_v", Rows::kInputWide, 2},
    {"single_blocks.#.linear1", "single_transformer_blocks.#.proj_mlp", Rows::kInputWide, 3},
    {"single_blocks.#.norm.query_norm", "single_transformer_blocks.#.attn.norm_q"},
    {"single_blocks.#.norm.key_norm", "single_transformer_blocks.#.attn.norm_k"},
    {"single_blocks.#.linear2", "single_transformer_blocks.#.proj_out"},

    {"final_layer.linear", "proj_out"},
    {"final_layer.adaLN_modulation.1", "norm_out.linear", Rows::kSwappedHalves},  // shift and scale change places
};

void append_aliases(const BaseLayer &layer, std::vector<Alias> &out) {
  append_table_aliases(kTable, sizeof kTable / sizeof kTable[0], layer, out);
}

}  // namespace

const Family kFlux = {"Flux.1", kDenoiser, append_aliases};

}  // namespace lyc::io
