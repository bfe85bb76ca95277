// What the family files share: each defines one constant that families.def lists.
#pragma once

#include "algo/algorithm.hpp"

namespace lyc::algo {

#define LYC_FAMILY(constant) extern const Algorithm constant;
#include "algo/families.def"
#undef LYC_FAMILY

inline constexpr const char *kNone[] = {nullptr};  // no aliases, no suffixes

/// Options of every low-rank family.
inline constexpr std::uint32_t kCommonFlags = LYC_MODULE_RANK_STABILISED | LYC_MODULE_SCALAR;

inline Shape join(Shape head, const Shape &tail) {
  head.insert(head.end(), tail.begin(), tail.end());
  return head;
}

}  // namespace lyc::algo
