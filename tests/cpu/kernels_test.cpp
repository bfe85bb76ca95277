#include "cpu/kernels.hpp"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
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

// A processor's own rounding may drop denormals: one in each lane of a pair of vectors, others being normal, or zero.
TEST_P(CpuKernels, RoundsDenormalsWhereverTheyAre) {
  constexpr std::int64_t kSome = 2 * kRepeated;
  test::Random random(7);
  for (std::uint32_t low : {1u, 0x7fffu, 0x8000u, 0x8001u, 0x18000u, 0x3fffffu, 0x7f7fffu, 0x7f8000u, 0x7fffffu})
    for (std::uint32_t sign : {0u, 0x80000000u})
      for (float others : {0.0f, 1.0f})
        for (std::int64_t lane = 0; lane < kSome; ++lane) {
          float values[kSome], zeros[kSome] = {};
          for (float &value : values) value = others * static_cast<float>(random.normal());
          values[lane] = from_bits(sign | low);
          std::uint16_t got[2][kSome];
          k_.store(values, kSome, LYC_DTYPE_BF16, got[0], false);
          k_.merge(LYC_DTYPE_F32, values, zeros, kSome, LYC_DTYPE_BF16, got[1], true);
          k_.flush();
          for (std::int64_t i = 0; i < kSome; ++i) {
            ASSERT_EQ(got[0][i], float_to_bf16(values[i])) << low << " " << lane << " " << i;
            ASSERT_EQ(bf16_to_float(got[1][i]), bf16_to_float(got[0][i]));
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

// NaN that no carry may turn into another number, two and two beside each other, as sums yield them.
TEST_P(CpuKernels, SumsKeepNanOfEveryPayload) {
  std::vector<float> values, zeros;
  for (std::uint32_t sign : {0u, 0x80000000u})
    for (std::uint32_t high : {0x7fc00000u, 0x7fff0000u, 0x7f800000u})
      for (std::uint32_t low : {1u, 0x8000u, 0x8001u, 0xffffu})
        for (int copies = 0; copies < 5; ++copies) values.push_back(from_bits(sign | high | low));
  zeros.resize(values.size());
  const std::int64_t n = static_cast<std::int64_t>(values.size());
  std::vector<std::uint16_t> got(values.size());
  for (bool stream : {false, true}) {
    k_.merge(LYC_DTYPE_F32, values.data(), zeros.data(), n, LYC_DTYPE_BF16, got.data(), stream);
    k_.flush();
    for (std::uint16_t half : got) ASSERT_TRUE(std::isnan(bf16_to_float(half)));
  }
}

// Rows that stream begin anywhere in a cache line; NaN and infinities of both signs may be neighbours.
TEST_P(CpuKernels, StreamedRowsEqualStoredOnes) {
  test::Random random(2);
  std::vector<float> values(333);
  for (float &value : values) value = from_bits(static_cast<std::uint32_t>(random.bits()));
  values[40] = HUGE_VALF;
  values[56] = -HUGE_VALF;
  for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16})
    for (std::size_t start = 0; start < 64; start += dtype_size(dtype)) {
      alignas(64) char stored[1536] = {}, streamed[1536] = {};
      k_.store(values.data(), 333, dtype, stored + start, false);
      k_.store(values.data(), 333, dtype, streamed + start, true);
      k_.flush();
      ASSERT_EQ(std::memcmp(stored, streamed, sizeof stored), 0) << start;
    }
}

// With and without a base and a factor; rows that begin at a cache line, and rows that do not.
TEST_P(CpuKernels, StreamedProductsEqualStoredOnes) {
  constexpr std::int64_t kRank = 5, kColumns = 2 * kPanel, kStride = kColumns + 64;
  test::Random random(6);
  std::vector<float> left(kRank * kTileRows), right(kRank * kColumns), times(kTileRows * kColumns);
  for (std::vector<float> *values : {&left, &right, &times})
    for (float &value : *values) value = static_cast<float>(random.normal());
  for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16})
    for (std::size_t start : {0, 4})
      for (bool with_base : {false, true})
        for (bool with_times : {false, true})
          for (bool with_factors : {false, true}) {
            if (with_factors && (!with_base || with_times)) continue;
            const bool pairs = k_.pair_product && k_.pair_height == kTileRows && !with_times && start > 0;
            const Factors factors = {times.data(), right.data(), true};
            alignas(64) char base[(kTileRows * kStride + 1) * 4] = {}, outs[2][sizeof base] = {};
            k_.store(times.data(), kTileRows * kColumns, dtype, base, false);
            for (const bool stream : {false, true})
              k_.merge_product({left.data(), right.data(), kRank, pairs, 0.5f}, kColumns / kPanel,
                               {dtype, with_base ? base : nullptr, kColumns, outs[stream] + start, kStride},
                               with_times ? times.data() : nullptr, kColumns, with_factors ? &factors : nullptr,
                               stream);
            k_.flush();
            ASSERT_EQ(std::memcmp(outs[0], outs[1], sizeof base - start), 0) << dtype << start;
            ASSERT_TRUE(std::any_of(outs[1], outs[1] + sizeof base, [](char c) { return c != 0; }));
          }
}

TEST_P(CpuKernels, ProductOfNoRankIsZero) {
  std::vector<float> tile(kTileRows * kPanel, 1.0f);
  k_.product(nullptr, nullptr, 0, 1, {tile.data(), kPanel, nullptr, true});
  for (float value : tile) ASSERT_EQ(value, 0.0f);
}

// Stretches of every length, shorter than a vector, too.
TEST_P(CpuKernels, KroneckerRowsWhereverTheyBeginAndEnd) {
  test::Random random(3);
  for (std::int64_t segment : {1, 3, 16, 17, 64, 100})
    for (std::int64_t begin : {0, 1, 5, 70})
      for (bool stream : {false, true})
        for (bool with_base : {false, true}) {
          const Split split = {5, segment, 0};
          std::vector<float> p(5), q(400 + static_cast<std::size_t>(segment));
          for (float &value : p) value = static_cast<float>(random.normal());
          for (float &value : q) value = static_cast<float>(random.normal());
          const std::int64_t n = 5 * segment + 37;
          std::vector<float> base(static_cast<std::size_t>(n), 0.5f), out(base.size() + 8, -7.0f);
          k_.merge_kronecker(p.data(), q.data(), split, begin, n,
                             {LYC_DTYPE_F32, with_base ? base.data() : nullptr, n, out.data() + 3, n}, stream);
          k_.flush();
          for (std::int64_t i = 0; i < n; ++i) {
            const float product =
                p[static_cast<std::size_t>(split.p(begin + i))] * q[static_cast<std::size_t>(split.q(begin + i))];
            ASSERT_EQ(out[static_cast<std::size_t>(3 + i)], with_base ? product + 0.5f : product)
                << segment << " " << i;
          }
          for (std::size_t i : {std::size_t{2}, static_cast<std::size_t>(n) + 3}) ASSERT_EQ(out[i], -7.0f);
        }
}

TEST_P(CpuKernels, SquaresByRowAndByColumn) {
  test::Random random(4);
  for (std::int64_t rows = 1; rows <= kTileRows; ++rows)
    for (std::int64_t n : {1, 15, 64, 131}) {
      std::vector<float> w(static_cast<std::size_t>(kTileRows * 140)), d(w.size());
      for (float &value : w) value = static_cast<float>(random.normal());
      for (float &value : d) value = static_cast<float>(random.normal());
      std::vector<double> by_row(kTileRows, 2.0), want_row(kTileRows, 2.0), want_column(140, 3.0);
      std::vector<float> by_column(140, 3.0f);
      for (std::int64_t row = 0; row < rows; ++row)
        for (std::int64_t i = 0; i < n; ++i) {
          const std::size_t at = static_cast<std::size_t>(row * 140 + i);
          const double v = static_cast<double>(w[at]) + static_cast<double>(d[at]);
          want_row[static_cast<std::size_t>(row)] += v * v;
          want_column[static_cast<std::size_t>(i)] += v * v;
        }
      const WeightRows weight = {LYC_DTYPE_F32, w.data(), 140, nullptr, 0};
      k_.row_squares(weight, rows, d.data(), 140, n, by_row.data());
      k_.column_squares(weight, rows, d.data(), 140, n, by_column.data());
      for (std::size_t i = 0; i < by_row.size(); ++i) EXPECT_NEAR(by_row[i], want_row[i], 1e-3) << rows << " " << n;
      for (std::size_t i = 0; i < by_column.size(); ++i)
        EXPECT_NEAR(static_cast<double>(by_column[i]), want_column[i], 1e-3) << rows << " " << n;
    }
}

// Rows that fill some of a kernel's tiles; steps that end within one.
TEST_P(CpuKernels, DotsOfRows) {
  constexpr std::int64_t kRows = 9, kSome = 14, kMost = 100, kStride = kMost + 3, kOut = kRows + 2;
  test::Random random(12);
  for (lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16}) {
    std::vector<float> w(kRows * kStride), x(kSome * kStride), factors(kRows);
    for (auto *values : {&w, &x, &factors})
      for (float &value : *values) value = bf16_to_float(float_to_bf16(static_cast<float>(random.normal())));
    std::vector<float> stored(w.size());  // at least as large as what they become
    k_.store(w.data(), static_cast<std::int64_t>(w.size()), dtype, stored.data(), false);
    k_.load(dtype, stored.data(), static_cast<std::int64_t>(w.size()), w.data());
    for (std::int64_t n : {0, 1, 15, 16, 37, 100})
      for (std::int64_t rows : {1, 3, 4, 9})
        for (std::int64_t some : {1, 2, 5, 6, 14})
          for (bool scaled : {false, true})
            for (bool first : {false, true}) {
              std::vector<float> tile(kSome * kOut, 1.0f);
              k_.dots({dtype, stored.data(), kStride, nullptr, 0}, rows, n, scaled ? factors.data() : nullptr, x.data(),
                      kStride, some, {tile.data(), kOut, nullptr, first});
              for (std::int64_t p = 0; p < kSome; ++p)
                for (std::int64_t i = 0; i < kOut; ++i) {
                  double want = 0.0, size = 1.0;
                  for (std::int64_t k = 0; i < rows && k < n; ++k) {
                    const double product = static_cast<double>(w[static_cast<std::size_t>(i * kStride + k)]) *
                                           static_cast<double>(x[static_cast<std::size_t>(p * kStride + k)]);
                    want += product;
                    size += std::abs(product);
                  }
                  const bool there = p < some && i < rows;
                  if (there && scaled) want *= static_cast<double>(factors[static_cast<std::size_t>(i)]), size *= 4.0;
                  want = !there ? 1.0 : first ? want : want + 1.0;
                  ASSERT_NEAR(static_cast<double>(tile[static_cast<std::size_t>(p * kOut + i)]), want, 0x1p-20 * size)
                      << n << " elements, " << rows << " rows, " << some << ", " << p << " " << i;
                }
            }
  }
}

/// Numbers in steps of one or, in words, of two bf16.
class Steps {
 public:
  Steps(std::int64_t count, bool pairs, test::Random &random) : pairs_(pairs) {
    for (std::int64_t i = 0; i < count; ++i) {
      const auto a = static_cast<float>(random.normal()), b = static_cast<float>(random.normal());
      words.push_back(pairs ? from_bits(float_to_bf16(a) | std::uint32_t{float_to_bf16(b)} << 16) : a);
    }
  }

  /// What two steps make.
  static double product(const Steps &a, std::int64_t i, const Steps &b, std::int64_t j) {
    return a.number(i, 0) * b.number(j, 0) + (a.pairs_ ? a.number(i, 1) * b.number(j, 1) : 0.0);
  }

  std::vector<float> words;

 private:
  double number(std::int64_t i, int half) const {
    const float word = words[static_cast<std::size_t>(i)];
    if (!pairs_) return static_cast<double>(word);
    return static_cast<double>(bf16_to_float(static_cast<std::uint16_t>(bits_of(word) >> 16 * half)));
  }

  bool pairs_;
};

TEST_P(CpuKernels, ProductsOfPairs) {
  if (!k_.pair_product) GTEST_SKIP() << "no pairs";
  test::Random random(6);
  constexpr std::int64_t kPanels = 2, kColumns = kPanels * kPanel, kStride = kColumns + 16;
  for (std::int64_t pairs : {0, 1, 2, 16, 37})
    for (bool first : {false, true}) {
      const Steps left(pairs * kTileRows, true, random), right(pairs * kColumns, true, random);
      std::vector<float> tile(static_cast<std::size_t>(kTileRows * kStride), 1.0f);
      k_.pair_product(left.words.data(), right.words.data(), pairs, kPanels, {tile.data(), kStride, nullptr, first});
      for (std::int64_t i = 0; i < kTileRows; ++i)
        for (std::int64_t c = 0; c < kStride; ++c) {
          double want = first && c < kColumns ? 0.0 : 1.0;
          for (std::int64_t k = 0; c < kColumns && k < pairs; ++k)
            want += Steps::product(left, (i / k_.pair_height * pairs + k) * k_.pair_height + i % k_.pair_height, right,
                                   (c / kPanel * pairs + k) * kPanel + c % kPanel);
          ASSERT_NEAR(static_cast<double>(tile[static_cast<std::size_t>(i * kStride + c)]), want, 1e-4)
              << pairs << " " << i << " " << c;
        }
    }
}

// Rows as they lie in a larger matrix; nothing below them is written.
TEST_P(CpuKernels, ProductsOfRows) {
  test::Random random(8);
  constexpr std::int64_t kColumns = 2 * kPanel, kStride = kColumns + 16, kWritten = 32;  // at most, beyond
  for (bool pairs : {false, true})
    for (std::int64_t rows : {1, 6, 16, 18, 47})
      for (std::int64_t columns : {1, 17, 33, 50, 64, 93, 128})
        for (std::int64_t steps : {0, 1, 16, 37})
          for (bool first : {false, true}) {
            if (pairs ? !k_.pair_product : k_.split != nullptr) continue;
            const std::int64_t apart = steps + 3, end = (columns + kWritten - 1) / kWritten * kWritten;
            const Steps left(rows * apart, pairs, random), right(steps * kColumns, pairs, random);
            std::vector<float> tile(static_cast<std::size_t>((rows + 1) * kStride), 1.0f);
            k_.row_product({left.words.data(), apart, pairs}, {right.words.data()}, steps, rows, columns,
                           {tile.data(), kStride, nullptr, first});
            for (std::int64_t i = 0; i <= rows; ++i)
              for (std::int64_t c = 0; c < kStride; ++c) {
                const bool there = i < rows && c < columns;
                if (!there && i < rows && c < end) continue;
                double want = first && there ? 0.0 : 1.0;
                for (std::int64_t k = 0; there && k < steps; ++k)
                  want += Steps::product(left, i * apart + k, right, (c / kPanel * steps + k) * kPanel + c % kPanel);
                ASSERT_NEAR(static_cast<double>(tile[static_cast<std::size_t>(i * kStride + c)]), want, 1e-4)
                    << pairs << " " << rows << " " << columns << " " << steps << " " << i << " " << c;
              }
          }
}

// Three bf16 hold a float32, two a float16, one a bf16; what is no number stays what it is.
TEST_P(CpuKernels, PartsAddUp) {
  if (!k_.split) GTEST_SKIP() << "no parts";
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kMax = std::numeric_limits<float>::max();
  test::Random random(9);
  std::vector<float> values = {0.0f, -0.0f, 1.0f, kMax, -kMax, kInfinity, -kInfinity, std::nanf("")};
  while (values.size() < 77) values.push_back(static_cast<float>(std::exp(9.0 * random.normal())));
  const std::size_t n = values.size();
  std::vector<std::uint16_t> halves(kMaxParts * n + 1, 7);
  k_.split(values.data(), static_cast<std::int64_t>(n), kMaxParts, halves.data(), static_cast<std::int64_t>(n));
  EXPECT_EQ(halves.back(), 7);
  for (std::size_t i = 0; i < n; ++i) {
    float sum = 0.0f;
    for (std::size_t part = kMaxParts; part-- > 0;) sum += bf16_to_float(halves[part * n + i]);
    if (std::isnan(values[i]))
      EXPECT_TRUE(std::isnan(sum));
    else
      EXPECT_EQ(sum, values[i]) << i;
  }
}

// As exact as the float32 that they stand for, for every pair of numbers of parts.
TEST_P(CpuKernels, ProductsOfParts) {
  if (!k_.split) GTEST_SKIP() << "no parts";
  constexpr std::int64_t kRows = 19, kDepth = 38, kPairs = kDepth / 2, kColumns = kPanel;
  const auto round_to = [](float value, std::int64_t parts) {
    return parts == 1 ? bf16_to_float(float_to_bf16(value)) : parts == 2 ? f16_to_float(float_to_f16(value)) : value;
  };
  for (std::int64_t left_parts = 1; left_parts <= kMaxParts; ++left_parts)
    for (std::int64_t right_parts = 1; right_parts <= kMaxParts; ++right_parts) {
      test::Random random(10);
      float left[kRows][kDepth], right[kColumns][kDepth];
      for (auto &row : left)
        for (float &value : row) value = round_to(static_cast<float>(random.normal()), left_parts);
      for (auto &row : right)
        for (float &value : row) value = round_to(static_cast<float>(random.normal()), right_parts);
      std::vector<float> lefts(kRows * kMaxParts * kPairs), rights(kColumns * kMaxParts * kPairs);
      for (std::int64_t i = 0; i < kRows; ++i)
        k_.split(left[i], kDepth, left_parts, reinterpret_cast<std::uint16_t *>(lefts.data() + i * left_parts * kPairs),
                 kDepth);
      for (std::int64_t c = 0; c < kColumns; ++c) {
        float parts[kMaxParts][kPairs];
        k_.split(right[c], kDepth, right_parts, reinterpret_cast<std::uint16_t *>(parts), kDepth);
        for (std::int64_t part = 0; part < right_parts; ++part)
          for (std::int64_t k = 0; k < kPairs; ++k)
            rights[static_cast<std::size_t>((part * kPairs + k) * kPanel + c)] = parts[part][k];
      }
      std::vector<float> tile(kRows * kColumns);
      k_.row_product({lefts.data(), left_parts * kPairs, true, left_parts}, {rights.data(), right_parts}, kPairs, kRows,
                     kColumns, {tile.data(), kColumns, nullptr, true});
      for (std::int64_t i = 0; i < kRows; ++i)
        for (std::int64_t c = 0; c < kColumns; ++c) {
          double want = 0.0, size = 0.0;
          for (std::int64_t k = 0; k < kDepth; ++k) {
            const double product = static_cast<double>(left[i][k]) * static_cast<double>(right[c][k]);
            want += product;
            size += std::abs(product);
          }
          ASSERT_NEAR(static_cast<double>(tile[static_cast<std::size_t>(i * kColumns + c)]), want, 0x1p-22 * size)
              << left_parts << " and " << right_parts << " parts";
        }
    }
}

TEST_P(CpuKernels, PeriodicProductsRepeatTheirLeftFactor) {
  test::Random random(5);
  constexpr std::int64_t kRank = 3, kPanels = 11, kColumns = kPanels * kPanel;
  for (std::int64_t period : {2, 3, 4, 9, 25, 64, 100})
    for (std::int64_t begin : {0, 7, 64})
      for (bool first : {false, true}) {
        const std::int64_t stride = period + kRepeated, features = (begin + kColumns) / period + 1 + kRepeated;
        std::vector<float> left(static_cast<std::size_t>(kRank * kTileRows * stride));
        std::vector<float> right(static_cast<std::size_t>(kRank * features));
        for (std::size_t i = 0; i < left.size(); ++i)
          left[i] = static_cast<std::int64_t>(i) % stride < period ? static_cast<float>(random.normal())
                                                                   : left[i - static_cast<std::size_t>(period)];
        for (float &value : right) value = static_cast<float>(random.normal());
        std::vector<float> tile(kTileRows * kColumns, 1.0f);
        k_.periodic_product(left.data(), stride, period, begin, right.data(), features, kRank, kPanels,
                            {tile.data(), kColumns, nullptr, first});
        for (std::int64_t i = 0; i < kTileRows; ++i)
          for (std::int64_t c = 0; c < kColumns; ++c) {
            double want = first ? 0.0 : 1.0;
            for (std::int64_t r = 0; r < kRank; ++r)
              want += static_cast<double>(
                          left[static_cast<std::size_t>((r * kTileRows + i) * stride + (begin + c) % period)]) *
                      static_cast<double>(right[static_cast<std::size_t>(r * features + (begin + c) / period)]);
            ASSERT_NEAR(static_cast<double>(tile[static_cast<std::size_t>(i * kColumns + c)]), want, 1e-5)
                << period << " " << begin << " " << i << " " << c;
          }
      }
}

TEST_P(CpuKernels, ProjectsLinesOfEveryPhase) {
  test::Random random(8);
  constexpr std::int64_t kDepth = 5;
  for (std::int64_t tiles : {1, 2, 3, 4, 5})
    for (std::int64_t period : {1, 2, 3, 4, 9, 25}) {
      const std::int64_t rows = tiles * kTileRows, stride = tiles * kTileApart + 3;
      std::vector<float> values(static_cast<std::size_t>(kTileRows * stride)), right(kDepth * kTurned);
      for (float &value : values) value = static_cast<float>(random.normal());
      for (float &value : right) value = static_cast<float>(random.normal());
      std::vector<float> sums(static_cast<std::size_t>(rows * period * kTurned), 1.0f);
      k_.project(values.data(), stride, tiles, period, kDepth, right.data(), sums.data(), {});
      for (std::int64_t at = 0; at < rows * period * kTurned; ++at) {
        const std::int64_t phase = at / kTurned / rows, row = at / kTurned % rows;
        double want = 1.0;
        for (std::int64_t k = 0; k < kDepth; ++k)
          want += static_cast<double>(values[static_cast<std::size_t>(
                      row % kTileRows * stride + row / kTileRows * kTileApart + k * period + phase)]) *
                  static_cast<double>(right[static_cast<std::size_t>(k * kTurned + at % kTurned)]);
        ASSERT_NEAR(static_cast<double>(sums[static_cast<std::size_t>(at)]), want, 1e-5) << tiles << " " << period;
      }
    }
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, CpuKernels, testing::ValuesIn(supported_kernels()), [](const auto &param) {
  std::string name = param.param->name;
  name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
  return name;
});

}  // namespace
}  // namespace lyc::cpu
