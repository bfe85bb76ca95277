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

TEST(Norm, RefusesByName) {
  EXPECT_THAT(refusal(kId, {{"w_norm", {}}}), HasSubstr("w_norm is a scalar"));
  EXPECT_THAT(refusal(kId, {{"w_norm", {6, 2}}}), HasSubstr("w_norm has values 12, its first axis has 6"));
}

}  // namespace
}  // namespace lyc::test
