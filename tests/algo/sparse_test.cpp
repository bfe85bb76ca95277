#include <cstring>

#include "algo/family.hpp"

namespace lyc::test {
namespace {

/// The numbers of a rewritten factor.
std::vector<std::int64_t> integers(const algo::Rewritten &factor) {
  std::vector<std::int64_t> values(factor.bytes.size() / sizeof(std::int64_t));
  std::memcpy(values.data(), factor.bytes.data(), factor.bytes.size());
  return values;
}

TEST(Sparse, IsOrderedByRowAndColumn) {
  std::int32_t indices[] = {2, 0, 2, 0, 1, 0, 0, 1, 0, 2, 1, 0};  // rows, inputs, taps of four elements
  float values[] = {1, 2, 3, 4};
  algo::Factors stored;
  stored.set("bias_indices", make_tensor(indices, LYC_DTYPE_I32, {3, 4}));
  stored.set("bias_values", make_tensor(values, LYC_DTYPE_F32, {4}));
  algo::Traits traits;
  traits.dense = {4, 2, 3};
  const algo::Algorithm &algorithm = *algo::find_algorithm(LYC_ALGO_SPARSE);
  EXPECT_EQ(algorithm.describe(stored, traits).out, 4);
  EXPECT_EQ(algorithm.describe(stored, traits).columns, 6);
  const auto rewritten = algorithm.rewriting->rewrite(stored, traits);
  ASSERT_EQ(rewritten.size(), 3u);
  EXPECT_THAT(integers(rewritten[0]), testing::ElementsAre(0, 0, 2, 2, 2, 3, 1, 3));
  float sorted[4];
  std::memcpy(sorted, rewritten[1].bytes.data(), sizeof sorted);
  EXPECT_THAT(sorted, testing::ElementsAre(2.0f, 4.0f, 3.0f, 1.0f));
  EXPECT_THAT(integers(rewritten[2]), testing::ElementsAre(0, 2, 2, 4, 4));
}

}  // namespace
}  // namespace lyc::test
