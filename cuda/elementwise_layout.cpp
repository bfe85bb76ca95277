#include "elementwise_layout.hpp"

#include <algorithm>
#include <limits>
#include <optional>

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc::cuda {
namespace {

using ops::Operand;

constexpr std::int64_t kMostBytes = 16;  // of an access

/// [I, O] as [O, I].
Operand seen(Operand t, bool turned) {
  if (turned) {
    std::swap(t.out, t.in);
    std::swap(t.stride_out, t.stride_in);
  }
  return t;
}

/// Whether what the kernels take as rows are the weight's columns, which are contiguous.
bool is_turned(const ops::WeightTarget &target) {
  return !has_plain_columns(target.out) && target.out.kernel_size() == 1;
}

/// A stride in bytes, if the kernels can count so far.
std::optional<std::int32_t> bytes_of(std::int64_t stride, lyc_dtype dtype) {
  const std::int64_t bytes = stride * static_cast<std::int64_t>(dtype_size(dtype));
  if (bytes > std::numeric_limits<std::int32_t>::max()) return std::nullopt;
  return static_cast<std::int32_t>(bytes);
}

/// Rows of contiguous memory, [O, I, K] in that order, that begin where `columns` of them can be taken at once.
bool has_plain_rows(const Operand &t, std::int64_t columns) {
  const auto size = static_cast<std::int64_t>(dtype_size(t.dtype));
  const std::int64_t access = std::min(kMostBytes, columns * size);
  return has_plain_columns(t) && reinterpret_cast<std::uintptr_t>(t.data) % access == 0 &&
         stride(t, kOutAxis) * size % access == 0 && bytes_of(stride(t, kOutAxis), t.dtype);
}

/// One value for all columns of a row.
bool is_column(const Operand &t) {
  for (int axis = kInAxis; axis < kAxes; ++axis)
    if (stride(t, axis) != 0) return false;
  return true;
}

bool has_near_elements(const Operand &t) {
  return bytes_of(t.stride_out, t.dtype) && bytes_of(t.stride_in, t.dtype) &&
         bytes_of(has_even_columns(t) ? column_step(t) : 0, t.dtype);
}

bool takes_term(const ops::Term &term, bool turned, std::int64_t vector) {
  const auto plain = [&](const Operand &operand) {
    const Operand t = seen(operand, turned);
    return has_plain_rows(t, vector) || (has_even_columns(t) && column_step(t) != 1 && has_near_elements(t));
  };
  switch (term.kind) {
    case ops::TermKind::kKronecker:
      return term.row_begin == 0 && (!term.p.whole() || has_near_elements(term.p.down)) &&
             (turned ? term.q.out() : term.q.in() * term.q.kernel_holder().kernel_size()) % vector == 0 &&
             (!term.q.whole() || plain(term.q.down));
    case ops::TermKind::kProduct:
      return term.p.whole() && plain(rows_from(term.p.down, term.row_begin));
    case ops::TermKind::kBaseHadamard:
      return term.p.whole() && (is_column(seen(term.p.down, turned)) || plain(rows_from(term.p.down, term.row_begin)));
    default:
      return false;
  }
}

/// How far apart rows taken together should lie for a term: as far as rows that meet the same row of its right half.
std::int64_t step_of(const ElementwiseTerm &term, std::int64_t rows) {
  const std::int64_t step = term.right_rows.value;
  return rows % step == 0 && rows / step >= kElementwiseRows ? step : 1;
}

/// Among threads; the number of blocks.
std::int64_t share_vectors(ElementwiseTarget &entry, const ElementwiseTerm &first) {
  const std::int64_t step = step_of(first, entry.rows);
  entry.step = divisor(step, "the number of rows");
  entry.together = entry.term_count == 1 && step % first.right_rows.value == 0 &&
                   (!entry.base || entry.base_dtype == entry.out_dtype);
  const std::int64_t lines = step * ceil_div(entry.rows / step, kElementwiseRows);
  entry.threads = narrow(lines * entry.row_vectors.value, "the number of elements");
  return ceil_div(entry.threads, kElementwiseThreads * kElementwisePieces);
}

/// Teams for rows of so many vectors.
struct Teams {
  std::int32_t warps, vectors;  // of a team; of a thread
};

/// The smallest that have whole rows, if any have.
std::optional<Teams> teams_for(std::int64_t vectors) {
  for (std::int32_t warps : kRowTeamWarps)
    for (std::int32_t of_thread : {kRowVectors[0], kRowVectors[1], kRowVectors[2]})
      if (vectors <= std::int64_t{warps} * 32 * of_thread) return Teams{warps, of_thread};
  for (std::int32_t warps : kWideTeamWarps)
    if (vectors <= std::int64_t{warps} * 32 * kRowVectors[3]) return Teams{warps, kRowVectors[3]};
  return std::nullopt;
}

/// Whether there is a kernel for it that takes vectors of 16 bytes.
bool is_kronecker(const ElementwiseTarget &entry, const ElementwiseTerm &term) {
  const std::int64_t left_span = std::int64_t{term.left_column} * entry.columns / term.right_columns.value;
  const bool vectors = term.right_columns.value * dtype_size(entry.base_dtype) % kMostBytes == 0 &&
                       entry.row_vectors.value * kMostBytes == entry.columns * dtype_size(entry.base_dtype);
  return vectors && entry.term_count == 1 && entry.base_dtype == entry.out_dtype && term.times_base == 0 &&
         (term.right_dtype == LYC_DTYPE_F32 || term.right_dtype == entry.base_dtype) &&
         term.right_column == static_cast<std::int32_t>(dtype_size(term.right_dtype)) &&
         left_span <= std::numeric_limits<std::int32_t>::max() && teams_for(entry.row_vectors.value);
}

}  // namespace

bool ElementwiseLayoutBuilder::takes(const ops::WeightTarget &target) const {
  return takes_vectors(target, 8) || takes_vectors(target, 4);
}

/// Whether all that a thread reads and writes are whole vectors of so many columns.
bool ElementwiseLayoutBuilder::takes_vectors(const ops::WeightTarget &target, std::int64_t vector) const {
  const bool turned = is_turned(target);
  const ops::Adapter *adapters = batch_.adapters + target.first_adapter;
  const bool takes_terms = std::all_of(adapters, adapters + target.adapter_count, [&](const ops::Adapter &adapter) {
    const bool by_row = target.adapter_count == 1 && adapter.dora_axis == ops::DoraAxis::kOut && !turned;
    const ops::Term *terms = batch_.terms + adapter.first_term;
    return !adapter.replaces && (adapter.dora_axis == ops::DoraAxis::kNone || by_row) && adapter.term_count > 0 &&
           std::all_of(terms, terms + adapter.term_count,
                       [&](const ops::Term &term) { return takes_term(term, turned, vector); });
  });
  if (!takes_terms || target.adapter_count == 0) return false;
  const Operand out = seen(target.out, turned), base = seen(target.base, turned);
  const bool wide = base.dtype == LYC_DTYPE_F32 || out.dtype == LYC_DTYPE_F32;
  return !(wide && vector > 4) && columns_of(out) % vector == 0 && has_plain_rows(out, vector) &&
         (!base.data || has_plain_rows(base, vector));
}

void ElementwiseLayoutBuilder::add(const ops::WeightTarget &target) {
  const bool turned = is_turned(target);
  const Operand base = seen(target.base, turned), out = seen(target.out, turned);
  const ops::Adapter *adapters = batch_.adapters + target.first_adapter;
  ElementwiseTarget entry{};
  const ElementwiseKind kind{!takes_vectors(target, 8)};
  const bool dora = adapters->dora_axis != ops::DoraAxis::kNone;
  entry.base = base.data;
  entry.out = out.data;
  entry.base_dtype = base.dtype;
  entry.out_dtype = out.dtype;
  entry.base_row = *bytes_of(stride(base, kOutAxis), base.dtype);
  entry.out_row = *bytes_of(stride(out, kOutAxis), out.dtype);
  entry.rows = narrow(out.out, "the number of rows");
  entry.columns = narrow(columns_of(out), "the number of columns");
  entry.row_vectors = divisor(columns_of(out) / elementwise_vector(kind), "the number of columns");
  entry.first_term = static_cast<std::int32_t>(layout_.terms.size());
  entry.reads_base = dora;
  for (std::int32_t a = 0; a < target.adapter_count; ++a) {
    check_multiplier(adapters[a], batch_);
    for (std::int32_t t = 0; t < adapters[a].term_count; ++t) {
      const ops::Term &term = batch_.terms[adapters[a].first_term + t];
      entry.reads_base |= ops::reads_base(term.kind);
      add_term(target, term, adapters[a].multiplier_index, turned);
    }
  }
  require(base.data || !dora, "DoRA needs the base weight");
  require(base.data || !entry.reads_base, "a term made from the weight needs the base weight");
  layout_.reads_base |= entry.reads_base != 0;
  entry.term_count = static_cast<std::int32_t>(layout_.terms.size()) - entry.first_term;
  if (dora) return add_rows(entry, dora_parameters(*adapters, target.out));
  ElementwiseGroup &group = layout_.groups[static_cast<std::size_t>(index_of(kind))];
  group.tiles.add(share_vectors(entry, layout_.terms[static_cast<std::size_t>(entry.first_term)]));
  group.targets.push_back(entry);
}

void ElementwiseLayoutBuilder::add_rows(const ElementwiseTarget &entry, const DoraParameters &dora) {
  ElementwiseRows rows{entry, layout_.terms[static_cast<std::size_t>(entry.first_term)], {}, {}, 0, 0, dora};
  ElementwiseRowsKind kind{LYC_DTYPE_NONE, LYC_DTYPE_NONE, 0, 0};
  std::int64_t block_rows = 1;
  if (is_kronecker(entry, rows.term)) {
    const auto [warps, vectors] = *teams_for(entry.row_vectors.value);
    rows.teams = warps < kFewestBlockWarps ? kRowBlockWarps / warps : 1;
    rows.team_threads = divisor(warps * 32, "the number of threads");
    rows.left_columns = entry.columns / static_cast<std::int32_t>(rows.term.right_columns.value);
    rows.right_vectors = divisor(entry.row_vectors.value / rows.left_columns, "the number of columns");
    kind = {entry.base_dtype, rows.term.right_dtype, warps * rows.teams, vectors};
    block_rows = rows.teams;
  }
  ElementwiseRowsGroup &group = find_or_add(layout_.rows, &ElementwiseRowsGroup::kind, kind);
  group.tiles.add(ceil_div(entry.rows, block_rows));
  group.scales = std::max(group.scales, rows.teams * rows.left_columns);
  group.targets.push_back(rows);
}

void ElementwiseLayoutBuilder::add_term(const ops::WeightTarget &target, const ops::Term &term,
                                        std::int32_t multiplier_index, bool turned) {
  if (term.scalar.data) check(term.scalar, "a scalar");
  ElementwiseTerm entry{};
  Source left, right;
  if (term.kind == ops::TermKind::kKronecker) {
    check_kronecker(term, target.out);
    left = products_.whole(term.p, target.out);
    right = products_.whole(term.q, target.out);
  } else {
    check_product(term.p);
    check_fit(term.p.out(), term.p.in(), term.p.down, term, target.out);
    entry.times_base = term.kind == ops::TermKind::kBaseHadamard;
    const Operand vector = rows_from(term.p.down, term.row_begin);
    (entry.times_base && is_column(seen(vector, turned)) ? left : right).operand = vector;
  }
  left.operand = seen(left.operand, turned);
  right.operand = seen(right.operand, turned);
  const Operand out = seen(target.out, turned);
  const bool whole = term.kind == ops::TermKind::kKronecker;
  const bool one_row = !whole && (left.operand.data || right.operand.stride_out == 0);
  entry.right_rows = divisor(whole ? right.operand.out : one_row ? 1 : out.out, "the number of rows");
  entry.right_columns = divisor(whole ? columns_of(right.operand) : columns_of(out), "the number of columns");
  entry.left = left.operand.data;
  entry.right = right.operand.data;
  entry.left_dtype = left.operand.dtype;
  entry.right_dtype = right.operand.dtype;
  entry.left_in_workspace = left.in_workspace;
  entry.right_in_workspace = right.in_workspace;
  const auto bytes = [](const Source &half, std::int64_t stride) {
    return bytes_of(stride, half.operand.dtype).value();
  };
  entry.left_row = bytes(left, left.operand.stride_out);
  entry.left_column = bytes(left, left.operand.stride_in);
  entry.right_row = bytes(right, right.operand.stride_out);
  entry.right_column = bytes(right, column_step(right.operand));
  if (term.scalar.data) entry.scalar = {term.scalar.data, term.scalar.dtype, 0};
  entry.coefficient = static_cast<float>(term.coefficient);
  entry.multiplier_index = multiplier_index;
  layout_.terms.push_back(entry);
}

std::optional<FlatTarget> flat_target(const ElementwiseLayout &layout, ElementwiseKind kind) {
  const ElementwiseGroup &group = layout.groups[static_cast<std::size_t>(index_of(kind))];
  if (group.targets.size() != 1 || group.targets.front().term_count != 1) return std::nullopt;
  FlatTarget flat{
      group.targets.front(), layout.terms[static_cast<std::size_t>(group.targets.front().first_term)], {}, 0};
  const ElementwiseTarget &weight = flat.weight;
  const ElementwiseTerm &term = flat.term;
  const auto size = static_cast<std::int32_t>(dtype_size(weight.out_dtype));
  const auto step = static_cast<std::int32_t>(term.right_dtype == LYC_DTYPE_NONE ? 0 : dtype_size(term.right_dtype));
  const bool one_type = !weight.base || weight.base_dtype == weight.out_dtype;
  const bool plain_left = term.left_dtype == LYC_DTYPE_NONE || term.left_dtype == weight.out_dtype;
  const bool plain_right = step == 0 || term.right_dtype == weight.out_dtype || term.right_dtype == LYC_DTYPE_F32;
  if (elementwise_vector(kind) * size != kMostBytes || !one_type || !plain_left || !plain_right ||
      term.right_column != step)
    return std::nullopt;
  flat.right_vectors = divisor(term.right_columns.value / elementwise_vector(kind), "the number of columns");
  flat.vectors = narrow(std::int64_t{weight.rows} * weight.row_vectors.value, "the number of elements");
  return flat;
}

std::string describe(const ElementwiseLayout &layout) {
  std::string text;
  for (int k = 0; k < kElementwiseKinds; ++k) {
    const ElementwiseGroup &group = layout.groups[static_cast<std::size_t>(k)];
    const ElementwiseKind kind = elementwise_kind(k);
    if (group.targets.empty()) continue;
    text += concat("elementwise, ", kind.wide ? "32" : "16", "-bit weights: ", group.targets.size(), " weights, ",
                   group.tiles.pieces, " blocks\n");
  }
  for (const ElementwiseRowsGroup &group : layout.rows)
    text += concat("elementwise, DoRA by rows, ",
                   group.kind.block_warps ? concat(dtype_name(group.kind.base), ", ", group.kind.vectors, " vectors")
                                          : std::string("any"),
                   ": ", group.targets.size(), " weights, ", group.tiles.pieces, " blocks\n");
  return text;
}

}  // namespace lyc::cuda
