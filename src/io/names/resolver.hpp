// From an adapter's name of a layer to tensors of the base.
//
// Everything is looked up in indexes made of the base's own names, so nobody guesses which underscore was a dot, and
// nothing is ever matched by shape. A name is tried
//
//   1. as it is, with and without the prefix of its component ("lora_unet_", "diffusion_model.", "text_encoder.");
//      names with dots must agree dot by dot, flat ones after writing the base's dots as underscores,
//   2. against the aliases that the family maps give to the base's layers (family.hpp): native <-> diffusers names,
//      fused <-> split projections, swapped halves.
//
// Two layers of the base that answer to one name are an error that lists both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tensor_entry.hpp"

namespace lyc::io {

/// Rows of one layer of the base, and the rows of the adapter's delta that they take. Rows are output features; the
/// same ranges hold for the bias.
struct RowTarget {
  std::optional<std::size_t> weight;  // indexes of the table the resolver was made from; at least one is there
  std::optional<std::size_t> bias;
  std::int64_t adapter_row = 0;
  std::int64_t rows = 0;
  std::int64_t base_row = 0;
  bool transposed = false;  // the base keeps this weight as [in, out]; rows are still output features
};

struct Resolution {
  std::vector<RowTarget> targets;  // in the order of the adapter's rows, which they cover without gaps from row 0
  std::int64_t adapter_rows = 0;   // what the delta's rows must come to
  std::string failure;             // why there are no targets
  explicit operator bool() const { return failure.empty(); }
};

class NameResolver {
 public:
  /// Indexes `base`, which must outlive the resolver (names are borrowed). Takes a few milliseconds for SDXL.
  explicit NameResolver(const std::vector<TensorEntry> &base);

  Resolution resolve(std::string_view layer) const;

 private:
  /// A name that a layer of the base answers to, and the rows that this name means.
  struct Spelling {
    std::string path;              // with dots, without its component's prefix
    std::uint32_t components = 0;  // bits of component.hpp
    std::uint32_t origin = 0;      // spellings of one fused layer share it; parts of two origins never mix
    std::int32_t part = 0, parts = 1;
    RowTarget target;  // adapter_row is filled in when the parts are put together
  };
  using Index = std::unordered_map<std::string, std::vector<Spelling>>;  // by path, dots as underscores

  static void add(Index &index, Spelling spelling);
  Resolution look_up(const Index &index, std::string_view path, std::uint32_t components) const;
  Resolution assemble(std::vector<const Spelling *> matches) const;

  const std::vector<TensorEntry> &base_;
  Index own_;      // the base's own names
  Index aliases_;  // what the family maps call its layers
};

}  // namespace lyc::io
