// A device without a device: it computes as the CPU does, but its memory has addresses of its own, at which the host
// finds nothing, and what is enqueued on a stream happens no earlier than somebody waits for it. Loaded in the place of
// the CUDA back end, it lets the sanitizers see everything that the library does around a real one.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "core/operand.hpp"
#include "ops/backend.hpp"
#include "ops/guard.hpp"

namespace lyc::test {
namespace {

using ops::BackendContext;
using ops::Failure;
using ops::guard;
using ops::Operand;

constexpr std::uintptr_t kShift = std::uintptr_t{1} << 62;  // no address of any host

const ops::Backend &cpu() { return *ops::cpu_backend(); }

/// A caller's mistake: nothing that a test could survive.
void insist(bool condition, const char *what) {
  if (condition) return;
  std::fprintf(stderr, "heap device: %s\n", what);
  std::abort();
}

/// Ranges of memory that were given out.
class Ranges {
 public:
  void add(const void *memory, std::size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ranges_[reinterpret_cast<std::uintptr_t>(memory)] = size;
  }
  void remove(const void *memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    insist(ranges_.erase(reinterpret_cast<std::uintptr_t>(memory)) == 1, "memory is released that was not given out");
  }
  bool hold(const void *memory, std::size_t size) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    auto next = ranges_.upper_bound(address);
    if (next == ranges_.begin()) return false;
    --next;
    return address + size <= next->first + next->second;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::uintptr_t, std::size_t> ranges_;
};

struct Stream {
  std::vector<std::function<void()>> work;
};

struct Context {
  BackendContext *host = nullptr;
  bool private_runs = false;
};

Ranges device_memory, pinned_memory;

Context &own(BackendContext *context) { return *reinterpret_cast<Context *>(context); }

void *to_device(void *host) { return reinterpret_cast<void *>(reinterpret_cast<std::uintptr_t>(host) + kShift); }
void *to_host(const void *device) {
  return reinterpret_cast<void *>(reinterpret_cast<std::uintptr_t>(device) - kShift);
}
bool on_device(const void *address) { return reinterpret_cast<std::uintptr_t>(address) >= kShift; }

/// The operands of a batch where the CPU finds them.
struct Plan {
  void move_all() {
    for (ops::WeightTarget &target : targets) move(target.base), move(target.out);
    for (ops::Adapter &adapter : adapters) move(adapter.magnitude);
    for (ops::Term &term : terms) {
      for (ops::Product *product : {&term.p, &term.q})
        for (Operand *operand : {&product->up, &product->core, &product->down, &product->diagonal, &product->mask})
          move(*operand);
      for (Operand *operand : {&term.scalar, &term.sparse.row_starts, &term.sparse.columns, &term.sparse.values})
        move(*operand);
    }
    for (ops::Rotation &rotation : rotations)
      for (Operand *operand : {&rotation.generators, &rotation.rescale, &rotation.prepared}) move(*operand);
  }
  /// Addresses that only describe a weight may be anywhere until a run.
  void move(Operand &operand) {
    if (!operand.data) return;
    operands.push_back(operand);
    if (on_device(operand.data)) operand.data = to_host(operand.data);
  }
  void check() const {
    for (const Operand &operand : operands)
      insist(operand.numel() == 0 || device_memory.hold(operand.data, operand_bytes(operand)),
             "a run reads or writes what is not the device's memory");
  }

  Context *context = nullptr;
  ops::WeightPlan *host = nullptr;
  std::vector<ops::WeightTarget> targets;
  std::vector<ops::Adapter> adapters;
  std::vector<ops::Term> terms;
  std::vector<ops::Rotation> rotations;
  std::vector<Operand> operands;  // where the device has them
  std::int32_t multiplier_count = 0;
  std::atomic<int> pending{0};
};

Plan &own(ops::WeightPlan *plan) { return *reinterpret_cast<Plan *>(plan); }
const Plan &own(const ops::WeightPlan *plan) { return *reinterpret_cast<const Plan *>(plan); }

lyc_status context_create(const ops::BackendContextOptions *options, BackendContext **context, Failure *failure) {
  return guard(failure, [&] {
    auto made = std::make_unique<Context>();
    made->private_runs = options->private_runs != 0;
    const ops::BackendContextOptions host = {options->device_index, 1, 0};
    if (const lyc_status status = cpu().context_create(&host, &made->host, failure))
      throw Error(status, failure->message);
    *context = reinterpret_cast<BackendContext *>(made.release());
  });
}

void context_destroy(BackendContext *context) {
  cpu().context_destroy(own(context).host);
  delete &own(context);
}

std::int32_t context_threads(const BackendContext *) { return 0; }

lyc_status memory_allocate(BackendContext *context, std::size_t size, void *stream, void **memory, Failure *failure) {
  const lyc_status status = cpu().memory_allocate(own(context).host, size, stream, memory, failure);
  if (status != LYC_OK) return status;
  std::memset(*memory, 0xff, size);
  *memory = to_device(*memory);
  device_memory.add(*memory, size);
  return LYC_OK;
}

void memory_release(BackendContext *context, void *memory, std::size_t size, void *stream) {
  const auto release = [=, host = own(context).host] {
    device_memory.remove(memory);
    cpu().memory_release(host, to_host(memory), size, nullptr);
  };
  if (stream)
    static_cast<Stream *>(stream)->work.push_back(release);
  else
    release();
}

void copy_in(void *device, const void *host, std::size_t size) {
  insist(device_memory.hold(device, size) && !on_device(host), "a copy goes to what is not the device's memory");
  std::memcpy(to_host(device), host, size);
}

void copy_out(void *host, const void *device, std::size_t size) {
  insist(device_memory.hold(device, size) && !on_device(host), "a copy comes from what is not the device's memory");
  std::memcpy(host, to_host(device), size);
}

lyc_status memory_write(BackendContext *, void *device, const void *host, std::size_t size, Failure *) {
  if (size) copy_in(device, host, size);
  return LYC_OK;
}

lyc_status memory_read(BackendContext *, void *host, const void *device, std::size_t size, Failure *) {
  if (size) copy_out(host, device, size);
  return LYC_OK;
}

lyc_status host_allocate(BackendContext *context, std::size_t size, void **memory, Failure *failure) {
  const lyc_status status = cpu().memory_allocate(own(context).host, size, nullptr, memory, failure);
  if (status == LYC_OK) pinned_memory.add(*memory, size);
  return status;
}

void host_release(BackendContext *context, void *memory) {
  pinned_memory.remove(memory);
  cpu().memory_release(own(context).host, memory, 0, nullptr);
}

lyc_status stream_create(BackendContext *, void **stream, Failure *failure) {
  return guard(failure, [&] { *stream = new Stream; });
}

void stream_destroy(BackendContext *, void *stream) {
  insist(static_cast<Stream *>(stream)->work.empty(), "a stream goes before its work has finished");
  delete static_cast<Stream *>(stream);
}

lyc_status stream_write(BackendContext *, void *stream, void *device, const void *host, std::size_t size,
                        Failure *failure) {
  insist(pinned_memory.hold(host, size), "a copy is enqueued from memory that is not pinned");
  return guard(failure, [&] { static_cast<Stream *>(stream)->work.push_back([=] { copy_in(device, host, size); }); });
}

lyc_status stream_read(BackendContext *, void *stream, void *host, const void *device, std::size_t size,
                       Failure *failure) {
  insist(pinned_memory.hold(host, size), "a copy is enqueued to memory that is not pinned");
  return guard(failure, [&] { static_cast<Stream *>(stream)->work.push_back([=] { copy_out(host, device, size); }); });
}

lyc_status stream_wait(BackendContext *, void *stream, Failure *failure) {
  return guard(failure, [&] {
    if (!stream) return;
    std::vector<std::function<void()>> work;
    work.swap(static_cast<Stream *>(stream)->work);
    for (const auto &step : work) step();
  });
}

lyc_status weight_prepare(BackendContext *context, const ops::WeightBatch *batch, ops::WeightPlan **plan,
                          Failure *failure) {
  return guard(failure, [&] {
    auto made = std::make_unique<Plan>();
    made->context = &own(context);
    made->multiplier_count = batch->multiplier_count;
    made->targets.assign(batch->targets, batch->targets + batch->target_count);
    made->adapters.assign(batch->adapters, batch->adapters + batch->adapter_count);
    made->terms.assign(batch->terms, batch->terms + batch->term_count);
    made->rotations.assign(batch->rotations, batch->rotations + batch->rotation_count);
    made->move_all();
    ops::WeightBatch moved = *batch;
    moved.targets = made->targets.data();
    moved.adapters = made->adapters.data();
    moved.terms = made->terms.data();
    moved.rotations = made->rotations.data();
    if (const lyc_status status = cpu().weight_prepare(made->context->host, &moved, &made->host, failure))
      throw Error(status, failure->message);
    *plan = reinterpret_cast<ops::WeightPlan *>(made.release());
  });
}

void weight_info(const ops::WeightPlan *plan, ops::WeightPlanInfo *info) {
  cpu().weight_info(own(plan).host, info);
  info->launches = 1;
}

lyc_status weight_run(ops::WeightPlan *handle, const ops::RunOptions *options, Failure *failure) {
  Plan &plan = own(handle);
  insist(!plan.context->private_runs || options->stream, "a context of private runs runs on another's stream");
  ops::WeightPlanInfo info{};
  cpu().weight_info(plan.host, &info);
  insist(info.workspace_size == 0 || device_memory.hold(options->workspace, info.workspace_size),
         "the workspace is not the device's memory");
  ops::RunOptions moved = *options;
  moved.workspace = info.workspace_size ? to_host(options->workspace) : nullptr;
  moved.stream = nullptr;
  moved.multipliers_on_device = 0;
  if (options->multipliers_on_device) moved.multipliers = static_cast<const float *>(to_host(options->multipliers));
  if (!options->stream) {
    plan.check();
    return cpu().weight_run(plan.host, &moved, failure);
  }
  return guard(failure, [&] {
    std::vector<float> multipliers(static_cast<std::size_t>(plan.multiplier_count), 1.0f);
    if (options->multipliers && !options->multipliers_on_device)
      std::copy_n(options->multipliers, multipliers.size(), multipliers.data());
    ++plan.pending;
    static_cast<Stream *>(options->stream)->work.push_back([moved, multipliers, &plan]() mutable {
      if (!on_device(moved.multipliers)) moved.multipliers = multipliers.data();
      plan.check();
      Failure why{};
      insist(cpu().weight_run(plan.host, &moved, &why) == LYC_OK, why.message);
      --plan.pending;
    });
  });
}

std::size_t weight_explain(const ops::WeightPlan *plan, char *buffer, std::size_t capacity) {
  return cpu().weight_explain(own(plan).host, buffer, capacity);
}

void weight_release(ops::WeightPlan *plan) {
  insist(own(plan).pending == 0, "a plan goes before its runs have finished");
  cpu().weight_release(own(plan).host);
  delete &own(plan);
}

ops::Backend make_table() {
  ops::Backend table = cpu();
  table.device_type = LYC_DEVICE_CUDA;
  table.context_create = context_create;
  table.context_destroy = context_destroy;
  table.context_threads = context_threads;
  table.memory_allocate = memory_allocate;
  table.memory_release = memory_release;
  table.memory_write = memory_write;
  table.memory_read = memory_read;
  table.host_allocate = host_allocate;
  table.host_release = host_release;
  table.stream_create = stream_create;
  table.stream_destroy = stream_destroy;
  table.stream_write = stream_write;
  table.stream_read = stream_read;
  table.stream_wait = stream_wait;
  table.weight_prepare = weight_prepare;
  table.weight_info = weight_info;
  table.weight_run = weight_run;
  table.weight_explain = weight_explain;
  table.weight_release = weight_release;
  table.rotation_prepare = nullptr;
  table.singular_triplets = nullptr;
  table.dora_norms = nullptr;
  table.forward_prepare = nullptr;
  table.forward_info = nullptr;
  table.forward_run = nullptr;
  table.forward_explain = nullptr;
  table.forward_release = nullptr;
  return table;
}

const ops::Backend kTable = make_table();

}  // namespace
}  // namespace lyc::test

extern "C" LYC_API const lyc::ops::Backend *LYC_CUDA_ENTRY() { return &lyc::test::kTable; }
