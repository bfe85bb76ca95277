#include "base/tensor.hpp"

#include <limits>

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc {

std::int64_t checked_numel(const std::int64_t *shape, std::size_t count, const std::string &what) {
  std::int64_t product = 1;
  const auto refuse = [&](const char *why) { fail(LYC_ERROR_INVALID_ARGUMENT, what, why, shape_text(shape, count)); };
  for (std::size_t d = 0; d < count; ++d) {
    if (shape[d] < 0) refuse(" has a negative extent: ");
    if (__builtin_mul_overflow(product, shape[d], &product)) refuse(" has too many elements: ");
  }
  return product;
}

std::string shape_text(const std::int64_t *shape, std::size_t count) {
  std::string text = "[";
  for (std::size_t d = 0; d < count; ++d) text += (d ? ", " : "") + std::to_string(shape[d]);
  return text + "]";
}

lyc_tensor make_tensor(void *data, lyc_dtype dtype, const Shape &shape) {
  require(shape.size() <= LYC_MAX_DIMS, "a tensor has ", shape.size(), " axes, at most ", LYC_MAX_DIMS,
          " are possible");
  const std::int64_t count = checked_numel(shape.data(), shape.size(), "tensor");
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(count, static_cast<std::int64_t>(dtype_size(dtype)), &bytes))
    fail(LYC_ERROR_INVALID_ARGUMENT, "tensor is too large: ", shape_text(shape));
  lyc_tensor tensor{};
  tensor.data = data;
  tensor.capacity = static_cast<std::uint64_t>(bytes);
  tensor.dtype = dtype;
  tensor.ndim = static_cast<std::int32_t>(shape.size());
  std::int64_t stride = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    tensor.shape[d] = shape[d];
    tensor.strides[d] = stride;
    stride *= shape[d] > 0 ? shape[d] : 1;
  }
  return tensor;
}

void *nowhere() {
  alignas(16) static constexpr char kNowhere[16] = {};
  return const_cast<char *>(kNowhere);
}

void check_tensor(const lyc_tensor &tensor, const std::string &what) {
  require(find_dtype(tensor.dtype), what, " has an unknown dtype ", static_cast<int>(tensor.dtype));
  require(tensor.ndim >= 0 && tensor.ndim <= LYC_MAX_DIMS, what, " has ", tensor.ndim, " axes, 0 to ", LYC_MAX_DIMS,
          " are possible");
  require(tensor.device_type == LYC_DEVICE_CPU || tensor.device_type == LYC_DEVICE_CUDA, what,
          " has an unknown device type ", static_cast<int>(tensor.device_type));
  require(tensor.layout >= LYC_LAYOUT_OIHW && tensor.layout <= LYC_LAYOUT_EOI, what, " has an unknown layout ",
          static_cast<int>(tensor.layout));
  require((tensor.flags & ~std::uint32_t{LYC_TENSOR_READ_ONLY}) == 0, what, " has unknown flags ", tensor.flags);
  for (std::uint64_t word : tensor.reserved_) require(word == 0, what, " has a reserved field that is not 0");
  const std::int64_t count = checked_numel(tensor.shape, static_cast<std::size_t>(tensor.ndim), what);
  for (int d = 0; d < tensor.ndim; ++d)
    require(tensor.strides[d] >= 0, what, " has a negative stride on axis ", d, ": ", tensor.strides[d]);
  require(count == 0 || tensor.data != nullptr, what, " has no data (NULL)");
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
  require(address % dtype_size(tensor.dtype) == 0, what, " is not aligned to its elements of ",
          dtype_size(tensor.dtype), " bytes");
  const std::uint64_t extent = byte_extent(tensor);
  require(tensor.capacity == 0 || extent <= tensor.capacity, what, " reaches ", extent,
          " bytes from its address, but its capacity is ", tensor.capacity);
}

std::int64_t numel(const lyc_tensor &tensor) {
  return checked_numel(tensor.shape, static_cast<std::size_t>(tensor.ndim), "tensor");
}

bool is_contiguous(const lyc_tensor &tensor) {
  std::int64_t expected = 1;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    if (tensor.shape[d] == 0) return true;
    if (tensor.shape[d] != 1 && tensor.strides[d] != expected) return false;
    expected *= tensor.shape[d];
  }
  return true;
}

std::uint64_t byte_extent(const lyc_tensor &tensor) {
  std::int64_t last = 0;
  for (int d = 0; d < tensor.ndim; ++d) {
    if (tensor.shape[d] == 0) return 0;
    std::int64_t reach = 0;
    require(!__builtin_mul_overflow(tensor.shape[d] - 1, tensor.strides[d], &reach) &&
                !__builtin_add_overflow(last, reach, &last) && last < std::numeric_limits<std::int64_t>::max() / 16,
            "strides overflow the address space: axis ", d);
  }
  return (static_cast<std::uint64_t>(last) + 1) * dtype_size(tensor.dtype);
}

double read_element(const void *data, lyc_dtype dtype, std::int64_t index) {
  const auto at = [&](auto zero) {
    decltype(zero) value;
    std::memcpy(&value, static_cast<const char *>(data) + index * static_cast<std::int64_t>(sizeof zero), sizeof zero);
    return value;
  };
  switch (dtype) {
    case LYC_DTYPE_F32:
      return at(float{});
    case LYC_DTYPE_F16:
      return f16_to_float(at(std::uint16_t{}));
    case LYC_DTYPE_BF16:
      return bf16_to_float(at(std::uint16_t{}));
    case LYC_DTYPE_F64:
      return at(double{});
    case LYC_DTYPE_I64:
      return static_cast<double>(at(std::int64_t{}));
    case LYC_DTYPE_I32:
      return at(std::int32_t{});
    case LYC_DTYPE_I16:
      return at(std::int16_t{});
    case LYC_DTYPE_I8:
      return at(std::int8_t{});
    case LYC_DTYPE_U64:
      return static_cast<double>(at(std::uint64_t{}));
    case LYC_DTYPE_U32:
      return at(std::uint32_t{});
    case LYC_DTYPE_U16:
      return at(std::uint16_t{});
    case LYC_DTYPE_U8:
    case LYC_DTYPE_BOOL:
      return at(std::uint8_t{});
    default:
      fail(LYC_ERROR_UNSUPPORTED, "values of dtype ", dtype_name(dtype), " cannot be read as numbers");
  }
}

}  // namespace lyc
