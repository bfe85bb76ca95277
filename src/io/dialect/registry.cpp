// The one list of dialects, strongest hints first: metadata, then keys that only one dialect writes, then prefixes.
#include "base/error.hpp"
#include "base/text.hpp"
#include "io/dialect/dialect.hpp"
#include "io/dialect/lycoris.hpp"

namespace lyc::io {
namespace {

template <typename Predicate>
bool any_key(const AdapterKeys &keys, Predicate &&predicate) {
  for (const TensorEntry &tensor : keys.tensors)
    if (predicate(tensor.name)) return true;
  return false;
}

bool has_metadata(const AdapterKeys &keys, const char *key) { return keys.metadata.count(key) != 0; }

// Known by sight. Whoever writes the reader of one moves its function into the new file.

bool is_peft(const AdapterKeys &keys) {
  return any_key(keys, [](auto key) { return starts_with(key, "base_model.model."); });
}

bool is_onetrainer(const AdapterKeys &keys) { return has_metadata(keys, "ot_branch"); }

bool is_gguf(const AdapterKeys &keys) {
  return any_key(keys, [](auto key) { return ends_with(key, ".lora_a") || ends_with(key, ".lora_b"); });
}

bool is_xlabs(const AdapterKeys &keys) {
  return any_key(
      keys, [](auto key) { return contains(key, ".processor.qkv_lora") || contains(key, ".processor.proj_lora"); });
}

bool is_ai_toolkit(const AdapterKeys &keys) {
  return any_key(keys, [](auto key) { return ends_with(key, ".magnitude"); });
}

bool is_control_lora(const AdapterKeys &keys) {
  return any_key(keys, [](auto key) { return key == "lora_controlnet"; });
}

bool is_hcp(const AdapterKeys &keys) {
  return any_key(keys, [](auto key) { return contains(key, ".___."); });
}

bool is_lllite(const AdapterKeys &keys) {
  return any_key(keys, [](auto key) { return starts_with(key, "lllite_"); });
}

bool is_ip_adapter(const AdapterKeys &keys) {
  return any_key(keys, [](auto key) { return starts_with(key, "ip_adapter.") || starts_with(key, "image_proj."); });
}

bool is_diffusers(const AdapterKeys &keys) {
  if (has_metadata(keys, "lora_adapter_metadata")) return true;
  return any_key(keys, [](auto key) {
    for (const char *component : {"unet.", "transformer.", "transformer_2.", "text_encoder.", "text_encoder_2.",
                                  "text_encoder_3.", "connectors.", "text_conditioner."})
      if (starts_with(key, component)) return true;
    return false;
  });
}

constexpr Dialect kDialects[] = {
    {"PEFT", is_peft, nullptr},
    {"OneTrainer", is_onetrainer, nullptr},
    {"kohya OFT", is_kohya_oft, read_kohya_oft},
    {"GGUF", is_gguf, nullptr},
    {"xlabs", is_xlabs, nullptr},
    {"ai-toolkit", is_ai_toolkit, nullptr},
    {"SAI control-lora", is_control_lora, nullptr},
    {"HCP", is_hcp, nullptr},
    {"LLLite control net", is_lllite, nullptr},
    {"IP-adapter", is_ip_adapter, nullptr},
    {"lycoris", is_lycoris, read_lycoris},
    {"kohya", is_kohya, read_lycoris},
    {"diffusers", is_diffusers, nullptr},
    {"original", is_original, read_lycoris},
};

}  // namespace

const Dialect &find_dialect(const AdapterKeys &keys) {
  if (keys.tensors.empty()) fail(LYC_ERROR_FORMAT, "not an adapter: the file holds no tensors");
  for (const Dialect &dialect : kDialects)
    if (dialect.recognise(keys)) return dialect;
  fail(LYC_ERROR_FORMAT, "not an adapter: none of its ", keys.tensors.size(),
       " keys ends like a factor's; the first is '", keys.tensors.front().name, "'");
}

AdapterRecords read_adapter(const AdapterKeys &keys) {
  const Dialect &dialect = find_dialect(keys);
  if (dialect.read == nullptr)
    fail(LYC_ERROR_UNSUPPORTED, "adapter files of the dialect '", dialect.name, "' are not supported yet");
  AdapterRecords records = dialect.read(keys);
  records.dialect = dialect.name;
  return records;
}

}  // namespace lyc::io
