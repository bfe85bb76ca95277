/*
 * Sizes and offsets of the public structs on 64-bit systems. A growing struct gains a line here for its new field;
 * a line that changes is a break of the ABI.
 */
#include "lycoris.h"

#define SIZE_IS(type, bytes) _Static_assert(sizeof(type) == (bytes), #type " has another size")
#define FIELD_AT(type, field, bytes) \
  _Static_assert(offsetof(type, field) == (bytes), #type "." #field " is at another place")

SIZE_IS(lyc_status, 4);
SIZE_IS(lyc_dtype, 4);
SIZE_IS(lyc_algo, 4);
SIZE_IS(lyc_device_type, 4);
SIZE_IS(lyc_layout, 4);
SIZE_IS(lyc_dora_rule, 4);
SIZE_IS(lyc_dora_axis, 4);
SIZE_IS(lyc_part, 4);
SIZE_IS(lyc_batch_op, 4);

SIZE_IS(lyc_error_info, 16);
FIELD_AT(lyc_error_info, struct_size, 0);
FIELD_AT(lyc_error_info, status, 4);
FIELD_AT(lyc_error_info, native_code, 8);
FIELD_AT(lyc_error_info, reserved_, 12);

SIZE_IS(lyc_tensor, 192);
FIELD_AT(lyc_tensor, data, 0);
FIELD_AT(lyc_tensor, capacity, 8);
FIELD_AT(lyc_tensor, dtype, 16);
FIELD_AT(lyc_tensor, ndim, 20);
FIELD_AT(lyc_tensor, device_type, 24);
FIELD_AT(lyc_tensor, device_index, 28);
FIELD_AT(lyc_tensor, layout, 32);
FIELD_AT(lyc_tensor, flags, 36);
FIELD_AT(lyc_tensor, shape, 40);
FIELD_AT(lyc_tensor, strides, 104);
FIELD_AT(lyc_tensor, reserved_, 168);

SIZE_IS(lyc_device_info, 152);
FIELD_AT(lyc_device_info, struct_size, 0);
FIELD_AT(lyc_device_info, multiprocessors, 4);
FIELD_AT(lyc_device_info, compute_major, 8);
FIELD_AT(lyc_device_info, compute_minor, 12);
FIELD_AT(lyc_device_info, memory_bytes, 16);
FIELD_AT(lyc_device_info, name, 24);

SIZE_IS(lyc_context_options, 40);
FIELD_AT(lyc_context_options, struct_size, 0);
FIELD_AT(lyc_context_options, device_type, 4);
FIELD_AT(lyc_context_options, device_index, 8);
FIELD_AT(lyc_context_options, threads, 12);
FIELD_AT(lyc_context_options, allocate, 16);
FIELD_AT(lyc_context_options, deallocate, 24);
FIELD_AT(lyc_context_options, user_data, 32);

SIZE_IS(lyc_context_info, 16);
FIELD_AT(lyc_context_info, struct_size, 0);
FIELD_AT(lyc_context_info, device_type, 4);
FIELD_AT(lyc_context_info, device_index, 8);
FIELD_AT(lyc_context_info, threads, 12);

SIZE_IS(lyc_exec, 32);
FIELD_AT(lyc_exec, struct_size, 0);
FIELD_AT(lyc_exec, flags, 4);
FIELD_AT(lyc_exec, stream, 8);
FIELD_AT(lyc_exec, workspace, 16);
FIELD_AT(lyc_exec, workspace_size, 24);

SIZE_IS(lyc_module_options, 112);
FIELD_AT(lyc_module_options, struct_size, 0);
FIELD_AT(lyc_module_options, flags, 4);
FIELD_AT(lyc_module_options, algo, 8);
FIELD_AT(lyc_module_options, rank, 12);
FIELD_AT(lyc_module_options, alpha, 16);
FIELD_AT(lyc_module_options, factor, 24);
FIELD_AT(lyc_module_options, dora_axis, 28);
FIELD_AT(lyc_module_options, dora_rule, 32);
FIELD_AT(lyc_module_options, dtype, 36);
FIELD_AT(lyc_module_options, ndim, 40);
FIELD_AT(lyc_module_options, reserved_, 44);
FIELD_AT(lyc_module_options, shape, 48);
FIELD_AT(lyc_module_options, origin, 88);
FIELD_AT(lyc_module_options, neumann_terms, 92);
FIELD_AT(lyc_module_options, coft_epsilon, 96);
FIELD_AT(lyc_module_options, experts, 104);
FIELD_AT(lyc_module_options, reserved2_, 108);

SIZE_IS(lyc_module_info, 64);
FIELD_AT(lyc_module_info, struct_size, 0);
FIELD_AT(lyc_module_info, flags, 4);
FIELD_AT(lyc_module_info, algo, 8);
FIELD_AT(lyc_module_info, rank, 12);
FIELD_AT(lyc_module_info, alpha, 16);
FIELD_AT(lyc_module_info, scale, 24);
FIELD_AT(lyc_module_info, dora_axis, 32);
FIELD_AT(lyc_module_info, dora_rule, 36);
FIELD_AT(lyc_module_info, needs_base, 40);
FIELD_AT(lyc_module_info, invertible, 44);
FIELD_AT(lyc_module_info, out_features, 48);
FIELD_AT(lyc_module_info, in_elements, 56);

SIZE_IS(lyc_batch_item, 56);
FIELD_AT(lyc_batch_item, module, 0);
FIELD_AT(lyc_batch_item, base, 8);
FIELD_AT(lyc_batch_item, out, 16);
FIELD_AT(lyc_batch_item, row_begin, 24);
FIELD_AT(lyc_batch_item, row_count, 32);
FIELD_AT(lyc_batch_item, multiplier_index, 40);
FIELD_AT(lyc_batch_item, part, 44);
FIELD_AT(lyc_batch_item, weight, 48);

SIZE_IS(lyc_network_options, 8);
FIELD_AT(lyc_network_options, struct_size, 0);
FIELD_AT(lyc_network_options, dora_rule, 4);

SIZE_IS(lyc_multiplier_rule, 16);
FIELD_AT(lyc_multiplier_rule, pattern, 0);
FIELD_AT(lyc_multiplier_rule, adapter_index, 8);
FIELD_AT(lyc_multiplier_rule, multiplier, 12);

SIZE_IS(lyc_match_options, 40);
FIELD_AT(lyc_match_options, struct_size, 0);
FIELD_AT(lyc_match_options, flags, 4);
FIELD_AT(lyc_match_options, includes, 8);
FIELD_AT(lyc_match_options, include_count, 16);
FIELD_AT(lyc_match_options, excludes, 24);
FIELD_AT(lyc_match_options, exclude_count, 32);

SIZE_IS(lyc_merge_options, 80);
FIELD_AT(lyc_merge_options, struct_size, 0);
FIELD_AT(lyc_merge_options, flags, 4);
FIELD_AT(lyc_merge_options, dora_rule, 8);
FIELD_AT(lyc_merge_options, dtype, 12);
FIELD_AT(lyc_merge_options, multipliers, 16);
FIELD_AT(lyc_merge_options, multiplier_count, 24);
FIELD_AT(lyc_merge_options, includes, 32);
FIELD_AT(lyc_merge_options, include_count, 40);
FIELD_AT(lyc_merge_options, excludes, 48);
FIELD_AT(lyc_merge_options, exclude_count, 56);
FIELD_AT(lyc_merge_options, progress, 64);
FIELD_AT(lyc_merge_options, user_data, 72);

SIZE_IS(lyc_report_info, 80);
FIELD_AT(lyc_report_info, struct_size, 0);
FIELD_AT(lyc_report_info, reserved_, 4);
FIELD_AT(lyc_report_info, layer_count, 8);
FIELD_AT(lyc_report_info, matched_count, 16);
FIELD_AT(lyc_report_info, excluded_count, 24);
FIELD_AT(lyc_report_info, unmatched_count, 32);
FIELD_AT(lyc_report_info, tensor_count, 40);
FIELD_AT(lyc_report_info, changed_count, 48);
FIELD_AT(lyc_report_info, bytes_read, 56);
FIELD_AT(lyc_report_info, bytes_written, 64);
FIELD_AT(lyc_report_info, seconds, 72);
