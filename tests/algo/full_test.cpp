#include "algo/family.hpp"

namespace lyc::test {
namespace {

using testing::HasSubstr;
constexpr lyc_algo kId = LYC_ALGO_FULL;

TEST(Full, Shapes) {
  EXPECT_EQ(shapes_of(kId, {}, {6, 4, {3}}), (Shapes{{"diff", {6, 4, 3}}}));
  EXPECT_EQ(shapes_of(kId, {0, LYC_MODULE_BIAS}, {6, 4, {}}), (Shapes{{"diff", {6, 4}}, {"diff_b", {6}}}));
}

TEST(Full, RoundTrip) {
  for (const auto &layer : kLayers) expect_round_trip(kId, {}, layer);
}

TEST(Full, Delta) {
  for (const auto &layer : kLayers) {
    const Filled f(shapes_of(kId, {}, layer));
    expect_delta(kId, f, layer,
                 [&](auto o, auto i, auto k) { return f("diff", (o * layer.in + i) * layer.kernel_size() + k); });
  }
}

TEST(Full, BiasAloneHasNoColumns) {
  const algo::DeltaShape shape = describe(kId, {{"diff_b", {6}}});
  EXPECT_EQ(shape.out, 6);
  EXPECT_EQ(shape.columns, 0);
}

TEST(Full, RefusesByName) {
  EXPECT_THAT(refusal(kId, {{"diff", {}}}), HasSubstr("diff is a scalar"));
  EXPECT_THAT(refusal(kId, {{"diff", {1, 1, 1, 1, 1, 1}}}), HasSubstr("diff has shape [1, 1, 1, 1, 1, 1], too many"));
}

}  // namespace
}  // namespace lyc::test
