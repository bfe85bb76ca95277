#include "io/names/component.hpp"

#include <algorithm>
#include <string_view>

#include "base/text.hpp"

namespace lyc::io {
namespace {

struct Prefix {
  std::string_view text;
  std::uint32_t components;
};

// Longer ones before their own beginnings.
constexpr Prefix kDottedPrefixes[] = {
    {"model.diffusion_model.", kDenoiser},
    {"diffusion_model.", kDenoiser},
    {"unet.", kDenoiser},
    {"transformer.", kDenoiser},
    {"cond_stage_model.transformer.", kTextEncoder1},
    {"cond_stage_model.model.", kTextEncoder1},  // SD 2.x: OpenCLIP
    {"conditioner.embedders.0.transformer.", kTextEncoder1},
    {"conditioner.embedders.0.model.", kTextEncoder1 | kTextEncoder2},  // SDXL refiner: bigG comes first there
    {"conditioner.embedders.1.model.", kTextEncoder2},
    {"text_encoders.clip_l.transformer.", kTextEncoder1},
    {"text_encoders.clip_g.transformer.", kTextEncoder2},
    {"text_encoders.t5xxl.transformer.", kTextEncoder3},
    {"text_encoder.", kTextEncoder1},
    {"text_encoder_2.", kTextEncoder2},
    {"text_encoder_3.", kTextEncoder3},
    {"model.", kAnyComponent},
};

constexpr Prefix kFlatPrefixes[] = {
    {"lora_unet__", kDenoiser},  // Wan-Fun exports
    {"lora_unet_", kDenoiser},
    {"oft_unet_", kDenoiser},
    {"lora_transformer_", kDenoiser},
    {"lora_te_", kTextEncoder1},
    {"lora_te1_", kTextEncoder1},
    {"lora_te2_", kTextEncoder2},
    {"lora_te3_", kTextEncoder3 | kTextEncoder2},  // kohya counts T5 third also where the model has no CLIP-bigG
    {"lycoris_", kAnyComponent},
};

template <std::size_t N>
ComponentPath split(std::string_view name, const Prefix (&prefixes)[N]) {
  const auto found = std::find_if(std::begin(prefixes), std::end(prefixes), [&](const Prefix &prefix) {
    return starts_with(name, prefix.text) && name.size() > prefix.text.size();
  });
  if (found == std::end(prefixes)) return {kAnyComponent, name};
  return {found->components, name.substr(found->text.size())};
}

}  // namespace

ComponentPath split_base_name(std::string_view name) { return split(name, kDottedPrefixes); }

ComponentPath split_adapter_name(std::string_view layer) {
  const ComponentPath flat = split(layer, kFlatPrefixes);
  return flat.path.size() != layer.size() ? flat : split(layer, kDottedPrefixes);
}

}  // namespace lyc::io
