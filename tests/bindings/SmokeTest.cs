// What the header promises, as C# sees it. A plain program: every method named Test... runs; exit status 1 if one fails.
using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Threading;
using System.Threading.Tasks;
using LibLycoris;
using Module = LibLycoris.Module;

internal static class SmokeTest {
  private const int Rows = 5, Columns = 7, Rank = 2;
  private const float Alpha = 3;

  private static string folder;

  private static int Main() {
    int failed = 0;
    foreach (var test in typeof(SmokeTest).GetMethods(BindingFlags.NonPublic | BindingFlags.Static)) {
      if (!test.Name.StartsWith("Test")) continue;
      folder = Path.Combine(Path.GetTempPath(), "lycoris-csharp-" + Guid.NewGuid().ToString("N"));
      Directory.CreateDirectory(folder);
      try {
        test.Invoke(null, null);
        Console.WriteLine("ok      " + test.Name);
      } catch (TargetInvocationException e) {
        ++failed;
        Console.WriteLine("FAILED  " + test.Name + ": " + e.InnerException);
      } finally {
        Directory.Delete(folder, true);
      }
    }
    return failed == 0 ? 0 : 1;
  }

  // ---- A LoRA of one layer, and what it does in plain C#. Multiples of 1/8, so sums are exact in f32.

  private static float[] Numbers(int count, int step) {
    return Enumerable.Range(0, count).Select(i => (i * step % 31 - 15) / 8f).ToArray();
  }

  private static readonly float[] Up = Numbers(Rows * Rank, 7), Down = Numbers(Rank * Columns, 11);

  private static float[] Base() { return Numbers(Rows * Columns, 5); }

  private static float[] Merged(float multiplier) {
    var merged = Base();
    for (int i = 0; i < merged.Length; ++i)
      for (int r = 0; r < Rank; ++r) merged[i] += multiplier * Alpha / Rank * Up[i / Columns * Rank + r] * Down[r * Columns + i % Columns];
    return merged;
  }

  private static Dictionary<string, Tensor> Adapter(string prefix = "") {
    return new Dictionary<string, Tensor> {
      { prefix + "lora_up.weight", Tensor.Pin(Up, Rows, Rank) },
      { prefix + "lora_down.weight", Tensor.Pin(Down, Rank, Columns) },
      { prefix + "alpha", Tensor.Pin(new[] { Alpha }) },
    };
  }

  private static Module LoraModule(Context context) { return new Module(context, Adapter()); }

  private static void Write(string path, IDictionary<string, Tensor> tensors) {
    using (var writer = new TensorWriter(path)) {
      foreach (var tensor in tensors) writer.Add(tensor.Key, tensor.Value);
      writer.SetMetadata("größe", "7");
      writer.Finish();
    }
  }

  private static string InFolder(string name) { return Path.Combine(folder, name); }

  private static void WriteFiles() {
    Write(InFolder("style.safetensors"), Adapter("lora_unet_mid_proj."));
    Write(InFolder("model.safetensors"), new Dictionary<string, Tensor> { { "mid.proj.weight", Tensor.Pin(Base(), Rows, Columns) } });
  }

  private static float[] MergedFile() {
    using (var file = new TensorFile(InFolder("out.safetensors"))) {
      var bytes = file.Read("mid.proj.weight");
      var values = new float[bytes.Length / 4];
      Buffer.BlockCopy(bytes, 0, values, 0, bytes.Length);
      return values;
    }
  }

  private static Task<Report> MergeAsync(float multiplier = 1, IProgress<double> progress = null, CancellationToken cancellation = default(CancellationToken)) {
    return Lycoris.MergeFilesAsync(InFolder("model.safetensors"), InFolder("style.safetensors"), InFolder("out.safetensors"), multiplier, progress, cancellation);
  }

  // ---- Checks

  private static void Check(bool condition, [CallerLineNumber] int line = 0) {
    if (!condition) throw new Exception("check in line " + line);
  }

  private static void Near(float[] found, float[] expected, [CallerLineNumber] int line = 0) {
    Check(found.Length == expected.Length, line);
    for (int i = 0; i < found.Length; ++i)
      if (Math.Abs(found[i] - expected[i]) > 1e-5) throw new Exception("line " + line + ", [" + i + "]: " + found[i] + " is not " + expected[i]);
  }

  private static T Throws<T>(Action action, [CallerLineNumber] int line = 0) where T : Exception {
    try {
      action();
    } catch (T e) {
      return e;
    }
    throw new Exception("line " + line + ": no " + typeof(T).Name);
  }

  // ---- Tests

  private static void TestContext() {
    using (var context = new Context(threads: 2)) Check(context.Threads == 2);
    Check(Lycoris.Version.Split('.').Length == 3);
    Check(Lycoris.ExplainBackend(DeviceType.Cuda) != null);
  }

  private static void TestErrors() {
    var missing = Throws<LycorisException>(() => new TensorFile("missing.safetensors"));
    Check(missing.Status == Status.ErrorNotFound && missing.NativeCode == 2 && missing.Message.Contains("missing.safetensors"));
    using (var context = new Context()) {
      var options = new ModuleOptions { Algo = Algo.Locon, Rank = -1, Shape = new long[] { 8, 8 } };
      Check(Throws<LycorisException>(() => new Module(context, options)).Message.Contains("rank"));
    }
    var closed = new Context();
    closed.Dispose();
    Throws<ObjectDisposedException>(() => Check(closed.Threads == 0));
  }

  private static void TestFiles() {
    var path = InFolder("blé.safetensors");
    Write(path, new Dictionary<string, Tensor> {
      { "a", Tensor.Pin(Base(), Rows, Columns) }, { "b", Tensor.Pin(new ushort[] { 1, 2 }, DType.BF16, 2) } });
    using (var file = new TensorFile(path)) {
      Check(file.Names.OrderBy(n => n).SequenceEqual(new[] { "a", "b" }));
      Check(file.Metadata["größe"] == "7");
      var b = file.Describe("b");
      Check(b.DType == DType.BF16 && b.Shape.SequenceEqual(new long[] { 2 }));
      Check(file.Read("b").SequenceEqual(new byte[] { 1, 0, 2, 0 }));
      Check(Throws<LycorisException>(() => file.Read("c")).Status == Status.ErrorNotFound);
    }
  }

  private static void TestTensors() {
    Throws<ArgumentException>(() => Tensor.Pin(new float[5], 6));
    Check(Tensor.Pin(new float[6], 2, 2).WithStrides(3, 1).Shape.SequenceEqual(new long[] { 2, 2 }));
  }

  private static void TestMerge() {
    var context = new Context();
    var module = LoraModule(context);
    context.Dispose(); // objects keep what they were made from
    GC.Collect();
    Check(module.Algo == Algo.Locon && module.Rank == Rank && module.Scale == Alpha / Rank);
    var data = Base();
    using (var weight = Tensor.Pin(data, Rows, Columns)) {
      module.Merge(weight, 0.25f);
      Near(data, Merged(0.25f));
      module.Unmerge(weight, 0.25f);
      Near(data, Base());
      weight.ReadOnly = true;
      Check(Throws<LycorisException>(() => module.Merge(weight)).Status == Status.ErrorInvalidArgument);
    }
    var transposed = new float[Columns * Rows];
    using (var result = Tensor.Pin(transposed, Columns, Rows)) {
      result.Layout = Layout.HWIO;
      module.DiffWeight(result);
    }
    var merged = Merged(1);
    Near(transposed, Enumerable.Range(0, transposed.Length).Select(i => {
      int same = i % Rows * Columns + i / Rows;
      return merged[same] - Base()[same];
    }).ToArray());
    using (var small = Tensor.Pin(new float[9], 3, 3))
      Check(Throws<LycorisException>(() => module.DiffWeight(small)).Status == Status.ErrorMismatch);
    module.Dispose();
  }

  private static void TestParameters() {
    using (var context = new Context())
    using (var module = new Module(context, new ModuleOptions { Algo = Algo.Locon, Rank = Rank, Alpha = Alpha, Shape = new long[] { Rows, Columns } })) {
      Check(module.ParameterNames.Contains("lora_up.weight"));
      module.Write("lora_up.weight", Tensor.Pin(Up, Rows, Rank));
      module.Bind("lora_down.weight", Tensor.Pin((float[])Down.Clone(), Rank, Columns));
      GC.Collect();
      var data = Base();
      using (var weight = Tensor.Pin(data, Rows, Columns)) module.Merge(weight);
      Near(data, Merged(1));
    }
  }

  private static void TestNetworks() {
    WriteFiles();
    using (var context = new Context())
    using (var network = new Network(context, InFolder("style.safetensors"))) {
      Check(network.Modules.Count == 1);
      var data = Base();
      var report = network.MergeInto(new Dictionary<string, Tensor> { { "mid.proj.weight", Tensor.Pin(data, Rows, Columns) } }, 0.8f);
      Check(report.Total == 1 && report.Merged == 1);
      Near(data, Merged(0.8f));
      var other = new Dictionary<string, Tensor> { { "other.weight", Tensor.Pin(new float[4], 2, 2) } };
      Check(Throws<LycorisException>(() => network.MergeInto(other)).Status == Status.ErrorMismatch);
      var weights = new Dictionary<string, Tensor> { { "mid.proj.weight", Tensor.Pin(data, Rows, Columns) } };
      using (var batch = network.Match(weights, new MatchOptions { Excludes = new[] { "*mid_proj*" } }, out report)) {
        batch.Merge(0.5f);
        Check(report.Excluded == 1 && batch.Explain() != null);
      }
      Near(data, Merged(0.8f));
    }
  }

  private static void TestMergeFiles() {
    WriteFiles();
    var seen = new List<double>();
    var report = MergeAsync(0.5f, new Direct(seen.Add)).Result;
    Check(report.Total == 1 && report.Merged == 1 && report.Changed == 1 && report.Json.StartsWith("{"));
    Check(seen.Count > 0 && seen.All(share => share <= 1));
    Near(MergedFile(), Merged(0.5f));
    var again = Throws<AggregateException>(() => MergeAsync().Wait());
    Check(((LycorisException)again.InnerException).Status == Status.ErrorInvalidArgument);
    var options = new MergeOptions { Overwrite = true };
    options.Multipliers.Add(new MultiplierRule(null, -1, 1));
    options.Multipliers.Add(new MultiplierRule("mid.*", 0, 0.25f));
    using (var context = new Context())
      Lycoris.MergeFiles(context, InFolder("model.safetensors"), new[] { InFolder("style.safetensors") }, InFolder("out.safetensors"), options);
    Near(MergedFile(), Merged(0.25f));
    Check(Lycoris.InspectFile(InFolder("style.safetensors")).Json.StartsWith("{"));
  }

  private static void TestCancel() {
    WriteFiles();
    using (var source = new CancellationTokenSource()) {
      var task = MergeAsync(1, new Direct(share => source.Cancel()), source.Token);
      var thrown = Throws<AggregateException>(() => task.Wait());
      Check(thrown.InnerException is OperationCanceledException && task.IsCanceled);
      Check(!File.Exists(InFolder("out.safetensors")));
    }
  }

  private static void TestExceptionInProgress() {
    WriteFiles();
    var task = MergeAsync(1, new Direct(share => { throw new InvalidOperationException("from the callback"); }));
    var thrown = Throws<AggregateException>(() => task.Wait());
    Check(thrown.InnerException.Message == "from the callback");
    Check(!File.Exists(InFolder("out.safetensors")));
  }

  private static void TestLostHandles() {
    for (int i = 0; i < 200; ++i) LoraModule(new Context(threads: 1));
    GC.Collect();
    GC.WaitForPendingFinalizers();
  }

  /// <summary>Progress on the calling thread, as the system's own class is not.</summary>
  private sealed class Direct : IProgress<double> {
    private readonly Action<double> action;
    internal Direct(Action<double> action) { this.action = action; }
    public void Report(double share) { action(share); }
  }
}
