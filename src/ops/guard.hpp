// The exception boundary of a back end: what its table's functions are wrapped in. It allocates nothing.
#pragma once

#include <cstdio>
#include <exception>
#include <new>

#include "base/error.hpp"
#include "ops/backend.hpp"

namespace lyc::ops {

inline lyc_status report(Failure *failure, lyc_status status, int native_code, const char *message) noexcept {
  if (failure) {
    failure->status = status;
    failure->native_code = native_code;
    std::snprintf(failure->message, sizeof failure->message, "%s", message);
  }
  return status;
}

template <typename Body>
lyc_status guard(Failure *failure, Body &&body) noexcept {
  try {
    body();
    return LYC_OK;
  } catch (const Error &error) {
    return report(failure, error.status(), error.native_code(), error.what());
  } catch (const std::bad_alloc &) {
    return report(failure, LYC_ERROR_OUT_OF_MEMORY, 0, "host allocation failed");
  } catch (const std::exception &error) {
    return report(failure, LYC_ERROR_INTERNAL, 0, error.what());
  } catch (...) {
    return report(failure, LYC_ERROR_INTERNAL, 0, "unknown exception");
  }
}

}  // namespace lyc::ops
