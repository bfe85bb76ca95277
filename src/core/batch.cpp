#include "core/batch.hpp"

#include <algorithm>
#include <numeric>
#include <optional>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "core/operand.hpp"
#include "core/prepare.hpp"

namespace lyc {
namespace {

constexpr std::int32_t kMaxMultiplierIndex = 1 << 20;

/// What can be said of an item without looking at its tensors.
void check_item(const lyc_context &context, const lyc_batch_item &item) {
  require(item.module != nullptr && item.module->alive(), "module is not a live handle");
  require(item.module->context.get() == &context, "the module belongs to another context");
  require(item.base || item.out, "neither base nor out is given");
  require(item.part == LYC_PART_WEIGHT || item.part == LYC_PART_BIAS, "part is ", static_cast<int>(item.part),
          ", must be 0 or 1");
  require(item.multiplier_index >= 0 && item.multiplier_index < kMaxMultiplierIndex, "multiplier_index is ",
          item.multiplier_index, ", must be 0 to ", kMaxMultiplierIndex - 1);
  require(item.row_begin >= 0 && item.row_count >= 0, "row_begin and row_count must not be negative");
  const Definition &definition = item.module->definition;
  if (!definition.has_part(item.part))
    fail(LYC_ERROR_NOT_FOUND, "the module has no delta for the ", item.part == LYC_PART_BIAS ? "bias" : "weight");
  require(item.base || !definition.needs_base(), "base is NULL, but the delta depends on the weight");
  const bool reads_weight = item.part == LYC_PART_BIAS && definition.shape.bias_reads_weight;
  require((item.weight != nullptr) == reads_weight,
          reads_weight ? "weight is NULL, but the bias's difference is made from the layer's weight"
                       : "weight is given, but the difference is not made from it");
}

/// An item on one matrix.
BatchItem checked_item(const lyc_context &context, const lyc_batch_item &item, std::int64_t expert) {
  BatchItem result{item.module, {}, {}, {item.row_begin, item.row_count, item.multiplier_index, item.part, expert}, {}};
  if (item.base) result.base = operand_on(context, *item.base, "base");
  if (item.weight) result.weight = operand_on(context, *item.weight, "weight");
  const lyc_tensor &out = item.out ? *item.out : *item.base;
  result.out = operand_on(context, out, "out");
  require(!(out.flags & LYC_TENSOR_READ_ONLY), "out is read-only");
  require(writable_once(result.out), "out has strides by which elements share memory");
  if (!item.base) return result;
  if (!same_extents(result.base, result.out))
    fail(LYC_ERROR_MISMATCH, "base is ", extents_text(result.base), ", out is ", extents_text(result.out));
  require(same_memory(result.base, result.out) || !may_overlap(result.base, result.out),
          "base and out overlap without being the same");
  return result;
}

/// One item, or one for each matrix of a stack.
void append_checked(const lyc_context &context, const lyc_batch_item &item, std::vector<BatchItem> &items) {
  check_item(context, item);
  const std::int64_t experts = item.module->definition.shape.experts;
  if (experts == 1) return items.push_back(checked_item(context, item, 0));
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    lyc_tensor base = {}, out = {};
    lyc_batch_item one = item;
    if (item.base) base = matrix_of_stack(*item.base, experts, expert, "base"), one.base = &base;
    if (item.out) out = matrix_of_stack(*item.out, experts, expert, "out"), one.out = &out;
    items.push_back(checked_item(context, one, expert));
  }
}

bool same_target(const BatchItem &a, const BatchItem &b) {
  return same_memory(a.out, b.out) && (a.base.data == nullptr) == (b.base.data == nullptr) &&
         (!a.base.data || same_memory(a.base, b.base));
}

/// Order in which the items of one target are neighbours and first appearances keep their order.
std::vector<std::size_t> target_order(const std::vector<BatchItem> &items) {
  std::vector<std::size_t> order(items.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const void *first = items[a].out.data, *second = items[b].out.data;
    return first == second ? a < b : std::less<const void *>()(first, second);
  });
  return order;
}

/// No target may write what another one reads or writes.
void check_disjoint(const std::vector<ops::WeightTarget> &targets) {
  if (targets.size() < 2) return;
  struct View {
    const ops::Operand *operand;
    std::size_t target;
    bool written;
  };
  std::vector<View> views;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    views.push_back({&targets[i].out, i, true});
    if (targets[i].base.data && targets[i].base.data != targets[i].out.data)
      views.push_back({&targets[i].base, i, false});
  }
  std::sort(views.begin(), views.end(),
            [](const View &a, const View &b) { return std::less<const void *>()(a.operand->data, b.operand->data); });
  for (std::size_t i = 0; i < views.size(); ++i) {
    const auto *end = static_cast<const char *>(views[i].operand->data) + operand_bytes(*views[i].operand);
    for (std::size_t j = i + 1; j < views.size() && static_cast<const char *>(views[j].operand->data) < end; ++j)
      require(views[i].target == views[j].target || !(views[i].written || views[j].written) ||
                  !may_overlap(*views[i].operand, *views[j].operand),
              "two weights of the batch overlap without being the same");
  }
}

/// Targets are computed in no order: a bias cannot be made from a weight that the same batch changes.
void check_weights_stay(const std::vector<BatchItem> &items) {
  for (const BatchItem &item : items) {
    if (!item.weight.data) continue;
    for (const BatchItem &other : items)
      require(!may_overlap(item.weight, other.out),
              "a bias is made from a weight that the same batch changes: give the bias a batch of its own, run first");
  }
}

}  // namespace

ops::Operand operand_on(const lyc_context &context, const lyc_tensor &tensor, const std::string &what) {
  const ops::Operand operand = weight_operand(tensor, what);
  require(tensor.device_type == context.options.device_type &&
              (tensor.device_type == LYC_DEVICE_CPU || tensor.device_index == context.options.device_index),
          what, " is not on the context's device");
  return operand;
}

std::vector<BatchItem> checked_items(const lyc_context &context, const lyc_batch_item *items, std::size_t count) {
  std::vector<BatchItem> result;
  result.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    try {
      append_checked(context, items[i], result);
    } catch (const Error &error) {
      if (count == 1) throw;
      throw Error(error.status(), concat("item ", i, ": ", error.what()), error.native_code());
    }
  }
  return result;
}

Ref<lyc_batch> create_batch(lyc_context &context, const std::vector<BatchItem> &items, std::int32_t multiplier_count) {
  return Ref<lyc_batch>(new lyc_batch(Ref<lyc_context>::share(context), items, multiplier_count));
}

PreparedWeights::PreparedWeights(lyc_context &context, const std::vector<BatchItem> &items,
                                 std::int32_t multiplier_count)
    : context_(context), multiplier_count_(multiplier_count) {
  const WeightArrays arrays = lower_all(items);
  check_disjoint(arrays.targets);
  check_weights_stay(items);
  for (const ops::WeightTarget &target : arrays.targets) {
    has_bases_ = has_bases_ && target.base.data != nullptr;
    in_place_ = in_place_ || target.base.data == target.out.data;
  }
  const ops::WeightBatch batch = arrays.view(multiplier_count_);
  ops::Failure failure;
  check(context.backend->weight_prepare(context.device, &batch, &plan_, &failure), failure);
}

WeightArrays PreparedWeights::lower_all(const std::vector<BatchItem> &items) {
  WeightArrays arrays;
  const BatchItem *previous = nullptr;
  for (std::size_t index : target_order(items)) {
    const BatchItem &item = items[index];
    if (!previous || !same_target(*previous, item)) arrays.begin_target(item.base, item.out);
    const Definition *definition = &item.module->definition;
    std::optional<Definition> complete;
    if (definition->lacks_base_state()) {
      complete = *definition;
      derive_base_state(context_, *complete, item.base, item.placement, nullptr, derived_);
      definition = &*complete;
    }
    lower(*definition, item.out, item.placement, arrays, item.weight);
    invertible_ = invertible_ && item.module->definition.invertible();
    multiplier_count_ = std::max(multiplier_count_, item.placement.multiplier_index + 1);
    previous = &item;
  }
  return arrays;
}

PreparedWeights::~PreparedWeights() {
  if (plan_) context_.backend->weight_release(plan_);
}

void PreparedWeights::check_op(lyc_batch_op op) const {
  require(op >= LYC_BATCH_MERGE && op <= LYC_BATCH_DIFF, "op is ", static_cast<int>(op), ", must be 0 to 2");
  require(op == LYC_BATCH_DIFF || has_bases_, "an item has no base: only its difference can be computed");
  require(op != LYC_BATCH_DIFF || !in_place_, "a difference cannot overwrite its base: give items an out of their own");
  if (op == LYC_BATCH_UNMERGE && !invertible_)
    fail(LYC_ERROR_UNSUPPORTED,
         "a delta that depends on the pristine weight (DoRA, a rotation, ...) cannot be unmerged: keep a copy of it");
}

void PreparedWeights::run(lyc_batch_op op, const float *multipliers, bool on_device, const lyc_exec &exec) {
  check_op(op);
  ops::RunOptions options{};
  options.op = static_cast<ops::WeightOp>(op);
  options.multipliers = multipliers;
  options.multipliers_on_device = on_device;
  options.stream = exec.stream;
  Workspace workspace(context_, exec, workspace_size());
  options.workspace = workspace.data();
  ops::Failure failure;
  check(context_.backend->weight_run(plan_, &options, &failure), failure);
}

std::uint64_t PreparedWeights::workspace_size() const {
  ops::WeightPlanInfo info{};
  context_.backend->weight_info(plan_, &info);
  return info.workspace_size;
}

std::string PreparedWeights::explain() const {
  std::string text(context_.backend->weight_explain(plan_, nullptr, 0), '\0');
  context_.backend->weight_explain(plan_, text.data(), text.size() + 1);
  return text;
}

}  // namespace lyc

using namespace lyc;

lyc_batch::lyc_batch(Ref<lyc_context> owner, const std::vector<BatchItem> &items, std::int32_t multiplier_count)
    : context(std::move(owner)), weights(*context, items, multiplier_count) {
  for (const BatchItem &item : items) modules_.push_back(Ref<lyc_module>::share(*item.module));
}

const float *lyc_batch::checked_multipliers(const lyc_tensor *multipliers) const {
  if (!multipliers) return nullptr;
  check_tensor(*multipliers, "multipliers");
  require(multipliers->dtype == LYC_DTYPE_F32 && multipliers->ndim == 1 && is_contiguous(*multipliers),
          "multipliers must be one contiguous axis of f32");
  require(multipliers->shape[0] >= weights.multiplier_count(), "there are ", multipliers->shape[0],
          " multipliers, items use ", weights.multiplier_count());
  require(multipliers->device_type == LYC_DEVICE_CPU || (multipliers->device_type == context->options.device_type &&
                                                         multipliers->device_index == context->options.device_index),
          "multipliers are on another device than the batch");
  return static_cast<const float *>(multipliers->data);
}

void lyc_batch::run(lyc_batch_op op, const lyc_tensor *multipliers, const lyc_exec &exec) {
  const float *values = checked_multipliers(multipliers);
  weights.run(op, values, multipliers && multipliers->device_type != LYC_DEVICE_CPU, exec);
}
