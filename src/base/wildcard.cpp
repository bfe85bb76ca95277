#include "base/wildcard.hpp"

#include <cstddef>

namespace lyc {
namespace {

/// Match one character against the pattern at `p`; moves `p` behind what it used. A '[' that is never closed is itself.
bool matches_one(std::string_view pattern, std::size_t &p, char c) {
  const std::size_t close = pattern[p] == '[' ? pattern.find(']', p + 2) : std::string_view::npos;
  if (close == std::string_view::npos) {
    const char expected = pattern[p++];
    return expected == '?' || expected == c;
  }
  std::string_view set = pattern.substr(p + 1, close - p - 1);
  p = close + 1;
  const bool inverted = set.size() > 1 && set.front() == '!';
  if (inverted) set.remove_prefix(1);
  bool found = false;
  for (std::size_t i = 0; i < set.size(); ++i) {
    if (i + 2 < set.size() && set[i + 1] == '-') {
      found = found || (set[i] <= c && c <= set[i + 2]);
      i += 2;
    } else {
      found = found || set[i] == c;
    }
  }
  return found != inverted;
}

}  // namespace

bool matches_wildcard(std::string_view pattern, std::string_view name) {
  std::size_t p = 0, n = 0, star = std::string_view::npos, star_name = 0;
  while (n < name.size()) {
    std::size_t next = p;
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_name = n;
    } else if (p < pattern.size() && matches_one(pattern, next, name[n])) {
      p = next;
      ++n;
    } else if (star != std::string_view::npos) {  // let the last star take one character more
      p = star + 1;
      n = ++star_name;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace lyc
