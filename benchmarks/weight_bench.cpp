// Merging and differences on the CPU, as shares of what the machine could do at best:
//   time at best = max(bytes / copy rate, operations / multiply-add rate), both rates measured in the same run.
// Several weights take turns, so that they come from memory and not from a cache. Arguments: [threads [start of a
// line]]; threads 0 = one thread, and processor time instead of time: for a machine that others use too.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/os.hpp"
#include "cpu/context.hpp"
#include "machine_rates.hpp"
#include "support/weight_case.hpp"

namespace lyc::bench {
namespace {

using test::AdapterChoice;
using test::Half;
using test::Shape;
using test::TargetChoice;
using test::TermChoice;
using test::WeightCase;

constexpr double kColdBytes = 100e6;
constexpr int kRepeats = 15;

struct Method {
  const char *name;
  AdapterChoice adapter;
  double operations;  // for each element of the weight
  bool only_kernels = false;
};

TermChoice term(ops::TermKind kind, Half p, Half q, std::int64_t rank, std::int64_t parts = 1) {
  TermChoice choice;
  choice.kind = kind;
  choice.p = p;
  choice.q = q;
  choice.rank = rank;
  choice.p_out = choice.p_in = parts;
  return choice;
}

TermChoice rotation(std::int64_t block, int stages, bool inputs = false) {
  TermChoice choice;
  choice.kind = ops::TermKind::kRotation;
  choice.rotation.block_size = block;
  choice.rotation.stages = stages;
  if (stages > 1) choice.rotation.order = ops::Rotation::Order::kInterleave;
  if (inputs) {
    choice.rotation.axis = ops::Rotation::Axis::kIn;
    choice.rotation.storage = ops::Rotation::Storage::kTriangle;
    choice.rotation.map = ops::Rotation::Map::kNeumann;
  }
  return choice;
}

std::vector<Method> methods() {
  using ops::TermKind;
  const Half any = Half::kLowRank;
  const TermChoice base_product = term(TermKind::kBaseProduct, Half::kLowRank, any, 16);
  TermChoice diagonal = term(TermKind::kProduct, Half::kLowRank, any, 16);
  diagonal.diagonal = true;
  const TermChoice low_rank = term(TermKind::kProduct, Half::kLowRank, Half::kLowRank, 16);
  return {
      {"locon r16", {{low_rank}}, 2 * 16},
      {"loha r16", {{term(TermKind::kHadamard, Half::kLowRank, Half::kLowRank, 16)}}, 2 * 33 + 1},
      {"lokr f16", {{term(TermKind::kKronecker, Half::kWhole, Half::kWhole, 16, 16)}}, 2},
      {"lokr f16 r16", {{term(TermKind::kKronecker, Half::kWhole, Half::kLowRank, 16, 16)}}, 2},
      {"dora out locon r16", {{low_rank}, ops::DoraAxis::kOut}, 2 * 16 + 4},
      {"dora in locon r16", {{low_rank}, ops::DoraAxis::kIn}, 2 * 16 + 4},
      {"ia3 out", {{term(TermKind::kBaseHadamard, Half::kByRow, any, 0)}}, 2},
      {"ia3 in", {{term(TermKind::kBaseHadamard, Half::kByColumn, any, 0)}}, 2},
      {"glora r16", {{low_rank, base_product}}, 3 * 2 * 16},
      {"tlora r16", {{diagonal, diagonal}}, 2 * 2 * 16},
      {"oft b32", {{rotation(32, 1)}}, 2 * 32},
      {"oft inputs b32", {{rotation(32, 1, true)}}, 2 * 32},
      {"boft b24", {{rotation(24, 8)}}, 8 * 2 * 24},
      {"boft b20", {{rotation(20, 7)}}, 7 * 2 * 20},
      {"locon tucker r16", {{term(TermKind::kProduct, Half::kTucker, any, 16)}}, 2 * 16, true},
      {"loha tucker r16", {{term(TermKind::kHadamard, Half::kTucker, Half::kTucker, 16)}}, 2 * 33 + 1, true},
      {"lokr f16 tucker r16", {{term(TermKind::kKronecker, Half::kWhole, Half::kTucker, 16, 16)}}, 2, true},
  };
}

/// Whether whole windows of the last stage make up the rows.
bool fits(const Method &method, const Shape &shape) {
  const test::RotationChoice &rotation = method.adapter.terms[0].rotation;
  return rotation.stages == 1 || shape.out % (rotation.block_size << (rotation.stages - 1)) == 0;
}

struct Rates {
  double copy, fma;
};

/// One weight on a context, with its workspace.
class Prepared {
 public:
  Prepared(ops::BackendContext &context, const ops::WeightBatch &batch) : context_(&context) {
    check(backend().weight_prepare(context_, &batch, &plan_, &failure_));
    ops::WeightPlanInfo info;
    backend().weight_info(plan_, &info);
    size_ = info.workspace_size;
    check(backend().memory_allocate(context_, size_, nullptr, &workspace_, &failure_));
  }
  Prepared(Prepared &&other) noexcept { *this = std::move(other); }
  Prepared &operator=(Prepared &&other) noexcept {
    std::swap(context_, other.context_);
    std::swap(plan_, other.plan_);
    std::swap(workspace_, other.workspace_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Prepared() {
    if (plan_) backend().weight_release(plan_);
    if (workspace_) backend().memory_release(context_, workspace_, size_, nullptr);
  }

  void run(ops::RunOptions options) {
    options.workspace = workspace_;
    check(backend().weight_run(plan_, &options, &failure_));
  }

 private:
  static const ops::Backend &backend() { return *ops::cpu_backend(); }
  void check(lyc_status status) {
    if (status != LYC_OK) throw std::runtime_error(failure_.message);
  }

  ops::BackendContext *context_ = nullptr;
  ops::WeightPlan *plan_ = nullptr;
  void *workspace_ = nullptr;
  std::size_t size_ = 0;
  ops::Failure failure_ = {};
};

void measure(ops::BackendContext &context, const Rates &rates, const Method &method, const Shape &shape,
             const char *shape_name, lyc_dtype dtype, ops::WeightOp op) {
  const double size = static_cast<double>(shape.numel()) * static_cast<double>(dtype_size(dtype));
  const int targets = std::max(2, static_cast<int>(kColdBytes / size));
  TargetChoice choice;
  choice.shape = shape;
  choice.base_dtype = choice.out_dtype = dtype;
  choice.in_place = op == ops::WeightOp::kMerge;
  choice.adapters = {method.adapter};
  WeightCase weights(1);
  weights.factor_dtype = dtype;
  for (int i = 0; i < targets; ++i) weights.add(choice);
  for (ops::Term &term : weights.terms())
    if (term.kind == ops::TermKind::kRotation) term.coefficient = 1.0;  // as families have it

  const ops::RunOptions options = {op, 0, weights.multipliers.data(), nullptr, nullptr};
  std::vector<Prepared> plans;
  for (int i = 0; i < targets; ++i) plans.emplace_back(context, weights.batch(i));
  double seconds = 1e30;
  for (int i = 0; i < kRepeats * targets; ++i)
    seconds = std::min(seconds, best_seconds(1, [&] { plans[static_cast<std::size_t>(i % targets)].run(options); }));

  const bool reads = op == ops::WeightOp::kMerge || method.adapter.axis != ops::DoraAxis::kNone ||
                     ops::reads_base(method.adapter.terms.back().kind);
  const double bytes = size * (reads ? 2 : 1), operations = method.operations * static_cast<double>(shape.numel());
  const double memory = bytes / rates.copy, arithmetic = operations / rates.fma;
  std::printf("%-19s %-14s %-4s %-5s %8.3f ms %7.1f GB/s %7.1f GFLOP/s  %s-bound  %3.0f %%\n", method.name, shape_name,
              dtype_name(dtype), op == ops::WeightOp::kMerge ? "merge" : "diff", seconds * 1e3, bytes / seconds * 1e-9,
              operations / seconds * 1e-9, memory > arithmetic ? "memory" : "fma",
              100 * std::max(memory, arithmetic) / seconds);
  std::fflush(stdout);
}

int main(int argc, char **argv) {
  const int asked = argc > 1 ? std::atoi(argv[1]) : os::cpu_count(), threads = std::max(asked, 1);
  if (asked == 0) by_processor_time();
  const std::string filter = argc > 2 ? argv[2] : "";
  ops::BackendContext context(threads, *cpu::supported_kernels().front());
  const Rates rates = {copy_rate(context.pool), fma_rate(context.pool)};
  std::printf("%s, %d threads, copy %.1f GB/s, fma %.1f GFLOP/s\n", context.kernels.name, threads, rates.copy * 1e-9,
              rates.fma * 1e-9);
  const std::pair<const char *, Shape> shapes[] = {{"3072x3072", {3072, 3072, {1, 1, 1}}},
                                                   {"12288x3072", {12288, 3072, {1, 1, 1}}},
                                                   {"1280x1280x3x3", {1280, 1280, {3, 3, 1}}}};
  for (const auto &[name, shape] : shapes)
    for (const Method &method : methods()) {
      if ((method.only_kernels && shape.kernel[0] == 1) || !fits(method, shape)) continue;
      for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F32})
        for (ops::WeightOp op : {ops::WeightOp::kMerge, ops::WeightOp::kDiff})
          if ((std::string(method.name) + " " + name).rfind(filter, 0) == 0)
            measure(context, rates, method, shape, name, dtype, op);
    }
  return 0;
}

}  // namespace
}  // namespace lyc::bench

int main(int argc, char **argv) { return lyc::bench::main(argc, argv); }
