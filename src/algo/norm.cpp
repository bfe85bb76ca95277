// Differences of norm layers (LayerNorm, GroupNorm, RMSNorm): dw = w_norm, db = b_norm, of one or more axes. No rank, no
// alpha.
#include "algo/families.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kSuffixes[] = {"w_norm", "b_norm", nullptr};

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  const bool one_axis = layer.in == 1 && layer.kernel.empty();
  const Shape shape = one_axis ? Shape{layer.out} : join({layer.out, layer.in}, layer.kernel);
  std::vector<FactorSpec> list = {{"w_norm", shape}};
  if (spec.flags & LYC_MODULE_BIAS) list.push_back({"b_norm", shape});
  return list;
}

DeltaShape describe(const Factors &f, const Traits &) {
  DeltaShape shape;
  shape.out = rows_of(f, f.has("w_norm") ? "w_norm" : "b_norm");
  shape.weight = f.has("w_norm");
  if (!shape.weight) return shape;  // a bias difference alone
  shape.columns = numel(f.at("w_norm")) / shape.out;
  return shape;
}

void lower(Lowering &to) {
  const Factors &f = to.factors;
  const LayerShape &layer = to.layer;
  ops::Term &term = to.add();
  term.p.down = taps(f.at("w_norm"), layer.in, layer.kernel);
}

}  // namespace

const Algorithm kNorm = {LYC_ALGO_NORM,   "norm", kNone, kSuffixes, kSuffixes, "b_norm",
                         LYC_MODULE_BIAS, false,  false, factors,   describe,  lower};

}  // namespace lyc::algo
