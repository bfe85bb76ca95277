#include "cpu/amx.hpp"

#include <algorithm>

#ifdef LYC_AMX
namespace lyc::cpu {

namespace {

constexpr std::int64_t kRows = 16;   // of a tile register, of 64 bytes each
constexpr std::int64_t kPairs = 16;  // of a row
constexpr std::int64_t kSums = 4;    // registers 0 .. 3: two by two; 4, 5: left; 6, 7: right

/// What ldtilecfg reads.
struct alignas(64) Shapes {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// By name: compilers' own forms do not say what memory they read.
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
inline void add_product() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(kSum), "n"(kLeft), "n"(kRight));
}

/// Up to 2 * kRows rows of all columns, in steps of `pairs` <= kPairs.
class Product {
 public:
  Product(std::int64_t rows, std::int64_t pairs, std::int64_t steps, const Tile &tile)
      : pairs_(pairs), steps_(steps), two_(rows > kRows), tile_(tile) {
    Shapes shapes;
    const std::int64_t heights[2] = {std::min(rows, kRows), rows - kRows};
    for (std::int64_t i = 0; i < (two_ ? 2 : 1); ++i) {
      for (std::int64_t j = 0; j < 2; ++j) set(shapes, 2 * i + j, heights[i], kRows);
      set(shapes, kSums + i, heights[i], pairs);
      set(shapes, kSums + 2 + i, pairs, kRows);
    }
    set(shapes, kSums + 3, pairs, kRows);
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
  }
  ~Product() { __asm__ volatile("tilerelease"); }
  Product(const Product &) = delete;
  Product &operator=(const Product &) = delete;

  // 2 * kRows columns, from `right` in a panel on.
  void add(const float *left, std::int64_t left_stride, const float *right, std::int64_t column, bool first) const {
    two_ ? add_rows<true>(left, left_stride, right, column, first)
         : add_rows<false>(left, left_stride, right, column, first);
  }

 private:
  static void set(Shapes &shapes, std::int64_t tile, std::int64_t rows, std::int64_t words) {
    shapes.rows[tile] = static_cast<std::uint8_t>(rows);
    shapes.row_bytes[tile] = static_cast<std::uint16_t>(4 * words);
  }

  template <bool kTwo>
  void add_rows(const float *left, std::int64_t left_stride, const float *right, std::int64_t column,
                bool first) const {
    float *const to = tile_.data + column, *const below = to + kRows * tile_.stride;
    if (first) {
      clear_tile<0>(), clear_tile<1>();
      if (kTwo) clear_tile<2>(), clear_tile<3>();
    } else {
      load_tile<0>(to, tile_.stride), load_tile<1>(to + kRows, tile_.stride);
      if (kTwo) load_tile<2>(below, tile_.stride), load_tile<3>(below + kRows, tile_.stride);
    }
    for (std::int64_t step = 0; step < steps_; ++step) {
      load_tile<4>(left, left_stride);
      load_tile<6>(right, kPanel), load_tile<7>(right + kRows, kPanel);
      add_product<0, 4, 6>(), add_product<1, 4, 7>();
      if (kTwo) {
        load_tile<5>(left + kRows * left_stride, left_stride);
        add_product<2, 5, 6>(), add_product<3, 5, 7>();
      }
      left += pairs_;
      right += pairs_ * kPanel;
    }
    store_tile<0>(to, tile_.stride), store_tile<1>(to + kRows, tile_.stride);
    if (kTwo) store_tile<2>(below, tile_.stride), store_tile<3>(below + kRows, tile_.stride);
  }

  std::int64_t pairs_, steps_;
  bool two_;
  Tile tile_;
};

// Rows of a group by all panels; steps of `some` pairs each, from pair `begin` on.
void add_steps(const float *left, const float *right, std::int64_t begin, std::int64_t some, std::int64_t steps,
               std::int64_t pairs, std::int64_t rows, std::int64_t panels, const Tile &tile, bool first) {
  const Product product(rows, some, steps, tile);
  for (std::int64_t column = 0; column < panels * kPanel; column += 2 * kRows)
    product.add(left + begin, pairs, right + (column / kPanel * pairs + begin) * kPanel + column % kPanel, column,
                first);
}

}  // namespace

void amx_pair_product(const float *left, const float *right, std::int64_t pairs, std::int64_t rows, std::int64_t panels,
                      const Tile &tile) {
  for (std::int64_t row = 0; pairs == 0 && tile.first && row < rows; ++row)
    std::fill_n(tile.data + row * tile.stride, panels * kPanel, 0.0f);
  for (std::int64_t row = 0; row < rows; row += 2 * kRows) {
    const std::int64_t count = std::min(2 * kRows, rows - row), whole = pairs / kPairs * kPairs;
    const Tile part = {tile.data + row * tile.stride, tile.stride, nullptr, tile.first};
    const float *from = left + row * pairs;
    if (whole > 0) add_steps(from, right, 0, kPairs, pairs / kPairs, pairs, count, panels, part, tile.first);
    if (whole < pairs)
      add_steps(from, right, whole, pairs - whole, 1, pairs, count, panels, part, tile.first && whole == 0);
  }
}

}  // namespace lyc::cpu
#endif
