// A prepared WeightBatch: every target as a matrix, and where its intermediate values lie in the workspace. Bound
// factors may change between runs, so a run starts by packing them; what is fixed is decided here, from shapes alone.
//
//   pack          factors into blocks and panels of float32 (kernels.hpp), the coefficient folded into the left one
//   contract      Tucker: core and down become one factor
//   materialise   Kronecker: both halves as float32 matrices
//   project       products with the weight: W up, from which the tiles go on; before the base is overwritten
//   measure       rotations: |Q| where it is limited
//   derive        rotations: generators become packed matrices
//   norms         DoRA whose magnitudes do not belong to one row each: a pass of its own over the weight
//   tiles         sums of all terms, onto the base, rounded, stored
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/context.hpp"
#include "cpu/layout.hpp"
#include "cpu/matrix.hpp"
#include "cpu/rotation.hpp"
#include "ops/backend.hpp"

namespace lyc::cpu {

inline constexpr std::int64_t kTileColumns = 256;                // a tile and its panels stay in the nearest cache
inline constexpr std::int64_t kItemRows = 4 * kTileRows;         // what a thread takes at a time, tile after tile along
inline constexpr std::int64_t kItemColumns = 16384;              // the rows, so that memory is read in long runs
inline constexpr std::int64_t kTiledItemRows = 3 * kTiledRows;   // the same by tile registers,
inline constexpr std::int64_t kTiledColumns = 4 * kTileColumns;  // whose tiles are wider
inline constexpr std::int64_t kScaledColumns = 4096;             // whose factors stay in the nearest cache
inline constexpr std::int64_t kChangedRows = 8 * kTileRows;  // of DoRA, by a thread one after the other, if two tiles
inline constexpr std::int64_t kChangedColumns = 8192;        // of so many columns stay in a near cache
inline constexpr std::int64_t kNormRows = 16 * kTileRows;    // rows whose squares are summed in float32
inline constexpr std::int64_t kHeldRows = std::int64_t{1} << 15;     // of a panel, at most: it has to stay in cache,
inline constexpr std::int64_t kNearRows = std::int64_t{1} << 12;     // and so many do in a near one
inline constexpr std::int64_t kSmallTarget = std::int64_t{1} << 21;  // elements; below, a thread takes whole targets

inline constexpr std::int64_t kRegionRows = 16 * kTileRows;         // at least about so many rows turn together,
inline constexpr std::int64_t kRegionSize = std::int64_t{1} << 16;  // and at most so many elements if possible
inline constexpr std::int64_t kMatrices = 4;                        // derived by a thread at a time
inline constexpr std::int64_t kPackRows = 32 * kTileRows;           // packed by a thread at a time
inline constexpr std::int64_t kPackColumns = 4 * kPanel;

inline constexpr std::int64_t kProjectRows = kPanel;  // of the weight, multiplied at a time by columns

static_assert(kTileColumns < kTileApart);
static_assert(kAlignment == kPanel);  // what TargetRun begins beside the output stays there

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

/// A factor and where its packed copy lies: `lines` rows of a left factor or columns of a right one, by `rank`.
struct Factor {
  Matrix source;  // absent: not packed, but computed
  std::int64_t lines = 0, rank = 0;
  std::int64_t block = 0;             // lines that are packed together
  std::int64_t first = 0, total = 0;  // of the joined rank
  Position at = 0;
  bool scaled = false;          // takes the coefficient
  bool pairs = false;           // of bf16, packed as they are, in the place of numbers; `total` counts these,
                                // and what goes beyond `rank` is 0
  ops::Operand diagonal, mask;  // multiply along the rank; may be absent
};

struct ProductPlan {
  Matrix whole;  // read in place; the others are absent then
  std::int64_t rows = 0, columns = 0, rank = 0;
  Factor left, right;

  struct Contraction {
    Factor core, down;                       // (kernel positions x r_up) x r_down, r_down x in
    std::int64_t in_step = 1;                // between neighbouring input features in the contracted factor
    std::vector<std::int64_t> kernel_index;  // of each kernel position there
  } tucker;
  bool contracted() const { return bool(tucker.core.source); }
};

/// kBaseProduct as a low-rank product: `up` projects the weight, W up (W itself where P is whole) becomes the factor
/// on the side of the output features, one for each kernel position, and P's other factor meets it. Where neighbouring
/// columns have different kernel positions, the factors of those lie side by side and repeat themselves, and the other
/// factor has each input feature once. Along the rows of a weight, up's kTurned columns are a panel.
struct Projection {
  Factor up;
  std::int64_t in = 0, inside = 1, positions = 1;
  std::int64_t rows = 0;  // of the weight, multiplied at a time, whole tiles
  bool interleaved = false;
  Factor made;              // `copies` times for each row tile, or for all columns
  std::int64_t copies = 1;  // one for each position, and more if they repeat
  Position step = 0;        // from one position, or all that are inside, to the next

  std::int64_t repeated() const { return inside + kRepeated; }
  // Columns of the weight that are multiplied at a time, and from a row of the tiles to the next.
  std::int64_t columns() const {
    return interleaved ? std::max(inside, 4 * kTileColumns / inside * inside) : kTileColumns;
  }
  std::int64_t stride() const { return interleaved ? columns() + kTurned : rows / kTileRows * kTileApart; }
  std::int64_t panels() const { return ceil_div(up.lines, kTurned); }

  /// Kernel position of an index on the inner side.
  std::int64_t position(std::int64_t index) const { return index / (in * inside) * inside + index % inside; }
  std::int64_t input(std::int64_t index) const { return index / inside % in; }
  std::int64_t index(std::int64_t position, std::int64_t i) const {
    return (position / inside * in + i) * inside + position % inside;
  }
};

struct SparsePlan {
  ops::Operand row_starts, columns, values;
  std::vector<std::int64_t> inner;  // the column that each index on the inner side is
};

/// Low-rank products that are added up are one: their factors lie side by side along the rank. Where kernels multiply
/// pairs of bf16 faster, a single product of such factors is packed so.
struct Joined {
  std::int64_t rank = 0;  // in steps: numbers or pairs
  Position left_at = 0, right_at = 0;
  bool pairs = false;     // of one term, whose factor multiplies their sums
  Position scale_at = 0;  // that one
};

struct TermPlan {
  ops::TermKind kind;
  bool joined = false;
  double coefficient;
  ops::Operand scalar;
  ProductPlan p, q;
  // kBaseHadamard with values that do not vary along one side: they are packed as a factor of rank 1.
  bool by_row = false, by_column = false;
  // kKronecker: the halves as matrices, and which of their rows and columns meet.
  Position p_at = 0, q_at = 0;
  std::int64_t p_stride = 0, q_stride = 0;
  Split rows, columns;
  Projection projection;  // kBaseProduct
  SparsePlan sparse;      // kSparse
  RotationPlan rotation;  // kRotation
};

struct AdapterPlan {
  std::int32_t multiplier_index;
  ops::DoraAxis dora_axis;
  ops::DoraRule dora_rule;
  double epsilon;
  bool replaces;
  ops::Operand magnitude, norms;  // norms may be absent
  std::vector<TermPlan> terms;
  Joined joined;            // DoRA: of this adapter
  bool multiplies = false;  // nothing else

  // DoRA: the lines (rows or columns) that have norms; line -> magnitude is line / inside % magnitudes.
  bool norm_per_row = false;
  bool norm_early = false;  // norms come before the tiles: a magnitude covers columns, or more than one row, or they
                            // are prepared
  std::int64_t magnitudes = 0, inside = 1;
  Position partial_at = 0;                             // sums of squares [parts][lines]
  Position weight_factor_at = 0, delta_factor_at = 0;  // per line: what the change takes of weight and delta

  bool dora() const { return dora_axis != ops::DoraAxis::kNone; }
};

/// One piece of the work before the tiles, small enough for one thread.
struct Step {
  const AdapterPlan *adapter;
  const TermPlan *term;
  const ProductPlan *product;
  const Factor *factor;  // pack only
  std::int64_t begin;    // block, panel, row or matrix; of a projection onto columns: all positions' panels in a row
};

struct TargetPlan {
  Matrix base, out;
  bool out_in_columns = false;
  std::int64_t rows = 0, columns = 0;
  bool direct = false;            // one product of one adapter, contiguous, one type: no tile between sums and weight
  bool changes_weight = false;    // as direct: one adapter that scales the weight, or DoRA alone
  bool tiled = false;             // by tile registers, kTiledRows at a time, if it is direct or changes the weight
  std::int64_t panels_held = 0;   // DoRA by column may go panel by panel, held in cache for so many more
  Position held_at = 0;           // in a thread's scratch
  bool streams = false;           // is written past the caches; where it is the base, only by panels that hold V
  std::int64_t tile_columns = 0;  // all of them for DoRA by row
  std::int64_t step_columns = 0;  // of a tile, computed at a time
  std::vector<AdapterPlan> adapters;
  Joined joined;  // of all adapters without DoRA
  std::vector<Step> pack_left, pack_right, contract, materialise, project, measure, derive;
  std::int64_t projected_rows = 0;  // W up is made when a thread comes to so many rows, and takes them whole; else 0
  std::int64_t region_rows = 0;  // with rotations, what turns together: so many rows by the columns of a tile; else 0
  bool turns_weight = false;     // a rotation alone: the weight's own rows are turned as they are read
  Position region_at = 0;        // in a thread's scratch
  Position projecting_size = 0;  // in a thread's scratch
  Position packed_size = 0, scratch_size = 0;  // scratch: for one thread

  std::int64_t tile_stride() const { return tile_columns + 16; }  // no two rows of a tile in one cache set
  /// Floats of a region: whole tiles of rows, and panels that go beyond the last one.
  Position region_size() const {
    if (turns_weight) return 0;
    return static_cast<Position>((round_up(region_rows, kTileRows) + 1) * round_up(tile_stride(), kPanel));
  }
};

}  // namespace lyc::cpu

struct lyc::ops::WeightPlan {
  explicit WeightPlan(BackendContext &owner) : context(owner) {}

  BackendContext &context;
  std::vector<cpu::TargetPlan> targets;  // the small ones first
  std::size_t small_count = 0;           // run side by side, one thread each
  std::int32_t multiplier_count = 0;
  bool invertible = true;                                // no delta depends on the pristine weight
  std::uint64_t workspace_floats = 0, small_floats = 0;  // all; for each thread on small targets
};

namespace lyc::cpu {

/// What DoRA adds to a weight: (a + b g / n)(W + D) - c W, D taken `delta` times. Written as a change,
/// ((a - c) + b g / n) W + (a + b g / n) D, it loses nothing where it is small.
struct DoraCoefficients {
  double delta, a, b, c;
};
DoraCoefficients dora_coefficients(ops::DoraRule rule, double multiplier);

/// What that change takes of W and of D in a line, the weight itself `kept` times; epsilon is in the norm.
struct ChangeFactors {
  float weight, delta;
};
ChangeFactors change_factors(const DoraCoefficients &rule, double kept, double magnitude, double norm);

/// Throws Error. The batch is not needed afterwards; the memory of its operands is.
std::unique_ptr<ops::WeightPlan> prepare(ops::BackendContext &context, const ops::WeightBatch &batch);

void run(const ops::WeightPlan &plan, const ops::RunOptions &options);

/// Of the only target, whose only adapter has DoRA: a run makes the norms of V, one for each magnitude, and leaves the
/// weight alone. At multiplier 0 it makes nothing.
std::unique_ptr<ops::WeightPlan> prepare_norms(ops::BackendContext &context, const ops::WeightBatch &batch);

void run_norms(const ops::WeightPlan &plan, const float *multipliers, void *workspace, float *norms);

std::string explain(const ops::WeightPlan &plan);

}  // namespace lyc::cpu
