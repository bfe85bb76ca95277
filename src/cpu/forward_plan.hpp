// A prepared Forward: what is rebuilt, what is gathered, and the sums that lead to y.
//
//   rebuild  weights, biases, norms, halves of Kronecker products, by the WeightPlan, as float32 in the workspace
//   turn     what a sum has made of the base, by the rotations of the weight's rows
//   expand   halves of a Hadamard product, into the factors of one low-rank product
//   gather   rows of a table (embeddings)
//   sums     y and what is between: each a sum of matrix products of activations, in one pass over what it makes
//
// A sum goes through its positions block by block. Of a block all activations are packed, window by window (never more
// than kPackedFloats of them); then threads take tiles of outputs, packing the weights as they go, kDepth deep, which
// are read once for each block. Partial sums over kDepth, added in order, so results do not depend on threads.
//
// Where the kernels multiply pairs of bf16, a step of the depth is a pair in the place of a float32, at an odd end with
// a zero: activations and weights of bf16 as they are or, with kernels that take parts, any as sums of bf16. Everything
// but the packing is the same. Weights are multiplied where they lie, nothing of them packed, where positions are few,
// and where kernels can take most of a sum's: they are the left factor then, and what is made is transposed if need be.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cpu/weight_plan.hpp"
#include "ops/forward.hpp"

namespace lyc::cpu {

inline constexpr std::int64_t kDepth = 256;             // steps of packed weights: they stay in the second cache
inline constexpr std::int64_t kPositions = 3 * kPanel;  // both blocks of rows and panels end there
inline constexpr std::int64_t kMaxPositions = 8 * kPositions;
inline constexpr std::int64_t kFewPositions = 12 * kTileRows;  // up to which weights are multiplied as they are read,
inline constexpr std::int64_t kFewOfPairs = 3 * kTileRows;     // the same where both sides are bf16 and go by pairs
inline constexpr std::int64_t kPackedFloats = std::int64_t{16} << 20;
inline constexpr std::int64_t kMaxOutputs = 11 * kTileRows;  // of a tile in rows; in columns it is a panel
inline constexpr std::int64_t kMaxPairOutputs = 4 * kPanel;  // where pairs take many rows at a time
inline constexpr std::int64_t kGatherFloats = kMaxParts * kPanel * (kPanel + 16);

/// Activations, the caller's or (data null) at `at` in the workspace. Channel c of group g lies at g * stride_group +
/// c * stride_channel.
struct View {
  ops::Activation tensor;
  Position at = 0;
  std::int64_t stride_group = 0;
};

/// What multiplies a source's weights, its windows instead of their columns, or its products. With c = coefficient *
/// scalar * multiplier of the term:
///   kPlain    nothing          kTerm  c, and diagonal and mask by column
///   kRows     one + c v[row]   kColumns  one + c v[input]   kRescale  v[row], 1 where the adapter is off
///   kDora     by row what DoRA takes of the weight, at `at`, and what it takes of the delta, at `delta_at`
///   kDoraIn   by input what DoRA takes of the weight, or `of_delta`
/// Norms are `vector`, data null: at norms_at.
/// Rows are scaled when the products are there, so their source is the first of its sum.
struct Scaling {
  enum class Kind { kPlain, kTerm, kRows, kColumns, kRescale, kDora, kDoraIn } kind = Kind::kPlain;
  std::int32_t term = -1;
  float one = 0.0f;
  ops::Operand vector, mask;  // of a kTerm: diagonal and mask
  Position at = 0;            // as float32, one for each row or column
  Position delta_at = 0;      // kDora's; of a kTerm `by_row`, where that has them for its rows
  Position norms_at = 0;
  bool by_row = false, of_delta = false;

  bool scales_rows() const { return kind == Kind::kRows || kind == Kind::kRescale || kind == Kind::kDora; }
  bool scales_depth() const { return kind != Kind::kPlain && !scales_rows(); }
};

/// One product of a sum: windows of activations times a matrix.
struct Source {
  View x;
  std::int64_t inputs = 0;  // channels that an output sees
  ops::Layer window;
  std::int64_t kernel[ops::kMaxKernelDims] = {1, 1, 1};
  bool taps_outside = false;  // along the depth: tap * inputs + channel, otherwise channel * taps + tap
  Matrix weight;              // outputs x depth; data null: at weight_at
  Position weight_at = 0;
  bool pairs = false;  // of bf16, a step of the depth each
  std::int64_t x_parts = 1, weight_parts = 1;
  bool few = false;          // positions: weights as they lie, activations as rows of float32, scaled
  bool as_they_are = false;  // weights, which are multiplied where they lie
  bool shared = false;       // by all groups
  bool adapter = false;      // the adapter's: left out at multiplier 0
  Scaling scaling;
  bool scales_windows = false;  // along the depth, in place of the weights

  std::int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  std::int64_t depth() const { return inputs * taps(); }
  std::int64_t input_at(std::int64_t k) const { return taps_outside ? k % inputs : k / taps(); }
  std::int64_t steps() const { return pairs ? ceil_div(depth(), 2) : depth(); }
};

struct Sum {
  std::int64_t groups = 1, outputs = 0;  // of each group
  std::vector<Source> sources;
  View to;
  bool keep = false;  // adds to what is there
  bool has_addend = false, addend_is_adapters = false;
  View addend;
  bool has_bias = false;
  bool adapter = false;  // the adapter's as a whole
  int turned_by = -1;    // a Rebuild, at once when the sum is there

  bool by_position = false;               // its channels lie side by side
  bool positions_in_rows = false;         // of products, whose other side is the weights'
  std::int64_t positions = 0, block = 0;  // of all, and packed at a time
  std::int64_t width = 0;                 // outputs of a tile
  std::vector<Position> packed_at;        // of each source
  Position packed_size = 0, thread_size = 0;
};

/// A thread's tile (no two rows in one cache set), its packed weights, and a row of it.
inline std::int64_t tile_floats(const Sum &sum) {
  const std::int64_t outputs = round_up(sum.width, sum.positions_in_rows ? kPanel : kTileRows);
  return sum.positions_in_rows ? (outputs + 16) * sum.block : outputs * (sum.block + 16);
}
inline std::int64_t weight_floats(const Sum &sum) {
  std::int64_t parts = 1;
  for (const Source &source : sum.sources) parts = std::max(parts, source.weight_parts);
  return parts * kDepth * round_up(sum.width + kTileRows, kPanel);
}
inline std::int64_t row_floats(const Sum &sum) { return std::max(sum.block, sum.width) + kPanel; }

/// A WeightPlan of one target, whose result stays in the workspace: the weight, or the norms that DoRA divides it by.
struct Rebuild {
  std::unique_ptr<ops::WeightPlan> plan;
  bool norms = false;
  ops::WeightOp op = ops::WeightOp::kDiff;
  Position to = 0;
  bool plain = false;  // at multiplier 1, whatever the adapter's is: it is a factor
  bool turns = false;  // what a sum has put at `from`, for which it waits
  Position from = 0;
};

/// Rows of p and q, each with each, element by element: row i * (q's rows) + j of the result is p_i o q_j. The same of
/// columns: row o of the result is p_o (x) q_o.
struct Expansion {
  Matrix p, q;
  bool of_columns = false;
  Position to = 0;
};

struct Gather {
  Matrix table;  // data null: at table_at
  Position table_at = 0;
  View to;
  bool adapter = false;
};

/// One way to compute it.
struct Recipe {
  std::vector<Rebuild> rebuilds;
  std::vector<Expansion> expansions;
  std::vector<Gather> gathers;
  std::vector<Sum> sums;
  Matrix bias;             // as it is; with changes it is rebuilt
  Position bias_at = 0;    // as float32
  Position weight_at = 0;  // norms: the rebuilt weight
  Position size = 0;       // results; scratch follows
  Position scratch = 0;
  double price = 0.0;
};

}  // namespace lyc::cpu

struct lyc::ops::ForwardPlan {
  explicit ForwardPlan(BackendContext &owner) : context(owner) {}

  BackendContext &context;
  Forward forward;  // its arrays are the following
  std::vector<Adapter> adapters;
  std::vector<Term> terms;
  std::vector<Rotation> rotations;
  std::vector<WeightTarget> targets;
  cpu::Recipe recipe;
  bool factored = false;
  double prices[2] = {0, 0};  // factored, rebuilt; 0: not asked for, or impossible
  std::string refusal;        // why not factored
};

namespace lyc::cpu {

/// Throws Error.
std::unique_ptr<ops::ForwardPlan> prepare(ops::BackendContext &context, const ops::Forward &forward);

void run(ops::ForwardPlan &plan, const ops::ForwardRun &run);

/// Bytes of workspace for one run.
std::uint64_t workspace_size(const ops::ForwardPlan &plan);

std::string explain(const ops::ForwardPlan &plan);

}  // namespace lyc::cpu
