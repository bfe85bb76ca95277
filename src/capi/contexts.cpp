#include <cstring>

#include "capi/boundary.hpp"
#include "capi/options.hpp"
#include "core/backends.hpp"
#include "core/context.hpp"

using namespace lyc;
using namespace lyc::capi;

lyc_status lyc_device_count(lyc_device_type type, int32_t *out_count) {
  return boundary([&] {
    needed(out_count, "out_count") = 0;
    require(type == LYC_DEVICE_CPU || type == LYC_DEVICE_CUDA, "device type ", type, " is unknown");
    const ops::Backend *backend = find_backend(type);
    ops::Failure failure;
    if (backend) check(backend->device_count(out_count, &failure), failure);
  });
}

void lyc_device_info_init(lyc_device_info *info, size_t struct_size) { init_struct(info, struct_size); }

lyc_status lyc_device_get_info(lyc_device_type type, int32_t index, lyc_device_info *info) {
  return boundary([&] {
    lyc_device_info value{};
    ops::Failure failure;
    check(backend_for(type).device_info(index, &value, &failure), failure);
    write_struct(info, value, "info");
  });
}

lyc_status lyc_backend_load(const char *path) {
  return boundary([&] { load_backend(&needed(path, "path")); });
}

lyc_status lyc_backend_explain(lyc_device_type type, char *buffer, size_t capacity, size_t *out_length) {
  return boundary([&] { put_text(explain_backend(type), buffer, capacity, out_length); });
}

void lyc_context_options_init(lyc_context_options *options, size_t struct_size) { init_struct(options, struct_size); }

lyc_status lyc_context_create(const lyc_context_options *options, lyc_context **out_context) {
  return boundary([&] {
    clear(out_context, "out_context");
    *out_context = new lyc_context(read_struct(options, "options"));
  });
}

void lyc_context_retain(lyc_context *context) { capi::retain(context); }
void lyc_context_release(lyc_context *context) { capi::release(context); }

void lyc_context_info_init(lyc_context_info *info, size_t struct_size) { init_struct(info, struct_size); }

lyc_status lyc_context_get_info(const lyc_context *context, lyc_context_info *info) {
  return boundary([&] {
    const lyc_context &object = checked(context, "context");
    lyc_context_info value{};
    value.device_type = object.options.device_type;
    value.device_index = object.options.device_index;
    value.threads = object.backend->context_threads(object.device);
    write_struct(info, value, "info");
  });
}

void lyc_exec_init(lyc_exec *exec, size_t struct_size) { init_struct(exec, struct_size); }
