// The kernels, compiled by Highway for every instruction set: this file includes itself once for each.
// Traffic: a merge reads and writes every weight once; packed factors stay in the caches; sums stay in registers.
// Numerics: float32 throughout, fused multiply-add where the processor has it, one rounding in store() and merge().

// Only headers of Highway are used: no dispatch of its own, no assertions, hence nothing to link.
#define HWY_IS_DEBUG_BUILD 0
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#define HWY_TARGET_INCLUDE "cpu/kernels.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <algorithm>
#include <cstring>
#include <hwy/highway.h>

#include "base/dtype.hpp"
#include "cpu/kernels.hpp"
#include "cpu/processor.hpp"

HWY_BEFORE_NAMESPACE();
namespace lyc::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr hn::ScalableTag<float> kFloats;
using Floats = decltype(hn::Zero(kFloats));
constexpr std::int64_t kLanes = static_cast<std::int64_t>(hn::MaxLanes(kFloats));

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr std::int64_t kVectors = 4;  // columns of the register tile: 32 registers
#else
constexpr std::int64_t kVectors = 2;
#endif
static_assert(kPanel % (kVectors * kLanes) == 0);

// -- Elements --------------------------------------------------------------------------------------------------

struct Bf16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};

HWY_INLINE Floats load_vector(const float *p) { return hn::LoadU(kFloats, p); }
HWY_INLINE void store_vector(Floats v, float *p) { hn::StoreU(v, kFloats, p); }

HWY_INLINE Floats load_vector(const Bf16 *p) {
  const hn::Rebind<std::uint32_t, decltype(kFloats)> words;
  const hn::Rebind<std::uint16_t, decltype(kFloats)> halves;
  const auto half = hn::LoadU(halves, reinterpret_cast<const std::uint16_t *>(p));
  return hn::BitCast(kFloats, hn::ShiftLeft<16>(hn::PromoteTo(words, half)));
}

// Round to nearest, ties to even, by integers: Highway's own conversion may truncate, the processor's drops denormals.
HWY_INLINE void store_vector(Floats v, Bf16 *p) {
  const hn::Rebind<std::uint32_t, decltype(kFloats)> words;
  const hn::Rebind<std::int32_t, decltype(kFloats)> ints;
  const hn::Rebind<std::uint16_t, decltype(kFloats)> halves;
  const auto bits = hn::BitCast(words, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(words, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(words, 0x7fffu))));
  const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(words, 0x40u));
  const auto chosen = hn::IfThenElse(hn::RebindMask(words, hn::IsNaN(v)), quiet, rounded);
  hn::StoreU(hn::DemoteTo(halves, hn::BitCast(ints, chosen)), halves, reinterpret_cast<std::uint16_t *>(p));
}

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON  // conversions in hardware
HWY_INLINE Floats load_vector(const F16 *p) {
  const hn::Rebind<hwy::float16_t, decltype(kFloats)> halves;
  return hn::PromoteTo(kFloats, hn::LoadU(halves, reinterpret_cast<const hwy::float16_t *>(p)));
}
HWY_INLINE void store_vector(Floats v, F16 *p) {
  const hn::Rebind<hwy::float16_t, decltype(kFloats)> halves;
  hn::StoreU(hn::DemoteTo(halves, v), halves, reinterpret_cast<hwy::float16_t *>(p));
}
#else
HWY_INLINE Floats load_vector(const F16 *p) {
  float values[kLanes];
  for (std::int64_t i = 0; i < kLanes; ++i) values[i] = f16_to_float(p[i].bits);
  return hn::LoadU(kFloats, values);
}
HWY_INLINE void store_vector(Floats v, F16 *p) {
  float values[kLanes];
  hn::StoreU(v, kFloats, values);
  for (std::int64_t i = 0; i < kLanes; ++i) p[i].bits = float_to_f16(values[i]);
}
#endif

// The ragged end of a row, through a buffer: the same arithmetic as the rest of it, and no byte beyond it.
template <typename T>
HWY_INLINE Floats load_part(const T *p, std::int64_t n) {
  T buffer[kLanes] = {};
  std::memcpy(buffer, p, static_cast<std::size_t>(n) * sizeof(T));
  return load_vector(buffer);
}
template <typename T>
HWY_INLINE void store_part(Floats v, std::int64_t n, T *p) {
  T buffer[kLanes];
  store_vector(v, buffer);
  std::memcpy(p, buffer, static_cast<std::size_t>(n) * sizeof(T));
}

// -- Rows of the weight ----------------------------------------------------------------------------------------

template <typename T>
void load_row(const T *row, std::int64_t n, float *values) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_vector(load_vector(row + i), values + i);
  if (i < n) store_part(load_part(row + i, n - i), n - i, values + i);
}

template <typename T>
void store_row(const float *values, std::int64_t n, T *row) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_vector(load_vector(values + i), row + i);
  if (i < n) store_part(load_part(values + i, n - i), n - i, row + i);
}

template <typename B, typename T>
void merge_row(const B *base, const float *delta, std::int64_t n, T *out) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_vector(hn::Add(load_vector(base + i), load_vector(delta + i)), out + i);
  if (i < n) store_part(hn::Add(load_part(base + i, n - i), load_part(delta + i, n - i)), n - i, out + i);
}

void load(lyc_dtype dtype, const void *row, std::int64_t n, float *values) {
  switch (dtype) {
    case LYC_DTYPE_BF16:
      return load_row(static_cast<const Bf16 *>(row), n, values);
    case LYC_DTYPE_F16:
      return load_row(static_cast<const F16 *>(row), n, values);
    default:
      return load_row(static_cast<const float *>(row), n, values);
  }
}

void store(const float *values, std::int64_t n, lyc_dtype dtype, void *row) {
  switch (dtype) {
    case LYC_DTYPE_BF16:
      return store_row(values, n, static_cast<Bf16 *>(row));
    case LYC_DTYPE_F16:
      return store_row(values, n, static_cast<F16 *>(row));
    default:
      return store_row(values, n, static_cast<float *>(row));
  }
}

template <typename B>
void merge_into(const B *base, const float *delta, std::int64_t n, lyc_dtype dtype, void *out) {
  switch (dtype) {
    case LYC_DTYPE_BF16:
      return merge_row(base, delta, n, static_cast<Bf16 *>(out));
    case LYC_DTYPE_F16:
      return merge_row(base, delta, n, static_cast<F16 *>(out));
    default:
      return merge_row(base, delta, n, static_cast<float *>(out));
  }
}

void merge(lyc_dtype base_dtype, const void *base, const float *delta, std::int64_t n, lyc_dtype dtype, void *out) {
  switch (base_dtype) {
    case LYC_DTYPE_BF16:
      return merge_into(static_cast<const Bf16 *>(base), delta, n, dtype, out);
    case LYC_DTYPE_F16:
      return merge_into(static_cast<const F16 *>(base), delta, n, dtype, out);
    default:
      return merge_into(static_cast<const float *>(base), delta, n, dtype, out);
  }
}

// -- Products --------------------------------------------------------------------------------------------------

template <bool kFirst, bool kTimes>
HWY_INLINE void put(Floats v, float *to, const float *times) {
  if (kTimes) v = hn::Mul(v, load_vector(times));
  if (!kFirst) v = hn::Add(v, load_vector(to));
  store_vector(v, to);
}

template <bool kFirst, bool kTimes>
void product_tile(const float *HWY_RESTRICT left, const float *HWY_RESTRICT right, std::int64_t rank,
                  std::int64_t panels, const Tile &tile) {
  for (std::int64_t column = 0; column < panels * kPanel; column += kVectors * kLanes) {
    const float *r = right + column / kPanel * (rank * kPanel) + column % kPanel;
    const float *l = left;
    Floats sum[kTileRows][kVectors];
    HWY_UNROLL(6)
    for (std::int64_t i = 0; i < kTileRows; ++i) HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kVectors; ++v) sum[i][v] = hn::Zero(kFloats);

    for (std::int64_t k = 0; k < rank; ++k, l += kTileRows, r += kPanel) {
      Floats row[kVectors];
      HWY_UNROLL(4)
      for (std::int64_t v = 0; v < kVectors; ++v) row[v] = hn::LoadU(kFloats, r + v * kLanes);
      HWY_UNROLL(6)
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        const Floats factor = hn::Set(kFloats, l[i]);
        HWY_UNROLL(4)
        for (std::int64_t v = 0; v < kVectors; ++v) sum[i][v] = hn::MulAdd(factor, row[v], sum[i][v]);
      }
    }

    HWY_UNROLL(6)
    for (std::int64_t i = 0; i < kTileRows; ++i) HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kVectors; ++v) {
      const std::int64_t at = i * tile.stride + column + v * kLanes;
      put<kFirst, kTimes>(sum[i][v], tile.data + at, kTimes ? tile.times + at : nullptr);
    }
  }
}

void product(const float *left, const float *right, std::int64_t rank, std::int64_t panels, const Tile &tile) {
  if (tile.times)
    return tile.first ? product_tile<true, true>(left, right, rank, panels, tile)
                      : product_tile<false, true>(left, right, rank, panels, tile);
  return tile.first ? product_tile<true, false>(left, right, rank, panels, tile)
                    : product_tile<false, false>(left, right, rank, panels, tile);
}

template <bool kFirst, bool kTimes>
HWY_INLINE void scaled_row(const float *values, float factor, std::int64_t n, float *to, const float *times) {
  const Floats factors = hn::Set(kFloats, factor);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    put<kFirst, kTimes>(hn::Mul(factors, load_vector(values + i)), to + i, kTimes ? times + i : nullptr);
  if (i == n) return;
  Floats v = hn::Mul(factors, load_part(values + i, n - i));
  if (kTimes) v = hn::Mul(v, load_part(times + i, n - i));
  if (!kFirst) v = hn::Add(v, load_part(to + i, n - i));
  store_part(v, n - i, to + i);
}

void scaled(const float *values, float factor, std::int64_t n, const Tile &row) {
  if (row.times)
    return row.first ? scaled_row<true, true>(values, factor, n, row.data, row.times)
                     : scaled_row<false, true>(values, factor, n, row.data, row.times);
  return row.first ? scaled_row<true, false>(values, factor, n, row.data, nullptr)
                   : scaled_row<false, false>(values, factor, n, row.data, nullptr);
}

template <bool kFirst>
void kronecker_row(const float *p, const float *q, const Split &split, std::int64_t begin, std::int64_t n, float *to) {
  for (std::int64_t column = 0; column < n;) {
    const std::int64_t at = begin + column, left = split.segment - (at + split.begin) % split.segment;
    const std::int64_t run = std::min(left, n - column);
    scaled_row<kFirst, false>(q + split.q(at), p[split.p(at)], run, to + column, nullptr);
    column += run;
  }
}

void kronecker(const float *p, const float *q, const Split &split, std::int64_t begin, std::int64_t n,
               const Tile &row) {
  row.first ? kronecker_row<true>(p, q, split, begin, n, row.data)
            : kronecker_row<false>(p, q, split, begin, n, row.data);
}

// -- DoRA ------------------------------------------------------------------------------------------------------

// float32 over short runs, double beyond: rows may have a hundred thousand elements.
double norm(const float *w, const float *d, std::int64_t n) {
  constexpr std::int64_t kRun = 32 * kLanes;
  double total = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kRun) {
    const std::int64_t end = std::min(begin + kRun, n);
    Floats sum = hn::Zero(kFloats);
    std::int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Floats v = hn::Add(load_vector(w + i), load_vector(d + i));
      sum = hn::MulAdd(v, v, sum);
    }
    if (i < end) {
      const Floats v = hn::Add(load_part(w + i, end - i), load_part(d + i, end - i));
      sum = hn::MulAdd(v, v, sum);
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(kFloats, sum)));
  }
  return total;
}

void norms(const float *w, const float *d, std::int64_t n, float *sums) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Floats v = hn::Add(load_vector(w + i), load_vector(d + i));
    store_vector(hn::MulAdd(v, v, load_vector(sums + i)), sums + i);
  }
  if (i == n) return;
  const Floats v = hn::Add(load_part(w + i, n - i), load_part(d + i, n - i));
  store_part(hn::MulAdd(v, v, load_part(sums + i, n - i)), n - i, sums + i);
}

// kVary: one factor per column, otherwise the same for all.
template <bool kFirst, bool kVary>
void change_row(const float *w, const float *d, std::int64_t n, const float *weight, const float *delta, float *to) {
  const Floats same_weight = hn::Set(kFloats, *weight), same_delta = hn::Set(kFloats, *delta);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Floats fw = kVary ? load_vector(weight + i) : same_weight, fd = kVary ? load_vector(delta + i) : same_delta;
    put<kFirst, false>(hn::MulAdd(fw, load_vector(w + i), hn::Mul(fd, load_vector(d + i))), to + i, nullptr);
  }
  if (i == n) return;
  const Floats fw = kVary ? load_part(weight + i, n - i) : same_weight;
  const Floats fd = kVary ? load_part(delta + i, n - i) : same_delta;
  Floats v = hn::MulAdd(fw, load_part(w + i, n - i), hn::Mul(fd, load_part(d + i, n - i)));
  if (!kFirst) v = hn::Add(v, load_part(to + i, n - i));
  store_part(v, n - i, to + i);
}

void change(const float *w, const float *d, std::int64_t n, float weight, float delta, const Tile &row) {
  row.first ? change_row<true, false>(w, d, n, &weight, &delta, row.data)
            : change_row<false, false>(w, d, n, &weight, &delta, row.data);
}

void changes(const float *w, const float *d, std::int64_t n, const float *weight, const float *delta, const Tile &row) {
  row.first ? change_row<true, true>(w, d, n, weight, delta, row.data)
            : change_row<false, true>(w, d, n, weight, delta, row.data);
}

constexpr const char *target_name() {
  return HWY_TARGET == HWY_AVX3   ? "AVX-512"
         : HWY_TARGET == HWY_AVX2 ? "AVX2"
         : HWY_TARGET == HWY_SSE4 ? "SSE4"
         : HWY_TARGET == HWY_NEON ? "NEON"
                                  : "baseline";
}

}  // namespace

extern const Kernels kKernels;
constexpr Kernels kKernels = {target_name(), load, store, merge,  product, scaled,
                              kronecker,     norm, norms, change, changes};

}  // namespace lyc::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lyc::cpu {
namespace {

struct Candidate {
  std::uint32_t needs;
  const Kernels *kernels;
};

constexpr Candidate kCandidates[] = {
#if HWY_TARGETS & HWY_AVX3
    {kAvx512, &N_AVX3::kKernels},
#endif
#if HWY_TARGETS & HWY_AVX2
    {kAvx2, &N_AVX2::kKernels},
#endif
#if HWY_TARGETS & HWY_SSE4
    {kSse4, &N_SSE4::kKernels},
#endif
#if HWY_TARGETS & HWY_NEON
    {kNeon, &N_NEON::kKernels},
#endif
#if HWY_TARGETS & HWY_EMU128
    {kBaseline, &N_EMU128::kKernels},
#endif
#if HWY_TARGETS & HWY_SCALAR
    {kBaseline, &N_SCALAR::kKernels},
#endif
};

}  // namespace

std::vector<const Kernels *> supported_kernels() {
  const std::uint32_t sets = instruction_sets();
  std::vector<const Kernels *> supported;
  for (const Candidate &candidate : kCandidates)
    if (sets & candidate.needs) supported.push_back(candidate.kernels);
  return supported;
}

}  // namespace lyc::cpu
#endif  // HWY_ONCE
