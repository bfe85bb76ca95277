// The C functions as tests use them: handles that release themselves, calls that must succeed, files as tensors.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <filesystem>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <string>
#include <unistd.h>
#include <vector>

#include "base/dtype.hpp"
#include "lycoris.h"
#include "support/random.hpp"

namespace lyc::test {

template <typename T, void (*Release)(T *)>
struct Releaser {
  void operator()(T *object) const { Release(object); }
};
using Context = std::unique_ptr<lyc_context, Releaser<lyc_context, lyc_context_release>>;
using File = std::unique_ptr<lyc_file, Releaser<lyc_file, lyc_file_release>>;
using Writer = std::unique_ptr<lyc_writer, Releaser<lyc_writer, lyc_writer_release>>;
using Module = std::unique_ptr<lyc_module, Releaser<lyc_module, lyc_module_release>>;
using Batch = std::unique_ptr<lyc_batch, Releaser<lyc_batch, lyc_batch_release>>;
using Network = std::unique_ptr<lyc_network, Releaser<lyc_network, lyc_network_release>>;
using Report = std::unique_ptr<lyc_report, Releaser<lyc_report, lyc_report_release>>;

/// The call must succeed; its message is shown otherwise.
inline void ok(lyc_status status) { ASSERT_EQ(status, LYC_OK) << lyc_last_error_message(); }

/// The call must fail like this, with all of these words in its message.
inline void fails(lyc_status got, lyc_status expected, const std::vector<std::string> &words = {}) {
  const std::string message = lyc_last_error_message();
  EXPECT_EQ(got, expected) << lyc_status_name(got) << ": " << message;
  for (const std::string &word : words)
    EXPECT_NE(message.find(word), std::string::npos) << "'" << word << "' is not in: " << message;
}

/// What tests of weights run on: the environment variable LYC_TEST_DEVICE, "cpu" (the default) or "cuda". There,
/// weights and bound parameters are the device's memory.
inline lyc_device_type tested_device() {
  static const char *const name = std::getenv("LYC_TEST_DEVICE");
  return name && std::strcmp(name, "cuda") == 0 ? LYC_DEVICE_CUDA : LYC_DEVICE_CPU;
}

inline lyc_context_options context_options(int threads = 1) {
  lyc_context_options options;
  lyc_context_options_init(&options, sizeof options);
  options.device_type = tested_device();
  options.threads = threads;
  return options;
}

inline Context make_context(int threads = 1) {
  const lyc_context_options options = context_options(threads);
  lyc_context *context = nullptr;
  ok(lyc_context_create(&options, &context));
  return Context(context);
}

/// A tensor with its memory, F32 or any 16-bit type, contiguous unless the descriptor is changed.
struct Tensor {
  std::vector<int64_t> shape;
  lyc_dtype dtype = LYC_DTYPE_F32;
  std::vector<unsigned char> bytes;
  lyc_layout layout = LYC_LAYOUT_OIHW;

  Tensor() = default;
  Tensor(std::vector<int64_t> extents, lyc_dtype type) : shape(std::move(extents)), dtype(type) {
    bytes.resize(static_cast<std::size_t>(count()) * dtype_size(dtype));
  }

  int64_t count() const {
    int64_t product = 1;
    for (int64_t extent : shape) product *= extent;
    return product;
  }
  lyc_tensor view() const {
    static unsigned char nothing[16];
    lyc_tensor tensor;
    ok(lyc_tensor_init(&tensor, bytes.empty() ? nothing : const_cast<unsigned char *>(bytes.data()), dtype,
                       shape.data(), shape.size()));
    tensor.layout = layout;
    return tensor;
  }
  double get(int64_t index) const {
    const unsigned char *element = bytes.data() + index * static_cast<int64_t>(dtype_size(dtype));
    float value;
    std::uint16_t half;
    if (dtype == LYC_DTYPE_F32) return std::memcpy(&value, element, 4), value;
    std::memcpy(&half, element, 2);
    return dtype == LYC_DTYPE_BF16 ? bf16_to_float(half) : f16_to_float(half);
  }
  void set(int64_t index, double number) {
    unsigned char *element = bytes.data() + index * static_cast<int64_t>(dtype_size(dtype));
    const auto value = static_cast<float>(number);
    const std::uint16_t half = dtype == LYC_DTYPE_BF16 ? float_to_bf16(value) : float_to_f16(value);
    dtype == LYC_DTYPE_F32 ? std::memcpy(element, &value, 4) : std::memcpy(element, &half, 2);
  }
  std::vector<double> values() const {
    std::vector<double> all(static_cast<std::size_t>(count()));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = get(static_cast<int64_t>(i));
    return all;
  }
  Tensor as(lyc_dtype type) const {
    Tensor result(shape, type);
    result.layout = layout;
    for (int64_t i = 0; i < count(); ++i) result.set(i, get(i));
    return result;
  }
};

inline std::vector<double> difference(const std::vector<double> &a, const std::vector<double> &b) {
  std::vector<double> result(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) result[i] = a[i] - b[i];
  return result;
}

using Tensors = std::map<std::string, Tensor>;

/// Until the device has done what was enqueued. The driver is asked, because the back end's runtime is its own.
inline void wait_for_device() {
  static void *const driver = tested_device() == LYC_DEVICE_CPU ? nullptr : dlopen("libcuda.so.1", RTLD_NOW);
  if (!driver) return;  // what stands for a device without one (../cuda/heap_device.cpp) has done its work
  const auto call = [](const char *name, auto... arguments) {
    return reinterpret_cast<int (*)(decltype(arguments)...)>(dlsym(driver, name))(arguments...);
  };
  void *context = nullptr;
  if (call("cuInit", 0u) != 0) return;  // nor has this machine any
  ASSERT_EQ(call("cuDevicePrimaryCtxRetain", &context, 0), 0);
  ASSERT_EQ(call("cuCtxPushCurrent_v2", context), 0);
  EXPECT_EQ(call("cuCtxSynchronize"), 0);
  EXPECT_EQ(call("cuCtxPopCurrent_v2", &context), 0);
  EXPECT_EQ(call("cuDevicePrimaryCtxRelease_v2", 0), 0);
}

/// A tensor in the memory of the tested device; on the CPU a copy. The library's own parameters serve as that memory:
/// it has no other functions that give any.
class DeviceTensor {
 public:
  explicit DeviceTensor(const Tensor &host) : host_(host) {
    if (tested_device() == LYC_DEVICE_CPU || host.bytes.empty()) return;
    static lyc_context *const context = make_context().release();  // outlives every test
    lyc_module_options options;
    lyc_module_options_init(&options, sizeof options);
    options.algo = LYC_ALGO_FULL;
    options.ndim = 1;
    options.shape[0] = static_cast<int64_t>((host.bytes.size() + 3) / 4);
    lyc_module *module = nullptr;
    ok(lyc_module_create(context, &options, &module));
    memory_.reset(module);
    ok(lyc_module_get_param(module, 0, nullptr, &whole_));
    write(host);
  }

  lyc_tensor view() const {
    lyc_tensor tensor = host_.view();
    if (!memory_) return tensor;
    tensor.data = whole_.data;
    tensor.device_type = tested_device();
    return tensor;
  }
  void write(const Tensor &values) {
    host_ = values;
    if (!memory_) return;
    Tensor words = memory_words();
    std::copy(values.bytes.begin(), values.bytes.end(), words.bytes.begin());
    const lyc_tensor view = words.view();
    ok(lyc_module_write_param(memory_.get(), "diff", &view));
  }
  Tensor read() const {
    if (!memory_) return host_;
    wait_for_device();
    const Tensor words = memory_words();
    const lyc_tensor view = words.view();
    ok(lyc_module_read_param(memory_.get(), "diff", &view));
    Tensor values = host_;
    std::copy_n(words.bytes.begin(), values.bytes.size(), values.bytes.begin());
    return values;
  }
  std::vector<double> values() const { return read().values(); }

 private:
  Tensor memory_words() const { return Tensor({whole_.shape, whole_.shape + whole_.ndim}, LYC_DTYPE_F32); }

  Tensor host_;
  Module memory_;
  lyc_tensor whole_{};
};

/// A weight that a call only reads, for as long as the call takes: lyc_x(..., on_device(base).get(), ...).
struct Borrowed {
  explicit Borrowed(const Tensor &host) : tensor(host), view(tensor.view()) {}
  const lyc_tensor *get() const { return &view; }
  DeviceTensor tensor;
  lyc_tensor view;
};
inline Borrowed on_device(const Tensor &host) { return Borrowed(host); }

/// All tensors of a file, in any arithmetic type; the metadata under its keys.
inline Tensors read_file(const std::string &path, std::map<std::string, std::string> *metadata = nullptr) {
  lyc_file *handle = nullptr;
  ok(lyc_file_open(path.c_str(), &handle));
  const File file(handle);
  Tensors tensors;
  std::size_t count = 0;
  ok(lyc_file_tensor_count(handle, &count));
  for (std::size_t i = 0; i < count; ++i) {
    const char *name = nullptr;
    lyc_tensor info;
    ok(lyc_file_get_tensor(handle, i, &name, &info));
    Tensor tensor(std::vector<int64_t>(info.shape, info.shape + info.ndim), info.dtype);
    ok(lyc_file_read_tensor(handle, i, tensor.bytes.data(), tensor.bytes.size()));
    tensors[name] = std::move(tensor);
  }
  ok(lyc_file_metadata_count(handle, &count));
  for (std::size_t i = 0; metadata && i < count; ++i) {
    const char *key = nullptr, *value = nullptr;
    ok(lyc_file_get_metadata(handle, i, &key, &value));
    (*metadata)[key] = value;
  }
  return tensors;
}

inline void write_file(const std::string &path, const Tensors &tensors,
                       const std::map<std::string, std::string> &metadata = {}) {
  lyc_writer *handle = nullptr;
  ok(lyc_writer_create(path.c_str(), &handle));
  const Writer writer(handle);
  for (const auto &[key, value] : metadata) ok(lyc_writer_set_metadata(handle, key.c_str(), value.c_str()));
  for (const auto &[name, tensor] : tensors) {
    const lyc_tensor view = tensor.view();
    ok(lyc_writer_add(handle, name.c_str(), &view));
  }
  ok(lyc_writer_finish(handle));
}

/// A module from tensors by suffix.
inline Module make_module(lyc_context *context, const Tensors &factors, const lyc_module_options *options = nullptr) {
  std::vector<const char *> names;
  std::vector<lyc_tensor> views;
  for (const auto &[name, tensor] : factors) {
    names.push_back(name.c_str());
    views.push_back(tensor.view());
  }
  lyc_module *module = nullptr;
  ok(lyc_module_create_from_tensors(context, options, names.data(), views.data(), names.size(), &module));
  return Module(module);
}

/// Random values of any shape.
inline Tensor random_tensor(std::vector<int64_t> shape, std::uint64_t seed, lyc_dtype dtype = LYC_DTYPE_F32) {
  Tensor tensor(std::move(shape), dtype);
  Random random(seed);
  for (int64_t i = 0; i < tensor.count(); ++i) tensor.set(i, random.normal());
  return tensor;
}

/// Factors of a LoRA of rank 3 for a linear layer, with whatever goes on top.
inline Tensors lora(int64_t out, int64_t in, std::uint64_t seed = 1, Tensors more = {}) {
  more["lora_up.weight"] = random_tensor({out, 3}, seed);
  more["lora_down.weight"] = random_tensor({3, in}, seed + 1);
  return more;
}

inline lyc_module_info info_of(const Module &module) {
  lyc_module_info info;
  lyc_module_info_init(&info, sizeof info);
  ok(lyc_module_get_info(module.get(), &info));
  return info;
}

/// W + dW of one module, in place.
inline Tensor merged(const Module &module, const Tensor &base, float multiplier = 1, const lyc_exec *exec = nullptr) {
  const DeviceTensor weight(base);
  const lyc_tensor view = weight.view();
  ok(lyc_merge(module.get(), &view, multiplier, nullptr, exec));
  return weight.read();
}

/// A folder that goes away with the object.
class Folder {
 public:
  Folder() : path_((std::filesystem::temp_directory_path() / "lycoris_test_XXXXXX").string()) {
    if (!mkdtemp(path_.data())) std::abort();
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string &name) const { return path_ + "/" + name; }
  const std::string &path() const { return path_; }
  std::vector<std::string> names() const {
    std::vector<std::string> list;
    for (const auto &entry : std::filesystem::directory_iterator(path_))
      list.push_back(entry.path().filename().string());
    std::sort(list.begin(), list.end());
    return list;
  }

 private:
  std::string path_;
};

/// A path of the test data. The environment says where they are on a machine that did not build this.
inline std::string test_data(const std::string &path) {
  const char *elsewhere = std::getenv("LYCORIS_TEST_DATA");
  return (elsewhere ? elsewhere : std::string(LYCORIS_TEST_DATA)) + "/" + path;
}

/// Names of the entries of a folder of test data, sorted.
inline std::vector<std::string> data_cases(const std::string &folder) {
  std::vector<std::string> list;
  for (const auto &entry : std::filesystem::directory_iterator(test_data(folder)))
    list.push_back(entry.path().stem().string());
  std::sort(list.begin(), list.end());
  return list;
}

}  // namespace lyc::test
