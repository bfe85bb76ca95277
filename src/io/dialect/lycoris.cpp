#include "io/dialect/lycoris.hpp"

#include <algorithm>
#include <unordered_map>

#include "base/error.hpp"
#include "base/text.hpp"
#include "io/dialect/split_qkv.hpp"
#include "io/dialect/suffixes.hpp"

namespace lyc::io {
namespace {

/// The tensors of one layer, before anything is known of them but their endings.
struct Group {
  struct Member {
    Suffix suffix;
    std::size_t tensor;
  };
  std::string_view layer;
  std::vector<Member> members;

  bool has(std::string_view name) const {
    return std::any_of(members.begin(), members.end(), [&](const Member &m) { return m.suffix.name == name; });
  }
};

/// Reads one layer after the other into `records`.
class Reader {
 public:
  Reader(const AdapterKeys &keys, AdapterRecords &records) : keys_(keys), records_(records) {}

  void read(Group group) {
    drop_plain_weight(group);
    if (group.members.empty()) return;
    try {
      check_supported(group);
      check_tensors(group);
      append_records(group);
    } catch (const Error &error) {
      Leftover leftover{std::string(group.layer), {}, error.status(), error.what()};
      for (const Group::Member &member : group.members) leftover.tensors.push_back(member.tensor);
      records_.leftovers.push_back(std::move(leftover));
    }
  }

 private:
  /// ".weight" is a factor of (IA)3, beside "on_input"; alone it is a tensor of something else.
  void drop_plain_weight(Group &group) {
    if (group.has("on_input")) return;
    const auto plain = std::stable_partition(group.members.begin(), group.members.end(),
                                             [](const auto &member) { return member.suffix.name != "weight"; });
    for (auto member = plain; member != group.members.end(); ++member)
      records_.leftovers.push_back(
          {std::string(group.layer), {member->tensor}, LYC_ERROR_MISMATCH, "a whole tensor, not an adapter's factor"});
    group.members.erase(plain, group.members.end());
  }

  /// A layer is taken as a whole or not at all: half of its meaning would be another adapter.
  void check_supported(const Group &group) const {
    for (const auto &[suffix, tensor] : group.members) {
      if (suffix.unsupported.empty()) continue;
      fail(LYC_ERROR_UNSUPPORTED, "unsupported family: ", suffix.unsupported, " ('", suffix.name, "')");
    }
  }

  void check_tensors(const Group &group) const {
    for (std::size_t i = 0; i < group.members.size(); ++i) {
      const TensorEntry &tensor = keys_.tensors[group.members[i].tensor];
      const std::string_view name = group.members[i].suffix.name;
      for (std::size_t k = 0; k < i; ++k)
        if (group.members[k].suffix.name == name)
          fail(LYC_ERROR_FORMAT, name, " is there twice, as '", keys_.tensors[group.members[k].tensor].name, "' and '",
               tensor.name, "'");
      if (tensor.empty()) fail(LYC_ERROR_FORMAT, name, " has no elements");
      if (name == "alpha" && !tensor.one_element()) fail(LYC_ERROR_FORMAT, "alpha has more than one element");
    }
  }

  void append_records(const Group &group) {
    const lyc_algo weight_algo = find_weight_algo(group);
    LayerRecord weight = start(group, weight_algo), bias = start(group, LYC_ALGO_NONE);
    for (const Group::Member &member : group.members) {
      const std::string_view name = member.suffix.name;
      const bool of_bias = name == "diff_b" || name == "b_norm";
      const bool beside_weight = !of_bias || member.suffix.algo == weight_algo;
      LayerRecord &record = beside_weight ? weight : bias;
      (of_bias ? record.bias : record.weight) = true;
      if (!beside_weight) record.algo = merge_algo(record.algo, member.suffix.algo);
      record.factors.push_back({name, member.tensor});
    }
    if (weight_algo != LYC_ALGO_NONE) {
      check_complete(group, weight_algo);
      records_.layers.push_back(std::move(weight));
    } else if (!weight.factors.empty()) {
      fail(LYC_ERROR_FORMAT, "only ", weight.factors.front().name, ", and no factors");
    }
    if (bias.bias) records_.layers.push_back(std::move(bias));
  }

  static LayerRecord start(const Group &group, lyc_algo algo) {
    LayerRecord record;
    record.layer = group.layer;
    record.algo = algo;
    return record;
  }

  /// The family that adapts the weight; NONE if nothing but the bias is adapted.
  static lyc_algo find_weight_algo(const Group &group) {
    lyc_algo algo = LYC_ALGO_NONE;
    for (const Group::Member &member : group.members)
      if (member.suffix.name != "diff_b" && member.suffix.name != "b_norm") algo = merge_algo(algo, member.suffix.algo);
    return algo;
  }

  static lyc_algo merge_algo(lyc_algo a, lyc_algo b) {
    if (a != LYC_ALGO_NONE && b != LYC_ALGO_NONE && a != b)
      fail(LYC_ERROR_FORMAT, "factors of two families on one layer");
    return a == LYC_ALGO_NONE ? b : a;
  }

  static void check_complete(const Group &group, lyc_algo algo) {
    const auto both = [&](std::string_view a, std::string_view b) {
      if (group.has(a) != group.has(b)) fail(LYC_ERROR_FORMAT, group.has(a) ? a : b, " without ", group.has(a) ? b : a);
    };
    const auto need = [&](std::string_view name) {
      if (!group.has(name)) fail(LYC_ERROR_FORMAT, name, " is missing");
    };
    const auto whole_or_factored = [&](std::string_view whole, std::string_view a, std::string_view b) {
      both(a, b);
      if (group.has(whole) == group.has(a))
        fail(LYC_ERROR_FORMAT, whole,
             group.has(a) ? " is there whole and factored" : " is missing, whole and factored");
    };
    if (algo == LYC_ALGO_LOCON) {
      both("lora_up.weight", "lora_down.weight");
      need("lora_up.weight");
    } else if (algo == LYC_ALGO_LOHA) {
      for (const char *name : {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}) need(name);
      both("hada_t1", "hada_t2");
    } else if (algo == LYC_ALGO_LOKR) {
      whole_or_factored("lokr_w1", "lokr_w1_a", "lokr_w1_b");
      whole_or_factored("lokr_w2", "lokr_w2_a", "lokr_w2_b");
      if (group.has("lokr_t2")) need("lokr_w2_a");
    }
    if (group.has("dora_scale") && algo == LYC_ALGO_NORM) fail(LYC_ERROR_FORMAT, "dora_scale on a norm");
  }

  const AdapterKeys &keys_;
  AdapterRecords &records_;
};

bool any_prefix(const AdapterKeys &keys, std::initializer_list<std::string_view> prefixes) {
  for (const TensorEntry &tensor : keys.tensors)
    for (std::string_view prefix : prefixes)
      if (starts_with(tensor.name, prefix)) return true;
  return false;
}

/// Groups in the order of their first tensor.
std::vector<Group> group_by_layer(const AdapterKeys &keys, std::vector<Leftover> &leftovers) {
  std::vector<Group> groups;
  std::unordered_map<std::string_view, std::size_t> index;
  for (std::size_t i = 0; i < keys.tensors.size(); ++i) {
    const KeyParts parts = split_key(keys.tensors[i].name, keys.families);
    if (parts.suffix.name.empty()) {
      leftovers.push_back({{}, {i}, LYC_ERROR_MISMATCH, "does not end like an adapter's factor"});
      continue;
    }
    const auto [place, fresh] = index.try_emplace(parts.layer, groups.size());
    if (fresh) groups.push_back({parts.layer, {}});
    groups[place->second].members.push_back({parts.suffix, i});
  }
  return groups;
}

}  // namespace

std::ptrdiff_t LayerRecord::find(std::string_view factor) const {
  for (const Factor &f : factors)
    if (f.name == factor) return static_cast<std::ptrdiff_t>(f.tensor);
  return -1;
}

std::string_view network_module(const AdapterKeys &keys) {
  const auto entry = keys.metadata.find("ss_network_module");
  return entry == keys.metadata.end() ? std::string_view() : entry->second;
}

bool is_lycoris(const AdapterKeys &keys) {
  const std::string_view module = network_module(keys);
  return starts_with(module, "lycoris.") || (module.empty() && any_prefix(keys, {"lycoris_"}));
}

bool is_kohya(const AdapterKeys &keys) {
  return starts_with(network_module(keys), "networks.") ||
         any_prefix(keys, {"lora_unet_", "lora_transformer_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_"});
}

bool is_kohya_oft(const AdapterKeys &keys) {
  const std::string_view module = network_module(keys);
  return starts_with(module, "networks.oft") || starts_with(module, "networks.boft") ||
         any_prefix(keys, {"oft_unet_"});
}

bool is_original(const AdapterKeys &keys) {
  return std::any_of(keys.tensors.begin(), keys.tensors.end(), [&](const TensorEntry &tensor) {
    const std::string_view name = split_key(tensor.name, keys.families).suffix.name;
    return !name.empty() && name != "weight";
  });
}

AdapterRecords read_lycoris(const AdapterKeys &keys) {
  AdapterRecords records;
  Reader reader(keys, records);
  for (Group &group : group_by_layer(keys, records.leftovers)) reader.read(std::move(group));
  for (LayerRecord &record : records.layers) find_split_qkv(keys, record, records.notes);
  std::stable_sort(records.layers.begin(), records.layers.end(),
                   [](const LayerRecord &a, const LayerRecord &b) { return a.layer < b.layer; });
  std::sort(records.leftovers.begin(), records.leftovers.end(),
            [](const Leftover &a, const Leftover &b) { return a.tensors.front() < b.tensors.front(); });
  return records;
}

AdapterRecords read_kohya_oft(const AdapterKeys &keys) {
  AdapterRecords records = read_lycoris(keys);
  records.origin = LYC_ORIGIN_KOHYA;
  return records;
}

}  // namespace lyc::io
