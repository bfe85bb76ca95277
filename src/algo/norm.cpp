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

DeltaShape describe(const Factors &f) {
  DeltaShape shape;
  shape.out = rows_of(f, f.has("w_norm") ? "w_norm" : "b_norm");
  if (!f.has("w_norm")) return shape;  // a bias difference alone
  require_equal(numel(f.at("w_norm")), "w_norm", shape.out, "its first axis", "values");
  shape.columns = 1;
  return shape;
}

void lower(const Factors &f, const LayerShape &layer, std::vector<ops::Term> &terms) {
  ops::Term term;
  term.p.down = taps(f.at("w_norm"), layer.in, layer.kernel);
  terms.push_back(term);
}

}  // namespace

const Algorithm kNorm = {LYC_ALGO_NORM, "norm", kSuffixes, kSuffixes, "b_norm", LYC_MODULE_BIAS,
                         false,         false,  factors,   describe,  lower};

}  // namespace lyc::algo
