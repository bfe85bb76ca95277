#include "core/execute.hpp"

#include <memory>

namespace lyc {

void run_weights(lyc_context &context, Stream &stream, const WeightArrays &arrays,
                 const std::vector<float> &multipliers, ops::WeightOp op) {
  const ops::Backend &backend = *context.backend;
  const ops::WeightBatch batch = arrays.view(static_cast<std::int32_t>(multipliers.size()));
  ops::Failure failure;
  ops::WeightPlan *prepared = nullptr;
  check(backend.weight_prepare(context.device, &batch, &prepared, &failure), failure);
  const std::unique_ptr<ops::WeightPlan, void (*)(ops::WeightPlan *)> plan(prepared, backend.weight_release);
  ops::WeightPlanInfo info{};
  backend.weight_info(plan.get(), &info);
  lyc_exec exec{};
  exec.stream = stream.handle();
  const Workspace workspace(context, exec, info.workspace_size);
  ops::RunOptions options{};
  options.op = op;
  options.multipliers = multipliers.data();
  options.stream = stream.handle();
  options.workspace = workspace.data();
  check(backend.weight_run(plan.get(), &options, &failure), failure);
  stream.wait();
}

}  // namespace lyc
