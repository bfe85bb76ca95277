#include "base/dtype.hpp"
#include "base/tensor.hpp"
#include "capi/boundary.hpp"

using namespace lyc;
using namespace lyc::capi;

lyc_status lyc_tensor_init(lyc_tensor *out_tensor, void *data, lyc_dtype dtype, const int64_t *shape,
                           size_t shape_count) {
  return boundary([&] {
    needed(out_tensor, "out_tensor");
    require(find_dtype(dtype) != nullptr, "dtype is ", static_cast<int>(dtype), ", which is none");
    require(shape != nullptr || shape_count == 0, "shape is NULL");
    require(shape_count <= LYC_MAX_DIMS, "shape_count is ", shape_count, ", at most ", LYC_MAX_DIMS);
    *out_tensor = make_tensor(data, dtype, Shape(shape, shape + shape_count));
  });
}

lyc_status lyc_tensor_slice(const lyc_tensor *tensor, int32_t axis, int64_t begin, int64_t length,
                            lyc_tensor *out_tensor) {
  return boundary([&] {
    lyc_tensor slice = needed(tensor, "tensor");
    needed(out_tensor, "out_tensor");
    check_tensor(slice, "tensor");
    require(axis >= 0 && axis < slice.ndim, "axis is ", axis, ", the tensor has ", slice.ndim);
    require(begin >= 0 && length >= 0 && begin <= slice.shape[axis] - length, length, " elements from ", begin,
            " on are not all within the axis of ", slice.shape[axis]);
    slice.shape[axis] = length;
    if (numel(slice) > 0) {  // an empty part stays where the tensor is: `begin` may be behind its end
      const auto skipped =
          static_cast<std::uint64_t>(begin * slice.strides[axis]) * static_cast<std::uint64_t>(dtype_size(slice.dtype));
      slice.data = static_cast<char *>(slice.data) + skipped;
      if (slice.capacity > 0) slice.capacity -= skipped;
    }
    *out_tensor = slice;
  });
}

lyc_status lyc_tensor_check(const lyc_tensor *tensor) {
  return boundary([&] { check_tensor(needed(tensor, "tensor"), "tensor"); });
}
