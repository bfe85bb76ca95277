#include "algo/family.hpp"
#include "support/tensor.hpp"

namespace lyc::test {
namespace {

using testing::HasSubstr;
constexpr lyc_algo kId = LYC_ALGO_IA3;

algo::Traits on_input() {
  algo::Traits traits;
  traits.flags = LYC_MODULE_ON_INPUT;
  return traits;
}

TEST(Ia3, Shapes) {
  EXPECT_EQ(shapes_of(kId, {}, {6, 4, {}}), (Shapes{{"weight", {6}}}));
  EXPECT_EQ(shapes_of(kId, {0, LYC_MODULE_ON_INPUT}, {6, 4, {}}), (Shapes{{"weight", {4}}}));
  EXPECT_EQ(shapes_of(kId, {}, {6, 4, {3, 3}}), (Shapes{{"weight", {1, 6, 1, 1}}}));
  EXPECT_EQ(shapes_of(kId, {0, LYC_MODULE_ON_INPUT}, {6, 4, {3}}), (Shapes{{"weight", {1, 4, 1}}}));
}

TEST(Ia3, ScalesRowsOrColumnsOfTheBase) {
  for (const auto &layer : kLayers) {
    Random random(3);
    Arena arena;
    const ops::Operand base = arena.random(extents(layer), LYC_DTYPE_F32, random, 1.0);
    const Filled rows(shapes_of(kId, {}, layer)), columns(shapes_of(kId, {0, LYC_MODULE_ON_INPUT}, layer));
    expect_delta(kId, rows, layer, [&](auto o, auto i, auto k) { return rows("weight", o) * at(base, o, i, k); }, &base);
    expect_delta(
        kId, columns, layer, [&](auto o, auto i, auto k) { return columns("weight", i) * at(base, o, i, k); }, &base,
        on_input());
  }
}

TEST(Ia3, PeftShapesSayTheSideOfLinearLayers) {
  const auto side = [](const lyc::Shape &shape, const algo::Traits &traits = {}) {
    const Filled filled({{"ia3_l", shape}});
    return algo::find_algorithm(kId)->describe(filled.factors, traits);
  };
  EXPECT_EQ(side({6, 1}).out, 6);
  EXPECT_TRUE(side({6, 1}).bias);
  EXPECT_EQ(side({1, 4}).out, 0);
  EXPECT_EQ(side({1, 4}).flags, std::uint32_t{LYC_MODULE_ON_INPUT});
  EXPECT_FALSE(side({1, 4}).bias);
  EXPECT_EQ(side({1, 4, 1, 1}).out, 4);  // a convolution's shape is the same on both sides
  EXPECT_EQ(side({1, 4, 1, 1}, on_input()).out, 0);
  EXPECT_THROW(side({6, 1}, on_input()), Error);
}

TEST(Ia3, PeftValuesAreMadeDifferences) {
  float l[] = {1.0f, 1.5f, -0.25f};
  algo::Factors stored;
  stored.set("ia3_l", make_tensor(l, LYC_DTYPE_F32, {3, 1}));
  const auto rewritten = algo::find_algorithm(kId)->rewriting->rewrite(stored, {});
  ASSERT_EQ(rewritten.size(), 1u);
  EXPECT_EQ(rewritten[0].name, "ia3_v");
  EXPECT_EQ(rewritten[0].shape, (lyc::Shape{3, 1}));
  float v[3];
  std::memcpy(v, rewritten[0].bytes.data(), sizeof v);
  EXPECT_THAT(v, testing::ElementsAre(0.0f, 0.5f, -1.25f));
}

TEST(Ia3, RefusesByName) {
  EXPECT_THAT(refusal(kId, {{"weight", {6, 4}}}), HasSubstr("weight has shape [6, 4], must be a vector"));
}

}  // namespace
}  // namespace lyc::test
