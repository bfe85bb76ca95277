// Many weights in one submission.
#pragma once

#include <string>
#include <vector>

#include "core/context.hpp"
#include "core/definition.hpp"
#include "core/module.hpp"
#include "core/object.hpp"

namespace lyc {

/// One module on one weight, with layouts behind us.
struct BatchItem {
  lyc_module *module;
  ops::Operand base, out;  // base absent: only the difference is wanted
  Placement placement;
  ops::Operand weight = {};  // of a bias that is made from it
};

/// Weights prepared on a back end. They borrow the memory of weights and factors.
class PreparedWeights {
 public:
  PreparedWeights(lyc_context &context, const std::vector<BatchItem> &items, std::int32_t multiplier_count = 1);
  ~PreparedWeights();
  PreparedWeights(const PreparedWeights &) = delete;
  PreparedWeights &operator=(const PreparedWeights &) = delete;

  /// `multipliers`: multiplier_count() of them, on the device or not; null = all 1.
  void run(lyc_batch_op op, const float *multipliers, bool on_device, const lyc_exec &exec);
  std::int32_t multiplier_count() const { return multiplier_count_; }
  std::uint64_t workspace_size() const;
  std::string explain() const;

 private:
  WeightArrays lower_all(const std::vector<BatchItem> &items);
  void check_op(lyc_batch_op op) const;

  lyc_context &context_;
  std::vector<DeviceBuffer> derived_;
  ops::WeightPlan *plan_ = nullptr;
  std::int32_t multiplier_count_;
  bool invertible_ = true, has_bases_ = true, in_place_ = false;
};

}  // namespace lyc

struct lyc_batch final : lyc::Object {
  lyc_batch(lyc::Ref<lyc_context> context, const std::vector<lyc::BatchItem> &items, std::int32_t multiplier_count);

  void run(lyc_batch_op op, const lyc_tensor *multipliers, const lyc_exec &exec);

  lyc::Ref<lyc_context> context;
  lyc::PreparedWeights weights;

 private:
  const float *checked_multipliers(const lyc_tensor *multipliers) const;

  std::vector<lyc::Ref<lyc_module>> modules_;  // kept alive: their factors are borrowed
};

namespace lyc {

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
