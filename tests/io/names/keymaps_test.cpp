// Whole models: the golden key maps, which came out of the converters of diffusers, in both directions.
//
// Rows marked '!' document names that the converters lose or send astray. What we check for them is the layer that the
// name belongs to, which is the row's own module where it names one and the family map's otherwise (SDXL's
// add_embedding), never the mistake.
#include <algorithm>
#include <chrono>
#include <gtest/gtest.h>
#include <map>

#include "io/golden.hpp"
#include "io/names/resolver.hpp"

namespace lyc::io {
namespace {

using test::flat;

/// One tensor of one side, or rows of it: "name[begin:end]", "name[q]", or all of it.
struct Piece {
  std::string name;
  std::int64_t begin = 0, end = -1;
  bool operator==(const Piece &other) const { return name == other.name && begin == other.begin && end == other.end; }
  friend std::ostream &operator<<(std::ostream &out, const Piece &p) {
    return out << p.name << '[' << p.begin << ':' << p.end << ']';
  }
};
using Pieces = std::vector<Piece>;

Piece parse_piece(const std::string &text) {
  const std::size_t bracket = text.find('[');
  if (bracket == text.npos) return {text};
  const std::string range = text.substr(bracket + 1, text.size() - bracket - 2);
  const std::size_t colon = range.find(':');
  constexpr std::int64_t kThird = 1280;  // the width of CLIP-bigG
  if (colon == range.npos) {
    const std::int64_t part = range == "q" ? 0 : range == "k" ? 1 : 2;
    return {text.substr(0, bracket), part * kThird, (part + 1) * kThird};
  }
  return {text.substr(0, bracket), std::stoll(range.substr(0, colon)), std::stoll(range.substr(colon + 1))};
}

Pieces parse_pieces(const std::string &text) {
  Pieces pieces;
  std::size_t begin = 0;
  for (std::size_t plus; (plus = text.find(" + ", begin)) != text.npos; begin = plus + 3)
    pieces.push_back(parse_piece(text.substr(begin, plus - begin)));
  pieces.push_back(parse_piece(text.substr(begin)));
  return pieces;
}

/// Take ".weight", ".bias", ".scale", "_weight" or "_bias" off.
std::string module_of(const std::string &tensor) {
  for (const char *end : {".weight", ".scale", ".bias", "_weight", "_bias"})
    if (const std::string e = end;
        tensor.size() > e.size() && tensor.compare(tensor.size() - e.size(), e.size(), e) == 0)
      return tensor.substr(0, tensor.size() - e.size());
  return tensor;
}

bool is_bias(const std::string &tensor) {
  const std::string end = "bias";
  return tensor.size() > end.size() && tensor.compare(tensor.size() - end.size(), end.size(), end) == 0;
}

/// A model under one of its names: weights that layers are looked up in.
class Model {
 public:
  void add(const std::string &tensor, std::int64_t rows, std::int64_t columns = 3072) {
    if (sizes_.emplace(tensor, rows).second)
      table_.add(tensor, is_bias(tensor) ? std::vector<std::int64_t>{rows} : std::vector<std::int64_t>{rows, columns});
  }
  void finish() {
    entries_ = table_.entries();
    resolver_.emplace(entries_);
  }
  std::int64_t rows(const std::string &tensor) const { return sizes_.at(tensor); }

  /// Where the rows of a layer's weight go, in the adapter's order; {failure} if nowhere.
  Pieces resolve(const std::string &layer) const {
    const Resolution resolution = resolver_->resolve(layer);
    if (!resolution) return {{resolution.failure}};
    Pieces pieces;
    std::int64_t next = 0;
    for (const RowTarget &target : resolution.targets) {
      EXPECT_EQ(target.adapter_row, next);
      next += target.rows;
      const std::size_t tensor = target.weight ? *target.weight : *target.bias;
      pieces.push_back({std::string(entries_[tensor].name), target.base_row, target.base_row + target.rows});
      if (target.weight && target.bias) {
        EXPECT_EQ(module_of(pieces.back().name), module_of(std::string(entries_[*target.bias].name)));
      }
    }
    EXPECT_EQ(resolution.adapter_rows, next);
    return pieces;
  }

 private:
  test::Table table_;
  std::map<std::string, std::int64_t> sizes_;
  std::vector<TensorEntry> entries_;
  std::optional<NameResolver> resolver_;
};

class KeyMaps : public testing::Test {
 protected:
  void SetUp() override {
    const auto golden = test::golden_folder();
    if (!golden) GTEST_SKIP() << "no golden folder";
    maps_ = *golden / "keymaps";
  }
  std::filesystem::path maps_;
};

constexpr std::int64_t kRows = 10;

/// A whole tensor of a model whose tensors have kRows rows.
Pieces whole(const std::string &tensor) { return {{tensor, 0, kRows}}; }

// -- UNets: one to one -------------------------------------------------------------------------------------------

struct UnetModels {
  Model checkpoint, folder, bare_native, bare_diffusers;

  explicit UnetModels(const std::filesystem::path &map) {
    for (const auto &row : test::read_map(map)) {
      for (const char *parameter : {"weight", "bias"}) {
        if (row[2].find(parameter[0]) == std::string::npos) continue;
        const std::string end = std::string(".") + parameter;
        checkpoint.add("model.diffusion_model." + row[0] + end, kRows);
        folder.add("unet." + row[1] + end, kRows);
        bare_native.add(row[0] + end, kRows);
        bare_diffusers.add(row[1] + end, kRows);
      }
    }
    for (Model *model : {&checkpoint, &folder, &bare_native, &bare_diffusers}) model->finish();
  }
};

class UnetCheckpoints : public KeyMaps, public testing::WithParamInterface<const char *> {};

TEST_P(UnetCheckpoints, EitherNameFindsEitherModel) {
  const UnetModels models(maps_ / GetParam());
  std::size_t count = 0;
  for (const auto &row : test::read_map(maps_ / GetParam())) {
    ++count;
    for (const std::string &name : {row[0], row[1]}) {
      for (const std::string &layer :
           {"lora_unet_" + flat(name), "lycoris_" + flat(name), "diffusion_model." + name, "unet." + name, name}) {
        EXPECT_EQ(models.checkpoint.resolve(layer), whole("model.diffusion_model." + row[0] + ".weight")) << layer;
        EXPECT_EQ(models.folder.resolve(layer), whole("unet." + row[1] + ".weight")) << layer;
        EXPECT_EQ(models.bare_native.resolve(layer), whole(row[0] + ".weight")) << layer;
        EXPECT_EQ(models.bare_diffusers.resolve(layer), whole(row[1] + ".weight")) << layer;
      }
    }
  }
  EXPECT_GT(count, 300u);
}

INSTANTIATE_TEST_SUITE_P(KeyMaps, UnetCheckpoints,
                         testing::Values("sd15_unet_checkpoint.txt", "sdxl_unet_checkpoint.txt"),
                         [](const auto &p) { return std::string(p.param, 4); });

TEST_F(KeyMaps, KohyaNamesOfUnets) {
  const std::pair<const char *, const char *> cases[] = {
      {"sd15_unet_kohya.txt", "sd15_unet_checkpoint.txt"},
      {"sdxl_unet_kohya_diffusers_names.txt", "sdxl_unet_checkpoint.txt"}};
  for (const auto &[names, checkpoint] : cases) {
    const UnetModels models(maps_ / checkpoint);
    std::map<std::string, std::string> native_of;
    for (const auto &row : test::read_map(maps_ / checkpoint)) native_of["unet." + row[1]] = row[0];
    for (const auto &row : test::read_map(maps_ / names)) {
      // SDXL's add_embedding.linear_1/2, which the converter loses.
      const std::string module =
          row.back() == "!" ? "unet.add_embedding.linear_" + row[0].substr(row[0].size() - 1) : row[1];
      EXPECT_EQ(models.folder.resolve(row[0]), whole(module + ".weight")) << row[0];
      EXPECT_EQ(models.checkpoint.resolve(row[0]), whole("model.diffusion_model." + native_of.at(module) + ".weight"))
          << row[0];
    }
  }
}

TEST_F(KeyMaps, KohyaNamesOfSdxlInNativeSpelling) {
  const UnetModels models(maps_ / "sdxl_unet_checkpoint.txt");
  for (const auto &row : test::read_map(maps_ / "sdxl_unet_kohya_sgm_names.txt")) {
    const std::string layer = "lora_unet_" + flat(row[0]);
    EXPECT_EQ(models.folder.resolve(layer), whole(row[1] + ".weight")) << layer;
    EXPECT_EQ(models.checkpoint.resolve(layer), whole("model.diffusion_model." + row[0] + ".weight")) << layer;
  }
}

// -- Text encoders -----------------------------------------------------------------------------------------------

TEST_F(KeyMaps, TextEncodersByTheirKohyaNames) {
  for (const bool two : {false, true}) {
    Model folder, checkpoint;
    const auto clip_l = test::read_map(maps_ / "clip_l_kohya.txt"), clip_g = test::read_map(maps_ / "clip_g_kohya.txt");
    const std::string native = two ? "conditioner.embedders.0.transformer." : "cond_stage_model.transformer.";
    const std::string component = "text_encoder.";
    for (const auto &row : clip_l) {
      folder.add(row[1] + ".weight", kRows);
      checkpoint.add(native + row[1].substr(component.size()) + ".weight", kRows);
    }
    if (two)
      for (const auto &row : clip_g) folder.add(row[1] + ".weight", kRows);
    folder.finish();
    checkpoint.finish();
    for (const auto &row : clip_l) {
      std::string layer = row[0];
      if (two) layer.replace(0, std::string("lora_te_").size(), "lora_te1_");
      EXPECT_EQ(folder.resolve(layer), whole(row[1] + ".weight")) << layer;
      EXPECT_EQ(checkpoint.resolve(layer), whole(native + row[1].substr(component.size()) + ".weight")) << layer;
    }
    if (!two) continue;
    for (const auto &row : clip_g) EXPECT_EQ(folder.resolve(row[0]), whole(row[1] + ".weight")) << row[0];
  }
}

TEST_F(KeyMaps, OpenClipBothWays) {
  constexpr std::int64_t kWidth = 1280;
  Model checkpoint, folder;
  const auto map = test::read_map(maps_ / "clip_g_checkpoint.txt");
  std::map<std::string, Pieces> parts_of;  // native layer -> transformers tensors, by rows
  for (const auto &row : map) {
    const Piece native = parse_piece(row[0]);
    checkpoint.add(native.name, native.end < 0 ? kWidth : 3 * kWidth, row.size() > 2 ? 640 : kWidth);
    folder.add("text_encoder_2." + row[1], row.size() > 2 ? 640 : kWidth);
  }
  checkpoint.finish();
  folder.finish();
  const std::string prefix = "conditioner.embedders.1.model.";
  for (const auto &row : map) {
    if (is_bias(row[1])) continue;
    Piece native = parse_piece(row[0]);
    const bool transposed = row.size() > 2;
    if (native.end < 0) native.end = transposed ? 640 : kWidth;
    const std::string module = module_of(row[1]);
    EXPECT_EQ(checkpoint.resolve("lora_te2_" + flat(module)), Pieces{native}) << module;
    EXPECT_EQ(folder.resolve("lora_te2_" + flat(module)),
              (Pieces{{"text_encoder_2." + row[1], 0, transposed ? 640 : kWidth}}))
        << module;
    parts_of[module_of(native.name.substr(prefix.size()))].push_back(
        {"text_encoder_2." + row[1], 0, transposed ? 640 : kWidth});
  }
  for (const auto &[native, parts] : parts_of) EXPECT_EQ(folder.resolve("lora_te2_" + flat(native)), parts) << native;
}

// -- Flux: fused projections and swapped halves ------------------------------------------------------------------

struct FluxModels {
  Model native, diffusers;
  std::map<std::string, Pieces> native_of;     // diffusers module -> rows of native tensors, in its order
  std::map<std::string, Pieces> diffusers_of;  // native module -> rows of diffusers tensors, in its order

  explicit FluxModels(const std::filesystem::path &map) {
    const auto rows = test::read_map(map);
    std::map<std::string, std::int64_t> sizes;
    for (const auto &row : rows)
      for (const Piece &piece : parse_pieces(row[0]))
        sizes[piece.name] = std::max(sizes[piece.name], piece.end < 0 ? kRows : piece.end);
    for (const auto &[name, size] : sizes) native.add(name, size);
    for (const auto &row : rows) {
      Pieces pieces = parse_pieces(row[0]);
      std::int64_t size = 0;
      for (Piece &piece : pieces) {
        if (piece.end < 0) piece.end = sizes[piece.name];
        size += piece.end - piece.begin;
      }
      diffusers.add(row[1], size);
      if (is_bias(row[1])) continue;
      native_of[module_of(row[1])] = pieces;
      std::int64_t at = 0;
      for (const Piece &piece : pieces) {
        const std::int64_t count = piece.end - piece.begin;
        order_[module_of(piece.name)][piece.begin] = {row[1], at, at + count};
        at += count;
      }
    }
    for (const auto &[module, pieces] : order_)
      for (const auto &[begin, piece] : pieces) diffusers_of[module].push_back(piece);
    native.finish();
    diffusers.finish();
  }

 private:
  std::map<std::string, std::map<std::int64_t, Piece>> order_;
};

TEST_F(KeyMaps, FluxBothWays) {
  const FluxModels models(maps_ / "flux_checkpoint.txt");
  EXPECT_GT(models.native_of.size(), 600u);
  for (const auto &[module, pieces] : models.native_of) {
    for (const std::string &layer : {"lora_unet_" + flat(module), "lora_transformer_" + flat(module),
                                     "lycoris_" + flat(module), "transformer." + module}) {
      EXPECT_EQ(models.native.resolve(layer), pieces) << layer;
      EXPECT_EQ(models.diffusers.resolve(layer),
                (Pieces{{module + ".weight", 0, models.diffusers.rows(module + ".weight")}}))
          << layer;
    }
  }
  for (const auto &[module, pieces] : models.diffusers_of) {
    for (const std::string &layer : {"lora_unet_" + flat(module), "diffusion_model." + module})
      EXPECT_EQ(models.diffusers.resolve(layer), pieces) << layer;
    const Pieces own = models.native.resolve("diffusion_model." + module);
    ASSERT_EQ(own.size(), 1u) << module;
    EXPECT_EQ(module_of(own[0].name), module);
    EXPECT_EQ(own[0].end, models.native.rows(own[0].name));
  }
}

TEST_F(KeyMaps, KohyaNamesOfFlux) {
  const FluxModels models(maps_ / "flux_checkpoint.txt");
  // Adapter layer -> its rows, in their order, and where the converter puts them.
  std::map<std::string, std::map<std::int64_t, Piece>> expected;
  for (const auto &row : test::read_map(maps_ / "flux_kohya.txt")) {
    ASSERT_NE(row[1], "-") << row[0];
    std::string module = row[1];
    const std::string component = "transformer.";
    if (row.back() != "!") module = module.substr(component.size());  // '!': the converter forgets the component
    std::int64_t at = 0;
    for (const Piece &piece : parse_pieces(row[0])) {
      const std::int64_t rows = piece.end < 0 ? models.diffusers.rows(module + ".weight") : piece.end - piece.begin;
      expected[piece.name][piece.begin] = {module + ".weight", at, at + rows};
      at += rows;
    }
  }
  for (const auto &[layer, ordered] : expected) {
    Pieces pieces;
    for (const auto &[begin, piece] : ordered) pieces.push_back(piece);
    EXPECT_EQ(models.diffusers.resolve(layer), pieces) << layer;
    EXPECT_EQ(models.native.resolve(layer).size(), 1u) << layer;
  }
}

// -- Speed --------------------------------------------------------------------------------------------------------

TEST_F(KeyMaps, SdxlResolvesInMilliseconds) {
  test::Table table;
  for (const auto &row : test::read_map(maps_ / "sdxl_unet_checkpoint.txt"))
    for (const char *end : {".weight", ".bias"}) table.add("model.diffusion_model." + row[0] + end, {kRows, kRows});
  for (const auto &row : test::read_map(maps_ / "clip_g_checkpoint.txt"))
    table.add(parse_piece(row[0]).name, {3840, 1280});
  const auto entries = table.entries();
  std::vector<std::string> layers;
  for (const auto &row : test::read_map(maps_ / "sdxl_unet_kohya_diffusers_names.txt")) layers.push_back(row[0]);
  const auto begin = std::chrono::steady_clock::now();
  const NameResolver resolver(entries);
  const auto built = std::chrono::steady_clock::now();
  std::size_t found = 0;
  for (const std::string &layer : layers) found += resolver.resolve(layer) ? 1 : 0;
  const auto end = std::chrono::steady_clock::now();
  EXPECT_EQ(found, layers.size());
  using Milliseconds = std::chrono::duration<double, std::milli>;
  RecordProperty("tensors", std::to_string(entries.size()));
  RecordProperty("build_ms", std::to_string(Milliseconds(built - begin).count()));
  RecordProperty("resolve_ms", std::to_string(Milliseconds(end - built).count()));
  std::printf("%zu tensors indexed in %.2f ms, %zu layers in %.2f ms\n", entries.size(),
              Milliseconds(built - begin).count(), layers.size(), Milliseconds(end - built).count());
}

}  // namespace
}  // namespace lyc::io
