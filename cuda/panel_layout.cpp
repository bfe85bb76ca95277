#include "panel_layout.hpp"

#include <algorithm>
#include <limits>

#include "base/error.hpp"

namespace lyc::cuda {
namespace {

using ops::Operand;

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
std::optional<PanelKind> panel_kind(StreamForm form, const std::vector<LowRankTerm> &terms) {
  const lyc_dtype dtype = terms.front().row_factor.dtype;
  std::int32_t rank = 0;
  for (const LowRankTerm &term : terms) {
    if (term.row_factor.dtype != dtype || term.column_factor.dtype != dtype) return std::nullopt;
    rank = std::max(rank, term.rank);
  }
  if (!is_narrow(dtype)) return std::nullopt;
  for (const PanelKind &kind : kPanelKinds)
    if (kind.form == form && kind.bf16_factors == (dtype == LYC_DTYPE_BF16) && rank <= kind.chunks * kChunkRanks)
      return kind;
  return std::nullopt;
}

/// Contiguous rows of 16-bit elements in one type.
bool takes(const MatrixTarget &target) {
  const Matrix &base = target.base, &out = target.out;
  const auto fits = [](const Matrix &matrix) { return matrix.vectors && matrix.row_bytes > 0; };
  return target.rows.levels == 1 && target.columns.levels == 1 && target.columns.size * kElement % kVector == 0 &&
         is_narrow(out.dtype) && fits(out) && (!base.data || (base.dtype == out.dtype && fits(base)));
}

std::optional<PanelWeight> panel_weight(StreamForm form, const MatrixTarget &matrix,
                                        const std::vector<LowRankTerm> &terms) {
  const auto kind = panel_kind(form, terms);
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
  return PanelWeight{*kind, target};
}

// -- Kronecker products -----------------------------------------------------------------------------------------------

Matrix matrix_of(const Operand &t) {
  const auto row = step_of(t.stride_out, kVector);
  return {t.data, t.dtype, has_plain_columns(t) && aligned(t.data, kVector) && row, {}, {}, row.value_or(0)};
}

MatrixTarget matrix_of(const ops::WeightTarget &target) {
  MatrixTarget matrix{};
  matrix.base = matrix_of(target.base), matrix.out = matrix_of(target.out);
  matrix.rows.size = narrow(target.out.out, "the number of rows");
  matrix.columns.size = narrow(columns_of(target.out), "the number of columns");
  matrix.rows.levels = matrix.columns.levels = 1;
  return matrix;
}

/// The right half of a Kronecker product, with what multiplies the whole.
LowRankTerm right_half(const ops::Term &term, const ops::Adapter &adapter) {
  const Operand &up = term.q.up, &down = term.q.down;
  LowRankTerm right{};
  right.row_factor.data = up.data, right.row_factor.dtype = up.dtype;
  right.row_factor.rank_stride = up.stride_in, right.row_factor.axis.level[0] = up.stride_out;
  right.column_factor.data = down.data, right.column_factor.dtype = down.dtype;
  right.column_factor.rank_stride = down.stride_out;
  right.column_factor.axis.level[0] = has_plain_columns(down) ? 1 : 0;
  right.scalar = term.scalar.data, right.scalar_dtype = term.scalar.dtype;
  right.rank = narrow(term.q.rank(), "a rank");
  right.coefficient = static_cast<float>(term.coefficient);
  right.multiplier_index = adapter.multiplier_index;
  return right;
}

/// The left half of a Kronecker product, if its blocks are large enough for a step and for a lane.
std::optional<PanelLeft> left_half(const ops::Term &term) {
  const Operand &left = term.p.down;
  const std::int64_t rows = term.q.out(), columns = columns_of(term.q.down);
  const auto row = step_of(left.stride_out, kElement), column = step_of(left.stride_in, kElement);
  if (left.dtype != term.q.up.dtype || !row || !column || rows < kPanelBlockRows || columns * kElement % kVector != 0 ||
      left.out * rows > std::numeric_limits<std::int32_t>::max())
    return std::nullopt;
  return PanelLeft{left.data,
                   *row,
                   *column,
                   divisor(rows, "the number of rows"),
                   divisor(columns, "the number of columns"),
                   static_cast<std::int32_t>(term.row_begin)};
}

bool is_kronecker(const ops::Term &term) {
  return term.kind == ops::TermKind::kKronecker && term.p.whole() && !term.q.whole() && !term.q.tucker() &&
         !term.q.diagonal.data && !term.q.mask.data;
}

}  // namespace

std::optional<PanelWeight> panel_low_rank(const MatrixTarget &matrix, const std::vector<LowRankTerm> &terms) {
  if (terms.size() == 1) return panel_weight(StreamForm::kSingle, matrix, terms);
  if (terms.size() == 2 && terms.front().role == Role::kHold) return panel_weight(StreamForm::kHadamard, matrix, terms);
  return std::nullopt;
}

std::optional<PanelWeight> panel_kronecker(const ops::WeightBatch &batch, const ops::WeightTarget &target) {
  if (target.adapter_count != 1) return std::nullopt;
  const ops::Adapter &adapter = batch.adapters[target.first_adapter];
  if (adapter.term_count != 1 || adapter.dora_axis != ops::DoraAxis::kNone || adapter.replaces) return std::nullopt;
  const ops::Term &term = batch.terms[adapter.first_term];
  if (!is_kronecker(term)) return std::nullopt;
  check_multiplier(adapter, batch);
  if (term.scalar.data) check(term.scalar, "a scalar");
  check_kronecker(term, target.out);
  const auto left = left_half(term);
  if (!left) return std::nullopt;
  auto weight = panel_weight(StreamForm::kKronecker, matrix_of(target), {right_half(term, adapter)});
  if (weight) weight->target.left = *left;
  return weight;
}

void add(PanelGroup &group, const PanelTarget &target) {
  const int rows = panel_rows(group.kind);
  group.targets.push_back(target);
  group.blocks.add(ceil_div(ceil_div(target.rows, rows) * target.strips.value, kPanelWarps));
}

std::string describe(const PanelGroup &group) {
  const StreamForm form = group.kind.form;
  const char *what = form == StreamForm::kHadamard    ? "Hadamard"
                     : form == StreamForm::kKronecker ? "Kronecker"
                                                      : "low-rank";
  return concat(what, " products of up to ", group.kind.chunks * kChunkRanks,
                " ranks, in registers: ", group.targets.size(), " weights, panels of ", kPanelColumns, " columns\n");
}

}  // namespace lyc::cuda
