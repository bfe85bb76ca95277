#include "algo/family.hpp"

namespace lyc::test {
namespace {

using testing::HasSubstr;
constexpr lyc_algo kId = LYC_ALGO_BOFT;

TEST(Boft, Shapes) {  // blocks are even, and a power of two of them make the rows
  EXPECT_EQ(shapes_of(kId, {4}, {32, 20, {}}), (Shapes{{"oft_blocks", {4, 8, 4, 4}}}));
  EXPECT_EQ(shapes_of(kId, {32}, {3072, 8, {}}), (Shapes{{"oft_blocks", {8, 128, 24, 24}}}));
  EXPECT_EQ(shapes_of(kId, {12, LYC_MODULE_RESCALE}, {12, 20, {3}}),
            (Shapes{{"oft_blocks", {1, 1, 12, 12}}, {"rescale", {12, 1, 1}}}));
  for (const auto &[rank, out] : {std::pair{4, 24}, {8, 7}, {2, 12}, {0, 16}})
    EXPECT_THROW(shapes_of(kId, {rank}, {out, 4, {}}), Error) << rank << ", " << out;
}

TEST(Boft, RecognisedByFourAxes) {
  EXPECT_EQ(algo::recognise(Filled({{"oft_blocks", {3, 4, 4, 4}}}).factors)->id, kId);
  EXPECT_EQ(algo::recognise(Filled({{"oft_blocks", {4, 4, 4}}}).factors)->id, LYC_ALGO_OFT);
  EXPECT_EQ(algo::recognise(Filled({{"boft_R", {1, 4, 4, 4}}, {"boft_s", {3, 1}}}).factors)->id, kId);
}

TEST(Boft, Sides) {
  const algo::DeltaShape rows = describe(kId, {{"oft_blocks", {3, 4, 4, 4}}});
  EXPECT_EQ(rows.out, 16);
  EXPECT_EQ(rows.columns, 0);
  EXPECT_TRUE(rows.whole_rows && rows.reads_base);
  for (const lyc::Shape &scale : {lyc::Shape{10, 1}, {1, 10}}) {  // linear layers, convolutions
    const algo::DeltaShape columns = describe(kId, {{"boft_R", {1, 4, 4, 4}}, {"boft_s", scale}});
    EXPECT_EQ(columns.out, 10);
    EXPECT_EQ(columns.columns, 16);
    EXPECT_FALSE(columns.whole_rows);
  }
}

TEST(Boft, RefusesByName) {
  EXPECT_THAT(refusal(kId, {{"oft_blocks", {4, 4, 4, 4}}}), HasSubstr("oft_blocks has shape [4, 4, 4, 4]"));
  EXPECT_THAT(refusal(kId, {{"oft_blocks", {1, 4, 3, 3}}}), HasSubstr("oft_blocks"));
  EXPECT_THAT(refusal(kId, {{"boft_R", {2, 5, 4, 4}}, {"boft_s", {3, 1}}}), HasSubstr("boft_R"));
  EXPECT_THAT(refusal(kId, {{"oft_blocks", {1, 4, 4, 4}}, {"rescale", {15, 1}}}),
              HasSubstr("rescale has rows 15, oft_blocks has 16"));
}

}  // namespace
}  // namespace lyc::test
