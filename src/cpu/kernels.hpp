// The arithmetic on rows and tiles, compiled once for each instruction set (kernels.cpp) and reached through a table.
//
// A tile is kTileRows rows of float32, `stride` apart, its columns a multiple of kPanel. A low-rank product reads its
// factors packed: the left one as blocks [rank][kTileRows], the right one as panels [rank][kPanel], zeros at the edges.
// Every element is a sum over the rank in ascending order, so results depend neither on tiles nor on threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "lycoris.h"

namespace lyc::cpu {

inline constexpr std::int64_t kTileRows = 6;           // 6 x 4 accumulators fit 32 registers, 6 x 2 fit 16
inline constexpr std::int64_t kPanel = 64;             // columns: four vectors of the widest instruction set
inline constexpr std::int64_t kRepeated = kPanel / 4;  // one such vector

inline constexpr std::int64_t kTurned = 16;                // columns of a narrow panel: a vector of that set
inline constexpr std::int64_t kTileApart = 256 + kTurned;  // tiles side by side; no two rows in one cache set
inline constexpr std::int64_t kTurnedRows = 2 * kTileRows;

inline constexpr std::int64_t kTiledRows = 16;   // of a tile register
inline constexpr std::int64_t kTiledPairs = 16;  // of a row of it: more come in multiples

/// How index -> (p, q) along the axis that a Kronecker product splits. `segment` indices share one p, and `count`
/// segments follow each other; `begin` is added first.
struct Split {
  std::int64_t count = 1, segment = 1, begin = 0;

  std::int64_t p(std::int64_t index) const { return (index + begin) / segment % count; }
  std::int64_t q(std::int64_t index) const {
    return (index + begin) / (segment * count) * segment + (index + begin) % segment;
  }
};

/// Rows that are read next: they come while others are computed. In bytes.
struct Ahead {
  const char *data = nullptr;
  std::int64_t stride = 0, size = 0;
};

/// The i-th of n parts of what is in one piece.
inline Ahead part(const Ahead &ahead, std::int64_t i, std::int64_t n) {
  const std::int64_t each = (ahead.size / n + 63) / 64 * 64, begin = std::min(i * each, ahead.size);
  return {ahead.data + begin, 0, std::min(each, ahead.size - begin)};
}

/// Where a product goes. `value` becomes value * times if `times` is there, and adds to the tile unless `first`. What
/// is in one piece may come meanwhile, by tables without tile registers.
struct Tile {
  float *data;
  std::int64_t stride;
  const float *times;  // of the same stride, or null
  bool first;
  Ahead ahead = {};
};

/// Rows of the weight: out = base + product, or the product alone without a base. Strides in elements. What is read
/// next, or without a base written, may be told: it comes meanwhile.
struct WeightRows {
  lyc_dtype dtype;
  const void *base;
  std::int64_t base_stride;
  void *out;
  std::int64_t out_stride;
  const void *next = nullptr;
};

/// Where a turned panel goes: out = base + change + product, both absent or float32, change in rows of kPanel. What is
/// streamed goes past the caches where that is possible.
struct Turned {
  const float *base;
  std::int64_t base_stride;
  const float *change;
  lyc_dtype dtype;
  void *out;
  std::int64_t out_stride;
  bool stream;
};

/// The lines that a block turns, in rows of kPanel: `runs` of `length` lines, whose beginnings are `apart` lines apart.
/// A line is what the weight has and, unless null, its change; `sums` takes these sums, one run after the other.
struct Lines {
  const float *weight, *change;
  float *sums;
  std::int64_t runs, length, apart;
};

/// Packed factors: kTileRows rows of a left one, panels of a right one. A step of the rank is a number, or a pair of
/// bf16 in its place as for pair_product; sums of these are times `scale`.
struct Packed {
  const float *left, *right;
  std::int64_t rank;
  bool pairs = false;
  float scale = 1.0f;
};

/// A left factor as rows, `stride` words apart: of numbers, or of pairs of bf16 in the place of float32, the first one
/// in the lower half. What pairs stand for may be a sum of several, its parts, of which three hold a float32:
/// [parts][steps].
struct FactorRows {
  const float *data;
  std::int64_t stride;
  bool pairs = false;
  std::int64_t parts = 1;
};
/// A right factor as panels [parts][steps][kPanel] of the same.
struct FactorPanels {
  const float *data;
  std::int64_t parts = 1;
};
inline constexpr std::int64_t kMaxParts = 3;

/// What a change takes of the weight and of the delta.
struct Factors {
  const float *weight, *delta;
  bool vary;  // one for each column, otherwise for each row
};

/// Rows of n columns that are changed: out = w * weight + d * delta, factors for each row, or of a panel for each
/// column.
struct Changed {
  WeightRows rows;
  const float *d;
  std::int64_t d_stride, n;
  const float *weights, *deltas;
  bool stream;
};

/// D of a panel, [rows][kPanel], or V = w + D, and sums of the squares of V by column.
struct Held {
  float *values, *squares;
  bool is_v;
};

struct Kernels {
  const char *name;

  // Rows of `n` contiguous elements. Conversions round to nearest even and keep NaN. What is streamed goes past the
  // caches, and is there for other threads after a flush.
  void (*load)(lyc_dtype dtype, const void *row, std::int64_t n, float *values);
  void (*store)(const float *values, std::int64_t n, lyc_dtype dtype, void *row, bool stream);
  void (*merge)(lyc_dtype base_dtype, const void *base, const float *delta, std::int64_t n, lyc_dtype dtype, void *out,
                bool stream);
  void (*flush)();

  // All kTileRows rows of `panels` panels.
  void (*product)(const float *left, const float *right, std::int64_t rank, std::int64_t panels, const Tile &tile);

  // The same with factors of which the left one repeats itself along the columns, and the right one stays the same for
  // a period: those of rank r, row i and column c are left[(r * kTileRows + i) * left_stride + (begin + c) % period]
  // and right[r * right_stride + (begin + c) / period]. kRepeated more than a period, and than columns, are there.
  void (*periodic_product)(const float *left, std::int64_t left_stride, std::int64_t period, std::int64_t begin,
                           const float *right, std::int64_t right_stride, std::int64_t rank, std::int64_t panels,
                           const Tile &tile);

  // As product, by pairs: twice the rank. Denormals count as zero. Without tile.times. The left factor lies in blocks
  // [pairs][pair_height]. Null where it is no faster.
  void (*pair_product)(const float *left, const float *right, std::int64_t pairs, std::int64_t panels,
                       const Tile &tile);
  std::int64_t pair_height;

  // The same of any number of rows, best row_height at a time, and columns, beyond which whole vectors may be written:
  // with numbers, or with pairs where there is a pair_product, and only these where there is a `split`. That makes
  // parts of numbers, `parts` rows of bf16, `apart` from each other, of which there is one without it. Products of
  // parts that lie beyond a float32 are left out.
  void (*row_product)(const FactorRows &left, const FactorPanels &right, std::int64_t steps, std::int64_t rows,
                      std::int64_t columns, const Tile &tile);
  std::int64_t row_height;
  void (*split)(const float *values, std::int64_t n, std::int64_t parts, std::uint16_t *halves, std::int64_t apart);

  // Each of `count` rows of a weight, of n elements, times each row of x: to[p][i] is or adds factors[i] * (row i . x
  // p), without factors the product. For few rows of x: nothing is packed. The rows below are fetched.
  void (*dots)(const WeightRows &rows, std::int64_t count, std::int64_t n, const float *factors, const float *x,
               std::int64_t x_stride, std::int64_t x_count, const Tile &to);

  // As product, straight from registers onto the weight, or as change_weight with factors. `times` are for numbers.
  void (*merge_product)(const Packed &product, std::int64_t panels, const WeightRows &rows, const float *times,
                        std::int64_t times_stride, const Factors *factors, bool stream);

  // By tile registers, null without: as merge_product and product_squares, of up to kTiledRows rows at once, a product
  // of pairs whose left rows lie one after the other; `times` is a second one that multiplies it. Of the factors there
  // is one for each column, or for each row.
  void (*merge_tiled)(const Packed &product, const Packed *times, std::int64_t count, std::int64_t panels,
                      const WeightRows &rows, const Factors *factors, bool stream);
  void (*tiled_squares)(const Packed &product, std::int64_t count, std::int64_t panels, const WeightRows &rows,
                        double *by_row, float *by_column);

  // Sums along lines: every `period`th element of a row, from each of the first `period` on. Rows of a tile are
  // `stride` apart, tiles kTileApart. Element k times the kTurned values of right[k] is added to sums[phase][row].
  void (*project)(const float *values, std::int64_t stride, std::int64_t tiles, std::int64_t period, std::int64_t depth,
                  const float *right, float *sums, const Ahead &ahead);

  // One row each: factor * values; p (x) q from column `begin` of the product on; the same onto the weight.
  void (*scaled)(const float *values, float factor, std::int64_t n, const Tile &row);
  void (*kronecker)(const float *p, const float *q, const Split &split, std::int64_t begin, std::int64_t n,
                    const Tile &row);
  void (*merge_kronecker)(const float *p, const float *q, const Split &split, std::int64_t begin, std::int64_t n,
                          const WeightRows &row, bool stream);

  // With w of the weight and d of a delta: V = w + d. In `count` <= kTileRows rows of n elements V^2 is added to one
  // sum for each row, or for each column. The kTileRows rows below are fetched.
  void (*row_squares)(const WeightRows &rows, std::int64_t count, const float *d, std::int64_t d_stride, std::int64_t n,
                      double *sums);
  void (*column_squares)(const WeightRows &rows, std::int64_t count, const float *d, std::int64_t d_stride,
                         std::int64_t n, float *sums);

  // As product, of whole panels, and the same sums at once: `by_row`, or `by_column` and then of a product that is not
  // kept. By row, other rows of as many panels may be changed meanwhile, or null.
  void (*product_squares)(const Packed &product, std::int64_t panels, const Tile &tile, const WeightRows &rows,
                          const Changed *changed, double *by_row, float *by_column);

  // Whether there are registers enough for the latter: with 16, it takes twice as long as rows changed afterwards.
  bool changes_beside;

  // Whether change_panel is faster than to go through the weight twice: it writes short runs, each on another page,
  // which suits AMD's Zen 4, and no Xeon of Intel's.
  bool holds_panels;

  // `count` rows of a panel: their D or V is computed and held, if there is their weight, and meanwhile those of the
  // panel that was held in the same place, changed.d, are changed, if there are any: of V by deltas alone.
  void (*change_panel)(const Packed &product, std::int64_t count, const WeightRows *w, const Held &held,
                       const Changed *changed);

  // The change w * weight + d * delta, added unless row.first; the same instead of the weight itself, whose factor says
  // whether it is kept. Without d `keep` does, and the change is w * weight. There is a factor for
  // each column or for each row.
  void (*change)(const float *w, const float *d, std::int64_t n, float weight, float delta, const Tile &row);
  void (*changes)(const float *w, const float *d, std::int64_t n, const float *weight, const float *delta,
                  const Tile &row);
  void (*change_weight)(const WeightRows &rows, std::int64_t count, bool keep, const float *d, std::int64_t d_stride,
                        std::int64_t n, const Factors &factors, bool stream);

  // Rotations. A block, of whose panel n columns are there: each run's rows of `left` in blocks [lines][kTileRows],
  // times the lines; `to` has its rows as far apart as the lines. Blocks of columns, one after the other: up to
  // kTurnedRows rows of `left`, tiles kTileApart, by panels [block][kTurned], with `step` from one block's panels to
  // the next; added to what the rows hold if that is to `keep`. Of `to`, only where it goes.
  void (*turn)(const float *left, const Lines &lines, std::int64_t n, const Turned &to, const Ahead &ahead);
  void (*turn_columns)(const float *left, std::int64_t left_stride, std::int64_t rows, const float *right,
                       std::int64_t block, std::int64_t blocks, std::int64_t step, bool keep, const Turned &to,
                       const Ahead &ahead);

  // Rows of n columns as rows of a panel; what is missing is 0.
  void (*load_panel)(lyc_dtype dtype, const void *rows, std::int64_t stride, std::int64_t count, std::int64_t n,
                     float *panel);

  // Matrices of n x n, in double: A becomes its inverse, without exchanges; sums += A B.
  void (*invert)(double *a, std::int64_t n);
  void (*add_matrix_product)(const double *a, const double *b, std::int64_t n, double *sums);

  // Columns of `from` become rows of `to`.
  void (*transpose)(const float *from, std::int64_t from_stride, std::int64_t rows, std::int64_t columns, float *to,
                    std::int64_t to_stride);
};

/// The tables compiled in that this processor can run, best first.
std::vector<const Kernels *> supported_kernels();

}  // namespace lyc::cpu
