// Forward by every table of kernels: the base alone, scaled rows and Kronecker products, against plain loops over
// doubles. Types, layouts and windows beside what each family makes of them in ../capi/forward_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cpu/context.hpp"
#include "cpu/forward_plan.hpp"
#include "cpu/rotation.hpp"
#include "support/tensor.hpp"
#include "support/tolerance.hpp"
#include "support/weight_case.hpp"

namespace lyc::test {
namespace {

using ops::Operand;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// A layer, x as [batch, channels, space].
struct LayerCase {
  const char *name;
  Shape x, weight;
  ops::Layer layer;
};

ops::Layer window(std::int64_t groups, std::int64_t stride, std::int64_t padding, std::int64_t dilation, int axes) {
  ops::Layer layer;
  layer.groups = groups;
  for (int d = 0; d < axes; ++d) {
    layer.stride[d] = stride;
    layer.padding[d] = padding;
    layer.dilation[d] = dilation;
  }
  return layer;
}

const LayerCase kLayers[] = {
    {"linear", {100, 64}, {130, 64}, {}},
    {"linear_odd", {5, 35}, {6, 35}, {}},
    {"linear_panels", {123, 538}, {131, 538}, {}},
    {"linear_one", {7, 1}, {3, 1}, {}},
    {"linear_few", {13, 1027}, {70, 1027}, {}},
    {"linear_deep", {97, 1027}, {5, 1027}, {}},
    {"linear_rows", {197, 9}, {67, 9}, {}},
    {"conv1d", {2, 5, {11}}, {4, 5, {3}}, window(1, 2, 1, 1, 1)},
    {"conv2d", {2, 3, {9, 17}}, {70, 3, {3, 3}}, window(1, 1, 1, 1, 2)},
    {"conv2d_deep", {1, 61, {4, 5}}, {3, 61, {3, 3}}, window(1, 1, 1, 1, 2)},
    {"conv2d_apart", {1, 3, {10, 9}}, {5, 3, {3, 2}}, window(1, 2, 2, 2, 2)},
    {"conv2d_groups", {2, 10, {6, 5}}, {8, 5, {3, 3}}, window(2, 1, 1, 1, 2)},
    {"conv2d_depthwise", {1, 6, {6, 5}}, {6, 1, {3, 3}}, window(6, 1, 1, 1, 2)},
    {"conv3d", {1, 3, {4, 5, 3}}, {6, 3, {2, 3, 3}}, window(1, 1, 1, 1, 3)},
};

ops::Activation activation(const Operand &t) {
  ops::Activation a;
  a.data = t.data;
  a.dtype = t.dtype;
  a.batch = t.out;
  a.channels = t.in;
  a.stride_batch = t.stride_out;
  a.stride_channel = t.stride_in;
  std::copy(t.kernel, t.kernel + ops::kMaxKernelDims, a.space);
  std::copy(t.stride_kernel, t.stride_kernel + ops::kMaxKernelDims, a.stride_space);
  return a;
}

Shape result_shape(const LayerCase &c) {
  Shape y = {c.x.out, c.weight.out};
  for (int d = 0; d < ops::kMaxKernelDims; ++d)
    y.kernel[d] = (c.x.kernel[d] + 2 * c.layer.padding[d] - c.layer.dilation[d] * (c.weight.kernel[d] - 1) - 1) /
                      c.layer.stride[d] +
                  1;
  return y;
}

/// What x at position p of y, tap k and channel i is; 0 outside.
double windowed(const LayerCase &c, const Operand &x, const Shape &y, std::int64_t n, std::int64_t i, std::int64_t p,
                std::int64_t k) {
  std::int64_t index = 0, step = 1;
  for (int d = ops::kMaxKernelDims - 1; d >= 0; --d) {
    const std::int64_t at =
        p % y.kernel[d] * c.layer.stride[d] - c.layer.padding[d] + k % c.weight.kernel[d] * c.layer.dilation[d];
    if (at < 0 || at >= x.kernel[d]) return 0.0;
    index += at * step;
    step *= x.kernel[d], p /= y.kernel[d], k /= c.weight.kernel[d];
  }
  return at(x, n, i, index);
}

/// In the order [batch, outputs, space].
std::vector<double> reference(const LayerCase &c, const Operand &x, const std::vector<double> &weight) {
  const Shape y = result_shape(c);
  const std::int64_t places = y.kernel[0] * y.kernel[1] * y.kernel[2], outputs = c.weight.out / c.layer.groups;
  const std::int64_t taps = c.weight.kernel[0] * c.weight.kernel[1] * c.weight.kernel[2];
  std::vector<double> sums;
  for (std::int64_t n = 0; n < y.out; ++n)
    for (std::int64_t o = 0; o < y.in; ++o)
      for (std::int64_t p = 0; p < places; ++p) {
        double sum = 0.0;
        for (std::int64_t i = 0; i < c.weight.in; ++i)
          for (std::int64_t k = 0; k < taps; ++k)
            sum += windowed(c, x, y, n, o / outputs * c.weight.in + i, p, k) *
                   weight[static_cast<std::size_t>((o * c.weight.in + i) * taps + k)];
        sums.push_back(sum);
      }
  return sums;
}

/// One layer's call. The workspace is full of NaN before each run.
class Call {
 public:
  Call(const LayerCase &layer, lyc_dtype x_type, lyc_dtype w_type, lyc_dtype y_type, Order order = Order::kOIHW)
      : layer_(layer),
        x(arena_.random(layer.x, x_type, random_, 1.0, order)),
        weight(arena_.random(layer.weight, w_type, random_, 1.0)),
        y(arena_.tensor(result_shape(layer), y_type, order)) {
    target_.base = weight;
    target_.out = weight;
    target_.out.data = nullptr;
  }

  /// (IA)^3 over outputs.
  void scale_rows() {
    Operand v = arena_.random({layer_.weight.out}, LYC_DTYPE_F32, random_, 1.0);
    std::copy(weight.kernel, weight.kernel + ops::kMaxKernelDims, v.kernel);
    std::fill(v.stride_kernel, v.stride_kernel + ops::kMaxKernelDims, 0);
    v.in = weight.in;
    v.stride_in = 0;
    term_.kind = ops::TermKind::kBaseHadamard;
    term_.p.down = v;
    add();
  }

  /// Halves of which the right one has the window.
  void add_kronecker(std::int64_t p_out, std::int64_t p_in, lyc_dtype dtype) {
    Shape right = layer_.weight;
    right.out /= p_out;
    right.in /= p_in;
    term_.kind = ops::TermKind::kKronecker;
    term_.p.down = arena_.random({p_out, p_in}, dtype, random_, 1.0);
    term_.q.down = arena_.random(right, dtype, random_, 1.0);
    add();
  }

  /// What changes the first weight of a case.
  void take(const WeightCase &changed) {
    changed_ = changed.batch(0);
    multipliers_ = changed.multipliers.data();
  }

  void add_to_zero() {
    whole_ = false;
    for (std::int64_t n = 0; n < y.out; ++n)
      for (std::int64_t o = 0; o < y.in; ++o)
        for (std::int64_t p = 0; p < y.kernel_size(); ++p) set(y, offset_of(y, n, o, p), 0.0);
  }

  std::unique_ptr<ops::ForwardPlan> prepare(ops::BackendContext &context, ops::Path path = ops::Path::kAuto) const {
    ops::Forward forward;
    forward.layer = layer_.layer;
    forward.x = activation(x);
    forward.y = activation(y);
    forward.weights.targets = &target_;
    forward.weights.adapters = &adapter_;
    forward.weights.terms = &term_;
    forward.weights.target_count = 1;
    forward.weights.adapter_count = forward.weights.term_count = target_.adapter_count;
    forward.weights.multiplier_count = target_.adapter_count;
    if (changed_.target_count) forward.weights = changed_;
    forward.path = path;
    forward.whole = whole_;
    return cpu::prepare(context, forward);
  }

  std::vector<double> run(ops::BackendContext &context, ops::Path path = ops::Path::kAuto) {
    const auto plan = prepare(context, path);
    std::vector<float> workspace(cpu::workspace_size(*plan) / sizeof(float) + 64, static_cast<float>(kNaN));
    void *start = workspace.data();
    std::size_t space = workspace.size() * sizeof(float);
    std::align(256, 1, start, space);
    ops::ForwardRun run{};
    run.multipliers = multipliers_;
    run.workspace = start;
    cpu::run(*plan, run);
    EXPECT_TRUE(arena_.guards_intact());
    return values(y);
  }

  std::vector<double> want() const {
    std::vector<double> changed = values(weight);
    const std::int64_t inner = layer_.weight.numel() / layer_.weight.out, taps = weight.kernel_size();
    const Operand &p = term_.p.down, &q = term_.q.down;
    for (std::size_t at_ = 0; at_ < changed.size() && target_.adapter_count; ++at_) {
      const auto index = static_cast<std::int64_t>(at_);
      const std::int64_t o = index / inner, i = index % inner / taps, k = index % taps;
      const double m = static_cast<double>(kMultiplier);
      if (term_.kind == ops::TermKind::kKronecker)
        changed[at_] += m * at(p, o / q.out, i / q.in, 0) * at(q, o % q.out, i % q.in, k);
      else
        changed[at_] *= 1.0 + m * at(p, o, 0, 0);
    }
    return reference(layer_, x, changed);
  }

  Tolerance allowed() const {
    return tolerance(y.dtype, layer_.weight.numel() / layer_.weight.out, static_cast<std::size_t>(y.numel()));
  }

 private:
  static constexpr float kMultiplier = 0.7f;

  void add() {
    adapter_.term_count = 1;
    target_.adapter_count = 1;
  }

  const LayerCase &layer_;
  Arena arena_;
  Random random_{11};
  ops::WeightTarget target_;
  ops::Adapter adapter_;
  ops::Term term_;
  ops::WeightBatch changed_;
  const float *multipliers_ = &kMultiplier;
  bool whole_ = true;

 public:
  const Operand x, weight, y;
};

class CpuForward : public testing::TestWithParam<const cpu::Kernels *> {
 protected:
  void prepare(WeightCase &changed) {
    ops::Rotation &rotation = changed.rotations()[0];
    const std::int64_t b = rotation.block_size;
    const Operand rests = changed.arena().tensor({rotation.stages * rotation.blocks, b * b}, LYC_DTYPE_F32);
    cpu::prepare_rotation(context_, rotation, rests);
    rotation.prepared = rests;
  }

  ops::BackendContext context_{2, *GetParam()};
};

constexpr lyc_dtype kTypes[] = {LYC_DTYPE_BF16, LYC_DTYPE_F16, LYC_DTYPE_F32};
constexpr Order kOrders[] = {Order::kOIHW, Order::kOHWI};  // channels first, and last
constexpr ops::Path kPaths[] = {ops::Path::kFactored, ops::Path::kRebuilt};

TEST_P(CpuForward, BaseOfEveryType) {
  for (const LayerCase &layer : kLayers)
    for (lyc_dtype x_type : kTypes)
      for (lyc_dtype w_type : kTypes) {
        const std::vector<double> want = Call(layer, x_type, w_type, LYC_DTYPE_F32).want();
        for (Order order : kOrders)
          for (lyc_dtype y_type : kTypes) {
            Call call(layer, x_type, w_type, y_type, order);
            EXPECT_TRUE(near(call.run(context_), want, call.allowed()))
                << layer.name << " " << dtype_name(x_type) << " " << dtype_name(w_type) << " " << dtype_name(y_type);
          }
      }
}

TEST_P(CpuForward, ScaledRows) {
  for (const LayerCase &layer : kLayers)
    for (Order order : kOrders)
      for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F32})
        for (ops::Path path : kPaths) {
          Call call(layer, dtype, dtype, LYC_DTYPE_F32, order);
          call.scale_rows();
          EXPECT_TRUE(near(call.run(context_, path), call.want(), call.allowed())) << layer.name;
        }
}

// Narrow halves and wide ones, whose results lie otherwise in between.
TEST_P(CpuForward, KroneckerProducts) {
  const LayerCase layers[] = {{"linear", {70, 64}, {130, 64}, {}},
                              {"linear_wide", {71, 36}, {140, 36}, {}},
                              {"linear_one", {1, 36}, {140, 36}, {}},
                              {"conv2d", {2, 6, {5, 7}}, {12, 6, {3, 3}}, window(1, 1, 1, 1, 2)},
                              {"conv2d_wide", {1, 6, {5, 7}}, {140, 6, {3, 3}}, window(1, 1, 1, 1, 2)}};
  for (const LayerCase &layer : layers)
    for (Order order : kOrders)
      for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F32})
        for (ops::Path path : kPaths) {
          Call call(layer, dtype, dtype, LYC_DTYPE_F32, order);
          call.add_kronecker(2, layer.weight.in % 4 ? 3 : 4, dtype);
          EXPECT_TRUE(near(call.run(context_, path), call.want(), call.allowed())) << layer.name;
        }
}

// Blocks, stages, orders, limits, series of any kind, prepared or not: the activations are turned, or the weight.
TEST_P(CpuForward, RotationsOfInputs) {
  const LayerCase layers[] = {{"linear", {100, 96}, {70, 96}, {}},
                              {"linear_one", {1, 64}, {33, 64}, {}},
                              {"conv2d", {2, 48, {5, 7, 1}}, {70, 48}, window(1, 1, 0, 1, 2)},
                              {"conv2d_apart", {3, 32, {9, 6, 1}}, {9, 32}, window(1, 2, 1, 1, 2)}};
  Random random(29);
  int rescaled = 0;
  for (int repeat = 0; repeat < 40; ++repeat)
    for (const LayerCase &layer : layers) {
      TermChoice term;
      term.kind = ops::TermKind::kRotation;
      do term.rotation = random_rotation(layer.weight, random);
      while (term.rotation.axis != ops::Rotation::Axis::kIn);
      const lyc_dtype dtype = random.one_of({LYC_DTYPE_BF16, LYC_DTYPE_F32});
      const bool whole = random.chance(0.7);
      TargetChoice target;
      target.shape = layer.weight;
      target.base_dtype = target.out_dtype = dtype;
      target.adapters = {{{term}}};
      WeightCase changed(static_cast<std::uint64_t>(repeat));
      changed.add(target);
      if (random.chance(0.3)) prepare(changed);
      const auto call = [&] {
        auto one = std::make_unique<Call>(layer, dtype, dtype, LYC_DTYPE_F32, repeat % 2 ? Order::kOIHW : Order::kOHWI);
        one->take(changed);
        if (!whole) one->add_to_zero();
        return one;
      };
      const bool rescales = term.rotation.rescale;
      const bool all = changed.terms()[0].coefficient == 1.0 && changed.rotations()[0].extent() == layer.weight.in;
      if (rescales && !(whole && all)) {
        EXPECT_THROW(call()->prepare(context_, ops::Path::kFactored), Error);
        continue;
      }
      EXPECT_TRUE(near(call()->run(context_, ops::Path::kFactored), call()->run(context_, ops::Path::kRebuilt),
                       call()->allowed()))
          << layer.name << ", " << repeat << ": " << term.rotation.stages << " stages";
      rescaled += rescales;
    }
  EXPECT_GT(rescaled, 0);
}

TEST_P(CpuForward, ThreadsChangeNoBit) {
  for (const LayerCase &layer : kLayers) {
    Call call(layer, LYC_DTYPE_BF16, LYC_DTYPE_BF16, LYC_DTYPE_F32);
    call.scale_rows();
    const std::vector<double> want = call.run(context_);
    for (int threads : {1, 3}) {
      ops::BackendContext other(threads, *GetParam());
      EXPECT_EQ(call.run(other), want) << layer.name << ", " << threads << " threads";
    }
  }
}

TEST_P(CpuForward, InfinitiesAndNaNStayInTheirRows) {
  for (std::int64_t depth : {64, 35}) {
    const LayerCase layer = {"linear", {9, depth}, {7, depth}, {}};
    Call call(layer, LYC_DTYPE_BF16, LYC_DTYPE_BF16, LYC_DTYPE_BF16);
    set(call.x, offset_of(call.x, 2, depth - 1, 0), kInfinity);
    set(call.x, offset_of(call.x, 4, 0, 0), kNaN);
    set(call.weight, offset_of(call.weight, 5, depth - 2, 0), -kInfinity);
    const std::vector<double> got = call.run(context_), want = call.want();
    for (std::size_t i = 0; i < want.size(); ++i) {
      if (std::isnan(want[i]))
        EXPECT_TRUE(std::isnan(got[i])) << i;
      else if (std::isinf(want[i]))
        EXPECT_EQ(got[i], want[i]) << i;
      else
        EXPECT_NEAR(got[i], want[i], 0.01 * std::abs(want[i]) + 0.01) << i;
    }
  }
}

// As pairs of bf16 they may count as zero, which is less than anyone sees; otherwise they are what they are.
TEST_P(CpuForward, Denormals) {
  constexpr double kSmall = 0x1p-128, kSmallest = 0x1p-126;
  const LayerCase layer = {"linear", {100, 33}, {7, 33}, {}};
  for (lyc_dtype w_type : {LYC_DTYPE_BF16, LYC_DTYPE_F32}) {
    Call call(layer, LYC_DTYPE_BF16, w_type, LYC_DTYPE_F32);
    for (std::int64_t n = 0; n < call.x.out; ++n)
      for (std::int64_t i = 0; i < call.x.in; ++i) set(call.x, offset_of(call.x, n, i, 0), i % 2 ? kSmall : -1.0);
    for (std::int64_t o = 0; o < call.weight.out; ++o)
      for (std::int64_t i = 0; i < call.weight.in; ++i)
        set(call.weight, offset_of(call.weight, o, i, 0), i % 2 ? 2.0 : 0.0);
    const bool pairs = GetParam()->split || (w_type == LYC_DTYPE_BF16 && GetParam()->pair_product);
    for (double value : call.run(context_))
      EXPECT_NEAR(value, 16.0 * 2.0 * kSmall, pairs ? 16.0 * 2.0 * kSmallest : 0.0) << dtype_name(w_type);
  }
}

TEST_P(CpuForward, ExplainSaysWhetherPairsAreMultiplied) {
  const auto pairs = testing::HasSubstr("by pairs");
  for (lyc_dtype x_type : kTypes)
    for (lyc_dtype w_type : kTypes) {
      const Call call(kLayers[0], x_type, w_type, LYC_DTYPE_BF16);
      const std::string text = cpu::explain(*call.prepare(context_));
      if (GetParam()->split || (GetParam()->pair_product && x_type == LYC_DTYPE_BF16 && w_type == LYC_DTYPE_BF16))
        EXPECT_THAT(text, pairs);
      else
        EXPECT_THAT(text, testing::Not(pairs));
    }
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, CpuForward, testing::ValuesIn(cpu::supported_kernels()),
                         [](const auto &param) {
                           std::string name = param.param->name;
                           name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
                           return name;
                         });

}  // namespace
}  // namespace lyc::test
