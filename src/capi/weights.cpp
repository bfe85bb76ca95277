#include "base/tensor.hpp"
#include "capi/boundary.hpp"
#include "capi/options.hpp"
#include "core/batch.hpp"

using namespace lyc;
using namespace lyc::capi;

namespace {

void run_one(lyc_module &module, const lyc_tensor *base, const lyc_tensor *out, lyc_batch_op op, float multiplier,
             const lyc_exec *exec) {
  module.run(base, out, op, multiplier, read_exec(exec));
}

}  // namespace

lyc_status lyc_get_diff_weight(lyc_module *module, const lyc_tensor *base, float multiplier, const lyc_tensor *out,
                               const lyc_exec *exec) {
  return boundary(
      [&] { run_one(checked(module, "module"), base, &needed(out, "out"), LYC_BATCH_DIFF, multiplier, exec); });
}

lyc_status lyc_merge(lyc_module *module, const lyc_tensor *base, float multiplier, const lyc_tensor *out,
                     const lyc_exec *exec) {
  return boundary(
      [&] { run_one(checked(module, "module"), &needed(base, "base"), out, LYC_BATCH_MERGE, multiplier, exec); });
}

lyc_status lyc_unmerge(lyc_module *module, const lyc_tensor *weight, float multiplier, const lyc_exec *exec) {
  return boundary([&] {
    run_one(checked(module, "module"), &needed(weight, "weight"), nullptr, LYC_BATCH_UNMERGE, multiplier, exec);
  });
}

lyc_status lyc_weight_workspace_size(lyc_module *module, const lyc_tensor *weight, uint64_t *out_size) {
  return boundary([&] {
    lyc_tensor described = needed(weight, "weight");
    needed(out_size, "out_size");
    if (!described.data) {
      described.data = nowhere();
      described.capacity = 0;
    }
    described.flags = 0;
    *out_size = checked(module, "module").workspace_size(described);
  });
}

lyc_status lyc_batch_create(lyc_context *context, const lyc_batch_item *items, size_t item_count,
                            lyc_batch **out_batch) {
  return boundary([&] {
    clear(out_batch, "out_batch");
    lyc_context &object = checked(context, "context");
    require(items != nullptr || item_count == 0, "items is NULL");
    *out_batch = create_batch(object, checked_items(object, items, item_count)).detach();
  });
}

void lyc_batch_retain(lyc_batch *batch) { capi::retain(batch); }
void lyc_batch_release(lyc_batch *batch) { capi::release(batch); }

lyc_status lyc_batch_workspace_size(const lyc_batch *batch, uint64_t *out_size) {
  return boundary([&] { needed(out_size, "out_size") = checked(batch, "batch").weights.workspace_size(); });
}

lyc_status lyc_batch_run(lyc_batch *batch, lyc_batch_op op, const lyc_tensor *multipliers, const lyc_exec *exec) {
  return boundary([&] { checked(batch, "batch").run(op, multipliers, read_exec(exec)); });
}

lyc_status lyc_batch_explain(const lyc_batch *batch, char *buffer, size_t capacity, size_t *out_length) {
  return boundary([&] { put_text(checked(batch, "batch").weights.explain(), buffer, capacity, out_length); });
}
