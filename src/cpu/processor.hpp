// What this processor can do.
#pragma once

#include <cstdint>

namespace lyc::cpu {

/// Bits for the instruction sets that kernels are compiled for. kFastPairs: AVX512-BF16 whose dot products are as fast
/// as the multiply-add, for twice the work. AMD's are; on Intel's Xeons they take twice as long, so nothing is won.
/// kAmx: tile registers and their products of bf16, which this process may use.
enum InstructionSet : std::uint32_t {
  kBaseline = 1,
  kSse4 = 2,
  kAvx2 = 4,
  kAvx512 = 8,
  kNeon = 16,
  kAvx512Bf16 = 32,
  kFastPairs = 64,
  kAmx = 128
};

/// Asks the operating system for what it gives only then.
std::uint32_t instruction_sets();

}  // namespace lyc::cpu
