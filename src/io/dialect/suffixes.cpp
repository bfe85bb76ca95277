#include "io/dialect/suffixes.hpp"

#include "base/text.hpp"

namespace lyc::io {
namespace {

constexpr Suffix kUp = {".lora_up.weight", "lora_up.weight", LYC_ALGO_LOCON, {}};
constexpr Suffix kDown = {".lora_down.weight", "lora_down.weight", LYC_ALGO_LOCON, {}};

constexpr Suffix spelled(Suffix suffix, std::string_view spelling) {
  return {spelling, suffix.name, suffix.algo, suffix.unsupported};
}
constexpr Suffix unsupported(std::string_view family, std::string_view spelling) {
  return {spelling, spelling.substr(1), LYC_ALGO_NONE, family};
}

// Beside the names that the families have themselves.
constexpr Suffix kSuffixes[] = {
    spelled(kUp, ".lora_B.weight"),
    spelled(kUp, ".lora_B"),
    spelled(kUp, ".lora.up.weight"),
    spelled(kUp, "_lora.up.weight"),
    spelled(kUp, ".lora_linear_layer.up.weight"),
    spelled(kDown, ".lora_A.weight"),
    spelled(kDown, ".lora_A"),
    spelled(kDown, ".lora.down.weight"),
    spelled(kDown, "_lora.down.weight"),
    spelled(kDown, ".lora_linear_layer.down.weight"),

    {".alpha", "alpha", LYC_ALGO_NONE, {}},
    {".lora.alpha", "alpha", LYC_ALGO_NONE, {}},
    {"_lora.alpha", "alpha", LYC_ALGO_NONE, {}},
    {".lora_linear_layer.alpha", "alpha", LYC_ALGO_NONE, {}},
    {".dora_scale", "dora_scale", LYC_ALGO_NONE, {}},

    // Means something only beside on_input; see lycoris.cpp.
    {".weight", "weight", LYC_ALGO_NONE, {}},

    unsupported("(IA)3", ".on_input"),
    unsupported("(IA)3", ".ia3_l"),
    unsupported("GLoRA", ".a1.weight"),
    unsupported("GLoRA", ".a2.weight"),
    unsupported("GLoRA", ".b1.weight"),
    unsupported("GLoRA", ".b2.weight"),
    unsupported("GLoRA", ".bm.weight"),
    unsupported("T-LoRA", ".lambda_layer"),
    unsupported("T-LoRA", ".q_layer.weight"),
    unsupported("T-LoRA", ".p_layer.weight"),
    unsupported("bias of an up factor", ".lora_B.bias"),
    unsupported("bias of an up factor", ".lora_up.bias"),
    unsupported("embedding adapter", ".lora_embedding_A"),
    unsupported("embedding adapter", ".lora_embedding_B"),
    unsupported("DoRA in PEFT's spelling", ".lora_magnitude_vector"),
    unsupported("DoRA in PEFT's spelling", ".lora_magnitude_vector.weight"),
    unsupported("replacement of a tensor", ".set_weight"),
    unsupported("padding of the base", ".reshape_weight"),
    unsupported("sparse residual", ".bias_indices"),
    unsupported("sparse residual", ".bias_values"),
    unsupported("sparse residual", ".bias_size"),
};

/// "lora_A.<adapter>.weight": PEFT keeps the adapter's name in the middle of some keys.
KeyParts split_named_adapter(std::string_view key) {
  constexpr std::string_view kEnd = ".weight";
  if (!ends_with(key, kEnd)) return {};
  key.remove_suffix(kEnd.size());
  const std::size_t dot = key.rfind('.');
  if (dot == key.npos || dot + 1 == key.size()) return {};
  key = key.substr(0, dot);
  for (const auto &[end, suffix] : {std::pair{std::string_view(".lora_B"), &kUp}, {".lora_A", &kDown}})
    if (ends_with(key, end) && key.size() > end.size()) return {key.substr(0, key.size() - end.size()), *suffix};
  return {};
}

bool ends_in(std::string_view key, std::string_view ending) {
  return ends_with(key, ending) && key.size() > ending.size();
}

}  // namespace

KeyParts split_key(std::string_view key, const std::vector<FamilySuffix> &families) {
  if (const KeyParts parts = split_named_adapter(key); parts.suffix.name.data()) return parts;
  KeyParts found{key, {}};
  std::size_t longest = 0;
  for (const Suffix &suffix : kSuffixes)
    if (ends_in(key, suffix.spelling) && suffix.spelling.size() > longest) {
      longest = suffix.spelling.size();
      found.suffix = suffix;
    }
  for (const FamilySuffix &family : families)
    if (const std::size_t length = family.name.size() + 1;
        length >= longest && key.size() > length && ends_with(key, family.name) && key[key.size() - length] == '.') {
      longest = length;
      found.suffix = {family.name, family.name, family.algo, {}};
    }
  found.layer = key.substr(0, key.size() - longest);
  return found;
}

}  // namespace lyc::io
