#include "panel_layout.hpp"

#include <algorithm>
#include <limits>

#include "base/error.hpp"

namespace lyc::cuda {
namespace {

constexpr std::int64_t kElement = 2, kVector = 16;  // bytes

bool is_narrow(lyc_dtype dtype) { return dtype == LYC_DTYPE_BF16 || dtype == LYC_DTYPE_F16; }

bool aligned(const void *data, std::int64_t bytes) { return reinterpret_cast<std::uintptr_t>(data) % bytes == 0; }

/// A distance of `elements` in bytes, if it is a multiple of `bytes` that the kernels can count.
std::optional<std::int32_t> step_of(std::int64_t elements, std::int64_t bytes) {
  const std::int64_t step = elements * kElement;
  if (step < 0 || step % bytes != 0 || step > std::numeric_limits<std::int32_t>::max()) return std::nullopt;
  return static_cast<std::int32_t>(step);
}

/// Eight columns of a rank are loaded at once, and as many ranks of a row, or four where there is one chunk.
std::optional<PanelProduct> panel_product(const LowRankTerm &term, const PanelKind &kind) {
  const std::int64_t ranks = kind.chunks == 1 ? kVector / 2 : kVector;
  const Factor &row = term.row_factor, &column = term.column_factor;
  const auto row_step = step_of(row.axis.level[0], ranks);
  const auto column_step = step_of(term.rank == 1 ? 0 : column.rank_stride, kVector);
  if (row.in_workspace || row.rank_stride != 1 || !aligned(row.data, ranks) || !row_step || column.in_workspace ||
      column.axis.level[0] != 1 || !aligned(column.data, kVector) || !column_step || term.rank * kElement % ranks != 0)
    return std::nullopt;
  return PanelProduct{
      {row.data, *row_step}, {column.data, *column_step}, term.rank, {term.scalar, term.scalar_dtype, 0},
      term.coefficient,      term.multiplier_index};
}

/// The instance for terms, if there is one.
std::optional<PanelKind> panel_kind(const std::vector<LowRankTerm> &terms) {
  const lyc_dtype dtype = terms.empty() ? LYC_DTYPE_NONE : terms.front().row_factor.dtype;
  std::int32_t rank = 0;
  for (const LowRankTerm &term : terms) {
    if (term.row_factor.dtype != dtype || term.column_factor.dtype != dtype) return std::nullopt;
    rank = std::max(rank, term.rank);
  }
  const bool hadamard = terms.size() == 2 && terms.front().role == Role::kHold, bf16 = dtype == LYC_DTYPE_BF16;
  if (!is_narrow(dtype) || !(terms.size() == 1 || hadamard)) return std::nullopt;
  const StreamForm form = hadamard ? StreamForm::kHadamard : StreamForm::kSingle;
  for (const PanelKind &kind : kPanelKinds)
    if (kind.form == form && kind.bf16_factors == bf16 && rank <= kind.chunks * kChunkRanks) return kind;
  return std::nullopt;
}

/// Contiguous rows of 16-bit elements in one type.
bool takes(const MatrixTarget &target) {
  const Matrix &base = target.base, &out = target.out;
  const auto fits = [](const Matrix &matrix) { return matrix.vectors && matrix.row_bytes > 0; };
  return target.rows.levels == 1 && target.columns.levels == 1 && target.columns.size * kElement % kVector == 0 &&
         is_narrow(out.dtype) && fits(out) && (!base.data || (base.dtype == out.dtype && fits(base)));
}

}  // namespace

std::optional<std::pair<PanelKind, PanelTarget>> panel_target(const MatrixTarget &matrix,
                                                              const std::vector<LowRankTerm> &terms) {
  const auto kind = panel_kind(terms);
  if (!kind || !takes(matrix)) return std::nullopt;
  const Matrix &base = matrix.base.data ? matrix.base : matrix.out;
  PanelTarget target{};
  target.base = base.data, target.base_row = base.row_bytes;
  target.out = matrix.out.data, target.out_row = matrix.out.row_bytes;
  target.rows = matrix.rows.size, target.columns = matrix.columns.size;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const auto product = panel_product(terms[i], *kind);
    if (!product) return std::nullopt;
    target.product[i] = *product;
  }
  target.strips = divisor(ceil_div(target.columns, kPanelColumns), "the number of strips");
  target.bf16 = matrix.out.dtype == LYC_DTYPE_BF16;
  return std::pair{*kind, target};
}

void add(PanelGroup &group, const PanelTarget &target) {
  const int rows = panel_rows(group.kind);
  group.targets.push_back(target);
  group.blocks.add(ceil_div(ceil_div(target.rows, rows) * target.strips.value, kPanelWarps));
}

std::string describe(const PanelGroup &group) {
  return concat(group.kind.form == StreamForm::kHadamard ? "Hadamard" : "low-rank", " products of up to ",
                group.kind.chunks * kChunkRanks, " ranks, in registers: ", group.targets.size(), " weights, panels of ",
                kPanelColumns, " columns\n");
}

}  // namespace lyc::cuda
