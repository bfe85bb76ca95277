// Forward with an adapter on the CPU, base and adapter in one call: the multiplications of the base alone, as a share
// of what the machine can do at best in registers. Arguments: [threads [start of a line]]; threads 0 = one thread, and
// processor time instead of time: for a machine that others use too.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/os.hpp"
#include "cpu/context.hpp"
#include "cpu/forward_plan.hpp"
#include "machine_rates.hpp"
#include "methods.hpp"

namespace lyc::bench {
namespace {

using test::Shape;
using test::WeightCase;

constexpr int kRepeats = 9;

/// A layer: rows of a linear one, or the sides of an image.
struct Layer {
  const char *name;
  Shape weight;
  std::int64_t rows, side;
};

const Layer kLayers[] = {{"1 12288x3072", {12288, 3072, {1, 1, 1}}, 1, 1},
                         {"512 3072x3072", {3072, 3072, {1, 1, 1}}, 512, 1},
                         {"512 12288x3072", {12288, 3072, {1, 1, 1}}, 512, 1},
                         {"16x16 1280x1280x3x3", {1280, 1280, {3, 3, 1}}, 1, 16},
                         {"32x32 1280x1280x3x3", {1280, 1280, {3, 3, 1}}, 1, 32}};

ops::Activation activation(const Layer &layer, std::int64_t channels, std::vector<std::uint16_t> &memory,
                           lyc_dtype dtype) {
  ops::Activation a;
  memory.assign(static_cast<std::size_t>(layer.rows * layer.side * layer.side * channels) * dtype_size(dtype) / 2,
                0x3c00);
  a.data = memory.data();
  a.dtype = dtype;
  a.channels = channels;
  if (layer.side == 1) {
    a.space[0] = layer.rows;
    a.stride_space[0] = channels;
    a.stride_channel = 1;
  } else {
    a.space[0] = a.space[1] = layer.side;
    a.stride_space[0] = layer.side;
    a.stride_space[1] = 1;
    a.stride_channel = layer.side * layer.side;
    a.stride_batch = a.stride_channel * channels;
  }
  return a;
}

void measure(ops::BackendContext &context, double fma, const Method &method, const Layer &layer, lyc_dtype dtype) {
  WeightCase weights(1);
  weights.factor_dtype = dtype;
  test::TargetChoice choice;
  choice.shape = layer.weight;
  choice.base_dtype = choice.out_dtype = dtype;
  choice.in_place = true;
  if (!method.adapter.terms.empty()) choice.adapters = {method.adapter};
  weights.add(choice);
  use_family_coefficients(weights);
  std::vector<float> norms;
  if (method.prepared) use_norms(weights, norms);
  std::vector<std::uint16_t> x, y;
  ops::Forward forward;
  forward.x = activation(layer, layer.weight.in, x, dtype);
  forward.y = activation(layer, layer.weight.out, y, dtype);
  forward.layer.padding[0] = forward.layer.padding[1] = layer.side > 1;
  forward.weights = weights.batch();
  forward.whole = 1;
  const auto plan = cpu::prepare(context, forward);
  std::vector<char> memory(cpu::workspace_size(*plan) + 256);
  ops::ForwardRun run{};
  run.multipliers = weights.multipliers.data();
  run.workspace = memory.data() + (256 - reinterpret_cast<std::uintptr_t>(memory.data()) % 256);
  const double seconds = best_seconds(kRepeats, [&] { cpu::run(*plan, run); });
  const double operations = 2.0 * static_cast<double>(layer.weight.numel() * forward.y.positions());
  std::printf("%-19s %-20s %-4s %-8s %8.2f ms %7.1f GFLOP/s %3.0f %%\n", method.name, layer.name, dtype_name(dtype),
              plan->factored ? "factored" : "rebuilt", seconds * 1e3, operations / seconds * 1e-9,
              100 * operations / seconds / fma);
  std::fflush(stdout);
}

int main(int argc, char **argv) {
  const int asked = argc > 1 ? std::atoi(argv[1]) : os::cpu_count(), threads = std::max(asked, 1);
  if (asked == 0) by_processor_time();
  const std::string filter = argc > 2 ? argv[2] : "";
  ops::BackendContext context(threads, *cpu::supported_kernels().front());
  spread(context.pool);
  const double fma = fma_rate(context.pool);
  std::printf("%s, %d threads, fma %.1f GFLOP/s\n", context.kernels.name, threads, fma * 1e-9);
  std::vector<Method> all = methods();
  all.insert(all.begin(), Method{"base", {}});
  for (const Layer &layer : kLayers)
    for (Method method : all) {
      if (!method.adapter.terms.empty() && !complete(method, layer.weight)) continue;
      for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F32})
        if ((std::string(method.name) + " " + layer.name + " " + dtype_name(dtype)).rfind(filter, 0) == 0)
          measure(context, fma, method, layer, dtype);
    }
  return 0;
}

}  // namespace
}  // namespace lyc::bench

int main(int argc, char **argv) { return lyc::bench::main(argc, argv); }
