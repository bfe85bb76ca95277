#include "io/container/safetensors.hpp"

#include <algorithm>
#include <limits>
#include <tuple>
#include <unordered_set>
#include <utility>

#define JSON_NO_IO
#include <nlohmann/json.hpp>

#include "base/error.hpp"

namespace lyc::io {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kMetadataKey = "__metadata__";
constexpr std::size_t kQuotedLength = 120;
constexpr std::uint64_t kAlignment = 8;

const DtypeInfo *find_dtype_text(std::string_view text) {
  for (const DtypeInfo &info : kDtypes)
    if (info.safetensors == text) return &info;
  return nullptr;
}

/// Product of max(n, 1): with the empty axes left out, so that strides fit too. False if it is 2^63 or more.
bool bounding_count(const std::vector<std::int64_t> &shape, std::int64_t *count) {
  *count = 1;
  for (const std::int64_t n : shape)
    if (__builtin_mul_overflow(*count, std::max<std::int64_t>(n, 1), count)) return false;
  return true;
}

/// Bytes of a tensor. False if they do not fit into 63 bits.
bool tensor_size(const std::vector<std::int64_t> &shape, std::size_t item_size, std::uint64_t *size) {
  std::int64_t bytes = 0;
  if (!bounding_count(shape, &bytes) || __builtin_mul_overflow(bytes, static_cast<std::int64_t>(item_size), &bytes))
    return false;
  const bool is_empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  *size = is_empty ? 0 : static_cast<std::uint64_t>(bytes);
  return true;
}

/// Receives the parser's events. Nothing is built but the result, and nesting is bounded by what the format knows.
class HeaderReader {
 public:
  HeaderReader(const std::string &path, Header &header) : path_(path), header_(header) {}

  bool key(std::string &text) {
    switch (state_) {
      case State::kRoot:
        return begin_member(text);
      case State::kMetadata:
        if (header_.metadata.count(text)) fail_format("metadata key ", quote_name(text), " occurs twice");
        value_ = &header_.metadata[text];
        return true;
      default:
        return begin_field(text);
    }
  }

  bool start_object(std::size_t) {
    if (state_ == State::kStart) return enter(State::kRoot);
    if (state_ == State::kMember) return enter(is_metadata_ ? State::kMetadata : State::kTensor);
    return unexpected("an object");
  }

  bool end_object() {
    if (state_ == State::kTensor) finish_tensor();
    return enter(state_ == State::kRoot ? State::kEnd : State::kRoot);
  }

  bool start_array(std::size_t) {
    if (state_ == State::kShape || state_ == State::kOffsets) {
      if (in_array_) return unexpected("a nested array");
      in_array_ = true;
      return true;
    }
    return unexpected("an array");
  }

  bool end_array() {
    in_array_ = false;
    return enter(State::kTensor);
  }

  bool string(std::string &text) {
    if (state_ == State::kMetadata) {
      *value_ = std::move(text);
      return true;
    }
    if (state_ != State::kDtype) return unexpected("a string");
    header_.tensors.back().dtype_text = std::move(text);
    return enter(State::kTensor);
  }

  bool number_unsigned(std::uint64_t number) {
    if (!in_array_) return unexpected("a number");
    if (state_ == State::kOffsets) {
      if (offset_count_ == 2) fail_tensor("has more than two data_offsets");
      offsets_[offset_count_++] = number;
      return true;
    }
    std::vector<std::int64_t> &shape = header_.tensors.back().shape;
    if (shape.size() == LYC_MAX_DIMS) fail_tensor("has more than ", LYC_MAX_DIMS, " dimensions");
    if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      fail_tensor("has a dimension of ", number, ", which is too large");
    shape.push_back(static_cast<std::int64_t>(number));
    return true;
  }

  bool number_integer(std::int64_t) { return unexpected("a negative number"); }
  bool number_float(double, const std::string &) { return unexpected("a number that is not an integer"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool null() { return unexpected("null"); }
  bool binary(Json::binary_t &) { return unexpected("binary data"); }

  bool parse_error(std::size_t position, const std::string &, const Json::exception &) {
    fail_format("the header is not valid JSON at its byte ", position);
  }

 private:
  enum class State { kStart, kRoot, kMember, kMetadata, kTensor, kDtype, kShape, kOffsets, kEnd };

  template <typename... Parts>
  [[noreturn]] void fail_format(const Parts &...parts) const {
    fail(LYC_ERROR_FORMAT, "'", path_, "': ", parts...);
  }

  template <typename... Parts>
  [[noreturn]] void fail_tensor(const Parts &...parts) const {
    fail_format("tensor ", quote_name(header_.tensors.back().name), " ", parts...);
  }

  bool enter(State state) {
    state_ = state;
    return true;
  }

  bool unexpected(const char *what) const {
    switch (state_) {
      case State::kStart:
        fail_format("the header is ", what, ", not an object");
      case State::kMetadata:
        fail_format("the metadata has ", what, " where only strings are allowed");
      case State::kMember:
        if (is_metadata_) fail_format("the metadata is ", what, ", not an object");
        fail_tensor("is ", what, ", not an object");
      case State::kDtype:
        fail_tensor("has ", what, " as its dtype");
      case State::kShape:
        fail_tensor("has ", what, " in its shape");
      default:
        fail_tensor("has ", what, " in its data_offsets");
    }
  }

  bool begin_member(std::string &name) {
    is_metadata_ = name == kMetadataKey;
    if (is_metadata_) {
      if (has_metadata_) fail_format("the metadata occurs twice");
      has_metadata_ = true;
    } else {
      header_.tensors.emplace_back().name = std::move(name);
      has_dtype_ = has_shape_ = has_offsets_ = false;
      offset_count_ = 0;
      if (header_.tensors.back().name.find('\0') != std::string::npos) fail_tensor("has a NUL character in its name");
    }
    return enter(State::kMember);
  }

  bool begin_field(const std::string &field) {
    if (field == "dtype") return once(has_dtype_, State::kDtype, field);
    if (field == "shape") return once(has_shape_, State::kShape, field);
    if (field == "data_offsets") return once(has_offsets_, State::kOffsets, field);
    fail_tensor("has an unknown field ", quote_name(field));
  }

  bool once(bool &seen, State state, const std::string &field) {
    if (seen) fail_tensor("has two fields ", field);
    seen = true;
    return enter(state);
  }

  void finish_tensor() {
    TensorInfo &tensor = header_.tensors.back();
    if (!has_dtype_) fail_tensor("has no dtype");
    if (!has_shape_) fail_tensor("has no shape");
    if (!has_offsets_ || offset_count_ != 2) fail_tensor("has no pair of data_offsets");
    if (offsets_[1] < offsets_[0]) fail_tensor("ends at ", offsets_[1], ", before it begins at ", offsets_[0]);
    tensor.offset = offsets_[0];
    tensor.size = offsets_[1] - offsets_[0];
    std::uint64_t expected = 0;
    const DtypeInfo *dtype = find_dtype_text(tensor.dtype_text);
    if (!tensor_size(tensor.shape, dtype ? dtype->size : 1, &expected)) fail_tensor("has a shape that is too large");
    if (!dtype) return;  // its size is known from the offsets only
    tensor.dtype = dtype->dtype;
    if (expected != tensor.size)
      fail_tensor("has ", tensor.size, " bytes of data, but its shape and dtype take ", expected);
  }

  const std::string &path_;
  Header &header_;
  State state_ = State::kStart;
  bool in_array_ = false;
  bool is_metadata_ = false, has_metadata_ = false;
  std::string *value_ = nullptr;  // of the metadata entry under way
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  std::size_t offset_count_ = 0;
  std::uint64_t offsets_[2] = {0, 0};
};

void check_unique(const Header &header, const std::string &path) {
  std::unordered_set<std::string_view> names;
  names.reserve(header.tensors.size());
  for (const TensorInfo &tensor : header.tensors)
    if (!names.insert(tensor.name).second)
      fail(LYC_ERROR_FORMAT, "'", path, "': tensor ", quote_name(tensor.name), " occurs twice");
}

/// Sort by position, check that the tensors tile the data, and make offsets count from the beginning of the file.
void place_tensors(Header &header, std::uint64_t data_begin, std::uint64_t file_size, const std::string &path) {
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorInfo &a, const TensorInfo &b) {
    return std::tie(a.offset, a.size, a.name) < std::tie(b.offset, b.size, b.name);
  });
  const std::uint64_t data_size = file_size - data_begin;
  std::uint64_t end = 0;
  for (TensorInfo &tensor : header.tensors) {
    if (tensor.offset != end)
      fail(LYC_ERROR_FORMAT, "'", path, "': tensor ", quote_name(tensor.name), " begins at byte ", tensor.offset,
           " of the data, ", tensor.offset < end ? "inside another tensor" : "after a hole", ": ", end,
           " was expected");
    if (tensor.size > data_size - end)
      fail(LYC_ERROR_FORMAT, "'", path, "': tensor ", quote_name(tensor.name), " ends at byte ",
           tensor.offset + tensor.size, " of the data, which has only ", data_size, "; the file may be cut off");
    end += tensor.size;
    tensor.offset += data_begin;
  }
  if (end != data_size)
    fail(LYC_ERROR_FORMAT, "'", path, "': ", data_size - end, " bytes at the end belong to no tensor");
}

bool starts_with(std::string_view text, std::string_view prefix) { return text.substr(0, prefix.size()) == prefix; }

/// Other formats, known by their first bytes.
void refuse_foreign(std::string_view begin, const std::string &path) {
  constexpr std::string_view kConversion =
      "which can run code when it is read; convert it first, in PyTorch: "
      "safetensors.torch.save_file(torch.load(path, weights_only=True), new_path)";
  if (starts_with(begin, "PK\x03\x04") || (begin.size() >= 2 && begin[0] == '\x80' && begin[1] >= 2 && begin[1] <= 5))
    fail(LYC_ERROR_UNSUPPORTED, "'", path, "' is a PyTorch pickle, ", kConversion);
  if (starts_with(begin, "GGUF"))
    fail(LYC_ERROR_UNSUPPORTED, "'", path, "' is a GGUF file; only safetensors files can be read");
}

/// A JSON string literal. Errors: INVALID_ARGUMENT (not UTF-8).
std::string json_string(const std::string &text, const char *what) {
  try {
    return Json(text).dump();
  } catch (const Json::exception &) {
    fail(LYC_ERROR_INVALID_ARGUMENT, what, " ", quote_name(text), " is not valid UTF-8");
  }
}

std::string render_metadata(const Metadata &metadata) {
  std::string text;
  for (const auto &[key, value] : metadata) {
    text += text.empty() ? "" : ",";
    text += json_string(key, "metadata key") + ":" + json_string(value, "the value of a metadata key");
  }
  return concat('"', kMetadataKey, "\":{", text, "}");
}

std::string render_tensor(const TensorInfo &tensor, std::uint64_t begin) {
  std::string shape;
  for (const std::int64_t n : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(n);
  return json_string(tensor.name, "tensor name") + ":{\"dtype\":" + json_string(tensor.dtype_text, "dtype") +
         ",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(begin) + "," +
         std::to_string(begin + tensor.size) + "]}";
}

std::string length_bytes(std::uint64_t length) {
  std::string bytes;
  for (std::size_t i = 0; i < kLengthSize; ++i) bytes += static_cast<char>(length >> (8 * i) & 0xff);
  return bytes;
}

}  // namespace

TensorInfo make_tensor_info(std::string name, lyc_dtype dtype, std::vector<std::int64_t> shape) {
  const DtypeInfo *info = find_dtype(dtype);
  require(info != nullptr, "tensor ", quote_name(name), " has no known dtype");
  require(shape.size() <= LYC_MAX_DIMS, "tensor ", quote_name(name), " has ", shape.size(), " dimensions, at most ",
          LYC_MAX_DIMS, " are supported");
  for (const std::int64_t n : shape) require(n >= 0, "tensor ", quote_name(name), " has a dimension of ", n);
  TensorInfo tensor{std::move(name), dtype, std::string(info->safetensors), std::move(shape)};
  require(tensor_size(tensor.shape, info->size, &tensor.size), "tensor ", quote_name(tensor.name),
          " has a shape that is too large");
  return tensor;
}

std::uint64_t header_length(std::string_view begin, std::uint64_t file_size, const std::string &path) {
  // A length that fits, and the brace, before other formats: a header of 640 bytes begins as a pickle does.
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < std::min(begin.size(), kLengthSize); ++i)
    length |= std::uint64_t{static_cast<unsigned char>(begin[i])} << (8 * i);
  const bool has_brace = begin.size() > kLengthSize && begin[kLengthSize] == '{';
  if (!has_brace || length > kMaxHeaderSize) refuse_foreign(begin, path);
  if (file_size < kLengthSize + 2)
    fail(LYC_ERROR_FORMAT, "'", path, "' has ", file_size, " bytes, too few for a safetensors file");
  if (!has_brace) fail(LYC_ERROR_FORMAT, "'", path, "' is not a safetensors file: its header does not begin with {");
  if (length > kMaxHeaderSize)
    fail(LYC_ERROR_FORMAT, "'", path, "': the header has ", length, " bytes, more than the ", kMaxHeaderSize,
         " that are allowed");
  if (length > file_size - kLengthSize)
    fail(LYC_ERROR_FORMAT, "'", path, "': the header has ", length, " bytes, but the file ends after ",
         file_size - kLengthSize, "; it may be cut off");
  return length;
}

Header parse_header(std::string_view json, std::uint64_t file_size, const std::string &path) {
  // The parser takes a NUL for the end of its input, and would not look at what comes after it.
  if (json.find('\0') != std::string_view::npos)
    fail(LYC_ERROR_FORMAT, "'", path, "': the header is not valid JSON: it has a NUL byte");
  Header header;
  HeaderReader reader(path, header);
  Json::sax_parse(json.begin(), json.end(), &reader);
  check_unique(header, path);
  place_tensors(header, kLengthSize + json.size(), file_size, path);
  return header;
}

std::string render_header(const Metadata &metadata, std::vector<TensorInfo> &tensors) {
  std::unordered_set<std::string_view> names;
  std::string json = metadata.empty() ? "{" : "{" + render_metadata(metadata);
  std::uint64_t end = 0;
  for (TensorInfo &tensor : tensors) {
    require(tensor.name != kMetadataKey, "a tensor cannot be called ", kMetadataKey);
    require(names.insert(tensor.name).second, "tensor ", quote_name(tensor.name), " is given twice");
    json += (json.size() > 1 ? "," : "") + render_tensor(tensor, end);
    tensor.offset = end;
    require(!__builtin_add_overflow(end, tensor.size, &end) && end <= std::numeric_limits<std::int64_t>::max() / 2,
            "the tensors up to ", quote_name(tensor.name), " are too large for a file");
  }
  json += "}";
  json.append((kAlignment - (kLengthSize + json.size()) % kAlignment) % kAlignment, ' ');
  require(json.size() <= kMaxHeaderSize, "the header would have ", json.size(), " bytes, at most ", kMaxHeaderSize,
          " are allowed");
  for (TensorInfo &tensor : tensors) tensor.offset += kLengthSize + json.size();
  return length_bytes(json.size()) + json;
}

void require_range(const TensorInfo &tensor, std::uint64_t begin, std::uint64_t size) {
  require(begin <= tensor.size && size <= tensor.size - begin, "tensor ", quote_name(tensor.name), " has ", tensor.size,
          " bytes, which do not include ", size, " from byte ", begin, " on");
}

std::string quote_name(std::string_view name) {
  std::string text = "'";
  for (const char c : name.substr(0, kQuotedLength))
    text += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return text + (name.size() > kQuotedLength ? "...'" : "'");
}

}  // namespace lyc::io
