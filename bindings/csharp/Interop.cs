// Made by bindings/tools/generate.py from include/lycoris.h; do not edit.
using System;
using System.Runtime.InteropServices;

namespace LibLycoris {
  /// <summary>Result of a call. Numbers are stable and never reused; treat an unknown one as a failure.</summary>
  public enum Status {
    Ok = 0,
    /// <summary>A value, shape, dtype or handle that the call cannot accept.</summary>
    ErrorInvalidArgument = 1,
    ErrorOutOfMemory = 2,
    /// <summary>Meaningful, but this build, device or algorithm cannot do it.</summary>
    ErrorUnsupported = 3,
    /// <summary>No tensor, module, file or device of that name or number.</summary>
    ErrorNotFound = 4,
    /// <summary>The operating system refused; the message holds its reason.</summary>
    ErrorIo = 5,
    /// <summary>A file is damaged or not of the expected format.</summary>
    ErrorFormat = 6,
    /// <summary>Adapter and base do not fit: unmatched keys, wrong shapes.</summary>
    ErrorMismatch = 7,
    /// <summary>A progress callback asked to stop.</summary>
    ErrorCancelled = 8,
    /// <summary>A device call failed; lyc_last_error_info() has its code.</summary>
    ErrorDevice = 9,
    /// <summary>A fault of the library; please report it.</summary>
    ErrorInternal = 10,
  }

  /// <summary>Element types. Arithmetic is on F32, F16 and BF16; the others occur in files and are only carried
  /// along.</summary>
  public enum DType {
    /// <summary>"Not given", or a type that the library does not know.</summary>
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

  /// <summary>Adapter families. DoRA, Tucker cores and rank-stabilised scale are options on top of
  /// them.</summary>
  public enum Algo {
    /// <summary>"Find out from the tensors."</summary>
    None = 0,
    /// <summary>LoRA, also on convolutions: dW = scale * up down. arXiv:2106.09685</summary>
    Locon = 1,
    /// <summary>dW = scale * (w1_a w1_b) o (w2_a w2_b). arXiv:2108.06098</summary>
    Loha = 2,
    /// <summary>dW = scale * w1 (x) w2, each whole or low-rank. arXiv:2212.10650</summary>
    Lokr = 3,
    /// <summary>dW = diff, db = diff_b.</summary>
    Full = 4,
    /// <summary>The same for norm layers: w_norm, b_norm.</summary>
    Norm = 5,
    /// <summary>(IA)3: rows or columns of the weight times 1 + m v. arXiv:2205.05638</summary>
    Ia3 = 6,
    /// <summary>dW = scale * (b1 b2 + W a1 a2). arXiv:2306.07967</summary>
    Glora = 7,
    /// <summary>PEFT's method of that name: dW = W o A + B, db = b o D + E + W C.</summary>
    PeftGlora = 8,
    /// <summary>Block-diagonal rotation of rows ("diag-oft") or columns. arXiv:2306.07280</summary>
    Oft = 9,
    /// <summary>Several such stages, butterfly-wise. arXiv:2311.06243</summary>
    Boft = 10,
    /// <summary>LoRA trained for any rank up to its own; its files are LoCon's. arXiv:2210.07558</summary>
    Dylora = 11,
    /// <summary>dW = scale * (p l q - p0 l0 q0), p0 l0 q0 from the SVD of W. arXiv:2507.05964</summary>
    Tlora = 12,
    /// <summary>A new weight instead of a difference: set_weight.</summary>
    Replace = 13,
    /// <summary>Some elements of a difference, by position.</summary>
    Sparse = 14,
  }

  /// <summary>Where memory is.</summary>
  public enum DeviceType {
    Cpu = 0,
    Cuda = 1,
  }

  /// <summary>Order of a weight's axes: out features O, in features I, kernel axes K (none for linear layers, 1
  /// to 3 for convolutions; for grouped ones I is per group). Each tag serves linear layers too. 1-D tensors
  /// ignore it.</summary>
  public enum Layout {
    /// <summary>[O, I, K...]: PyTorch; linear [O, I].</summary>
    OIHW = 0,
    /// <summary>[K..., I, O]: Flame, TensorFlow, JAX; linear [I, O].</summary>
    HWIO = 1,
    /// <summary>[O, K..., I]: channels-last weights; linear [O, I].</summary>
    OHWI = 2,
    /// <summary>[E, O, I]: a stack of matrices, one for each expert; linear [O, I].</summary>
    EOI = 3,
  }

  /// <summary>How a DoRA magnitude g acts, with V = W + dW and n = its norm. All are the same at multiplier m =
  /// 1.</summary>
  public enum DoraRule {
    /// <summary>What the file's dialect says; INTERPOLATE where it says nothing.</summary>
    Default = 0,
    /// <summary>W + m (g V / n - W).</summary>
    Interpolate = 1,
    /// <summary>V (1 + m (g / n - 1)): the magnitude only is blended.</summary>
    Lycoris = 2,
    /// <summary>g V / n with V = W + m dW, and no epsilon in n.</summary>
    Peft = 3,
  }

  /// <summary>Along which axis a DoRA magnitude has its entries. arXiv:2402.09353</summary>
  public enum DoraAxis {
    /// <summary>No DoRA.</summary>
    None = 0,
    /// <summary>One per output row: shape [O, 1, ...].</summary>
    Out = 1,
    /// <summary>One per input column, over rows and kernel: shape [1, I, 1, ...].</summary>
    In = 2,
  }

  /// <summary>Whose conventions a module's tensors follow, where programs store different things under one
  /// name.</summary>
  public enum lyc_origin {
    Lycoris = 0,
    /// <summary>sd-scripts: the constraint of OFT always acts.</summary>
    Kohya = 1,
    Peft = 2,
    /// <summary>OFT turns convolutions the other way.</summary>
    Onetrainer = 3,
  }

  public enum LayerKind {
    Linear = 0,
    Conv = 1,
    Embedding = 2,
    LayerNorm = 3,
    GroupNorm = 4,
    RmsNorm = 5,
  }

  /// <summary>Where x and y of convolutions and group norms have their channels.</summary>
  public enum ChannelOrder {
    /// <summary>[N, C, S...]: PyTorch's NCHW.</summary>
    First = 0,
    /// <summary>[N, S..., C]: NHWC.</summary>
    Last = 1,
  }

  /// <summary>How an adapter's part is computed. All agree up to the rounding of float32.</summary>
  public enum ForwardPath {
    /// <summary>The cheaper one.</summary>
    Auto = 0,
    /// <summary>Through the factors. UNSUPPORTED where there is no such form.</summary>
    Factored = 1,
    /// <summary>The weight, or its difference, is made in the workspace.</summary>
    Rebuilt = 2,
  }

  /// <summary>Which tensor of the layer.</summary>
  public enum Part {
    Weight = 0,
    /// <summary>`diff_b`, `b_norm`, `lora_B.bias`.</summary>
    Bias = 1,
  }

  public enum BatchOp {
    /// <summary>out = base + sum of deltas.</summary>
    Merge = 0,
    /// <summary>out = base - sum of deltas, where all of them are invertible.</summary>
    Unmerge = 1,
    /// <summary>out = sum of deltas; `out` must not be `base`.</summary>
    Diff = 2,
  }

}

namespace LibLycoris.Interop {
  internal static class Constants {
    internal const uint AbiMajor = 0;
    internal const uint AbiMinor = 1;
    internal const uint MaxDims = 8;
    internal const uint TensorReadOnly = 1;
    internal const uint ModuleTucker = 1;
    internal const uint ModuleRankStabilised = 2;
    internal const uint ModuleScalar = 4;
    internal const uint ModuleDecomposeBoth = 8;
    internal const uint ModuleWhole = 16;
    internal const uint ModuleUnbalanced = 32;
    internal const uint ModuleBias = 64;
    internal const uint ModuleOnInput = 128;
    internal const uint ModuleRescale = 256;
    internal const uint ModuleLast = 512;
    internal const uint ModuleMiddle = 1024;
    internal const uint AllowUnmatched = 1;
    internal const uint Overwrite = 2;
  }

  [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
  internal delegate IntPtr AllocateFn(IntPtr UserData, UIntPtr Size, UIntPtr Alignment, IntPtr Stream);

  [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
  internal delegate void DeallocateFn(IntPtr UserData, IntPtr Memory, UIntPtr Size, IntPtr Stream);

  [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
  internal delegate int ProgressFn(IntPtr UserData, ulong DoneBytes, ulong TotalBytes);

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct ErrorInfo {
    internal uint StructSize;
    internal Status Status;
    internal int NativeCode;
    internal uint Reserved;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct Tensor {
    internal IntPtr Data;
    internal ulong Capacity;
    internal DType Dtype;
    internal int Ndim;
    internal DeviceType DeviceType;
    internal int DeviceIndex;
    internal Layout Layout;
    internal uint Flags;
    internal fixed long Shape[8];
    internal fixed long Strides[8];
    internal fixed ulong Reserved[3];
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct DeviceInfo {
    internal uint StructSize;
    internal int Multiprocessors;
    internal int ComputeMajor;
    internal int ComputeMinor;
    internal ulong MemoryBytes;
    internal fixed byte Name[128];
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct ContextOptions {
    internal uint StructSize;
    internal DeviceType DeviceType;
    internal int DeviceIndex;
    internal int Threads;
    internal IntPtr Allocate;
    internal IntPtr Deallocate;
    internal IntPtr UserData;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct ContextInfo {
    internal uint StructSize;
    internal DeviceType DeviceType;
    internal int DeviceIndex;
    internal int Threads;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct Exec {
    internal uint StructSize;
    internal uint Flags;
    internal IntPtr Stream;
    internal IntPtr Workspace;
    internal ulong WorkspaceSize;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct ModuleOptions {
    internal uint StructSize;
    internal uint Flags;
    internal Algo Algo;
    internal int Rank;
    internal double Alpha;
    internal int Factor;
    internal DoraAxis DoraAxis;
    internal DoraRule DoraRule;
    internal DType Dtype;
    internal int Ndim;
    internal uint Reserved;
    internal fixed long Shape[5];
    internal lyc_origin Origin;
    internal int NeumannTerms;
    internal double CoftEpsilon;
    internal int Experts;
    internal uint Reserved2;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct ModuleInfo {
    internal uint StructSize;
    internal uint Flags;
    internal Algo Algo;
    internal int Rank;
    internal double Alpha;
    internal double Scale;
    internal DoraAxis DoraAxis;
    internal DoraRule DoraRule;
    internal int NeedsBase;
    internal int Invertible;
    internal long OutFeatures;
    internal long InElements;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct Layer {
    internal uint StructSize;
    internal LayerKind Kind;
    internal ChannelOrder Channels;
    internal ForwardPath Path;
    internal int Groups;
    internal uint Reserved;
    internal fixed long Stride[3];
    internal fixed long Padding[3];
    internal fixed long Dilation[3];
    internal fixed long Kernel[3];
    internal double Epsilon;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct BatchItem {
    internal IntPtr Module;
    internal Tensor* Base;
    internal Tensor* Out;
    internal long RowBegin;
    internal long RowCount;
    internal int MultiplierIndex;
    internal Part Part;
    internal Tensor* Weight;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct NetworkOptions {
    internal uint StructSize;
    internal DoraRule DoraRule;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct MultiplierRule {
    internal byte* Pattern;
    internal int AdapterIndex;
    internal float Multiplier;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct MatchOptions {
    internal uint StructSize;
    internal uint Flags;
    internal byte** Includes;
    internal UIntPtr IncludeCount;
    internal byte** Excludes;
    internal UIntPtr ExcludeCount;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct MergeOptions {
    internal uint StructSize;
    internal uint Flags;
    internal DoraRule DoraRule;
    internal DType Dtype;
    internal MultiplierRule* Multipliers;
    internal UIntPtr MultiplierCount;
    internal byte** Includes;
    internal UIntPtr IncludeCount;
    internal byte** Excludes;
    internal UIntPtr ExcludeCount;
    internal IntPtr Progress;
    internal IntPtr UserData;
  }

  [StructLayout(LayoutKind.Sequential)]
  internal unsafe struct ReportInfo {
    internal uint StructSize;
    internal uint Reserved;
    internal ulong LayerCount;
    internal ulong MatchedCount;
    internal ulong ExcludedCount;
    internal ulong UnmatchedCount;
    internal ulong TensorCount;
    internal ulong ChangedCount;
    internal ulong BytesRead;
    internal ulong BytesWritten;
    internal double Seconds;
  }

  internal sealed class ContextHandle : SafeHandle {
    public ContextHandle() : base(IntPtr.Zero, true) { }
    public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
    protected override bool ReleaseHandle() { Release(handle); return true; }
    [DllImport("lycoris", CallingConvention = CallingConvention.Cdecl, EntryPoint = "lyc_context_release")]
    private static extern void Release(IntPtr context);
  }

  internal sealed class FileHandle : SafeHandle {
    public FileHandle() : base(IntPtr.Zero, true) { }
    public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
    protected override bool ReleaseHandle() { Release(handle); return true; }
    [DllImport("lycoris", CallingConvention = CallingConvention.Cdecl, EntryPoint = "lyc_file_release")]
    private static extern void Release(IntPtr file);
  }

  internal sealed class WriterHandle : SafeHandle {
    public WriterHandle() : base(IntPtr.Zero, true) { }
    public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
    protected override bool ReleaseHandle() { Release(handle); return true; }
    [DllImport("lycoris", CallingConvention = CallingConvention.Cdecl, EntryPoint = "lyc_writer_release")]
    private static extern void Release(IntPtr writer);
  }

  internal sealed class ModuleHandle : SafeHandle {
    public ModuleHandle() : base(IntPtr.Zero, true) { }
    public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
    protected override bool ReleaseHandle() { Release(handle); return true; }
    [DllImport("lycoris", CallingConvention = CallingConvention.Cdecl, EntryPoint = "lyc_module_release")]
    private static extern void Release(IntPtr module);
  }

  internal sealed class BatchHandle : SafeHandle {
    public BatchHandle() : base(IntPtr.Zero, true) { }
    public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
    protected override bool ReleaseHandle() { Release(handle); return true; }
    [DllImport("lycoris", CallingConvention = CallingConvention.Cdecl, EntryPoint = "lyc_batch_release")]
    private static extern void Release(IntPtr batch);
  }

  internal sealed class NetworkHandle : SafeHandle {
    public NetworkHandle() : base(IntPtr.Zero, true) { }
    public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
    protected override bool ReleaseHandle() { Release(handle); return true; }
    [DllImport("lycoris", CallingConvention = CallingConvention.Cdecl, EntryPoint = "lyc_network_release")]
    private static extern void Release(IntPtr network);
  }

  internal sealed class ReportHandle : SafeHandle {
    public ReportHandle() : base(IntPtr.Zero, true) { }
    public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
    protected override bool ReleaseHandle() { Release(handle); return true; }
    [DllImport("lycoris", CallingConvention = CallingConvention.Cdecl, EntryPoint = "lyc_report_release")]
    private static extern void Release(IntPtr report);
  }
}
