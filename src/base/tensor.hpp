// Checks on the public tensor descriptor. Layout tags end in core/operand.hpp; here shapes are just numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lycoris.h"

namespace lyc {

using Shape = std::vector<std::int64_t>;

/// Product of the extents; throws when one is negative or the product overflows. `what` begins the message.
std::int64_t checked_numel(const std::int64_t *shape, std::size_t count, const std::string &what);

/// "[3072, 16]"
std::string shape_text(const std::int64_t *shape, std::size_t count);
inline std::string shape_text(const Shape &shape) { return shape_text(shape.data(), shape.size()); }

/// A contiguous CPU view; data may be null where only the description counts.
lyc_tensor make_tensor(void *data, lyc_dtype dtype, const Shape &shape);

/// An aligned address for a tensor that is only described: nobody reads or writes there.
void *nowhere();

/// Everything that can be checked without touching the memory: dtype, rank, extents, strides, alignment, capacity.
/// `what` begins the message ("base", "lora_up.weight").
void check_tensor(const lyc_tensor &tensor, const std::string &what);

inline Shape shape_of(const lyc_tensor &tensor) { return Shape(tensor.shape, tensor.shape + tensor.ndim); }
std::int64_t numel(const lyc_tensor &tensor);
bool is_contiguous(const lyc_tensor &tensor);

/// Bytes from data to the end of the last element that the strides reach; 0 for empty tensors.
std::uint64_t byte_extent(const lyc_tensor &tensor);

/// One element as a double, from CPU memory of any arithmetic or integer type.
double read_element(const void *data, lyc_dtype dtype, std::int64_t index);

}  // namespace lyc
