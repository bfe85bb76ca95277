#include <functional>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.hpp"
#include "support/weight_case.hpp"
#include "weight_layout.hpp"

namespace lyc::cuda {
namespace {

using test::AdapterChoice;
using test::Order;
using test::Shape;
using test::TermChoice;
using test::WeightCase;
using testing::HasSubstr;

AdapterChoice low_rank(std::int64_t rank) {
  TermChoice term;
  term.rank = rank;
  return {{term}};
}

/// One weight with contiguous factors.
class Layout : public testing::Test {
 protected:
  WeightLayout lay_out_one(Shape shape, Order order, std::int64_t rank = 16, lyc_dtype weight = LYC_DTYPE_BF16,
                           lyc_dtype factor = LYC_DTYPE_BF16) {
    add(shape, order, rank, weight, factor);
    return lay_out(case_.batch());
  }

  void add(Shape shape, Order order, std::int64_t rank, lyc_dtype weight, lyc_dtype factor) {
    case_.add({shape, weight, weight, order, order, true, {low_rank(rank)}});
    ops::Term &term = case_.terms().back();
    term.p.up = case_.arena().random({shape.out, rank, {1, 1, 1}}, factor, random_, 1.0);
    shape.out = rank;
    term.p.down = case_.arena().random(shape, factor, random_, 1.0);
  }

  WeightCase case_{1};
  test::Random random_{2};
};

TEST_F(Layout, LinearRowsAreOut) {
  const WeightLayout layout = lay_out_one({192, 320}, Order::kOIHW, 16, LYC_DTYPE_F32);
  ASSERT_EQ(layout.groups.size(), 1u);
  const TargetGroup &group = layout.groups[0];
  EXPECT_TRUE(group.kind.regular && group.kind.native && group.kind.wide);
  EXPECT_EQ(group.targets[0].rows.size, 192);
  EXPECT_EQ(group.targets[0].columns.size, 320);
  EXPECT_EQ(group.targets[0].base.row.level[0], 320);
  EXPECT_TRUE(layout.terms[0].row_factor.vectors);
  EXPECT_TRUE(layout.terms[0].column_factor.vectors);
}

TEST_F(Layout, ConvolutionColumnsAreInAndKernelInOneAxis) {
  const WeightLayout layout = lay_out_one({64, 64, {3, 3, 1}}, Order::kOIHW, 16, LYC_DTYPE_F32);
  const MatrixTarget &target = layout.groups[0].targets[0];
  EXPECT_TRUE(layout.groups[0].kind.regular);
  EXPECT_EQ(target.columns.levels, 1);
  EXPECT_EQ(target.columns.size, 576);
}

TEST_F(Layout, TransposedWeightsSwapTheFactors) {
  const WeightLayout layout = lay_out_one({192, 320}, Order::kHWIO);
  const MatrixTarget &target = layout.groups[0].targets[0];
  EXPECT_EQ(target.rows.size, 320);
  EXPECT_EQ(target.columns.size, 192);
  EXPECT_EQ(layout.terms[0].column_factor.data, case_.terms()[0].p.up.data);
  EXPECT_FALSE(layout.terms[0].column_factor.vectors);
}

TEST_F(Layout, FactorsOfAnotherMemoryOrderKeepTheAxesApart) {
  const WeightLayout layout = lay_out_one({64, 64, {3, 3, 1}}, Order::kHWIO);
  const MatrixTarget &target = layout.groups[0].targets[0];
  EXPECT_EQ(target.rows.levels, 2);  // I within K, because down has K within I
  EXPECT_EQ(target.rows.extent[0], 64);
  EXPECT_EQ(target.rows.extent[1], 9);
  EXPECT_EQ(target.columns.size, 64);
}

TEST_F(Layout, WhatHasOddColumnsOrStridesIsNotRegular) {
  add({64, 111}, Order::kOIHW, 16, LYC_DTYPE_BF16, LYC_DTYPE_BF16);
  add({64, 128}, Order::kGaps, 16, LYC_DTYPE_BF16, LYC_DTYPE_BF16);
  const WeightLayout layout = lay_out(case_.batch());
  ASSERT_EQ(layout.groups.size(), 1u);
  EXPECT_FALSE(layout.groups[0].kind.regular);
}

TEST_F(Layout, ChunksAreStagedUpToWhatFits) {
  EXPECT_EQ(lay_out_one({64, 64}, Order::kOIHW, 36, LYC_DTYPE_F32).groups[0].chunk_capacity, 3);
  add({64, 64}, Order::kOIHW, 1000, LYC_DTYPE_F32, LYC_DTYPE_BF16);
  const WeightLayout layout = lay_out(case_.batch());
  ASSERT_EQ(layout.groups.size(), 2u);
  EXPECT_TRUE(layout.groups[0].kind.regular);
  EXPECT_FALSE(layout.groups[1].kind.regular);
  EXPECT_EQ(layout.groups[1].chunk_capacity, max_chunks(layout.groups[1].kind));
}

TEST_F(Layout, GroupsByKernel) {
  for (lyc_dtype weight : {LYC_DTYPE_BF16, LYC_DTYPE_F32, LYC_DTYPE_F16})
    for (lyc_dtype factor : {LYC_DTYPE_BF16, LYC_DTYPE_F32}) add({64, 64}, Order::kOIHW, 16, weight, factor);
  const WeightLayout layout = lay_out(case_.batch());
  ASSERT_EQ(layout.groups.size(), 3u);
  for (const TargetGroup &group : layout.groups) EXPECT_EQ(group.targets.size(), group.kind.wide ? 1u : 2u);
  ASSERT_EQ(layout.panels.size(), 1u);  // narrow weights with narrow factors
  EXPECT_EQ(layout.panels[0].targets.size(), 2u);
}

TEST_F(Layout, SmallBatchesGetLowTilesAndLargeOnesHighTiles) {
  constexpr std::int64_t kResident = 132 * 16;
  WeightLayout layout = lay_out_one({3072, 3072}, Order::kOIHW, 16, LYC_DTYPE_F32);
  TargetGroup &group = layout.groups[0];
  schedule(group, kResident);
  EXPECT_LE(group.tile_count, kResident);  // one round
  EXPECT_LT(group.tile_rows, kMaxTileRows);
  EXPECT_EQ(group.tile_rows % kStepRows, 0);

  schedule(group, 1);
  EXPECT_EQ(group.tile_rows, kMaxTileRows);
  EXPECT_EQ(group.tile_count, 48u * 24u);
}

TEST_F(Layout, TilesOfTargetsFollowEachOther) {
  add({100, 64}, Order::kOIHW, 4, LYC_DTYPE_F32, LYC_DTYPE_BF16);
  add({16, 640}, Order::kOIHW, 4, LYC_DTYPE_F32, LYC_DTYPE_BF16);
  add({128, 128}, Order::kOIHW, 4, LYC_DTYPE_F32, LYC_DTYPE_BF16);
  WeightLayout layout = lay_out(case_.batch());
  schedule(layout.groups[0], 1);
  EXPECT_THAT(layout.groups[0].first_tile, testing::ElementsAre(0u, 1u, 11u));
  EXPECT_EQ(layout.groups[0].tile_count, 13u);
  EXPECT_THAT(describe(layout), HasSubstr("3 weights, 13 tiles of 128 x 64"));
}

TEST_F(Layout, RowsOfAFusedAdapterBeginLater) {
  add({64, 64}, Order::kOIHW, 4, LYC_DTYPE_F32, LYC_DTYPE_BF16);
  ops::Term &term = case_.terms().back();
  term.p.up = case_.arena().random({192, 4, {1, 1, 1}}, LYC_DTYPE_BF16, random_, 1.0);
  term.row_begin = 128;
  const WeightLayout layout = lay_out(case_.batch());
  EXPECT_EQ(layout.terms[0].row_factor.data, static_cast<const std::uint16_t *>(term.p.up.data) + 128 * 4);
  term.row_begin = 129;
  EXPECT_THROW(lay_out(case_.batch()), Error);
}

TEST_F(Layout, PanelsAreChosenByRanks) {
  const struct {
    std::int64_t rank;
    int chunks;
  } ranks[] = {{4, 1}, {16, 1}, {24, 2}, {32, 2}, {48, 4}, {64, 4}, {72, 8}, {128, 8}};
  for (const auto &[rank, chunks] : ranks) {
    case_ = WeightCase(1);
    const WeightLayout layout = lay_out_one({72, 200}, Order::kOIHW, rank);
    ASSERT_EQ(layout.panels.size(), 1u) << rank;
    EXPECT_EQ(layout.panels[0].kind, (PanelKind{StreamForm::kSingle, chunks, true})) << rank;
    EXPECT_TRUE(layout.groups.empty());
  }
}

TEST_F(Layout, PanelsOfTargetsFollowEachOther) {
  add({100, 200}, Order::kOIHW, 16, LYC_DTYPE_BF16, LYC_DTYPE_BF16);
  add({64, 64, {3, 3, 1}}, Order::kOIHW, 16, LYC_DTYPE_F16, LYC_DTYPE_BF16);
  const WeightLayout layout = lay_out(case_.batch());
  ASSERT_EQ(layout.panels.size(), 1u);
  const PanelGroup &group = layout.panels[0];
  EXPECT_EQ(group.targets[0].strips.value, 4u);
  EXPECT_EQ(group.targets[0].base_row, 400);
  EXPECT_EQ(group.targets[0].product[0].row.step, 32);
  EXPECT_EQ(group.targets[0].product[0].column.step, 400);
  EXPECT_EQ(group.targets[1].strips.value, 9u);
  EXPECT_EQ(group.targets[1].bf16, 0);
  EXPECT_THAT(group.blocks.first, testing::ElementsAre(0u, 4u));  // 4 x 4 panels, four a block
  EXPECT_EQ(group.blocks.pieces, 4u + 5u);                        // 2 x 9
  EXPECT_THAT(describe(layout), HasSubstr("2 weights"));
}

TEST_F(Layout, HalvesOfAHadamardProductShareAPanel) {
  TermChoice term;
  term.kind = ops::TermKind::kHadamard;
  case_.factor_dtype = LYC_DTYPE_F16;
  for (std::int64_t rank : {16, 32}) {
    term.rank = rank;
    case_.add({{64, 64}, LYC_DTYPE_F16, LYC_DTYPE_F16, Order::kOIHW, Order::kOIHW, true, {{{term}}}});
    ops::Term &added = case_.terms().back();
    for (ops::Product *half : {&added.p, &added.q}) {
      half->up = case_.arena().random({64, rank, {1, 1, 1}}, LYC_DTYPE_F16, random_, 1.0);
      half->down = case_.arena().random({rank, 64}, LYC_DTYPE_F16, random_, 1.0);
    }
  }
  const WeightLayout layout = lay_out(case_.batch());
  ASSERT_EQ(layout.panels.size(), 1u);
  EXPECT_EQ(layout.panels[0].kind, (PanelKind{StreamForm::kHadamard, 2, false}));
  EXPECT_EQ(layout.panels[0].targets.size(), 2u);
  EXPECT_EQ(layout.panels[0].targets[1].product[1].rank, 32);
}

TEST_F(Layout, PanelsTakeWholeVectorsAlone) {
  add({64, 60}, Order::kOIHW, 16, LYC_DTYPE_BF16, LYC_DTYPE_BF16);   // columns
  add({64, 64}, Order::kOIHW, 6, LYC_DTYPE_BF16, LYC_DTYPE_BF16);    // ranks
  add({64, 64}, Order::kOIHW, 20, LYC_DTYPE_BF16, LYC_DTYPE_BF16);   // of several chunks
  add({64, 64}, Order::kOIHW, 132, LYC_DTYPE_BF16, LYC_DTYPE_BF16);  // too many
  add({64, 64}, Order::kOIHW, 16, LYC_DTYPE_BF16, LYC_DTYPE_F32);
  add({64, 64}, Order::kHWIO, 16, LYC_DTYPE_BF16, LYC_DTYPE_BF16);
  EXPECT_TRUE(lay_out(case_.batch()).panels.empty());
}

/// Kronecker products with a whole left half, without factors of any other type.
class Blocks : public testing::Test {
 protected:
  WeightLayout lay_out_one(Shape shape, TermChoice term, ops::DoraAxis axis = ops::DoraAxis::kNone,
                           Order order = Order::kOIHW, lyc_dtype factor = LYC_DTYPE_BF16) {
    case_ = WeightCase(1);
    case_.factor_dtype = factor;
    case_.add({shape, LYC_DTYPE_BF16, LYC_DTYPE_BF16, order, order, true, {{{term}, axis}}});
    return lay_out(case_.batch());
  }

  static TermChoice choice(std::int64_t rank, std::int64_t p_out, std::int64_t p_in) {
    TermChoice term;
    term.kind = ops::TermKind::kKronecker;
    term.p = test::Half::kWhole;
    term.rank = rank;
    term.p_out = p_out, term.p_in = p_in;
    return term;
  }

  WeightCase case_{1};
};

TEST_F(Blocks, OfALowRankRightHalfAreTakenByPanels) {
  TermChoice term = choice(16, 6, 5);
  term.row_begin = 47;
  WeightLayout layout = lay_out_one({120, 200}, term);
  ASSERT_EQ(layout.panels.size(), 1u);
  EXPECT_EQ(layout.panels[0].kind, (PanelKind{StreamForm::kKronecker, 1, true}));
  EXPECT_EQ(layout.products.workspace_size, 0u);
  const PanelTarget target = layout.panels[0].targets.at(0);
  EXPECT_EQ(target.rows, 120);
  EXPECT_EQ(target.columns, 200);
  EXPECT_EQ(target.out_row, 400);
  EXPECT_EQ(target.product[0].row.step, 32);
  EXPECT_EQ(target.product[0].column.step, 80);
  EXPECT_EQ(target.left.data, case_.terms()[0].p.down.data);
  EXPECT_EQ(target.left.row, 10);
  EXPECT_EQ(target.left.column, 2);
  EXPECT_EQ(target.left.rows.value, 20u);
  EXPECT_EQ(target.left.columns.value, 40u);
  EXPECT_EQ(target.left.row_begin, 47);
  EXPECT_THAT(describe(layout), HasSubstr("Kronecker products of up to 16 ranks"));

  layout = lay_out_one({64, 16, {3, 3, 1}}, choice(24, 2, 2), ops::DoraAxis::kNone, Order::kOIHW, LYC_DTYPE_F16);
  ASSERT_EQ(layout.panels.size(), 1u);
  EXPECT_EQ(layout.panels[0].kind, (PanelKind{StreamForm::kKronecker, 2, false}));
  EXPECT_EQ(layout.panels[0].targets.at(0).left.columns.value, 72u);  // with the kernel
}

TEST_F(Blocks, ThatPanelsCannotTakeGoElsewhere) {
  const auto takes = [&](auto... arguments) { return !lay_out_one(arguments...).panels.empty(); };
  TermChoice computed = choice(16, 2, 2), whole = computed;
  computed.p = test::Half::kLowRank;
  whole.q = test::Half::kWhole;
  const Shape shape{64, 64};
  EXPECT_TRUE(takes(shape, choice(16, 2, 2)));
  EXPECT_TRUE(takes(shape, choice(16, 4, 8)));    // blocks of 16 x 8
  EXPECT_FALSE(takes(shape, choice(16, 8, 2)));   // of 8 rows
  EXPECT_FALSE(takes(shape, choice(16, 2, 16)));  // of 4 columns
  EXPECT_FALSE(takes(shape, choice(6, 2, 2)));
  EXPECT_FALSE(takes(shape, choice(20, 2, 2)));
  EXPECT_FALSE(takes(shape, choice(40, 2, 2)));
  EXPECT_FALSE(takes(shape, computed));
  EXPECT_FALSE(takes(shape, whole));
  EXPECT_FALSE(takes(shape, choice(16, 2, 2), ops::DoraAxis::kOut));
  EXPECT_FALSE(takes(shape, choice(16, 2, 2), ops::DoraAxis::kNone, Order::kHWIO));
  EXPECT_FALSE(takes(shape, choice(16, 2, 2), ops::DoraAxis::kNone, Order::kOIHW, LYC_DTYPE_F32));
}

TEST_F(Blocks, MustFitTheWeight) {
  lay_out_one({64, 64}, choice(16, 2, 2));
  case_.terms()[0].row_begin = 1;
  EXPECT_THROW(lay_out(case_.batch()), Error);
}

/// One target for the kernels of every term.
class Terms : public testing::Test {
 protected:
  TermLayout lay_out_one(Shape shape, Order order, TermChoice term, ops::DoraAxis axis = ops::DoraAxis::kNone) {
    case_.add({shape, LYC_DTYPE_BF16, LYC_DTYPE_BF16, order, order, true, {{{term}, axis}}});
    return lay_out(case_.batch()).others;
  }

  WeightCase case_{4};
};

TEST_F(Terms, LowRankTermsWithoutDoraAreNoneOfThem) {
  EXPECT_TRUE(lay_out_one({64, 64}, Order::kOIHW, {}).targets.empty());
}

TEST_F(Terms, AxesStayApartInTheOrderOfTheOutput) {
  TermChoice term;
  term.p = test::Half::kWhole;
  const TermLayout layout = lay_out_one({8, 6, {3, 2, 1}}, Order::kHWIO, term);
  const TermTarget &target = layout.targets.at(0);
  EXPECT_FALSE(target.out_is_row);
  EXPECT_EQ(target.columns.size, 8);
  EXPECT_EQ(target.rows.size, 36);
  EXPECT_THAT(target.rows.extent, testing::ElementsAre(6, 2, 3, 1));  // I within K
  EXPECT_THAT(target.position.level, testing::ElementsAre(6, 1, 2, 0));
}

TEST_F(Terms, CoresAreContractedFirstAndHalvesAfterThem) {
  TermChoice term;
  term.kind = ops::TermKind::kKronecker;
  term.p_out = term.p_in = 4;
  term.q = test::Half::kTucker;
  const TermLayout layout = lay_out_one({64, 60, {3, 3, 1}}, Order::kOIHW, term);
  const Products products = lay_out(case_.batch()).products;
  ASSERT_EQ(products.contractions[0].size(), 1u);
  ASSERT_EQ(products.contractions[1].size(), 2u);
  const Contraction &core = products.contractions[0][0], &half = products.contractions[1][1];
  EXPECT_EQ(half.left_in_workspace, 1);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(half.left.data), core.result);
  EXPECT_EQ(layout.terms.at(0).rows.size, 16);
  EXPECT_EQ(layout.terms.at(0).columns.level, 2);  // input features lie outside the kernel
  EXPECT_GT(products.workspace_size, half.result);
}

TEST_F(Terms, NormsAreSummedInPieces) {
  const TermLayout by_row = lay_out_one({100, 200}, Order::kOIHW, {}, ops::DoraAxis::kOut);
  EXPECT_EQ(by_row.norms.at(0).lines, 100);
  EXPECT_TRUE(by_row.adapters.at(0).magnitude_rows);
  EXPECT_TRUE(by_row.reads_base);
  EXPECT_EQ(lay_out(case_.batch()).products.dora_factors.at(0).pieces, 4);  // strips of 64
}

TEST_F(Terms, AMagnitudeOfInputFeaturesCoversTheKernel) {
  const TermLayout layout = lay_out_one({100, 20, {3, 3, 1}}, Order::kOIHW, {}, ops::DoraAxis::kIn);
  EXPECT_EQ(layout.norms.at(0).lines, 180);
  const FactorTask task = lay_out(case_.batch()).products.dora_factors.at(0);
  EXPECT_EQ(task.pieces, 2);
  EXPECT_EQ(task.inside, 9);
  EXPECT_EQ(task.magnitudes, 20);
}

TEST_F(Terms, ElementwiseTermsOfContiguousLinesHaveTheirOwnKernels) {
  TermChoice term;
  term.kind = ops::TermKind::kKronecker;
  term.p_out = term.p_in = 8;
  EXPECT_TRUE(lay_out_one({128, 128}, Order::kOIHW, term).targets.empty());
  EXPECT_TRUE(lay_out_one({128, 128}, Order::kOIHW, term, ops::DoraAxis::kOut).targets.empty());
  EXPECT_TRUE(lay_out_one({256, 128}, Order::kHWIO, term).targets.empty());
  EXPECT_TRUE(lay_out_one({128, 160}, Order::kOIHW, term).targets.empty());
  EXPECT_EQ(lay_out_one({128, 144}, Order::kOIHW, term).targets.size(), 1u);  // halves of 18 columns
  EXPECT_EQ(lay_out_one({128, 128}, Order::kOIHW, term, ops::DoraAxis::kIn).targets.size(), 2u);
  const WeightLayout layout = lay_out(case_.batch());
  const ElementwiseGroup &plain = layout.elementwise.groups[0], &fours = layout.elementwise.groups[1];
  ASSERT_EQ(layout.elementwise.rows.size(), 1u);
  const ElementwiseRowsGroup &dora = layout.elementwise.rows[0];
  ASSERT_EQ(plain.targets.size(), 2u);
  ASSERT_EQ(fours.targets.size(), 1u);  // halves of 20 columns
  ASSERT_EQ(dora.targets.size(), 1u);
  EXPECT_EQ(plain.targets[0].step.value, 16u);  // rows that share the right half's row
  EXPECT_EQ(plain.targets[0].threads, 128 * 128 / 8 / 4);
  EXPECT_EQ(plain.targets[1].rows, 128);  // turned round
  EXPECT_EQ(plain.targets[1].columns, 256);
  EXPECT_EQ(plain.tiles.pieces, 1u + 1u);
  EXPECT_TRUE(layout.reads_base);
}

TEST_F(Terms, OneWeightWithOneElementwiseTermTravelsWithItsLaunch) {
  TermChoice term;
  term.kind = ops::TermKind::kKronecker;
  term.p = term.q = test::Half::kWhole;
  term.p_out = term.p_in = 3;
  const auto flat_of = [](const WeightCase &c) { return flat_target(lay_out(c.batch()).elementwise, {false}); };
  const auto add = [&](WeightCase &c, Shape shape, std::vector<TermChoice> terms) {
    c.add({shape, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {{std::move(terms)}}});
    for (ops::Term &t : c.terms())
      for (ops::Operand *half : {&t.p.down, &t.q.down}) half->dtype = LYC_DTYPE_BF16;
  };
  WeightCase one(1), two_terms(1), two_weights(1);
  add(one, {51, 72}, {term});
  const auto flat = flat_of(one);
  ASSERT_TRUE(flat);
  EXPECT_EQ(flat->vectors, 51 * 9);
  EXPECT_EQ(flat->right_vectors.value, 3u);
  add(two_terms, {51, 72}, {term, term});
  EXPECT_FALSE(flat_of(two_terms));
  add(two_weights, {51, 72}, {term});
  add(two_weights, {51, 72}, {term});
  EXPECT_FALSE(flat_of(two_weights));
}

TEST_F(Terms, RowsThatTooFewShareAreTakenInOrder) {
  TermChoice term;
  term.kind = ops::TermKind::kKronecker;
  term.p_out = 2, term.p_in = 8;
  lay_out_one({128, 128}, Order::kOIHW, term);
  EXPECT_EQ(lay_out(case_.batch()).elementwise.groups[0].targets.at(0).step.value, 1u);
}

TEST_F(Terms, TeamsAreAsLargeAsTheirRows) {
  TermChoice term;
  term.kind = ops::TermKind::kKronecker;
  term.p_out = term.p_in = 2;
  const struct {
    std::int64_t columns;
    std::int32_t block, vectors, teams;
    std::uint32_t threads, blocks;
  } widths[] = {{64, 4, 2, 4, 32, 25},       {640, 4, 3, 4, 32, 25},      {1024, 4, 4, 4, 32, 25},
                {1280, 4, 3, 2, 64, 50},     {2048, 4, 4, 2, 64, 50},     {2304, 3, 3, 1, 96, 100},
                {3072, 3, 4, 1, 96, 100},    {3088, 4, 4, 1, 128, 100},   {6144, 6, 4, 1, 192, 100},
                {6160, 8, 4, 1, 256, 100},   {12288, 12, 4, 1, 384, 100}, {24576, 24, 4, 1, 768, 100},
                {24592, 16, 8, 1, 512, 100}, {65536, 32, 8, 1, 1024, 100}};
  const auto lay_out_rows = [&](std::int64_t columns) {
    WeightCase c(8);
    c.factor_dtype = LYC_DTYPE_BF16;
    const Shape shape{100, columns};
    c.add({shape, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {{{term}, ops::DoraAxis::kOut}}});
    return lay_out(c.batch()).elementwise.rows;
  };
  for (const auto &[columns, block, vectors, teams, threads, blocks] : widths) {
    SCOPED_TRACE(columns);
    const auto rows = lay_out_rows(columns);
    ASSERT_EQ(rows.size(), 1u);
    const ElementwiseRows &target = rows[0].targets.at(0);
    EXPECT_EQ(rows[0].kind.block_warps, block);
    EXPECT_EQ(rows[0].kind.vectors, vectors);
    EXPECT_EQ(rows[0].tiles.pieces, blocks);
    EXPECT_EQ(rows[0].scales, teams * 2);
    EXPECT_EQ(target.teams, teams);
    EXPECT_EQ(target.team_threads.value, threads);
    EXPECT_EQ(target.right_vectors.value, columns / 16);
  }
  EXPECT_EQ(lay_out_rows(65552).at(0).kind.block_warps, 0);  // element by element
}

/// The threads of a team have as many vectors as their kernel takes for granted.
TEST_F(Terms, RowsOfAllWidthsFillTheirTeams) {
  TermChoice term;
  term.kind = ops::TermKind::kKronecker;
  term.p_out = term.p_in = 1;
  for (std::int64_t vectors = 1; vectors <= 8192; vectors += vectors < 400 ? 1 : 61) {
    WeightCase c(9);
    c.factor_dtype = LYC_DTYPE_BF16;
    const Shape shape{1, vectors * 8};
    c.add({shape, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {{{term}, ops::DoraAxis::kOut}}});
    const ElementwiseRowsGroup group = lay_out(c.batch()).elementwise.rows.at(0);
    const std::int64_t threads = group.targets[0].team_threads.value;
    EXPECT_LE(vectors, threads * group.kind.vectors);
    EXPECT_GE(vectors, threads * full_row_vectors(group.kind.vectors));
  }
}

TEST_F(Terms, DivisorsDivide) {
  TermChoice term;
  term.kind = ops::TermKind::kKronecker;
  term.p_out = term.p_in = 1;
  std::vector<std::int64_t> sizes = {4, 12, 20, 252, 256, 260, 3072, 16380, 1 << 20};
  for (std::int64_t size : sizes) lay_out_one({1, size}, Order::kOIHW, term);
  const WeightLayout layout = lay_out(case_.batch());
  for (const ElementwiseTerm &entry : layout.elementwise.terms) {
    const auto [value, magic, shift] = entry.right_columns;
    for (std::uint64_t n : {0u, 1u, value - 1, value, value + 1, 1000003u, 0x7fffffffu})
      EXPECT_EQ((n + (n * magic >> 32)) >> shift, n / value) << n << " / " << value;
  }
}

TEST_F(Layout, HadamardHalvesAndCoresTakeTheLowRankKernels) {
  TermChoice term;
  term.kind = ops::TermKind::kHadamard;
  term.p = test::Half::kTucker;
  case_.add({{64, 64}, LYC_DTYPE_BF16, LYC_DTYPE_BF16, Order::kOIHW, Order::kOIHW, true, {{{term}}}});
  const WeightLayout layout = lay_out(case_.batch());
  ASSERT_EQ(layout.groups.size(), 1u);
  EXPECT_TRUE(layout.groups[0].kind.hadamard);
  ASSERT_EQ(layout.terms.size(), 2u);
  EXPECT_EQ(layout.terms[0].role, Role::kHold);
  EXPECT_EQ(layout.terms[0].column_factor.in_workspace, 1);
  EXPECT_EQ(layout.terms[1].role, Role::kMultiply);
}

/// What a device with a copy engine takes.
class Stream : public testing::Test {
 protected:
  WeightLayout lay_out_one(Shape shape, TermChoice term, ops::DoraAxis axis = ops::DoraAxis::kNone,
                           Order order = Order::kOIHW) {
    WeightCase c(5);
    c.factor_dtype = LYC_DTYPE_BF16;
    c.add({shape, LYC_DTYPE_BF16, LYC_DTYPE_BF16, order, order, true, {{{term}, axis}}});
    for (ops::Term &added : c.terms()) added.coefficient = 1.0;
    return lay_out(c.batch(), {true, largest_cluster_, 227 * 1024});
  }

  /// Of one weight that a cluster takes by rows, with DoRA.
  StreamWeight lay_out_rows(Shape shape, TermChoice term, Order order = Order::kOIHW) {
    largest_cluster_ = kMostCluster;
    const WeightLayout layout = lay_out_one(shape, term, ops::DoraAxis::kOut, order);
    EXPECT_TRUE(layout.reads_base);
    EXPECT_TRUE(layout.products.dora_factors.empty() || layout.streams.at(0).kind.cluster == 0);
    return layout.streams.at(0).weights.at(0);
  }

  static TermChoice choice(ops::TermKind kind, std::int64_t rank = 16) {
    TermChoice term;
    term.kind = kind;
    term.rank = rank;
    return term;
  }

  int largest_cluster_ = 0;
};

TEST_F(Stream, ABlockOfAKroneckerProductIsAStripOfTiles) {
  TermChoice term = choice(ops::TermKind::kKronecker);
  term.p_out = 4, term.p_in = 6;
  term.q = test::Half::kWhole;
  const WeightLayout layout = lay_out_one({4 * 40, 6 * 64}, term, ops::DoraAxis::kIn);
  const StreamTarget &target = layout.streams.at(0).weights.at(0).target;
  EXPECT_EQ(target.rows, 40);
  EXPECT_EQ(target.columns, 64);
  EXPECT_EQ(target.boxes_across, 1);  // so a tile takes four neighbouring blocks
  EXPECT_EQ(target.strips, 2);        // 40 rows
  EXPECT_EQ(target.height, 4 * 2);
  EXPECT_EQ(lay_out_one({4 * 8, 6 * 64}, term, ops::DoraAxis::kIn).streams.size(), 0u);  // blocks too low
  EXPECT_EQ(lay_out_one({4 * 40, 6 * 64}, term).streams.size(), 0u);                     // the elementwise kernels'
  EXPECT_EQ(lay_out_one({4 * 40, 6 * 64}, term, ops::DoraAxis::kOut).streams.size(), 0u);
  const WeightLayout transposed = lay_out_one({4 * 40, 6 * 64}, term, ops::DoraAxis::kIn, Order::kHWIO);
  EXPECT_EQ(transposed.streams.at(0).weights.at(0).target.rows, 64);
  EXPECT_EQ(transposed.streams.at(0).weights.at(0).target.dora.by_row, 1);
}

TEST_F(Stream, AllBlocksWalkDownAWeightSideBySide) {
  WeightLayout layout = lay_out_one({384 * 32, 12 * 256}, choice(ops::TermKind::kProduct), ops::DoraAxis::kIn);
  StreamGroup &group = layout.streams.at(0);
  const auto groups = [&] { return group.weights.at(0).target.groups; };
  schedule(group, 400);
  EXPECT_EQ(groups(), 32);  // of 12 strips each, all of 12 tiles: no more than are at work at once
  EXPECT_EQ(group.run_count, 12u * 32u);
  schedule(group, 5);
  EXPECT_EQ(groups(), 2);  // 24 runs in five rounds, not 12 twice as long ones in three
  group.weights.insert(group.weights.end(), 63, group.weights.front());
  schedule(group, 4000);
  EXPECT_EQ(groups(), 384 / 4);  // there is enough for runs of four tiles
  EXPECT_THAT(group.first_run, testing::SizeIs(64));
  EXPECT_EQ(group.first_run.back(), 63u * 12 * 96);
}

TEST_F(Stream, DoraSumsSquaresOverBoxesOrTiles) {
  const auto task = [&](ops::DoraAxis axis, Shape shape) {
    return lay_out_one(shape, choice(ops::TermKind::kProduct), axis).products.dora_factors.at(0);
  };
  const FactorTask rows = task(ops::DoraAxis::kOut, {100, 200});
  EXPECT_EQ(rows.lines, 100);
  EXPECT_EQ(rows.pieces, 4);  // boxes of 64 columns
  const FactorTask columns = task(ops::DoraAxis::kIn, {100, 24, {3, 3, 1}});
  EXPECT_EQ(columns.lines, 216);
  EXPECT_EQ(columns.pieces, 4);  // tiles of 32 rows
  EXPECT_EQ(columns.inside, 9);
  EXPECT_EQ(columns.magnitudes, 24);
}

TEST_F(Stream, DoraTakesWholeRowsInAsManyBlocksAsHoldThem) {
  const TermChoice term = choice(ops::TermKind::kProduct);
  const struct {
    std::int64_t columns;
    std::int32_t cluster, boxes;
  } widths[] = {{64, 2, 1}, {392, 2, 4}, {768, 2, 6}, {1280, 4, 5}, {3072, 8, 6}, {3080, 16, 4}, {12288, 16, 12}};
  for (const auto &[columns, cluster, boxes] : widths) {
    const StreamWeight weight = lay_out_rows({72, columns}, term);
    EXPECT_EQ(weight.kind.cluster, cluster) << columns;
    EXPECT_EQ(weight.target.boxes, boxes) << columns;
    EXPECT_EQ(weight.target.strips, 1);
    EXPECT_EQ(weight.target.height, 3);  // bands of 32 rows
    EXPECT_EQ(weight.target.dora.lines, 72);
  }
  EXPECT_EQ(lay_out_rows({72, 12296}, term).kind.cluster, 0);
  EXPECT_EQ(lay_out_rows({72, 64, {3, 3, 1}}, term).target.boxes, 5);
}

TEST_F(Stream, ColumnsAndSharedMagnitudesAreNotTakenByRows) {
  const TermChoice term = choice(ops::TermKind::kProduct);
  EXPECT_EQ(lay_out_rows({72, 64}, term, Order::kHWIO).kind.cluster, 0);  // O are columns
  EXPECT_EQ(lay_out_one({72, 64}, term, ops::DoraAxis::kIn, Order::kHWIO).streams.at(0).kind.cluster, 2);
  EXPECT_EQ(lay_out_one({72, 64}, term, ops::DoraAxis::kIn).streams.at(0).kind.cluster, 0);
}

TEST_F(Stream, WhatARunComputesComesInThreeParts) {
  TermChoice tucker = choice(ops::TermKind::kProduct);
  tucker.p = test::Half::kTucker;
  const WeightLayout layout = lay_out_one({64, 32, {3, 3, 1}}, tucker);
  const StreamTarget &target = layout.streams.at(0).weights.at(0).target;
  ASSERT_EQ(target.chunk_count, 3);
  EXPECT_EQ(target.chunks[2].row_chunk, 0);
  EXPECT_EQ(target.chunks[2].column_chunk, 2);
  EXPECT_EQ(target.chunks[2].ends, 1);
  EXPECT_EQ(layout.products.contractions[0].at(0).packed_lines, 320);  // of 288
  tucker.rank = 40;
  EXPECT_EQ(lay_out_one({64, 32, {3, 3, 1}}, tucker).streams.size(), 0u);
}

TEST_F(Stream, ProductsOfTheWeightHoldRowsInClusters) {
  TermChoice term = choice(ops::TermKind::kBaseProduct);
  EXPECT_EQ(lay_out_one({64, 128}, term).base_products.size(), 0u);  // without clusters
  largest_cluster_ = kMostCluster;
  const WeightLayout layout = lay_out_one({64, 1544}, term);
  EXPECT_EQ(layout.base_products.at(0).cluster, 4);
  EXPECT_EQ(layout.base_products.at(0).targets.at(0).columns_of_block, 392);
  EXPECT_TRUE(layout.reads_base);
  EXPECT_EQ(lay_out_one({64, 16}, term).base_products.at(0).cluster, 2);
  EXPECT_EQ(lay_out_one({64, 8}, term).base_products.size(), 0u);
  EXPECT_EQ(lay_out_one({64, 3080}, term).base_products.size(), 0u);  // more than four blocks hold
  EXPECT_EQ(lay_out_one({64, 128}, term, ops::DoraAxis::kNone, Order::kHWIO).base_products.size(), 0u);
  term.rank = 24;
  EXPECT_EQ(lay_out_one({64, 128}, term).base_products.size(), 0u);
}

TEST_F(Stream, RotationsOfBlocksThatATileHolds) {
  TermChoice term = choice(ops::TermKind::kRotation);
  const auto streams = [&](std::int64_t block, std::int64_t rows) {
    term.rotation.block_size = block;
    return lay_out_one({rows, 64}, term).streams.size();
  };
  EXPECT_EQ(streams(16, 48), 1u);
  EXPECT_EQ(streams(32, 96), 1u);
  EXPECT_EQ(streams(24, 96), 0u);
  EXPECT_EQ(streams(32, 100), 0u);
}

TEST_F(Stream, ButterfliesTakeTheTensorCoresWhereTheirMatricesFit) {
  TermChoice term = choice(ops::TermKind::kRotation);
  term.rotation.order = ops::Rotation::Order::kInterleave;
  term.rotation.stages = 3;
  const auto task = [&](std::int64_t block, lyc_dtype dtype, int shared_bytes) {
    term.rotation.block_size = block;
    WeightCase c(1);
    c.add({{block * 8, 64}, dtype, dtype, Order::kOIHW, Order::kOIHW, true, {{{term}}}});
    c.terms().back().coefficient = 1.0;
    return lay_out(c.batch(), {true, 0, shared_bytes}).products.rotations.at(0);
  };
  constexpr int kSmall = 99 * 1024, kLarge = 227 * 1024;
  EXPECT_EQ(task(24, LYC_DTYPE_BF16, kSmall).cone, ConeKind::kThreeQuads);
  EXPECT_EQ(task(32, LYC_DTYPE_BF16, kLarge).cone, ConeKind::kFourQuads);
  EXPECT_EQ(task(32, LYC_DTYPE_BF16, kSmall).cone, ConeKind::kFloat);
  EXPECT_EQ(task(24, LYC_DTYPE_F32, kLarge).cone, ConeKind::kFloat);
  EXPECT_EQ(task(24, LYC_DTYPE_F32, kLarge).quads, 0);
  EXPECT_EQ(task(24, LYC_DTYPE_BF16, kSmall).fused, 3);
}

TEST_F(Layout, RefusesByName) {
  const auto message = [&](const std::function<void(WeightCase &)> &spoil) {
    WeightCase c(3);
    c.add({{8, 8}, LYC_DTYPE_F32, LYC_DTYPE_F32, Order::kOIHW, Order::kOIHW, true, {low_rank(4)}});
    spoil(c);
    try {
      lay_out(c.batch());
    } catch (const Error &error) {
      EXPECT_EQ(error.status(), LYC_ERROR_UNSUPPORTED);
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(message([](WeightCase &c) { c.targets()[0].base.dtype = LYC_DTYPE_F8_E4M3; }), HasSubstr("f8_e4m3"));
}

}  // namespace
}  // namespace lyc::cuda
