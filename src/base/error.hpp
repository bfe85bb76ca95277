// Errors travel as one exception type inside the library; src/capi/boundary.hpp turns it into a status.
#pragma once

#include <exception>
#include <sstream>
#include <string>
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

/// concat("rank is ", 0) == "rank is 0".
template <typename... Parts>
std::string concat(const Parts &...parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
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
