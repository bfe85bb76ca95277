// What the CUDA back end does on a GPU. Without one, every test says that it is skipped; with LYCORIS_REQUIRE_GPU=1 it
// fails instead.
#include <chrono>
#include <cstdlib>
#include <cuda.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <limits>
#include <thread>

#include "cuda/device_case.hpp"
#include "reference/weight_reference.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

using ops::WeightOp;
using testing::ElementsAreArray;
using testing::HasSubstr;

constexpr WeightOp kOps[] = {WeightOp::kMerge, WeightOp::kUnmerge, WeightOp::kDiff};

/// A case in device memory, prepared, with what a run takes.
struct Prepared {
  Prepared(const ops::Backend &backend, ops::BackendContext *context, const WeightCase &c)
      : multipliers(c.multipliers.data()),
        device(c.batch()),
        plan(backend, context, device.batch()),
        workspace(plan.info.workspace_size) {}

  void run(WeightOp op, cudaStream_t stream = nullptr) {
    plan.run(op, multipliers, stream, false, workspace.data());
    ok(cudaStreamSynchronize(stream));
  }

  /// The weights after one merge.
  std::vector<std::vector<unsigned char>> merged(cudaStream_t stream = nullptr) {
    device.reset();
    run(WeightOp::kMerge, stream);
    return device.all_bytes();
  }

  const float *multipliers;
  DeviceCase device;
  Plan plan;
  const DeviceMemory workspace;
};

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    backend_ = find_backend(LYC_DEVICE_CUDA);
    std::int32_t count = 0;
    if (backend_) backend_->device_count(&count, nullptr);
    if (count == 0) {
      if (std::getenv("LYCORIS_REQUIRE_GPU")) FAIL() << explain_backend(LYC_DEVICE_CUDA);
      GTEST_SKIP() << "skipped: no GPU";
    }
    const ops::BackendContextOptions options = {0, 0};
    ops::Failure failure = {};
    ASSERT_EQ(backend_->context_create(&options, &context_, &failure), LYC_OK) << failure.message;
  }
  void TearDown() override {
    if (context_) backend_->context_destroy(context_);
  }

  Prepared prepare(const WeightCase &c) const { return {*backend_, context_, c}; }

  void expect_reference(WeightCase &c, WeightOp op) {
    const ops::WeightBatch batch = c.batch();
    const auto want = reference_weight(batch, op, c.multipliers.data());
    Prepared gpu = prepare(c);
    gpu.run(op);
    for (std::size_t t = 0; t < want.size(); ++t) {
      const ops::Operand &out = batch.targets[t].out;
      EXPECT_TRUE(near(gpu.device.out_values(static_cast<std::int64_t>(t)), want[t],
                       tolerance(out.dtype, out.numel(), want[t].size())))
          << "target " << t << ", " << out.out << " x " << out.in << " x " << out.kernel_size() << " "
          << dtype_name(out.dtype) << "\n"
          << gpu.plan.explain();
    }
    EXPECT_TRUE(gpu.device.slack_untouched());
  }

  /// Multiplier 0 keeps every bit, whatever the weights hold: NaN of every kind, -0, infinities.
  void expect_kept(WeightCase &c, const std::vector<WeightOp> &operations) {
    Random random(32);
    std::vector<std::vector<unsigned char>> before;
    for (const ops::WeightTarget &target : c.targets()) {
      auto *bytes = static_cast<unsigned char *>(target.base.data);
      for (std::size_t b = 0; b < bytes_of(target.base); ++b) bytes[b] = static_cast<unsigned char>(random.bits());
      before.emplace_back(bytes, bytes + bytes_of(target.base));
    }
    Prepared gpu = prepare(c);
    const std::vector<float> zeros(c.multipliers.size(), 0.0f);
    gpu.multipliers = zeros.data();
    for (WeightOp op : operations) {
      gpu.run(op);
      EXPECT_EQ(gpu.device.all_bytes(), before);
    }
  }

  const ops::Backend *backend_ = nullptr;
  ops::BackendContext *context_ = nullptr;
};

class Stream {
 public:
  Stream() { ok(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Low-rank terms only, of any dtype, layout and rank.
TargetChoice low_rank_target(Random &random) {
  TargetChoice target = random_target(random);
  for (AdapterChoice &adapter : target.adapters) {
    adapter.axis = ops::DoraAxis::kNone;
    adapter.replaces = false;
    for (TermChoice &term : adapter.terms) {
      term.kind = ops::TermKind::kProduct;
      term.p = Half::kLowRank;
      term.diagonal = term.mask = false;
      term.rank = random.one_of<std::int64_t>({1, 2, 4, 5, 9, 16, 17, 33});
    }
  }
  return target;
}

AdapterChoice low_rank(std::int64_t rank, std::int64_t row_begin = 0) {
  TermChoice term;
  term.rank = rank;
  term.row_begin = row_begin;
  return {{term}};
}

/// Contiguous factors of one dtype and rank: what files hold, and what the fast kernels take.
void use_plain_factors(WeightCase &c, lyc_dtype dtype, Random &random, std::size_t first_term = 0) {
  for (std::size_t t = first_term; t < c.terms().size(); ++t) {
    const ops::Term &term = c.terms()[t];
    const std::int64_t rank = term.p.whole() ? term.q.rank() : term.p.rank();
    for (ops::Product *product : {&c.terms()[t].p, &c.terms()[t].q}) {
      if (!product->down.data) continue;
      const ops::Operand down = product->down;
      const Shape shape{product->whole() ? down.out : rank, down.in, {down.kernel[0], down.kernel[1], down.kernel[2]}};
      product->down = c.arena().random(shape, dtype, random, 0.5);
      if (product->up.data) product->up = c.arena().random({product->up.out, rank, {1, 1, 1}}, dtype, random, 0.5);
    }
  }
}

WeightCase plain_case(std::uint64_t seed, lyc_dtype weights, lyc_dtype factors, Order order, bool in_place) {
  WeightCase c(seed);
  Random random(seed + 1);
  const auto add = [&](Shape shape, std::vector<AdapterChoice> adapters) {
    c.add({shape, weights, weights, order, order, in_place, std::move(adapters)});
  };
  add({64, 64, {1, 1, 1}}, {low_rank(4)});
  add({320, 192, {1, 1, 1}}, {low_rank(16)});
  add({130, 128, {1, 1, 1}}, {low_rank(20), low_rank(8)});
  add({192, 320, {1, 1, 1}}, {low_rank(64, 7)});
  add({64, 64, {3, 3, 1}}, {low_rank(12)});
  add({111, 7, {1, 1, 1}}, {low_rank(3)});
  use_plain_factors(c, factors, random);
  return c;
}

TEST_F(Gpu, RandomLowRankTargetsMatchTheReference) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    Random random(seed);
    for (WeightOp op : kOps) {
      WeightCase c(100 + seed);
      for (int t = 0; t < 24; ++t) c.add(low_rank_target(random));
      SCOPED_TRACE(seed);
      expect_reference(c, op);
    }
  }
}

bool reads_base(const WeightCase &c) {
  const ops::WeightBatch batch = c.batch();
  return std::any_of(batch.adapters, batch.adapters + batch.adapter_count,
                     [](const ops::Adapter &a) { return a.dora_axis != ops::DoraAxis::kNone || a.replaces; }) ||
         std::any_of(batch.terms, batch.terms + batch.term_count,
                     [](const ops::Term &term) { return ops::reads_base(term.kind); });
}

TEST_F(Gpu, RandomTargetsMatchTheReference) {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    Random random(seed);
    for (WeightOp op : {WeightOp::kMerge, WeightOp::kDiff}) {
      WeightCase c(300 + seed);
      for (int t = 0; t < 24; ++t) c.add(random_target(random));
      SCOPED_TRACE(seed);
      expect_reference(c, op);
    }
  }
}

/// One kind of term at a time and what is done with it, so that a failure has a name; what some kernel is made for, and
/// what is not quite.
TEST_F(Gpu, EachFormMatchesTheReference) {
  using ops::DoraAxis;
  using ops::TermKind;
  for (TermKind kind : {TermKind::kProduct, TermKind::kHadamard, TermKind::kKronecker, TermKind::kSparse,
                        TermKind::kBaseHadamard, TermKind::kBaseProduct})
    for (Half half : {Half::kLowRank, Half::kWhole, Half::kTucker})
      for (DoraAxis axis : {DoraAxis::kNone, DoraAxis::kOut, DoraAxis::kIn})
        for (Order order : {Order::kOIHW, Order::kHWIO}) {
          SCOPED_TRACE(testing::Message()
                       << "kind " << static_cast<int>(kind) << " half " << static_cast<int>(half) << " axis "
                       << static_cast<int>(axis) << " order " << static_cast<int>(order));
          if (kind == TermKind::kSparse && half != Half::kLowRank) continue;
          TermChoice term;
          term.kind = kind;
          term.p = term.q = half;
          term.rank = 16;
          term.p_out = term.p_in = 8;
          WeightCase c(400);
          for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F32})
            for (Shape shape : {Shape{40, 64}, Shape{24, 16, {3, 1, 1}}})
              c.add({shape, dtype, dtype, order, order, dtype == LYC_DTYPE_BF16, {{{term}, axis}}});
          expect_reference(c, WeightOp::kMerge);
          if (!reads_base(c)) expect_reference(c, WeightOp::kUnmerge);
        }
}

TEST_F(Gpu, RandomRotationsMatchTheReference) {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    Random random(600 + seed);
    WeightCase c(610 + seed);
    for (int t = 0; t < 24; ++t) c.add(random_target(random, /*rotations=*/true));
    SCOPED_TRACE(seed);
    expect_reference(c, WeightOp::kMerge);
    expect_reference(c, WeightOp::kDiff);
  }
}

/// Every kernel that turns several stages at a time, with whole passes and with shorter ones.
TEST_F(Gpu, ButterfliesMatchTheReference) {
  using ops::Rotation;
  struct Turns {
    std::int64_t block, blocks;
    int stages;
  };
  WeightCase c(620);
  c.factor_dtype = LYC_DTYPE_BF16;
  int number = 0;
  for (const Turns turns : {Turns{24, 48, 5}, Turns{24, 64, 7}, Turns{24, 128, 8}, Turns{24, 512, 10}, Turns{32, 32, 6},
                            Turns{28, 24, 4}, Turns{20, 32, 6}, Turns{20, 6, 2}, Turns{8, 12, 3}, Turns{2, 16, 5}})
    for (lyc_dtype weights : {LYC_DTYPE_BF16, LYC_DTYPE_F16, LYC_DTYPE_F32}) {
      TermChoice term;
      term.kind = ops::TermKind::kRotation;
      RotationChoice &rotation = term.rotation;
      rotation.block_size = turns.block;
      rotation.stages = turns.stages;
      ++number;
      rotation.order = number % 2 ? Rotation::Order::kInterleave : Rotation::Order::kHalves;
      rotation.storage = number % 3 ? Rotation::Storage::kSquare : Rotation::Storage::kTriangle;
      rotation.map = number % 5 ? Rotation::Map::kCayley : Rotation::Map::kNeumann;
      rotation.limited = number % 4   ? Rotation::Limit::kNone
                         : number % 8 ? Rotation::Limit::kBlock
                                      : Rotation::Limit::kTogether;
      rotation.limit = 1.5;
      rotation.factor = 0.3;
      rotation.rescale = number % 7 == 0;
      const std::int64_t columns = turns.blocks > 200 ? 18 : turns.blocks > 100 ? 130 : 50 + 6 * number;
      c.add({{turns.block * turns.blocks, columns},
             weights,
             weights,
             Order::kOIHW,
             Order::kOIHW,
             number % 2 == 0,
             {{{term}}}});
    }
  for (ops::Term &term : c.terms()) term.coefficient = 1.0;
  for (const WeightOp op : {WeightOp::kMerge, WeightOp::kDiff}) expect_reference(c, op);
  for (std::size_t m = 0; m < c.multipliers.size(); m += 3) c.multipliers[m] = 0.0f;
  for (const WeightOp op : {WeightOp::kMerge, WeightOp::kDiff}) expect_reference(c, op);
}

TermChoice choice_of(ops::TermKind kind, std::int64_t rank = 16) {
  TermChoice term;
  term.kind = kind;
  term.rank = rank;
  return term;
}

TEST_F(Gpu, PlainHadamardAndDoraTargetsMatchTheReference) {
  using ops::TermKind;
  for (lyc_dtype weights : {LYC_DTYPE_BF16, LYC_DTYPE_F16, LYC_DTYPE_F32})
    for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F32})
      for (ops::DoraAxis axis : {ops::DoraAxis::kNone, ops::DoraAxis::kOut})
        for (bool in_place : {true, false}) {
          SCOPED_TRACE(testing::Message()
                       << dtype_name(weights) << " " << dtype_name(factors) << " axis " << static_cast<int>(axis));
          WeightCase c(420);
          Random random(421);
          for (Shape shape : {Shape{64, 64}, Shape{130, 320}, Shape{17, 1280}, Shape{64, 64, {3, 3, 1}}, Shape{50, 37}})
            for (TermKind kind : {TermKind::kProduct, TermKind::kHadamard})
              c.add({shape, weights, weights, Order::kOIHW, Order::kOIHW, in_place, {{{choice_of(kind)}, axis}}});
          use_plain_factors(c, factors, random);
          expect_reference(c, WeightOp::kMerge);
          expect_reference(c, WeightOp::kDiff);
        }
}

/// Of all ranks that there are instances for, alone and side by side; rows and columns that fill no panel.
TEST_F(Gpu, PanelsMatchTheReference) {
  for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F16})
    for (ops::TermKind kind : {ops::TermKind::kProduct, ops::TermKind::kHadamard})
      for (std::int64_t rank : {4, 16, 24, 32, 64, 128})
        for (bool alone : {true, false}) {
          SCOPED_TRACE(testing::Message() << dtype_name(factors) << " kind " << static_cast<int>(kind) << " rank "
                                          << rank << (alone ? " alone" : ""));
          WeightCase c(425);
          Random random(426);
          for (Shape shape : {Shape{100, 136}, Shape{1, 8}}) {
            const std::vector<AdapterChoice> adapters = {{{choice_of(kind, rank)}}};
            c.add({shape, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, alone, adapters});
            if (alone) break;
          }
          use_plain_factors(c, factors, random);
          expect_reference(c, WeightOp::kMerge);
          expect_reference(c, WeightOp::kDiff);
        }
}

/// A Kronecker product whose right half alone is low-rank.
TermChoice blocks_of_rank(std::int64_t rank, std::int64_t p_out, std::int64_t p_in) {
  TermChoice term = choice_of(ops::TermKind::kKronecker, rank);
  term.p = Half::kWhole;
  term.p_out = p_out, term.p_in = p_in;
  return term;
}

/// Blocks that end anywhere, in a step, at its end and behind it, one by one and side by side.
TEST_F(Gpu, PanelsOfKroneckerProductsMatchTheReference) {
  struct {
    std::int64_t p_out, p_in, rows, columns;
  } const grids[] = {{3, 5, 16, 8}, {4, 4, 20, 24}, {5, 3, 33, 40}, {7, 1, 17, 64}, {2, 2, 40, 72}, {1, 2, 100, 136}};
  for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F16})
    for (std::int64_t rank : {8, 16, 24, 32})
      for (std::int64_t row_begin : {0, 5, 50}) {
        SCOPED_TRACE(testing::Message() << dtype_name(factors) << " rank " << rank << " from row " << row_begin);
        const auto add = [&](WeightCase &c, Shape shape, TermChoice term, bool in_place) {
          const lyc_dtype weights = in_place ? LYC_DTYPE_BF16 : LYC_DTYPE_F16;
          term.row_begin = row_begin;
          term.scalar = in_place;
          c.factor_dtype = factors;
          c.add({shape, weights, weights, Order::kOIHW, Order::kOIHW, in_place, {{{term}}}});
        };
        std::vector<WeightCase> cases;
        WeightCase all(428);
        bool in_place = false;
        for (const auto &grid : grids) {
          const Shape shape{grid.p_out * grid.rows, grid.p_in * grid.columns};
          in_place = !in_place;
          add(all, shape, blocks_of_rank(rank, grid.p_out, grid.p_in), in_place);
          add(cases.emplace_back(429), shape, blocks_of_rank(rank, grid.p_out, grid.p_in), in_place);
        }
        add(all, {48, 16, {3, 3, 1}}, blocks_of_rank(rank, 2, 2), true);
        cases.push_back(std::move(all));
        for (WeightCase &c : cases) {
          for (WeightOp op : kOps) expect_reference(c, op);
          expect_kept(c, {WeightOp::kMerge, WeightOp::kUnmerge});
          const std::string text = prepare(c).plan.explain();
          EXPECT_THAT(text, HasSubstr("Kronecker products of up to")) << text;
          EXPECT_THAT(text, HasSubstr("1 launches, 0 bytes")) << text;
        }
      }
}

/// What the streaming kernels take: aligned 16-bit weights with factors of one dtype, contiguous.
class Streamed : public Gpu {
 protected:
  void add(Shape shape, std::vector<TermChoice> terms, ops::DoraAxis axis = ops::DoraAxis::kNone,
           ops::DoraRule rule = ops::DoraRule::kInterpolate, Order order = Order::kOIHW) {
    for (lyc_dtype weights : {LYC_DTYPE_BF16, LYC_DTYPE_F16}) {
      in_place_ = !in_place_;
      case_.add({shape, weights, weights, order, order, in_place_, {{terms, axis, rule}}});
    }
  }

  void expect_all(std::initializer_list<WeightOp> ops, const char *kernels = "streamed") {
    for (const WeightOp op : ops) expect_reference(case_, op);
    for (std::size_t m = 0; m < case_.multipliers.size(); m += 3) case_.multipliers[m] = 0.0f;
    for (const WeightOp op : ops) expect_reference(case_, op);
    const std::string text = prepare(case_).plan.explain();
    EXPECT_THAT(text, HasSubstr(kernels)) << text;
    EXPECT_THAT(text, testing::Not(HasSubstr("any kind"))) << text;
  }

  void SetUp() override {
    Gpu::SetUp();
    case_.factor_dtype = LYC_DTYPE_BF16;
  }

  WeightCase case_{700};
  bool in_place_ = false;
};

constexpr ops::DoraAxis kAxes[] = {ops::DoraAxis::kNone, ops::DoraAxis::kOut, ops::DoraAxis::kIn};

TEST_F(Streamed, KroneckerProductsMatchTheReference) {
  struct {
    std::int64_t p_out, p_in, rows, columns;
  } const grids[] = {{3, 5, 16, 32}, {2, 4, 40, 72}, {7, 1, 33, 64}, {2, 9, 64, 40}, {1, 2, 20, 320}, {4, 3, 48, 192}};
  for (const auto &grid : grids)
    for (Half half : {Half::kWhole, Half::kLowRank, Half::kTucker})
      for (ops::DoraAxis axis : kAxes) {
        TermChoice term;
        term.kind = ops::TermKind::kKronecker;
        term.p = half == Half::kWhole ? Half::kWhole : Half::kLowRank;
        term.q = half;
        term.p_out = grid.p_out;
        term.p_in = grid.p_in;
        term.scalar = half == Half::kLowRank;
        const Shape shape{grid.p_out * grid.rows, grid.p_in * grid.columns};
        const auto rule = half == Half::kWhole ? ops::DoraRule::kLycoris : ops::DoraRule::kPeft;
        add(shape, {term}, axis, rule);
        term.p_out = grid.p_in, term.p_in = grid.p_out;
        add({shape.in, shape.out}, {term}, axis, rule, Order::kHWIO);  // the same memory
        term.p_out = 2, term.p_in = 2;
        add({48, 16, {3, 3, 1}}, {term}, axis);
      }
  expect_all({WeightOp::kMerge, WeightOp::kDiff});
}

TEST_F(Streamed, LowRankDoraMatchesTheReference) {
  for (ops::DoraAxis axis : {ops::DoraAxis::kOut, ops::DoraAxis::kIn})
    for (ops::TermKind kind : {ops::TermKind::kProduct, ops::TermKind::kHadamard})
      for (std::int64_t rank : {8, 16, 32})
        for (Order order : {Order::kOIHW, Order::kHWIO}) {
          TermChoice term;
          term.kind = kind;
          term.rank = rank;
          const auto rule = rank == 8 ? ops::DoraRule::kLycoris : ops::DoraRule::kInterpolate;
          add({72, 64}, {term}, axis, rule, order);
          add({64, 1048}, {term}, axis, rule, order);
          add({304, 72}, {term}, axis, rule, order);
          if (order == Order::kOIHW) add({40, 24, {3, 3, 1}}, {term}, axis, rule);
          if (kind == ops::TermKind::kProduct && rank == 16) add({80, 320}, {term, term}, axis, rule, order);
        }
  Random random(701);
  use_plain_factors(case_, LYC_DTYPE_BF16, random);
  expect_all({WeightOp::kMerge, WeightOp::kDiff});
}

constexpr ops::DoraRule kRules[] = {ops::DoraRule::kInterpolate, ops::DoraRule::kLycoris, ops::DoraRule::kPeft};

/// Rows that one block holds, a cluster of each size, and none.
constexpr std::int64_t kWidths[] = {8, 64, 384, 392, 1288, 3072, 3080, 6144, 12288, 12296};
constexpr std::int64_t kWide = 3080;  // of more columns, few rows: the reference takes its time

TEST_F(Streamed, WholeRowsOfLowRankDoraMatchTheReference) {
  for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F16}) {
    case_ = WeightCase(702);
    std::size_t i = 0;
    for (std::int64_t columns : kWidths)
      for (std::int64_t rank : {16, 48}) {
        const std::int64_t rows = columns > kWide || i % 3 == 0 ? 5 : i % 3 == 1 ? 33 : 72;
        add({rows, columns}, {choice_of(ops::TermKind::kProduct, rank)}, ops::DoraAxis::kOut, kRules[i++ % 3]);
      }
    add({72, 24, {3, 3, 1}}, {choice_of(ops::TermKind::kProduct)}, ops::DoraAxis::kOut);
    add({40, 320, {3, 3, 1}}, {choice_of(ops::TermKind::kProduct)}, ops::DoraAxis::kOut);
    add({1288, 40}, {choice_of(ops::TermKind::kProduct)}, ops::DoraAxis::kIn, ops::DoraRule::kPeft, Order::kHWIO);
    Random random(703);
    use_plain_factors(case_, factors, random);
    expect_all({WeightOp::kMerge, WeightOp::kDiff});
  }
}

TEST_F(Streamed, WholeRowsOfHadamardDoraMatchTheReference) {
  for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F16}) {
    case_ = WeightCase(704);
    std::size_t i = 0;
    for (std::int64_t columns : kWidths)
      for (std::int64_t rank : {8, 32})
        add({columns > kWide ? 9
             : i % 2 == 0    ? 40
                             : 72,
             columns},
            {choice_of(ops::TermKind::kHadamard, rank)}, ops::DoraAxis::kOut, kRules[i++ % 3]);
    Random random(705);
    use_plain_factors(case_, factors, random);
    expect_all({WeightOp::kMerge, WeightOp::kDiff});
  }
}

/// Rows of one warp, of two and of four, and wider than what waits in shared memory; several rows a warp, too.
TEST_F(Streamed, WholeRowsOfKroneckerDoraMatchTheReference) {
  const struct {
    std::int64_t p_out, p_in, rows, columns;
  } grids[] = {{3, 1, 40, 320},  {4, 16, 40, 192}, {3, 48, 33, 64},  {2, 5, 72, 1032}, {5, 40, 32, 40},
               {2, 6, 40, 1032}, {7, 5, 3, 24},    {2, 3, 17, 1024}, {1, 2, 5, 6152},  {2, 1, 3, 12296}};
  for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F32}) {
    case_ = WeightCase(707);
    case_.factor_dtype = factors;
    std::size_t i = 0;
    for (const auto &grid : grids)
      for (Half half : {Half::kWhole, Half::kLowRank}) {
        TermChoice term = choice_of(ops::TermKind::kKronecker);
        term.p = i % 2 == 0 ? Half::kWhole : Half::kLowRank;
        term.q = half;
        term.p_out = grid.p_out;
        term.p_in = grid.p_in;
        const Shape shape{grid.p_out * grid.rows, grid.p_in * grid.columns};
        add(shape, {term}, ops::DoraAxis::kOut, kRules[i % 3]);
        if (i % 4 == 0) add(shape, {term, term}, ops::DoraAxis::kOut, kRules[i % 3]);
        for (lyc_dtype out : {LYC_DTYPE_F32, LYC_DTYPE_BF16})
          case_.add({shape,
                     LYC_DTYPE_F32,
                     out,
                     Order::kOIHW,
                     Order::kOIHW,
                     false,
                     {{{term}, ops::DoraAxis::kOut, kRules[i % 3]}}});
        ++i;
      }
    expect_all({WeightOp::kMerge, WeightOp::kDiff}, "elementwise, DoRA by rows");
  }
}

/// Many more bands than clusters, in weights of several widths, so that clusters go from one to the next.
TEST_F(Streamed, WholeRowsTakeOneLaunchAndGiveTheSameBits) {
  for (std::int64_t columns : {2696, 3072, 2888})
    for (std::int64_t rows : {33, 3072})
      add({rows, columns}, {choice_of(ops::TermKind::kProduct)}, ops::DoraAxis::kOut, kRules[columns % 3]);
  Random random(706);
  use_plain_factors(case_, LYC_DTYPE_BF16, random);
  Prepared gpu = prepare(case_);
  EXPECT_THAT(gpu.plan.explain(), HasSubstr("8 blocks"));
  EXPECT_EQ(gpu.plan.info.launches, 1) << gpu.plan.explain();
  EXPECT_EQ(gpu.plan.info.workspace_size, 0u);
  const std::vector<float> zeros(case_.multipliers.size(), 0.0f);
  const auto before = gpu.device.all_bytes();
  const auto first = gpu.merged();
  EXPECT_NE(first, before);
  DeviceMemory multipliers(case_.multipliers.size() * sizeof(float));
  multipliers.write(case_.multipliers.data());
  for (int repeat = 0; repeat < 5; ++repeat) {
    gpu.device.reset();
    gpu.plan.run(WeightOp::kMerge, static_cast<const float *>(multipliers.data()), nullptr, true);
    EXPECT_TRUE(gpu.device.all_bytes() == first);
  }
  gpu.device.reset();
  gpu.multipliers = zeros.data();
  gpu.run(WeightOp::kMerge);
  for (std::size_t t = 0; t < case_.targets().size(); ++t) {
    const ops::Operand &base = case_.targets()[t].base;
    const auto *bytes = static_cast<const unsigned char *>(base.data);
    EXPECT_TRUE(gpu.device.out_bytes(static_cast<std::int64_t>(t)) ==
                std::vector<unsigned char>(bytes, bytes + bytes_of(base)));
  }
}

TEST_F(Streamed, RotationsOfBlocksMatchTheReference) {
  for (std::int64_t block : {2, 4, 8, 16, 32})
    for (bool rescale : {false, true}) {
      TermChoice term;
      term.kind = ops::TermKind::kRotation;
      term.rotation.block_size = block;
      term.rotation.rescale = rescale;
      for (std::int64_t blocks : {1, 3, 20})
        for (Shape shape : {Shape{1, 64}, Shape{1, 1048}, Shape{1, 24, {3, 3, 1}}}) {
          shape.out = blocks * block;
          add(shape, {term});
        }
    }
  for (ops::Term &term : case_.terms()) term.coefficient = 1.0;
  expect_all({WeightOp::kMerge, WeightOp::kDiff});
}

TEST_F(Streamed, RotationsOfBlocksOfEveryKindMatchTheReference) {
  using ops::Rotation;
  int number = 0;
  for (std::int64_t block : {2, 4, 8, 16, 32})
    for (Rotation::Limit limited : {Rotation::Limit::kNone, Rotation::Limit::kBlock, Rotation::Limit::kTogether})
      for (Rotation::Map map : {Rotation::Map::kCayley, Rotation::Map::kNeumann})
        for (Rotation::Storage storage : {Rotation::Storage::kSquare, Rotation::Storage::kTriangle}) {
          TermChoice term;
          term.kind = ops::TermKind::kRotation;
          term.rotation.block_size = block;
          term.rotation.limited = limited;
          term.rotation.map = map;
          term.rotation.storage = storage;
          term.rotation.shared = number % 3 == 0;
          term.rotation.rescale = number % 4 == 0;
          term.rotation.factor = 0.3;
          term.rotation.limit = 0.7;
          add({block * (block == 32 ? 3 : 5), 72 + 8 * (number++ % 9)}, {term});
        }
  for (ops::Term &term : case_.terms()) term.coefficient = 1.0;
  expect_all({WeightOp::kMerge, WeightOp::kDiff});
}

/// Alone: fewer boxes than multiprocessors, fewer than warps of a block, and so many that rings go round.
TEST_F(Streamed, SingleRotationsOfBlocksMatchTheReference) {
  TermChoice term;
  term.kind = ops::TermKind::kRotation;
  term.rotation.block_size = 32;
  term.rotation.factor = 0.3;
  for (Shape shape : {Shape{32, 8}, Shape{96, 200}, Shape{960, 1048}, Shape{2080, 8232}}) {
    WeightCase c(701);
    c.factor_dtype = LYC_DTYPE_BF16;
    c.add({shape, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {{{term}}}});
    c.terms().back().coefficient = 1.0;
    expect_reference(c, WeightOp::kMerge);
  }
}

TEST_F(Streamed, FactorsThatARunComputesMatchTheReference) {
  TermChoice tucker, product, glora;
  tucker.p = tucker.q = Half::kTucker;
  tucker.rank = product.rank = glora.rank = 16;
  glora.kind = ops::TermKind::kBaseProduct;
  for (std::int64_t rank : {5, 16}) {
    tucker.rank = rank;
    add({72, 64}, {tucker});
    add({40, 24, {3, 3, 1}}, {tucker});
    tucker.rank = rank - 1;  // the second half of a Hadamard product has one more
    tucker.kind = ops::TermKind::kHadamard;
    add({40, 24, {3, 3, 1}}, {tucker});
    tucker.kind = ops::TermKind::kProduct;
  }
  for (Order order : {Order::kOIHW, Order::kHWIO}) {
    add({80, 320}, {glora}, ops::DoraAxis::kNone, {}, order);
    add({72, 1048}, {glora, product}, ops::DoraAxis::kNone, {}, order);
  }
  expect_all({WeightOp::kMerge, WeightOp::kDiff});
}

/// Of a cluster of each size. Of more columns, few rows: the reference takes its time.
TEST_F(Streamed, ProductsOfTheWeightMatchTheReference) {
  TermChoice glora, product;
  glora.kind = ops::TermKind::kBaseProduct;
  for (std::int64_t rank : {8, 16}) {
    glora.rank = product.rank = rank;
    add({1096, 24}, {glora, product});
    add({33, 72}, {product, glora});
    add({16, 328}, {glora});
    add({5, 776}, {glora, product});
  }
  for (std::int64_t columns : {1544, 3080})
    case_.add({{3, columns}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {{{glora, product}}}});
  Random random(723);
  use_plain_factors(case_, LYC_DTYPE_BF16, random);
  expect_all({WeightOp::kMerge, WeightOp::kDiff});
  EXPECT_THAT(prepare(case_).plan.explain(), HasSubstr("each row in 4 blocks"));
}

/// Of several adapters: the weight is multiplied by the upper factor before it is merged.
TEST_F(Streamed, ProductsOfTheWeightBesideOthersMatchTheReference) {
  TermChoice glora, product;
  glora.kind = ops::TermKind::kBaseProduct;
  const auto add_both = [&](Shape shape, std::int64_t rank) {
    glora.rank = product.rank = rank;
    case_.add({shape, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {{{glora}}, {{product}}}});
  };
  for (std::int64_t rank : {8, 16})
    for (Shape shape : {Shape{5, 64}, Shape{33, 328}, Shape{1096, 72}}) add_both(shape, rank);
  add_both({3, 3080}, 16);
  Random random(724);
  use_plain_factors(case_, LYC_DTYPE_BF16, random);
  expect_all({WeightOp::kMerge, WeightOp::kDiff});
}

/// A batch that needs all kernels that there are: for compute-sanitizer, and so that none is forgotten.
WeightCase every_kernel_case() {
  using ops::DoraAxis;
  using ops::TermKind;
  WeightCase c(430);
  Random random(431);
  const auto add = [&](Shape shape, lyc_dtype weights, lyc_dtype factors, TermChoice term, DoraAxis axis) {
    const std::size_t first_term = c.terms().size();
    c.add({shape, weights, weights, Order::kOIHW, Order::kOIHW, true, {{{term}, axis}}});
    if (term.kind != TermKind::kSparse && term.p != Half::kTucker) use_plain_factors(c, factors, random, first_term);
  };
  for (lyc_dtype weights : {LYC_DTYPE_BF16, LYC_DTYPE_F32}) {
    for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F32})
      for (TermKind kind : {TermKind::kProduct, TermKind::kHadamard}) {
        add({40, 128}, weights, factors, choice_of(kind), DoraAxis::kNone);
        if (weights == factors && weights == LYC_DTYPE_BF16 && kind == TermKind::kProduct)
          for (std::int64_t rank : {32, 64, 128})  // by panels of four kinds
            add({40, 128}, weights, factors, choice_of(kind, rank), DoraAxis::kNone);
        add({33, 50}, weights, factors, choice_of(kind), DoraAxis::kNone);
        add({40, 320}, weights, factors, choice_of(kind), DoraAxis::kOut);
      }
    TermChoice term = choice_of(TermKind::kKronecker);
    term.p_out = term.p_in = 8;
    for (DoraAxis axis : {DoraAxis::kNone, DoraAxis::kOut}) add({128, 192}, weights, LYC_DTYPE_BF16, term, axis);
  }
  TermChoice tucker = choice_of(TermKind::kProduct);
  tucker.p = tucker.q = Half::kTucker;
  add({20, 10, {3, 3, 1}}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, tucker, DoraAxis::kIn);
  add({20, 50}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, choice_of(TermKind::kSparse), DoraAxis::kNone);
  for (TermKind kind : {TermKind::kProduct, TermKind::kHadamard})  // too many ranks for all others
    for (DoraAxis axis : {DoraAxis::kNone, DoraAxis::kOut})
      add({40, 128}, LYC_DTYPE_F16, LYC_DTYPE_F16, choice_of(kind, 80), axis);
  add({40, 128}, LYC_DTYPE_F16, LYC_DTYPE_F16, choice_of(TermKind::kProduct), DoraAxis::kNone);
  // What is streamed, in every way there is, and what panels of other kinds take.
  for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F16})
    for (DoraAxis axis : kAxes) {
      add({40, 128}, factors, factors, choice_of(TermKind::kProduct, 48), axis);
      for (std::int64_t rank : {16, 32}) add({40, 128}, factors, factors, choice_of(TermKind::kHadamard, rank), axis);
      TermChoice blocks = choice_of(TermKind::kKronecker);
      blocks.p_out = blocks.p_in = 2;
      add({40, 128}, factors, factors, blocks, axis);
      if (axis == DoraAxis::kNone)
        for (std::int64_t rank : {16, 32}) add({40, 128}, factors, factors, blocks_of_rank(rank, 2, 2), axis);
    }
  TermChoice whole = choice_of(TermKind::kKronecker);  // by rows in types that are no matter elsewhere
  whole.p = whole.q = Half::kWhole;
  whole.p_out = whole.p_in = 2;
  for (lyc_dtype weights : {LYC_DTYPE_BF16, LYC_DTYPE_F16}) add({40, 128}, weights, weights, whole, DoraAxis::kOut);
  add({40, 128}, LYC_DTYPE_F32, LYC_DTYPE_BF16, whole, DoraAxis::kOut);
  for (std::int64_t columns : {576, 1008, 24592})  // with more vectors a thread, the last of them in part
    add({6, columns}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, whole, DoraAxis::kOut);
  add({40, 128}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, choice_of(TermKind::kProduct), DoraAxis::kIn);
  TermChoice rotation = choice_of(TermKind::kRotation);
  rotation.rotation.block_size = 8;
  c.factor_dtype = LYC_DTYPE_BF16;
  for (lyc_dtype weights : {LYC_DTYPE_BF16, LYC_DTYPE_F16}) {
    c.add({{40, 128}, weights, weights, Order::kOIHW, Order::kOIHW, true, {{{rotation}}}});
    c.terms().back().coefficient = 1.0;
  }
  rotation.rotation.order = ops::Rotation::Order::kInterleave;
  rotation.rotation.stages = 3;
  for (std::int64_t columns : {128, 129}) {  // several stages at a time, and one after the other
    c.add({{64, columns}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {{{rotation}}}});
    c.terms().back().coefficient = 1.0;
  }
  const auto add_butterfly = [&](lyc_dtype weights, std::int64_t block) {
    rotation.rotation.block_size = block;
    c.add({{8 * block, 128}, weights, weights, Order::kOIHW, Order::kOIHW, true, {{{rotation}}}});
    c.terms().back().coefficient = 1.0;
  };
  add_butterfly(LYC_DTYPE_BF16, 32);
  add_butterfly(LYC_DTYPE_F32, 8);
  TermChoice halves = tucker;
  halves.kind = TermKind::kHadamard;
  for (const TermChoice &term :
       {tucker, halves, choice_of(TermKind::kBaseProduct), choice_of(TermKind::kBaseProduct, 32)}) {
    c.add({{40, 128}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {{{term}}}});
    ops::Product &q = c.terms().back().q;
    if (q.up.data) q = c.terms().back().p;  // of the same rank
  }
  const AdapterChoice one = {{choice_of(TermKind::kProduct)}}, of_base = {{choice_of(TermKind::kBaseProduct)}};
  for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F16}) {
    const std::size_t first_term = c.terms().size();
    c.add({{40, 128}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {one, one}});
    use_plain_factors(c, factors, random, first_term);
  }
  for (const AdapterChoice &other : {one, of_base})
    c.add({{40, 128}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {one, other}});
  c.add({{20, 10, {3, 3, 1}}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {of_base}});
  c.multipliers.resize(100, 1.0f);  // too many to go by value
  return c;
}

TEST_F(Gpu, EveryKernelMatchesTheReference) {
  WeightCase c = every_kernel_case();
  const Prepared gpu = prepare(c);
  // Where there is a copy engine.
  constexpr int kPanels = 11, kStreamed = 15, kRows = 7, kStreamedNorms = 8, kBaseProducts = 1, kLowRank = 24,
                kElementwise = 2, kElementwiseRows = 9, kProducts = 4;
  constexpr int kRotations = 1 + 3 + 3;  // R - I, a pass of each kind and three stages
  constexpr int kTerms = 3, kMultipliers = 1;
  EXPECT_EQ(gpu.plan.info.launches, kPanels + kStreamed + kRows + kStreamedNorms + kBaseProducts + kLowRank +
                                        kElementwise + kElementwiseRows + kProducts + kRotations + kTerms +
                                        kMultipliers)
      << gpu.plan.explain();
  expect_reference(c, WeightOp::kMerge);
}

/// One weight with one elementwise term has kernels of its own, by type, operation and whether the term is times the
/// weight.
TEST_F(Gpu, EveryKernelForOneElementwiseTermMatchesTheReference) {
  using ops::TermKind;
  TermChoice blocks = choice_of(TermKind::kKronecker), computed = blocks, whole = choice_of(TermKind::kProduct);
  blocks.p_out = blocks.p_in = computed.p_out = computed.p_in = 3;
  blocks.p = blocks.q = computed.p = whole.p = Half::kWhole;
  blocks.scalar = true;
  TermChoice by_row = choice_of(TermKind::kBaseHadamard), by_column = by_row, full = by_row;
  by_row.p = Half::kByRow, by_column.p = Half::kByColumn, full.p = Half::kWhole;
  for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_BF16, LYC_DTYPE_F16})
    for (const TermChoice &term : {blocks, computed, whole, by_row, by_column, full})
      for (Order order : {Order::kOIHW, Order::kHWIO})
        for (bool in_place : {true, false}) {
          WeightCase c(440);
          Random random(441);
          c.add({{51 * 8, 27 * 8}, dtype, dtype, order, order, in_place, {{{term}}}});
          if (term.p == Half::kWhole) use_plain_factors(c, dtype, random);
          SCOPED_TRACE(testing::Message() << "kind " << static_cast<int>(term.kind) << " half "
                                          << static_cast<int>(term.p) << " order " << static_cast<int>(order));
          for (WeightOp op : {WeightOp::kMerge, WeightOp::kDiff}) expect_reference(c, op);
          if (!reads_base(c)) expect_reference(c, WeightOp::kUnmerge);
          expect_kept(c, {WeightOp::kMerge});
        }
}

/// Rows with DoRA have kernels by types, by vectors of a thread and by whether a weight is alone. Rows that fill no
/// block, vectors that fill no warp, and rows that are too wide.
TEST_F(Gpu, EveryKernelForElementwiseRowsMatchesTheReference) {
  using ops::TermKind;
  const struct {
    std::int64_t p_in, right_vectors;
    const char *kernel;
  } widths[] = {{5, 1, "2 vectors"},    {3, 13, "2 vectors"},  {5, 15, "3 vectors"}, {7, 23, "3 vectors"},
                {5, 25, "4 vectors"},   {16, 24, "4 vectors"}, {5, 77, "4 vectors"}, {7, 439, "8 vectors"},
                {3, 1400, "8 vectors"}, {1, 8193, "any"}};
  TermChoice blocks = choice_of(TermKind::kKronecker), left = blocks, right = blocks,
             difference = choice_of(TermKind::kProduct);
  blocks.p = blocks.q = left.q = right.p = difference.p = Half::kWhole;  // left and right: computed, as float32
  blocks.scalar = true;
  std::size_t i = 0;
  for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_BF16, LYC_DTYPE_F16})
    for (const auto &width : widths)
      for (TermChoice term : {blocks, left, right, difference})
        for (int weights : {1, 2}) {
          const std::int64_t in = width.p_in * width.right_vectors * (dtype == LYC_DTYPE_F32 ? 4 : 8);
          term.p_out = in > 4096 ? 1 : 3, term.p_in = width.p_in;
          WeightCase c(450);
          Random random(451);
          for (int weight = 0; weight < weights; ++weight)
            c.add({{term.p_out * (weight == 0 ? 3 : 5), in},
                   dtype,
                   dtype,
                   Order::kOIHW,
                   Order::kOIHW,
                   ++i % 2 == 0,
                   {{{term}, ops::DoraAxis::kOut, kRules[i % 3]}}});
          use_plain_factors(c, dtype, random);
          SCOPED_TRACE(testing::Message() << dtype_name(dtype) << ", " << in << " columns, " << weights << " weights");
          for (WeightOp op : {WeightOp::kMerge, WeightOp::kDiff}) expect_reference(c, op);
          EXPECT_THAT(prepare(c).plan.explain(), HasSubstr(width.kernel));
          expect_kept(c, {WeightOp::kMerge});
        }
}

TEST_F(Gpu, ACapturedBatchOfAllKernelsReplaysBitForBit) {
  WeightCase c = every_kernel_case();
  Prepared gpu = prepare(c);
  const auto eager = gpu.merged();
  const Stream stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  gpu.plan.run(WeightOp::kMerge, c.multipliers.data(), stream, false, gpu.workspace.data());
  ok(cudaStreamEndCapture(stream, &graph));
  ok(cudaGraphInstantiate(&executable, graph, 0));
  for (int replay = 0; replay < 3; ++replay) {
    gpu.device.reset();
    ok(cudaGraphLaunch(executable, stream));
    ok(cudaStreamSynchronize(stream));
    EXPECT_EQ(gpu.device.all_bytes(), eager);
  }
  ok(cudaGraphExecDestroy(executable));
  ok(cudaGraphDestroy(graph));
}

TEST_F(Gpu, MultiplierZeroKeepsEveryBitOfAllKernels) {
  WeightCase c = every_kernel_case();
  expect_kept(c, {WeightOp::kMerge});
}

TEST_F(Gpu, SeveralKroneckerAdaptersMatchTheReference) {
  for (ops::DoraAxis axis : {ops::DoraAxis::kNone, ops::DoraAxis::kOut})
    for (std::int64_t p_out : {2, 16}) {
      TermChoice term;
      term.kind = ops::TermKind::kKronecker;
      term.p_out = p_out;
      term.p_in = 4;
      term.q = Half::kWhole;
      AdapterChoice adapter{{term}, axis, ops::DoraRule::kPeft};
      WeightCase c(410);
      c.factor_dtype = LYC_DTYPE_BF16;
      for (lyc_dtype base : {LYC_DTYPE_BF16, LYC_DTYPE_F32})
        for (lyc_dtype out : {LYC_DTYPE_BF16, LYC_DTYPE_F16})
          for (std::int64_t in : {64, 3072})
            c.add({{320, in},
                   base,
                   out,
                   Order::kOIHW,
                   Order::kOIHW,
                   false,
                   axis == ops::DoraAxis::kNone ? std::vector{adapter, adapter} : std::vector{adapter}});
      expect_reference(c, WeightOp::kMerge);
      expect_reference(c, WeightOp::kDiff);
      c.multipliers[0] = c.multipliers[3] = 0.0f;
      expect_reference(c, WeightOp::kMerge);
    }
}

TEST_F(Gpu, LaunchesDoNotGrowWithTheBatch) {
  std::int32_t launches[2];
  for (int many : {0, 1}) {
    WeightCase c(500);
    for (int repeat = 0; repeat < (many ? 5 : 1); ++repeat) {
      Random random(5);
      for (int t = 0; t < 40; ++t) c.add(random_target(random));
    }
    c.multipliers.resize(500, 1.0f);
    launches[many] = prepare(c).plan.info.launches;
  }
  EXPECT_EQ(launches[0], launches[1]);
}

TEST_F(Gpu, PlainTargetsMatchTheReference) {
  std::uint64_t seed = 0;
  for (lyc_dtype weights : {LYC_DTYPE_BF16, LYC_DTYPE_F16, LYC_DTYPE_F32})
    for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F16, LYC_DTYPE_F32})
      for (Order order : {Order::kOIHW, Order::kHWIO, Order::kOHWI})
        for (WeightOp op : kOps) {
          SCOPED_TRACE(testing::Message() << dtype_name(weights) << " " << dtype_name(factors));
          ++seed;
          WeightCase c = plain_case(seed, weights, factors, order, seed % 2 == 0);
          expect_reference(c, op);
        }
}

TEST_F(Gpu, RanksThatAreStagedByTurnsMatchTheReference) {
  for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F16, LYC_DTYPE_F32}) {
    WeightCase c(9);
    Random random(10);
    c.add({{48, 128, {1, 1, 1}},
           LYC_DTYPE_F32,
           LYC_DTYPE_F32,
           Order::kOIHW,
           Order::kOIHW,
           false,
           {low_rank(200), low_rank(5), low_rank(100)}});
    c.add({{33, 50, {1, 1, 1}}, LYC_DTYPE_F32, LYC_DTYPE_F32, Order::kOIHW, Order::kOIHW, true, {low_rank(500)}});
    use_plain_factors(c, factors, random);
    for (WeightOp op : kOps) expect_reference(c, op);
  }
}

TEST_F(Gpu, MixedWeightTypesMatchTheReference) {
  WeightCase c(7);
  Random random(8);
  for (lyc_dtype base : {LYC_DTYPE_BF16, LYC_DTYPE_F16, LYC_DTYPE_F32})
    for (lyc_dtype out : {LYC_DTYPE_BF16, LYC_DTYPE_F16, LYC_DTYPE_F32})
      c.add({{96, 128, {1, 1, 1}}, base, out, Order::kOIHW, Order::kOIHW, false, {low_rank(16)}});
  use_plain_factors(c, LYC_DTYPE_BF16, random);
  for (WeightOp op : kOps) expect_reference(c, op);
}

TEST_F(Gpu, MatchesTheCpuBackEnd) {
  const ops::Backend &cpu = backend_for(LYC_DEVICE_CPU);
  const ops::BackendContextOptions options = {0, 0};
  ops::BackendContext *cpu_context = nullptr;
  ASSERT_EQ(cpu.context_create(&options, &cpu_context, nullptr), LYC_OK);
  for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F32}) {
    WeightCase c(21);
    Random random(22);
    for (Shape shape : {Shape{1280, 1280}, Shape{640, 2048}, Shape{320, 640, {3, 3, 1}}, Shape{3072, 768}})
      c.add({shape, dtype, dtype, Order::kOIHW, Order::kOIHW, true, {low_rank(16)}});
    use_plain_factors(c, dtype, random);
    Prepared gpu = prepare(c);
    gpu.run(WeightOp::kMerge);
    {
      Plan on_cpu(cpu, cpu_context, c.batch());
      std::vector<char> workspace(on_cpu.info.workspace_size + 256);
      void *start = workspace.data();
      std::size_t space = workspace.size();
      on_cpu.run(WeightOp::kMerge, c.multipliers.data(), nullptr, false, std::align(256, 1, start, space));
    }
    for (std::size_t t = 0; t < c.targets().size(); ++t)
      EXPECT_TRUE(near(gpu.device.out_values(static_cast<std::int64_t>(t)), values(c.targets()[t].out),
                       tolerance(dtype, 16, static_cast<std::size_t>(c.targets()[t].out.numel()))));
  }
  cpu.context_destroy(cpu_context);
}

TEST_F(Gpu, MultiplierZeroKeepsEveryBit) {
  for (bool in_place : {true, false})
    for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F16, LYC_DTYPE_F32}) {
      WeightCase c = plain_case(30, dtype, LYC_DTYPE_BF16, Order::kOIHW, in_place);
      expect_kept(c, {WeightOp::kMerge, WeightOp::kUnmerge});
    }
}

TEST_F(Gpu, AnAdapterThatIsOffIsNotRead) {
  WeightCase c(40);
  Random random(41);
  c.add({{128, 128, {1, 1, 1}},
         LYC_DTYPE_BF16,
         LYC_DTYPE_BF16,
         Order::kOIHW,
         Order::kOIHW,
         false,
         {low_rank(16), low_rank(8)}});
  use_plain_factors(c, LYC_DTYPE_BF16, random);
  fill(c.terms()[0].p.up, random, std::numeric_limits<double>::infinity());
  c.multipliers = {0.0f, 0.75f};
  for (WeightOp op : kOps) expect_reference(c, op);
}

TEST_F(Gpu, MultipliersComeByValueFromTheDeviceOrFromTheWorkspace) {
  WeightCase few = plain_case(50, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, false), many(51);
  Random random(52);
  for (int t = 0; t < 700; ++t)
    many.add({{16, 64, {1, 1, 1}}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, false, {low_rank(4)}});
  use_plain_factors(many, LYC_DTYPE_BF16, random);
  for (WeightCase *c : {&few, &many}) {
    const std::size_t size = c->multipliers.size() * sizeof(float);
    Prepared gpu = prepare(*c);
    DeviceMemory multipliers(size);
    EXPECT_EQ(gpu.plan.info.workspace_size > 0, c == &many);
    const auto by_value = gpu.merged();
    gpu.device.reset();
    multipliers.write(c->multipliers.data());
    gpu.plan.run(WeightOp::kMerge, static_cast<const float *>(multipliers.data()), nullptr, true);
    EXPECT_EQ(gpu.device.all_bytes(), by_value);

    const std::vector<float> ones(c->multipliers.size(), 1.0f);
    gpu.multipliers = ones.data();
    const auto with_ones = gpu.merged();
    gpu.multipliers = nullptr;
    EXPECT_EQ(gpu.merged(), with_ones);
  }
}

TEST_F(Gpu, MergeThenUnmergeGivesTheBase) {
  WeightCase c = plain_case(60, LYC_DTYPE_F32, LYC_DTYPE_BF16, Order::kOIHW, true);
  Prepared gpu = prepare(c);
  gpu.run(WeightOp::kMerge);
  gpu.run(WeightOp::kUnmerge);
  for (std::size_t t = 0; t < c.targets().size(); ++t)
    EXPECT_TRUE(
        near(gpu.device.out_values(static_cast<std::int64_t>(t)), values(c.targets()[t].base), {0x1p-18, 0x1p-20}));
}

TEST_F(Gpu, CaptureHoldsOnlyTheStatedLaunchesAndReplaysBitForBit) {
  WeightCase c = plain_case(70, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, true);
  Prepared gpu = prepare(c);
  const auto eager = gpu.merged();

  const Stream stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));  // refuses allocation and synchronisation
  gpu.plan.run(WeightOp::kMerge, c.multipliers.data(), stream);
  ok(cudaStreamEndCapture(stream, &graph));
  std::size_t count = 0;
  ok(cudaGraphGetNodes(graph, nullptr, &count));
  EXPECT_EQ(static_cast<std::int32_t>(count), gpu.plan.info.launches);
  std::vector<cudaGraphNode_t> nodes(count);
  ok(cudaGraphGetNodes(graph, nodes.data(), &count));
  for (cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type;
    ok(cudaGraphNodeGetType(node, &type));
    EXPECT_EQ(type, cudaGraphNodeTypeKernel);
  }
  ok(cudaGraphInstantiate(&executable, graph, 0));
  for (int replay = 0; replay < 3; ++replay) {
    gpu.device.reset();
    ok(cudaGraphLaunch(executable, stream));
    ok(cudaStreamSynchronize(stream));
    EXPECT_EQ(gpu.device.all_bytes(), eager);
  }
  ok(cudaGraphExecDestroy(executable));
  ok(cudaGraphDestroy(graph));
}

TEST_F(Gpu, RunsAllocateNothing) {
  WeightCase c = plain_case(80, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, false);
  Prepared gpu = prepare(c);
  gpu.run(WeightOp::kMerge);
  std::size_t before, after, total;
  ok(cudaMemGetInfo(&before, &total));
  for (int i = 0; i < 1000; ++i) gpu.plan.run(WeightOp::kMerge, c.multipliers.data());
  ok(cudaDeviceSynchronize());
  ok(cudaMemGetInfo(&after, &total));
  EXPECT_EQ(before, after);
}

TEST_F(Gpu, RunsInStreamOrderWithoutWaiting) {
  using std::chrono::milliseconds;
  WeightCase c = plain_case(90, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, false);
  Prepared gpu = prepare(c);
  const auto want = gpu.merged();
  gpu.device.reset();

  const ops::Operand base = gpu.device.batch().targets[1].base;
  DeviceMemory kept(bytes_of(base));
  ok(cudaMemcpy(kept.data(), base.data, kept.size(), cudaMemcpyDeviceToDevice));
  ok(cudaMemset(base.data, 0, kept.size()));
  ok(cudaDeviceSynchronize());
  const Stream stream;
  const auto start = std::chrono::steady_clock::now();
  ok(cudaLaunchHostFunc(
      stream, [](void *) { std::this_thread::sleep_for(milliseconds(300)); }, nullptr));
  ok(cudaMemcpyAsync(base.data, kept.data(), kept.size(), cudaMemcpyDeviceToDevice, stream));
  gpu.plan.run(WeightOp::kMerge, c.multipliers.data(), stream);
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(200));
  ok(cudaStreamSynchronize(stream));
  EXPECT_EQ(gpu.device.all_bytes(), want);
}

TEST_F(Gpu, TakesTheStreamsThatHaveNoHandle) {
  WeightCase c = plain_case(100, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, false);
  Prepared gpu = prepare(c);
  const auto want = gpu.merged();
  for (cudaStream_t stream : {cudaStreamLegacy, cudaStreamPerThread}) EXPECT_EQ(gpu.merged(stream), want);
}

/// From a thread for each, which has chosen another one.
TEST_F(Gpu, DevicesWorkSideBySide) {
  int count = 0;
  ok(cudaGetDeviceCount(&count));
  if (count < 2) GTEST_SKIP() << "skipped: one GPU";
  const auto merged = [&](int ordinal, int chosen) {
    ok(cudaSetDevice(ordinal));
    WeightCase c = plain_case(100, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, false);
    DeviceCase device(c.batch());
    ok(cudaSetDevice(chosen));
    const ops::BackendContextOptions options = {ordinal, 0};
    ops::BackendContext *context = nullptr;
    EXPECT_EQ(backend_->context_create(&options, &context, nullptr), LYC_OK);
    {
      Plan plan(*backend_, context, device.batch());
      plan.run(WeightOp::kMerge, c.multipliers.data());
    }
    backend_->context_destroy(context);
    int now = -1;
    ok(cudaGetDevice(&now));
    EXPECT_EQ(now, chosen);
    ok(cudaSetDevice(ordinal));
    ok(cudaDeviceSynchronize());
    return device.all_bytes();
  };
  const auto want = merged(0, 0);
  std::vector<std::thread> threads;
  for (int ordinal = 0; ordinal < count; ++ordinal)
    threads.emplace_back([&, ordinal] { EXPECT_EQ(merged(ordinal, (ordinal + 1) % count), want) << ordinal; });
  for (std::thread &thread : threads) thread.join();
  ok(cudaSetDevice(0));
}

TEST_F(Gpu, TwoRunsGiveTheSameBits) {
  for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F32}) {
    WeightCase c = plain_case(110, LYC_DTYPE_BF16, factors, Order::kOIHW, false);
    Prepared gpu = prepare(c);
    const auto first = gpu.merged();
    EXPECT_EQ(gpu.merged(), first);
  }
}

TEST_F(Gpu, ForeignErrorsStayWhereTheyAre) {
  WeightCase c = plain_case(120, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, true);
  DeviceCase device(c.batch());
  EXPECT_EQ(cudaMemcpy(nullptr, nullptr, 16, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  Plan plan(*backend_, context_, device.batch());
  plan.run(WeightOp::kMerge, c.multipliers.data());
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  ok(cudaDeviceSynchronize());
}

TEST_F(Gpu, LeavesAThreadWithoutContextAsItWas) {
  void *address = nullptr;
  ok(cudaGetDriverEntryPointByVersion("cuCtxGetCurrent", &address, 12000, cudaEnableDefault, nullptr));
  const auto current = reinterpret_cast<decltype(&cuCtxGetCurrent)>(address);
  WeightCase c = plain_case(130, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, true);
  DeviceCase device(c.batch());
  std::thread([&] {
    CUcontext ours = reinterpret_cast<CUcontext>(1);
    EXPECT_EQ(current(&ours), CUDA_SUCCESS);
    EXPECT_EQ(ours, nullptr);
    const ops::BackendContextOptions options = {0, 0};
    ops::BackendContext *context = nullptr;
    ASSERT_EQ(backend_->context_create(&options, &context, nullptr), LYC_OK);
    {
      Plan plan(*backend_, context, device.batch());
      plan.run(WeightOp::kMerge, c.multipliers.data());
    }
    void *memory = nullptr;
    ASSERT_EQ(backend_->memory_allocate(context, 64, nullptr, &memory, nullptr), LYC_OK);
    backend_->memory_release(context, memory, 64, nullptr);
    backend_->context_destroy(context);
    EXPECT_EQ(current(&ours), CUDA_SUCCESS);
    EXPECT_EQ(ours, nullptr);
  }).join();
}

TEST_F(Gpu, ParametersAreWrittenAndReadBack) {
  const std::vector<unsigned char> bytes = {1, 2, 3, 4, 5, 6, 7};
  std::vector<unsigned char> back(bytes.size());
  void *memory = nullptr;
  ASSERT_EQ(backend_->memory_allocate(context_, bytes.size(), nullptr, &memory, nullptr), LYC_OK);
  ASSERT_EQ(backend_->memory_write(context_, memory, bytes.data(), bytes.size(), nullptr), LYC_OK);
  ASSERT_EQ(backend_->memory_read(context_, back.data(), memory, back.size(), nullptr), LYC_OK);
  backend_->memory_release(context_, memory, bytes.size(), nullptr);
  EXPECT_THAT(back, ElementsAreArray(bytes));
}

TEST_F(Gpu, RefusesWhatItCannotCompute) {
  WeightCase c(140);
  TermChoice term;
  c.add({{8, 8, {1, 1, 1}},
         LYC_DTYPE_F32,
         LYC_DTYPE_F32,
         Order::kOIHW,
         Order::kOIHW,
         true,
         {{{term}, ops::DoraAxis::kOut}}});
  Prepared gpu = prepare(c);
  ops::Failure failure = {};
  try {
    gpu.run(WeightOp::kUnmerge);
    ADD_FAILURE() << "unmerged what depends on the weight";
  } catch (const std::runtime_error &error) {
    EXPECT_THAT(error.what(), HasSubstr("pristine"));
  }

  const ops::BackendContextOptions options = {1000, 0};
  ops::BackendContext *context = nullptr;
  EXPECT_EQ(backend_->context_create(&options, &context, &failure), LYC_ERROR_NOT_FOUND);
  EXPECT_THAT(failure.message, HasSubstr("device 1000"));
}

}  // namespace
}  // namespace lyc::test
