// LoKr, the Kronecker product of two matrices, each whole or low-rank (LyCORIS, arXiv:2309.14859):
//
//   D[a*OK + b, c*IN + d, k] = w1[a, c] * w2[b, d, k]        O = OL*OK, I = IM*IN
//
//   w1  [OL, IM]              or  w1_a [OL, r] * w1_b [r, IM]
//   w2  [OK, IN, K...]        or  w2_a [OK, r] * w2_b [r, IN*K]
//                             or  w2[b, d, k] = sum_pq w2_a[p, b] * t2[p, q, k] * w2_b[q, d]   (Tucker)
//
// With both halves whole there is no rank, and alpha does not count.
#include "algo/factorization.hpp"
#include "algo/families.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kW1 = "lokr_w1", *kW1a = "lokr_w1_a", *kW1b = "lokr_w1_b";
constexpr const char *kW2 = "lokr_w2", *kW2a = "lokr_w2_a", *kW2b = "lokr_w2_b", *kT2 = "lokr_t2";
constexpr const char *kAliases[] = {"kron", nullptr};
constexpr const char *kSuffixes[] = {kW1, kW1a, kW1b, kW2, kW2a, kW2b, kT2, "diff_b", nullptr};
constexpr const char *kSignature[] = {kW1, kW1a, kW1b, kW2, kW2a, kW2b, nullptr};

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  const std::int64_t r = spec.rank;
  const auto [in_m, in_n] = factorize(layer.in, spec.factor);
  auto [out_l, out_k] = factorize(layer.out, spec.factor);
  if (spec.flags & LYC_MODULE_UNBALANCED) std::swap(out_l, out_k);
  const bool whole = spec.flags & LYC_MODULE_WHOLE;
  std::vector<FactorSpec> list;
  if ((spec.flags & LYC_MODULE_DECOMPOSE_BOTH) && !whole && 2 * r < std::max(out_l, in_m)) {
    list.push_back({kW1a, {out_l, r}});
    list.push_back({kW1b, {r, in_m}});
  } else {
    list.push_back({kW1, {out_l, in_m}});
  }
  if (whole || 2 * r >= std::max(out_k, in_n)) {
    list.push_back({kW2, join({out_k, in_n}, layer.kernel)});
  } else if ((spec.flags & LYC_MODULE_TUCKER) && layer.has_kernel()) {
    list.push_back({kW2a, {r, out_k}});
    list.push_back({kW2b, {r, in_n}});
    list.push_back({kT2, join({r, r}, layer.kernel)});
  } else {
    list.push_back({kW2a, {out_k, r}});
    list.push_back({kW2b, {r, in_n * layer.kernel_size()}});
  }
  return list;
}

DeltaShape describe_w1(const Factors &f) {
  DeltaShape shape;
  if (f.has(kW1)) {
    if (f.has(kW1a) || f.has(kW1b)) fail(LYC_ERROR_FORMAT, "lokr_w1 is there both whole and in parts");
    shape.out = rows_of(f, kW1);
    shape.columns = matrix_columns_of(f, kW1);
  } else {
    shape.out = rows_of(f, kW1a);
    shape.rank = rows_of(f, kW1b);
    shape.columns = matrix_columns_of(f, kW1b);
    require_equal(matrix_columns_of(f, kW1a), kW1a, shape.rank, kW1b, "rank");
    shape.flags = LYC_MODULE_DECOMPOSE_BOTH;
  }
  return shape;
}

DeltaShape describe_w2(const Factors &f) {
  DeltaShape shape;
  if (f.has(kW2)) {
    if (f.has(kW2a) || f.has(kW2b) || f.has(kT2)) fail(LYC_ERROR_FORMAT, "lokr_w2 is there both whole and in parts");
    shape.out = rows_of(f, kW2);
    shape.columns = columns_of(f, kW2);
    shape.kernel = kernel_of(f, kW2);
  } else if (f.has(kT2)) {
    shape.out = matrix_columns_of(f, kW2a);
    shape.rank = rows_of(f, kW2b);
    require_equal(rows_of(f, kW2a), kW2a, rows_of(f, kT2), kT2, "rank");
    require_equal(core_columns_of(f, kT2), kT2, shape.rank, kW2b, "rank");
    shape.kernel = kernel_of(f, kT2);
    shape.columns = with_taps(matrix_columns_of(f, kW2b), shape.kernel);
    shape.flags = LYC_MODULE_TUCKER;
  } else {
    shape.out = rows_of(f, kW2a);
    shape.rank = rows_of(f, kW2b);
    require_equal(matrix_columns_of(f, kW2a), kW2a, shape.rank, kW2b, "rank");
    shape.columns = columns_of(f, kW2b);
    shape.kernel = kernel_of(f, kW2b);
  }
  return shape;
}

DeltaShape describe(const Factors &f, const Traits &) {
  const DeltaShape w1 = describe_w1(f), w2 = describe_w2(f);
  DeltaShape shape;
  shape.rank = w2.rank ? w2.rank : w1.rank;
  const Shape extents = {w1.out, w2.out}, widths = {w1.columns, w2.columns};
  shape.out = checked_numel(extents.data(), 2, "the Kronecker product");
  shape.columns = checked_numel(widths.data(), 2, "the Kronecker product");
  shape.kernel = w2.kernel;
  shape.flags = w1.flags | w2.flags | (shape.rank ? 0u : LYC_MODULE_WHOLE);
  return shape;
}

void lower(Lowering &to) {
  const Factors &f = to.factors;
  const LayerShape &layer = to.layer;
  ops::Term &term = to.add(ops::TermKind::kKronecker);
  if (f.has(kW1)) {
    term.p.down = matrix(f.at(kW1));
  } else {
    term.p.up = matrix(f.at(kW1a));
    term.p.down = matrix(f.at(kW1b));
  }
  if (layer.in % term.p.down.in != 0)
    fail(LYC_ERROR_MISMATCH, "lokr_w1 has ", term.p.down.in, " columns, which do not divide the layer's ", layer.in,
         " inputs");
  const std::int64_t in_n = layer.in / term.p.down.in;
  if (f.has(kW2)) {
    term.q.down = taps(f.at(kW2), in_n, layer.kernel);
  } else if (f.has(kT2)) {
    term.q.up = transposed(f.at(kW2a));
    term.q.core = taps(f.at(kT2), f.at(kT2).shape[1], layer.kernel);
    term.q.down = matrix(f.at(kW2b));
  } else {
    term.q.up = matrix(f.at(kW2a));
    term.q.down = taps(f.at(kW2b), in_n, layer.kernel);
  }
}

}  // namespace

const Algorithm kLokr = {
    LYC_ALGO_LOKR,
    "lokr",
    kAliases,
    kSuffixes,
    kSignature,
    "diff_b",
    LYC_MODULE_TUCKER | LYC_MODULE_DECOMPOSE_BOTH | LYC_MODULE_WHOLE | LYC_MODULE_UNBALANCED | kCommonFlags,
    true,
    true,
    factors,
    describe,
    lower};

}  // namespace lyc::algo
