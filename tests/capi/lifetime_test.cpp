// Handles in any order, from any thread, again and again.
#include <fstream>
#include <thread>

#include "capi/api.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

TEST(Lifetime, ContextFirst) {
  Context context = make_context(2);
  Module module = make_module(context.get(), lora(4, 6));
  const DeviceTensor weight(random_tensor({4, 6}, 1));
  const Tensor want = merged(module, weight.read());
  const lyc_tensor view = weight.view();
  const lyc_batch_item item = {module.get(), &view, nullptr, 0, 0, 0, LYC_PART_WEIGHT, 0};
  lyc_batch *handle = nullptr;
  ok(lyc_batch_create(context.get(), &item, 1, &handle));
  const Batch batch(handle);
  context.reset();
  module.reset();
  ok(lyc_batch_run(handle, LYC_BATCH_MERGE, nullptr, nullptr));
  EXPECT_EQ(weight.read().bytes, want.bytes);
}

TEST(Lifetime, ModulesOutliveTheirNetwork) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  Tensors named;
  for (auto &[suffix, tensor] : lora(4, 6)) named["lora_unet_a." + suffix] = tensor;
  write_file(path, named);
  Context context = make_context();
  lyc_network *handle = nullptr;
  ok(lyc_network_load(context.get(), path.c_str(), nullptr, &handle));
  Network network(handle);
  const char *name = nullptr;
  lyc_module *inner = nullptr;
  ok(lyc_network_get_module(handle, 0, &name, &inner));
  EXPECT_STREQ(name, "lora_unet_a");
  const Module module(inner);
  lyc_module *none = inner;
  fails(lyc_network_get_module(handle, 1, nullptr, &none), LYC_ERROR_NOT_FOUND, {"1"});
  EXPECT_EQ(none, nullptr);
  context.reset();
  network.reset();
  const Tensor base = random_tensor({4, 6}, 1);
  EXPECT_EQ(merged(module, base).bytes, merged(make_module(make_context().get(), lora(4, 6)), base).bytes);
}

/// Generators of one rotation of [8, 6].
Tensors oft(std::uint64_t seed) { return {{"oft_blocks", random_tensor({2, 4, 4}, seed)}}; }

TEST(Lifetime, PreparingMayEndWhileABatchUsesIt) {
  Context context = make_context(2);
  Module module = make_module(context.get(), oft(1));
  const Tensor base = random_tensor({8, 6}, 2), other = oft(3).at("oft_blocks");
  const DeviceTensor weight(base), out(Tensor({8, 6}, LYC_DTYPE_F32));
  const lyc_tensor view = weight.view(), out_view = out.view(), other_view = other.view();
  ok(lyc_module_prepare(module.get(), &view, nullptr));
  const lyc_batch_item item = {module.get(), &view, &out_view, 0, 0, 0, LYC_PART_WEIGHT, 0};
  lyc_batch *handle = nullptr;
  ok(lyc_batch_create(context.get(), &item, 1, &handle));
  const Batch batch(handle);
  ok(lyc_batch_run(handle, LYC_BATCH_MERGE, nullptr, nullptr));
  const Tensor want = merged(make_module(context.get(), oft(1)), base);
  EXPECT_TRUE(near(out.read().values(), want.values(), tolerance(LYC_DTYPE_F32, 8)));
  ok(lyc_module_write_param(module.get(), "oft_blocks", &other_view));
  EXPECT_EQ(merged(module, base).bytes, merged(make_module(context.get(), oft(3)), base).bytes);
  module.reset();
  context.reset();
  ok(lyc_batch_run(handle, LYC_BATCH_MERGE, nullptr, nullptr));  // of the rotations that it was made with
  EXPECT_TRUE(near(out.read().values(), want.values(), tolerance(LYC_DTYPE_F32, 8)));
}

TEST(Lifetime, RetainAddsOne) {
  Context context = make_context();
  lyc_context *second = context.get();
  lyc_context_retain(second);
  context.reset();
  lyc_context_info info;
  lyc_context_info_init(&info, sizeof info);
  ok(lyc_context_get_info(second, &info));
  EXPECT_EQ(info.threads, tested_device() == LYC_DEVICE_CPU ? 1 : 0);
  lyc_context_release(second);
}

TEST(Lifetime, ThreadsShareAContextAndAModule) {
  const Context context = make_context(2);
  const Module module = make_module(context.get(), lora(40, 60));
  const Tensor base = random_tensor({40, 60}, 1), want = merged(module, base);
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        EXPECT_EQ(merged(module, base).bytes, want.bytes);
        const Module own = make_module(context.get(), lora(4, 6));
        lyc_module_retain(module.get());
        lyc_module_release(module.get());
      }
    });
  for (std::thread &thread : threads) thread.join();
}

/// Kilobytes of memory in use by the process.
int64_t resident() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, pages = 0;
  file >> total >> pages;
  return pages * 4;
}

TEST(Lifetime, ThousandRoundsDoNotGrow) {
  const auto round = [] {
    const Context context = make_context(2);
    const Module module = make_module(context.get(), lora(40, 60));
    merged(module, random_tensor({40, 60}, 1));
    lyc_tensor bad{};
    EXPECT_NE(lyc_merge(module.get(), &bad, 1, nullptr, nullptr), LYC_OK);
  };
  for (int i = 0; i < 100; ++i) round();
  const int64_t before = resident();
  for (int i = 0; i < 1000; ++i) round();
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they keep what was freed for a while
  EXPECT_LT(resident() - before, 1024);
#else
  EXPECT_GT(before, 0);
#endif
}

}  // namespace
}  // namespace lyc::test
