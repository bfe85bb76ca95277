#include "core/backends.hpp"

#include <atomic>
#include <cstring>
#include <mutex>

#include "base/error.hpp"
#include "base/os.hpp"

#ifdef LYCORIS_CUDA_STATIC
extern "C" const lyc::ops::Backend *LYC_CUDA_ENTRY();
#endif

namespace lyc {
namespace {

constexpr char kFile[] = "liblycoris_cuda.so";

#define LYC_TEXT_OF(name) #name
#define LYC_TEXT(name) LYC_TEXT_OF(name)
constexpr char kEntry[] = LYC_TEXT(LYC_CUDA_ENTRY);

/// What is known of it. Constant-initialised and never destroyed: the explanation is allocated once per process.
struct State {
  std::mutex mutex;
  std::atomic<const ops::Backend *> backend{nullptr};
  bool searched = false;
  std::string *explanation = nullptr;
};
State state;

void note(const std::string &line) {
  if (!state.explanation) state.explanation = new std::string;
  *state.explanation += line + "\n";
}

bool switched_off() {
  const char *value = os::environment("LYCORIS_DISABLE_CUDA");
  return value && std::strcmp(value, "1") == 0;
}

const ops::Backend *checked(const std::string &place, ops::BackendEntry entry) {
  const ops::Backend *backend = entry();
  if (!backend || backend->struct_size != sizeof(ops::Backend) || backend->device_type != LYC_DEVICE_CUDA ||
      std::strcmp(backend->version, LYCORIS_VERSION) != 0)
    fail(LYC_ERROR_UNSUPPORTED, place, ": not the back end of release ", LYCORIS_VERSION);
  return backend;
}

/// Open one file. A file that is refused stays open: CUDA does not survive being unloaded.
const ops::Backend *open_backend(const std::string &path) {
  std::string why;
  void *library = os::open_library(path, &why);
  if (!library) fail(LYC_ERROR_UNSUPPORTED, path, ": ", why);
  const auto entry = reinterpret_cast<ops::BackendEntry>(os::find_symbol(library, kEntry));
  if (!entry)
    fail(LYC_ERROR_UNSUPPORTED, path, ": has no ", kEntry, ", so it is of another release than ", LYCORIS_VERSION);
  return checked(path, entry);
}

void accept(const ops::Backend *backend, const std::string &path) {
  if (state.explanation) state.explanation->clear();
  note("cuda: " + path);
  state.backend.store(backend, std::memory_order_release);
}

#ifdef LYCORIS_CUDA_STATIC

void search_places() { accept(checked("built in", LYC_CUDA_ENTRY), "built in"); }

#else

/// True once there is nothing more to try.
bool try_folder(const std::string &folder) {
  const std::string path = os::join(folder, kFile);
  if (os::file_type(path) == os::FileType::kMissing) {
    note(path + ": no such file");
    return false;
  }
  try {
    accept(open_backend(path), path);
    return true;
  } catch (const Error &error) {
    note(error.what());
    return false;
  }
}

void search_places() {
  if (const char *only = os::environment("LYCORIS_BACKEND_DIR")) {
    if (only[0] == '/')
      try_folder(only);
    else
      note(std::string("LYCORIS_BACKEND_DIR is \"") + only + "\", must be an absolute path");
    return;
  }
  if (const std::string folder = os::folder_of_library(&kFile); !folder.empty())
    if (try_folder(folder) || try_folder(folder + "/lycoris")) return;
  try {
    accept(open_backend(kFile), kFile);
  } catch (const Error &error) {
    note(error.what());
  }
}

#endif

void search() {
  if (state.searched) return;
  state.searched = true;
  if (switched_off()) return note("LYCORIS_DISABLE_CUDA=1 switches the CUDA back end off");
  search_places();
}

const ops::Backend *find_cuda() {
  if (const ops::Backend *backend = state.backend.load(std::memory_order_acquire)) return backend;
  const std::lock_guard<std::mutex> lock(state.mutex);
  search();
  return state.backend.load(std::memory_order_relaxed);
}

std::string explanation() {
  const std::lock_guard<std::mutex> lock(state.mutex);
  return state.explanation ? *state.explanation : "";
}

}  // namespace

const ops::Backend *find_backend(lyc_device_type type) {
  switch (type) {
    case LYC_DEVICE_CPU:
      return ops::cpu_backend();
    case LYC_DEVICE_CUDA:
      return find_cuda();
    default:
      return nullptr;
  }
}

const ops::Backend &backend_for(lyc_device_type type) {
  require(type == LYC_DEVICE_CPU || type == LYC_DEVICE_CUDA, "device type ", static_cast<int>(type), " is unknown");
  if (const ops::Backend *backend = find_backend(type)) return *backend;
  std::string places = explanation();
  for (std::size_t end; (end = places.find('\n')) != std::string::npos;)
    places.replace(end, 1, end + 1 == places.size() ? "" : "; ");
  fail(LYC_ERROR_UNSUPPORTED, "no CUDA back end: ", places);
}

void load_backend(const std::string &path) {
  require(!path.empty() && path[0] == '/', "\"", path, "\" is not an absolute path");
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (state.backend.load(std::memory_order_relaxed)) fail(LYC_ERROR_UNSUPPORTED, "a CUDA back end is loaded already");
  if (switched_off()) fail(LYC_ERROR_UNSUPPORTED, "LYCORIS_DISABLE_CUDA=1 switches the CUDA back end off");
  if (os::file_type(path) == os::FileType::kMissing) fail(LYC_ERROR_NOT_FOUND, path, ": no such file");
  accept(open_backend(path), path);
}

std::string explain_backend(lyc_device_type type) {
  if (type == LYC_DEVICE_CPU) return "cpu: built in\n";
  require(type == LYC_DEVICE_CUDA, "device type ", static_cast<int>(type), " is unknown");
  find_cuda();
  return explanation();
}

}  // namespace lyc
