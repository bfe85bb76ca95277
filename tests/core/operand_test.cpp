// Layouts, and what views share: brute force over small views against the sets of addresses they touch.
#include "core/operand.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <set>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "support/random.hpp"
#include "support/tensor.hpp"

namespace lyc::test {
namespace {

using ops::Operand;

alignas(16) char memory[1 << 16];

std::vector<std::int64_t> offsets(const Operand &view) {
  std::vector<std::int64_t> all;
  for (std::int64_t o = 0; o < view.out; ++o)
    for (std::int64_t i = 0; i < view.in; ++i)
      for (std::int64_t k = 0; k < view.kernel_size(); ++k) all.push_back(offset_of(view, o, i, k));
  return all;
}

/// Every byte that the view touches.
std::set<std::intptr_t> bytes(const Operand &view) {
  std::set<std::intptr_t> all;
  const auto size = static_cast<std::int64_t>(dtype_size(view.dtype));
  for (std::int64_t offset : offsets(view))
    for (std::int64_t byte = 0; byte < size; ++byte)
      all.insert(reinterpret_cast<std::intptr_t>(view.data) + offset * size + byte);
  return all;
}

bool intersect(const Operand &a, const Operand &b) {
  const auto x = bytes(a), y = bytes(b);
  return std::any_of(x.begin(), x.end(), [&](std::intptr_t address) { return y.count(address) > 0; });
}

Operand any_view(Random &random) {
  Operand view;
  view.dtype = random.one_of({LYC_DTYPE_F32, LYC_DTYPE_BF16});
  view.out = random.between(1, 4);
  view.in = random.between(1, 4);
  view.kernel[0] = random.between(1, 2);
  view.stride_out = random.between(0, 12);
  view.stride_in = random.between(0, 12);
  view.stride_kernel[0] = random.between(0, 6);
  view.data = memory + random.between(0, 20) * 4;
  return view;
}

/// A part of the dense tensor [6, 5, 3] in any order of axes.
Operand any_slice(Random &random) {
  const std::int64_t extents[3] = {6, 5, 3};
  Operand view;
  view.dtype = LYC_DTYPE_F32;
  std::int64_t begin[3], count[3];
  for (int d = 0; d < 3; ++d) {
    begin[d] = random.between(0, extents[d] - 1);
    count[d] = random.between(1, extents[d] - begin[d]);
  }
  view.data = memory + 4 * (begin[0] * 15 + begin[1] * 3 + begin[2]);
  view.out = count[0], view.in = count[1], view.kernel[0] = count[2];
  view.stride_out = 15, view.stride_in = 3, view.stride_kernel[0] = 1;
  if (random.chance(0.5)) std::swap(view.out, view.in), std::swap(view.stride_out, view.stride_in);
  return view;
}

TEST(MayOverlap, NeverDeniesAnOverlap) {
  Random random(1);
  for (int round = 0; round < 50000; ++round) {
    const Operand a = any_view(random), b = any_view(random);
    ASSERT_TRUE(may_overlap(a, b) || !intersect(a, b)) << round;
    ASSERT_EQ(may_overlap(a, b), may_overlap(b, a)) << round;
  }
}

TEST(MayOverlap, IsExactForSlicesOfOneTensor) {
  Random random(2);
  for (int round = 0; round < 20000; ++round) {
    const Operand a = any_slice(random), b = any_slice(random);
    ASSERT_EQ(may_overlap(a, b), intersect(a, b)) << round;
  }
}

// The rows of `b` begin behind those of `a`, and end in the next row of `a`.
TEST(MayOverlap, SeesRowsThatRunIntoTheNext) {
  Operand a, b;
  a.dtype = b.dtype = LYC_DTYPE_F32;
  a.out = b.out = 2, a.in = b.in = 5;
  a.stride_out = b.stride_out = 10, a.stride_in = b.stride_in = 1;
  a.data = memory, b.data = memory + 4 * 7;
  EXPECT_TRUE(may_overlap(a, b));
  b.data = memory + 4 * 5;
  EXPECT_FALSE(may_overlap(a, b));
}

TEST(MayOverlap, EmptyViewsTouchNothing) {
  Random random(3);
  Operand a = any_view(random);
  const Operand b = a;
  a.in = 0;
  EXPECT_FALSE(may_overlap(a, b));
}

TEST(WritableOnce, NeverAllowsASharedElement) {
  Random random(4);
  for (int round = 0; round < 50000; ++round) {
    const Operand view = any_view(random);
    const auto all = offsets(view);
    const bool unique = std::set<std::int64_t>(all.begin(), all.end()).size() == all.size();
    ASSERT_TRUE(unique || !writable_once(view)) << round;
  }
}

TEST(WritableOnce, AllowsSlices) {
  Random random(5);
  for (int round = 0; round < 5000; ++round) ASSERT_TRUE(writable_once(any_slice(random)));
}

TEST(SameMemory, MeansEveryElementAtTheSameAddress) {
  Random random(6);
  for (int round = 0; round < 50000; ++round) {
    const Operand a = any_view(random);
    Operand b = random.chance(0.5) ? any_view(random) : a;
    if (random.chance(0.3)) b.stride_in = random.between(0, 12);
    if (a.dtype != b.dtype || !same_extents(a, b)) continue;
    ASSERT_EQ(same_memory(a, b), a.data == b.data && offsets(a) == offsets(b)) << round;
  }
}

TEST(OperandBytes, ReachTheLastElement) {
  Random random(7);
  for (int round = 0; round < 5000; ++round) {
    const Operand view = any_view(random);
    ASSERT_EQ(reinterpret_cast<std::intptr_t>(view.data) + static_cast<std::intptr_t>(operand_bytes(view)) - 1,
              *bytes(view).rbegin());
  }
}

lyc_tensor dense(const lyc::Shape &shape, lyc_layout layout) {
  lyc_tensor tensor = make_tensor(memory, LYC_DTYPE_F32, shape);
  tensor.layout = layout;
  return tensor;
}

struct LayoutCase {
  lyc::Shape shape;
  lyc_layout layout;
  const char *extents;
  std::int64_t stride_out, stride_in, stride_last_kernel;
};

TEST(WeightOperand, PutsAxesWhereTheLayoutSays) {
  const LayoutCase cases[] = {
      {{5, 7}, LYC_LAYOUT_OIHW, "[5, 7]", 7, 1, 0},
      {{5, 7}, LYC_LAYOUT_OHWI, "[5, 7]", 7, 1, 0},
      {{7, 5}, LYC_LAYOUT_HWIO, "[5, 7]", 1, 5, 0},
      {{4, 4}, LYC_LAYOUT_HWIO, "[4, 4]", 1, 4, 0},  // square: the tag decides
      {{5, 7, 3}, LYC_LAYOUT_OIHW, "[5, 7, 3]", 21, 3, 1},
      {{3, 7, 5}, LYC_LAYOUT_HWIO, "[5, 7, 3]", 1, 5, 35},
      {{5, 3, 7}, LYC_LAYOUT_OHWI, "[5, 7, 3]", 21, 1, 7},
      {{5, 7, 2, 3}, LYC_LAYOUT_OIHW, "[5, 7, 2, 3]", 42, 6, 1},
      {{2, 3, 7, 5}, LYC_LAYOUT_HWIO, "[5, 7, 2, 3]", 1, 5, 35},
      {{5, 2, 3, 7}, LYC_LAYOUT_OHWI, "[5, 7, 2, 3]", 42, 1, 7},
      {{5, 7, 2, 3, 4}, LYC_LAYOUT_OIHW, "[5, 7, 2, 3, 4]", 168, 24, 1},
      {{2, 3, 4, 7, 5}, LYC_LAYOUT_HWIO, "[5, 7, 2, 3, 4]", 1, 5, 35},
      {{5, 2, 3, 4, 7}, LYC_LAYOUT_OHWI, "[5, 7, 2, 3, 4]", 168, 1, 7},
      {{5}, LYC_LAYOUT_HWIO, "[5]", 1, 0, 0},
  };
  for (const LayoutCase &c : cases) {
    const Operand operand = weight_operand(dense(c.shape, c.layout), "base");
    EXPECT_EQ(extents_text(operand), c.extents);
    EXPECT_EQ(operand.stride_out, c.stride_out) << c.extents;
    EXPECT_EQ(operand.stride_in, c.stride_in) << c.extents;
    const std::int64_t last = operand.kernel_dims > 0 ? operand.stride_kernel[operand.kernel_dims - 1] : 0;
    EXPECT_EQ(last, c.stride_last_kernel) << c.extents;
  }
}

TEST(WeightOperand, RefusesWhatCannotBeAWeight) {
  EXPECT_THROW(weight_operand(make_tensor(memory, LYC_DTYPE_F32, {}), "base"), Error);
  EXPECT_THROW(weight_operand(make_tensor(memory, LYC_DTYPE_F32, {1, 1, 1, 1, 1, 1}), "base"), Error);
  try {
    weight_operand(make_tensor(memory, LYC_DTYPE_F8_E4M3, {2, 2}), "base");
    FAIL();
  } catch (const Error &error) {
    EXPECT_EQ(error.status(), LYC_ERROR_UNSUPPORTED);
    EXPECT_THAT(error.what(), testing::HasSubstr("base is f8_e4m3"));
  }
}

TEST(SliceRows, MovesTheAddress) {
  const Operand rows = slice_rows(weight_operand(dense({7, 5}, LYC_LAYOUT_HWIO), "base"), 2, 3);
  EXPECT_EQ(rows.data, memory + 8);
  EXPECT_EQ(rows.out, 3);
}

TEST(SameExtents, KernelOfOneTapMayBeSpelledOut) {
  const Operand linear = weight_operand(dense({5, 7}, LYC_LAYOUT_OIHW), ""),
                conv = weight_operand(dense({5, 7, 1, 1}, LYC_LAYOUT_OIHW), "");
  EXPECT_TRUE(same_extents(linear, conv));
  EXPECT_TRUE(same_memory(linear, conv));
  EXPECT_FALSE(same_extents(linear, weight_operand(dense({5, 7, 2}, LYC_LAYOUT_OIHW), "")));
}

}  // namespace
}  // namespace lyc::test
