// T-LoRA (arXiv:2507.05964): factors that start as singular triplets of the weight, less that start.
//
//   D[o, i] = sum_r p[o, r] l[r] q[r, i] - p0[o, r] l0[r] q0[r, i]
//
// A mask of ranks multiplies l and l0; training sets it by the timestep. Kernels above 1 do not exist.
//
// p_layer.weight  [O, r]   base_p_layer.weight  [O, r]   the start, where it is stored
// lambda_layer    [1, r]   base_lambda_layer    [1, r]
// q_layer.weight  [r, I]   base_q_layer.weight  [r, I]   1x1 convolutions: p and q [.., .., 1...]
#include "algo/families.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

constexpr BaseState kNow = {"p_layer.weight", "lambda_layer", "q_layer.weight"};
constexpr BaseState kStart = {"base_p_layer.weight", "base_lambda_layer", "base_q_layer.weight"};
constexpr const char *kSuffixes[] = {kNow.v, kNow.u, kNow.sigma, kStart.v, kStart.u, kStart.sigma, nullptr};
constexpr const char *kSignature[] = {kNow.sigma, kNow.u, kNow.v, nullptr};

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  if (layer.has_kernel())
    fail(LYC_ERROR_UNSUPPORTED, "T-LoRA does not exist for kernels above 1; this one is ", shape_text(layer.kernel));
  const Shape ones(layer.kernel.size(), 1);
  return {{kNow.v, join({spec.rank, layer.in}, ones)},
          {kNow.u, join({layer.out, spec.rank}, ones)},
          {kNow.sigma, {1, spec.rank}}};
}

DeltaShape describe_triplets(const Factors &f, const BaseState &names) {
  DeltaShape shape;
  shape.out = rows_of(f, names.u);
  shape.rank = rows_of(f, names.v);
  shape.columns = matrix_columns_of(f, names.v);
  require_equal(matrix_columns_of(f, names.u), names.u, shape.rank, names.v, "rank");
  require_equal(values_of(f, names.sigma), names.sigma, shape.rank, names.v, "rank");
  return shape;
}

DeltaShape describe(const Factors &f, const Traits &) {
  DeltaShape shape = describe_triplets(f, kNow);
  if (f.has(kStart.u) || f.has(kStart.sigma) || f.has(kStart.v)) {
    const DeltaShape start = describe_triplets(f, kStart);
    require_equal(start.out, kStart.u, shape.out, kNow.u, "rows");
    require_equal(start.rank, kStart.v, shape.rank, kNow.v, "rank");
    require_equal(start.columns, kStart.v, shape.columns, kNow.v, "columns");
  }
  return shape;
}

void add_triplets(Lowering &to, const BaseState &names, double coefficient) {
  ops::Term &term = to.add();
  term.coefficient = coefficient;
  term.p.up = matrix(to.factors.at(names.u));
  term.p.down = matrix(to.factors.at(names.v));
  term.p.diagonal = column(to.factors.at(names.sigma));
}

void lower(Lowering &to) {
  add_triplets(to, kNow, 1.0);
  add_triplets(to, kStart, -1.0);
}

}  // namespace

const Algorithm kTlora = {
    LYC_ALGO_TLORA, "tlora", kNone,   kSuffixes, kSignature, {},      LYC_MODULE_LAST | LYC_MODULE_MIDDLE,
    true,           false,   factors, describe,  lower,      nullptr, &kStart,
    nullptr,        true};

}  // namespace lyc::algo
