// What a module is, apart from the memory of its factors: family, shapes, scale, DoRA. Made once, from options or from
// the tensors of a file, and checked there.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "algo/algorithm.hpp"
#include "ops/weight.hpp"

namespace lyc {

inline constexpr const char *kAlphaName = "alpha", *kMagnitudeName = "dora_scale", *kScalarName = "scalar";
inline constexpr const char *kRankMaskName = "rank_mask";

/// Whether a tensor of this name says how the factors are meant. Its values are read when a module is made: they are
/// few, of any numeric type.
bool is_setting(std::string_view name);
inline constexpr std::int64_t kMaxSettingValues = LYC_MAX_DIMS;

/// What was asked for, or stands in a file.
struct Request {
  const algo::Algorithm *algorithm = nullptr;  // null: found by the tensors
  algo::Traits traits;                         // alpha, where it is a scale: absent or 0 means the rank
  bool rank_stabilised = false;
  Shape reshape;                   // to which the weight is padded first; empty: not at all
  std::int64_t divisor_parts = 1;  // a fused pair of so many parts, whose alpha is that of one part (kohya split_qkv)
  ops::DoraRule dora_rule = ops::DoraRule::kInterpolate;

  /// Take the values of a setting. FORMAT if they make no sense.
  void set(std::string_view name, const std::vector<double> &values);
};

struct Definition {
  const algo::Algorithm *algorithm = nullptr;
  algo::Factors factors;           // without alpha; dora_scale and scalar included
  std::vector<std::string> names;  // the factors' names, in the order of files
  algo::DeltaShape shape;
  algo::Traits traits;
  Shape reshape;     // what the weight is padded to before anything else; empty: nothing
  double alpha = 0;  // as requested; the rank where it was absent
  double scale = 1;
  std::uint32_t flags = 0;  // LYC_MODULE_*
  ops::DoraAxis dora_axis = ops::DoraAxis::kNone;
  ops::DoraRule dora_rule = ops::DoraRule::kInterpolate;
  std::vector<ops::Operand> prepared_rotations;  // ops::Rotation::prepared of the weight's, in order; empty: none is
  ops::Operand prepared_norms;                   // ops::Adapter::norms, one to a magnitude; absent: not prepared

  /// What was prepared from factors that have changed.
  void forget_prepared() {
    prepared_rotations.clear();
    prepared_norms = {};
  }

  /// Whether the factors do not include those that are made from the pristine weight.
  bool lacks_base_state() const;
  bool needs_base() const { return shape.reads_base || dora_axis != ops::DoraAxis::kNone || lacks_base_state(); }
  bool invertible() const { return !needs_base() && !shape.replaces; }
  bool has_part(lyc_part part) const;
  /// Whether rows of the delta can be computed without the others.
  bool row_separable() const { return !shape.whole_rows && dora_axis != ops::DoraAxis::kIn && !lacks_base_state(); }
};

/// Whether only files have a tensor of this name: what the family makes of it takes its place.
bool is_stored(const algo::Algorithm &algorithm, std::string_view name);

/// From tensors by suffix. Throws FORMAT or UNSUPPORTED; messages do not name the layer, callers put it in front.
Definition define(const algo::Factors &tensors, const std::vector<std::string> &names, const Request &request);

/// The scale of a delta: alpha / rank, or alpha / sqrt(rank) when rank-stabilised; 1 where nothing is low-rank.
/// The only place that computes with alpha.
double resolve_scale(const Request &request, std::int64_t rank);

/// Which rows of a definition's delta go to a weight, and with which multiplier.
struct Placement {
  std::int64_t row_begin = 0;
  std::int64_t row_count = 0;  // 0: all of them
  std::int32_t multiplier_index = 0;
  lyc_part part = LYC_PART_WEIGHT;
  std::int64_t expert = 0;
  bool forward = false;  // for a forward pass, which some factors have that make no weight
};

/// MISMATCH unless the rows fit the weight.
void check_fits(const Definition &definition, const ops::Operand &weight, const Placement &placement);

/// The arrays of an ops::WeightBatch while they grow.
struct WeightArrays {
  std::vector<ops::WeightTarget> targets;
  std::vector<ops::Adapter> adapters;
  std::vector<ops::Term> terms;
  std::vector<ops::Rotation> rotations;

  /// Begin a target; its adapters follow by lower().
  void begin_target(const ops::Operand &base, const ops::Operand &out);
  ops::WeightBatch view(std::int32_t multiplier_count) const;
};

/// Append what `definition` adds to the last target of `arrays`, which has the extents of `target`. For the few biases
/// that depend on the layer's weight, `weight` is that.
void lower(const Definition &definition, const ops::Operand &target, const Placement &placement, WeightArrays &arrays,
           const ops::Operand &weight = {});

}  // namespace lyc
