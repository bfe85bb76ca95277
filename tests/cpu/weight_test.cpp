#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <thread>

#include "cpu/context.hpp"
#include "ops/backend.hpp"
#include "reference/weight_reference.hpp"
#include "support/tolerance.hpp"
#include "support/weight_case.hpp"

namespace lyc::test {
namespace {

using ops::DoraAxis;
using ops::DoraRule;
using ops::TermKind;
using ops::WeightOp;

/// A batch prepared on a context; the workspace is poisoned before every run.
class Prepared {
 public:
  Prepared(ops::BackendContext &context, const ops::WeightBatch &batch) {
    ops::Failure failure = {};
    const lyc_status status = ops::cpu_backend()->weight_prepare(&context, &batch, &plan_, &failure);
    if (status != LYC_OK) throw std::runtime_error(failure.message);
    EXPECT_EQ(workspace_size() % 256, 0u);
    workspace_.resize(workspace_size() / sizeof(float) + 64 + 64, kPoison);
  }
  ~Prepared() { ops::cpu_backend()->weight_release(plan_); }
  Prepared(const Prepared &) = delete;

  lyc_status run(WeightOp op, const std::vector<float> &multipliers) {
    std::fill(workspace_.begin(), workspace_.end(), kPoison);
    void *start = workspace_.data();
    std::size_t space = workspace_.size() * sizeof(float);
    std::align(256, 1, start, space);
    const ops::RunOptions options = {op, 0, multipliers.data(), nullptr, start};
    ops::Failure failure = {};
    return ops::cpu_backend()->weight_run(plan_, &options, &failure);
  }

  std::uint64_t workspace_size() const {
    ops::WeightPlanInfo info;
    ops::cpu_backend()->weight_info(plan_, &info);
    return info.workspace_size;
  }

  std::string explain() {
    std::string text(ops::cpu_backend()->weight_explain(plan_, nullptr, 0) + 1, '\0');
    ops::cpu_backend()->weight_explain(plan_, text.data(), text.size());
    return text;
  }

 private:
  static constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();
  ops::WeightPlan *plan_ = nullptr;
  std::vector<float> workspace_;
};

/// The bytes that out has after a run; out and, in place, base are put back to what they were.
std::vector<std::vector<double>> results(ops::BackendContext &context, WeightCase &c, WeightOp op) {
  std::vector<std::vector<double>> before, after;
  for (const ops::WeightTarget &target : c.targets()) before.push_back(values(target.out));
  Prepared prepared(context, c.batch());
  EXPECT_EQ(prepared.run(op, c.multipliers), LYC_OK);
  for (const ops::WeightTarget &target : c.targets()) after.push_back(values(target.out));
  for (std::size_t t = 0; t < before.size(); ++t) {
    const ops::Operand &out = c.targets()[t].out;
    std::size_t index = 0;
    for (std::int64_t o = 0; o < out.out; ++o)
      for (std::int64_t i = 0; i < out.in; ++i)
        for (std::int64_t k = 0; k < out.kernel_size(); ++k) set(out, offset_of(out, o, i, k), before[t][index++]);
  }
  EXPECT_TRUE(c.arena().guards_intact());
  return after;
}

void expect_reference(std::initializer_list<ops::BackendContext *> contexts, WeightCase &c, WeightOp op) {
  const auto want = reference_weight(c.batch(), op, c.multipliers.data());
  for (ops::BackendContext *context : contexts) {
    const auto got = results(*context, c, op);
    for (std::size_t t = 0; t < want.size(); ++t)
      EXPECT_TRUE(
          near(got[t], want[t], tolerance(c.targets()[t].out.dtype, c.targets()[t].out.numel(), want[t].size())))
          << "target " << t << " op " << static_cast<int>(op);
  }
}

void expect_reference(ops::BackendContext &context, WeightCase &c, WeightOp op) { expect_reference({&context}, c, op); }

// The same with norms that are made beforehand, of the one adapter, unless the multiplier changes them.
void expect_prepared(ops::BackendContext &context, WeightCase &c, WeightOp op) {
  ops::Adapter &adapter = c.adapters()[0];
  if (adapter.dora_rule == DoraRule::kPeft) return;
  std::vector<float> norms(static_cast<std::size_t>(adapter.magnitude.numel()));
  const ops::WeightBatch batch = c.batch();
  ops::Failure failure = {};
  ASSERT_EQ(ops::cpu_backend()->dora_norms(&context, &batch, norms.data(), &failure), LYC_OK) << failure.message;
  adapter.norms = norms_from(adapter, norms.data());
  expect_reference(context, c, op);
  adapter.norms = {};
}

bool invertible(const WeightCase &c) {
  const ops::WeightBatch batch = c.batch();
  return std::all_of(batch.adapters, batch.adapters + batch.adapter_count,
                     [](const ops::Adapter &a) { return a.dora_axis == DoraAxis::kNone && !a.replaces; }) &&
         std::none_of(batch.terms, batch.terms + batch.term_count,
                      [](const ops::Term &term) { return ops::reads_base(term.kind); });
}

TargetChoice simple(const Shape &shape, const TermChoice &term, DoraAxis axis = DoraAxis::kNone,
                    DoraRule rule = DoraRule::kInterpolate) {
  TargetChoice target;
  target.shape = shape;
  target.adapters = {{{term}, axis, rule}};
  return target;
}

constexpr TermKind kKinds[] = {TermKind::kProduct, TermKind::kHadamard,     TermKind::kKronecker,
                               TermKind::kSparse,  TermKind::kBaseHadamard, TermKind::kBaseProduct};

// -- On every instruction set ------------------------------------------------------------------------------------

class CpuWeight : public testing::TestWithParam<const cpu::Kernels *> {
 protected:
  ops::BackendContext context_{2, *GetParam()};
};

TEST_P(CpuWeight, RandomTargetsMatchReference) {
  for (std::uint64_t seed = 0; seed < 240; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    WeightCase c(seed);
    c.add(random_target(random));
    expect_reference(context_, c, WeightOp::kMerge);
    expect_reference(context_, c, WeightOp::kDiff);
    if (invertible(c)) expect_reference(context_, c, WeightOp::kUnmerge);
    if (HasFailure()) return;
  }
}

TEST_P(CpuWeight, RandomRotationsMatchReference) {
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    WeightCase c(seed);
    c.add(random_target(random, true));
    expect_reference(context_, c, WeightOp::kMerge);
    expect_reference(context_, c, WeightOp::kDiff);
    if (HasFailure()) return;
  }
}

TEST_P(CpuWeight, DoraOnEveryTermAxisAndRule) {
  for (TermKind kind : kKinds)
    for (DoraAxis axis : {DoraAxis::kOut, DoraAxis::kIn})
      for (DoraRule rule : {DoraRule::kInterpolate, DoraRule::kLycoris, DoraRule::kPeft})
        for (Order order : {Order::kOIHW, Order::kHWIO, Order::kOHWI}) {
          WeightCase c(static_cast<std::uint64_t>(kind) * 100 + static_cast<std::uint64_t>(rule));
          TermChoice term;
          term.kind = kind;
          term.p_out = term.p_in = 5;
          TargetChoice target = simple({35, 30, {3, 2, 1}}, term, axis, rule);
          target.base_order = target.out_order = order;
          c.add(target);
          expect_reference(context_, c, WeightOp::kMerge);
          expect_reference(context_, c, WeightOp::kDiff);
          if (rule == DoraRule::kLycoris) expect_prepared(context_, c, WeightOp::kMerge);
        }
}

TEST_P(CpuWeight, WideRowsCrossTiles) {
  for (Order order : {Order::kOIHW, Order::kHWIO})
    for (DoraAxis axis : {DoraAxis::kNone, DoraAxis::kOut, DoraAxis::kIn}) {
      WeightCase c(7);
      TermChoice term;
      term.kind = TermKind::kKronecker;
      term.p_out = 11;
      term.p_in = 9;
      TargetChoice target = simple({1111, 1107, {1, 1, 1}}, term, axis);
      target.base_order = target.out_order = order;
      c.add(target);
      expect_reference(context_, c, WeightOp::kMerge);
    }
}

// Products of bf16 factors, which some tables multiply by pairs or by tile registers: whole tiles, ends of both sides
// and of the rank, and beside other terms.
TEST_P(CpuWeight, ProductsOfBf16Factors) {
  for (const Shape &shape : {Shape{13, 65, {3, 1, 1}}, Shape{48, 256, {1, 1, 1}}, Shape{35, 1280, {1, 1, 1}}})
    for (std::int64_t rank : {1, 2, 7, 32, 130})
      for (DoraAxis axis : {DoraAxis::kNone, DoraAxis::kOut, DoraAxis::kIn})
        for (Order order : {Order::kOIHW, Order::kHWIO}) {
          SCOPED_TRACE(testing::Message()
                       << shape.out << " rows, rank " << rank << ", axis " << static_cast<int>(axis));
          WeightCase c(static_cast<std::uint64_t>(rank));
          c.factor_dtype = LYC_DTYPE_BF16;
          TermChoice term, other;
          term.rank = rank;
          term.scalar = true;
          other.kind = TermKind::kSparse;
          TargetChoice target = simple(shape, term, axis);
          if (rank == 7) target.adapters[0].terms.push_back(other);
          if (rank % 4 == 2) target.adapters[0].terms[0].kind = TermKind::kHadamard;
          target.base_dtype = target.out_dtype = rank == 32 ? LYC_DTYPE_F16 : rank % 2 ? LYC_DTYPE_F32 : LYC_DTYPE_BF16;
          target.base_order = target.out_order = order;
          target.in_place = shape.out == 35;
          c.add(target);
          c.multipliers = {-0.7f};
          expect_reference(context_, c, WeightOp::kMerge);
          expect_reference(context_, c, WeightOp::kDiff);
          if (invertible(c)) expect_reference(context_, c, WeightOp::kUnmerge);
        }
}

// Norms by row, whose tiles wait for the next one's product, and by column, whose panels wait in cache: tiles and
// panels that end within, norms that go on in the next panel, rows beyond a near cache, and a weight for several
// threads.
TEST_P(CpuWeight, DoraAlone) {
  cpu::Kernels other = *GetParam();
  other.holds_panels = !other.holds_panels;
  ops::BackendContext others(3, other);
  constexpr lyc_dtype kTypes[] = {LYC_DTYPE_F32, LYC_DTYPE_BF16, LYC_DTYPE_F16};
  std::size_t choice = 0;
  for (const Shape &shape : {Shape{100, 192, {1, 1, 1}}, Shape{13, 128, {3, 3, 1}}, Shape{26, 64, {2, 2, 1}},
                             Shape{4102, 64, {1, 1, 1}}, Shape{1030, 256, {3, 3, 1}}})
    for (DoraAxis axis : {DoraAxis::kOut, DoraAxis::kIn})
      for (DoraRule rule : {DoraRule::kInterpolate, DoraRule::kLycoris, DoraRule::kPeft})
        for (bool in_place : {false, true}) {
          const bool by_panels = axis == DoraAxis::kIn && rule == DoraRule::kLycoris;  // which hold V, then
          if (shape.out > 1000 && rule != DoraRule::kInterpolate && !by_panels) continue;
          WeightCase c(++choice, 64);
          c.factor_dtype = choice / 2 % 2 ? LYC_DTYPE_BF16 : LYC_DTYPE_NONE;
          TermChoice term;
          term.rank = 5;
          TargetChoice target = simple(shape, term, axis, rule);
          target.base_dtype = target.out_dtype = kTypes[choice / 4 % 3];
          target.in_place = in_place;
          SCOPED_TRACE(testing::Message() << shape.out << " x " << shape.in << ", axis " << static_cast<int>(axis)
                                          << ", rule " << static_cast<int>(rule) << ", type " << target.base_dtype);
          c.add(target);
          for (WeightOp op : {WeightOp::kMerge, WeightOp::kDiff}) {
            if (in_place && op == WeightOp::kDiff) continue;
            if (axis == DoraAxis::kOut)
              expect_reference(context_, c, op);
            else
              expect_reference({&context_, &others}, c, op);
            expect_prepared(context_, c, op);
          }
        }
}

// Rows of several items, in place: what a term reads of the base must not be overwritten yet.
TEST_P(CpuWeight, TermsOnTheBaseInPlace) {
  for (TermKind kind : {TermKind::kBaseHadamard, TermKind::kBaseProduct})
    for (Order order : {Order::kOIHW, Order::kHWIO, Order::kOHWI, Order::kIOHW})
      for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_BF16})
        for (Half half : {Half::kLowRank, Half::kWhole}) {
          WeightCase c(17);
          TermChoice term;
          term.kind = kind;
          term.p = half;
          term.rank = 7;
          TargetChoice target =
              simple(half == Half::kWhole ? Shape{11, 70, {3, 3, 1}} : Shape{7, 460, {3, 3, 1}}, term);
          target.in_place = true;
          target.base_dtype = dtype;
          target.base_order = order;
          c.add(target);
          expect_reference(context_, c, WeightOp::kMerge);
        }
}

TEST_P(CpuWeight, BaseTimesValuesByRowColumnOrAll) {
  for (Half half : {Half::kByRow, Half::kByColumn, Half::kConstant})
    for (Order order : {Order::kOIHW, Order::kHWIO, Order::kOHWI, Order::kGaps})
      for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16})
        for (std::int64_t kernel : {1, 3})
          for (bool in_place : {false, true}) {
            WeightCase c(18);
            TermChoice term;
            term.kind = TermKind::kBaseHadamard;
            term.p = half;
            term.row_begin = half == Half::kByRow ? 3 : 0;
            TargetChoice target = simple({37, 290, {kernel, kernel, 1}}, term);
            target.in_place = in_place;
            target.base_dtype = target.out_dtype = dtype;
            target.base_order = target.out_order = order;
            c.add(target);
            expect_reference(context_, c, WeightOp::kMerge);
            if (!in_place) expect_reference(context_, c, WeightOp::kDiff);
          }
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, CpuWeight, testing::ValuesIn(cpu::supported_kernels()),
                         [](const auto &param) {
                           std::string name = param.param->name;
                           name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
                           return name;
                         });

// -- Properties --------------------------------------------------------------------------------------------------

class CpuBatch : public testing::Test {
 protected:
  const cpu::Kernels &kernels_ = *cpu::supported_kernels().front();
  ops::BackendContext context_{2, kernels_};
};

// Shapes large enough that both ways to deal out work occur: whole targets to threads, and tiles of one.
WeightCase mixed_case(std::uint64_t seed) {
  WeightCase c(seed);
  Random random(seed);
  for (int i = 0; i < 9; ++i) c.add(random_target(random, i % 2 == 0));
  TermChoice turning;
  turning.kind = TermKind::kRotation;
  turning.rotation.block_size = 24;
  for (Order order : {Order::kOIHW, Order::kHWIO}) {
    TargetChoice target = simple({1536, 1400, {1, 1, 1}}, turning);
    target.base_order = target.out_order = order;
    target.in_place = true;
    c.add(target);
    turning.rotation.order = ops::Rotation::Order::kInterleave;
    turning.rotation.stages = 7;
  }
  TermChoice term;
  term.rank = 3;
  c.add(simple({2048, 1030, {1, 1, 1}}, term, DoraAxis::kIn));
  return c;
}

TEST_F(CpuBatch, NumberOfThreadsDoesNotChangeABit) {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    WeightCase c = mixed_case(seed);
    ops::BackendContext one(1, kernels_), three(3, kernels_);
    const auto want = results(one, c, WeightOp::kMerge);
    EXPECT_EQ(results(context_, c, WeightOp::kMerge), want);
    EXPECT_EQ(results(three, c, WeightOp::kMerge), want);
  }
}

// Whole tiles, whose products go onto the weight at once, and the ends of rows and columns; products of one term and of
// another kind.
TEST_F(CpuBatch, DoraOfLargeWeights) {
  for (DoraAxis axis : {DoraAxis::kIn, DoraAxis::kOut})
    for (const Shape &shape : {Shape{2048, 1090, {1, 1, 1}}, Shape{1300, 131, {3, 3, 1}}, Shape{1536, 1536, {1, 1, 1}}})
      for (WeightOp op : {WeightOp::kMerge, WeightOp::kDiff}) {
        WeightCase c(21);
        TermChoice term;
        term.rank = 3;
        TargetChoice target = simple(shape, term, axis);
        target.in_place = op == WeightOp::kMerge;
        target.base_dtype = target.out_dtype = target.in_place ? LYC_DTYPE_F32 : LYC_DTYPE_BF16;
        c.add(target);
        expect_reference(context_, c, op);
      }
}

TEST_F(CpuBatch, LargeKroneckerDifferencesStream) {
  for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16}) {
    WeightCase c(22);
    TermChoice term;
    term.kind = TermKind::kKronecker;
    term.p_out = 3;
    term.p_in = 43;
    TargetChoice target = simple({1500, 1419, {1, 1, 1}}, term);
    target.out_dtype = target.base_dtype = dtype;
    c.add(target);
    expect_reference(context_, c, WeightOp::kDiff);
  }
}

TEST_F(CpuBatch, ABatchEqualsItsTargetsOneByOne) {
  WeightCase c = mixed_case(11);
  const auto together = results(context_, c, WeightOp::kMerge);
  const ops::WeightBatch batch = c.batch();
  for (std::int64_t t = 0; t < batch.target_count; ++t) {
    const std::vector<ops::WeightTarget> all = c.targets();
    c.targets() = {all[static_cast<std::size_t>(t)]};
    const auto alone = results(context_, c, WeightOp::kMerge);
    c.targets() = all;
    EXPECT_EQ(alone[0], together[static_cast<std::size_t>(t)]) << t;
  }
}

TEST_F(CpuBatch, LayoutsAgree) {
  for (TermKind kind : kKinds) {
    std::vector<double> first;
    for (Order order : {Order::kOIHW, Order::kHWIO, Order::kOHWI, Order::kGaps, Order::kIOHW}) {
      WeightCase c(5);
      TermChoice term;
      term.kind = kind;
      term.p_out = term.p_in = 3;
      TargetChoice target = simple({33, 36, {3, 3, 1}}, term);
      target.out_order = order;
      c.add(target);
      const auto got = results(context_, c, WeightOp::kMerge);
      if (first.empty()) first = got[0];
      EXPECT_TRUE(near(got[0], first, tolerance(LYC_DTYPE_F32, 1)));
    }
  }
}

TEST_F(CpuBatch, MultiplierZeroKeepsEveryBit) {
  const double odd[] = {-0.0, std::numeric_limits<double>::quiet_NaN(), 0x1p-140, 1e-45, -1.0};
  for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16})
    for (DoraAxis axis : {DoraAxis::kNone, DoraAxis::kOut, DoraAxis::kIn})
      for (DoraRule rule : {DoraRule::kInterpolate, DoraRule::kLycoris, DoraRule::kPeft})
        for (bool in_place : {false, true})
          for (Order order : {Order::kOIHW, Order::kHWIO, Order::kGaps}) {
            WeightCase c(3);
            TargetChoice target = simple({33, 70, {1, 1, 1}}, {}, axis, rule);
            target.adapters.push_back(target.adapters[0]);
            target.base_dtype = target.out_dtype = dtype;
            target.base_order = order;
            target.in_place = in_place;
            c.add(target);
            const ops::Operand &base = c.targets()[0].base, &out = c.targets()[0].out;
            for (std::int64_t i = 0; i < 5; ++i) set(base, offset_of(base, i, 2 * i, 0), odd[i]);
            const auto bits = [&](const ops::Operand &t) {
              std::vector<std::uint32_t> all;
              const std::size_t size = dtype_size(t.dtype);
              for (std::int64_t o = 0; o < t.out; ++o)
                for (std::int64_t i = 0; i < t.in; ++i) {
                  std::uint32_t element = 0;
                  std::memcpy(&element,
                              static_cast<char *>(t.data) + offset_of(t, o, i, 0) * static_cast<std::int64_t>(size),
                              size);
                  all.push_back(element);
                }
              return all;
            };
            const auto want = bits(base);
            Prepared prepared(context_, c.batch());
            ASSERT_EQ(prepared.run(WeightOp::kMerge, {0.0f, -0.0f}), LYC_OK);
            EXPECT_EQ(bits(out), want);
            if (in_place) continue;
            ASSERT_EQ(prepared.run(WeightOp::kDiff, {0.0f, 0.0f}), LYC_OK);
            EXPECT_THAT(bits(out), testing::Each(0u));
          }
}

// A broken factor of an adapter that is off must not show.
TEST_F(CpuBatch, MultiplierZeroIgnoresItsFactors) {
  for (lyc_dtype factors : {LYC_DTYPE_NONE, LYC_DTYPE_BF16})
    for (std::size_t off : {0, 1}) {
      WeightCase c(4);
      c.factor_dtype = factors;
      TargetChoice target = simple({40, 50, {1, 1, 1}}, {});
      target.adapters.push_back({{TermChoice{}}, DoraAxis::kOut, DoraRule::kLycoris});
      c.add(target);
      set(c.terms()[off].p.up, 0, std::numeric_limits<double>::infinity());
      set(c.terms()[off].p.down, 0, std::numeric_limits<double>::quiet_NaN());
      c.multipliers[off] = 0.0f;
      expect_reference(context_, c, WeightOp::kMerge);
    }
}

TEST_F(CpuBatch, UnmergeTakesBackWhatMergeAdded) {
  WeightCase c(9);
  TargetChoice target = simple({97, 65, {1, 1, 1}}, {});
  target.in_place = true;
  c.add(target);
  const std::vector<double> pristine = values(c.targets()[0].base);
  Prepared prepared(context_, c.batch());
  ASSERT_EQ(prepared.run(WeightOp::kMerge, c.multipliers), LYC_OK);
  EXPECT_FALSE(near(values(c.targets()[0].base), pristine, tolerance(LYC_DTYPE_F32, 1)));
  ASSERT_EQ(prepared.run(WeightOp::kUnmerge, c.multipliers), LYC_OK);
  EXPECT_TRUE(near(values(c.targets()[0].base), pristine, tolerance(LYC_DTYPE_F32, 1)));
}

TEST_F(CpuBatch, WhatDependsOnTheWeightCannotBeUnmerged) {
  TermChoice reads_base;
  reads_base.kind = TermKind::kBaseHadamard;
  TargetChoice replaces = simple({8, 8, {1, 1, 1}}, {});
  replaces.adapters[0].replaces = true;
  for (const TargetChoice &target :
       {simple({8, 8, {1, 1, 1}}, {}, DoraAxis::kOut), simple({8, 8, {1, 1, 1}}, reads_base), replaces}) {
    WeightCase c(9);
    c.add(target);
    Prepared prepared(context_, c.batch());
    EXPECT_EQ(prepared.run(WeightOp::kUnmerge, c.multipliers), LYC_ERROR_UNSUPPORTED);
  }
}

TEST_F(CpuBatch, ReplacingIsExactForEveryMultiplier) {
  for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_BF16}) {
    WeightCase c(10);
    c.factor_dtype = dtype;
    TermChoice whole;
    whole.p = Half::kWhole;
    TargetChoice target = simple({33, 130, {3, 1, 1}}, whole);
    target.base_dtype = target.out_dtype = dtype;
    target.adapters[0].replaces = true;
    c.add(target);
    c.terms()[0].coefficient = 1.0;
    set(c.targets()[0].base, 0, std::numeric_limits<double>::quiet_NaN());  // nobody looks at it
    for (float m : {1.0f, 0.3f, -2.0f}) {
      c.multipliers = {m};
      EXPECT_EQ(results(context_, c, WeightOp::kMerge)[0], values(c.terms()[0].p.down));
    }
  }
}

// Two that replace: D1 + D2 - W, and one of them off leaves the other.
TEST_F(CpuBatch, AdaptersThatReplaceAndAddMeet) {
  WeightCase c(12);
  TargetChoice target = simple({33, 70, {1, 1, 1}}, {});
  target.adapters.assign(3, target.adapters[0]);
  target.adapters[0].replaces = target.adapters[2].replaces = true;
  c.add(target);
  for (float m : {0.0f, 0.7f})
    for (WeightOp op : {WeightOp::kMerge, WeightOp::kDiff}) {
      c.multipliers = {0.5f, -1.5f, m};
      expect_reference(context_, c, op);
    }
}

// Starts and columns come from files.
TEST_F(CpuBatch, SparseIndicesOutOfRangeAreIgnored) {
  WeightCase c(13);
  TermChoice term;
  term.kind = TermKind::kSparse;
  c.add(simple({9, 11, {1, 1, 1}}, term));
  const ops::Sparse &sparse = c.terms()[0].sparse;
  const auto set_index = [](const ops::Operand &t, std::int64_t at, std::int64_t index) {
    std::memcpy(static_cast<std::int64_t *>(t.data) + at, &index, sizeof index);
  };
  set_index(sparse.row_starts, 3, std::numeric_limits<std::int64_t>::max());
  set_index(sparse.row_starts, 4, std::numeric_limits<std::int64_t>::min());
  set_index(sparse.columns, 0, -5);
  set_index(sparse.columns, 5, -7);
  set_index(sparse.columns, sparse.columns.out - 1, 1 << 20);
  Prepared prepared(context_, c.batch());
  EXPECT_EQ(prepared.run(WeightOp::kMerge, c.multipliers), LYC_OK);
  EXPECT_TRUE(c.arena().guards_intact());
}

TEST_F(CpuBatch, ChangedFactorsAreSeen) {
  WeightCase c(21);
  c.add(simple({30, 40, {1, 1, 1}}, {}));
  Prepared prepared(context_, c.batch());
  for (double value : {1.0, -2.0}) {
    set(c.terms()[0].p.up, 0, value);
    ASSERT_EQ(prepared.run(WeightOp::kDiff, c.multipliers), LYC_OK);
    const auto want = reference_weight(c.batch(), WeightOp::kDiff, c.multipliers.data());
    EXPECT_TRUE(near(values(c.targets()[0].out), want[0], tolerance(LYC_DTYPE_F32, 4)));
  }
}

TEST_F(CpuBatch, NullMultipliersAreOnes) {
  WeightCase c(22);
  c.add(simple({30, 40, {1, 1, 1}}, {}));
  const auto want = reference_weight(c.batch(), WeightOp::kDiff, nullptr);
  Prepared prepared(context_, c.batch());
  ASSERT_EQ(prepared.run(WeightOp::kDiff, {}), LYC_OK);
  EXPECT_TRUE(near(values(c.targets()[0].out), want[0], tolerance(LYC_DTYPE_F32, 4)));
}

TEST_F(CpuBatch, TwoUsersShareAContext) {
  WeightCase a = mixed_case(31), b = mixed_case(32);
  const auto want_a = results(context_, a, WeightOp::kMerge), want_b = results(context_, b, WeightOp::kMerge);
  std::thread other([&] { EXPECT_EQ(results(context_, b, WeightOp::kMerge), want_b); });
  EXPECT_EQ(results(context_, a, WeightOp::kMerge), want_a);
  other.join();
}

TEST_F(CpuBatch, WrongShapesAreRefused) {
  WeightCase c(23);
  c.add(simple({30, 40, {1, 1, 1}}, {}));
  c.terms()[0].p.up.in += 1;
  EXPECT_THROW(Prepared(context_, c.batch()), std::runtime_error);
  c.terms()[0].p.up.in -= 1;
  c.terms()[0].row_begin = 1;
  EXPECT_THROW(Prepared(context_, c.batch()), std::runtime_error);
  c.terms()[0].row_begin = 0;
  c.terms()[0].p.down.dtype = LYC_DTYPE_I8;
  EXPECT_THROW(Prepared(context_, c.batch()), std::runtime_error);
}

TEST_F(CpuBatch, EmptyBatchRuns) {
  Prepared prepared(context_, {});
  EXPECT_EQ(prepared.run(WeightOp::kMerge, {}), LYC_OK);
}

TEST_F(CpuBatch, TargetsSideBySideHaveRoomEach) {
  const auto size = [&](int threads, int targets) {
    ops::BackendContext context(threads, kernels_);
    WeightCase c(25);
    TermChoice term;
    term.kind = TermKind::kProduct;
    for (int i = 0; i < targets; ++i) c.add(simple({30, 40, {1, 1, 1}}, term));
    return Prepared(context, c.batch()).workspace_size();
  };
  EXPECT_GE(size(2, 4), 2 * size(1, 1));
}

TEST_F(CpuBatch, ExplainSaysWhatIsDone) {
  WeightCase c(24);
  TermChoice term;
  term.kind = TermKind::kHadamard;
  term.q = Half::kWhole;
  c.add(simple({30, 40, {1, 1, 1}}, term, DoraAxis::kOut));
  const std::string text = Prepared(context_, c.batch()).explain();
  EXPECT_THAT(text, testing::HasSubstr(kernels_.name));
  EXPECT_THAT(text, testing::HasSubstr("1 x 30 x 40 (out x in) f32, tiles 6 x 64: dora (norms by row) hadamard rank 4 "
                                       "and whole"));
}

TEST(CpuBackend, ContextAndMemory) {
  const ops::Backend &backend = *ops::cpu_backend();
  ops::Failure failure = {};
  lyc_device_info info = {};
  EXPECT_EQ(backend.device_info(0, &info, &failure), LYC_OK);
  EXPECT_STREQ(info.name, cpu::supported_kernels().front()->name);
  EXPECT_EQ(backend.device_info(1, &info, &failure), LYC_ERROR_NOT_FOUND);
  EXPECT_STREQ(failure.message, "cpu device 1, there is only 0");

  ops::BackendContext *context = nullptr;
  const ops::BackendContextOptions options = {0, 3};
  ASSERT_EQ(backend.context_create(&options, &context, &failure), LYC_OK);
  EXPECT_EQ(backend.context_threads(context), 3);
  void *memory = nullptr;
  ASSERT_EQ(backend.memory_allocate(context, 1000, nullptr, &memory, &failure), LYC_OK);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % 256, 0u);
  backend.memory_release(context, memory, 1000, nullptr);
  backend.context_destroy(context);
}

}  // namespace
}  // namespace lyc::test
