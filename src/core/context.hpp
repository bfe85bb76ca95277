// A device, opened through its back end, and the memory that calls need on it.
#pragma once

#include <cstddef>
#include <memory>

#include "base/error.hpp"
#include "core/object.hpp"
#include "ops/backend.hpp"

namespace lyc {

/// Turn a back end's failure into an exception.
inline void check(lyc_status status, const ops::Failure &failure) {
  if (status != LYC_OK) throw Error(status, failure.message, failure.native_code);
}

}  // namespace lyc

struct lyc_context final : lyc::Object {
  /// `private_runs`: whatever runs here does so on a Stream, and is waited for before its plan goes.
  explicit lyc_context(const lyc_context_options &options, bool private_runs = false);
  ~lyc_context() override;

  const lyc::ops::Backend *backend = nullptr;
  lyc::ops::BackendContext *device = nullptr;
  lyc_context_options options{};
};

namespace lyc {

/// Memory of a context's device. Copies share it; it lives as long as the last one.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(lyc_context &context, std::size_t size);

  void *data() const { return memory_ ? memory_->data : nullptr; }
  std::size_t size() const { return memory_ ? memory_->size : 0; }

 private:
  struct Memory {
    Memory(lyc_context &context, std::size_t size);
    ~Memory();
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    Ref<lyc_context> context;
    std::size_t size;
    void *data = nullptr;
  };
  std::shared_ptr<const Memory> memory_;
};

/// Workspace of one call: the caller's if exec brings any, else the allocator's, else the back end's. What the library
/// took is given back in stream order by the destructor.
class Workspace {
 public:
  Workspace(lyc_context &context, const lyc_exec &exec, std::uint64_t size);
  ~Workspace();
  Workspace(const Workspace &) = delete;
  Workspace &operator=(const Workspace &) = delete;

  void *data() const { return data_; }

 private:
  lyc_context &context_;
  void *stream_;
  void *data_ = nullptr;
  std::size_t taken_ = 0;  // 0: the caller's
};

/// Copy between CPU memory and the context's device; both have finished on return.
void write_device(lyc_context &context, void *device, const void *host, std::size_t size);
void read_device(lyc_context &context, void *host, const void *device, std::size_t size);

}  // namespace lyc
