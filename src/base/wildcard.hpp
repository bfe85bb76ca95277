// Shell wildcards over whole names: '*' any text, '?' one character, '[abc]', '[a-z]', '[!a]' one of a set.
#pragma once

#include <string_view>

namespace lyc {

bool matches_wildcard(std::string_view pattern, std::string_view name);

}  // namespace lyc
