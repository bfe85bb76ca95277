// An adapter file in memory.
#pragma once

#include <string>
#include <vector>

#include "core/adapter_file.hpp"
#include "core/batch.hpp"
#include "core/match.hpp"
#include "core/module.hpp"
#include "core/object.hpp"
#include "core/report.hpp"

struct lyc_network final : lyc::Object {
  lyc_network(lyc_context &context, const std::string &path, const lyc_network_options &options);

  struct Entry {
    std::string name;
    lyc::Ref<lyc_module> module;
  };

  lyc::Ref<lyc_context> context;
  std::string path;
  std::vector<Entry> entries;  // ordered by name
  lyc::Json leftovers;         // keys that are in no layer
  std::string first_leftover;
};

namespace lyc {

struct MatchedBatch {
  Ref<lyc_batch> batch;
  Ref<lyc_report> report;
};

/// The in-place batch of what networks adapt among `tensors`; multiplier index i belongs to networks[i].
MatchedBatch create_batch(lyc_context &context, const std::vector<lyc_network *> &networks,
                          const std::vector<std::string> &names, const lyc_tensor *tensors, const MatchFilter &filter,
                          bool allow_unmatched);

}  // namespace lyc
