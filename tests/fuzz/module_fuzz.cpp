// Tensors of any name and shape as a module, and a weight of any shape: refused with a message, or computed within the
// bounds of all memory.
//
// Input: bytes. One each for alpha, flags, rule, origin and terms together, layout, and the number of tensors; then for
// each tensor its name, type and number of axes, and its extents; at last those of the weight. What is missing is 0.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <vector>

#include "base/dtype.hpp"
#include "lycoris.h"

namespace {

constexpr const char *kNames[] = {
    "lora_up.weight", "lora_down.weight", "lora_mid.weight", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "diff",
    "diff_b", "w_norm", "b_norm", "dora_scale", "scalar", "alpha", "unknown",
    // what came later goes to the end: inputs name them by number
    "weight", "on_input", "a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "oft_blocks", "rescale",
    "oft_R.weight", "oft_R.scaled_oft", "boft_R", "boft_s", "p_layer.weight", "q_layer.weight", "lambda_layer",
    "base_p_layer.weight", "base_q_layer.weight", "base_lambda_layer", "set_weight", "set_bias", "rank", "values",
    "columns", "rows", "elements", "bias_indices", "bias_values", "bias_size", "ia3_l", "glora_A.Xd", "glora_A.Xu",
    "glora_B.X", "glora_C.zeros", "glora_D.X", "glora_E.zeros", "oft_embedding_R.weight"};
constexpr int kNeumannTerms[] = {0, -1, 5, 1};
constexpr lyc_dtype kDtypes[] = {LYC_DTYPE_F32, LYC_DTYPE_BF16, LYC_DTYPE_F16, LYC_DTYPE_I64};

class Bytes {
 public:
  Bytes(const std::uint8_t *data, std::size_t size) : at_(data), end_(data + size) {}
  int next() { return at_ == end_ ? 0 : *at_++; }

 private:
  const std::uint8_t *at_, *end_;
};

/// Memory of exactly the tensor's size, so that a sanitizer sees every byte beyond it.
struct Tensor {
  lyc_tensor view{};
  std::unique_ptr<char[]> memory;
};

Tensor read_tensor(Bytes &bytes) {
  const int kind = bytes.next();
  std::vector<std::int64_t> shape;
  for (int axes = kind / 4 % 7; axes > 0; --axes) shape.push_back(bytes.next() % 10);
  Tensor tensor;
  if (lyc_tensor_init(&tensor.view, nullptr, kDtypes[kind % 4], shape.data(), shape.size()) != LYC_OK) std::abort();
  tensor.memory.reset(new char[tensor.view.capacity + 1]);
  constexpr int kFills[] = {0x3c, 0, 0xff};  // some number, 0, NaN
  std::memset(tensor.memory.get(), kFills[kind / 112], tensor.view.capacity);
  tensor.view.data = tensor.memory.get();
  return tensor;
}

void check(lyc_status status) {
  const bool expected = status == LYC_OK || status == LYC_ERROR_INVALID_ARGUMENT || status == LYC_ERROR_FORMAT ||
                        status == LYC_ERROR_UNSUPPORTED || status == LYC_ERROR_MISMATCH ||
                        status == LYC_ERROR_NOT_FOUND;  // a bias difference alone has no delta for the weight
  if (!expected || (status != LYC_OK && !*lyc_last_error_message())) std::abort();
}

void use(lyc_module *module, const Tensor &weight) {
  lyc_module_info info;
  lyc_module_info_init(&info, sizeof info);
  check(lyc_module_get_info(module, &info));
  Tensor out;
  out.view = weight.view;
  out.memory.reset(new char[weight.view.capacity + 1]);
  out.view.data = out.memory.get();
  check(lyc_get_diff_weight(module, info.needs_base ? &weight.view : nullptr, 0.5f, &out.view, nullptr));
  check(lyc_merge(module, &weight.view, 0.5f, &out.view, nullptr));
  check(lyc_unmerge(module, &weight.view, 0.5f, nullptr));
  check(lyc_module_prepare(module, &weight.view, nullptr));
  check(lyc_merge(module, &weight.view, 0.5f, &out.view, nullptr));
}

lyc_context *context() {
  static lyc_context *only = [] {
    lyc_context_options options;
    lyc_context_options_init(&options, sizeof options);
    options.threads = 1;
    lyc_context *made = nullptr;
    check(lyc_context_create(&options, &made));
    return made;
  }();
  return only;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  Bytes bytes(data, size);
  lyc_module_options options;
  lyc_module_options_init(&options, sizeof options);
  options.alpha = bytes.next() - 3;
  const int choice = bytes.next();
  options.flags = choice & 1 ? LYC_MODULE_RANK_STABILISED : 0;
  options.dora_rule = static_cast<lyc_dora_rule>(choice / 2 % 5);
  options.origin = static_cast<lyc_origin>(choice / 10 % 4);
  options.neumann_terms = kNeumannTerms[choice / 40 % 4];
  options.coft_epsilon = choice >= 160 ? 0.25 : 0.0;
  const auto layout = static_cast<lyc_layout>(bytes.next() % 3);
  std::vector<const char *> names;
  std::vector<Tensor> tensors;
  std::vector<lyc_tensor> views;
  for (int count = bytes.next() % 10; count > 0; --count) {
    names.push_back(kNames[static_cast<std::size_t>(bytes.next()) % std::size(kNames)]);
    tensors.push_back(read_tensor(bytes));
    views.push_back(tensors.back().view);
  }
  Tensor weight = read_tensor(bytes);
  weight.view.layout = layout;
  lyc_module *module = nullptr;
  check(lyc_module_create_from_tensors(context(), &options, names.data(), views.data(), views.size(), &module));
  if (module) use(module, weight);
  lyc_module_release(module);
  return 0;
}
