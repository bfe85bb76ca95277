// What OFT and BOFT share.
#pragma once

#include <optional>

#include "algo/families.hpp"

namespace lyc::algo {

/// Blocks [..., n, b, b] of X: Q = X - X^T.
inline void set_square_blocks(ops::Rotation &rotation, const lyc_tensor &blocks) {
  const std::int64_t *extents = blocks.shape + blocks.ndim - 3;
  rotation.blocks = extents[0];
  rotation.block_size = extents[1];
  ops::Operand &x = rotation.generators;
  x.data = blocks.data;
  x.dtype = blocks.dtype;
  x.out = rotation.stages * rotation.blocks;
  x.in = x.stride_out = rotation.block_size * rotation.block_size;
  x.stride_in = 1;
}

/// LyCORIS: alpha is no scale, but the largest |Q| for each row; 0 or none: any.
inline void limit_together(ops::Rotation &rotation, const std::optional<double> &alpha) {
  if (!(alpha.value_or(0.0) > 0.0)) return;
  rotation.limited = ops::Rotation::Limit::kTogether;
  rotation.limit = *alpha * static_cast<double>(rotation.extent());
}

inline void set_rescale(ops::Rotation &rotation, const lyc_tensor *values) {
  if (values) rotation.rescale = column(*values);
}

/// [out, 1...], as LyCORIS stores it.
inline FactorSpec rescale_spec(const char *name, const LayerShape &layer) {
  return {name, join({layer.out, 1}, Shape(layer.kernel.size(), 1))};
}

}  // namespace lyc::algo
