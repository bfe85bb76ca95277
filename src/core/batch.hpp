// Many weights in one submission.
#pragma once

#include <string>
#include <vector>

#include "core/context.hpp"
#include "core/definition.hpp"
#include "core/module.hpp"
#include "core/object.hpp"

struct lyc_batch final : lyc::Object {
  /// `arrays` borrow the weights; `modules` and `derived` keep the factors alive.
  lyc_batch(lyc::Ref<lyc_context> context, std::vector<lyc::Ref<lyc_module>> modules,
            std::vector<lyc::DeviceBuffer> derived, const lyc::WeightArrays &arrays, std::int32_t multiplier_count);
  ~lyc_batch() override;

  void run(lyc_batch_op op, const lyc_tensor *multipliers, const lyc_exec &exec);
  std::uint64_t workspace_size() const;
  std::string explain() const;

  lyc::Ref<lyc_context> context;

 private:
  const float *checked_multipliers(const lyc_tensor *multipliers) const;
  void check_op(lyc_batch_op op) const;

  std::vector<lyc::Ref<lyc_module>> modules_;
  std::vector<lyc::DeviceBuffer> derived_;
  lyc::ops::WeightPlan *plan_ = nullptr;
  std::int32_t multiplier_count_;
  bool invertible_ = true, has_bases_ = true, in_place_ = false;
};

namespace lyc {

/// One module on one weight, with layouts behind us.
struct BatchItem {
  lyc_module *module;
  ops::Operand base, out;  // base absent: only the difference is wanted
  Placement placement;
  ops::Operand weight = {};  // of a bias that is made from it
};

/// From the public items: every descriptor checked.
std::vector<BatchItem> checked_items(const lyc_context &context, const lyc_batch_item *items, std::size_t count);

/// Items on the same weight become one target; weights that overlap otherwise are refused, and so is a weight that is
/// changed while a bias is made from it. A run takes at least
/// `multiplier_count` multipliers.
Ref<lyc_batch> create_batch(lyc_context &context, const std::vector<BatchItem> &items,
                            std::int32_t multiplier_count = 1);

/// The tensor as an operand, if it is on the context's device.
ops::Operand operand_on(const lyc_context &context, const lyc_tensor &tensor, const std::string &what);

}  // namespace lyc
