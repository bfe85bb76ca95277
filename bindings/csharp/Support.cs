// Texts, errors and the callback that every binding needs; nothing public but LycorisException.
using System;
using System.Collections.Generic;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using System.Text;
using LibLycoris.Interop;

namespace AOT {
  /// <summary>IL2CPP and Mono's ahead-of-time compiler look for this name on methods that C calls.</summary>
  [AttributeUsage(AttributeTargets.Method)]
  internal sealed class MonoPInvokeCallbackAttribute : Attribute {
    public MonoPInvokeCallbackAttribute(Type type) { }
  }
}

namespace LibLycoris {
  /// <summary>A call of the library failed; the message says what was wrong and why.</summary>
  public class LycorisException : Exception {
    public LycorisException(Status status, string message, int nativeCode) : base(message) {
      Status = status;
      NativeCode = nativeCode;
    }

    public Status Status { get; private set; }

    /// <summary>errno, or the CUDA error number; 0 if none.</summary>
    public int NativeCode { get; private set; }

    internal static unsafe void ThrowIfFailed(Status status) {
      if (status == Status.Ok) return;
      string message = Native.lyc_last_error_message();
      if (status == Status.ErrorCancelled) throw new OperationCanceledException(message);
      ErrorInfo info;
      Native.lyc_error_info_init(&info, (ulong)sizeof(ErrorInfo));
      bool known = NativePINVOKE.lyc_last_error_info(&info) == Status.Ok;
      throw new LycorisException(status, message, known ? info.NativeCode : 0);
    }
  }
}

namespace LibLycoris.Interop {
  internal static class Utf8 {
    internal static byte[] Encode(string text) {
      if (text == null) return null;
      if (text.IndexOf('\0') >= 0) throw new ArgumentException("text has a NUL");
      var bytes = new byte[Encoding.UTF8.GetByteCount(text) + 1];
      Encoding.UTF8.GetBytes(text, 0, text.Length, bytes, 0);
      return bytes;
    }

    internal static unsafe string Decode(IntPtr text) {
      if (text == IntPtr.Zero) return null;
      var bytes = (byte*)text;
      int length = 0;
      while (bytes[length] != 0) ++length;
      return Encoding.UTF8.GetString(bytes, length);
    }

    /// <summary>Fills a buffer, and tells the full length.</summary>
    internal delegate void Fill(byte[] buffer, ulong capacity, out ulong length);

    internal static string Read(Fill fill) {
      ulong length;
      fill(null, 0, out length);
      var buffer = new byte[length + 1];
      fill(buffer, (ulong)buffer.Length, out length);
      return Encoding.UTF8.GetString(buffer, 0, (int)length);
    }
  }

  /// <summary>const char *const *, and what it points to, until disposed.</summary>
  internal sealed unsafe class TextList : IDisposable {
    private readonly GCHandle[] pins;
    private readonly IntPtr[] pointers;
    private GCHandle pin;

    internal TextList(IEnumerable<string> texts) {
      var list = new List<string>(texts ?? new string[0]);
      pins = new GCHandle[list.Count];
      pointers = new IntPtr[list.Count];
      pin = GCHandle.Alloc(pointers, GCHandleType.Pinned);
      for (int i = 0; i < pins.Length; ++i) {
        if (list[i] == null) continue;
        pins[i] = GCHandle.Alloc(Utf8.Encode(list[i]), GCHandleType.Pinned);
        pointers[i] = pins[i].AddrOfPinnedObject();
      }
    }

    internal byte** Pointers { get { return (byte**)pin.AddrOfPinnedObject(); } }
    internal UIntPtr Count { get { return new UIntPtr((uint)pointers.Length); } }
    internal byte* this[int index] { get { return (byte*)pointers[index]; } }

    public void Dispose() {
      for (int i = 0; i < pins.Length; ++i) if (pins[i].IsAllocated) pins[i].Free();
      if (pin.IsAllocated) pin.Free();
    }
  }

  /// <summary>A function of C# that C calls: static, found through a handle; no exception may cross.</summary>
  internal sealed class Progress : IDisposable {
    private static readonly ProgressFn Delegate = Report; // for good: C keeps its address
    internal static readonly IntPtr Function = Marshal.GetFunctionPointerForDelegate(Delegate);

    private readonly Func<ulong, ulong, bool> function;
    private ExceptionDispatchInfo thrown;
    private GCHandle self;

    /// <summary>The function is told the bytes done and in total, and answers true to go on.</summary>
    internal Progress(Func<ulong, ulong, bool> function) {
      this.function = function;
      self = GCHandle.Alloc(this);
    }

    internal IntPtr UserData { get { return GCHandle.ToIntPtr(self); } }

    internal void ThrowIfFailed() { if (thrown != null) thrown.Throw(); }

    public void Dispose() { if (self.IsAllocated) self.Free(); }

    [AOT.MonoPInvokeCallback(typeof(ProgressFn))]
    private static int Report(IntPtr userData, ulong done, ulong total) {
      var progress = (Progress)GCHandle.FromIntPtr(userData).Target;
      try {
        return progress.function(done, total) ? 0 : 1;
      } catch (Exception e) {
        progress.thrown = ExceptionDispatchInfo.Capture(e);
        return 1;
      }
    }
  }
}
