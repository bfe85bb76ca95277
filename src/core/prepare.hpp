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
/// Errors: UNSUPPORTED (only some rows of the layer are there).
void derive_base_state(lyc_context &context, Definition &definition, const ops::Operand &weight,
                       const Placement &placement, void *stream, std::vector<DeviceBuffer> &buffers);

/// The matrices R - I of all rotations of `definition` on `weight`, in the order in which it is lowered to them. Memory
/// of an earlier preparation is used again, so that batches which know its address see the new values.
void prepare_rotations(lyc_context &context, const Definition &definition, const ops::Operand &weight, void *stream,
                       std::vector<ops::Operand> &rests, std::vector<DeviceBuffer> &buffers);

/// DoRA's norms of W + D, where no multiplier changes them, in `memory`; elsewhere an absent operand. Only on the CPU:
/// other devices make them as they go through the weight.
ops::Operand prepare_norms(lyc_context &context, const Definition &definition, const ops::Operand &weight,
                           std::vector<float> &memory);

}  // namespace lyc
