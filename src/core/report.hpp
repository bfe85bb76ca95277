// What was done or found, as figures and as JSON (docs/report.md).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/adapter_file.hpp"
#include "core/match.hpp"
#include "core/object.hpp"

struct lyc_report final : lyc::Object {
  lyc_report(lyc_report_info figures, const nlohmann::ordered_json &content)
      : info(figures), json(content.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace)) {}

  lyc_report_info info;
  std::string json;
};

namespace lyc {

using Json = nlohmann::ordered_json;

/// Family, rank, alpha, scale, DoRA of one layer.
Json describe_layer(const std::string &name, const Definition &definition);

/// "locon": 3, "locon+dora": 1, ...
Json count_algorithms(const std::vector<const Definition *> &definitions);

/// One entry for each layer: what it is, and where it went or why not.
Json describe_match(const Match &match, const std::vector<io::TensorEntry> &base,
                    const std::vector<MatchSource> &sources);

/// Keys that are in no layer, by name, with the reason.
Json describe_leftovers(const AdapterFile &adapter);

void count_match(const Match &match, lyc_report_info &info);

}  // namespace lyc
