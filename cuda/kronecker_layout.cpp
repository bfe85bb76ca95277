#include "kronecker_layout.hpp"

#include <algorithm>

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc::cuda {
namespace {

using ops::Operand;

constexpr std::int64_t kAccess = 16;  // bytes

/// Rows of contiguous memory, [O, I, K] in that order, that begin at multiples of an access.
bool has_plain_rows(const Operand &t) {
  std::int64_t step = 1;
  for (int axis = kAxes - 1; axis > kOutAxis; --axis) {
    if (extent(t, axis) > 1 && stride(t, axis) != step) return false;
    step *= extent(t, axis);
  }
  return reinterpret_cast<std::uintptr_t>(t.data) % kAccess == 0 &&
         stride(t, kOutAxis) * static_cast<std::int64_t>(dtype_size(t.dtype)) % kAccess == 0;
}

std::int64_t columns_of(const Operand &t) { return t.in * t.kernel_size(); }

}  // namespace

bool KroneckerLayoutBuilder::takes(const ops::WeightTarget &target, const ops::Term &term) const {
  if (term.kind != ops::TermKind::kKronecker || term.row_begin != 0) return false;
  const ops::Term &first = batch_.terms[batch_.adapters[target.first_adapter].first_term];
  const std::int64_t columns = term.q.in() * term.q.kernel_holder().kernel_size();
  return term.q.out() == first.q.out() && term.q.in() == first.q.in() && columns % kKroneckerVector == 0 &&
         (!term.q.whole() || has_plain_rows(term.q.down));
}

bool KroneckerLayoutBuilder::takes(const ops::WeightTarget &target) const {
  if (target.adapter_count == 0 || !has_plain_rows(target.out)) return false;
  if (target.base.data && !has_plain_rows(target.base)) return false;
  const ops::Adapter *adapters = batch_.adapters + target.first_adapter;
  return std::all_of(adapters, adapters + target.adapter_count, [&](const ops::Adapter &adapter) {
    const bool alone = target.adapter_count == 1 && adapter.dora_axis == ops::DoraAxis::kOut;
    const ops::Term *terms = batch_.terms + adapter.first_term;
    return !adapter.replaces && (adapter.dora_axis == ops::DoraAxis::kNone || alone) && adapter.term_count > 0 &&
           std::all_of(terms, terms + adapter.term_count, [&](const ops::Term &term) { return takes(target, term); });
  });
}

void KroneckerLayoutBuilder::add(const ops::WeightTarget &target) {
  const Operand &base = target.base, &out = target.out;
  const ops::Adapter *adapters = batch_.adapters + target.first_adapter;
  const ops::Product &right = batch_.terms[adapters->first_term].q;
  KroneckerTarget entry{};
  KroneckerKind kind{base.dtype == LYC_DTYPE_F32 || out.dtype == LYC_DTYPE_F32,
                     adapters->dora_axis != ops::DoraAxis::kNone};
  entry.base = base.data;
  entry.out = out.data;
  entry.base_dtype = base.dtype;
  entry.out_dtype = out.dtype;
  entry.base_row = stride(base, kOutAxis);
  entry.out_row = stride(out, kOutAxis);
  entry.rows = narrow(out.out, "the number of rows");
  entry.columns = narrow(columns_of(out), "the number of columns");
  entry.right_rows = narrow(right.out(), "the number of rows");
  entry.right_columns = narrow(right.in() * right.kernel_holder().kernel_size(), "the number of columns");
  const std::int64_t rows = tile_rows(kind);
  const std::int64_t blocks = entry.rows / entry.right_rows;
  entry.step = blocks >= kKroneckerDoraRows && entry.rows % entry.right_rows == 0 ? entry.right_rows : 1;
  entry.first_term = static_cast<std::int32_t>(layout_.terms.size());
  if (kind.dora) {
    require(base.data, "DoRA needs the base weight");
    entry.dora = dora_parameters(*adapters, out);
    layout_.reads_base = true;
  }
  for (std::int32_t a = 0; a < target.adapter_count; ++a) {
    check_multiplier(adapters[a], batch_);
    for (std::int32_t t = 0; t < adapters[a].term_count; ++t)
      add_term(target, batch_.terms[adapters[a].first_term + t], adapters[a].multiplier_index);
  }
  entry.term_count = static_cast<std::int32_t>(layout_.terms.size()) - entry.first_term;

  KroneckerGroup &group = layout_.groups[static_cast<std::size_t>(index_of(kind))];
  const std::int64_t heights = entry.step == 1 ? ceil_div(entry.rows, rows) : entry.right_rows * ceil_div(blocks, rows);
  group.targets.push_back(entry);
  group.tiles.add(heights * (kind.dora ? 1 : ceil_div(entry.columns, kKroneckerColumns)));
}

void KroneckerLayoutBuilder::add_term(const ops::WeightTarget &target, const ops::Term &term,
                                      std::int32_t multiplier_index) {
  check_kronecker(term, target.out);
  const Source left = products_.whole(term.p, target.out), right = products_.whole(term.q, target.out);
  KroneckerTerm entry{};
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

std::string describe(const KroneckerLayout &layout) {
  std::string text;
  for (int k = 0; k < kKroneckerKinds; ++k) {
    const KroneckerGroup &group = layout.groups[static_cast<std::size_t>(k)];
    const KroneckerKind kind = kronecker_kind(k);
    if (group.targets.empty()) continue;
    text += concat("Kronecker, ", kind.dora ? "DoRA by rows, " : "", kind.wide ? "32" : "16",
                   "-bit weights: ", group.targets.size(), " weights, ", group.tiles.pieces, " tiles of ",
                   tile_rows(kind), " rows\n");
  }
  return text;
}

}  // namespace lyc::cuda
