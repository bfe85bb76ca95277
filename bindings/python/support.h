/* What the typemaps of patterns.i call. */
#ifndef LYCORIS_PYTHON_SUPPORT_H_
#define LYCORIS_PYTHON_SUPPORT_H_

#include "view.h"

/* ---- Errors ------------------------------------------------------------------------------------------------------ */

/* 1 with a Python error set, unless all went well. An exception thrown by a callback wins over what the library made
 * of it. */
static int support_failed(lyc_status status) {
  if (PyErr_Occurred()) return 1;
  if (status == LYC_OK) return 0;
  lyc_error_info info;
  lyc_error_info_init(&info, sizeof info);
  const int native_code = lyc_last_error_info(&info) == LYC_OK ? info.native_code : 0;
  PyObject *module = PyImport_ImportModule("liblycoris.errors");
  PyObject *error =
      module ? PyObject_CallMethod(module, "from_status", "isi", (int)status, lyc_last_error_message(), native_code)
             : NULL;
  if (error) PyErr_SetObject((PyObject *)Py_TYPE(error), error);
  Py_XDECREF(error);
  Py_XDECREF(module);
  return 1;
}

/* ---- Results ----------------------------------------------------------------------------------------------------- */

/* None, value, (value, value), ... SWIG's own helper differs between its versions. */
static PyObject *support_append(PyObject *result, PyObject *value) {
  if (!result || !value) {
    Py_XDECREF(result);
    Py_XDECREF(value);
    return NULL;
  }
  if (result == Py_None) {
    Py_DECREF(result);
    return value;
  }
  if (!PyTuple_Check(result)) return Py_BuildValue("(NN)", result, value);
  PyObject *tail = Py_BuildValue("(N)", value), *longer = tail ? PySequence_Concat(result, tail) : NULL;
  Py_XDECREF(tail);
  Py_DECREF(result);
  return longer;
}

static PyObject *support_text(const char *text) {
  if (!text) Py_RETURN_NONE;
  return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "surrogateescape");
}

static PyObject *support_integers(const int64_t *values, int32_t count) {
  PyObject *tuple = PyTuple_New(count);
  for (int32_t i = 0; tuple && i < count; ++i) {
    PyObject *value = PyLong_FromLongLong(values[i]);
    if (!value || PyTuple_SetItem(tuple, i, value) != 0) {
      Py_DECREF(tuple);
      return NULL;
    }
  }
  return tuple;
}

/* ---- Lists ------------------------------------------------------------------------------------------------------- */

/* 0 with a Python error set for what has no length. */
static size_t support_length(PyObject *sequence) {
  const Py_ssize_t length = PySequence_Size(sequence);
  return length < 0 ? 0 : (size_t)length;
}

static void *support_array(size_t count, size_t size) {
  if (PyErr_Occurred()) return NULL;
  void *array = calloc(count + 1, size); /* never an empty block, whose address may be NULL */
  if (!array) PyErr_NoMemory();
  return array;
}

static int64_t support_integer_at(PyObject *sequence, size_t index) {
  PyObject *item = PySequence_GetItem(sequence, (Py_ssize_t)index);
  const int64_t value = item ? PyLong_AsLongLong(item) : -1;
  Py_XDECREF(item);
  return value;
}

/* UTF-8 of item `index` as bytes; `column` >= 0 takes that part of a tuple. NULL with an error set. */
static PyObject *support_bytes_at(PyObject *sequence, size_t index, Py_ssize_t column) {
  PyObject *item = PySequence_GetItem(sequence, (Py_ssize_t)index);
  if (item && column >= 0) {
    PyObject *part = PySequence_GetItem(item, column);
    Py_DECREF(item);
    item = part;
  }
  if (!item || item == Py_None) return item;
  PyObject *bytes = PyUnicode_Check(item) ? PyUnicode_AsEncodedString(item, "utf-8", "surrogateescape") : NULL;
  if (!bytes && !PyErr_Occurred()) PyErr_Format(PyExc_TypeError, "expected str, not %R", (PyObject *)Py_TYPE(item));
  Py_DECREF(item);
  return bytes;
}

/* `rows` rows of `row_size` bytes, each beginning with a `const char *`, and behind them the texts: one block. */
static void *support_text_table(PyObject *sequence, size_t row_size, Py_ssize_t column) {
  const size_t rows = support_length(sequence);
  size_t used = (rows + 1) * row_size;
  char *block = support_array(rows + 1, row_size);
  for (size_t i = 0; block && i < rows; ++i) {
    PyObject *bytes = support_bytes_at(sequence, i, column);
    char *text = NULL;
    Py_ssize_t length = 0;
    char *larger = NULL;
    if (bytes && (bytes == Py_None || PyBytes_AsStringAndSize(bytes, &text, &length) == 0))
      larger = realloc(block, used + (size_t)length + 1);
    if (!larger) {
      if (!PyErr_Occurred()) PyErr_NoMemory();
      free(block);
      Py_XDECREF(bytes);
      return NULL;
    }
    block = larger;
    /* Offsets for now: the block may still move. 0 = no text. */
    *(size_t *)(block + i * row_size) = text ? used : 0;
    if (text) memcpy(block + used, text, (size_t)length + 1);
    used += text ? (size_t)length + 1 : 0;
    Py_DECREF(bytes);
  }
  for (size_t i = 0; block && i < rows; ++i) {
    const size_t offset = *(size_t *)(block + i * row_size);
    *(char **)(block + i * row_size) = offset ? block + offset : NULL;
  }
  return block;
}

/* A list of str as one block, to be freed as one. */
static const char *const *support_texts(PyObject *sequence) {
  return support_text_table(sequence, sizeof(const char *), -1);
}

/* A list of (pattern or None, adapter_index, multiplier). */
static const lyc_multiplier_rule *support_multipliers(PyObject *sequence) {
  lyc_multiplier_rule *rules = support_text_table(sequence, sizeof(lyc_multiplier_rule), 0);
  const size_t count = support_length(sequence);
  for (size_t i = 0; rules && i < count; ++i) {
    PyObject *item = PySequence_GetItem(sequence, (Py_ssize_t)i), *pattern = NULL;
    const int parsed = item && PyArg_ParseTuple(item, "Oif", &pattern, &rules[i].adapter_index, &rules[i].multiplier);
    Py_XDECREF(item);
    if (!parsed) {
      free(rules);
      return NULL;
    }
  }
  return rules;
}

/* ---- Tensors ------------------------------------------------------------------------------------------------------
 */

static View *support_slice(const View *view, int32_t axis, int64_t begin, int64_t length) {
  View *part = view_new();
  if (!part) return NULL;
  if (support_failed(lyc_tensor_slice(&view->tensor, axis, begin, length, &part->tensor))) {
    view_free(part);
    return NULL;
  }
  Py_XINCREF(view->owner);
  part->owner = view->owner;
  return part;
}

/* ---- Callbacks -----------------------------------------------------------------------------------------------------
 */

/* Calls a Python function(done, total). True cancels; so do an exception, which stays pending until the call is back
 * in Python, and Ctrl-C. */
static int32_t support_progress(void *function, uint64_t done_bytes, uint64_t total_bytes) {
  const PyGILState_STATE state = PyGILState_Ensure();
  int cancel = PyErr_CheckSignals() != 0;
  if (!cancel && function != Py_None) {
    PyObject *answer = PyObject_CallFunction((PyObject *)function, "KK", (unsigned long long)done_bytes,
                                             (unsigned long long)total_bytes);
    cancel = !answer || PyObject_IsTrue(answer) != 0;
    Py_XDECREF(answer);
  }
  PyGILState_Release(state);
  return cancel;
}

#endif /* LYCORIS_PYTHON_SUPPORT_H_ */
