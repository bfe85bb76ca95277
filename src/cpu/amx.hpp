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

/// The registers' shapes while it lives: of each the rows, and what is in a row, in words of four bytes.
class TileRegisters {
 public:
  TileRegisters() = default;
  ~TileRegisters() { __asm__ volatile("tilerelease"); }
  TileRegisters(const TileRegisters &) = delete;
  TileRegisters &operator=(const TileRegisters &) = delete;

  void set(std::int64_t tile, std::int64_t rows, std::int64_t words) {
    shapes_.rows[tile] = static_cast<std::uint8_t>(rows);
    shapes_.row_bytes[tile] = static_cast<std::uint16_t>(4 * words);
  }
  void take() const { __asm__ volatile("ldtilecfg %0" ::"m"(shapes_)); }

 private:
  struct alignas(64) Shapes {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  } shapes_;
};

// Instructions by name: compilers' own forms do not say what memory they read. Strides in words.
template <int kTile>
inline void load_tile(const float *from, std::int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride * 4), "n"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(float *to, std::int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * 4), "n"(kTile) : "memory");
}
template <int kTile>
inline void clear_tile() {
  __asm__ volatile("tilezero %%tmm%c0" ::"n"(kTile));
}
template <int kSum, int kLeft, int kRight>
inline void add_tile_product() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(kSum), "n"(kLeft), "n"(kRight));
}

/// Kernels::row_product, of pairs, and Kernels::pair_product; a block of its left factor is a row.
void amx_row_product(const FactorRows &left, const FactorPanels &right, std::int64_t pairs, std::int64_t rows,
                     std::int64_t columns, const Tile &tile);
void amx_pair_product(const float *left, const float *right, std::int64_t pairs, std::int64_t panels, const Tile &tile);

}  // namespace lyc::cpu
#endif
