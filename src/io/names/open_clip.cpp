// OpenCLIP text encoders, of SDXL (bigG) and SD 2.x (H): OpenCLIP's names <-> those of transformers, which kohya and
// diffusers use. OpenCLIP fuses q, k and v in attn.in_proj, and keeps the text projection as [in, out].
#include "io/names/component.hpp"
#include "io/names/family.hpp"

namespace lyc::io {
namespace {

constexpr MapRow kTable[] = {
    {"token_embedding", "text_model.embeddings.token_embedding"},
    {"positional_embedding", "text_model.embeddings.position_embedding"},
    {"transformer.resblocks.#.ln_1", "text_model.encoder.layers.#.layer_norm1"},
    {"transformer.resblocks.#.ln_2", "text_model.encoder.layers.#.layer_norm2"},
    {"transformer.resblocks.#.attn.in_proj", "text_model.encoder.layers.#.self_attn.q_proj", Rows::kThird, 0},
    {"transformer.resblocks.#.attn.in_proj", "text_model.encoder.layers.#.self_attn.k_proj", Rows::kThird, 1},
    {"transformer.resblocks.#.attn.in_proj", "text_model.encoder.layers.#.self_attn.v_proj", Rows::kThird, 2},
    {"transformer.resblocks.#.attn.out_proj", "text_model.encoder.layers.#.self_attn.out_proj"},
    {"transformer.resblocks.#.mlp.c_fc", "text_model.encoder.layers.#.mlp.fc1"},
    {"transformer.resblocks.#.mlp.c_proj", "text_model.encoder.layers.#.mlp.fc2"},
    {"ln_final", "text_model.final_layer_norm"},
};

void append_aliases(const BaseLayer &layer, std::vector<Alias> &out) {
  append_table_aliases(kTable, sizeof kTable / sizeof kTable[0], layer, out);
  // Both call it so, but OpenCLIP has a bare parameter, [in, out], where transformers has a layer.
  if (layer.bare && layer.path == "text_projection") out.push_back({"text_projection", 0, 1, 0, layer.in, true});
}

}  // namespace

const Family kOpenClip = {"OpenCLIP", kTextEncoder1 | kTextEncoder2, append_aliases};

}  // namespace lyc::io
