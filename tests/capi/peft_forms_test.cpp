// PEFT's own tensors, whatever file they came from: modules made of them beside what PEFT merged.
#include <fstream>
#include <nlohmann/json.hpp>

#include "capi/api.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

constexpr std::pair<const char *, const char *> kNames[] = {
    {".lora_A.weight", "lora_down.weight"},     {".lora_B.weight", "lora_up.weight"},
    {".lora_B.bias", "lora_up.bias"},           {".lora_embedding_A", "lora_embedding_A"},
    {".lora_embedding_B", "lora_embedding_B"},  {".lora_magnitude_vector", "dora_scale"},
    {".ln_tuning_layers.weight", "set_weight"}, {".ln_tuning_layers.bias", "set_bias"},
};

/// Layer and factor of a key. Names that the library shares with PEFT stay.
std::pair<std::string, std::string> split(std::string key) {
  key = key.substr(std::string("base_model.model.").size());
  for (const auto &[end, name] : kNames)
    if (key.size() > std::strlen(end) && key.compare(key.size() - std::strlen(end), key.npos, end) == 0)
      return {key.substr(0, key.size() - std::strlen(end)), name};
  const std::size_t start = std::max(key.rfind(".glora_") + 1, key.rfind(".ia3_l") + 1);
  return {key.substr(0, start - 1), key.substr(start)};
}

class PeftForm : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    folder_ = test_data("peft/" + GetParam() + "/");
    std::ifstream config(folder_ + "adapter_config.json"), description(folder_ + "case.json");
    config_ = nlohmann::json::parse(config);
    multiplier_ = nlohmann::json::parse(description)["multiplier"];
    base_ = read_file(folder_ + "base.safetensors");
    for (auto &[key, tensor] : read_file(folder_ + "adapter.safetensors")) {
      const auto [layer, name] = split(key);
      layers_[layer][name] = tensor;
    }
  }

  lyc_module_options options_for(const std::string &layer, const Tensor &weight) const {
    lyc_module_options options;
    lyc_module_options_init(&options, sizeof options);
    options.alpha = config_.value("lora_alpha", 0.0);
    options.dora_rule = LYC_DORA_RULE_PEFT;
    options.origin = LYC_ORIGIN_PEFT;
    for (const auto &name : config_.value("feedforward_modules", std::vector<std::string>()))
      if (layer.compare(layer.rfind('.') + 1, layer.npos, name) == 0) options.flags = LYC_MODULE_ON_INPUT;
    if (weight.layout == LYC_LAYOUT_EOI) options.experts = static_cast<int32_t>(weight.shape[0]);
    return options;
  }

  /// The base's weight that a layer's factors are for. Parameters of one expert module are told apart by their sizes.
  std::string weight_of(const std::string &layer) {
    if (base_.count(layer + ".weight")) return layer + ".weight";
    const Tensors &factors = layers_.at(layer);
    for (auto &[name, tensor] : base_)
      if (tensor.shape.size() == 3 && tensor.shape[1] == factors.at("lora_up.weight").shape[0] &&
          tensor.shape[2] == factors.at("lora_down.weight").shape[1]) {
        tensor.layout = LYC_LAYOUT_EOI;
        return name;
      }
    ADD_FAILURE() << layer;
    return "";
  }

  /// Merges a layer in place.
  void merge(const std::string &layer, Tensors &merged) {
    const std::string name = weight_of(layer);
    const bool flipped = config_.value("fan_in_fan_out", false);
    Tensor &weight = merged[name] = base_[name];
    if (flipped) weight.layout = LYC_LAYOUT_HWIO;
    const DeviceTensor pristine(weight), changed(weight);
    const lyc_module_options options = options_for(layer, weight);
    const Module module = make_module(context_.get(), layers_[layer], &options);
    const lyc_tensor view = changed.view(), weight_view = pristine.view();
    ok(lyc_merge(module.get(), &view, multiplier_, nullptr, nullptr));
    weight = changed.read();
    Tensors::iterator bias = merged.find(layer + ".bias");
    if (bias == merged.end()) return;
    const DeviceTensor device_bias(bias->second);
    const lyc_tensor bias_view = device_bias.view();
    const bool reads_weight = layers_[layer].count("glora_C.X") || layers_[layer].count("glora_C.Xd");
    lyc_batch_item item{};
    item.module = module.get();
    item.base = &bias_view;
    item.part = LYC_PART_BIAS;
    item.weight = reads_weight ? &weight_view : nullptr;
    lyc_batch *handle = nullptr;
    const lyc_status status = lyc_batch_create(context_.get(), &item, 1, &handle);
    if (status == LYC_ERROR_NOT_FOUND) return;  // the bias stays
    ok(status);
    const Batch batch(handle);
    Tensor multipliers({1}, LYC_DTYPE_F32);
    multipliers.set(0, multiplier_);
    const lyc_tensor multipliers_view = multipliers.view();
    ok(lyc_batch_run(handle, LYC_BATCH_MERGE, &multipliers_view, nullptr));
    bias->second = device_bias.read();
  }

  Context context_ = make_context(2);
  std::string folder_;
  nlohmann::json config_;
  float multiplier_ = 1;
  Tensors base_;
  std::map<std::string, Tensors> layers_;
};

TEST_P(PeftForm, MergesAsPeftDoes) {
  const Tensors expected = read_file(folder_ + "expected.safetensors");
  Tensors merged = base_;
  for (const auto &[layer, factors] : layers_) merge(layer, merged);
  for (const auto &[name, base] : base_) {
    SCOPED_TRACE(name);
    const std::vector<double> before = base.values(), want = difference(expected.at(name).values(), before);
    EXPECT_TRUE(near(difference(merged.at(name).values(), before), want, {1e-5, 0x1p-22}));
  }
}

INSTANTIATE_TEST_SUITE_P(All, PeftForm, testing::ValuesIn(data_cases("peft")),
                         [](const auto &given) { return given.param; });

}  // namespace
}  // namespace lyc::test
