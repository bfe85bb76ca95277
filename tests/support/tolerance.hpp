// How far a result may be from the reference. The only place where tolerances are made.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

#include "lycoris.h"

namespace lyc::test {

struct Tolerance {
  double relative;  // of the Frobenius norm
  double absolute;  // for each element, in the mean
};

/// For float32 arithmetic over `length` summands and one rounding to `dtype` at the end. The gates count on many
/// elements, whose roundings are of every size; of few, all may be off by half a unit in the last place, which is twice
/// as much.
inline Tolerance tolerance(lyc_dtype dtype, std::int64_t length, std::size_t count = 1000000) {
  const double few = std::min(2.0, 1.0 + 4.0 / std::sqrt(static_cast<double>(std::max<std::size_t>(count, 1))));
  const double growth = std::max(1.0, std::sqrt(static_cast<double>(length) / 1024.0));
  const double arithmetic = 0x1p-20 * growth;
  switch (dtype) {
    case LYC_DTYPE_BF16:
      return {std::max(few * 0x1p-9, arithmetic), 0x1p-25};
    case LYC_DTYPE_F16:
      return {std::max(few * 0x1p-12, arithmetic), 0x1p-25};
    default:
      return {arithmetic, 0x1p-25};
  }
}

inline testing::AssertionResult near(const std::vector<double> &got, const std::vector<double> &want,
                                     const Tolerance &allowed) {
  if (got.size() != want.size()) return testing::AssertionFailure() << got.size() << " values, not " << want.size();
  double error = 0.0, norm = 0.0;
  std::size_t worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double difference = std::abs(got[i] - want[i]);
    if (!(difference <= std::abs(got[worst] - want[worst]))) worst = i;
    error += difference * difference;
    norm += want[i] * want[i];
  }
  const double bound =
      allowed.relative * std::sqrt(norm) + allowed.absolute * std::sqrt(static_cast<double>(want.size()));
  if (std::sqrt(error) <= bound) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "error " << std::sqrt(error) << " above " << bound << "; worst at " << worst
                                     << ": " << got[worst] << ", should be " << want[worst];
}

}  // namespace lyc::test
