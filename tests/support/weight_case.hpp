// Random weights with random adapters on them, for the tests of every back end.
#pragma once

#include <algorithm>
#include <vector>

#include "support/random.hpp"
#include "support/tensor.hpp"

namespace lyc::test {

/// The last three are for kBaseHadamard: whole, of stride 0 where it does not vary.
enum class Half { kLowRank, kWhole, kTucker, kByRow, kByColumn, kConstant };

struct RotationChoice {
  ops::Rotation::Axis axis = ops::Rotation::Axis::kOut;
  ops::Rotation::Storage storage = ops::Rotation::Storage::kSquare;
  ops::Rotation::Map map = ops::Rotation::Map::kCayley;
  ops::Rotation::Order order = ops::Rotation::Order::kPlain;
  ops::Rotation::Limit limited = ops::Rotation::Limit::kNone;
  int neumann_terms = 5, stages = 1;
  std::int64_t block_size = 1, begin = 0;  // as many blocks as fit
  double factor = 1.0, limit = 0.0;
  bool rescale = false, shared = false;
};

struct TermChoice {
  ops::TermKind kind = ops::TermKind::kProduct;
  Half p = Half::kLowRank, q = Half::kLowRank;
  std::int64_t rank = 4;
  std::int64_t p_out = 1, p_in = 1;  // kKronecker: sizes of the left half; they divide the weight's
  std::int64_t row_begin = 0;
  bool scalar = false;
  bool diagonal = false, mask = false;  // on every product with a rank
  RotationChoice rotation;
};

struct AdapterChoice {
  std::vector<TermChoice> terms;
  ops::DoraAxis axis = ops::DoraAxis::kNone;
  ops::DoraRule rule = ops::DoraRule::kInterpolate;
  bool replaces = false;
};

struct TargetChoice {
  Shape shape;
  lyc_dtype base_dtype = LYC_DTYPE_F32, out_dtype = LYC_DTYPE_F32;
  Order base_order = Order::kOIHW, out_order = Order::kOIHW;
  bool in_place = false;
  std::vector<AdapterChoice> adapters;
};

/// A batch that owns all it points to. One multiplier for each adapter.
class WeightCase {
 public:
  explicit WeightCase(std::uint64_t seed, std::size_t alignment = 1) : random_(seed), arena_(alignment) {}

  void add(const TargetChoice &choice) {
    ops::WeightTarget target;
    target.base = arena_.random(choice.shape, choice.base_dtype, random_, 1.0, choice.base_order);
    target.out = choice.in_place ? target.base : arena_.tensor(choice.shape, choice.out_dtype, choice.out_order);
    target.first_adapter = static_cast<std::int32_t>(adapters_.size());
    target.adapter_count = static_cast<std::int32_t>(choice.adapters.size());
    for (const AdapterChoice &adapter : choice.adapters) add_adapter(choice.shape, adapter);
    targets_.push_back(target);
  }

  ops::WeightBatch batch() const {
    ops::WeightBatch batch;
    batch.targets = targets_.data();
    batch.adapters = adapters_.data();
    batch.terms = terms_.data();
    batch.rotations = rotations_.data();
    batch.rotation_count = static_cast<std::int64_t>(rotations_.size());
    batch.target_count = static_cast<std::int64_t>(targets_.size());
    batch.adapter_count = static_cast<std::int64_t>(adapters_.size());
    batch.term_count = static_cast<std::int64_t>(terms_.size());
    batch.multiplier_count = static_cast<std::int32_t>(multipliers.size());
    return batch;
  }

  /// The same, of one target.
  ops::WeightBatch batch(std::int64_t target) const {
    ops::WeightBatch one = batch();
    one.targets += target;
    one.target_count = 1;
    return one;
  }

  std::vector<ops::WeightTarget> &targets() { return targets_; }
  std::vector<ops::Adapter> &adapters() { return adapters_; }
  std::vector<ops::Term> &terms() { return terms_; }
  std::vector<ops::Rotation> &rotations() { return rotations_; }
  Arena &arena() { return arena_; }
  std::vector<float> multipliers;
  lyc_dtype factor_dtype = LYC_DTYPE_NONE;  // of factors added from now on, contiguous then; NONE = mixed, in any order

 private:
  ops::Operand factor(const Shape &shape, double scale = 0.5) {
    if (factor_dtype != LYC_DTYPE_NONE) return arena_.random(shape, factor_dtype, random_, scale);
    const lyc_dtype dtype = random_.one_of({LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16});
    const Order order = random_.one_of({Order::kOIHW, Order::kHWIO, Order::kOHWI, Order::kGaps, Order::kIOHW});
    return arena_.random(shape, dtype, random_, scale, order);
  }

  ops::Product product(const Shape &shape, Half half, std::int64_t rank, const TermChoice &choice) {
    ops::Product product;
    Shape down = shape, core = shape;
    if (half != Half::kLowRank && half != Half::kTucker) return product.down = whole(shape, half), product;
    down.out = rank;
    product.up = factor({shape.out, rank, {1, 1, 1}});
    if (choice.diagonal) product.diagonal = factor({rank, 1, {1, 1, 1}}, 1.0);
    if (choice.mask) product.mask = mask(rank);
    if (half == Half::kTucker) {
      down = {rank + 1, shape.in, {1, 1, 1}};  // ranks differ: neither stands in for the other
      core.out = rank;
      core.in = rank + 1;
      product.core = factor(core);
    }
    product.down = factor(down);
    return product;
  }

  ops::Operand whole(const Shape &shape, Half half) {
    if (half == Half::kWhole) return factor(shape);
    ops::Operand operand = factor({half == Half::kByRow ? shape.out : 1, half == Half::kByColumn ? shape.in : 1});
    if (half != Half::kByRow) operand.stride_out = 0;
    if (half != Half::kByColumn) operand.stride_in = 0;
    operand.out = shape.out;
    operand.in = shape.in;
    operand.kernel_dims = 2;
    std::copy(shape.kernel, shape.kernel + ops::kMaxKernelDims, operand.kernel);
    std::fill(operand.stride_kernel, operand.stride_kernel + ops::kMaxKernelDims, 0);
    return operand;
  }

  ops::Operand mask(std::int64_t rank) {
    const ops::Operand mask = arena_.tensor({rank, 1, {1, 1, 1}}, LYC_DTYPE_F32);
    for (std::int64_t r = 0; r < rank; ++r) set(mask, r, random_.chance(0.5) ? 1.0 : 0.0);
    return mask;
  }

  // About one element in five; rows without any occur.
  ops::Sparse sparse(const Shape &shape) {
    std::vector<std::int64_t> starts{0}, columns;
    for (std::int64_t row = 0; row < shape.out; ++row) {
      for (std::int64_t column = 0; column < shape.numel() / shape.out; ++column)
        if (random_.chance(0.2)) columns.push_back(column);
      starts.push_back(static_cast<std::int64_t>(columns.size()));
    }
    return {integers(starts), integers(columns), factor({static_cast<std::int64_t>(columns.size())})};
  }

  ops::Operand integers(const std::vector<std::int64_t> &values) {
    const ops::Operand operand = arena_.tensor({static_cast<std::int64_t>(values.size()), 1, {1, 1, 1}}, LYC_DTYPE_I64);
    if (!values.empty()) std::memcpy(operand.data, values.data(), values.size() * sizeof values[0]);
    return operand;
  }

  void add_adapter(const Shape &shape, const AdapterChoice &choice) {
    ops::Adapter adapter;
    adapter.first_term = static_cast<std::int32_t>(terms_.size());
    adapter.term_count = static_cast<std::int32_t>(choice.terms.size());
    adapter.multiplier_index = static_cast<std::int32_t>(multipliers.size());
    multipliers.push_back(static_cast<float>(random_.uniform() * 1.5 + 0.1));
    adapter.dora_axis = choice.axis;
    adapter.dora_rule = choice.rule;
    adapter.replaces = choice.replaces;
    if (choice.axis != ops::DoraAxis::kNone) {
      const bool out = choice.axis == ops::DoraAxis::kOut;
      adapter.epsilon = choice.rule == ops::DoraRule::kPeft ? 0.0f : 0x1p-23f;
      adapter.magnitude = factor({out ? shape.out : 1, out ? 1 : shape.in, {1, 1, 1}}, 3.0);
    }
    for (const TermChoice &term : choice.terms) add_term(shape, term);
    adapters_.push_back(adapter);
  }

  void add_term(Shape shape, const TermChoice &choice) {
    ops::Term term;
    term.kind = choice.kind;
    term.coefficient = 0.25 + random_.uniform();
    term.row_begin = choice.row_begin;
    if (choice.scalar) term.scalar = factor({});
    switch (choice.kind) {
      case ops::TermKind::kKronecker: {
        Shape q = shape;
        q.out = shape.out / choice.p_out;
        q.in = shape.in / choice.p_in;
        // A term that starts at a later row has as many rows more.
        const std::int64_t more = (choice.row_begin + q.out - 1) / q.out;
        term.p = product({choice.p_out + more, choice.p_in, {1, 1, 1}}, choice.p, choice.rank, choice);
        term.q = product(q, choice.q, choice.rank, choice);
        break;
      }
      case ops::TermKind::kBaseProduct:
        term.p = product({shape.in, shape.in, {1, 1, 1}}, choice.p, choice.rank, choice);
        break;
      case ops::TermKind::kRotation:
        term.rotation = static_cast<std::int32_t>(rotations_.size());
        rotations_.push_back(rotation(shape, choice.rotation));
        if (random_.chance(0.5)) term.coefficient = 1.0;  // as families have it
        break;
      case ops::TermKind::kSparse:
        shape.out += choice.row_begin;
        term.sparse = sparse(shape);
        break;
      default:
        shape.out += choice.row_begin;
        term.p = product(shape, choice.p, choice.rank, choice);
        if (choice.kind == ops::TermKind::kHadamard) term.q = product(shape, choice.q, choice.rank + 1, choice);
    }
    terms_.push_back(term);
  }

  ops::Rotation rotation(const Shape &shape, const RotationChoice &choice) {
    ops::Rotation rotation;
    rotation.axis = choice.axis;
    rotation.storage = choice.storage;
    rotation.map = choice.map;
    rotation.order = choice.order;
    rotation.limited = choice.limited;
    rotation.neumann_terms = choice.neumann_terms;
    rotation.stages = choice.stages;
    rotation.block_size = choice.block_size;
    rotation.begin = choice.begin;
    rotation.factor = choice.factor;
    rotation.limit = choice.limit;
    const bool out = choice.axis == ops::Rotation::Axis::kOut;
    const std::int64_t extent = (out ? shape.out : shape.numel() / shape.out) - choice.begin;
    const std::int64_t window = choice.block_size << (choice.stages - 1), b = choice.block_size;
    rotation.blocks = extent / window * window / b;
    const bool square = choice.storage == ops::Rotation::Storage::kSquare;
    // A series wants small generators, as they are in practice.
    const double scale = (choice.map == ops::Rotation::Map::kNeumann ? 0.2 : 0.7) / std::sqrt(static_cast<double>(b));
    rotation.generators = arena_.random(
        {choice.shared ? 1 : rotation.blocks * choice.stages, square ? b * b : b * (b - 1) / 2, {1, 1, 1}},
        factor_dtype != LYC_DTYPE_NONE ? factor_dtype : random_.one_of({LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16}),
        random_, scale);
    if (choice.shared) rotation.generators.stride_out = 0;
    if (choice.rescale) rotation.rescale = factor({shape.out, 1, {1, 1, 1}}, 1.0);
    return rotation;
  }

  Random random_;
  Arena arena_;
  std::vector<ops::WeightTarget> targets_;
  std::vector<ops::Adapter> adapters_;
  std::vector<ops::Term> terms_;
  std::vector<ops::Rotation> rotations_;
};

/// Float32 values, one after the other, as prepared norms of an adapter.
inline ops::Operand norms_from(const ops::Adapter &adapter, float *values) {
  ops::Operand norms = adapter.magnitude;
  norms.data = values;
  norms.dtype = LYC_DTYPE_F32;
  norms.stride_out = norms.stride_in = 1;
  return norms;
}

inline std::int64_t any_divisor(std::int64_t n, Random &random) {
  std::int64_t divisor = random.between(1, n);
  while (n % divisor) --divisor;
  return divisor;
}

/// Any rotation that fits the axis of some weights.
inline RotationChoice random_rotation(const Shape &shape, Random &random) {
  using ops::Rotation;
  RotationChoice choice;
  choice.axis = random.one_of({Rotation::Axis::kOut, Rotation::Axis::kIn});
  choice.storage = random.one_of({Rotation::Storage::kSquare, Rotation::Storage::kTriangle});
  choice.map = random.one_of({Rotation::Map::kCayley, Rotation::Map::kCayley, Rotation::Map::kNeumann});
  choice.neumann_terms = static_cast<int>(random.between(1, 7));
  choice.limited = random.one_of(
      {Rotation::Limit::kNone, Rotation::Limit::kTogether, Rotation::Limit::kAlways, Rotation::Limit::kBlock});
  choice.limit = random.chance(0.2) ? 0.0 : random.uniform();
  choice.factor = random.one_of({1.0, -1.0, 0.5, -0.5});
  choice.rescale = random.chance(0.4);
  choice.shared = random.chance(0.2);
  const std::int64_t extent = choice.axis == Rotation::Axis::kOut ? shape.out : shape.numel() / shape.out;
  choice.begin = random.chance(0.3) ? random.between(0, extent - 1) : 0;
  choice.block_size = random.between(1, std::min<std::int64_t>(extent - choice.begin, 40));
  if (choice.block_size % 2 || random.chance(0.5)) return choice;
  choice.order = random.one_of({Rotation::Order::kInterleave, Rotation::Order::kHalves});
  while (choice.block_size << choice.stages <= extent - choice.begin && random.chance(0.8)) ++choice.stages;
  return choice;
}

inline ops::TermKind random_kind(Random &random) {
  using ops::TermKind;
  return random.one_of({TermKind::kProduct, TermKind::kProduct, TermKind::kHadamard, TermKind::kKronecker,
                        TermKind::kSparse, TermKind::kBaseHadamard, TermKind::kBaseProduct});
}

inline Half random_half(ops::TermKind kind, Random &random) {
  switch (kind) {
    case ops::TermKind::kBaseProduct:
      return random.one_of({Half::kLowRank, Half::kWhole});
    case ops::TermKind::kBaseHadamard:
      return random.one_of(
          {Half::kLowRank, Half::kWhole, Half::kTucker, Half::kByRow, Half::kByColumn, Half::kConstant});
    default:
      return random.one_of({Half::kLowRank, Half::kWhole, Half::kTucker});
  }
}

/// Odd, prime, square, 1; ranks above a dimension; every form, type, layout and rule.
inline TargetChoice random_target(Random &random, bool rotations = false) {
  const auto extent = [&] { return random.one_of<std::int64_t>({1, 2, 3, 7, 12, 16, 31, 48, 64, 65, 97, 130}); };
  TargetChoice target;
  target.shape.out = extent();
  target.shape.in = random.chance(0.3) ? target.shape.out : extent();
  if (random.chance(0.5)) {
    target.shape.in = std::min<std::int64_t>(target.shape.in, 48);
    for (std::int64_t &k : target.shape.kernel) k = random.between(1, 3);
  }
  const auto dtype = [&] { return random.one_of({LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16}); };
  const auto order = [&] {
    return random.one_of({Order::kOIHW, Order::kOIHW, Order::kHWIO, Order::kOHWI, Order::kGaps, Order::kIOHW});
  };
  target.base_dtype = dtype();
  target.out_dtype = dtype();
  target.out_order = order();
  target.base_order = random.chance(0.6) ? target.out_order : order();
  target.in_place = random.chance(0.25);
  for (std::int64_t a = random.between(1, 2); a > 0; --a) {
    AdapterChoice adapter;
    const bool rotates = rotations && random.chance(0.5);
    adapter.replaces = !rotates && random.chance(0.15);
    if (!adapter.replaces && !rotates)
      adapter.axis = random.one_of({ops::DoraAxis::kNone, ops::DoraAxis::kOut, ops::DoraAxis::kIn});
    adapter.rule = random.one_of({ops::DoraRule::kInterpolate, ops::DoraRule::kLycoris, ops::DoraRule::kPeft});
    for (std::int64_t t = random.chance(0.2) ? 2 : 1; t > 0; --t) {
      TermChoice term;
      term.kind = random_kind(random);
      term.p = random_half(term.kind, random);
      term.q = random.one_of({Half::kLowRank, Half::kWhole, Half::kTucker});
      term.rank = random.one_of<std::int64_t>({1, 2, 4, 5, 9});
      term.scalar = random.chance(0.3);
      term.diagonal = random.chance(0.3);
      term.mask = random.chance(0.2);
      term.row_begin = random.chance(0.2) ? random.between(1, 20) : 0;
      term.p_out = any_divisor(target.shape.out, random);
      term.p_in = any_divisor(target.shape.in, random);
      if (rotates) {
        term.kind = random.chance(0.8) ? ops::TermKind::kRotation : term.kind;
        term.rotation = random_rotation(target.shape, random);
        if (term.kind == ops::TermKind::kRotation) term.row_begin = 0;
      }
      adapter.terms.push_back(term);
    }
    target.adapters.push_back(adapter);
  }
  return target;
}

}  // namespace lyc::test
