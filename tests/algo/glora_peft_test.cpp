#include "algo/family.hpp"

namespace lyc::test {
namespace {

using testing::HasSubstr;
constexpr lyc_algo kId = LYC_ALGO_PEFT_GLORA;
const Shapes kProducts = {{"glora_A.Xd", {6, 2}}, {"glora_A.Xu", {2, 4}}, {"glora_B.Xd", {6, 3}},
                          {"glora_B.Xu", {3, 4}}, {"glora_C.Xd", {4, 2}}, {"glora_C.Xu", {2, 1}},
                          {"glora_D.X", {6}},     {"glora_E.X", {1}}};

TEST(PeftGlora, ProductsOnTheWeight) {
  Random random(5);
  Arena arena;
  const ops::Operand base = arena.random({6, 4, {1, 1, 1}}, LYC_DTYPE_F32, random, 1.0);
  const Filled f(kProducts);
  const auto product = [&](const std::string &path, std::int64_t rank, std::int64_t o, std::int64_t i) {
    double sum = 0;
    for (std::int64_t r = 0; r < rank; ++r) sum += f(path + "Xd", o * rank + r) * f(path + "Xu", r * 4 + i);
    return sum;
  };
  expect_delta(
      kId, f, {6, 4, {}},
      [&](auto o, auto i, auto) {
        return at(base, o, i, 0) * product("glora_A.", 2, o, i) + product("glora_B.", 3, o, i);
      },
      &base);
}

TEST(PeftGlora, ValuesRepeatAlongRows) {
  Random random(5);
  Arena arena;
  const ops::Operand base = arena.random({6, 4, {1, 1, 1}}, LYC_DTYPE_F32, random, 1.0);
  const Filled f(Shapes{{"glora_A.X", {6, 1}}, {"glora_B.X", {1}}});
  expect_delta(
      kId, f, {6, 4, {}},
      [&](auto o, auto i, auto) { return at(base, o, i, 0) * f("glora_A.X", o) + f("glora_B.X", 0); }, &base);
}

TEST(PeftGlora, PartsAreWhatIsUsed) {
  const algo::DeltaShape all = describe(kId, kProducts), none = describe(kId, {{"glora_A.zeros", {6, 1}}});
  EXPECT_TRUE(all.weight && all.bias && all.bias_reads_weight && all.reads_base);
  EXPECT_EQ(all.out, 6);
  EXPECT_EQ(all.columns, 4);
  EXPECT_EQ(all.rank, 0);
  EXPECT_FALSE(none.weight || none.bias);
  EXPECT_FALSE(describe(kId, {{"glora_D.X", {6}}}).bias_reads_weight);
}

TEST(PeftGlora, RefusesByName) {
  EXPECT_THAT(refusal(kId, without(kProducts, "glora_A.Xu")), HasSubstr("glora_A.Xu is missing"));
  EXPECT_THAT(refusal(kId, with(kProducts, "glora_A.Xu", {3, 4})), HasSubstr("glora_A.Xd has rank 2"));
  EXPECT_THAT(refusal(kId, with(kProducts, "glora_B.Xd", {5, 3})), HasSubstr("glora_B.Xd has rows 5, others have 6"));
  EXPECT_THAT(refusal(kId, with(kProducts, "glora_C.Xd", {5, 2})), HasSubstr("glora_C.Xd has rows 5, others have 4"));
  EXPECT_THAT(refusal(kId, with(kProducts, "glora_C.Xu", {2, 2})), HasSubstr("glora_C.Xu has columns 2"));
  EXPECT_THAT(refusal(kId, with(kProducts, "glora_D.X", {2, 3})), HasSubstr("must be a vector"));
}

}  // namespace
}  // namespace lyc::test
