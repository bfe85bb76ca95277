#include "algo/family.hpp"

namespace lyc::test {
namespace {

using testing::HasSubstr;
constexpr lyc_algo kId = LYC_ALGO_TLORA;
const Shapes kPlain = {{"p_layer.weight", {6, 3}}, {"lambda_layer", {1, 3}}, {"q_layer.weight", {3, 4}}};
const Shapes kWithStart = [] {
  Shapes shapes = kPlain;
  for (const auto &[name, shape] : kPlain) shapes["base_" + name] = shape;
  return shapes;
}();

TEST(Tlora, Shapes) {
  EXPECT_EQ(shapes_of(kId, {3}, {6, 4, {}}), kPlain);
  EXPECT_EQ(shapes_of(kId, {3}, {6, 4, {1, 1}}),
            (Shapes{{"p_layer.weight", {6, 3, 1, 1}}, {"lambda_layer", {1, 3}}, {"q_layer.weight", {3, 4, 1, 1}}}));
  EXPECT_THROW(shapes_of(kId, {3}, {6, 4, {3, 3}}), Error);
}

TEST(Tlora, RoundTrip) {
  for (const auto &layer : kLayers)
    if (!layer.has_kernel()) expect_round_trip(kId, {3}, layer);
}

TEST(Tlora, DeltaIsTheChangeSinceTheStart) {
  const Filled f(kWithStart);
  const auto part = [&](const std::string &start, std::int64_t o, std::int64_t i) {
    double sum = 0;
    for (std::int64_t r = 0; r < 3; ++r)
      sum += f(start + "p_layer.weight", o * 3 + r) * f(start + "lambda_layer", r) *
             f(start + "q_layer.weight", r * 4 + i);
    return sum;
  };
  expect_delta(kId, f, {6, 4, {}}, [&](auto o, auto i, auto) { return part("", o, i) - part("base_", o, i); });
}

TEST(Tlora, RefusesByName) {
  EXPECT_THAT(refusal(kId, without(kPlain, "lambda_layer")), HasSubstr("lambda_layer is missing"));
  EXPECT_THAT(refusal(kId, with(kPlain, "lambda_layer", {1, 2})), HasSubstr("lambda_layer has rank 2"));
  EXPECT_THAT(refusal(kId, with(kPlain, "q_layer.weight", {3, 4, 3, 3})), HasSubstr("must be a matrix"));
  EXPECT_THAT(refusal(kId, without(kWithStart, "base_lambda_layer")), HasSubstr("base_lambda_layer is missing"));
  EXPECT_THAT(refusal(kId, with(kWithStart, "base_p_layer.weight", {5, 3})), HasSubstr("base_p_layer.weight has rows 5"));
}

}  // namespace
}  // namespace lyc::test
