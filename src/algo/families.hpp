// What the family files share: each defines one constant below; registry.cpp lists them.
#pragma once

#include "algo/algorithm.hpp"

namespace lyc::algo {

extern const Algorithm kLocon, kLoha, kLokr, kFull, kNorm;

/// Options of every low-rank family.
inline constexpr std::uint32_t kCommonFlags = LYC_MODULE_RANK_STABILISED | LYC_MODULE_SCALAR;

inline Shape join(Shape head, const Shape &tail) {
  head.insert(head.end(), tail.begin(), tail.end());
  return head;
}

}  // namespace lyc::algo
