#include "cpu/processor.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace lyc::cpu {

#if defined(__x86_64__)
namespace {

// Asked directly: the compiler's own __builtin_cpu_supports() brings a global constructor along.
struct Cpuid {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Cpuid(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

constexpr bool has(unsigned word, unsigned mask) { return (word & mask) == mask; }

// Which registers the operating system saves.
unsigned saved_state() {
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

constexpr unsigned kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29, kFma = 1u << 12;
constexpr unsigned kSse4Bits =
    1u << 0 | 1u << 1 | 1u << 9 | 1u << 19 | 1u << 20 | 1u << 25;                       // 3, pclmul, s3, 4.1, 4.2, aes
constexpr unsigned kAvx2Bits = 1u << 3 | 1u << 5 | 1u << 8;                             // bmi1, avx2, bmi2
constexpr unsigned kAvx512Bits = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;  // f, dq, cd, bw, vl
constexpr unsigned kLzcnt = 1u << 5, kBf16 = 1u << 5;
constexpr unsigned kAuth = 0x68747541, kEnti = 0x69746e65, kCamd = 0x444d4163;  // "AuthenticAMD"
constexpr unsigned kAmxBits = 1u << 22 | 1u << 24;                              // bf16, tile
constexpr unsigned kYmmState = 0x6, kZmmState = 0xe6, kTileState = 0x60000;

// Linux saves tile registers for processes that have asked for them.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, a number of a state
  return has(saved_state(), kTileState) && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

std::uint32_t instruction_sets() {
  const Cpuid basic(1, 0), extended(7, 0), amd(0x80000001u, 0);
  std::uint32_t sets = kBaseline;
  if (!has(basic.c, kSse4Bits)) return sets;
  sets |= kSse4;
  if (!has(basic.c, kOsxsave | kAvx | kF16c | kFma) || !has(saved_state(), kYmmState)) return sets;
  if (!has(extended.b, kAvx2Bits) || !has(amd.c, kLzcnt)) return sets;
  sets |= kAvx2;
  if (!has(extended.b, kAvx512Bits) || !has(saved_state(), kZmmState)) return sets;
  sets |= kAvx512;
  if (extended.a < 1 || !has(Cpuid(7, 1).a, kBf16)) return sets;  // a: the last subleaf
  sets |= kAvx512Bf16;
  const Cpuid vendor(0, 0);
  if (vendor.b == kAuth && vendor.d == kEnti && vendor.c == kCamd) sets |= kFastPairs;
  if (has(extended.d, kAmxBits) && may_use_tiles()) sets |= kAmx;
  return sets;
}
#elif defined(__aarch64__)
std::uint32_t instruction_sets() { return kBaseline | kNeon; }
#else
std::uint32_t instruction_sets() { return kBaseline; }
#endif

}  // namespace lyc::cpu
