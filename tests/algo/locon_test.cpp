#include "algo/family.hpp"

namespace lyc::test {
namespace {

using testing::HasSubstr;
constexpr lyc_algo kId = LYC_ALGO_LOCON;
const Shapes kTucker = {
    {"lora_up.weight", {6, 2, 1, 1}}, {"lora_down.weight", {3, 4, 1, 1}}, {"lora_mid.weight", {2, 3, 3, 2}}};

TEST(Locon, Shapes) {
  EXPECT_EQ(shapes_of(kId, {2}, {6, 4, {}}), (Shapes{{"lora_up.weight", {6, 2}}, {"lora_down.weight", {2, 4}}}));
  EXPECT_EQ(shapes_of(kId, {2}, {6, 4, {3, 3}}),
            (Shapes{{"lora_up.weight", {6, 2, 1, 1}}, {"lora_down.weight", {2, 4, 3, 3}}}));
  EXPECT_EQ(shapes_of(kId, {2, LYC_MODULE_TUCKER}, {6, 4, {3}}),
            (Shapes{{"lora_up.weight", {6, 2, 1}}, {"lora_down.weight", {2, 4, 1}}, {"lora_mid.weight", {2, 2, 3}}}));
  EXPECT_EQ(shapes_of(kId, {2, LYC_MODULE_TUCKER}, {6, 4, {1, 1}}),
            (Shapes{{"lora_up.weight", {6, 2, 1, 1}}, {"lora_down.weight", {2, 4, 1, 1}}}));  // one tap: no core
}

TEST(Locon, RoundTrip) {
  for (const auto &layer : kLayers)
    for (std::uint32_t flags : {0, LYC_MODULE_TUCKER}) expect_round_trip(kId, {3, flags}, layer);
}

TEST(Locon, Delta) {
  for (const auto &layer : kLayers) {
    const Filled f(shapes_of(kId, {3}, layer));
    expect_delta(kId, f, layer, [&](auto o, auto i, auto k) {
      double sum = 0;
      for (std::int64_t r = 0; r < 3; ++r)
        sum += f("lora_up.weight", o * 3 + r) * f("lora_down.weight", (r * layer.in + i) * layer.kernel_size() + k);
      return sum;
    });
  }
}

TEST(Locon, TuckerDelta) {  // ranks of the two sides differ, so that neither stands in for the other
  const Filled f(kTucker);
  EXPECT_EQ(describe(kId, kTucker).columns, 24);
  expect_delta(kId, f, {6, 4, {3, 2}}, [&](auto o, auto i, auto k) {
    double sum = 0;
    for (std::int64_t p = 0; p < 2; ++p)
      for (std::int64_t q = 0; q < 3; ++q)
        sum += f("lora_up.weight", o * 2 + p) * f("lora_mid.weight", (p * 3 + q) * 6 + k) *
               f("lora_down.weight", q * 4 + i);
    return sum;
  });
}

TEST(Locon, RefusesByName) {
  const Shapes plain = {{"lora_up.weight", {6, 2}}, {"lora_down.weight", {2, 4}}};
  EXPECT_THAT(refusal(kId, without(plain, "lora_up.weight")), HasSubstr("lora_up.weight is missing"));
  EXPECT_THAT(refusal(kId, without(plain, "lora_down.weight")), HasSubstr("lora_down.weight is missing"));
  EXPECT_THAT(refusal(kId, with(plain, "lora_up.weight", {6, 3})),
              HasSubstr("lora_up.weight has rank 3, lora_down.weight has 2"));
  EXPECT_THAT(refusal(kId, with(plain, "lora_up.weight", {6})),
              HasSubstr("lora_up.weight has shape [6], not a matrix"));
  EXPECT_THAT(refusal(kId, with(plain, "lora_down.weight", {})), HasSubstr("lora_down.weight is a scalar"));
  EXPECT_THAT(refusal(kId, with(plain, "lora_up.weight", {6, 2, 3})), HasSubstr("must be a matrix"));
  EXPECT_THAT(refusal(kId, with(plain, "lora_down.weight", {2, 4, 1, 1, 1, 1})), HasSubstr("too many kernel axes"));
  EXPECT_THAT(refusal(kId, with(kTucker, "lora_mid.weight", {2, 2, 3, 2})),
              HasSubstr("lora_mid.weight has rank 2, lora_down.weight has 3"));
  EXPECT_THAT(refusal(kId, with(kTucker, "lora_mid.weight", {3, 3, 3, 2})),
              HasSubstr("lora_up.weight has rank 2, lora_mid.weight has 3"));
  EXPECT_THAT(refusal(kId, {{"lora_up.weight", {6, 1}}, {"lora_down.weight", {1, 4}}, {"lora_mid.weight", {1}}}),
              HasSubstr("lora_mid.weight has shape [1], not a matrix"));
}

}  // namespace
}  // namespace lyc::test
