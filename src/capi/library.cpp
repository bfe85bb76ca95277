#include <cstring>
#include <string_view>

#include "algo/algorithm.hpp"
#include "base/dtype.hpp"
#include "lycoris.h"

#if defined(__clang__)
#define LYC_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define LYC_COMPILER "gcc " __VERSION__
#else
#define LYC_COMPILER "unknown"
#endif

namespace {

constexpr std::string_view kFeatures[] = {"cpu", "dora", "tucker", "safetensors", "sharded", "diffusers_folder"};

struct NamedSize {
  std::string_view name;
  std::size_t size;
};
#define LYC_SIZE(type) \
  { #type, sizeof(type) }
constexpr NamedSize kSizes[] = {
    LYC_SIZE(lyc_error_info),      LYC_SIZE(lyc_tensor),          LYC_SIZE(lyc_device_info),
    LYC_SIZE(lyc_context_options), LYC_SIZE(lyc_context_info),    LYC_SIZE(lyc_exec),
    LYC_SIZE(lyc_module_options),  LYC_SIZE(lyc_module_info),     LYC_SIZE(lyc_batch_item),
    LYC_SIZE(lyc_network_options), LYC_SIZE(lyc_multiplier_rule), LYC_SIZE(lyc_match_options),
    LYC_SIZE(lyc_layer),
    LYC_SIZE(lyc_merge_options),   LYC_SIZE(lyc_report_info),
};
#undef LYC_SIZE

}  // namespace

uint32_t lyc_abi_version(void) { return LYC_ABI_MAJOR << 16 | LYC_ABI_MINOR; }

const char *lyc_version_string(void) { return LYCORIS_VERSION; }

const char *lyc_build_info(void) {
  return "{\"version\":\"" LYCORIS_VERSION "\",\"compiler\":\"" LYC_COMPILER "\",\"cuda\":\"" LYCORIS_CUDA_MODE "\"}";
}

int32_t lyc_has_feature(const char *name) {
  if (!name) return 0;
  for (std::string_view feature : kFeatures)
    if (feature == name) return 1;
  return std::string_view(name) == "cuda" && std::string_view(LYCORIS_CUDA_MODE) != "OFF";
}

size_t lyc_struct_size(const char *name) {
  if (!name) return 0;
  for (const NamedSize &entry : kSizes)
    if (entry.name == name) return entry.size;
  return 0;
}

const char *lyc_status_name(lyc_status status) {
  switch (status) {
    case LYC_OK:
      return "ok";
    case LYC_ERROR_INVALID_ARGUMENT:
      return "invalid_argument";
    case LYC_ERROR_OUT_OF_MEMORY:
      return "out_of_memory";
    case LYC_ERROR_UNSUPPORTED:
      return "unsupported";
    case LYC_ERROR_NOT_FOUND:
      return "not_found";
    case LYC_ERROR_IO:
      return "io";
    case LYC_ERROR_FORMAT:
      return "format";
    case LYC_ERROR_MISMATCH:
      return "mismatch";
    case LYC_ERROR_CANCELLED:
      return "cancelled";
    case LYC_ERROR_DEVICE:
      return "device";
    case LYC_ERROR_INTERNAL:
      return "internal";
    default:
      return "unknown";
  }
}

const char *lyc_dtype_name(lyc_dtype dtype) { return lyc::dtype_name(dtype); }

const char *lyc_algo_name(lyc_algo algo) {
  const lyc::algo::Algorithm *algorithm = lyc::algo::find_algorithm(algo);
  return algorithm ? algorithm->name.data() : "unknown";
}

lyc_algo lyc_algo_from_name(const char *name) {
  const lyc::algo::Algorithm *algorithm = name ? lyc::algo::find_algorithm(std::string_view(name)) : nullptr;
  return algorithm ? algorithm->id : LYC_ALGO_NONE;
}
