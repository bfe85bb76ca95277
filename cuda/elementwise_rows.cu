// Elementwise terms with DoRA over rows, out = round(f(base, terms)): see elementwise_kernels.cu for the terms.
//
// Work.     One Kronecker product with contiguous rows, the usual case: a block takes some rows, side by side in
// memory,
//           6 KB of them or one. Its threads keep what they have loaded in registers, add up squares, and compute the
//           term once more when the rows' norms are known: many small blocks, each at another point of that. Rows that
//           are too wide are taken in rounds, all but the last of which are loaded again. Anything else: a block takes
//           a row element by element, twice.
// Traffic.  base read once, out written once: bound by DRAM, with two thirds of the issue slots busy. A row of the
// right
//           half, which repeats along the weight's, comes from the nearest cache.
// Numerics. Sums of squares go by vectors, lanes, warps: an order that depends on shapes alone. One rounding, at the
//           store; where the multiplier is 0, rows stay bit for bit.
#include <type_traits>

#include "device.cuh"
#include "elementwise_rows.hpp"

namespace lyc::cuda {
namespace {

constexpr int kMostRows = kRowBlockWarps[0] * kHeldVectors;  // of a block: others than the smallest take one
constexpr int kMostSums = kRowBlockWarps[kRowWidths - 1];    // rows times warps of a team
static_assert(kMostRows <= kMostSums);

template <typename Type>
constexpr int kSize = std::is_same_v<Type, F32> ? 4 : 2;
template <typename Type>
constexpr int kVector = 16 / kSize<Type>;

template <int kCount>
struct Floats {
  float at[kCount];
};

template <typename Type, int kCount>
__device__ Floats<kCount> widen(const std::uint32_t *word) {
  Floats<kCount> floats;
#pragma unroll
  for (int i = 0; i < kCount; i += 2) {
    const float2 two = Type::get(word, i / 2);
    floats.at[i] = two.x, floats.at[i + 1] = two.y;
  }
  return floats;
}

template <typename Type>
__device__ Floats<kVector<Type>> widen(uint4 v) {
  const std::uint32_t word[] = {v.x, v.y, v.z, v.w};
  return widen<Type, kVector<Type>>(word);
}

template <typename Type>
__device__ uint4 round_to(const Floats<kVector<Type>> &floats) {
  std::uint32_t word[4];
#pragma unroll
  for (int i = 0; i < kVector<Type>; i += 2) Type::put(word, i / 2, make_float2(floats.at[i], floats.at[i + 1]));
  return make_uint4(word[0], word[1], word[2], word[3]);
}

/// Neighbours of what no kernel of this launch writes.
template <typename Type, int kCount>
__device__ Floats<kCount> load_near(const char *from) {
  constexpr int kWords = kCount * kSize<Type> / 4;
  std::uint32_t word[kWords];
  if constexpr (kWords == 2) {
    const uint2 v = __ldg(reinterpret_cast<const uint2 *>(from));
    word[0] = v.x, word[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 v = __ldg(reinterpret_cast<const uint4 *>(from) + i);
      word[4 * i] = v.x, word[4 * i + 1] = v.y, word[4 * i + 2] = v.z, word[4 * i + 3] = v.w;
    }
  }
  return widen<Type, kCount>(word);
}

/// Where row y of a term's halves begins.
struct Halves {
  const char *left, *right;

  __device__ Halves(const ElementwiseTerm &term, const char *workspace, int y) {
    const int left_y = divide(y, term.right_rows), right_y = y - left_y * static_cast<int>(term.right_rows.value);
    const auto at = [&](const void *half, int in_workspace, int row, int i) {
      return static_cast<const char *>(resolve(half, in_workspace, workspace)) + std::int64_t{i} * row;
    };
    left = at(term.left, term.left_in_workspace, term.left_row, left_y);
    right = at(term.right, term.right_in_workspace, term.right_row, right_y);
  }
};

__device__ inline float bare_weight(const ElementwiseTerm &term) { return term.coefficient * element(term.scalar, 0); }

/// What DoRA makes of a row: `of_base` W + `of_delta` D, or, where D and W nearly cancel, x (`of_delta` D + W) +
/// `of_base` W.
struct alignas(16) Change {
  float of_base, of_delta, x;
  std::int32_t cancels;
};

__device__ Change change_of(const DoraFactors &factors, ops::WeightOp op) {
  const bool cancels = factors.w != 0.0f;
  const float kept = op == ops::WeightOp::kDiff ? 0.0f : 1.0f;
  return {factors.y + kept, cancels ? factors.v : factors.x * factors.v, factors.x, cancels};
}

/// delta = what becomes of the base and of `scale` times the delta
template <int kCount>
__device__ void apply(const Change &change, const Floats<kCount> &base, float scale, Floats<kCount> &delta) {
  const float of_delta = change.of_delta * scale;
  if (change.cancels) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      delta.at[i] = fmaf(change.x, fmaf(of_delta, delta.at[i], base.at[i]), change.of_base * base.at[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) delta.at[i] = fmaf(of_delta, delta.at[i], change.of_base * base.at[i]);
  }
}

// -- one Kronecker product --------------------------------------------------------------------------------------------

/// A block's shared memory.
struct Shared {
  struct Place {
    const char *left, *right;  // where the row of the halves begins
    char *out;
  } places[kMostRows];
  Change changes[kMostRows];
  float sums[kMostSums];  // of squares, of each row and warp
};

/// What a thread does.
template <typename Base, typename Right>
class Member {
 public:
  __device__ Member(const ElementwiseRowsRun &run, const ElementwiseRows &rows, int block, Shared &shared)
      : run_(run), rows_(rows), shared_(shared) {
    const int thread = static_cast<int>(threadIdx.x), team = thread / 32 / rows.team_warps;
    teams_ = static_cast<int>(blockDim.x) / 32 / rows.team_warps;
    threads_ = rows.team_warps * 32;
    member_ = thread - team * threads_;
    team_row_ = team * rows.team_rows;
    first_ = block * teams_ * rows.team_rows;
    rows_here_ = min(rows.team_rows, rows.weight.rows - first_ - team_row_);
  }

  __device__ void merge() {
    const float m = multiplier_at(run_.multipliers, rows_.term.multiplier_index);
    if (m == 0.0f) return keep();
    fetch(0);
    // Of the block's rows, the one that is this thread's to find the factors of.
    const int thread = static_cast<int>(threadIdx.x), own = first_ + thread;
    const bool owns = thread < teams_ * rows_.team_rows && own < rows_.weight.rows;
    float magnitude = 1.0f;
    if (owns) {
      const Halves at(rows_.term, run_.workspace, own);
      shared_.places[thread] = {at.left, at.right, place(rows_.weight.out, rows_.weight.out_row, thread)};
      magnitude = element(rows_.dora.magnitude, own);
    }
    __syncthreads();
    sum_squares(static_cast<float>(dora_coefficients(rows_.dora.rule, m).v));
    __syncthreads();
    if (owns) {
      double squares = 0.0;
      for (int warp = 0; warp < rows_.team_warps; ++warp)
        squares += static_cast<double>(shared_.sums[thread * rows_.team_warps + warp]);
      shared_.changes[thread] = change_of(dora_factors_for(rows_.dora, m, magnitude, squares), run_.op);
    }
    __syncthreads();
    for (int round = rounds() - 1;; --round) {
      replace(round);
      if (round == 0) return;
      fetch(round - 1);
    }
  }

 private:
  static constexpr int kCount = kVector<Base>;

  __device__ int rounds() const { return (rows_.of_thread + kHeldVectors - 1) / kHeldVectors; }

  /// visit(k, row of the block, vector of the row) for each of the thread's vectors of a round.
  template <typename Visit>
  __device__ void for_vectors(int round, Visit visit) const {
    const int of_thread = rows_.of_thread, vectors = static_cast<int>(rows_.weight.row_vectors.value);
    int row = 0, vector = round * kHeldVectors * threads_ + member_;
#pragma unroll
    for (int k = 0; k < kHeldVectors; ++k) {
      if (row < rows_here_ && vector < vectors) visit(k, team_row_ + row, vector);
      vector += threads_;
      if (of_thread == 1 || (of_thread == 2 && k % 2 == 1)) ++row, vector = member_;
    }
  }

  __device__ char *place(const void *data, int row_bytes, int row) const {
    return static_cast<char *>(const_cast<void *>(data)) + std::int64_t{first_ + row} * row_bytes;
  }
  __device__ void fetch(int round) {
    for_vectors(round, [&](int k, int row, int vector) {
      const char *from = place(rows_.weight.base, rows_.weight.base_row, row);
      held_[k] = load_vector(reinterpret_cast<const uint4 *>(from) + vector);
    });
  }

  /// visit(k, row, vector, base, delta, scale): the weight, and what times `scale` is the delta without a multiplier.
  template <typename Visit>
  __device__ void for_values(int round, Visit visit) const {
    const ElementwiseTerm &term = rows_.term;
    const float weight = bare_weight(term);
    for_vectors(round, [&](int k, int row, int vector) {
      const int x = vector * kCount, left_x = divide(x, term.right_columns);
      const int right_x = x - left_x * static_cast<int>(term.right_columns.value);
      const Shared::Place at = shared_.places[row];
      const std::uint32_t left = load_bits(at.left + left_x * term.left_column, term.left_dtype);
      const auto delta = load_near<Right, kCount>(at.right + right_x * kSize<Right>);
      visit(k, row, vector, widen<Base>(held_[k]), delta, weight * to_float(left, term.left_dtype));
    });
  }

  /// Squares of V = W + v D.
  __device__ void sum_squares(float v) {
    float sums[kHeldVectors] = {};
    for (int round = 0;;) {
      for_values(round, [&](int k, int, int, const auto &base, const auto &delta, float scale) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float value = fmaf(v * scale, delta.at[i], base.at[i]);
          sums[k] = fmaf(value, value, sums[k]);
        }
      });
      if (++round == rounds()) break;
      fetch(round);
    }
    // Of vectors, so far; now of rows.
    if (rows_.of_thread > 1) sums[0] += sums[1], sums[1] = sums[2] + sums[3];
    if (rows_.of_thread > 2) sums[0] += sums[1];
#pragma unroll
    for (int row = 0; row < kHeldVectors; ++row) {
      if (row >= rows_.team_rows) break;
      const float sum = sum_of_warp(sums[row]);
      if (threadIdx.x % 32 == 0) shared_.sums[(team_row_ + row) * rows_.team_warps + member_ / 32] = sum;
    }
  }

  __device__ void replace(int round) const {
    for_values(round, [&](int, int row, int vector, const auto &base, auto delta, float scale) {
      apply(shared_.changes[row], base, scale, delta);
      store_vector(reinterpret_cast<uint4 *>(shared_.places[row].out) + vector, round_to<Base>(delta));
    });
  }

  /// What the adapter does not change: bit for bit, or nothing, of a difference.
  __device__ void keep() {
    const bool clears = run_.op == ops::WeightOp::kDiff;
    if (!clears && rows_.weight.base == rows_.weight.out) return;
    for (int round = 0; round < rounds(); ++round) {
      fetch(round);
      for_vectors(round, [&](int k, int row, int vector) {
        char *to = place(rows_.weight.out, rows_.weight.out_row, row);
        store_vector(reinterpret_cast<uint4 *>(to) + vector, clears ? make_uint4(0, 0, 0, 0) : held_[k]);
      });
    }
  }

  const ElementwiseRowsRun &run_;
  const ElementwiseRows &rows_;
  Shared &shared_;
  int teams_, threads_, member_;  // of the block; of a team; this thread in its own
  int first_, team_row_;          // rows: of the weight, the block's first one; of the block, the team's
  int rows_here_;                 // that the team has
  uint4 held_[kHeldVectors];
};

constexpr int kRegisters = 48;  // for 42 warps on a multiprocessor, each of few: all at another point of their work

template <typename Base, typename Right>
__global__ void __maxnreg__(kRegisters) kronecker_rows(const __grid_constant__ ElementwiseRowsRun run) {
  __shared__ Shared shared;
  begin_kernel();
  if (run.tiles.count == 1)  // all that it takes came with the launch
    return Member<Base, Right>(run, run.only, static_cast<int>(blockIdx.x), shared).merge();
  const int index = find_entry(run.tiles.first, run.tiles.count, blockIdx.x);
  const int block = static_cast<int>(blockIdx.x - run.tiles.first[index]);
  Member<Base, Right>(run, run.targets[index], block, shared).merge();
}

// -- any terms --------------------------------------------------------------------------------------------------------

constexpr int kAnyThreads = 256;

// Elements of weights, each read before it is written, by the same thread.
__device__ std::uint32_t read_bits(const char *row, lyc_dtype dtype, int x) {
  if (dtype == LYC_DTYPE_F32) return reinterpret_cast<const std::uint32_t *>(row)[x];
  return reinterpret_cast<const std::uint16_t *>(row)[x];
}
__device__ void write_bits(char *row, lyc_dtype dtype, int x, std::uint32_t bits) {
  if (dtype == LYC_DTYPE_F32)
    reinterpret_cast<std::uint32_t *>(row)[x] = bits;
  else
    reinterpret_cast<std::uint16_t *>(row)[x] = static_cast<std::uint16_t>(bits);
}
__device__ void write_float(char *row, lyc_dtype dtype, int x, float value) {
  with_type<true>(dtype, [&](auto type) {
    std::uint32_t word[2];
    decltype(type)::put(word, 0, make_float2(value, 0.0f));
    write_bits(row, dtype, x, word[0]);
  });
}

/// An element of the sum of a row's terms, without multipliers.
__device__ float any_terms(const ElementwiseRowsRun &run, const ElementwiseTarget &weight, int y, int x, float base) {
  float sum = 0.0f;
  for (int t = weight.first_term; t < weight.first_term + weight.term_count; ++t) {
    const ElementwiseTerm &term = run.terms[t];
    const Halves at(term, run.workspace, y);
    const int left_x = divide(x, term.right_columns);
    const int right_x = x - left_x * static_cast<int>(term.right_columns.value);
    const auto value = [](const char *row, lyc_dtype dtype, int i, int step) {
      return dtype == LYC_DTYPE_NONE ? 1.0f : to_float(load_bits(row + std::int64_t{i} * step, dtype), dtype);
    };
    const float delta = bare_weight(term) * value(at.left, term.left_dtype, left_x, term.left_column) *
                        value(at.right, term.right_dtype, right_x, term.right_column);
    sum += term.times_base ? delta * base : delta;
  }
  return sum;
}

/// A row for each block.
__global__ void __launch_bounds__(kAnyThreads) any_rows(const __grid_constant__ ElementwiseRowsRun run) {
  __shared__ float sums[kAnyThreads / 32];
  begin_kernel();
  const int index = find_entry(run.tiles.first, run.tiles.count, blockIdx.x);
  const ElementwiseRows &rows = run.targets[index];
  const ElementwiseTarget &weight = rows.weight;
  const int y = static_cast<int>(blockIdx.x - run.tiles.first[index]), begin = static_cast<int>(threadIdx.x);
  const char *base_row = static_cast<const char *>(weight.base) + std::int64_t{y} * weight.base_row;
  char *out_row = static_cast<char *>(weight.out) + std::int64_t{y} * weight.out_row;
  const auto base_at = [&](int x) { return to_float(read_bits(base_row, weight.base_dtype, x), weight.base_dtype); };
  const float m = multiplier_at(run.multipliers, rows.term.multiplier_index);
  if (m == 0.0f) {
    const bool clears = run.op == ops::WeightOp::kDiff, same = weight.base_dtype == weight.out_dtype;
    for (int x = begin; x < weight.columns; x += kAnyThreads)
      if (same && !clears)
        write_bits(out_row, weight.out_dtype, x,
                   read_bits(base_row, weight.base_dtype, x));  // even of what is no number
      else
        write_float(out_row, weight.out_dtype, x, clears ? 0.0f : base_at(x));
    return;
  }
  const float v = static_cast<float>(dora_coefficients(rows.dora.rule, m).v);
  float squares = 0.0f;
  for (int x = begin; x < weight.columns; x += kAnyThreads) {
    const float base = base_at(x), value = fmaf(v, any_terms(run, weight, y, x, base), base);
    squares = fmaf(value, value, squares);
  }
  squares = sum_of_warp(squares);
  if (begin % 32 == 0) sums[begin / 32] = squares;
  __syncthreads();
  double sum = 0.0;
  for (float of_warp : sums) sum += static_cast<double>(of_warp);
  const Change change = change_of(dora_factors(rows.dora, m, y, sum), run.op);
  for (int x = begin; x < weight.columns; x += kAnyThreads) {
    const Floats<1> base = {base_at(x)};
    Floats<1> delta = {any_terms(run, weight, y, x, base.at[0])};
    apply(change, base, 1.0f, delta);
    write_float(out_row, weight.out_dtype, x, delta.at[0]);
  }
}

using Kernel = void (*)(ElementwiseRowsRun);

/// The right half is as the weight, or float32, as are halves that a run computes.
template <typename Base>
Kernel kernel_for(lyc_dtype right) {
  return right == LYC_DTYPE_F32 ? kronecker_rows<Base, F32> : kronecker_rows<Base, Base>;
}

Kernel kernel_of(const ElementwiseRowsKind &kind) {
  if (kind.block_warps == 0) return any_rows;
  if (kind.base == LYC_DTYPE_F32) return kronecker_rows<F32, F32>;
  return kind.base == LYC_DTYPE_BF16 ? kernel_for<Bf16>(kind.right) : kernel_for<F16>(kind.right);
}

}  // namespace

cudaError_t launch_elementwise_rows(const ElementwiseRowsKind &kind, const ElementwiseRowsRun &run, const Launch &on) {
  void *arguments[] = {const_cast<ElementwiseRowsRun *>(&run)};
  const int threads = kind.block_warps == 0 ? kAnyThreads : kind.block_warps * 32;
  return launch_kernel(reinterpret_cast<const void *>(kernel_of(kind)), run.tiles.pieces, threads, 0, on, arguments);
}

}  // namespace lyc::cuda
