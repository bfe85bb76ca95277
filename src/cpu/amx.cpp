#include "cpu/amx.hpp"

#include <algorithm>
#include <iterator>

#ifdef LYC_AMX
namespace lyc::cpu {
namespace {

constexpr std::int64_t kRows = kTiledRows;
constexpr std::int64_t kSums = 4;  // registers 0 .. 3: two by two; 4, 5: left; 6, 7: right

/// The products of parts that reach into a float32, in an order in which each shares a factor with the one before.
struct Part {
  std::int64_t left, right;
};
constexpr Part kParts[] = {{0, 2}, {0, 1}, {1, 1}, {1, 0}, {0, 0}, {2, 0}};

/// Up to 2 * kRows rows by 2 * kRows columns at a time, in steps of `some` <= kTiledPairs of all `pairs`, from `begin`
/// on.
class Product {
 public:
  Product(const FactorRows &left, const FactorPanels &right, std::int64_t pairs, std::int64_t begin, std::int64_t some,
          std::int64_t steps, std::int64_t rows)
      : left_(left), right_(right), pairs_(pairs), begin_(begin), some_(some), steps_(steps), two_(rows > kRows) {
    for (const Part &part : kParts)
      if (part.left < left.parts && part.right < right.parts) {
        const bool first = count_ == 0;
        loads_[count_] = {first || parts_[count_ - 1].left != part.left,
                          first || parts_[count_ - 1].right != part.right};
        parts_[count_++] = part;
      }
    const std::int64_t heights[2] = {std::min(rows, kRows), rows - kRows};
    for (std::int64_t i = 0; i < (two_ ? 2 : 1); ++i) {
      for (std::int64_t j = 0; j < 2; ++j) registers_.set(2 * i + j, heights[i], kRows);
      registers_.set(kSums + i, heights[i], some);
    }
    for (std::int64_t j = 0; j < 2; ++j) registers_.set(kSums + 2 + j, some, kRows);
    registers_.take();
  }

  void run(std::int64_t columns, const Tile &tile) const {
    for (std::int64_t column = 0; column < columns; column += 2 * kRows)
      two_ ? add_columns<true>(column, tile) : add_columns<false>(column, tile);
  }

 private:
  struct Loads {
    bool left, right;
  };

  template <bool kTwo>
  void add_columns(std::int64_t column, const Tile &tile) const {
    float *const to = tile.data + column, *const below = to + kRows * tile.stride;
    const std::int64_t left_stride = left_.stride;
    const float *left = left_.data + begin_;
    const float *right = right_.data + (column / kPanel * right_.parts * pairs_ + begin_) * kPanel + column % kPanel;
    if (tile.first) {
      clear_tile<0>(), clear_tile<1>();
      if (kTwo) clear_tile<2>(), clear_tile<3>();
    } else {
      load_tile<0>(to, tile.stride), load_tile<1>(to + kRows, tile.stride);
      if (kTwo) load_tile<2>(below, tile.stride), load_tile<3>(below + kRows, tile.stride);
    }
    for (std::int64_t step = 0; step < steps_; ++step, left += some_, right += some_ * kPanel)
      for (std::int64_t i = 0; i < count_; ++i) {
        if (loads_[i].left) {
          const float *from = left + parts_[i].left * pairs_;
          load_tile<4>(from, left_stride);
          if (kTwo) load_tile<5>(from + kRows * left_stride, left_stride);
        }
        if (loads_[i].right) {
          const float *from = right + parts_[i].right * pairs_ * kPanel;
          load_tile<6>(from, kPanel), load_tile<7>(from + kRows, kPanel);
        }
        add_tile_product<0, 4, 6>(), add_tile_product<1, 4, 7>();
        if (kTwo) add_tile_product<2, 5, 6>(), add_tile_product<3, 5, 7>();
      }
    store_tile<0>(to, tile.stride), store_tile<1>(to + kRows, tile.stride);
    if (kTwo) store_tile<2>(below, tile.stride), store_tile<3>(below + kRows, tile.stride);
  }

  FactorRows left_;
  FactorPanels right_;
  std::int64_t pairs_, begin_, some_, steps_, count_ = 0;
  bool two_;
  Part parts_[std::size(kParts)];
  Loads loads_[std::size(kParts)];
  TileRegisters registers_;
};

}  // namespace

void amx_row_product(const FactorRows &left, const FactorPanels &right, std::int64_t pairs, std::int64_t rows,
                     std::int64_t columns, const Tile &tile) {
  for (std::int64_t row = 0; pairs == 0 && tile.first && row < rows; ++row)
    std::fill_n(tile.data + row * tile.stride, columns, 0.0f);
  const std::int64_t whole = pairs / kTiledPairs * kTiledPairs;
  for (std::int64_t row = 0; row < rows; row += 2 * kRows) {
    const std::int64_t count = std::min(2 * kRows, rows - row);
    Tile part = {tile.data + row * tile.stride, tile.stride, nullptr, tile.first};
    FactorRows from = left;
    from.data += row * left.stride;
    if (whole > 0) Product(from, right, pairs, 0, kTiledPairs, pairs / kTiledPairs, count).run(columns, part);
    if (whole == pairs) continue;
    part.first = tile.first && whole == 0;
    Product(from, right, pairs, whole, pairs - whole, 1, count).run(columns, part);
  }
}

void amx_pair_product(const float *left, const float *right, std::int64_t pairs, std::int64_t panels,
                      const Tile &tile) {
  amx_row_product({left, pairs, true}, {right}, pairs, kTileRows, panels * kPanel, tile);
}

}  // namespace lyc::cpu
#endif
