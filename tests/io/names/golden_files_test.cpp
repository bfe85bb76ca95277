// Whole adapter files of the golden cases: every key is used or named, and every layer reaches the tensors (and rows)
// of the base that the program itself changed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <map>
#include <set>

#include "base/error.hpp"
#include "core/adapter_file.hpp"
#include "io/dialect/dialect.hpp"
#include "io/golden.hpp"
#include "io/names/resolver.hpp"

namespace lyc::io {
namespace {

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  if (const auto golden = test::golden_folder())
    for (const auto &entry : std::filesystem::directory_iterator(*golden / "files"))
      if (entry.is_directory()) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

/// Which dialect the reader has to find, by the golden case's own word for it.
const std::map<std::string, std::set<std::string>> kDialectOf = {
    {"kohya", {"kohya"}},
    {"kohya_split_qkv", {"kohya"}},
    {"lycoris", {"lycoris", "original"}},  // some were made for ComfyUI's reader
    {"comfy", {"original"}},
    {"aitoolkit", {"original"}},  // without metadata the same spelling with the same meaning
    {"kohya_oft", {"kohya OFT"}},
    {"kohya_oft_flux", {"kohya OFT"}},
    {"peft", {"PEFT"}},
    {"diffusers", {"diffusers"}},
    {"xlabs", {"xlabs"}},
    {"onetrainer", {"OneTrainer"}},
};

class GoldenFile : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    folder_ = *test::golden_folder() / "files" / GetParam();
    kind_ = nlohmann::json::parse(test::read_text(folder_ / "case.json"))["dialect"];
  }
  std::filesystem::path folder_;
  std::string kind_;
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GoldenFile);

using Rows = std::map<std::size_t, std::set<std::int64_t>>;  // of tensors of the base

void insert(Rows &rows, std::size_t tensor, std::int64_t begin, std::int64_t count) {
  for (std::int64_t i = begin; i < begin + count; ++i) rows[tensor].insert(i);
}

Rows changed_rows(const test::SoundFile &base, const test::SoundFile &expected) {
  Rows rows;
  const auto entries = base.table().entries();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto merged = expected.table().find(std::string(entries[i].name));
    if (!merged) continue;
    for (std::int64_t o = 0; o < entries[i].dim(0); ++o)
      if (base.row(i, o) != expected.row(*merged, o)) rows[i].insert(o);
  }
  return rows;
}

TEST_P(GoldenFile, KeysAreUsedAndLayersFound) {
  const test::SoundFile adapter(folder_ / "adapter.safetensors"), base(folder_ / "base.safetensors"),
      expected(folder_ / "expected.safetensors");
  const auto tensors = adapter.table().entries(), weights = base.table().entries();
  const AdapterKeys keys = {
      tensors, adapter.metadata(),
      [&](std::size_t index, std::int64_t first, std::int64_t count) { return adapter.read_rows(index, first, count); },
      family_suffixes()};
  const Dialect &dialect = find_dialect(keys);
  ASSERT_TRUE(kDialectOf.at(kind_).count(std::string(dialect.name))) << dialect.name;
  if (dialect.read == nullptr) {
    try {
      read_adapter(keys);
      FAIL() << "was read";
    } catch (const Error &error) {
      EXPECT_EQ(error.status(), LYC_ERROR_UNSUPPORTED);
      EXPECT_THAT(error.what(), testing::HasSubstr(std::string(dialect.name)));
    }
    return;
  }

  const AdapterRecords records = read_adapter(keys);
  std::multiset<std::size_t> named;
  for (const LayerRecord &record : records.layers)
    for (const Factor &factor : record.factors) named.insert(factor.tensor);
  for (const Leftover &leftover : records.leftovers) {
    EXPECT_EQ(leftover.status, LYC_ERROR_UNSUPPORTED) << leftover.layer << ": " << leftover.reason;
    named.insert(leftover.tensors.begin(), leftover.tensors.end());
  }
  ASSERT_EQ(named.size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) EXPECT_EQ(named.count(i), 1u) << tensors[i].name;

  const NameResolver resolver(weights);
  Rows reached;
  for (const LayerRecord &record : records.layers) {
    const Resolution resolution = resolver.resolve(record.layer);
    ASSERT_TRUE(resolution) << record.layer << ": " << resolution.failure;
    for (const RowTarget &target : resolution.targets) {
      ASSERT_TRUE(!record.weight || target.weight) << record.layer;
      ASSERT_TRUE(!record.bias || target.bias) << record.layer;
      if (record.weight) insert(reached, *target.weight, target.base_row, target.rows);
      if (record.bias) insert(reached, *target.bias, target.base_row, target.rows);
    }
    const std::ptrdiff_t up = record.find("lora_up.weight");
    EXPECT_TRUE(up < 0 || resolution.adapter_rows == tensors[up].dim(0)) << record.layer;
  }
  const Rows changed = changed_rows(base, expected);
  // The one program fails without a word, the other's limit of 0 leaves next to nothing of the rotation.
  const std::string name = folder_.filename().string();
  if (name == "comfy_boft_no_alpha" || name == "kohya_oft_alpha0") {
    for (const auto &[tensor, rows] : changed) EXPECT_TRUE(reached.count(tensor)) << weights[tensor].name;
  } else if (records.leftovers.empty()) {
    EXPECT_EQ(reached, changed);
  } else {
    for (const auto &[tensor, rows] : reached) {
      ASSERT_TRUE(changed.count(tensor)) << weights[tensor].name;
      EXPECT_EQ(rows, changed.at(tensor)) << weights[tensor].name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Names, GoldenFile, testing::ValuesIn(case_names()),
                         [](const auto &parameter) { return parameter.param; });

TEST(GoldenFiles, AreThere) {
  if (!test::golden_folder()) GTEST_SKIP() << "no golden folder";
  EXPECT_GT(case_names().size(), 100u);
}

TEST(GoldenFiles, SplitProjectionsKeepTheScaleOfOnePart) {
  const auto golden = test::golden_folder();
  if (!golden) GTEST_SKIP() << "no golden folder";
  const auto parts = [&](const char *name) {
    const test::SoundFile adapter(*golden / "files" / name / "adapter.safetensors");
    const auto tensors = adapter.table().entries();
    const AdapterRecords records = read_adapter({tensors, adapter.metadata(),
                                                 [&](std::size_t index, std::int64_t first, std::int64_t count) {
                                                   return adapter.read_rows(index, first, count);
                                                 },
                                                 family_suffixes()});
    std::map<std::string, int> found;
    for (const LayerRecord &record : records.layers)
      if (record.scale_divisor_parts != 1) found[record.layer] = record.scale_divisor_parts;
    return std::pair(found, records.notes.size());
  };
  using Found = std::pair<std::map<std::string, int>, std::size_t>;
  const std::map<std::string, int> attention = {{"lora_unet_double_blocks_0_img_attn_qkv", 3},
                                                {"lora_unet_double_blocks_0_txt_attn_qkv", 3}};
  const std::map<std::string, int> single = {{"lora_unet_single_blocks_0_linear1", 4}};
  std::map<std::string, int> all = attention;
  all.insert(single.begin(), single.end());
  EXPECT_EQ(parts("kohya_flux_split_qkv"), Found(all, 0));
  EXPECT_EQ(parts("kohya_flux_split_qkv_single"), Found(single, 0));
  EXPECT_EQ(parts("diffusers_flux_from_kohya_split_meta"), Found(attention, 0));
  EXPECT_EQ(parts("diffusers_flux_from_kohya_block_diagonal"), Found({}, 2)) << "the plain rule, and two notes";
  EXPECT_EQ(parts("kohya_flux_lora"), Found({}, 0));
}

}  // namespace
}  // namespace lyc::io
