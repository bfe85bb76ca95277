// Elementwise terms with DoRA over rows, out = round(f(base, terms)): see elementwise_kernels.cu for the terms.
//
// Work.     One Kronecker product with contiguous rows, or a whole difference, the usual case: a row takes a team of
//           warps, each thread of which has a few vectors of 16 bytes. They stay in registers, as they are, while their
//           squares are added up; when the row's norm is known, the term is computed once more, since the right half
//           is near and registers are what limits the bytes under way. Blocks are small, each at another point of that.
//           How many vectors a thread has is decided at compile time: only the last may be absent. A weight that is
//           alone comes as parameters, others' descriptions are copied to shared memory. Anything else: a block takes a
//           row element by element, twice.
// Traffic.  base read once, out written once: bound by DRAM. A row of the right half, which repeats along the weight's,
//           comes from the nearest cache.
// Numerics. Sums of squares go by vectors, lanes, warps: an order that depends on shapes alone. One rounding, at the
//           store; where the multiplier is 0, rows stay bit for bit.
#include <type_traits>

#include "device.cuh"
#include "elementwise_rows.hpp"

namespace lyc::cuda {
namespace {

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
template <bool kCancels, int kCount>
__device__ void apply(const Change &change, const Floats<kCount> &base, float scale, Floats<kCount> &delta) {
  const float of_delta = change.of_delta * scale;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float of_base = change.of_base * base.at[i];
    delta.at[i] = kCancels ? fmaf(change.x, fmaf(of_delta, delta.at[i], base.at[i]), of_base)
                           : fmaf(of_delta, delta.at[i], of_base);
  }
}

/// The compiler does not know that it has been so before: it computes again what it would keep in registers.
__device__ inline void forget(uint4 &v) { asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)); }
__device__ inline const char *forget(const char *p) {
  asm volatile("" : "+l"(p));
  return p;
}
__device__ inline int forget(int n) {
  asm volatile("" : "+r"(n));
  return n;
}

// -- one Kronecker product --------------------------------------------------------------------------------------------

/// What the threads of a team have to do with a row.
template <typename Base, typename Right, int kVectors>
class Member {
 public:
  __device__ Member(const ElementwiseRowsRun &run, const ElementwiseRows &rows, int y, int member, float *scales)
      : run_(run), rows_(rows), member_(member), at_(rows.term, run.workspace, y), scales_(scales) {
    base_ = reinterpret_cast<const uint4 *>(row_of(rows.weight.base, rows.weight.base_row, y));
    out_ = reinterpret_cast<uint4 *>(const_cast<char *>(row_of(rows.weight.out, rows.weight.out_row, y)));
  }

  __device__ void fetch() {
    for_vectors([&](int k, int vector) { held_[k] = load_vector(base_ + vector); });
  }

  /// The team's: what its row of the right half is multiplied by, by columns of the left half, without a multiplier.
  __device__ void find_scales() const {
    const ElementwiseTerm &term = rows_.term;
    const float weight = bare_weight(term);
    for (int x = member_; x < rows_.left_columns; x += static_cast<int>(rows_.team_threads.value)) {
      float left = 1.0f;
      if (term.left_dtype != LYC_DTYPE_NONE)
        left = to_float(load_bits(at_.left + x * term.left_column, term.left_dtype), term.left_dtype);
      scales_[x] = weight * left;
    }
  }

  /// The thread's squares of V = W + v D.
  __device__ float sum_squares(float v) const {
    float sum = 0.0f;
    for_values<kFull>([&](int, const auto &base, const auto &delta, float bare) {
      const float scale = v * bare;
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float value = fmaf(scale, delta.at[i], base.at[i]);
        squares = fmaf(value, value, squares);
      }
      sum += squares;
    });
    return sum;
  }

  __device__ void replace(Change change) {
#pragma unroll
    for (uint4 &held : held_) forget(held);
    if (change.cancels)
      replace_as<true>(change);
    else
      replace_as<false>(change);
  }

  /// What the adapter does not change: bit for bit, or nothing, of a difference.
  __device__ void keep() const {
    const bool clears = run_.op == ops::WeightOp::kDiff;
    if (!clears && base_ == out_) return;
    for_vectors([&](int, int vector) {
      store_vector(out_ + vector, clears ? make_uint4(0, 0, 0, 0) : load_vector(base_ + vector));
    });
  }

 private:
  static constexpr int kCount = kVector<Base>, kFull = full_row_vectors(kVectors);

  static __device__ const char *row_of(const void *data, int row_bytes, int y) {
    return static_cast<const char *>(data) + std::int64_t{y} * row_bytes;
  }

  /// visit(k, vector of the row) for each of the thread's vectors, of which kSure are not asked whether they are there.
  template <int kSure = kFull, typename Visit>
  __device__ void for_vectors(Visit visit) const {
    const int threads = static_cast<int>(rows_.team_threads.value), member = forget(member_);
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int vector = member + k * threads;
      if (k < kSure || vector < static_cast<int>(rows_.weight.row_vectors.value)) visit(k, vector);
    }
  }

  /// visit(vector, base, delta, scale): the weight, and what times `scale` is the delta without a multiplier.
  template <int kSure, typename Visit>
  __device__ void for_values(Visit visit) const {
    const char *right = forget(at_.right);
    for_vectors<kSure>([&](int k, int vector) {
      const int left_x = divide(vector, rows_.right_vectors);
      const int right_x = vector - left_x * static_cast<int>(rows_.right_vectors.value);
      const auto delta = load_near<Right, kCount>(right + std::int64_t{right_x} * (kCount * kSize<Right>));
      visit(vector, widen<Base>(held_[k]), delta, scales_[left_x]);
    });
  }

  /// One vector after the other, each in a branch: side by side they take more registers than there are.
  template <bool kCancels>
  __device__ void replace_as(const Change &change) const {
    for_values<0>([&](int vector, const auto &base, auto delta, float scale) {
      apply<kCancels>(change, base, scale, delta);
      store_vector(out_ + vector, round_to<Base>(delta));
    });
  }

  const ElementwiseRowsRun &run_;
  const ElementwiseRows &rows_;
  const int member_;  // of the team
  const Halves at_;
  float *const scales_;
  const uint4 *base_;
  uint4 *out_;
  uint4 held_[kVectors];
};

template <typename Base, typename Right, int kVectors>
__device__ void merge_row(const ElementwiseRowsRun &run, const ElementwiseRows &rows, int block) {
  extern __shared__ float scales[];
  __shared__ float sums[kMostTeamWarps];  // of squares, by warp
  __shared__ float magnitudes[kMostRowTeams];
  __shared__ Change changes[kMostRowTeams];
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(rows.team_threads.value);
  const int team = __shfl_sync(~0u, divide(thread, rows.team_threads), 0);  // which the compiler sees is a warp's
  const int y = block * rows.teams + team, member = thread - team * threads;
  if (y >= rows.weight.rows) return;
  const float m = multiplier_at(run.multipliers, rows.term.multiplier_index);
  Member<Base, Right, kVectors> of_row(run, rows, y, member, scales + team * rows.left_columns);
  if (m == 0.0f) return of_row.keep();
  of_row.fetch();
  if (member == 0) magnitudes[team] = element(rows.dora.magnitude, y);
  of_row.find_scales();
  __syncthreads();
  const float sum = sum_of_warp(of_row.sum_squares(rows.dora.rule == ops::DoraRule::kPeft ? m : 1.0f));
  if (thread % 32 == 0) sums[thread / 32] = sum;
  __syncthreads();
  if (member == 0) {
    double squares = 0.0;
#pragma unroll 1
    for (int warp = thread / 32; warp < (thread + threads) / 32; ++warp) squares += static_cast<double>(sums[warp]);
    double inverse = dora_inverse(rows.dora, squares);
    float late = m;
    asm volatile("" : "+d"(inverse), "+f"(late));  // the rule's numbers are not in registers before
    changes[team] = change_of(dora_factors_of(rows.dora.rule, late, magnitudes[team], inverse), run.op);
  }
  __syncthreads();
  of_row.replace(changes[team]);
}

/// Of 65536: more vectors would not be more bytes under way.
constexpr int registers_for(int vectors) { return vectors <= 4 ? 40 : 64; }

template <typename Base, typename Right, int kVectors, bool kAlone>
__global__ void __maxnreg__(registers_for(kVectors)) kronecker_rows(const __grid_constant__ ElementwiseRowsRun run) {
  begin_kernel();
  if constexpr (kAlone) {
    merge_row<Base, Right, kVectors>(run, run.only, static_cast<int>(blockIdx.x));
  } else {
    __shared__ ElementwiseRows rows;
    const int index = find_entry(run.tiles.first, run.tiles.count, blockIdx.x);
    constexpr int kWords = sizeof(rows) / sizeof(uint4);
    static_assert(sizeof(rows) % sizeof(uint4) == 0 && kWords <= kFewestBlockWarps * 32);
    if (threadIdx.x < kWords)
      reinterpret_cast<uint4 *>(&rows)[threadIdx.x] =
          __ldg(reinterpret_cast<const uint4 *>(run.targets + index) + threadIdx.x);
    __syncthreads();
    merge_row<Base, Right, kVectors>(run, rows, static_cast<int>(blockIdx.x - run.tiles.first[index]));
  }
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
    if (change.cancels)
      apply<true>(change, base, 1.0f, delta);
    else
      apply<false>(change, base, 1.0f, delta);
    write_float(out_row, weight.out_dtype, x, delta.at[0]);
  }
}

using Kernel = void (*)(ElementwiseRowsRun);

template <typename Base, typename Right, int kVectors>
Kernel kernel_for(bool alone) {
  return alone ? kronecker_rows<Base, Right, kVectors, true> : kronecker_rows<Base, Right, kVectors, false>;
}

template <typename Base, typename Right>
Kernel kernel_for(int vectors, bool alone) {
  switch (vectors) {
    case kRowVectors[0]:
      return kernel_for<Base, Right, kRowVectors[0]>(alone);
    case kRowVectors[1]:
      return kernel_for<Base, Right, kRowVectors[1]>(alone);
    case kRowVectors[2]:
      return kernel_for<Base, Right, kRowVectors[2]>(alone);
    default:
      return kernel_for<Base, Right, kRowVectors[3]>(alone);
  }
}

/// The right half is as the weight, or float32, as are halves that a run computes.
template <typename Base>
Kernel kernel_for(const ElementwiseRowsKind &kind, bool alone) {
  return kind.right == LYC_DTYPE_F32 ? kernel_for<Base, F32>(kind.vectors, alone)
                                     : kernel_for<Base, Base>(kind.vectors, alone);
}

Kernel kernel_of(const ElementwiseRowsKind &kind, bool alone) {
  if (kind.block_warps == 0) return any_rows;
  if (kind.base == LYC_DTYPE_F32) return kernel_for<F32, F32>(kind.vectors, alone);
  return kind.base == LYC_DTYPE_BF16 ? kernel_for<Bf16>(kind, alone) : kernel_for<F16>(kind, alone);
}

}  // namespace

cudaError_t launch_elementwise_rows(const ElementwiseRowsKind &kind, const ElementwiseRowsRun &run, const Launch &on) {
  void *arguments[] = {const_cast<ElementwiseRowsRun *>(&run)};
  const int threads = kind.block_warps == 0 ? kAnyThreads : kind.block_warps * 32;
  const auto *kernel = reinterpret_cast<const void *>(kernel_of(kind, run.tiles.count == 1));
  const std::size_t shared = static_cast<std::size_t>(run.scales) * sizeof(float);
  return launch_kernel(kernel, run.tiles.pieces, threads, shared, on, arguments);
}

}  // namespace lyc::cuda
