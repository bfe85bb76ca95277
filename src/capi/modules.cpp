#include "capi/boundary.hpp"
#include "capi/options.hpp"
#include "core/convert.hpp"
#include "core/module.hpp"

using namespace lyc;
using namespace lyc::capi;

void lyc_module_options_init(lyc_module_options *options, size_t struct_size) { init_struct(options, struct_size); }

lyc_status lyc_module_create(lyc_context *context, const lyc_module_options *options, lyc_module **out_module) {
  return boundary([&] {
    clear(out_module, "out_module");
    needed(options, "options");
    *out_module = lyc_module::create(checked(context, "context"), read_struct(options, "options")).detach();
  });
}

lyc_status lyc_module_create_from_tensors(lyc_context *context, const lyc_module_options *options,
                                          const char *const *names, const lyc_tensor *tensors, size_t tensor_count,
                                          lyc_module **out_module) {
  return boundary([&] {
    clear(out_module, "out_module");
    require(tensor_count > 0, "there are no tensors");
    needed(names, "names");
    needed(tensors, "tensors");
    std::vector<std::string> list;
    for (size_t i = 0; i < tensor_count; ++i) list.emplace_back(&needed(names[i], "a name"));
    *out_module =
        lyc_module::create(checked(context, "context"), read_struct(options, "options"), list, tensors).detach();
  });
}

void lyc_module_retain(lyc_module *module) { capi::retain(module); }
void lyc_module_release(lyc_module *module) { capi::release(module); }

void lyc_module_info_init(lyc_module_info *info, size_t struct_size) { init_struct(info, struct_size); }

lyc_status lyc_module_get_info(const lyc_module *module, lyc_module_info *info) {
  return boundary([&] {
    const Definition &definition = checked(module, "module").definition;
    lyc_module_info value{};
    value.flags = definition.flags;
    value.algo = definition.algorithm->id;
    value.rank = static_cast<int32_t>(definition.shape.rank);
    value.alpha = definition.alpha;
    value.scale = definition.scale;
    value.dora_axis = static_cast<lyc_dora_axis>(definition.dora_axis);
    value.dora_rule = static_cast<lyc_dora_rule>(definition.dora_rule);
    value.needs_base = definition.needs_base();
    value.invertible = definition.invertible();
    value.out_features = definition.shape.out;
    value.in_elements = definition.shape.columns;
    write_struct(info, value, "info");
  });
}

lyc_status lyc_module_param_count(const lyc_module *module, size_t *out_count) {
  return boundary([&] { needed(out_count, "out_count") = checked(module, "module").definition.names.size(); });
}

lyc_status lyc_module_get_param(const lyc_module *module, size_t index, const char **out_name, lyc_tensor *out_tensor) {
  return boundary([&] {
    const Definition &definition = checked(module, "module").definition;
    if (index >= definition.names.size())
      fail(LYC_ERROR_NOT_FOUND, "there is no parameter ", index, ", the module has ", definition.names.size());
    if (out_name) *out_name = definition.names[index].c_str();
    if (out_tensor) *out_tensor = definition.factors.at(definition.names[index]);
  });
}

lyc_status lyc_module_bind_param(lyc_module *module, const char *name, const lyc_tensor *tensor) {
  return boundary([&] { checked(module, "module").bind(&needed(name, "name"), needed(tensor, "tensor")); });
}

lyc_status lyc_module_write_param(lyc_module *module, const char *name, const lyc_tensor *tensor) {
  return boundary([&] { checked(module, "module").write(&needed(name, "name"), needed(tensor, "tensor")); });
}

lyc_status lyc_module_read_param(const lyc_module *module, const char *name, const lyc_tensor *tensor) {
  return boundary([&] { checked(module, "module").read(&needed(name, "name"), needed(tensor, "tensor")); });
}

lyc_status lyc_module_prepare(lyc_module *module, const lyc_tensor *base, const lyc_exec *exec) {
  return boundary([&] { checked(module, "module").prepare(base, read_exec(exec).stream); });
}

lyc_status lyc_module_convert(lyc_module *module, lyc_algo algo, lyc_module **out_module) {
  return boundary([&] {
    clear(out_module, "out_module");
    *out_module = convert(checked(module, "module"), algo).detach();
  });
}
