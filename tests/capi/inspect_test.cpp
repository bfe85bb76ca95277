// lyc_inspect_file(): what it says of adapters and models.
#include <limits>
#include <nlohmann/json.hpp>

#include "capi/api.hpp"
#include "support/random.hpp"

namespace lyc::test {
namespace {

using Json = nlohmann::json;

class Inspect : public testing::Test {
 protected:
  Json inspect(const std::string &path) {
    lyc_report *handle = nullptr;
    ok(lyc_inspect_file(context_.get(), path.c_str(), &handle));
    const Report report(handle);
    return handle ? Json::parse(lyc_report_json(handle)) : Json();
  }

  static Tensor filled(std::vector<int64_t> shape, double value, lyc_dtype dtype = LYC_DTYPE_F32) {
    Tensor tensor(std::move(shape), dtype);
    for (int64_t i = 0; i < tensor.count(); ++i) tensor.set(i, value);
    return tensor;
  }

  const Context context_ = make_context();
  const Folder folder_;
};

TEST_F(Inspect, NormsAndScales) {
  write_file(folder_ / "a.safetensors", {{"lycoris_x.lora_up.weight", filled({3, 2}, 1)},
                                         {"lycoris_x.lora_down.weight", filled({2, 12}, 0.5)},
                                         {"lycoris_x.alpha", filled({}, 1)},
                                         {"lycoris_y.diff", filled({5, 7}, -2)}});
  const Json report = inspect(folder_ / "a.safetensors");
  EXPECT_EQ(report["kind"], "adapter");
  ASSERT_EQ(report["layers"].size(), 2u);
  const Json &x = report["layers"][0], &y = report["layers"][1];
  EXPECT_EQ(x["rank"], 2);
  EXPECT_EQ(x["alpha"], 1.0);
  EXPECT_EQ(x["scale"], 0.5);
  EXPECT_NEAR(x["norm"].get<double>(), 0.5 * 6, 1e-6);  // 36 elements of 0.5 * (0.5 + 0.5)
  EXPECT_NEAR(y["norm"].get<double>(), 2 * std::sqrt(35.0), 1e-5);
  EXPECT_TRUE(report["anomalies"].empty());
}

TEST_F(Inspect, Anomalies) {
  write_file(folder_ / "a.safetensors", {{"lycoris_x.diff", filled({3, 3}, 0)},
                                         {"lycoris_y.diff", filled({3, 3}, std::numeric_limits<double>::infinity())},
                                         {"lycoris_z.lora_magnitude_vector", filled({2, 2, 2}, 1)}});
  const Json report = inspect(folder_ / "a.safetensors");
  EXPECT_EQ(report["anomalies"].size(), 2u) << report["anomalies"];
  EXPECT_TRUE(report["layers"][1]["norm"].is_null());
  ASSERT_EQ(report["leftovers"].size(), 1u);
  EXPECT_EQ(report["leftovers"][0]["keys"][0], "lycoris_z.lora_magnitude_vector");
}

TEST_F(Inspect, WhatDependsOnTheWeightHasNoNorm) {
  write_file(folder_ / "a.safetensors", {{"lycoris_x.oft_blocks", filled({2, 3, 3}, 0)}});
  const Json report = inspect(folder_ / "a.safetensors");
  EXPECT_FALSE(report["layers"][0].contains("norm"));
  EXPECT_TRUE(report["anomalies"].empty());
}

TEST_F(Inspect, ModelsAndLongMetadata) {
  write_file(folder_ / "m.safetensors", {{"a.weight", filled({3, 4}, 1)}, {"b.weight", filled({5}, 1, LYC_DTYPE_BF16)}},
             {{"short", "text"}, {"long", std::string(5000, 'x')}});
  const Json report = inspect(folder_ / "m.safetensors");
  EXPECT_EQ(report["kind"], "model");
  EXPECT_EQ(report["elements"], 17);
  EXPECT_EQ(report["dtypes"], Json({{"F32", 1}, {"BF16", 1}}));
  EXPECT_EQ(report["bytes"]["F32"], 48);
  EXPECT_EQ(report["metadata"]["short"], "text");
  EXPECT_LT(report["metadata"]["long"].get<std::string>().size(), 600u);
}

TEST_F(Inspect, LongMetadataIsCutBetweenCharacters) {
  for (int shift = 0; shift < 4; ++shift) {
    std::string text(static_cast<std::size_t>(510 + shift), 'x');
    for (int i = 0; i < 10; ++i) text += "\xe2\x82\xac";  // a character of three bytes
    write_file(folder_ / "m.safetensors", {{"a.weight", filled({3}, 1)}}, {{"long", text}});
    const std::string shown = inspect(folder_ / "m.safetensors")["metadata"]["long"];
    EXPECT_EQ(shown.find("\xef\xbf\xbd"), std::string::npos) << "a character was cut in two";
  }
}

TEST_F(Inspect, Refusals) {
  lyc_report *report = nullptr;
  fails(lyc_inspect_file(context_.get(), (folder_ / "none").c_str(), &report), LYC_ERROR_NOT_FOUND, {"none"});
  EXPECT_EQ(report, nullptr);
  fails(lyc_inspect_file(context_.get(), nullptr, &report), LYC_ERROR_INVALID_ARGUMENT, {"path"});
}

}  // namespace
}  // namespace lyc::test
