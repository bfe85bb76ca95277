#pragma once

#include <map>
#include <string>

namespace lyc::io {

/// The `__metadata__` of a safetensors header: somebody else's text, by key.
using Metadata = std::map<std::string, std::string>;

}  // namespace lyc::io
