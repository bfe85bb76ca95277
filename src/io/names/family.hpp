// Model families name the same layers in two ways: as their authors did (native) and as diffusers does. A family map
// says, for a layer of the base, by which other names adapters may call it, and which rows such a name means.
//
// A new family is one file and one line in families.cpp. Most are a table of MapRow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lyc::io {

/// A layer of the base: its path without component prefix and parameter name, and the extents of its weight.
struct BaseLayer {
  std::string_view path;
  std::int64_t out = 0;
  std::int64_t in = 0;  // 0 where there is none (norms, a lone bias)
  bool bare = false;    // a parameter of its own, not the ".weight" of a layer
};

/// One more name of a layer. Aliases of several layers with the same path and parts > 1 are one fused layer; two of
/// them for one layer are its rows in another order. An alias equal to the layer's own path takes its place.
struct Alias {
  std::string path;
  std::int32_t part = 0, parts = 1;  // which share of the alias' rows, counted from row 0 on
  std::int64_t base_row = 0, rows = 0;
  bool transposed = false;  // the base keeps it as [in, out]

  bool operator==(const Alias &other) const {
    return path == other.path && part == other.part && parts == other.parts && base_row == other.base_row &&
           rows == other.rows && transposed == other.transposed;
  }
};

struct Family {
  std::string_view name;
  std::uint32_t components;  // which components it may occur in; bits of component.hpp
  void (*append_aliases)(const BaseLayer &, std::vector<Alias> &);
};

extern const Family kSdUnet;    // SD 1.x, 2.x, SDXL denoiser
extern const Family kFlux;      // Flux.1, Chroma
extern const Family kOpenClip;  // OpenCLIP text encoders

struct FamilyList {
  const Family *const *first;
  std::size_t count;
  const Family *const *begin() const { return first; }
  const Family *const *end() const { return first + count; }
};

/// All families; none takes precedence.
FamilyList families();

/// How the rows of a native layer and those of its diffusers names belong together.
enum class Rows : std::uint8_t {
  kSame,
  kThird,          // native rows are three equal parts
  kInputWide,      // native rows are three parts as wide as the input, and the rest
  kSwappedHalves,  // same layer, halves exchanged
};

/// '#' stands for a number, the same ones in the same order on both sides.
struct MapRow {
  std::string_view native;
  std::string_view diffusers;
  Rows rows = Rows::kSame;
  std::int32_t part = 0;  // of kThird and kInputWide
};

/// What a table says about a layer, whichever side it is on.
void append_table_aliases(const MapRow *table, std::size_t count, const BaseLayer &layer, std::vector<Alias> &out);

}  // namespace lyc::io
