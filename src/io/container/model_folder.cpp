#include "io/container/model_folder.hpp"

#include <algorithm>
#include <map>
#include <string_view>

#include "base/error.hpp"
#include "io/container/safetensors.hpp"

namespace lyc::io {
namespace {

constexpr std::string_view kSuffix = ".safetensors";
constexpr std::string_view kIndexMark = ".safetensors.index";
constexpr std::size_t kShardDigits = 5;

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool is_digits(std::string_view text) { return text.find_first_not_of("0123456789") == std::string_view::npos; }

/// All that shares one name apart from the numbers of shards.
struct Candidate {
  std::string index, whole;
  std::vector<std::string> shards;
  std::string shard_total;  // the N of "-of-N"
};

/// Take "-00001-of-00003" out of a name: true, and the text after "-of-", if it is there.
bool take_shard_number(std::string &name, std::string *total) {
  constexpr std::string_view kOf = "-of-";
  constexpr std::size_t kLength = 1 + kShardDigits + kOf.size() + kShardDigits;
  for (std::size_t at = name.find('-'); at != std::string::npos; at = name.find('-', at + 1)) {
    const std::string_view part = std::string_view(name).substr(at, kLength);
    if (part.size() < kLength || part.substr(1 + kShardDigits, kOf.size()) != kOf) continue;
    if (!is_digits(part.substr(1, kShardDigits)) || !is_digits(part.substr(kLength - kShardDigits))) continue;
    *total = part.substr(kLength - kShardDigits);
    name.erase(at, kLength);
    return true;
  }
  return false;
}

/// "model.safetensors.index.fp16.json" is the index of what is called "model.fp16.safetensors" here.
std::string name_of_indexed(const std::string &index) {
  constexpr std::string_view kEnd = ".json";
  const std::size_t mark = index.find(kIndexMark);
  const std::size_t after = mark + kIndexMark.size();
  return index.substr(0, mark) + index.substr(after, index.size() - after - kEnd.size()) + std::string(kSuffix);
}

std::map<std::string, Candidate> collect(const std::vector<std::string> &names) {
  std::map<std::string, Candidate> candidates;
  for (const std::string &name : names) {
    if (is_index_name(name)) {
      candidates[name_of_indexed(name)].index = name;
    } else if (ends_with(name, kSuffix)) {
      std::string key = name, total;
      const bool is_shard = take_shard_number(key, &total);
      Candidate &candidate = candidates[key];
      if (is_shard) {
        candidate.shards.push_back(name);
        candidate.shard_total = total;
      } else {
        candidate.whole = name;
      }
    }
  }
  return candidates;
}

/// Whether taking one dotted part out of `name` gives another candidate.
bool is_variant(const std::string &name, const std::map<std::string, Candidate> &candidates) {
  for (std::size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
    const std::size_t next = name.find('.', dot + 1);
    if (next == std::string::npos) return false;
    if (candidates.count(name.substr(0, dot) + name.substr(next))) return true;
  }
  return false;
}

void require_all_shards(const Candidate &candidate, const std::string &folder) {
  const std::size_t total = std::stoul(candidate.shard_total);
  if (candidate.shards.size() != total)
    fail(LYC_ERROR_FORMAT, "'", folder, "' has ", candidate.shards.size(), " of the ", total, " shards of ",
         quote_name(candidate.shards.front()), ", and no index");
}

}  // namespace

bool is_index_name(const std::string &name) {
  return name.find(kIndexMark) != std::string::npos && ends_with(name, ".json");
}

bool is_weight_name(const std::string &name) {
  constexpr std::string_view kEndings[] = {".safetensors", ".bin", ".pt",   ".pth", ".ckpt",     ".gguf",
                                           ".msgpack",     ".h5",  ".onnx", ".ot",  ".onnx_data"};
  if (name.find(".index.") != std::string::npos && ends_with(name, ".json")) return true;
  return std::any_of(std::begin(kEndings), std::end(kEndings),
                     [&](std::string_view ending) { return ends_with(name, ending); });
}

WeightSet choose_weights(const std::vector<std::string> &names, const std::string &folder) {
  const std::map<std::string, Candidate> candidates = collect(names);
  std::vector<const Candidate *> plain, indexed;
  for (const auto &[name, candidate] : candidates) {
    if (is_variant(name, candidates)) continue;
    plain.push_back(&candidate);
    if (!candidate.index.empty()) indexed.push_back(&candidate);
  }
  if (plain.empty()) return {};
  const std::vector<const Candidate *> &chosen = indexed.empty() ? plain : indexed;
  const Candidate &candidate = *chosen.front();
  if (chosen.size() > 1 || (candidate.index.empty() && !candidate.whole.empty() && !candidate.shards.empty())) {
    const auto shown = [](const Candidate &c) {
      return quote_name(!c.index.empty() ? c.index : !c.whole.empty() ? c.whole : c.shards.front());
    };
    fail(LYC_ERROR_INVALID_ARGUMENT, "'", folder, "' holds several models, among them ", shown(candidate), " and ",
         chosen.size() > 1 ? shown(*chosen[1]) : quote_name(candidate.shards.front()), "; name the file that is meant");
  }
  if (!candidate.index.empty()) return {candidate.index, {}};
  if (!candidate.whole.empty()) return {"", {candidate.whole}};
  require_all_shards(candidate, folder);
  return {"", candidate.shards};
}

}  // namespace lyc::io
