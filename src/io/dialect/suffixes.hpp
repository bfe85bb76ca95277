// The endings of adapter keys: what comes after the layer's name says which factor of which family a tensor is.
#pragma once

#include <string_view>

#include "io/dialect/dialect.hpp"

namespace lyc::io {

struct Suffix {
  std::string_view spelling;     // as it ends a key
  std::string_view name;         // as LyCORIS calls the factor
  lyc_algo algo;                 // NONE: any family ("alpha"), or one that the library has not got
  std::string_view unsupported;  // the name of that family or feature
};

struct KeyParts {
  std::string_view layer;
  Suffix suffix = {};  // without a name: no known ending
};

/// Split a key at its longest known ending. Only the ending counts: "lora_" inside a path means nothing.
KeyParts split_key(std::string_view key, const std::vector<FamilySuffix> &families);

}  // namespace lyc::io
