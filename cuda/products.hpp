// What a run computes in its workspace before weights are merged: Tucker cores with the factors below them, halves of
// Kronecker products, the weight times a factor, rotations, DoRA's factors. Pure host code.
#pragma once

#include <array>
#include <vector>

#include "term_table.hpp"

namespace lyc::cuda {

/// Entries of one kind of work with the pieces that they are cut into.
struct PieceCounter {
  std::vector<std::uint32_t> first;
  std::uint32_t pieces = 0;

  void add(std::int64_t count);
};

/// The group of a kind, added if there is none.
template <typename Group, typename Kind>
Group &find_or_add(std::vector<Group> &groups, Kind Group::*kind, const Kind &wanted) {
  for (Group &group : groups)
    if (group.*kind == wanted) return group;
  Group &group = groups.emplace_back();
  group.*kind = wanted;
  return group;
}

/// An operand of the batch, or one that a run computes: its data is an offset into the workspace then.
struct Source {
  ops::Operand operand;
  bool in_workspace = false;
  std::int32_t stage = 0, contraction = 0;  // that computes it
};

/// A product without a core.
struct ProductSource {
  Source up, down;  // up absent: whole
  ops::Operand diagonal, mask;
  std::int64_t rank() const { return up.operand.dtype == LYC_DTYPE_NONE ? 0 : up.operand.in; }
};

class Products {
 public:
  /// `weight` is the output of the target that they are for: results have its memory order.
  /// A core goes into the factor below it. Rows from `row_begin` on.
  ProductSource without_core(const ops::Product &product, const ops::Operand &weight, std::int64_t row_begin = 0);
  /// As one tensor, the ranks' vectors with it.
  Source whole(const ops::Product &product, const ops::Operand &weight);
  /// base * product: (base up) down where that is a matrix, else one tensor.
  ProductSource right_of(const ops::Operand &base, const ops::Product &product, const ops::Operand &weight);

  /// Let a contraction write a packed factor (stream_table.hpp) of `lines` lines instead of float32, and return where.
  std::uint64_t pack(std::int32_t stage, std::int32_t contraction, bool rank_is_inner, std::int64_t ranks,
                     std::int64_t lines);
  /// What is known of a rotation without the weight; R - I is computed unless it has been prepared.
  RotationTask rotation(const ops::Rotation &rotation, std::int32_t multiplier_index);
  void add(RotationTask &task);  // and reserve what it takes
  void add(const FactorTask &task);

  /// Cut contractions into pieces for a device of so many multiprocessors.
  void cut(int multiprocessors);
  /// The work of those contractions that a kernel computes; the others have none.
  PieceCounter pieces(std::size_t stage, ContractionKind kind) const;

  /// Floats in the workspace; where they begin, in bytes.
  std::uint64_t reserve(std::int64_t floats);

  std::array<std::vector<Contraction>, kContractionStages> contractions;
  std::vector<RotationTask> rotations;
  std::vector<FactorTask> dora_factors;
  PieceCounter rotation_blocks;  // a piece for each stage and block
  PieceCounter dora_factor_blocks;
  std::uint64_t workspace_size = 0;  // bytes

 private:
  Source contract(int stage, Contraction sum, const ops::Operand &kernel, std::int64_t length, ops::Operand result,
                  bool a_is_out, const ops::Operand &weight);
};

// What the builders of tables check.
std::int32_t narrow(std::int64_t value, const char *what);
Divisor divisor(std::int64_t value, const char *what);
void check_multiplier(const ops::Adapter &adapter, const ops::WeightBatch &batch);
void check(const ops::Operand &operand, const char *what);
void check_product(const ops::Product &product);
/// A product with the kernel of `holder` on a target's weight.
void check_fit(std::int64_t rows, std::int64_t in, const ops::Operand &holder, const ops::Term &term,
               const ops::Operand &weight);
void check_kronecker(const ops::Term &term, const ops::Operand &weight);
/// The right factor of a weight.
void check_base_product(const ops::Product &product, const ops::Operand &weight);

DoraParameters dora_parameters(const ops::Adapter &adapter, const ops::Operand &weight);

// Axes of a weight: O is 0, I is 1, then the kernel's.
inline constexpr int kOutAxis = 0, kInAxis = 1, kFirstKernelAxis = 2;
inline constexpr int kAxes = kFirstKernelAxis + ops::kMaxKernelDims;

std::int64_t extent(const ops::Operand &t, int axis);
std::int64_t stride(const ops::Operand &t, int axis);  // 0 for one element
/// Columns of [O, I, K]: input feature and place in the kernel together, the latter the inner one.
inline std::int64_t columns_of(const ops::Operand &t) { return t.in * t.kernel_size(); }
std::int64_t column_step(const ops::Operand &t);  // from one to the next, if that is the same everywhere
bool has_even_columns(const ops::Operand &t);     // it is
inline bool has_plain_columns(const ops::Operand &t) { return has_even_columns(t) && column_step(t) == 1; }
/// Without the first `begin` rows.
ops::Operand rows_from(ops::Operand operand, std::int64_t begin);

/// Some of a weight's axes in some order.
class AxisOrder {
 public:
  void push_back(int axis) { axes_[size_++] = axis; }
  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }
  int operator[](std::size_t i) const { return axes_[i]; }
  const int *begin() const { return axes_; }
  const int *end() const { return axes_ + size_; }
  int *begin() { return axes_; }
  int *end() { return axes_ + size_; }

 private:
  int axes_[kAxes] = {};
  std::size_t size_ = 0;
};

/// All axes of more than one element, those with the smallest steps first.
AxisOrder axes_by_stride(const ops::Operand &t);

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// A vector of ranks, or of elements.
inline Vector vector_of(const ops::Operand &t) { return {t.data, t.dtype, t.stride_out}; }

/// The factors of rows by which a rotation multiplies its result, for a target that begins at `row_begin`.
Vector rescale_of(const ops::Rotation &rotation, std::int64_t row_begin);

}  // namespace lyc::cuda
