using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;
using LibLycoris.Interop;

namespace LibLycoris {
  /// <summary>
  /// A view of memory that somebody else owns: an array, pinned until Dispose, or an address. A Batch keeps its tensors;
  /// do not dispose of them before it.
  /// </summary>
  public sealed unsafe class Tensor : IDisposable {
    internal Interop.Tensor Native;
    private GCHandle pin;

    /// <summary>Memory at an address, contiguous; it must stay for as long as the view is used.</summary>
    public Tensor(IntPtr data, DType dtype, params long[] shape) {
      fixed (long* sizes = shape)
      fixed (Interop.Tensor* native = &Native)
        Interop.Native.lyc_tensor_init(native, data, dtype, sizes, (ulong)shape.Length);
    }

    /// <summary>An array, pinned. bf16 and f16 are ushort arrays of that dtype.</summary>
    public static Tensor Pin(Array data, DType dtype, params long[] shape) {
      var handle = GCHandle.Alloc(data, GCHandleType.Pinned);
      try {
        var tensor = new Tensor(handle.AddrOfPinnedObject(), dtype, shape);
        long bytes = Buffer.ByteLength(data);
        if (tensor.Native.Capacity > (ulong)bytes)
          throw new ArgumentException("shape takes " + tensor.Native.Capacity + " bytes, array has " + bytes);
        tensor.Native.Capacity = (ulong)bytes;
        tensor.pin = handle;
        return tensor;
      } catch {
        handle.Free();
        throw;
      }
    }

    public static Tensor Pin(float[] data, params long[] shape) { return Pin(data, DType.F32, shape); }

    /// <summary>Which axis is which; PyTorch's order unless said.</summary>
    public Layout Layout {
      get { return Native.Layout; }
      set { Native.Layout = value; }
    }

    /// <summary>Refuse it as an output.</summary>
    public bool ReadOnly {
      get { return (Native.Flags & Constants.TensorReadOnly) != 0; }
      set { Native.Flags = value ? Native.Flags | Constants.TensorReadOnly : Native.Flags & ~Constants.TensorReadOnly; }
    }

    public DType DType { get { return Native.Dtype; } }

    public long[] Shape {
      get {
        var shape = new long[Native.Ndim];
        fixed (Interop.Tensor* native = &Native) for (int i = 0; i < shape.Length; ++i) shape[i] = native->Shape[i];
        return shape;
      }
    }

    /// <summary>In elements, where the memory is not row-major.</summary>
    public Tensor WithStrides(params long[] strides) {
      if (strides.Length != Native.Ndim) throw new ArgumentException(strides.Length + " strides for " + Native.Ndim + " dimensions");
      fixed (Interop.Tensor* native = &Native) {
        for (int i = 0; i < strides.Length; ++i) native->Strides[i] = strides[i];
        Interop.Native.lyc_tensor_check(native);
      }
      return this;
    }

    /// <summary>The address is one of this CUDA device.</summary>
    public Tensor OnCuda(int index) {
      Native.DeviceType = DeviceType.Cuda;
      Native.DeviceIndex = index;
      return this;
    }

    public void Dispose() {
      if (pin.IsAllocated) pin.Free();
      GC.SuppressFinalize(this);
    }

    ~Tensor() { if (pin.IsAllocated) pin.Free(); }
  }

  /// <summary>A safetensors file or folder, read when asked for.</summary>
  public sealed unsafe class TensorFile : IDisposable {
    private readonly FileHandle handle;

    public TensorFile(string path) { Native.lyc_file_open(path, out handle); }

    public IEnumerable<string> Names {
      get {
        ulong count;
        Native.lyc_file_tensor_count(handle, out count);
        var names = new List<string>();
        for (ulong i = 0; i < count; ++i) names.Add(NameOf(i));
        return names;
      }
    }

    public IDictionary<string, string> Metadata {
      get {
        ulong count;
        Native.lyc_file_metadata_count(handle, out count);
        var metadata = new Dictionary<string, string>();
        for (ulong i = 0; i < count; ++i) {
          string key, value;
          Native.lyc_file_get_metadata(handle, i, out key, out value);
          metadata[key] = value;
        }
        return metadata;
      }
    }

    /// <summary>Type and shape, without reading.</summary>
    public Tensor Describe(string name) {
      Interop.Tensor native;
      Find(name, out native);
      var shape = new long[native.Ndim];
      for (int i = 0; i < shape.Length; ++i) shape[i] = native.Shape[i];
      return new Tensor(IntPtr.Zero, native.Dtype, shape);
    }

    /// <summary>The bytes of a tensor.</summary>
    public byte[] Read(string name) {
      Interop.Tensor native;
      ulong index = Find(name, out native);
      var data = new byte[native.Capacity];
      fixed (byte* memory = data) Native.lyc_file_read_tensor(handle, index, (IntPtr)memory, (ulong)data.Length);
      return data;
    }

    private string NameOf(ulong index) {
      string name;
      Native.lyc_file_get_tensor(handle, index, out name, null);
      return name;
    }

    private ulong Find(string name, out Interop.Tensor native) {
      ulong index;
      Native.lyc_file_find_tensor(handle, name, out index);
      string same;
      fixed (Interop.Tensor* result = &native) Native.lyc_file_get_tensor(handle, index, out same, result);
      return index;
    }

    public void Dispose() { handle.Dispose(); }
  }

  /// <summary>A new safetensors file. Nothing appears at its path before Finish.</summary>
  public sealed unsafe class TensorWriter : IDisposable {
    private readonly WriterHandle handle;
    private readonly List<Tensor> borrowed = new List<Tensor>();

    public TensorWriter(string path) { Native.lyc_writer_create(path, out handle); }

    public void SetMetadata(string key, string value) { Native.lyc_writer_set_metadata(handle, key, value); }

    public void Add(string name, Tensor tensor) {
      fixed (Interop.Tensor* native = &tensor.Native) Native.lyc_writer_add(handle, name, native);
      borrowed.Add(tensor);
    }

    /// <summary>Write everything, and put it at the path in one step.</summary>
    public void Finish() {
      Native.lyc_writer_finish(handle);
      GC.KeepAlive(borrowed);
    }

    public void Dispose() { handle.Dispose(); }
  }
}
