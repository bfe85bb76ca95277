// Which back ends there are. The CPU is built in; CUDA is a file, opened at first need and never closed.
#pragma once

#include <string>

#include "ops/backend.hpp"

namespace lyc {

/// nullptr where the back end is not to be had.
const ops::Backend *find_backend(lyc_device_type type);

/// Throws UNSUPPORTED, with every place tried and why it failed.
const ops::Backend &backend_for(lyc_device_type type);

/// Load the CUDA back end from this file. Throws NOT_FOUND, or UNSUPPORTED (of another release, switched off, or one is
/// loaded already).
void load_backend(const std::string &path);

/// Where the back end came from, or every place tried and why it failed.
std::string explain_backend(lyc_device_type type);

}  // namespace lyc
