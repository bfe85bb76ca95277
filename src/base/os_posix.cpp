// os.hpp for Linux (4.18 or newer); file systems that lack something newer than POSIX get the plain way.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <filesystem>
#include <memory>
#include <sched.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>

#include "base/error.hpp"
#include "base/os.hpp"

namespace lyc::os {
namespace {

namespace fs = std::filesystem;

constexpr mode_t kPermissions = 0777;
constexpr std::size_t kMaxTransfer = std::size_t{1} << 30;  // one call moves less than 2 GiB on every system
constexpr std::size_t kCopyBuffer = std::size_t{1} << 20;
constexpr int kMaxLinks = 40;  // as in the kernel's own path walk

/// strerror_r comes in two kinds; overloads take either result.
[[maybe_unused]] const char *error_text(const char *text, const char *) { return text; }
[[maybe_unused]] const char *error_text(int, const char *buffer) { return buffer; }

[[noreturn]] void fail_system(int code, const char *action, const std::string &path) {
  char buffer[256] = "unknown error";
  const char *reason = error_text(strerror_r(code, buffer, sizeof buffer), buffer);
  const lyc_status status = code == ENOENT   ? LYC_ERROR_NOT_FOUND
                            : code == ENOMEM ? LYC_ERROR_OUT_OF_MEMORY
                                             : LYC_ERROR_IO;
  throw Error(status, concat("cannot ", action, " '", path, "': ", reason), code);
}

[[noreturn]] void fail_exists(const std::string &path) {
  throw Error(LYC_ERROR_INVALID_ARGUMENT, concat("'", path, "' exists already and may not be replaced"), EEXIST);
}

/// Repeat a call that a signal interrupted.
template <typename Call>
auto restarting(Call &&call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

std::size_t part_of(std::uint64_t size) {
  return static_cast<std::size_t>(std::min<std::uint64_t>(size, kMaxTransfer));
}

/// The path that a chain of symbolic links ends at, there or not.
std::string follow_links(std::string path) {
  for (int links = 0; links < kMaxLinks; ++links) {
    std::error_code error;
    const fs::path target = fs::read_symlink(path, error);
    if (error) return path;
    path = target.is_absolute() ? target.string() : (fs::path(path).parent_path() / target).string();
  }
  fail_system(ELOOP, "open", path);
}

/// A hidden name beside `path` that is not taken. Clock and process make it unlikely; O_EXCL and the like decide.
std::string hidden_name(const std::string &path, int attempt) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  // File systems allow 255 bytes: a long name is cut, the number keeps it apart.
  return join(parent_folder(path),
              concat(".", file_name(path).substr(0, 180), ".", getpid(), "-", now.tv_nsec, "-", attempt, ".tmp"));
}

constexpr int kNameAttempts = 16;

/// Call `make(name)` with hidden names until one was free; it returns as system calls do.
template <typename Make>
std::string make_hidden(const std::string &path, Make &&make) {
  for (int attempt = 0; attempt < kNameAttempts; ++attempt) {
    std::string name = hidden_name(path, attempt);
    if (restarting([&] { return make(name.c_str()); }) >= 0) return name;
    if (errno != EEXIST) break;
  }
  fail_system(errno, "create", path);
}

/// Make names last. Failure is no error: what is there is whole, and a power cut can only bring back the state before,
/// which is whole too.
void sync_folder(const std::string &path) {
  const Descriptor folder(restarting([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (folder.get() >= 0) fsync(folder.get());
}

int rename_with(const std::string &from, const std::string &to, unsigned flags) {
  return renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags);
}

/// A file without a name in `folder`, or -1.
int open_nameless(const std::string &folder) {
  if (access("/proc/self/fd", X_OK) != 0) return -1;  // link_nameless() goes through there
  return restarting([&] { return ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666); });
}

int link_nameless(int descriptor, const std::string &path) {
  const std::string self = "/proc/self/fd/" + std::to_string(descriptor);  // not as a locale would write it
  return linkat(AT_FDCWD, self.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW);
}

/// Begin to write to the disk what is in memory, so that little is left to wait for in the end. Only a hint.
void start_writing(int descriptor, std::uint64_t offset, std::uint64_t size) {
  constexpr std::uint64_t kWorthIt = 1 << 20;
  if (size >= kWorthIt)
    sync_file_range(descriptor, static_cast<off_t>(offset), static_cast<off_t>(size), SYNC_FILE_RANGE_WRITE);
}

/// "Not here", as opposed to "no": the plain way is to be tried.
bool is_unsupported(int code) { return code == ENOSYS || code == EOPNOTSUPP || code == EINVAL; }

/// Rename only if nothing is at `to`.
int rename_new(const std::string &from, const std::string &to) {
  const int result = rename_with(from, to, RENAME_NOREPLACE);
  if (result == 0 || !is_unsupported(errno)) return result;
  if (file_type(to) != FileType::kMissing) return errno = EEXIST, -1;
  return std::rename(from.c_str(), to.c_str());
}

/// Put the folder `from` in the place of the folder `to`, and that one in the place of `from`.
void exchange_folders(const std::string &from, const std::string &to) {
  if (rename_with(from, to, RENAME_EXCHANGE) == 0) return;
  if (!is_unsupported(errno)) fail_system(errno, "replace", to);
  const std::string aside = hidden_name(to, kNameAttempts);
  if (std::rename(to.c_str(), aside.c_str()) != 0) fail_system(errno, "replace", to);
  if (std::rename(from.c_str(), to.c_str()) != 0) {
    const int code = errno;
    std::rename(aside.c_str(), to.c_str());
    fail_system(code, "replace", to);
  }
  std::rename(aside.c_str(), from.c_str());
}

/// Every file of the old folder must have a successor of its name, or replacing the folder would lose it.
void require_successors(const std::string &old_folder, const std::string &new_folder, const std::string &shown) {
  for (const std::string &name : list_folder(old_folder)) {
    const std::string old_path = join(old_folder, name), new_path = join(new_folder, name);
    const FileType type = file_type(old_path);
    require(type == file_type(new_path), "'", shown, "' holds '", name,
            "', which the new folder does not have; move it away first, or choose another folder");
    if (type == FileType::kFolder) require_successors(old_path, new_path, join(shown, name));
  }
}

struct DirectoryCloser {
  void operator()(DIR *directory) const { closedir(directory); }
};

std::string without_trailing_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

Descriptor &Descriptor::operator=(Descriptor &&other) noexcept {
  std::swap(value_, other.value_);
  return *this;
}

Descriptor::~Descriptor() {
  if (value_ >= 0) close(value_);
}

File::File(const std::string &path)
    // Without O_NONBLOCK the opening of a named pipe would wait for a writer.
    : path_(path), descriptor_(restarting([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); })) {
  struct stat status {};
  if (descriptor_.get() < 0 || fstat(descriptor_.get(), &status) != 0) fail_system(errno, "open", path);
  if (S_ISDIR(status.st_mode)) fail_system(EISDIR, "open", path);
  if (!S_ISREG(status.st_mode)) fail(LYC_ERROR_IO, "cannot open '", path, "': not a regular file");
  size_ = static_cast<std::uint64_t>(status.st_size);
  identity_ = {static_cast<std::uint64_t>(status.st_dev), static_cast<std::uint64_t>(status.st_ino)};
}

void File::read(std::uint64_t offset, void *data, std::size_t size) const {
  char *bytes = static_cast<char *>(data);
  for (std::size_t done = 0; done < size;) {
    const ssize_t moved = restarting([&] {
      return pread(descriptor_.get(), bytes + done, part_of(size - done), static_cast<off_t>(offset + done));
    });
    if (moved < 0) fail_system(errno, "read", path_);
    if (moved == 0)
      fail(LYC_ERROR_IO, "cannot read '", path_, "': it ends at byte ", offset + done, ", ", size - done,
           " bytes too early; it has become shorter since it was opened");
    done += static_cast<std::size_t>(moved);
  }
}

OutputFile::OutputFile(const std::string &path) : path_(follow_links(path)), folder_(parent_folder(path_)) {
  struct stat old {};
  const bool replaces = stat(path_.c_str(), &old) == 0;
  require(!replaces || S_ISREG(old.st_mode), "cannot write '", path, "': it exists and is not a regular file");
  descriptor_ = Descriptor(open_nameless(folder_));
  if (descriptor_.get() < 0)
    temporary_ = make_hidden(path_, [&](const char *name) {
      descriptor_ = Descriptor(::open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
      return descriptor_.get();
    });
  if (replaces) fchmod(descriptor_.get(), old.st_mode & kPermissions);  // refused at worst: then as the umask says
}

OutputFile::OutputFile(OutputFile &&other) noexcept
    : path_(std::move(other.path_)),
      folder_(std::move(other.folder_)),
      temporary_(std::move(other.temporary_)),
      descriptor_(std::move(other.descriptor_)) {
  other.temporary_.clear();
}

OutputFile::~OutputFile() {
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void OutputFile::reserve(std::uint64_t size) {
  if (size == 0) return;
  const int result = restarting([&] { return fallocate(descriptor_.get(), 0, 0, static_cast<off_t>(size)); });
  if (result != 0 && !is_unsupported(errno)) fail_system(errno, "reserve space for", path_);
}

void OutputFile::write(std::uint64_t offset, const void *data, std::size_t size) {
  const char *bytes = static_cast<const char *>(data);
  for (std::size_t done = 0; done < size;) {
    const ssize_t moved = restarting([&] {
      return pwrite(descriptor_.get(), bytes + done, part_of(size - done), static_cast<off_t>(offset + done));
    });
    if (moved <= 0) fail_system(moved < 0 ? errno : EIO, "write", path_);
    done += static_cast<std::size_t>(moved);
  }
  start_writing(descriptor_.get(), offset, size);
}

void OutputFile::copy_from(const File &source, std::uint64_t source_offset, std::uint64_t offset, std::uint64_t size) {
  std::uint64_t done = 0;
  while (done < size) {
    off_t from = static_cast<off_t>(source_offset + done), to = static_cast<off_t>(offset + done);
    const ssize_t moved =
        copy_file_range(source.descriptor_.get(), &from, descriptor_.get(), &to, part_of(size - done), 0);
    if (moved <= 0) break;  // whatever the reason: plain reads and writes can do more, and find out what is wrong
    done += static_cast<std::uint64_t>(moved);
  }
  if (done == size) return start_writing(descriptor_.get(), offset, size);
  const std::size_t capacity = static_cast<std::size_t>(std::min<std::uint64_t>(size - done, kCopyBuffer));
  const std::unique_ptr<char[]> buffer(new char[capacity]);
  while (done < size) {
    const std::size_t part = static_cast<std::size_t>(std::min<std::uint64_t>(size - done, capacity));
    source.read(source_offset + done, buffer.get(), part);
    write(offset + done, buffer.get(), part);
    done += part;
  }
}

void OutputFile::commit(Replace replace) {
  if (restarting([&] { return fsync(descriptor_.get()); }) != 0) fail_system(errno, "write", path_);
  give_name(replace);
  sync_folder(folder_);
}

void OutputFile::give_name(Replace replace) {
  if (temporary_.empty()) {
    if (link_nameless(descriptor_.get(), path_) == 0) return;
    if (errno != EEXIST) fail_system(errno, "create", path_);
    if (replace == Replace::kNo) fail_exists(path_);
    // No call replaces a file by a nameless one: it needs a name for a moment.
    temporary_ = make_hidden(path_, [&](const char *name) { return link_nameless(descriptor_.get(), name); });
  }
  const int result =
      replace == Replace::kYes ? std::rename(temporary_.c_str(), path_.c_str()) : rename_new(temporary_, path_);
  if (result != 0 && errno == EEXIST) fail_exists(path_);
  if (result != 0) fail_system(errno, "replace", path_);
  temporary_.clear();
}

OutputFolder::OutputFolder(const std::string &path) : path_(follow_links(without_trailing_slashes(path))) {
  const FileType type = file_type(path_);
  require(type == FileType::kMissing || type == FileType::kFolder, "cannot write the folder '", path,
          "': it exists and is not a folder");
  staging_ = make_hidden(path_, [](const char *name) { return mkdir(name, kPermissions); });
}

OutputFolder::OutputFolder(OutputFolder &&other) noexcept
    : path_(std::move(other.path_)), staging_(std::move(other.staging_)) {
  other.staging_.clear();
}

OutputFolder::~OutputFolder() {
  std::error_code ignored;
  if (!staging_.empty()) fs::remove_all(staging_, ignored);
}

void OutputFolder::commit(Replace replace) {
  sync_folder(staging_);
  const bool exists = file_type(path_) != FileType::kMissing;
  if (exists && replace == Replace::kNo) fail_exists(path_);
  if (exists) {
    require_successors(path_, staging_, path_);
    exchange_folders(staging_, path_);  // the destructor removes what is now at the hidden name
  } else {
    const int result = rename_new(staging_, path_);
    if (result != 0 && errno == EEXIST) fail_exists(path_);
    if (result != 0) fail_system(errno, "create", path_);
    staging_.clear();
  }
  sync_folder(parent_folder(path_));
}

FileType file_type(const std::string &path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return FileType::kMissing;
    fail_system(errno, "look at", path);
  }
  return S_ISREG(status.st_mode) ? FileType::kFile : S_ISDIR(status.st_mode) ? FileType::kFolder : FileType::kOther;
}

std::optional<FileIdentity> file_identity(const std::string &path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return std::nullopt;
  return FileIdentity{static_cast<std::uint64_t>(status.st_dev), static_cast<std::uint64_t>(status.st_ino)};
}

std::vector<std::string> list_folder(const std::string &path) {
  const std::unique_ptr<DIR, DirectoryCloser> directory(opendir(path.c_str()));
  if (!directory) fail_system(errno, "list", path);
  std::vector<std::string> names;
  errno = 0;
  while (const dirent *entry = readdir(directory.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  if (errno != 0) fail_system(errno, "list", path);
  std::sort(names.begin(), names.end());
  return names;
}

void make_folder(const std::string &path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail_system(error.value(), "create", path);
}

std::string join(const std::string &folder, const std::string &name) {
  if (folder.empty() || folder == ".") return name;
  return folder.back() == '/' ? folder + name : folder + "/" + name;
}

std::string parent_folder(const std::string &path) {
  const std::size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string file_name(const std::string &path) { return path.substr(path.find_last_of('/') + 1); }

std::string read_text(const std::string &path, std::size_t limit) {
  const File file(path);
  if (file.size() > limit)
    fail(LYC_ERROR_FORMAT, "'", path, "' has ", file.size(), " bytes, at most ", limit, " are expected");
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read(0, text.data(), text.size());
  return text;
}

void write_text(const std::string &path, const std::string &text) {
  OutputFile file(path);
  file.write(0, text.data(), text.size());
  file.commit(Replace::kYes);
}

void copy_file(const std::string &from, const std::string &to) {
  const File source(from);
  OutputFile file(to);
  file.copy_from(source, 0, 0, source.size());
  file.commit(Replace::kYes);
}

void *open_library(const std::string &path, std::string *why) {
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library) return library;
  const char *reason = dlerror();
  *why = reason ? reason : "unknown reason";
  return nullptr;
}

void *find_symbol(void *library, const char *name) { return dlsym(library, name); }

std::string folder_of_library(const void *address) {
  const auto real_path = [](const char *path) {
    const std::unique_ptr<char, decltype(&std::free)> real(realpath(path, nullptr), &std::free);
    return std::string(real ? real.get() : "");
  };
  Dl_info info{};
  // The program is named as it was called, which may be any word.
  if (dladdr(address, &info) == 0 || !info.dli_fname || !std::strchr(info.dli_fname, '/')) return "";
  const std::string path = real_path(info.dli_fname);
  return path.empty() || path == real_path("/proc/self/exe") ? "" : parent_folder(path);
}

const char *environment(const char *name) { return secure_getenv(name); }

int cpu_count() {
  // The kernel refuses a mask that is too small for its number of processors.
  for (int capacity = 1024; capacity <= 1 << 20; capacity *= 4) {
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t *)> mask(CPU_ALLOC(capacity),
                                                                 [](cpu_set_t *set) { CPU_FREE(set); });
    if (!mask) break;
    if (sched_getaffinity(0, CPU_ALLOC_SIZE(capacity), mask.get()) == 0)
      return std::max(1, CPU_COUNT_S(CPU_ALLOC_SIZE(capacity), mask.get()));
  }
  return static_cast<int>(std::max(1l, sysconf(_SC_NPROCESSORS_ONLN)));
}

std::uint64_t physical_memory() {
  const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(size) : 0;
}

double monotonic_seconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace lyc::os
