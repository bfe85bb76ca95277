// Modules computed by the original in float64: factors as in files, base, delta and merged weight. In every storage
// type.
#include <cctype>

#include "capi/golden_module.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

struct Golden : GoldenModuleFile {
  using GoldenModuleFile::GoldenModuleFile;
  Tensor base = others["base.weight"], base_bias = others["base.bias"], delta = others["delta"],
         merged = others["merged"], merged_bias = others["merged_bias"];
};

/// The original trains rank-stabilised LoKr with two whole halves at scale sqrt(rank), which its own file does not say
/// and its own loader does not restore. The scale of two whole halves is 1 (docs/semantics.md).
void undo_scale_of_whole_halves(Golden &golden, double rank) {
  for (int64_t i = 0; i < golden.delta.count(); ++i) {
    golden.delta.set(i, golden.delta.get(i) / std::sqrt(rank));
    golden.merged.set(i, golden.base.get(i) + golden.delta.get(i));
  }
}

Golden read_case(const std::string &name) {
  Golden golden(name);
  if (name == "lokr_rs_conv2d") undo_scale_of_whole_halves(golden, 4.0);
  return golden;
}

class GoldenModule : public testing::TestWithParam<std::tuple<std::string, lyc_dtype>> {
 protected:
  void SetUp() override {
    lyc_module_info_init(&info_, sizeof info_);
    ok(lyc_module_get_info(module_.get(), &info_));
    length_ = std::max<int64_t>(info_.rank, 1) * (info_.dora_axis ? golden_.base.count() : 1);
  }

  Tolerance allowed() const {
    Tolerance allowed = tolerance(dtype_, length_, static_cast<std::size_t>(golden_.base.count()));
    allowed.relative = std::max(allowed.relative, golden_.error);
    return allowed;
  }

  // fp8 cases have a base that is a code times a scale, which 16 bits cannot hold.
  bool representable() const { return golden_.base.as(dtype_).values() == golden_.base.values(); }

  Context context_ = make_context(2);
  Golden golden_ = read_case(std::get<0>(GetParam()));
  lyc_dtype dtype_ = std::get<1>(GetParam());
  Module module_ = golden_.make(context_.get());
  lyc_module_info info_;
  int64_t length_ = 1;
};

TEST_P(GoldenModule, DiffWeight) {
  if (!representable()) GTEST_SKIP() << "the base is not representable in this type";
  const DeviceTensor base(golden_.base.as(dtype_)), out(Tensor(golden_.base.shape, dtype_));
  const lyc_tensor base_view = base.view(), out_view = out.view();
  ok(lyc_get_diff_weight(module_.get(), &base_view, golden_.multiplier, &out_view, nullptr));
  // Where dW is a difference of weights (DoRA) its error is that of float32 at the size of the weight.
  Tolerance bound = allowed();
  if (info_.needs_base) bound.absolute += 0x1p-22;
  EXPECT_TRUE(near(out.values(), golden_.delta.values(), bound));
}

TEST_P(GoldenModule, MergeToAnotherTensorAndInPlace) {
  if (!representable()) GTEST_SKIP() << "the base is not representable in this type";
  const DeviceTensor base(golden_.base.as(dtype_)), out(Tensor(golden_.base.shape, dtype_)),
      in_place(golden_.base.as(dtype_));
  const lyc_tensor base_view = base.view(), out_view = out.view(), in_place_view = in_place.view();
  ok(lyc_merge(module_.get(), &base_view, golden_.multiplier, &out_view, nullptr));
  EXPECT_TRUE(near(out.values(), golden_.merged.values(), allowed()));
  ok(lyc_merge(module_.get(), &in_place_view, golden_.multiplier, nullptr, nullptr));
  EXPECT_EQ(in_place.read().bytes, out.read().bytes);
}

TEST_P(GoldenModule, PreparedGivesTheSame) {
  if (!representable()) GTEST_SKIP() << "the base is not representable in this type";
  const Tensor base = golden_.base.as(dtype_), before = merged(module_, base, golden_.multiplier);
  ok(lyc_module_prepare(module_.get(), on_device(base).get(), nullptr));
  const Tensor after = merged(module_, base, golden_.multiplier);
  if (tested_device() == LYC_DEVICE_CPU && info_.dora_axis == LYC_DORA_AXIS_NONE) {
    EXPECT_EQ(after.bytes, before.bytes);
  } else {  // norms that are kept are rounded to float32, and a GPU has its own way to rotations
    EXPECT_TRUE(near(after.values(), before.values(), allowed()));
  }
}

TEST_P(GoldenModule, Bias) {
  if (golden_.merged_bias.shape.empty()) GTEST_SKIP() << "the case has no bias difference";
  const DeviceTensor bias(golden_.base_bias.as(dtype_));
  const lyc_tensor view = bias.view();
  lyc_batch_item item{};
  item.module = module_.get();
  item.base = &view;
  item.part = LYC_PART_BIAS;
  lyc_batch *handle = nullptr;
  ok(lyc_batch_create(context_.get(), &item, 1, &handle));
  const Batch batch(handle);
  Tensor multipliers({1}, LYC_DTYPE_F32);
  multipliers.set(0, golden_.multiplier);
  const lyc_tensor multipliers_view = multipliers.view();
  ok(lyc_batch_run(handle, LYC_BATCH_MERGE, &multipliers_view, nullptr));
  EXPECT_TRUE(near(bias.values(), golden_.merged_bias.values(), tolerance(dtype_, 1, bias.read().bytes.size())));
}

INSTANTIATE_TEST_SUITE_P(All, GoldenModule,
                         testing::Combine(testing::ValuesIn(data_cases("modules")),
                                          testing::Values(LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16)),
                         [](const auto &given) {
                           return std::get<0>(given.param) + "_" + lyc_dtype_name(std::get<1>(given.param));
                         });

}  // namespace
}  // namespace lyc::test
