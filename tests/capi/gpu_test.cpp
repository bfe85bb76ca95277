// The C functions on a GPU: a real adapter file on weights in device memory, and a captured run. Without a GPU every
// test says that it is skipped; with LYCORIS_REQUIRE_GPU=1 it fails instead.
#include <cstdlib>
#include <cuda_runtime_api.h>

#include "capi/api.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

void cuda(cudaError_t status) { ASSERT_EQ(status, cudaSuccess) << cudaGetErrorString(status); }

/// Device memory with the values of a host tensor.
class CudaTensor {
 public:
  explicit CudaTensor(const Tensor &host) : host_(host) {
    cuda(cudaMalloc(&data_, host.bytes.size()));
    write(host);
  }
  CudaTensor(CudaTensor &&other) noexcept : host_(std::move(other.host_)), data_(other.data_) { other.data_ = nullptr; }
  ~CudaTensor() { cudaFree(data_); }

  void write(const Tensor &host) {
    cuda(cudaMemcpy(data_, host.bytes.data(), host.bytes.size(), cudaMemcpyHostToDevice));
  }
  lyc_tensor view() const {
    lyc_tensor tensor = host_.view();
    tensor.data = data_;
    tensor.device_type = LYC_DEVICE_CUDA;
    return tensor;
  }
  Tensor read() const {
    Tensor host = host_;
    cuda(cudaMemcpy(host.bytes.data(), data_, host.bytes.size(), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  Tensor host_;
  void *data_ = nullptr;
};

class GpuApi : public testing::Test {
 protected:
  void SetUp() override {
    int32_t count = 0;
    ok(lyc_device_count(LYC_DEVICE_CUDA, &count));
    if (count == 0) {
      if (std::getenv("LYCORIS_REQUIRE_GPU")) FAIL() << "no GPU";
      GTEST_SKIP() << "skipped: no GPU";
    }
    lyc_context_options options;
    lyc_context_options_init(&options, sizeof options);
    options.device_type = LYC_DEVICE_CUDA;
    lyc_context *context = nullptr;
    ok(lyc_context_create(&options, &context));
    context_.reset(context);
  }

  /// The golden case of LoCon only, in bf16 on linear and convolution layers.
  void load(const std::string &name) {
    const std::string folder = test_data("files/" + name);
    base_ = read_file(folder + "/base.safetensors");
    expected_ = read_file(folder + "/expected.safetensors");
    lyc_network *network = nullptr;
    ok(lyc_network_load(context_.get(), (folder + "/adapter.safetensors").c_str(), nullptr, &network));
    network_.reset(network);
    for (const auto &[tensor_name, tensor] : base_) {
      names_.push_back(tensor_name.c_str());
      weights_.emplace_back(tensor);
      views_.push_back(weights_.back().view());
    }
    lyc_batch *batch = nullptr;
    ok(lyc_batch_create_from_networks(context_.get(), &network, 1, names_.data(), views_.data(), views_.size(), nullptr,
                                      &batch, nullptr));
    batch_.reset(batch);
  }

  void expect_merged() const {
    for (std::size_t i = 0; i < names_.size(); ++i) {
      SCOPED_TRACE(names_[i]);
      const std::vector<double> before = base_.at(names_[i]).values();
      const std::vector<double> want = difference(expected_.at(names_[i]).values(), before);
      EXPECT_TRUE(near(difference(weights_[i].read().values(), before), want, {1e-5, 0x1p-23}));
    }
  }

  Context context_;
  Tensors base_, expected_;
  Network network_;
  std::vector<const char *> names_;
  std::vector<CudaTensor> weights_;
  std::vector<lyc_tensor> views_;
  Batch batch_;
};

TEST_F(GpuApi, MergesAnAdapterFileIntoWeightsOnTheDevice) {
  load("kohya_lora_sd15");
  ok(lyc_batch_run(batch_.get(), LYC_BATCH_MERGE, nullptr, nullptr));
  cuda(cudaDeviceSynchronize());
  expect_merged();
  ok(lyc_batch_run(batch_.get(), LYC_BATCH_UNMERGE, nullptr, nullptr));
  cuda(cudaDeviceSynchronize());
  for (std::size_t i = 0; i < names_.size(); ++i)
    EXPECT_TRUE(near(weights_[i].read().values(), base_.at(names_[i]).values(), {0x1p-20, 0x1p-22})) << names_[i];
}

TEST_F(GpuApi, ACapturedRunFollowsMultipliersInDeviceMemory) {
  load("kohya_lora_sd15");
  Tensor multiplier({1}, LYC_DTYPE_F32);
  multiplier.set(0, 0);
  CudaTensor on_device(multiplier);
  const lyc_tensor multipliers = on_device.view();
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  lyc_exec exec;
  lyc_exec_init(&exec, sizeof exec);
  exec.stream = stream;
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  ok(lyc_batch_run(batch_.get(), LYC_BATCH_MERGE, &multipliers, &exec));
  cuda(cudaStreamEndCapture(stream, &graph));
  cuda(cudaGraphInstantiate(&executable, graph, 0));

  cuda(cudaGraphLaunch(executable, stream));
  cuda(cudaStreamSynchronize(stream));
  for (std::size_t i = 0; i < names_.size(); ++i)
    EXPECT_EQ(weights_[i].read().bytes, base_.at(names_[i]).bytes) << "multiplier 0 changed " << names_[i];
  multiplier.set(0, 1);
  on_device.write(multiplier);
  cuda(cudaGraphLaunch(executable, stream));
  cuda(cudaStreamSynchronize(stream));
  expect_merged();
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(GpuApi, OneWeightAndParametersInDeviceMemory) {
  Tensor up({5, 2}, LYC_DTYPE_BF16), down({2, 7}, LYC_DTYPE_BF16), weight({5, 7}, LYC_DTYPE_BF16);
  for (int64_t i = 0; i < up.count(); ++i) up.set(i, 0.25 * static_cast<double>(i % 7 - 3));
  for (int64_t i = 0; i < down.count(); ++i) down.set(i, 0.5 * static_cast<double>(i % 5 - 2));
  for (int64_t i = 0; i < weight.count(); ++i) weight.set(i, static_cast<double>(i % 11 - 5));
  const CudaTensor device_up(up), device_down(down), device_weight(weight);
  const char *const names[] = {"lora_up.weight", "lora_down.weight"};
  const lyc_tensor factors[] = {device_up.view(), device_down.view()}, base = device_weight.view();
  lyc_module *handle = nullptr;
  ok(lyc_module_create_from_tensors(context_.get(), nullptr, names, factors, 2, &handle));
  const Module module(handle);
  ok(lyc_merge(handle, &base, 2.0f, nullptr, nullptr));
  const Tensor merged = device_weight.read();
  for (int64_t o = 0; o < 5; ++o)
    for (int64_t i = 0; i < 7; ++i)
      EXPECT_EQ(merged.get(o * 7 + i),
                weight.get(o * 7 + i) + 2 * (up.get(o * 2) * down.get(i) + up.get(o * 2 + 1) * down.get(7 + i)));
}

TEST_F(GpuApi, WhatTheDeviceCannotComputeIsRefusedByName) {
  const Tensor diff({3, 4}, LYC_DTYPE_F32), input({2, 4}, LYC_DTYPE_F32), output({2, 3}, LYC_DTYPE_F32);
  const CudaTensor weight(diff), x(input), y(output);
  const Module module = make_module(context_.get(), {{"diff", diff}});
  const lyc_tensor x_view = x.view(), y_view = y.view(), host = diff.view();
  fails(lyc_forward(module.get(), nullptr, &x_view, nullptr, 1.0f, &y_view, nullptr), LYC_ERROR_UNSUPPORTED, {"CUDA"});
  fails(lyc_merge(module.get(), &host, 1.0f, nullptr, nullptr), LYC_ERROR_INVALID_ARGUMENT, {"device"});
}

}  // namespace
}  // namespace lyc::test
