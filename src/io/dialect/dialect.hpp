// Adapter files say the same things under many spellings. A dialect reads one way of spelling: keys and metadata in,
// neutral records out. Values are not looked at, apart from small reads through a callback.
//
// A new dialect is one file with a `read` function and one line in registry.cpp. Dialects that are known by sight but
// have no reader yet stand there too, so that their files are refused by name and never misread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "io/metadata.hpp"
#include "io/tensor_entry.hpp"
#include "lycoris.h"

namespace lyc::io {

/// The end of a key, as LyCORIS' own modules spell it, and the family that it belongs to (of several, the first).
struct FamilySuffix {
  std::string_view name;
  lyc_algo algo;
};

/// What a dialect may look at. Borrowed for the time of the call.
struct AdapterKeys {
  const std::vector<TensorEntry> &tensors;
  const Metadata &metadata;
  /// Rows first_row .. first_row + row_count - 1 (of the first axis) of tensor `index` as float, row-major. Only asked
  /// of F32, F16 and BF16 tensors. May be empty: then what needs values is noted as not checked.
  std::function<std::vector<float>(std::size_t index, std::int64_t first_row, std::int64_t row_count)> read_rows;
  std::vector<FamilySuffix> families;
};

/// One tensor of a module. The name is LyCORIS' own ("lora_up.weight"), whatever the file's spelling; it is static
/// text.
struct Factor {
  std::string_view name;
  std::size_t tensor;  // in AdapterKeys::tensors
};

/// One module. A layer whose weight is adapted by a low-rank family and whose bias by `diff_b` gives two records.
struct LayerRecord {
  std::string layer;  // as the file spells it: all before the suffix
  lyc_algo algo = LYC_ALGO_NONE;
  std::vector<Factor> factors;  // in the file's order; "alpha" and "dora_scale" are among them
  bool weight = false;          // changes the layer's weight
  bool bias = false;            // changes the layer's bias
  /// The factors hold this many low-rank parts side by side, while alpha speaks of one: scale = alpha / (rank / parts).
  std::int32_t scale_divisor_parts = 1;

  /// Index of the tensor, or -1.
  std::ptrdiff_t find(std::string_view factor) const;
  bool has_alpha() const { return find("alpha") >= 0; }
  bool has_dora() const { return find("dora_scale") >= 0; }
};

/// Keys that did not become a record, and why. `status` is FORMAT (damaged, incomplete, contradictory), UNSUPPORTED
/// (a family that the library has not got) or MISMATCH (no adapter key at all).
struct Leftover {
  std::string layer;  // empty where the key has no known suffix
  std::vector<std::size_t> tensors;
  lyc_status status = LYC_ERROR_MISMATCH;
  std::string reason;
};

/// Every tensor of the file is in exactly one record or one leftover.
struct AdapterRecords {
  std::string_view dialect;
  lyc_dora_rule dora_rule = LYC_DORA_RULE_INTERPOLATE;  // the dialect's, never DEFAULT
  lyc_origin origin = LYC_ORIGIN_LYCORIS;
  std::vector<LayerRecord> layers;  // ordered by layer, weight before bias
  std::vector<Leftover> leftovers;  // ordered by their first tensor
  std::vector<std::string> notes;   // worth telling, changes nothing
};

struct Dialect {
  std::string_view name;
  bool (*recognise)(const AdapterKeys &);
  AdapterRecords (*read)(const AdapterKeys &);  // null: known by sight only
};

/// The first dialect of the registry that recognises the file. FORMAT if none does: it is no adapter.
const Dialect &find_dialect(const AdapterKeys &keys);

/// find_dialect() and its reader. UNSUPPORTED, by name, for dialects without one.
AdapterRecords read_adapter(const AdapterKeys &keys);

}  // namespace lyc::io
