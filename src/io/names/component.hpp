// Which part of a model a name belongs to: denoiser or one of the text encoders, told by its prefix.
#pragma once

#include <cstdint>
#include <string_view>

namespace lyc::io {

enum Component : std::uint32_t {
  kDenoiser = 1,
  kTextEncoder1 = 2,  // CLIP-L; the only one of SD 1.x and 2.x
  kTextEncoder2 = 4,  // CLIP-bigG; T5 in diffusers folders of Flux
  kTextEncoder3 = 8,  // T5
  kAnyComponent = 15,
};

struct ComponentPath {
  std::uint32_t components;  // one or more bits
  std::string_view path;     // what follows the prefix
};

/// Split a tensor's name in a base. Without a known prefix all components are possible: a file of one component alone.
ComponentPath split_base_name(std::string_view name);

/// Split an adapter's layer name, flat ("lora_te1_text_model_...") or with dots ("diffusion_model.blocks.0.q").
ComponentPath split_adapter_name(std::string_view layer);

}  // namespace lyc::io
