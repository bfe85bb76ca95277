// What this processor can do.
#pragma once

#include <cstdint>

namespace lyc::cpu {

/// Bits for the instruction sets that kernels are compiled for.
enum InstructionSet : std::uint32_t { kBaseline = 1, kSse4 = 2, kAvx2 = 4, kAvx512 = 8, kNeon = 16, kAvx512Bf16 = 32 };

std::uint32_t instruction_sets();

}  // namespace lyc::cpu
