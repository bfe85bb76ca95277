// lyc_merge_files() as its users meet it: every form of base, rule and refusal, beside a reference in float64.
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include "capi/api.hpp"
#include "support/random.hpp"
#include "support/tolerance.hpp"

namespace lyc::test {
namespace {

using Metadata = std::map<std::string, std::string>;
using Json = nlohmann::json;

Tensor random_tensor(std::vector<int64_t> shape, std::uint64_t seed, lyc_dtype dtype = LYC_DTYPE_F32,
                     double size = 1.0) {
  Tensor tensor(std::move(shape), dtype);
  Random random(seed);
  for (int64_t i = 0; i < tensor.count(); ++i) tensor.set(i, size * (2 * random.uniform() - 1));
  return tensor;
}

Tensor number(double value) {
  Tensor tensor({}, LYC_DTYPE_F32);
  tensor.set(0, value);
  return tensor;
}

// Factors of one layer by suffix. Alpha differs from the rank, so that a scale applied twice is seen.

Tensors locon(int64_t out, int64_t in, int64_t rank, std::uint64_t seed) {
  return {{"lora_up.weight", random_tensor({out, rank}, seed)},
          {"lora_down.weight", random_tensor({rank, in}, seed + 1)},
          {"alpha", number(0.5 * static_cast<double>(rank))}};
}

Tensors loha(int64_t out, int64_t in, int64_t rank, std::uint64_t seed) {
  return {{"hada_w1_a", random_tensor({out, rank}, seed)},
          {"hada_w1_b", random_tensor({rank, in}, seed + 1)},
          {"hada_w2_a", random_tensor({out, rank}, seed + 2)},
          {"hada_w2_b", random_tensor({rank, in}, seed + 3)},
          {"alpha", number(0.5 * static_cast<double>(rank))}};
}

Tensors lokr(int64_t out, int64_t in, int64_t out_parts, int64_t in_parts, std::uint64_t seed) {
  return {{"lokr_w1", random_tensor({out_parts, in_parts}, seed)},
          {"lokr_w2", random_tensor({out / out_parts, in / in_parts}, seed + 1)}};
}

Tensors full(std::vector<int64_t> shape, std::uint64_t seed) {
  return {{"diff", random_tensor(std::move(shape), seed)}};
}

Tensors with_dora(Tensors factors, std::vector<int64_t> shape, std::uint64_t seed) {
  Tensor scale = random_tensor(std::move(shape), seed);
  for (int64_t i = 0; i < scale.count(); ++i) scale.set(i, 3 + scale.get(i));
  factors["dora_scale"] = std::move(scale);
  return factors;
}

void add_layer(Tensors &adapter, const std::string &layer, const Tensors &factors) {
  for (const auto &[suffix, tensor] : factors) adapter[layer + "." + suffix] = tensor;
}

/// scale * up down, in float64.
std::vector<double> locon_delta(const Tensors &factors) {
  const Tensor &up = factors.at("lora_up.weight"), &down = factors.at("lora_down.weight");
  const int64_t out = up.shape[0], rank = up.shape[1], in = down.shape[1];
  std::vector<double> delta(static_cast<std::size_t>(out * in));
  for (int64_t o = 0; o < out; ++o)
    for (int64_t r = 0; r < rank; ++r)
      for (int64_t i = 0; i < in; ++i)
        delta[static_cast<std::size_t>(o * in + i)] +=
            factors.at("alpha").get(0) / static_cast<double>(rank) * up.get(o * rank + r) * down.get(r * in + i);
  return delta;
}

/// A tensor of a type that carries no numbers for us, or at an address that no type would choose.
struct RawTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

/// `shift` spaces after the header move the data, which other writers align to 8.
void write_raw(const std::string &path, const std::vector<RawTensor> &tensors, const Metadata &metadata = {},
               int shift = 0) {
  nlohmann::ordered_json header;
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::string data;
  for (const RawTensor &tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  std::string text = header.dump();
  while (text.size() % 8 != static_cast<std::size_t>(shift)) text += ' ';
  const std::uint64_t length = text.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char *>(&length), sizeof length);
  file << text << data;
}

RawTensor raw(const std::string &name, const Tensor &tensor) {
  const char *const dtype = tensor.dtype == LYC_DTYPE_F32 ? "F32" : tensor.dtype == LYC_DTYPE_F16 ? "F16" : "BF16";
  return {name, dtype, tensor.shape, std::string(tensor.bytes.begin(), tensor.bytes.end())};
}

std::string bytes_of(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void put(const std::string &path, const std::string &text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

/// The delta of a module on a whole tensor in memory: the same kernels, uncut.
Tensor merged_in_memory(const Tensors &factors, const Tensor &base, float multiplier = 1,
                        lyc_dtype dtype = LYC_DTYPE_NONE) {
  const Context context = make_context();
  const Module module = make_module(context.get(), factors);
  Tensor described(base.shape, dtype == LYC_DTYPE_NONE ? base.dtype : dtype);
  described.layout = base.layout;
  const DeviceTensor weight(base), out(described);
  const lyc_tensor base_view = weight.view(), out_view = out.view();
  ok(lyc_merge(module.get(), &base_view, multiplier, &out_view, nullptr));
  return out.read();
}

class MergeFiles : public testing::Test {
 protected:
  MergeFiles() { lyc_merge_options_init(&options_, sizeof options_); }

  std::string at(const std::string &name) const { return folder_ / name; }

  void rule(float multiplier, int32_t adapter = -1, const char *pattern = nullptr) {
    rules_.push_back({pattern, adapter, multiplier});
  }

  lyc_status try_merge(const std::string &base, const std::vector<std::string> &adapters, const std::string &out) {
    std::vector<std::string> paths;
    for (const std::string &name : adapters) paths.push_back(at(name));
    std::vector<const char *> list;
    for (const std::string &path : paths) list.push_back(path.c_str());
    options_.multipliers = rules_.data();
    options_.multiplier_count = rules_.size();
    options_.includes = includes_.data();
    options_.include_count = includes_.size();
    options_.excludes = excludes_.data();
    options_.exclude_count = excludes_.size();
    const Context context = make_context(threads_);
    lyc_report *report = nullptr;
    const lyc_status status =
        lyc_merge_files(context.get(), at(base).c_str(), list.data(), list.size(), at(out).c_str(), &options_, &report);
    const Report owner(report);
    EXPECT_EQ(report == nullptr, status != LYC_OK);
    if (!report) return status;
    lyc_report_info_init(&info_, sizeof info_);
    ok(lyc_report_get_info(report, &info_));
    json_ = Json::parse(lyc_report_json(report));
    return status;
  }

  /// The merged tensors of the file that the merge gave.
  Tensors merge(const std::vector<std::string> &adapters = {"a.safetensors"},
                const std::string &base = "base.safetensors", const std::string &out = "out.safetensors") {
    ok(try_merge(base, adapters, out));
    if (testing::Test::HasFatalFailure() || std::filesystem::is_directory(at(out))) return {};
    metadata_.clear();
    return read_file(at(out), &metadata_);
  }

  /// The merge must fail like this and leave the folder as it was.
  void refuses(lyc_status expected, const std::vector<std::string> &words,
               const std::vector<std::string> &adapters = {"a.safetensors"},
               const std::string &base = "base.safetensors", const std::string &out = "out.safetensors") {
    const std::vector<std::string> before = folder_.names();
    fails(try_merge(base, adapters, out), expected, words);
    EXPECT_EQ(std::string(lyc_last_error_message()).find('\n'), std::string::npos);
    EXPECT_EQ(folder_.names(), before);
  }

  void expect_near(const Tensor &got, const std::vector<double> &want, int64_t length) {
    EXPECT_TRUE(near(got.values(), want, tolerance(got.dtype, length, want.size())));
  }

  const Folder folder_;
  lyc_merge_options options_;
  std::vector<lyc_multiplier_rule> rules_;
  std::vector<const char *> includes_, excludes_;
  int threads_ = 2;
  lyc_report_info info_;
  Json json_;
  Metadata metadata_;
};

// -- What comes out ---------------------------------------------------------------------------------------------------

TEST_F(MergeFiles, SeveralAdaptersWithOneRounding) {
  const Tensor weight = random_tensor({37, 29}, 1, LYC_DTYPE_BF16);
  write_file(at("base.safetensors"), {{"x.weight", weight}, {"y.weight", random_tensor({5, 3}, 2)}});
  std::vector<double> want = weight.values();
  std::vector<std::string> names;
  for (int i = 0; i < 5; ++i) {
    Tensors adapter;
    const Tensors factors = locon(37, 29, 3, 10 + 10 * static_cast<std::uint64_t>(i));
    add_layer(adapter, "lycoris_x", factors);
    names.push_back(std::to_string(i) + ".safetensors");
    write_file(at(names.back()), adapter);
    const std::vector<double> delta = locon_delta(factors);
    for (std::size_t k = 0; k < want.size(); ++k) want[k] += 0.25 * (i + 1) * delta[k];
    rule(0.25f * static_cast<float>(i + 1), i);
  }
  const Tensors out = merge(names);
  expect_near(out.at("x.weight"), want, 15);
  // One rounding: no element is further from the exact sum than half a unit in the last place of bf16, and a little.
  for (std::size_t k = 0; k < want.size(); ++k)
    EXPECT_LE(std::abs(out.at("x.weight").get(static_cast<int64_t>(k)) - want[k]),
              std::abs(want[k]) * 0x1.01p-8 + 0x1p-20);
  EXPECT_EQ(out.at("y.weight").bytes, random_tensor({5, 3}, 2).bytes);
  EXPECT_EQ(info_.changed_count, 1u);
  EXPECT_EQ(info_.tensor_count, 2u);
  EXPECT_EQ(info_.layer_count, 5u);
  EXPECT_EQ(info_.matched_count, 5u);
}

// A file without the state that training began from: it is made of each base as it was before any adapter.
TEST_F(MergeFiles, TloraStartsFromThePristineWeight) {
  const Tensor weight = random_tensor({12, 20}, 1);
  const Tensors factors = {{"p_layer.weight", random_tensor({12, 3}, 2)},
                           {"lambda_layer", random_tensor({1, 3}, 3)},
                           {"q_layer.weight", random_tensor({3, 20}, 4)}};
  const Tensors more = locon(12, 20, 2, 5);
  Tensors tlora, lora;
  add_layer(tlora, "lycoris_x", factors);
  add_layer(lora, "lycoris_x", more);
  write_file(at("base.safetensors"), {{"x.weight", weight}});
  write_file(at("a.safetensors"), tlora);
  write_file(at("b.safetensors"), lora);
  EXPECT_EQ(merge().at("x.weight").bytes, merged_in_memory(factors, weight).bytes);
  options_.flags = LYC_OVERWRITE;
  std::vector<double> want = merged_in_memory(factors, weight).values();
  const std::vector<double> delta = locon_delta(more);
  for (std::size_t i = 0; i < want.size(); ++i) want[i] += delta[i];
  for (const std::vector<std::string> &order :
       {std::vector<std::string>{"a.safetensors", "b.safetensors"}, {"b.safetensors", "a.safetensors"}})
    expect_near(merge(order).at("x.weight"), want, 32);
}

TEST_F(MergeFiles, ConvertsFloatsAndCarriesTheRest) {
  const Tensor touched = random_tensor({12, 20}, 1), other = random_tensor({7, 3}, 2, LYC_DTYPE_F16),
               vector = random_tensor({9}, 3, LYC_DTYPE_BF16), scalar = number(1.0 / 3);
  const Tensors factors = locon(12, 20, 2, 5);
  Tensors adapter;
  add_layer(adapter, "lycoris_x", factors);
  write_file(at("a.safetensors"), adapter);
  write_raw(at("base.safetensors"),
            {raw("x.weight", touched),
             {"fp8", "F8_E4M3", {3}, "\x01\x7f\xff"},
             raw("y.weight", other),
             {"ids", "I64", {2}, std::string("\x01\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f", 16)},
             raw("v.bias", vector),
             {"double", "F64", {1}, std::string(8, '\x3f')},
             raw("scalar", scalar),
             {"empty", "F32", {0, 4}, ""}});
  for (const lyc_dtype dtype : {LYC_DTYPE_F32, LYC_DTYPE_F16, LYC_DTYPE_BF16}) {
    SCOPED_TRACE(lyc_dtype_name(dtype));
    options_.dtype = dtype;
    options_.flags = LYC_OVERWRITE;
    const Tensors out = merge();
    EXPECT_EQ(out.at("x.weight").bytes, merged_in_memory(factors, touched, 1, dtype).bytes);
    for (const auto &[name, tensor] :
         {std::pair<const char *, const Tensor &>{"y.weight", other}, {"v.bias", vector}, {"scalar", scalar}}) {
      EXPECT_EQ(out.at(name).dtype, dtype) << name;
      EXPECT_EQ(out.at(name).bytes, tensor.as(dtype).bytes) << name;
      EXPECT_EQ(out.at(name).shape, tensor.shape) << name;
    }
    EXPECT_EQ(out.at("empty").shape, (std::vector<int64_t>{0, 4}));
    const std::string file = bytes_of(at("out.safetensors"));
    for (const std::string &part : {std::string("\x01\x7f\xff"), std::string(8, '\x3f')})
      EXPECT_NE(file.find(part), std::string::npos);
    EXPECT_EQ(out.at("ids").dtype, LYC_DTYPE_I64);
    EXPECT_EQ(out.at("double").dtype, LYC_DTYPE_F64);
  }
}

TEST_F(MergeFiles, UnknownTypesAreCarried) {
  write_raw(at("base.safetensors"), {raw("x.weight", random_tensor({4, 4}, 1)), {"new", "F8_E8M0", {2}, "\xabz"}});
  Tensors adapter;
  add_layer(adapter, "lycoris_x", locon(4, 4, 2, 5));
  write_file(at("a.safetensors"), adapter);
  options_.dtype = LYC_DTYPE_BF16;
  ok(try_merge("base.safetensors", {"a.safetensors"}, "out.safetensors"));
  const std::string file = bytes_of(at("out.safetensors"));
  EXPECT_EQ(file.substr(file.size() - 2), "\xabz");
  EXPECT_NE(file.find(R"("dtype":"F8_E8M0")"), std::string::npos);
}

TEST_F(MergeFiles, SwitchedOffLayersAreConvertedToo) {
  const Tensor weight = random_tensor({6, 10}, 1), fused = random_tensor({8, 4}, 2);
  write_file(at("base.safetensors"), {{"x.weight", weight}, {"y.weight", fused}});
  Tensors adapter;
  add_layer(adapter, "lycoris_x", locon(6, 10, 2, 5));
  add_layer(adapter, "lycoris_y", with_dora(locon(8, 4, 2, 7), {1, 4}, 9));
  write_file(at("a.safetensors"), adapter);
  rule(0);
  options_.dtype = LYC_DTYPE_BF16;
  const Tensors out = merge();
  EXPECT_EQ(out.at("x.weight").bytes, weight.as(LYC_DTYPE_BF16).bytes);
  EXPECT_EQ(out.at("y.weight").bytes, fused.as(LYC_DTYPE_BF16).bytes);
}

TEST_F(MergeFiles, KeepsMetadataAndExtendsTheChain) {
  write_file(at("base.safetensors"), {{"x.weight", random_tensor({4, 4}, 1)}},
             {{"format", "pt"}, {"modelspec.hash_sha256", "0xabc"}, {"modelspec.title", "täst"}});
  Tensors adapter;
  add_layer(adapter, "lycoris_x", locon(4, 4, 2, 5));
  write_file(at("a.safetensors"), adapter);
  rule(0.5f);
  merge();
  EXPECT_EQ(metadata_["format"], "pt");
  EXPECT_EQ(metadata_["modelspec.title"], "täst");
  EXPECT_EQ(metadata_.count("modelspec.hash_sha256"), 0u);
  EXPECT_EQ(Json::parse(metadata_["lycoris.operations"]).size(), 1u);
  merge({"a.safetensors"}, "out.safetensors", "twice.safetensors");
  const Json chain = Json::parse(metadata_["lycoris.operations"]);
  ASSERT_EQ(chain.size(), 2u);
  for (const Json &operation : chain) {
    EXPECT_EQ(operation["operation"], "merge");
    EXPECT_EQ(operation["lycoris"], lyc_version_string());
    EXPECT_EQ(operation["adapters"][0]["file"], "a.safetensors");
    EXPECT_EQ(operation["adapters"][0]["multipliers"], Json::array({0.5}));
  }
}

TEST_F(MergeFiles, ConversionAloneMakesTheHashStale) {
  write_file(at("base.safetensors"), {{"x.weight", random_tensor({4, 4}, 1)}}, {{"modelspec.hash_sha256", "0xabc"}});
  Tensors adapter;
  add_layer(adapter, "lycoris_x", locon(4, 4, 2, 5));
  write_file(at("a.safetensors"), adapter);
  rule(0);
  merge();
  EXPECT_EQ(metadata_.count("modelspec.hash_sha256"), 1u) << "every byte is as it was";
  options_.dtype = LYC_DTYPE_F16;
  merge({"a.safetensors"}, "base.safetensors", "half.safetensors");
  EXPECT_EQ(metadata_.count("modelspec.hash_sha256"), 0u);
}

TEST_F(MergeFiles, UnalignedDataAndZeroSizes) {
  for (int shift = 0; shift < 8; ++shift) {
    const Tensor weight = random_tensor({11, 13}, 1, LYC_DTYPE_BF16);
    write_raw(at("base.safetensors"),
              {{"odd", "U8", {3}, "abc"},
               {"nothing.weight", "F32", {0, 7}, ""},
               raw("x.weight", weight),
               {"last", "F32", {0}, ""}},
              {}, shift);
    Tensors adapter;
    const Tensors factors = locon(11, 13, 2, 5);
    add_layer(adapter, "lycoris_x", factors);
    write_file(at("a.safetensors"), adapter);
    options_.flags = LYC_OVERWRITE;
    const Tensors out = merge();
    EXPECT_EQ(out.at("x.weight").bytes, merged_in_memory(factors, weight).bytes) << shift;
    EXPECT_EQ(out.at("nothing.weight").shape, (std::vector<int64_t>{0, 7}));
    EXPECT_EQ(out.at("odd").bytes, (std::vector<unsigned char>{'a', 'b', 'c'}));
  }
}

TEST_F(MergeFiles, WeightsWithoutElementsOrAxes) {
  write_raw(at("base.safetensors"), {{"x.weight", "F32", {0, 7}, ""}, {"s.weight", "F32", {}, std::string(4, '\0')}});
  Tensors adapter;
  add_layer(adapter, "lycoris_x", locon(4, 7, 2, 5));
  write_file(at("a.safetensors"), adapter);
  refuses(LYC_ERROR_MISMATCH, {"a.safetensors", "base.safetensors", "x"});
  adapter.clear();
  add_layer(adapter, "lycoris_s", locon(4, 7, 2, 5));
  write_file(at("a.safetensors"), adapter);
  refuses(LYC_ERROR_MISMATCH, {"a.safetensors", "base.safetensors", "s"});
}

TEST_F(MergeFiles, BiasAndNormDifferences) {
  const Tensor weight = random_tensor({6, 5}, 1), bias = random_tensor({6}, 2), scale = random_tensor({8}, 3),
               shift = random_tensor({8}, 4);
  write_file(at("base.safetensors"), {{"x.weight", weight}, {"x.bias", bias}, {"n.weight", scale}, {"n.bias", shift}});
  Tensors adapter;
  const Tensors factors = locon(6, 5, 2, 5);
  const Tensor db = random_tensor({6}, 8), dw_norm = random_tensor({8}, 9), db_norm = random_tensor({8}, 10);
  add_layer(adapter, "lycoris_x", factors);
  adapter["lycoris_x.diff_b"] = db;
  adapter["lycoris_n.w_norm"] = dw_norm;
  adapter["lycoris_n.b_norm"] = db_norm;
  write_file(at("a.safetensors"), adapter);
  rule(0.5f);
  const Tensors out = merge();
  EXPECT_EQ(out.at("x.weight").bytes, merged_in_memory(factors, weight, 0.5f).bytes);
  const auto expect_sum = [&](const char *name, const Tensor &base, const Tensor &delta) {
    for (int64_t i = 0; i < base.count(); ++i)
      EXPECT_NEAR(out.at(name).get(i), base.get(i) + 0.5 * delta.get(i), 1e-6) << name << i;
  };
  expect_sum("x.bias", bias, db);
  expect_sum("n.weight", scale, dw_norm);
  expect_sum("n.bias", shift, db_norm);
  EXPECT_EQ(info_.changed_count, 4u);
}

// -- Several files ----------------------------------------------------------------------------------------------------

TEST_F(MergeFiles, ShardsWithIndex) {
  const Tensor x = random_tensor({8, 6}, 1), y = random_tensor({4, 6}, 2);
  std::filesystem::create_directories(at("model"));
  write_file(at("model/model-00001-of-00002.safetensors"), {{"x.weight", x}}, {{"format", "pt"}});
  write_file(at("model/model-00002-of-00002.safetensors"), {{"y.weight", y}},
             {{"format", "pt"}, {"modelspec.hash_sha256", "0x1"}});
  put(at("model/model.safetensors.index.json"),
      R"({"metadata":{"total_size":288},"weight_map":{"x.weight":"model-00001-of-00002.safetensors",)"
      R"("y.weight":"model-00002-of-00002.safetensors"}})");
  put(at("model/config.json"), "{\"a\": 1}");
  put(at("model/tokenizer/vocab.txt"), "a\nb\n");
  Tensors adapter;
  const Tensors factors = locon(8, 6, 2, 5);
  add_layer(adapter, "lycoris_x", factors);
  write_file(at("a.safetensors"), adapter);
  for (const char *base : {"model", "model/model.safetensors.index.json"}) {
    SCOPED_TRACE(base);
    options_.dtype = LYC_DTYPE_BF16;
    options_.flags = LYC_OVERWRITE;
    merge({"a.safetensors"}, base, "out");
    Metadata first, second;
    const Tensors one = read_file(at("out/model-00001-of-00002.safetensors"), &first),
                  two = read_file(at("out/model-00002-of-00002.safetensors"), &second);
    EXPECT_EQ(one.at("x.weight").bytes, merged_in_memory(factors, x, 1, LYC_DTYPE_BF16).bytes);
    EXPECT_EQ(two.at("y.weight").bytes, y.as(LYC_DTYPE_BF16).bytes);
    const Json index = Json::parse(bytes_of(at("out/model.safetensors.index.json")));
    EXPECT_EQ(index["metadata"]["total_size"], 144);
    EXPECT_EQ(index["weight_map"]["y.weight"], "model-00002-of-00002.safetensors");
    EXPECT_EQ(bytes_of(at("out/config.json")), "{\"a\": 1}");
    EXPECT_EQ(first.count("lycoris.operations"), 1u);
    EXPECT_EQ(second.count("modelspec.hash_sha256"), 0u);
  }
  EXPECT_EQ(folder_.names(), (std::vector<std::string>{"a.safetensors", "model", "out"}));
  refuses(LYC_ERROR_INVALID_ARGUMENT, {"folder"}, {"a.safetensors"}, "model");  // out.safetensors is a file's name
  refuses(LYC_ERROR_INVALID_ARGUMENT, {"model"}, {"a.safetensors"}, "model", "model");
  refuses(LYC_ERROR_INVALID_ARGUMENT, {"model"}, {"a.safetensors"}, "model", "model/");
  options_.flags = 0;
  refuses(LYC_ERROR_INVALID_ARGUMENT, {"out", "exists"}, {"a.safetensors"}, "model", "out");
}

TEST_F(MergeFiles, OutputInsideTheBaseIsRefused) {
  std::filesystem::create_directories(at("model"));
  write_file(at("model/model.safetensors"), {{"x.weight", random_tensor({4, 4}, 1)}});
  Tensors adapter;
  add_layer(adapter, "lycoris_x", locon(4, 4, 2, 5));
  write_file(at("a.safetensors"), adapter);
  std::filesystem::create_directory_symlink(at("model"), at("link"));
  options_.flags = LYC_OVERWRITE;
  refuses(LYC_ERROR_INVALID_ARGUMENT, {"link"}, {"a.safetensors"}, "model", "link");
  refuses(LYC_ERROR_INVALID_ARGUMENT, {}, {"a.safetensors"}, "model/model.safetensors", "link/model.safetensors");
}

TEST_F(MergeFiles, DiffusersFolder) {
  const Tensor unet = random_tensor({8, 6}, 1), text = random_tensor({6, 6}, 2, LYC_DTYPE_F16);
  for (const char *part : {"unet", "text_encoder", "scheduler"})
    std::filesystem::create_directories(at("sd/" + std::string(part)));
  put(at("sd/model_index.json"),
      R"({"_class_name":"P","unet":["d","U"],"text_encoder":["t","T"],"scheduler":["d","S"]})");
  write_file(at("sd/unet/diffusion_pytorch_model.safetensors"), {{"down.x.weight", unet}});
  write_file(at("sd/text_encoder/model.safetensors"), {{"text_model.q.weight", text}});
  put(at("sd/unet/config.json"), "{}");
  put(at("sd/scheduler/scheduler_config.json"), "{\"s\":1}");
  Tensors adapter;
  const Tensors of_unet = locon(8, 6, 2, 5), of_text = loha(6, 6, 2, 9);
  add_layer(adapter, "lora_unet_down_x", of_unet);
  add_layer(adapter, "lora_te_text_model_q", of_text);
  write_file(at("a.safetensors"), adapter);
  rule(0.5f, -1, "text_encoder*");
  merge({"a.safetensors"}, "sd", "out");
  EXPECT_EQ(read_file(at("out/unet/diffusion_pytorch_model.safetensors")).at("down.x.weight").bytes,
            merged_in_memory(of_unet, unet).bytes);
  EXPECT_EQ(read_file(at("out/text_encoder/model.safetensors")).at("text_model.q.weight").bytes,
            merged_in_memory(of_text, text, 0.5f).bytes);
  EXPECT_EQ(bytes_of(at("out/scheduler/scheduler_config.json")), "{\"s\":1}");
  EXPECT_EQ(bytes_of(at("out/unet/config.json")), "{}");
  EXPECT_EQ(bytes_of(at("out/model_index.json")), bytes_of(at("sd/model_index.json")));
}

TEST_F(MergeFiles, FolderOfShardsWithoutIndex) {
  const Tensor x = random_tensor({8, 6}, 1);
  std::filesystem::create_directories(at("m"));
  write_file(at("m/m-00001-of-00002.safetensors"), {{"x.weight", x}});
  write_file(at("m/m-00002-of-00002.safetensors"), {{"y.weight", x}});
  Tensors adapter;
  const Tensors factors = locon(8, 6, 2, 5);
  add_layer(adapter, "lycoris_y", factors);
  write_file(at("a.safetensors"), adapter);
  merge({"a.safetensors"}, "m", "out");
  EXPECT_EQ(read_file(at("out/m-00002-of-00002.safetensors")).at("y.weight").bytes, merged_in_memory(factors, x).bytes);
  EXPECT_EQ(bytes_of(at("out/m-00001-of-00002.safetensors")), bytes_of(at("m/m-00001-of-00002.safetensors")))
      << "a shard that nothing changes stays as it is";
}

// -- Tensors that are cut by rows -------------------------------------------------------------------------------------

struct Cut {
  const char *name;
  int64_t out, in;
  Tensors (*factors)(int64_t out, int64_t in);
  lyc_dtype dtype, out_dtype;
};

class MergeFilesInBlocks : public MergeFiles, public testing::WithParamInterface<Cut> {};

TEST_P(MergeFilesInBlocks, GivesTheBitsOfTheWholeTensor) {
  const Cut &cut = GetParam();
  const Tensor weight = random_tensor({cut.out, cut.in}, 1, cut.dtype);
  const Tensors factors = cut.factors(cut.out, cut.in);
  Tensors adapter;
  add_layer(adapter, "lycoris_x", factors);
  write_file(at("base.safetensors"), {{"x.weight", weight}});
  write_file(at("a.safetensors"), adapter);
  options_.dtype = cut.out_dtype;
  rule(0.75f);
  const Tensors out = merge();
  EXPECT_EQ(out.at("x.weight").bytes, merged_in_memory(factors, weight, 0.75f, cut.out_dtype).bytes);
}

constexpr int64_t kOut = 4111, kIn = 2503;  // F32: 41 MB; both prime, so every cut is an odd one
INSTANTIATE_TEST_SUITE_P(
    Large, MergeFilesInBlocks,
    testing::Values(
        Cut{"locon", kOut, kIn, [](int64_t o, int64_t i) { return locon(o, i, 3, 7); }, LYC_DTYPE_F32, LYC_DTYPE_NONE},
        Cut{"locon_to_bf16", kOut, kIn, [](int64_t o, int64_t i) { return locon(o, i, 3, 7); }, LYC_DTYPE_F32,
            LYC_DTYPE_BF16},
        Cut{"locon_to_f32", kOut, kIn, [](int64_t o, int64_t i) { return locon(o, i, 3, 7); }, LYC_DTYPE_F16,
            LYC_DTYPE_F32},
        Cut{"loha", kOut, kIn, [](int64_t o, int64_t i) { return loha(o, i, 2, 7); }, LYC_DTYPE_F32, LYC_DTYPE_NONE},
        Cut{"lokr", 7 * 587, 2503, [](int64_t o, int64_t i) { return lokr(o, i, 7, 1, 7); }, LYC_DTYPE_F32,
            LYC_DTYPE_NONE},
        Cut{"lokr_small_second", 587 * 7, 5 * 499, [](int64_t o, int64_t i) { return lokr(o, i, 587, 5, 7); },
            LYC_DTYPE_F32, LYC_DTYPE_NONE},
        Cut{"full", kOut, kIn,
            [](int64_t o, int64_t i) {
              return full({o, i}, 7);
            },
            LYC_DTYPE_F32, LYC_DTYPE_NONE},
        Cut{"dora_out", kOut, kIn,
            [](int64_t o, int64_t i) {
              return with_dora(locon(o, i, 3, 7), {o, 1}, 9);
            },
            LYC_DTYPE_F32, LYC_DTYPE_NONE},
        Cut{"dora_in", kOut, kIn,
            [](int64_t o, int64_t i) {
              return with_dora(locon(o, i, 3, 7), {1, i}, 9);
            },
            LYC_DTYPE_F32, LYC_DTYPE_BF16},
        Cut{"dora_loha", kOut, kIn,
            [](int64_t o, int64_t i) {
              return with_dora(loha(o, i, 2, 7), {o, 1}, 9);
            },
            LYC_DTYPE_BF16, LYC_DTYPE_F32}),
    [](const auto &given) { return given.param.name; });

TEST_F(MergeFiles, LargeUntouchedTensorsAreConvertedWhole) {
  const Tensor large = random_tensor({4099, 2503}, 1), small = random_tensor({4, 4}, 2);
  write_file(at("base.safetensors"), {{"big", large}, {"x.weight", small}});
  Tensors adapter;
  add_layer(adapter, "lycoris_x", locon(4, 4, 2, 5));
  write_file(at("a.safetensors"), adapter);
  options_.dtype = LYC_DTYPE_BF16;
  EXPECT_EQ(merge().at("big").bytes, large.as(LYC_DTYPE_BF16).bytes);
}

TEST_F(MergeFiles, TransposedWeightsAreTakenWhole) {
  const int64_t in = 2503, out = 4111;
  const std::string name = "conditioner.embedders.1.model.text_projection";
  Tensor weight = random_tensor({in, out}, 1);
  write_file(at("base.safetensors"), {{name, weight}});
  const Tensors factors = locon(out, in, 3, 7);
  Tensors adapter;
  add_layer(adapter, "lora_te2_text_projection", factors);
  write_file(at("a.safetensors"), adapter);
  weight.layout = LYC_LAYOUT_HWIO;
  EXPECT_EQ(merge().at(name).bytes, merged_in_memory(factors, weight).bytes);
}

TEST_F(MergeFiles, ThreadsGiveTheSameFile) {
  Tensors base, adapter;
  for (int i = 0; i < 20; ++i) {
    const std::string name = "x" + std::to_string(i);
    base[name + ".weight"] =
        random_tensor({61, 47}, static_cast<std::uint64_t>(i), i % 2 ? LYC_DTYPE_F32 : LYC_DTYPE_BF16);
    if (i % 3)
      add_layer(adapter, "lycoris_" + name,
                i % 3 == 1 ? with_dora(locon(61, 47, 3, 40), {61, 1}, 3) : loha(61, 47, 3, 50));
  }
  base["big.weight"] = random_tensor({kOut, kIn}, 99);
  add_layer(adapter, "lycoris_big", locon(kOut, kIn, 2, 60));
  write_file(at("base.safetensors"), base);
  write_file(at("a.safetensors"), adapter);
  for (int threads : {1, 2, 5}) {
    threads_ = threads;
    merge({"a.safetensors"}, "base.safetensors", std::to_string(threads) + ".safetensors");
  }
  const std::string one = bytes_of(at("1.safetensors"));
  EXPECT_TRUE(one == bytes_of(at("2.safetensors")));
  EXPECT_TRUE(one == bytes_of(at("5.safetensors")));
}

// -- Fused and split projections --------------------------------------------------------------------------------------

const char *const kParts[] = {"to_q", "to_k", "to_v"};

TEST_F(MergeFiles, FusedAdapterOnSplitBaseAndTheReverse) {
  const std::string split = "transformer.transformer_blocks.0.attn.", fused = "double_blocks.0.img_attn.qkv";
  const Tensor whole = random_tensor({12, 4}, 1);
  Tensors parts, adapter, part_adapter;
  const Tensors factors = locon(12, 4, 2, 5);
  const Tensor merged = merged_in_memory(factors, whole);
  for (int64_t p = 0; p < 3; ++p) {
    Tensor rows({4, 4}, LYC_DTYPE_F32), up({4, 2}, LYC_DTYPE_F32);
    for (int64_t i = 0; i < 16; ++i) rows.set(i, whole.get(16 * p + i));
    for (int64_t i = 0; i < 8; ++i) up.set(i, factors.at("lora_up.weight").get(8 * p + i));
    parts[split + kParts[p] + ".weight"] = rows;
    add_layer(
        part_adapter, "lora_transformer_transformer_blocks_0_attn_" + std::string(kParts[p]),
        {{"lora_up.weight", up}, {"lora_down.weight", factors.at("lora_down.weight")}, {"alpha", factors.at("alpha")}});
  }
  add_layer(adapter, "lora_unet_double_blocks_0_img_attn_qkv", factors);
  write_file(at("a.safetensors"), adapter);
  write_file(at("parts.safetensors"), part_adapter);
  write_file(at("split.safetensors"), parts);
  write_file(at("fused.safetensors"), {{fused + ".weight", whole}});

  const Tensors on_split = merge({"a.safetensors"}, "split.safetensors");
  for (int64_t p = 0; p < 3; ++p)
    for (int64_t i = 0; i < 16; ++i)
      EXPECT_EQ(on_split.at(split + kParts[p] + ".weight").get(i), merged.get(16 * p + i)) << p << i;
  EXPECT_EQ(merge({"parts.safetensors"}, "fused.safetensors", "2.safetensors").at(fused + ".weight").bytes,
            merged.bytes);

  // Both on one tensor, each at its own strength: the sum of both.
  rule(0.5f, 1);
  const Tensor both =
      merge({"a.safetensors", "parts.safetensors"}, "fused.safetensors", "3.safetensors").at(fused + ".weight");
  const std::vector<double> delta = locon_delta(factors);
  for (int64_t i = 0; i < whole.count(); ++i)
    EXPECT_NEAR(both.get(i), whole.get(i) + 1.5 * delta[static_cast<std::size_t>(i)], 1e-5);
  EXPECT_EQ(info_.changed_count, 1u);

  // One part switched off: its rows keep their bits.
  rules_.clear();
  rule(0, -1, "*to_k");
  const Tensor some = merge({"parts.safetensors"}, "fused.safetensors", "4.safetensors").at(fused + ".weight");
  for (int64_t i = 0; i < whole.count(); ++i) EXPECT_EQ(some.get(i), i / 16 == 1 ? whole.get(i) : merged.get(i)) << i;
}

TEST_F(MergeFiles, PartOfAFusedTensorIsConvertedWithTheRest) {
  const std::string fused = "double_blocks.0.img_attn.qkv.weight";
  const Tensor whole = random_tensor({12, 4}, 1);
  write_file(at("base.safetensors"), {{fused, whole}});
  Tensors adapter;
  add_layer(adapter, "lora_transformer_transformer_blocks_0_attn_to_k", locon(4, 4, 2, 5));
  write_file(at("a.safetensors"), adapter);
  options_.dtype = LYC_DTYPE_BF16;
  const Tensor out = merge().at(fused);
  const Tensor untouched = whole.as(LYC_DTYPE_BF16);
  for (int64_t i : {0, 15, 32, 47}) EXPECT_EQ(out.get(i), untouched.get(i)) << i;
}

// -- Rules ------------------------------------------------------------------------------------------------------------

class MergeRules : public MergeFiles {
 protected:
  MergeRules() {
    for (const char *name : {"block.a", "block.b", "other.c"})
      base_[std::string(name) + ".weight"] = random_tensor({6, 4}, 1);
    Tensors adapter;
    for (const char *name : {"lycoris_block_a", "lycoris_block_b", "lycoris_other_c"})
      add_layer(adapter, name, factors_);
    write_file(at("base.safetensors"), base_);
    write_file(at("a.safetensors"), adapter);
    write_file(at("b.safetensors"), adapter);
  }

  void expect_multipliers(float a, float b, float c, const std::vector<std::string> &adapters = {"a.safetensors"}) {
    options_.flags |= LYC_OVERWRITE;
    const Tensors out = merge(adapters);
    const Tensor &weight = base_.at("block.a.weight");
    const auto expect = [&](const char *name, float multiplier) {
      EXPECT_EQ(out.at(name).bytes,
                multiplier == 0 ? weight.bytes : merged_in_memory(factors_, weight, multiplier).bytes)
          << name << " is not merged at " << multiplier;
    };
    expect("block.a.weight", a);
    expect("block.b.weight", b);
    expect("other.c.weight", c);
  }

  const Tensors factors_ = locon(6, 4, 2, 5);
  Tensors base_;
};

TEST_F(MergeRules, AllThenPatternsLaterWins) {
  expect_multipliers(1, 1, 1);
  rule(0.5f);
  expect_multipliers(0.5f, 0.5f, 0.5f);
  rule(2, -1, "block.*");  // the tensor's name
  expect_multipliers(2, 2, 0.5f);
  rule(-1, -1, "lycoris_block_[b]");  // the layer's
  expect_multipliers(2, -1, 0.5f);
  rule(0, 0);
  expect_multipliers(0, 0, 0);
  EXPECT_EQ(info_.changed_count, 0u);
  EXPECT_EQ(info_.matched_count, 3u);
}

TEST_F(MergeRules, PerAdapter) {
  rule(0, 0);
  rule(3, 1);
  expect_multipliers(3, 3, 3, {"a.safetensors", "b.safetensors"});
  rule(0, 1, "*.c.weight");
  expect_multipliers(3, 3, 0, {"a.safetensors", "b.safetensors"});
}

TEST_F(MergeRules, EmptyPatternMeansNothing) {
  rule(5, -1, "");
  expect_multipliers(1, 1, 1);
}

TEST_F(MergeRules, NumbersAndIndexesAreChecked) {
  for (const lyc_multiplier_rule &bad : {lyc_multiplier_rule{nullptr, 1, 1}, lyc_multiplier_rule{nullptr, -2, 1},
                                         lyc_multiplier_rule{nullptr, -1, std::numeric_limits<float>::quiet_NaN()},
                                         lyc_multiplier_rule{nullptr, 0, std::numeric_limits<float>::infinity()}}) {
    rules_ = {bad};
    refuses(LYC_ERROR_INVALID_ARGUMENT, {"multiplier"});
  }
  rules_.clear();
  options_.dtype = LYC_DTYPE_I8;
  refuses(LYC_ERROR_INVALID_ARGUMENT, {"dtype"});
  options_.dtype = LYC_DTYPE_NONE;
  options_.dora_rule = static_cast<lyc_dora_rule>(77);
  refuses(LYC_ERROR_INVALID_ARGUMENT, {"dora_rule"});
  options_.dora_rule = LYC_DORA_RULE_DEFAULT;
  options_.flags = 64;
  refuses(LYC_ERROR_INVALID_ARGUMENT, {"flags"});
  options_.flags = 0;
  refuses(LYC_ERROR_INVALID_ARGUMENT, {"adapter"}, {});
}

TEST_F(MergeRules, IncludesAndExcludes) {
  includes_ = {"block.*"};
  expect_multipliers(1, 1, 0);
  EXPECT_EQ(info_.excluded_count, 1u);
  excludes_ = {"*_b"};
  expect_multipliers(1, 0, 0);
  EXPECT_EQ(info_.excluded_count, 2u);
  includes_.clear();
  expect_multipliers(1, 0, 1);
  excludes_ = {"*"};
  expect_multipliers(0, 0, 0);
  EXPECT_EQ(bytes_of(at("out.safetensors")), bytes_of(at("base.safetensors"))) << "nothing has been done to it";
}

// -- Refusals ---------------------------------------------------------------------------------------------------------

TEST_F(MergeRules, UnmatchedLayers) {
  Tensors adapter;
  add_layer(adapter, "lycoris_block_a", factors_);
  add_layer(adapter, "lycoris_missing", factors_);
  write_file(at("c.safetensors"), adapter);
  refuses(LYC_ERROR_MISMATCH, {"1 of 2", "lycoris_missing"}, {"c.safetensors"});
  options_.flags = LYC_ALLOW_UNMATCHED;
  merge({"c.safetensors"});
  EXPECT_EQ(info_.unmatched_count, 1u);
  EXPECT_EQ(info_.matched_count, 1u);
  EXPECT_EQ(json_["layers"][1]["outcome"], "unmatched");
  options_.flags |= LYC_OVERWRITE;
  Tensors wrong;
  add_layer(wrong, "lycoris_elsewhere", factors_);
  write_file(at("wrong.safetensors"), wrong);
  refuses(LYC_ERROR_MISMATCH, {"wrong.safetensors", "base.safetensors"}, {"wrong.safetensors"});
  refuses(LYC_ERROR_MISMATCH, {"wrong.safetensors"}, {"a.safetensors", "wrong.safetensors"}, "base.safetensors",
          "other.safetensors");
}

TEST_F(MergeRules, LeftoverKeys) {
  Tensors adapter;
  add_layer(adapter, "lycoris_block_a", factors_);
  adapter["lycoris_block_b.lora_magnitude_vector"] = random_tensor({2, 2, 2}, 3);
  write_file(at("c.safetensors"), adapter);
  refuses(LYC_ERROR_MISMATCH, {"lycoris_block_b", "DoRA"}, {"c.safetensors"});
  options_.flags = LYC_ALLOW_UNMATCHED;
  merge({"c.safetensors"});
  ASSERT_EQ(json_["adapters"][0]["leftovers"].size(), 1u);
  EXPECT_EQ(json_["adapters"][0]["leftovers"][0]["keys"][0], "lycoris_block_b.lora_magnitude_vector");
}

TEST_F(MergeRules, Shapes) {
  for (const auto &[out, in] : {std::pair<int64_t, int64_t>{6, 5}, {5, 4}, {7, 4}, {4, 6}}) {
    Tensors adapter;
    add_layer(adapter, "lycoris_block_a", locon(out, in, 2, 5));
    write_file(at("c.safetensors"), adapter);
    refuses(LYC_ERROR_MISMATCH, {"c.safetensors", "base.safetensors", "lycoris_block_a", "block.a.weight"},
            {"c.safetensors"});
  }
}

TEST_F(MergeRules, OutputsThatAreRefused) {
  const std::string before = bytes_of(at("base.safetensors"));
  std::filesystem::create_symlink(at("base.safetensors"), at("link.safetensors"));
  std::filesystem::create_hard_link(at("a.safetensors"), at("hard.safetensors"));
  put(at("old.safetensors"), "old");
  std::filesystem::create_directories(at("folder"));
  refuses(LYC_ERROR_INVALID_ARGUMENT, {"exists"}, {"a.safetensors"}, "base.safetensors", "old.safetensors");
  options_.flags = LYC_OVERWRITE;
  for (const char *out : {"base.safetensors", "a.safetensors", "link.safetensors", "hard.safetensors", "folder"})
    refuses(LYC_ERROR_INVALID_ARGUMENT, {out}, {"a.safetensors"}, "base.safetensors", out);
  refuses(LYC_ERROR_NOT_FOUND, {"missing"}, {"a.safetensors"}, "base.safetensors", "missing/out.safetensors");
  EXPECT_EQ(bytes_of(at("base.safetensors")), before);
  merge({"a.safetensors"}, "base.safetensors", "old.safetensors");
}

TEST_F(MergeRules, InputsThatAreRefused) {
  write_file(at("none.safetensors"), {});
  put(at("pickle.pt"), "PK\x03\x04 something");
  put(at("cut.safetensors"), bytes_of(at("a.safetensors")).substr(0, 300));
  put(at("empty.safetensors"), "");
  refuses(LYC_ERROR_FORMAT, {"none.safetensors"}, {"none.safetensors"});
  refuses(LYC_ERROR_UNSUPPORTED, {"pickle.pt"}, {"pickle.pt"});
  refuses(LYC_ERROR_UNSUPPORTED, {"pickle.pt"}, {"a.safetensors"}, "pickle.pt");
  refuses(LYC_ERROR_FORMAT, {"cut.safetensors"}, {"cut.safetensors"});
  refuses(LYC_ERROR_FORMAT, {"empty.safetensors"}, {"a.safetensors"}, "empty.safetensors");
  refuses(LYC_ERROR_NOT_FOUND, {"nowhere"}, {"a.safetensors"}, "nowhere.safetensors");
  refuses(LYC_ERROR_NOT_FOUND, {"nowhere"}, {"nowhere.safetensors"});
  write_file(at("plain.safetensors"), base_);
  ASSERT_NE(try_merge("base.safetensors", {"plain.safetensors"}, "out.safetensors"), LYC_OK) << "a model is no adapter";
}

TEST_F(MergeFiles, QuantisedTensorsThatAnAdapterTouches) {
  write_raw(at("base.safetensors"),
            {{"x.weight", "F8_E4M3", {4, 4}, std::string(16, 'a')}, raw("y.weight", random_tensor({4, 4}, 2))});
  Tensors adapter;
  add_layer(adapter, "lycoris_x", locon(4, 4, 2, 5));
  add_layer(adapter, "lycoris_y", locon(4, 4, 2, 5));
  write_file(at("a.safetensors"), adapter);
  refuses(LYC_ERROR_UNSUPPORTED, {"base.safetensors", "x.weight", "F8_E4M3"});
  excludes_ = {"x.weight"};
  merge();
}

TEST_F(MergeFiles, AmbiguousNames) {
  write_file(at("base.safetensors"),
             {{"a.b_c.weight", random_tensor({4, 4}, 1)}, {"a_b.c.weight", random_tensor({4, 4}, 2)}});
  Tensors adapter;
  add_layer(adapter, "lycoris_a_b_c", locon(4, 4, 2, 5));
  write_file(at("a.safetensors"), adapter);
  refuses(LYC_ERROR_MISMATCH, {"ambiguous", "a.b_c.weight", "a_b.c.weight"});
}

TEST_F(MergeFiles, NonFiniteAlphaIsRefused) {
  write_file(at("base.safetensors"), {{"x.weight", random_tensor({4, 4}, 1)}});
  Tensors factors = locon(4, 4, 2, 5), adapter;
  factors["alpha"] = number(std::numeric_limits<double>::quiet_NaN());
  add_layer(adapter, "lycoris_x", factors);
  write_file(at("a.safetensors"), adapter);
  refuses(LYC_ERROR_FORMAT, {"lycoris_x", "alpha"});
}

// -- Progress ---------------------------------------------------------------------------------------------------------

struct Calls {
  std::vector<std::pair<uint64_t, uint64_t>> seen;
  std::size_t cancel_at = SIZE_MAX;
};

int32_t note(void *user_data, uint64_t done, uint64_t total) {
  auto &calls = *static_cast<Calls *>(user_data);
  calls.seen.emplace_back(done, total);
  return calls.seen.size() > calls.cancel_at;
}

class MergeProgress : public MergeFiles {
 protected:
  MergeProgress() {
    Tensors base, adapter;
    for (int i = 0; i < 12; ++i) {
      const std::string name = "x" + std::to_string(i);
      base[name + ".weight"] = random_tensor({40, 30}, 1);
      if (i % 2) add_layer(adapter, "lycoris_" + name, locon(40, 30, 2, 5));
    }
    write_file(at("base.safetensors"), base);
    write_file(at("a.safetensors"), adapter);
    options_.progress = note;
    options_.user_data = &calls_;
  }
  Calls calls_;
};

TEST_F(MergeProgress, GrowsToItsTotal) {
  for (int threads : {1, 2, 5}) {
    calls_.seen.clear();
    threads_ = threads;
    options_.flags = LYC_OVERWRITE;
    merge();
    ASSERT_GE(calls_.seen.size(), 2u);
    EXPECT_EQ(calls_.seen.front().first, 0u);
    for (std::size_t i = 1; i < calls_.seen.size(); ++i) EXPECT_GE(calls_.seen[i].first, calls_.seen[i - 1].first);
    for (const auto &[done, total] : calls_.seen) EXPECT_EQ(total, info_.bytes_written);
    EXPECT_EQ(calls_.seen.back().first, info_.bytes_written);
  }
}

TEST_F(MergeProgress, CancelsAtAnyCall) {
  threads_ = 1;
  merge();
  const std::size_t count = calls_.seen.size();
  std::filesystem::remove(at("out.safetensors"));
  for (std::size_t i = 0; i < count; ++i) {
    calls_ = {{}, i};
    refuses(LYC_ERROR_CANCELLED, {"cancel"});
    EXPECT_EQ(calls_.seen.size(), i + 1) << "it was asked again";
  }
  put(at("out.safetensors"), "old");
  calls_ = {{}, count - 1};
  options_.flags = LYC_OVERWRITE;
  refuses(LYC_ERROR_CANCELLED, {});
  EXPECT_EQ(bytes_of(at("out.safetensors")), "old");
}

}  // namespace
}  // namespace lyc::test
