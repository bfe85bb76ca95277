// GLoRA (arXiv:2306.07967) as LyCORIS has it: a low-rank difference, and one made from the weight.
//
//   D[o, j, k] = sum_r b1[o, r] b2[r, j, k] + sum_i W[o, i, k] sum_r a1[i, r] a2[r, j]
//
// Layer:      linear     convolution     convolution, Tucker    linear, old form
// a1.weight   [I, r]     [I, r, 1...]                           [r, I]   exchanged
// a2.weight   [r, I]     [r, I, 1...]                           [I, r]   with a1
// b1.weight   [O, r]     [O, r, 1...]    [O, r, 1...]           [r, I]   exchanged
// b2.weight   [r, I]     [r, I, K...]    [r, I, 1...]           [O, r]   with b1
// bm.weight                              [r, r, K...]
#include "algo/families.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kSuffixes[] = {"a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", nullptr};

/// The left and right factor of both products.
struct Names {
  const char *a_up, *a_down, *b_up, *b_down;
};
constexpr Names kCurrent = {"a1.weight", "a2.weight", "b1.weight", "b2.weight"};
constexpr Names kOld = {"a2.weight", "a1.weight", "b2.weight", "b1.weight"};

bool ranks_agree(const Factors &f, const Names &n) {
  const std::int64_t rank = rows_of(f, n.a_down);
  return rows_of(f, n.b_down) == rank && f.at(n.a_up).shape[1] == rank && f.at(n.b_up).shape[1] == rank;
}

/// Both forms can fit, where the layer is square; then the rank is the smaller of the two extents. A rank that is all
/// of them leaves no choice but to follow the convention of other readers.
const Names &names_of(const Factors &f) {
  for (const char *name : {"a1.weight", "a2.weight", "b1.weight", "b2.weight"}) columns_of(f, name);
  if (!ranks_agree(f, kOld)) return kCurrent;
  if (!ranks_agree(f, kCurrent)) return kOld;
  return rows_of(f, kOld.a_down) <= rows_of(f, kCurrent.a_down) ? kOld : kCurrent;
}

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  const std::int64_t r = spec.rank;
  const Shape ones(layer.kernel.size(), 1);
  return {{kCurrent.a_up, join({layer.in, r}, ones)},
          {kCurrent.a_down, join({r, layer.in}, ones)},
          {kCurrent.b_up, join({layer.out, r}, ones)},
          {kCurrent.b_down, join({r, layer.in}, layer.kernel)}};
}

DeltaShape describe(const Factors &f, const Traits &) {
  const Names &n = names_of(f);
  DeltaShape shape;
  shape.reads_base = true;
  shape.out = rows_of(f, n.b_up);
  shape.rank = rows_of(f, n.b_down);
  require_equal(matrix_columns_of(f, n.a_up), n.a_up, rows_of(f, n.a_down), n.a_down, "rank");
  require_equal(rows_of(f, n.a_down), n.a_down, shape.rank, n.b_down, "rank");
  const std::int64_t in = matrix_columns_of(f, n.a_down);
  require_equal(rows_of(f, n.a_up), n.a_up, in, n.a_down, "inputs");
  require_equal(f.at(n.b_down).shape[1], n.b_down, in, n.a_down, "inputs");
  if (f.has("bm.weight")) {
    require_equal(matrix_columns_of(f, n.b_up), n.b_up, rows_of(f, "bm.weight"), "bm.weight", "rank");
    require_equal(core_columns_of(f, "bm.weight"), "bm.weight", shape.rank, n.b_down, "rank");
    shape.kernel = kernel_of(f, "bm.weight");
    shape.columns = with_taps(matrix_columns_of(f, n.b_down), shape.kernel);
    shape.flags = LYC_MODULE_TUCKER;
  } else {
    require_equal(matrix_columns_of(f, n.b_up), n.b_up, shape.rank, n.b_down, "rank");
    shape.kernel = kernel_of(f, n.b_down);
    shape.columns = columns_of(f, n.b_down);
  }
  return shape;
}

void lower(Lowering &to) {
  const Factors &f = to.factors;
  const Names &n = names_of(f);
  ops::Product &b = to.add().p;
  b.up = matrix(f.at(n.b_up));
  if (f.has("bm.weight")) {
    b.core = taps(f.at("bm.weight"), f.at("bm.weight").shape[1], to.layer.kernel);
    b.down = matrix(f.at(n.b_down));
  } else {
    b.down = taps(f.at(n.b_down), to.layer.in, to.layer.kernel);
  }
  ops::Product &a = to.add(ops::TermKind::kBaseProduct).p;
  a.up = matrix(f.at(n.a_up));
  a.down = matrix(f.at(n.a_down));
}

}  // namespace

const Algorithm kGlora = {LYC_ALGO_GLORA, "glora", kNone, kSuffixes, kSuffixes, {},
                          kCommonFlags,   true,    false, factors,   describe,  lower};

}  // namespace lyc::algo
