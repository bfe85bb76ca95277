#include "reference/weight_reference.hpp"

#include <algorithm>
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

double base_product_at(const Product &p, const Operand &base, std::int64_t o, std::int64_t j, std::int64_t k) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < base.in; ++i) sum += at(base, o, i, k) * product_at(p, i, j, 0);
  return sum;
}

double term_at(const Term &term, const Operand &base, std::int64_t row, std::int64_t i, std::int64_t k) {
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
      return scale * base_product_at(term.p, base, row, i, k);
    default:
      break;
  }
  const std::int64_t oq = term.q.out(), iq = term.q.in();
  return scale * product_at(term.p, o / oq, i / iq, 0) * product_at(term.q, o % oq, i % iq, k);
}

// -- Rotations -------------------------------------------------------------------------------------------------

using Values = std::vector<double>;

/// Q of one block before its limit.
Values skew(const ops::Rotation &rotation, std::int64_t block) {
  const std::int64_t b = rotation.block_size;
  const auto x = [&](std::int64_t index) {
    return get(rotation.generators, block * rotation.generators.stride_out + index * rotation.generators.stride_in);
  };
  Values q(static_cast<std::size_t>(b * b));
  std::int64_t stored = 0;
  for (std::int64_t i = 0; i < b; ++i)
    for (std::int64_t j = i + 1; j < b; ++j) {
      const double above =
          rotation.storage == ops::Rotation::Storage::kTriangle ? x(stored++) : x(i * b + j) - x(j * b + i);
      q[static_cast<std::size_t>(i * b + j)] = rotation.factor * above;
      q[static_cast<std::size_t>(j * b + i)] = -rotation.factor * above;
    }
  return q;
}

double norm(const std::vector<Values> &blocks) {
  double squares = 0.0;
  for (const Values &block : blocks)
    for (double value : block) squares += value * value;
  return std::sqrt(squares);
}

void shrink(const ops::Rotation &rotation, std::vector<Values> &blocks) {
  const double length = norm(blocks) + 1e-8, limit = rotation.limit;
  const auto scale = [](Values &block, double by) {
    for (double &value : block) value *= by;
  };
  for (Values &block : blocks) switch (rotation.limited) {
      case ops::Rotation::Limit::kNone:
        break;
      case ops::Rotation::Limit::kTogether:
        if (length > limit) scale(block, limit / length);
        break;
      case ops::Rotation::Limit::kAlways:
        scale(block, (std::min(length - 1e-8, limit) + 1e-8) / length);
        break;
      case ops::Rotation::Limit::kBlock:
        if (const double own = norm({block}); own > limit) scale(block, limit / own);
        break;
    }
}

Values multiply(const Values &a, const Values &b, std::size_t n) {
  Values product(n * n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j)
      for (std::size_t k = 0; k < n; ++k) product[i * n + j] += a[i * n + k] * b[k * n + j];
  return product;
}

/// 2 ((I - Q)^-1 - I) by Gauss and Jordan; pivots are never small, since Q is skew-symmetric.
Values cayley(const Values &q, std::size_t n) {
  Values a(n * n), inverse(n * n);
  for (std::size_t i = 0; i < n * n; ++i) a[i] = -q[i];
  for (std::size_t i = 0; i < n; ++i) a[i * n + i] += 1.0, inverse[i * n + i] = 1.0;
  for (std::size_t k = 0; k < n; ++k) {
    const double pivot = a[k * n + k];
    for (std::size_t j = 0; j < n; ++j) a[k * n + j] /= pivot, inverse[k * n + j] /= pivot;
    for (std::size_t i = 0; i < n; ++i) {
      if (i == k) continue;
      const double by = a[i * n + k];
      for (std::size_t j = 0; j < n; ++j) {
        a[i * n + j] -= by * a[k * n + j];
        inverse[i * n + j] -= by * inverse[k * n + j];
      }
    }
  }
  for (std::size_t i = 0; i < n; ++i) inverse[i * n + i] -= 1.0;
  for (double &value : inverse) value *= 2.0;
  return inverse;
}

/// 2Q + 2Q^2 + ... + Q^(terms - 1), with the exceptions for few terms.
Values neumann(const Values &q, std::size_t n, int terms) {
  Values sum(n * n), power = q;
  const int last = terms < 3 ? terms - 1 : std::max(terms, 4) - 1;
  for (int exponent = 1; exponent <= last; ++exponent) {
    const double weight = exponent == last && terms > 2 ? 1.0 : 2.0;
    for (std::size_t i = 0; i < n * n; ++i) sum[i] += weight * power[i];
    power = multiply(power, q, n);
  }
  return sum;
}

/// R - I of every stage and block.
std::vector<Values> rests(const ops::Rotation &rotation) {
  std::vector<Values> blocks;
  for (std::int64_t block = 0; block < rotation.stages * rotation.blocks; ++block)
    blocks.push_back(skew(rotation, block));
  shrink(rotation, blocks);
  const auto n = static_cast<std::size_t>(rotation.block_size);
  for (Values &block : blocks)
    block = rotation.map == ops::Rotation::Map::kCayley ? cayley(block, n) : neumann(block, n, rotation.neumann_terms);
  return blocks;
}

/// Which element stands at `position` in the order of a stage.
std::int64_t element_at(const ops::Rotation &rotation, std::int64_t stage, std::int64_t position) {
  const std::int64_t half = (rotation.block_size << stage) / 2, window = 2 * half;
  const std::int64_t begin = window ? position / window * window : 0, inside = position - begin;
  switch (rotation.order) {
    case ops::Rotation::Order::kPlain:
      return position;
    case ops::Rotation::Order::kInterleave:
      return begin + inside % 2 * half + inside / 2;
    case ops::Rotation::Order::kHalves: {
      const std::int64_t part = rotation.block_size / 2, at = inside / part;
      const std::int64_t from = at % 2 * (half / part) + at / 2;
      return begin + from * part + inside % part;
    }
  }
  return position;
}

/// What a rotation makes of the elements along its axis.
void turn(const ops::Rotation &rotation, const std::vector<Values> &rests, double m, Values &elements) {
  const std::int64_t b = rotation.block_size;
  for (std::int64_t stage = 0; stage < rotation.stages; ++stage) {
    Values turned = elements;
    for (std::int64_t p = 0; p < rotation.extent(); ++p) {
      const Values &rest = rests[static_cast<std::size_t>(stage * rotation.blocks + p / b)];
      double &to = turned[static_cast<std::size_t>(rotation.begin + element_at(rotation, stage, p))];
      for (std::int64_t i = 0; i < b; ++i)
        to += m * rest[static_cast<std::size_t>(p % b * b + i)] *
              elements[static_cast<std::size_t>(rotation.begin + element_at(rotation, stage, p / b * b + i))];
    }
    elements = turned;
  }
}

/// Adds coefficient * (R'(W) - W) to `sum`.
void add_rotation(const Term &term, const ops::Rotation &rotation, const Operand &base, double m, Values &sum) {
  const double scale = term.coefficient * (term.scalar.data ? get(term.scalar, 0) : 1.0);
  const bool out = rotation.axis == ops::Rotation::Axis::kOut;
  const std::int64_t columns = base.in * base.kernel_size(), lines = out ? base.out : columns;
  const std::vector<Values> blocks = rests(rotation);
  for (std::int64_t other = 0; other < (out ? columns : base.out); ++other) {
    const auto row_of = [&](std::int64_t line) { return out ? line : other; };
    const auto column_of = [&](std::int64_t line) { return out ? other : line; };
    Values elements;
    for (std::int64_t line = 0; line < lines; ++line)
      elements.push_back(
          at(base, row_of(line), column_of(line) / base.kernel_size(), column_of(line) % base.kernel_size()));
    Values turned = elements;
    turn(rotation, blocks, m, turned);
    for (std::int64_t p = rotation.begin; p < rotation.begin + rotation.extent(); ++p) {
      const auto index = static_cast<std::size_t>(p);
      const double rescale = rotation.rescale.data ? at(rotation.rescale, row_of(p) + term.row_begin, 0, 0) : 1.0;
      sum[static_cast<std::size_t>(row_of(p) * columns + column_of(p))] +=
          scale * (rescale * turned[index] - elements[index]);
    }
  }
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
    for_each(target.out, [&](std::size_t index, std::int64_t o, std::int64_t i, std::int64_t k) {
      for (std::int32_t t = 0; t < adapter.term_count; ++t)
        if (const Term &term = batch.terms[adapter.first_term + t]; term.kind != ops::TermKind::kRotation)
          delta[index] += term_at(term, target.base, o, i, k);
    });
    if (adapter.dora_axis != ops::DoraAxis::kNone) {
      add_dora(adapter, target.base, delta, m, sum);
    } else if (adapter.replaces) {
      for_each(target.out, [&](std::size_t index, std::int64_t o, std::int64_t i, std::int64_t k) {
        sum[index] += delta[index] - at(target.base, o, i, k);
      });
    } else {
      for (std::size_t index = 0; index < sum.size(); ++index) sum[index] += m * delta[index];
    }
    for (std::int32_t t = 0; t < adapter.term_count; ++t)
      if (const Term &term = batch.terms[adapter.first_term + t]; term.kind == ops::TermKind::kRotation)
        add_rotation(term, batch.rotations[term.rotation], target.base, m, sum);
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
