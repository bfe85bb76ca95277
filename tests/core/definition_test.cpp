// What tensors of a file come to: family, scale, DoRA axis; and what is refused, by name.
#include "core/definition.hpp"

#include <cmath>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <limits>
#include <map>

#include "base/error.hpp"
#include "base/tensor.hpp"
#include "core/operand.hpp"

namespace lyc {
namespace {

using testing::HasSubstr;
constexpr double kInf = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();

struct ScaleCase {
  std::optional<double> alpha;
  std::int64_t rank;
  bool rank_stabilised;
  std::int64_t parts;
  double scale;
};

TEST(ResolveScale, Table) {
  const ScaleCase cases[] = {
      {{}, 4, false, 1, 1.0},   // alpha absent: the rank
      {0.0, 4, false, 1, 1.0},  // so is 0
      {-0.0, 4, false, 1, 1.0},     {2.0, 4, false, 1, 0.5},
      {-2.0, 4, false, 1, -0.5},                               // negative is legal
      {1e-3, 8, false, 1, 1.25e-4}, {{}, 16, true, 1, 4.0},    // rank-stabilised: alpha / sqrt(rank)
      {2.0, 16, true, 1, 0.5},      {4.0, 12, false, 3, 1.0},  // three parts of rank 4 under the alpha of one
      {{}, 12, false, 3, 1.0},      {2.0, 12, true, 3, 1.0},
      {7.0, 0, false, 1, 1.0},  // nothing low-rank: alpha does not count,
      {kNaN, 0, true, 1, 1.0},  // whatever it is
  };
  for (const ScaleCase &c : cases) {
    Request request;
    request.traits.alpha = c.alpha;
    request.rank_stabilised = c.rank_stabilised;
    request.divisor_parts = c.parts;
    EXPECT_DOUBLE_EQ(resolve_scale(request, c.rank), c.scale) << c.alpha.value_or(-99) << " / " << c.rank;
  }
}

TEST(ResolveScale, RefusesWhatIsNoNumber) {
  for (double alpha : {kNaN, kInf, -kInf}) {
    Request request;
    request.traits.alpha = alpha;
    EXPECT_THROW(resolve_scale(request, 4), Error);
  }
}

using Shapes = std::vector<std::pair<std::string, Shape>>;

Definition define(const Shapes &shapes) {
  alignas(16) static char memory[1 << 16];
  algo::Factors factors;
  std::vector<std::string> names;
  for (const auto &[name, shape] : shapes) {
    factors.set(name, make_tensor(memory, LYC_DTYPE_F32, shape));
    names.push_back(name);
  }
  return lyc::define(factors, names, {});
}

std::string refusal(const Shapes &shapes, lyc_status status = LYC_ERROR_FORMAT) {
  try {
    define(shapes);
  } catch (const Error &error) {
    EXPECT_EQ(error.status(), status) << error.what();
    return error.what();
  }
  return "accepted";
}

const Shapes kLora = {{"lora_up.weight", {6, 2}}, {"lora_down.weight", {2, 4}}};

Shapes lora_and(const std::string &name, const Shape &shape) {
  Shapes all = kLora;
  all.emplace_back(name, shape);
  return all;
}

TEST(Define, DoraAxisFollowsFromTheShape) {
  using ops::DoraAxis;
  const auto axis = [](const Shape &shape) { return define(lora_and("dora_scale", shape)).dora_axis; };
  EXPECT_EQ(axis({6, 1}), DoraAxis::kOut);
  EXPECT_EQ(axis({6}), DoraAxis::kOut);
  EXPECT_EQ(axis({6, 1, 1, 1}), DoraAxis::kOut);
  EXPECT_EQ(axis({1, 4}), DoraAxis::kIn);
  EXPECT_EQ(axis({4}), DoraAxis::kIn);
  const Shapes square = {{"lora_up.weight", {4, 2}}, {"lora_down.weight", {2, 4}}};
  for (const auto &[shape, want] :
       std::map<Shape, DoraAxis>{{{4, 1}, DoraAxis::kOut}, {{1, 4}, DoraAxis::kIn}, {{4}, DoraAxis::kOut}}) {
    Shapes all = square;
    all.emplace_back("dora_scale", shape);
    EXPECT_EQ(define(all).dora_axis, want) << shape_text(shape);
  }
  const Shapes conv = {
      {"lora_up.weight", {6, 2, 1, 1}}, {"lora_down.weight", {2, 4, 3, 3}}, {"dora_scale", {1, 4, 1, 1}}};
  EXPECT_EQ(define(conv).dora_axis, DoraAxis::kIn);
  EXPECT_EQ(define(kLora).dora_axis, DoraAxis::kNone);
}

TEST(Define, NeedsBaseAndInvertible) {
  EXPECT_FALSE(define(kLora).needs_base());
  EXPECT_TRUE(define(kLora).invertible() && define(kLora).row_separable());
  const Definition out = define(lora_and("dora_scale", {6, 1})), in = define(lora_and("dora_scale", {1, 4}));
  EXPECT_TRUE(out.needs_base() && in.needs_base());
  EXPECT_FALSE(out.invertible() || in.invertible());
  EXPECT_TRUE(out.row_separable());
  EXPECT_FALSE(in.row_separable());
}

TEST(Define, RefusesByName) {
  EXPECT_THAT(refusal(lora_and("dora_scale", {5, 1})), HasSubstr("dora_scale has shape [5, 1]"));
  EXPECT_THAT(refusal(lora_and("dora_scale", {2, 3})), HasSubstr("neither one value per output (6)"));
  EXPECT_THAT(refusal(lora_and("scalar", {5})), HasSubstr("scalar has shape [5], must have 1 value"));
  EXPECT_THAT(refusal(lora_and("diff_b", {10})), HasSubstr("diff_b has shape [10], must have 6 values"));
  EXPECT_THAT(refusal(lora_and("diff_b", {3})), HasSubstr("diff_b"));
  EXPECT_THAT(refusal(lora_and("hada_w1_a", {6, 2})), HasSubstr("hada_w1_a does not belong to a locon adapter"));
  EXPECT_THAT(refusal({{"lora_up.weight", {6, 0}}, {"lora_down.weight", {0, 4}}}), HasSubstr("is empty"));
  EXPECT_THAT(refusal({{"lllite_blocks", {6, 2}}}, LYC_ERROR_UNSUPPORTED), HasSubstr("lllite_blocks"));
  EXPECT_THAT(refusal({{"oft_blocks", {6, 2}}}), HasSubstr("oft_blocks has shape [6, 2]"));
  EXPECT_THAT(refusal({{"diff", {6, 4}}, {"diff_b", {7}}}), HasSubstr("diff_b has shape [7], must have 6"));
  EXPECT_THAT(refusal({{"w_norm", {6}}, {"b_norm", {5}}}), HasSubstr("b_norm has shape [5], must have 6"));
  EXPECT_THAT(refusal({{"diff", {6, 4}}, {"dora_scale", {6, 1}}}), HasSubstr("dora_scale does not belong to a full"));
}

TEST(Define, PartsOfAModule) {
  const Definition bias = define({{"diff_b", {6}}});
  EXPECT_TRUE(bias.has_part(LYC_PART_BIAS));
  EXPECT_FALSE(bias.has_part(LYC_PART_WEIGHT));
  EXPECT_TRUE(define(kLora).has_part(LYC_PART_WEIGHT));
  EXPECT_FALSE(define(kLora).has_part(LYC_PART_BIAS));
}

std::string misfit(const Shapes &shapes, const Shape &weight, const Placement &placement = {}) {
  static char memory[1 << 12];
  try {
    check_fits(define(shapes), weight_operand(make_tensor(memory, LYC_DTYPE_F32, weight), "weight"), placement);
  } catch (const Error &error) {
    return error.what();
  }
  return "";
}

TEST(CheckFits, NothingIsCutOrReshaped) {
  EXPECT_EQ(misfit(kLora, {6, 4}), "");
  EXPECT_EQ(misfit(kLora, {6, 4, 1, 1}), "");
  EXPECT_THAT(misfit(kLora, {5, 4}), HasSubstr("rows do not fit"));
  EXPECT_THAT(misfit(kLora, {4, 6}), HasSubstr("rows do not fit"));
  EXPECT_THAT(misfit(kLora, {6, 5}), HasSubstr("columns do not fit"));
  EXPECT_EQ(misfit(kLora, {2, 4}, {3, 2, 0, LYC_PART_WEIGHT}), "");
  EXPECT_THAT(misfit(kLora, {2, 4}, {5, 2, 0, LYC_PART_WEIGHT}), HasSubstr("rows 5 to 7 are not all in the delta"));
  EXPECT_THAT(misfit(kLora, {6, 4}, {1, 0, 0, LYC_PART_WEIGHT}), HasSubstr("not all in the delta"));
  EXPECT_THAT(misfit(lora_and("diff_b", {6}), {6, 4}, {0, 0, 0, LYC_PART_BIAS}), HasSubstr("a bias has one axis"));
  EXPECT_EQ(misfit(lora_and("diff_b", {6}), {6}, {0, 0, 0, LYC_PART_BIAS}), "");
  const Shapes conv = {{"lora_up.weight", {6, 2}}, {"lora_down.weight", {2, 4, 3, 1}}};
  EXPECT_EQ(misfit(conv, {6, 4, 3, 1}), "");
  EXPECT_THAT(misfit(conv, {6, 4, 1, 3}), HasSubstr("kernel is [3, 1]"));
  EXPECT_THAT(misfit(conv, {6, 12}), HasSubstr("kernel is [3, 1]"));
  EXPECT_THAT(misfit(lora_and("dora_scale", {1, 4}), {2, 4}, {0, 2, 0, LYC_PART_WEIGHT}), HasSubstr("all 6 rows"));
}

}  // namespace
}  // namespace lyc
