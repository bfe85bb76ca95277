// LoRA (arXiv:2106.09685) and its form for convolutions:
//
//   plain   D[o, i, k] = sum_r  up[o, r] * down[r, i, k]
//   Tucker  D[o, i, k] = sum_pq up[o, p] * mid[p, q, k] * down[q, i]
//
// Layer:     linear            convolution         convolution, Tucker
// lora_up    [O, r]            [O, r, 1...]        [O, r, 1...]
// lora_down  [r, I]            [r, I, K...]        [r, I, 1...]
// lora_mid                                         [r, r, K...]
#include "algo/families.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kUp = "lora_up.weight", *kDown = "lora_down.weight", *kMid = "lora_mid.weight";
constexpr const char *kAliases[] = {"lora", nullptr};
constexpr const char *kSuffixes[] = {kUp, kDown, kMid, "diff_b", nullptr};
constexpr const char *kSignature[] = {kUp, kDown, nullptr};

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  const std::int64_t r = spec.rank;
  const Shape ones(layer.kernel.size(), 1);
  const bool tucker = (spec.flags & LYC_MODULE_TUCKER) && layer.has_kernel();
  std::vector<FactorSpec> list = {{kUp, join({layer.out, r}, ones)},
                                  {kDown, join({r, layer.in}, tucker ? ones : layer.kernel)}};
  if (tucker) list.push_back({kMid, join({r, r}, layer.kernel)});
  return list;
}

DeltaShape describe(const Factors &f, const Traits &) {
  DeltaShape shape;
  shape.out = rows_of(f, kUp);
  shape.rank = rows_of(f, kDown);
  if (f.has(kMid)) {
    require_equal(matrix_columns_of(f, kUp), "lora_up.weight", rows_of(f, kMid), "lora_mid.weight", "rank");
    require_equal(core_columns_of(f, kMid), "lora_mid.weight", shape.rank, "lora_down.weight", "rank");
    shape.kernel = kernel_of(f, kMid);
    shape.columns = with_taps(matrix_columns_of(f, kDown), shape.kernel);
    shape.flags = LYC_MODULE_TUCKER;
  } else {
    require_equal(matrix_columns_of(f, kUp), "lora_up.weight", shape.rank, "lora_down.weight", "rank");
    shape.kernel = kernel_of(f, kDown);
    shape.columns = columns_of(f, kDown);
  }
  return shape;
}

void lower(Lowering &to) {
  const Factors &f = to.factors;
  const LayerShape &layer = to.layer;
  ops::Term &term = to.add();
  term.p.up = matrix(f.at(kUp));
  if (f.has(kMid)) {
    term.p.core = taps(f.at(kMid), f.at(kMid).shape[1], layer.kernel);
    term.p.down = matrix(f.at(kDown));
  } else {
    term.p.down = taps(f.at(kDown), layer.in, layer.kernel);
  }
}

}  // namespace

const Algorithm kLocon = {
    LYC_ALGO_LOCON, "locon", kAliases, kSuffixes, kSignature, "diff_b", LYC_MODULE_TUCKER | kCommonFlags,
    true,           true,    factors,  describe,  lower};

}  // namespace lyc::algo
