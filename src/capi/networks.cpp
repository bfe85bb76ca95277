#include "capi/boundary.hpp"
#include "capi/options.hpp"
#include "core/merge_files.hpp"
#include "core/network.hpp"

using namespace lyc;
using namespace lyc::capi;

namespace {

std::vector<std::string> texts(const char *const *list, size_t count, const char *name) {
  std::vector<std::string> result;
  require(list != nullptr || count == 0, name, " is NULL");
  for (size_t i = 0; i < count; ++i) result.emplace_back(&needed(list[i], name));
  return result;
}

void require_flags(uint32_t flags, uint32_t known) {
  require((flags & ~known) == 0, "flags has unknown bits: ", flags & ~known);
}

void give(Ref<lyc_report> report, lyc_report **out_report) {
  if (out_report) *out_report = report.detach();
}

MergeRequest merge_request(const lyc_merge_options &options) {
  MergeRequest request;
  require_flags(options.flags, LYC_ALLOW_UNMATCHED | LYC_OVERWRITE);
  request.allow_unmatched = options.flags & LYC_ALLOW_UNMATCHED;
  request.overwrite = options.flags & LYC_OVERWRITE;
  request.dora_rule = options.dora_rule;
  request.dtype = options.dtype;
  request.filter = {texts(options.includes, options.include_count, "includes"),
                    texts(options.excludes, options.exclude_count, "excludes")};
  require(options.multipliers != nullptr || options.multiplier_count == 0, "multipliers is NULL");
  for (size_t i = 0; i < options.multiplier_count; ++i) {
    const lyc_multiplier_rule &rule = options.multipliers[i];
    request.multipliers.push_back({std::nullopt, rule.adapter_index, rule.multiplier});
    if (rule.pattern) request.multipliers.back().pattern = rule.pattern;
  }
  request.progress = options.progress;
  request.user_data = options.user_data;
  return request;
}

}  // namespace

void lyc_network_options_init(lyc_network_options *options, size_t struct_size) { init_struct(options, struct_size); }

lyc_status lyc_network_load(lyc_context *context, const char *path, const lyc_network_options *options,
                            lyc_network **out_network) {
  return boundary([&] {
    clear(out_network, "out_network");
    *out_network = new lyc_network(checked(context, "context"), &needed(path, "path"), read_struct(options, "options"));
  });
}

void lyc_network_retain(lyc_network *network) { capi::retain(network); }
void lyc_network_release(lyc_network *network) { capi::release(network); }

lyc_status lyc_network_count(const lyc_network *network, size_t *out_count) {
  return boundary([&] { needed(out_count, "out_count") = checked(network, "network").entries.size(); });
}

lyc_status lyc_network_get_module(const lyc_network *network, size_t index, const char **out_name,
                                  lyc_module **out_module) {
  return boundary([&] {
    if (out_module) *out_module = nullptr;
    const auto &entries = checked(network, "network").entries;
    if (index >= entries.size())
      fail(LYC_ERROR_NOT_FOUND, "there is no module ", index, ", the network has ", entries.size());
    if (out_name) *out_name = entries[index].name.c_str();
    if (out_module) *out_module = Ref<lyc_module>(entries[index].module).detach();
  });
}

void lyc_match_options_init(lyc_match_options *options, size_t struct_size) { init_struct(options, struct_size); }

lyc_status lyc_batch_create_from_networks(lyc_context *context, lyc_network *const *networks, size_t network_count,
                                          const char *const *names, const lyc_tensor *tensors, size_t tensor_count,
                                          const lyc_match_options *options, lyc_batch **out_batch,
                                          lyc_report **out_report) {
  return boundary([&] {
    if (out_report) *out_report = nullptr;
    clear(out_batch, "out_batch");
    lyc_context &object = checked(context, "context");
    const lyc_match_options known = read_struct(options, "options");
    require_flags(known.flags, LYC_ALLOW_UNMATCHED);
    require(network_count > 0, "there are no networks");
    needed(networks, "networks");
    std::vector<lyc_network *> list;
    for (size_t i = 0; i < network_count; ++i) list.push_back(&checked(networks[i], "a network"));
    require(tensors != nullptr || tensor_count == 0, "tensors is NULL");
    MatchedBatch result = create_batch(object, list, texts(names, tensor_count, "names"), tensors,
                                       {texts(known.includes, known.include_count, "includes"),
                                        texts(known.excludes, known.exclude_count, "excludes")},
                                       known.flags & LYC_ALLOW_UNMATCHED);
    *out_batch = result.batch.detach();
    give(std::move(result.report), out_report);
  });
}

void lyc_merge_options_init(lyc_merge_options *options, size_t struct_size) { init_struct(options, struct_size); }

lyc_status lyc_merge_files(lyc_context *context, const char *base_path, const char *const *adapter_paths,
                           size_t adapter_count, const char *out_path, const lyc_merge_options *options,
                           lyc_report **out_report) {
  return boundary([&] {
    if (out_report) *out_report = nullptr;
    lyc_context &object = checked(context, "context");
    MergeRequest request = merge_request(read_struct(options, "options"));
    request.base = &needed(base_path, "base_path");
    request.adapters = texts(adapter_paths, adapter_count, "adapter_paths");
    request.output = &needed(out_path, "out_path");
    give(merge_files(object, request), out_report);
  });
}

lyc_status lyc_inspect_file(lyc_context *context, const char *path, lyc_report **out_report) {
  return boundary([&] {
    clear(out_report, "out_report");
    give(inspect_file(checked(context, "context"), &needed(path, "path")), out_report);
  });
}

void lyc_report_info_init(lyc_report_info *info, size_t struct_size) { init_struct(info, struct_size); }

lyc_status lyc_report_get_info(const lyc_report *report, lyc_report_info *info) {
  return boundary([&] { write_struct(info, checked(report, "report").info, "info"); });
}

const char *lyc_report_json(const lyc_report *report) { return report && report->alive() ? report->json.c_str() : ""; }

void lyc_report_retain(lyc_report *report) { capi::retain(report); }
void lyc_report_release(lyc_report *report) { capi::release(report); }
