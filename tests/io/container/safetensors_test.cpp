#include "io/container/safetensors.hpp"

#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "io/container/temporary_folder.hpp"
#include "io/container/tensor_file.hpp"

namespace lyc::io {
namespace {

using test::expect_error;
using test::image;

TensorFile open_image(const std::string &bytes) { return TensorFile::open_memory(bytes.data(), bytes.size()); }

void expect_refused(const std::string &bytes, const std::vector<std::string> &parts,
                    lyc_status status = LYC_ERROR_FORMAT) {
  expect_error(status, parts, [&] { open_image(bytes); });
}

/// A file of one tensor "t" with this description and `size` bytes of data.
std::string one(const std::string &description, std::size_t size) {
  return image("{\"t\":" + description + "}", std::string(size, '\0'));
}

std::string f32(const std::string &shape, const std::string &offsets) {
  return "{\"dtype\":\"F32\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

TEST(Safetensors, ReadsWhatIsThere) {
  const std::string bytes = image(
      R"({"__metadata__":{"b":"2","a":"1"},"late":{"data_offsets":[3,11],"shape":[2,1],"dtype":"F32"},)"
      R"("early":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"scalar":{"dtype":"BF16","shape":[],"data_offsets":[11,13]}}  )",
      "abc01234567xy");
  const TensorFile file = open_image(bytes);
  EXPECT_EQ(file.kind(), SourceKind::kMemory);
  EXPECT_EQ(file.metadata(), (Metadata{{"a", "1"}, {"b", "2"}}));
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensors()[0].name, "early");  // in the order of the data
  EXPECT_EQ(file.tensors()[1].shape, (std::vector<std::int64_t>{2, 1}));
  EXPECT_EQ(file.tensors()[2].dtype, LYC_DTYPE_BF16);
  EXPECT_TRUE(file.tensors()[2].shape.empty());
  EXPECT_EQ(file.find("late"), 1u);
  EXPECT_FALSE(file.find("never").has_value());
  char data[8];
  file.read(1, data, 0, 8);
  EXPECT_EQ(std::string(data, 8), "01234567");
  file.read(1, data, 6, 2);
  EXPECT_EQ(std::string(data, 2), "67");
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"'late'", "8 bytes"}, [&] { file.read(1, data, 7, 2); });
}

TEST(Safetensors, AcceptsAnEmptyFile) { EXPECT_TRUE(open_image(image("{}", "")).tensors().empty()); }

TEST(Safetensors, AcceptsEmptyTensorsAnywhere) {
  const std::string bytes = image(
      R"({"z":{"dtype":"F32","shape":[0,1000000],"data_offsets":[4,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
      R"("y":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})",
      "abcd");
  const TensorFile file = open_image(bytes);
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensors()[2].size, 0u);
  file.read(2, nullptr, 0, 0);
}

TEST(Safetensors, CarriesUnknownTypes) {
  const TensorFile file = open_image(one(R"({"dtype":"F4","shape":[6],"data_offsets":[0,3]})", 3));
  EXPECT_EQ(file.tensors()[0].dtype, LYC_DTYPE_NONE);
  EXPECT_EQ(file.tensors()[0].dtype_text, "F4");
  EXPECT_EQ(file.tensors()[0].size, 3u);
}

TEST(Safetensors, KnowsEveryTypeOfTheHeader) {
  for (const DtypeInfo &info : kDtypes) {
    const std::string text(info.safetensors);
    const TensorFile file = open_image(one(
        concat("{\"dtype\":\"", text, "\",\"shape\":[3],\"data_offsets\":[0,", 3 * info.size, "]}"), 3 * info.size));
    EXPECT_EQ(file.tensors()[0].dtype, info.dtype);
  }
}

TEST(Safetensors, ReadsNamesOfEveryScript) {
  const std::string bytes = image(R"({"\u00e9\ud83d\ude00":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", "");
  EXPECT_TRUE(open_image(bytes).find("\u00e9\U0001F600").has_value());
}

TEST(Safetensors, TakesFiftyMegabytesOfMetadata) {
  const std::string text(50'000'000, 'x');
  const std::string bytes = image("{\"__metadata__\":{\"ss_tag_frequency\":\"" + text + "\"}}", "");
  EXPECT_EQ(open_image(bytes).metadata().at("ss_tag_frequency").size(), text.size());
}

TEST(Safetensors, TakesManyTensors) {
  std::string json = "{";
  constexpr int kCount = 100'000;
  for (int i = 0; i < kCount; ++i)
    json += concat(i ? "," : "", "\"layer.", i, "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[", i, ",", i + 1,
                   "]}");
  const std::string bytes = image(json + "}", std::string(kCount, 'x'));
  const TensorFile file = open_image(bytes);
  EXPECT_EQ(file.find("layer.77777"), 77777u);
}

TEST(SafetensorsRefuses, WhatIsTooShortOrCutOff) {
  const std::string whole = one(f32("[2]", "[0,8]"), 8);
  for (std::size_t size = 0; size < whole.size(); ++size)
    expect_error(LYC_ERROR_FORMAT, {"(memory)"}, [&] { TensorFile::open_memory(whole.data(), size); });
  open_image(whole);
}

TEST(SafetensorsRefuses, LengthsThatDoNotFit) {
  std::string bytes = one(f32("[2]", "[0,8]"), 8);
  bytes[1] = 1;
  expect_refused(bytes, {"header has", "cut off"});
  bytes[6] = 1;
  expect_refused(bytes, {"more than the 100000000"});
  bytes.replace(0, 8, 8, '\xff');
  expect_refused(bytes, {"18446744073709551615"});
}

TEST(SafetensorsRefuses, HolesOverlapsAndLooseEnds) {
  const auto two = [](const std::string &a, const std::string &b, std::size_t size) {
    return image("{\"a\":" + f32("[1]", a) + ",\"b\":" + f32("[1]", b) + "}", std::string(size, '\0'));
  };
  open_image(two("[4,8]", "[0,4]", 8));
  expect_refused(two("[0,4]", "[5,9]", 9), {"'b'", "hole", "4 was expected"});
  expect_refused(two("[0,4]", "[2,6]", 6), {"'b'", "inside another"});
  expect_refused(two("[0,4]", "[0,4]", 4), {"'b'", "inside another"});
  expect_refused(two("[4,8]", "[8,12]", 12), {"'a'", "hole"});
  expect_refused(two("[0,4]", "[4,8]", 9), {"1 bytes at the end"});
  expect_refused(two("[0,4]", "[4,8]", 7), {"'b'", "only 7"});
  expect_refused(one(f32("[1]", "[4,0]"), 4), {"'t'", "before it begins"});
  expect_refused(one(f32("[1]", "[18446744073709551612,18446744073709551615]"), 4), {"'t'"});
}

TEST(SafetensorsRefuses, ShapesThatDoNotFitOrOverflow) {
  expect_refused(one(f32("[2]", "[0,4]"), 4), {"'t'", "4 bytes", "take 8"});
  expect_refused(one(f32("[0]", "[0,4]"), 4), {"'t'", "take 0"});
  expect_refused(one(f32("[4294967296,4294967296,4294967296]", "[0,4]"), 4), {"'t'", "too large"});
  expect_refused(one(f32("[4611686018427387904]", "[0,0]"), 0), {"'t'", "too large"});  // times 4: 2^64
  expect_refused(one(f32("[0,4611686018427387904,4]", "[0,0]"), 0), {"'t'", "too large"});
  expect_refused(one(f32("[9223372036854775808]", "[0,4]"), 4), {"'t'", "too large"});
  expect_refused(one(f32("[99999999999999999999999]", "[0,4]"), 4), {"'t'", "integer"});
  expect_refused(one(f32("[-1]", "[0,4]"), 4), {"'t'", "negative"});
  expect_refused(one(f32("[1.0]", "[0,4]"), 4), {"'t'", "integer"});
  expect_refused(one(f32("[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4), {"'t'", "more than 8"});
  open_image(one(f32("[1,1,1,1,1,1,1,1]", "[0,4]"), 4));
  expect_refused(one(R"({"dtype":"F4","shape":[4294967296,4294967296],"data_offsets":[0,1]})", 1), {"too large"});
}

TEST(SafetensorsRefuses, TensorsBeyondTheFileWithoutReadingThem) {
  expect_refused(one(f32("[2147483648]", "[0,8589934592]"), 4), {"'t'", "8589934592", "only 4"});
}

TEST(SafetensorsRefuses, NamesAndFieldsThatOccurTwice) {
  const std::string t = f32("[1]", "[0,4]"), empty = f32("[0]", "[4,4]");
  expect_refused(image("{\"t\":" + t + ",\"t\":" + empty + "}", "abcd"), {"'t'", "twice"});
  expect_refused(image("{\"t\":" + t + ",\"\\u0074\":" + empty + "}", "abcd"), {"'t'", "twice"});
  expect_refused(one(R"({"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]})", 0),
                 {"'t'", "two fields dtype"});
  expect_refused(image(R"({"__metadata__":{"k":"1","k":"2"}})", ""), {"'k'", "twice"});
  expect_refused(image(R"({"__metadata__":{},"__metadata__":{}})", ""), {"metadata occurs twice"});
}

TEST(SafetensorsRefuses, MetadataThatIsNotText) {
  expect_refused(image(R"({"__metadata__":{"k":1}})", ""), {"metadata", "number"});
  expect_refused(image(R"({"__metadata__":{"k":{"l":"m"}}})", ""), {"metadata", "object"});
  expect_refused(image(R"({"__metadata__":{"k":null}})", ""), {"metadata", "null"});
  expect_refused(image(R"({"__metadata__":["k"]})", ""), {"metadata", "array"});
}

TEST(SafetensorsRefuses, FieldsThatAreMissingUnknownOrOfAnotherType) {
  expect_refused(one(R"({"shape":[0],"data_offsets":[0,0]})", 0), {"'t'", "no dtype"});
  expect_refused(one(R"({"dtype":"U8","data_offsets":[0,0]})", 0), {"'t'", "no shape"});
  expect_refused(one(R"({"dtype":"U8","shape":[0]})", 0), {"'t'", "data_offsets"});
  expect_refused(one(R"({"dtype":"U8","shape":[0],"data_offsets":[0]})", 0), {"'t'", "data_offsets"});
  expect_refused(one(R"({"dtype":"U8","shape":[0],"data_offsets":[0,0,0]})", 0), {"'t'", "more than two"});
  expect_refused(one(R"({"dtype":"U8","shape":[0],"data_offsets":[0,0],"strides":[1]})", 0), {"'t'", "'strides'"});
  expect_refused(one(R"({"dtype":3,"shape":[0],"data_offsets":[0,0]})", 0), {"'t'", "number as its dtype"});
  expect_refused(one(R"({"dtype":"U8","shape":"0","data_offsets":[0,0]})", 0), {"'t'", "string in its shape"});
  expect_refused(one(R"({"dtype":"U8","shape":[[0]],"data_offsets":[0,0]})", 0), {"'t'", "nested"});
  expect_refused(one(R"({"dtype":"U8","shape":7,"data_offsets":[0,0]})", 0), {"'t'", "number in its shape"});
  expect_refused(one(R"({"dtype":"U8","shape":[0],"data_offsets":[0,true]})", 0),
                 {"'t'", "boolean in its data_offsets"});
  expect_refused(one("[]", 0), {"'t'", "array"});
  expect_refused(one("null", 0), {"'t'", "null"});
}

TEST(SafetensorsRefuses, JsonThatIsBrokenOrDeep) {
  expect_refused(image("{\"t\":", ""), {"not valid JSON"});
  expect_refused(image("{} {}", ""), {"not valid JSON"});
  expect_refused(image("{\"\xff\":{}}", ""), {"not valid JSON"});
  expect_refused(image(std::string("{}\0 {", 5), ""), {"not valid JSON", "NUL"});
  expect_refused(image("[]", ""), {"does not begin with {"});
  expect_refused(image(" {}", ""), {"does not begin with {"});
  expect_refused(image("{\"t\":" + std::string(1'000'000, '['), ""), {"'t'", "array"});
  expect_refused(one("{\"shape\":" + std::string(1'000'000, '['), 0), {"'t'", "nested"});
}

TEST(SafetensorsRefuses, NulCharactersInNames) {
  expect_refused(image(R"({"a\u0000b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", ""), {"NUL"});
}

TEST(SafetensorsRefuses, OtherFormatsByName) {
  const std::string rest(100, '\0');
  expect_refused("PK\x03\x04" + rest, {"pickle", "convert", "save_file"}, LYC_ERROR_UNSUPPORTED);
  expect_refused("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20" + rest, {"pickle"}, LYC_ERROR_UNSUPPORTED);
  expect_refused("GGUF\x03" + rest, {"GGUF"}, LYC_ERROR_UNSUPPORTED);
  expect_refused("\x89HDF\r\n\x1a\n" + rest, {"not a safetensors file"});
  expect_refused("", {"0 bytes"});
}

TEST(Safetensors, LengthThatLooksLikeAPickleIsRead) {
  const std::string bytes = image("{}" + std::string(638, ' '), "");  // 640 is 80 02 in front
  EXPECT_TRUE(open_image(bytes).tensors().empty());
}

TEST(Safetensors, MessagesQuoteNamesInOneShortLine) {
  EXPECT_EQ(quote_name("a\nb\x7f"), "'a?b?'");
  EXPECT_EQ(quote_name(std::string(500, 'x')).size(), 125u);
}

TEST(MakeTensorInfo, ChecksItsArguments) {
  EXPECT_EQ(make_tensor_info("t", LYC_DTYPE_BF16, {2, 3}).size, 12u);
  EXPECT_EQ(make_tensor_info("t", LYC_DTYPE_F32, {}).size, 4u);
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"'t'", "dtype"}, [] { make_tensor_info("t", LYC_DTYPE_NONE, {1}); });
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"'t'", "-1"}, [] { make_tensor_info("t", LYC_DTYPE_U8, {-1}); });
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"'t'", "9 dim"},
               [] { make_tensor_info("t", LYC_DTYPE_U8, std::vector<std::int64_t>(9, 1)); });
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {"'t'", "too large"},
               [] { make_tensor_info("t", LYC_DTYPE_F64, {std::int64_t{1} << 60}); });
}

}  // namespace
}  // namespace lyc::io
