// LoHa, the Hadamard product of two low-rank products (FedPara, arXiv:2108.06098):
//
//   plain   D = (w1_a w1_b) o (w2_a w2_b)
//   Tucker  D = P1 o P2,  Pn[o, i, k] = sum_pq wn_a[p, o] * tn[p, q, k] * wn_b[q, i]
//
// Layer:              linear, convolution     convolution, Tucker
// hada_w1_a, w2_a     [O, r]                  [r, O]   (transposed: the format is so)
// hada_w1_b, w2_b     [r, I*K]                [r, I]
// hada_t1, t2                                 [r, r, K...]
#include "algo/families.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

struct Half {
  const char *a, *b, *core;
};
constexpr Half kHalves[2] = {{"hada_w1_a", "hada_w1_b", "hada_t1"}, {"hada_w2_a", "hada_w2_b", "hada_t2"}};
constexpr const char *kSuffixes[] = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
                                     "hada_t1",   "hada_t2",   "diff_b",    nullptr};
constexpr const char *kSignature[] = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", nullptr};

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  const std::int64_t r = spec.rank;
  const bool tucker = (spec.flags & LYC_MODULE_TUCKER) && layer.has_kernel();
  std::vector<FactorSpec> list;
  for (const Half &half : kHalves) {
    list.push_back({half.a, tucker ? Shape{r, layer.out} : Shape{layer.out, r}});
    list.push_back({half.b, {r, tucker ? layer.in : layer.in * layer.kernel_size()}});
  }
  if (tucker)
    for (const Half &half : kHalves) list.push_back({half.core, join({r, r}, layer.kernel)});
  return list;
}

DeltaShape describe_half(const Factors &f, const Half &half) {
  DeltaShape shape;
  shape.rank = rows_of(f, half.b);
  if (f.has(half.core)) {
    shape.out = matrix_columns_of(f, half.a);
    require_equal(rows_of(f, half.a), half.a, rows_of(f, half.core), half.core, "rank");
    require_equal(core_columns_of(f, half.core), half.core, shape.rank, half.b, "rank");
    shape.kernel = kernel_of(f, half.core);
    shape.columns = with_taps(matrix_columns_of(f, half.b), shape.kernel);
    shape.flags = LYC_MODULE_TUCKER;
  } else {
    shape.out = rows_of(f, half.a);
    require_equal(matrix_columns_of(f, half.a), half.a, shape.rank, half.b, "rank");
    shape.kernel = kernel_of(f, half.b);
    shape.columns = columns_of(f, half.b);
  }
  return shape;
}

DeltaShape describe(const Factors &f, const Traits &) {
  const DeltaShape first = describe_half(f, kHalves[0]), second = describe_half(f, kHalves[1]);
  require_equal(first.out, kHalves[0].a, second.out, kHalves[1].a, "rows");
  require_equal(first.columns, kHalves[0].b, second.columns, kHalves[1].b, "columns");
  if (first.flags != second.flags) fail(LYC_ERROR_FORMAT, "only one of hada_t1 and hada_t2 is there");
  if (first.kernel != second.kernel)
    fail(LYC_ERROR_FORMAT, "the halves have kernels ", shape_text(first.kernel), " and ", shape_text(second.kernel));
  return first;
}

ops::Product lower_half(const Factors &f, const Half &half, const LayerShape &layer) {
  ops::Product product;
  if (f.has(half.core)) {
    product.up = transposed(f.at(half.a));
    product.core = taps(f.at(half.core), f.at(half.core).shape[1], layer.kernel);
    product.down = matrix(f.at(half.b));
  } else {
    product.up = matrix(f.at(half.a));
    product.down = taps(f.at(half.b), layer.in, layer.kernel);
  }
  return product;
}

void lower(Lowering &to) {
  const Factors &f = to.factors;
  const LayerShape &layer = to.layer;
  ops::Term &term = to.add(ops::TermKind::kHadamard);
  term.p = lower_half(f, kHalves[0], layer);
  term.q = lower_half(f, kHalves[1], layer);
}

}  // namespace

const Algorithm kLoha = {
    LYC_ALGO_LOHA, "loha", kNone,   kSuffixes, kSignature, "diff_b", LYC_MODULE_TUCKER | kCommonFlags,
    true,          true,   factors, describe,  lower};

}  // namespace lyc::algo
