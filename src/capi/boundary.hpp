// The edge: every lyc_* function that can fail is one call to boundary(), which turns exceptions into a status and this
// thread's message. Nothing else in the library knows about either.
#pragma once

#include <new>
#include <string>

#include "base/error.hpp"
#include "core/object.hpp"

namespace lyc::capi {

/// Remember this thread's failure, in a fixed buffer: no allocation, nothing to destroy at thread exit.
lyc_status remember(lyc_status status, int native_code, const char *message) noexcept;

template <typename Body>
lyc_status boundary(Body &&body) noexcept {
  try {
    body();
    return LYC_OK;
  } catch (const Error &error) {
    return remember(error.status(), error.native_code(), error.what());
  } catch (const std::bad_alloc &) {
    return remember(LYC_ERROR_OUT_OF_MEMORY, 0, "out of host memory");
  } catch (const std::exception &error) {
    return remember(LYC_ERROR_INTERNAL, 0, error.what());
  } catch (...) {
    return remember(LYC_ERROR_INTERNAL, 0, "unknown exception");
  }
}

/// The object behind a handle. `name` is the parameter's.
template <typename T>
T &checked(T *handle, const char *name) {
  require(handle != nullptr, name, " is NULL");
  require(handle->alive(), name, " is not a live handle");
  return *handle;
}

/// An output or input pointer that must be there.
template <typename T>
T &needed(T *pointer, const char *name) {
  require(pointer != nullptr, name, " is NULL");
  return *pointer;
}

/// For a `T **out` parameter: NULL from the start, so that it is NULL on failure.
template <typename T>
void clear(T **out, const char *name) {
  needed(out, name) = nullptr;
}

/// Copy text into the caller's buffer, always terminated, and report its full length.
void put_text(const std::string &text, char *buffer, std::size_t capacity, std::size_t *out_length);

template <typename T>
void retain(T *handle) noexcept {
  if (handle && handle->alive()) handle->retain();
}

template <typename T>
void release(T *handle) noexcept {
  if (handle && handle->alive()) handle->release();
}

}  // namespace lyc::capi
