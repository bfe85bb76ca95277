// The CPU's back-end table.
#include "ops/backend.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "base/error.hpp"
#include "base/os.hpp"
#include "cpu/context.hpp"
#include "cpu/forward_plan.hpp"
#include "cpu/processor.hpp"
#include "cpu/singular.hpp"
#include "cpu/weight_plan.hpp"
#include "ops/guard.hpp"

namespace lyc::cpu {
namespace {

using ops::BackendContext;
using ops::Failure;
using ops::ForwardPlan;
using ops::guard;
using ops::WeightPlan;

constexpr std::align_val_t kAlignment{256};

lyc_status device_count(std::int32_t *count, Failure *) {
  *count = 1;
  return LYC_OK;
}

void check_device(std::int32_t index) {
  if (index != 0) fail(LYC_ERROR_NOT_FOUND, "cpu device ", index, ", there is only 0");
}

lyc_status device_info(std::int32_t index, lyc_device_info *info, Failure *failure) {
  return guard(failure, [&] {
    check_device(index);
    info->multiprocessors = os::cpu_count();
    info->compute_major = info->compute_minor = 0;
    info->memory_bytes = os::physical_memory();
    std::snprintf(info->name, sizeof info->name, "%s", supported_kernels().front()->name);
  });
}

lyc_status context_create(const ops::BackendContextOptions *options, BackendContext **context, Failure *failure) {
  *context = nullptr;
  return guard(failure, [&] {
    check_device(options->device_index);
    require(options->threads >= 0, "threads is ", options->threads, ", must not be negative");
    const int threads = options->threads ? options->threads : os::cpu_count();
    *context = new BackendContext(threads, *supported_kernels().front());
  });
}

void context_destroy(BackendContext *context) { delete context; }

std::int32_t context_threads(const BackendContext *context) { return context->pool.threads(); }

lyc_status memory_allocate(BackendContext *, std::size_t size, void *, void **memory, Failure *failure) {
  *memory = nullptr;
  return guard(failure, [&] { *memory = ::operator new(std::max<std::size_t>(size, 1), kAlignment); });
}

void memory_release(BackendContext *, void *memory, std::size_t, void *) { ::operator delete(memory, kAlignment); }

lyc_status memory_copy(BackendContext *, void *to, const void *from, std::size_t size, Failure *) {
  if (size) std::memcpy(to, from, size);
  return LYC_OK;
}

lyc_status weight_prepare(BackendContext *context, const ops::WeightBatch *batch, WeightPlan **plan, Failure *failure) {
  *plan = nullptr;
  return guard(failure, [&] { *plan = prepare(*context, *batch).release(); });
}

void weight_info(const WeightPlan *plan, ops::WeightPlanInfo *info) {
  constexpr std::uint64_t kUnit = 256;
  *info = {(plan->workspace_floats * sizeof(float) + kUnit - 1) / kUnit * kUnit, 0, 0};
}

lyc_status weight_run(WeightPlan *plan, const ops::RunOptions *options, Failure *failure) {
  return guard(failure, [&] { run(*plan, *options); });
}

template <typename Plan>
std::size_t put_explanation(const Plan &plan, char *buffer, std::size_t capacity) {
  std::size_t length = 0;
  guard(nullptr, [&] {
    const std::string text = explain(plan);
    length = text.size();
    if (capacity) std::snprintf(buffer, capacity, "%s", text.c_str());
  });
  return length;
}

std::size_t weight_explain(const WeightPlan *plan, char *buffer, std::size_t capacity) {
  return put_explanation(*plan, buffer, capacity);
}

void weight_release(WeightPlan *plan) { delete plan; }

lyc_status rotation_prepare(BackendContext *context, const ops::Rotation *rotation, const ops::Operand *rests, void *,
                            Failure *failure) {
  return guard(failure, [&] { prepare_rotation(*context, *rotation, *rests); });
}

lyc_status singular_triplets(BackendContext *, const ops::Operand *matrix, std::int64_t first, const ops::Operand *u,
                             const ops::Operand *sigma, const ops::Operand *v, void *, Failure *failure) {
  return guard(failure, [&] { cpu::singular_triplets(*matrix, first, *u, *sigma, *v); });
}

lyc_status dora_norms(BackendContext *context, const ops::WeightBatch *batch, float *norms, Failure *failure) {
  return guard(failure, [&] {
    const std::unique_ptr<WeightPlan> plan = prepare_norms(*context, *batch);
    const std::size_t size = std::max<std::size_t>(plan->workspace_floats * sizeof(float), 1);
    const auto release = [](void *memory) { ::operator delete(memory, kAlignment); };
    const std::unique_ptr<void, decltype(release)> workspace(::operator new(size, kAlignment), release);
    run_norms(*plan, nullptr, workspace.get(), norms);
  });
}

lyc_status forward_prepare(BackendContext *context, const ops::Forward *forward, ForwardPlan **plan, Failure *failure) {
  *plan = nullptr;
  return guard(failure, [&] { *plan = prepare(*context, *forward).release(); });
}

void forward_info(const ForwardPlan *plan, ops::ForwardPlanInfo *info) { *info = {workspace_size(*plan), 0, 0}; }

lyc_status forward_run(ForwardPlan *plan, const ops::ForwardRun *options, Failure *failure) {
  return guard(failure, [&] { run(*plan, *options); });
}

std::size_t forward_explain(const ForwardPlan *plan, char *buffer, std::size_t capacity) {
  return put_explanation(*plan, buffer, capacity);
}

void forward_release(ForwardPlan *plan) { delete plan; }

constexpr ops::Backend kBackend = {
    sizeof(ops::Backend),
    LYC_DEVICE_CPU,
    LYCORIS_VERSION,
    device_count,
    device_info,
    context_create,
    context_destroy,
    context_threads,
    memory_allocate,
    memory_release,
    memory_copy,
    memory_copy,
    nullptr,  // its memory is CPU memory: no pinned memory, no streams
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    weight_prepare,
    weight_info,
    weight_run,
    weight_explain,
    weight_release,
    rotation_prepare,
    singular_triplets,
    dora_norms,
    forward_prepare,
    forward_info,
    forward_run,
    forward_explain,
    forward_release,
};

}  // namespace
}  // namespace lyc::cpu

namespace lyc::ops {

const Backend *cpu_backend() { return &cpu::kBackend; }

}  // namespace lyc::ops
