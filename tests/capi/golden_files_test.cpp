// Whole adapter files as the programs write them, merged file to file and in memory, beside what those programs made.
#include <fstream>
#include <nlohmann/json.hpp>

#include "capi/api.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

struct Case {
  std::string folder;
  float multiplier;
  bool mergeable;
  Tensors base, expected;
};

Case read_case(const std::string &name) {
  Case c;
  c.folder = test_data("files/" + name);
  std::ifstream file(c.folder + "/case.json");
  const nlohmann::json description = nlohmann::json::parse(file);
  c.multiplier = description["multiplier"];
  c.mergeable = description.value("mergeable", true);
  c.base = read_file(c.folder + "/base.safetensors");
  c.expected = read_file(c.folder + "/expected.safetensors");
  return c;
}

/// The values of a tensor with zeros at the end of each axis, up to `shape`.
std::vector<double> padded(const Tensor &tensor, const std::vector<int64_t> &shape) {
  std::vector<double> result(static_cast<std::size_t>(Tensor(shape, tensor.dtype).count()));
  for (int64_t from = 0; from < tensor.count(); ++from) {
    int64_t to = 0, rest = from, inside = 1;
    for (std::size_t axis = shape.size(); axis-- > 0; inside *= shape[axis]) {
      to += rest % tensor.shape[axis] * inside;
      rest /= tensor.shape[axis];
    }
    result[static_cast<std::size_t>(to)] = tensor.get(from);
  }
  return result;
}

/// The programs computed in float32: up to 6e-6 of the change, by golden/files/README.md, and the rounding of the sum.
void expect_merged(const Case &c, const Tensors &merged) {
  for (const auto &[name, base] : c.base) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(merged.count(name));
    ASSERT_EQ(merged.at(name).shape, c.expected.at(name).shape);
    const std::vector<double> before = padded(base, merged.at(name).shape),
                              want = difference(c.expected.at(name).values(), before);
    EXPECT_TRUE(near(difference(merged.at(name).values(), before), want, {1e-5, 0x1p-23}));
  }
}

/// Rules by which the files were merged: LyCORIS' own modules, or what the dialect says.
lyc_dora_rule rule_of(const std::string &name) {
  return name.rfind("lycoris_", 0) == 0 ? LYC_DORA_RULE_LYCORIS : LYC_DORA_RULE_DEFAULT;
}

class GoldenFile : public testing::TestWithParam<std::string> {
 protected:
  Context context_ = make_context(2);
};

TEST_P(GoldenFile, MergesFileToFile) {
  const Case c = read_case(GetParam());
  const Folder folder;
  const std::string adapter = c.folder + "/adapter.safetensors", out = folder / "out.safetensors";
  const char *const adapters[] = {adapter.c_str()};
  const lyc_multiplier_rule rule = {nullptr, -1, c.multiplier};
  lyc_merge_options options;
  lyc_merge_options_init(&options, sizeof options);
  options.multipliers = &rule;
  options.multiplier_count = 1;
  options.dora_rule = rule_of(GetParam());
  lyc_report *report = nullptr;
  ok(lyc_merge_files(context_.get(), (c.folder + "/base.safetensors").c_str(), adapters, 1, out.c_str(), &options,
                     &report));
  const Report owner(report);
  expect_merged(c, read_file(out));
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out.safetensors"});
  const auto json = nlohmann::json::parse(lyc_report_json(report));
  for (const auto &a : json["adapters"]) EXPECT_TRUE(a["leftovers"].empty()) << a["leftovers"];
}

TEST_P(GoldenFile, MergesInMemory) {
  const Case c = read_case(GetParam());
  lyc_network_options options;
  lyc_network_options_init(&options, sizeof options);
  options.dora_rule = rule_of(GetParam());
  lyc_network *handle = nullptr;
  if (GetParam() == "comfy_reshape") {  // a weight in memory has the size it has
    const std::string path = c.folder + "/adapter.safetensors";
    return fails(lyc_network_load(context_.get(), path.c_str(), &options, &handle), LYC_ERROR_UNSUPPORTED,
                 {"reshape_weight", "lyc_merge_files()"});
  }
  ok(lyc_network_load(context_.get(), (c.folder + "/adapter.safetensors").c_str(), &options, &handle));
  const Network network(handle);
  std::map<std::string, DeviceTensor> weights;
  std::vector<const char *> names;
  std::vector<lyc_tensor> views;
  for (const auto &[name, tensor] : c.base) {
    names.push_back(name.c_str());
    views.push_back(weights.try_emplace(name, tensor).first->second.view());
  }
  lyc_batch *batch = nullptr;
  ok(lyc_batch_create_from_networks(context_.get(), &handle, 1, names.data(), views.data(), views.size(), nullptr,
                                    &batch, nullptr));
  const Batch owner(batch);
  Tensor multipliers({1}, LYC_DTYPE_F32);
  multipliers.set(0, c.multiplier);
  const lyc_tensor multipliers_view = multipliers.view();
  ok(lyc_batch_run(batch, LYC_BATCH_MERGE, &multipliers_view, nullptr));
  Tensors merged;
  for (const auto &[name, tensor] : weights) merged[name] = tensor.read();
  expect_merged(c, merged);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenFile, testing::ValuesIn(data_cases("files")),
                         [](const auto &given) { return given.param; });

}  // namespace
}  // namespace lyc::test
