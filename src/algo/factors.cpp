#include <algorithm>

#include "algo/algorithm.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

ops::Operand operand(const lyc_tensor &tensor) {
  ops::Operand result;
  result.data = tensor.data;
  result.dtype = tensor.dtype;
  return result;
}

/// Extents of the layer's weight, strides 0.
ops::Operand spread(const lyc_tensor &tensor, const LayerShape &layer) {
  ops::Operand result = operand(tensor);
  result.out = layer.out;
  result.in = layer.in;
  result.kernel_dims = static_cast<std::int32_t>(layer.kernel.size());
  std::copy(layer.kernel.begin(), layer.kernel.end(), result.kernel);
  return result;
}

std::int64_t vector_stride(const lyc_tensor &tensor, std::int64_t extent, const char *what) {
  const std::int64_t count = numel(tensor);
  if (count != 1 && count != extent)
    fail(LYC_ERROR_MISMATCH, "a factor has ", count, " values for ", extent, what);
  return count == 1 ? 0 : 1;
}

}  // namespace

std::int64_t LayerShape::kernel_size() const {
  std::int64_t size = 1;
  for (std::int64_t extent : kernel) size *= extent;
  return size;
}

void Factors::set(std::string name, const lyc_tensor &tensor) {
  for (auto &[known, value] : tensors_)
    if (known == name) {
      value = tensor;
      return;
    }
  tensors_.emplace_back(std::move(name), tensor);
}

void Factors::erase(std::string_view name) {
  tensors_.erase(std::remove_if(tensors_.begin(), tensors_.end(), [&](const auto &entry) { return entry.first == name; }),
                 tensors_.end());
}

const lyc_tensor *Factors::find(std::string_view name) const {
  for (const auto &[known, tensor] : tensors_)
    if (known == name) return &tensor;
  return nullptr;
}

const lyc_tensor &Factors::at(std::string_view name) const {
  const lyc_tensor *tensor = find(name);
  if (!tensor) fail(LYC_ERROR_FORMAT, name, " is missing");
  return *tensor;
}

ops::Operand matrix(const lyc_tensor &tensor) {
  ops::Operand result = operand(tensor);
  result.out = tensor.shape[0];
  result.in = tensor.ndim > 1 ? tensor.shape[1] : 1;
  result.stride_out = result.in;
  result.stride_in = 1;
  return result;
}

ops::Operand transposed(const lyc_tensor &tensor) {
  ops::Operand result = matrix(tensor);
  std::swap(result.out, result.in);
  std::swap(result.stride_out, result.stride_in);
  return result;
}

ops::Operand taps(const lyc_tensor &tensor, std::int64_t in, const Shape &kernel) {
  ops::Operand result = operand(tensor);
  result.out = tensor.shape[0];
  result.in = in;
  result.kernel_dims = static_cast<std::int32_t>(kernel.size());
  std::int64_t stride = 1;
  for (std::size_t d = kernel.size(); d-- > 0;) {
    result.kernel[d] = kernel[d];
    result.stride_kernel[d] = stride;
    stride *= kernel[d];
  }
  result.stride_in = stride;
  result.stride_out = stride * in;
  return result;
}

ops::Operand column(const lyc_tensor &tensor) {
  ops::Operand result = operand(tensor);
  result.out = numel(tensor);
  result.stride_out = 1;
  return result;
}

ops::Operand along_rows(const lyc_tensor &tensor, const LayerShape &layer) {
  ops::Operand result = spread(tensor, layer);
  result.stride_out = vector_stride(tensor, layer.out, " rows");
  return result;
}

ops::Operand along_inputs(const lyc_tensor &tensor, const LayerShape &layer) {
  ops::Operand result = spread(tensor, layer);
  result.stride_in = vector_stride(tensor, layer.in, " inputs");
  return result;
}

std::int64_t values_of(const Factors &factors, std::string_view suffix) {
  const Shape shape = shape_of(factors.at(suffix));
  const std::int64_t count = numel(factors.at(suffix));
  if (std::none_of(shape.begin(), shape.end(), [&](std::int64_t extent) { return extent == count; }) && !shape.empty())
    fail(LYC_ERROR_FORMAT, suffix, " has shape ", shape_text(shape), ", must be a vector");
  return count;
}

std::int64_t rows_of(const Factors &factors, std::string_view suffix) {
  const lyc_tensor &tensor = factors.at(suffix);
  if (tensor.ndim < 1) fail(LYC_ERROR_FORMAT, suffix, " is a scalar, not a matrix");
  return tensor.shape[0];
}

std::int64_t columns_of(const Factors &factors, std::string_view suffix) {
  const lyc_tensor &tensor = factors.at(suffix);
  if (tensor.ndim < 2) fail(LYC_ERROR_FORMAT, suffix, " has shape ", shape_text(shape_of(tensor)), ", not a matrix");
  return checked_numel(tensor.shape + 1, static_cast<std::size_t>(tensor.ndim - 1), std::string(suffix));
}

std::int64_t matrix_columns_of(const Factors &factors, std::string_view suffix) {
  const std::int64_t columns = columns_of(factors, suffix);
  const lyc_tensor &tensor = factors.at(suffix);
  if (columns != tensor.shape[1])
    fail(LYC_ERROR_FORMAT, suffix, " has shape ", shape_text(shape_of(tensor)), ", must be a matrix");
  return columns;
}

std::int64_t core_columns_of(const Factors &factors, std::string_view suffix) {
  columns_of(factors, suffix);
  return factors.at(suffix).shape[1];
}

Shape kernel_of(const Factors &factors, std::string_view suffix) {
  const lyc_tensor &tensor = factors.at(suffix);
  if (tensor.ndim - 2 > ops::kMaxKernelDims)
    fail(LYC_ERROR_FORMAT, suffix, " has shape ", shape_text(shape_of(tensor)), ", too many kernel axes");
  return tensor.ndim > 2 ? Shape(tensor.shape + 2, tensor.shape + tensor.ndim) : Shape{};
}

std::int64_t with_taps(std::int64_t columns, const Shape &kernel) {
  Shape extents = kernel;
  extents.push_back(columns);
  return checked_numel(extents.data(), extents.size(), "the delta");
}

void require_equal(std::int64_t a, std::string_view a_name, std::int64_t b, std::string_view b_name,
                   std::string_view what) {
  if (a != b) fail(LYC_ERROR_FORMAT, a_name, " has ", what, " ", a, ", ", b_name, " has ", b);
}

}  // namespace lyc::algo
