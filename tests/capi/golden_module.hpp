// Modules computed by the original in float64 (tests/data/modules): factors as in files, and what came of them.
#pragma once

#include <map>
#include <string>

#include "capi/api.hpp"

namespace lyc::test {

struct GoldenModuleFile {
  explicit GoldenModuleFile(const std::string &name) {
    for (auto &[key, tensor] : read_file(test_data("modules/" + name + ".safetensors"), &metadata))
      if (key.rfind("sd.", 0) == 0)
        factors[key.substr(3)] = tensor;
      else
        others[key] = tensor;
    multiplier = std::stof(metadata["multiplier"]);
    if (metadata["compute"] == "float32") error = 4e-6;
    if (metadata["config"].find("\"last\"") != std::string::npos) flags = LYC_MODULE_LAST;
    if (metadata["config"].find("\"middle\"") != std::string::npos) flags = LYC_MODULE_MIDDLE;
  }

  Module make(lyc_context *context) const {
    lyc_module_options options;
    lyc_module_options_init(&options, sizeof options);
    options.dora_rule = LYC_DORA_RULE_LYCORIS;  // these cases come from LyCORIS' own modules
    options.flags = flags;
    Module module = make_module(context, factors, &options);
    if (const auto found = others.find("mask"); found != others.end()) {
      Tensor mask = found->second;
      mask.shape = {mask.count()};
      const lyc_tensor view = mask.view();
      ok(lyc_module_write_param(module.get(), "rank_mask", &view));
    }
    return module;
  }

  std::map<std::string, std::string> metadata;
  Tensors factors, others;
  float multiplier = 1;
  double error = 0;  // of the original's own arithmetic
  uint32_t flags = 0;
};

}  // namespace lyc::test
