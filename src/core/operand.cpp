#include "core/operand.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"

namespace lyc {
namespace {

constexpr int kAxes = 2 + ops::kMaxKernelDims;

struct Axis {
  std::int64_t extent, stride;
};

std::array<Axis, kAxes> axes_of(const ops::Operand &o) {
  return {{{o.out, o.stride_out},
           {o.in, o.stride_in},
           {o.kernel[0], o.stride_kernel[0]},
           {o.kernel[1], o.stride_kernel[1]},
           {o.kernel[2], o.stride_kernel[2]}}};
}

std::uintptr_t address(const ops::Operand &o) { return reinterpret_cast<std::uintptr_t>(o.data); }

std::uintptr_t end_address(const ops::Operand &o) { return address(o) + operand_bytes(o); }

/// Steps along one stride by which an element of one view may be away from one of another.
struct Steps {
  std::int64_t stride, low, high;
};

/// All strides of two views, large ones first, each with the steps that lead from an element of `a` to one of `b`.
std::vector<Steps> steps_between(const ops::Operand &a, const ops::Operand &b) {
  std::vector<Steps> all;
  const auto add = [&](std::int64_t stride, std::int64_t low, std::int64_t high) {
    if (stride == 0 || low == high) return;
    const auto same = std::find_if(all.begin(), all.end(), [&](const Steps &s) { return s.stride == stride; });
    if (same == all.end()) return all.push_back({stride, low, high});
    same->low += low;
    same->high += high;
  };
  for (const Axis &axis : axes_of(a)) add(axis.stride, 0, axis.extent - 1);
  for (const Axis &axis : axes_of(b)) add(axis.stride, 1 - axis.extent, 0);
  std::sort(all.begin(), all.end(), [](const Steps &x, const Steps &y) { return x.stride > y.stride; });
  return all;
}

/// Can the steps from `axis` on make up `distance`? Strides that nest, as those of slices do, leave two or three steps
/// to try on each axis; when the `budget` of tries for all others is used up, the answer is yes.
bool reachable(const std::vector<Steps> &steps, std::size_t axis, std::int64_t distance, int &budget) {
  if (--budget < 0) return true;
  if (axis == steps.size()) return distance == 0;
  std::int64_t rest_low = 0, rest_high = 0;  // what the smaller strides can add
  for (std::size_t i = axis + 1; i < steps.size(); ++i) {
    rest_low += steps[i].low * steps[i].stride;
    rest_high += steps[i].high * steps[i].stride;
  }
  const Steps &s = steps[axis];
  const std::int64_t first = std::max(s.low, (distance - rest_high) / s.stride - 1);
  const std::int64_t last = std::min(s.high, (distance - rest_low) / s.stride + 1);
  for (std::int64_t n = first; n <= last; ++n) {
    const std::int64_t left = distance - n * s.stride;
    if (rest_low <= left && left <= rest_high && reachable(steps, axis + 1, left, budget)) return true;
  }
  return false;
}

}  // namespace

ops::Operand weight_operand(const lyc_tensor &tensor, const std::string &what) {
  check_tensor(tensor, what);
  if (!is_arithmetic(tensor.dtype))
    fail(LYC_ERROR_UNSUPPORTED, what, " is ", dtype_name(tensor.dtype), "; f32, f16 and bf16 can be computed with");
  const int kernel_dims = tensor.ndim - 2;
  require(tensor.ndim >= 1 && kernel_dims <= ops::kMaxKernelDims, what, " has ", tensor.ndim,
          " axes; weights have 1 (norm, bias), 2 (linear) or 3 to 5 (convolution)");
  require(tensor.layout != LYC_LAYOUT_EOI || tensor.ndim <= 2, what, " is a stack of matrices, the delta is of one");
  ops::Operand result;
  result.data = tensor.data;
  result.dtype = tensor.dtype;
  if (tensor.ndim == 1) {
    result.out = tensor.shape[0];
    result.stride_out = tensor.strides[0];
    return result;
  }
  const bool out_last = tensor.layout == LYC_LAYOUT_HWIO, in_last = tensor.layout == LYC_LAYOUT_OHWI;
  const int out = out_last ? tensor.ndim - 1 : 0;
  const int in = out_last ? tensor.ndim - 2 : in_last ? tensor.ndim - 1 : 1;
  const int kernel = out_last ? 0 : in_last ? 1 : 2;
  result.out = tensor.shape[out];
  result.stride_out = tensor.strides[out];
  result.in = tensor.shape[in];
  result.stride_in = tensor.strides[in];
  result.kernel_dims = kernel_dims;
  for (int d = 0; d < kernel_dims; ++d) {
    result.kernel[d] = tensor.shape[kernel + d];
    result.stride_kernel[d] = tensor.strides[kernel + d];
  }
  return result;
}

lyc_tensor matrix_of_stack(const lyc_tensor &stack, std::int64_t experts, std::int64_t expert,
                           const std::string &what) {
  check_tensor(stack, what);
  require(stack.layout == LYC_LAYOUT_EOI && stack.ndim == 3, what, " is not a stack of matrices: layout EOI, 3 axes");
  if (stack.shape[0] != experts)
    fail(LYC_ERROR_MISMATCH, what, " is a stack of ", stack.shape[0], " matrices, the delta of ", experts);
  lyc_tensor matrix = stack;
  matrix.data = static_cast<char *>(stack.data) + expert * stack.strides[0] * static_cast<std::int64_t>(dtype_size(stack.dtype));
  matrix.ndim = 2;
  matrix.capacity = 0;  // checked with the stack
  for (int d = 0; d < 2; ++d) {
    matrix.shape[d] = stack.shape[d + 1];
    matrix.strides[d] = stack.strides[d + 1];
  }
  matrix.shape[2] = matrix.strides[2] = 0;
  return matrix;
}

ops::Operand slice_rows(ops::Operand operand, std::int64_t begin, std::int64_t count) {
  if (operand.data)
    operand.data = static_cast<char *>(operand.data) +
                   begin * operand.stride_out * static_cast<std::int64_t>(dtype_size(operand.dtype));
  operand.out = count;
  return operand;
}

bool same_extents(const ops::Operand &a, const ops::Operand &b) {
  return a.out == b.out && a.in == b.in && std::equal(a.kernel, a.kernel + ops::kMaxKernelDims, b.kernel);
}

bool same_memory(const ops::Operand &a, const ops::Operand &b) {
  if (a.data != b.data || a.dtype != b.dtype || !same_extents(a, b)) return false;
  const auto first = axes_of(a), second = axes_of(b);
  for (int i = 0; i < kAxes; ++i)
    if (first[i].extent > 1 && first[i].stride != second[i].stride) return false;
  return true;
}

bool may_overlap(const ops::Operand &a, const ops::Operand &b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  if (end_address(a) <= address(b) || end_address(b) <= address(a)) return false;
  const bool comparable = a.dtype == b.dtype && (address(a) - address(b)) % dtype_size(a.dtype) == 0;
  if (!comparable) return true;
  const auto distance =
      static_cast<std::int64_t>(address(b) - address(a)) / static_cast<std::int64_t>(dtype_size(a.dtype));
  int budget = 1000;
  return reachable(steps_between(a, b), 0, distance, budget);
}

bool writable_once(const ops::Operand &operand) {
  auto axes = axes_of(operand);
  std::sort(axes.begin(), axes.end(), [](const Axis &a, const Axis &b) { return a.stride < b.stride; });
  std::int64_t reach = 0;  // of the axes so far
  for (const Axis &axis : axes) {
    if (axis.extent <= 1) continue;
    if (axis.stride <= reach) return false;
    reach += (axis.extent - 1) * axis.stride;
  }
  return true;
}

std::uint64_t operand_bytes(const ops::Operand &operand) {
  if (operand.numel() == 0) return 0;
  std::int64_t last = 0;
  for (const Axis &axis : axes_of(operand)) last += (axis.extent - 1) * axis.stride;
  return static_cast<std::uint64_t>(last + 1) * dtype_size(operand.dtype);
}

std::string extents_text(const ops::Operand &operand) {
  Shape shape = {operand.out};
  if (operand.stride_in != 0 || operand.in != 1 || operand.kernel_dims > 0) shape.push_back(operand.in);
  for (int d = 0; d < operand.kernel_dims; ++d) shape.push_back(operand.kernel[d]);
  return shape_text(shape);
}

}  // namespace lyc
