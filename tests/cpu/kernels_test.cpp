#include "cpu/kernels.hpp"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <string>

#include "base/dtype.hpp"
#include "support/random.hpp"

namespace lyc::cpu {
namespace {

class CpuKernels : public testing::TestWithParam<const Kernels *> {
 protected:
  const Kernels &k_ = *GetParam();
};

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Every 16-bit value, rows of odd length so that their ragged ends take part.
TEST_P(CpuKernels, LoadsAllHalves) {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F16}) {
    std::vector<float> got(halves.size());
    for (std::size_t i = 0; i < halves.size(); i += 37)
      k_.load(dtype, &halves[i], static_cast<std::int64_t>(std::min<std::size_t>(37, halves.size() - i)), &got[i]);
    for (std::size_t i = 0; i < halves.size(); ++i) {
      const float want = dtype == LYC_DTYPE_BF16 ? bf16_to_float(halves[i]) : f16_to_float(halves[i]);
      if (std::isnan(want))
        ASSERT_TRUE(std::isnan(got[i])) << i;
      else
        ASSERT_EQ(bits_of(got[i]), bits_of(want)) << i;
    }
  }
}

TEST_P(CpuKernels, StoresAsTheScalarConversions) {
  test::Random random(1);
  std::vector<float> values;
  // Around every 16-bit value: itself, the tie above it, and the neighbours of the tie.
  for (std::uint32_t half = 0; half < 65536; ++half) {
    for (std::uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      values.push_back(from_bits(half << 16 | low));
    const std::uint32_t f16 = bits_of(f16_to_float(static_cast<std::uint16_t>(half)));
    for (std::uint32_t low : {0u, 1u, 0xfffu, 0x1000u, 0x1001u}) values.push_back(from_bits(f16 + low));
  }
  for (int i = 0; i < 200000; ++i) values.push_back(from_bits(static_cast<std::uint32_t>(random.bits())));
  std::vector<std::uint16_t> got(values.size());
  for (lyc_dtype dtype : {LYC_DTYPE_BF16, LYC_DTYPE_F16}) {
    k_.store(values.data(), static_cast<std::int64_t>(values.size()), dtype, got.data(), false);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const bool bf16 = dtype == LYC_DTYPE_BF16;
      if (std::isnan(values[i]))
        ASSERT_TRUE(std::isnan(bf16 ? bf16_to_float(got[i]) : f16_to_float(got[i]))) << i;
      else
        ASSERT_EQ(got[i], bf16 ? float_to_bf16(values[i]) : float_to_f16(values[i])) << values[i];
    }
  }
}

TEST_P(CpuKernels, RowsTouchNothingBeyondTheirEnd) {
  for (std::int64_t n = 0; n < 70; ++n) {
    std::vector<float> base(static_cast<std::size_t>(n), 1.0f), delta(static_cast<std::size_t>(n), 2.0f);
    std::vector<float> out(static_cast<std::size_t>(n) + 8, -1.0f);
    k_.merge(LYC_DTYPE_F32, base.data(), delta.data(), n, LYC_DTYPE_F32, out.data(), false);
    for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], i < base.size() ? 3.0f : -1.0f);
  }
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, CpuKernels, testing::ValuesIn(supported_kernels()), [](const auto &param) {
  std::string name = param.param->name;
  name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
  return name;
});

}  // namespace
}  // namespace lyc::cpu
