// How LoKr cuts a dimension in two.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

namespace lyc::algo {

/// (small, large) with small * large = dimension. A positive factor that divides the dimension is taken as one of the
/// two; otherwise small is the largest divisor up to min(factor, sqrt(dimension)), with no bound for factor <= 0.
inline std::pair<std::int64_t, std::int64_t> factorize(std::int64_t dimension, std::int64_t factor) {
  if (factor > 0 && dimension % factor == 0) return std::minmax(factor, std::int64_t{dimension / factor});
  std::int64_t small = 1;
  for (std::int64_t d = 1; d * d <= dimension && (factor <= 0 || d <= factor); ++d)
    if (dimension % d == 0) small = d;
  return {small, dimension / small};
}

}  // namespace lyc::algo
