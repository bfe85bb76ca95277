#include "io/container/tensor_file.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#define JSON_NO_IO
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "io/container/model_folder.hpp"

namespace lyc::io {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kHeadSize = 16;  // enough to tell formats apart
constexpr const char *kMemoryName = "(memory)";
constexpr const char *kDiffusersIndex = "model_index.json";

/// A JSON object. Errors: FORMAT.
Json read_json(const std::string &path) {
  const std::string text = os::read_text(path, kMaxHeaderSize);
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) fail(LYC_ERROR_FORMAT, "'", path, "' is not a JSON object");
  return json;
}

/// Indexes are as untrusted as headers: the files that they name must be in their own folder.
bool is_plain_file_name(const std::string &name) {
  return !name.empty() && name != "." && name != ".." && name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

/// The weight_map of an index: tensor to shard.
std::map<std::string, std::string> read_weight_map(const std::string &path) {
  const Json json = read_json(path);
  const auto found = json.find("weight_map");
  if (found == json.end() || !found->is_object()) fail(LYC_ERROR_FORMAT, "'", path, "' has no weight_map");
  std::map<std::string, std::string> map;
  for (const auto &[tensor, shard] : found->items()) {
    if (!shard.is_string()) fail(LYC_ERROR_FORMAT, "'", path, "': tensor ", quote_name(tensor), " has no shard");
    const std::string &name = shard.get_ref<const std::string &>();
    if (!is_plain_file_name(name))
      fail(LYC_ERROR_FORMAT, "'", path, "': tensor ", quote_name(tensor), " is in the shard ", quote_name(name),
           ", which is not the name of a file in the same folder");
    map.emplace(tensor, name);
  }
  if (map.empty()) fail(LYC_ERROR_FORMAT, "'", path, "' has an empty weight_map");
  return map;
}

/// Names of the regular files in a folder, hidden ones left out.
std::vector<std::string> list_files(const std::string &folder) {
  std::vector<std::string> names = os::list_folder(folder);
  const auto is_other = [&](const std::string &name) {
    return name.front() == '.' || os::file_type(os::join(folder, name)) != os::FileType::kFile;
  };
  names.erase(std::remove_if(names.begin(), names.end(), is_other), names.end());
  return names;
}

}  // namespace

const char *source_kind_name(SourceKind kind) {
  switch (kind) {
    case SourceKind::kMemory:
      return "memory";
    case SourceKind::kFile:
      return "file";
    case SourceKind::kFolder:
      return "folder";
    case SourceKind::kSharded:
      return "sharded";
    case SourceKind::kDiffusers:
      return "diffusers";
  }
  return "unknown";
}

TensorFile TensorFile::open(const std::string &path) {
  TensorFile file;
  if (os::file_type(path) == os::FileType::kFolder) {
    file.open_folder(path);
  } else if (is_index_name(os::file_name(path))) {
    file.open_index(path);
  } else {
    file.open_file(path);
  }
  file.finish();
  return file;
}

TensorFile TensorFile::open_memory(const void *data, std::size_t size) {
  TensorFile file;
  file.kind_ = SourceKind::kMemory;
  file.memory_ = {static_cast<const char *>(data), size};
  const std::uint64_t length = header_length(file.memory_.substr(0, kHeadSize), size, kMemoryName);
  Shard shard;
  shard.path = kMemoryName;
  file.add_shard(std::move(shard), parse_header(file.memory_.substr(kLengthSize, length), size, kMemoryName));
  file.finish();
  return file;
}

void TensorFile::open_file(const std::string &path) {
  kind_ = SourceKind::kFile;
  root_ = os::parent_folder(path);
  open_shard(os::file_name(path), "", "");
}

void TensorFile::open_index(const std::string &path) {
  kind_ = SourceKind::kSharded;
  root_ = os::parent_folder(path);
  add_index(os::file_name(path), "");
  list_other_files("", /*has_weights=*/true);
}

void TensorFile::open_folder(const std::string &path) {
  root_ = path;
  if (os::file_type(os::join(root_, kDiffusersIndex)) == os::FileType::kFile) return open_diffusers();
  open_weights("", "");
  if (shards_.empty()) {
    const std::vector<std::string> names = list_files(root_);
    const auto weights = std::find_if(names.begin(), names.end(), is_weight_name);
    if (weights == names.end()) fail(LYC_ERROR_NOT_FOUND, "'", path, "' holds no safetensors files");
    open_file(os::join(root_, *weights));  // says what it is instead
  }
  kind_ = shards_.size() > 1 || !shards_.front().index.empty() ? SourceKind::kSharded : SourceKind::kFolder;
  list_other_files("", /*has_weights=*/true);
}

void TensorFile::open_diffusers() {
  kind_ = SourceKind::kDiffusers;
  const std::string index = os::join(root_, kDiffusersIndex);
  const Json components = read_json(index);
  list_other_files("", /*has_weights=*/true);  // weights beside the components are the same model once more
  for (const auto &[name, value] : components.items()) {
    if (!value.is_array() || !is_plain_file_name(name)) continue;                 // settings such as "_class_name"
    if (os::file_type(os::join(root_, name)) != os::FileType::kFolder) continue;  // optional parts may be missing
    const std::size_t before = shards_.size();
    open_weights(name, name + ".");
    list_other_files(name, shards_.size() > before);
  }
  if (shards_.empty()) fail(LYC_ERROR_NOT_FOUND, "no component of '", index, "' holds safetensors files");
}

void TensorFile::open_weights(const std::string &folder, const std::string &prefix) {
  const std::string full = folder.empty() ? root_ : os::join(root_, folder);
  const WeightSet weights = choose_weights(list_files(full), full);
  if (!weights.index.empty()) return add_index(os::join(folder, weights.index), prefix);
  for (const std::string &name : weights.files) open_shard(os::join(folder, name), prefix, "");
}

void TensorFile::add_index(const std::string &index, const std::string &prefix) {
  const std::string index_path = os::join(root_, index);
  const std::map<std::string, std::string> weight_map = read_weight_map(index_path);
  std::vector<std::string> names;
  for (const auto &[tensor, shard] : weight_map) names.push_back(shard);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  const std::string folder = index.substr(0, index.size() - os::file_name(index).size());
  std::unordered_map<std::string_view, std::string_view> found;
  const std::size_t first = shards_.size();
  for (const std::string &name : names) open_shard(folder + name, prefix, index);
  for (std::size_t s = first; s < shards_.size(); ++s)
    for (std::size_t i = shards_[s].first; i < shards_[s].first + shards_[s].count; ++i)
      found.emplace(std::string_view(tensors_[i].name).substr(prefix.size()), names[s - first]);
  for (const auto &[tensor, shard] : weight_map) {
    const auto entry = found.find(tensor);
    if (entry == found.end() || entry->second != shard)
      fail(LYC_ERROR_FORMAT, "'", index_path, "': tensor ", quote_name(tensor), " should be in ", quote_name(shard),
           ", but is not");
  }
}

void TensorFile::open_shard(const std::string &path, const std::string &prefix, const std::string &index) {
  const std::string full = os::join(root_, path);
  os::File file(full);
  char head[kHeadSize];
  const std::size_t head_size = static_cast<std::size_t>(std::min<std::uint64_t>(kHeadSize, file.size()));
  file.read(0, head, head_size);
  std::string json(static_cast<std::size_t>(header_length({head, head_size}, file.size(), full)), '\0');
  file.read(kLengthSize, json.data(), json.size());
  Header header = parse_header(json, file.size(), full);
  Shard shard;
  shard.path = path;
  shard.prefix = prefix;
  shard.index = index;
  shard.file = std::move(file);
  add_shard(std::move(shard), std::move(header));
}

void TensorFile::add_shard(Shard shard, Header header) {
  shard.metadata = std::move(header.metadata);
  shard.first = tensors_.size();
  shard.count = header.tensors.size();
  for (TensorInfo &tensor : header.tensors) {
    tensor.name.insert(0, shard.prefix);
    tensors_.push_back(std::move(tensor));
  }
  shards_.push_back(std::move(shard));
}

void TensorFile::list_other_files(const std::string &folder, bool has_weights) {
  for (const std::string &name : list_files(folder.empty() ? root_ : os::join(root_, folder)))
    if (!has_weights || !is_weight_name(name)) other_files_.push_back(os::join(folder, name));
}

void TensorFile::finish() {
  numbers_.reserve(tensors_.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const auto [entry, is_new] = numbers_.emplace(tensors_[i].name, i);
    if (!is_new)
      fail(LYC_ERROR_FORMAT, "'", root_, "': tensor ", quote_name(tensors_[i].name), " is in two files, ",
           quote_name(shard_of(entry->second).path), " and ", quote_name(shard_of(i).path));
  }
}

std::optional<std::size_t> TensorFile::find(std::string_view name) const {
  const auto entry = numbers_.find(name);
  return entry == numbers_.end() ? std::nullopt : std::optional(entry->second);
}

const Shard &TensorFile::shard_of(std::size_t tensor) const {
  const auto after = std::upper_bound(shards_.begin(), shards_.end(), tensor,
                                      [](std::size_t i, const Shard &shard) { return i < shard.first; });
  return *std::prev(after);
}

void TensorFile::read(std::size_t tensor, void *data, std::uint64_t begin, std::size_t size) const {
  const TensorInfo &info = tensors_[tensor];
  require_range(info, begin, size);
  if (size == 0) return;
  const Shard &shard = shard_of(tensor);
  if (shard.file)
    shard.file->read(info.offset + begin, data, size);
  else
    std::memcpy(data, memory_.data() + info.offset + begin, size);
}

bool TensorFile::is_input(const std::string &path) const {
  const std::optional<os::FileIdentity> identity = os::file_identity(path);
  if (!identity) return false;
  const bool is_folder = kind_ != SourceKind::kMemory && kind_ != SourceKind::kFile;
  if (is_folder && os::file_identity(root_) == identity) return true;
  return std::any_of(shards_.begin(), shards_.end(),
                     [&](const Shard &shard) { return shard.file && shard.file->identity() == *identity; });
}

}  // namespace lyc::io
