// What is made from a module's pristine weight before its delta can be computed.
#pragma once

#include <vector>

#include "core/context.hpp"
#include "core/definition.hpp"

namespace lyc {

/// Singular triplets that a family of `rank` starts from. At most as many as there are; all others are zero, with
/// kMissingSigma.
struct TripletRange {
  std::int64_t first, count;
};
TripletRange triplets_of(std::int64_t rank, std::int64_t available, std::uint32_t flags);
inline constexpr float kMissingSigma = 1e-6f;

/// Make the base state that `definition` lacks from `weight`, all of it and pristine; `buffers` takes the memory.
/// Errors: UNSUPPORTED (only some rows of the layer are there; the device cannot).
void derive_base_state(lyc_context &context, Definition &definition, const ops::Operand &weight,
                       const Placement &placement, void *stream, std::vector<DeviceBuffer> &buffers);

}  // namespace lyc
