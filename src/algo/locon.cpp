// LoRA (arXiv:2106.09685) and its form for convolutions:
//
//   plain   D[o, i, k] = sum_r  up[o, r] * down[r, i, k]
//   Tucker  D[o, i, k] = sum_pq up[o, p] * mid[p, q, k] * down[q, i]
//
// Layer:     linear       convolution    convolution, Tucker    embedding [n, dim]         E matrices [E, O, I]
// lora_up    [O, r]       [O, r, 1...]   [O, r, 1...]           lora_embedding_B [dim, r]  [O, r*E]
// lora_down  [r, I]       [r, I, K...]   [r, I, 1...]           lora_embedding_A [r, n]    [E*r, I]
// lora_mid                               [r, r, K...]
//
// An embedding's factors are those of the transposed table. lora_up.bias [O] is a bias of the up factor and scaled as
// the delta is; diff_b is not. Of a mask of ranks the first ones are kept: DyLoRA (arXiv:2210.07558) trains for that,
// block by block, and is LoRA in everything else.
#include "algo/sparse.hpp"
#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kUp = "lora_up.weight", *kDown = "lora_down.weight", *kMid = "lora_mid.weight";
constexpr const char *kUpBias = "lora_up.bias", *kTableUp = "lora_embedding_B", *kTableDown = "lora_embedding_A";
constexpr const char *kAliases[] = {"lora", nullptr};
constexpr const char *kSuffixes[] = {kUp,      kDown,      kMid,           kUpBias,       "diff_b",
                                     kTableUp, kTableDown, "bias_indices", "bias_values", nullptr};
constexpr const char *kSignature[] = {kUp, kDown, kTableUp, kTableDown, nullptr};

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  const std::int64_t r = spec.rank;
  const Shape ones(layer.kernel.size(), 1);
  const bool tucker = (spec.flags & LYC_MODULE_TUCKER) && layer.has_kernel();
  std::vector<FactorSpec> list = {{kUp, join({layer.out, r}, ones)},
                                  {kDown, join({r, layer.in}, tucker ? ones : layer.kernel)}};
  if (tucker) list.push_back({kMid, join({r, r}, layer.kernel)});
  return list;
}

std::vector<FactorSpec> block_factors(const Spec &spec, const LayerShape &layer) {
  require(spec.factor <= 0 || spec.rank % spec.factor == 0, "rank is ", spec.rank, ", must be a multiple of factor, ",
          spec.factor, ", the ranks of a block");
  return factors(spec, layer);
}

bool is_embedding(const Factors &f) { return f.has(kTableUp) || f.has(kTableDown); }

DeltaShape describe_embedding(const Factors &f) {
  DeltaShape shape;
  shape.transposed = true;
  shape.out = matrix_columns_of(f, kTableDown);
  shape.columns = rows_of(f, kTableUp);
  shape.rank = rows_of(f, kTableDown);
  require_equal(matrix_columns_of(f, kTableUp), kTableUp, shape.rank, kTableDown, "rank");
  return shape;
}

DeltaShape describe_layer(const Factors &f) {
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

DeltaShape describe(const Factors &f, const Traits &traits) {
  DeltaShape shape = is_embedding(f) ? describe_embedding(f) : describe_layer(f);
  if (f.has(kUpBias)) require_equal(values_of(f, kUpBias), kUpBias, shape.out, kUp, "rows");
  shape.bias = f.has(kUpBias);
  if (has_sparse(f)) {
    const DeltaShape residual = describe_sparse(f, traits);
    require_equal(residual.out, "bias_size", shape.out, kUp, "rows");
    require_equal(residual.columns, "bias_size", shape.columns, kDown, "columns");
  }
  if (traits.experts == 1) return shape;
  if (f.has(kMid) || is_embedding(f) || shape.rank % traits.experts != 0)
    fail(LYC_ERROR_FORMAT, "factors of rank ", shape.rank, " cannot be shared by ", traits.experts, " matrices");
  shape.rank /= traits.experts;
  shape.experts = traits.experts;
  return shape;
}

ops::Operand moved(ops::Operand operand, std::int64_t elements) {
  operand.data = static_cast<char *>(operand.data) + elements * static_cast<std::int64_t>(dtype_size(operand.dtype));
  return operand;
}

/// Of a stack: up viewed [O, r, E], down viewed [E, r, I].
void take_expert(ops::Product &product, const Lowering &to) {
  const std::int64_t rank = to.shape.rank;
  product.up = moved(product.up, to.expert);
  product.up.stride_in = to.shape.experts;
  product.down = moved(product.down, to.expert * rank * product.down.stride_out);
  product.up.in = product.down.out = rank;
}

void lower(Lowering &to) {
  const Factors &f = to.factors;
  const LayerShape &layer = to.layer;
  ops::Product &product = to.add().p;
  if (is_embedding(f)) {
    product.up = transposed(f.at(kTableDown));
    product.down = transposed(f.at(kTableUp));
  } else if (f.has(kMid)) {
    product.up = matrix(f.at(kUp));
    product.core = taps(f.at(kMid), f.at(kMid).shape[1], layer.kernel);
    product.down = matrix(f.at(kDown));
  } else {
    product.up = matrix(f.at(kUp));
    product.down = taps(f.at(kDown), layer.in, layer.kernel);
  }
  if (to.shape.experts > 1) take_expert(product, to);
  if (has_sparse(f)) lower_sparse(to);
}

void lower_bias(Lowering &to) {
  if (to.factors.has("diff_b")) to.add().p.down = column(to.factors.at("diff_b"));
  if (!to.factors.has(kUpBias)) return;
  ops::Term &term = to.add();
  term.coefficient = to.scale;
  term.p.down = column(to.factors.at(kUpBias));
}

}  // namespace

const Algorithm kLocon = {LYC_ALGO_LOCON,
                          "locon",
                          kAliases,
                          kSuffixes,
                          kSignature,
                          "diff_b",
                          LYC_MODULE_TUCKER | kCommonFlags,
                          true,
                          true,
                          factors,
                          describe,
                          lower,
                          lower_bias,
                          nullptr,
                          &kSparseRewriting,
                          true};

const Algorithm kDylora = {LYC_ALGO_DYLORA, "dylora",      kNone,    kSuffixes, kNone,      "diff_b", kCommonFlags, true,
                           true,            block_factors, describe, lower,     lower_bias, nullptr,  nullptr,      true};

}  // namespace lyc::algo
