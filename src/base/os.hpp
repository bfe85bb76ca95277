// Everything the library asks of the operating system; one source file per system implements it (os_posix.cpp).
//
// Failures are LYC_ERROR_IO with the system's reason and code (NOT_FOUND for a missing file), and name the path.
// Output appears in one step: it is written where nobody looks, synced, and only then given its name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lyc::os {

/// The same for two paths that lead to the same file or folder, through links too.
struct FileIdentity {
  std::uint64_t device = 0, node = 0;
  bool operator==(const FileIdentity &other) const { return device == other.device && node == other.node; }
};

/// An open file; closes itself.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor &&other) noexcept : value_(other.value_) { other.value_ = -1; }
  Descriptor &operator=(Descriptor &&other) noexcept;
  ~Descriptor();
  int get() const { return value_; }

 private:
  int value_ = -1;
};

/// A regular file, open for reading at any offset by any number of threads.
class File {
 public:
  explicit File(const std::string &path);

  const std::string &path() const { return path_; }
  std::uint64_t size() const { return size_; }  // when it was opened
  FileIdentity identity() const { return identity_; }

  /// All `size` bytes from `offset` on, or an error: also when the file has become shorter in the meantime.
  void read(std::uint64_t offset, void *data, std::size_t size) const;

 private:
  friend class OutputFile;
  std::string path_;
  Descriptor descriptor_;
  std::uint64_t size_ = 0;
  FileIdentity identity_;
};

enum class Replace { kNo, kYes };

/// A file in the making. It has no name before commit() where the file system allows that (so that nothing is left
/// behind even by a killed process), else a hidden one that goes away with the object. A link at `path` is followed.
class OutputFile {
 public:
  explicit OutputFile(const std::string &path);
  OutputFile(OutputFile &&other) noexcept;
  OutputFile &operator=(OutputFile &&) = delete;
  ~OutputFile();

  const std::string &path() const { return path_; }

  /// Ask for the space at once, so that a full disk is known before the work and not after it.
  void reserve(std::uint64_t size);

  /// Different ranges may be written by several threads at once; so may copy_from().
  void write(std::uint64_t offset, const void *data, std::size_t size);

  /// Copy a range of another file, inside the kernel where possible.
  void copy_from(const File &source, std::uint64_t source_offset, std::uint64_t offset, std::uint64_t size);

  /// Sync, and put the file at its path. It has the access rights of the file that it replaces.
  /// Errors: INVALID_ARGUMENT (something is there, and Replace::kNo).
  void commit(Replace replace);

 private:
  void give_name(Replace replace);

  std::string path_, folder_;
  std::string temporary_;  // hidden name while there is one
  Descriptor descriptor_;
};

/// A folder in the making: a hidden sibling of `path` until commit(), removed with the object otherwise.
class OutputFolder {
 public:
  explicit OutputFolder(const std::string &path);
  OutputFolder(OutputFolder &&other) noexcept;
  OutputFolder &operator=(OutputFolder &&) = delete;
  ~OutputFolder();

  const std::string &path() const { return path_; }

  /// Where the contents are to be written.
  const std::string &staging_path() const { return staging_; }

  /// Sync, and put the folder at its path. With Replace::kYes an existing folder is exchanged and removed, but only if
  /// the new one has a file for each of its files: nothing is deleted that is not replaced.
  /// Errors: INVALID_ARGUMENT (something is there that may not be replaced).
  void commit(Replace replace);

 private:
  std::string path_, staging_;
};

enum class FileType { kMissing, kFile, kFolder, kOther };

FileType file_type(const std::string &path);  // of what a link leads to
std::optional<FileIdentity> file_identity(const std::string &path);
std::vector<std::string> list_folder(const std::string &path);  // names, sorted
void make_folder(const std::string &path);                      // and its parents; an existing one is fine
std::string join(const std::string &folder, const std::string &name);
std::string parent_folder(const std::string &path);  // "." where the path has none
std::string file_name(const std::string &path);

/// Whole contents of a small file. Errors: FORMAT (more than `limit` bytes).
std::string read_text(const std::string &path, std::size_t limit);

/// Write or copy a small file, as OutputFile does.
void write_text(const std::string &path, const std::string &text);
void copy_file(const std::string &from, const std::string &to);

/// Open a dynamic library for good: it is never closed. nullptr, and the reason in *why, if that fails.
void *open_library(const std::string &path, std::string *why);
void *find_symbol(void *library, const char *name);  // nullptr if missing

/// Real path of the folder of the library that `address` belongs to; "" if it is the program itself, or unknown.
std::string folder_of_library(const void *address);

/// An environment variable, nullptr where it is not set or the process runs with rights of another user.
const char *environment(const char *name);

int cpu_count();                  // processors that this process may run on
std::uint64_t physical_memory();  // bytes, 0 if unknown
double monotonic_seconds();

}  // namespace lyc::os
