// New tensors instead of differences: W' = set_weight, b' = set_bias, at every multiplier but 0. No rank, no alpha.
#include "algo/families.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kSuffixes[] = {"set_weight", "set_bias", nullptr};

DeltaShape describe(const Factors &f, const Traits &) {
  DeltaShape shape;
  shape.replaces = shape.reads_base = true;
  shape.weight = f.has("set_weight");
  shape.out = rows_of(f, shape.weight ? "set_weight" : "set_bias");
  if (!shape.weight) return shape;
  shape.columns = f.at("set_weight").ndim > 1 ? columns_of(f, "set_weight") : 1;
  shape.kernel = kernel_of(f, "set_weight");
  return shape;
}

void lower(Lowering &to) { to.add().p.down = taps(to.factors.at("set_weight"), to.layer.in, to.layer.kernel); }

}  // namespace

const Algorithm kReplace = {LYC_ALGO_REPLACE, "replace", kNone, kSuffixes, kSuffixes, "set_bias",
                            0,                false,     false, nullptr,   describe,  lower};

}  // namespace lyc::algo
