// Creating modules and getting values in and out of them.
#include <gmock/gmock.h>

#include "capi/api.hpp"

namespace lyc::test {
namespace {

class Parameters : public testing::Test {
 protected:
  lyc_status create(lyc_algo algo, uint32_t flags, std::vector<int64_t> shape, Module *out, int32_t rank = 2,
                    lyc_dora_axis axis = LYC_DORA_AXIS_NONE) {
    lyc_module_options options;
    lyc_module_options_init(&options, sizeof options);
    options.algo = algo, options.flags = flags, options.rank = rank, options.dora_axis = axis;
    options.ndim = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), options.shape);
    lyc_module *module = nullptr;
    const lyc_status status = lyc_module_create(context_.get(), &options, &module);
    out->reset(module);
    return status;
  }
  std::string shapes(const Module &module) {
    std::string text;
    std::size_t count = 0;
    ok(lyc_module_param_count(module.get(), &count));
    for (std::size_t i = 0; i < count; ++i) {
      const char *name = nullptr;
      lyc_tensor tensor;
      ok(lyc_module_get_param(module.get(), i, &name, &tensor));
      text += (i ? " " : "") + std::string(name);
      for (int d = 0; d < tensor.ndim; ++d) text += (d ? "," : ":") + std::to_string(tensor.shape[d]);
    }
    return text;
  }
  Context context_ = make_context();
};

TEST_F(Parameters, CreateHasTheShapesOfTheFormat) {
  const struct {
    lyc_algo algo;
    uint32_t flags;
    std::vector<int64_t> shape;
    lyc_dora_axis axis;
    const char *want;
  } cases[] = {
      {LYC_ALGO_LOCON, 0, {6, 4}, LYC_DORA_AXIS_NONE, "lora_up.weight:6,2 lora_down.weight:2,4"},
      {LYC_ALGO_LOCON,
       LYC_MODULE_SCALAR,
       {6, 4},
       LYC_DORA_AXIS_OUT,
       "lora_up.weight:6,2 lora_down.weight:2,4 scalar dora_scale:6,1"},
      {LYC_ALGO_LOCON,
       LYC_MODULE_TUCKER,
       {6, 4, 3, 3},
       LYC_DORA_AXIS_IN,
       "lora_up.weight:6,2,1,1 lora_down.weight:2,4,1,1 lora_mid.weight:2,2,3,3 dora_scale:1,4,1,1"},
      {LYC_ALGO_LOHA, 0, {6, 4, 3}, LYC_DORA_AXIS_NONE, "hada_w1_a:6,2 hada_w1_b:2,12 hada_w2_a:6,2 hada_w2_b:2,12"},
      {LYC_ALGO_LOKR, LYC_MODULE_WHOLE, {6, 4}, LYC_DORA_AXIS_NONE, "lokr_w1:2,2 lokr_w2:3,2"},
      {LYC_ALGO_FULL, LYC_MODULE_BIAS, {6, 4}, LYC_DORA_AXIS_NONE, "diff:6,4 diff_b:6"},
      {LYC_ALGO_NORM, LYC_MODULE_BIAS, {6}, LYC_DORA_AXIS_NONE, "w_norm:6 b_norm:6"},
      {LYC_ALGO_NORM, LYC_MODULE_BIAS, {4, 5}, LYC_DORA_AXIS_NONE, "w_norm:4,5 b_norm:4,5"},
  };
  for (const auto &c : cases) {
    Module module;
    ok(create(c.algo, c.flags, c.shape, &module, 2, c.axis));
    EXPECT_EQ(shapes(module), c.want);
    const Tensor base = random_tensor(c.shape, 1);
    EXPECT_TRUE(c.axis != LYC_DORA_AXIS_NONE || merged(module, base).bytes == base.bytes);
  }
}

TEST_F(Parameters, CreateRefusesByName) {
  Module module;
  const auto refused = [&](lyc_status status, std::vector<std::string> words) {
    fails(status, LYC_ERROR_INVALID_ARGUMENT, words);
    EXPECT_EQ(module, nullptr);
  };
  refused(create(LYC_ALGO_NONE, 0, {4, 4}, &module), {"algo is 0"});
  refused(create(static_cast<lyc_algo>(77), 0, {4, 4}, &module), {"algo is 77"});
  refused(create(LYC_ALGO_LOCON, 0, {4, 4}, &module, 0), {"rank is 0"});
  refused(create(LYC_ALGO_LOCON, 0, {4, 4}, &module, -3), {"rank is -3"});
  refused(create(LYC_ALGO_LOCON, LYC_MODULE_WHOLE, {4, 4}, &module), {"locon", "flags"});
  refused(create(LYC_ALGO_LOCON, 1u << 20, {4, 4}, &module), {"unknown bits"});
  refused(create(LYC_ALGO_LOCON, LYC_MODULE_TUCKER, {4, 4, 1, 1}, &module), {"Tucker", "kernel"});
  refused(create(LYC_ALGO_LOCON, 0, {4}, &module), {"locon", "one axis"});
  refused(create(LYC_ALGO_REPLACE, 0, {4, 4}, &module), {"replace", "from tensors only"});
  refused(create(LYC_ALGO_FULL, 0, {4, 4}, &module, 0, LYC_DORA_AXIS_OUT), {"DoRA", "full"});
  refused(create(LYC_ALGO_LOCON, 0, {4, 0}, &module), {"[4, 0]"});
  refused(create(LYC_ALGO_LOCON, 0, {}, &module), {"ndim is 0"});
  refused(create(LYC_ALGO_LOCON, 0, {int64_t{1} << 40, int64_t{1} << 40}, &module), {"too many"});
  lyc_module_options options;
  lyc_module_options_init(&options, sizeof options);
  options.algo = LYC_ALGO_LOKR, options.rank = 1, options.ndim = 2, options.shape[0] = options.shape[1] = 4;
  lyc_module *handle = nullptr;
  options.factor = -2;
  fails(lyc_module_create(context_.get(), &options, &handle), LYC_ERROR_INVALID_ARGUMENT, {"factor is -2"});
  options.factor = 0;
  options.alpha = std::numeric_limits<double>::quiet_NaN();
  fails(lyc_module_create(context_.get(), &options, &handle), LYC_ERROR_INVALID_ARGUMENT, {"alpha is nan"});
  options.alpha = 0;
  options.dora_rule = static_cast<lyc_dora_rule>(4);
  fails(lyc_module_create(context_.get(), &options, &handle), LYC_ERROR_INVALID_ARGUMENT, {"dora_rule is 4"});
  options.dora_rule = LYC_DORA_RULE_DEFAULT;
  options.dtype = LYC_DTYPE_F64;
  fails(lyc_module_create(context_.get(), &options, &handle), LYC_ERROR_INVALID_ARGUMENT, {"dtype is f64"});
}

TEST_F(Parameters, FromTensorsChecksItsOptions) {
  const Tensors factors = lora(4, 6);
  const char *names[] = {"lora_up.weight", "lora_down.weight"};
  const lyc_tensor views[] = {factors.at(names[0]).view(), factors.at(names[1]).view()};
  lyc_module_options options;
  lyc_module_options_init(&options, sizeof options);
  lyc_module *module = nullptr;
  const auto refused = [&](lyc_status status, std::vector<std::string> words) {
    fails(lyc_module_create_from_tensors(context_.get(), &options, names, views, 2, &module), status, words);
    lyc_module_options_init(&options, sizeof options);
  };
  options.flags = 1u << 20;
  refused(LYC_ERROR_INVALID_ARGUMENT, {"flags has unknown bits"});
  options.ndim = -1;
  refused(LYC_ERROR_INVALID_ARGUMENT, {"ndim is -1"});
  options.ndim = 2, options.shape[0] = 6, options.shape[1] = 4;
  refused(LYC_ERROR_MISMATCH, {"4 x 6", "[6, 4]"});
}

TEST_F(Parameters, ValuesAreConvertedInAndOut) {
  for (lyc_dtype kept : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16}) {
    lyc_module_options options;
    lyc_module_options_init(&options, sizeof options);
    options.algo = LYC_ALGO_FULL, options.ndim = 2, options.shape[0] = 4, options.shape[1] = 5, options.dtype = kept;
    lyc_module *handle = nullptr;
    ok(lyc_module_create(context_.get(), &options, &handle));
    const Module module(handle);
    for (lyc_dtype given : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16}) {
      const Tensor in = random_tensor({4, 5}, 1, given), out({4, 5}, LYC_DTYPE_F32);
      const lyc_tensor in_view = in.view(), out_view = out.view();
      ok(lyc_module_write_param(handle, "diff", &in_view));
      ok(lyc_module_read_param(handle, "diff", &out_view));
      EXPECT_EQ(out.values(), in.as(kept).values());
    }
    const Tensor wrong({5, 4}, LYC_DTYPE_F32), wide({4, 5}, LYC_DTYPE_F64);
    const lyc_tensor wrong_view = wrong.view(), wide_view = wide.view();
    fails(lyc_module_write_param(handle, "diff", &wrong_view), LYC_ERROR_INVALID_ARGUMENT, {"diff", "[4, 5]"});
    fails(lyc_module_read_param(handle, "diff", &wide_view), LYC_ERROR_INVALID_ARGUMENT, {"diff is f64"});
    fails(lyc_module_write_param(handle, "nothing", &wrong_view), LYC_ERROR_NOT_FOUND, {"nothing"});
  }
}

TEST_F(Parameters, BoundMemoryOfAnyTypeIsUsed) {
  const Tensors factors = lora(4, 6);
  const Module module = make_module(context_.get(), factors);
  const Tensor base = random_tensor({4, 6}, 1);
  for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F16}) {
    Tensors rounded = factors;
    rounded["lora_up.weight"] = rounded["lora_up.weight"].as(dtype);
    const DeviceTensor bound(rounded["lora_up.weight"]);
    const lyc_tensor view = bound.view();
    ok(lyc_module_bind_param(module.get(), "lora_up.weight", &view));
    EXPECT_EQ(merged(module, base).bytes, merged(make_module(context_.get(), rounded), base).bytes);
  }
}

TEST_F(Parameters, ReadOnlyMemoryIsNotWritten) {
  const Tensors factors = lora(4, 6);
  const Module module = make_module(context_.get(), factors);
  const DeviceTensor mine(factors.at("lora_up.weight"));
  const Tensor values({4, 3}, LYC_DTYPE_F32);
  lyc_tensor view = mine.view();
  view.flags = LYC_TENSOR_READ_ONLY;
  const lyc_tensor new_values = values.view();
  ok(lyc_module_bind_param(module.get(), "lora_up.weight", &view));
  fails(lyc_module_write_param(module.get(), "lora_up.weight", &new_values), LYC_ERROR_INVALID_ARGUMENT, {"read-only"});
  lyc_tensor filled = values.view();
  filled.flags = LYC_TENSOR_READ_ONLY;
  fails(lyc_module_read_param(module.get(), "lora_up.weight", &filled), LYC_ERROR_INVALID_ARGUMENT, {"read-only"});
  EXPECT_EQ(mine.read().bytes, factors.at("lora_up.weight").bytes);
}

}  // namespace
}  // namespace lyc::test
