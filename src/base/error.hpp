// Errors travel as one exception type inside the library; src/capi/boundary.hpp turns it into a status.
#pragma once

#include <charconv>
#include <exception>
#include <string>
#include <type_traits>
#include <utility>

#include "lycoris.h"

namespace lyc {

class Error : public std::exception {
 public:
  Error(lyc_status status, std::string message, int native_code = 0)
      : status_(status), native_code_(native_code), message_(std::move(message)) {}
  const char *what() const noexcept override { return message_.c_str(); }
  lyc_status status() const { return status_; }
  int native_code() const { return native_code_; }

 private:
  lyc_status status_;
  int native_code_;
  std::string message_;
};

/// Numbers go through to_chars, because a stream would format them by the host's global locale.
template <typename Part>
void append_to(std::string &text, const Part &part) {
  if constexpr (std::is_enum_v<Part>) {
    append_to(text, static_cast<std::underlying_type_t<Part>>(part));
  } else if constexpr (std::is_arithmetic_v<Part> && !std::is_same_v<Part, char>) {
    char digits[32];
    text.append(digits, std::to_chars(digits, digits + sizeof digits, part).ptr);
  } else {
    text += part;
  }
}

/// concat("rank is ", 0) == "rank is 0".
template <typename... Parts>
std::string concat(const Parts &...parts) {
  std::string text;
  (append_to(text, parts), ...);
  return text;
}

template <typename... Parts>
[[noreturn]] void fail(lyc_status status, const Parts &...parts) {
  throw Error(status, concat(parts...));
}

/// Check an argument: the message says what was wrong and what would be right.
template <typename... Parts>
void require(bool condition, const Parts &...parts) {
  if (!condition) fail(LYC_ERROR_INVALID_ARGUMENT, parts...);
}

}  // namespace lyc
