// The families, by number, name, alias, and by the tensors that tell them apart.
#include "algo/family.hpp"

namespace lyc::test {
namespace {

using algo::find_algorithm;

TEST(Registry, EveryFamilyIsFoundByNumberAndName) {
  for (const algo::Algorithm *algorithm : algo::algorithms()) {
    EXPECT_EQ(find_algorithm(algorithm->id), algorithm) << algorithm->name;
    EXPECT_EQ(find_algorithm(algorithm->name), algorithm) << algorithm->name;
  }
  EXPECT_EQ(find_algorithm(LYC_ALGO_NONE), nullptr);
  EXPECT_EQ(find_algorithm(static_cast<lyc_algo>(99)), nullptr);
}

TEST(Registry, Aliases) {
  EXPECT_EQ(find_algorithm("lora")->id, LYC_ALGO_LOCON);
  EXPECT_EQ(find_algorithm("kron")->id, LYC_ALGO_LOKR);
  EXPECT_EQ(find_algorithm("diff")->id, LYC_ALGO_FULL);
  EXPECT_EQ(find_algorithm("diag-oft")->id, LYC_ALGO_OFT);
  for (const char *name : {"", "LOCON", "glokr", "lora "}) EXPECT_EQ(find_algorithm(name), nullptr) << name;
}

TEST(Registry, TensorsTellTheFamily) {
  const std::pair<const char *, lyc_algo> cases[] = {
      {"lora_up.weight", LYC_ALGO_LOCON}, {"lora_down.weight", LYC_ALGO_LOCON},
      {"hada_w2_b", LYC_ALGO_LOHA},       {"lokr_w1", LYC_ALGO_LOKR},
      {"lokr_w2_a", LYC_ALGO_LOKR},       {"diff", LYC_ALGO_FULL},
      {"diff_b", LYC_ALGO_FULL},          {"w_norm", LYC_ALGO_NORM},
      {"b_norm", LYC_ALGO_NORM},          {"on_input", LYC_ALGO_IA3},
      {"a1.weight", LYC_ALGO_GLORA},      {"lambda_layer", LYC_ALGO_TLORA},
      {"oft_R.weight", LYC_ALGO_OFT},     {"boft_R", LYC_ALGO_BOFT},
      {"set_weight", LYC_ALGO_REPLACE}};
  for (const auto &[name, id] : cases) {
    const algo::Algorithm *found = algo::recognise(Filled(Shapes{{name, {2, 2}}}).factors);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_EQ(found->id, id) << name;
  }
  EXPECT_EQ(algo::recognise(Filled(Shapes{{"alpha", {}}}).factors), nullptr);
}

TEST(Registry, WhatFamiliesCanDo) {
  for (lyc_algo id : {LYC_ALGO_LOCON, LYC_ALGO_LOHA, LYC_ALGO_LOKR}) {
    EXPECT_TRUE(find_algorithm(id)->low_rank && find_algorithm(id)->dora);
    EXPECT_EQ(find_algorithm(id)->bias, "diff_b");
  }
  for (lyc_algo id : {LYC_ALGO_FULL, LYC_ALGO_NORM})
    EXPECT_FALSE(find_algorithm(id)->low_rank || find_algorithm(id)->dora);
}

}  // namespace
}  // namespace lyc::test
