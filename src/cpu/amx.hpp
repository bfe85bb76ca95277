// Products of bf16 pairs by Intel's tile registers (AMX), in which 16 x 16 sums and 16 x 32 factors lie at a time.
#pragma once

#include "cpu/kernels.hpp"

// Whether this build has it: the compiler's header tells that the assembler knows the instructions.
#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>)
#define LYC_AMX 1
#endif
#endif

#ifdef LYC_AMX
namespace lyc::cpu {

/// Kernels::pair_product; a block of the left factor is a row.
void amx_pair_product(const Pairs &left, const Pairs &right, std::int64_t pairs, std::int64_t rows, std::int64_t panels,
                      const Tile &tile);

}  // namespace lyc::cpu
#endif
