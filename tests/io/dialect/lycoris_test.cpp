// Keys into records: families, spellings, what is refused and why.
#include "io/dialect/lycoris.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <limits>

#include "base/error.hpp"
#include "io/dialect/adapter.hpp"

namespace lyc::io {
namespace {

using test::Adapter;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<std::string> factor_names(const LayerRecord &record) {
  std::vector<std::string> names;
  for (const Factor &factor : record.factors) names.emplace_back(factor.name);
  return names;
}

AdapterRecords read(const Adapter &adapter) { return read_adapter(adapter.keys()); }

/// The reason for the one leftover of a file without records.
std::string refusal(const Adapter &adapter, lyc_status status) {
  const AdapterRecords records = read(adapter);
  EXPECT_THAT(records.layers, IsEmpty());
  if (records.leftovers.size() != 1) return concat(records.leftovers.size(), " leftovers");
  EXPECT_EQ(records.leftovers[0].status, status);
  EXPECT_EQ(records.leftovers[0].tensors.size(), adapter.entries.size());
  return records.leftovers[0].reason;
}

TEST(Lycoris, FamiliesByTheirFactors) {
  const AdapterRecords records = read({{{"lycoris_a.lora_up.weight", {4, 2}},
                                        {"lycoris_a.lora_down.weight", {2, 4, 1, 1}},
                                        {"lycoris_a.lora_mid.weight", {2, 2, 3, 3}},
                                        {"lycoris_a.alpha", {}},
                                        {"lycoris_b.hada_w1_a", {4, 2}},
                                        {"lycoris_b.hada_w1_b", {2, 4}},
                                        {"lycoris_b.hada_w2_a", {4, 2}},
                                        {"lycoris_b.hada_w2_b", {2, 4}},
                                        {"lycoris_b.dora_scale", {4, 1}},
                                        {"lycoris_c.lokr_w1", {2, 2}},
                                        {"lycoris_c.lokr_w2_a", {2, 1}},
                                        {"lycoris_c.lokr_w2_b", {1, 2}},
                                        {"lycoris_d.diff", {4, 4}},
                                        {"lycoris_d.diff_b", {4}},
                                        {"lycoris_e.w_norm", {4}},
                                        {"lycoris_e.b_norm", {4}}}});
  EXPECT_EQ(records.dialect, "lycoris");
  EXPECT_EQ(records.dora_rule, LYC_DORA_RULE_INTERPOLATE);
  EXPECT_THAT(records.leftovers, IsEmpty());
  ASSERT_EQ(records.layers.size(), 5u);
  const lyc_algo algos[] = {LYC_ALGO_LOCON, LYC_ALGO_LOHA, LYC_ALGO_LOKR, LYC_ALGO_FULL, LYC_ALGO_NORM};
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(records.layers[i].algo, algos[i]);
    EXPECT_TRUE(records.layers[i].weight);
    EXPECT_EQ(records.layers[i].bias, i >= 3);
  }
  EXPECT_TRUE(records.layers[0].has_alpha());
  EXPECT_FALSE(records.layers[0].has_dora());
  EXPECT_TRUE(records.layers[1].has_dora());
  EXPECT_EQ(records.layers[1].find("hada_w2_b"), 7);
  EXPECT_EQ(records.layers[1].find("hada_t1"), -1);
}

TEST(Lycoris, SpellingsOfLora) {
  const std::pair<const char *, const char *> spellings[] = {
      {"a.lora_up.weight", "a.lora_down.weight"},
      {"a.lora_B.weight", "a.lora_A.weight"},
      {"a.lora_B", "a.lora_A"},
      {"a.lora_B.default.weight", "a.lora_A.default.weight"},
      {"a.lora_B.default_0.weight", "a.lora_A.default_0.weight"},
      {"a.lora.up.weight", "a.lora.down.weight"},
      {"a_lora.up.weight", "a_lora.down.weight"},
      {"a.lora_linear_layer.up.weight", "a.lora_linear_layer.down.weight"},
  };
  for (const auto &[up, down] : spellings) {
    const std::string prefix = "diffusion_model.";
    const AdapterRecords records = read({{{(prefix + up).c_str(), {4, 2}}, {(prefix + down).c_str(), {2, 4}}}});
    ASSERT_EQ(records.layers.size(), 1u) << up;
    EXPECT_EQ(records.layers[0].layer, "diffusion_model.a");
    EXPECT_THAT(factor_names(records.layers[0]), ElementsAre("lora_up.weight", "lora_down.weight"));
  }
}

TEST(Lycoris, OnlyTheEndingCounts) {
  const AdapterRecords records = read({{{"lora_unet_lora_up.weight.lora_A.x.diff", {4, 4}},
                                        {"lora_unet_b.alpha.lora_down.weight", {2, 4}},
                                        {"lora_unet_b.alpha.lora_up.weight", {4, 2}}}});
  ASSERT_EQ(records.layers.size(), 2u);
  EXPECT_EQ(records.layers[0].layer, "lora_unet_b.alpha");
  EXPECT_EQ(records.layers[1].layer, "lora_unet_lora_up.weight.lora_A.x");
}

TEST(Lycoris, LayersAreOrderedByName) {
  const AdapterRecords records = read({{{"lycoris_b.diff", {1}}, {"lycoris_a.diff", {1}}}});
  ASSERT_EQ(records.layers.size(), 2u);
  EXPECT_EQ(records.layers[0].layer, "lycoris_a");
}

TEST(Lycoris, BiasBesideAnotherFamilyIsARecordOfItsOwn) {
  const AdapterRecords records = read({{{"diffusion_model.a.lora_up.weight", {4, 2}},
                                        {"diffusion_model.a.lora_down.weight", {2, 4}},
                                        {"diffusion_model.a.alpha", {1}},
                                        {"diffusion_model.a.diff_b", {4}},
                                        {"diffusion_model.b.diff_b", {4}}}});
  ASSERT_EQ(records.layers.size(), 3u);
  EXPECT_EQ(records.layers[0].algo, LYC_ALGO_LOCON);
  EXPECT_FALSE(records.layers[0].bias);
  for (const std::size_t i : {1u, 2u}) {
    EXPECT_EQ(records.layers[i].algo, LYC_ALGO_FULL);
    EXPECT_FALSE(records.layers[i].weight);
    EXPECT_TRUE(records.layers[i].bias);
    EXPECT_THAT(factor_names(records.layers[i]), ElementsAre("diff_b"));
  }
  EXPECT_EQ(records.layers[1].layer, "diffusion_model.a");
}

TEST(Lycoris, IncompleteLayersSayWhatIsMissing) {
  const auto reason = [](const Adapter &adapter) { return refusal(adapter, LYC_ERROR_FORMAT); };
  EXPECT_EQ(reason({{{"lycoris_a.alpha", {}}}}), "only alpha, and no factors");
  EXPECT_EQ(reason({{{"lycoris_a.dora_scale", {4, 1}}}}), "only dora_scale, and no factors");
  EXPECT_EQ(reason({{{"lycoris_a.lora_up.weight", {4, 2}}, {"lycoris_a.alpha", {}}}}),
            "lora_up.weight without lora_down.weight");
  EXPECT_EQ(reason({{{"lycoris_a.lora_mid.weight", {2, 2, 3, 3}}}}), "lora_up.weight is missing");
  EXPECT_EQ(
      reason({{{"lycoris_a.hada_w1_a", {4, 2}}, {"lycoris_a.hada_w1_b", {2, 4}}, {"lycoris_a.hada_w2_a", {4, 2}}}}),
      "hada_w2_b is missing");
  EXPECT_EQ(reason({{{"lycoris_a.lokr_w1", {2, 2}}}}), "lokr_w2 is missing, whole and factored");
  EXPECT_EQ(reason({{{"lycoris_a.lokr_w1", {2, 2}}, {"lycoris_a.lokr_w2_b", {1, 2}}}}), "lokr_w2_b without lokr_w2_a");
  EXPECT_EQ(reason({{{"lycoris_a.lokr_w1", {2, 2}},
                     {"lycoris_a.lokr_w2", {2, 2}},
                     {"lycoris_a.lokr_w2_a", {2, 1}},
                     {"lycoris_a.lokr_w2_b", {1, 2}}}}),
            "lokr_w2 is there whole and factored");
  EXPECT_EQ(reason({{{"lycoris_a.lokr_w1", {2, 2}}, {"lycoris_a.lokr_w2", {2, 2}}, {"lycoris_a.lokr_t2", {1, 1, 3}}}}),
            "lokr_w2_a is missing");
}

TEST(Lycoris, FamiliesAreRead) {
  struct Case {
    lyc_algo algo;
    Adapter adapter;
  };
  const Case cases[] = {
      {LYC_ALGO_IA3, {{{"lycoris_a.weight", {4}}, {"lycoris_a.on_input", {}}}}},
      {LYC_ALGO_GLORA,
       {{{"lycoris_a.a1.weight", {4, 2}},
         {"lycoris_a.a2.weight", {2, 4}},
         {"lycoris_a.b1.weight", {4, 2}},
         {"lycoris_a.b2.weight", {2, 4}},
         {"lycoris_a.alpha", {}}}}},
      {LYC_ALGO_TLORA,
       {{{"lycoris_a.q_layer.weight", {2, 4}},
         {"lycoris_a.p_layer.weight", {4, 2}},
         {"lycoris_a.lambda_layer", {1, 2}}}}},
      {LYC_ALGO_LOCON,
       {{{"lycoris_a.lora_up.weight", {4, 2}},
         {"lycoris_a.lora_down.weight", {2, 4}},
         {"lycoris_a.lora_up.bias", {4}},
         {"lycoris_a.reshape_weight", {2}}}}},
      {LYC_ALGO_LOCON, {{{"lycoris_a.lora_embedding_A", {2, 4}}, {"lycoris_a.lora_embedding_B", {4, 2}}}}},
      {LYC_ALGO_LOCON,
       {{{"lycoris_a.lora_up.weight", {4, 2}},
         {"lycoris_a.lora_down.weight", {2, 4}},
         {"lycoris_a.bias_indices", {2, 1}},
         {"lycoris_a.bias_values", {1}},
         {"lycoris_a.bias_size", {2}}}}},
      {LYC_ALGO_SPARSE,
       {{{"lycoris_a.bias_indices", {2, 1}}, {"lycoris_a.bias_values", {1}}, {"lycoris_a.bias_size", {2}}}}},
      {LYC_ALGO_REPLACE, {{{"lycoris_a.set_weight", {4, 2}}}}},
      {LYC_ALGO_PEFT_GLORA, {{{"lycoris_a.glora_A.X", {1}}, {"lycoris_a.glora_B.zeros", {1}}}}},
  };
  for (const Case &c : cases) {
    const AdapterRecords records = read(c.adapter);
    ASSERT_EQ(records.layers.size(), 1u) << c.algo;
    EXPECT_EQ(records.layers[0].algo, c.algo);
    EXPECT_EQ(records.layers[0].factors.size(), c.adapter.entries.size());
    EXPECT_TRUE(records.leftovers.empty());
  }
}

TEST(Lycoris, IncompleteLayersOfOtherFamilies) {
  const auto reason = [](const Adapter &adapter) { return refusal(adapter, LYC_ERROR_FORMAT); };
  EXPECT_EQ(reason({{{"lycoris_a.on_input", {}}}}), "on_input without weight");
  EXPECT_EQ(reason({{{"lycoris_a.a1.weight", {4, 2}}, {"lycoris_a.b1.weight", {4, 2}}}}), "a2.weight is missing");
  EXPECT_EQ(reason({{{"lycoris_a.lambda_layer", {1, 2}}}}), "p_layer.weight is missing");
  EXPECT_EQ(reason({{{"lycoris_a.bias_indices", {2, 1}}, {"lycoris_a.bias_values", {1}}}}), "bias_size is missing");
  EXPECT_EQ(reason({{{"lycoris_a.lora_up.bias", {4}}}}), "lora_up.weight is missing");
  EXPECT_EQ(reason({{{"lycoris_a.lora_embedding_A", {2, 4}}}}), "lora_embedding_A without lora_embedding_B");
  EXPECT_EQ(reason({{{"lycoris_a.reshape_weight", {2}}}}), "only reshape_weight, and no factors");
}

TEST(Lycoris, ContradictoryLayersAreRefusedAsAWhole) {
  const auto reason = [](const Adapter &adapter) { return refusal(adapter, LYC_ERROR_FORMAT); };
  EXPECT_EQ(reason({{{"diffusion_model.a.lora_up.weight", {4, 2}},
                     {"diffusion_model.a.lora_down.weight", {2, 4}},
                     {"diffusion_model.a.lora_B.weight", {4, 2}}}}),
            "lora_up.weight is there twice, as 'diffusion_model.a.lora_up.weight' and "
            "'diffusion_model.a.lora_B.weight'");
  EXPECT_EQ(reason({{{"lycoris_a.diff", {4, 4}}, {"lycoris_a.lokr_w1", {2, 2}}, {"lycoris_a.lokr_w2", {2, 2}}}}),
            "factors of two families on one layer");
  EXPECT_EQ(reason({{{"lycoris_a.diff_b", {4}}, {"lycoris_a.b_norm", {4}}}}), "factors of two families on one layer");
  EXPECT_EQ(reason({{{"lycoris_a.lora_up.weight", {4, 0}}, {"lycoris_a.lora_down.weight", {0, 4}}}}),
            "lora_up.weight has no elements");
  EXPECT_EQ(reason({{{"lycoris_a.diff", {4, 4}}, {"lycoris_a.alpha", {2}}}}), "alpha has more than one element");
  EXPECT_EQ(reason({{{"lycoris_a.w_norm", {4}}, {"lycoris_a.dora_scale", {4}}}}),
            "dora_scale without low-rank factors");
}

TEST(Lycoris, AlphaOfOneElementHasAnyShape) {
  for (const std::vector<std::int64_t> &shape : {std::vector<std::int64_t>{}, {1}, {1, 1}})
    EXPECT_EQ(read({{{"lycoris_a.lora_up.weight", {4, 2}},
                     {"lycoris_a.lora_down.weight", {2, 4}},
                     {"lycoris_a.alpha", shape}}})
                  .layers.size(),
              1u);
}

TEST(Lycoris, FeaturesThatAreNotBuiltAreNamed) {
  EXPECT_THAT(refusal({{{"lycoris_a.lora_up.weight", {4, 2}},
                        {"lycoris_a.lora_down.weight", {2, 4}},
                        {"lycoris_a.lora_magnitude_vector", {4}}}},
                      LYC_ERROR_UNSUPPORTED),
              HasSubstr("DoRA in PEFT's spelling"));
}

TEST(Lycoris, OtherKeysAreLeftOver) {
  const AdapterRecords records = read({{{"lycoris_a.diff", {4, 4}},
                                        {"lycoris_a.lokr_t1", {4, 4}},
                                        {"bundle_emb.word.string_to_param.*", {4, 4}},
                                        {"lycoris_a.weight", {4, 4}},
                                        {".diff", {4}}}});
  ASSERT_EQ(records.layers.size(), 1u);
  ASSERT_EQ(records.leftovers.size(), 4u);
  EXPECT_EQ(records.leftovers[0].reason, "does not end like an adapter's factor");
  EXPECT_EQ(records.leftovers[2].reason, "a whole tensor, not an adapter's factor");
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(records.leftovers[i].status, LYC_ERROR_MISMATCH);
    EXPECT_THAT(records.leftovers[i].tensors, ElementsAre(i + 1));
  }
}

/// A fused qkv, [9, 3] x [3, 3] (three parts of rank 1, three rows each).
struct SplitQkv : testing::Test {
  Adapter adapter{{{"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", {9, 3}},
                   {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", {3, 3}},
                   {"lora_unet_double_blocks_0_img_attn_qkv.alpha", {}}},
                  {{"ss_network_args", R"({"split_qkv": "True"})"}}};
  std::vector<float> up = std::vector<float>(27, 0.0f);

  SplitQkv() {
    for (std::size_t o = 0; o < 9; ++o) up[o * 3 + o / 3] = 1.0f;
    adapter.read_rows = [this](std::size_t index, std::int64_t first, std::int64_t count) {
      EXPECT_EQ(index, 0u);
      return std::vector<float>(up.begin() + first * 3, up.begin() + (first + count) * 3);
    };
  }
  int parts() { return read(adapter).layers.at(0).scale_divisor_parts; }
  std::size_t notes() { return read(adapter).notes.size(); }
};

TEST_F(SplitQkv, DeclaredAndSeen) {
  EXPECT_EQ(parts(), 3);
  EXPECT_EQ(notes(), 0u);
}

TEST_F(SplitQkv, DeclaredButNotSeen) {
  for (const float value : {1e-30f, std::numeric_limits<float>::quiet_NaN()}) {
    up[8 * 3] = value;  // the last row, so that all of them are read
    EXPECT_EQ(parts(), 1);
    EXPECT_EQ(notes(), 1u);
  }
}

TEST_F(SplitQkv, SeenButNotDeclared) {
  for (const char *text : {"{}", R"({"split_qkv": "False"})", R"({"split_qkv": false})", "not json", "[]", ""}) {
    adapter.metadata["ss_network_args"] = text;
    EXPECT_EQ(parts(), 1) << text;
    EXPECT_EQ(notes(), 1u) << text;
  }
}

TEST_F(SplitQkv, CannotBeChecked) {
  adapter.read_rows = nullptr;
  EXPECT_EQ(parts(), 1);
  EXPECT_EQ(notes(), 1u);
}

TEST_F(SplitQkv, OnlyMatricesAreLookedAt) {
  adapter.entries[0].ndim = 3;
  const std::int64_t shape[] = {9, 3, 2};
  adapter.entries[0].shape = shape;
  adapter.read_rows = [](std::size_t, std::int64_t, std::int64_t) -> std::vector<float> {
    ADD_FAILURE();
    return {};
  };
  EXPECT_EQ(parts(), 1);
}

TEST_F(SplitQkv, ErrorsOfReadingAreNotTheLayersFault) {
  adapter.read_rows = [](std::size_t, std::int64_t, std::int64_t) -> std::vector<float> {
    fail(LYC_ERROR_IO, "disk is gone");
  };
  EXPECT_THROW(read(adapter), Error);
}

TEST_F(SplitQkv, OrdinaryFilesAreNotReadBeyondARow) {
  std::int64_t rows = 0;
  adapter.metadata.clear();
  adapter.read_rows = [&](std::size_t, std::int64_t, std::int64_t count) {
    rows += count;
    return std::vector<float>(static_cast<std::size_t>(count) * 3, 1.0f);
  };
  EXPECT_EQ(parts(), 1);
  EXPECT_EQ(rows, 1);
}

}  // namespace
}  // namespace lyc::io
