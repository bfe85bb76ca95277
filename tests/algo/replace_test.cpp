#include "algo/family.hpp"

namespace lyc::test {
namespace {

constexpr lyc_algo kId = LYC_ALGO_REPLACE;

TEST(Replace, IsTheNewTensor) {
  const algo::DeltaShape shape = describe(kId, {{"set_weight", {6, 4, 3}}});
  EXPECT_TRUE(shape.replaces && shape.weight);
  EXPECT_EQ(shape.out, 6);
  EXPECT_EQ(shape.columns, 12);
  EXPECT_EQ(shape.kernel, (lyc::Shape{3}));
  const Filled f(Shapes{{"set_weight", {6, 4, 3}}});
  expect_delta(kId, f, {6, 4, {3}}, [&](auto o, auto i, auto k) { return f("set_weight", (o * 4 + i) * 3 + k); });
}

TEST(Replace, WeightOrBiasAlone) {
  EXPECT_EQ(describe(kId, {{"set_weight", {6}}}).columns, 1);
  EXPECT_FALSE(describe(kId, {{"set_bias", {6}}}).weight);
  EXPECT_EQ(describe(kId, {{"set_bias", {6}}}).out, 6);
}

}  // namespace
}  // namespace lyc::test
