// The safetensors header: 8 bytes of length (little-endian), that many bytes of JSON, then the tensors' data.
//
//   {"__metadata__": {"key": "value", ...}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
//
// Offsets count from the end of the header. Tensors tile the data without holes or overlaps, in any order, and need not
// be aligned.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.hpp"
#include "io/metadata.hpp"
#include "lycoris.h"

namespace lyc::io {

struct TensorInfo {
  std::string name;
  lyc_dtype dtype = LYC_DTYPE_NONE;  // NONE: a type that the library does not know and only carries along
  std::string dtype_text;            // as in the header, "BF16"
  std::vector<std::int64_t> shape;   // at most LYC_MAX_DIMS; the product of max(n, 1) fits into 63 bits
  std::uint64_t size = 0;            // bytes
  std::uint64_t offset = 0;          // of its first byte, from the beginning of its file
};

/// A tensor of a known type, to be written. Errors: INVALID_ARGUMENT.
TensorInfo make_tensor_info(std::string name, lyc_dtype dtype, std::vector<std::int64_t> shape);

struct Header {
  Metadata metadata;
  std::vector<TensorInfo> tensors;  // in the order of their data
};

inline constexpr std::size_t kLengthSize = 8;  // bytes of the length in front of the header
inline constexpr std::uint64_t kMaxHeaderSize = 100'000'000;

/// Length of the header of a file of `file_size` bytes that begins with `begin` (as many of its first 16 bytes as
/// there are). Errors: FORMAT; UNSUPPORTED for other formats that are known by their first bytes.
std::uint64_t header_length(std::string_view begin, std::uint64_t file_size, const std::string &path);

/// Check and take apart the JSON of a header; `path` is for messages. Errors: FORMAT (which tensor, and why).
Header parse_header(std::string_view json, std::uint64_t file_size, const std::string &path);

/// Length and JSON for these tensors in this order, padded so that their data begins at a multiple of 8; sets their
/// offsets. Errors: INVALID_ARGUMENT (a name twice or not UTF-8, too many tensors for a header).
std::string render_header(const Metadata &metadata, std::vector<TensorInfo> &tensors);

/// Check that bytes `begin` .. `begin + size - 1` are part of the tensor. Errors: INVALID_ARGUMENT.
void require_range(const TensorInfo &tensor, std::uint64_t begin, std::uint64_t size);

/// A name from a file as it may appear in a message: in quotes, one line, not too long.
std::string quote_name(std::string_view name);

}  // namespace lyc::io
