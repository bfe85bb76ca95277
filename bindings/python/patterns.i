/*
 * Python: one typemap for each pattern of ../lycoris.i. The result is the flat module liblycoris.native; the package
 * liblycoris is written by hand on top of it and is what people use.
 */
%begin %{
#define PY_SSIZE_T_CLEAN
%}

%{
#include "support.h"
%}

/* Short calls keep the interpreter's lock; what may read files, compute or wait lets others run. */
%nothread;
%thread lyc_context_create;
%thread lyc_file_open;
%thread lyc_file_read_tensor;
%thread lyc_writer_finish;
%thread lyc_module_create_from_tensors;
%thread lyc_get_diff_weight;
%thread lyc_merge;
%thread lyc_unmerge;
%thread lyc_forward;
%thread lyc_forward_fused;
%thread lyc_batch_create;
%thread lyc_batch_run;
%thread lyc_network_load;
%thread lyc_batch_create_from_networks;
%thread lyc_merge_files;
%thread lyc_inspect_file;

/* ---- Names ----------------------------------------------------------------------------------------------------- */

%rename("%(strip:[lyc_])s", %$isfunction) "";
%rename("%(strip:[LYC_])s", %$isenumitem) "";
%rename("%(strip:[LYC_])s", %$isconstant) "";
%rename("$ignore", regextarget=1, %$isenumitem) "_FORCE_INT32_$";
%ignore struct_size;
%ignore reserved_;
%ignore LYC_API;

/* Filled by View, which also owns what it shows. */
%ignore lyc_tensor_init;
%ignore lyc_tensor_slice;

/* ---- Status: an exception -------------------------------------------------------------------------------------- */

%define LYC_STATUS(T, NAME)
%typemap(out) T {
  if (support_failed($1)) SWIG_fail;
  Py_INCREF(Py_None);
  $result = Py_None;
}
%typemap(out) T status "$result = PyLong_FromLong($1);" /* a field, not a result */
%enddef

%define LYC_ENUM(T, NAME)
%enddef

/* ---- Results: what is left after the status, as one value or a tuple ---------------------------------------------- */

%typemap(in, numinputs=0) size_t *out_count (size_t made = 0), size_t *out_index (size_t made = 0) "$1 = &made;"
%typemap(argout) size_t *out_count, size_t *out_index "$result = support_append($result, PyLong_FromSize_t(*$1));"
%typemap(in, numinputs=0) uint64_t *out_size (uint64_t made = 0) "$1 = &made;"
%typemap(argout) uint64_t *out_size "$result = support_append($result, PyLong_FromUnsignedLongLong(*$1));"
%typemap(in, numinputs=0) int32_t *out_count (int32_t made = 0) "$1 = &made;"
%typemap(argout) int32_t *out_count "$result = support_append($result, PyLong_FromLong(*$1));"

%typemap(in, numinputs=0) const char **out_name (const char *made = NULL),
                          const char **out_key (const char *made = NULL),
                          const char **out_value (const char *made = NULL) "$1 = ($1_ltype)&made;"
%typemap(argout) const char **out_name, const char **out_key, const char **out_value
    "$result = support_append($result, support_text(*$1));"
%typemap(out) const char * "$result = support_text($1);"

/* Most texts fit the first time; the others are asked for again with their length. */
%typemap(in, numinputs=0) (char *buffer, size_t capacity, size_t *out_length) (char small[512], size_t length = 0) {
  $1 = small;
  $2 = sizeof small;
  $3 = &length;
}
%typemap(argout) (char *buffer, size_t capacity, size_t *out_length) "$result = support_append($result, support_text($1));"
%typemap(freearg) (char *buffer, size_t capacity, size_t *out_length) "if ($1 != small$argnum) free($1);"
%define LYC_TEXT(FUNCTION, INPUTS, BUFFER, CAPACITY, LENGTH)
%feature("action") FUNCTION %{
  result = FUNCTION(INPUTS, BUFFER, CAPACITY, LENGTH);
  if (result == LYC_OK && *LENGTH >= CAPACITY) {
    char *large = malloc(*LENGTH + 1);
    if (large) {
      CAPACITY = *LENGTH + 1;
      BUFFER = large;
      result = FUNCTION(INPUTS, BUFFER, CAPACITY, LENGTH);
    }
  }
%}
%enddef
LYC_TEXT(lyc_backend_explain, arg1, arg2, arg3, arg4)
LYC_TEXT(lyc_batch_explain, arg1, arg2, arg3, arg4)
LYC_TEXT(lyc_forward_explain, %arg(arg1, arg2, arg3, arg4, arg5, arg6), arg7, arg8, arg9)

/* ---- Handles: proxies that own one reference --------------------------------------------------------------------- */

%define LYC_HANDLE(T, NAME)
%ignore T##_retain;
%ignore T##_release;
%rename(NAME) T;
%nodefaultctor T;
%nodefaultdtor T;
struct T {};
%extend T {
  ~T() { T##_release($self); }
}
%typemap(in, numinputs=0) T ** (T *made = NULL) "$1 = &made;"
%typemap(argout) T ** "$result = support_append($result, SWIG_NewPointerObj(*$1, $descriptor(T *), SWIG_POINTER_OWN));"
%enddef

%typemap(in) (lyc_network *const *networks, size_t network_count) {
  $2 = support_length($input);
  $1 = support_array($2, sizeof(lyc_network *));
  if (!$1) SWIG_fail;
  for (size_t i = 0; i < $2; ++i) {
    PyObject *item = PySequence_GetItem($input, (Py_ssize_t)i);
    void *network = NULL;
    const int converted = item ? SWIG_ConvertPtr(item, &network, $descriptor(lyc_network *), 0) : SWIG_ERROR;
    Py_XDECREF(item);
    if (!SWIG_IsOK(converted)) SWIG_exception_fail(SWIG_TypeError, "networks must be a list of Network");
    ((lyc_network **)$1)[i] = network;
  }
}
%typemap(argout) (lyc_network *const *networks, size_t network_count) ""
%typemap(freearg) (lyc_network *const *networks, size_t network_count) "free((void *)$1);"

/* ---- Tensors ------------------------------------------------------------------------------------------------------- */

%define LYC_STRUCT(T, NAME)
%ignore T;
%enddef

%newobject View::zeros;
%newobject View::section;
%typemap(out) View *, struct View * {
  if (!$1) SWIG_fail;
  $result = SWIG_NewPointerObj($1, $descriptor, $owner);
}
%nodefaultctor View;
typedef struct View {
  %extend {
    /* View(array, layout, stream) borrows; zeros(shape, dtype, layout) allocates. */
    View(PyObject *array, lyc_layout layout, PyObject *stream) { return view_borrow(array, layout, stream); }
    ~View() { view_free($self); }
    static View *zeros(PyObject *shape, lyc_dtype dtype, lyc_layout layout) { return view_zeros(shape, dtype, layout); }
    View *section(int32_t axis, int64_t begin, int64_t length) { return support_slice($self, axis, begin, length); }
    PyObject *dlpack(int versioned) { return view_to_dlpack($self, versioned); }
    PyObject *shape() { return support_integers($self->tensor.shape, $self->tensor.ndim); }
    PyObject *strides() { return support_integers($self->tensor.strides, $self->tensor.ndim); }
    /* The bytearray behind zeros(), for calls that fill memory. */
    PyObject *memory() {
      Py_INCREF($self->owner);
      return $self->owner;
    }
    PyObject *address() { return PyLong_FromVoidPtr($self->tensor.data); }
    int dtype() { return $self->tensor.dtype; }
    int layout() { return $self->tensor.layout; }
    int read_only() { return ($self->tensor.flags & LYC_TENSOR_READ_ONLY) != 0; }
    int device_type() { return $self->tensor.device_type; }
    int device_index() { return $self->tensor.device_index; }
  }
} View;

/* A View or None. Whether it may be written to is the library's to check. */
%typemap(in) const lyc_tensor * (void *view = NULL) {
  if (!SWIG_IsOK(SWIG_ConvertPtr($input, &view, $descriptor(View *), 0)))
    SWIG_exception_fail(SWIG_TypeError, "$1_name must be a View or None");
  $1 = view ? &((View *)view)->tensor : NULL;
}
/* A View without memory: what a tensor is like. */
%typemap(in, numinputs=0) lyc_tensor *out_tensor {
  View *made = view_new();
  if (!made) SWIG_fail;
  $1 = &made->tensor;
}
%typemap(argout) lyc_tensor *out_tensor {
  $result = support_append($result, SWIG_NewPointerObj($1, $descriptor(View *), SWIG_POINTER_OWN));
  $1 = NULL;
}
%typemap(freearg) lyc_tensor *out_tensor "view_free((View *)$1);" /* the tensor is a View's first member */

/* A dict of Views. */
%typemap(in) (const char *const *names, const lyc_tensor *tensors, size_t tensor_count) {
  PyObject *keys = PyMapping_Keys($input), *values = PyMapping_Values($input);
  $1 = NULL;
  $2 = NULL;
  $3 = keys ? support_length(keys) : 0;
  if (keys && values) {
    $1 = ($1_ltype)support_texts(keys);
    $2 = support_array($3, sizeof(lyc_tensor));
  }
  int complete = $1 && $2;
  for (size_t i = 0; complete && i < $3; ++i) {
    PyObject *item = PySequence_GetItem(values, (Py_ssize_t)i);
    void *view = NULL;
    complete = item && SWIG_IsOK(SWIG_ConvertPtr(item, &view, $descriptor(View *), 0)) && view;
    Py_XDECREF(item);
    if (complete)
      $2[i] = ((View *)view)->tensor;
    else
      PyErr_SetString(PyExc_TypeError, "tensors must be a dict of Views");
  }
  Py_XDECREF(keys);
  Py_XDECREF(values);
  if (!complete) SWIG_fail;
}
%typemap(freearg) (const char *const *names, const lyc_tensor *tensors, size_t tensor_count) "free((void *)$1); free($2);"

/* A list of (module, base, out, row_begin, row_count, multiplier_index, part); base and out are Views or None. */
%typemap(in) (const lyc_batch_item *items, size_t item_count) {
  $2 = support_length($input);
  $1 = support_array($2, sizeof(lyc_batch_item));
  if (!$1) SWIG_fail;
  for (size_t i = 0; i < $2; ++i) {
    PyObject *item = PySequence_GetItem($input, (Py_ssize_t)i), *parts[3] = {NULL, NULL, NULL};
    void *module = NULL, *base = NULL, *out = NULL;
    long long row_begin = 0, row_count = 0;
    int multiplier_index = 0, part = 0;
    const int converted =
        item &&
        PyArg_ParseTuple(item, "OOOLLii", &parts[0], &parts[1], &parts[2], &row_begin, &row_count, &multiplier_index,
                         &part) &&
        SWIG_IsOK(SWIG_ConvertPtr(parts[0], &module, $descriptor(lyc_module *), 0)) &&
        SWIG_IsOK(SWIG_ConvertPtr(parts[1], &base, $descriptor(View *), 0)) &&
        SWIG_IsOK(SWIG_ConvertPtr(parts[2], &out, $descriptor(View *), 0));
    Py_XDECREF(item); /* the caller's list keeps it */
    if (!converted) {
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "an item is (Module, View, View, int, int, int, int)");
      SWIG_fail;
    }
    lyc_batch_item *to = (lyc_batch_item *)&$1[i];
    to->module = module;
    to->base = base ? &((View *)base)->tensor : NULL;
    to->out = out ? &((View *)out)->tensor : NULL;
    to->row_begin = row_begin;
    to->row_count = row_count;
    to->multiplier_index = multiplier_index;
    to->part = (lyc_part)part;
  }
}
%typemap(freearg) (const lyc_batch_item *items, size_t item_count) "free((void *)$1);"

/* ---- Memory and lists ----------------------------------------------------------------------------------------------- */

%typemap(in) (const void *data, size_t size) (Py_buffer buffer = {0}) {
  if (PyObject_GetBuffer($input, &buffer, PyBUF_C_CONTIGUOUS) != 0) SWIG_fail;
  $1 = buffer.buf;
  $2 = (size_t)buffer.len;
}
%typemap(in) (void *data, size_t size) (Py_buffer buffer = {0}) {
  if (PyObject_GetBuffer($input, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) != 0) SWIG_fail;
  $1 = buffer.buf;
  $2 = (size_t)buffer.len;
}
%typemap(freearg) (const void *data, size_t size), (void *data, size_t size) "PyBuffer_Release(&buffer$argnum);"

%typemap(in) (const char *const *adapter_paths, size_t adapter_count) {
  $2 = support_length($input);
  $1 = ($1_ltype)support_texts($input);
  if (!$1) SWIG_fail;
}
%typemap(freearg) (const char *const *adapter_paths, size_t adapter_count) "free((void *)$1);"

/* ---- Structs that may grow -------------------------------------------------------------------------------------------- */

/* As an argument they are made here, filled by the library, and returned. */
%define LYC_INFO(T, NAME)
%ignore T##_init;
%rename(NAME) T;
%nodefaultctor T;
%typemap(in, numinputs=0) T *info {
  $1 = calloc(1, sizeof(T));
  if (!$1) SWIG_exception_fail(SWIG_MemoryError, "out of memory");
  T##_init($1, sizeof(T));
}
%typemap(argout) T *info {
  $result = support_append($result, SWIG_NewPointerObj($1, $descriptor(T *), SWIG_POINTER_OWN));
  $1 = NULL;
}
%typemap(freearg) T *info "free($1);"
%enddef

%define LYC_OPTIONS(T, NAME)
%ignore T##_init;
%rename(NAME) T;
%extend T {
  T() {
    T *made = calloc(1, sizeof *made);
    if (made) T##_init(made, sizeof *made);
    return made;
  }
  ~T() { free($self); }
}
%enddef

/* Lists inside of structs belong to the struct. */
%define LYC_TEXT_LIST(T, TEXTS, COUNT)
%ignore T::TEXTS;
%ignore T::COUNT;
%extend T {
  lyc_status set_##TEXTS(PyObject *texts) {
    free((void *)$self->TEXTS);
    $self->TEXTS = support_texts(texts);
    $self->COUNT = $self->TEXTS ? support_length(texts) : 0;
    return LYC_OK; /* a Python error is seen by the status typemap */
  }
}
%enddef
LYC_TEXT_LIST(lyc_match_options, includes, include_count)
LYC_TEXT_LIST(lyc_match_options, excludes, exclude_count)
LYC_TEXT_LIST(lyc_merge_options, includes, include_count)
LYC_TEXT_LIST(lyc_merge_options, excludes, exclude_count)

%ignore lyc_merge_options::multipliers;
%ignore lyc_merge_options::multiplier_count;
%ignore lyc_merge_options::progress;
%ignore lyc_merge_options::user_data;
%extend lyc_merge_options {
  lyc_status set_multipliers(PyObject *rules) {
    free((void *)$self->multipliers);
    $self->multipliers = support_multipliers(rules);
    $self->multiplier_count = $self->multipliers ? support_length(rules) : 0;
    return LYC_OK;
  }
  /* The caller keeps `function` for as long as the options are in use. None: only Ctrl-C cancels. */
  void set_progress(PyObject *function) {
    $self->progress = support_progress;
    $self->user_data = function;
  }
}
%extend lyc_module_options {
  lyc_status set_shape(PyObject *shape) {
    const size_t count = support_length(shape);
    if (count > sizeof $self->shape / sizeof $self->shape[0])
      PyErr_SetString(PyExc_ValueError, "a weight has at most 5 dimensions");
    $self->ndim = (int32_t)count;
    for (size_t i = 0; i < count && !PyErr_Occurred(); ++i) $self->shape[i] = support_integer_at(shape, i);
    return LYC_OK;
  }
}
%ignore lyc_module_options::ndim;
%ignore lyc_module_options::shape;

/* Allocators are for C programs: calling back into Python for each block would cost more than it gives. */
%ignore lyc_context_options::allocate;
%ignore lyc_context_options::deallocate;
%ignore lyc_context_options::user_data;

/* A stream: None or its number. Workspaces are left to the context. */
%define LYC_EXEC(T, NAME)
%ignore T;
%ignore T##_init;
%typemap(in) const T *exec (T made) {
  T##_init(&made, sizeof made);
  if ($input != Py_None) made.stream = PyLong_AsVoidPtr($input);
  if (PyErr_Occurred()) SWIG_fail;
  $1 = &made;
}
%enddef
