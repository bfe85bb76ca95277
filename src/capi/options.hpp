// Growing structs: a caller compiled against an older header brings a smaller one, against a newer one a larger one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/error.hpp"
#include "lycoris.h"

namespace lyc::capi {

/// `T_init(ptr, size)`: zero what the caller has, and note its size.
template <typename T>
void init_struct(T *object, std::size_t struct_size) noexcept {
  if (!object || struct_size < sizeof(object->struct_size)) return;
  std::memset(object, 0, struct_size);
  object->struct_size = static_cast<std::uint32_t>(struct_size);
}

/// A struct that was never set up has any size: what no release will reach is not read.
constexpr std::size_t kMaxStructSize = 4096;

template <typename T>
std::size_t checked_size(const T &object, const char *name) {
  const std::size_t size = object.struct_size;
  require(size >= sizeof object.struct_size && size <= kMaxStructSize, name, ".struct_size is ", size,
          "; set the struct up with its _init function");
  return size;
}

/// The caller's options as this library knows them: missing fields are zero, unknown ones must be.
template <typename T>
T read_struct(const T *object, const char *name) {
  T known{};
  known.struct_size = sizeof known;
  if (!object) return known;
  const std::size_t size = checked_size(*object, name);
  const auto *bytes = reinterpret_cast<const unsigned char *>(object);
  for (std::size_t i = sizeof known; i < size; ++i)
    if (bytes[i] != 0)
      fail(LYC_ERROR_UNSUPPORTED, name, " asks for something that this release (", sizeof known,
           " bytes of options) does not know");
  std::memcpy(&known, object, std::min(size, sizeof known));
  known.struct_size = sizeof known;
  return known;
}

inline lyc_exec read_exec(const lyc_exec *exec) {
  const lyc_exec known = read_struct(exec, "exec");
  require(known.flags == 0, "exec.flags has unknown bits: ", known.flags);
  return known;
}

/// Fill an `_info` struct as far as the caller's reaches.
template <typename T>
void write_struct(T *object, T value, const char *name) {
  require(object != nullptr, name, " is NULL");
  const std::size_t size = checked_size(*object, name);
  value.struct_size = static_cast<std::uint32_t>(size);
  std::memcpy(object, &value, std::min(size, sizeof value));
}

}  // namespace lyc::capi
