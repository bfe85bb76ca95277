using System;
using System.Collections.Generic;
using LibLycoris.Interop;
using ModuleHandle = LibLycoris.Interop.ModuleHandle; // System has one too

namespace LibLycoris {
  /// <summary>A device with its threads and its memory allocator. What is made from it keeps it.</summary>
  public sealed unsafe class Context : IDisposable {
    internal readonly ContextHandle Handle;

    /// <summary>threads: of the CPU; 0 = as many as the process may use.</summary>
    public Context(DeviceType device = DeviceType.Cpu, int index = 0, int threads = 0) {
      ContextOptions options;
      Native.lyc_context_options_init(&options, (ulong)sizeof(ContextOptions));
      options.DeviceType = device;
      options.DeviceIndex = index;
      options.Threads = threads;
      Native.lyc_context_create(&options, out Handle);
    }

    public int Threads {
      get {
        ContextInfo info;
        Native.lyc_context_info_init(&info, (ulong)sizeof(ContextInfo));
        Native.lyc_context_get_info(Handle, &info);
        return info.Threads;
      }
    }

    public void Dispose() { Handle.Dispose(); }
  }

  /// <summary>What an operation did.</summary>
  public sealed unsafe class Report {
    internal Report(ReportHandle handle) {
      using (handle) {
        ReportInfo info;
        Native.lyc_report_info_init(&info, (ulong)sizeof(ReportInfo));
        Native.lyc_report_get_info(handle, &info);
        Total = (long)info.LayerCount;
        Merged = (long)info.MatchedCount;
        Excluded = (long)info.ExcludedCount;
        Unmatched = (long)info.UnmatchedCount;
        Tensors = (long)info.TensorCount;
        Changed = (long)info.ChangedCount;
        BytesRead = (long)info.BytesRead;
        BytesWritten = (long)info.BytesWritten;
        Seconds = info.Seconds;
        Json = Native.lyc_report_json(handle);
      }
    }

    /// <summary>Adapted layers in the adapters.</summary>
    public long Total { get; private set; }
    /// <summary>Of these, the ones that found their weight.</summary>
    public long Merged { get; private set; }
    public long Excluded { get; private set; }
    public long Unmatched { get; private set; }
    /// <summary>Tensors in the base.</summary>
    public long Tensors { get; private set; }
    /// <summary>Tensors that differ.</summary>
    public long Changed { get; private set; }
    public long BytesRead { get; private set; }
    public long BytesWritten { get; private set; }
    public double Seconds { get; private set; }
    /// <summary>Everything, as one JSON object.</summary>
    public string Json { get; private set; }
  }

  /// <summary>What to build; see lyc_module_options.</summary>
  public sealed class ModuleOptions {
    public Algo Algo;
    /// <summary>Of the weight, as [O, I, K...].</summary>
    public long[] Shape = new long[0];
    public int Rank;
    /// <summary>0 = rank.</summary>
    public double Alpha;
    /// <summary>LoKr: size of the smaller part; 0 = as square as possible.</summary>
    public int Factor;
    public DoraAxis DoraAxis;
    public DoraRule DoraRule;
    public DType DType;
    public bool Tucker, RankStabilised, Scalar, DecomposeBoth, Whole, Unbalanced, Bias;

    internal uint Flags {
      get {
        return (Tucker ? Constants.ModuleTucker : 0) | (RankStabilised ? Constants.ModuleRankStabilised : 0) |
               (Scalar ? Constants.ModuleScalar : 0) | (DecomposeBoth ? Constants.ModuleDecomposeBoth : 0) |
               (Whole ? Constants.ModuleWhole : 0) | (Unbalanced ? Constants.ModuleUnbalanced : 0) |
               (Bias ? Constants.ModuleBias : 0);
      }
    }
  }

  /// <summary>The delta of one layer. It does not hold the layer's weight.</summary>
  public sealed unsafe class Module : IDisposable {
    internal readonly ModuleHandle Handle;
    private readonly Dictionary<string, Tensor> bound = new Dictionary<string, Tensor>();

    internal Module(ModuleHandle handle) { Handle = handle; }

    /// <summary>A module whose parameters are all zero.</summary>
    public Module(Context context, ModuleOptions options) {
      Interop.ModuleOptions native;
      Native.lyc_module_options_init(&native, (ulong)sizeof(Interop.ModuleOptions));
      native.Flags = options.Flags;
      native.Algo = options.Algo;
      native.Rank = options.Rank;
      native.Alpha = options.Alpha;
      native.Factor = options.Factor;
      native.DoraAxis = options.DoraAxis;
      native.DoraRule = options.DoraRule;
      native.Dtype = options.DType;
      native.Ndim = options.Shape.Length;
      if (options.Shape.Length > 5) throw new ArgumentException("a weight has at most 5 dimensions");
      for (int i = 0; i < options.Shape.Length; ++i) native.Shape[i] = options.Shape[i];
      Native.lyc_module_create(context.Handle, &native, out Handle);
    }

    /// <summary>From tensors named as in a file: "lora_up.weight", "alpha". CPU tensors are copied, others are bound.</summary>
    public Module(Context context, IDictionary<string, Tensor> tensors) {
      using (var names = new TextList(tensors.Keys)) {
        var views = new Interop.Tensor[tensors.Count];
        int i = 0;
        foreach (var tensor in tensors) {
          views[i++] = tensor.Value.Native;
          if (tensor.Value.Native.DeviceType != DeviceType.Cpu) bound[tensor.Key] = tensor.Value;
        }
        fixed (Interop.Tensor* list = views)
          Native.lyc_module_create_from_tensors(context.Handle, null, names.Pointers, list, (ulong)views.Length, out Handle);
        GC.KeepAlive(tensors);
      }
    }

    public Algo Algo { get { return Info().Algo; } }
    public int Rank { get { return Info().Rank; } }
    public double Alpha { get { return Info().Alpha; } }
    /// <summary>What the delta is multiplied by.</summary>
    public double Scale { get { return Info().Scale; } }
    /// <summary>The delta depends on the weight (DoRA).</summary>
    public bool NeedsBase { get { return Info().NeedsBase != 0; } }
    public long OutFeatures { get { return Info().OutFeatures; } }
    public long InElements { get { return Info().InElements; } }

    private ModuleInfo Info() {
      ModuleInfo info;
      Native.lyc_module_info_init(&info, (ulong)sizeof(ModuleInfo));
      Native.lyc_module_get_info(Handle, &info);
      return info;
    }

    /// <summary>Names of the parameters, in the order in which files list them.</summary>
    public IList<string> ParameterNames {
      get {
        ulong count;
        Native.lyc_module_param_count(Handle, out count);
        var names = new List<string>();
        for (ulong i = 0; i < count; ++i) {
          string name;
          Native.lyc_module_get_param(Handle, i, out name, null);
          names.Add(name);
        }
        return names;
      }
    }

    /// <summary>Use this memory for a parameter.</summary>
    public void Bind(string name, Tensor memory) {
      fixed (Interop.Tensor* native = &memory.Native) Native.lyc_module_bind_param(Handle, name, native);
      bound[name] = memory;
    }

    /// <summary>Copy values into a parameter; dtypes are converted.</summary>
    public void Write(string name, Tensor values) {
      fixed (Interop.Tensor* native = &values.Native) Native.lyc_module_write_param(Handle, name, native);
      GC.KeepAlive(values);
    }

    /// <summary>Copy values out of a parameter; dtypes are converted.</summary>
    public void Read(string name, Tensor values) {
      fixed (Interop.Tensor* native = &values.Native) Native.lyc_module_read_param(Handle, name, native);
      GC.KeepAlive(values);
    }

    /// <summary>out = dW(multiplier). The base is needed where NeedsBase says so.</summary>
    public void DiffWeight(Tensor result, float multiplier = 1, Tensor weight = null, IntPtr stream = default(IntPtr)) {
      Run(weight, result, stream, (w, o, exec) => Native.lyc_get_diff_weight(Handle, w, multiplier, o, exec));
    }

    /// <summary>weight += dW(multiplier), or result = weight + dW(multiplier).</summary>
    public void Merge(Tensor weight, float multiplier = 1, Tensor result = null, IntPtr stream = default(IntPtr)) {
      Run(weight, result, stream, (w, o, exec) => Native.lyc_merge(Handle, w, multiplier, o, exec));
    }

    /// <summary>weight -= dW(multiplier), exact up to rounding.</summary>
    public void Unmerge(Tensor weight, float multiplier = 1, IntPtr stream = default(IntPtr)) {
      Run(weight, null, stream, (w, o, exec) => Native.lyc_unmerge(Handle, w, multiplier, exec));
    }

    private unsafe delegate void Call(Interop.Tensor* weight, Interop.Tensor* result, Exec* exec);

    private static void Run(Tensor weight, Tensor result, IntPtr stream, Call call) {
      Interop.Tensor w = weight == null ? default(Interop.Tensor) : weight.Native;
      Interop.Tensor o = result == null ? default(Interop.Tensor) : result.Native;
      Exec exec = Execution.On(stream);
      call(weight == null ? null : &w, result == null ? null : &o, &exec);
      GC.KeepAlive(weight);
      GC.KeepAlive(result);
    }

    public void Dispose() { Handle.Dispose(); }
  }

  internal static unsafe class Execution {
    internal static Exec On(IntPtr stream) {
      Exec exec;
      Native.lyc_exec_init(&exec, (ulong)sizeof(Exec));
      exec.Stream = stream;
      return exec;
    }
  }

  /// <summary>Many weights in one submission, prepared once and run often.</summary>
  public sealed unsafe class Batch : IDisposable {
    private readonly BatchHandle handle;
    private readonly object borrowed; // weights, and networks whose modules may be bound to memory

    internal Batch(BatchHandle handle, object borrowed) {
      this.handle = handle;
      this.borrowed = borrowed;
    }

    /// <summary>out = base + sum of deltas. No multipliers = all 1.</summary>
    public void Merge(params float[] multipliers) { Run(BatchOp.Merge, multipliers, IntPtr.Zero); }

    /// <summary>out = base - sum of deltas.</summary>
    public void Unmerge(params float[] multipliers) { Run(BatchOp.Unmerge, multipliers, IntPtr.Zero); }

    public void Run(BatchOp op, float[] multipliers, IntPtr stream) {
      Exec exec = Execution.On(stream);
      if (multipliers == null || multipliers.Length == 0) {
        Native.lyc_batch_run(handle, op, null, &exec);
      } else {
        using (var tensor = Tensor.Pin(multipliers, multipliers.Length))
          fixed (Interop.Tensor* native = &tensor.Native) Native.lyc_batch_run(handle, op, native, &exec);
      }
      GC.KeepAlive(borrowed);
    }

    /// <summary>What a run does, as text.</summary>
    public string Explain() {
      return Utf8.Read((byte[] buffer, ulong capacity, out ulong length) =>
                           Native.lyc_batch_explain(handle, buffer, capacity, out length));
    }

    public void Dispose() { handle.Dispose(); }
  }

  /// <summary>Which layers count, and what is left over.</summary>
  public sealed class MatchOptions {
    /// <summary>Adapter keys that find no weight are reported, and are no error.</summary>
    public bool AllowUnmatched;
    /// <summary>Shell wildcards; only layers that match one are used. None = all.</summary>
    public IEnumerable<string> Includes;
    public IEnumerable<string> Excludes;
  }

  /// <summary>An adapter file in memory: layer name -> module.</summary>
  public sealed unsafe class Network : IDisposable {
    internal readonly NetworkHandle Handle;
    private readonly Context context;

    /// <summary>The modules, by the names that the file gives its layers.</summary>
    public readonly IDictionary<string, Module> Modules = new SortedDictionary<string, Module>(StringComparer.Ordinal);

    public Network(Context context, string path, DoraRule doraRule = DoraRule.Default) {
      this.context = context;
      NetworkOptions options;
      Native.lyc_network_options_init(&options, (ulong)sizeof(NetworkOptions));
      options.DoraRule = doraRule;
      Native.lyc_network_load(context.Handle, path, &options, out Handle);
      ulong count;
      Native.lyc_network_count(Handle, out count);
      for (ulong i = 0; i < count; ++i) {
        string name;
        ModuleHandle module;
        Native.lyc_network_get_module(Handle, i, out name, out module);
        Modules[name] = new Module(module);
      }
    }

    /// <summary>Find the weights that this adapter changes, and prepare the batch that does so in place.</summary>
    public Batch Match(IDictionary<string, Tensor> weights, MatchOptions options, out Report report) {
      return Match(context, new[] { this }, weights, options, out report);
    }

    /// <summary>The same for several adapters; multiplier i of a run belongs to networks[i].</summary>
    public static Batch Match(Context context, IList<Network> networks, IDictionary<string, Tensor> weights,
                              MatchOptions options, out Report report) {
      options = options ?? new MatchOptions();
      using (var names = new TextList(weights.Keys))
      using (var includes = new TextList(options.Includes))
      using (var excludes = new TextList(options.Excludes)) {
        Interop.MatchOptions native;
        Native.lyc_match_options_init(&native, (ulong)sizeof(Interop.MatchOptions));
        native.Flags = options.AllowUnmatched ? Constants.AllowUnmatched : 0;
        native.Includes = includes.Pointers;
        native.IncludeCount = includes.Count;
        native.Excludes = excludes.Pointers;
        native.ExcludeCount = excludes.Count;
        var handles = new IntPtr[networks.Count];
        for (int i = 0; i < handles.Length; ++i) handles[i] = networks[i].Handle.DangerousGetHandle();
        var kept = new List<Tensor>(weights.Values);
        var views = new Interop.Tensor[kept.Count];
        for (int i = 0; i < views.Length; ++i) views[i] = kept[i].Native;
        BatchHandle batch;
        ReportHandle made;
        fixed (IntPtr* networkList = handles)
        fixed (Interop.Tensor* tensorList = views)
          Native.lyc_batch_create_from_networks(context.Handle, networkList, (ulong)handles.Length, names.Pointers,
                                                tensorList, (ulong)views.Length, &native, out batch, out made);
        report = new Report(made);
        return new Batch(batch, new object[] { networks, kept });
      }
    }

    /// <summary>Add this adapter to weights, in place.</summary>
    public Report MergeInto(IDictionary<string, Tensor> weights, float multiplier = 1) {
      Report report;
      using (var batch = Match(weights, null, out report)) batch.Merge(multiplier);
      return report;
    }

    public void Dispose() {
      foreach (var module in Modules.Values) module.Dispose();
      Handle.Dispose();
    }
  }
}
