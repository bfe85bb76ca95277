#include "elementwise_layout.hpp"

#include <algorithm>

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc::cuda {
namespace {

using ops::Operand;

constexpr std::int64_t kAccess = 16;  // bytes

/// Rows of contiguous memory, [O, I, K] in that order, that begin at multiples of an access.
bool has_plain_rows(const Operand &t) {
  return has_plain_columns(t) && reinterpret_cast<std::uintptr_t>(t.data) % kAccess == 0 &&
         stride(t, kOutAxis) * static_cast<std::int64_t>(dtype_size(t.dtype)) % kAccess == 0;
}

/// One value for all columns of a row.
bool is_column(const Operand &t) {
  for (int axis = kInAxis; axis < kAxes; ++axis)
    if (stride(t, axis) != 0) return false;
  return true;
}

bool takes_term(const ops::Term &term) {
  switch (term.kind) {
    case ops::TermKind::kKronecker:
      return term.row_begin == 0 && term.q.in() * term.q.kernel_holder().kernel_size() % kElementwiseVector == 0 &&
             (!term.q.whole() || has_plain_rows(term.q.down));
    case ops::TermKind::kProduct:
      return term.p.whole() && has_plain_rows(rows_from(term.p.down, term.row_begin));
    case ops::TermKind::kBaseHadamard:
      return term.p.whole() && (is_column(term.p.down) || has_plain_rows(rows_from(term.p.down, term.row_begin)));
    default:
      return false;
  }
}

/// How far apart rows of a tile should lie for a term: as far as rows that meet the same row of its right half.
std::int32_t step_of(const ops::Term &term, std::int32_t rows) {
  if (term.kind != ops::TermKind::kKronecker) return 1;
  const std::int64_t step = term.q.out();
  return rows % step == 0 && rows / step >= kElementwiseDoraRows ? static_cast<std::int32_t>(step) : 1;
}

}  // namespace

bool ElementwiseLayoutBuilder::takes(const ops::WeightTarget &target) const {
  if (target.adapter_count == 0 || !has_plain_rows(target.out) || columns_of(target.out) % kElementwiseVector != 0)
    return false;
  if (target.base.data && !has_plain_rows(target.base)) return false;
  const ops::Adapter *adapters = batch_.adapters + target.first_adapter;
  return std::all_of(adapters, adapters + target.adapter_count, [&](const ops::Adapter &adapter) {
    const bool alone = target.adapter_count == 1 && adapter.dora_axis == ops::DoraAxis::kOut;
    const ops::Term *terms = batch_.terms + adapter.first_term;
    return !adapter.replaces && (adapter.dora_axis == ops::DoraAxis::kNone || alone) && adapter.term_count > 0 &&
           std::all_of(terms, terms + adapter.term_count, takes_term);
  });
}

void ElementwiseLayoutBuilder::add(const ops::WeightTarget &target) {
  const Operand &base = target.base, &out = target.out;
  const ops::Adapter *adapters = batch_.adapters + target.first_adapter;
  ElementwiseTarget entry{};
  ElementwiseKind kind{base.dtype == LYC_DTYPE_F32 || out.dtype == LYC_DTYPE_F32,
                       adapters->dora_axis != ops::DoraAxis::kNone};
  entry.base = base.data;
  entry.out = out.data;
  entry.base_dtype = base.dtype;
  entry.out_dtype = out.dtype;
  entry.base_row = stride(base, kOutAxis);
  entry.out_row = stride(out, kOutAxis);
  entry.rows = narrow(out.out, "the number of rows");
  entry.columns = narrow(columns_of(out), "the number of columns");
  entry.step = step_of(batch_.terms[adapters->first_term], entry.rows);
  entry.first_term = static_cast<std::int32_t>(layout_.terms.size());
  if (kind.dora) {
    require(base.data, "DoRA needs the base weight");
    entry.dora = dora_parameters(*adapters, out);
    entry.reads_base = 1;
  }
  for (std::int32_t a = 0; a < target.adapter_count; ++a) {
    check_multiplier(adapters[a], batch_);
    for (std::int32_t t = 0; t < adapters[a].term_count; ++t) {
      const ops::Term &term = batch_.terms[adapters[a].first_term + t];
      entry.reads_base |= ops::reads_base(term.kind);
      add_term(target, term, adapters[a].multiplier_index);
    }
  }
  require(base.data || !entry.reads_base, "a term made from the weight needs the base weight");
  layout_.reads_base |= entry.reads_base != 0;
  entry.term_count = static_cast<std::int32_t>(layout_.terms.size()) - entry.first_term;

  ElementwiseGroup &group = layout_.groups[static_cast<std::size_t>(index_of(kind))];
  const std::int64_t rows = tile_rows(kind);
  const std::int64_t heights = entry.step * ceil_div(entry.rows / entry.step, rows);
  group.targets.push_back(entry);
  group.tiles.add(heights * (kind.dora ? 1 : ceil_div(entry.columns, kElementwiseColumns)));
}

void ElementwiseLayoutBuilder::add_term(const ops::WeightTarget &target, const ops::Term &term,
                                        std::int32_t multiplier_index) {
  if (term.scalar.data) check(term.scalar, "a scalar");
  ElementwiseTerm entry{};
  Source left, right;
  std::int64_t right_rows = target.out.out, right_columns = columns_of(target.out);
  if (term.kind == ops::TermKind::kKronecker) {
    check_kronecker(term, target.out);
    left = products_.whole(term.p, target.out);
    right = products_.whole(term.q, target.out);
    right_rows = right.operand.out;
    right_columns = columns_of(right.operand);
  } else {
    check_product(term.p);
    check_fit(term.p.out(), term.p.in(), term.p.down, term, target.out);
    entry.times_base = term.kind == ops::TermKind::kBaseHadamard;
    const bool by_row = entry.times_base && is_column(term.p.down);
    (by_row ? left : right).operand = rows_from(term.p.down, term.row_begin);
    if (by_row || stride(term.p.down, kOutAxis) == 0) right_rows = 1;
  }
  entry.right_rows = narrow(right_rows, "the number of rows");
  entry.right_columns = narrow(right_columns, "the number of columns");
  entry.left = left.operand.data;
  entry.right = right.operand.data;
  entry.left_dtype = left.operand.dtype;
  entry.right_dtype = right.operand.dtype;
  entry.left_in_workspace = left.in_workspace;
  entry.right_in_workspace = right.in_workspace;
  entry.left_row = left.operand.stride_out;
  entry.left_column = left.operand.stride_in;
  entry.right_row = right.operand.stride_out;
  if (term.scalar.data) entry.scalar = {term.scalar.data, term.scalar.dtype, 0};
  entry.coefficient = static_cast<float>(term.coefficient);
  entry.multiplier_index = multiplier_index;
  layout_.terms.push_back(entry);
}

std::string describe(const ElementwiseLayout &layout) {
  std::string text;
  for (int k = 0; k < kElementwiseKinds; ++k) {
    const ElementwiseGroup &group = layout.groups[static_cast<std::size_t>(k)];
    const ElementwiseKind kind = elementwise_kind(k);
    if (group.targets.empty()) continue;
    text += concat("elementwise, ", kind.dora ? "DoRA by rows, " : "", kind.wide ? "32" : "16",
                   "-bit weights: ", group.targets.size(), " weights, ", group.tiles.pieces, " tiles of ",
                   tile_rows(kind), " rows\n");
  }
  return text;
}

}  // namespace lyc::cuda
