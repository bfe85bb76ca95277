// A definition with the memory of its factors.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "core/context.hpp"
#include "core/definition.hpp"
#include "core/object.hpp"
#include "core/transfer.hpp"

struct lyc_module final : lyc::Object {
  /// Factors that `owned` or the caller holds; their addresses are in `definition`.
  lyc_module(lyc::Ref<lyc_context> context, lyc::Definition definition, std::vector<lyc::DeviceBuffer> owned);
  ~lyc_module() override;

  /// Untrained: every parameter zero.
  static lyc::Ref<lyc_module> create(lyc_context &context, const lyc_module_options &options);

  /// From tensors by suffix: CPU tensors are copied to the context's device, tensors of that device are bound.
  static lyc::Ref<lyc_module> create(lyc_context &context, const lyc_module_options &options,
                                     const std::vector<std::string> &names, const lyc_tensor *tensors);

  void bind(const std::string &name, const lyc_tensor &tensor);
  void write(const std::string &name, const lyc_tensor &tensor);
  void read(const std::string &name, const lyc_tensor &tensor) const;

  /// Make once what calls make anew: from the pristine weight `base`, and from the factors until one of them changes.
  void prepare(const lyc_tensor *base, void *stream);

  /// One weight now; `base` or `out` may be null. What had to be prepared for the call is kept for the next one on the
  /// same weight. Several threads may call.
  void run(const lyc_tensor *base, const lyc_tensor *out, lyc_batch_op op, float multiplier, const lyc_exec &exec);
  std::uint64_t workspace_size(const lyc_tensor &weight);

  lyc::Ref<lyc_context> context;
  lyc::Definition definition;

 private:
  const lyc_tensor &factor(const std::string &name) const;
  void add_rank_mask(const std::string &name);
  void forget_call();

  struct Call;
  std::atomic<Call *> last_call_{nullptr};  // null, too, while a thread uses it
  std::vector<lyc::DeviceBuffer> owned_;
  std::vector<lyc::ops::Operand> rests_;  // of rotations, in owned_
  std::vector<float> norms_;              // of DoRA's rows
};

namespace lyc {

/// The rule that counts: `requested`, or the default of the dialect for kDefault.
ops::DoraRule resolve_dora_rule(lyc_dora_rule requested, ops::DoraRule otherwise);

/// Put what the family makes of the tensors that only files have in their place.
void rewrite_stored(Uploader &uploader, Definition &definition, std::vector<DeviceBuffer> &buffers);

}  // namespace lyc
