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
#include <hwy/cache_control.h>
#include <hwy/highway.h>
#include <numeric>
#include <utility>

#include "base/dtype.hpp"
#include "cpu/amx.hpp"
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

template <bool kAtOnce>  // rounded by AVX512-BF16
struct Bf16As {
  std::uint16_t bits;
};
using Bf16 = Bf16As<false>;
struct F16 {
  std::uint16_t bits;
};

HWY_INLINE Floats load_vector(const float *p) { return hn::LoadU(kFloats, p); }
HWY_INLINE void store_vector(Floats v, float *p) { hn::StoreU(v, kFloats, p); }

#if HWY_TARGET == HWY_AVX3
// One permutation, the work of one port, where widening and shifting take two. Lane i of a vector of half its size that
// zeros follow goes to the upper half of word i.
using Halves = hn::VFromD<hn::Repartition<std::uint16_t, decltype(kFloats)>>;
HWY_INLINE Halves permuted(Halves v, const std::uint16_t *indices) {
  return Halves{_mm512_permutexvar_epi16(_mm512_load_si512(indices), v.raw)};
}
template <bool kAtOnce>
HWY_INLINE Floats load_vector(const Bf16As<kAtOnce> *p) {
  alignas(64) static constexpr std::uint16_t kUpper[2 * kLanes] = {31, 0,  31, 1,  31, 2,  31, 3,  31, 4,  31,
                                                                   5,  31, 6,  31, 7,  31, 8,  31, 9,  31, 10,
                                                                   31, 11, 31, 12, 31, 13, 31, 14, 31, 15};
  const hn::Repartition<std::uint16_t, decltype(kFloats)> halves;
  const hn::Half<decltype(halves)> half;
  const auto lower = hn::LoadU(half, reinterpret_cast<const std::uint16_t *>(p));
  return hn::BitCast(kFloats, permuted(hn::ZeroExtendVector(halves, lower), kUpper));
}

// Round to nearest, ties to even, by integers: the processor's own conversion drops denormals.
// In 16-bit lanes where a's and b's alternate until the end: the upper halves, and one more where the lower half is
// above the middle or, with an odd upper one, in the middle. What arithmetic yields has the highest bit of a NaN's
// lower half in its upper one, so a NaN is lost only by a carry out of all its bits, which saturation stops for either
// sign.
HWY_INLINE Halves rounded_pair(Floats a, Floats b, const Bf16 *) {
  alignas(64) static constexpr std::uint16_t kApart[2 * kLanes] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                                   22, 24, 26, 28, 30, 1,  3,  5,  7,  9,  11,
                                                                   13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  const hn::Repartition<std::uint16_t, decltype(kFloats)> halves;
  const hn::Repartition<std::int16_t, decltype(kFloats)> numbers;
  const hn::Repartition<std::uint32_t, decltype(kFloats)> words;
  const auto first = hn::BitCast(words, a), second = hn::BitCast(words, b);
  const Halves upper = hn::OddEven(hn::BitCast(halves, second), hn::BitCast(halves, hn::ShiftRight<16>(first)));
  const Halves lower = hn::OddEven(hn::BitCast(halves, hn::ShiftLeft<16>(second)), hn::BitCast(halves, first));
  const Halves one = hn::Set(halves, 1);
  const auto up = hn::Gt(hn::OrAnd(lower, upper, one), hn::Set(halves, 0x8000));
  const Halves rounded = hn::IfThenElse(up, hn::SaturatedAdd(upper, one), upper);
  return permuted(hn::BitCast(halves, hn::Max(hn::BitCast(numbers, rounded), hn::BitCast(numbers, upper))), kApart);
}

// The same number, rounded by AVX512-BF16. That makes zeros of denormals: lanes with a zero are rounded by integers, no
// others, so that what becomes of one does not depend on its neighbours. An instruction by name: the compiler is not
// asked for more than it has been for the rest of this file.
using FastBf16 = Bf16As<true>;
HWY_INLINE Halves rounded_pair(Floats a, Floats b, const FastBf16 *) {
  Halves rounded;
  __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(rounded.raw) : "v"(a.raw), "v"(b.raw));
  const __mmask32 zeros = _mm512_testn_epi16_mask(rounded.raw, _mm512_set1_epi16(0x7fff));
  if (HWY_LIKELY(zeros == 0)) return rounded;
  return Halves{_mm512_mask_mov_epi16(rounded.raw, zeros, rounded_pair(a, b, static_cast<const Bf16 *>(nullptr)).raw)};
}

template <bool kAtOnce>
HWY_INLINE void store_vector(Floats v, Bf16As<kAtOnce> *p) {
  const hn::Half<hn::Repartition<std::uint16_t, decltype(kFloats)>> half;
  hn::StoreU(hn::LowerHalf(half, rounded_pair(v, v, p)), half, reinterpret_cast<std::uint16_t *>(p));
}
#else
HWY_INLINE Floats load_vector(const Bf16 *p) {
  const hn::Rebind<std::uint32_t, decltype(kFloats)> words;
  const hn::Rebind<std::uint16_t, decltype(kFloats)> halves;
  const auto half = hn::LoadU(halves, reinterpret_cast<const std::uint16_t *>(p));
  return hn::BitCast(kFloats, hn::ShiftLeft<16>(hn::PromoteTo(words, half)));
}

// The upper half of each word is the bf16. Round to nearest, ties to even, by integers: Highway's own conversion may
// truncate, the processor's drops denormals.
using Words = hn::VFromD<hn::Rebind<std::uint32_t, decltype(kFloats)>>;
HWY_INLINE Words rounded_number(Floats v) {
  const hn::Rebind<std::uint32_t, decltype(kFloats)> words;
  const auto bits = hn::BitCast(words, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(words, 1u));
  return hn::Add(bits, hn::Add(odd, hn::Set(words, 0x7fffu)));
}
HWY_INLINE Words keep_nan(Floats v, Words rounded) {
  const hn::Rebind<std::uint32_t, decltype(kFloats)> words;
  const auto quiet = hn::Or(hn::BitCast(words, v), hn::Set(words, 0x400000u));
  return hn::IfThenElse(hn::RebindMask(words, hn::IsNaN(v)), quiet, rounded);
}
HWY_INLINE Words rounded_words(Floats v) { return keep_nan(v, rounded_number(v)); }

HWY_INLINE void store_vector(Floats v, Bf16 *p) {
  const hn::Rebind<std::int32_t, decltype(kFloats)> ints;
  const hn::Rebind<std::uint16_t, decltype(kFloats)> halves;
  const auto upper = hn::BitCast(ints, hn::ShiftRight<16>(rounded_words(v)));
  hn::StoreU(hn::DemoteTo(halves, upper), halves, reinterpret_cast<std::uint16_t *>(p));
}
#endif

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

// Two vectors at once: for bf16, packing them is one instruction, and NaN costs little.
template <typename T>
HWY_INLINE void store_pair(Floats a, Floats b, T *p) {
  store_vector(a, p);
  store_vector(b, p + kLanes);
}
#if HWY_TARGET != HWY_AVX3 && HWY_TARGET != HWY_SCALAR
using Halves = hn::VFromD<hn::Repartition<std::uint16_t, decltype(kFloats)>>;
// In 16-bit lanes: the upper halves, and one more where the lower half is above the middle or, with an odd upper one,
// in the middle. One look finds out that there is no NaN.
HWY_INLINE Halves rounded_pair(Floats a, Floats b, const Bf16 *) {
  const hn::Repartition<std::uint16_t, decltype(kFloats)> halves;
  if (HWY_UNLIKELY(!hn::AllFalse(kFloats, hn::IsNaN(hn::Add(a, b)))))
    return hn::ConcatOdd(halves, hn::BitCast(halves, rounded_words(b)), hn::BitCast(halves, rounded_words(a)));
  const Halves low = hn::BitCast(halves, a), high = hn::BitCast(halves, b);
  const Halves upper = hn::ConcatOdd(halves, high, low), lower = hn::ConcatEven(halves, high, low);
  const Halves even = hn::AndNot(upper, hn::Set(halves, 1));
  return hn::Add(upper, hn::ShiftRight<15>(hn::SaturatedSub(lower, even)));
}
#endif
#if HWY_TARGET != HWY_SCALAR
template <bool kAtOnce>
HWY_INLINE void store_pair(Floats a, Floats b, Bf16As<kAtOnce> *p) {
  const hn::Repartition<std::uint16_t, decltype(kFloats)> halves;
  hn::StoreU(rounded_pair(a, b, p), halves, reinterpret_cast<std::uint16_t *>(p));
}
#endif

// A NaN as arithmetic yields it, where a type has no room for all of it.
template <typename T>
HWY_INLINE Floats quiet(Floats v, const T *) {
  return v;
}
HWY_INLINE Floats quiet(Floats v, const Bf16 *) {
  const hn::Rebind<std::uint32_t, decltype(kFloats)> words;
  return hn::IfThenElse(hn::IsNaN(v), hn::Or(v, hn::BitCast(kFloats, hn::Set(words, 0x400000u))), v);
}

// Two vectors past the caches; p is aligned to a cache line.
HWY_INLINE void stream_pair(Floats a, Floats b, float *p) {
  hn::Stream(a, kFloats, p);
  hn::Stream(b, kFloats, p + kLanes);
}
#if HWY_TARGET != HWY_SCALAR
template <bool kAtOnce>
HWY_INLINE void stream_pair(Floats a, Floats b, Bf16As<kAtOnce> *p) {
  const hn::Repartition<std::uint16_t, decltype(kFloats)> halves;
  hn::Stream(rounded_pair(a, b, p), halves, reinterpret_cast<std::uint16_t *>(p));
}
#else
HWY_INLINE void stream_pair(Floats a, Floats b, Bf16 *p) { store_pair(a, b, p); }
#endif
HWY_INLINE void stream_pair(Floats a, Floats b, F16 *p) { store_pair(a, b, p); }

template <bool kStream, typename T>
HWY_INLINE void write_pair(Floats a, Floats b, T *p) {
  kStream ? stream_pair(a, b, p) : store_pair(a, b, p);
}

// Whether whole cache lines are written if `unit` elements are at a time.
template <typename T>
bool whole_lines(const void *out, std::int64_t stride, std::int64_t unit) {
  const std::int64_t line = 64 / std::int64_t{sizeof(T)};
  return reinterpret_cast<std::uintptr_t>(out) % 64 == 0 && stride % line == 0 && unit % line == 0;
}

// The ragged end of a row, through a buffer: the same arithmetic as the rest of it, and no byte beyond it.
#if HWY_TARGET == HWY_AVX3  // which moves some lanes at once
template <typename T>
using Bits = hn::Rebind<hwy::UnsignedFromSize<sizeof(T)>, decltype(kFloats)>;
template <typename T>
HWY_INLINE Floats load_part(const T *p, std::int64_t n) {
  const Bits<T> bits;
  T buffer[kLanes];
  const auto *from = reinterpret_cast<const hn::TFromD<Bits<T>> *>(p);
  const auto part = hn::MaskedLoad(hn::FirstN(bits, static_cast<std::size_t>(n)), bits, from);
  hn::StoreU(part, bits, reinterpret_cast<hn::TFromD<Bits<T>> *>(buffer));
  return load_vector(buffer);
}
HWY_INLINE Floats load_part(const float *p, std::int64_t n) {
  return hn::MaskedLoad(hn::FirstN(kFloats, static_cast<std::size_t>(n)), kFloats, p);
}
template <typename T>
HWY_INLINE void store_part(Floats v, std::int64_t n, T *p) {
  const Bits<T> bits;
  T buffer[kLanes];
  store_vector(v, buffer);
  const auto part = hn::LoadU(bits, reinterpret_cast<const hn::TFromD<Bits<T>> *>(buffer));
  hn::BlendedStore(part, hn::FirstN(bits, static_cast<std::size_t>(n)), bits,
                   reinterpret_cast<hn::TFromD<Bits<T>> *>(p));
}
#else
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
#endif

// -- Rows of the weight ----------------------------------------------------------------------------------------

// Of functions for bf16, f16 and float32, the one for a type.
template <typename Function>
HWY_INLINE Function *for_type(lyc_dtype dtype, Function *bf16, Function *f16, Function *f32) {
  return dtype == LYC_DTYPE_BF16 ? bf16 : dtype == LYC_DTYPE_F16 ? f16 : f32;
}

template <typename T>
HWY_INLINE const T *advanced(const T *p, std::int64_t by) {
  return p ? p + by : nullptr;
}

template <typename T>
void load_row(const T *row, std::int64_t n, float *values) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_vector(load_vector(row + i), values + i);
  if (i < n) store_part(load_part(row + i, n - i), n - i, values + i);
}

template <std::int64_t kElements, typename T>
HWY_INLINE void fetch(const T *p) {
  for (std::int64_t element = 0; element < kElements; element += 64 / std::int64_t{sizeof(T)})
    __builtin_prefetch(p + element, 1);
}

// Not into the nearest cache: the tile's factors would be replaced there, it waits for few lines at a time, and other
// rows are as a rule in the same set of it.
template <typename T>
HWY_INLINE void fetch_later(const T *p) {
  __builtin_prefetch(p, 0, 2);
}
template <std::int64_t kElements, typename T>
HWY_INLINE void fetch_run_later(const T *p) {
  for (std::int64_t at = 0; at < kElements; at += 64 / std::int64_t{sizeof(T)}) fetch_later(p + at);
}

// Tiles go along the rows: what lies further on is needed next, and comes while the tile is computed.
constexpr std::int64_t kAhead = 1024;  // bytes
template <std::int64_t kElements, typename T>
HWY_INLINE void fetch_ahead(const T *p) {
  fetch_run_later<kElements>(p + kAhead / std::int64_t{sizeof(T)});
}

/// Writes value(i) for a row of n elements, from left to right: value takes the number of a vector's first element,
/// part how many there are of it. Streams whole cache lines.
template <typename T, typename Value, typename Part>
HWY_INLINE void write_row(std::int64_t n, T *row, bool stream, Value value, Part part) {
  constexpr std::int64_t kPair = 2 * kLanes;
  std::int64_t i = 0;
  if (stream) {
    const std::int64_t ahead =
        static_cast<std::int64_t>((-reinterpret_cast<std::uintptr_t>(row) % 64) / sizeof(T));  // up to a cache line
    for (const std::int64_t head = std::min(n, ahead); i < head;) {
      const std::int64_t count = std::min(kLanes, head - i);
      store_part(part(i, count), count, row + i);
      i += count;
    }
    for (; i + kPair <= n; i += kPair) {
      const Floats first = value(i), second = value(i + kLanes);
      stream_pair(first, second, row + i);
    }
  } else {
    for (; i + kPair <= n; i += kPair) {
      const Floats first = value(i), second = value(i + kLanes);
      store_pair(first, second, row + i);
    }
  }
  for (; i + kLanes <= n; i += kLanes) store_vector(value(i), row + i);
  if (i < n) store_part(part(i, n - i), n - i, row + i);
}

template <typename T>
void store_row(const float *values, std::int64_t n, T *row, bool stream) {
  write_row(
      n, row, stream, [&](std::int64_t i) HWY_ATTR { return quiet(load_vector(values + i), row); },
      [&](std::int64_t i, std::int64_t count) HWY_ATTR { return quiet(load_part(values + i, count), row); });
}

template <typename B, typename T>
void merge_row(const B *base, const float *delta, std::int64_t n, T *out, bool stream) {
  write_row(
      n, out, stream,
      [&](std::int64_t i) HWY_ATTR {
        fetch<kLanes>(base + i + n);
        return hn::Add(load_vector(base + i), load_vector(delta + i));
      },
      [&](std::int64_t i, std::int64_t count)
          HWY_ATTR { return hn::Add(load_part(base + i, count), load_part(delta + i, count)); });
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

template <typename Half>
void store(const float *values, std::int64_t n, lyc_dtype dtype, void *row, bool stream) {
  switch (dtype) {
    case LYC_DTYPE_BF16:
      return store_row(values, n, static_cast<Half *>(row), stream);
    case LYC_DTYPE_F16:
      return store_row(values, n, static_cast<F16 *>(row), stream);
    default:
      return store_row(values, n, static_cast<float *>(row), stream);
  }
}

template <typename Half, typename B>
void merge_into(const B *base, const float *delta, std::int64_t n, lyc_dtype dtype, void *out, bool stream) {
  switch (dtype) {
    case LYC_DTYPE_BF16:
      return merge_row(base, delta, n, static_cast<Half *>(out), stream);
    case LYC_DTYPE_F16:
      return merge_row(base, delta, n, static_cast<F16 *>(out), stream);
    default:
      return merge_row(base, delta, n, static_cast<float *>(out), stream);
  }
}

template <typename Half>
void merge(lyc_dtype base_dtype, const void *base, const float *delta, std::int64_t n, lyc_dtype dtype, void *out,
           bool stream) {
  switch (base_dtype) {
    case LYC_DTYPE_BF16:
      return merge_into<Half>(static_cast<const Bf16 *>(base), delta, n, dtype, out, stream);
    case LYC_DTYPE_F16:
      return merge_into<Half>(static_cast<const F16 *>(base), delta, n, dtype, out, stream);
    default:
      return merge_into<Half>(static_cast<const float *>(base), delta, n, dtype, out, stream);
  }
}

void flush() { hwy::FlushStream(); }

// -- Products --------------------------------------------------------------------------------------------------

template <bool kFirst, bool kTimes>
HWY_INLINE void put(Floats v, float *to, const float *times) {
  if (kTimes) v = hn::Mul(v, load_vector(times));
  if (!kFirst) v = hn::Add(v, load_vector(to));
  store_vector(v, to);
}

constexpr std::int64_t kShort = 16 * kPanel;  // of a row, whose squares are summed in float32

// The sums of one register tile: kTileRows rows of kVectors vectors, or of the first rows alone.
using Sums = Floats[kTileRows][kVectors];

/// Asks for the cache lines of rows that are read next, first lines of all rows first, few at a time: one after the
/// other they would be waited for. Not into the nearest cache.
class Fetch {
 public:
  Fetch(const Ahead &ahead, std::int64_t rows) : stride_(ahead.stride), rows_(rows) {
    const std::int64_t skipped = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(ahead.data) % 64);
    line_ = ahead.data - skipped;
    if (ahead.size > 0) left_ = (skipped + ahead.size + 63) / 64 * rows;
  }

  HWY_INLINE void next() {
    if (left_ == 0) return;
    --left_;
    __builtin_prefetch(line_, 0, 2);
    line_ += stride_;
    if (++row_ < rows_) return;
    row_ = 0;
    line_ += 64 - rows_ * stride_;
  }

 private:
  const char *line_;
  std::int64_t stride_, rows_, left_ = 0, row_ = 0;
};
struct NoFetch {
  NoFetch() = default;
  NoFetch(const Ahead &, std::int64_t) {}
  HWY_INLINE void next() {}
};

/// The same of a register tile further on, a row at a time; nothing of null.
template <typename T, bool kNear = false>
class FetchTile {
 public:
  FetchTile(const T *rows, std::int64_t stride) : row_(rows), stride_(stride), left_(rows ? kTileRows : 0) {}

  HWY_INLINE void next() {
    if (left_ == 0) return;
    --left_;
    kNear ? fetch<kVectors * kLanes>(row_) : fetch_run_later<kVectors * kLanes>(row_);
    row_ += stride_;
  }

 private:
  const T *row_;
  std::int64_t stride_, left_;
};

// One step of a sum. The first one begins it: one clears no registers, and a processor that has to copy zeros into them
// would take a tenth more time.
struct Numbers {
  static constexpr bool kScales = false;  // afterwards
  static HWY_INLINE Floats first(Floats a, Floats b) { return hn::Mul(a, b); }
  static HWY_INLINE Floats next(Floats a, Floats b, Floats sum) { return hn::MulAdd(a, b, sum); }
};
#if HWY_TARGET == HWY_AVX3
// Pairs of bf16 in the place of float32: two exact products, added in float32. Denormals count as zero.
struct PairSteps {
  static constexpr bool kScales = true;
  static HWY_INLINE Floats first(Floats a, Floats b) { return next(a, b, hn::Zero(kFloats)); }
  static HWY_INLINE Floats next(Floats a, Floats b, Floats sum) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
    return sum;
  }
};
#else
using PairSteps = Numbers;  // nobody asks for them
#endif

// `factor(k, i)` is the left factor, `row(k, v)` the right one.
template <typename Step, std::int64_t kRows, std::int64_t kCount, typename Row, typename Factor, typename Next>
HWY_INLINE void multiply_by(std::int64_t rank, Floats (&sum)[kRows][kCount], Row row, Factor factor, Next &shared) {
  Next fetch = shared;
  const auto step = [&](std::int64_t k, auto add) HWY_ATTR {
    fetch.next();
    Floats rows[kCount];
    HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kCount; ++v) rows[v] = row(k, v);
    HWY_UNROLL(12)
    for (std::int64_t i = 0; i < kRows; ++i) {
      const Floats value = factor(k, i);
      HWY_UNROLL(4)
      for (std::int64_t v = 0; v < kCount; ++v) sum[i][v] = add(value, rows[v], sum[i][v]);
    }
  };
  if (HWY_UNLIKELY(rank == 0)) {
    for (std::int64_t i = 0; i < kRows; ++i)
      for (std::int64_t v = 0; v < kCount; ++v) sum[i][v] = hn::Zero(kFloats);
    return;
  }
  step(0, [](Floats a, Floats b, Floats) HWY_ATTR { return Step::first(a, b); });
  for (std::int64_t k = 1; k < rank; ++k)
    step(k, [](Floats a, Floats b, Floats c) HWY_ATTR { return Step::next(a, b, c); });
  shared = fetch;
}

template <typename Step = Numbers, std::int64_t kRows, typename Next>
HWY_INLINE void multiply(const float *HWY_RESTRICT left, const float *HWY_RESTRICT right, std::int64_t rank,
                         Floats (&sum)[kRows][kVectors], Next &fetch) {
  multiply_by<Step>(
      rank, sum, [&](std::int64_t k, std::int64_t v) HWY_ATTR { return load_vector(right + k * kPanel + v * kLanes); },
      [&](std::int64_t k, std::int64_t i) HWY_ATTR { return hn::Set(kFloats, left[k * kTileRows + i]); }, fetch);
}

HWY_INLINE const float *right_at(const float *right, std::int64_t rank, std::int64_t column) {
  return right + column / kPanel * (rank * kPanel) + column % kPanel;
}

template <typename Step, typename Next>
HWY_INLINE void multiply(const Packed &product, std::int64_t column, Sums &sum, Next &&fetch) {
  multiply<Step>(product.left, right_at(product.right, product.rank, column), product.rank, sum, fetch);
}

// The scale that sums of pairs still lack: on what multiplies them, by themselves, or onto something else.
template <typename Step>
HWY_INLINE Floats scaled(Floats v, Floats scale) {
  return Step::kScales ? hn::Mul(scale, v) : v;
}
template <typename Step>
HWY_INLINE Floats scaled_onto(Floats sum, Floats scale, Floats base) {
  return Step::kScales ? hn::MulAdd(scale, sum, base) : hn::Add(sum, base);
}

template <bool kFirst, bool kTimes, typename Step = Numbers>
void product_tile(const float *left, const float *right, std::int64_t rank, std::int64_t panels, const Tile tile) {
  NoFetch next;
  for (std::int64_t column = 0; column < panels * kPanel; column += kVectors * kLanes) {
    Sums sum;
    multiply<Step>(left, right_at(right, rank, column), rank, sum, next);
    HWY_UNROLL(6)
    for (std::int64_t i = 0; i < kTileRows; ++i) HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kVectors; ++v) {
      const std::int64_t at = i * tile.stride + column + v * kLanes;
      put<kFirst, kTimes>(sum[i][v], tile.data + at, kTimes ? tile.times + at : nullptr);
    }
  }
}

enum class Onto { kNothing, kWeight, kColumns, kRows };  // the latter with factors for each

template <typename T, Onto kOnto, bool kTimes, bool kStream, typename Step>
void merge_tile(const Packed &product, std::int64_t panels, const WeightRows &rows, const float *times,
                std::int64_t times_stride, const float *weights, const float *deltas) {
  const T *base = static_cast<const T *>(rows.base), *next = static_cast<const T *>(rows.next);
  T *out = static_cast<T *>(rows.out);
  const std::int64_t base_stride = rows.base_stride, out_stride = rows.out_stride;
  const std::int64_t next_stride = base ? base_stride : out_stride;
  const Floats scale = hn::Set(kFloats, product.scale);
  if (kOnto == Onto::kNothing && kStream) next = nullptr;
  for (std::int64_t column = 0; column < panels * kPanel; column += kVectors * kLanes) {
    Sums sum;
    multiply<Step>(product, column, sum, FetchTile<T>(advanced(next, column), next_stride));
    // All that is read before anything is written: a load waits for stores with the same address within a page.
    HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kVectors; ++v) {
      const std::int64_t at = column + v * kLanes;
      Floats weight = kOnto == Onto::kColumns ? load_vector(weights + at) : scale;
      Floats delta = kOnto == Onto::kColumns ? scaled<Step>(load_vector(deltas + at), scale) : scale;
      HWY_UNROLL(6)
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        Floats &value = sum[i][v];
        if (kTimes) value = hn::Mul(value, load_vector(times + i * times_stride + at));
        if (kOnto == Onto::kNothing) value = scaled<Step>(value, scale);
        if (kOnto == Onto::kWeight) value = scaled_onto<Step>(value, scale, load_vector(base + i * base_stride + at));
        if (kOnto == Onto::kRows) weight = hn::Set(kFloats, weights[i]);
        if (kOnto == Onto::kRows) delta = scaled<Step>(hn::Set(kFloats, deltas[i]), scale);
        if (kOnto == Onto::kColumns || kOnto == Onto::kRows)
          value = hn::MulAdd(weight, load_vector(base + i * base_stride + at), hn::Mul(delta, value));
      }
    }
    HWY_UNROLL(6)
    for (std::int64_t i = 0; i < kTileRows; ++i) HWY_UNROLL(2)
    for (std::int64_t v = 0; v < kVectors; v += 2)
      write_pair<kStream>(sum[i][v], sum[i][v + 1], out + i * out_stride + column + v * kLanes);
  }
}

template <typename T, bool kStream, typename Step>
void merge_product_by(const Packed &product, std::int64_t panels, const WeightRows &rows, const float *times,
                      std::int64_t times_stride, const Factors *factors) {
  if (factors) {
    const auto change = factors->vary ? merge_tile<T, Onto::kColumns, false, kStream, Step>
                                      : merge_tile<T, Onto::kRows, false, kStream, Step>;
    return change(product, panels, rows, nullptr, 0, factors->weight, factors->delta);
  }
  const auto merge_as = times       ? (rows.base ? merge_tile<T, Onto::kWeight, true, kStream, Numbers>
                                                 : merge_tile<T, Onto::kNothing, true, kStream, Numbers>)
                        : rows.base ? merge_tile<T, Onto::kWeight, false, kStream, Step>
                                    : merge_tile<T, Onto::kNothing, false, kStream, Step>;
  merge_as(product, panels, rows, times, times_stride, nullptr, nullptr);
}

template <typename T>
void merge_product_as(const Packed &product, std::int64_t panels, const WeightRows &rows, const float *times,
                      std::int64_t times_stride, const Factors *factors, bool stream) {
  const bool whole = stream && whole_lines<T>(rows.out, rows.out_stride, kVectors * kLanes);
  const auto merge_by = product.pairs
                            ? (whole ? merge_product_by<T, true, PairSteps> : merge_product_by<T, false, PairSteps>)
                            : (whole ? merge_product_by<T, true, Numbers> : merge_product_by<T, false, Numbers>);
  merge_by(product, panels, rows, times, times_stride, factors);
}

template <typename Half>
void merge_product(const Packed &product, std::int64_t panels, const WeightRows &rows, const float *times,
                   std::int64_t times_stride, const Factors *factors, bool stream) {
  const auto merge_rows = for_type(rows.dtype, merge_product_as<Half>, merge_product_as<F16>, merge_product_as<float>);
  merge_rows(product, panels, rows, times, times_stride, factors, stream);
}

void product(const float *left, const float *right, std::int64_t rank, std::int64_t panels, const Tile &tile) {
  if (tile.times)
    return tile.first ? product_tile<true, true>(left, right, rank, panels, tile)
                      : product_tile<false, true>(left, right, rank, panels, tile);
  return tile.first ? product_tile<true, false>(left, right, rank, panels, tile)
                    : product_tile<false, false>(left, right, rank, panels, tile);
}

#if HWY_TARGET == HWY_AVX3
void pair_product(const float *left, const float *right, std::int64_t pairs, std::int64_t panels, const Tile &tile) {
  return tile.first ? product_tile<true, false, PairSteps>(left, right, pairs, panels, tile)
                    : product_tile<false, false, PairSteps>(left, right, pairs, panels, tile);
}
#endif

// Up to kTileRows rows, of which `count` are there, by kCount vectors of a panel.
template <typename Step, typename Next, std::int64_t kCount>
void row_tile(const float *const (&rows)[kTileRows], std::int64_t count, const float *panel, std::int64_t steps,
              const Tile &tile) {
  Next next = Next(tile.ahead, 1);
  Floats sum[kTileRows][kCount];
  multiply_by<Step>(
      steps, sum, [&](std::int64_t k, std::int64_t v) HWY_ATTR { return load_vector(panel + k * kPanel + v * kLanes); },
      [&](std::int64_t k, std::int64_t i) HWY_ATTR { return hn::Set(kFloats, rows[i][k]); }, next);
  HWY_UNROLL(6)
  for (std::int64_t i = 0; i < kTileRows; ++i) {
    if (i >= count) break;
    HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kCount; ++v) {
      float *const to = tile.data + i * tile.stride + v * kLanes;
      tile.first ? put<true, false>(sum[i][v], to, nullptr) : put<false, false>(sum[i][v], to, nullptr);
    }
  }
}

template <typename Step, typename Next>
void row_product_by(const FactorRows &left, const float *right, std::int64_t steps, std::int64_t rows,
                    std::int64_t columns, const Tile &tile) {
  constexpr decltype(&row_tile<Step, Next, 1>) kTiles[] = {row_tile<Step, Next, 1>, row_tile<Step, Next, 2>,
                                                           row_tile<Step, Next, std::min(std::int64_t{3}, kVectors)>,
                                                           row_tile<Step, Next, kVectors>};
  constexpr std::int64_t kAcross = kVectors * kLanes;
  const std::int64_t across = (columns + kAcross - 1) / kAcross, tiles = (rows + kTileRows - 1) / kTileRows * across;
  for (std::int64_t row = 0, at = 0; row < rows; row += kTileRows) {
    const float *lines[kTileRows];
    for (std::int64_t i = 0; i < kTileRows; ++i) lines[i] = left.data + std::min(row + i, rows - 1) * left.stride;
    for (std::int64_t column = 0; column < columns; column += kAcross, ++at) {
      const std::int64_t count = std::min(kVectors, (columns - column + kLanes - 1) / kLanes);
      kTiles[count - 1](
          lines, rows - row, right_at(right, steps, column), steps,
          {tile.data + row * tile.stride + column, tile.stride, nullptr, tile.first, part(tile.ahead, at, tiles)});
    }
  }
}

template <typename Step>
void row_product_as(const FactorRows &left, const float *right, std::int64_t steps, std::int64_t rows,
                    std::int64_t columns, const Tile &tile) {
  const auto multiply_rows = tile.ahead.size ? row_product_by<Step, Fetch> : row_product_by<Step, NoFetch>;
  multiply_rows(left, right, steps, rows, columns, tile);
}

void row_product(const FactorRows &left, const FactorPanels &right, std::int64_t steps, std::int64_t rows,
                 std::int64_t columns, const Tile &tile) {
  const auto multiply_rows = left.pairs ? row_product_as<PairSteps> : row_product_as<Numbers>;
  multiply_rows(left, right.data, steps, rows, columns, tile);
}

/// Beside rows of a weight, those below them.
template <typename T>
class FetchBelow {
 public:
  FetchBelow(const T *rows, std::int64_t stride) : row_(rows), stride_(stride) {}

  HWY_INLINE void next() {
    if (!row_) return;
    if (at_ % (64 / std::int64_t{sizeof(T)}) == 0)
      for (std::int64_t i = 0; i < kVectors; ++i) fetch_later(row_ + i * stride_ + at_);
    at_ += kLanes;
  }

 private:
  const T *row_;
  std::int64_t stride_, at_ = 0;
};

// kSome rows of x, kVectors of a weight, of which `count` are there.
template <std::int64_t kSome, typename T>
void dot_tile(const T *const *rows, std::int64_t count, std::int64_t n, const float *factors, const float *x,
              std::int64_t x_stride, const Tile &to, FetchBelow<T> below) {
  Floats sum[kSome][kVectors];
  multiply_by<Numbers>(
      n / kLanes, sum, [&](std::int64_t k, std::int64_t v) HWY_ATTR { return load_vector(rows[v] + k * kLanes); },
      [&](std::int64_t k, std::int64_t i) HWY_ATTR { return load_vector(x + i * x_stride + k * kLanes); }, below);
  const std::int64_t rest = n % kLanes, begin = n - rest;
  for (std::int64_t v = 0; v < count; ++v) {
    const Floats end = rest ? load_part(rows[v] + begin, rest) : hn::Zero(kFloats);
    for (std::int64_t i = 0; i < kSome; ++i) {
      if (rest) sum[i][v] = hn::MulAdd(load_part(x + i * x_stride + begin, rest), end, sum[i][v]);
      const float value = (factors ? factors[v] : 1.0f) * hn::GetLane(hn::SumOfLanes(kFloats, sum[i][v]));
      float &at = to.data[i * to.stride + v];
      at = to.first ? value : at + value;
    }
  }
}

template <typename T>
void dots_as(const WeightRows &weight, std::int64_t count, std::int64_t n, const float *factors, const float *x,
             std::int64_t x_stride, std::int64_t x_count, const Tile &to) {
  const T *base = static_cast<const T *>(weight.base);
  for (std::int64_t row = 0; row < count; row += kVectors, base += kVectors * weight.base_stride) {
    const std::int64_t some = std::min(kVectors, count - row);
    const T *rows[kVectors];
    for (std::int64_t v = 0; v < kVectors; ++v) rows[v] = base + std::min(v, some - 1) * weight.base_stride;
    const T *below = base + kVectors * weight.base_stride;
    for (std::int64_t p = 0, taken = 0; p < x_count; p += taken) {
      const std::int64_t left = x_count - p;
      taken = left >= kTileRows ? kTileRows : left >= kTileRows / 2 ? kTileRows / 2 : 1;
      const auto tile = taken == kTileRows ? dot_tile<kTileRows, T>
                        : taken == 1       ? dot_tile<1, T>
                                           : dot_tile<kTileRows / 2, T>;
      tile(rows, some, n, advanced(factors, row), x + p * x_stride, x_stride,
           {to.data + p * to.stride + row, to.stride, nullptr, to.first},
           FetchBelow<T>(p == 0 ? below : nullptr, weight.base_stride));
    }
  }
}

void dots(const WeightRows &rows, std::int64_t count, std::int64_t n, const float *factors, const float *x,
          std::int64_t x_stride, std::int64_t x_count, const Tile &to) {
  for_type(rows.dtype, dots_as<Bf16>, dots_as<F16>, dots_as<float>)(rows, count, n, factors, x, x_stride, x_count, to);
}

#if HWY_TARGET == HWY_AVX3 && defined(LYC_AMX)
// The nearest bf16, half away from zero, that is finite if v is; what has no bf16 left behind is 0.
HWY_INLINE Floats taken_part(Floats &v) {
  const hn::Rebind<std::uint32_t, decltype(kFloats)> words;
  const auto bits = hn::BitCast(words, v), upper = hn::Set(words, 0xffff0000u);
  const Floats rounded = hn::BitCast(kFloats, hn::And(hn::Add(bits, hn::Set(words, 0x8000u)), upper));
  const Floats part = hn::IfThenElse(hn::IsFinite(rounded), rounded, hn::BitCast(kFloats, hn::And(bits, upper)));
  v = hn::IfThenElseZero(hn::IsFinite(v), hn::Sub(v, part));
  return part;
}

void split(const float *values, std::int64_t n, std::int64_t parts, std::uint16_t *halves, std::int64_t apart) {
  const hn::Rebind<std::uint16_t, decltype(kFloats)> half;
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const std::int64_t count = std::min(kLanes, n - i);
    Floats v = quiet(load_part(values + i, count), static_cast<const Bf16 *>(nullptr));
    for (std::int64_t part = 0; part < parts; ++part) {
      const auto upper = hn::ShiftRight<16>(hn::BitCast(hn::RebindToUnsigned<decltype(kFloats)>(), taken_part(v)));
      hn::BlendedStore(hn::TruncateTo(half, upper), hn::FirstN(half, static_cast<std::size_t>(count)), half,
                       halves + part * apart + i);
    }
  }
}
#endif

// kTileRows rows of `count` vectors that lie `apart` and share their left factors.
template <bool kFirst>
HWY_NOINLINE void periodic_vectors(const float *left, std::int64_t left_stride, const float *const *right,
                                   std::int64_t right_stride, float residue, float period, std::int64_t rank,
                                   std::int64_t count, float *to, std::int64_t stride, std::int64_t apart) {
  // Each lane's input, counted from the first lane's: nothing lies near enough to a whole number to be rounded to it.
  const hn::Rebind<std::int32_t, decltype(kFloats)> ints;
  const Floats place = hn::Add(hn::Iota(kFloats, 0.0f), hn::Set(kFloats, residue + 0.5f));
  const auto spread = hn::IndicesFromVec(kFloats, hn::ConvertTo(ints, hn::Mul(place, hn::Set(kFloats, 1.0f / period))));
  Sums sum;
  NoFetch none;
  multiply_by<Numbers>(
      rank, sum,
      [&](std::int64_t k, std::int64_t v)
          HWY_ATTR { return hn::TableLookupLanes(load_vector(right[v] + k * right_stride), spread); },
      [&](std::int64_t k, std::int64_t i) HWY_ATTR { return load_vector(left + (k * kTileRows + i) * left_stride); },
      none);
  HWY_UNROLL(6)
  for (std::int64_t i = 0; i < kTileRows; ++i) HWY_UNROLL(4)
  for (std::int64_t v = 0; v < kVectors; ++v)
    if (v < count) put<kFirst, false>(sum[i][v], to + i * stride + v * apart, nullptr);
}

template <bool kFirst>
void periodic_tile(const float *left, std::int64_t left_stride, std::int64_t period, std::int64_t begin,
                   const float *right, std::int64_t right_stride, std::int64_t rank, std::int64_t panels,
                   const Tile &tile) {
  const std::int64_t n = panels * kPanel, step = kLanes / std::min(kLanes, period & -period);
  const std::int64_t common = step * period;  // vectors that far apart share left factors, whole periods
  for (std::int64_t phase = 0; phase < std::min(common, n); phase += kLanes) {
    const std::int64_t residue = (begin + phase) % period, whole = (begin + phase) / period;
    const float *at = right + whole;
    for (std::int64_t column = phase; column < n; column += kVectors * common, at += kVectors * step) {
      const std::int64_t count = std::min(kVectors, (n - column + common - 1) / common);
      const float *from[kVectors];
      for (std::int64_t v = 0; v < kVectors; ++v) from[v] = at + std::min(v, count - 1) * step;
      periodic_vectors<kFirst>(left + residue, left_stride, from, right_stride, static_cast<float>(residue),
                               static_cast<float>(period), rank, count, tile.data + column, tile.stride, common);
    }
  }
}

void periodic_product(const float *left, std::int64_t left_stride, std::int64_t period, std::int64_t begin,
                      const float *right, std::int64_t right_stride, std::int64_t rank, std::int64_t panels,
                      const Tile &tile) {
  const auto multiply_tile = tile.first ? periodic_tile<true> : periodic_tile<false>;
  multiply_tile(left, left_stride, period, begin, right, right_stride, rank, panels, tile);
}

// -- Products by tile registers --------------------------------------------------------------------------------

#if HWY_TARGET == HWY_AVX3 && defined(LYC_AMX)
/// kTiledRows rows by a panel of a product after the other: while one is looked at, registers 0 to 3 take up the next
/// one, whose left factor comes through register 4, the right one through 6 and 7.
class TiledSums {
 public:
  TiledSums(const Packed &product, std::int64_t panels) : product_(product), panels_(panels) { begin(); }

  const float *next() {
    const float *made = sums_[turn_];
    turn_ = 1 - turn_;
    begin();
    return made;
  }

 private:
  void begin() {
    if (panels_-- <= 0) return;
    clear_tile<0>();
    clear_tile<1>();
    clear_tile<2>();
    clear_tile<3>();
    for (std::int64_t k = 0; k < product_.rank; k += kTiledPairs) {
      const float *right = product_.right + k * kPanel;
      load_tile<4>(product_.left + k, product_.rank);
      load_tile<6>(right, kPanel);
      load_tile<7>(right + kLanes, kPanel);
      add_tile_product<0, 4, 6>();
      add_tile_product<1, 4, 7>();
      load_tile<6>(right + 2 * kLanes, kPanel);
      load_tile<7>(right + 3 * kLanes, kPanel);
      add_tile_product<2, 4, 6>();
      add_tile_product<3, 4, 7>();
    }
    store_tile<0>(sums_[turn_], kPanel);
    store_tile<1>(sums_[turn_] + kLanes, kPanel);
    store_tile<2>(sums_[turn_] + 2 * kLanes, kPanel);
    store_tile<3>(sums_[turn_] + 3 * kLanes, kPanel);
    product_.right += product_.rank * kPanel;
  }

  Packed product_;
  std::int64_t panels_, turn_ = 0;
  alignas(64) float sums_[2][kTiledRows * kPanel];
};

// Of so many rows.
void take_registers(TileRegisters &registers, std::int64_t rows, std::int64_t rank) {
  const std::int64_t pairs = std::min(rank, kTiledPairs);
  for (std::int64_t tile = 0; tile < 4; ++tile) registers.set(tile, rows, kTiledRows);
  registers.set(4, rows, pairs);
  for (std::int64_t tile = 6; tile < 8; ++tile) registers.set(tile, pairs, kTiledRows);
  registers.take();
}

template <typename T, bool kStream, Onto kOnto, bool kTimes>
void merge_tiled_onto(const Packed &product, const Packed *times, std::int64_t count, std::int64_t panels,
                      const WeightRows &rows, const Factors *factors) {
  TileRegisters registers;
  take_registers(registers, count, product.rank);
  const std::int64_t n = panels * kPanel;
  TiledSums sums(product, panels);
  TiledSums others(kTimes ? *times : product, kTimes ? panels : 0);
  const Floats scale = hn::Set(kFloats, kTimes ? product.scale * times->scale : product.scale);
  const T *base = static_cast<const T *>(rows.base), *next = static_cast<const T *>(rows.next);
  if (kOnto == Onto::kNothing) next = nullptr;
  T *out = static_cast<T *>(rows.out);
  constexpr std::int64_t kCount = kPanel / kLanes;
  for (std::int64_t column = 0; column < n; column += kPanel) {
    const float *sum = sums.next(), *other = kTimes ? others.next() : nullptr;
    Floats w[kCount], d[kCount];
    for (std::int64_t v = 0; v < kCount; ++v) {
      d[v] = scale;
      if (kOnto != Onto::kColumns) continue;
      w[v] = load_vector(factors->weight + column + v * kLanes);
      d[v] = hn::Mul(scale, load_vector(factors->delta + column + v * kLanes));
    }
    for (std::int64_t i = 0; i < count; ++i, sum += kPanel, other = advanced(other, kPanel)) {
      if (kOnto == Onto::kRows)
        for (std::int64_t v = 0; v < kCount; ++v) {
          w[v] = hn::Set(kFloats, factors->weight[i]);
          d[v] = hn::Mul(scale, hn::Set(kFloats, factors->delta[i]));
        }
      if (next) fetch_run_later<kPanel>(next + i * rows.base_stride + column);
      Floats values[kCount];
      HWY_UNROLL(4)
      for (std::int64_t v = 0; v < kCount; ++v) {
        Floats made = load_vector(sum + v * kLanes);
        if (kTimes) made = hn::Mul(made, load_vector(other + v * kLanes));
        values[v] = hn::Mul(d[v], made);
        const std::int64_t at = i * rows.base_stride + column + v * kLanes;
        if (kOnto == Onto::kWeight) values[v] = hn::Add(values[v], load_vector(base + at));
        if (kOnto == Onto::kColumns || kOnto == Onto::kRows)
          values[v] = hn::MulAdd(w[v], load_vector(base + at), values[v]);
      }
      HWY_UNROLL(2)
      for (std::int64_t v = 0; v < kCount; v += 2)
        write_pair<kStream>(values[v], values[v + 1], out + i * rows.out_stride + column + v * kLanes);
    }
  }
}

template <typename T, bool kStream>
void merge_tiled_by(const Packed &product, const Packed *times, std::int64_t count, std::int64_t panels,
                    const WeightRows &rows, const Factors *factors) {
  const auto merge_onto = factors     ? (factors->vary ? merge_tiled_onto<T, kStream, Onto::kColumns, false>
                                                       : merge_tiled_onto<T, kStream, Onto::kRows, false>)
                          : rows.base ? (times ? merge_tiled_onto<T, kStream, Onto::kWeight, true>
                                               : merge_tiled_onto<T, kStream, Onto::kWeight, false>)
                                      : (times ? merge_tiled_onto<T, kStream, Onto::kNothing, true>
                                               : merge_tiled_onto<T, kStream, Onto::kNothing, false>);
  merge_onto(product, times, count, panels, rows, factors);
}

template <typename T>
void merge_tiled_as(const Packed &product, const Packed *times, std::int64_t count, std::int64_t panels,
                    const WeightRows &rows, const Factors *factors, bool stream) {
  const bool whole = stream && whole_lines<T>(rows.out, rows.out_stride, kPanel);
  const auto merge_by = whole ? merge_tiled_by<T, true> : merge_tiled_by<T, false>;
  merge_by(product, times, count, panels, rows, factors);
}

void merge_tiled(const Packed &product, const Packed *times, std::int64_t count, std::int64_t panels,
                 const WeightRows &rows, const Factors *factors, bool stream) {
  const auto merge_rows = for_type(rows.dtype, merge_tiled_as<FastBf16>, merge_tiled_as<F16>, merge_tiled_as<float>);
  merge_rows(product, times, count, panels, rows, factors, stream);
}

template <typename T, bool kByRow>
void tiled_squares_by(const Packed &product, std::int64_t count, std::int64_t panels, const WeightRows &rows,
                      double *by_row, float *by_column) {
  TileRegisters registers;
  take_registers(registers, count, product.rank);
  TiledSums sums(product, panels);
  const Floats scale = hn::Set(kFloats, product.scale);
  const T *base = static_cast<const T *>(rows.base), *next = static_cast<const T *>(rows.next);
  Floats squares[kTiledRows];
  for (Floats &square : squares) square = hn::Zero(kFloats);
  constexpr std::int64_t kCount = kPanel / kLanes;
  for (std::int64_t panel = 0; panel < panels; ++panel, base += kPanel, next = advanced(next, kPanel)) {
    const float *sum = sums.next();
    Floats all[kCount];
    for (Floats &of_column : all) of_column = hn::Zero(kFloats);
    for (std::int64_t i = 0; i < count; ++i, sum += kPanel) {
      if (next) fetch_run_later<kPanel>(next + i * rows.base_stride);
      HWY_UNROLL(4)
      for (std::int64_t v = 0; v < kCount; ++v) {
        const Floats value =
            hn::MulAdd(scale, load_vector(sum + v * kLanes), load_vector(base + i * rows.base_stride + v * kLanes));
        Floats &squared = kByRow ? squares[i] : all[v];
        squared = hn::MulAdd(value, value, squared);
      }
    }
    for (std::int64_t v = 0; !kByRow && v < kCount; ++v) {
      float *to = by_column + panel * kPanel + v * kLanes;
      store_vector(hn::Add(all[v], load_vector(to)), to);
    }
    for (std::int64_t i = 0; kByRow && (panel + 1 == panels || (panel + 1) * kPanel % kShort == 0) && i < count; ++i) {
      by_row[i] += static_cast<double>(hn::GetLane(hn::SumOfLanes(kFloats, squares[i])));
      squares[i] = hn::Zero(kFloats);
    }
  }
}

template <typename T>
void tiled_squares_as(const Packed &product, std::int64_t count, std::int64_t panels, const WeightRows &rows,
                      double *by_row, float *by_column) {
  const auto add_squares = by_row ? tiled_squares_by<T, true> : tiled_squares_by<T, false>;
  add_squares(product, count, panels, rows, by_row, by_column);
}

void tiled_squares(const Packed &product, std::int64_t count, std::int64_t panels, const WeightRows &rows,
                   double *by_row, float *by_column) {
  const auto add_squares = for_type(rows.dtype, tiled_squares_as<Bf16>, tiled_squares_as<F16>, tiled_squares_as<float>);
  add_squares(product, count, panels, rows, by_row, by_column);
}
#endif

// -- Projections -----------------------------------------------------------------------------------------------

// kTileRows x kCount lines: `stride` and kAcross apart, their sums kTurned and `sums_across`.
template <std::int64_t kAcross, std::int64_t kCount>
void project_lines(const float *values, std::int64_t stride, std::int64_t step, std::int64_t depth, const float *right,
                   float *sums, std::int64_t sums_across, Fetch &shared_fetch) {
  Fetch fetch = shared_fetch;
  for (std::int64_t lane = 0; lane < kTurned; lane += kLanes, right += kLanes, sums += kLanes) {
    Floats sum[kTileRows][kCount];
    HWY_UNROLL(6)
    for (std::int64_t i = 0; i < kTileRows; ++i) HWY_UNROLL(4)
    for (std::int64_t j = 0; j < kCount; ++j) sum[i][j] = load_vector(sums + i * kTurned + j * sums_across);
    const float *rows[kTileRows];
    HWY_UNROLL(6)
    for (std::int64_t i = 0; i < kTileRows; ++i) rows[i] = values + i * stride;
    for (std::int64_t k = 0; k < depth; ++k) {
      const Floats factor = load_vector(right + k * kTurned);
      fetch.next();
      fetch.next();
      HWY_UNROLL(6)
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        HWY_UNROLL(4)
        for (std::int64_t j = 0; j < kCount; ++j)
          sum[i][j] = hn::MulAdd(hn::Set(kFloats, rows[i][j * kAcross]), factor, sum[i][j]);
        rows[i] += step;
      }
    }
    HWY_UNROLL(6)
    for (std::int64_t i = 0; i < kTileRows; ++i) HWY_UNROLL(4)
    for (std::int64_t j = 0; j < kCount; ++j) store_vector(sum[i][j], sums + i * kTurned + j * sums_across);
  }
  shared_fetch = fetch;
}

// Lines of `all` tiles or phases, in groups as equal as can be.
template <std::int64_t kAcross>
void project_groups(const float *values, std::int64_t stride, std::int64_t all, std::int64_t step, std::int64_t depth,
                    const float *right, float *sums, std::int64_t sums_across, Fetch &fetch) {
  constexpr decltype(&project_lines<kAcross, 1>) kGroups[] = {project_lines<kAcross, 1>, project_lines<kAcross, 2>,
                                                              project_lines<kAcross, kVectors - 1>,
                                                              project_lines<kAcross, kVectors>};
  const std::int64_t groups = (all + kVectors - 1) / kVectors;
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t first = all * group / groups, count = all * (group + 1) / groups - first;
    kGroups[count - 1](values + first * kAcross, stride, step, depth, right, sums + first * sums_across, sums_across,
                       fetch);
  }
}

void project(const float *values, std::int64_t stride, std::int64_t tiles, std::int64_t period, std::int64_t depth,
             const float *right, float *sums, const Ahead &ahead) {
  constexpr std::int64_t kTile = kTileRows * kTurned;
  Fetch fetch(ahead, tiles * kTileRows);
  if (period == 1) return project_groups<kTileApart>(values, stride, tiles, 1, depth, right, sums, kTile, fetch);
  for (std::int64_t tile = 0; tile < tiles; ++tile)
    project_groups<1>(values + tile * kTileApart, stride, period, period, depth, right, sums + tile * kTile,
                      tiles * kTile, fetch);
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

/// A row of p (x) q as stretches of one factor: p moves on with each, q begins anew until p has been through.
class Segments {
 public:
  Segments(const float *p, const float *q, const Split &split, std::int64_t begin, std::int64_t n)
      : p_(p), split_(split), n_(n), at_p_(split.p(begin)), skipped_((begin + split.begin) % split.segment) {
    q_ = q + split.q(begin) - skipped_;
  }

  HWY_INLINE bool next() {
    column += length;
    if (column == n_) return false;
    length = std::min(split_.segment - skipped_, n_ - column);
    values = q_ + skipped_;
    factor = p_[at_p_];
    skipped_ = 0;
    if (++at_p_ == split_.count) {
      at_p_ = 0;
      q_ += split_.segment;
    }
    return true;
  }

  std::int64_t column = 0, length = 0;
  const float *values = nullptr;
  float factor = 0.0f;

 private:
  const float *p_, *q_;
  const Split &split_;
  std::int64_t n_, at_p_, skipped_;
};

void kronecker(const float *p, const float *q, const Split &split, std::int64_t begin, std::int64_t n,
               const Tile &row) {
  for (Segments part(p, q, split, begin, n); part.next();)
    row.first ? scaled_row<true, false>(part.values, part.factor, part.length, row.data + part.column, nullptr)
              : scaled_row<false, false>(part.values, part.factor, part.length, row.data + part.column, nullptr);
}

/// The same row read from left to right, wherever stretches end.
class KroneckerRow {
 public:
  explicit KroneckerRow(const Segments &parts) : part_(parts) { next(); }

  HWY_INLINE Floats vector(std::int64_t i) {
    if (HWY_UNLIKELY(i + kLanes > end_)) return some(i, kLanes);
    return hn::Mul(factor_, load_vector(values_ + i));
  }

  HWY_INLINE Floats some(std::int64_t i, std::int64_t n) {
    Floats sum = hn::Zero(kFloats);
    for (std::int64_t done = 0; done < n;) {
      if (i + done == end_) next();
      const std::int64_t count = std::min(n - done, end_ - i - done);
      sum = hn::Or(sum, lanes_from(values_ + i, done, count));
      done += count;
    }
    return sum;
  }

 private:
  // A product that has other lanes 0. Never through memory where masks can do it: a load that takes from several stores
  // waits for all that are written before them, past the caches.
  HWY_INLINE Floats lanes_from(const float *values, std::int64_t first, std::int64_t count) {
#if HWY_TARGET == HWY_AVX3
    const auto before = hn::FirstN(kFloats, static_cast<std::size_t>(first));
    const auto mask = hn::AndNot(before, hn::FirstN(kFloats, static_cast<std::size_t>(first + count)));
    return hn::IfThenElseZero(mask, hn::Mul(factor_, hn::MaskedLoad(mask, kFloats, values)));
#else
    float buffer[kLanes] = {};
    for (std::int64_t lane = first; lane < first + count; ++lane) buffer[lane] = hn::GetLane(factor_) * values[lane];
    return load_vector(buffer);
#endif
  }

  HWY_INLINE void next() {
    part_.next();
    end_ = part_.column + part_.length;
    values_ = part_.values - part_.column;
    factor_ = hn::Set(kFloats, part_.factor);
  }

  Segments part_;
  std::int64_t end_ = 0;
  const float *values_ = nullptr;  // by column of the row
  Floats factor_;
};

template <typename T, bool kBase>
void merge_kronecker_into(const Segments &parts, const T *base, std::int64_t n, T *out, bool stream) {
  KroneckerRow row(parts);
  write_row(
      n, out, stream,
      [&](std::int64_t i) HWY_ATTR {
        if (!kBase) return row.vector(i);
        fetch_ahead<kLanes>(base + i);
        return hn::Add(row.vector(i), load_vector(base + i));
      },
      [&](std::int64_t i, std::int64_t count) HWY_ATTR {
        const Floats v = row.some(i, count);
        return kBase ? hn::Add(v, load_part(base + i, count)) : v;
      });
}

template <typename T>
void merge_kronecker_as(const Segments &parts, const WeightRows &row, std::int64_t n, bool stream) {
  const T *base = static_cast<const T *>(row.base);
  const auto merge_into = base ? merge_kronecker_into<T, true> : merge_kronecker_into<T, false>;
  merge_into(parts, base, n, static_cast<T *>(row.out), stream);
}

template <typename Half>
void merge_kronecker(const float *p, const float *q, const Split &split, std::int64_t begin, std::int64_t n,
                     const WeightRows &row, bool stream) {
  const Segments parts(p, q, split, begin, n);
  const auto merge_rows =
      for_type(row.dtype, merge_kronecker_as<Half>, merge_kronecker_as<F16>, merge_kronecker_as<float>);
  merge_rows(parts, row, n, stream);
}

// -- DoRA ------------------------------------------------------------------------------------------------------

// The tile below comes while this one is read.
template <typename T>
HWY_INLINE Floats changed_vector(const T *w, std::int64_t stride, const float *d) {
  fetch_later(w + kTileRows * stride);
  return hn::Add(load_vector(w), load_vector(d));
}

// Float32 over short rows, double beyond: all of them may have a hundred thousand elements.
template <typename T>
void row_squares_as(const WeightRows &rows, std::int64_t count, const float *d, std::int64_t d_stride, std::int64_t n,
                    double *sums) {
  constexpr std::int64_t kChains = 4;
  const T *w = static_cast<const T *>(rows.base);
  for (std::int64_t row = 0; row < count; ++row, w += rows.base_stride, d += d_stride) {
    Floats sum[kChains];
    for (Floats &chain : sum) chain = hn::Zero(kFloats);
    std::int64_t i = 0;
    for (; i + kChains * kLanes <= n; i += kChains * kLanes) HWY_UNROLL(4)
    for (std::int64_t c = 0; c < kChains; ++c) {
      const Floats v = changed_vector(w + i + c * kLanes, rows.base_stride, d + i + c * kLanes);
      sum[c] = hn::MulAdd(v, v, sum[c]);
    }
    for (; i < n; i += kLanes) {
      const std::int64_t part = std::min(kLanes, n - i);
      const Floats v = hn::Add(load_part(w + i, part), load_part(d + i, part));
      sum[0] = hn::MulAdd(v, v, sum[0]);
    }
    const Floats all = hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]));
    sums[row] += static_cast<double>(hn::GetLane(hn::SumOfLanes(kFloats, all)));
  }
}

void row_squares(const WeightRows &rows, std::int64_t count, const float *d, std::int64_t d_stride, std::int64_t n,
                 double *sums) {
  const auto add_squares = for_type(rows.dtype, row_squares_as<Bf16>, row_squares_as<F16>, row_squares_as<float>);
  add_squares(rows, count, d, d_stride, n, sums);
}

template <typename T, bool kWhole>
void column_squares_of(const T *w, std::int64_t stride, std::int64_t some, const float *d, std::int64_t d_stride,
                       std::int64_t n, float *sums) {
  const std::int64_t count = kWhole ? kTileRows : some;
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Floats sum = load_vector(sums + i);
    HWY_UNROLL(6)
    for (std::int64_t row = 0; row < count; ++row) {
      const Floats v = changed_vector(w + row * stride + i, stride, d + row * d_stride + i);
      sum = hn::MulAdd(v, v, sum);
    }
    store_vector(sum, sums + i);
  }
  if (i == n) return;
  Floats sum = load_part(sums + i, n - i);
  for (std::int64_t row = 0; row < count; ++row) {
    const Floats v = hn::Add(load_part(w + row * stride + i, n - i), load_part(d + row * d_stride + i, n - i));
    sum = hn::MulAdd(v, v, sum);
  }
  store_part(sum, n - i, sums + i);
}

template <typename T>
void column_squares_as(const WeightRows &rows, std::int64_t count, const float *d, std::int64_t d_stride,
                       std::int64_t n, float *sums) {
  const auto add_squares = count == kTileRows ? column_squares_of<T, true> : column_squares_of<T, false>;
  add_squares(static_cast<const T *>(rows.base), rows.base_stride, count, d, d_stride, n, sums);
}

void column_squares(const WeightRows &rows, std::int64_t count, const float *d, std::int64_t d_stride, std::int64_t n,
                    float *sums) {
  const auto add_squares =
      for_type(rows.dtype, column_squares_as<Bf16>, column_squares_as<F16>, column_squares_as<float>);
  add_squares(rows, count, d, d_stride, n, sums);
}

// What a change takes: w and d by factors of rows or of columns, or V alone by the latter.
enum class Takes { kByRow, kByColumn, kValues };

template <typename T>
Changed with_whole_lines(Changed rows) {
  rows.stream = rows.stream && whole_lines<T>(rows.rows.out, rows.rows.out_stride, kPanel);
  return rows;
}

/// Changes rows beside a product, a pair of vectors at a step, `pairs` from `place` on.
template <typename T, Takes kTakes>
class Change {
 public:
  struct Place {
    std::int64_t row = 0, at = 0;
  };

  Change(const Changed &rows, const Place &place, std::int64_t pairs)
      : w_(static_cast<const T *>(rows.rows.base) + place.row * rows.rows.base_stride),
        out_(static_cast<T *>(rows.rows.out) + place.row * rows.rows.out_stride),
        d_(rows.d + place.row * rows.d_stride),
        weights_(rows.weights),
        deltas_(rows.deltas),
        w_stride_(rows.rows.base_stride),
        out_stride_(rows.rows.out_stride),
        d_stride_(rows.d_stride),
        n_(rows.n),
        place_(place),
        left_(pairs),
        stream_(rows.stream),
        looks_up_(kPanels && rows.stream && rows.rows.out != rows.rows.base) {}

  HWY_INLINE void next() {
    if (left_ == 0) return;
    --left_;
    if (looks_up_ && place_.at == 0) look_up(out_ + kTileRows * out_stride_);
    if (kTakes == Takes::kByColumn) fetch_run_later<2 * kLanes>(w_ + kTileRows * w_stride_ + place_.at);
    const Floats a = changed(place_.at), b = changed(place_.at + kLanes);
    stream_ ? stream_pair(a, b, out_ + place_.at) : store_pair(a, b, out_ + place_.at);
    place_.at += 2 * kLanes;
    if (place_.at == (kPanels ? kPanel : n_)) next_row();
  }
  HWY_INLINE void finish() {
    while (left_ != 0) next();
  }
  HWY_INLINE const Place &place() const { return place_; }

 private:
  HWY_INLINE Floats changed(std::int64_t at) const {
    if constexpr (kTakes == Takes::kByRow)
      return hn::MulAdd(hn::Set(kFloats, weights_[place_.row]), load_vector(w_ + at),
                        hn::Mul(load_vector(d_ + at), hn::Set(kFloats, deltas_[place_.row])));
    const Floats value = hn::Mul(load_vector(d_ + at), load_vector(deltas_ + at));
    if constexpr (kTakes == Takes::kValues) return value;
    return hn::MulAdd(load_vector(weights_ + at), load_vector(w_ + at), value);
  }
  // Each row of a panel has a page of its own, which a store would wait for. Asking for a line of it looks the page up:
  // always for the same line, which stays in cache from panel to panel, for others on other pages, so that they do not
  // replace it.
  static HWY_INLINE void look_up(const T *p) {
    constexpr std::uintptr_t kPage = 4096, kLine = 64;
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    __builtin_prefetch(reinterpret_cast<const char *>(p) - at % kPage + at / kPage * 5 * kLine % kPage, 0, 3);
  }
  HWY_INLINE void next_row() {
    place_.at = 0;
    ++place_.row;
    w_ += w_stride_;
    out_ += out_stride_;
    d_ += kPanels ? kPanel : d_stride_;
  }

  static constexpr bool kPanels = kTakes != Takes::kByRow;
  const T *w_;
  T *out_;
  const float *d_, *weights_, *deltas_;
  std::int64_t w_stride_, out_stride_, d_stride_, n_;
  Place place_;
  std::int64_t left_;
  bool stream_, looks_up_;
};
template <typename T>
using ChangeRows = Change<T, Takes::kByRow>;

template <typename T, typename Other>
struct FetchAnd {
  FetchTile<T> fetch;
  Other other;

  HWY_INLINE void next() {
    fetch.next();
    other.next();
  }
};

// The product, and V^2 while it is in registers.
template <typename T, typename Step, bool kByRow, bool kChanges>
void squared_tile(const Packed &product, std::int64_t begin, std::int64_t end, const WeightRows &rows, const Tile &tile,
                  const Changed *changed, typename ChangeRows<T>::Place &place, Floats (&squares)[kTileRows],
                  float *by_column) {
  const T *const w = static_cast<const T *>(rows.base), *const next = static_cast<const T *>(rows.next);
  const std::int64_t stride = rows.base_stride, to_stride = tile.stride;
  float *const to = tile.data;
  const Floats scale = hn::Set(kFloats, product.scale);
  for (std::int64_t column = begin; column < end; column += kVectors * kLanes) {
    Sums sum;
    FetchTile<T> fetch(advanced(next, column), stride);
    if constexpr (kChanges) {
      FetchAnd<T, ChangeRows<T>> beside = {fetch, {*changed, place, kTileRows * kVectors / 2}};
      multiply<Step>(product, column, sum, beside);
      beside.other.finish();
      place = beside.other.place();
    } else if constexpr (kByRow && !Step::kScales) {  // and where the tile is kept; pairs have too few steps
      multiply<Step>(product, column, sum, FetchAnd<T, FetchTile<float, true>>{fetch, {to + column, to_stride}});
    } else {
      multiply<Step>(product, column, sum, fetch);
    }
    HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kVectors; ++v) {
      const std::int64_t at = column + v * kLanes;
      Floats all = kByRow ? hn::Zero(kFloats) : load_vector(by_column + at);
      HWY_UNROLL(6)
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        if (kByRow) store_vector(sum[i][v] = scaled<Step>(sum[i][v], scale), to + i * to_stride + at);
        const Floats base = load_vector(w + i * stride + at);
        const Floats value = kByRow ? hn::Add(sum[i][v], base) : scaled_onto<Step>(sum[i][v], scale, base);
        Floats &squared = kByRow ? squares[i] : all;
        squared = hn::MulAdd(value, value, squared);
      }
      if (!kByRow) store_vector(all, by_column + at);
    }
  }
}

template <typename T, typename Step, bool kChanges>
void product_row_squares(const Packed &product, std::int64_t n, const Tile &tile, const WeightRows &rows,
                         const Changed *changed, double *sums) {
  const Changed rows_beside = kChanges ? with_whole_lines<T>(*changed) : Changed{};
  typename ChangeRows<T>::Place place;
  for (std::int64_t column = 0; column < n; column += kShort) {
    Floats squares[kTileRows];
    for (Floats &sum : squares) sum = hn::Zero(kFloats);
    squared_tile<T, Step, true, kChanges>(product, column, std::min(n, column + kShort), rows, tile, &rows_beside,
                                          place, squares, nullptr);
    for (std::int64_t i = 0; i < kTileRows; ++i)
      sums[i] += static_cast<double>(hn::GetLane(hn::SumOfLanes(kFloats, squares[i])));
  }
}

template <typename T, typename Step>
void product_squares_by(const Packed &product, std::int64_t panels, const Tile &tile, const WeightRows &rows,
                        const Changed *changed, double *by_row, float *by_column) {
  const std::int64_t n = panels * kPanel;
  if (by_row) {
    const auto add_squares = changed ? product_row_squares<T, Step, true> : product_row_squares<T, Step, false>;
    return add_squares(product, n, tile, rows, changed, by_row);
  }
  Floats none[kTileRows];
  typename ChangeRows<T>::Place nowhere;
  squared_tile<T, Step, false, false>(product, 0, n, rows, tile, nullptr, nowhere, none, by_column);
}

template <typename T>
void product_squares_as(const Packed &product, std::int64_t panels, const Tile &tile, const WeightRows &rows,
                        const Changed *changed, double *by_row, float *by_column) {
  const auto squares_by = product.pairs ? product_squares_by<T, PairSteps> : product_squares_by<T, Numbers>;
  squares_by(product, panels, tile, rows, changed, by_row, by_column);
}

template <typename Half>
void product_squares(const Packed &product, std::int64_t panels, const Tile &tile, const WeightRows &rows,
                     const Changed *changed, double *by_row, float *by_column) {
  const auto add_squares =
      for_type(rows.dtype, product_squares_as<Half>, product_squares_as<F16>, product_squares_as<float>);
  add_squares(product, panels, tile, rows, changed, by_row, by_column);
}

// kTileRows rows of a panel, or the first `count` of them.
template <typename T, typename Step, Takes kTakes>
void panel_tile(const Packed &product, const WeightRows &rows, const Held &held, std::int64_t row, std::int64_t count,
                const Changed &changed) {
  constexpr std::int64_t kFurther = 2 * kTileRows;
  const std::int64_t stride = rows.base_stride;
  const T *const w = static_cast<const T *>(rows.base) + row * stride;
  float *const to = held.values + row * kPanel;
  const float *const left = product.left + row * product.rank;
  const Floats scale = hn::Set(kFloats, product.scale);
  Change<T, kTakes> change(changed, {row, 0}, changed.rows.out ? count * (kPanel / (2 * kLanes)) : 0);
  for (std::int64_t column = 0; column < kPanel; column += kVectors * kLanes) {
    Sums sum;
    FetchAnd<T, Change<T, kTakes>> beside = {{w + kFurther * stride + column, stride}, change};
    multiply<Step>(left, right_at(product.right, product.rank, column), product.rank, sum, beside);
    beside.other.finish();
    change = beside.other;
    HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kVectors; ++v) {
      const std::int64_t at = column + v * kLanes;
      Floats all = load_vector(held.squares + at);
      HWY_UNROLL(6)
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        if (i == count) break;
        const Floats base = load_vector(w + i * stride + at), d = scaled<Step>(sum[i][v], scale);
        const Floats value = kTakes == Takes::kValues ? scaled_onto<Step>(sum[i][v], scale, base) : hn::Add(d, base);
        store_vector(kTakes == Takes::kValues ? value : d, to + i * kPanel + at);
        all = hn::MulAdd(value, value, all);
      }
      store_vector(all, held.squares + at);
    }
  }
}

template <typename T, typename Step, Takes kTakes>
void change_panel_by(const Packed &product, std::int64_t count, const WeightRows *w, const Held &held,
                     const Changed &changed) {
  if (!w) return Change<T, kTakes>(changed, {}, count * (kPanel / (2 * kLanes))).finish();
  for (std::int64_t row = 0; row < count; row += kTileRows)
    panel_tile<T, Step, kTakes>(product, *w, held, row, std::min(kTileRows, count - row), changed);
}

template <typename T>
void change_panel_as(const Packed &product, std::int64_t count, const WeightRows *w, const Held &held,
                     const Changed *changed) {
  constexpr Takes kBoth = Takes::kByColumn, kValues = Takes::kValues;
  const auto by_numbers = held.is_v ? change_panel_by<T, Numbers, kValues> : change_panel_by<T, Numbers, kBoth>;
  const auto by_pairs = held.is_v ? change_panel_by<T, PairSteps, kValues> : change_panel_by<T, PairSteps, kBoth>;
  (product.pairs ? by_pairs : by_numbers)(product, count, w, held, changed ? with_whole_lines<T>(*changed) : Changed{});
}

template <typename Half>
void change_panel(const Packed &product, std::int64_t count, const WeightRows *w, const Held &held,
                  const Changed *changed) {
  const lyc_dtype dtype = w ? w->dtype : changed->rows.dtype;
  const auto change_rows = for_type(dtype, change_panel_as<Half>, change_panel_as<F16>, change_panel_as<float>);
  change_rows(product, count, w, held, changed);
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

// With a delta, the weight's own factor says whether it is kept.
template <bool kKeep, bool kVary, bool kDelta, typename T>
void change_weight_row(const T *w, T *out, const float *d, std::int64_t n, const float *weights, const float *deltas,
                       std::int64_t later, bool stream) {
  const Floats same_weight = hn::Set(kFloats, *weights);
  const Floats same_delta = hn::Set(kFloats, kDelta ? *deltas : 0.0f);
  const auto changed = [=](Floats value, Floats weight, Floats times_delta) HWY_ATTR {
    if (kDelta) return hn::MulAdd(weight, value, times_delta);
    return kKeep ? hn::Add(value, hn::Mul(weight, value)) : hn::Mul(weight, value);
  };
  write_row(
      n, out, stream,
      [=](std::int64_t i) HWY_ATTR {
        if (kVary) fetch_later(w + later + i);
        if (!kVary && !kDelta) fetch_ahead<kLanes>(w + i);
        Floats delta = hn::Zero(kFloats);
        if (kDelta) delta = hn::Mul(load_vector(d + i), kVary ? load_vector(deltas + i) : same_delta);
        return changed(load_vector(w + i), kVary ? load_vector(weights + i) : same_weight, delta);
      },
      [=](std::int64_t i, std::int64_t count) HWY_ATTR {
        Floats delta = hn::Zero(kFloats);
        if (kDelta) delta = hn::Mul(load_part(d + i, count), kVary ? load_part(deltas + i, count) : same_delta);
        return changed(load_part(w + i, count), kVary ? load_part(weights + i, count) : same_weight, delta);
      });
}

template <bool kKeep, bool kVary, bool kDelta, typename T>
void change_weight_rows(const WeightRows &rows, std::int64_t count, const float *d, std::int64_t d_stride,
                        std::int64_t n, const Factors &factors, bool stream) {
  const T *w = static_cast<const T *>(rows.base);
  T *out = static_cast<T *>(rows.out);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t own = kVary ? 0 : i;
    change_weight_row<kKeep, kVary, kDelta>(w, out, d, n, factors.weight + own, advanced(factors.delta, own),
                                            (kDelta ? kTileRows : 1) * rows.base_stride, stream);
    w += rows.base_stride;
    out += rows.out_stride;
    d = advanced(d, d_stride);
  }
}

template <bool kKeep, typename T>
void change_weight_as(const WeightRows &rows, std::int64_t count, const float *d, std::int64_t d_stride, std::int64_t n,
                      const Factors &factors, bool stream) {
  const auto change_rows =
      factors.vary ? (d ? change_weight_rows<kKeep, true, true, T> : change_weight_rows<kKeep, true, false, T>)
                   : (d ? change_weight_rows<kKeep, false, true, T> : change_weight_rows<kKeep, false, false, T>);
  change_rows(rows, count, d, d_stride, n, factors, stream);
}

template <bool kKeep, typename Half>
void change_weight_to(const WeightRows &rows, std::int64_t count, const float *d, std::int64_t d_stride, std::int64_t n,
                      const Factors &factors, bool stream) {
  const auto change_rows =
      for_type(rows.dtype, change_weight_as<kKeep, Half>, change_weight_as<kKeep, F16>, change_weight_as<kKeep, float>);
  change_rows(rows, count, d, d_stride, n, factors, stream);
}

template <typename Half>
void change_weight(const WeightRows &rows, std::int64_t count, bool keep, const float *d, std::int64_t d_stride,
                   std::int64_t n, const Factors &factors, bool stream) {
  const auto change = keep && !d ? change_weight_to<true, Half> : change_weight_to<false, Half>;
  change(rows, count, d, d_stride, n, factors, stream);
}

// -- Rotations -------------------------------------------------------------------------------------------------

HWY_INLINE Floats onto(Floats sum, const float *change, const float *base) {
  if (change) sum = hn::Add(sum, load_vector(change));
  return base ? hn::Add(sum, load_vector(base)) : sum;
}

template <typename T>
bool streams(const Turned &to, std::int64_t unit) {
  return to.stream && whole_lines<T>(to.out, to.out_stride, unit);
}

// Rows times the lines of a block, from `column` on. Where these have changed, kSum leaves their sums to other rows.
template <bool kSum, std::int64_t kRows>
HWY_INLINE void multiply_lines(const float *left, const Lines &lines, std::int64_t column,
                               Floats (&sum)[kRows][kVectors], Fetch &ahead) {
  if constexpr (kSum) {
    const float *const weight = lines.weight + column, *const change = lines.change + column;
    float *const sums = lines.sums + column;
    const std::int64_t length = lines.length, gap = (lines.apart - length) * kPanel;
    multiply_by<Numbers>(
        lines.runs * length, sum,
        [&](std::int64_t k, std::int64_t v) HWY_ATTR {
          const std::int64_t to = k * kPanel + v * kLanes, from = to + (k < length ? 0 : gap);
          const Floats line = hn::Add(load_vector(weight + from), load_vector(change + from));
          store_vector(line, sums + to);
          return line;
        },
        [&](std::int64_t k, std::int64_t i) HWY_ATTR { return hn::Set(kFloats, left[k * kTileRows + i]); }, ahead);
  } else {
    multiply(left, (lines.change ? lines.sums : lines.weight) + column, lines.runs * lines.length, sum, ahead);
  }
}

// From row `at` of `to` on. What is not streamed is asked for first: it may not have been read.
template <bool kSum, bool kStream, typename T>
void turn_tile(const float *left, const Lines &lines, const Turned &to, std::int64_t at, Fetch &ahead) {
  const std::int64_t base_stride = to.base_stride, out_stride = to.out_stride;
  T *const out = static_cast<T *>(to.out) + at * out_stride;
  const float *const changes = advanced(to.change, at * kPanel), *const bases = advanced(to.base, at * base_stride);
  if (!kStream && to.out != to.change)
    for (std::int64_t i = 0; i < kTileRows; ++i) fetch<kPanel>(out + i * out_stride);
  for (std::int64_t column = 0; column < kPanel; column += kVectors * kLanes) {
    Sums sum;
    multiply_lines<kSum>(left, lines, column, sum, ahead);
    HWY_UNROLL(6)
    for (std::int64_t i = 0; i < kTileRows; ++i) {
      const float *change = advanced(changes, i * kPanel + column);
      const float *base = advanced(bases, i * base_stride + column);
      HWY_UNROLL(2)
      for (std::int64_t v = 0; v < kVectors; v += 2)
        write_pair<kStream>(onto(sum[i][v], advanced(change, v * kLanes), advanced(base, v * kLanes)),
                            onto(sum[i][v + 1], advanced(change, (v + 1) * kLanes), advanced(base, (v + 1) * kLanes)),
                            out + i * out_stride + column + v * kLanes);
    }
  }
}

template <bool kSum, std::int64_t kRows>
void multiply_part(const float *left, const Lines &lines, float *to, Fetch &ahead) {
  for (std::int64_t column = 0; column < kPanel; column += kVectors * kLanes) {
    Floats sum[kRows][kVectors];
    multiply_lines<kSum>(left, lines, column, sum, ahead);
    HWY_UNROLL(6)
    for (std::int64_t i = 0; i < kRows; ++i) HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kVectors; ++v) store_vector(sum[i][v], to + i * kPanel + column + v * kLanes);
  }
}

template <typename T>
void write_sums(const float *sums, std::int64_t n, const float *change, const float *base, T *out, bool stream) {
  write_row(
      n, out, stream,
      [&](std::int64_t i) HWY_ATTR { return onto(load_vector(sums + i), advanced(change, i), advanced(base, i)); },
      [&](std::int64_t i, std::int64_t count) HWY_ATTR {
        Floats sum = load_part(sums + i, count);
        if (change) sum = hn::Add(sum, load_part(change + i, count));
        return base ? hn::Add(sum, load_part(base + i, count)) : sum;
      });
}

// Fewer rows than a tile has, or fewer columns than a panel.
template <bool kSum, typename T>
void turn_part(const float *left, const Lines &lines, std::int64_t rows, std::int64_t n, const Turned &to,
               std::int64_t at, Fetch &ahead) {
  constexpr decltype(&multiply_part<kSum, 1>) kParts[] = {multiply_part<kSum, 1>, multiply_part<kSum, 2>,
                                                          multiply_part<kSum, 3>, multiply_part<kSum, 4>,
                                                          multiply_part<kSum, 5>, multiply_part<kSum, 6>};
  float sums[kTileRows * kPanel];
  kParts[rows - 1](left, lines, sums, ahead);
  for (std::int64_t i = 0; i < rows; ++i, ++at)
    write_sums(sums + i * kPanel, n, advanced(to.change, at * kPanel), advanced(to.base, at * to.base_stride),
               static_cast<T *>(to.out) + at * to.out_stride, to.stream);
}

template <bool kSum, typename T>
HWY_INLINE void turn_rows(const float *left, const Lines &lines, std::int64_t rows, std::int64_t n, const Turned &to,
                          std::int64_t at, bool stream, Fetch &ahead) {
  if (rows < kTileRows || n < kPanel) return turn_part<kSum, T>(left, lines, rows, n, to, at, ahead);
  stream ? turn_tile<kSum, true, T>(left, lines, to, at, ahead) : turn_tile<kSum, false, T>(left, lines, to, at, ahead);
}

template <typename T>
void turn_as(const float *left, const Lines &lines, std::int64_t n, const Turned &to, const Ahead &rows_ahead) {
  const std::int64_t rank = lines.runs * lines.length;
  const bool stream = streams<T>(to, kVectors * kLanes);
  Fetch ahead(rows_ahead, rank);
  bool sum = lines.change != nullptr;
  for (std::int64_t run = 0; run < lines.runs; ++run)
    for (std::int64_t row = 0; row < lines.length; row += kTileRows, left += rank * kTileRows, sum = false) {
      const std::int64_t rows = std::min(kTileRows, lines.length - row), at = run * lines.apart + row;
      sum ? turn_rows<true, T>(left, lines, rows, n, to, at, stream, ahead)
          : turn_rows<false, T>(left, lines, rows, n, to, at, stream, ahead);
    }
}

template <typename Half>
void turn(const float *left, const Lines &lines, std::int64_t n, const Turned &to, const Ahead &ahead) {
  const auto turn_lines = for_type(to.dtype, turn_as<Half>, turn_as<F16>, turn_as<float>);
  turn_lines(left, lines, n, to, ahead);
}

constexpr std::int64_t kTurnedTiles = kVectors / 2;  // of kTileRows rows by two vectors, in registers

// kTiles tiles of rows by kCount vectors of columns, from `column` of a block on.
template <std::int64_t kTiles, std::int64_t kCount>
HWY_INLINE void multiply_columns(const float *const *left, const float *right, std::int64_t block, std::int64_t column,
                                 Floats (&sum)[kTiles * kTileRows][kCount], Fetch &ahead) {
  const float *panels[kCount];
  HWY_UNROLL(2)
  for (std::int64_t v = 0; v < kCount; ++v) {
    const std::int64_t at = column + v * kLanes;
    panels[v] = right + at / kTurned * kTurned * block + at % kTurned;
  }
  const float *rows[kTileRows];
  HWY_UNROLL(6)
  for (std::int64_t i = 0; i < kTileRows; ++i) rows[i] = left[i];
  multiply_by<Numbers>(
      block, sum, [&](std::int64_t k, std::int64_t v) HWY_ATTR { return load_vector(panels[v] + k * kTurned); },
      [&](std::int64_t k, std::int64_t i)
          HWY_ATTR { return hn::Set(kFloats, rows[i % kTileRows][i / kTileRows * kTileApart + k]); },
      ahead);
}

template <typename T>
HWY_INLINE void store_columns(Floats sum, std::int64_t n, const float *base, T *out) {
  if (n >= kLanes) return store_vector(onto(sum, nullptr, base), out);
  if (n > 0) store_part(base ? hn::Add(sum, load_part(base, n)) : sum, n, out);
}

template <bool kStream, typename T, std::int64_t kTiles>
HWY_INLINE void turn_block(const float *const *left, std::int64_t rows, const float *right, std::int64_t block,
                           bool keep, T *outs, std::int64_t out_stride, Fetch &ahead) {
  for (std::int64_t column = 0; column < block; column += 2 * kLanes) {
    Floats sum[kTiles * kTileRows][2];
    const std::int64_t n = block - column;
    if (n <= kLanes) {
      Floats one[kTiles * kTileRows][1];
      multiply_columns<kTiles>(left, right, block, column, one, ahead);
      HWY_UNROLL(12)
      for (std::int64_t i = 0; i < kTiles * kTileRows; ++i) sum[i][0] = sum[i][1] = one[i][0];
    } else {
      multiply_columns<kTiles>(left, right, block, column, sum, ahead);
    }
    HWY_UNROLL(12)
    for (std::int64_t i = 0; i < kTiles * kTileRows; ++i) {
      if (i >= rows) break;
      const float *base = keep ? left[i % kTileRows] + i / kTileRows * kTileApart + column : nullptr;
      T *out = outs + i * out_stride + column;
      if (n >= 2 * kLanes) {
        write_pair<kStream>(onto(sum[i][0], nullptr, base), onto(sum[i][1], nullptr, advanced(base, kLanes)), out);
        continue;
      }
      store_columns(sum[i][0], n, base, out);
      store_columns(sum[i][1], n - kLanes, advanced(base, kLanes), out + kLanes);
    }
  }
}

template <bool kStream, typename T, std::int64_t kTiles>
void turn_blocks(const float *left, std::int64_t left_stride, std::int64_t rows, const float *right, std::int64_t block,
                 std::int64_t blocks, std::int64_t step, bool keep, const Turned &to, const Ahead &rows_ahead) {
  Fetch ahead(rows_ahead, rows);
  const float *lines[kTileRows];
  for (std::int64_t i = 0; i < kTileRows; ++i) lines[i] = left + i * left_stride;
  T *out = static_cast<T *>(to.out);
  for (std::int64_t at = 0; at < blocks; ++at, right += step, out += block) {
    for (std::int64_t i = 0; i < rows && !kStream; ++i) fetch<2 * kTurned>(out + i * to.out_stride);
    turn_block<kStream, T, kTiles>(lines, rows, right, block, keep, out, to.out_stride, ahead);
    for (const float *&line : lines) line += block;
  }
}

template <typename T, std::int64_t kTiles>
void turn_tiles(const float *left, std::int64_t left_stride, std::int64_t rows, const float *right, std::int64_t block,
                std::int64_t blocks, std::int64_t step, bool keep, const Turned &to, const Ahead &ahead) {
  const bool stream = streams<T>(to, std::gcd(block, 2 * kLanes));
  const auto turn = stream ? turn_blocks<true, T, kTiles> : turn_blocks<false, T, kTiles>;
  turn(left, left_stride, rows, right, block, blocks, step, keep, to, ahead);
}

template <typename T>
void turn_columns_as(const float *left, std::int64_t left_stride, std::int64_t rows, const float *right,
                     std::int64_t block, std::int64_t blocks, std::int64_t step, bool keep, Turned to, Ahead ahead) {
  constexpr std::int64_t kRows = kTurnedTiles * kTileRows;
  for (std::int64_t row = 0; row < rows; row += kRows) {
    const std::int64_t count = std::min(kRows, rows - row);
    const auto turn_rows = count <= kTileRows ? turn_tiles<T, 1> : turn_tiles<T, kTurnedTiles>;
    turn_rows(left + row / kTileRows * kTileApart, left_stride, count, right, block, blocks, step, keep, to, ahead);
    to.out = static_cast<T *>(to.out) + kRows * to.out_stride;
    ahead.data += kRows * ahead.stride;
  }
}

template <typename Half>
void turn_columns(const float *left, std::int64_t left_stride, std::int64_t rows, const float *right,
                  std::int64_t block, std::int64_t blocks, std::int64_t step, bool keep, const Turned &to,
                  const Ahead &ahead) {
  const auto turn_lines = for_type(to.dtype, turn_columns_as<Half>, turn_columns_as<F16>, turn_columns_as<float>);
  turn_lines(left, left_stride, rows, right, block, blocks, step, keep, to, ahead);
}

template <typename T>
void load_panel_as(const T *rows, std::int64_t stride, std::int64_t count, std::int64_t n, float *panel) {
  for (std::int64_t row = 0; row < count; ++row, rows += stride, panel += kPanel) {
    if (n < kPanel) {
      load_row(rows, n, panel);
      std::fill(panel + n, panel + kPanel, 0.0f);
      continue;
    }
    for (std::int64_t i = 0; i < kPanel; i += kLanes) store_vector(load_vector(rows + i), panel + i);
  }
}

void load_panel(lyc_dtype dtype, const void *rows, std::int64_t stride, std::int64_t count, std::int64_t n,
                float *panel) {
  switch (dtype) {
    case LYC_DTYPE_BF16:
      return load_panel_as(static_cast<const Bf16 *>(rows), stride, count, n, panel);
    case LYC_DTYPE_F16:
      return load_panel_as(static_cast<const F16 *>(rows), stride, count, n, panel);
    default:
      return load_panel_as(static_cast<const float *>(rows), stride, count, n, panel);
  }
}

// -- Matrices in double ----------------------------------------------------------------------------------------

constexpr hn::ScalableTag<double> kDoubles;
using Doubles = decltype(hn::Zero(kDoubles));
constexpr std::int64_t kDoubleLanes = static_cast<std::int64_t>(hn::MaxLanes(kDoubles));

constexpr std::int64_t kPivots = 4;  // rows that are eliminated together: one pass over all others
using Pivots = double[kPivots][kPivots];

// In registers: nothing is read back that has just been written.
void invert_pivots(Pivots &pivots) {
  double a[kPivots][kPivots];
  std::memcpy(a, pivots, sizeof a);
  HWY_UNROLL(4)
  for (std::int64_t k = 0; k < kPivots; ++k) {
    const double pivot = 1.0 / a[k][k];
    HWY_UNROLL(4)
    for (std::int64_t j = 0; j < kPivots; ++j) a[k][j] = j == k ? pivot : pivot * a[k][j];
    HWY_UNROLL(4)
    for (std::int64_t i = 0; i < kPivots; ++i) {
      if (i == k) continue;
      const double factor = a[i][k];
      HWY_UNROLL(4)
      for (std::int64_t j = 0; j < kPivots; ++j) a[i][j] = (j == k ? 0.0 : a[i][j]) - factor * a[k][j];
    }
  }
  std::memcpy(pivots, a, sizeof a);
}

// sums + factors * rows, of columns i and on.
HWY_INLINE Doubles added_rows(const double *const *rows, const double *factors, std::int64_t i, Doubles sum) {
  HWY_UNROLL(4)
  for (std::int64_t p = 0; p < kPivots; ++p)
    sum = hn::MulAdd(hn::Set(kDoubles, factors[p]), hn::LoadU(kDoubles, rows[p] + i), sum);
  return sum;
}

using RowFactors = double[kPivots];

// Rows of sums, kCount vectors of each, take `factors` times the pivots' rows, which stay in registers.
template <std::int64_t kCount>
void add_pivots(const double *const *pivots, const RowFactors *factors, std::int64_t rows, std::int64_t column,
                std::int64_t n, double *sums) {
  Doubles row[kPivots][kCount];
  HWY_UNROLL(4)
  for (std::int64_t p = 0; p < kPivots; ++p) HWY_UNROLL(4)
  for (std::int64_t v = 0; v < kCount; ++v) row[p][v] = hn::LoadU(kDoubles, pivots[p] + column + v * kDoubleLanes);
  for (std::int64_t i = 0; i < rows; ++i) {
    double *to = sums + i * n + column;
    Doubles sum[kCount];
    HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kCount; ++v) sum[v] = hn::LoadU(kDoubles, to + v * kDoubleLanes);
    HWY_UNROLL(4)
    for (std::int64_t p = 0; p < kPivots; ++p) {
      const Doubles factor = hn::Set(kDoubles, factors[i][p]);
      HWY_UNROLL(4)
      for (std::int64_t v = 0; v < kCount; ++v) sum[v] = hn::MulAdd(factor, row[p][v], sum[v]);
    }
    HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kCount; ++v) hn::StoreU(sum[v], kDoubles, to + v * kDoubleLanes);
  }
}

void add_rows(const double *const *pivots, const RowFactors *factors, std::int64_t rows, std::int64_t n, double *sums) {
  constexpr decltype(&add_pivots<1>) kCounts[] = {add_pivots<1>, add_pivots<2>, add_pivots<kVectors - 1>,
                                                  add_pivots<kVectors>};
  std::int64_t column = 0;
  for (std::int64_t count = 0; column + kDoubleLanes <= n; column += count * kDoubleLanes) {
    count = std::min(kVectors, (n - column) / kDoubleLanes);
    kCounts[count - 1](pivots, factors, rows, column, n, sums);
  }
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t c = column; c < n; ++c)
      for (std::int64_t p = 0; p < kPivots; ++p) sums[i * n + c] += factors[i][p] * pivots[p][c];
}

// The first `count` rows become what `a` makes of all.
void multiply_rows(const Pivots &a, double *const *rows, std::int64_t count, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kDoubleLanes <= n; i += kDoubleLanes) {
    Doubles made[kPivots];
    HWY_UNROLL(4)
    for (std::int64_t p = 0; p < kPivots; ++p) made[p] = added_rows(rows, a[p], i, hn::Zero(kDoubles));
    for (std::int64_t p = 0; p < count; ++p) hn::StoreU(made[p], kDoubles, rows[p] + i);
  }
  for (; i < n; ++i) {
    double made[kPivots] = {};
    for (std::int64_t p = 0; p < count; ++p)
      for (std::int64_t q = 0; q < count; ++q) made[p] += a[p][q] * rows[q][i];
    for (std::int64_t p = 0; p < count; ++p) rows[p][i] = made[p];
  }
}

// Takes the pivots' columns out of rows begin .. end - 1. All of some rows first: a load that meets stores of single
// elements waits for them.
void eliminate(const double *const *pivots, std::int64_t k, std::int64_t count, std::int64_t n, double *a,
               std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kSome = 32;
  for (std::int64_t row = begin; row < end; row += kSome) {
    const std::int64_t some = std::min(kSome, end - row);
    RowFactors factors[kSome] = {};
    for (std::int64_t i = 0; i < some; ++i)
      for (std::int64_t p = 0; p < count; ++p) factors[i][p] = -std::exchange(a[(row + i) * n + k + p], 0.0);
    add_rows(pivots, factors, some, n, a + row * n);
  }
}

// Gauss and Jordan. What is eliminated is replaced by the identity first, and so becomes part of the inverse. Missing
// pivots are rows taken zero times.
void invert(double *a, std::int64_t n) {
  for (std::int64_t k = 0; k < n; k += kPivots) {
    const std::int64_t count = std::min(kPivots, n - k);
    Pivots pivots = {{1.0}, {0.0, 1.0}, {0.0, 0.0, 1.0}, {0.0, 0.0, 0.0, 1.0}};
    double *rows[kPivots];
    for (std::int64_t p = 0; p < kPivots; ++p) rows[p] = a + (k + std::min(p, count - 1)) * n;
    for (std::int64_t p = 0; p < count; ++p)
      for (std::int64_t q = 0; q < count; ++q) pivots[p][q] = std::exchange(rows[p][k + q], p == q ? 1.0 : 0.0);
    invert_pivots(pivots);
    multiply_rows(pivots, rows, count, n);
    eliminate(rows, k, count, n, a, 0, k);
    eliminate(rows, k, count, n, a, k + count, n);
  }
}

// kRows rows by kCount vectors of columns.
template <std::int64_t kRows, std::int64_t kCount>
HWY_INLINE void add_product_tile(const double *a, const double *b, std::int64_t n, double *sums) {
  Doubles sum[kRows][kCount];
  HWY_UNROLL(4)
  for (std::int64_t i = 0; i < kRows; ++i) HWY_UNROLL(4)
  for (std::int64_t v = 0; v < kCount; ++v) sum[i][v] = hn::LoadU(kDoubles, sums + i * n + v * kDoubleLanes);
  for (std::int64_t k = 0; k < n; ++k) {
    Doubles row[kCount];
    HWY_UNROLL(4)
    for (std::int64_t v = 0; v < kCount; ++v) row[v] = hn::LoadU(kDoubles, b + k * n + v * kDoubleLanes);
    HWY_UNROLL(4)
    for (std::int64_t i = 0; i < kRows; ++i) {
      const Doubles factor = hn::Set(kDoubles, a[i * n + k]);
      HWY_UNROLL(4)
      for (std::int64_t v = 0; v < kCount; ++v) sum[i][v] = hn::MulAdd(factor, row[v], sum[i][v]);
    }
  }
  HWY_UNROLL(4)
  for (std::int64_t i = 0; i < kRows; ++i) HWY_UNROLL(4)
  for (std::int64_t v = 0; v < kCount; ++v) hn::StoreU(sum[i][v], kDoubles, sums + i * n + v * kDoubleLanes);
}

template <std::int64_t kRows>
void add_product_rows(const double *a, const double *b, std::int64_t n, double *sums) {
  std::int64_t j = 0;
  for (; j + 4 * kDoubleLanes <= n; j += 4 * kDoubleLanes) add_product_tile<kRows, 4>(a, b + j, n, sums + j);
  for (; j + kDoubleLanes <= n; j += kDoubleLanes) add_product_tile<kRows, 1>(a, b + j, n, sums + j);
  for (; j < n; ++j)
    for (std::int64_t i = 0; i < kRows; ++i)
      for (std::int64_t k = 0; k < n; ++k) sums[i * n + j] += a[i * n + k] * b[k * n + j];
}

void add_matrix_product(const double *a, const double *b, std::int64_t n, double *sums) {
  std::int64_t i = 0;
  for (; i + kVectors <= n; i += kVectors) add_product_rows<kVectors>(a + i * n, b, n, sums + i * n);
  for (; i < n; ++i) add_product_rows<1>(a + i * n, b, n, sums + i * n);
}

void transpose_part(const float *from, std::int64_t from_stride, std::int64_t rows, std::int64_t columns, float *to,
                    std::int64_t to_stride) {
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t column = 0; column < columns; ++column)
      to[column * to_stride + row] = from[row * from_stride + column];
}

void transpose(const float *from, std::int64_t from_stride, std::int64_t rows, std::int64_t columns, float *to,
               std::int64_t to_stride) {
  std::int64_t row = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::Full128<float> four;
  for (; row + 4 <= rows; row += 4, from += 4 * from_stride) {
    std::int64_t column = 0;
    for (; column + 4 <= columns; column += 4) {
      const auto a = hn::LoadU(four, from + column), b = hn::LoadU(four, from + from_stride + column);
      const auto c = hn::LoadU(four, from + 2 * from_stride + column);
      const auto d = hn::LoadU(four, from + 3 * from_stride + column);
      const auto ab_low = hn::InterleaveLower(four, a, b), ab_high = hn::InterleaveUpper(four, a, b);
      const auto cd_low = hn::InterleaveLower(four, c, d), cd_high = hn::InterleaveUpper(four, c, d);
      float *at = to + column * to_stride + row;
      hn::StoreU(hn::ConcatLowerLower(four, cd_low, ab_low), four, at);
      hn::StoreU(hn::ConcatUpperUpper(four, cd_low, ab_low), four, at + to_stride);
      hn::StoreU(hn::ConcatLowerLower(four, cd_high, ab_high), four, at + 2 * to_stride);
      hn::StoreU(hn::ConcatUpperUpper(four, cd_high, ab_high), four, at + 3 * to_stride);
    }
    transpose_part(from + column, from_stride, 4, columns - column, to + column * to_stride + row, to_stride);
  }
#endif
  transpose_part(from, from_stride, rows - row, columns, to + row, to_stride);
}

constexpr const char *target_name() {
  return HWY_TARGET == HWY_AVX3   ? "AVX-512"
         : HWY_TARGET == HWY_AVX2 ? "AVX2"
         : HWY_TARGET == HWY_SSE4 ? "SSE4"
         : HWY_TARGET == HWY_NEON ? "NEON"
                                  : "baseline";
}

// What is stored as bf16 is a `Half`.
template <typename Half>
constexpr Kernels kernels_with(const char *name) {
  Kernels kernels = {};
  kernels.name = name;
  kernels.load = load;
  kernels.store = store<Half>;
  kernels.merge = merge<Half>;
  kernels.flush = flush;
  kernels.product = product;
  kernels.row_product = row_product;
  kernels.row_height = kTileRows;
  kernels.periodic_product = periodic_product;
  kernels.dots = dots;
  kernels.merge_product = merge_product<Half>;
  kernels.project = project;
  kernels.scaled = scaled;
  kernels.kronecker = kronecker;
  kernels.merge_kronecker = merge_kronecker<Half>;
  kernels.row_squares = row_squares;
  kernels.column_squares = column_squares;
  kernels.product_squares = product_squares<Half>;
  kernels.changes_beside = kVectors == 4;
  kernels.change_panel = change_panel<Half>;
  kernels.change = change;
  kernels.changes = changes;
  kernels.change_weight = change_weight<Half>;
  kernels.turn = turn<Half>;
  kernels.turn_columns = turn_columns<Half>;
  kernels.load_panel = load_panel;
  kernels.invert = invert;
  kernels.add_matrix_product = add_matrix_product;
  kernels.transpose = transpose;
  return kernels;
}

#if HWY_TARGET == HWY_AVX3
constexpr Kernels pair_kernels() {
  Kernels kernels = kernels_with<FastBf16>("AVX-512-BF16-pairs");
  kernels.pair_product = pair_product;
  kernels.pair_height = kTileRows;
  kernels.holds_panels = true;
  return kernels;
}

#ifdef LYC_AMX
constexpr Kernels tile_kernels() {
  Kernels kernels = kernels_with<FastBf16>("AMX-BF16");
  kernels.pair_product = amx_pair_product;
  kernels.pair_height = 1;
  kernels.row_product = amx_row_product;
  kernels.row_height = 2 * kTiledRows;
  kernels.split = split;
  kernels.merge_tiled = merge_tiled;
  kernels.tiled_squares = tiled_squares;
  return kernels;
}
#endif
#endif

}  // namespace

extern const Kernels kKernels;
constexpr Kernels kKernels = kernels_with<Bf16>(target_name());
#if HWY_TARGET == HWY_AVX3
extern const Kernels kBf16Kernels;
constexpr Kernels kBf16Kernels = kernels_with<FastBf16>("AVX-512-BF16");
extern const Kernels kPairKernels;
constexpr Kernels kPairKernels = pair_kernels();
#ifdef LYC_AMX
extern const Kernels kAmxKernels;
constexpr Kernels kAmxKernels = tile_kernels();
#endif
#endif

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
#ifdef LYC_AMX
    {kAmx, &N_AVX3::kAmxKernels},
#endif
    {kFastPairs, &N_AVX3::kPairKernels}, {kAvx512Bf16, &N_AVX3::kBf16Kernels}, {kAvx512, &N_AVX3::kKernels},
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
