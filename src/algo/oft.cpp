// OFT, rotations of blocks of neighbours along one axis (arXiv:2306.07280), as four programs have it:
//
//   oft_blocks     [n, b, b]        rows, W' = R^T W          LyCORIS, with `rescale`; |Q| <= alpha * out if alpha > 0
//                                                             kohya: the limit always acts, alpha 0 means none
//   oft_blocks.0…  one for each slice of the rows             kohya, of Flux' fused projections
//   oft_R.weight   [n, b(b-1)/2]    columns, W' = W R^T       PEFT and OneTrainer: elements above Q's diagonal; one row
//                                                             is for all blocks. OneTrainer's convolutions: W' = W R
//   oft_embedding_R.weight          columns, W' = W R         PEFT's embeddings
//
// R = (I + Q)(I - Q)^-1, Q = X - X^T; PEFT and OneTrainer compute its series, or, exactly, its inverse.
#include <cmath>

#include "algo/factorization.hpp"
#include "algo/families.hpp"
#include "algo/rotations.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kBlocks = "oft_blocks", *kRescale = "rescale";
constexpr const char *kSlices[] = {"oft_blocks.0", "oft_blocks.1", "oft_blocks.2", "oft_blocks.3"};
constexpr const char *kTriangle = "oft_R.weight", *kEmbedding = "oft_embedding_R.weight";
constexpr const char *kScaled = "oft_R.scaled_oft";  // there: the stored values are 2 sqrt(b - 1) times too large
constexpr std::int32_t kUsualTerms = 5;

constexpr const char *kAliases[] = {"diag-oft", nullptr};
constexpr const char *kSuffixes[] = {kBlocks,   kSlices[0], kSlices[1], kSlices[2], kSlices[3],
                                     kTriangle, kEmbedding, kScaled,    kRescale,   nullptr};
constexpr const char *kSignature[] = {kBlocks, kSlices[0], kTriangle, kEmbedding, nullptr};

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  require(spec.rank >= 1, "rank is ", spec.rank, ", must be at least 1: the largest block");
  const auto [block, blocks] = factorize(layer.out, spec.rank);
  std::vector<FactorSpec> list = {{kBlocks, {blocks, block, block}}};
  if (spec.flags & LYC_MODULE_RESCALE) list.push_back(rescale_spec(kRescale, layer));
  return list;
}

/// Four axes make it BOFT.
bool owns(const Factors &f) { return !f.has(kBlocks) || f.at(kBlocks).ndim != 4; }

/// Block matrices that turn rows, one tensor for each slice of them.
std::vector<const char *> slices(const Factors &f) {
  if (f.has(kBlocks)) return {kBlocks};
  std::vector<const char *> names;
  for (const char *name : kSlices)
    if (f.has(name)) {
      if (name != kSlices[names.size()])
        fail(LYC_ERROR_FORMAT, kSlices[names.size()], " is missing, ", name, " is there");
      names.push_back(name);
    }
  return names;
}

const char *triangle(const Factors &f) {
  return f.has(kTriangle) ? kTriangle : f.has(kEmbedding) ? kEmbedding : nullptr;
}

/// b where a block's triangle has b (b - 1) / 2 elements.
std::int64_t triangle_block(const Factors &f, const char *name) {
  const std::int64_t count = matrix_columns_of(f, name);
  const auto block = static_cast<std::int64_t>((1.0 + std::sqrt(1.0 + 8.0 * static_cast<double>(count))) / 2.0);
  if (block * (block - 1) / 2 != count)
    fail(LYC_ERROR_FORMAT, name, " has ", count, " columns, which are no triangle: b (b - 1) / 2 for no b");
  return block;
}

std::int64_t slice_rows_of(const Factors &f, const char *name) {
  const Shape shape = shape_of(f.at(name));
  if (shape.size() != 3 || shape[1] != shape[2])
    fail(LYC_ERROR_FORMAT, name, " has shape ", shape_text(shape), ", must be [blocks, size, size]");
  return checked_numel(shape.data(), 2, std::string(name));
}

DeltaShape describe(const Factors &f, const Traits &traits) {
  DeltaShape shape;
  shape.reads_base = true;
  const std::vector<const char *> parts = slices(f);
  if (const char *name = triangle(f)) {
    if (!parts.empty()) fail(LYC_ERROR_FORMAT, parts.front(), " and ", name, " are rotations of different programs");
    const std::int64_t rows = rows_of(f, name), block = triangle_block(f, name);
    if (rows > 1) shape.columns = with_taps(block, {rows});
    return shape;
  }
  if (traits.origin == LYC_ORIGIN_KOHYA && !traits.alpha)
    fail(LYC_ERROR_FORMAT, "alpha is missing, which limits the rotation");
  shape.whole_rows = true;
  for (const char *name : parts) shape.out += slice_rows_of(f, name);
  if (!f.has(kRescale)) return shape;
  shape.flags = LYC_MODULE_RESCALE;
  require_equal(numel(f.at(kRescale)), kRescale, shape.out, parts.front(), "rows");
  return shape;
}

void lower_rows(Lowering &to) {
  const Factors &f = to.factors;
  std::int64_t begin = 0;
  for (const char *name : slices(f)) {
    ops::Rotation &rotation = to.add_rotation();
    set_square_blocks(rotation, f.at(name));
    rotation.factor = -1.0;
    rotation.begin = begin;
    begin += rotation.extent();
    if (to.traits.origin == LYC_ORIGIN_KOHYA) {
      rotation.limited = ops::Rotation::Limit::kAlways;
      rotation.limit = *to.traits.alpha * static_cast<double>(rotation.extent());
    } else {
      limit_together(rotation, to.traits.alpha);
    }
    set_rescale(rotation, f.find(kRescale));
  }
}

/// As many blocks as the tensor has rows; one row is for all that the weight has.
std::int64_t block_count(const Lowering &to, const char *name, std::int64_t block) {
  const std::int64_t rows = rows_of(to.factors, name), columns = to.layer.in * to.layer.kernel_size();
  if (rows == 1 ? columns % block != 0 : columns != rows * block)
    fail(LYC_ERROR_MISMATCH, name, " turns ", rows, " blocks of ", block, ", the weight has ", columns, " columns");
  return columns / block;
}

void lower_columns(Lowering &to, const char *name) {
  const Factors &f = to.factors;
  const Traits &traits = to.traits;
  ops::Rotation &rotation = to.add_rotation();
  rotation.axis = ops::Rotation::Axis::kIn;
  rotation.storage = ops::Rotation::Storage::kTriangle;
  rotation.block_size = triangle_block(f, name);
  rotation.blocks = block_count(to, name, rotation.block_size);
  rotation.generators = matrix(f.at(name));
  if (rotation.generators.out == 1) rotation.generators.stride_out = 0;
  const bool inverse = name == kEmbedding || (traits.origin == LYC_ORIGIN_ONETRAINER && !to.layer.kernel.empty());
  if (inverse) rotation.factor = -1.0;
  if (traits.neumann_terms == -1) {
    rotation.factor = -rotation.factor;
  } else {
    rotation.map = ops::Rotation::Map::kNeumann;
    rotation.neumann_terms = traits.neumann_terms ? traits.neumann_terms : kUsualTerms;
  }
  if (f.has(kScaled)) rotation.factor /= 2.0 * std::sqrt(static_cast<double>(rotation.block_size - 1));
  if (traits.coft_epsilon > 0) {
    rotation.limited = ops::Rotation::Limit::kBlock;
    rotation.limit = traits.coft_epsilon / std::sqrt(static_cast<double>(rows_of(f, name)));
  }
}

void lower(Lowering &to) {
  const char *name = triangle(to.factors);
  name ? lower_columns(to, name) : lower_rows(to);
}

}  // namespace

const Algorithm kOft = {
    LYC_ALGO_OFT, "oft", kAliases, kSuffixes, kSignature, {},      LYC_MODULE_RESCALE,
    false,        false, factors,  describe,  lower,      nullptr, nullptr,
    owns,         kScaled};

}  // namespace lyc::algo
