// out[y, x] = round(base[y, x] + sum over terms of s * left[y / n, x / k] * right[y % n, x % k] [* base[y, x]])
//
// for weights whose rows are contiguous. Halves that are products have been multiplied into the workspace before; a
// half that is absent is 1.
//
// Work.     A thread takes 16 bytes of four rows that lie n apart, so one vector of the right half and four elements of
//           the left one make all of them. Threads and blocks follow memory: a block takes 4 KB in four places and
//           ends, the next one goes on from there.
// Traffic.  base read once, out written once: bound by DRAM, which likes that order. Finding its way costs a thread as
//           many instructions as two vectors' arithmetic; with one vector a thread it would be bound by them. The right
//           half of a Kronecker product, as large as the weight over the left half's elements, comes from the caches.
// DoRA.     Over rows. A team of one, two or all warps of a block takes whole rows, side by side in memory: each thread
//           copies its vectors of them into shared memory, which nobody else looks at, adds up squares, and computes
//           the terms once more when the rows' norms are known. What has no room there, of very wide rows, is read
//           again. A row of a Kronecker product's right half, which repeats along the weight's, comes from the nearest
//           cache. Sums go by vectors, lanes, warps: an order that depends on shapes alone.
#include <type_traits>
#include <utility>

#include "device.cuh"
#include "elementwise_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kDoraThreads = kElementwiseDoraWarps * 32;
constexpr int kBatch = kElementwiseRows;  // rows whose loads are under way together

template <int kIndex>
struct Kind {
  static constexpr bool kWide = elementwise_kind(kIndex).wide;
  static constexpr bool kDora = elementwise_kind(kIndex).dora;
  static constexpr int kVector = elementwise_vector(elementwise_kind(kIndex));
  static constexpr int kThreads = kDora ? kDoraThreads : kElementwiseThreads, kBlocks = kDora ? 9 : 3;
};

__device__ inline int divide(int n, const Divisor &by) {
  const auto number = static_cast<std::uint32_t>(n);
  return static_cast<int>((number + __umulhi(number, by.magic)) >> by.shift);
}

/// As they are in memory: 16 bytes, or 8 where they are narrower than others of their kind.
struct Packed {
  std::uint32_t word[4];
};

template <typename K>
__device__ bool takes_16_bytes(lyc_dtype dtype) {
  return !K::kWide || dtype == LYC_DTYPE_F32;
}

__device__ inline int size_of(lyc_dtype dtype) { return dtype == LYC_DTYPE_F32 ? 4 : 2; }

/// Rows in bytes.
__device__ inline const char *address_at(const void *data, lyc_dtype dtype, int row, int y, int x) {
  return static_cast<const char *>(data) + std::int64_t{y} * row + std::int64_t{x} * size_of(dtype);
}

template <typename K>
__device__ Packed load_packed(const ElementwiseTarget &target, int y, int x) {
  const lyc_dtype dtype = target.base_dtype;
  const char *from = address_at(target.base, dtype, target.base_row, y, x);
  if (takes_16_bytes<K>(dtype)) {
    const uint4 v = load_streaming(reinterpret_cast<const uint4 *>(from));
    return {{v.x, v.y, v.z, v.w}};
  }
  const uint2 v = load_streaming(reinterpret_cast<const uint2 *>(from));
  return {{v.x, v.y, 0, 0}};
}

template <typename K>
__device__ void store_packed(const Packed &packed, const ElementwiseTarget &target, int y, int x) {
  const lyc_dtype dtype = target.out_dtype;
  char *to = const_cast<char *>(address_at(target.out, dtype, target.out_row, y, x));
  if (takes_16_bytes<K>(dtype))
    store_streaming(reinterpret_cast<uint4 *>(to),
                    make_uint4(packed.word[0], packed.word[1], packed.word[2], packed.word[3]));
  else
    store_streaming(reinterpret_cast<uint2 *>(to), make_uint2(packed.word[0], packed.word[1]));
}

template <typename K>
__device__ void widen(const Packed &packed, lyc_dtype dtype, float (&value)[K::kVector]) {
  with_type<K::kWide>(dtype, [&](auto type) {
#pragma unroll
    for (int i = 0; i < K::kVector; i += 2) {
      const float2 two = type.get(packed.word, i / 2);
      value[i] = two.x, value[i + 1] = two.y;
    }
  });
}

template <typename K>
__device__ Packed round_to(const float (&value)[K::kVector], lyc_dtype dtype) {
  Packed packed = {};
  with_type<K::kWide>(dtype, [&](auto type) {
#pragma unroll
    for (int i = 0; i < K::kVector; i += 2) type.put(packed.word, i / 2, make_float2(value[i], value[i + 1]));
  });
  return packed;
}

/// Neighbours in a row of a right half as they are in memory, so that nothing waits for them yet.
template <typename K>
struct Right {
  std::uint32_t word[K::kVector];
  lyc_dtype dtype;

  /// `step` bytes apart.
  __device__ void load(const char *from, lyc_dtype type, int step) {
    dtype = type;
    if (step != size_of(type)) return gather(from, step);
    if (type == LYC_DTYPE_F32) {
#pragma unroll
      for (int i = 0; i < K::kVector / 4; ++i) take(__ldg(reinterpret_cast<const uint4 *>(from) + i), 4 * i);
    } else if constexpr (K::kVector == 8) {
      take(__ldg(reinterpret_cast<const uint4 *>(from)), 0);
    } else {
      const uint2 v = __ldg(reinterpret_cast<const uint2 *>(from));
      word[0] = v.x, word[1] = v.y;
    }
  }

  __device__ void widen(float (&value)[K::kVector]) const {
    with_type<true>(dtype, [&](auto type) {
#pragma unroll
      for (int i = 0; i < K::kVector; i += 2) {
        const float2 two = type.get(word, i / 2);
        value[i] = two.x, value[i + 1] = two.y;
      }
    });
  }

 private:
  __device__ void take(uint4 v, int at) { word[at] = v.x, word[at + 1] = v.y, word[at + 2] = v.z, word[at + 3] = v.w; }

  __device__ void gather(const char *from, int step) {
    if (dtype == LYC_DTYPE_F32) {
#pragma unroll
      for (int i = 0; i < K::kVector; ++i) word[i] = __ldg(reinterpret_cast<const std::uint32_t *>(from + i * step));
      return;
    }
    const auto half = [&](int i) -> std::uint32_t {
      return __ldg(reinterpret_cast<const std::uint16_t *>(from + i * step));
    };
#pragma unroll
    for (int i = 0; i < K::kVector; i += 2) word[i / 2] = half(i) | half(i + 1) << 16;
  }
};

/// An element that is to be widened later. Two loads, not one or the other, which would wait for each other.
__device__ inline std::uint32_t load_bits(const char *from, lyc_dtype dtype) {
  const auto *half = reinterpret_cast<const std::uint16_t *>(from);
  const std::uint32_t low = __ldg(half);
  std::uint32_t high = 0;
  if (dtype == LYC_DTYPE_F32) high = __ldg(half + 1);
  return low | high << 16;
}

__device__ inline float weight_of(const ElementwiseRun &run, const ElementwiseTerm &term) {
  const float multiplier = multiplier_at(run.multipliers, term.multiplier_index);
  if (multiplier == 0.0f) return 0.0f;
  const float weight = multiplier * term.coefficient * element(term.scalar, 0);
  return run.op == ops::WeightOp::kUnmerge ? -weight : weight;
}

// -- terms ------------------------------------------------------------------------------------------------------------

/// What belongs to row y and column x in the halves of a term.
struct HalfPlaces {
  const char *left, *right;

  __device__ HalfPlaces(const ElementwiseTerm &term, const char *workspace, int y, int x) {
    const int left_y = divide(y, term.right_rows), left_x = divide(x, term.right_columns);
    const int right_y = y - left_y * static_cast<int>(term.right_rows.value);
    const int right_x = x - left_x * static_cast<int>(term.right_columns.value);
    const auto at = [&](const void *half, int in_workspace, int row, int i, int column, int j) {
      const void *data = resolve(half, in_workspace, workspace);
      return static_cast<const char *>(data) + std::int64_t{i} * row + std::int64_t{j} * column;
    };
    left = at(term.left, term.left_in_workspace, term.left_row, left_y, term.left_column, left_x);
    right = at(term.right, term.right_in_workspace, term.right_row, right_y, term.right_column, right_x);
  }
};

/// sum += weight * term at row y, columns from x on; `packed` is the weight.
template <typename K>
__device__ void add_term(float (&sum)[K::kVector], const ElementwiseTerm &term, float weight, const Packed &packed,
                         lyc_dtype base_dtype, const char *workspace, int y, int x) {
  const HalfPlaces at(term, workspace, y, x);
  std::uint32_t left = 0;
  Right<K> right;
  if (term.left_dtype != LYC_DTYPE_NONE) left = load_bits(at.left, term.left_dtype);
  if (term.right_dtype != LYC_DTYPE_NONE) right.load(at.right, term.right_dtype, term.right_column);
  if (term.left_dtype != LYC_DTYPE_NONE) weight *= to_float(left, term.left_dtype);
  float factor[K::kVector];
#pragma unroll
  for (int i = 0; i < K::kVector; ++i) factor[i] = 1.0f;
  if (term.right_dtype != LYC_DTYPE_NONE) right.widen(factor);
  if (term.times_base) {
    float base[K::kVector];
    widen<K>(packed, base_dtype, base);
#pragma unroll
    for (int i = 0; i < K::kVector; ++i) factor[i] *= base[i];
  }
#pragma unroll
  for (int i = 0; i < K::kVector; ++i) sum[i] = fmaf(weight, factor[i], sum[i]);
}

/// Some rows, `step` apart.
struct Lines {
  int first, step, count;

  __device__ int row(int index) const { return first + index * step; }
};

template <typename K>
__device__ void load_lines(Packed (&packed)[kBatch], const ElementwiseTarget &target, const Lines &lines, int x) {
#pragma unroll
  for (int j = 0; j < kBatch; ++j)
    if (j < lines.count) packed[j] = load_packed<K>(target, lines.row(j), x);
}

/// A term on lines that meet one row of its right half.
template <typename K>
struct TermOfLines {
  float left[kBatch], right[K::kVector];

  __device__ TermOfLines(const ElementwiseTerm &term, const char *workspace, const Lines &lines, int x) {
    const HalfPlaces at(term, workspace, lines.first, x);
    Right<K> words;
    if (term.right_dtype != LYC_DTYPE_NONE) words.load(at.right, term.right_dtype, term.right_column);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) left[j] = 1.0f;
    if (term.left_dtype != LYC_DTYPE_NONE) {
      const int step = divide(lines.step, term.right_rows) * term.left_row / size_of(term.left_dtype);
      load_floats(at.left, term.left_dtype, left, [&](int j) { return std::int64_t{min(j, lines.count - 1)} * step; });
    }
#pragma unroll
    for (int i = 0; i < K::kVector; ++i) right[i] = 1.0f;
    if (term.right_dtype != LYC_DTYPE_NONE) words.widen(right);
  }
};

// -- merging ----------------------------------------------------------------------------------------------------------

/// The weight is under way while the term is computed; without a multiplier it stays bit for bit.
template <typename K>
__device__ void merge_together(const ElementwiseRun &run, const ElementwiseTarget &target, const ElementwiseTerm &term,
                               const Lines &lines, int x) {
  const float weight = weight_of(run, term);  // before there is anything else to wait for
  const bool merges = run.op != ops::WeightOp::kDiff, times_base = term.times_base != 0;
  Packed packed[kBatch] = {};
  if (merges || times_base) load_lines<K>(packed, target, lines, x);
  if (weight != 0.0f) {
    const TermOfLines<K> of_lines(term, run.workspace, lines, x);
    with_type<K::kWide>(target.out_dtype, [&](auto type) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const float factor = weight * of_lines.left[j];
#pragma unroll
        for (int i = 0; i < K::kVector; i += 2) {
          const float2 base = type.get(packed[j].word, i / 2);
          float2 change = make_float2(factor * of_lines.right[i], factor * of_lines.right[i + 1]);
          if (times_base) change = make_float2(change.x * base.x, change.y * base.y);
          type.put(packed[j].word, i / 2,
                   merges ? make_float2(base.x + change.x, base.y + change.y) : make_float2(change.x, change.y));
        }
      }
    });
  } else if (!merges) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) packed[j] = {};
  }
#pragma unroll
  for (int j = 0; j < kBatch; ++j)
    if (j < lines.count) store_packed<K>(packed[j], target, lines.row(j), x);
}

/// Any terms on a vector of row y.
template <typename K>
__device__ void merge_line(const ElementwiseRun &run, const ElementwiseTarget &target, const ElementwiseTerm *terms,
                           int y, int x) {
  const bool merges = run.op != ops::WeightOp::kDiff;
  Packed packed = {};
  if (merges || target.reads_base) packed = load_packed<K>(target, y, x);
  float sum[K::kVector] = {};
  bool changed = false;
  for (int t = 0; t < target.term_count; ++t) {
    const float weight = weight_of(run, terms[t]);
    if (weight == 0.0f) continue;
    changed = true;
    add_term<K>(sum, terms[t], weight, packed, target.base_dtype, run.workspace, y, x);
  }
  if (changed || !merges || target.base_dtype != target.out_dtype) {
    if (merges) {
      float base[K::kVector];
      widen<K>(packed, target.base_dtype, base);
#pragma unroll
      for (int i = 0; i < K::kVector; ++i) sum[i] += base[i];
    }
    packed = round_to<K>(sum, target.out_dtype);
  }
  store_packed<K>(packed, target, y, x);
}

/// What a block does with a target: a few lines of one vector for each thread.
template <typename K>
__device__ void merge_target(const ElementwiseRun &run, const ElementwiseTarget &target, const ElementwiseTerm *terms,
                             std::uint32_t block) {
  const int number = static_cast<int>(block * K::kThreads + threadIdx.x);
  if (number >= target.threads) return;
  const int line = divide(number, target.row_vectors), set = divide(line, target.step);
  const int x = (number - line * static_cast<int>(target.row_vectors.value)) * K::kVector;
  const int step = static_cast<int>(target.step.value), first = line + set * (kBatch - 1) * step;
  const Lines lines{first, step, min(kBatch, divide(target.rows - first + step - 1, target.step))};
  if (target.together) return merge_together<K>(run, target, *terms, lines, x);
  for (int j = 0; j < lines.count; ++j) merge_line<K>(run, target, terms, lines.row(j), x);
}

/// One term on one target.
__host__ __device__ inline bool travels_alone(const ElementwiseRun &run) {
  return run.tiles.count == 1 && run.only.term_count == 1;
}

template <typename K>
__device__ void merge_targets(const ElementwiseRun &run) {
  if (travels_alone(run))  // all that it takes came with the launch
    return merge_target<K>(run, run.only, &run.only_term, blockIdx.x);
  const int index = find_entry(run.tiles.first, run.tiles.count, blockIdx.x);
  const ElementwiseTarget target = run.targets[index];
  const std::uint32_t first = (blockIdx.x - run.tiles.first[index]) * kElementwisePieces;
  for (std::uint32_t piece = 0; piece < kElementwisePieces; ++piece)
    merge_target<K>(run, target, run.terms + target.first_term, first + piece);
}

// -- DoRA -------------------------------------------------------------------------------------------------------------

/// Copy into shared memory; what a thread has copied is there for it after wait_for_own_copies().
__device__ inline void copy_own(void *to, const char *from, bool all_16_bytes) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  if (all_16_bytes)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(address), "l"(from) : "memory");
}
__device__ inline void wait_for_own_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// A pointer that is not to be computed again in every round of a loop.
__device__ inline const char *once(const char *pointer) {
  asm("" : "+l"(pointer));
  return pointer;
}

/// Neighbours of a type as they are in memory.
template <int kCount>
struct Words {
  std::uint32_t word[kCount];
};

template <typename Type, int kCount>
__device__ Words<kCount> load_vector(const char *row, int x) {
  constexpr int kBytes = kCount * (std::is_same_v<Type, F32> ? 4 : 2);
  const char *from = row + std::int64_t{x} * (kBytes / kCount);
  Words<kCount> words;
  if constexpr (kBytes == 8) {
    const uint2 v = __ldg(reinterpret_cast<const uint2 *>(from));
    words.word[0] = v.x, words.word[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const uint4 v = __ldg(reinterpret_cast<const uint4 *>(from) + i);
      words.word[4 * i] = v.x, words.word[4 * i + 1] = v.y, words.word[4 * i + 2] = v.z, words.word[4 * i + 3] = v.w;
    }
  }
  return words;
}

/// A block's shared memory: what each thread has of rows that wait for their norms, and sums of squares.
struct Waiting {
  uint4 vectors[kElementwiseHeld][kDoraThreads];
  float squares[kElementwiseHeld][kElementwiseDoraWarps];
};

/// Warps that take some whole rows, one after another.
template <typename K>
class Team {
 public:
  __device__ Team(const ElementwiseRun &run, const ElementwiseTarget &target, const ElementwiseTerm *terms, int block,
                  Waiting &waiting)
      : run_(run), target_(target), terms_(terms), waiting_(waiting) {
    const int thread = static_cast<int>(threadIdx.x), team = thread / 32 / target.team_warps;
    first_ = (block * (kElementwiseDoraWarps / target.team_warps) + team) * target.team_rows;
    count_ = min(target.team_rows, target.rows - first_);
    threads_ = target.team_warps * 32;
    member_ = thread - team * threads_;
    first_warp_ = team * target.team_warps;
    vectors_ = static_cast<int>(target.row_vectors.value);
    of_thread_ = (vectors_ + threads_ - 1) / threads_;
  }

  __device__ void merge() const {
    const float m = multiplier_at(run_.multipliers, terms_->multiplier_index);
    if (m == 0.0f) return keep();
    fetch();
    const int lane = static_cast<int>(threadIdx.x % 32), own = max(min(lane, count_ - 1), 0);
    const float magnitude = count_ > 0 ? element(target_.dora.magnitude, first_ + own) : 0.0f;
    const float v = static_cast<float>(dora_coefficients(target_.dora.rule, m).v);
    wait_for_own_copies();
    for (int row = 0; row < count_; ++row) {
      const float sum = sum_of_warp(squares(row, v));
      if (lane == 0) waiting_.squares[row][threadIdx.x / 32] = sum;
    }
    __syncthreads();
    double sum = 0.0;  // of the row whose number is the lane's
    for (int warp = 0; warp < target_.team_warps; ++warp)
      sum += static_cast<double>(waiting_.squares[own][first_warp_ + warp]);
    const DoraFactors factors = dora_factors_for(target_.dora, m, magnitude, sum);
    for (int row = 0; row < count_; ++row)
      merge_row(row, {__shfl_sync(~0u, factors.x, row), __shfl_sync(~0u, factors.y, row),
                      __shfl_sync(~0u, factors.v, row), __shfl_sync(~0u, factors.w, row)});
  }

 private:
  /// visit(slot, x): where a vector of the thread waits, and its first column.
  template <typename Visit>
  __device__ void for_vectors(int row, Visit visit) const {
    int slot = row * of_thread_;
    for (int vector = member_; vector < vectors_; vector += threads_, ++slot) visit(slot, vector * K::kVector);
  }

  __device__ void fetch() const {
    for (int row = 0; row < count_; ++row)
      for_vectors(row, [&](int slot, int x) {
        if (slot < kElementwiseHeld)
          copy_own(&waiting_.vectors[slot][threadIdx.x],
                   address_at(target_.base, target_.base_dtype, target_.base_row, first_ + row, x),
                   takes_16_bytes<K>(target_.base_dtype));
      });
  }

  __device__ Packed fetched(int slot, int y, int x) const {
    if (slot >= kElementwiseHeld) return load_packed<K>(target_, y, x);
    const uint4 v = waiting_.vectors[slot][threadIdx.x];
    return {{v.x, v.y, v.z, v.w}};
  }

  /// visit(x, base, delta, scale): the weight and what, times `scale`, is the delta without a multiplier.
  template <typename Visit>
  __device__ void visit_row(int row, Visit visit) const {
    if (target_.together)
      with_type<K::kWide>(target_.base_dtype, [&](auto base_type) {
        with_type<true>(terms_->right_dtype,
                        [&](auto right_type) { visit_kronecker(base_type, right_type, row, visit); });
      });
    else
      visit_any(row, visit);
  }

  /// One Kronecker product of two halves, the right one's rows contiguous, where all of the rows waits.
  template <typename BaseType, typename RightType, typename Visit>
  __device__ void visit_kronecker(BaseType, RightType, int row, Visit visit) const {
    const ElementwiseTerm &term = *terms_;
    const HalfPlaces at(term, run_.workspace, first_ + row, 0);
    const char *const left = once(at.left), *const right = once(at.right);
    const float weight = bare_weight(term);
    const uint4 *waiting = &waiting_.vectors[row * of_thread_][threadIdx.x];
    for (int vector = member_; vector < vectors_; vector += threads_, waiting += kDoraThreads) {
      const int x = vector * K::kVector, left_x = divide(x, term.right_columns);
      const int right_x = x - left_x * static_cast<int>(term.right_columns.value);
      const std::uint32_t of_left = load_bits(left + left_x * term.left_column, term.left_dtype);
      const auto of_right = load_vector<RightType, K::kVector>(right, right_x);
      const uint4 v = *waiting;
      const std::uint32_t of_base[] = {v.x, v.y, v.z, v.w};
      float base[K::kVector], delta[K::kVector];
#pragma unroll
      for (int i = 0; i < K::kVector; i += 2) {
        const float2 d = RightType::get(of_right.word, i / 2), b = BaseType::get(of_base, i / 2);
        delta[i] = d.x, delta[i + 1] = d.y;
        base[i] = b.x, base[i + 1] = b.y;
      }
      visit(x, base, delta, weight * to_float(of_left, term.left_dtype));
    }
  }

  template <typename Visit>
  __device__ void visit_any(int row, Visit visit) const {
    const int y = first_ + row;
    for_vectors(row, [&](int slot, int x) {
      const Packed packed = fetched(slot, y, x);
      float base[K::kVector], delta[K::kVector] = {};
      for (int t = 0; t < target_.term_count; ++t)
        add_term<K>(delta, terms_[t], bare_weight(terms_[t]), packed, target_.base_dtype, run_.workspace, y, x);
      widen<K>(packed, target_.base_dtype, base);
      visit(x, base, delta, 1.0f);
    });
  }

  __device__ float bare_weight(const ElementwiseTerm &term) const { return term.coefficient * element(term.scalar, 0); }

  __device__ float squares(int row, float v) const {
    float squares = 0.0f;
    visit_row(row, [&](int, const float(&base)[K::kVector], const float(&delta)[K::kVector], float scale) {
#pragma unroll
      for (int i = 0; i < K::kVector; ++i) {
        const float value = fmaf(v * scale, delta[i], base[i]);
        squares = fmaf(value, value, squares);
      }
    });
    return squares;
  }

  __device__ void merge_row(int row, const DoraFactors &factors) const {
    const float of_base = factors.y + (run_.op == ops::WeightOp::kDiff ? 0.0f : 1.0f);
    const bool cancels = factors.w != 0.0f;
    visit_row(row, [&](int x, const float(&base)[K::kVector], float(&delta)[K::kVector], float scale) {
      const float of_delta = cancels ? factors.v * scale : factors.x * factors.v * scale;
#pragma unroll
      for (int i = 0; i < K::kVector; ++i) {
        const float rest = of_base * base[i];
        delta[i] = cancels ? fmaf(factors.x, fmaf(of_delta, delta[i], base[i]), rest) : fmaf(of_delta, delta[i], rest);
      }
      store_packed<K>(round_to<K>(delta, target_.out_dtype), target_, first_ + row, x);
    });
  }

  /// What the adapter does not change: bit for bit, in another type, or nothing, of a difference.
  __device__ void keep() const {
    const bool clears = run_.op == ops::WeightOp::kDiff, same = target_.base_dtype == target_.out_dtype;
    if (!clears && same && target_.base == target_.out) return;
    for (int row = 0; row < count_; ++row)
      for_vectors(row, [&](int, int x) {
        Packed packed = {};
        if (!clears) packed = load_packed<K>(target_, first_ + row, x);
        if (!clears && !same) {
          float base[K::kVector];
          widen<K>(packed, target_.base_dtype, base);
          packed = round_to<K>(base, target_.out_dtype);
        }
        store_packed<K>(packed, target_, first_ + row, x);
      });
  }

  const ElementwiseRun &run_;
  const ElementwiseTarget &target_;
  const ElementwiseTerm *const terms_;
  Waiting &waiting_;
  int first_, count_;        // rows
  int member_, threads_;     // this thread, of so many
  int first_warp_;           // of the block's
  int vectors_, of_thread_;  // of a row; of it, a thread's at most
};

/// A few whole rows for each block.
template <typename K>
__device__ void merge_rows(const ElementwiseRun &run) {
  __shared__ Waiting waiting;
  if (travels_alone(run)) return Team<K>(run, run.only, &run.only_term, static_cast<int>(blockIdx.x), waiting).merge();
  const int index = find_entry(run.tiles.first, run.tiles.count, blockIdx.x);
  const ElementwiseTarget &target = run.targets[index];
  const int block = static_cast<int>(blockIdx.x - run.tiles.first[index]);
  Team<K>(run, target, run.terms + target.first_term, block, waiting).merge();
}

template <typename K>
__global__ void __launch_bounds__(K::kThreads, K::kBlocks)
    elementwise_kernel(const __grid_constant__ ElementwiseRun run) {
  begin_kernel();
  if constexpr (K::kDora)
    merge_rows<K>(run);
  else
    merge_targets<K>(run);
}

using Kernel = void (*)(ElementwiseRun);

template <int... kIndex>
const void *kernel_at(int index, std::integer_sequence<int, kIndex...>) {
  constexpr Kernel kKernels[] = {elementwise_kernel<Kind<kIndex>>...};
  return reinterpret_cast<const void *>(kKernels[index]);
}

}  // namespace

cudaError_t launch_elementwise(ElementwiseKind kind, const ElementwiseRun &run, const Launch &on) {
  unsigned blocks = run.tiles.pieces;
  if (!kind.dora && travels_alone(run))
    blocks = (static_cast<unsigned>(run.only.threads) + kElementwiseThreads - 1) / kElementwiseThreads;
  void *arguments[] = {const_cast<ElementwiseRun *>(&run)};
  const void *kernel = kernel_at(index_of(kind), std::make_integer_sequence<int, kElementwiseKinds>());
  return launch_kernel(kernel, blocks, kind.dora ? kDoraThreads : kElementwiseThreads, 0, on, arguments);
}

}  // namespace lyc::cuda
