#include "core/context.hpp"

#include "core/backends.hpp"

lyc_context::lyc_context(const lyc_context_options &requested, bool private_runs) : options(requested) {
  using namespace lyc;
  require(options.threads >= 0 && options.threads <= 4096, "threads is ", options.threads, ", must be 0 to 4096");
  require((options.allocate == nullptr) == (options.deallocate == nullptr),
          "allocate and deallocate must be given together");
  backend = &backend_for(options.device_type);
  const ops::BackendContextOptions device_options{options.device_index, options.threads, private_runs};
  ops::Failure failure;
  check(backend->context_create(&device_options, &device, &failure), failure);
}

lyc_context::~lyc_context() { backend->context_destroy(device); }

namespace lyc {
namespace {

constexpr std::size_t kWorkspaceAlignment = 256;

}  // namespace

DeviceBuffer::DeviceBuffer(lyc_context &context, std::size_t size)
    : memory_(size ? std::make_shared<const Memory>(context, size) : nullptr) {}

DeviceBuffer::Memory::Memory(lyc_context &owner, std::size_t bytes)
    : context(Ref<lyc_context>::share(owner)), size(bytes) {
  ops::Failure failure;
  check(owner.backend->memory_allocate(owner.device, size, nullptr, &data, &failure), failure);
}

DeviceBuffer::Memory::~Memory() { context->backend->memory_release(context->device, data, size, nullptr); }

Workspace::Workspace(lyc_context &context, const lyc_exec &exec, std::uint64_t size)
    : context_(context), stream_(exec.stream) {
  if (size == 0) return;
  if (exec.workspace) {
    require(exec.workspace_size >= size, "workspace_size is ", exec.workspace_size, ", the call needs ", size);
    require(reinterpret_cast<std::uintptr_t>(exec.workspace) % kWorkspaceAlignment == 0,
            "the workspace is not aligned to ", kWorkspaceAlignment, " bytes");
    data_ = exec.workspace;
    return;
  }
  const auto bytes = static_cast<std::size_t>(size);
  if (context.options.allocate) {
    data_ = context.options.allocate(context.options.user_data, bytes, kWorkspaceAlignment, stream_);
    if (!data_) fail(LYC_ERROR_OUT_OF_MEMORY, "the context's allocator gave no workspace of ", bytes, " bytes");
  } else {
    ops::Failure failure;
    check(context.backend->memory_allocate(context.device, bytes, stream_, &data_, &failure), failure);
  }
  taken_ = bytes;
}

Workspace::~Workspace() {
  if (taken_ == 0) return;
  if (context_.options.allocate)
    context_.options.deallocate(context_.options.user_data, data_, taken_, stream_);
  else
    context_.backend->memory_release(context_.device, data_, taken_, stream_);
}

void write_device(lyc_context &context, void *device, const void *host, std::size_t size) {
  ops::Failure failure;
  check(context.backend->memory_write(context.device, device, host, size, &failure), failure);
}

void read_device(lyc_context &context, void *host, const void *device, std::size_t size) {
  ops::Failure failure;
  check(context.backend->memory_read(context.device, host, device, size, &failure), failure);
}

}  // namespace lyc
