// BOFT (arXiv:2311.06243): stages of block rotations, each on a butterfly's order of its own. Two programs, two
// meanings:
//
//               blocks      R = map(X - X^T)      turns               then
//   oft_blocks  [m, n, b, b]  (I + Q)(I - Q)^-1   rows, interleaved   rows * rescale     LyCORIS; |Q| <= alpha * out
//   boft_R      [m, n, b, b]  its inverse, Q / 2  columns, by halves  rows * boft_s      PEFT
#include "algo/families.hpp"
#include "algo/rotations.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kBlocks = "oft_blocks", *kRescale = "rescale", *kPeftBlocks = "boft_R", *kPeftScale = "boft_s";
constexpr const char *kSuffixes[] = {kBlocks, kPeftBlocks, kRescale, kPeftScale, nullptr};
constexpr const char *kSignature[] = {kBlocks, kPeftBlocks, nullptr};

/// The largest even block of at most `limit` rows of which a power of two make the whole.
std::int64_t power_of_two_block(std::int64_t rows, std::int64_t limit) {
  std::int64_t block = rows;
  while (block > limit && block % 2 == 0) block /= 2;
  require(block <= limit && block % 2 == 0, "no even block of at most ", limit, " rows makes up ", rows,
          " rows by a power of two");
  return block;
}

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  require(spec.rank >= 1, "rank is ", spec.rank, ", must be at least 1: the largest block");
  const std::int64_t block = power_of_two_block(layer.out, spec.rank), blocks = layer.out / block;
  std::int64_t stages = 1;
  while (blocks >> stages) ++stages;
  std::vector<FactorSpec> list = {{kBlocks, {stages, blocks, block, block}}};
  if (spec.flags & LYC_MODULE_RESCALE) list.push_back(rescale_spec(kRescale, layer));
  return list;
}

bool is_peft(const Factors &f) { return f.has(kPeftBlocks); }

void check_blocks(const lyc_tensor &blocks, const char *name) {
  const Shape shape = shape_of(blocks);
  if (shape.size() != 4 || shape[2] != shape[3])
    fail(LYC_ERROR_FORMAT, name, " has shape ", shape_text(shape), ", must be [stages, blocks, size, size]");
  if (shape[0] > 31 || shape[1] % (std::int64_t{1} << (shape[0] - 1)) != 0 || shape[2] % 2 != 0)
    fail(LYC_ERROR_FORMAT, name, " has shape ", shape_text(shape), ": no butterfly has so many stages of such blocks");
}

DeltaShape describe(const Factors &f, const Traits &) {
  DeltaShape shape;
  shape.reads_base = true;
  const char *name = is_peft(f) ? kPeftBlocks : kBlocks, *scale = is_peft(f) ? kPeftScale : kRescale;
  const lyc_tensor &blocks = f.at(name);
  check_blocks(blocks, name);
  const std::int64_t extent = blocks.shape[1] * blocks.shape[2];
  shape.whole_rows = !is_peft(f);
  (is_peft(f) ? shape.columns : shape.out) = extent;
  if (!f.has(scale)) return shape;
  shape.flags = LYC_MODULE_RESCALE;
  if (is_peft(f))
    shape.out = numel(f.at(scale));
  else
    require_equal(numel(f.at(scale)), scale, shape.out, name, "rows");
  return shape;
}

void lower(Lowering &to) {
  const Factors &f = to.factors;
  ops::Rotation &rotation = to.add_rotation();
  const lyc_tensor &blocks = f.at(is_peft(f) ? kPeftBlocks : kBlocks);
  rotation.stages = static_cast<std::int32_t>(blocks.shape[0]);
  set_square_blocks(rotation, blocks);
  if (is_peft(f)) {
    rotation.axis = ops::Rotation::Axis::kIn;
    rotation.order = ops::Rotation::Order::kHalves;
    rotation.factor = -0.5;
  } else {
    rotation.order = ops::Rotation::Order::kInterleave;
    limit_together(rotation, to.traits.alpha);
  }
  set_rescale(rotation, f.find(is_peft(f) ? kPeftScale : kRescale));
}

}  // namespace

const Algorithm kBoft = {LYC_ALGO_BOFT,      "boft", kNone, kSuffixes, kSignature, {},
                         LYC_MODULE_RESCALE, false,  false, factors,   describe,   lower};

}  // namespace lyc::algo
