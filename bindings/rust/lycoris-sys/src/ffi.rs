// Made by bindings/tools/generate.py from include/lycoris.h; do not edit.

/// The ABI this header describes. Until 1.0 a minor step may break; from 1.0 on only a major step does.
pub const LYC_ABI_MAJOR: u32 = 0;
pub const LYC_ABI_MINOR: u32 = 1;
pub const LYC_MAX_DIMS: u32 = 8;
/// In `lyc_tensor`.flags: refused as an output.
pub const LYC_TENSOR_READ_ONLY: u32 = 1;
/// Tucker core on kernels above 1 (LoCon, LoHa, LoKr).
pub const LYC_MODULE_TUCKER: u32 = 1;
/// scale = alpha / sqrt(rank). arXiv:2312.03732
pub const LYC_MODULE_RANK_STABILISED: u32 = 2;
/// A trained scalar multiplies the delta.
pub const LYC_MODULE_SCALAR: u32 = 4;
/// LoKr: w1 low-rank too, where rank < max(its sides) / 2.
pub const LYC_MODULE_DECOMPOSE_BOTH: u32 = 8;
/// LoKr: both halves whole ("full_matrix").
pub const LYC_MODULE_WHOLE: u32 = 16;
/// LoKr: w1 takes the larger part of the outputs.
pub const LYC_MODULE_UNBALANCED: u32 = 32;
/// Full, norm: a bias difference too.
pub const LYC_MODULE_BIAS: u32 = 64;
/// (IA)3: columns are scaled, not rows.
pub const LYC_MODULE_ON_INPUT: u32 = 128;
/// OFT, BOFT: rows are scaled after the rotation.
pub const LYC_MODULE_RESCALE: u32 = 256;
/// T-LoRA: starts from the smallest singular values, not the largest.
pub const LYC_MODULE_LAST: u32 = 512;
/// T-LoRA: from those in the middle.
pub const LYC_MODULE_MIDDLE: u32 = 1024;
/// Adapter keys that find no weight are reported, and are no error. An adapter none of whose layers finds one is
/// still an error: it is for another model.
pub const LYC_ALLOW_UNMATCHED: u32 = 1;
/// `lyc_merge_files()`: an existing output may be replaced.
pub const LYC_OVERWRITE: u32 = 2;

enumeration! {
    /// Result of a call. Numbers are stable and never reused; treat an unknown one as a failure.
    lyc_status {
        OK = 0,
        /// A value, shape, dtype or handle that the call cannot accept.
        ERROR_INVALID_ARGUMENT = 1,
        ERROR_OUT_OF_MEMORY = 2,
        /// Meaningful, but this build, device or algorithm cannot do it.
        ERROR_UNSUPPORTED = 3,
        /// No tensor, module, file or device of that name or number.
        ERROR_NOT_FOUND = 4,
        /// The operating system refused; the message holds its reason.
        ERROR_IO = 5,
        /// A file is damaged or not of the expected format.
        ERROR_FORMAT = 6,
        /// Adapter and base do not fit: unmatched keys, wrong shapes.
        ERROR_MISMATCH = 7,
        /// A progress callback asked to stop.
        ERROR_CANCELLED = 8,
        /// A device call failed; `lyc_last_error_info()` has its code.
        ERROR_DEVICE = 9,
        /// A fault of the library; please report it.
        ERROR_INTERNAL = 10,
    }
}

enumeration! {
    /// Element types. Arithmetic is on F32, F16 and BF16; the others occur in files and are only carried along.
    lyc_dtype {
        /// "Not given", or a type that the library does not know.
        NONE = 0,
        F32 = 1,
        F16 = 2,
        BF16 = 3,
        F64 = 4,
        I64 = 5,
        I32 = 6,
        I16 = 7,
        I8 = 8,
        U64 = 9,
        U32 = 10,
        U16 = 11,
        U8 = 12,
        BOOL = 13,
        F8_E4M3 = 14,
        F8_E5M2 = 15,
    }
}

enumeration! {
    /// Adapter families. DoRA, Tucker cores and rank-stabilised scale are options on top of them.
    lyc_algo {
        /// "Find out from the tensors."
        NONE = 0,
        /// LoRA, also on convolutions: dW = scale * up down. arXiv:2106.09685
        LOCON = 1,
        /// dW = scale * (w1_a w1_b) o (w2_a w2_b). arXiv:2108.06098
        LOHA = 2,
        /// dW = scale * w1 (x) w2, each whole or low-rank. arXiv:2212.10650
        LOKR = 3,
        /// dW = diff, db = diff_b.
        FULL = 4,
        /// The same for norm layers: w_norm, b_norm.
        NORM = 5,
        /// (IA)3: rows or columns of the weight times 1 + m v. arXiv:2205.05638
        IA3 = 6,
        /// dW = scale * (b1 b2 + W a1 a2). arXiv:2306.07967
        GLORA = 7,
        /// PEFT's method of that name: dW = W o A + B, db = b o D + E + W C.
        PEFT_GLORA = 8,
        /// Block-diagonal rotation of rows ("diag-oft") or columns. arXiv:2306.07280
        OFT = 9,
        /// Several such stages, butterfly-wise. arXiv:2311.06243
        BOFT = 10,
        /// LoRA trained for any rank up to its own; its files are LoCon's. arXiv:2210.07558
        DYLORA = 11,
        /// dW = scale * (p l q - p0 l0 q0), p0 l0 q0 from the SVD of W. arXiv:2507.05964
        TLORA = 12,
        /// A new weight instead of a difference: set_weight.
        REPLACE = 13,
        /// Some elements of a difference, by position.
        SPARSE = 14,
    }
}

enumeration! {
    /// Where memory is.
    lyc_device_type {
        CPU = 0,
        CUDA = 1,
    }
}

enumeration! {
    /// Order of a weight's axes: out features O, in features I, kernel axes K (none for linear layers, 1 to 3 for
    /// convolutions; for grouped ones I is per group). Each tag serves linear layers too. 1-D tensors ignore it.
    lyc_layout {
        /// \[O, I, K...\]: PyTorch; linear \[O, I\].
        OIHW = 0,
        /// \[K..., I, O\]: Flame, TensorFlow, JAX; linear \[I, O\].
        HWIO = 1,
        /// \[O, K..., I\]: channels-last weights; linear \[O, I\].
        OHWI = 2,
        /// \[E, O, I\]: a stack of matrices, one for each expert; linear \[O, I\].
        EOI = 3,
    }
}

enumeration! {
    /// How a DoRA magnitude g acts, with V = W + dW and n = its norm. All are the same at multiplier m = 1.
    lyc_dora_rule {
        /// What the file's dialect says; INTERPOLATE where it says nothing.
        DEFAULT = 0,
        /// W + m (g V / n - W).
        INTERPOLATE = 1,
        /// V (1 + m (g / n - 1)): the magnitude only is blended.
        LYCORIS = 2,
        /// g V / n with V = W + m dW, and no epsilon in n.
        PEFT = 3,
    }
}

enumeration! {
    /// Along which axis a DoRA magnitude has its entries. arXiv:2402.09353
    lyc_dora_axis {
        /// No DoRA.
        NONE = 0,
        /// One per output row: shape \[O, 1, ...\].
        OUT = 1,
        /// One per input column, over rows and kernel: shape \[1, I, 1, ...\].
        IN = 2,
    }
}

enumeration! {
    /// Whose conventions a module's tensors follow, where programs store different things under one name.
    lyc_origin {
        LYCORIS = 0,
        /// sd-scripts: the constraint of OFT always acts.
        KOHYA = 1,
        PEFT = 2,
        /// OFT turns convolutions the other way.
        ONETRAINER = 3,
    }
}

enumeration! {
    lyc_layer_kind {
        LINEAR = 0,
        CONV = 1,
        EMBEDDING = 2,
        LAYER_NORM = 3,
        GROUP_NORM = 4,
        RMS_NORM = 5,
    }
}

enumeration! {
    /// Where x and y of convolutions and group norms have their channels.
    lyc_channels {
        /// \[N, C, S...\]: PyTorch's NCHW.
        FIRST = 0,
        /// \[N, S..., C\]: NHWC.
        LAST = 1,
    }
}

enumeration! {
    /// How an adapter's part is computed. All agree up to the rounding of float32.
    lyc_path {
        /// The cheaper one.
        AUTO = 0,
        /// Through the factors. UNSUPPORTED where there is no such form.
        FACTORED = 1,
        /// The weight, or its difference, is made in the workspace.
        REBUILT = 2,
    }
}

enumeration! {
    /// Which tensor of the layer.
    lyc_part {
        WEIGHT = 0,
        /// `diff_b`, `b_norm`, `lora_B.bias`.
        BIAS = 1,
    }
}

enumeration! {
    lyc_batch_op {
        /// out = base + sum of deltas.
        MERGE = 0,
        /// out = base - sum of deltas, where all of them are invertible.
        UNMERGE = 1,
        /// out = sum of deltas; `out` must not be `base`.
        DIFF = 2,
    }
}

opaque! { lyc_context, lyc_file, lyc_writer, lyc_module, lyc_batch, lyc_network, lyc_report }

/// Memory for workspaces on the context's device; `stream` is the one the memory is used on. NULL = out of
/// memory.
pub type lyc_allocate_fn = Option<unsafe extern "C" fn(user_data: *mut c_void, size: usize, alignment: usize, stream: *mut c_void) -> *mut c_void>;

pub type lyc_deallocate_fn = Option<unsafe extern "C" fn(user_data: *mut c_void, memory: *mut c_void, size: usize, stream: *mut c_void)>;

/// Called now and then, on the calling thread. Return nonzero to cancel.
pub type lyc_progress_fn = Option<unsafe extern "C" fn(user_data: *mut c_void, done_bytes: u64, total_bytes: u64) -> i32>;

/// Details of this thread's last failure. Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_error_info {
    pub struct_size: u32,
    pub status: lyc_status,
    /// errno, or the CUDA error number; 0 if none.
    pub native_code: i32,
    pub reserved_: u32,
}

/// A borrowed, strided view. Frozen. Start from `lyc_tensor_init()`, or zero everything.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_tensor {
    /// Address of element 0, at least element-aligned.
    pub data: *mut c_void,
    /// Bytes that may be accessed from data on; 0 = unknown, not checked.
    pub capacity: u64,
    /// What the bytes are.
    pub dtype: lyc_dtype,
    /// 0 to LYC_MAX_DIMS.
    pub ndim: i32,
    pub device_type: lyc_device_type,
    pub device_index: i32,
    /// Meaning of the axes, for weights.
    pub layout: lyc_layout,
    /// LYC_TENSOR_*.
    pub flags: u32,
    /// Unused entries are 0.
    pub shape: [i64; 8],
    /// In elements.
    pub strides: [i64; 8],
    /// 0.
    pub reserved_: [u64; 3],
}

/// What there is to know of a device. Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_device_info {
    pub struct_size: u32,
    /// CPU: hardware threads available to the process.
    pub multiprocessors: i32,
    /// CUDA compute capability; 0 for the CPU.
    pub compute_major: i32,
    pub compute_minor: i32,
    /// Total memory; 0 if unknown.
    pub memory_bytes: u64,
    /// CPU: the instruction set in use.
    pub name: [c_char; 128],
}

/// Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_context_options {
    pub struct_size: u32,
    /// Default: the CPU.
    pub device_type: lyc_device_type,
    pub device_index: i32,
    /// CPU threads, the caller's included; 0 = as many as the process may use. They start with the context and
    /// end with it. CUDA: those that `lyc_merge_files()` feeds the device with.
    pub threads: i32,
    /// NULL = the library's own. Both or none.
    pub allocate: lyc_allocate_fn,
    pub deallocate: lyc_deallocate_fn,
    /// For both; must outlive the context.
    pub user_data: *mut c_void,
}

/// Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_context_info {
    pub struct_size: u32,
    pub device_type: lyc_device_type,
    pub device_index: i32,
    pub threads: i32,
}

/// How one call runs. NULL = all defaults. Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_exec {
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// CUDA: cudaStream_t or CUstream; NULL = the legacy default stream. CPU: ignored, the work is done when the
    /// call returns.
    pub stream: *mut c_void,
    /// Scratch memory on the context's device, 256-byte aligned. NULL: the context allocates.
    pub workspace: *mut c_void,
    /// See the functions named *_workspace_size().
    pub workspace_size: u64,
}

/// What to build. Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_module_options {
    pub struct_size: u32,
    /// LYC_MODULE_*.
    pub flags: u32,
    /// Required by `lyc_module_create()`.
    pub algo: lyc_algo,
    /// At least 1, for the low-rank families.
    pub rank: i32,
    /// 0 = rank. Negative is legal.
    pub alpha: f64,
    /// LoKr: size of the smaller part; 0 or -1 = as square as possible. DyLoRA: ranks of a block, which divide
    /// the rank; 0 or -1 = 1.
    pub factor: i32,
    pub dora_axis: lyc_dora_axis,
    pub dora_rule: lyc_dora_rule,
    /// Of the parameters; default F32.
    pub dtype: lyc_dtype,
    /// Of the weight: 1 norm, 2 linear, 3 to 5 convolution.
    pub ndim: i32,
    pub reserved_: u32,
    /// Of the weight, always as \[O, I, K...\] whatever its layout.
    pub shape: [i64; 5],
    /// Whose conventions tensors follow.
    pub origin: lyc_origin,
    /// OFT: terms of the Cayley map's series, -1 = the exact map, 0 = the origin's default.
    pub neumann_terms: i32,
    /// OFT: constrained (COFT), |Q| of each block is at most this / sqrt(rows of the tensor); 0 = not.
    pub coft_epsilon: f64,
    /// Matrices in the stack \[E, O, I\] that the factors are for (PEFT's lora_A \[E*r, I\], lora_B \[O, r*E\]);
    /// 0 or 1 = a single one. From tensors only.
    pub experts: i32,
    pub reserved2_: u32,
}

/// What a module came to. Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_module_info {
    pub struct_size: u32,
    /// LYC_MODULE_*, as found or asked for.
    pub flags: u32,
    pub algo: lyc_algo,
    /// 0 where there is none.
    pub rank: i32,
    /// As requested or stored.
    pub alpha: f64,
    /// As resolved; what the delta is multiplied by.
    pub scale: f64,
    pub dora_axis: lyc_dora_axis,
    /// Never DEFAULT.
    pub dora_rule: lyc_dora_rule,
    /// 1 if dW depends on the weight (DoRA).
    pub needs_base: i32,
    /// 1 if `lyc_unmerge()` works.
    pub invertible: i32,
    /// Rows of the delta.
    pub out_features: i64,
    /// Columns: in features times kernel size.
    pub in_elements: i64,
}

/// The operator of the layer that a module adapts. NULL = linear. Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_layer {
    pub struct_size: u32,
    pub kind: lyc_layer_kind,
    pub channels: lyc_channels,
    pub path: lyc_path,
    /// Of a convolution (0 = 1), or of a group norm.
    pub groups: i32,
    pub reserved_: u32,
    /// Convolution, by axis of S; 0 = 1.
    pub stride: [i64; 3],
    /// Zeros on both sides.
    pub padding: [i64; 3],
    /// 0 = 1.
    pub dilation: [i64; 3],
    /// Only where neither `weight` nor the factors show it; 0 = 1.
    pub kernel: [i64; 3],
    /// Norms; 0 = 1e-5.
    pub epsilon: f64,
}

/// One module on one weight. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_batch_item {
    pub module: *mut lyc_module,
    /// NULL where only differences are wanted and the module needs no base.
    pub base: *const lyc_tensor,
    /// NULL = in place. Items with the same base have the same out.
    pub out: *const lyc_tensor,
    /// First row (output feature) of the delta that the weight takes: 0, unless an adapter of a fused layer goes
    /// to its parts.
    pub row_begin: i64,
    /// How many rows it takes. 0 = all, and the weight must have as many.
    pub row_count: i64,
    /// Which of the run's multipliers counts.
    pub multiplier_index: i32,
    pub part: lyc_part,
    /// For a bias whose difference is made from the layer's weight (PEFT's GLORA): that weight, pristine, which
    /// no item of the batch may change. NULL otherwise.
    pub weight: *const lyc_tensor,
}

/// Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_network_options {
    pub struct_size: u32,
    /// Instead of the dialect's.
    pub dora_rule: lyc_dora_rule,
}

/// Strength of adapters by layer; later rules win. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_multiplier_rule {
    /// Shell wildcards over the whole name of the base's tensor or the file's layer; NULL = every layer.
    pub pattern: *const c_char,
    /// -1 = all.
    pub adapter_index: i32,
    pub multiplier: f32,
}

/// Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_match_options {
    pub struct_size: u32,
    /// LYC_ALLOW_UNMATCHED.
    pub flags: u32,
    /// Shell wildcards; only layers that match one are used. None = all.
    pub includes: *const *const c_char,
    pub include_count: usize,
    /// Layers that match one are left out.
    pub excludes: *const *const c_char,
    pub exclude_count: usize,
}

/// Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_merge_options {
    pub struct_size: u32,
    /// LYC_ALLOW_UNMATCHED, LYC_OVERWRITE.
    pub flags: u32,
    /// Instead of the files' own.
    pub dora_rule: lyc_dora_rule,
    /// Of floating-point tensors (F32, F16, BF16) in the output; NONE = as they are.
    pub dtype: lyc_dtype,
    /// None = 1.
    pub multipliers: *const lyc_multiplier_rule,
    pub multiplier_count: usize,
    /// As in `lyc_match_options`.
    pub includes: *const *const c_char,
    pub include_count: usize,
    pub excludes: *const *const c_char,
    pub exclude_count: usize,
    /// May be NULL.
    pub progress: lyc_progress_fn,
    pub user_data: *mut c_void,
}

/// Figures of a report; 0 where they do not apply. Growing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lyc_report_info {
    pub struct_size: u32,
    pub reserved_: u32,
    /// Adapted layers in the adapters.
    pub layer_count: u64,
    /// Of these, the ones that found their weight.
    pub matched_count: u64,
    /// Left out by includes and excludes.
    pub excluded_count: u64,
    /// Found no weight.
    pub unmatched_count: u64,
    /// Tensors in the base.
    pub tensor_count: u64,
    /// Tensors that differ.
    pub changed_count: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub seconds: f64,
}

layout! {
    lyc_error_info { struct_size, status, native_code, reserved_ }
    lyc_tensor { data, capacity, dtype, ndim, device_type, device_index, layout, flags, shape, strides,
        reserved_ }
    lyc_device_info { struct_size, multiprocessors, compute_major, compute_minor, memory_bytes, name }
    lyc_context_options { struct_size, device_type, device_index, threads, allocate, deallocate, user_data }
    lyc_context_info { struct_size, device_type, device_index, threads }
    lyc_exec { struct_size, flags, stream, workspace, workspace_size }
    lyc_module_options { struct_size, flags, algo, rank, alpha, factor, dora_axis, dora_rule, dtype, ndim,
        reserved_, shape, origin, neumann_terms, coft_epsilon, experts, reserved2_ }
    lyc_module_info { struct_size, flags, algo, rank, alpha, scale, dora_axis, dora_rule, needs_base,
        invertible, out_features, in_elements }
    lyc_layer { struct_size, kind, channels, path, groups, reserved_, stride, padding, dilation, kernel,
        epsilon }
    lyc_batch_item { module, base, out, row_begin, row_count, multiplier_index, part, weight }
    lyc_network_options { struct_size, dora_rule }
    lyc_multiplier_rule { pattern, adapter_index, multiplier }
    lyc_match_options { struct_size, flags, includes, include_count, excludes, exclude_count }
    lyc_merge_options { struct_size, flags, dora_rule, dtype, multipliers, multiplier_count, includes,
        include_count, excludes, exclude_count, progress, user_data }
    lyc_report_info { struct_size, reserved_, layer_count, matched_count, excluded_count, unmatched_count,
        tensor_count, changed_count, bytes_read, bytes_written, seconds }
}

functions! {
    /// ABI of the loaded library, major << 16 | minor. Plug-ins check it before anything else.
    fn lyc_abi_version() -> u32;
    /// Release as text, for example "0.1.0".
    fn lyc_version_string() -> *const c_char;
    /// One line of JSON about this build: version, compiler, instruction sets, CUDA back end.
    fn lyc_build_info() -> *const c_char;
    /// 1 if the library has the named capability ("cuda", "dora", ...), else 0; unknown names are 0.
    fn lyc_has_feature(name: *const c_char) -> i32;
    /// sizeof of a public struct as the library was compiled ("`lyc_tensor`", ...), 0 if unknown: bindings test
    /// themselves.
    fn lyc_struct_size(name: *const c_char) -> usize;
    /// Names as in this header's enumerators, in lower case: "invalid_argument", "bf16", "locon"; "unknown"
    /// otherwise.
    fn lyc_status_name(status: lyc_status) -> *const c_char;
    fn lyc_dtype_name(dtype: lyc_dtype) -> *const c_char;
    fn lyc_algo_name(algo: lyc_algo) -> *const c_char;
    /// Inverse of `lyc_algo_name()`; also takes the usual aliases ("lora", "kron", "diff"). LYC_ALGO_NONE if
    /// unknown.
    fn lyc_algo_from_name(name: *const c_char) -> lyc_algo;
    /// What this thread's last failed call said, "" if none failed. Valid until this thread's next failure.
    fn lyc_last_error_message() -> *const c_char;
    fn lyc_error_info_init(info: *mut lyc_error_info, struct_size: usize);
    fn lyc_last_error_info(info: *mut lyc_error_info) -> lyc_status;
    /// Forget this thread's last failure. A success does not.
    fn lyc_clear_last_error();
    /// Fill *out_tensor as a contiguous (row-major) view in CPU memory, layout OIHW, capacity = its size. Errors:
    /// INVALID_ARGUMENT (dtype, ndim, negative or overflowing shape).
    fn lyc_tensor_init(out_tensor: *mut lyc_tensor, data: *mut c_void, dtype: lyc_dtype, shape: *const i64, shape_count: usize) -> lyc_status;
    /// Part of a tensor: elements begin .. begin + length - 1 of axis `axis`, for example one projection of a
    /// fused qkv.
    fn lyc_tensor_slice(tensor: *const lyc_tensor, axis: i32, begin: i64, length: i64, out_tensor: *mut lyc_tensor) -> lyc_status;
    /// Check a descriptor: dtype, shape, strides, alignment, capacity.
    fn lyc_tensor_check(tensor: *const lyc_tensor) -> lyc_status;
    /// Number of devices of a type. No CUDA back end or driver counts as 0 and is not an error.
    fn lyc_device_count(kind: lyc_device_type, out_count: *mut i32) -> lyc_status;
    fn lyc_device_info_init(info: *mut lyc_device_info, struct_size: usize);
    fn lyc_device_get_info(kind: lyc_device_type, index: i32, info: *mut lyc_device_info) -> lyc_status;
    /// Load a back end from this file (absolute path) instead of the default places. Errors: NOT_FOUND,
    /// UNSUPPORTED (another version, or one is loaded already).
    fn lyc_backend_load(path: *const c_char) -> lyc_status;
    /// Which back ends are there, which file they came from, or every place tried and why it failed.
    fn lyc_backend_explain(kind: lyc_device_type, buffer: *mut c_char, capacity: usize, out_length: *mut usize) -> lyc_status;
    fn lyc_context_options_init(options: *mut lyc_context_options, struct_size: usize);
    /// Create a context; options NULL = CPU, defaults. Errors: NOT_FOUND (no such device), UNSUPPORTED (no back
    /// end).
    fn lyc_context_create(options: *const lyc_context_options, out_context: *mut *mut lyc_context) -> lyc_status;
    fn lyc_context_retain(context: *mut lyc_context);
    fn lyc_context_release(context: *mut lyc_context);
    fn lyc_context_info_init(info: *mut lyc_context_info, struct_size: usize);
    fn lyc_context_get_info(context: *const lyc_context, info: *mut lyc_context_info) -> lyc_status;
    fn lyc_exec_init(exec: *mut lyc_exec, struct_size: usize);
    /// Open a file or folder for reading. Errors: NOT_FOUND, IO, FORMAT (says where and why), UNSUPPORTED
    /// (pickles).
    fn lyc_file_open(path: *const c_char, out_file: *mut *mut lyc_file) -> lyc_status;
    /// Open a safetensors image in memory, which must stay until the last release.
    fn lyc_file_open_memory(data: *const c_void, size: usize, out_file: *mut *mut lyc_file) -> lyc_status;
    fn lyc_file_retain(file: *mut lyc_file);
    fn lyc_file_release(file: *mut lyc_file);
    /// Number of tensors. They are numbered in the order of their data.
    fn lyc_file_tensor_count(file: *const lyc_file, out_count: *mut usize) -> lyc_status;
    /// Name, and dtype and shape (data NULL, contiguous) of tensor `index`. Either output may be NULL.
    fn lyc_file_get_tensor(file: *const lyc_file, index: usize, out_name: *mut *const c_char, out_tensor: *mut lyc_tensor) -> lyc_status;
    /// Index of the tensor with this name. Errors: NOT_FOUND.
    fn lyc_file_find_tensor(file: *const lyc_file, name: *const c_char, out_index: *mut usize) -> lyc_status;
    /// Read tensor `index` into memory of its exact dtype, contiguous. Errors: IO, INVALID_ARGUMENT (size too
    /// small).
    fn lyc_file_read_tensor(file: *const lyc_file, index: usize, data: *mut c_void, size: usize) -> lyc_status;
    /// Metadata of the header (for several files: of the first), sorted by key.
    fn lyc_file_metadata_count(file: *const lyc_file, out_count: *mut usize) -> lyc_status;
    fn lyc_file_get_metadata(file: *const lyc_file, index: usize, out_key: *mut *const c_char, out_value: *mut *const c_char) -> lyc_status;
    /// Start a new safetensors file. Nothing appears at `path` before `lyc_writer_finish()`.
    fn lyc_writer_create(path: *const c_char, out_writer: *mut *mut lyc_writer) -> lyc_status;
    /// Add or replace one entry of the header's metadata.
    fn lyc_writer_set_metadata(writer: *mut lyc_writer, key: *const c_char, value: *const c_char) -> lyc_status;
    /// Add a contiguous CPU tensor. Its memory is borrowed until finish or release. Errors: INVALID_ARGUMENT (a
    /// name twice, strides, device).
    fn lyc_writer_add(writer: *mut lyc_writer, name: *const c_char, tensor: *const lyc_tensor) -> lyc_status;
    /// Write everything, sync it to disk, and put it at `path` in one step, replacing what was there. On failure
    /// `path` is as it was. The writer can only be released afterwards.
    fn lyc_writer_finish(writer: *mut lyc_writer) -> lyc_status;
    fn lyc_writer_release(writer: *mut lyc_writer);
    fn lyc_module_options_init(options: *mut lyc_module_options, struct_size: usize);
    /// Create a module for one layer. All parameters are zero; bind, write or load them. Errors: INVALID_ARGUMENT
    /// (rank, alpha, shape, flags that the algorithm does not have).
    fn lyc_module_create(context: *mut lyc_context, options: *const lyc_module_options, out_module: *mut *mut lyc_module) -> lyc_status;
    /// Create a module from tensors as they are in a file, named by their suffix: "lora_up.weight", "hada_w1_a",
    /// "alpha", "dora_scale". The algorithm, rank and form follow from names and shapes. CPU tensors are copied;
    /// tensors on the context's CUDA device are bound, as by `lyc_module_bind_param()`. `options` may be NULL; of
    /// it only dora_rule, RANK_STABILISED, alpha where the tensors have none, and the shape (checked when given)
    /// are used. Errors: INVALID_ARGUMENT, FORMAT (a pair without its half, shapes that do not fit), UNSUPPORTED
    /// (unknown family).
    fn lyc_module_create_from_tensors(context: *mut lyc_context, options: *const lyc_module_options, names: *const *const c_char, tensors: *const lyc_tensor, tensor_count: usize, out_module: *mut *mut lyc_module) -> lyc_status;
    fn lyc_module_retain(module: *mut lyc_module);
    fn lyc_module_release(module: *mut lyc_module);
    fn lyc_module_info_init(info: *mut lyc_module_info, struct_size: usize);
    fn lyc_module_get_info(module: *const lyc_module, info: *mut lyc_module_info) -> lyc_status;
    /// Parameters in the order in which files list them. `out_tensor` shows the memory in use.
    fn lyc_module_param_count(module: *const lyc_module, out_count: *mut usize) -> lyc_status;
    fn lyc_module_get_param(module: *const lyc_module, index: usize, out_name: *mut *const c_char, out_tensor: *mut lyc_tensor) -> lyc_status;
    /// Families of low-rank products (LoCon, DyLoRA, T-LoRA) have one more parameter that files have not and the
    /// list above leaves out: `rank_mask`, \[rank\], each rank's strength, 1 until it is bound or written. DyLoRA
    /// at rank q is q ones and zeros after them. *  Use the caller's memory for a parameter: same shape,
    /// contiguous, F32, F16 or BF16, on the context's device. It must stay until the module is gone or the
    /// parameter is bound anew; values may change between calls.
    fn lyc_module_bind_param(module: *mut lyc_module, name: *const c_char, tensor: *const lyc_tensor) -> lyc_status;
    /// Copy values into, or out of, a parameter; dtypes are converted, CPU tensors only. Not for use while work
    /// that reads the parameter is under way.
    fn lyc_module_write_param(module: *mut lyc_module, name: *const c_char, tensor: *const lyc_tensor) -> lyc_status;
    fn lyc_module_read_param(module: *const lyc_module, name: *const c_char, tensor: *const lyc_tensor) -> lyc_status;
    /// Compute once, into memory of the context's device, what every call would compute anew, for the layer's
    /// pristine weight `base` (NULL only where needs_base is 0). Waits. T-LoRA      the singular triplets that it
    /// starts from, kept as parameters base_p_layer.weight, base_lambda_layer and base_q_layer.weight; needs_base
    /// is 0 from then on. An unprepared one whose file has no such parameters makes them from the weight in every
    /// call and every new batch. OFT, BOFT   the rotations DoRA        in a CPU context, but by PEFT's rule: the
    /// norms. Merges, differences and forward passes then do not go through the weight for them. It counts for
    /// that weight: prepare again for another one. Binding or writing a parameter ends the preparation of
    /// rotations and norms. With a CUDA context the CPU does it: weight and factors are copied there, results
    /// back. Errors: INVALID_ARGUMENT, MISMATCH (shape).
    fn lyc_module_prepare(module: *mut lyc_module, base: *const lyc_tensor, exec: *const lyc_exec) -> lyc_status;
    /// Write the same delta as a module of another family, with F32 parameters of its own in the same context.
    /// LOCON takes what is a sum of low-rank products: T-LoRA of rank r, stored base state or prepared, gives
    /// rank 2r; a rank_mask in use is worked in. Reads the parameters back. Errors: UNSUPPORTED (the delta has no
    /// such form, or was not prepared).
    fn lyc_module_convert(module: *mut lyc_module, algo: lyc_algo, out_module: *mut *mut lyc_module) -> lyc_status;
    /// dW(multiplier) into *out, any layout and dtype. `base` is the pristine weight; NULL where needs_base is 0.
    /// Errors: INVALID_ARGUMENT (base missing, dtype, overlap of base and out), MISMATCH (shape).
    fn lyc_get_diff_weight(module: *mut lyc_module, base: *const lyc_tensor, multiplier: f32, out: *const lyc_tensor, exec: *const lyc_exec) -> lyc_status;
    /// out = base + dW(multiplier). `out` NULL = in place. Both must have the same shape and may differ in dtype
    /// and layout; they must be the same memory or not overlap.
    fn lyc_merge(module: *mut lyc_module, base: *const lyc_tensor, multiplier: f32, out: *const lyc_tensor, exec: *const lyc_exec) -> lyc_status;
    /// weight -= dW(multiplier), exact up to the roundings of both steps. Errors: UNSUPPORTED where dW depends on
    /// the pristine weight (DoRA): keep a copy of the weight instead.
    fn lyc_unmerge(module: *mut lyc_module, weight: *const lyc_tensor, multiplier: f32, exec: *const lyc_exec) -> lyc_status;
    /// Bytes of workspace that any of the three needs on a weight described by *weight (data may be NULL).
    fn lyc_weight_workspace_size(module: *mut lyc_module, weight: *const lyc_tensor, out_size: *mut u64) -> lyc_status;
    fn lyc_layer_init(layer: *mut lyc_layer, struct_size: usize);
    /// y += op(x, dW(multiplier)). `weight` is the pristine weight; NULL where needs_base is 0. Multiplier 0
    /// leaves every bit of y. Errors: MISMATCH (shapes), INVALID_ARGUMENT (dtypes, y overlaps x or weight),
    /// UNSUPPORTED (path, device; a bias difference that depends on the bias).
    fn lyc_forward(module: *const lyc_module, layer: *const lyc_layer, x: *const lyc_tensor, weight: *const lyc_tensor, multiplier: f32, y: *const lyc_tensor, exec: *const lyc_exec) -> lyc_status;
    /// y = op(x, weight + dW(multiplier)) + bias. `bias` may be NULL.
    fn lyc_forward_fused(module: *const lyc_module, layer: *const lyc_layer, x: *const lyc_tensor, weight: *const lyc_tensor, bias: *const lyc_tensor, multiplier: f32, y: *const lyc_tensor, exec: *const lyc_exec) -> lyc_status;
    /// Bytes of workspace that either of them needs on tensors as described (data may be NULL; weight and bias
    /// too).
    fn lyc_forward_workspace_size(module: *const lyc_module, layer: *const lyc_layer, x: *const lyc_tensor, weight: *const lyc_tensor, bias: *const lyc_tensor, y: *const lyc_tensor, out_size: *mut u64) -> lyc_status;
    /// What either would do, as text: prices of the paths, the choice, its steps, or why there is none.
    fn lyc_forward_explain(module: *const lyc_module, layer: *const lyc_layer, x: *const lyc_tensor, weight: *const lyc_tensor, bias: *const lyc_tensor, y: *const lyc_tensor, buffer: *mut c_char, capacity: usize, out_length: *mut usize) -> lyc_status;
    /// Prepare items for running. Errors: as `lyc_merge()`; INVALID_ARGUMENT (weights overlap without being the
    /// same).
    fn lyc_batch_create(context: *mut lyc_context, items: *const lyc_batch_item, item_count: usize, out_batch: *mut *mut lyc_batch) -> lyc_status;
    fn lyc_batch_retain(batch: *mut lyc_batch);
    fn lyc_batch_release(batch: *mut lyc_batch);
    /// Bytes of workspace for one run.
    fn lyc_batch_workspace_size(batch: *const lyc_batch, out_size: *mut u64) -> lyc_status;
    /// Run. `multipliers`: 1-D contiguous F32, one per multiplier index, NULL = all 1; in CPU memory it is read
    /// before the call returns, on the batch's device when the stream gets there (so a captured graph can be
    /// steered). Errors: UNSUPPORTED (UNMERGE with DoRA), INVALID_ARGUMENT (DIFF in place, too few multipliers,
    /// workspace).
    fn lyc_batch_run(batch: *mut lyc_batch, op: lyc_batch_op, multipliers: *const lyc_tensor, exec: *const lyc_exec) -> lyc_status;
    /// What a run does, as text: groups, kernels, tiles, workspace, launches.
    fn lyc_batch_explain(batch: *const lyc_batch, buffer: *mut c_char, capacity: usize, out_length: *mut usize) -> lyc_status;
    fn lyc_network_options_init(options: *mut lyc_network_options, struct_size: usize);
    /// Load an adapter file; its dialect is found by itself. options may be NULL. Errors: NOT_FOUND, IO, FORMAT
    /// (what, which key), UNSUPPORTED (a family or dialect not known yet, by name).
    fn lyc_network_load(context: *mut lyc_context, path: *const c_char, options: *const lyc_network_options, out_network: *mut *mut lyc_network) -> lyc_status;
    fn lyc_network_retain(network: *mut lyc_network);
    fn lyc_network_release(network: *mut lyc_network);
    /// Modules, ordered by name. The name is the layer's as the file spells it. get_module adds a reference.
    fn lyc_network_count(network: *const lyc_network, out_count: *mut usize) -> lyc_status;
    fn lyc_network_get_module(network: *const lyc_network, index: usize, out_name: *mut *const c_char, out_module: *mut *mut lyc_module) -> lyc_status;
    fn lyc_match_options_init(options: *mut lyc_match_options, struct_size: usize);
    /// Find the weights that networks adapt among `tensors`, called `names`, and prepare the in-place batch.
    /// Multiplier index i belongs to networks\[i\]. Fused weights (qkv) are taken by rows. *out_report lists what
    /// went where and what is left over; it may be NULL. Errors: MISMATCH (unmatched keys, ambiguous names,
    /// shapes: named, with the reason).
    fn lyc_batch_create_from_networks(context: *mut lyc_context, networks: *const *mut lyc_network, network_count: usize, names: *const *const c_char, tensors: *const lyc_tensor, tensor_count: usize, options: *const lyc_match_options, out_batch: *mut *mut lyc_batch, out_report: *mut *mut lyc_report) -> lyc_status;
    fn lyc_merge_options_init(options: *mut lyc_merge_options, struct_size: usize);
    /// Merge adapters into a base model, file to file, computed on the context's device. Untouched tensors are
    /// copied byte for byte; several adapters are added with one rounding; metadata is kept, and extended by what
    /// was done. Sharded bases and folders give a folder. Nothing appears at `out_path` before all is written and
    /// synced. *out_report may be NULL. options may be NULL. Errors: IO, FORMAT, MISMATCH (the adapter does not
    /// belong to this base), UNSUPPORTED, CANCELLED, INVALID_ARGUMENT (out exists without LYC_OVERWRITE, or is
    /// one of the inputs).
    fn lyc_merge_files(context: *mut lyc_context, base_path: *const c_char, adapter_paths: *const *const c_char, adapter_count: usize, out_path: *const c_char, options: *const lyc_merge_options, out_report: *mut *mut lyc_report) -> lyc_status;
    /// Look into a base or adapter file: dialect, algorithms, ranks, alphas, layers, dtypes, norms, anomalies.
    fn lyc_inspect_file(context: *mut lyc_context, path: *const c_char, out_report: *mut *mut lyc_report) -> lyc_status;
    fn lyc_report_info_init(info: *mut lyc_report_info, struct_size: usize);
    fn lyc_report_get_info(report: *const lyc_report, info: *mut lyc_report_info) -> lyc_status;
    /// Everything, as one JSON object; docs/report.md describes the fields. Borrowed from the report.
    fn lyc_report_json(report: *const lyc_report) -> *const c_char;
    fn lyc_report_retain(report: *mut lyc_report);
    fn lyc_report_release(report: *mut lyc_report);
}
