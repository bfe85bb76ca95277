// One module on one weight: layouts, slices, multiplier 0, unmerge, scale, DoRA, workspaces.
#include <cmath>
#include <functional>
#include <gmock/gmock.h>
#include <limits>

#include "capi/api.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();

/// The same values in another order of axes.
Tensor in_layout(const Tensor &oihw, lyc_layout layout) {
  const std::size_t n = oihw.shape.size();
  if (n < 2) return oihw;
  std::vector<std::size_t> order(n);  // axis of the result -> axis of [O, I, K...]
  for (std::size_t d = 0; d < n; ++d) order[d] = d;
  if (layout == LYC_LAYOUT_HWIO)
    std::rotate(order.begin(), order.begin() + 2, order.end()), std::swap(order[n - 1], order[n - 2]);
  if (layout == LYC_LAYOUT_OHWI) std::rotate(order.begin() + 1, order.begin() + 2, order.end());
  Tensor result(oihw.shape, oihw.dtype);
  for (std::size_t d = 0; d < n; ++d) result.shape[d] = oihw.shape[order[d]];
  result.layout = layout;
  for (int64_t i = 0; i < oihw.count(); ++i) {
    std::vector<int64_t> at(n);
    for (int64_t rest = i, d = static_cast<int64_t>(n); d-- > 0; rest /= oihw.shape[d]) at[d] = rest % oihw.shape[d];
    int64_t to = 0;
    for (std::size_t d = 0; d < n; ++d) to = to * result.shape[d] + at[order[d]];
    result.set(to, oihw.get(i));
  }
  return result;
}

/// Factors of every family and form for a weight [out, in, kernel...], filled with random values.
std::vector<Tensors> families(const std::vector<int64_t> &shape, lyc_context *context) {
  std::vector<Tensors> all;
  for (lyc_algo algo : {LYC_ALGO_LOCON, LYC_ALGO_LOHA, LYC_ALGO_LOKR, LYC_ALGO_FULL})
    for (uint32_t flags : {0, LYC_MODULE_TUCKER, LYC_MODULE_WHOLE})
      for (lyc_dora_axis axis : {LYC_DORA_AXIS_NONE, LYC_DORA_AXIS_OUT, LYC_DORA_AXIS_IN}) {
        lyc_module_options options;
        lyc_module_options_init(&options, sizeof options);
        options.algo = algo;
        options.flags = flags;
        options.rank = 2;
        options.dora_axis = axis;
        options.ndim = static_cast<int32_t>(shape.size());
        std::copy(shape.begin(), shape.end(), options.shape);
        lyc_module *handle = nullptr;
        if (lyc_module_create(context, &options, &handle) != LYC_OK) continue;  // a form that the family does not have
        const Module module(handle);
        Tensors factors;
        std::size_t count = 0;
        ok(lyc_module_param_count(handle, &count));
        for (std::size_t i = 0; i < count; ++i) {
          const char *name = nullptr;
          lyc_tensor parameter;
          ok(lyc_module_get_param(handle, i, &name, &parameter));
          factors[name] = random_tensor({parameter.shape, parameter.shape + parameter.ndim}, 10 * all.size() + i);
        }
        all.push_back(factors);
      }
  return all;
}

const std::vector<std::vector<int64_t>> kShapes = {{12, 20},     {8, 8},       {6, 4, 3},      {4, 4, 3},
                                                   {6, 4, 3, 3}, {4, 4, 2, 3}, {4, 6, 2, 3, 2}};

class Weights : public testing::Test {
 protected:
  Context context_ = make_context();
};

// Up to the last bit of float32: the coefficient goes into the factor on the left, and which one that is depends on the
// layout.
TEST_F(Weights, LayoutsAgree) {
  for (const auto &shape : kShapes)
    for (const Tensors &factors : families(shape, context_.get())) {
      const Module module = make_module(context_.get(), factors);
      const Tensor base = random_tensor(shape, 5), want = merged(module, base, 0.75f);
      for (lyc_layout layout : {LYC_LAYOUT_HWIO, LYC_LAYOUT_OHWI})
        EXPECT_TRUE(near(merged(module, in_layout(base, layout), 0.75f).values(), in_layout(want, layout).values(),
                         tolerance(LYC_DTYPE_F32, 1)));
    }
}

TEST_F(Weights, BaseAndOutMayDifferInLayoutAndType) {
  const Tensors factors = lora(8, 8);
  const Module module = make_module(context_.get(), factors);
  const DeviceTensor base(in_layout(random_tensor({8, 8}, 5, LYC_DTYPE_BF16), LYC_LAYOUT_HWIO)),
      out(Tensor({8, 8}, LYC_DTYPE_F32));
  const lyc_tensor base_view = base.view(), out_view = out.view();
  ok(lyc_merge(module.get(), &base_view, 1, &out_view, nullptr));
  EXPECT_EQ(out.values(), merged(module, random_tensor({8, 8}, 5, LYC_DTYPE_BF16).as(LYC_DTYPE_F32)).values());
}

TEST_F(Weights, SlicesAndGapsAreViews) {
  const Module module = make_module(context_.get(), lora(4, 6));
  const Tensor before = random_tensor({12, 7}, 3);
  const DeviceTensor fused(before);
  const lyc_tensor whole = fused.view();
  lyc_tensor rows, part;
  ok(lyc_tensor_slice(&whole, 0, 4, 4, &rows));
  ok(lyc_tensor_slice(&rows, 1, 1, 6, &part));
  Tensor packed({4, 6}, LYC_DTYPE_F32);
  for (int64_t o = 0; o < 4; ++o)
    for (int64_t i = 0; i < 6; ++i) packed.set(o * 6 + i, before.get((o + 4) * 7 + i + 1));
  const Tensor want = merged(module, packed);
  ok(lyc_merge(module.get(), &part, 1, nullptr, nullptr));
  const Tensor got = fused.read();
  for (int64_t o = 0; o < 12; ++o)
    for (int64_t i = 0; i < 7; ++i) {
      const bool inside = o >= 4 && o < 8 && i >= 1;
      EXPECT_EQ(got.get(o * 7 + i), inside ? want.get((o - 4) * 6 + i - 1) : before.get(o * 7 + i)) << o << ", " << i;
    }
}

TEST_F(Weights, MultiplierZeroChangesNoBit) {
  for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16})
    for (const Tensors &factors : families({6, 4, 3}, context_.get()))
      for (lyc_dora_rule rule : {LYC_DORA_RULE_INTERPOLATE, LYC_DORA_RULE_LYCORIS, LYC_DORA_RULE_PEFT}) {
        lyc_module_options options;
        lyc_module_options_init(&options, sizeof options);
        options.dora_rule = rule;
        const Module module = make_module(context_.get(), factors, &options);
        Tensor base = random_tensor({6, 4, 3}, 1, dtype);
        base.set(0, -0.0), base.set(1, kNaN), base.set(2, kInf), base.set(3, 1e-45);
        EXPECT_EQ(merged(module, base, 0.0f).bytes, base.bytes);
        EXPECT_EQ(merged(module, base, -0.0f).bytes, base.bytes);
      }
}

TEST_F(Weights, UnmergeTakesBack) {
  for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16})
    for (const Tensors &factors : families({6, 4, 3}, context_.get())) {
      const Module module = make_module(context_.get(), factors);
      const Tensor base = random_tensor({6, 4, 3}, 1, dtype), on_the_way = merged(module, base, 0.5f);
      const DeviceTensor weight(on_the_way);
      const lyc_tensor view = weight.view();
      const lyc_module_info info = info_of(module);
      EXPECT_EQ(info.invertible, !info.needs_base);
      if (!info.invertible) {
        fails(lyc_unmerge(module.get(), &view, 0.5f, nullptr), LYC_ERROR_UNSUPPORTED, {"DoRA", "copy"});
        continue;
      }
      ok(lyc_unmerge(module.get(), &view, 0.5f, nullptr));
      const Tensor back = weight.read();
      const double unit = dtype == LYC_DTYPE_F32 ? 0x1p-22 : dtype == LYC_DTYPE_F16 ? 0x1p-10 : 0x1p-7;
      for (int64_t i = 0; i < base.count(); ++i)
        EXPECT_NEAR(back.get(i), base.get(i), unit * (std::abs(on_the_way.get(i)) + std::abs(base.get(i)) + 1e-6));
    }
}

TEST_F(Weights, NotANumberStaysInItsRow) {
  Tensors factors = lora(4, 6);
  factors["lora_up.weight"].set(2 * 3, kNaN);
  const Tensor base = random_tensor({4, 6}, 1);
  const Tensor got = merged(make_module(context_.get(), factors), base);
  for (int64_t i = 0; i < 24; ++i) EXPECT_EQ(std::isnan(got.get(i)), i / 6 == 2) << i;
  factors = lora(4, 6);
  factors["lora_down.weight"].set(1, kInf);
  const Tensor second = merged(make_module(context_.get(), factors), base);
  for (int64_t i = 0; i < 24; ++i) EXPECT_EQ(std::isfinite(second.get(i)), i % 6 != 1) << i;
}

Tensor number(double value, std::vector<int64_t> shape, lyc_dtype dtype) {
  Tensor tensor(std::move(shape), dtype);
  const auto whole = static_cast<int64_t>(value);
  if (dtype == LYC_DTYPE_I64)
    std::memcpy(tensor.bytes.data(), &whole, 8);
  else if (dtype == LYC_DTYPE_F64)
    std::memcpy(tensor.bytes.data(), &value, 8);
  else
    tensor.set(0, value);
  return tensor;
}

TEST_F(Weights, AlphaOfEveryKind) {
  const auto scale_of = [&](const Tensor &alpha) {
    return info_of(make_module(context_.get(), lora(4, 6, 1, {{"alpha", alpha}}))).scale;
  };
  for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16, LYC_DTYPE_F64, LYC_DTYPE_I64})
    for (const std::vector<int64_t> &shape : std::vector<std::vector<int64_t>>{{}, {1}, {1, 1}}) {
      EXPECT_DOUBLE_EQ(scale_of(number(6, shape, dtype)), 2.0);
      EXPECT_DOUBLE_EQ(scale_of(number(0, shape, dtype)), 1.0);
      EXPECT_DOUBLE_EQ(scale_of(number(-6, shape, dtype)), -2.0);
    }
  EXPECT_DOUBLE_EQ(info_of(make_module(context_.get(), lora(4, 6))).scale, 1.0);  // absent
  const Tensors factors = lora(4, 6);
  for (double alpha : {kNaN, kInf, -kInf}) {
    const Tensor number_tensor = number(alpha, {}, LYC_DTYPE_F32);
    const char *names[] = {"lora_up.weight", "lora_down.weight", "alpha"};
    const lyc_tensor views[] = {factors.at(names[0]).view(), factors.at(names[1]).view(), number_tensor.view()};
    lyc_module *module = nullptr;
    fails(lyc_module_create_from_tensors(context_.get(), nullptr, names, views, 3, &module), LYC_ERROR_FORMAT,
          {"alpha", "finite"});
    lyc_module_options options;
    lyc_module_options_init(&options, sizeof options);
    options.alpha = alpha;
    fails(lyc_module_create_from_tensors(context_.get(), &options, names, views, 2, &module),
          LYC_ERROR_INVALID_ARGUMENT, {"alpha", "finite"});
  }
}

TEST_F(Weights, RankStabilisedAndScalar) {
  lyc_module_options options;
  lyc_module_options_init(&options, sizeof options);
  options.flags = LYC_MODULE_RANK_STABILISED;
  options.alpha = 6;
  const Module module = make_module(context_.get(), lora(4, 6), &options);
  EXPECT_DOUBLE_EQ(info_of(module).scale, 6 / std::sqrt(3.0));
  EXPECT_TRUE(info_of(module).flags & LYC_MODULE_RANK_STABILISED);
  const Module plain = make_module(context_.get(), lora(4, 6)),
               halved = make_module(context_.get(), lora(4, 6, 1, {{"scalar", number(0.5, {}, LYC_DTYPE_F32)}}));
  const Tensor zero({4, 6}, LYC_DTYPE_F32);
  EXPECT_EQ(merged(halved, zero, 1).values(), merged(plain, zero, 0.5f).values());
}

TEST_F(Weights, WholeLokrHasNoScale) {
  const Tensors factors = {{"lokr_w1", random_tensor({2, 2}, 1)},
                           {"lokr_w2", random_tensor({2, 3}, 2)},
                           {"alpha", number(kNaN, {}, LYC_DTYPE_F32)}};
  const lyc_module_info info = info_of(make_module(context_.get(), factors));
  EXPECT_EQ(info.scale, 1.0);
  EXPECT_EQ(info.rank, 0);
}

TEST_F(Weights, DoraRulesByTheirFormulas) {
  const double m = 0.75;
  for (lyc_dora_rule rule :
       {LYC_DORA_RULE_DEFAULT, LYC_DORA_RULE_INTERPOLATE, LYC_DORA_RULE_LYCORIS, LYC_DORA_RULE_PEFT})
    for (bool by_out : {true, false}) {
      const Tensor g = random_tensor(by_out ? std::vector<int64_t>{5, 1} : std::vector<int64_t>{1, 5}, 7);
      Tensors factors = lora(5, 5);
      const Tensor zero({5, 5}, LYC_DTYPE_F32), w = random_tensor({5, 5}, 8);
      const Tensor d = merged(make_module(context_.get(), factors), zero);
      factors["dora_scale"] = g;
      lyc_module_options options;
      lyc_module_options_init(&options, sizeof options);
      options.dora_rule = rule;
      const Module module = make_module(context_.get(), factors, &options);
      EXPECT_EQ(info_of(module).dora_axis, by_out ? LYC_DORA_AXIS_OUT : LYC_DORA_AXIS_IN);
      EXPECT_NE(info_of(module).dora_rule, LYC_DORA_RULE_DEFAULT);
      const bool peft = rule == LYC_DORA_RULE_PEFT, lycoris = rule == LYC_DORA_RULE_LYCORIS;
      std::vector<double> want(25);
      const auto v = [&](int64_t o, int64_t i) { return w.get(o * 5 + i) + (peft ? m : 1) * d.get(o * 5 + i); };
      for (int64_t o = 0; o < 5; ++o)
        for (int64_t i = 0; i < 5; ++i) {
          double squares = 0;
          for (int64_t k = 0; k < 5; ++k) squares += by_out ? v(o, k) * v(o, k) : v(k, i) * v(k, i);
          const double c = g.get(by_out ? o : i) / (std::sqrt(squares) + (peft ? 0 : 0x1p-23));
          const double base = w.get(o * 5 + i);
          want[static_cast<std::size_t>(o * 5 + i)] = peft      ? c * v(o, i)
                                                      : lycoris ? v(o, i) * (1 + m * (c - 1))
                                                                : base + m * (c * v(o, i) - base);
        }
      EXPECT_TRUE(near(merged(module, w, 0.75f).values(), want, tolerance(LYC_DTYPE_F32, 5)));
    }
}

// A row of zeros: the epsilon keeps the quotient finite, PEFT has none.
TEST_F(Weights, EpsilonOfDora) {
  Tensors factors = lora(2, 3);
  for (auto &[name, tensor] : factors) std::fill(tensor.bytes.begin(), tensor.bytes.end(), 0);
  factors["dora_scale"] = random_tensor({2, 1}, 1);
  const Tensor zero({2, 3}, LYC_DTYPE_F32);
  lyc_module_options options;
  lyc_module_options_init(&options, sizeof options);
  for (lyc_dora_rule rule : {LYC_DORA_RULE_INTERPOLATE, LYC_DORA_RULE_LYCORIS, LYC_DORA_RULE_PEFT}) {
    options.dora_rule = rule;
    const Tensor got = merged(make_module(context_.get(), factors, &options), zero);
    EXPECT_EQ(std::isnan(got.get(0)), rule == LYC_DORA_RULE_PEFT);
  }
}

TEST_F(Weights, WhatACallPreparedServesOnlyTheSameWeight) {
  Tensors factors = lora(8, 8);
  const Module module = make_module(context_.get(), factors);
  const DeviceTensor wide(random_tensor({8, 8}, 5)), narrow(random_tensor({8, 8}, 6, LYC_DTYPE_BF16)),
      out(Tensor({8, 8}, LYC_DTYPE_F32));
  const auto expect_fresh = [&] {
    const Module fresh = make_module(context_.get(), factors);
    for (int round = 0; round < 2; ++round)
      for (const DeviceTensor *base : {&wide, &narrow})
        for (lyc_layout layout : {LYC_LAYOUT_OIHW, LYC_LAYOUT_HWIO})
          for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_BF16, LYC_DTYPE_BF16}) {  // at one address, and again
            lyc_tensor from = base->view(), to = out.view();
            from.layout = to.layout = layout;
            to.dtype = dtype;
            ok(lyc_merge(fresh.get(), &from, 0.5f, &to, nullptr));
            const Tensor want = out.read();
            ok(lyc_get_diff_weight(module.get(), nullptr, 2, &to, nullptr));
            EXPECT_NE(out.read().bytes, want.bytes);
            ok(lyc_merge(module.get(), &from, 0.5f, &to, nullptr));
            EXPECT_EQ(out.read().bytes, want.bytes);
          }
  };
  expect_fresh();
  factors["lora_up.weight"] = random_tensor({8, 3}, 9);
  const DeviceTensor bound(factors["lora_up.weight"]);
  const lyc_tensor up = bound.view();
  ok(lyc_module_bind_param(module.get(), "lora_up.weight", &up));
  expect_fresh();
  const Tensor mask = random_tensor({3}, 10);
  const lyc_tensor values = mask.view();
  ok(lyc_module_write_param(module.get(), "rank_mask", &values));
  const Tensor base = random_tensor({8, 8}, 5);
  const Tensor masked = merged(module, base);
  EXPECT_NE(masked.bytes, merged(make_module(context_.get(), factors), base).bytes);
}

TEST_F(Weights, OneRounding) {
  const Module module = make_module(context_.get(), lora(16, 24));
  for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F16}) {
    const Tensor base = random_tensor({16, 24}, 4, dtype);
    EXPECT_EQ(merged(module, base).bytes, merged(module, base.as(LYC_DTYPE_F32)).as(dtype).bytes);
  }
}

/// Memory of the device, 256-byte aligned, that holds NaN in every type, and so do the bytes behind it.
class Scratch {
 public:
  explicit Scratch(uint64_t size) : size_(size), memory_(filled(size + kMore)), view_(memory_.view()) {}
  void *data() const {
    const auto address = reinterpret_cast<std::uintptr_t>(view_.data);
    return reinterpret_cast<void *>((address + 255) / 256 * 256);
  }
  bool slack_untouched() const {
    const Tensor bytes = memory_.read();
    const auto end = bytes.bytes.begin() + (static_cast<char *>(data()) - static_cast<char *>(view_.data)) +
                     static_cast<std::ptrdiff_t>(size_);
    return std::all_of(end, bytes.bytes.end(), [](unsigned char byte) { return byte == 0xff; });
  }

 private:
  static constexpr uint64_t kMore = 512;
  static Tensor filled(uint64_t size) {
    Tensor tensor({static_cast<int64_t>((size + 3) / 4)}, LYC_DTYPE_F32);
    std::fill(tensor.bytes.begin(), tensor.bytes.end(), 0xff);
    return tensor;
  }
  uint64_t size_;
  DeviceTensor memory_;
  lyc_tensor view_;
};

uint64_t workspace_size(const Module &module, const Tensor &weight) {
  lyc_tensor described = on_device(weight).view;
  described.data = nullptr;
  uint64_t size = 0;
  ok(lyc_weight_workspace_size(module.get(), &described, &size));
  return size;
}

struct Allocator {
  int64_t calls = 0;
  bool empty = false;
  std::map<void *, Scratch> living;
  static void *allocate(void *user, size_t size, size_t, void *) {
    auto &self = *static_cast<Allocator *>(user);
    ++self.calls;
    if (self.empty) return nullptr;
    Scratch memory(size);
    void *const data = memory.data();
    self.living.emplace(data, std::move(memory));
    return data;
  }
  static void deallocate(void *user, void *memory, size_t, void *) {
    wait_for_device();
    static_cast<Allocator *>(user)->living.erase(memory);
  }
};

TEST_F(Weights, ContextAllocatorIsUsedAndBalanced) {
  Allocator allocator;
  lyc_context_options options = context_options();
  options.allocate = Allocator::allocate;
  options.deallocate = Allocator::deallocate;
  options.user_data = &allocator;
  lyc_context *handle = nullptr;
  ok(lyc_context_create(&options, &handle));
  const Context context(handle);
  const Module module = make_module(handle, lora(16, 24));
  const Tensor base = random_tensor({16, 24}, 4);
  EXPECT_EQ(merged(module, base).bytes, merged(make_module(context_.get(), lora(16, 24)), base).bytes);
  EXPECT_TRUE(allocator.living.empty());
  const bool takes_workspace = workspace_size(module, base) > 0;
  EXPECT_TRUE(takes_workspace || tested_device() != LYC_DEVICE_CPU);
  EXPECT_EQ(allocator.calls > 0, takes_workspace);
  if (!takes_workspace) return;
  allocator.empty = true;
  const DeviceTensor weight(base);
  const lyc_tensor view = weight.view();
  fails(lyc_merge(module.get(), &view, 1, nullptr, nullptr), LYC_ERROR_OUT_OF_MEMORY, {"allocator"});
  EXPECT_EQ(weight.read().bytes, base.bytes);
}

TEST_F(Weights, CallersWorkspaceOfExactlyTheSize) {
  for (const auto &shape : kShapes)
    for (const Tensors &factors : families(shape, context_.get())) {
      const Module module = make_module(context_.get(), factors);
      const Tensor base = random_tensor(shape, 5);
      const uint64_t size = workspace_size(module, base);
      ASSERT_TRUE(size > 0 || tested_device() != LYC_DEVICE_CPU);
      const Scratch memory(size);
      lyc_exec exec;
      lyc_exec_init(&exec, sizeof exec);
      exec.workspace = memory.data();
      exec.workspace_size = size;
      EXPECT_EQ(merged(module, base, 0.5f, &exec).bytes, merged(module, base, 0.5f).bytes);
      EXPECT_TRUE(memory.slack_untouched());
      if (size == 0) continue;
      const DeviceTensor weight(base);
      const lyc_tensor view = weight.view();
      exec.workspace_size = size - 1;
      fails(lyc_merge(module.get(), &view, 1, nullptr, &exec), LYC_ERROR_INVALID_ARGUMENT, {"workspace_size"});
      exec.workspace_size = size + 16;
      exec.workspace = static_cast<char *>(memory.data()) + 16;
      fails(lyc_merge(module.get(), &view, 1, nullptr, &exec), LYC_ERROR_INVALID_ARGUMENT, {"aligned", "256"});
      EXPECT_EQ(weight.read().bytes, base.bytes);
    }
}

}  // namespace
}  // namespace lyc::test
