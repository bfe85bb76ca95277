// Forward passes of the original's modules, computed in float64: every path, storage type and layout of activations.
#include <nlohmann/json.hpp>

#include "capi/forward_api.hpp"
#include "capi/golden_module.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

struct Golden : GoldenModuleFile {
  using GoldenModuleFile::GoldenModuleFile;
  Tensor weight = others["base.weight"], bias = others["base.bias"], x = others["x"], y = others["y"];
  lyc_layer layer;
};

lyc_layer layer_of(const std::string &kind, const nlohmann::json &arguments) {
  lyc_layer layer = make_layer(kind == "linear"      ? LYC_LAYER_LINEAR
                               : kind == "layernorm" ? LYC_LAYER_LAYER_NORM
                               : kind == "groupnorm" ? LYC_LAYER_GROUP_NORM
                                                     : LYC_LAYER_CONV);
  layer.epsilon = arguments.value("eps", 0.0);
  layer.groups = arguments.value("groups", arguments.value("num_groups", 0));
  for (std::size_t d = 0; arguments.contains("stride") && d < arguments["stride"].size(); ++d) {
    layer.stride[d] = arguments["stride"][d];
    layer.padding[d] = arguments["padding"][d];
    layer.dilation[d] = arguments["dilation"][d];
  }
  return layer;
}

Golden read_case(const std::string &name) {
  Golden golden(name);
  golden.layer = layer_of(golden.metadata["kind"], nlohmann::json::parse(golden.metadata["op_args"]));
  if (name == "lokr_rs_conv2d") {  // docs/semantics.md: two whole halves have scale 1, the original trained at sqrt(4)
    const Tensor *base = &golden.weight;
    const std::vector<double> without = convolved(golden.layer, golden.x, *base, base->values());
    for (int64_t i = 0; i < golden.y.count(); ++i) {
      const int64_t channel = i / (golden.y.count() / golden.y.shape[0] / golden.y.shape[1]) % golden.y.shape[1];
      const double old = without[static_cast<std::size_t>(i)] + golden.bias.get(channel);
      golden.y.set(i, old + (golden.y.get(i) - old) / 2.0);
    }
  }
  return golden;
}

bool survives(const Tensor &tensor, lyc_dtype dtype) { return tensor.as(dtype).values() == tensor.values(); }

class GoldenForward : public testing::TestWithParam<std::tuple<std::string, lyc_dtype>> {
 protected:
  // The answer, in the case's own layout of channels.
  lyc_status run(lyc_path path, bool last, bool whole, float multiplier, Tensor &y) {
    lyc_layer layer = golden_.layer;
    layer.path = path;
    layer.channels = last ? LYC_CHANNELS_LAST : LYC_CHANNELS_FIRST;
    const Tensor x = last ? with_channels_last(golden_.x.as(dtype_)) : golden_.x.as(dtype_);
    const Tensor weight = golden_.weight.as(dtype_), bias = golden_.bias.as(dtype_);
    if (last) y = with_channels_last(y);
    const lyc_status status = call_forward(module_, layer, x, &weight, &bias, multiplier, y, whole);
    if (last) y = with_channels_last(y, true);
    return status;
  }

  Tolerance allowed(const Tensor &y) const {
    const int64_t depth = golden_.weight.count() / golden_.weight.shape[0];
    Tolerance allowed = tolerance(dtype_, depth, static_cast<std::size_t>(y.count()));
    allowed.relative = std::max(allowed.relative, golden_.error);
    return allowed;
  }

  Context context_ = make_context(2);
  Golden golden_ = read_case(std::get<0>(GetParam()));
  lyc_dtype dtype_ = std::get<1>(GetParam());
  Module module_ = golden_.make(context_.get());
};

TEST_P(GoldenForward, EveryPathAndLayout) {
  if (!survives(golden_.weight, dtype_) || !survives(golden_.x, dtype_) || !survives(golden_.bias, dtype_))
    GTEST_SKIP() << "not representable in this type";
  const bool spatial = golden_.layer.kind == LYC_LAYER_CONV || golden_.layer.kind == LYC_LAYER_GROUP_NORM;
  for (bool last : {false, true}) {
    if (last && !spatial) continue;
    for (lyc_path path : {LYC_PATH_AUTO, LYC_PATH_FACTORED, LYC_PATH_REBUILT}) {
      Tensor y(golden_.y.shape, dtype_);
      const lyc_status status = run(path, last, true, golden_.multiplier, y);
      if (path == LYC_PATH_FACTORED && status == LYC_ERROR_UNSUPPORTED) continue;
      ASSERT_EQ(status, LYC_OK) << lyc_last_error_message();
      EXPECT_TRUE(near(y.values(), golden_.y.values(), allowed(y))) << "path " << path << ", channels last " << last;
    }
  }
}

// y += delta, starting from the base's own output, is the same y up to the rounding of what it starts from.
TEST_P(GoldenForward, AddedToTheBase) {
  if (!survives(golden_.weight, dtype_) || !survives(golden_.x, dtype_)) GTEST_SKIP() << "not representable";
  for (lyc_path path : {LYC_PATH_FACTORED, LYC_PATH_REBUILT}) {
    Tensor y(golden_.y.shape, dtype_);
    ok(run(LYC_PATH_AUTO, false, true, 0.0f, y));
    const lyc_status status = run(path, false, false, golden_.multiplier, y);
    if (path == LYC_PATH_FACTORED && status == LYC_ERROR_UNSUPPORTED) continue;
    ASSERT_EQ(status, LYC_OK) << lyc_last_error_message();
    Tolerance twice = allowed(y);
    twice.relative *= 2;
    EXPECT_TRUE(near(y.values(), golden_.y.values(), twice)) << "path " << path;
  }
}

// What preparing makes is what an unprepared module makes in each call.
TEST_P(GoldenForward, PreparedOrNot) {
  Tensor unprepared(golden_.y.shape, dtype_), prepared = unprepared;
  ok(run(LYC_PATH_AUTO, false, true, golden_.multiplier, unprepared));
  const Tensor weight = golden_.weight.as(dtype_);
  const lyc_tensor view = weight.view();
  ok(lyc_module_prepare(module_.get(), &view, nullptr));
  ok(run(LYC_PATH_AUTO, false, true, golden_.multiplier, prepared));
  if (prepared.bytes == unprepared.bytes) return;
  // With its norms DoRA may go through the factors.
  EXPECT_NE(std::get<0>(GetParam()).find("dora"), std::string::npos);
  EXPECT_TRUE(near(prepared.values(), golden_.y.values(), allowed(prepared)));
}

INSTANTIATE_TEST_SUITE_P(All, GoldenForward,
                         testing::Combine(testing::ValuesIn(data_cases("modules")),
                                          testing::Values(LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16)),
                         [](const auto &given) {
                           return std::get<0>(given.param) + "_" + lyc_dtype_name(std::get<1>(given.param));
                         });

}  // namespace
}  // namespace lyc::test
