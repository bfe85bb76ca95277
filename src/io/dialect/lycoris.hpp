// Files of LyCORIS, of kohya's sd-scripts, and those with the layer's original name and a factor's ending after it
// (ComfyUI and others): one way of spelling, three kinds of prefix.
#pragma once

#include "io/dialect/dialect.hpp"

namespace lyc::io {

/// Metadata "ss_network_module", "" without.
std::string_view network_module(const AdapterKeys &keys);

bool is_lycoris(const AdapterKeys &keys);
bool is_kohya(const AdapterKeys &keys);
bool is_kohya_oft(const AdapterKeys &keys);
bool is_original(const AdapterKeys &keys);  // any key that ends like a factor's

AdapterRecords read_lycoris(const AdapterKeys &keys);
AdapterRecords read_kohya_oft(const AdapterKeys &keys);  // the same; rotations are limited otherwise

}  // namespace lyc::io
