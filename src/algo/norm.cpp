// Differences of norm layers (LayerNorm, GroupNorm, RMSNorm): dw = w_norm, db = b_norm. No rank, no alpha.
#include "algo/families.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kSuffixes[] = {"w_norm", "b_norm", nullptr};

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  std::vector<FactorSpec> list = {{"w_norm", {layer.out}}};
  if (spec.flags & LYC_MODULE_BIAS) list.push_back({"b_norm", {layer.out}});
  return list;
}

DeltaShape describe(const Factors &f, const Traits &) {
  DeltaShape shape;
  shape.out = rows_of(f, f.has("w_norm") ? "w_norm" : "b_norm");
  shape.weight = f.has("w_norm");
  if (!shape.weight) return shape;  // a bias difference alone
  require_equal(numel(f.at("w_norm")), "w_norm", shape.out, "its first axis", "values");
  shape.columns = 1;
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
