// One line of a tensor table: what a file's header or a caller says of a tensor, without its data.
#pragma once

#include <cstdint>
#include <string_view>

#include "lycoris.h"

namespace lyc::io {

/// Borrowed: name and shape belong to whoever made the table.
struct TensorEntry {
  std::string_view name;
  lyc_dtype dtype = LYC_DTYPE_NONE;
  const std::int64_t *shape = nullptr;
  std::int32_t ndim = 0;

  std::int64_t dim(std::int32_t axis) const { return axis < ndim ? shape[axis] : 1; }
  bool empty() const {
    for (std::int32_t axis = 0; axis < ndim; ++axis)
      if (shape[axis] == 0) return true;
    return false;
  }
  bool one_element() const {
    for (std::int32_t axis = 0; axis < ndim; ++axis)
      if (shape[axis] != 1) return false;
    return true;
  }
};

}  // namespace lyc::io
