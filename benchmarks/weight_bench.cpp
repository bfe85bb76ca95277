// Merging and differences on the CPU, as shares of what the machine could do at best:
//   time at best = max(bytes / rate, operations / multiply-add rate), the rates measured in the same run.
// Bytes go by the rate of what is done with them: a weight changed in place, read and written elsewhere, or, where a
// difference reads no weight, written alone. That is measured between the repeats of each row. Norms along columns are
// known when the whole weight has been read, unless they are prepared: "in two passes" is the share if all but the
// writing is done again. Several weights take turns, so that they come from memory and not from a cache. Arguments:
// [threads [start of a line [operations]]]; threads 0 = one thread, and processor time instead of time: for a machine
// that others use too.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/os.hpp"
#include "cpu/context.hpp"
#include "machine_rates.hpp"
#include "methods.hpp"

namespace lyc::bench {
namespace {

using test::Shape;
using test::TargetChoice;
using test::WeightCase;

constexpr double kColdBytes = 100e6;
constexpr int kRepeats = 15;
constexpr std::size_t kAlignment = 64;  // as the allocators of tensors have it

struct Machine {
  Memory memory;
  double fma;
};

struct Op {
  const char *name;
  ops::WeightOp what;
  bool in_place;
};
constexpr Op kOps[] = {{"merge", ops::WeightOp::kMerge, true},
                       {"diff", ops::WeightOp::kDiff, false},
                       {"new", ops::WeightOp::kMerge, false}};  // a merge to another weight

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

void measure(ops::BackendContext &context, Machine &machine, const Method &method, const Shape &shape,
             const char *shape_name, lyc_dtype dtype, const Op &op) {
  const double size = static_cast<double>(shape.numel()) * static_cast<double>(dtype_size(dtype));
  const int targets = std::max(2, static_cast<int>(kColdBytes / size));
  TargetChoice choice;
  choice.shape = shape;
  choice.base_dtype = choice.out_dtype = dtype;
  choice.in_place = op.in_place;
  choice.adapters = {method.adapter};
  WeightCase weights(1, kAlignment);
  weights.factor_dtype = dtype;
  for (int i = 0; i < targets; ++i) weights.add(choice);
  use_family_coefficients(weights);
  std::fill(weights.multipliers.begin(), weights.multipliers.end(), 1.0f);  // as the peers have it
  std::vector<float> norms;
  if (method.prepared) use_norms(weights, norms);

  const ops::RunOptions options = {op.what, 0, weights.multipliers.data(), nullptr, nullptr};
  std::vector<Prepared> plans;
  for (int i = 0; i < targets; ++i) plans.emplace_back(context, weights.batch(i));

  const bool reads = op.what == ops::WeightOp::kMerge || method.adapter.axis != ops::DoraAxis::kNone ||
                     ops::reads_base(method.adapter.terms.back().kind);
  const Move move = op.in_place ? Move::kChange : reads ? Move::kCopy : Move::kWrite;
  const bool two_passes = method.adapter.axis == ops::DoraAxis::kIn && !method.prepared;
  double seconds = 1e30, rate = 0.0, read_rate = 0.0;
  for (int i = 0; i < kRepeats; ++i) {
    for (Prepared &plan : plans) seconds = std::min(seconds, best_seconds(1, [&] { plan.run(options); }));
    rate = std::max(rate, machine.memory.rate(move));
    if (two_passes) read_rate = std::max(read_rate, machine.memory.rate(Move::kRead));
  }

  const double bytes = size * (reads ? 2 : 1), operations = method.operations * static_cast<double>(shape.numel());
  const double memory = bytes / rate, arithmetic = operations / machine.fma;
  std::printf("%-19s %-14s %-4s %-5s %8.3f ms %5.1f of %5.1f GB/s %7.1f GFLOP/s  %s-bound  %3.0f %%", method.name,
              shape_name, dtype_name(dtype), op.name, seconds * 1e3, bytes / seconds * 1e-9, rate * 1e-9,
              operations / seconds * 1e-9, memory > arithmetic ? "memory" : "fma",
              100 * std::max(memory, arithmetic) / seconds);
  if (two_passes)
    std::printf(", in two passes %3.0f %%", 100 * std::max(size / read_rate + memory, 2 * arithmetic) / seconds);
  std::printf("\n");
  std::fflush(stdout);
}

int main(int argc, char **argv) {
  const int asked = argc > 1 ? std::atoi(argv[1]) : os::cpu_count(), threads = std::max(asked, 1);
  if (asked == 0) by_processor_time();
  const std::string filter = argc > 2 ? argv[2] : "", wanted = argc > 3 ? argv[3] : "merge diff";
  ops::BackendContext context(threads, *cpu::supported_kernels().front());
  spread(context.pool);
  Machine machine = {Memory(context.pool), fma_rate(context.pool)};
  std::printf("%s, %d threads, fma %.1f GFLOP/s\n", context.kernels.name, threads, machine.fma * 1e-9);
  const std::pair<const char *, Shape> shapes[] = {{"3072x3072", {3072, 3072, {1, 1, 1}}},
                                                   {"12288x3072", {12288, 3072, {1, 1, 1}}},
                                                   {"1280x1280x3x3", {1280, 1280, {3, 3, 1}}}};
  for (const auto &[name, shape] : shapes)
    for (Method &method : methods()) {
      if (!complete(method, shape)) continue;
      for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F32})
        for (const Op &op : kOps)
          if ((std::string(method.name) + " " + name + " " + dtype_name(dtype)).rfind(filter, 0) == 0 &&
              wanted.find(op.name) != std::string::npos)
            measure(context, machine, method, shape, name, dtype, op);
    }
  return 0;
}

}  // namespace
}  // namespace lyc::bench

int main(int argc, char **argv) { return lyc::bench::main(argc, argv); }
