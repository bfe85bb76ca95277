// Every function called wrongly: a status and a message that names what and why, and nothing else happens.
#include <gmock/gmock.h>
#include <thread>

#include "capi/api.hpp"

namespace lyc::test {
namespace {

constexpr auto kInvalid = LYC_ERROR_INVALID_ARGUMENT;

template <typename T>
T *stale() {  // what an out parameter holds before the call, to see that it is cleared
  static char something[8];
  return reinterpret_cast<T *>(something);
}

class Misuse : public testing::Test {
 protected:
  void SetUp() override {
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
  }
  void TearDown() override {
    EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  }
  lyc_status merge(const lyc_tensor *base, const lyc_tensor *out = nullptr) {
    return lyc_merge(module_.get(), base, 1, out, nullptr);
  }
  Context context_ = make_context();
  Module module_ = make_module(context_.get(), lora(4, 6));
  Tensor weight_ = random_tensor({4, 6}, 9);
};

TEST_F(Misuse, NullHandlesAndOutputs) {
  lyc_context *c = context_.get();
  lyc_module *m = module_.get();
  const lyc_tensor w = weight_.view();
  lyc_tensor tensor;
  size_t n = 0;
  uint64_t size = 0;
  int32_t count = 0;
  char text[8];
  const char *name = "x";
  const int64_t shape[] = {1};
  lyc_module_options options;
  lyc_module_options_init(&options, sizeof options);
  const lyc_batch_item item{};
  struct Call {
    const char *what;
    lyc_status status;
    std::string message;
  };
  std::vector<Call> calls;
  const auto add = [&](const char *what, lyc_status status) {
    calls.push_back({what, status, lyc_last_error_message()});
  };
#define CALL(what, ...) add(what, __VA_ARGS__)
  CALL("out_tensor", lyc_tensor_init(nullptr, nullptr, LYC_DTYPE_F32, shape, 1));
  CALL("shape", lyc_tensor_init(&tensor, nullptr, LYC_DTYPE_F32, nullptr, 1));
  CALL("tensor", lyc_tensor_slice(nullptr, 0, 0, 1, &tensor));
  CALL("out_tensor", lyc_tensor_slice(&w, 0, 0, 1, nullptr));
  CALL("tensor", lyc_tensor_check(nullptr));
  CALL("info", lyc_last_error_info(nullptr));
  CALL("out_count", lyc_device_count(LYC_DEVICE_CPU, nullptr));
  CALL("info", lyc_device_get_info(LYC_DEVICE_CPU, 0, nullptr));
  CALL("path", lyc_backend_load(nullptr));
  CALL("out_length", lyc_backend_explain(LYC_DEVICE_CPU, text, sizeof text, nullptr));
  CALL("buffer", lyc_backend_explain(LYC_DEVICE_CPU, nullptr, 5, &n));
  CALL("out_context", lyc_context_create(nullptr, nullptr));
  CALL("info", lyc_context_get_info(c, nullptr));
  lyc_context_info context_info;
  lyc_context_info_init(&context_info, sizeof context_info);
  CALL("context", lyc_context_get_info(nullptr, &context_info));
  lyc_file *file = stale<lyc_file>();
  CALL("path", lyc_file_open(nullptr, &file));
  EXPECT_EQ(file, nullptr);
  CALL("out_file", lyc_file_open("x", nullptr));
  file = stale<lyc_file>();
  CALL("data", lyc_file_open_memory(nullptr, 5, &file));
  EXPECT_EQ(file, nullptr);
  CALL("out_file", lyc_file_open_memory("x", 1, nullptr));
  CALL("file", lyc_file_tensor_count(nullptr, &n));
  CALL("file", lyc_file_get_tensor(nullptr, 0, &name, &tensor));
  CALL("file", lyc_file_find_tensor(nullptr, "x", &n));
  CALL("file", lyc_file_read_tensor(nullptr, 0, text, 8));
  CALL("file", lyc_file_metadata_count(nullptr, &n));
  CALL("file", lyc_file_get_metadata(nullptr, 0, &name, &name));
  lyc_writer *writer = stale<lyc_writer>();
  CALL("path", lyc_writer_create(nullptr, &writer));
  EXPECT_EQ(writer, nullptr);
  CALL("out_writer", lyc_writer_create("x", nullptr));
  CALL("writer", lyc_writer_set_metadata(nullptr, "a", "b"));
  CALL("writer", lyc_writer_add(nullptr, "a", &w));
  CALL("writer", lyc_writer_finish(nullptr));
  lyc_module *module = stale<lyc_module>();
  CALL("context", lyc_module_create(nullptr, &options, &module));
  EXPECT_EQ(module, nullptr);
  module = stale<lyc_module>();
  CALL("options", lyc_module_create(c, nullptr, &module));
  EXPECT_EQ(module, nullptr);
  CALL("out_module", lyc_module_create(c, &options, nullptr));
  module = stale<lyc_module>();
  CALL("context", lyc_module_create_from_tensors(nullptr, nullptr, &name, &w, 1, &module));
  EXPECT_EQ(module, nullptr);
  CALL("names", lyc_module_create_from_tensors(c, nullptr, nullptr, &w, 1, &module));
  CALL("tensors", lyc_module_create_from_tensors(c, nullptr, &name, nullptr, 1, &module));
  CALL("no tensors", lyc_module_create_from_tensors(c, nullptr, &name, &w, 0, &module));
  const char *no_name = nullptr;
  CALL("a name", lyc_module_create_from_tensors(c, nullptr, &no_name, &w, 1, &module));
  CALL("out_module", lyc_module_create_from_tensors(c, nullptr, &name, &w, 1, nullptr));
  CALL("info", lyc_module_get_info(m, nullptr));
  CALL("module", lyc_module_get_info(nullptr, nullptr));
  CALL("out_count", lyc_module_param_count(m, nullptr));
  CALL("module", lyc_module_param_count(nullptr, &n));
  CALL("module", lyc_module_get_param(nullptr, 0, &name, &tensor));
  for (auto call : {lyc_module_bind_param, lyc_module_write_param}) {
    CALL("module", call(nullptr, "x", &w));
    CALL("name", call(m, nullptr, &w));
    CALL("tensor", call(m, "x", nullptr));
  }
  CALL("module", lyc_module_read_param(nullptr, "x", &w));
  CALL("name", lyc_module_read_param(m, nullptr, &w));
  CALL("tensor", lyc_module_read_param(m, "x", nullptr));
  CALL("module", lyc_get_diff_weight(nullptr, &w, 1, &w, nullptr));
  CALL("out", lyc_get_diff_weight(m, &w, 1, nullptr, nullptr));
  CALL("module", lyc_merge(nullptr, &w, 1, nullptr, nullptr));
  CALL("base", lyc_merge(m, nullptr, 1, &w, nullptr));
  CALL("module", lyc_unmerge(nullptr, &w, 1, nullptr));
  CALL("weight", lyc_unmerge(m, nullptr, 1, nullptr));
  CALL("module", lyc_weight_workspace_size(nullptr, &w, &size));
  CALL("weight", lyc_weight_workspace_size(m, nullptr, &size));
  CALL("out_size", lyc_weight_workspace_size(m, &w, nullptr));
  lyc_batch *batch = stale<lyc_batch>();
  CALL("context", lyc_batch_create(nullptr, &item, 1, &batch));
  EXPECT_EQ(batch, nullptr);
  CALL("items", lyc_batch_create(c, nullptr, 1, &batch));
  CALL("module", lyc_batch_create(c, &item, 1, &batch));
  CALL("out_batch", lyc_batch_create(c, &item, 1, nullptr));
  CALL("batch", lyc_batch_workspace_size(nullptr, &size));
  CALL("batch", lyc_batch_run(nullptr, LYC_BATCH_MERGE, nullptr, nullptr));
  CALL("batch", lyc_batch_explain(nullptr, text, 8, &n));
  lyc_network *network = stale<lyc_network>();
  CALL("context", lyc_network_load(nullptr, "x", nullptr, &network));
  EXPECT_EQ(network, nullptr);
  CALL("path", lyc_network_load(c, nullptr, nullptr, &network));
  CALL("out_network", lyc_network_load(c, "x", nullptr, nullptr));
  CALL("network", lyc_network_count(nullptr, &n));
  CALL("network", lyc_network_get_module(nullptr, 0, &name, &module));
  batch = stale<lyc_batch>();
  lyc_report *report = stale<lyc_report>();
  lyc_network *none = nullptr;
  CALL("network", lyc_batch_create_from_networks(c, &none, 1, &name, &w, 1, nullptr, &batch, &report));
  EXPECT_EQ(batch, nullptr);
  EXPECT_EQ(report, nullptr);
  CALL("no networks", lyc_batch_create_from_networks(c, &none, 0, &name, &w, 1, nullptr, &batch, &report));
  CALL("networks", lyc_batch_create_from_networks(c, nullptr, 1, &name, &w, 1, nullptr, &batch, &report));
  CALL("context", lyc_batch_create_from_networks(nullptr, &none, 1, &name, &w, 1, nullptr, &batch, &report));
  CALL("out_batch", lyc_batch_create_from_networks(c, &none, 1, &name, &w, 1, nullptr, nullptr, &report));
  report = stale<lyc_report>();
  CALL("context", lyc_merge_files(nullptr, "a", &name, 1, "b", nullptr, &report));
  EXPECT_EQ(report, nullptr);
  CALL("base_path", lyc_merge_files(c, nullptr, &name, 1, "b", nullptr, &report));
  CALL("adapter_paths", lyc_merge_files(c, "a", nullptr, 1, "b", nullptr, &report));
  CALL("out_path", lyc_merge_files(c, "a", &name, 1, nullptr, nullptr, &report));
  CALL("context", lyc_inspect_file(nullptr, "a", &report));
  CALL("path", lyc_inspect_file(c, nullptr, &report));
  CALL("out_report", lyc_inspect_file(c, "a", nullptr));
  lyc_report_info report_info;
  lyc_report_info_init(&report_info, sizeof report_info);
  CALL("report", lyc_report_get_info(nullptr, &report_info));
#undef CALL
  for (const Call &call : calls) {
    EXPECT_EQ(call.status, kInvalid) << call.what << ": " << call.message;
    EXPECT_THAT(call.message, testing::HasSubstr(call.what));
  }
  EXPECT_EQ(count, 0);
}

TEST_F(Misuse, NullIsNothingToReleaseOrToAskOf) {
  lyc_context_release(nullptr), lyc_context_retain(nullptr);
  lyc_file_release(nullptr), lyc_file_retain(nullptr);
  lyc_writer_release(nullptr);
  lyc_module_release(nullptr), lyc_module_retain(nullptr);
  lyc_batch_release(nullptr), lyc_batch_retain(nullptr);
  lyc_network_release(nullptr), lyc_network_retain(nullptr);
  lyc_report_release(nullptr), lyc_report_retain(nullptr);
  lyc_exec_init(nullptr, 8), lyc_error_info_init(nullptr, 8), lyc_context_options_init(nullptr, 8);
  EXPECT_STREQ(lyc_report_json(nullptr), "");
  EXPECT_EQ(lyc_has_feature(nullptr), 0);
  EXPECT_EQ(lyc_struct_size(nullptr), 0u);
  EXPECT_EQ(lyc_algo_from_name(nullptr), LYC_ALGO_NONE);
  EXPECT_STREQ(lyc_status_name(static_cast<lyc_status>(99)), "unknown");
  EXPECT_STREQ(lyc_dtype_name(static_cast<lyc_dtype>(99)), "unknown");
  EXPECT_STREQ(lyc_algo_name(static_cast<lyc_algo>(99)), "unknown");
}

template <typename T>
struct Larger {
  T known;
  uint32_t tail[4];
};

TEST_F(Misuse, StructSizes) {
  lyc_context *made = nullptr;
  Larger<lyc_context_options> options{};
  for (uint32_t size : {0u, 3u, 0xffffffffu, 0xcdcdcdcdu}) {
    options.known.struct_size = size;
    fails(lyc_context_create(&options.known, &made), kInvalid, {"options.struct_size", std::to_string(size), "_init"});
  }
  options.known.struct_size = sizeof options;
  options.tail[3] = 1;
  fails(lyc_context_create(&options.known, &made), LYC_ERROR_UNSUPPORTED, {"options", "release"});
  EXPECT_EQ(made, nullptr);
  options.tail[3] = 0;
  ok(lyc_context_create(&options.known, &made));
  lyc_context_release(made);
  options.known.threads = 5000;  // beyond what an old caller has
  options.known.struct_size = offsetof(lyc_context_options, threads);
  ok(lyc_context_create(&options.known, &made));
  lyc_context_release(made);

  Larger<lyc_module_info> info;
  std::memset(&info, 0x55, sizeof info);
  lyc_module_info_init(&info.known, sizeof info);
  info.tail[0] = 7;
  ok(lyc_module_get_info(module_.get(), &info.known));
  EXPECT_EQ(info.known.struct_size, sizeof info);
  EXPECT_EQ(info.tail[0], 7u);  // unknown fields are left alone
  std::memset(&info, 0x55, sizeof info);
  info.known.struct_size = offsetof(lyc_module_info, rank);
  ok(lyc_module_get_info(module_.get(), &info.known));
  EXPECT_EQ(info.known.algo, LYC_ALGO_LOCON);
  EXPECT_EQ(info.known.rank, 0x55555555);
  info.known.struct_size = 0;
  fails(lyc_module_get_info(module_.get(), &info.known), kInvalid, {"info.struct_size is 0"});

  const lyc_tensor w = weight_.view();
  Larger<lyc_exec> exec{};
  exec.known.struct_size = 3;
  fails(lyc_merge(module_.get(), &w, 1, nullptr, &exec.known), kInvalid, {"exec.struct_size is 3"});
  exec.known.struct_size = sizeof exec;
  exec.tail[0] = 1;
  fails(lyc_merge(module_.get(), &w, 1, nullptr, &exec.known), LYC_ERROR_UNSUPPORTED, {"exec"});
}

TEST_F(Misuse, UnknownValues) {
  lyc_context_options context_options;
  lyc_context_options_init(&context_options, sizeof context_options);
  context_options.device_type = static_cast<lyc_device_type>(7);
  lyc_context *context = stale<lyc_context>();
  fails(lyc_context_create(&context_options, &context), kInvalid, {"device type 7"});
  EXPECT_EQ(context, nullptr);
  context_options.device_type = LYC_DEVICE_CPU;
  context_options.device_index = 1;
  fails(lyc_context_create(&context_options, &context), LYC_ERROR_NOT_FOUND, {"1"});
  context_options.device_index = -1;
  fails(lyc_context_create(&context_options, &context), LYC_ERROR_NOT_FOUND, {"-1"});
  context_options.device_index = 0;
  context_options.threads = -1;
  fails(lyc_context_create(&context_options, &context), kInvalid, {"threads is -1"});
  context_options.threads = 0;
  context_options.allocate = [](void *, size_t, size_t, void *) -> void * { return nullptr; };
  fails(lyc_context_create(&context_options, &context), kInvalid, {"allocate", "deallocate"});

  int32_t count = 0;
  fails(lyc_device_count(static_cast<lyc_device_type>(7), &count), kInvalid, {"device type 7"});
  size_t length = 0;
  fails(lyc_backend_explain(static_cast<lyc_device_type>(7), nullptr, 0, &length), kInvalid, {"device type 7"});
  fails(lyc_backend_load("relative.so"), kInvalid, {"relative.so", "absolute"});
  fails(lyc_backend_load("/nowhere/x.so"), LYC_ERROR_NOT_FOUND, {"/nowhere/x.so"});

  const lyc_tensor w = weight_.view();
  lyc_exec exec;
  lyc_exec_init(&exec, sizeof exec);
  exec.flags = 4;
  fails(lyc_merge(module_.get(), &w, 1, nullptr, &exec), kInvalid, {"flags", "4"});

  lyc_batch_item item{};
  item.module = module_.get();
  item.base = &w;
  lyc_batch *batch = nullptr;
  ok(lyc_batch_create(context_.get(), &item, 1, &batch));
  const Batch owner(batch);
  fails(lyc_batch_run(batch, static_cast<lyc_batch_op>(3), nullptr, nullptr), kInvalid, {"op is 3"});
  lyc_batch *other = stale<lyc_batch>();
  lyc_batch_item bad = item;
  bad.part = static_cast<lyc_part>(2);
  fails(lyc_batch_create(context_.get(), &bad, 1, &other), kInvalid, {"part is 2"});
  EXPECT_EQ(other, nullptr);
  bad = item, bad.multiplier_index = -1;
  fails(lyc_batch_create(context_.get(), &bad, 1, &other), kInvalid, {"multiplier_index is -1"});
  bad = item, bad.row_begin = -1;
  fails(lyc_batch_create(context_.get(), &bad, 1, &other), kInvalid, {"row_begin"});
  bad = item, bad.part = LYC_PART_BIAS;
  fails(lyc_batch_create(context_.get(), &bad, 1, &other), LYC_ERROR_NOT_FOUND, {"bias"});
  lyc_match_options match;
  lyc_match_options_init(&match, sizeof match);
  match.flags = LYC_OVERWRITE;
  lyc_network *network = nullptr;
  fails(lyc_batch_create_from_networks(context_.get(), &network, 1, nullptr, nullptr, 0, &match, &other, nullptr),
        kInvalid, {"flags"});
}

TEST_F(Misuse, TensorDescriptors) {
  const lyc_tensor good = weight_.view();
  ok(lyc_tensor_check(&good));
  const auto refused = [&](auto change, std::vector<std::string> words, lyc_status status = kInvalid) {
    lyc_tensor bad = good;
    change(bad);
    words.push_back("base");
    fails(merge(&bad), status, words);
    fails(lyc_tensor_check(&bad), kInvalid);
  };
  refused([](lyc_tensor &t) { t.dtype = static_cast<lyc_dtype>(99); }, {"dtype 99"});
  refused([](lyc_tensor &t) { t.dtype = LYC_DTYPE_NONE; }, {"dtype 0"});
  refused([](lyc_tensor &t) { t.ndim = 9; }, {"9 axes"});
  refused([](lyc_tensor &t) { t.ndim = -1; }, {"-1 axes"});
  refused([](lyc_tensor &t) { t.device_type = static_cast<lyc_device_type>(5); }, {"device type 5"});
  refused([](lyc_tensor &t) { t.layout = static_cast<lyc_layout>(5); }, {"layout 5"});
  refused([](lyc_tensor &t) { t.flags = 6; }, {"flags 6"});
  refused([](lyc_tensor &t) { t.reserved_[2] = 1; }, {"reserved"});
  refused([](lyc_tensor &t) { t.shape[0] = -1; }, {"negative extent", "[-1, 6]"});
  refused([](lyc_tensor &t) { t.strides[0] = -6; }, {"negative stride", "-6"});
  refused([](lyc_tensor &t) { t.shape[0] = t.shape[1] = int64_t{1} << 40; }, {"too many elements"});
  refused([](lyc_tensor &t) { t.data = nullptr; }, {"no data"});
  refused([](lyc_tensor &t) { t.data = static_cast<char *>(t.data) + 1; }, {"not aligned", "4 bytes"});
  refused([](lyc_tensor &t) { t.capacity -= 1; }, {"96 bytes", "capacity is 95"});
  lyc_tensor huge = good;
  huge.capacity = 0;
  huge.strides[0] = INT64_MAX;
  fails(merge(&huge), kInvalid, {"overflow"});
  lyc_tensor elsewhere = good;
  elsewhere.device_type = LYC_DEVICE_CUDA;
  fails(merge(&elsewhere), kInvalid, {"base", "not on the context's device"});
  lyc_tensor code = good;
  code.dtype = LYC_DTYPE_I32;
  fails(merge(&code), LYC_ERROR_UNSUPPORTED, {"base is i32", "bf16"});
  EXPECT_EQ(weight_.bytes, random_tensor({4, 6}, 9).bytes);
}

TEST_F(Misuse, TensorInitAndSlice) {
  lyc_tensor tensor;
  const int64_t shape[] = {int64_t{1} << 40, int64_t{1} << 40}, negative[] = {-1}, big[] = {int64_t{1} << 62};
  fails(lyc_tensor_init(&tensor, nullptr, LYC_DTYPE_F32, shape, 2), kInvalid, {"too many"});
  fails(lyc_tensor_init(&tensor, nullptr, LYC_DTYPE_F32, big, 1), kInvalid, {"too large"});
  fails(lyc_tensor_init(&tensor, nullptr, LYC_DTYPE_F32, negative, 1), kInvalid, {"negative"});
  fails(lyc_tensor_init(&tensor, nullptr, LYC_DTYPE_NONE, shape, 1), kInvalid, {"dtype is 0"});
  fails(lyc_tensor_init(&tensor, nullptr, LYC_DTYPE_F32, shape, size_t{1} << 60), kInvalid, {"shape_count", "8"});
  lyc_tensor w = weight_.view();
  fails(lyc_tensor_slice(&w, 2, 0, 1, &tensor), kInvalid, {"axis is 2"});
  fails(lyc_tensor_slice(&w, -1, 0, 1, &tensor), kInvalid, {"axis is -1"});
  fails(lyc_tensor_slice(&w, 0, 3, 2, &tensor), kInvalid, {"axis of 4"});
  fails(lyc_tensor_slice(&w, 0, INT64_MAX, INT64_MAX, &tensor), kInvalid, {"axis of 4"});
  fails(lyc_tensor_slice(&w, 0, -1, 1, &tensor), kInvalid, {"-1"});
  ok(lyc_tensor_slice(&w, 0, 4, 0, &tensor));  // empty, at the very end
  EXPECT_EQ(tensor.shape[0], 0);
  EXPECT_EQ(tensor.capacity, w.capacity);
  w.strides[0] = INT64_MAX, w.shape[0] = 1;  // a stride that is never taken
  ok(lyc_tensor_slice(&w, 0, 1, 0, &tensor));
  ok(lyc_tensor_check(&tensor));
}

TEST_F(Misuse, OutputsThatCannotBeWritten) {
  const lyc_tensor base = weight_.view();
  lyc_tensor out = base;
  out.flags = LYC_TENSOR_READ_ONLY;
  fails(merge(&out), kInvalid, {"read-only"});
  fails(lyc_unmerge(module_.get(), &out, 1, nullptr), kInvalid, {"read-only"});
  Tensor other({4, 6}, LYC_DTYPE_F32);
  out = other.view();
  out.strides[0] = 0;
  fails(merge(&base, &out), kInvalid, {"out", "share memory"});
  out = base;
  out.strides[0] = 3;
  fails(merge(&base, &out), kInvalid, {"share memory"});
  Tensor room = random_tensor({5, 6}, 3);
  const lyc_tensor whole = room.view();
  lyc_tensor a, b;
  ok(lyc_tensor_slice(&whole, 0, 0, 4, &a));
  ok(lyc_tensor_slice(&whole, 0, 1, 4, &b));
  fails(merge(&a, &b), kInvalid, {"overlap"});
  fails(lyc_get_diff_weight(module_.get(), &a, 1, &b, nullptr), kInvalid, {"overlap"});
  fails(lyc_get_diff_weight(module_.get(), &a, 1, &a, nullptr), kInvalid, {"difference", "base"});
  lyc_tensor half = base;
  half.dtype = LYC_DTYPE_BF16;  // same address, other type
  fails(merge(&base, &half), kInvalid, {"overlap"});
  lyc_tensor transposed = base;
  transposed.layout = LYC_LAYOUT_HWIO;
  fails(merge(&base, &transposed), LYC_ERROR_MISMATCH, {"[4, 6]", "[6, 4]"});
  const lyc_batch_item items[] = {{module_.get(), &a, nullptr, 0, 0, 0, LYC_PART_WEIGHT, 0},
                                  {module_.get(), &b, nullptr, 0, 0, 0, LYC_PART_WEIGHT, 0}};
  lyc_batch *batch = stale<lyc_batch>();
  fails(lyc_batch_create(context_.get(), items, 2, &batch), kInvalid, {"overlap"});
  EXPECT_EQ(batch, nullptr);
}

TEST_F(Misuse, ShapesThatDoNotFit) {
  for (const std::vector<int64_t> &shape :
       std::vector<std::vector<int64_t>>{{4, 5}, {6, 4}, {3, 6}, {4}, {24}, {4, 6, 2}, {4, 3, 2}, {0, 6}, {4, 0}}) {
    const Tensor wrong(shape, LYC_DTYPE_F32);
    const lyc_tensor view = wrong.view();
    const bool reshaped = shape == std::vector<int64_t>{4, 3, 2};
    // A factor that is a plain matrix says nothing of a kernel, so columns alone decide.
    if (!reshaped) fails(merge(&view), LYC_ERROR_MISMATCH, {"4 x 6", "do not fit"});
  }
  const Tensor six({1, 1, 1, 1, 1, 1}, LYC_DTYPE_F32), scalar({}, LYC_DTYPE_F32);
  const lyc_tensor six_view = six.view(), scalar_view = scalar.view();
  fails(merge(&six_view), kInvalid, {"6 axes"});
  fails(merge(&scalar_view), kInvalid, {"0 axes"});
}

TEST_F(Misuse, NamesAndNumbersThatAreNotThere) {
  const lyc_tensor w = weight_.view();
  fails(lyc_module_bind_param(module_.get(), "lora_mid.weight", &w), LYC_ERROR_NOT_FOUND, {"lora_mid.weight"});
  const char *name = nullptr;
  fails(lyc_module_get_param(module_.get(), 2, &name, nullptr), LYC_ERROR_NOT_FOUND, {"2"});
  fails(lyc_module_bind_param(module_.get(), "lora_up.weight", &w), kInvalid, {"[4, 6]", "[4, 3]"});
  lyc_network *network = stale<lyc_network>();
  fails(lyc_network_load(context_.get(), "/nowhere/a.safetensors", nullptr, &network), LYC_ERROR_NOT_FOUND,
        {"/nowhere"});
  EXPECT_EQ(network, nullptr);
}

TEST_F(Misuse, AlphaOnAnotherDevice) {
  Tensors factors = lora(4, 6);
  std::vector<const char *> names = {"lora_up.weight", "lora_down.weight", "alpha"};
  const Tensor alpha({}, LYC_DTYPE_F32);
  std::vector<lyc_tensor> views = {factors["lora_up.weight"].view(), factors["lora_down.weight"].view(), alpha.view()};
  views[2].device_type = LYC_DEVICE_CUDA;
  lyc_module *module = stale<lyc_module>();
  fails(lyc_module_create_from_tensors(context_.get(), nullptr, names.data(), views.data(), 3, &module), kInvalid,
        {"alpha", "device"});
  EXPECT_EQ(module, nullptr);
  views[2].device_type = LYC_DEVICE_CPU;
  names[2] = "lora_up.weight";
  fails(lyc_module_create_from_tensors(context_.get(), nullptr, names.data(), views.data(), 3, &module), kInvalid,
        {"lora_up.weight is there twice"});
}

TEST_F(Misuse, MessagesBelongToTheirThread) {
  fails(lyc_tensor_check(nullptr), kInvalid, {"tensor"});
  std::string before, after;
  std::thread([&] {
    before = lyc_last_error_message();
    lyc_device_count(LYC_DEVICE_CPU, nullptr);
    after = lyc_last_error_message();
  }).join();
  EXPECT_EQ(before, "");
  EXPECT_EQ(after, "out_count is NULL");
  EXPECT_STREQ(lyc_last_error_message(), "tensor is NULL");
  const lyc_tensor w = weight_.view();
  ok(lyc_tensor_check(&w));  // a success forgets nothing
  EXPECT_STREQ(lyc_last_error_message(), "tensor is NULL");
  lyc_error_info info;
  lyc_error_info_init(&info, sizeof info);
  ok(lyc_last_error_info(&info));
  EXPECT_EQ(info.status, kInvalid);
  lyc_clear_last_error();
  EXPECT_STREQ(lyc_last_error_message(), "");
}

TEST_F(Misuse, AModuleOfAnotherContext) {
  const Context other = make_context();
  const lyc_tensor w = weight_.view();
  const lyc_batch_item item = {module_.get(), &w, nullptr, 0, 0, 0, LYC_PART_WEIGHT, 0};
  lyc_batch *batch = nullptr;
  fails(lyc_batch_create(other.get(), &item, 1, &batch), kInvalid, {"another context"});
}

}  // namespace
}  // namespace lyc::test
