#include "algo/family.hpp"
#include "support/tensor.hpp"

namespace lyc::test {
namespace {

using testing::HasSubstr;
constexpr lyc_algo kId = LYC_ALGO_GLORA;
const Shapes kLinear = {{"a1.weight", {4, 3}}, {"a2.weight", {3, 4}}, {"b1.weight", {6, 3}}, {"b2.weight", {3, 4}}};
const Shapes kOld = {{"a1.weight", {3, 4}}, {"a2.weight", {4, 3}}, {"b1.weight", {3, 4}}, {"b2.weight", {6, 3}}};

Shapes all(const lyc::Shape &shape) {
  return {{"a1.weight", shape}, {"a2.weight", shape}, {"b1.weight", shape}, {"b2.weight", shape}};
}

TEST(Glora, Shapes) {
  EXPECT_EQ(shapes_of(kId, {3}, {6, 4, {}}), kLinear);
  EXPECT_EQ(shapes_of(kId, {3}, {6, 4, {3, 2}}), (Shapes{{"a1.weight", {4, 3, 1, 1}},
                                                         {"a2.weight", {3, 4, 1, 1}},
                                                         {"b1.weight", {6, 3, 1, 1}},
                                                         {"b2.weight", {3, 4, 3, 2}}}));
}

TEST(Glora, RoundTrip) {
  for (const auto &layer : kLayers)
    if (layer.out > 3) expect_round_trip(kId, {3}, layer);
}

TEST(Glora, Delta) {
  for (const auto &layer : kLayers) {
    if (layer.out <= 3) continue;
    Random random(5);
    Arena arena;
    const ops::Operand base = arena.random(extents(layer), LYC_DTYPE_F32, random, 1.0);
    const Filled f(shapes_of(kId, {3}, layer));
    const std::int64_t in = layer.in, taps = layer.kernel_size();
    expect_delta(
        kId, f, layer,
        [&](auto o, auto j, auto k) {
          double sum = 0;
          for (std::int64_t r = 0; r < 3; ++r) {
            sum += f("b1.weight", o * 3 + r) * f("b2.weight", (r * in + j) * taps + k);
            for (std::int64_t i = 0; i < in; ++i)
              sum += at(base, o, i, k) * f("a1.weight", i * 3 + r) * f("a2.weight", r * in + j);
          }
          return sum;
        },
        &base);
  }
}

TEST(Glora, OldFormExchangesTheFactors) {
  Random random(5);
  Arena arena;
  const ops::Operand base = arena.random({6, 4, {1, 1, 1}}, LYC_DTYPE_F32, random, 1.0);
  const Filled f(kOld);
  expect_delta(
      kId, f, {6, 4, {}},
      [&](auto o, auto j, auto) {
        double sum = 0;
        for (std::int64_t r = 0; r < 3; ++r) {
          sum += f("b2.weight", o * 3 + r) * f("b1.weight", r * 4 + j);
          for (std::int64_t i = 0; i < 4; ++i)
            sum += at(base, o, i, 0) * f("a2.weight", i * 3 + r) * f("a1.weight", r * 4 + j);
        }
        return sum;
      },
      &base);
}

TEST(Glora, FormIsToldByShapes) {
  EXPECT_EQ(describe(kId, kLinear).rank, 3);
  EXPECT_EQ(describe(kId, kOld).rank, 3);
  EXPECT_EQ(describe(kId, kOld).out, 6);
  // Square layers fit both forms: rank 3 of 12, one way or the other.
  const Shapes current = {
      {"a1.weight", {12, 3}}, {"a2.weight", {3, 12}}, {"b1.weight", {12, 3}}, {"b2.weight", {3, 12}}};
  const Shapes old = {{"a1.weight", {3, 12}}, {"a2.weight", {12, 3}}, {"b1.weight", {3, 12}}, {"b2.weight", {12, 3}}};
  for (const Shapes &shapes : {current, old}) {
    EXPECT_EQ(describe(kId, shapes).rank, 3);
    EXPECT_EQ(describe(kId, shapes).out, 12);
    EXPECT_EQ(describe(kId, shapes).columns, 12);
  }
  // A rank that is all of the layer: old, as other readers have it.
  const Filled f(all({4, 4}));
  Random random(5);
  Arena arena;
  const ops::Operand base = arena.random({4, 4, {1, 1, 1}}, LYC_DTYPE_F32, random, 0.0);
  expect_delta(
      kId, f, {4, 4, {}},
      [&](auto o, auto j, auto) {
        double sum = 0;
        for (std::int64_t r = 0; r < 4; ++r) sum += f("b2.weight", o * 4 + r) * f("b1.weight", r * 4 + j);
        return sum;
      },
      &base);
}

TEST(Glora, TuckerCoreOfTheDifference) {
  const Shapes shapes = {{"a1.weight", {4, 3, 1, 1}},
                         {"a2.weight", {3, 4, 1, 1}},
                         {"b1.weight", {6, 2, 1, 1}},
                         {"b2.weight", {3, 4, 1, 1}},
                         {"bm.weight", {2, 3, 3, 2}}};
  Random random(5);
  Arena arena;
  const ops::Operand base = arena.random({6, 4, {3, 2, 1}}, LYC_DTYPE_F32, random, 0.0);
  const Filled f(shapes);
  expect_delta(
      kId, f, {6, 4, {3, 2}},
      [&](auto o, auto i, auto k) {
        double sum = 0;
        for (std::int64_t p = 0; p < 2; ++p)
          for (std::int64_t q = 0; q < 3; ++q)
            sum += f("b1.weight", o * 2 + p) * f("bm.weight", (p * 3 + q) * 6 + k) * f("b2.weight", q * 4 + i);
        return sum;
      },
      &base);
}

TEST(Glora, RefusesByName) {
  EXPECT_THAT(refusal(kId, without(kLinear, "a2.weight")), HasSubstr("a2.weight is missing"));
  EXPECT_THAT(refusal(kId, with(kLinear, "a1.weight", {4, 2})),
              HasSubstr("a1.weight has rank 2, a2.weight has 3"));
  EXPECT_THAT(refusal(kId, with(kLinear, "a2.weight", {3, 5})), HasSubstr("a1.weight has inputs 4, a2.weight has 5"));
  EXPECT_THAT(refusal(kId, with(kLinear, "b2.weight", {3, 5})), HasSubstr("b2.weight has inputs 5"));
  EXPECT_THAT(refusal(kId, with(kLinear, "b1.weight", {6, 2})), HasSubstr("b1.weight has rank 2"));
}

}  // namespace
}  // namespace lyc::test
