// Forward: equal to the layer's operator on W + dW in plain loops over doubles, for every family and kind of layer;
// paths that agree; threads, multipliers, types, strides; what is refused.
#include <limits>

#include "capi/forward_api.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// A family in one of its forms. A new one is a row here.
struct Form {
  const char *name;
  lyc_algo algo;
  uint32_t flags = 0;
  lyc_dora_axis dora = LYC_DORA_AXIS_NONE;
  bool prepared = false;
  lyc_dora_rule rule = LYC_DORA_RULE_DEFAULT;
};

const Form kForms[] = {
    {"locon", LYC_ALGO_LOCON},
    {"locon_tucker", LYC_ALGO_LOCON, LYC_MODULE_TUCKER},
    {"locon_scalar", LYC_ALGO_LOCON, LYC_MODULE_SCALAR},
    {"locon_dora_out", LYC_ALGO_LOCON, 0, LYC_DORA_AXIS_OUT},
    {"locon_dora_out_prepared", LYC_ALGO_LOCON, 0, LYC_DORA_AXIS_OUT, true},
    {"locon_tucker_dora_out_prepared", LYC_ALGO_LOCON, LYC_MODULE_TUCKER, LYC_DORA_AXIS_OUT, true},
    {"locon_dora_out_peft", LYC_ALGO_LOCON, 0, LYC_DORA_AXIS_OUT, false, LYC_DORA_RULE_PEFT},
    {"locon_dora_in", LYC_ALGO_LOCON, 0, LYC_DORA_AXIS_IN},
    {"locon_dora_in_prepared", LYC_ALGO_LOCON, 0, LYC_DORA_AXIS_IN, true},
    {"locon_tucker_dora_in", LYC_ALGO_LOCON, LYC_MODULE_TUCKER, LYC_DORA_AXIS_IN},
    {"locon_dora_in_peft", LYC_ALGO_LOCON, 0, LYC_DORA_AXIS_IN, false, LYC_DORA_RULE_PEFT},
    {"loha_dora_out", LYC_ALGO_LOHA, 0, LYC_DORA_AXIS_OUT},
    {"loha_dora_in_prepared", LYC_ALGO_LOHA, 0, LYC_DORA_AXIS_IN, true},
    {"lokr_dora_in", LYC_ALGO_LOKR, 0, LYC_DORA_AXIS_IN},
    {"lokr_dora_out_prepared", LYC_ALGO_LOKR, 0, LYC_DORA_AXIS_OUT, true},
    {"loha", LYC_ALGO_LOHA},
    {"loha_tucker", LYC_ALGO_LOHA, LYC_MODULE_TUCKER},
    {"lokr", LYC_ALGO_LOKR},
    {"lokr_whole", LYC_ALGO_LOKR, LYC_MODULE_WHOLE},
    {"lokr_both", LYC_ALGO_LOKR, LYC_MODULE_DECOMPOSE_BOTH},
    {"lokr_tucker", LYC_ALGO_LOKR, LYC_MODULE_TUCKER},
    {"full", LYC_ALGO_FULL},
    {"full_bias", LYC_ALGO_FULL, LYC_MODULE_BIAS},
    {"ia3", LYC_ALGO_IA3},
    {"ia3_input", LYC_ALGO_IA3, LYC_MODULE_ON_INPUT},
    {"glora", LYC_ALGO_GLORA},
    {"peft_glora", LYC_ALGO_PEFT_GLORA},
    {"oft", LYC_ALGO_OFT},
    {"oft_rescaled", LYC_ALGO_OFT, LYC_MODULE_RESCALE},
    {"boft", LYC_ALGO_BOFT},
    {"dylora", LYC_ALGO_DYLORA},
};

/// A layer and what goes through it.
struct LayerCase {
  const char *name;
  lyc_layer_kind kind;
  std::vector<int64_t> x, weight;
  int32_t groups = 1;
  std::vector<int64_t> stride = {}, padding = {}, dilation = {};

  lyc_layer layer(lyc_path path = LYC_PATH_AUTO) const {
    lyc_layer layer = make_layer(kind, path);
    layer.groups = groups;
    std::copy(stride.begin(), stride.end(), layer.stride);
    std::copy(padding.begin(), padding.end(), layer.padding);
    std::copy(dilation.begin(), dilation.end(), layer.dilation);
    return layer;
  }
};

void PrintTo(const Form &form, std::ostream *to) { *to << form.name; }
void PrintTo(const LayerCase &layer, std::ostream *to) { *to << layer.name; }

const LayerCase kLayers[] = {
    {"linear", LYC_LAYER_LINEAR, {2, 3, 12}, {20, 12}},
    {"linear_square", LYC_LAYER_LINEAR, {70, 8}, {8, 8}},
    {"linear_many", LYC_LAYER_LINEAR, {130, 12}, {20, 12}},
    {"linear_panels", LYC_LAYER_LINEAR, {2, 61, 12}, {70, 12}},
    {"linear_row", LYC_LAYER_LINEAR, {36}, {6, 36}},
    {"linear_deep", LYC_LAYER_LINEAR, {197, 600}, {130, 600}},
    {"conv1d", LYC_LAYER_CONV, {2, 6, 11}, {4, 6, 3}, 1, {2}, {1}, {1}},
    {"conv2d", LYC_LAYER_CONV, {2, 6, 9, 7}, {8, 6, 3, 3}, 1, {}, {1, 1}},
    {"conv2d_1x1", LYC_LAYER_CONV, {2, 12, 5, 6}, {8, 12, 1, 1}},
    {"conv2d_odd", LYC_LAYER_CONV, {1, 4, 10, 9}, {6, 4, 3, 2}, 1, {2, 3}, {2, 0}, {2, 1}},
    {"conv2d_large", LYC_LAYER_CONV, {1, 40, 20, 19}, {96, 40, 3, 3}, 1, {}, {1, 1}},
    {"conv2d_groups", LYC_LAYER_CONV, {2, 12, 6, 5}, {8, 6, 3, 3}, 2, {}, {1, 1}},
    {"conv2d_depthwise", LYC_LAYER_CONV, {1, 6, 6, 5}, {6, 1, 3, 3}, 6, {}, {1, 1}},
    {"conv3d", LYC_LAYER_CONV, {1, 4, 4, 5, 3}, {6, 4, 2, 3, 1}, 1, {1, 2, 1}, {1, 1, 0}},
};

/// A module with random parameters, or null where the family does not have this form for this weight.
Module create(lyc_context *context, const Form &form, const std::vector<int64_t> &shape, lyc_dtype dtype) {
  lyc_module_options options;
  lyc_module_options_init(&options, sizeof options);
  options.algo = form.algo;
  options.flags = form.flags;
  options.rank = 2;
  options.alpha = 3;
  options.dora_axis = form.dora;
  options.dora_rule = form.rule;
  options.dtype = dtype;
  options.ndim = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), options.shape);
  lyc_module *handle = nullptr;
  if (lyc_module_create(context, &options, &handle) != LYC_OK) return nullptr;
  Module module(handle);
  std::size_t count = 0;
  ok(lyc_module_param_count(handle, &count));
  for (std::size_t i = 0; i < count; ++i) {
    const char *name = nullptr;
    lyc_tensor parameter;
    ok(lyc_module_get_param(handle, i, &name, &parameter));
    Tensor values = random_tensor({parameter.shape, parameter.shape + parameter.ndim}, 17 + i, dtype);
    for (int64_t j = 0; j < values.count(); ++j) values.set(j, 0.4 * values.get(j));
    const lyc_tensor view = values.view();
    ok(lyc_module_write_param(handle, name, &view));
  }
  return module;
}

/// W + dW, or dW, in float32.
std::vector<double> changed(const Module &module, const Tensor &weight, float multiplier, bool whole) {
  const Tensor out(weight.shape, LYC_DTYPE_F32);
  const lyc_tensor base = weight.view(), view = out.view();
  ok(whole ? lyc_merge(module.get(), &base, multiplier, &view, nullptr)
           : lyc_get_diff_weight(module.get(), &base, multiplier, &view, nullptr));
  return out.values();
}

void prepare(const Module &module, const Tensor &weight) {
  const lyc_tensor base = weight.view();
  ok(lyc_module_prepare(module.get(), &base, nullptr));
}

class ForwardCase : public testing::TestWithParam<std::tuple<Form, LayerCase>> {
 protected:
  void SetUp() override {
    form_ = std::get<0>(GetParam());
    case_ = std::get<1>(GetParam());
    module_ = create(context_.get(), form_, case_.weight, LYC_DTYPE_F32);
    if (!module_) GTEST_SKIP() << lyc_last_error_message();
    x_ = random_tensor(case_.x, 3);
    weight_ = random_tensor(case_.weight, 5);
    bias_ = random_tensor({case_.weight[0]}, 7);
    if (form_.prepared) prepare(module_, weight_);
  }

  std::vector<double> apply(const std::vector<double> &values) const {
    return case_.kind == LYC_LAYER_LINEAR ? linear(x_, case_.weight[0], values)
                                          : convolved(case_.layer(), x_, weight_, values);
  }
  std::vector<int64_t> y_shape() const {
    if (case_.kind == LYC_LAYER_CONV) return convolved_shape(case_.layer(), x_, weight_);
    std::vector<int64_t> shape = case_.x;
    shape.back() = case_.weight[0];
    return shape;
  }
  std::vector<double> with_bias(std::vector<double> y) const {
    const int64_t inside =
        case_.kind == LYC_LAYER_LINEAR ? 1 : static_cast<int64_t>(y.size()) / y_shape()[0] / y_shape()[1];
    for (std::size_t i = 0; i < y.size(); ++i) y[i] += bias_.get(static_cast<int64_t>(i) / inside % case_.weight[0]);
    return y;
  }
  bool changes_bias() const { return form_.flags & LYC_MODULE_BIAS || form_.algo == LYC_ALGO_PEFT_GLORA; }

  Context context_ = make_context(2);
  Form form_;
  LayerCase case_;
  Module module_;
  Tensor x_, weight_, bias_;
};

constexpr lyc_path kPaths[] = {LYC_PATH_AUTO, LYC_PATH_FACTORED, LYC_PATH_REBUILT};

TEST_P(ForwardCase, EqualsTheOperatorOnTheChangedWeight) {
  if (changes_bias()) GTEST_SKIP() << "the reference here has no bias difference";
  const int64_t depth = weight_.count() / weight_.shape[0];
  const std::vector<double> want = with_bias(apply(changed(module_, weight_, 0.7f, true)));
  for (lyc_path path : kPaths) {
    const Tensor y = random_tensor(y_shape(), 9);
    const lyc_status status = call_forward(module_, case_.layer(path), x_, &weight_, &bias_, 0.7f, y, true);
    if (path == LYC_PATH_FACTORED && status == LYC_ERROR_UNSUPPORTED) continue;
    ASSERT_EQ(status, LYC_OK) << lyc_last_error_message();
    EXPECT_TRUE(near(y.values(), want, tolerance(LYC_DTYPE_F32, depth))) << "path " << path;
  }
}

TEST_P(ForwardCase, AddsWhatTheChangeAdds) {
  if (changes_bias()) GTEST_SKIP() << "the reference here has no bias difference";
  const std::vector<double> before = random_tensor(y_shape(), 9).values();
  const std::vector<double> want = sum(before, apply(changed(module_, weight_, -0.6f, false)));
  for (lyc_path path : kPaths) {
    const Tensor y = random_tensor(y_shape(), 9);
    const lyc_status status = call_forward(module_, case_.layer(path), x_, &weight_, nullptr, -0.6f, y, false);
    if (path == LYC_PATH_FACTORED && status == LYC_ERROR_UNSUPPORTED) continue;
    ASSERT_EQ(status, LYC_OK) << lyc_last_error_message();
    Tolerance allowed = tolerance(LYC_DTYPE_F32, weight_.count());
    allowed.absolute += 0x1p-20;  // dW as a difference has the error of W
    EXPECT_TRUE(near(y.values(), want, allowed)) << "path " << path;
  }
}

TEST_P(ForwardCase, DoesNotDependOnThreadsOrWorkspaces) {
  for (bool whole : {false, true}) {
    const Tensor want = random_tensor(y_shape(), 9);
    ok(call_forward(module_, case_.layer(), x_, &weight_, whole ? &bias_ : nullptr, 0.7f, want, whole));
    for (int threads : {1, 3, 8}) {
      const Context context = make_context(threads);
      const Module module = create(context.get(), form_, case_.weight, LYC_DTYPE_F32);
      if (form_.prepared) prepare(module, weight_);
      const Tensor y = random_tensor(y_shape(), 9);
      const lyc_layer layer = case_.layer();
      const lyc_tensor x = x_.view(), weight = weight_.view(), bias = bias_.view(), to = y.view();
      lyc_exec exec;
      lyc_exec_init(&exec, sizeof exec);
      ok(lyc_forward_workspace_size(module.get(), &layer, &x, &weight, &bias, &to, &exec.workspace_size));
      std::vector<unsigned char> memory(exec.workspace_size + 512, 0xff);  // NaN everywhere
      exec.workspace = memory.data() + (256 - reinterpret_cast<std::uintptr_t>(memory.data()) % 256);
      ok(call_forward(module, layer, x_, &weight_, whole ? &bias_ : nullptr, 0.7f, y, whole, &exec));
      EXPECT_EQ(y.bytes, want.bytes) << threads << " threads";
      const auto *end = static_cast<unsigned char *>(exec.workspace) + exec.workspace_size;
      EXPECT_TRUE(std::all_of(end, const_cast<const unsigned char *>(memory.data() + memory.size()),
                              [](unsigned char byte) { return byte == 0xff; }));
    }
  }
}

TEST_P(ForwardCase, MultiplierZeroIsTheBase) {
  const Tensor y = random_tensor(y_shape(), 9), before = y;
  ok(call_forward(module_, case_.layer(), x_, &weight_, nullptr, 0.0f, y, false));
  EXPECT_EQ(y.bytes, before.bytes);
  const std::vector<double> want = with_bias(apply(weight_.values()));
  for (lyc_path path : kPaths) {
    const lyc_status status = call_forward(module_, case_.layer(path), x_, &weight_, &bias_, 0.0f, y, true);
    if (path == LYC_PATH_FACTORED && status == LYC_ERROR_UNSUPPORTED) continue;
    EXPECT_TRUE(near(y.values(), want, tolerance(LYC_DTYPE_F32, weight_.count() / weight_.shape[0])));
  }
}

TEST_P(ForwardCase, ChannelsLastIsTheSame) {
  if (case_.kind != LYC_LAYER_CONV) GTEST_SKIP() << "no axes of space";
  for (lyc_path path : kPaths) {
    lyc_layer layer = case_.layer(path);
    const Tensor y(y_shape(), LYC_DTYPE_F32);
    if (call_forward(module_, layer, x_, &weight_, &bias_, 0.7f, y, true) != LYC_OK) continue;
    layer.channels = LYC_CHANNELS_LAST;
    const Tensor last = with_channels_last(y);
    ok(call_forward(module_, layer, with_channels_last(x_), &weight_, &bias_, 0.7f, last, true));
    EXPECT_TRUE(near(with_channels_last(last, true).values(), y.values(), tolerance(LYC_DTYPE_F32, weight_.count())));
  }
}

INSTANTIATE_TEST_SUITE_P(All, ForwardCase, testing::Combine(testing::ValuesIn(kForms), testing::ValuesIn(kLayers)),
                         [](const auto &given) {
                           return std::string(std::get<0>(given.param).name) + "_" + std::get<1>(given.param).name;
                         });

class ForwardTest : public testing::Test {
 protected:
  Context context_ = make_context(2);
};

// Storage types are independent; the adapter is not lost where W + dW would not fit 16 bits.
TEST_F(ForwardTest, TypesAreIndependentAndSmallChangesSurvive) {
  const lyc_dtype types[] = {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16};
  Tensors factors = lora(24, 40);
  for (auto &[name, tensor] : factors)
    for (int64_t i = 0; i < tensor.count(); ++i) tensor.set(i, 0.01 * tensor.get(i));
  const Module module = make_module(context_.get(), factors);
  const Tensor none(std::vector<int64_t>{24, 40}, LYC_DTYPE_F32);
  for (lyc_dtype x_type : types)
    for (lyc_dtype w_type : types)
      for (lyc_dtype y_type : types)
        for (lyc_path path : {LYC_PATH_FACTORED, LYC_PATH_REBUILT}) {
          const Tensor x = random_tensor({7, 40}, 3, x_type), weight = random_tensor({24, 40}, 5, w_type);
          const Tensor bias = random_tensor({24}, 7, x_type), y({7, 24}, y_type);
          const lyc_layer layer = make_layer(LYC_LAYER_LINEAR, path);
          ok(call_forward(module, layer, x, &weight, &bias, 1, y, true));
          const std::vector<double> change = linear(x, 24, changed(module, none, 1, false));
          std::vector<double> base = linear(x, 24, weight.values());
          for (std::size_t i = 0; i < base.size(); ++i) base[i] += bias.get(static_cast<int64_t>(i) % 24);
          EXPECT_TRUE(near(y.values(), sum(base, change), tolerance(y_type, 40, base.size())));
          if (y_type == LYC_DTYPE_F32) {
            EXPECT_TRUE(near(difference(y.values(), base), change, {0x1p-7, 0x1p-22})) << "lost in rounding the weight";
          }
        }
}

TEST_F(ForwardTest, StridedActivationsAndWeights) {
  const Module module = make_module(context_.get(), lora(4, 6));
  const Tensor wide_x = random_tensor({2, 3, 5, 9}, 3), wide_y = random_tensor({2, 3, 5, 8}, 4);
  const Tensor before = wide_y, weight = random_tensor({6, 4}, 5);  // as [I, O]
  lyc_tensor x = wide_x.view(), y = wide_y.view(), w = weight.view();
  ok(lyc_tensor_slice(&x, 3, 2, 6, &x));
  ok(lyc_tensor_slice(&x, 2, 1, 3, &x));
  ok(lyc_tensor_slice(&y, 3, 4, 4, &y));
  ok(lyc_tensor_slice(&y, 2, 2, 3, &y));
  w.layout = LYC_LAYOUT_HWIO;
  ok(lyc_forward_fused(module.get(), nullptr, &x, &w, nullptr, 0.5f, &y, nullptr));

  Tensor packed({2, 3, 3, 6}, LYC_DTYPE_F32), turned({4, 6}, LYC_DTYPE_F32);
  for (int64_t r = 0; r < 18; ++r)
    for (int64_t i = 0; i < 6; ++i) packed.set(r * 6 + i, wide_x.get((r / 3 * 5 + r % 3 + 1) * 9 + i + 2));
  for (int64_t i = 0; i < 24; ++i) turned.set(i, weight.get(i % 6 * 4 + i / 6));
  const std::vector<double> want = linear(packed, 4, changed(module, turned, 0.5f, true));
  for (int64_t r = 0; r < 30; ++r)
    for (int64_t c = 0; c < 8; ++c) {
      const bool inside = r % 5 >= 2 && c >= 4;
      const double expected =
          inside ? want[static_cast<std::size_t>((r / 5 * 3 + r % 5 - 2) * 4 + c - 4)] : before.get(r * 8 + c);
      EXPECT_NEAR(wide_y.get(r * 8 + c), expected, inside ? 1e-5 : 0.0) << r << ", " << c;
    }
}

TEST_F(ForwardTest, BiasDifferencesAreAddedTimesTheMultiplier) {
  const Module module = make_module(context_.get(), lora(4, 6, 1, {{"diff_b", random_tensor({4}, 8)}}));
  const Module without = make_module(context_.get(), lora(4, 6));
  const Tensor x = random_tensor({5, 6}, 3), weight = random_tensor({4, 6}, 5), bias = random_tensor({4}, 7);
  for (bool whole : {false, true})
    for (bool biased : {false, true}) {
      const Tensor y({5, 4}, LYC_DTYPE_F32), plain({5, 4}, LYC_DTYPE_F32);
      const Tensor *b = whole && biased ? &bias : nullptr;
      ok(call_forward(module, make_layer(LYC_LAYER_LINEAR), x, &weight, b, 0.5f, y, whole));
      ok(call_forward(without, make_layer(LYC_LAYER_LINEAR), x, &weight, b, 0.5f, plain, whole));
      for (int64_t i = 0; i < y.count(); ++i)
        EXPECT_NEAR(y.get(i), plain.get(i) + 0.5 * random_tensor({4}, 8).get(i % 4), 1e-5);
    }
}

TEST_F(ForwardTest, Embeddings) {
  for (const Form &form : kForms) {
    const Module module = create(context_.get(), form, {30, 12}, LYC_DTYPE_F32);
    if (!module || form.flags & LYC_MODULE_BIAS || form.algo == LYC_ALGO_PEFT_GLORA) continue;
    const Tensor table = random_tensor({30, 12}, 5);
    const std::vector<double> merged_table = changed(module, table, 0.7f, true);
    const int64_t indices[] = {3, 29, 0, 3, 7, 11};
    const int64_t shape[] = {2, 3};
    lyc_tensor x;
    ok(lyc_tensor_init(&x, const_cast<int64_t *>(indices), LYC_DTYPE_I64, shape, 2));
    for (lyc_path path : kPaths) {
      const lyc_layer layer = make_layer(LYC_LAYER_EMBEDDING, path);
      const Tensor y({2, 3, 12}, LYC_DTYPE_F32);
      const lyc_tensor to = y.view(), weight = table.view();
      const lyc_status status = lyc_forward_fused(module.get(), &layer, &x, &weight, nullptr, 0.7f, &to, nullptr);
      if (path == LYC_PATH_FACTORED && status == LYC_ERROR_UNSUPPORTED) continue;
      ASSERT_EQ(status, LYC_OK) << form.name << ": " << lyc_last_error_message();
      std::vector<double> want, base;
      for (int64_t index : indices)
        for (int64_t c = 0; c < 12; ++c) {
          want.push_back(merged_table[static_cast<std::size_t>(index * 12 + c)]);
          base.push_back(table.get(index * 12 + c));
        }
      EXPECT_TRUE(near(y.values(), want, tolerance(LYC_DTYPE_F32, 2))) << form.name;
      Tensor added({2, 3, 12}, LYC_DTYPE_F32);
      for (int64_t i = 0; i < added.count(); ++i) added.set(i, base[static_cast<std::size_t>(i)]);
      const lyc_tensor onto = added.view();
      ok(lyc_forward(module.get(), &layer, &x, &weight, 0.7f, &onto, nullptr));
      EXPECT_TRUE(near(added.values(), want, tolerance(LYC_DTYPE_F32, 2))) << form.name;
    }
  }
}

TEST_F(ForwardTest, AnIndexOutsideTheTableIsAnErrorAndNothingIsWritten) {
  const Module module = make_module(context_.get(), lora(10, 4));
  const int32_t indices[] = {3, 10};
  const int64_t shape[] = {2};
  lyc_tensor x;
  ok(lyc_tensor_init(&x, const_cast<int32_t *>(indices), LYC_DTYPE_I32, shape, 1));
  const Tensor y = random_tensor({2, 4}, 1), before = y;
  const lyc_tensor to = y.view();
  const lyc_layer layer = make_layer(LYC_LAYER_EMBEDDING);
  fails(lyc_forward(module.get(), &layer, &x, nullptr, 1, &to, nullptr), LYC_ERROR_INVALID_ARGUMENT,
        {"index 10 at position 1", "10 rows"});
  EXPECT_EQ(y.bytes, before.bytes);
}

TEST_F(ForwardTest, Norms) {
  const Tensors factors = {{"w_norm", random_tensor({12}, 1)}, {"b_norm", random_tensor({12}, 2)}};
  const Module module = make_module(context_.get(), factors);
  const Tensor weight = random_tensor({12}, 5), bias = random_tensor({12}, 7);
  for (lyc_layer_kind kind : {LYC_LAYER_LAYER_NORM, LYC_LAYER_RMS_NORM, LYC_LAYER_GROUP_NORM}) {
    const bool grouped = kind == LYC_LAYER_GROUP_NORM;
    const int64_t places = grouped ? 5 : 1, span = grouped ? 4 : 12;
    const Tensor x = grouped ? random_tensor({3, 12, 5}, 3) : random_tensor({3, 12}, 3);
    const Tensor y = x, added(x.shape, LYC_DTYPE_F32);
    lyc_layer layer = make_layer(kind);
    layer.groups = grouped ? 3 : 0;
    layer.epsilon = 1e-3;
    ok(call_forward(module, layer, x, &weight, &bias, 0.5f, y, true));
    ok(call_forward(module, layer, x, nullptr, nullptr, 0.5f, added, false));
    for (int64_t i = 0; i < x.count(); ++i) {
      const int64_t begin = i / (span * places) * span * places;
      double mean = 0, squares = 0;
      const double n = static_cast<double>(span * places);
      for (int64_t j = begin; j < begin + span * places; ++j) mean += x.get(j) / n;
      if (kind == LYC_LAYER_RMS_NORM) mean = 0;
      for (int64_t j = begin; j < begin + span * places; ++j) squares += (x.get(j) - mean) * (x.get(j) - mean);
      const double hat = (x.get(i) - mean) / std::sqrt(squares / n + 1e-3);
      const int64_t c = i / places % 12;
      const double dw = 0.5 * factors.at("w_norm").get(c), db = 0.5 * factors.at("b_norm").get(c);
      EXPECT_NEAR(y.get(i), hat * (weight.get(c) + dw) + bias.get(c) + db, 1e-5);
      EXPECT_NEAR(added.get(i), hat * dw + db, 1e-5);
    }
  }
}

// PEFT: down sees all groups, the rank is dealt to them. No weight does that, so nothing can be merged.
TEST_F(ForwardTest, GroupedConvolutionsOfPeftHaveAForwardOnly) {
  const Tensor up = random_tensor({8, 2, 1, 1}, 1), down = random_tensor({4, 6, 3, 3}, 2);
  const Tensor x = random_tensor({2, 6, 5, 4}, 3), weight = random_tensor({8, 3, 3, 3}, 5),
               bias = random_tensor({8}, 7);
  lyc_module_options options;
  lyc_module_options_init(&options, sizeof options);
  options.origin = LYC_ORIGIN_PEFT;
  const Module module = make_module(context_.get(), {{"lora_up.weight", up}, {"lora_down.weight", down}}, &options);

  lyc_layer layer = make_layer(LYC_LAYER_CONV), whole = make_layer(LYC_LAYER_CONV), point = make_layer(LYC_LAYER_CONV);
  layer.groups = point.groups = 2;
  layer.padding[0] = layer.padding[1] = whole.padding[0] = whole.padding[1] = 1;
  Tensor hidden({2, 4, 5, 4}, LYC_DTYPE_F32);
  const std::vector<double> values = convolved(whole, x, down, down.values());
  for (int64_t i = 0; i < hidden.count(); ++i) hidden.set(i, values[static_cast<std::size_t>(i)]);
  std::vector<double> want =
      sum(convolved(layer, x, weight, weight.values()), convolved(point, hidden, up, up.values()));
  for (std::size_t i = 0; i < want.size(); ++i) want[i] += bias.get(static_cast<int64_t>(i) / 20 % 8);
  const Tensor y({2, 8, 5, 4}, LYC_DTYPE_F32);
  ok(call_forward(module, layer, x, &weight, &bias, 1, y, true));
  EXPECT_TRUE(near(y.values(), want, tolerance(LYC_DTYPE_F32, 54)));

  const Tensor before = y;
  layer.path = LYC_PATH_REBUILT;
  fails(call_forward(module, layer, x, &weight, &bias, 1, y, true), LYC_ERROR_UNSUPPORTED, {"all groups"});
  layer.path = LYC_PATH_AUTO;
  const lyc_tensor view = weight.view();
  fails(lyc_merge(module.get(), &view, 1, nullptr, nullptr), LYC_ERROR_UNSUPPORTED,
        {"all 2 groups", "nothing to merge"});
  EXPECT_EQ(y.bytes, before.bytes);
}

TEST_F(ForwardTest, NormsOfSeveralAxes) {
  const Module module =
      make_module(context_.get(), {{"w_norm", random_tensor({3, 4}, 1)}, {"b_norm", random_tensor({3, 4}, 2)}});
  const Module flat =
      make_module(context_.get(), {{"w_norm", random_tensor({12}, 1)}, {"b_norm", random_tensor({12}, 2)}});
  Tensor x = random_tensor({5, 3, 4}, 3), weight = random_tensor({3, 4}, 5), bias = random_tensor({3, 4}, 7);
  Tensor y(x.shape, LYC_DTYPE_F32), want({5, 12}, LYC_DTYPE_F32);
  const lyc_layer layer = make_layer(LYC_LAYER_LAYER_NORM);
  ok(call_forward(module, layer, x, &weight, &bias, 0.5f, y, true));
  ok(call_forward(module, layer, x, nullptr, nullptr, 0.5f, y, false));
  x.shape = {5, 12}, weight.shape = bias.shape = {12};
  ok(call_forward(flat, layer, x, &weight, &bias, 0.5f, want, true));
  ok(call_forward(flat, layer, x, nullptr, nullptr, 0.5f, want, false));
  EXPECT_EQ(y.bytes, want.bytes);
}

TEST_F(ForwardTest, FactorsOfASwitchedOffAdapterAreNotRead) {
  Tensors factors = lora(4, 6);
  factors["lora_up.weight"].set(0, kNaN);
  const Module module = make_module(context_.get(), factors);
  const Tensor x = random_tensor({5, 6}, 3), weight = random_tensor({4, 6}, 5), y({5, 4}, LYC_DTYPE_F32);
  for (lyc_path path : kPaths) {
    ok(call_forward(module, make_layer(LYC_LAYER_LINEAR, path), x, &weight, nullptr, 0, y, true));
    EXPECT_TRUE(near(y.values(), linear(x, 4, weight.values()), tolerance(LYC_DTYPE_F32, 6)));
  }
}

TEST_F(ForwardTest, PreparedNormsAreForgottenWithTheirFactors) {
  const Module module = create(context_.get(), {"dora", LYC_ALGO_LOCON, 0, LYC_DORA_AXIS_OUT}, {6, 5}, LYC_DTYPE_F32);
  const Tensor x = random_tensor({3, 5}, 2), weight = random_tensor({6, 5}, 4), y({3, 6}, LYC_DTYPE_F32);
  const auto results = [&] {
    std::vector<std::vector<double>> all;
    for (lyc_path path : {LYC_PATH_REBUILT, LYC_PATH_FACTORED}) {
      ok(call_forward(module, make_layer(LYC_LAYER_LINEAR, path), x, &weight, nullptr, 0.7f, y, true));
      all.push_back(y.values());
    }
    return all;
  };
  const auto unprepared = results();
  prepare(module, weight);
  const auto prepared = results();
  for (std::size_t path = 0; path < 2; ++path)
    EXPECT_TRUE(near(prepared[path], unprepared[path], tolerance(LYC_DTYPE_F32, 5)));
  const Tensor up = random_tensor({6, 2}, 8);
  const lyc_tensor view = up.view();
  ok(lyc_module_write_param(module.get(), "lora_up.weight", &view));
  const auto written = results();
  EXPECT_FALSE(near(written[0], prepared[0], tolerance(LYC_DTYPE_F32, 5)));
  EXPECT_TRUE(near(written[1], written[0], tolerance(LYC_DTYPE_F32, 5)));
}

TEST_F(ForwardTest, ExplainShowsPricesChoiceAndReason) {
  const auto explained = [&](const Module &module, const lyc_layer &layer) {
    const Tensor x({512, 64}, LYC_DTYPE_F32), y({512, 64}, LYC_DTYPE_F32), weight({64, 64}, LYC_DTYPE_F32);
    lyc_tensor from = x.view(), to = y.view(), w = weight.view();
    from.data = to.data = w.data = nullptr;
    std::size_t length = 0;
    ok(lyc_forward_explain(module.get(), &layer, &from, &w, nullptr, &to, nullptr, 0, &length));
    std::string text(length + 1, '\0');
    ok(lyc_forward_explain(module.get(), &layer, &from, &w, nullptr, &to, text.data(), text.size(), &length));
    return text;
  };
  const std::string low_rank = explained(make_module(context_.get(), lora(64, 64)), make_layer(LYC_LAYER_LINEAR));
  for (const char *word : {"lyc_forward: ", "lyc_forward_fused: ", "path factored", "price factored", "depth 3"})
    EXPECT_NE(low_rank.find(word), std::string::npos) << word << " in " << low_rank;
  const Module lokr = create(context_.get(), {"lokr", LYC_ALGO_LOKR, 0, LYC_DORA_AXIS_OUT}, {64, 64}, LYC_DTYPE_F32);
  const std::string rows = explained(lokr, make_layer(LYC_LAYER_LINEAR));
  for (const char *word : {"path rebuilt", "price factored none", "rows of a Kronecker product are not outputs"})
    EXPECT_NE(rows.find(word), std::string::npos) << word << " in " << rows;
}

TEST_F(ForwardTest, MisuseIsNamedAndNothingIsWritten) {
  const Module module = make_module(context_.get(), lora(4, 6));
  const Module dora = make_module(context_.get(), lora(4, 6, 1, {{"dora_scale", random_tensor({4, 1}, 3)}}));
  const Module lokr = create(context_.get(), {"lokr", LYC_ALGO_LOKR, 0, LYC_DORA_AXIS_IN}, {4, 6}, LYC_DTYPE_F32);
  const Tensor x = random_tensor({5, 6}, 3), weight = random_tensor({4, 6}, 5), bias = random_tensor({4}, 7);
  const Tensor y = random_tensor({5, 4}, 1), before = y;
  const lyc_layer linear_layer = make_layer(LYC_LAYER_LINEAR);
  const lyc_tensor x_view = x.view(), y_view = y.view(), w_view = weight.view();
  const auto add = [&](const lyc_tensor &from, const lyc_tensor &to, const lyc_layer *layer = nullptr) {
    return lyc_forward(module.get(), layer, &from, nullptr, 1, &to, nullptr);
  };

  fails(lyc_forward(nullptr, nullptr, &x_view, nullptr, 1, &y_view, nullptr), LYC_ERROR_INVALID_ARGUMENT, {"module"});
  fails(lyc_forward(module.get(), nullptr, nullptr, nullptr, 1, &y_view, nullptr), LYC_ERROR_INVALID_ARGUMENT, {"x"});
  fails(lyc_forward_fused(module.get(), nullptr, &x_view, nullptr, nullptr, 1, &y_view, nullptr),
        LYC_ERROR_INVALID_ARGUMENT, {"weight is NULL"});
  fails(lyc_forward(dora.get(), nullptr, &x_view, nullptr, 1, &y_view, nullptr), LYC_ERROR_INVALID_ARGUMENT,
        {"weight is NULL", "depends"});
  fails(call_forward(lokr, make_layer(LYC_LAYER_LINEAR, LYC_PATH_FACTORED), x, &weight, nullptr, 1, y, true),
        LYC_ERROR_UNSUPPORTED, {"no factored form"});
  fails(add(random_tensor({4, 6}, 1).view(), y_view), LYC_ERROR_MISMATCH, {"[4, 6]", "[5, 4]"});
  fails(add(random_tensor({5, 7}, 1).view(), y_view), LYC_ERROR_MISMATCH);
  fails(add(x_view, random_tensor({5, 3}, 1).view()), LYC_ERROR_MISMATCH);
  fails(add(x_view, random_tensor({1, 5, 4}, 1).view()), LYC_ERROR_INVALID_ARGUMENT, {"axes"});
  fails(call_forward(module, linear_layer, x, &weight, &x, 1, y, true), LYC_ERROR_MISMATCH);

  lyc_tensor wrong = x_view;
  wrong.dtype = LYC_DTYPE_I32;
  fails(add(wrong, y_view), LYC_ERROR_UNSUPPORTED, {"x is i32"});
  wrong = y_view;
  wrong.flags = LYC_TENSOR_READ_ONLY;
  fails(add(x_view, wrong), LYC_ERROR_INVALID_ARGUMENT, {"read-only"});
  wrong = y_view;
  wrong.strides[0] = 0;
  fails(add(x_view, wrong), LYC_ERROR_INVALID_ARGUMENT, {"share memory"});
  const Module square = make_module(context_.get(), lora(6, 6));
  fails(lyc_forward(square.get(), nullptr, &x_view, nullptr, 1, &x_view, nullptr), LYC_ERROR_INVALID_ARGUMENT,
        {"overlaps"});

  lyc_layer layer = linear_layer;
  layer.kind = static_cast<lyc_layer_kind>(9);
  fails(add(x_view, y_view, &layer), LYC_ERROR_INVALID_ARGUMENT, {"layer.kind is 9"});
  layer = linear_layer;
  layer.path = static_cast<lyc_path>(5);
  fails(add(x_view, y_view, &layer), LYC_ERROR_INVALID_ARGUMENT, {"layer.path is 5"});
  layer = make_layer(LYC_LAYER_CONV);
  fails(add(x_view, y_view, &layer), LYC_ERROR_INVALID_ARGUMENT, {"axes of space"});
  layer.stride[0] = -1;
  fails(add(x_view, y_view, &layer), LYC_ERROR_INVALID_ARGUMENT, {"stride"});
  lyc_exec exec;
  lyc_exec_init(&exec, sizeof exec);
  exec.workspace = reinterpret_cast<void *>(std::uintptr_t{256});
  exec.workspace_size = 64;
  fails(lyc_forward_fused(module.get(), nullptr, &x_view, &w_view, nullptr, 1, &y_view, &exec),
        LYC_ERROR_INVALID_ARGUMENT, {"workspace_size is 64"});
  EXPECT_EQ(y.bytes, before.bytes);
}

TEST_F(ForwardTest, AConvolutionWithAnotherGeometryIsRefused) {
  const Module module = make_module(context_.get(), {{"lora_up.weight", random_tensor({4, 2, 1, 1}, 1)},
                                                     {"lora_down.weight", random_tensor({2, 6, 3, 3}, 2)}});
  const Tensor x = random_tensor({1, 6, 5, 5}, 3), y = random_tensor({1, 4, 5, 5}, 4), before = y;
  lyc_layer layer = make_layer(LYC_LAYER_CONV);
  fails(call_forward(module, layer, x, nullptr, nullptr, 1, y, false), LYC_ERROR_MISMATCH,
        {"extent 5 on axis 0", "make it 3"});
  layer.groups = 4;
  fails(call_forward(module, layer, x, nullptr, nullptr, 1, y, false), LYC_ERROR_MISMATCH, {"4 groups"});
  layer.groups = 2;
  layer.padding[0] = layer.padding[1] = 1;
  fails(call_forward(module, layer, x, nullptr, nullptr, 1, y, false), LYC_ERROR_MISMATCH);
  EXPECT_EQ(y.bytes, before.bytes);
}

}  // namespace
}  // namespace lyc::test
