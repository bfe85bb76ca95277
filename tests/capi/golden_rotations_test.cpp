// OFT and BOFT of PEFT and OneTrainer: modules from the tensors of their files, beside the weights that those programs
// merged. Modules are found by the names of the base's weights, flat or with dots.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "capi/api.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

bool starts_with(const std::string &text, const std::string &start) { return text.rfind(start, 0) == 0; }

/// The tensors of one layer by suffix.
Tensors factors_of(const Tensors &adapter, const std::string &layer) {
  std::string flat = "lora_unet_" + layer;
  std::replace(flat.begin(), flat.end(), '.', '_');
  Tensors factors;
  for (const auto &[key, tensor] : adapter)
    for (const std::string &name : {"base_model.model." + layer + ".", flat + "."})
      if (starts_with(key, name) && key.find("base_layer") == key.npos) factors[key.substr(name.size())] = tensor;
  return factors;
}

lyc_module_options options_of(const std::string &name, const std::string &folder) {
  lyc_module_options options;
  lyc_module_options_init(&options, sizeof options);
  options.origin = starts_with(name, "onetrainer") ? LYC_ORIGIN_ONETRAINER : LYC_ORIGIN_PEFT;
  std::ifstream file(folder + "/adapter_config.json");
  if (!file) return options;
  const auto config = nlohmann::json::parse(file);
  if (config.value("coft", false)) options.coft_epsilon = config["eps"];
  if (config.contains("use_cayley_neumann"))
    options.neumann_terms = config["use_cayley_neumann"] ? config["num_cayley_neumann_terms"].get<int>() : -1;
  return options;
}

class GoldenRotation : public testing::TestWithParam<std::string> {};

TEST_P(GoldenRotation, MergesAsItsProgramDoes) {
  const std::string folder = test_data("rotations/" + GetParam());
  const Tensors adapter = read_file(folder + "/adapter.safetensors"), base = read_file(folder + "/base.safetensors");
  const Tensors expected = read_file(folder + "/expected.safetensors");
  const Context context = make_context(2);
  const lyc_module_options options = options_of(GetParam(), folder);
  int modules = 0;
  for (const auto &[name, weight] : base) {
    const std::string::size_type end = name.rfind(".weight");
    if (end == name.npos) continue;
    const Tensors factors = factors_of(adapter, name.substr(0, end));
    if (factors.empty()) continue;
    SCOPED_TRACE(name);
    ++modules;
    const Module module = make_module(context.get(), factors, &options);
    const std::vector<double> want = expected.at(name).values();
    EXPECT_TRUE(near(merged(module, weight).values(), want, tolerance(LYC_DTYPE_F32, 1)));
    // Multiplier 0 is off, also where rows are scaled.
    EXPECT_EQ(merged(module, weight, 0).bytes, weight.bytes);
  }
  EXPECT_GT(modules, 0);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenRotation, testing::ValuesIn(data_cases("rotations")),
                         [](const auto &given) { return given.param; });

}  // namespace
}  // namespace lyc::test
