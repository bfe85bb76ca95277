// Whole differences: D = diff, db = diff_b. No rank, no alpha.
#include "algo/families.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kAliases[] = {"diff", nullptr};
constexpr const char *kSuffixes[] = {"diff", "diff_b", nullptr};

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  std::vector<FactorSpec> list = {{"diff", join({layer.out, layer.in}, layer.kernel)}};
  if (spec.flags & LYC_MODULE_BIAS) list.push_back({"diff_b", {layer.out}});
  return list;
}

DeltaShape describe(const Factors &f, const Traits &) {
  DeltaShape shape;
  if (!f.has("diff")) {  // a bias difference alone
    shape.out = rows_of(f, "diff_b");
    shape.weight = false;
    return shape;
  }
  shape.out = rows_of(f, "diff");
  shape.columns = f.at("diff").ndim > 1 ? columns_of(f, "diff") : 1;
  shape.kernel = kernel_of(f, "diff");
  return shape;
}

void lower(Lowering &to) {
  const Factors &f = to.factors;
  const LayerShape &layer = to.layer;
  ops::Term &term = to.add();
  term.p.down = taps(f.at("diff"), layer.in, layer.kernel);
}

}  // namespace

const Algorithm kFull = {LYC_ALGO_FULL,   "full", kAliases, kSuffixes, kSuffixes, "diff_b",
                         LYC_MODULE_BIAS, false,  false,    factors,   describe,  lower};

}  // namespace lyc::algo
