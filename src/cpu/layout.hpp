// Where things lie in a workspace. Sizes come from files: their products are checked.
#pragma once

#include <cstdint>
#include <limits>

#include "base/error.hpp"

namespace lyc::cpu {

/// Positions in the workspace count floats.
using Position = std::uint64_t;

inline constexpr Position kAlignment = 64;  // in floats: a row of a panel

constexpr Position aligned(Position floats) { return (floats + kAlignment - 1) / kAlignment * kAlignment; }

inline Position multiply(Position a, Position b) {
  if (a != 0 && b > std::numeric_limits<std::int64_t>::max() / sizeof(float) / a)
    fail(LYC_ERROR_OUT_OF_MEMORY, "workspace size overflows");
  return a * b;
}

inline Position multiply(std::int64_t a, std::int64_t b) {
  return multiply(static_cast<Position>(a), static_cast<Position>(b));
}

/// Hands out parts of a workspace.
class Layout {
 public:
  Position take(Position floats) {
    const Position at = size_;
    size_ += aligned(multiply(floats, 1));
    if (size_ > std::numeric_limits<std::int64_t>::max() / sizeof(float))
      fail(LYC_ERROR_OUT_OF_MEMORY, "workspace size overflows");
    return at;
  }
  Position size() const { return size_; }

 private:
  Position size_ = 0;
};

}  // namespace lyc::cpu
