#include "algo/family.hpp"

namespace lyc::test {
namespace {

using testing::HasSubstr;
constexpr lyc_algo kId = LYC_ALGO_LOKR;

TEST(Lokr, Shapes) {
  const algo::LayerShape linear = {12, 16, {}};  // (3, 4) x (4, 4)
  EXPECT_EQ(shapes_of(kId, {1}, linear), (Shapes{{"lokr_w1", {3, 4}}, {"lokr_w2_a", {4, 1}}, {"lokr_w2_b", {1, 4}}}));
  EXPECT_EQ(shapes_of(kId, {2}, linear), (Shapes{{"lokr_w1", {3, 4}}, {"lokr_w2", {4, 4}}}));  // 2 is not below 4 / 2
  EXPECT_EQ(shapes_of(kId, {1, LYC_MODULE_WHOLE}, linear), (Shapes{{"lokr_w1", {3, 4}}, {"lokr_w2", {4, 4}}}));
  EXPECT_EQ(shapes_of(kId, {1, LYC_MODULE_DECOMPOSE_BOTH}, linear),
            (Shapes{{"lokr_w1_a", {3, 1}}, {"lokr_w1_b", {1, 4}}, {"lokr_w2_a", {4, 1}}, {"lokr_w2_b", {1, 4}}}));
  EXPECT_EQ(shapes_of(kId, {1, LYC_MODULE_UNBALANCED, 2}, linear),
            (Shapes{{"lokr_w1", {6, 2}}, {"lokr_w2_a", {2, 1}}, {"lokr_w2_b", {1, 8}}}));
  EXPECT_EQ(shapes_of(kId, {1}, {12, 16, {3, 3}}),
            (Shapes{{"lokr_w1", {3, 4}}, {"lokr_w2_a", {4, 1}}, {"lokr_w2_b", {1, 36}}}));
  EXPECT_EQ(shapes_of(kId, {1, LYC_MODULE_TUCKER}, {12, 16, {3, 3}}),
            (Shapes{{"lokr_w1", {3, 4}}, {"lokr_w2_a", {1, 4}}, {"lokr_w2_b", {1, 4}}, {"lokr_t2", {1, 1, 3, 3}}}));
  EXPECT_EQ(shapes_of(kId, {8}, {12, 16, {3}}), (Shapes{{"lokr_w1", {3, 4}}, {"lokr_w2", {4, 4, 3}}}));
}

TEST(Lokr, RoundTrip) {
  for (const auto &layer : kLayers)
    for (std::uint32_t flags = 0; flags < 64; ++flags)
      for (std::int32_t factor : {-1, 0, 2, 3})
        expect_round_trip(kId, {1, flags & ~std::uint32_t{LYC_MODULE_RANK_STABILISED | LYC_MODULE_SCALAR}, factor},
                          layer);
}

TEST(Lokr, BothHalvesWholeHaveNoRank) {
  EXPECT_EQ(describe(kId, {{"lokr_w1", {3, 4}}, {"lokr_w2", {4, 4}}}).rank, 0);
  EXPECT_EQ(describe(kId, {{"lokr_w1", {3, 4}}, {"lokr_w2", {4, 4}}}).flags, unsigned{LYC_MODULE_WHOLE});
}

/// Row-major entry of a half: whole, a product, or a core between two factors.
double w1_at(const Filled &f, std::int64_t rank, std::int64_t columns, std::int64_t a, std::int64_t c) {
  if (f.factors.has("lokr_w1")) return f("lokr_w1", a * columns + c);
  double sum = 0;
  for (std::int64_t r = 0; r < rank; ++r) sum += f("lokr_w1_a", a * rank + r) * f("lokr_w1_b", r * columns + c);
  return sum;
}

double w2_at(const Filled &f, std::int64_t rank, std::int64_t rows, std::int64_t columns, std::int64_t taps,
             std::int64_t b, std::int64_t d, std::int64_t k) {
  if (f.factors.has("lokr_w2")) return f("lokr_w2", (b * columns + d) * taps + k);
  double sum = 0;
  for (std::int64_t p = 0; p < rank; ++p)
    if (!f.factors.has("lokr_t2"))
      sum += f("lokr_w2_a", b * rank + p) * f("lokr_w2_b", (p * columns + d) * taps + k);
    else
      for (std::int64_t q = 0; q < rank; ++q)
        sum += f("lokr_w2_a", p * rows + b) * f("lokr_t2", (p * rank + q) * taps + k) * f("lokr_w2_b", q * columns + d);
  return sum;
}

TEST(Lokr, Delta) {
  const algo::LayerShape layers[] = {{36, 64, {}}, {36, 64, {2}}, {36, 36, {3, 2}}};
  for (const auto &layer : layers)
    for (std::uint32_t flags : {0, LYC_MODULE_TUCKER, LYC_MODULE_WHOLE, LYC_MODULE_DECOMPOSE_BOTH,
                                LYC_MODULE_DECOMPOSE_BOTH | LYC_MODULE_TUCKER | LYC_MODULE_UNBALANCED}) {
      const Filled f(shapes_of(kId, {2, flags, 4}, layer));
      const std::int64_t in_m = 4, in_n = layer.in / in_m, taps = layer.kernel_size();
      const std::int64_t out_k = flags & LYC_MODULE_UNBALANCED ? 4 : 9;
      expect_delta(kId, f, layer, [&](auto o, auto i, auto k) {
        return w1_at(f, 2, in_m, o / out_k, i / in_n) * w2_at(f, 2, out_k, in_n, taps, o % out_k, i % in_n, k);
      });
    }
}

TEST(Lokr, RefusesByName) {
  const Shapes whole = {{"lokr_w1", {3, 4}}, {"lokr_w2", {4, 4}}};
  const Shapes parts = {{"lokr_w1", {3, 4}}, {"lokr_w2_a", {4, 2}}, {"lokr_w2_b", {2, 4}}};
  EXPECT_THAT(refusal(kId, without(whole, "lokr_w1")), HasSubstr("lokr_w1_a is missing"));
  EXPECT_THAT(refusal(kId, without(whole, "lokr_w2")), HasSubstr("lokr_w2_a is missing"));
  EXPECT_THAT(refusal(kId, without(parts, "lokr_w2_b")), HasSubstr("lokr_w2_b is missing"));
  EXPECT_THAT(refusal(kId, with(whole, "lokr_w2_a", {4, 2})), HasSubstr("lokr_w2 is there both whole and in parts"));
  EXPECT_THAT(refusal(kId, with(whole, "lokr_w1_b", {4, 2})), HasSubstr("lokr_w1 is there both whole and in parts"));
  EXPECT_THAT(refusal(kId, with(parts, "lokr_w2_a", {4, 3})), HasSubstr("lokr_w2_a has rank 3, lokr_w2_b has 2"));
  EXPECT_THAT(refusal(kId, with(parts, "lokr_t2", {3, 2, 3})), HasSubstr("lokr_w2_a has rank 4, lokr_t2 has 3"));
  EXPECT_THAT(refusal(kId, with(whole, "lokr_w1", {3, 4, 2})),
              HasSubstr("lokr_w1 has shape [3, 4, 2], must be a matrix"));
}

}  // namespace
}  // namespace lyc::test
