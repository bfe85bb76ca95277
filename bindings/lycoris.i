/*
 * The one SWIG interface over include/lycoris.h, for Python, C# and (as XML, see tools/generate.py) Rust.
 *
 * Nothing is computed here, and no function is named here for its arguments' sake: the header's parameter names follow
 * patterns, and <language>/patterns.i has one typemap for each of them:
 *
 *     lyc_status f(...)                                     raises the language's exception
 *     T **out_thing                                         a new object of the language
 *     const char *name, const char **out_name               text in, borrowed text out
 *     (char *buffer, size_t capacity, size_t *out_length)   text out
 *     (const char *const *xs, size_t x_count)               a list of texts; likewise handles and structs
 *     (names, const lyc_tensor *tensors, tensor_count)      a table name -> tensor
 *     const lyc_tensor *x, lyc_tensor *out_tensor           a tensor in (or written to), the description of one
 *     size_t *out_count, uint64_t *out_size, ...            a number out
 *     T *info                                               a growing struct that the library fills
 *     const T_options *options, const lyc_layer *layer      a growing struct, made by its _init function
 *     const lyc_exec *exec                                  a stream, or nothing
 *     (lyc_progress_fn progress, void *user_data)           a function of the language
 *
 * Below, the header's types are sorted into the kinds that the patterns speak of.
 */
#if defined(SWIGPYTHON)
%module(package="liblycoris", threads="1") native
#elif defined(SWIGCSHARP)
%module Native
#else
%module lycoris
#endif

%{
#include "lycoris.h"
%}

%include <stdint.i>

#if defined(SWIGPYTHON)
%include "python/patterns.i"
#elif defined(SWIGCSHARP)
%include "csharp/patterns.i"
#else  /* XML: only the names in other languages */
%define LYC_STATUS(T, NAME)
%rename(NAME) T;
%enddef
%define LYC_HANDLE(T, NAME)
%rename(NAME) T;
%enddef
%define LYC_ENUM(T, NAME)
%rename(NAME) T;
%enddef
%define LYC_STRUCT(T, NAME)
%rename(NAME) T;
%enddef
%define LYC_INFO(T, NAME)
%rename(NAME) T;
%enddef
%define LYC_OPTIONS(T, NAME)
%rename(NAME) T;
%enddef
%define LYC_EXEC(T, NAME)
%rename(NAME) T;
%enddef
#endif

LYC_STATUS(lyc_status, Status)
LYC_ENUM(lyc_dtype, DType)
LYC_ENUM(lyc_algo, Algo)
LYC_ENUM(lyc_device_type, DeviceType)
LYC_ENUM(lyc_layout, Layout)
LYC_ENUM(lyc_dora_rule, DoraRule)
LYC_ENUM(lyc_dora_axis, DoraAxis)
LYC_ENUM(lyc_layer_kind, LayerKind)
LYC_ENUM(lyc_channels, ChannelOrder)
LYC_ENUM(lyc_path, ForwardPath)
LYC_ENUM(lyc_part, Part)
LYC_ENUM(lyc_batch_op, BatchOp)

/* Opaque and reference counted. */
LYC_HANDLE(lyc_context, Context)
LYC_HANDLE(lyc_file, File)
LYC_HANDLE(lyc_writer, Writer)
LYC_HANDLE(lyc_module, Module)
LYC_HANDLE(lyc_batch, Batch)
LYC_HANDLE(lyc_network, Network)
LYC_HANDLE(lyc_report, Report)

/* Frozen: passed as they are, also in arrays. */
LYC_STRUCT(lyc_tensor, Tensor)
LYC_STRUCT(lyc_batch_item, BatchItem)
LYC_STRUCT(lyc_multiplier_rule, MultiplierRule)

/* Growing, filled by the library. */
LYC_INFO(lyc_error_info, ErrorInfo)
LYC_INFO(lyc_device_info, DeviceInfo)
LYC_INFO(lyc_context_info, ContextInfo)
LYC_INFO(lyc_module_info, ModuleInfo)
LYC_INFO(lyc_report_info, ReportInfo)

/* Growing, filled by the caller. */
LYC_OPTIONS(lyc_context_options, ContextOptions)
LYC_OPTIONS(lyc_module_options, ModuleOptions)
LYC_OPTIONS(lyc_layer, Layer)
LYC_OPTIONS(lyc_network_options, NetworkOptions)
LYC_OPTIONS(lyc_match_options, MatchOptions)
LYC_OPTIONS(lyc_merge_options, MergeOptions)

/* Growing, how a call runs. */
LYC_EXEC(lyc_exec, Exec)

%include "lycoris.h"
