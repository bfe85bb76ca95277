#include "core/forward.hpp"

#include "base/tensor.hpp"
#include "capi/boundary.hpp"
#include "capi/options.hpp"

using namespace lyc;
using namespace lyc::capi;

namespace {

lyc_exec known_exec(const lyc_exec *exec) {
  const lyc_exec known = read_struct(exec, "exec");
  require(known.flags == 0, "exec.flags has unknown bits: ", known.flags);
  return known;
}

/// A tensor whose memory may be missing: only its description counts.
class Described {
 public:
  explicit Described(const lyc_tensor *tensor) : given_(tensor != nullptr) {
    if (!tensor) return;
    tensor_ = *tensor;
    if (tensor_.data) return;
    tensor_.data = nowhere();
    tensor_.capacity = 0;
  }
  const lyc_tensor *get() const { return given_ ? &tensor_ : nullptr; }

 private:
  bool given_;
  lyc_tensor tensor_{};
};

/// Calls visit(Forward &, name) for each of the two functions that these arguments suit.
template <typename Visit>
void for_both(const lyc_module *module, const lyc_layer *layer, const lyc_tensor *x, const lyc_tensor *weight,
              const lyc_tensor *bias, const lyc_tensor *y, Visit visit) {
  const lyc_module &object = checked(module, "module");
  const lyc_layer known = read_struct(layer, "layer");
  const Described from(&needed(x, "x")), to(&needed(y, "y")), base(weight), added(bias);
  if (base.get() || !object.definition.needs_base()) {
    Forward forward({object, known, *from.get(), base.get(), nullptr, *to.get(), false});
    visit(forward, "lyc_forward");
  }
  if (!base.get()) return;
  Forward fused({object, known, *from.get(), base.get(), added.get(), *to.get(), true});
  visit(fused, "lyc_forward_fused");
}

}  // namespace

void lyc_layer_init(lyc_layer *layer, size_t struct_size) { init_struct(layer, struct_size); }

lyc_status lyc_forward(const lyc_module *module, const lyc_layer *layer, const lyc_tensor *x, const lyc_tensor *weight,
                       float multiplier, const lyc_tensor *y, const lyc_exec *exec) {
  return boundary([&] {
    const lyc_layer known = read_struct(layer, "layer");
    Forward({checked(module, "module"), known, needed(x, "x"), weight, nullptr, needed(y, "y"), false})
        .run(multiplier, known_exec(exec));
  });
}

lyc_status lyc_forward_fused(const lyc_module *module, const lyc_layer *layer, const lyc_tensor *x,
                             const lyc_tensor *weight, const lyc_tensor *bias, float multiplier, const lyc_tensor *y,
                             const lyc_exec *exec) {
  return boundary([&] {
    const lyc_layer known = read_struct(layer, "layer");
    Forward({checked(module, "module"), known, needed(x, "x"), &needed(weight, "weight"), bias, needed(y, "y"), true})
        .run(multiplier, known_exec(exec));
  });
}

lyc_status lyc_forward_workspace_size(const lyc_module *module, const lyc_layer *layer, const lyc_tensor *x,
                                      const lyc_tensor *weight, const lyc_tensor *bias, const lyc_tensor *y,
                                      uint64_t *out_size) {
  return boundary([&] {
    uint64_t &size = needed(out_size, "out_size");
    size = 0;
    for_both(module, layer, x, weight, bias, y,
             [&](const Forward &forward, const char *) { size = std::max(size, forward.workspace_size()); });
  });
}

lyc_status lyc_forward_explain(const lyc_module *module, const lyc_layer *layer, const lyc_tensor *x,
                               const lyc_tensor *weight, const lyc_tensor *bias, const lyc_tensor *y, char *buffer,
                               size_t capacity, size_t *out_length) {
  return boundary([&] {
    std::string text;
    for_both(module, layer, x, weight, bias, y,
             [&](const Forward &forward, const char *name) { text += concat(name, ": ", forward.explain()); });
    put_text(text, buffer, capacity, out_length);
  });
}
