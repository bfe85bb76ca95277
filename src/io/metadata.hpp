#pragma once

#include <functional>
#include <map>
#include <string>

namespace lyc::io {

/// The `__metadata__` of a safetensors header: somebody else's text, by key.
using Metadata = std::map<std::string, std::string, std::less<>>;

}  // namespace lyc::io
