#include "base/dtype.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>
#include <set>
#include <string>

namespace lyc {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

bool is_nan_f16(std::uint32_t bits) { return (bits & 0x7fffu) > 0x7c00u; }
bool is_nan_bf16(std::uint32_t bits) { return (bits & 0x7fffu) > 0x7f80u; }

/// Value of a half from its definition.
double f16_by_definition(std::uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10 & 0x1f), mantissa = static_cast<int>(bits & 0x3ff);
  const double sign = bits & 0x8000u ? -1 : 1;
  if (exponent == 31) return sign * std::numeric_limits<double>::infinity();
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

TEST(Dtype, TableHasEveryTypeOnce) {
  std::set<std::string> names, texts;
  for (int code = LYC_DTYPE_F32; code <= LYC_DTYPE_F8_E5M2; ++code) {
    const DtypeInfo *info = find_dtype(static_cast<lyc_dtype>(code));
    ASSERT_NE(info, nullptr) << code;
    EXPECT_TRUE(names.insert(info->name).second);
    EXPECT_TRUE(texts.insert(std::string(info->safetensors)).second);
    EXPECT_EQ(dtype_size(info->dtype), info->size);
  }
  EXPECT_EQ(find_dtype(LYC_DTYPE_NONE), nullptr);
  EXPECT_EQ(dtype_size(LYC_DTYPE_NONE), 0u);
  EXPECT_STREQ(dtype_name(LYC_DTYPE_NONE), "unknown");
}

TEST(Dtype, EveryHalfHasItsValueAndComesBack) {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = f16_to_float(static_cast<std::uint16_t>(bits));
    if (is_nan_f16(bits)) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_TRUE(is_nan_f16(float_to_f16(value)));
    } else {
      ASSERT_EQ(value, f16_by_definition(bits)) << bits;
      ASSERT_EQ(float_to_f16(value), bits);
    }
  }
}

TEST(Dtype, EveryBfloatComesBack) {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = bf16_to_float(static_cast<std::uint16_t>(bits));
    if (is_nan_bf16(bits)) {
      EXPECT_TRUE(is_nan_bf16(float_to_bf16(value)));
    } else {
      ASSERT_EQ(float_to_bf16(value), bits);
    }
  }
}

/// Between two neighbours: the nearer one; half-way the even one. `step` back and forth finds the neighbours of the
/// middle in float32, which is exact there.
template <typename ToFloat, typename FromFloat>
void expect_nearest_even(std::uint32_t largest, ToFloat to_float, FromFloat from_float) {
  for (std::uint32_t low = 0; low < largest; ++low) {
    const std::uint32_t high = low + 1, even = low % 2 == 0 ? low : high;
    const double middle = (static_cast<double>(to_float(static_cast<std::uint16_t>(low))) +
                           static_cast<double>(to_float(static_cast<std::uint16_t>(high)))) /
                          2;
    const float tie = static_cast<float>(middle);
    ASSERT_EQ(tie, middle);
    ASSERT_EQ(from_float(tie), even) << low;
    ASSERT_EQ(from_float(std::nextafter(tie, 0.0f)), low) << low;
    ASSERT_EQ(from_float(std::nextafter(tie, kInfinity)), high) << low;
    ASSERT_EQ(from_float(-tie), even | 0x8000u) << low;
  }
}

TEST(Dtype, HalfRoundsToNearestEven) { expect_nearest_even(0x7bff, f16_to_float, float_to_f16); }

TEST(Dtype, BfloatRoundsToNearestEven) { expect_nearest_even(0x7f7f, bf16_to_float, float_to_bf16); }

TEST(Dtype, OverflowIsInfinity) {
  EXPECT_EQ(float_to_f16(65519.996f), 0x7bff);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_f16(-65520.0f), 0xfc00);
  EXPECT_EQ(float_to_f16(kInfinity), 0x7c00);
  EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(float_to_bf16(-kInfinity), 0xff80);
}

TEST(Dtype, UnderflowIsSignedZero) {
  EXPECT_EQ(float_to_f16(0x1p-25f), 0);  // half of the smallest: a tie, to even
  EXPECT_EQ(float_to_f16(std::nextafter(0x1p-25f, 1.0f)), 1);
  EXPECT_EQ(float_to_f16(-0x1p-30f), 0x8000);
  EXPECT_EQ(float_to_bf16(-0.0f), 0x8000);
}

TEST(Dtype, NanStaysNanWhateverItsPayload) {
  for (const std::uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    EXPECT_TRUE(is_nan_f16(float_to_f16(value)));
    EXPECT_TRUE(is_nan_bf16(float_to_bf16(value)));
  }
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(kNan))));
}

}  // namespace
}  // namespace lyc
