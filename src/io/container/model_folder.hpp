// Which of the files in a folder are the model. Decided by names alone.
#pragma once

#include <string>
#include <vector>

namespace lyc::io {

/// The files of one model in one folder.
struct WeightSet {
  std::string index;               // name of the index, "" if there is none
  std::vector<std::string> files;  // the shards, or the one file; empty if there is an index, which names them
};

/// The weights among the names in a folder; an empty set if there are none. An index goes before everything else, and
/// a plain name before its variants ("model.fp16.safetensors" beside "model.safetensors"). `folder` is for messages.
/// Errors: INVALID_ARGUMENT (several models), FORMAT (a shard is missing).
WeightSet choose_weights(const std::vector<std::string> &names, const std::string &folder);

/// "model.safetensors.index.json", and its variants.
bool is_index_name(const std::string &name);

/// Weights in any format, and their indexes: what a folder may hold a second time.
bool is_weight_name(const std::string &name);

}  // namespace lyc::io
