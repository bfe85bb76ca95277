using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;
using LibLycoris.Interop;

namespace LibLycoris {
  /// <summary>Strength of adapters by layer; later rules win.</summary>
  public struct MultiplierRule {
    /// <summary>Shell wildcards; null = every layer.</summary>
    public string Pattern;
    /// <summary>-1 = all.</summary>
    public int Adapter;
    public float Multiplier;

    public MultiplierRule(string pattern, int adapter, float multiplier) {
      Pattern = pattern;
      Adapter = adapter;
      Multiplier = multiplier;
    }
  }

  /// <summary>How to merge files; see lyc_merge_options.</summary>
  public sealed class MergeOptions {
    public IList<MultiplierRule> Multipliers = new List<MultiplierRule>();
    public IEnumerable<string> Includes;
    public IEnumerable<string> Excludes;
    /// <summary>Of floating-point tensors in the output; None = as they are.</summary>
    public DType DType;
    /// <summary>Instead of the files' own.</summary>
    public DoraRule DoraRule;
    public bool AllowUnmatched;
    public bool Overwrite;
  }

  /// <summary>Whole files: merge and inspect.</summary>
  public static unsafe class Lycoris {
    private static readonly Lazy<Context> SharedContext = new Lazy<Context>(() => new Context());

    /// <summary>Release of the library.</summary>
    public static string Version { get { return Native.lyc_version_string(); } }

    /// <summary>Which back ends are there, or every place tried and why it failed.</summary>
    public static string ExplainBackend(DeviceType device) {
      return Utf8.Read((byte[] buffer, ulong capacity, out ulong length) =>
                           Native.lyc_backend_explain(device, buffer, capacity, out length));
    }

    /// <summary>Merge one adapter into a base model. Nothing appears at the output's path before all is written.</summary>
    /// <param name="progress">Is told the share that is done, 0 to 1.</param>
    public static Task<Report> MergeFilesAsync(string basePath, string adapterPath, string outPath, float multiplier = 1,
                                               IProgress<double> progress = null,
                                               CancellationToken cancellation = default(CancellationToken)) {
      var options = new MergeOptions();
      options.Multipliers.Add(new MultiplierRule(null, -1, multiplier));
      return MergeFilesAsync(basePath, new[] { adapterPath }, outPath, options, progress, cancellation);
    }

    /// <summary>Merge adapters into a base model.</summary>
    public static Task<Report> MergeFilesAsync(string basePath, IEnumerable<string> adapterPaths, string outPath,
                                               MergeOptions options, IProgress<double> progress = null,
                                               CancellationToken cancellation = default(CancellationToken)) {
      Func<ulong, ulong, bool> report = (done, total) => {
        if (progress != null) progress.Report(total == 0 ? 1 : (double)done / total);
        return !cancellation.IsCancellationRequested;
      };
      return Task.Run(() => {
        try {
          return MergeFiles(SharedContext.Value, basePath, adapterPaths, outPath, options, report);
        } catch (OperationCanceledException) {
          cancellation.ThrowIfCancellationRequested(); // so that the task ends as cancelled
          throw;
        }
      }, cancellation);
    }

    /// <summary>Merge adapters into a base model. progress: bytes done and in total; answer true to go on.</summary>
    public static Report MergeFiles(Context context, string basePath, IEnumerable<string> adapterPaths, string outPath,
                                    MergeOptions options = null, Func<ulong, ulong, bool> progress = null) {
      options = options ?? new MergeOptions();
      var patterns = new List<string>();
      foreach (var rule in options.Multipliers) patterns.Add(rule.Pattern);
      using (var adapters = new TextList(adapterPaths))
      using (var includes = new TextList(options.Includes))
      using (var excludes = new TextList(options.Excludes))
      using (var texts = new TextList(patterns))
      using (var callback = new Progress(progress ?? ((done, total) => true))) {
        var rules = new Interop.MultiplierRule[patterns.Count];
        for (int i = 0; i < rules.Length; ++i) {
          rules[i].Pattern = texts[i];
          rules[i].AdapterIndex = options.Multipliers[i].Adapter;
          rules[i].Multiplier = options.Multipliers[i].Multiplier;
        }
        Interop.MergeOptions native;
        Native.lyc_merge_options_init(&native, (ulong)sizeof(Interop.MergeOptions));
        native.Flags = (options.AllowUnmatched ? Constants.AllowUnmatched : 0) | (options.Overwrite ? Constants.Overwrite : 0);
        native.DoraRule = options.DoraRule;
        native.Dtype = options.DType;
        native.Includes = includes.Pointers;
        native.IncludeCount = includes.Count;
        native.Excludes = excludes.Pointers;
        native.ExcludeCount = excludes.Count;
        native.Progress = Progress.Function;
        native.UserData = callback.UserData;
        ReportHandle report;
        fixed (Interop.MultiplierRule* list = rules) {
          native.Multipliers = list;
          native.MultiplierCount = new UIntPtr((uint)rules.Length);
          try {
            Native.lyc_merge_files(context.Handle, basePath, adapters.Pointers, (ulong)adapters.Count, outPath, &native, out report);
          } finally {
            callback.ThrowIfFailed(); // what the function threw wins over "cancelled"
          }
        }
        return new Report(report);
      }
    }

    /// <summary>Look into a base or adapter file; the report's JSON has the answer.</summary>
    public static Report InspectFile(string path, Context context = null) {
      ReportHandle report;
      Native.lyc_inspect_file((context ?? SharedContext.Value).Handle, path, out report);
      return new Report(report);
    }
  }
}
