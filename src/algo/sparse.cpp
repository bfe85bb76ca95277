// Some elements of a difference: what extraction leaves beside a low-rank approximation, or a difference of its own.
//
// As files have it              As terms need it: ordered by row, then column
// bias_size     dense extents
// bias_indices  [axes, n]       [2, n] I64: rows, columns
// bias_values   [n]             [n]
//                               bias_rows [O + 1] I64: where a row's elements begin
#include "algo/sparse.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kIndices = "bias_indices", *kValues = "bias_values", *kRows = "bias_rows";
constexpr const char *kSuffixes[] = {kIndices, kValues, nullptr};
constexpr const char *kStored[] = {kIndices, kValues, nullptr};

struct Position {
  std::int64_t row, column;
};

/// Where element n lies, from untrusted coordinates.
Position position_of(const lyc_tensor &indices, std::int64_t n, const Shape &dense) {
  Position position{0, 0};
  for (std::size_t axis = 0; axis < dense.size(); ++axis) {
    const double value =
        read_element(indices.data, indices.dtype, static_cast<std::int64_t>(axis) * indices.shape[1] + n);
    if (!(value >= 0 && value < static_cast<double>(dense[axis])))
      fail(LYC_ERROR_FORMAT, kIndices, " has ", value, " on axis ", axis, ", which has ", dense[axis]);
    const auto index = static_cast<std::int64_t>(value);
    if (axis == 0)
      position.row = index;
    else
      position.column = position.column * dense[axis] + index;
  }
  return position;
}

Rewritten integers(const char *name, const Shape &shape, const std::vector<std::int64_t> &values) {
  Rewritten result{name, LYC_DTYPE_I64, shape, std::vector<char>(values.size() * sizeof(std::int64_t))};
  std::memcpy(result.bytes.data(), values.data(), result.bytes.size());
  return result;
}

std::vector<Rewritten> rewrite(const Factors &stored, const Traits &traits) {
  const lyc_tensor &indices = stored.at(kIndices), &values = stored.at(kValues);
  const std::int64_t count = indices.shape[1];
  std::vector<Position> positions;
  for (std::int64_t n = 0; n < count; ++n) positions.push_back(position_of(indices, n, traits.dense));
  std::vector<std::int64_t> order(positions.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    const Position &first = positions[static_cast<std::size_t>(a)], &second = positions[static_cast<std::size_t>(b)];
    return first.row != second.row ? first.row < second.row : first.column < second.column;
  });
  std::vector<std::int64_t> sorted(2 * positions.size()), starts(static_cast<std::size_t>(traits.dense[0]) + 1);
  const std::size_t size = dtype_size(values.dtype);
  Rewritten rows{kValues, values.dtype, {count}, std::vector<char>(positions.size() * size)};
  for (std::size_t n = 0; n < positions.size(); ++n) {
    const auto from = static_cast<std::size_t>(order[n]);
    sorted[n] = positions[from].row;
    sorted[n + positions.size()] = positions[from].column;
    ++starts[static_cast<std::size_t>(positions[from].row) + 1];
    std::memcpy(&rows.bytes[n * size], static_cast<const char *>(values.data) + from * size, size);
  }
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  return {integers(kIndices, {2, count}, sorted), std::move(rows), integers(kRows, {traits.dense[0] + 1}, starts)};
}

}  // namespace

const Rewriting kSparseRewriting = {kStored, rewrite};

bool has_sparse(const Factors &factors) { return factors.has(kIndices) || factors.has(kValues); }

DeltaShape describe_sparse(const Factors &f, const Traits &traits) {
  if (traits.dense.empty()) fail(LYC_ERROR_FORMAT, "bias_size is missing");
  DeltaShape shape;
  shape.out = traits.dense[0];
  shape.columns = checked_numel(traits.dense.data() + 1, traits.dense.size() - 1, "bias_size");
  const lyc_tensor &indices = f.at(kIndices);
  if (indices.ndim != 2 || (indices.shape[0] != static_cast<std::int64_t>(traits.dense.size()) && !f.has(kRows)))
    fail(LYC_ERROR_FORMAT, kIndices, " has shape ", shape_text(shape_of(indices)), ", must have a row for each axis of ",
         shape_text(traits.dense));
  require_equal(values_of(f, kValues), kValues, indices.shape[1], kIndices, "elements");
  return shape;
}

void lower_sparse(Lowering &to) {
  ops::Sparse &sparse = to.add(ops::TermKind::kSparse).sparse;
  sparse.row_starts = column(to.factors.at(kRows));
  sparse.values = column(to.factors.at(kValues));
  sparse.columns = column(to.factors.at(kIndices));
  sparse.columns.out = sparse.values.out;
  sparse.columns.data = static_cast<std::int64_t *>(sparse.columns.data) + sparse.values.out;
}

const Algorithm kSparse = {LYC_ALGO_SPARSE, "sparse",        kNone,        kSuffixes, kSuffixes, {},     0, false, false,
                           nullptr,         describe_sparse, lower_sparse, nullptr,   nullptr,   &kSparseRewriting};

}  // namespace lyc::algo
