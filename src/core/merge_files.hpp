// Adapters merged into a base, file to file, in bounded memory.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/context.hpp"
#include "core/match.hpp"
#include "core/report.hpp"

namespace lyc {

struct MultiplierRule {
  std::optional<std::string> pattern;  // none: every layer
  int adapter = -1;                    // -1 = all
  float multiplier = 1;
};

struct MergeRequest {
  std::string base, output;
  std::vector<std::string> adapters;
  std::vector<MultiplierRule> multipliers;  // later ones win
  MatchFilter filter;
  lyc_dora_rule dora_rule = LYC_DORA_RULE_DEFAULT;
  lyc_dtype dtype = LYC_DTYPE_NONE;  // NONE: as it is
  bool allow_unmatched = false, overwrite = false;
  lyc_progress_fn progress = nullptr;
  void *user_data = nullptr;
};

Ref<lyc_report> merge_files(lyc_context &context, const MergeRequest &request);

Ref<lyc_report> inspect_file(lyc_context &context, const std::string &path);

}  // namespace lyc
