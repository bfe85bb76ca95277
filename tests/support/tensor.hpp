// Tensors that tests own: any type and layout, with a guard after the last element.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "base/dtype.hpp"
#include "ops/weight.hpp"
#include "support/random.hpp"

namespace lyc::test {

inline double get(const ops::Operand &t, std::int64_t offset) {
  const char *element = static_cast<const char *>(t.data) + offset * static_cast<std::int64_t>(dtype_size(t.dtype));
  std::uint16_t half;
  float value;
  if (t.dtype == LYC_DTYPE_F32) return std::memcpy(&value, element, 4), static_cast<double>(value);
  std::memcpy(&half, element, 2);
  return static_cast<double>(t.dtype == LYC_DTYPE_BF16 ? bf16_to_float(half) : f16_to_float(half));
}

inline void set(const ops::Operand &t, std::int64_t offset, double value) {
  char *element = static_cast<char *>(t.data) + offset * static_cast<std::int64_t>(dtype_size(t.dtype));
  const float single = static_cast<float>(value);
  const std::uint16_t half = t.dtype == LYC_DTYPE_BF16 ? float_to_bf16(single) : float_to_f16(single);
  t.dtype == LYC_DTYPE_F32 ? std::memcpy(element, &single, 4) : std::memcpy(element, &half, 2);
}

/// Offset of element (o, i, k), k counted row-major over the kernel axes.
inline std::int64_t offset_of(const ops::Operand &t, std::int64_t o, std::int64_t i, std::int64_t k) {
  std::int64_t offset = o * t.stride_out + i * t.stride_in;
  for (int d = ops::kMaxKernelDims - 1; d >= 0; --d) {
    offset += k % t.kernel[d] * t.stride_kernel[d];
    k /= t.kernel[d];
  }
  return offset;
}

inline double at(const ops::Operand &t, std::int64_t o, std::int64_t i, std::int64_t k) {
  return get(t, offset_of(t, o, i, k));
}

/// All values in the order [O, I, K].
inline std::vector<double> values(const ops::Operand &t) {
  std::vector<double> all;
  all.reserve(static_cast<std::size_t>(t.numel()));
  for (std::int64_t o = 0; o < t.out; ++o)
    for (std::int64_t i = 0; i < t.in; ++i)
      for (std::int64_t k = 0; k < t.kernel_size(); ++k) all.push_back(at(t, o, i, k));
  return all;
}

inline void fill(const ops::Operand &t, Random &random, double scale) {
  for (std::int64_t o = 0; o < t.out; ++o)
    for (std::int64_t i = 0; i < t.in; ++i)
      for (std::int64_t k = 0; k < t.kernel_size(); ++k) set(t, offset_of(t, o, i, k), scale * random.normal());
}

struct Shape {
  std::int64_t out = 1, in = 1;
  std::int64_t kernel[ops::kMaxKernelDims] = {1, 1, 1};
  std::int64_t numel() const { return out * in * kernel[0] * kernel[1] * kernel[2]; }
};

enum class Order { kOIHW, kHWIO, kOHWI, kGaps, kIOHW };  // kGaps: as OIHW, every second element

/// Owns what operands point to, which begins where the allocator puts it or at a multiple of `alignment`.
class Arena {
 public:
  explicit Arena(std::size_t alignment = 1) : alignment_(alignment) {}

  ops::Operand tensor(const Shape &shape, lyc_dtype dtype, Order order = Order::kOIHW) {
    ops::Operand t;
    t.dtype = dtype;
    t.out = shape.out;
    t.in = shape.in;
    std::copy(shape.kernel, shape.kernel + ops::kMaxKernelDims, t.kernel);
    t.kernel_dims = t.kernel_size() > 1 ? 2 : 0;
    std::int64_t step = order == Order::kGaps ? 2 : 1;
    const auto lay = [&](std::int64_t extent, std::int64_t &stride) { stride = std::exchange(step, step * extent); };
    const auto lay_kernel = [&] {
      for (int d = ops::kMaxKernelDims - 1; d >= 0; --d) lay(t.kernel[d], t.stride_kernel[d]);
    };
    switch (order) {
      case Order::kOIHW:
      case Order::kGaps:
        lay_kernel(), lay(t.in, t.stride_in), lay(t.out, t.stride_out);
        break;
      case Order::kHWIO:
        lay(t.out, t.stride_out), lay(t.in, t.stride_in), lay_kernel();
        break;
      case Order::kOHWI:
        lay(t.in, t.stride_in), lay_kernel(), lay(t.out, t.stride_out);
        break;
      case Order::kIOHW:
        lay_kernel(), lay(t.out, t.stride_out), lay(t.in, t.stride_in);
        break;
    }
    const std::size_t bytes = static_cast<std::size_t>(step) * dtype_size(dtype);
    buffers_.push_back(std::make_unique<std::vector<unsigned char>>(bytes + alignment_ - 1 + kGuard, kGuardByte));
    unsigned char *data = buffers_.back()->data();
    t.data = data + -reinterpret_cast<std::uintptr_t>(data) % alignment_;
    return t;
  }

  ops::Operand random(const Shape &shape, lyc_dtype dtype, Random &numbers, double scale, Order order = Order::kOIHW) {
    const ops::Operand t = tensor(shape, dtype, order);
    fill(t, numbers, scale);
    return t;
  }

  bool guards_intact() const {
    return std::all_of(buffers_.begin(), buffers_.end(), [](const auto &buffer) {
      return std::all_of(buffer->end() - kGuard, buffer->end(), [](unsigned char c) { return c == kGuardByte; });
    });
  }

  /// The bytes of the last tensor made, guard and gaps included.
  const std::vector<unsigned char> &last() const { return *buffers_.back(); }

 private:
  static constexpr std::ptrdiff_t kGuard = 256;
  static constexpr unsigned char kGuardByte = 0xa5;
  std::size_t alignment_;
  std::vector<std::unique_ptr<std::vector<unsigned char>>> buffers_;
};

}  // namespace lyc::test
