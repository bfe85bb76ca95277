/*
 * lycoris.h: the C interface of lycoris, a native library for LyCORIS adapters
 * (LoRA/LoCon, LoHa, LoKr, (IA)3, GLoRA, OFT, BOFT, T-LoRA and their kin, DoRA on top of the first three).
 *
 * The header is the manual. It runs from simple to advanced:
 *
 *    1. Version and names        5. Contexts              9. Forward
 *    2. Errors                   6. Files                10. Batches
 *    3. Tensors                  7. Modules              11. Networks
 *    4. Devices                  8. One weight           12. Whole files
 *                                                        13. Reports
 *
 * Words.   alpha: the strength a file or trainer asks for. scale: what alpha, the rank and the rules of an
 *          algorithm come to (delta = scale * product of the factors). multiplier: the strength of one call.
 *          weight: a layer's tensor. delta (dW): what an adapter adds to it: dW(m) = merged(W, m) - W.
 *
 * Errors.  Functions that can fail return lyc_status. On failure every `out_` handle is NULL, every other output
 *          is unspecified, lyc_last_error_message() says what was wrong and why, and no file has been changed.
 *          The library never prints, aborts or exits, and no C++ exception leaves it.
 *
 * Handles. lyc_<noun> structs are opaque and reference counted. Functions that fill `out_<noun>` give the caller one
 *          reference, to be given back by lyc_<noun>_release(); releasing NULL does nothing. An object keeps alive
 *          what it was made from, so handles may be released in any order.
 *
 * Memory.  Tensors are borrowed views. The library never frees the caller's memory, and never hands out memory that
 *          the caller must free. Text goes into the caller's buffer, with its full length (without the final NUL) in
 *          *out_length: ask with a NULL buffer and capacity 0, then again. `const char *` results are borrowed, and
 *          live as long as the object they came from, unchanged.
 *
 * Threads. Any function may be called from any thread. Contexts, files and reports may be used by several threads at
 *          once; any other object by one thread at a time, unless its section says more. Nothing happens at load:
 *          no threads, no environment variables, no output, no signal handlers.
 *
 * Structs. *Frozen* ones (lyc_tensor, lyc_batch_item, lyc_multiplier_rule) never change. *Growing* ones start with
 *          `struct_size`, gain fields at the end only, and are set up by their _init function:
 *              lyc_context_options o;  lyc_context_options_init(&o, sizeof o);
 *          A zero field means "the default". There is no implicit padding anywhere.
 *
 * Strings are UTF-8. Shapes and strides count elements. Supported: 64-bit systems.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef LYCORIS_H_
#define LYCORIS_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && !defined(LYCORIS_STATIC)
#  if defined(LYCORIS_BUILDING)
#    define LYC_API __declspec(dllexport)
#  else
#    define LYC_API __declspec(dllimport)
#  endif
#elif defined(__GNUC__) && !defined(SWIG)
#  define LYC_API __attribute__((visibility("default")))
#else
#  define LYC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* == 1. Version and names ============================================================================= */

/** The ABI this header describes. Until 1.0 a minor step may break; from 1.0 on only a major step does. */
#define LYC_ABI_MAJOR 0
#define LYC_ABI_MINOR 1

/** Result of a call. Numbers are stable and never reused; treat an unknown one as a failure. */
typedef enum lyc_status {
  LYC_OK                     = 0,
  LYC_ERROR_INVALID_ARGUMENT = 1,  /**< A value, shape, dtype or handle that the call cannot accept. */
  LYC_ERROR_OUT_OF_MEMORY    = 2,
  LYC_ERROR_UNSUPPORTED      = 3,  /**< Meaningful, but this build, device or algorithm cannot do it. */
  LYC_ERROR_NOT_FOUND        = 4,  /**< No tensor, module, file or device of that name or number. */
  LYC_ERROR_IO               = 5,  /**< The operating system refused; the message holds its reason. */
  LYC_ERROR_FORMAT           = 6,  /**< A file is damaged or not of the expected format. */
  LYC_ERROR_MISMATCH         = 7,  /**< Adapter and base do not fit: unmatched keys, wrong shapes. */
  LYC_ERROR_CANCELLED        = 8,  /**< A progress callback asked to stop. */
  LYC_ERROR_DEVICE           = 9,  /**< A device call failed; lyc_last_error_info() has its code. */
  LYC_ERROR_INTERNAL         = 10, /**< A fault of the library; please report it. */
  LYC_STATUS_FORCE_INT32_    = 0x7fffffff
} lyc_status;

/** Element types. Arithmetic is on F32, F16 and BF16; the others occur in files and are only carried along. */
typedef enum lyc_dtype {
  LYC_DTYPE_NONE         = 0, /**< "Not given", or a type that the library does not know. */
  LYC_DTYPE_F32          = 1,
  LYC_DTYPE_F16          = 2,
  LYC_DTYPE_BF16         = 3,
  LYC_DTYPE_F64          = 4,
  LYC_DTYPE_I64          = 5,
  LYC_DTYPE_I32          = 6,
  LYC_DTYPE_I16          = 7,
  LYC_DTYPE_I8           = 8,
  LYC_DTYPE_U64          = 9,
  LYC_DTYPE_U32          = 10,
  LYC_DTYPE_U16          = 11,
  LYC_DTYPE_U8           = 12,
  LYC_DTYPE_BOOL         = 13,
  LYC_DTYPE_F8_E4M3      = 14,
  LYC_DTYPE_F8_E5M2      = 15,
  LYC_DTYPE_FORCE_INT32_ = 0x7fffffff
} lyc_dtype;

/** Adapter families. DoRA, Tucker cores and rank-stabilised scale are options on top of them. */
typedef enum lyc_algo {
  LYC_ALGO_NONE         = 0, /**< "Find out from the tensors." */
  LYC_ALGO_LOCON        = 1, /**< LoRA, also on convolutions: dW = scale * up down. arXiv:2106.09685 */
  LYC_ALGO_LOHA         = 2, /**< dW = scale * (w1_a w1_b) o (w2_a w2_b). arXiv:2108.06098 */
  LYC_ALGO_LOKR         = 3, /**< dW = scale * w1 (x) w2, each whole or low-rank. arXiv:2212.10650 */
  LYC_ALGO_FULL         = 4, /**< dW = diff, db = diff_b. */
  LYC_ALGO_NORM         = 5, /**< The same for norm layers: w_norm, b_norm. */
  LYC_ALGO_IA3          = 6, /**< (IA)3: rows or columns of the weight times 1 + m v. arXiv:2205.05638 */
  LYC_ALGO_GLORA        = 7, /**< dW = scale * (b1 b2 + W a1 a2). arXiv:2306.07967 */
  LYC_ALGO_PEFT_GLORA   = 8, /**< PEFT's method of that name: dW = W o A + B, db = b o D + E + W C. */
  LYC_ALGO_OFT          = 9, /**< Block-diagonal rotation of rows ("diag-oft") or columns. arXiv:2306.07280 */
  LYC_ALGO_BOFT         = 10, /**< Several such stages, butterfly-wise. arXiv:2311.06243 */
  LYC_ALGO_DYLORA       = 11, /**< LoRA trained for any rank up to its own; its files are LoCon's. arXiv:2210.07558 */
  LYC_ALGO_TLORA        = 12, /**< dW = scale * (p l q - p0 l0 q0), p0 l0 q0 from the SVD of W. arXiv:2507.05964 */
  LYC_ALGO_REPLACE      = 13, /**< A new weight instead of a difference: set_weight. */
  LYC_ALGO_SPARSE       = 14, /**< Some elements of a difference, by position. */
  LYC_ALGO_FORCE_INT32_ = 0x7fffffff
} lyc_algo;

/** ABI of the loaded library, major << 16 | minor. Plug-ins check it before anything else. */
LYC_API uint32_t lyc_abi_version(void);

/** Release as text, for example "0.1.0". */
LYC_API const char *lyc_version_string(void);

/** One line of JSON about this build: version, compiler, instruction sets, CUDA back end. */
LYC_API const char *lyc_build_info(void);

/** 1 if the library has the named capability ("cuda", "dora", ...), else 0; unknown names are 0. */
LYC_API int32_t lyc_has_feature(const char *name);

/** sizeof of a public struct as the library was compiled ("lyc_tensor", ...), 0 if unknown: bindings test themselves. */
LYC_API size_t lyc_struct_size(const char *name);

/** Names as in this header's enumerators, in lower case: "invalid_argument", "bf16", "locon"; "unknown" otherwise. */
LYC_API const char *lyc_status_name(lyc_status status);
LYC_API const char *lyc_dtype_name(lyc_dtype dtype);
LYC_API const char *lyc_algo_name(lyc_algo algo);

/** Inverse of lyc_algo_name(); also takes the usual aliases ("lora", "kron", "diff"). LYC_ALGO_NONE if unknown. */
LYC_API lyc_algo lyc_algo_from_name(const char *name);

/* == 2. Errors ======================================================================================== */

/** What this thread's last failed call said, "" if none failed. Valid until this thread's next failure. */
LYC_API const char *lyc_last_error_message(void);

/** Details of this thread's last failure. Growing. */
typedef struct lyc_error_info {
  uint32_t   struct_size;
  lyc_status status;
  int32_t    native_code; /**< errno, or the CUDA error number; 0 if none. */
  uint32_t   reserved_;
} lyc_error_info;

LYC_API void       lyc_error_info_init(lyc_error_info *info, size_t struct_size);
LYC_API lyc_status lyc_last_error_info(lyc_error_info *info);

/** Forget this thread's last failure. A success does not. */
LYC_API void lyc_clear_last_error(void);

/* == 3. Tensors =======================================================================================
 * A tensor is a view of memory that somebody else owns. Which axis is which is said by the layout tag and never
 * guessed from a shape. Strides may be anything non-negative that does not alias writable elements; a contiguous last
 * axis is the fast path.
 */

/** Where memory is. */
typedef enum lyc_device_type {
  LYC_DEVICE_CPU          = 0,
  LYC_DEVICE_CUDA         = 1,
  LYC_DEVICE_FORCE_INT32_ = 0x7fffffff
} lyc_device_type;

/** Order of a weight's axes: out features O, in features I, kernel axes K (none for linear layers, 1 to 3 for
 *  convolutions; for grouped ones I is per group). Each tag serves linear layers too. 1-D tensors ignore it. */
typedef enum lyc_layout {
  LYC_LAYOUT_OIHW          = 0, /**< [O, I, K...]: PyTorch; linear [O, I]. */
  LYC_LAYOUT_HWIO          = 1, /**< [K..., I, O]: Flame, TensorFlow, JAX; linear [I, O]. */
  LYC_LAYOUT_OHWI          = 2, /**< [O, K..., I]: channels-last weights; linear [O, I]. */
  LYC_LAYOUT_EOI           = 3, /**< [E, O, I]: a stack of matrices, one for each expert; linear [O, I]. */
  LYC_LAYOUT_FORCE_INT32_  = 0x7fffffff
} lyc_layout;

#define LYC_MAX_DIMS 8

#define LYC_TENSOR_READ_ONLY 1 /**< In lyc_tensor.flags: refused as an output. */

/** A borrowed, strided view. Frozen. Start from lyc_tensor_init(), or zero everything. */
typedef struct lyc_tensor {
  void           *data;                   /**< Address of element 0, at least element-aligned. */
  uint64_t        capacity;               /**< Bytes that may be accessed from data on; 0 = unknown, not checked. */
  lyc_dtype       dtype;                  /**< What the bytes are. */
  int32_t         ndim;                   /**< 0 to LYC_MAX_DIMS. */
  lyc_device_type device_type;
  int32_t         device_index;
  lyc_layout      layout;                 /**< Meaning of the axes, for weights. */
  uint32_t        flags;                  /**< LYC_TENSOR_*. */
  int64_t         shape[LYC_MAX_DIMS];    /**< Unused entries are 0. */
  int64_t         strides[LYC_MAX_DIMS];  /**< In elements. */
  uint64_t        reserved_[3];           /**< 0. */
} lyc_tensor;

/** Fill *out_tensor as a contiguous (row-major) view in CPU memory, layout OIHW, capacity = its size.
 *  Errors: INVALID_ARGUMENT (dtype, ndim, negative or overflowing shape). */
LYC_API lyc_status lyc_tensor_init(lyc_tensor *out_tensor, void *data, lyc_dtype dtype, const int64_t *shape,
                                   size_t shape_count);

/** Part of a tensor: elements begin .. begin + length - 1 of axis `axis`, for example one projection of a fused qkv. */
LYC_API lyc_status lyc_tensor_slice(const lyc_tensor *tensor, int32_t axis, int64_t begin, int64_t length,
                                    lyc_tensor *out_tensor);

/** Check a descriptor: dtype, shape, strides, alignment, capacity. */
LYC_API lyc_status lyc_tensor_check(const lyc_tensor *tensor);

/* == 4. Devices =======================================================================================
 * The CPU is built in. CUDA is a file of its own, liblycoris_cuda.so, opened at first need from the folder of the
 * library (or where lyc_backend_load() says), and never closed. Without it, or without a driver, CUDA calls fail with
 * UNSUPPORTED and lyc_backend_explain() tells what was tried. Environment: LYCORIS_BACKEND_DIR names the only folder to
 * look in (ignored in setuid processes), LYCORIS_DISABLE_CUDA=1 turns it off; both are read at first need.
 */

/** What there is to know of a device. Growing. */
typedef struct lyc_device_info {
  uint32_t struct_size;
  int32_t  multiprocessors;    /**< CPU: hardware threads available to the process. */
  int32_t  compute_major;      /**< CUDA compute capability; 0 for the CPU. */
  int32_t  compute_minor;
  uint64_t memory_bytes;       /**< Total memory; 0 if unknown. */
  char     name[128];          /**< CPU: the instruction set in use. */
} lyc_device_info;

/** Number of devices of a type. No CUDA back end or driver counts as 0 and is not an error. */
LYC_API lyc_status lyc_device_count(lyc_device_type type, int32_t *out_count);

LYC_API void       lyc_device_info_init(lyc_device_info *info, size_t struct_size);
LYC_API lyc_status lyc_device_get_info(lyc_device_type type, int32_t index, lyc_device_info *info);

/** Load a back end from this file (absolute path) instead of the default places. Errors: NOT_FOUND, UNSUPPORTED
 *  (another version, or one is loaded already). */
LYC_API lyc_status lyc_backend_load(const char *path);

/** Which back ends are there, which file they came from, or every place tried and why it failed. */
LYC_API lyc_status lyc_backend_explain(lyc_device_type type, char *buffer, size_t capacity, size_t *out_length);

/* == 5. Contexts ======================================================================================
 * A context is a device with its threads and its memory allocator. Results do not depend on the number of threads.
 */

typedef struct lyc_context lyc_context;

/** Memory for workspaces on the context's device; `stream` is the one the memory is used on. NULL = out of memory. */
typedef void *(*lyc_allocate_fn)(void *user_data, size_t size, size_t alignment, void *stream);
typedef void (*lyc_deallocate_fn)(void *user_data, void *memory, size_t size, void *stream);

/** Growing. */
typedef struct lyc_context_options {
  uint32_t          struct_size;
  lyc_device_type   device_type;   /**< Default: the CPU. */
  int32_t           device_index;
  int32_t           threads;       /**< CPU threads, the caller's included; 0 = as many as the process may use.
                                        They start with the context and end with it. CUDA: those that
                                        lyc_merge_files() feeds the device with. */
  lyc_allocate_fn   allocate;      /**< NULL = the library's own. Both or none. */
  lyc_deallocate_fn deallocate;
  void             *user_data;     /**< For both; must outlive the context. */
} lyc_context_options;

LYC_API void lyc_context_options_init(lyc_context_options *options, size_t struct_size);

/** Create a context; options NULL = CPU, defaults. Errors: NOT_FOUND (no such device), UNSUPPORTED (no back end). */
LYC_API lyc_status lyc_context_create(const lyc_context_options *options, lyc_context **out_context);
LYC_API void       lyc_context_retain(lyc_context *context);
LYC_API void       lyc_context_release(lyc_context *context);

/** Growing. */
typedef struct lyc_context_info {
  uint32_t        struct_size;
  lyc_device_type device_type;
  int32_t         device_index;
  int32_t         threads;
} lyc_context_info;

LYC_API void       lyc_context_info_init(lyc_context_info *info, size_t struct_size);
LYC_API lyc_status lyc_context_get_info(const lyc_context *context, lyc_context_info *info);

/** How one call runs. NULL = all defaults. Growing. */
typedef struct lyc_exec {
  uint32_t struct_size;
  uint32_t flags;           /**< 0. */
  void    *stream;          /**< CUDA: cudaStream_t or CUstream; NULL = the legacy default stream. CPU: ignored, the
                                 work is done when the call returns. */
  void    *workspace;       /**< Scratch memory on the context's device, 256-byte aligned. NULL: the context allocates. */
  uint64_t workspace_size;  /**< See the functions named *_workspace_size(). */
} lyc_exec;

LYC_API void lyc_exec_init(lyc_exec *exec, size_t struct_size);

/* == 6. Files =========================================================================================
 * Tensor files in safetensors format, read with positional reads: no memory maps. Everything in a header is checked
 * before use. A path may also name a `.safetensors.index.json`, a folder that holds one, a folder of shards, or a
 * diffusers folder, whose tensors then carry their component's name in front ("unet.", "text_encoder.").
 */

typedef struct lyc_file   lyc_file;
typedef struct lyc_writer lyc_writer;

/** Open a file or folder for reading. Errors: NOT_FOUND, IO, FORMAT (says where and why), UNSUPPORTED (pickles). */
LYC_API lyc_status lyc_file_open(const char *path, lyc_file **out_file);

/** Open a safetensors image in memory, which must stay until the last release. */
LYC_API lyc_status lyc_file_open_memory(const void *data, size_t size, lyc_file **out_file);
LYC_API void       lyc_file_retain(lyc_file *file);
LYC_API void       lyc_file_release(lyc_file *file);

/** Number of tensors. They are numbered in the order of their data. */
LYC_API lyc_status lyc_file_tensor_count(const lyc_file *file, size_t *out_count);

/** Name, and dtype and shape (data NULL, contiguous) of tensor `index`. Either output may be NULL. */
LYC_API lyc_status lyc_file_get_tensor(const lyc_file *file, size_t index, const char **out_name,
                                       lyc_tensor *out_tensor);

/** Index of the tensor with this name. Errors: NOT_FOUND. */
LYC_API lyc_status lyc_file_find_tensor(const lyc_file *file, const char *name, size_t *out_index);

/** Read tensor `index` into memory of its exact dtype, contiguous. Errors: IO, INVALID_ARGUMENT (size too small). */
LYC_API lyc_status lyc_file_read_tensor(const lyc_file *file, size_t index, void *data, size_t size);

/** Metadata of the header (for several files: of the first), sorted by key. */
LYC_API lyc_status lyc_file_metadata_count(const lyc_file *file, size_t *out_count);
LYC_API lyc_status lyc_file_get_metadata(const lyc_file *file, size_t index, const char **out_key,
                                         const char **out_value);

/** Start a new safetensors file. Nothing appears at `path` before lyc_writer_finish(). */
LYC_API lyc_status lyc_writer_create(const char *path, lyc_writer **out_writer);

/** Add or replace one entry of the header's metadata. */
LYC_API lyc_status lyc_writer_set_metadata(lyc_writer *writer, const char *key, const char *value);

/** Add a contiguous CPU tensor. Its memory is borrowed until finish or release. Errors: INVALID_ARGUMENT (a name
 *  twice, strides, device). */
LYC_API lyc_status lyc_writer_add(lyc_writer *writer, const char *name, const lyc_tensor *tensor);

/** Write everything, sync it to disk, and put it at `path` in one step, replacing what was there. On failure `path`
 *  is as it was. The writer can only be released afterwards. */
LYC_API lyc_status lyc_writer_finish(lyc_writer *writer);
LYC_API void       lyc_writer_release(lyc_writer *writer);

/* == 7. Modules =======================================================================================
 * A module is the delta of one layer: its factors, and how they make a delta. It does not hold the layer's weight.
 * A module may be used by several threads at once as long as nobody binds or writes its parameters.
 */

typedef struct lyc_module lyc_module;

/** How a DoRA magnitude g acts, with V = W + dW and n = its norm. All are the same at multiplier m = 1. */
typedef enum lyc_dora_rule {
  LYC_DORA_RULE_DEFAULT      = 0, /**< What the file's dialect says; INTERPOLATE where it says nothing. */
  LYC_DORA_RULE_INTERPOLATE  = 1, /**< W + m (g V / n - W). */
  LYC_DORA_RULE_LYCORIS      = 2, /**< V (1 + m (g / n - 1)): the magnitude only is blended. */
  LYC_DORA_RULE_PEFT         = 3, /**< g V / n with V = W + m dW, and no epsilon in n. */
  LYC_DORA_RULE_FORCE_INT32_ = 0x7fffffff
} lyc_dora_rule;

/** Along which axis a DoRA magnitude has its entries. arXiv:2402.09353 */
typedef enum lyc_dora_axis {
  LYC_DORA_AXIS_NONE         = 0, /**< No DoRA. */
  LYC_DORA_AXIS_OUT          = 1, /**< One per output row: shape [O, 1, ...]. */
  LYC_DORA_AXIS_IN           = 2, /**< One per input column, over rows and kernel: shape [1, I, 1, ...]. */
  LYC_DORA_AXIS_FORCE_INT32_ = 0x7fffffff
} lyc_dora_axis;

/** Whose conventions a module's tensors follow, where programs store different things under one name. */
typedef enum lyc_origin {
  LYC_ORIGIN_LYCORIS      = 0,
  LYC_ORIGIN_KOHYA        = 1, /**< sd-scripts: the constraint of OFT always acts. */
  LYC_ORIGIN_PEFT         = 2,
  LYC_ORIGIN_ONETRAINER   = 3, /**< OFT turns convolutions the other way. */
  LYC_ORIGIN_FORCE_INT32_ = 0x7fffffff
} lyc_origin;

#define LYC_MODULE_TUCKER          1  /**< Tucker core on kernels above 1 (LoCon, LoHa, LoKr). */
#define LYC_MODULE_RANK_STABILISED 2  /**< scale = alpha / sqrt(rank). arXiv:2312.03732 */
#define LYC_MODULE_SCALAR          4  /**< A trained scalar multiplies the delta. */
#define LYC_MODULE_DECOMPOSE_BOTH  8  /**< LoKr: w1 low-rank too, where rank < max(its sides) / 2. */
#define LYC_MODULE_WHOLE           16 /**< LoKr: both halves whole ("full_matrix"). */
#define LYC_MODULE_UNBALANCED      32 /**< LoKr: w1 takes the larger part of the outputs. */
#define LYC_MODULE_BIAS            64 /**< Full, norm: a bias difference too. */
#define LYC_MODULE_ON_INPUT        128 /**< (IA)3: columns are scaled, not rows. */
#define LYC_MODULE_RESCALE         256 /**< OFT, BOFT: rows are scaled after the rotation. */
#define LYC_MODULE_LAST            512 /**< T-LoRA: starts from the smallest singular values, not the largest. */
#define LYC_MODULE_MIDDLE          1024 /**< T-LoRA: from those in the middle. */

/** What to build. Growing. */
typedef struct lyc_module_options {
  uint32_t      struct_size;
  uint32_t      flags;         /**< LYC_MODULE_*. */
  lyc_algo      algo;          /**< Required by lyc_module_create(). */
  int32_t       rank;          /**< At least 1, for the low-rank families. */
  double        alpha;         /**< 0 = rank. Negative is legal. */
  int32_t       factor;        /**< LoKr: size of the smaller part; 0 or -1 = as square as possible. DyLoRA: ranks of
                                    a block, which divide the rank; 0 or -1 = 1. */
  lyc_dora_axis dora_axis;
  lyc_dora_rule dora_rule;
  lyc_dtype     dtype;         /**< Of the parameters; default F32. */
  int32_t       ndim;          /**< Of the weight: 1 norm, 2 linear, 3 to 5 convolution. */
  uint32_t      reserved_;
  int64_t       shape[5];      /**< Of the weight, always as [O, I, K...] whatever its layout. */
  lyc_origin    origin;        /**< Whose conventions tensors follow. */
  int32_t       neumann_terms; /**< OFT: terms of the Cayley map's series, -1 = the exact map, 0 = the origin's default. */
  double        coft_epsilon;  /**< OFT: constrained (COFT), |Q| of each block is at most this / sqrt(rows of the
                                    tensor); 0 = not. */
  int32_t       experts;       /**< Matrices in the stack [E, O, I] that the factors are for (PEFT's lora_A [E*r, I],
                                    lora_B [O, r*E]); 0 or 1 = a single one. From tensors only. */
  uint32_t      reserved2_;
} lyc_module_options;

LYC_API void lyc_module_options_init(lyc_module_options *options, size_t struct_size);

/** Create a module for one layer. All parameters are zero; bind, write or load them.
 *  Errors: INVALID_ARGUMENT (rank, alpha, shape, flags that the algorithm does not have). */
LYC_API lyc_status lyc_module_create(lyc_context *context, const lyc_module_options *options, lyc_module **out_module);

/** Create a module from tensors as they are in a file, named by their suffix: "lora_up.weight", "hada_w1_a", "alpha",
 *  "dora_scale". The algorithm, rank and form follow from names and shapes. CPU tensors are copied; tensors on the
 *  context's CUDA device are bound, as by lyc_module_bind_param(). `options` may be NULL; of it only dora_rule,
 *  RANK_STABILISED, alpha where the tensors have none, and the shape (checked when given) are used.
 *  Errors: INVALID_ARGUMENT, FORMAT (a pair without its half, shapes that do not fit), UNSUPPORTED (unknown family). */
LYC_API lyc_status lyc_module_create_from_tensors(lyc_context *context, const lyc_module_options *options,
                                                  const char *const *names, const lyc_tensor *tensors,
                                                  size_t tensor_count, lyc_module **out_module);
LYC_API void       lyc_module_retain(lyc_module *module);
LYC_API void       lyc_module_release(lyc_module *module);

/** What a module came to. Growing. */
typedef struct lyc_module_info {
  uint32_t      struct_size;
  uint32_t      flags;         /**< LYC_MODULE_*, as found or asked for. */
  lyc_algo      algo;
  int32_t       rank;          /**< 0 where there is none. */
  double        alpha;         /**< As requested or stored. */
  double        scale;         /**< As resolved; what the delta is multiplied by. */
  lyc_dora_axis dora_axis;
  lyc_dora_rule dora_rule;     /**< Never DEFAULT. */
  int32_t       needs_base;    /**< 1 if dW depends on the weight (DoRA). */
  int32_t       invertible;    /**< 1 if lyc_unmerge() works. */
  int64_t       out_features;  /**< Rows of the delta. */
  int64_t       in_elements;   /**< Columns: in features times kernel size. */
} lyc_module_info;

LYC_API void       lyc_module_info_init(lyc_module_info *info, size_t struct_size);
LYC_API lyc_status lyc_module_get_info(const lyc_module *module, lyc_module_info *info);

/** Parameters in the order in which files list them. `out_tensor` shows the memory in use. */
LYC_API lyc_status lyc_module_param_count(const lyc_module *module, size_t *out_count);
LYC_API lyc_status lyc_module_get_param(const lyc_module *module, size_t index, const char **out_name,
                                        lyc_tensor *out_tensor);

/** Families of low-rank products (LoCon, DyLoRA, T-LoRA) have one more parameter that files have not and the list above
 *  leaves out: `rank_mask`, [rank], each rank's strength, 1 until it is bound or written. DyLoRA at rank q is q ones and
 *  zeros after them.
 *
 *  Use the caller's memory for a parameter: same shape, contiguous, F32, F16 or BF16, on the context's device. It must
 *  stay until the module is gone or the parameter is bound anew; values may change between calls. */
LYC_API lyc_status lyc_module_bind_param(lyc_module *module, const char *name, const lyc_tensor *tensor);

/** Copy values into, or out of, a parameter; dtypes are converted, CPU tensors only. Not for use while work that reads
 *  the parameter is under way. */
LYC_API lyc_status lyc_module_write_param(lyc_module *module, const char *name, const lyc_tensor *tensor);
LYC_API lyc_status lyc_module_read_param(const lyc_module *module, const char *name, const lyc_tensor *tensor);

/** Compute once, into memory of the context's device, what every call would compute anew, for the layer's pristine weight `base`
 *  (NULL only where needs_base is 0). Waits.
 *    T-LoRA      the singular triplets that it starts from, kept as parameters base_p_layer.weight, base_lambda_layer
 *                and base_q_layer.weight; needs_base is 0 from then on. An unprepared one whose file has no such
 *                parameters makes them from the weight in every call and every new batch.
 *    OFT, BOFT   the rotations
 *    DoRA        in a CPU context, but by PEFT's rule: the norms. Merges, differences and forward passes then do not go
 *                through the weight for them.
 *  It counts for that weight: prepare again for another one. Binding or writing a parameter ends the preparation of
 *  rotations and norms.
 *  With a CUDA context the CPU does it: weight and factors are copied there, results back. Errors: INVALID_ARGUMENT,
 *  MISMATCH (shape). */
LYC_API lyc_status lyc_module_prepare(lyc_module *module, const lyc_tensor *base, const lyc_exec *exec);

/** Write the same delta as a module of another family, with F32 parameters of its own in the same context. LOCON takes
 *  what is a sum of low-rank products: T-LoRA of rank r, stored base state or prepared, gives rank 2r; a rank_mask in
 *  use is worked in. Reads the parameters back. Errors: UNSUPPORTED (the delta has no such form, or was not prepared). */
LYC_API lyc_status lyc_module_convert(lyc_module *module, lyc_algo algo, lyc_module **out_module);

/* == 8. One weight ====================================================================================
 * Arithmetic is in F32 with one rounding at the store, whatever the dtypes. Multiplier 0 leaves every bit as it is.
 * A base of fewer rows or another shape than the module's delta is an error, never cut or reshaped; the exception is
 * a 1x1 kernel, which may be there or not. A module keeps what a call prepared for the next one on the same weight:
 * same descriptors, same parameters bound. With a CUDA context the first call on a weight, and only that, may wait for
 * the device; no call can be captured, because the next one may release what it uses. Section 10 has what can.
 */

/** dW(multiplier) into *out, any layout and dtype. `base` is the pristine weight; NULL where needs_base is 0.
 *  Errors: INVALID_ARGUMENT (base missing, dtype, overlap of base and out), MISMATCH (shape). */
LYC_API lyc_status lyc_get_diff_weight(lyc_module *module, const lyc_tensor *base, float multiplier,
                                       const lyc_tensor *out, const lyc_exec *exec);

/** out = base + dW(multiplier). `out` NULL = in place. Both must have the same shape and may differ in dtype and
 *  layout; they must be the same memory or not overlap. */
LYC_API lyc_status lyc_merge(lyc_module *module, const lyc_tensor *base, float multiplier, const lyc_tensor *out,
                             const lyc_exec *exec);

/** weight -= dW(multiplier), exact up to the roundings of both steps. Errors: UNSUPPORTED where dW depends on the
 *  pristine weight (DoRA): keep a copy of the weight instead. */
LYC_API lyc_status lyc_unmerge(lyc_module *module, const lyc_tensor *weight, float multiplier, const lyc_exec *exec);

/** Bytes of workspace that any of the three needs on a weight described by *weight (data may be NULL). */
LYC_API lyc_status lyc_weight_workspace_size(lyc_module *module, const lyc_tensor *weight, uint64_t *out_size);

/* == 9. Forward =======================================================================================
 * A layer with its adapter, the weight untouched: op(x, W + dW(m)) + bias, or only what the adapter adds. Both are what
 * the merged weight would give, but nothing is lost in rounding W + dW to 16 bits: arithmetic is in F32, with one
 * rounding at the store of y. The library takes the cheaper path, through the factors or through the rebuilt weight, by
 * a rule that lyc_forward_explain() shows. Bias differences (`diff_b`) are added times the multiplier.
 *
 * x, y, weight and bias may differ in dtype. Linear: x [..., I], y [..., O]. Convolution: x [N, C, S...] or
 * [N, S..., C], of 1 to 3 axes S. Embedding: x [...] of I32 or I64, y [..., D], weight [V, D]. Layer and RMS norm: over
 * the last axes, as many as the weight has. Group norm: x as for convolutions.
 */

typedef enum lyc_layer_kind {
  LYC_LAYER_LINEAR       = 0,
  LYC_LAYER_CONV         = 1,
  LYC_LAYER_EMBEDDING    = 2,
  LYC_LAYER_LAYER_NORM   = 3,
  LYC_LAYER_GROUP_NORM   = 4,
  LYC_LAYER_RMS_NORM     = 5,
  LYC_LAYER_FORCE_INT32_ = 0x7fffffff
} lyc_layer_kind;

/** Where x and y of convolutions and group norms have their channels. */
typedef enum lyc_channels {
  LYC_CHANNELS_FIRST        = 0, /**< [N, C, S...]: PyTorch's NCHW. */
  LYC_CHANNELS_LAST         = 1, /**< [N, S..., C]: NHWC. */
  LYC_CHANNELS_FORCE_INT32_ = 0x7fffffff
} lyc_channels;

/** How an adapter's part is computed. All agree up to the rounding of float32. */
typedef enum lyc_path {
  LYC_PATH_AUTO         = 0, /**< The cheaper one. */
  LYC_PATH_FACTORED     = 1, /**< Through the factors. UNSUPPORTED where there is no such form. */
  LYC_PATH_REBUILT      = 2, /**< The weight, or its difference, is made in the workspace. */
  LYC_PATH_FORCE_INT32_ = 0x7fffffff
} lyc_path;

/** The operator of the layer that a module adapts. NULL = linear. Growing. */
typedef struct lyc_layer {
  uint32_t       struct_size;
  lyc_layer_kind kind;
  lyc_channels   channels;
  lyc_path       path;
  int32_t        groups;       /**< Of a convolution (0 = 1), or of a group norm. */
  uint32_t       reserved_;
  int64_t        stride[3];    /**< Convolution, by axis of S; 0 = 1. */
  int64_t        padding[3];   /**< Zeros on both sides. */
  int64_t        dilation[3];  /**< 0 = 1. */
  int64_t        kernel[3];    /**< Only where neither `weight` nor the factors show it; 0 = 1. */
  double         epsilon;      /**< Norms; 0 = 1e-5. */
} lyc_layer;

LYC_API void lyc_layer_init(lyc_layer *layer, size_t struct_size);

/** y += op(x, dW(multiplier)). `weight` is the pristine weight; NULL where needs_base is 0. Multiplier 0 leaves every
 *  bit of y. Errors: MISMATCH (shapes), INVALID_ARGUMENT (dtypes, y overlaps x or weight), UNSUPPORTED (path, device; a
 *  bias difference that depends on the bias). */
LYC_API lyc_status lyc_forward(const lyc_module *module, const lyc_layer *layer, const lyc_tensor *x,
                               const lyc_tensor *weight, float multiplier, const lyc_tensor *y, const lyc_exec *exec);

/** y = op(x, weight + dW(multiplier)) + bias. `bias` may be NULL. */
LYC_API lyc_status lyc_forward_fused(const lyc_module *module, const lyc_layer *layer, const lyc_tensor *x,
                                     const lyc_tensor *weight, const lyc_tensor *bias, float multiplier,
                                     const lyc_tensor *y, const lyc_exec *exec);

/** Bytes of workspace that either of them needs on tensors as described (data may be NULL; weight and bias too). */
LYC_API lyc_status lyc_forward_workspace_size(const lyc_module *module, const lyc_layer *layer, const lyc_tensor *x,
                                              const lyc_tensor *weight, const lyc_tensor *bias, const lyc_tensor *y,
                                              uint64_t *out_size);

/** What either would do, as text: prices of the paths, the choice, its steps, or why there is none. */
LYC_API lyc_status lyc_forward_explain(const lyc_module *module, const lyc_layer *layer, const lyc_tensor *x,
                                       const lyc_tensor *weight, const lyc_tensor *bias, const lyc_tensor *y,
                                       char *buffer, size_t capacity, size_t *out_length);

/* == 10. Batches ======================================================================================
 * A batch is many weights in one submission, prepared once and run often. Preparing may allocate and copy; running
 * does neither, and on CUDA does not wait and can be captured into a graph. A batch borrows the addresses of its
 * weights, and of the parameters as they were bound, until it is released; changed values are seen. Several items on
 * the same weight are several adapters on it: each delta is taken against the pristine weight, the sum is rounded once.
 * Modules, networks and weights of a batch belong to the batch's context and device.
 */

typedef struct lyc_batch lyc_batch;

/** Which tensor of the layer. */
typedef enum lyc_part {
  LYC_PART_WEIGHT       = 0,
  LYC_PART_BIAS         = 1, /**< `diff_b`, `b_norm`, `lora_B.bias`. */
  LYC_PART_FORCE_INT32_ = 0x7fffffff
} lyc_part;

typedef enum lyc_batch_op {
  LYC_BATCH_MERGE        = 0, /**< out = base + sum of deltas. */
  LYC_BATCH_UNMERGE      = 1, /**< out = base - sum of deltas, where all of them are invertible. */
  LYC_BATCH_DIFF         = 2, /**< out = sum of deltas; `out` must not be `base`. */
  LYC_BATCH_FORCE_INT32_ = 0x7fffffff
} lyc_batch_op;

/** One module on one weight. Frozen. */
typedef struct lyc_batch_item {
  lyc_module       *module;
  const lyc_tensor *base;             /**< NULL where only differences are wanted and the module needs no base. */
  const lyc_tensor *out;              /**< NULL = in place. Items with the same base have the same out. */
  int64_t           row_begin;        /**< First row (output feature) of the delta that the weight takes: 0, unless an
                                           adapter of a fused layer goes to its parts. */
  int64_t           row_count;        /**< How many rows it takes. 0 = all, and the weight must have as many. */
  int32_t           multiplier_index; /**< Which of the run's multipliers counts. */
  lyc_part          part;
  const lyc_tensor *weight;           /**< For a bias whose difference is made from the layer's weight (PEFT's GLORA):
                                           that weight, pristine, which no item of the batch may change. NULL
                                           otherwise. */
} lyc_batch_item;

/** Prepare items for running. Errors: as lyc_merge(); INVALID_ARGUMENT (weights overlap without being the same). */
LYC_API lyc_status lyc_batch_create(lyc_context *context, const lyc_batch_item *items, size_t item_count,
                                    lyc_batch **out_batch);
LYC_API void       lyc_batch_retain(lyc_batch *batch);
LYC_API void       lyc_batch_release(lyc_batch *batch);

/** Bytes of workspace for one run. */
LYC_API lyc_status lyc_batch_workspace_size(const lyc_batch *batch, uint64_t *out_size);

/** Run. `multipliers`: 1-D contiguous F32, one per multiplier index, NULL = all 1; in CPU memory it is read before the
 *  call returns, on the batch's device when the stream gets there (so a captured graph can be steered).
 *  Errors: UNSUPPORTED (UNMERGE with DoRA), INVALID_ARGUMENT (DIFF in place, too few multipliers, workspace). */
LYC_API lyc_status lyc_batch_run(lyc_batch *batch, lyc_batch_op op, const lyc_tensor *multipliers,
                                 const lyc_exec *exec);

/** What a run does, as text: groups, kernels, tiles, workspace, launches. */
LYC_API lyc_status lyc_batch_explain(const lyc_batch *batch, char *buffer, size_t capacity, size_t *out_length);

/* == 11. Networks =====================================================================================
 * A network is an adapter file in memory: modules, and the names of the layers they belong to. */

typedef struct lyc_network lyc_network;
typedef struct lyc_report  lyc_report;

/** Growing. */
typedef struct lyc_network_options {
  uint32_t      struct_size;
  lyc_dora_rule dora_rule;  /**< Instead of the dialect's. */
} lyc_network_options;

LYC_API void lyc_network_options_init(lyc_network_options *options, size_t struct_size);

/** Load an adapter file; its dialect is found by itself. options may be NULL.
 *  Errors: NOT_FOUND, IO, FORMAT (what, which key), UNSUPPORTED (a family or dialect not known yet, by name). */
LYC_API lyc_status lyc_network_load(lyc_context *context, const char *path, const lyc_network_options *options,
                                    lyc_network **out_network);
LYC_API void       lyc_network_retain(lyc_network *network);
LYC_API void       lyc_network_release(lyc_network *network);

/** Modules, ordered by name. The name is the layer's as the file spells it. get_module adds a reference. */
LYC_API lyc_status lyc_network_count(const lyc_network *network, size_t *out_count);
LYC_API lyc_status lyc_network_get_module(const lyc_network *network, size_t index, const char **out_name,
                                          lyc_module **out_module);

#define LYC_ALLOW_UNMATCHED 1 /**< Adapter keys that find no weight are reported, and are no error. An adapter none of
                                   whose layers finds one is still an error: it is for another model. */
#define LYC_OVERWRITE       2 /**< lyc_merge_files(): an existing output may be replaced. */

/** Strength of adapters by layer; later rules win. Frozen. */
typedef struct lyc_multiplier_rule {
  const char *pattern;        /**< Shell wildcards over the whole name of the base's tensor or the file's layer;
                                   NULL = every layer. */
  int32_t     adapter_index;  /**< -1 = all. */
  float       multiplier;
} lyc_multiplier_rule;

/** Growing. */
typedef struct lyc_match_options {
  uint32_t           struct_size;
  uint32_t           flags;          /**< LYC_ALLOW_UNMATCHED. */
  const char *const *includes;       /**< Shell wildcards; only layers that match one are used. None = all. */
  size_t             include_count;
  const char *const *excludes;       /**< Layers that match one are left out. */
  size_t             exclude_count;
} lyc_match_options;

LYC_API void lyc_match_options_init(lyc_match_options *options, size_t struct_size);

/** Find the weights that networks adapt among `tensors`, called `names`, and prepare the in-place batch. Multiplier
 *  index i belongs to networks[i]. Fused weights (qkv) are taken by rows. *out_report lists what went where and what is
 *  left over; it may be NULL. Errors: MISMATCH (unmatched keys, ambiguous names, shapes: named, with the reason). */
LYC_API lyc_status lyc_batch_create_from_networks(lyc_context *context, lyc_network *const *networks,
                                                  size_t network_count, const char *const *names,
                                                  const lyc_tensor *tensors, size_t tensor_count,
                                                  const lyc_match_options *options, lyc_batch **out_batch,
                                                  lyc_report **out_report);

/* == 12. Whole files ================================================================================== */

/** Called now and then, on the calling thread. Return nonzero to cancel. */
typedef int32_t (*lyc_progress_fn)(void *user_data, uint64_t done_bytes, uint64_t total_bytes);

/** Growing. */
typedef struct lyc_merge_options {
  uint32_t                   struct_size;
  uint32_t                   flags;       /**< LYC_ALLOW_UNMATCHED, LYC_OVERWRITE. */
  lyc_dora_rule              dora_rule;   /**< Instead of the files' own. */
  lyc_dtype                  dtype;       /**< Of floating-point tensors (F32, F16, BF16) in the output; NONE = as
                                               they are. */
  const lyc_multiplier_rule *multipliers; /**< None = 1. */
  size_t                     multiplier_count;
  const char *const         *includes;    /**< As in lyc_match_options. */
  size_t                     include_count;
  const char *const         *excludes;
  size_t                     exclude_count;
  lyc_progress_fn            progress;    /**< May be NULL. */
  void                      *user_data;
} lyc_merge_options;

LYC_API void lyc_merge_options_init(lyc_merge_options *options, size_t struct_size);

/** Merge adapters into a base model, file to file, computed on the context's device. Untouched tensors are copied byte
 *  for byte; several adapters are added with one rounding; metadata is kept, and extended by what was done. Sharded
 *  bases and folders give a folder.
 *  Nothing appears at `out_path` before all is written and synced. *out_report may be NULL. options may be NULL.
 *  Errors: IO, FORMAT, MISMATCH (the adapter does not belong to this base), UNSUPPORTED, CANCELLED,
 *  INVALID_ARGUMENT (out exists without LYC_OVERWRITE, or is one of the inputs). */
LYC_API lyc_status lyc_merge_files(lyc_context *context, const char *base_path, const char *const *adapter_paths,
                                   size_t adapter_count, const char *out_path, const lyc_merge_options *options,
                                   lyc_report **out_report);

/** Look into a base or adapter file: dialect, algorithms, ranks, alphas, layers, dtypes, norms, anomalies. */
LYC_API lyc_status lyc_inspect_file(lyc_context *context, const char *path, lyc_report **out_report);

/* == 13. Reports ====================================================================================== */

/** Figures of a report; 0 where they do not apply. Growing. */
typedef struct lyc_report_info {
  uint32_t struct_size;
  uint32_t reserved_;
  uint64_t layer_count;      /**< Adapted layers in the adapters. */
  uint64_t matched_count;    /**< Of these, the ones that found their weight. */
  uint64_t excluded_count;   /**< Left out by includes and excludes. */
  uint64_t unmatched_count;  /**< Found no weight. */
  uint64_t tensor_count;     /**< Tensors in the base. */
  uint64_t changed_count;    /**< Tensors that differ. */
  uint64_t bytes_read;
  uint64_t bytes_written;
  double   seconds;
} lyc_report_info;

LYC_API void       lyc_report_info_init(lyc_report_info *info, size_t struct_size);
LYC_API lyc_status lyc_report_get_info(const lyc_report *report, lyc_report_info *info);

/** Everything, as one JSON object; docs/report.md describes the fields. Borrowed from the report. */
LYC_API const char *lyc_report_json(const lyc_report *report);
LYC_API void        lyc_report_retain(lyc_report *report);
LYC_API void        lyc_report_release(lyc_report *report);

#ifdef __cplusplus
}
#endif

#endif /* LYCORIS_H_ */
