// Small questions about text that C++17 has no functions for.
#pragma once

#include <string_view>

namespace lyc {

inline bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

inline bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

inline bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

/// One decimal digit or more, and nothing else.
inline bool is_number(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == text.npos;
}

}  // namespace lyc
