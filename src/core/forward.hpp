// One layer's forward pass with one module: public tensors become activations with canonical axes here, as weights do in
// core/operand.hpp.
#pragma once

#include <string>
#include <vector>

#include "core/definition.hpp"
#include "core/module.hpp"
#include "ops/forward.hpp"

namespace lyc {

/// What the public functions get; optional tensors are null.
struct ForwardCall {
  const lyc_module &module;
  const lyc_layer &layer;
  const lyc_tensor &x;
  const lyc_tensor *weight, *bias;
  const lyc_tensor &y;
  bool whole;
};

/// A prepared call. Throws what the public functions document.
class Forward {
 public:
  explicit Forward(const ForwardCall &call);
  ~Forward();
  Forward(const Forward &) = delete;
  Forward &operator=(const Forward &) = delete;

  void run(float multiplier, const lyc_exec &exec);
  std::uint64_t workspace_size() const;
  std::string explain() const;

 private:
  lyc_context &context_;
  WeightArrays arrays_;
  ops::ForwardPlan *plan_ = nullptr;
};

}  // namespace lyc
