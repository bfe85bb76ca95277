#include "reference/weight_reference.hpp"

#include <cmath>
#include <cstring>

#include "support/tensor.hpp"

namespace lyc::test {
namespace {

using ops::Adapter;
using ops::Operand;
using ops::Product;
using ops::Term;

double product_at(const Product &p, std::int64_t o, std::int64_t i, std::int64_t k) {
  if (p.whole()) return at(p.down, o, i, k);
  double sum = 0.0;
  for (std::int64_t r = 0; r < p.up.in; ++r) {
    double inner = 0.0;
    if (p.tucker())
      for (std::int64_t q = 0; q < p.down.out; ++q) inner += at(p.core, r, q, k) * at(p.down, q, i, 0);
    else
      inner = at(p.down, r, i, k);
    for (const Operand &along : {p.diagonal, p.mask})
      if (along.data) inner *= at(along, r, 0, 0);
    sum += at(p.up, o, r, 0) * inner;
  }
  return sum;
}

std::int64_t index_at(const Operand &t, std::int64_t position) {
  std::int64_t index;
  return std::memcpy(&index, static_cast<const std::int64_t *>(t.data) + position * t.stride_out, sizeof index), index;
}

double sparse_at(const ops::Sparse &sparse, std::int64_t row, std::int64_t column) {
  double sum = 0.0;
  for (std::int64_t n = index_at(sparse.row_starts, row); n < index_at(sparse.row_starts, row + 1); ++n)
    if (index_at(sparse.columns, n) == column) sum += at(sparse.values, n, 0, 0);
  return sum;
}

/// P[i, j] of a product with the weight, row by row: it is needed for every element.
std::vector<double> base_factor(const Term &term) {
  std::vector<double> all;
  if (term.kind == ops::TermKind::kBaseProduct)
    for (std::int64_t i = 0; i < term.p.out(); ++i)
      for (std::int64_t j = 0; j < term.p.in(); ++j) all.push_back(product_at(term.p, i, j, 0));
  return all;
}

double base_product_at(const std::vector<double> &p, const Operand &base, std::int64_t o, std::int64_t j,
                       std::int64_t k) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < base.in; ++i) sum += at(base, o, i, k) * p[static_cast<std::size_t>(i * base.in + j)];
  return sum;
}

double term_at(const Term &term, const std::vector<double> &factor, const Operand &base, std::int64_t row,
               std::int64_t i, std::int64_t k) {
  const double scale = term.coefficient * (term.scalar.data ? get(term.scalar, 0) : 1.0);
  const std::int64_t o = row + term.row_begin;
  switch (term.kind) {
    case ops::TermKind::kProduct:
      return scale * product_at(term.p, o, i, k);
    case ops::TermKind::kHadamard:
      return scale * product_at(term.p, o, i, k) * product_at(term.q, o, i, k);
    case ops::TermKind::kSparse:
      return scale * sparse_at(term.sparse, o, i * base.kernel_size() + k);
    case ops::TermKind::kBaseHadamard:
      return scale * product_at(term.p, o, i, k) * at(base, row, i, k);
    case ops::TermKind::kBaseProduct:
      return scale * base_product_at(factor, base, row, i, k);
    default:
      break;
  }
  const std::int64_t oq = term.q.out(), iq = term.q.in();
  return scale * product_at(term.p, o / oq, i / iq, 0) * product_at(term.q, o % oq, i % iq, k);
}

/// All (o, i, k) of a weight, in order.
template <typename Visit>
void for_each(const Operand &weight, Visit visit) {
  std::size_t index = 0;
  for (std::int64_t o = 0; o < weight.out; ++o)
    for (std::int64_t i = 0; i < weight.in; ++i)
      for (std::int64_t k = 0; k < weight.kernel_size(); ++k) visit(index++, o, i, k);
}

void add_dora(const Adapter &adapter, const Operand &base, const std::vector<double> &delta, double m,
              std::vector<double> &sum) {
  const bool peft = adapter.dora_rule == ops::DoraRule::kPeft, lycoris = adapter.dora_rule == ops::DoraRule::kLycoris;
  const bool out = adapter.dora_axis == ops::DoraAxis::kOut;
  const double v = peft ? m : 1.0, a = lycoris ? 1.0 - m : 0.0, b = peft ? 1.0 : m;
  const double c = peft || lycoris ? 1.0 : m;
  std::vector<double> squares(static_cast<std::size_t>(out ? base.out : base.in));
  for_each(base, [&](std::size_t index, std::int64_t o, std::int64_t i, std::int64_t k) {
    const double value = at(base, o, i, k) + v * delta[index];
    squares[static_cast<std::size_t>(out ? o : i)] += value * value;
  });
  for_each(base, [&](std::size_t index, std::int64_t o, std::int64_t i, std::int64_t k) {
    const double w = at(base, o, i, k), value = w + v * delta[index];
    const double n =
        std::sqrt(squares[static_cast<std::size_t>(out ? o : i)]) + (peft ? 0.0 : static_cast<double>(adapter.epsilon));
    const double g = out ? at(adapter.magnitude, o, 0, 0) : at(adapter.magnitude, 0, i, 0);
    sum[index] += (a + b * g / n) * value - c * w;
  });
}

std::vector<double> target_values(const ops::WeightBatch &batch, const ops::WeightTarget &target, ops::WeightOp op,
                                  const float *multipliers) {
  std::vector<double> sum(static_cast<std::size_t>(target.out.numel()));
  for (std::int32_t n = 0; n < target.adapter_count; ++n) {
    const Adapter &adapter = batch.adapters[target.first_adapter + n];
    const double m = multipliers ? static_cast<double>(multipliers[adapter.multiplier_index]) : 1.0;
    if (m == 0.0) continue;
    std::vector<double> delta(sum.size());
    for (std::int32_t t = 0; t < adapter.term_count; ++t) {
      const Term &term = batch.terms[adapter.first_term + t];
      const std::vector<double> factor = base_factor(term);
      for_each(target.out, [&](std::size_t index, std::int64_t o, std::int64_t i, std::int64_t k) {
        delta[index] += term_at(term, factor, target.base, o, i, k);
      });
    }
    if (adapter.dora_axis != ops::DoraAxis::kNone) {
      add_dora(adapter, target.base, delta, m, sum);
    } else if (adapter.replaces) {
      for_each(target.out, [&](std::size_t index, std::int64_t o, std::int64_t i, std::int64_t k) {
        sum[index] += delta[index] - at(target.base, o, i, k);
      });
    } else {
      for (std::size_t index = 0; index < sum.size(); ++index) sum[index] += m * delta[index];
    }
  }
  if (op == ops::WeightOp::kDiff) return sum;
  const double sign = op == ops::WeightOp::kUnmerge ? -1.0 : 1.0;
  for_each(target.out, [&](std::size_t index, std::int64_t o, std::int64_t i, std::int64_t k) {
    sum[index] = at(target.base, o, i, k) + sign * sum[index];
  });
  return sum;
}

}  // namespace

std::vector<std::vector<double>> reference_weight(const ops::WeightBatch &batch, ops::WeightOp op,
                                                  const float *multipliers) {
  std::vector<std::vector<double>> all;
  for (std::int64_t t = 0; t < batch.target_count; ++t)
    all.push_back(target_values(batch, batch.targets[t], op, multipliers));
  return all;
}

}  // namespace lyc::test
