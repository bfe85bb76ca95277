// Rotations on the CPU: from generators to packed matrices, and from those to differences of the weight.
//
// A line is what a rotation turns as a whole: a row of the frame, or a column. A stage adds m (R - I) x to the lines x
// of each of its blocks, which lie in one or two runs of neighbouring lines; blocks of stage t stay within windows of
// 2^t blocks, so windows are turned from the inside out and what they hold stays in the caches. What is kept is the
// change, not the turned lines: a small rotation loses nothing to the size of the weight. The first stage takes the
// lines from the weight, the last one stores: a rotation of one stage is one pass over the weight. What is transposed
// goes through its windows from the outside in.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/matrix.hpp"
#include "ops/weight.hpp"

namespace lyc::ops {
struct BackendContext;
}

namespace lyc::cpu {

struct RotationPlan {
  ops::Rotation rotation;
  bool along_rows = false;          // lines are columns, and rows are turned each for itself
  bool transposed = false;          // every R' is, and the last stage comes first: of activations, as of the weight
  std::vector<std::int64_t> lines;  // where each element of the axis lies; empty: at its own number
  std::uint64_t squares_at = 0;     // in the workspace: |Q|^2 of each matrix, in double
  std::uint64_t packed_at = 0;      // m (R - I) of each matrix: blocks of kTileRows rows, or transposed in panels

  explicit operator bool() const { return rotation.blocks > 0; }
  std::int64_t window() const { return rotation.block_size << (rotation.stages - 1); }
  std::int64_t runs() const { return rotation.order == ops::Rotation::Order::kPlain ? 1 : 2; }
  std::int64_t run_length() const { return rotation.block_size / runs(); }
  /// Rows are multiplied from the right as they lie; otherwise lines are, and columns become lines for that.
  bool by_rows() const { return along_rows && rotation.stages == 1 && lines.empty(); }
  /// Different matrices: one for each stage and block, or one for all.
  std::int64_t matrices() const;
  std::int64_t packed_floats() const;  // of one matrix
  /// Whether |Q| over all matrices is needed before any of them.
  bool measured() const;
};

/// Checks that the rotation fits the weight. `row_begin`: the weight's row 0 is this row of `rescale`.
RotationPlan plan_rotation(const ops::Rotation &rotation, const Frame &frame, const ops::Operand &weight,
                           std::int64_t row_begin);

/// The fewest lines, in multiples of `unit`, that hold whole windows wherever they begin; all of them if need be.
std::int64_t common_lines(const RotationPlan &plan, std::int64_t unit, std::int64_t all);

// -- Matrices --------------------------------------------------------------------------------------------------

/// Floats of scratch that the functions below need, aligned as double.
std::uint64_t matrix_scratch(const ops::Rotation &rotation);

/// |Q|^2 of a matrix before any limit.
double squares(const Kernels &kernels, const ops::Rotation &rotation, std::int64_t matrix, float *scratch);

/// R - I, row-major. `squares`: |Q|^2 over all stages and blocks, where the limit asks for it.
void derive(const Kernels &kernels, const ops::Rotation &rotation, std::int64_t matrix, double squares, float *scratch,
            float *rest);

/// The same, or what is prepared, times `multiplier` and packed.
void derive_packed(const Kernels &kernels, const RotationPlan &plan, std::int64_t matrix, double squares,
                   double multiplier, float *scratch, float *packed);

/// |Q|^2 over all stages and blocks from that of each matrix.
double total_squares(const ops::Rotation &rotation, std::int64_t matrices, const double *squares);

/// R - I of every stage and block, for ops::Rotation::prepared.
void prepare_rotation(ops::BackendContext &context, const ops::Rotation &rotation, const ops::Operand &rests);

// -- Application -----------------------------------------------------------------------------------------------

/// Rows of contiguous elements; the stride counts elements.
struct Rows {
  lyc_dtype dtype;
  const void *data;
  std::int64_t stride;
};

/// Part of a weight with all that turns with it. What rotations add to it goes to `out`, on top of what is there (a sum
/// in float32), of the weight, or of nothing. `out` may be the weight.
struct Region {
  enum class Onto { kSum, kWeight, kNothing };
  std::int64_t row, column, rows, columns;
  Rows weight, out;
  Onto onto;
  bool stream;  // past the caches
};

std::uint64_t region_scratch(const RotationPlan &plan, std::int64_t rows, std::int64_t columns);

/// Adds scale * (R'(W) - W). Where not to a sum, the scale is 1, there is no rescale, and all lines turn.
void add_rotation(const Kernels &kernels, const RotationPlan &plan, const float *packed, double scale,
                  const Region &region, float *scratch);

}  // namespace lyc::cpu
