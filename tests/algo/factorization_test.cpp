// How LoKr cuts a dimension, as in the original's table for factors -1, 2, 8, 16, 64.
#include "algo/factorization.hpp"

#include <gtest/gtest.h>

namespace lyc::algo {
namespace {

using Pair = std::pair<std::int64_t, std::int64_t>;

TEST(Factorize, Table) {
  constexpr std::int64_t kFactors[] = {-1, 2, 8, 16, 64};
  const struct {
    std::int64_t dimension, small[5];
  } rows[] = {
      {1, {1, 1, 1, 1, 1}},       {7, {1, 1, 1, 1, 1}},       {9, {3, 1, 3, 3, 3}},       {10, {2, 2, 2, 2, 2}},
      {16, {4, 2, 2, 1, 4}},      {36, {6, 2, 6, 6, 6}},      {64, {8, 2, 8, 4, 1}},      {77, {7, 1, 7, 7, 7}},
      {100, {10, 2, 5, 10, 10}},  {127, {1, 1, 1, 1, 1}},     {128, {8, 2, 8, 8, 2}},     {250, {10, 2, 5, 10, 10}},
      {320, {16, 2, 8, 16, 5}},   {360, {18, 2, 8, 15, 18}},  {768, {24, 2, 8, 16, 12}},  {1152, {32, 2, 8, 16, 18}},
      {1280, {32, 2, 8, 16, 20}}, {2432, {38, 2, 8, 16, 38}}, {3072, {48, 2, 8, 16, 48}}, {5120, {64, 2, 8, 16, 64}},
      {9216, {96, 2, 8, 16, 64}},
  };
  for (const auto &row : rows)
    for (int f = 0; f < 5; ++f)
      EXPECT_EQ(factorize(row.dimension, kFactors[f]), Pair(row.small[f], row.dimension / row.small[f]))
          << row.dimension << " by " << kFactors[f];
}

TEST(Factorize, ADividingFactorIsTakenWithoutBalancing) {
  EXPECT_EQ(factorize(64, 64), Pair(1, 64));
  EXPECT_EQ(factorize(12, 6), Pair(2, 6));
  EXPECT_EQ(factorize(10, 10), Pair(1, 10));
}

TEST(Factorize, ProductIsTheDimension) {
  for (std::int64_t dimension = 1; dimension < 400; ++dimension)
    for (std::int64_t factor = -1; factor < 70; ++factor) {
      const auto [small, large] = factorize(dimension, factor);
      ASSERT_EQ(small * large, dimension);
      ASSERT_LE(small, large);
    }
}

}  // namespace
}  // namespace lyc::algo
