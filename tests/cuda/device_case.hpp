// A WeightCase in device memory, and a batch of it prepared on the CUDA back end.
#pragma once

#include <cstring>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <map>
#include <stdexcept>
#include <vector>

#include "core/backends.hpp"
#include "support/weight_case.hpp"

namespace lyc::test {

inline void ok(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

/// Device memory as large as some host memory, with a guard behind it.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t size) : size_(size) {
    ok(cudaMalloc(&data_, size + kGuard));
    ok(cudaMemset(data_, kPoison, size + kGuard));
  }
  DeviceMemory(DeviceMemory &&other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  ~DeviceMemory() { cudaFree(data_); }

  void *data() const { return data_; }
  std::size_t size() const { return size_; }
  void write(const void *host) const { ok(cudaMemcpy(data_, host, size_, cudaMemcpyHostToDevice)); }
  std::vector<unsigned char> read() const { return read(0, size_); }
  bool guard_intact() const {
    for (unsigned char byte : read(size_, kGuard))
      if (byte != kPoison) return false;
    return true;
  }

  static constexpr unsigned char kPoison = 0xff;  // NaN in every type

 private:
  static constexpr std::size_t kGuard = 256;
  std::vector<unsigned char> read(std::size_t offset, std::size_t size) const {
    std::vector<unsigned char> bytes(size);
    ok(cudaMemcpy(bytes.data(), static_cast<char *>(data_) + offset, size, cudaMemcpyDeviceToHost));
    return bytes;
  }
  void *data_ = nullptr;
  std::size_t size_;
};

inline std::size_t bytes_of(const ops::Operand &t) {
  if (t.numel() == 0) return 0;
  std::int64_t last = (t.out - 1) * t.stride_out + (t.in - 1) * t.stride_in;
  for (int d = 0; d < ops::kMaxKernelDims; ++d) last += (t.kernel[d] - 1) * t.stride_kernel[d];
  return static_cast<std::size_t>(last + 1) * dtype_size(t.dtype);
}

/// The case's tensors on the device: bases and factors copied, separate outputs poisoned.
class DeviceCase {
 public:
  explicit DeviceCase(const ops::WeightBatch &host) : host_(host) {
    terms_.assign(host.terms, host.terms + host.term_count);
    for (ops::Term &term : terms_) place(term);
    adapters_.assign(host.adapters, host.adapters + host.adapter_count);
    for (ops::Adapter &adapter : adapters_) place(adapter.magnitude);
    rotations_.assign(host.rotations, host.rotations + host.rotation_count);
    for (ops::Rotation &rotation : rotations_)
      for (ops::Operand *operand : {&rotation.generators, &rotation.rescale, &rotation.prepared}) place(*operand);
    targets_.assign(host.targets, host.targets + host.target_count);
    for (ops::WeightTarget &target : targets_) place(target.base);
    for (ops::WeightTarget &target : targets_) place(target.out, /*poison=*/true);
  }

  ops::WeightBatch batch() const {
    ops::WeightBatch batch = host_;
    batch.targets = targets_.data();
    batch.adapters = adapters_.data();
    batch.terms = terms_.data();
    batch.rotations = rotations_.data();
    return batch;
  }

  /// Put bases back to what they were, outputs to poison, before any stream goes on: small copies return early.
  void reset() {
    for (const auto &[data, memory] : memory_) memory.write(data);
    for (std::int64_t t = 0; t < host_.target_count; ++t)
      if (host_.targets[t].out.data != host_.targets[t].base.data)
        ok(cudaMemset(targets_[t].out.data, DeviceMemory::kPoison, bytes_of(targets_[t].out)));
    ok(cudaDeviceSynchronize());
  }

  std::vector<unsigned char> out_bytes(std::int64_t t) const { return memory_.at(host_.targets[t].out.data).read(); }
  std::vector<double> out_values(std::int64_t t) const {
    std::vector<unsigned char> bytes = out_bytes(t);
    ops::Operand view = host_.targets[t].out;
    view.data = bytes.data();
    return values(view);
  }
  std::vector<std::vector<unsigned char>> all_bytes() const {
    std::vector<std::vector<unsigned char>> all;
    for (std::int64_t t = 0; t < host_.target_count; ++t) all.push_back(out_bytes(t));
    return all;
  }

  /// Nothing behind any tensor, and nothing between the elements of an output, was written.
  bool slack_untouched() const {
    for (const auto &[data, memory] : memory_)
      if (!memory.guard_intact()) return false;
    for (std::int64_t t = 0; t < host_.target_count; ++t)
      if (!gaps_untouched(host_.targets[t], out_bytes(t))) return false;
    return true;
  }

 private:
  void place(ops::Term &term) {
    for (ops::Product *product : {&term.p, &term.q})
      for (ops::Operand *operand : {&product->up, &product->core, &product->down, &product->diagonal, &product->mask})
        place(*operand);
    for (ops::Operand *operand : {&term.scalar, &term.sparse.row_starts, &term.sparse.columns, &term.sparse.values})
      place(*operand);
  }

  void place(ops::Operand &operand, bool poison = false) {
    if (!operand.data) return;
    auto found = memory_.find(operand.data);
    if (found == memory_.end()) {
      found = memory_.emplace(operand.data, DeviceMemory(bytes_of(operand))).first;
      if (!poison) found->second.write(operand.data);
    }
    operand.data = found->second.data();
  }

  static bool gaps_untouched(const ops::WeightTarget &target, const std::vector<unsigned char> &bytes) {
    const std::size_t size = dtype_size(target.out.dtype);
    std::vector<char> element(bytes.size() / size);
    for (std::int64_t o = 0; o < target.out.out; ++o)
      for (std::int64_t i = 0; i < target.out.in; ++i)
        for (std::int64_t k = 0; k < target.out.kernel_size(); ++k) element[offset_of(target.out, o, i, k)] = 1;
    const auto *before = static_cast<const unsigned char *>(target.base.data);
    const bool in_place = target.base.data == target.out.data;
    for (std::size_t b = 0; b < bytes.size(); ++b)
      if (!element[b / size] && bytes[b] != (in_place ? before[b] : DeviceMemory::kPoison)) return false;
    return true;
  }

  ops::WeightBatch host_;
  std::vector<ops::Term> terms_;
  std::vector<ops::Adapter> adapters_;
  std::vector<ops::Rotation> rotations_;
  std::vector<ops::WeightTarget> targets_;
  std::map<const void *, DeviceMemory> memory_;
};

/// A batch prepared on a back end.
class Plan {
 public:
  Plan(const ops::Backend &backend, ops::BackendContext *context, const ops::WeightBatch &batch) : backend_(backend) {
    ops::Failure failure = {};
    if (backend.weight_prepare(context, &batch, &plan_, &failure) != LYC_OK) throw std::runtime_error(failure.message);
    backend.weight_info(plan_, &info);
  }
  ~Plan() { backend_.weight_release(plan_); }
  Plan(const Plan &) = delete;

  void run(ops::WeightOp op, const float *multipliers, cudaStream_t stream = nullptr, bool on_device = false,
           void *workspace = nullptr) {
    const ops::RunOptions options = {op, on_device, multipliers, stream, workspace};
    ops::Failure failure = {};
    if (backend_.weight_run(plan_, &options, &failure) != LYC_OK) throw std::runtime_error(failure.message);
  }

  std::string explain() const {
    std::string text(backend_.weight_explain(plan_, nullptr, 0) + 1, '\0');
    backend_.weight_explain(plan_, text.data(), text.size());
    text.pop_back();
    return text;
  }

  ops::WeightPlanInfo info{};

 private:
  const ops::Backend &backend_;
  ops::WeightPlan *plan_ = nullptr;
};

}  // namespace lyc::test
