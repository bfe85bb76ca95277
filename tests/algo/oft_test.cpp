#include "algo/family.hpp"

namespace lyc::test {
namespace {

using testing::HasSubstr;
constexpr lyc_algo kId = LYC_ALGO_OFT;

ops::Rotation rotation_of(const Shapes &shapes, const algo::LayerShape &layer, const algo::Traits &traits = {}) {
  const Filled filled(shapes);
  std::vector<ops::Term> terms;
  std::vector<ops::Rotation> rotations;
  const algo::Algorithm &algorithm = *algo::recognise(filled.factors);
  const algo::DeltaShape shape = algorithm.describe(filled.factors, traits);
  algo::Lowering to{filled.factors, layer, shape, traits, 0, {}, terms, rotations};
  algorithm.lower(to);
  EXPECT_EQ(terms.size(), rotations.size());
  return rotations.back();
}

TEST(Oft, Shapes) {
  EXPECT_EQ(shapes_of(kId, {4}, {12, 20, {3}}), (Shapes{{"oft_blocks", {4, 3, 3}}}));
  EXPECT_EQ(shapes_of(kId, {4}, {24, 36, {}}), (Shapes{{"oft_blocks", {6, 4, 4}}}));
  EXPECT_EQ(shapes_of(kId, {4, LYC_MODULE_RESCALE}, {16, 5, {3, 3}}),
            (Shapes{{"oft_blocks", {4, 4, 4}}, {"rescale", {16, 1, 1, 1}}}));
  EXPECT_THROW(shapes_of(kId, {0}, {12, 4, {}}), Error);
}

TEST(Oft, TurnsRowsByTheTranspose) {
  const algo::DeltaShape shape = describe(kId, {{"oft_blocks", {4, 3, 3}}});
  EXPECT_EQ(shape.out, 12);
  EXPECT_EQ(shape.columns, 0);
  EXPECT_TRUE(shape.reads_base);
  EXPECT_TRUE(shape.whole_rows);
  const ops::Rotation rotation = rotation_of({{"oft_blocks", {4, 3, 3}}}, {12, 5, {}});
  EXPECT_EQ(rotation.axis, ops::Rotation::Axis::kOut);
  EXPECT_EQ(rotation.factor, -1.0);
  EXPECT_EQ(rotation.limited, ops::Rotation::Limit::kNone);
}

TEST(Oft, AlphaLimits) {
  algo::Traits traits;
  traits.alpha = 0.25;
  const Shapes shapes = {{"oft_blocks", {4, 3, 3}}};
  EXPECT_EQ(rotation_of(shapes, {12, 5, {}}, traits).limited, ops::Rotation::Limit::kTogether);
  EXPECT_EQ(rotation_of(shapes, {12, 5, {}}, traits).limit, 3.0);
  traits.origin = LYC_ORIGIN_KOHYA;
  EXPECT_EQ(rotation_of(shapes, {12, 5, {}}, traits).limited, ops::Rotation::Limit::kAlways);
  traits.alpha = 0.0;  // next to nothing is left
  EXPECT_EQ(rotation_of(shapes, {12, 5, {}}, traits).limit, 0.0);
  traits.origin = LYC_ORIGIN_LYCORIS;
  EXPECT_EQ(rotation_of(shapes, {12, 5, {}}, traits).limited, ops::Rotation::Limit::kNone);
  traits = {};
  traits.origin = LYC_ORIGIN_KOHYA;
  EXPECT_THROW(rotation_of(shapes, {12, 5, {}}, traits), Error);
}

TEST(Oft, SlicesFollowEachOther) {
  algo::Traits traits;
  traits.alpha = 0.5;
  traits.origin = LYC_ORIGIN_KOHYA;
  const ops::Rotation last =
      rotation_of({{"oft_blocks.0", {2, 4, 4}}, {"oft_blocks.1", {2, 3, 3}}}, {14, 5, {}}, traits);
  EXPECT_EQ(last.begin, 8);
  EXPECT_EQ(last.limit, 3.0);
}

TEST(Oft, TrianglesTurnColumns) {
  const Shapes shapes = {{"oft_R.weight", {3, 6}}};
  const algo::LayerShape linear = {7, 12, {}}, convolution = {7, 12, {1, 1}};
  algo::Traits traits;
  for (lyc_origin origin : {LYC_ORIGIN_PEFT, LYC_ORIGIN_ONETRAINER}) {
    traits.origin = origin;
    const ops::Rotation rotation = rotation_of(shapes, linear, traits);
    EXPECT_EQ(rotation.axis, ops::Rotation::Axis::kIn);
    EXPECT_EQ(rotation.block_size, 4);
    EXPECT_EQ(rotation.neumann_terms, 5);
    EXPECT_EQ(rotation.factor, 1.0);
    EXPECT_EQ(rotation_of(shapes, convolution, traits).factor, origin == LYC_ORIGIN_PEFT ? 1.0 : -1.0);
    traits.neumann_terms = -1;  // the exact map is the inverse
    EXPECT_EQ(rotation_of(shapes, linear, traits).factor, -1.0);
    EXPECT_EQ(rotation_of(shapes, linear, traits).map, ops::Rotation::Map::kCayley);
    traits.neumann_terms = 0;
  }
  EXPECT_EQ(rotation_of({{"oft_embedding_R.weight", {3, 6}}}, linear).factor, -1.0);
  EXPECT_EQ(rotation_of({{"oft_R.weight", {3, 10}}, {"oft_R.scaled_oft", {}}}, {7, 15, {}}).factor, 0.25);
  EXPECT_FALSE(describe(kId, shapes).whole_rows);
  EXPECT_EQ(describe(kId, shapes).columns, 12);
}

TEST(Oft, OneRowIsForAllBlocks) {
  algo::Traits traits;
  traits.coft_epsilon = 0.5;
  const ops::Rotation shared = rotation_of({{"oft_R.weight", {1, 6}}}, {7, 12, {}}, traits);
  EXPECT_EQ(shared.blocks, 3);
  EXPECT_EQ(shared.generators.stride_out, 0);
  EXPECT_EQ(shared.limit, 0.5);
  EXPECT_EQ(rotation_of({{"oft_R.weight", {4, 6}}}, {7, 16, {}}, traits).limit, 0.25);
  EXPECT_THROW(rotation_of({{"oft_R.weight", {1, 6}}}, {7, 13, {}}), Error);
}

TEST(Oft, RefusesByName) {
  EXPECT_THAT(refusal(kId, {{"oft_blocks", {4, 3, 2}}}), HasSubstr("oft_blocks has shape [4, 3, 2]"));
  EXPECT_THAT(refusal(kId, {{"oft_blocks", {4, 3, 3}}, {"rescale", {11, 1}}}),
              HasSubstr("rescale has rows 11, oft_blocks has 12"));
  EXPECT_THAT(refusal(kId, {{"oft_R.weight", {4, 5}}}), HasSubstr("oft_R.weight has 5 columns"));
  EXPECT_THAT(refusal(kId, {{"oft_blocks.0", {2, 4, 4}}, {"oft_blocks.2", {2, 4, 4}}}),
              HasSubstr("oft_blocks.1 is missing"));
  EXPECT_THAT(refusal(kId, {{"oft_blocks", {2, 4, 4}}, {"oft_R.weight", {2, 6}}}), HasSubstr("different programs"));
}

}  // namespace
}  // namespace lyc::test
