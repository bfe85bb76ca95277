// kohya's `split_qkv`: a fused projection trained as separate low-rank pairs, one a part, is saved as one pair. Its
// down factor holds the parts' downs on top of each other, its up factor is block-diagonal, and alpha still speaks of
// one part. Training computed alpha / (rank of a part); alpha / rows of the down factor would be 3 or 4 times too weak.
#pragma once

#include "io/dialect/dialect.hpp"

namespace lyc::io {

/// Set record.scale_divisor_parts where the metadata says split_qkv and the up factor is block-diagonal indeed. Where
/// only one of the two holds the plain rule stays, as in other programs, and a note says so.
void find_split_qkv(const AdapterKeys &keys, LayerRecord &record, std::vector<std::string> &notes);

}  // namespace lyc::io
