#include <cstdio>
#include <cstring>

#include "capi/boundary.hpp"
#include "capi/options.hpp"

namespace lyc::capi {
namespace {

struct LastError {
  lyc_status status;
  int native_code;
  char message[2048];
};
thread_local LastError last_error;  // zero-initialised and trivially destructible

}  // namespace

lyc_status remember(lyc_status status, int native_code, const char *message) noexcept {
  last_error.status = status;
  last_error.native_code = native_code;
  std::snprintf(last_error.message, sizeof last_error.message, "%s", message);
  return status;
}

void put_text(const std::string &text, char *buffer, std::size_t capacity, std::size_t *out_length) {
  require(buffer != nullptr || capacity == 0, "buffer is NULL, but capacity is ", capacity);
  needed(out_length, "out_length") = text.size();
  if (capacity == 0) return;
  const std::size_t count = std::min(text.size(), capacity - 1);
  std::memcpy(buffer, text.data(), count);
  buffer[count] = '\0';
}

}  // namespace lyc::capi

using namespace lyc::capi;

const char *lyc_last_error_message(void) { return last_error.message; }

void lyc_clear_last_error(void) { last_error = LastError{}; }

void lyc_error_info_init(lyc_error_info *info, size_t struct_size) { init_struct(info, struct_size); }

lyc_status lyc_last_error_info(lyc_error_info *info) {
  const LastError error = last_error;
  return boundary([&] {
    lyc_error_info value{};
    value.status = error.status;
    value.native_code = error.native_code;
    write_struct(info, value, "info");
  });
}
