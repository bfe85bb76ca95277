// Where layouts end: a weight with its layout tag becomes an operand with canonical axes, once.
#pragma once

#include <string>

#include "algo/algorithm.hpp"
#include "lycoris.h"
#include "ops/weight.hpp"

namespace lyc {

/// `what` ("base", "out", a tensor's name) begins the messages. Only F32, F16 and BF16 of 1 to 5 axes.
ops::Operand weight_operand(const lyc_tensor &tensor, const std::string &what);

/// One matrix of a stack [E, O, I], which must have `experts`.
lyc_tensor matrix_of_stack(const lyc_tensor &stack, std::int64_t experts, std::int64_t expert, const std::string &what);

/// Rows begin .. begin + count - 1 of a weight.
ops::Operand slice_rows(ops::Operand operand, std::int64_t begin, std::int64_t count);

/// Same extents, up to kernels of one tap, which may be spelled out or not.
bool same_extents(const ops::Operand &a, const ops::Operand &b);

/// Same memory, element by element.
bool same_memory(const ops::Operand &a, const ops::Operand &b);

/// Whether two views can touch the same bytes. Exact for strides that nest, as those of slices of one dense tensor do;
/// on the safe side otherwise.
bool may_overlap(const ops::Operand &a, const ops::Operand &b);

/// Whether every element has an address of its own, so that the view can be written. For strides that nest; others are
/// refused.
bool writable_once(const ops::Operand &operand);

/// Bytes from data to the end of the last element.
std::uint64_t operand_bytes(const ops::Operand &operand);

/// "[640, 320, 3, 3]", in canonical order.
std::string extents_text(const ops::Operand &operand);

}  // namespace lyc
