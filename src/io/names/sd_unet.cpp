// Denoisers of SD 1.x, 2.x and SDXL: checkpoints number all blocks through ("input_blocks.4.1"), diffusers numbers them
// by resolution ("down_blocks.1.attentions.0"). Three entries of a checkpoint's list make one resolution: two layers
// and a resampler going down, three layers going up.
#include <charconv>

#include "base/text.hpp"
#include "io/names/component.hpp"
#include "io/names/family.hpp"

namespace lyc::io {
namespace {

constexpr int kPerResolution = 3;

struct Pair {
  std::string_view native, diffusers;
};

constexpr Pair kOutsideBlocks[] = {
    {"input_blocks.0.0", "conv_in"},
    {"time_embed.0", "time_embedding.linear_1"},
    {"time_embed.2", "time_embedding.linear_2"},
    {"label_emb.0.0", "add_embedding.linear_1"},
    {"label_emb.0.2", "add_embedding.linear_2"},
    {"out.0", "conv_norm_out"},
    {"out.2", "conv_out"},
};

constexpr Pair kInResnet[] = {
    {"in_layers.0", "norm1"},  {"in_layers.2", "conv1"},  {"emb_layers.1", "time_emb_proj"},
    {"out_layers.0", "norm2"}, {"out_layers.3", "conv2"}, {"skip_connection", "conv_shortcut"},
};

/// The other side's word, "" if there is none.
template <std::size_t N>
std::string_view other(const Pair (&pairs)[N], std::string_view word, std::string_view Pair::*from,
                       std::string_view Pair::*to) {
  for (const Pair &pair : pairs)
    if (pair.*from == word) return pair.*to;
  return {};
}

/// Takes "<word>." off the front of a path.
bool take(std::string_view &path, std::string_view word) {
  if (!starts_with(path, word) || path.size() <= word.size() || path[word.size()] != '.') return false;
  path.remove_prefix(word.size() + 1);
  return true;
}

/// Takes "<number>." off the front of a path.
bool take(std::string_view &path, int &number) {
  const auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), number);
  constexpr int kMaxBlock = 1000;  // keeps what is computed from it small
  if (error != std::errc() || number < 0 || number > kMaxBlock) return false;
  const std::size_t length = static_cast<std::size_t>(end - path.data());
  if (path.size() <= length || path[length] != '.') return false;
  path.remove_prefix(length + 1);
  return true;
}

std::string join(std::string_view word, int a, std::string_view middle, int b, std::string_view rest) {
  std::string path(word);
  path += '.';
  path += std::to_string(a);
  path += '.';
  path += middle;
  if (!middle.empty()) path += '.';
  path += std::to_string(b);
  path += '.';
  path += rest;
  return path;
}

/// Calls `emit(diffusers path)` for a native path.
template <typename Emit>
void from_native(std::string_view path, Emit &&emit) {
  if (const auto name = other(kOutsideBlocks, path, &Pair::native, &Pair::diffusers); !name.empty())
    return emit(std::string(name));
  int block = 0, slot = 0;
  const auto in_resnet = [&] { return other(kInResnet, path, &Pair::native, &Pair::diffusers); };
  if (take(path, "input_blocks")) {
    if (!take(path, block) || !take(path, slot) || block == 0) return;
    const int i = (block - 1) / kPerResolution, j = (block - 1) % kPerResolution;
    if (j == kPerResolution - 1) {
      if (slot == 0 && path == "op") emit(join("down_blocks", i, "downsamplers", 0, "conv"));
    } else if (slot == 0) {
      if (const auto name = in_resnet(); !name.empty()) emit(join("down_blocks", i, "resnets", j, name));
    } else if (slot == 1) {
      emit(join("down_blocks", i, "attentions", j, path));
    }
  } else if (take(path, "middle_block")) {
    if (!take(path, slot)) return;
    if (slot == 1) return emit("mid_block.attentions.0." + std::string(path));
    if (slot > 2) return;
    if (const auto name = in_resnet(); !name.empty())
      emit("mid_block.resnets." + std::to_string(slot / 2) + "." + std::string(name));
  } else if (take(path, "output_blocks")) {
    if (!take(path, block) || !take(path, slot)) return;
    const int i = block / kPerResolution, j = block % kPerResolution;
    if (slot == 0) {
      if (const auto name = in_resnet(); !name.empty()) emit(join("up_blocks", i, "resnets", j, name));
    } else if (path == "conv") {
      if (j == kPerResolution - 1) emit(join("up_blocks", i, "upsamplers", 0, path));
    } else if (slot == 1) {
      emit(join("up_blocks", i, "attentions", j, path));
    }
  }
}

/// Calls `emit(native path)` for a diffusers path.
template <typename Emit>
void from_diffusers(std::string_view path, Emit &&emit) {
  if (const auto name = other(kOutsideBlocks, path, &Pair::diffusers, &Pair::native); !name.empty())
    return emit(std::string(name));
  const bool down = take(path, "down_blocks"), up = !down && take(path, "up_blocks");
  const bool mid = !down && !up && take(path, "mid_block");
  int i = 0, j = 0;
  if ((!down && !up && !mid) || (!mid && !take(path, i))) return;
  const std::string_view list = down ? "input_blocks" : "output_blocks";
  const int first = kPerResolution * i + (down ? 1 : 0);  // input_blocks.0 is conv_in
  if (take(path, "resnets")) {
    if (!take(path, j) || j >= kPerResolution) return;
    const auto name = other(kInResnet, path, &Pair::diffusers, &Pair::native);
    if (name.empty()) return;
    emit(mid ? "middle_block." + std::to_string(2 * j) + "." + std::string(name) : join(list, first + j, "", 0, name));
  } else if (take(path, "attentions")) {
    if (!take(path, j) || j >= kPerResolution) return;
    emit(mid ? "middle_block.1." + std::string(path) : join(list, first + j, "", 1, path));
  } else if (down && path == "downsamplers.0.conv") {
    emit(join(list, first + kPerResolution - 1, "", 0, "op"));
  } else if (up && path == "upsamplers.0.conv") {
    // It follows the attention if its resolution has one, and the resnet if not; a model has only one of the two.
    for (const int slot : {1, 2}) emit(join(list, first + kPerResolution - 1, "", slot, "conv"));
  }
}

void append_aliases(const BaseLayer &layer, std::vector<Alias> &out) {
  const auto emit = [&](std::string path) { out.push_back({std::move(path), 0, 1, 0, layer.out, false}); };
  from_native(layer.path, emit);
  from_diffusers(layer.path, emit);
}

}  // namespace

const Family kSdUnet = {"SD UNet", kDenoiser, append_aliases};

}  // namespace lyc::io
