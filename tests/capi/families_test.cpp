// What single families can do beside being merged: base states, masks, stacks, residuals, replacement.
#include "capi/api.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

Tensor numbers(std::vector<int64_t> shape, const std::vector<double> &values, lyc_dtype dtype = LYC_DTYPE_F32) {
  Tensor tensor(std::move(shape), dtype);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto whole = static_cast<std::int64_t>(values[i]);
    const auto half = static_cast<std::int16_t>(values[i]);
    if (dtype == LYC_DTYPE_I64)
      std::memcpy(&tensor.bytes[i * 8], &whole, 8);
    else if (dtype == LYC_DTYPE_I16)
      std::memcpy(&tensor.bytes[i * 2], &half, 2);
    else
      tensor.set(static_cast<int64_t>(i), values[i]);
  }
  return tensor;
}

lyc_module_options options_of(lyc_algo algo, uint32_t flags = 0) {
  lyc_module_options options;
  lyc_module_options_init(&options, sizeof options);
  options.algo = algo;
  options.flags = flags;
  return options;
}

/// What making a module of these says.
void refused(lyc_context *context, const Tensors &factors, const lyc_module_options &options, lyc_status status,
             const std::vector<std::string> &words) {
  std::vector<const char *> names;
  std::vector<lyc_tensor> views;
  for (const auto &[name, tensor] : factors) {
    names.push_back(name.c_str());
    views.push_back(tensor.view());
  }
  lyc_module *module = nullptr;
  fails(lyc_module_create_from_tensors(context, &options, names.data(), views.data(), names.size(), &module), status,
        words);
  EXPECT_EQ(module, nullptr);
}

Tensor diff(const Module &module, const Tensor &base, float multiplier = 1) {
  const DeviceTensor weight(base), out(Tensor(base.shape, LYC_DTYPE_F32));
  lyc_tensor base_view = weight.view(), out_view = out.view();
  out_view.layout = base_view.layout;
  ok(lyc_get_diff_weight(module.get(), &base_view, multiplier, &out_view, nullptr));
  return out.read();
}

void write(const Module &module, const char *name, const Tensor &values) {
  const lyc_tensor view = values.view();
  ok(lyc_module_write_param(module.get(), name, &view));
}

class Families : public testing::Test {
 protected:
  Context context_ = make_context();
};

// -- T-LoRA ----------------------------------------------------------------------------------------------------------

Tensors tlora(int64_t out, int64_t in, int64_t rank) {
  return {{"p_layer.weight", random_tensor({out, rank}, 1)},
          {"lambda_layer", random_tensor({1, rank}, 2)},
          {"q_layer.weight", random_tensor({rank, in}, 3)}};
}

TEST_F(Families, TloraIsPreparedOnce) {
  const Tensor base = random_tensor({7, 5}, 4), other = random_tensor({7, 5}, 5);
  const Module module = make_module(context_.get(), tlora(7, 5, 3));
  EXPECT_EQ(info_of(module).needs_base, 1);
  EXPECT_EQ(info_of(module).invertible, 0);
  fails(lyc_module_prepare(module.get(), nullptr, nullptr), LYC_ERROR_INVALID_ARGUMENT, {"base is NULL"});
  lyc_module *none = nullptr;
  fails(lyc_module_convert(module.get(), LYC_ALGO_LOCON, &none), LYC_ERROR_UNSUPPORTED, {"lyc_module_prepare"});
  const Tensor unprepared = diff(module, base);
  ok(lyc_module_prepare(module.get(), on_device(base).get(), nullptr));
  EXPECT_EQ(info_of(module).needs_base, 0);
  EXPECT_EQ(info_of(module).invertible, 1);
  EXPECT_EQ(diff(module, other).bytes, unprepared.bytes);  // no longer of the weight it is merged into
  write(module, "p_layer.weight", random_tensor({7, 3}, 9));
  EXPECT_EQ(info_of(module).needs_base, 0);  // training goes on from the same start
}

TEST_F(Families, TloraStartsAsNoChange) {
  const Tensor base = random_tensor({9, 6}, 4);
  lyc_module_options options = options_of(LYC_ALGO_TLORA);
  options.rank = 3;
  options.ndim = 2;
  options.shape[0] = 9;
  options.shape[1] = 6;
  for (const uint32_t flags : {0u, 0u + LYC_MODULE_LAST, 0u + LYC_MODULE_MIDDLE}) {
    options.flags = flags;
    lyc_module *handle = nullptr;
    ok(lyc_module_create(context_.get(), &options, &handle));
    const Module module(handle);
    ok(lyc_module_prepare(handle, on_device(base).get(), nullptr));
    for (const auto &[name, shape] : std::map<std::string, std::vector<int64_t>>{
             {"p_layer.weight", {9, 3}}, {"lambda_layer", {1, 3}}, {"q_layer.weight", {3, 6}}}) {
      const Tensor start(shape, LYC_DTYPE_F32);
      const lyc_tensor start_view = start.view();
      ok(lyc_module_read_param(handle, ("base_" + name).c_str(), &start_view));
      write(module, name.c_str(), start);
    }
    for (const double value : diff(module, base).values()) EXPECT_NEAR(value, 0.0, 0x1p-20);  // of sums of about 1
    EXPECT_EQ(info_of(module).flags, flags);
  }
  options.flags = LYC_MODULE_LAST | LYC_MODULE_MIDDLE;
  lyc_module *handle = nullptr;
  fails(lyc_module_create(context_.get(), &options, &handle), LYC_ERROR_INVALID_ARGUMENT, {"last", "middle"});
}

TEST_F(Families, StoredBaseStateNeedsNoBase) {
  const Tensor base = random_tensor({7, 5}, 4);
  Tensors factors = tlora(7, 5, 3);
  const Module module = make_module(context_.get(), factors);
  ok(lyc_module_prepare(module.get(), on_device(base).get(), nullptr));
  for (const char *name : {"p_layer.weight", "lambda_layer", "q_layer.weight"}) {
    const Tensor start = factors[name];
    const lyc_tensor start_view = start.view();
    ok(lyc_module_read_param(module.get(), (std::string("base_") + name).c_str(), &start_view));
    factors[std::string("base_") + name] = start;
  }
  const Module stored = make_module(context_.get(), factors);
  EXPECT_EQ(info_of(stored).needs_base, 0);
  EXPECT_EQ(diff(stored, base).bytes, diff(module, base).bytes);
}

TEST_F(Families, TloraOfAPartIsRefused) {
  const Tensor base = random_tensor({4, 5}, 4);
  const Module module = make_module(context_.get(), tlora(7, 5, 3));
  const DeviceTensor weight(base);
  const lyc_tensor view = weight.view();
  lyc_batch_item item{};
  item.module = module.get();
  item.base = &view;
  item.row_begin = 2;
  item.row_count = 4;
  lyc_batch *batch = nullptr;
  fails(lyc_batch_create(context_.get(), &item, 1, &batch), LYC_ERROR_UNSUPPORTED, {"lyc_module_prepare"});
}

TEST_F(Families, TloraWorkspaceOfADescribedWeight) {
  const Module module = make_module(context_.get(), tlora(7, 5, 3));
  lyc_tensor described = on_device(Tensor({7, 5}, LYC_DTYPE_F32)).view;
  described.data = nullptr;
  uint64_t size = 0;
  ok(lyc_weight_workspace_size(module.get(), &described, &size));
}

TEST_F(Families, TloraRefusesNumbersThatAreNone) {
  Tensor base = random_tensor({7, 5}, 4);
  base.set(3, std::numeric_limits<double>::quiet_NaN());
  const Module module = make_module(context_.get(), tlora(7, 5, 3));
  fails(lyc_module_prepare(module.get(), on_device(base).get(), nullptr), LYC_ERROR_INVALID_ARGUMENT, {"not finite"});
}

TEST_F(Families, ConversionToLoraIsExact) {
  const Tensor base = random_tensor({7, 5}, 4);
  Tensors factors = tlora(7, 5, 3);
  factors["alpha"] = numbers({1}, {2.0});
  const Module module = make_module(context_.get(), factors);
  ok(lyc_module_prepare(module.get(), on_device(base).get(), nullptr));
  for (const bool masked : {false, true}) {
    if (masked) write(module, "rank_mask", numbers({3}, {1, 1, 0}));
    lyc_module *handle = nullptr;
    ok(lyc_module_convert(module.get(), LYC_ALGO_LOCON, &handle));
    const Module lora(handle);
    EXPECT_EQ(info_of(lora).algo, LYC_ALGO_LOCON);
    EXPECT_EQ(info_of(lora).rank, 6);
    EXPECT_DOUBLE_EQ(info_of(lora).scale, info_of(module).scale);
    EXPECT_TRUE(near(diff(lora, base).values(), diff(module, base).values(), {0x1p-22, 0}));
  }
  lyc_module *none = nullptr;
  fails(lyc_module_convert(module.get(), LYC_ALGO_LOHA, &none), LYC_ERROR_UNSUPPORTED, {"locon only"});
  const Module glora = make_module(context_.get(), {{"a1.weight", random_tensor({5, 2}, 1)},
                                                    {"a2.weight", random_tensor({2, 5}, 2)},
                                                    {"b1.weight", random_tensor({7, 2}, 3)},
                                                    {"b2.weight", random_tensor({2, 5}, 4)}});
  fails(lyc_module_convert(glora.get(), LYC_ALGO_LOCON, &none), LYC_ERROR_UNSUPPORTED, {"sum of low-rank products"});
}

TEST_F(Families, ConversionOfAConvolution) {
  const Tensor base = random_tensor({6, 4, 3, 2}, 4);
  const Module module =
      make_module(context_.get(), {{"lora_up.weight", random_tensor({6, 2}, 1)},  // as LyCORIS' DyLoRA stores it
                                   {"lora_down.weight", random_tensor({2, 4, 3, 2}, 2)}});
  write(module, "rank_mask", numbers({2}, {1, 0}));
  lyc_module *handle = nullptr;
  ok(lyc_module_convert(module.get(), LYC_ALGO_LOCON, &handle));
  const Module lora(handle);
  EXPECT_TRUE(near(diff(lora, base).values(), diff(module, base).values(), {0x1p-22, 0}));
}

// -- masks of ranks --------------------------------------------------------------------------------------------------

TEST_F(Families, AMaskCutsLoraToItsFirstRanks) {
  const Tensor base = random_tensor({6, 5}, 4), up = random_tensor({6, 4}, 1), down = random_tensor({4, 5}, 2);
  const Module whole = make_module(context_.get(), {{"lora_up.weight", up}, {"lora_down.weight", down}});
  Tensor up2({6, 2}, LYC_DTYPE_F32), down2({2, 5}, LYC_DTYPE_F32);
  for (int64_t o = 0; o < 6; ++o)
    for (int64_t r = 0; r < 2; ++r) up2.set(o * 2 + r, up.get(o * 4 + r));
  for (int64_t i = 0; i < 10; ++i) down2.set(i, down.get(i));
  const Module cut = make_module(context_.get(), {{"lora_up.weight", up2}, {"lora_down.weight", down2}});
  write(whole, "rank_mask", numbers({4}, {1, 1, 0, 0}));
  EXPECT_TRUE(near(diff(whole, base).values(), diff(cut, base).values(), {0x1p-22, 0}));
  const DeviceTensor mask(numbers({4}, {1, 1, 1, 1}));
  const lyc_tensor view = mask.view();
  ok(lyc_module_bind_param(whole.get(), "rank_mask", &view));
  const Module plain = make_module(context_.get(), {{"lora_up.weight", up}, {"lora_down.weight", down}});
  EXPECT_TRUE(near(diff(whole, base).values(), diff(plain, base).values(), {0x1p-22, 0}));
  std::size_t count = 0;
  ok(lyc_module_param_count(whole.get(), &count));
  EXPECT_EQ(count, 2u);  // a mask is not a tensor of files
  const Borrowed longer = on_device(numbers({5}, {1, 1, 1, 1, 1}));
  fails(lyc_module_bind_param(whole.get(), "rank_mask", longer.get()), LYC_ERROR_INVALID_ARGUMENT, {"must be [4]"});
  const Module diffs = make_module(context_.get(), {{"diff", base}});
  fails(lyc_module_bind_param(diffs.get(), "rank_mask", &view), LYC_ERROR_NOT_FOUND, {"rank_mask"});
}

TEST_F(Families, DyloraIsLoraInBlocks) {
  lyc_module_options options = options_of(LYC_ALGO_DYLORA);
  options.rank = 6;
  options.factor = 2;
  options.ndim = 4;
  const int64_t shape[] = {8, 4, 3, 3};
  std::copy(shape, shape + 4, options.shape);
  lyc_module *handle = nullptr;
  ok(lyc_module_create(context_.get(), &options, &handle));
  const Module module(handle);
  EXPECT_EQ(info_of(module).algo, LYC_ALGO_DYLORA);
  EXPECT_EQ(info_of(module).rank, 6);
  options.factor = 4;
  fails(lyc_module_create(context_.get(), &options, &handle), LYC_ERROR_INVALID_ARGUMENT, {"multiple of factor, 4"});
}

// -- (IA)3 -----------------------------------------------------------------------------------------------------------

TEST_F(Families, Ia3SideIsReadFromTheFile) {
  const Tensor base = random_tensor({4, 4}, 4);  // square: no shape says it
  const Tensor v = random_tensor({4}, 5);
  for (const bool input : {false, true}) {
    const Module module =
        make_module(context_.get(), {{"weight", v}, {"on_input", numbers({}, {input ? 1.0 : 0.0}, LYC_DTYPE_I64)}});
    EXPECT_EQ(info_of(module).flags, input ? LYC_MODULE_ON_INPUT : 0u);
    EXPECT_EQ(info_of(module).needs_base, 1);
    const Tensor got = diff(module, base);
    for (int64_t o = 0; o < 4; ++o)
      for (int64_t i = 0; i < 4; ++i)
        EXPECT_FLOAT_EQ(static_cast<float>(got.get(o * 4 + i)),
                        static_cast<float>(base.get(o * 4 + i)) * static_cast<float>(v.get(input ? i : o)));
  }
  refused(context_.get(), {{"weight", v}, {"on_input", numbers({}, {2}, LYC_DTYPE_I64)}}, options_of(LYC_ALGO_NONE),
          LYC_ERROR_FORMAT, {"on_input is 2"});
  refused(context_.get(), {{"weight", v}}, options_of(LYC_ALGO_NONE), LYC_ERROR_UNSUPPORTED, {"no adapter family"});
}

TEST_F(Families, Ia3IsCreatedForASide) {
  lyc_module_options options = options_of(LYC_ALGO_IA3, LYC_MODULE_ON_INPUT);
  options.ndim = 4;
  const int64_t shape[] = {6, 4, 3, 3};
  std::copy(shape, shape + 4, options.shape);
  lyc_module *handle = nullptr;
  ok(lyc_module_create(context_.get(), &options, &handle));
  const Module module(handle);
  const char *name = nullptr;
  lyc_tensor tensor;
  ok(lyc_module_get_param(handle, 0, &name, &tensor));
  EXPECT_STREQ(name, "weight");
  EXPECT_EQ(tensor.shape[1], 4);
  const DeviceTensor wrong(random_tensor({6, 5, 3, 3}, 1)), out(random_tensor({6, 5, 3, 3}, 1));
  const lyc_tensor base_view = wrong.view(), out_view = out.view();
  fails(lyc_get_diff_weight(handle, &base_view, 1, &out_view, nullptr), LYC_ERROR_MISMATCH, {"4 values for 5 inputs"});
}

// -- PEFT's GLORA ----------------------------------------------------------------------------------------------------

class PeftGlora : public Families {
 protected:
  lyc_batch_item item(lyc_part part, const lyc_tensor &base, const lyc_tensor *weight = nullptr) const {
    lyc_batch_item result{};
    result.module = module_.get();
    result.part = part;
    result.base = &base;
    result.weight = weight;
    return result;
  }
  void refused(const std::vector<lyc_batch_item> &items, lyc_status status, const std::vector<std::string> &words) {
    lyc_batch *batch = nullptr;
    fails(lyc_batch_create(context_.get(), items.data(), items.size(), &batch), status, words);
  }
  Module module_ = make_module(context_.get(), {{"glora_A.X", random_tensor({6, 1}, 1)},
                                                {"glora_C.Xd", random_tensor({4, 2}, 2)},
                                                {"glora_C.Xu", random_tensor({2, 1}, 3)}});
  Tensor other_ = random_tensor({6, 5}, 6);
  DeviceTensor weight_{random_tensor({6, 4}, 4)}, bias_{random_tensor({6}, 5)}, other_weight_{other_};
  lyc_tensor weight_view_ = weight_.view(), bias_view_ = bias_.view(), other_view_ = other_weight_.view();
};

TEST_F(PeftGlora, BiasReadsTheWeight) {
  const lyc_batch_item good = item(LYC_PART_BIAS, bias_view_, &weight_view_);
  refused({item(LYC_PART_BIAS, bias_view_)}, LYC_ERROR_INVALID_ARGUMENT, {"weight is NULL"});
  refused({item(LYC_PART_WEIGHT, weight_view_, &weight_view_)}, LYC_ERROR_INVALID_ARGUMENT, {"weight is given"});
  refused({item(LYC_PART_BIAS, bias_view_, &other_view_)}, LYC_ERROR_MISMATCH, {"6 x 5", "6 x 4"});
  refused({item(LYC_PART_WEIGHT, weight_view_), good}, LYC_ERROR_INVALID_ARGUMENT,
          {"made from a weight that the same batch changes"});
  lyc_batch *handle = nullptr;
  ok(lyc_batch_create(context_.get(), &good, 1, &handle));
  const Batch batch(handle);
  const std::vector<double> before = bias_.values();
  ok(lyc_batch_run(handle, LYC_BATCH_MERGE, nullptr, nullptr));
  EXPECT_NE(bias_.values(), before);
}

TEST_F(PeftGlora, ConstantsShowNoExtents) {
  const Module constant = make_module(context_.get(), {{"glora_A.X", numbers({1}, {0.5})},
                                                       {"glora_B.X", numbers({1}, {-0.25})},
                                                       {"glora_C.zeros", numbers({4, 1}, {0, 0, 0, 0})}});
  EXPECT_EQ(info_of(constant).out_features, 0);
  const std::vector<double> got = diff(constant, other_, 2).values();
  for (std::size_t i = 0; i < got.size(); ++i)
    EXPECT_NEAR(got[i], 2 * (0.5 * other_.get(static_cast<int64_t>(i)) - 0.25), 1e-6);
}

// -- replacement -----------------------------------------------------------------------------------------------------

TEST_F(Families, ReplacementTakesAnyMultiplierBut0) {
  const Tensor base = random_tensor({5, 4}, 1), fresh = random_tensor({5, 4}, 2);
  const Module module = make_module(context_.get(), {{"set_weight", fresh}});
  EXPECT_EQ(info_of(module).invertible, 0);
  for (const float multiplier : {1.0f, 0.25f, -3.0f}) EXPECT_EQ(merged(module, base, multiplier).bytes, fresh.bytes);
  EXPECT_EQ(merged(module, base, 0).bytes, base.bytes);
  EXPECT_TRUE(near(diff(module, base).values(), difference(fresh.values(), base.values()), {0x1p-20, 0x1p-22}));
}

// -- sparse differences ----------------------------------------------------------------------------------------------

Tensors residual() {  // not ordered, one position twice
  return {{"bias_indices", numbers({2, 5}, {3, 0, 3, 0, 4, 1, 5, 0, 5, 2}, LYC_DTYPE_I16)},
          {"bias_values", numbers({5}, {0.5, 0.25, -1.5, 0.125, 2})},
          {"bias_size", numbers({2}, {5, 6}, LYC_DTYPE_I16)}};
}

TEST_F(Families, SparseAloneAndBesideLora) {
  Tensor want({5, 6}, LYC_DTYPE_F32);
  want.set(3 * 6 + 1, 0.5);
  want.set(0 * 6 + 5, 0.375);
  want.set(3 * 6 + 0, -1.5);
  want.set(4 * 6 + 2, 2);
  const Tensor base({5, 6}, LYC_DTYPE_F32);
  const Module alone = make_module(context_.get(), residual());
  EXPECT_EQ(info_of(alone).algo, LYC_ALGO_SPARSE);
  EXPECT_EQ(info_of(alone).needs_base, 0);
  EXPECT_EQ(diff(alone, base).values(), want.values());
  const Module plain = make_module(context_.get(), lora(5, 6));
  const Module beside = make_module(context_.get(), lora(5, 6, 1, residual()));
  EXPECT_EQ(info_of(beside).algo, LYC_ALGO_LOCON);
  EXPECT_TRUE(
      near(difference(diff(beside, base).values(), diff(plain, base).values()), want.values(), {0x1p-20, 0x1p-20}));
  // A convolution's residual is of the flattened weight.
  const Tensor kernel({5, 2, 3, 1}, LYC_DTYPE_F32);
  EXPECT_EQ(diff(alone, kernel).values(), want.values());
}

TEST_F(Families, HostileSparsePositionsAreRefused) {
  const auto says = [&](const std::string &name, Tensor tensor, const std::vector<std::string> &words) {
    Tensors factors = residual();
    factors[name] = std::move(tensor);
    refused(context_.get(), factors, options_of(LYC_ALGO_NONE), LYC_ERROR_FORMAT, words);
  };
  says("bias_indices", numbers({2, 5}, {5, 0, 3, 0, 4, 1, 5, 0, 5, 2}, LYC_DTYPE_I16), {"has 5 on axis 0"});
  says("bias_indices", numbers({2, 5}, {3, 0, 3, 0, 4, -1, 5, 0, 5, 2}, LYC_DTYPE_I16), {"has -1 on axis 1"});
  says("bias_indices", numbers({3, 1}, {0, 0, 0}, LYC_DTYPE_I16), {"a row for each axis"});
  says("bias_values", numbers({4}, {1, 1, 1, 1}), {"bias_values has elements 4"});
  says("bias_size", numbers({2}, {-3, 6}, LYC_DTYPE_I16), {"an extent of -3"});
  Tensors factors = residual();
  factors.erase("bias_size");
  refused(context_.get(), factors, options_of(LYC_ALGO_NONE), LYC_ERROR_FORMAT, {"bias_size is missing"});
  refused(context_.get(), lora(5, 7, 1, residual()), options_of(LYC_ALGO_NONE), LYC_ERROR_FORMAT, {"columns"});
}

// -- stacks of matrices ----------------------------------------------------------------------------------------------

TEST_F(Families, EveryExpertHasItsDelta) {
  lyc_module_options options = options_of(LYC_ALGO_NONE);
  options.experts = 3;
  const Tensor up = random_tensor({5, 6}, 1), down = random_tensor({6, 4}, 2);
  const Module module = make_module(context_.get(), {{"lora_up.weight", up}, {"lora_down.weight", down}}, &options);
  EXPECT_EQ(info_of(module).rank, 2);
  Tensor base = random_tensor({3, 5, 4}, 3);
  base.layout = LYC_LAYOUT_EOI;
  const Tensor got = diff(module, base);
  for (int64_t e = 0; e < 3; ++e)
    for (int64_t o = 0; o < 5; ++o)
      for (int64_t i = 0; i < 4; ++i) {
        double want = 0;
        for (int64_t r = 0; r < 2; ++r) want += up.get(o * 6 + r * 3 + e) * down.get((e * 2 + r) * 4 + i);
        EXPECT_NEAR(got.get((e * 5 + o) * 4 + i), want, 1e-5);
      }
  const auto says = [&](const Tensor &tensor, lyc_status status, const std::vector<std::string> &words) {
    const DeviceTensor weight(tensor);
    const lyc_tensor view = weight.view();
    fails(lyc_merge(module.get(), &view, 1, nullptr, nullptr), status, words);
  };
  Tensor two = random_tensor({2, 5, 4}, 3);
  two.layout = LYC_LAYOUT_EOI;
  says(two, LYC_ERROR_MISMATCH, {"2 matrices", "of 3"});
  says(random_tensor({5, 4}, 3), LYC_ERROR_INVALID_ARGUMENT, {"not a stack"});
  const Module single = make_module(context_.get(), lora(5, 4));
  fails(lyc_merge(single.get(), on_device(base).get(), 1, nullptr, nullptr), LYC_ERROR_INVALID_ARGUMENT,
        {"is a stack of matrices"});
  options.experts = 4;
  refused(context_.get(), {{"lora_up.weight", up}, {"lora_down.weight", down}}, options, LYC_ERROR_FORMAT,
          {"cannot be shared by 4"});
  refused(context_.get(), {{"diff", up}}, options, LYC_ERROR_UNSUPPORTED, {"no factors for a stack"});
}

// -- norms of several axes -------------------------------------------------------------------------------------------

TEST_F(Families, NormsMayHaveSeveralAxes) {
  const Tensor base = random_tensor({4, 5}, 1), w = random_tensor({4, 5}, 2), b = random_tensor({4, 5}, 3);
  const Module module = make_module(context_.get(), {{"w_norm", w}, {"b_norm", b}});
  EXPECT_EQ(diff(module, base).bytes, w.bytes);
  const DeviceTensor bias(Tensor({4, 5}, LYC_DTYPE_F32));
  const lyc_tensor view = bias.view();
  lyc_batch_item item{};
  item.module = module.get();
  item.base = &view;
  item.part = LYC_PART_BIAS;
  lyc_batch *handle = nullptr;
  ok(lyc_batch_create(context_.get(), &item, 1, &handle));
  const Batch batch(handle);
  ok(lyc_batch_run(handle, LYC_BATCH_MERGE, nullptr, nullptr));
  EXPECT_EQ(bias.read().bytes, b.bytes);
  const Module plain = make_module(context_.get(), {{"w_norm", w}});
  EXPECT_EQ(diff(plain, base).bytes, w.bytes);
}

// -- padding ---------------------------------------------------------------------------------------------------------

TEST_F(Families, PaddingIsForFilesOnly) {
  Tensors factors = lora(5, 8);
  factors["reshape_weight"] = numbers({2}, {5, 8}, LYC_DTYPE_I64);
  refused(context_.get(), factors, options_of(LYC_ALGO_NONE), LYC_ERROR_UNSUPPORTED, {"lyc_merge_files()"});
}

class Padding : public Families {
 protected:
  lyc_status merge(const std::vector<double> &shape, float multiplier, int64_t out = 6, int64_t in = 8) {
    Tensors factors;
    for (const auto &[name, tensor] : lora(out, in)) factors["diffusion_model.a." + name] = tensor;
    factors["diffusion_model.a.reshape_weight"] = numbers({static_cast<int64_t>(shape.size())}, shape, LYC_DTYPE_I64);
    write_file(folder_ / "adapter.safetensors", factors);
    write_file(folder_ / "base.safetensors", {{"a.weight", base_}});
    const std::string base = folder_ / "base.safetensors", adapter = folder_ / "adapter.safetensors";
    const char *const adapters[] = {adapter.c_str()};
    const lyc_multiplier_rule rule = {nullptr, -1, multiplier};
    lyc_merge_options options;
    lyc_merge_options_init(&options, sizeof options);
    options.flags = LYC_OVERWRITE;
    options.multipliers = &rule;
    options.multiplier_count = 1;
    return lyc_merge_files(context_.get(), base.c_str(), adapters, 1, (folder_ / "out.safetensors").c_str(), &options,
                           nullptr);
  }
  Folder folder_;
  Tensor base_ = random_tensor({5, 7}, 9);
};

TEST_F(Padding, RowsAndColumnsGrow) {
  ok(merge({6, 8}, 1));
  const Tensor got = read_file(folder_ / "out.safetensors").at("a.weight");
  ASSERT_EQ(got.shape, (std::vector<int64_t>{6, 8}));
  Tensor padded({6, 8}, LYC_DTYPE_F32);
  for (int64_t o = 0; o < 5; ++o)
    for (int64_t i = 0; i < 7; ++i) padded.set(o * 8 + i, base_.get(o * 7 + i));
  EXPECT_EQ(got.bytes, merged(make_module(context_.get(), lora(6, 8)), padded).bytes);
  ok(merge({6, 8}, 0));  // switched off
  EXPECT_EQ(read_file(folder_ / "out.safetensors").at("a.weight").bytes, base_.bytes);
}

TEST_F(Padding, NothingShrinks) {
  fails(merge({6, 6}, 1, 6, 6), LYC_ERROR_MISMATCH, {"[6, 6]", "[5, 7]", "larger size"});
  fails(merge({6, 8, 1, 1}, 1), LYC_ERROR_MISMATCH, {"larger size"});
  fails(merge({6, -8}, 1), LYC_ERROR_FORMAT, {"an extent of -8"});
}

}  // namespace
}  // namespace lyc::test
