// An adapter file, understood but not loaded: what its layers are, from the header and a few small values.
#pragma once

#include <string>
#include <vector>

#include "core/context.hpp"
#include "core/definition.hpp"
#include "core/transfer.hpp"
#include "io/container/tensor_file.hpp"
#include "io/dialect/dialect.hpp"

namespace lyc {

struct AdapterLayer {
  std::string name;                                          // as the file spells it
  Definition definition;                                     // factors without data
  std::vector<std::pair<std::string, std::size_t>> tensors;  // factor and its number in the file; without alpha
};

struct AdapterFile {
  std::string path;
  io::TensorFile file;
  std::string dialect;
  std::vector<AdapterLayer> layers;     // ordered by name
  std::vector<io::Leftover> leftovers;  // keys that belong to no layer, with the reason
  std::vector<std::string> notes;
};

/// Errors: IO, FORMAT, UNSUPPORTED, naming the file and the layer. A file of leftovers alone is an error.
AdapterFile open_adapter(const std::string &path, lyc_dora_rule dora_rule);

/// What the layer's factors take of an uploader.
std::uint64_t room_for(const AdapterFile &adapter, const AdapterLayer &layer);

/// The layer's definition with factors on the uploader's device when that has finished; `buffers` take their memory.
Definition load_layer(const AdapterFile &adapter, const AdapterLayer &layer, Uploader &uploader,
                      std::vector<DeviceBuffer> &buffers);

/// "<layer or key>: <reason>" of the first key that belongs to no layer.
std::string leftover_text(const AdapterFile &adapter);

/// The names of factors that dialects look for: those of all families.
std::vector<io::FamilySuffix> family_suffixes();

/// What a file's tensors look like to dialects and to the name resolver. Borrows from `file`.
std::vector<io::TensorEntry> entries_of(const io::TensorFile &file);

}  // namespace lyc
