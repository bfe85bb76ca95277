// One family at a time: its factors by shape, filled with numbers, and what the terms it names make of them.
#pragma once

#include <deque>
#include <functional>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <map>

#include "algo/algorithm.hpp"
#include "base/error.hpp"
#include "reference/weight_reference.hpp"
#include "support/random.hpp"
#include "support/tensor.hpp"

namespace lyc::test {

using Shapes = std::map<std::string, lyc::Shape>;

inline Shapes shapes_of(lyc_algo id, const algo::Spec &spec, const algo::LayerShape &layer) {
  Shapes shapes;
  for (const algo::FactorSpec &factor : algo::find_algorithm(id)->factors(spec, layer))
    shapes[factor.name] = factor.shape;
  return shapes;
}

/// Factors in float32 with random values.
class Filled {
 public:
  explicit Filled(const Shapes &shapes, std::uint64_t seed = 1) {
    Random random(seed);
    for (const auto &[name, shape] : shapes) {
      std::int64_t count = 1;
      for (std::int64_t extent : shape) count *= extent;
      std::vector<float> &values = values_[name];
      for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(random.normal()));
      factors.set(name, make_tensor(values.data(), LYC_DTYPE_F32, shape));
    }
  }
  double operator()(const std::string &name, std::int64_t index) const {
    return static_cast<double>(values_.at(name).at(static_cast<std::size_t>(index)));
  }
  algo::Factors factors;

 private:
  std::map<std::string, std::vector<float>> values_;
};

/// delta(o, i, k) by the family's own formula beside what its terms come to.
inline void expect_delta(lyc_algo id, const Filled &filled, const algo::LayerShape &layer,
                         const std::function<double(std::int64_t, std::int64_t, std::int64_t)> &delta,
                         const ops::Operand *base = nullptr, const algo::Traits &traits = {}) {
  std::vector<ops::Term> terms;
  std::vector<ops::Rotation> rotations;
  const algo::Algorithm &algorithm = *algo::find_algorithm(id);
  const algo::DeltaShape shape = algorithm.describe(filled.factors, traits);
  algo::Lowering to{filled.factors, layer, shape, traits, 0, {}, terms, rotations};
  algorithm.lower(to);
  char nowhere = 0;
  ops::Adapter adapter;
  adapter.term_count = static_cast<std::int32_t>(terms.size());
  ops::WeightTarget target;
  target.adapter_count = 1;
  target.out.data = &nowhere;
  target.out.out = layer.out;
  target.out.in = layer.in;
  target.out.kernel_dims = static_cast<std::int32_t>(layer.kernel.size());
  std::copy(layer.kernel.begin(), layer.kernel.end(), target.out.kernel);
  if (base) target.base = *base;
  ops::WeightBatch batch{&target, &adapter, terms.data(), rotations.data(), 1, 1, adapter.term_count, 1, 1};
  const std::vector<double> got = reference_weight(batch, ops::WeightOp::kDiff, nullptr).front();
  std::size_t index = 0;
  for (std::int64_t o = 0; o < layer.out; ++o)
    for (std::int64_t i = 0; i < layer.in; ++i)
      for (std::int64_t k = 0; k < layer.kernel_size(); ++k, ++index)
        ASSERT_NEAR(got[index], delta(o, i, k), 1e-12) << o << ", " << i << ", " << k;
}

/// The extents of a layer's weight, for a base of random values.
inline Shape extents(const algo::LayerShape &layer) {
  Shape shape{layer.out, layer.in, {1, 1, 1}};
  std::copy(layer.kernel.begin(), layer.kernel.end(), shape.kernel);
  return shape;
}

inline algo::DeltaShape describe(lyc_algo id, const Shapes &shapes) {
  return algo::find_algorithm(id)->describe(Filled(shapes).factors, {});
}

/// The message by which contradictory shapes are refused.
inline std::string refusal(lyc_algo id, const Shapes &shapes) {
  try {
    describe(id, shapes);
  } catch (const Error &error) {
    EXPECT_EQ(error.status(), LYC_ERROR_FORMAT);
    return error.what();
  }
  return "accepted";
}

/// `shapes` with one of them changed.
inline Shapes with(Shapes shapes, const std::string &name, const lyc::Shape &shape) {
  shapes[name] = shape;
  return shapes;
}

inline Shapes without(Shapes shapes, const std::string &name) {
  shapes.erase(name);
  return shapes;
}

/// What factors() makes, describe() reads back as the same layer.
inline void expect_round_trip(lyc_algo id, const algo::Spec &spec, const algo::LayerShape &layer) {
  const algo::DeltaShape shape = describe(id, shapes_of(id, spec, layer));
  EXPECT_EQ(shape.out, layer.out);
  EXPECT_EQ(shape.columns, layer.in * layer.kernel_size());
  EXPECT_TRUE(shape.rank == 0 || shape.rank == spec.rank);
  EXPECT_TRUE(shape.kernel.empty() || !layer.has_kernel() || shape.kernel == layer.kernel);
}

inline const std::vector<algo::LayerShape> kLayers = {{6, 4, {}}, {4, 4, {}}, {6, 4, {3}},       {6, 4, {3, 2}},
                                                      {1, 1, {}}, {7, 5, {}}, {6, 4, {2, 3, 2}}, {6, 4, {1, 1}}};

}  // namespace lyc::test
