#include "cpu/matrix.hpp"

#include <algorithm>
#include <cstring>

#include "base/dtype.hpp"

namespace lyc::cpu {
namespace {

std::int64_t extent_of(const ops::Operand &operand, int axis) {
  return axis == 0 ? operand.in : operand.kernel[axis - 1];
}

std::int64_t stride_of(const ops::Operand &operand, int axis) {
  return axis == 0 ? operand.stride_in : operand.stride_kernel[axis - 1];
}

Axes one_axis(std::int64_t extent, std::int64_t stride) {
  Axes axes;
  axes.add(extent, stride);
  return axes;
}

Matrix matrix(const ops::Operand &operand, const Axes &rows, const Axes &columns) {
  return {static_cast<char *>(operand.data), operand.dtype, rows, columns};
}

Axes out_axis(const ops::Operand &operand) { return one_axis(operand.out, operand.stride_out); }
Axes in_axis(const ops::Operand &operand) { return one_axis(operand.in, operand.stride_in); }

float to_float(lyc_dtype dtype, const char *element) {
  std::uint16_t half;
  float value;
  switch (dtype) {
    case LYC_DTYPE_BF16:
      return std::memcpy(&half, element, 2), bf16_to_float(half);
    case LYC_DTYPE_F16:
      return std::memcpy(&half, element, 2), f16_to_float(half);
    default:
      return std::memcpy(&value, element, 4), value;
  }
}

void from_float(float value, lyc_dtype dtype, char *element) {
  const std::uint16_t half = dtype == LYC_DTYPE_BF16 ? float_to_bf16(value) : float_to_f16(value);
  dtype == LYC_DTYPE_F32 ? std::memcpy(element, &value, 4) : std::memcpy(element, &half, 2);
}

// visit(i, element, length) for columns column + i .. that follow each other along the innermost axis.
template <typename Visit>
void for_runs(const Matrix &matrix, std::int64_t row, std::int64_t column, std::int64_t n, Visit visit) {
  const Axes &axes = matrix.columns;
  const std::int64_t extent = axes.count ? axes.extent[axes.count - 1] : 1;
  for (std::int64_t i = 0, length = 0; i < n; i += length) {
    length = std::min(n - i, extent - (column + i) % extent);
    visit(i, matrix.at(row, column + i), length);
  }
}

bool runs_lie_dense(const Matrix &matrix) {
  return matrix.columns.count > 0 && matrix.columns.stride[matrix.columns.count - 1] == 1;
}

// visit(i, element) for each column where they do not lie side by side.
template <typename Visit>
void walk(const Matrix &matrix, std::int64_t row, std::int64_t column, std::int64_t n, Visit visit) {
  const Axes &axes = matrix.columns;
  const std::int64_t size = static_cast<std::int64_t>(dtype_size(matrix.dtype));
  const std::int64_t step = axes.count ? axes.stride[axes.count - 1] * size : 0;
  for_runs(matrix, row, column, n, [&](std::int64_t i, char *element, std::int64_t length) {
    for (const std::int64_t end = i + length; i < end; ++i, element += step) visit(i, element);
  });
}

}  // namespace

void Axes::add(std::int64_t new_extent, std::int64_t new_stride) {
  if (new_extent == 1) return;
  if (count > 0 && stride[count - 1] == new_stride * new_extent) {
    extent[count - 1] *= new_extent;
    stride[count - 1] = new_stride;
    return;
  }
  extent[count] = new_extent;
  stride[count++] = new_stride;
}

std::int64_t Axes::size() const {
  std::int64_t size = 1;
  for (int axis = 0; axis < count; ++axis) size *= extent[axis];
  return size;
}

std::int64_t Axes::offset(std::int64_t index) const {
  std::int64_t offset = 0;
  for (int axis = count - 1; axis > 0; --axis) {
    offset += index % extent[axis] * stride[axis];
    index /= extent[axis];
  }
  return count ? offset + index * stride[0] : 0;
}

char *Matrix::at(std::int64_t row, std::int64_t column) const {
  return data + (rows.offset(row) + columns.offset(column)) * static_cast<std::int64_t>(dtype_size(dtype));
}

Frame::Frame(const ops::Operand &out) : order_{0, 1, 2, 3}, out_in_columns_(out.out > 1) {
  std::stable_sort(order_, order_ + Axes::kMax, [&](int a, int b) { return stride_of(out, a) > stride_of(out, b); });
  for (int axis = 0; axis < Axes::kMax; ++axis)
    if (extent_of(out, axis) > 1 && stride_of(out, axis) < out.stride_out) out_in_columns_ = false;
}

Axes Frame::inner(const ops::Operand &operand) const {
  Axes axes;
  for (int axis : order_) axes.add(extent_of(operand, axis), stride_of(operand, axis));
  return axes;
}

Matrix Frame::weight(const ops::Operand &operand) const {
  return out_in_columns_ ? matrix(operand, inner(operand), out_axis(operand))
                         : matrix(operand, out_axis(operand), inner(operand));
}

Matrix Frame::left(const ops::Operand &up, const ops::Operand &down) const {
  return out_in_columns_ ? matrix(down, inner(down), out_axis(down)) : matrix(up, out_axis(up), in_axis(up));
}

Matrix Frame::right(const ops::Operand &up, const ops::Operand &down) const {
  return out_in_columns_ ? matrix(up, in_axis(up), out_axis(up)) : matrix(down, out_axis(down), inner(down));
}

Matrix Frame::core(const ops::Operand &core) const {
  Axes rows;
  for (int axis : order_)
    if (axis != 0) rows.add(extent_of(core, axis), stride_of(core, axis));
  rows.add(core.out, core.stride_out);
  return matrix(core, rows, in_axis(core));
}

std::int64_t Frame::inside_in(const ops::Operand &operand) const {
  std::int64_t inside = 1;
  for (int axis = Axes::kMax - 1; order_[axis] != 0; --axis) inside *= extent_of(operand, order_[axis]);
  return inside;
}

std::int64_t Frame::kernel_index(const ops::Operand &operand, std::int64_t position) const {
  std::int64_t index = 0, inside = 1;
  for (int axis = Axes::kMax - 1; axis >= 0; --axis) {
    const std::int64_t extent = extent_of(operand, order_[axis]);
    if (order_[axis] != 0) {
      index += position % extent * inside;
      position /= extent;
    }
    inside *= extent;
  }
  return index;
}

std::vector<std::int64_t> Frame::inner_indices(const ops::Operand &operand) const {
  std::int64_t steps[Axes::kMax], step = 1;
  for (int axis = Axes::kMax - 1; axis >= 0; --axis) {
    steps[axis] = step;
    step *= extent_of(operand, axis);
  }
  std::vector<std::int64_t> indices(static_cast<std::size_t>(operand.in * operand.kernel_size()));
  for (std::size_t at = 0; at < indices.size(); ++at) {
    std::int64_t rest = static_cast<std::int64_t>(at);
    for (int axis = Axes::kMax - 1; axis >= 0; --axis) {
      const std::int64_t extent = extent_of(operand, order_[axis]);
      indices[at] += rest % extent * steps[order_[axis]];
      rest /= extent;
    }
  }
  return indices;
}

void load(const Kernels &kernels, const Matrix &matrix, std::int64_t row, std::int64_t column, std::int64_t n,
          float *values) {
  if (matrix.contiguous()) return kernels.load(matrix.dtype, matrix.at(row, column), n, values);
  if (runs_lie_dense(matrix))
    return for_runs(matrix, row, column, n, [&](std::int64_t i, const char *run, std::int64_t length) {
      kernels.load(matrix.dtype, run, length, values + i);
    });
  walk(matrix, row, column, n,
       [&](std::int64_t i, const char *element) { values[i] = to_float(matrix.dtype, element); });
}

void load(const Kernels &, const Matrix &matrix, std::int64_t row, std::int64_t column, std::int64_t n,
          std::uint16_t *values) {
  const auto take = [&](std::int64_t i, const char *run, std::int64_t length) {
    std::memcpy(values + i, run, static_cast<std::size_t>(length) * sizeof *values);
  };
  if (matrix.contiguous()) return take(0, matrix.at(row, column), n);
  if (runs_lie_dense(matrix)) return for_runs(matrix, row, column, n, take);
  walk(matrix, row, column, n, [&](std::int64_t i, const char *element) { take(i, element, 1); });
}

void zip(const std::uint16_t *a, const std::uint16_t *b, std::int64_t n, float *pairs) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t pair = a[i] | std::uint32_t{b[i]} << 16;
    std::memcpy(pairs + i, &pair, sizeof pair);
  }
}

void store(const Kernels &kernels, const float *values, std::int64_t n, const Matrix &matrix, std::int64_t row,
           std::int64_t column, bool stream) {
  if (matrix.contiguous()) return kernels.store(values, n, matrix.dtype, matrix.at(row, column), stream);
  if (runs_lie_dense(matrix))
    return for_runs(matrix, row, column, n, [&](std::int64_t i, char *run, std::int64_t length) {
      kernels.store(values + i, length, matrix.dtype, run, stream);
    });
  walk(matrix, row, column, n, [&](std::int64_t i, char *element) { from_float(values[i], matrix.dtype, element); });
}

void copy(const Kernels &kernels, const Matrix &from, const Matrix &to, std::int64_t row, std::int64_t column,
          std::int64_t n, float *buffer) {
  if (from.dtype != to.dtype) {
    load(kernels, from, row, column, n, buffer);
    return store(kernels, buffer, n, to, row, column, false);
  }
  const std::size_t size = dtype_size(to.dtype);
  if (from.contiguous() && to.contiguous()) {
    std::memmove(to.at(row, column), from.at(row, column), static_cast<std::size_t>(n) * size);
    return;
  }
  walk(to, row, column, n,
       [&](std::int64_t i, char *element) { std::memcpy(element, from.at(row, column + i), size); });
}

float read(const ops::Operand &operand, std::int64_t offset) {
  return to_float(operand.dtype, static_cast<const char *>(operand.data) +
                                     offset * static_cast<std::int64_t>(dtype_size(operand.dtype)));
}

std::int64_t read_index(const ops::Operand &operand, std::int64_t offset) {
  std::int64_t value;
  return std::memcpy(&value, static_cast<const std::int64_t *>(operand.data) + offset, sizeof value), value;
}

}  // namespace lyc::cpu
