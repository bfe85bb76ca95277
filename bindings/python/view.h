/*
 * View: an lyc_tensor over memory that a Python object owns, taken through DLPack or else the buffer protocol, and
 * given to other libraries through DLPack. Only the stable ABI of Python 3.11 is used where the build asks for it.
 */
#ifndef LYCORIS_PYTHON_VIEW_H_
#define LYCORIS_PYTHON_VIEW_H_

#include <Python.h>
#include <stdlib.h>
#include <string.h>

#include "lycoris.h"

/* The part of DLPack 1.x that is used, as its specification lays it out (https://github.com/dmlc/dlpack). */
typedef struct DlTensor {
  void *data;
  int32_t device_type;
  int32_t device_id;
  int32_t ndim;
  uint8_t type_code;
  uint8_t type_bits;
  uint16_t type_lanes;
  int64_t *shape;
  int64_t *strides;
  uint64_t byte_offset;
} DlTensor;

typedef struct DlManagedLegacy {
  DlTensor tensor;
  void *manager;
  void (*deleter)(struct DlManagedLegacy *);
} DlManagedLegacy;

typedef struct DlManagedVersioned {
  uint32_t major;
  uint32_t minor;
  void *manager;
  void (*deleter)(struct DlManagedVersioned *);
  uint64_t flags;
  DlTensor tensor;
} DlManagedVersioned;

enum { kDlCpu = 1, kDlCuda = 2, kDlCudaHost = 3, kDlCudaManaged = 13, kDlReadOnly = 1 };

typedef struct View {
  lyc_tensor tensor;
  PyObject *owner; /* what keeps the memory: a DLPack capsule, a memoryview, a bytearray; NULL where there is none */
} View;

/* One row a dtype: its DLPack name, its letter in the buffer protocol (0 = none). */
static const struct {
  lyc_dtype dtype;
  uint8_t dl_code, dl_bits;
  char letter;
} kViewTypes[] = {
    {LYC_DTYPE_F32, 2, 32, 'f'}, {LYC_DTYPE_F16, 2, 16, 'e'},   {LYC_DTYPE_BF16, 4, 16, 0},
    {LYC_DTYPE_F64, 2, 64, 'd'}, {LYC_DTYPE_I64, 0, 64, 'q'},   {LYC_DTYPE_I32, 0, 32, 'i'},
    {LYC_DTYPE_I16, 0, 16, 'h'}, {LYC_DTYPE_I8, 0, 8, 'b'},     {LYC_DTYPE_U64, 1, 64, 'Q'},
    {LYC_DTYPE_U32, 1, 32, 'I'}, {LYC_DTYPE_U16, 1, 16, 'H'},   {LYC_DTYPE_U8, 1, 8, 'B'},
    {LYC_DTYPE_BOOL, 6, 8, '?'}, {LYC_DTYPE_F8_E4M3, 10, 8, 0}, {LYC_DTYPE_F8_E5M2, 12, 8, 0},
};
enum { kViewTypeCount = sizeof kViewTypes / sizeof kViewTypes[0] };

/* Index into kViewTypes, -1 for what is not there. */
static int view_type_of(lyc_dtype dtype) {
  for (int i = 0; i < kViewTypeCount; ++i)
    if (kViewTypes[i].dtype == dtype) return i;
  return -1;
}

static void view_pack_strides(lyc_tensor *tensor) {
  int64_t step = 1;
  for (int i = tensor->ndim - 1; i >= 0; --i) {
    tensor->strides[i] = step;
    step *= tensor->shape[i] > 0 ? tensor->shape[i] : 1;
  }
}

static int view_check_ndim(Py_ssize_t ndim) {
  if (ndim <= LYC_MAX_DIMS) return 1;
  PyErr_Format(PyExc_ValueError, "tensor has %zd dimensions, at most %d are supported", ndim, LYC_MAX_DIMS);
  return 0;
}

/* ---- DLPack in ------------------------------------------------------------------------------------------------- */

static int view_fill_from_dlpack(View *view, const DlTensor *source, int read_only) {
  lyc_tensor *tensor = &view->tensor;
  if (!view_check_ndim(source->ndim)) return 0;
  switch (source->device_type) {
    case kDlCpu:
    case kDlCudaHost:
      tensor->device_type = LYC_DEVICE_CPU;
      break;
    case kDlCuda:
    case kDlCudaManaged:
      tensor->device_type = LYC_DEVICE_CUDA;
      tensor->device_index = source->device_id;
      break;
    default:
      PyErr_Format(PyExc_ValueError, "tensor is on a device of DLPack type %d, CPU and CUDA are supported",
                   (int)source->device_type);
      return 0;
  }
  for (int i = 0; i < kViewTypeCount && source->type_lanes == 1; ++i)
    if (kViewTypes[i].dl_code == source->type_code && kViewTypes[i].dl_bits == source->type_bits)
      tensor->dtype = kViewTypes[i].dtype;
  tensor->data = source->data ? (char *)source->data + source->byte_offset : NULL;
  tensor->ndim = source->ndim;
  tensor->flags = read_only ? LYC_TENSOR_READ_ONLY : 0;
  for (int i = 0; i < source->ndim; ++i) tensor->shape[i] = source->shape[i];
  if (source->strides) {
    for (int i = 0; i < source->ndim; ++i) tensor->strides[i] = source->strides[i];
  } else {
    view_pack_strides(tensor);
  }
  return 1;
}

/* Call array.__dlpack__(stream=..., max_version=(1, 1)); producers older than DLPack 1.0 do not know max_version. */
static PyObject *view_request_capsule(PyObject *method, PyObject *stream) {
  PyObject *empty = PyTuple_New(0), *keywords = PyDict_New(), *version = Py_BuildValue("(ii)", 1, 1), *capsule = NULL;
  if (empty && keywords && version && (stream == Py_None || PyDict_SetItemString(keywords, "stream", stream) == 0) &&
      PyDict_SetItemString(keywords, "max_version", version) == 0) {
    capsule = PyObject_Call(method, empty, keywords);
    if (!capsule && PyErr_ExceptionMatches(PyExc_TypeError)) {
      PyErr_Clear();
      if (PyDict_DelItemString(keywords, "max_version") == 0) capsule = PyObject_Call(method, empty, keywords);
    }
  }
  Py_XDECREF(empty);
  Py_XDECREF(keywords);
  Py_XDECREF(version);
  return capsule;
}

/* 1 = done, 0 = `array` cannot export itself this way, -1 = error. The capsule is not renamed: its memory is borrowed,
 * and the capsule's own destructor gives it back. */
static int view_take_dlpack(View *view, PyObject *array, PyObject *stream) {
  PyObject *method = PyObject_GetAttrString(array, "__dlpack__");
  if (!method) {
    PyErr_Clear();
    return 0;
  }
  PyObject *capsule = view_request_capsule(method, stream);
  Py_DECREF(method);
  if (!capsule) {
    /* NumPy 1.x refuses read-only arrays; the buffer protocol has them. */
    if (!PyErr_ExceptionMatches(PyExc_BufferError)) return -1;
    if (!PyObject_CheckBuffer(array)) return -1;
    PyErr_Clear();
    return 0;
  }
  int filled = 0;
  if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
    const DlManagedVersioned *managed = PyCapsule_GetPointer(capsule, "dltensor_versioned");
    if (managed->major == 1) {
      filled = view_fill_from_dlpack(view, &managed->tensor, (managed->flags & kDlReadOnly) != 0);
    } else {
      PyErr_Format(PyExc_BufferError, "DLPack version %u is not supported, 1.x is", (unsigned)managed->major);
    }
  } else {
    const DlManagedLegacy *managed = PyCapsule_GetPointer(capsule, "dltensor"); /* sets an error for anything else */
    if (managed) filled = view_fill_from_dlpack(view, &managed->tensor, 0);
  }
  if (!filled) {
    Py_DECREF(capsule);
    return -1;
  }
  view->owner = capsule;
  return 1;
}

/* ---- Buffer protocol in ---------------------------------------------------------------------------------------- */

static int view_fill_from_buffer(View *view, const Py_buffer *buffer) {
  lyc_tensor *tensor = &view->tensor;
  if (!view_check_ndim(buffer->ndim)) return 0;
  const char *format = buffer->format ? buffer->format : "B";
  if (*format == '@' || *format == '=' || *format == '<') ++format;
  /* C's long is 'l': on 64-bit Unix the same as 'q', on Windows the same as 'i'. */
  char letter = *format;
  if (letter == 'l') letter = buffer->itemsize == 8 ? 'q' : 'i';
  if (letter == 'L') letter = buffer->itemsize == 8 ? 'Q' : 'I';
  for (int i = 0; i < kViewTypeCount && letter && !format[1]; ++i)
    if (kViewTypes[i].letter == letter && kViewTypes[i].dl_bits == buffer->itemsize * 8)
      tensor->dtype = kViewTypes[i].dtype;
  tensor->data = buffer->buf;
  tensor->ndim = buffer->ndim;
  tensor->flags = buffer->readonly ? LYC_TENSOR_READ_ONLY : 0;
  for (int i = 0; i < buffer->ndim; ++i) {
    if (buffer->strides[i] % buffer->itemsize != 0 || (buffer->suboffsets && buffer->suboffsets[i] >= 0)) {
      PyErr_SetString(PyExc_ValueError, "buffer's strides are not whole elements");
      return 0;
    }
    tensor->shape[i] = buffer->shape[i];
    tensor->strides[i] = buffer->strides[i] / buffer->itemsize;
  }
  return 1;
}

static int view_take_buffer(View *view, PyObject *array) {
  if (!PyObject_CheckBuffer(array)) {
    PyErr_Format(PyExc_TypeError, "a tensor must offer DLPack or the buffer protocol, %R does not",
                 (PyObject *)Py_TYPE(array));
    return 0;
  }
  PyObject *memory = PyMemoryView_FromObject(array);
  Py_buffer buffer;
  if (!memory) return 0;
  if (PyObject_GetBuffer(memory, &buffer, PyBUF_FULL_RO) != 0) {
    Py_DECREF(memory);
    return 0;
  }
  const int filled = view_fill_from_buffer(view, &buffer);
  PyBuffer_Release(&buffer); /* the memoryview keeps an export of its own */
  if (!filled) {
    Py_DECREF(memory);
    return 0;
  }
  view->owner = memory;
  return 1;
}

/* ---- Life ------------------------------------------------------------------------------------------------------ */

static void view_free(View *view) {
  if (!view) return;
  Py_XDECREF(view->owner);
  free(view);
}

static View *view_new(void) {
  View *view = calloc(1, sizeof *view);
  if (!view) PyErr_NoMemory();
  return view;
}

/* A view of the caller's array. `stream` is where the memory will be used, as in the DLPack protocol. */
static View *view_borrow(PyObject *array, lyc_layout layout, PyObject *stream) {
  View *view = view_new();
  if (!view) return NULL;
  view->tensor.layout = layout;
  const int taken = view_take_dlpack(view, array, stream);
  if (taken < 0 || (taken == 0 && !view_take_buffer(view, array))) {
    view_free(view);
    return NULL;
  }
  return view;
}

/* New CPU memory, zeroed; a Python bytearray owns it. */
static View *view_zeros(PyObject *shape, lyc_dtype dtype, lyc_layout layout) {
  View *view = view_new();
  if (!view) return NULL;
  const Py_ssize_t ndim = PySequence_Size(shape);
  const int type = view_type_of(dtype);
  int64_t sizes[LYC_MAX_DIMS] = {0};
  uint64_t bytes = type < 0 ? 0 : kViewTypes[type].dl_bits / 8;
  if (ndim < 0 || !view_check_ndim(ndim)) goto failed;
  for (Py_ssize_t i = 0; i < ndim; ++i) {
    PyObject *item = PySequence_GetItem(shape, i);
    sizes[i] = item ? PyLong_AsLongLong(item) : -1;
    Py_XDECREF(item);
    if (PyErr_Occurred()) goto failed;
    if (sizes[i] < 0 || (sizes[i] > 0 && bytes > (uint64_t)(PY_SSIZE_T_MAX / sizes[i]))) {
      PyErr_SetString(PyExc_ValueError, "shape is negative or too large");
      goto failed;
    }
    bytes *= (uint64_t)sizes[i];
  }
  if (lyc_tensor_init(&view->tensor, NULL, dtype, sizes, (size_t)ndim) != LYC_OK) {
    PyErr_SetString(PyExc_ValueError, lyc_last_error_message());
    goto failed;
  }
  view->tensor.layout = layout;
  view->owner = PyObject_CallFunction((PyObject *)&PyByteArray_Type, "n", (Py_ssize_t)bytes);
  if (!view->owner) goto failed;
  view->tensor.data = PyByteArray_AsString(view->owner);
  return view;
failed:
  view_free(view);
  return NULL;
}

/* ---- DLPack out ------------------------------------------------------------------------------------------------ */

/* What a capsule owns: the managed tensor that the consumer sees, its shape, and a reference to the memory's owner. */
typedef struct Export {
  union {
    DlManagedVersioned versioned;
    DlManagedLegacy legacy;
  } managed;
  PyObject *owner;
  int64_t shape[LYC_MAX_DIMS];
  int64_t strides[LYC_MAX_DIMS];
} Export;

static void export_free(Export *made) {
  const PyGILState_STATE state = PyGILState_Ensure(); /* consumers may call from any thread */
  Py_XDECREF(made->owner);
  PyGILState_Release(state);
  free(made);
}

static void export_delete_versioned(DlManagedVersioned *managed) { export_free(managed->manager); }
static void export_delete_legacy(DlManagedLegacy *managed) { export_free(managed->manager); }

/* A consumer renames the capsule it takes; then the tensor is the consumer's to delete. */
static void export_drop_capsule(PyObject *capsule) {
  const char *name = PyCapsule_GetName(capsule);
  if (name && (strcmp(name, "dltensor_versioned") == 0 || strcmp(name, "dltensor") == 0)) {
    void *managed = PyCapsule_GetPointer(capsule, name);
    export_free(name[8] ? ((DlManagedVersioned *)managed)->manager : ((DlManagedLegacy *)managed)->manager);
  }
}

static PyObject *view_to_dlpack(const View *view, int versioned) {
  const lyc_tensor *tensor = &view->tensor;
  const int type = view_type_of(tensor->dtype);
  const int read_only = (tensor->flags & LYC_TENSOR_READ_ONLY) != 0;
  if (type < 0 || !view->owner || (read_only && !versioned)) {
    PyErr_SetString(PyExc_BufferError, type < 0       ? "dtype has no DLPack name"
                                       : !view->owner ? "a description has no memory to share"
                                                      : "read-only memory needs a consumer of DLPack 1.0 or later");
    return NULL;
  }
  Export *made = calloc(1, sizeof *made);
  if (!made) return PyErr_NoMemory();
  memcpy(made->shape, tensor->shape, sizeof made->shape);
  memcpy(made->strides, tensor->strides, sizeof made->strides);
  const DlTensor out = {tensor->data,
                        tensor->device_type == LYC_DEVICE_CUDA ? kDlCuda : kDlCpu,
                        tensor->device_index,
                        tensor->ndim,
                        kViewTypes[type].dl_code,
                        kViewTypes[type].dl_bits,
                        1,
                        made->shape,
                        made->strides,
                        0};
  if (versioned) {
    const DlManagedVersioned managed = {1, 1, made, export_delete_versioned, read_only ? kDlReadOnly : 0, out};
    made->managed.versioned = managed;
  } else {
    const DlManagedLegacy managed = {out, made, export_delete_legacy};
    made->managed.legacy = managed;
  }
  Py_INCREF(view->owner);
  made->owner = view->owner;
  PyObject *capsule = PyCapsule_New(&made->managed, versioned ? "dltensor_versioned" : "dltensor", export_drop_capsule);
  if (!capsule) export_free(made);
  return capsule;
}

#endif /* LYCORIS_PYTHON_VIEW_H_ */
