// Merge an adapter into a model without blocking: MergeFiles MODEL ADAPTER OUT. Ctrl-C cancels, and leaves no file.
using System;
using System.IO;
using System.Threading;
using System.Threading.Tasks;
using LibLycoris;

internal static class MergeFiles {
  private static int Main(string[] arguments) { return RunAsync(arguments).GetAwaiter().GetResult(); }

  private static async Task<int> RunAsync(string[] arguments) {
    if (arguments.Length != 3) {
      Console.Error.WriteLine("usage: MergeFiles MODEL ADAPTER OUT");
      return 2;
    }
    File.Delete(arguments[2]);
    using (var cancellation = new CancellationTokenSource()) {
      Console.CancelKeyPress += (sender, e) => {
        e.Cancel = true;
        cancellation.Cancel();
      };
      var progress = new Progress<double>(share => Console.Error.Write("\r{0,4:P0}", share));
      try {
        var report = await Lycoris.MergeFilesAsync(arguments[0], arguments[1], arguments[2], 0.8f, progress, cancellation.Token);
        Console.WriteLine($"{report.Merged} of {report.Total} layers");
        return 0;
      } catch (LycorisException e) {
        Console.Error.WriteLine("MergeFiles: " + e.Message);
        return 1;
      }
    }
  }
}
