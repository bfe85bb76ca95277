// The back-end table: how the core reaches a device. The CPU fills one in-process; liblycoris_cuda.so exports a
// function that returns one. Nothing here throws: every function returns a status and, on failure, fills *failure.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lycoris.h"
#include "ops/forward.hpp"
#include "ops/weight.hpp"

namespace lyc::ops {

struct Failure {
  lyc_status status;
  std::int32_t native_code;
  char message[1016];
};

struct BackendContextOptions {
  std::int32_t device_index = 0;
  std::int32_t threads = 0;       // CPU; 0 = as many as the process may use
  std::int32_t private_runs = 0;  // 1: plans run on streams from stream_create alone, and have finished when released
};

struct BackendContext;  // a device, opened: threads, handles
struct WeightPlan;      // a prepared WeightBatch
struct ForwardPlan;     // a prepared Forward

struct WeightPlanInfo {
  std::uint64_t workspace_size;  // bytes for one run, 256-byte aligned
  std::int32_t launches;         // kernels enqueued by one run; 0 on the CPU
  std::int32_t reserved;
};

struct RunOptions {
  WeightOp op;
  std::int32_t multipliers_on_device;  // 1: `multipliers` is device memory, read in stream order
  const float *multipliers;            // WeightBatch::multiplier_count values; null = all 1
  void *stream;
  void *workspace;  // at least WeightPlanInfo::workspace_size bytes
};

struct Backend {
  std::uint32_t struct_size;
  lyc_device_type device_type;
  const char *version;  // of the release it was built from; must equal the core's

  lyc_status (*device_count)(std::int32_t *count, Failure *failure);
  lyc_status (*device_info)(std::int32_t index, lyc_device_info *info, Failure *failure);

  lyc_status (*context_create)(const BackendContextOptions *options, BackendContext **context, Failure *failure);
  void (*context_destroy)(BackendContext *context);
  std::int32_t (*context_threads)(const BackendContext *context);

  // Device memory for parameters, and for workspaces when the caller gives none and has no allocator. `stream` orders
  // allocation and release on CUDA. write and read copy from and to CPU memory and have finished when they return.
  lyc_status (*memory_allocate)(BackendContext *context, std::size_t size, void *stream, void **memory,
                                Failure *failure);
  void (*memory_release)(BackendContext *context, void *memory, std::size_t size, void *stream);
  lyc_status (*memory_write)(BackendContext *context, void *device, const void *host, std::size_t size,
                             Failure *failure);
  lyc_status (*memory_read)(BackendContext *context, void *host, const void *device, std::size_t size,
                            Failure *failure);

  // Pipelines between CPU memory and the device; all null where the device's memory is CPU memory. Host memory from
  // here is what a device copies from and to at its full rate, while others work. Copies on a stream are enqueued;
  // stream_wait returns when everything on it has finished.
  lyc_status (*host_allocate)(BackendContext *context, std::size_t size, void **memory, Failure *failure);
  void (*host_release)(BackendContext *context, void *memory);
  lyc_status (*stream_create)(BackendContext *context, void **stream, Failure *failure);
  void (*stream_destroy)(BackendContext *context, void *stream);
  lyc_status (*stream_write)(BackendContext *context, void *stream, void *device, const void *host, std::size_t size,
                             Failure *failure);
  lyc_status (*stream_read)(BackendContext *context, void *stream, void *host, const void *device, std::size_t size,
                            Failure *failure);
  lyc_status (*stream_wait)(BackendContext *context, void *stream, Failure *failure);

  // `batch` and its arrays are copied; the memory that operands point to is borrowed until weight_release.
  lyc_status (*weight_prepare)(BackendContext *context, const WeightBatch *batch, WeightPlan **plan, Failure *failure);
  void (*weight_info)(const WeightPlan *plan, WeightPlanInfo *info);
  lyc_status (*weight_run)(WeightPlan *plan, const RunOptions *options, Failure *failure);
  std::size_t (*weight_explain)(const WeightPlan *plan, char *buffer, std::size_t capacity);  // length, as snprintf
  void (*weight_release)(WeightPlan *plan);

  // Preparations that wait for their result; null where the core is to let the CPU do them.
  // R - I of every stage and block into `rests` [stages * blocks, b * b] F32, for Rotation::prepared.
  lyc_status (*rotation_prepare)(BackendContext *context, const Rotation *rotation, const Operand *rests, void *stream,
                                 Failure *failure);
  // Of the matrix [out, in * kernel]: singular triplets `first` and so on, as many as u has columns, by falling
  // singular value: u [O, n], sigma [n] in `in`, v [n, I*K], all F32. Allocates.
  lyc_status (*singular_triplets)(BackendContext *context, const Operand *matrix, std::int64_t first, const Operand *u,
                                  const Operand *sigma, const Operand *v, void *stream, Failure *failure);
  // Of the only target, whose only adapter has DoRA: the norms of V at multiplier 1, one for each magnitude, for
  // Adapter::norms. Allocates. Null where nothing reads them.
  lyc_status (*dora_norms)(BackendContext *context, const WeightBatch *batch, float *norms, Failure *failure);

  // The same for forward; all null where the back end cannot. A plan is run by one thread at a time.
  lyc_status (*forward_prepare)(BackendContext *context, const Forward *forward, ForwardPlan **plan, Failure *failure);
  void (*forward_info)(const ForwardPlan *plan, ForwardPlanInfo *info);
  lyc_status (*forward_run)(ForwardPlan *plan, const ForwardRun *run, Failure *failure);
  std::size_t (*forward_explain)(const ForwardPlan *plan, char *buffer, std::size_t capacity);
  void (*forward_release)(ForwardPlan *plan);
};

/// The CPU back end, always there (src/cpu/backend.cpp).
const Backend *cpu_backend();

/// What liblycoris_cuda.so exports, under a name that carries the release: LYC_CUDA_ENTRY.
using BackendEntry = const Backend *(*)();

}  // namespace lyc::ops
