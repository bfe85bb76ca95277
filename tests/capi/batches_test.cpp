// Many weights at once, several adapters on one, parts of fused layers, networks.
#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "capi/api.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

Batch make_batch(lyc_context *context, const std::vector<lyc_batch_item> &items) {
  lyc_batch *batch = nullptr;
  ok(lyc_batch_create(context, items.data(), items.size(), &batch));
  return Batch(batch);
}

lyc_batch_item item(const Module &module, const lyc_tensor &base, int32_t multiplier = 0) {
  return {module.get(), &base, nullptr, 0, 0, multiplier, LYC_PART_WEIGHT, 0};
}

Tensor multipliers(const std::vector<double> &values) {
  Tensor tensor({static_cast<int64_t>(values.size())}, LYC_DTYPE_F32);
  for (std::size_t i = 0; i < values.size(); ++i) tensor.set(static_cast<int64_t>(i), values[i]);
  return tensor;
}

void run(const Batch &batch, const std::vector<double> &values = {1}, lyc_batch_op op = LYC_BATCH_MERGE) {
  const Tensor tensor = multipliers(values);
  const lyc_tensor view = tensor.view();
  ok(lyc_batch_run(batch.get(), op, &view, nullptr));
}

std::vector<DeviceTensor> on_the_device(const std::vector<Tensor> &tensors) {
  std::vector<DeviceTensor> result;
  for (const Tensor &tensor : tensors) result.emplace_back(tensor);
  return result;
}

class Batches : public testing::Test {
 protected:
  Context context_ = make_context(2);
};

TEST_F(Batches, EqualsOneByOneForAnyNumberOfThreads) {
  std::vector<Tensor> bases, want;
  const auto factors = [](int64_t n) {
    Tensors f = lora(5 + n, 7 + n % 3, static_cast<std::uint64_t>(n));
    if (n % 3 == 0) f["dora_scale"] = random_tensor({5 + n, 1}, 3);
    return f;
  };
  for (int64_t n = 0; n < 40; ++n) {
    bases.push_back(
        random_tensor({5 + n, 7 + n % 3}, static_cast<std::uint64_t>(n), n % 2 ? LYC_DTYPE_BF16 : LYC_DTYPE_F32));
    want.push_back(merged(make_module(context_.get(), factors(n)), bases.back(), 0.5f));
  }
  for (int threads : {1, 2, 3}) {
    const Context context = make_context(threads);
    const std::vector<DeviceTensor> got = on_the_device(bases);
    std::vector<Module> modules;
    std::vector<lyc_tensor> views;
    std::vector<lyc_batch_item> items;
    for (int64_t n = 0; n < 40; ++n) modules.push_back(make_module(context.get(), factors(n)));
    for (const DeviceTensor &tensor : got) views.push_back(tensor.view());
    for (std::size_t n = 0; n < 40; ++n) items.push_back(item(modules[n], views[n]));
    run(make_batch(context.get(), items), {0.5});
    for (std::size_t n = 0; n < 40; ++n) EXPECT_EQ(got[n].read().bytes, want[n].bytes) << n << ", threads " << threads;
  }
}

TEST_F(Batches, SeveralAdaptersAreSummedAndRoundedOnce) {
  const Tensor base = random_tensor({9, 8}, 1, LYC_DTYPE_BF16), zero({9, 8}, LYC_DTYPE_F32);
  std::vector<Module> modules;
  std::vector<double> sum = base.values();
  const std::vector<double> m = {0.5, -1.25, 2.0};
  for (std::size_t a = 0; a < 3; ++a) {
    Tensors factors = lora(9, 8, 10 + a);
    if (a == 1) factors["dora_scale"] = random_tensor({9, 1}, 4);
    modules.push_back(make_module(context_.get(), factors));
    const Tensor single =
        merged(modules[a], base.as(LYC_DTYPE_F32), static_cast<float>(m[a]));  // against the pristine W
    for (std::size_t i = 0; i < sum.size(); ++i)
      sum[i] += single.get(static_cast<int64_t>(i)) - base.get(static_cast<int64_t>(i));
  }
  std::vector<std::vector<double>> results;
  for (const std::vector<std::size_t> &order : std::vector<std::vector<std::size_t>>{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}}) {
    const DeviceTensor weight(base);
    const lyc_tensor view = weight.view();
    std::vector<lyc_batch_item> items;
    for (std::size_t a : order) items.push_back(item(modules[a], view, static_cast<int32_t>(a)));
    run(make_batch(context_.get(), items), m);
    const Tensor got = weight.read();
    for (std::size_t i = 0; i < sum.size(); ++i)  // half a unit in the last place, and float32's own error
      EXPECT_NEAR(got.get(static_cast<int64_t>(i)), sum[i], std::abs(sum[i]) * (0x1p-8 + 0x1p-19) + 1e-5);
  }
}

TEST_F(Batches, RowsOfAFusedAdapter) {
  const Module fused = make_module(context_.get(), lora(12, 6, 1, {{"dora_scale", random_tensor({12, 1}, 2)}}));
  const Tensor base = random_tensor({12, 6}, 5), want = merged(fused, base);
  std::vector<DeviceTensor> parts;
  lyc_tensor views[3];
  std::vector<lyc_batch_item> items;
  for (int64_t p = 0; p < 3; ++p) {
    Tensor part({4, 6}, LYC_DTYPE_F32);
    std::memcpy(part.bytes.data(), base.bytes.data() + p * 96, 96);
    parts.emplace_back(part);
    views[p] = parts.back().view();
    items.push_back({fused.get(), &views[p], nullptr, 4 * p, 4, 0, LYC_PART_WEIGHT, 0});
  }
  run(make_batch(context_.get(), items));
  for (std::size_t p = 0; p < 3; ++p)
    EXPECT_EQ(std::memcmp(parts[p].read().bytes.data(), want.bytes.data() + p * 96, 96), 0) << p;
  items[2].row_begin = 9;
  lyc_batch *batch = nullptr;
  fails(lyc_batch_create(context_.get(), items.data(), 3, &batch), LYC_ERROR_MISMATCH, {"rows 9 to 13"});
}

TEST_F(Batches, DiffNeedsAnOutOfItsOwn) {
  const Module module = make_module(context_.get(), lora(4, 6));
  const DeviceTensor base(random_tensor({4, 6}, 1)), out(Tensor({4, 6}, LYC_DTYPE_F32));
  const lyc_tensor base_view = base.view(), out_view = out.view();
  const Batch in_place = make_batch(context_.get(), {item(module, base_view)});
  fails(lyc_batch_run(in_place.get(), LYC_BATCH_DIFF, nullptr, nullptr), LYC_ERROR_INVALID_ARGUMENT, {"difference"});
  const Batch only = make_batch(context_.get(), {{module.get(), nullptr, &out_view, 0, 0, 0, LYC_PART_WEIGHT, 0}});
  fails(lyc_batch_run(only.get(), LYC_BATCH_MERGE, nullptr, nullptr), LYC_ERROR_INVALID_ARGUMENT, {"no base"});
  run(only, {1}, LYC_BATCH_DIFF);
  EXPECT_EQ(out.read().bytes, merged(module, Tensor({4, 6}, LYC_DTYPE_F32)).bytes);
}

TEST_F(Batches, Multipliers) {
  const Module module = make_module(context_.get(), lora(4, 6));
  const Tensor pristine = random_tensor({4, 6}, 1);
  const DeviceTensor base(pristine);
  const lyc_tensor view = base.view();
  const Batch batch = make_batch(context_.get(), {item(module, view, 2)});
  const auto refused = [&](const lyc_tensor &m, std::vector<std::string> words) {
    fails(lyc_batch_run(batch.get(), LYC_BATCH_MERGE, &m, nullptr), LYC_ERROR_INVALID_ARGUMENT, words);
  };
  const Tensor two = multipliers({1, 1}), three = multipliers({0, 0, 1}), half({3}, LYC_DTYPE_F16);
  refused(two.view(), {"2 multipliers", "3"});
  refused(half.view(), {"f32"});
  lyc_tensor elsewhere = three.view();
  elsewhere.device_type = LYC_DEVICE_CUDA;
  elsewhere.device_index = 1;
  refused(elsewhere, {"device"});
  const Tensor want = merged(module, pristine);
  ok(lyc_batch_run(batch.get(), LYC_BATCH_MERGE, nullptr, nullptr));  // all 1
  EXPECT_EQ(base.read().bytes, want.bytes);
}

TEST_F(Batches, ChangedValuesAreSeen) {
  Tensors factors = lora(4, 6);
  const Module module = make_module(context_.get(), factors);
  Tensor up = factors["lora_up.weight"];
  DeviceTensor bound(up);
  const lyc_tensor up_view = bound.view();
  ok(lyc_module_bind_param(module.get(), "lora_up.weight", &up_view));
  const DeviceTensor out(Tensor({4, 6}, LYC_DTYPE_F32));
  const lyc_tensor view = out.view();
  const Batch batch = make_batch(context_.get(), {{module.get(), nullptr, &view, 0, 0, 0, LYC_PART_WEIGHT, 0}});
  run(batch, {1}, LYC_BATCH_DIFF);
  const std::vector<double> before = out.values();
  for (int64_t i = 0; i < up.count(); ++i) up.set(i, 2 * up.get(i));
  bound.write(up);
  run(batch, {1}, LYC_BATCH_DIFF);
  const Tensor after = out.read();
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_DOUBLE_EQ(after.get(static_cast<int64_t>(i)), 2 * before[i]);
}

TEST_F(Batches, BiasParts) {
  const Module module = make_module(context_.get(), lora(4, 6, 1, {{"diff_b", random_tensor({4}, 2)}}));
  const DeviceTensor bias(random_tensor({4}, 3)), matrix(random_tensor({4, 6}, 3));
  const lyc_tensor view = bias.view(), matrix_view = matrix.view();
  std::vector<double> want = bias.values();
  for (std::size_t i = 0; i < 4; ++i) want[i] += 0.5 * random_tensor({4}, 2).get(static_cast<int64_t>(i));
  lyc_batch_item part = item(module, view);
  part.part = LYC_PART_BIAS;
  run(make_batch(context_.get(), {part}), {0.5});
  EXPECT_TRUE(near(bias.values(), want, tolerance(LYC_DTYPE_F32, 1)));
  part.base = &matrix_view;
  lyc_batch *batch = nullptr;
  fails(lyc_batch_create(context_.get(), &part, 1, &batch), LYC_ERROR_MISMATCH, {"bias has one axis"});
}

TEST_F(Batches, EmptyAndExplained) {
  const Batch empty = make_batch(context_.get(), {});
  ok(lyc_batch_run(empty.get(), LYC_BATCH_MERGE, nullptr, nullptr));
  std::size_t length = 0;
  ok(lyc_batch_explain(empty.get(), nullptr, 0, &length));
  std::string text(length + 1, '?');
  ok(lyc_batch_explain(empty.get(), text.data(), text.size(), &length));
  EXPECT_EQ(text[length], '\0');
  EXPECT_THAT(text, testing::HasSubstr(tested_device() == LYC_DEVICE_CPU ? "threads 2" : ""));
  char small[4] = {'x', 'x', 'x', 'x'};
  ok(lyc_batch_explain(empty.get(), small, 3, &length));
  EXPECT_EQ(small[2], '\0');
  EXPECT_EQ(small[3], 'x');
}

// -- networks ----------------------------------------------------------------------------------------------------

class Networks : public Batches {
 protected:
  Network load(const Tensors &tensors) {
    const std::string path = folder_ / std::to_string(count_++) + ".safetensors";
    write_file(path, tensors);
    lyc_network *network = nullptr;
    ok(lyc_network_load(context_.get(), path.c_str(), nullptr, &network));
    return Network(network);
  }
  lyc_status match(const std::vector<lyc_network *> &networks, const Tensors &base, const lyc_match_options *options,
                   Batch *batch, Report *report = nullptr) {
    std::vector<const char *> names;
    std::vector<lyc_tensor> views;
    weights_.clear();
    for (const auto &[name, tensor] : base) {
      names.push_back(name.c_str());
      views.push_back(weights_.try_emplace(name, tensor).first->second.view());
    }
    lyc_batch *made = nullptr;
    lyc_report *reported = nullptr;
    const lyc_status status =
        lyc_batch_create_from_networks(context_.get(), networks.data(), networks.size(), names.data(), views.data(),
                                       views.size(), options, &made, &reported);
    batch->reset(made);
    if (report)
      report->reset(reported);
    else
      lyc_report_release(reported);
    return status;
  }
  static Tensors layer(const std::string &name, int64_t out, int64_t in, std::uint64_t seed) {
    Tensors named;
    for (auto &[suffix, tensor] : lora(out, in, seed)) named[name + "." + suffix] = tensor;
    return named;
  }
  Folder folder_;
  int count_ = 0;
  std::map<std::string, DeviceTensor> weights_;  // of the last match
};

TEST_F(Networks, FusedAndSplitOnOneFusedBase) {
  const std::string block = "lora_unet_double_blocks_0_img_attn_qkv", split = "lora_unet_transformer_blocks_0_attn_to_";
  const Network fused = load(layer(block, 12, 4, 1));
  Tensors parts;
  for (const char *part : {"q", "k", "v"})
    parts.merge(layer(split + part, 4, 4, 20 + static_cast<std::uint64_t>(part[0])));
  const Network second = load(parts);
  const Tensors pristine = {{"transformer.double_blocks.0.img_attn.qkv.weight", random_tensor({12, 4}, 3)}};
  Batch batch;
  Report report;
  ok(match({fused.get(), second.get()}, pristine, nullptr, &batch, &report));
  run(batch, {0.5, 2.0});
  const Tensor &base = pristine.begin()->second;
  std::vector<double> want = merged(make_module(context_.get(), lora(12, 4, 1)), base, 0.5f).values();
  int64_t row = 0;
  for (const char *part : {"q", "k", "v"}) {
    const Tensor zero({4, 4}, LYC_DTYPE_F32);
    const Tensor d =
        merged(make_module(context_.get(), lora(4, 4, 20 + static_cast<std::uint64_t>(part[0]))), zero, 2.0f);
    for (int64_t i = 0; i < 16; ++i) want[static_cast<std::size_t>(row * 4 + i)] += d.get(i);
    row += 4;
  }
  EXPECT_TRUE(near(weights_.begin()->second.values(), want, tolerance(LYC_DTYPE_F32, 6)));
  const auto json = nlohmann::json::parse(lyc_report_json(report.get()));
  EXPECT_EQ(json["layers"].size(), 4u);
  for (const auto &entry : json["layers"]) EXPECT_EQ(entry["outcome"], "matched");
}

TEST_F(Networks, UnmatchedExcludedIncluded) {
  Tensors tensors = layer("lora_unet_a_b", 4, 4, 1);
  tensors.merge(layer("lora_unet_c", 4, 4, 2));
  const Network network = load(tensors);
  const Tensors base = {{"a.b.weight", random_tensor({4, 4}, 3)}},
                both = {{"a.b.weight", random_tensor({4, 4}, 3)}, {"c.weight", random_tensor({4, 4}, 4)}};
  Batch batch;
  Report report;
  fails(match({network.get()}, base, nullptr, &batch), LYC_ERROR_MISMATCH, {"1 of 2", "lora_unet_c"});
  EXPECT_EQ(batch, nullptr);
  lyc_match_options options;
  lyc_match_options_init(&options, sizeof options);
  options.flags = LYC_ALLOW_UNMATCHED;
  ok(match({network.get()}, base, &options, &batch, &report));
  lyc_report_info info;
  lyc_report_info_init(&info, sizeof info);
  ok(lyc_report_get_info(report.get(), &info));
  EXPECT_EQ(info.matched_count, 1u);
  EXPECT_EQ(info.unmatched_count, 1u);
  fails(match({network.get()}, {{"z.weight", random_tensor({4, 4}, 3)}}, &options, &batch), LYC_ERROR_MISMATCH,
        {"not for this base"});
  const char *patterns[] = {"c.*"};
  lyc_match_options_init(&options, sizeof options);
  options.excludes = patterns, options.exclude_count = 1;
  ok(match({network.get()}, both, &options, &batch, &report));
  ok(lyc_report_get_info(report.get(), &info));
  EXPECT_EQ(info.excluded_count, 1u);
  options.includes = patterns, options.include_count = 1, options.exclude_count = 0;
  ok(match({network.get()}, both, &options, &batch, &report));
  ok(lyc_report_get_info(report.get(), &info));
  EXPECT_EQ(info.matched_count, 1u);
  EXPECT_EQ(info.excluded_count, 1u);
  fails(match({network.get()}, {{"a.b.weight", random_tensor({4, 5}, 3)}, {"c.weight", random_tensor({4, 4}, 4)}},
              nullptr, &batch),
        LYC_ERROR_MISMATCH, {"lora_unet_a_b", "columns"});
}

}  // namespace
}  // namespace lyc::test
