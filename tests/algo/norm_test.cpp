#include "algo/family.hpp"

namespace lyc::test {
namespace {

using testing::HasSubstr;
constexpr lyc_algo kId = LYC_ALGO_NORM;

TEST(Norm, Shapes) {
  EXPECT_EQ(shapes_of(kId, {}, {6, 1, {}}), (Shapes{{"w_norm", {6}}}));
  EXPECT_EQ(shapes_of(kId, {0, LYC_MODULE_BIAS}, {6, 1, {}}), (Shapes{{"w_norm", {6}}, {"b_norm", {6}}}));
  expect_round_trip(kId, {}, {6, 1, {}});
}

TEST(Norm, Delta) {
  const Filled f(Shapes{{"w_norm", {6}}});
  expect_delta(kId, f, {6, 1, {}}, [&](auto o, auto, auto) { return f("w_norm", o); });
}

TEST(Norm, RefusesByName) { EXPECT_THAT(refusal(kId, {{"w_norm", {}}}), HasSubstr("w_norm is a scalar")); }

TEST(Norm, SeveralAxes) {  // LayerNorm over more than the last one
  const algo::DeltaShape shape = describe(kId, {{"w_norm", {6, 2}}});
  EXPECT_EQ(shape.out, 6);
  EXPECT_EQ(shape.columns, 2);
  const Filled f(Shapes{{"w_norm", {6, 2}}});
  expect_delta(kId, f, {6, 2, {}}, [&](auto o, auto i, auto) { return f("w_norm", o * 2 + i); });
}

}  // namespace
}  // namespace lyc::test
