// Element types: sizes, names, and conversion of single values. Bulk conversion is the back ends' work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "lycoris.h"

namespace lyc {

struct DtypeInfo {
  lyc_dtype dtype;
  const char *name;              // as in lyc_dtype_name()
  std::string_view safetensors;  // as in a safetensors header
  std::size_t size;
};

inline constexpr DtypeInfo kDtypes[] = {
    {LYC_DTYPE_F32, "f32", "F32", 4},
    {LYC_DTYPE_F16, "f16", "F16", 2},
    {LYC_DTYPE_BF16, "bf16", "BF16", 2},
    {LYC_DTYPE_F64, "f64", "F64", 8},
    {LYC_DTYPE_I64, "i64", "I64", 8},
    {LYC_DTYPE_I32, "i32", "I32", 4},
    {LYC_DTYPE_I16, "i16", "I16", 2},
    {LYC_DTYPE_I8, "i8", "I8", 1},
    {LYC_DTYPE_U64, "u64", "U64", 8},
    {LYC_DTYPE_U32, "u32", "U32", 4},
    {LYC_DTYPE_U16, "u16", "U16", 2},
    {LYC_DTYPE_U8, "u8", "U8", 1},
    {LYC_DTYPE_BOOL, "bool", "BOOL", 1},
    {LYC_DTYPE_F8_E4M3, "f8_e4m3", "F8_E4M3", 1},
    {LYC_DTYPE_F8_E5M2, "f8_e5m2", "F8_E5M2", 1},
};

/// nullptr for types the library does not know.
inline const DtypeInfo *find_dtype(lyc_dtype dtype) {
  for (const DtypeInfo &info : kDtypes)
    if (info.dtype == dtype) return &info;
  return nullptr;
}

inline std::size_t dtype_size(lyc_dtype dtype) {
  const DtypeInfo *info = find_dtype(dtype);
  return info ? info->size : 0;
}

inline const char *dtype_name(lyc_dtype dtype) {
  const DtypeInfo *info = find_dtype(dtype);
  return info ? info->name : "unknown";
}

/// Types that the library computes with.
inline bool is_arithmetic(lyc_dtype dtype) {
  return dtype == LYC_DTYPE_F32 || dtype == LYC_DTYPE_F16 || dtype == LYC_DTYPE_BF16;
}

inline float bf16_to_float(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

/// Round to nearest, ties to even; NaN stays NaN.
inline std::uint16_t float_to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16;
  std::uint32_t exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu, wide;
  if (exponent == 31) {
    wide = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    wide = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    float tiny = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal: exact
    std::memcpy(&wide, &tiny, sizeof wide);
    wide |= sign;
  }
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

/// Round to nearest, ties to even; overflow gives infinity, NaN stays NaN.
inline std::uint16_t float_to_f16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (bits < 0x38800000u) {  // below the smallest normal: add a number whose last bit is 2^-24, so the hardware rounds
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return static_cast<std::uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((bits - 0x38000000u) >> 13));
}

}  // namespace lyc
