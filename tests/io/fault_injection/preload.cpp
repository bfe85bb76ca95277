// LD_PRELOAD library: lets the n-th output call of a program go wrong.
//
//   LYCORIS_FAULT_AT    which call, from 1 on; 0 or not set: none, calls are only counted
//   LYCORIS_FAULT_KIND  "short" (half is written), "kill" (the process dies instead of the call), or an errno
//   LYCORIS_NO_TMPFILE  set: O_TMPFILE is not supported, as on network file systems
//
// Counted are open for writing, write, pwrite, fallocate, copy_file_range, fsync, linkat, rename and renameat2, on
// descriptors and paths alike; what the program writes to its standard output is not (descriptors up to 2).
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

namespace {

int call_count = 0;

template <typename Function>
Function *next(const char *name) {
  return reinterpret_cast<Function *>(dlsym(RTLD_NEXT, name));
}

enum class Fate { kNormal, kShort, kFail };

/// What is to happen to the call that begins now; sets errno for kFail.
Fate fate() {
  const char *at = std::getenv("LYCORIS_FAULT_AT"), *kind = std::getenv("LYCORIS_FAULT_KIND");
  ++call_count;
  if (!at || !kind || call_count != std::atoi(at)) return Fate::kNormal;
  if (std::strcmp(kind, "kill") == 0) raise(SIGKILL);
  if (std::strcmp(kind, "short") == 0) return Fate::kShort;
  errno = std::atoi(kind);
  return Fate::kFail;
}

template <typename Call>
int failing(Call &&call) {
  return fate() == Fate::kFail ? -1 : call();
}

/// For calls that move bytes: they may also move only half of them.
template <typename Call>
ssize_t moving(size_t size, Call &&call) {
  switch (fate()) {
    case Fate::kFail:
      return -1;
    case Fate::kShort:
      return call(size > 1 ? size / 2 : size);
    default:
      return call(size);
  }
}

int open_any(const char *name, const char *path, int flags, mode_t mode) {
  const auto real = next<int(const char *, int, ...)>(name);
  if ((flags & O_ACCMODE) == O_RDONLY) return real(path, flags, mode);
  if ((flags & O_TMPFILE) == O_TMPFILE && std::getenv("LYCORIS_NO_TMPFILE")) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return failing([&] { return real(path, flags, mode); });
}

mode_t mode_argument(int flags, va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

extern "C" {

int lycoris_call_count() { return call_count; }

int open(const char *path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_argument(flags, arguments);
  va_end(arguments);
  return open_any("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_argument(flags, arguments);
  va_end(arguments);
  return open_any("open64", path, flags, mode);
}

ssize_t write(int descriptor, const void *data, size_t size) {
  const auto real = next<ssize_t(int, const void *, size_t)>("write");
  if (descriptor <= STDERR_FILENO) return real(descriptor, data, size);
  return moving(size, [&](size_t part) { return real(descriptor, data, part); });
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
  const auto real = next<ssize_t(int, const void *, size_t, off_t)>("pwrite");
  return moving(size, [&](size_t part) { return real(descriptor, data, part, offset); });
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
  const auto real = next<ssize_t(int, const void *, size_t, off64_t)>("pwrite64");
  return moving(size, [&](size_t part) { return real(descriptor, data, part, offset); });
}

ssize_t copy_file_range(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t size, unsigned flags) {
  const auto real = next<ssize_t(int, off64_t *, int, off64_t *, size_t, unsigned)>("copy_file_range");
  return moving(size, [&](size_t part) { return real(in, in_offset, out, out_offset, part, flags); });
}

int fallocate(int descriptor, int mode, off_t offset, off_t size) {
  const auto real = next<int(int, int, off_t, off_t)>("fallocate");
  return failing([&] { return real(descriptor, mode, offset, size); });
}

int fallocate64(int descriptor, int mode, off64_t offset, off64_t size) {
  const auto real = next<int(int, int, off64_t, off64_t)>("fallocate64");
  return failing([&] { return real(descriptor, mode, offset, size); });
}

int fsync(int descriptor) {
  return failing([&] { return next<int(int)>("fsync")(descriptor); });
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
  const auto real = next<int(int, const char *, int, const char *, int)>("linkat");
  return failing([&] { return real(from_folder, from, to_folder, to, flags); });
}

int rename(const char *from, const char *to) {
  return failing([&] { return next<int(const char *, const char *)>("rename")(from, to); });
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
  const auto real = next<int(int, const char *, int, const char *, unsigned)>("renameat2");
  return failing([&] { return real(from_folder, from, to_folder, to, flags); });
}

}  // extern "C"
