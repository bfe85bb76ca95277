// A file that the loader takes for a back end, or refuses: FAKE_ENTRY and FAKE_VERSION say which.
#include "ops/backend.hpp"

namespace {
const lyc::ops::Backend kFake = [] {
  lyc::ops::Backend backend = {};
  backend.struct_size = sizeof backend;
  backend.device_type = LYC_DEVICE_CUDA;
  backend.version = FAKE_VERSION;
  return backend;
}();
}  // namespace

extern "C" LYC_API const lyc::ops::Backend *FAKE_ENTRY() { return &kFake; }
