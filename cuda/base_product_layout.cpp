#include "base_product_layout.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace lyc::cuda {
namespace {

using ops::Operand;

constexpr std::int64_t kVector = 8;  // elements of 16 bytes

bool is_bf16(const Operand &t) { return t.dtype == LYC_DTYPE_BF16; }

/// Rows of whole vectors.
bool has_vectors(const Operand &t) {
  return is_bf16(t) && t.kernel_size() == 1 && (t.stride_in == 1 || t.in == 1) && t.in % kVector == 0 &&
         t.stride_out % kVector == 0 && reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0;
}

/// Rows of which two neighbours can be loaded at once.
bool has_pairs(const Operand &t) {
  return is_bf16(t) && t.kernel_size() == 1 && t.stride_in == 1 && t.in % 2 == 0 && t.stride_out % 2 == 0 &&
         reinterpret_cast<std::uintptr_t>(t.data) % 4 == 0;
}

bool is_plain(const ops::Product &product) {
  return !product.whole() && !product.tucker() && !product.diagonal.data && !product.mask.data &&
         product.rank() <= kChunkRanks;
}

BaseFactors factors_of(const ops::Term &term, const Operand &up, const ops::Adapter &adapter) {
  const Operand &down = term.p.down;
  return {up.data,
          down.data,
          up.stride_out,
          down.stride_out,
          static_cast<std::int32_t>(down.out),
          {{term.scalar.data, term.scalar.dtype, 0}, static_cast<float>(term.coefficient), adapter.multiplier_index}};
}

/// The terms of a target with one adapter that is a sum.
const ops::Term *begin_terms(const ops::WeightBatch &batch, const ops::Adapter &adapter) {
  return batch.terms + adapter.first_term;
}

bool takes_term(const ops::Term &term) {
  const bool fits = is_plain(term.p) && has_vectors(term.p.down);
  if (term.kind == ops::TermKind::kBaseProduct) return fits && has_vectors(term.p.up);
  return term.kind == ops::TermKind::kProduct && fits && has_pairs(term.p.up);
}

bool takes(const ops::WeightBatch &batch, const ops::WeightTarget &target) {
  if (target.adapter_count != 1 || !target.base.data) return false;
  const ops::Adapter &adapter = batch.adapters[target.first_adapter];
  if (adapter.dora_axis != ops::DoraAxis::kNone || adapter.replaces || adapter.term_count > 2) return false;
  const ops::Term *terms = begin_terms(batch, adapter), *end = terms + adapter.term_count;
  const auto is_product_of_base = [](const ops::Term &term) { return term.kind == ops::TermKind::kBaseProduct; };
  return std::count_if(terms, end, is_product_of_base) == 1 && std::all_of(terms, end, takes_term) &&
         has_vectors(target.base) && has_vectors(target.out);
}

}  // namespace

int cluster_of(const BaseTarget &target) { return static_cast<int>(ceil_div(target.columns, target.columns_of_block)); }

std::optional<BaseTarget> base_product(const ops::WeightBatch &batch, const ops::WeightTarget &target,
                                       int largest_cluster) {
  if (!takes(batch, target)) return std::nullopt;
  const Operand &base = target.base, &out = target.out;
  std::int64_t blocks = 2;  // one alone has nobody to send to, which the device takes for an error
  while (blocks * kBaseColumns < out.in) blocks *= 2;
  if (blocks > std::min(largest_cluster, kMostBaseCluster) || out.in < 2 * kVector) return std::nullopt;
  BaseTarget result{};
  result.base = base.data, result.out = out.data;
  result.base_row = base.stride_out, result.out_row = out.stride_out;
  result.rows = narrow(out.out, "the number of rows"), result.columns = narrow(out.in, "the number of columns");
  result.columns_of_block = static_cast<std::int32_t>(ceil_div(out.in, blocks * kVector) * kVector);
  const ops::Adapter &adapter = batch.adapters[target.first_adapter];
  check_multiplier(adapter, batch);
  for (int t = 0; t < adapter.term_count; ++t) {
    const ops::Term &term = begin_terms(batch, adapter)[t];
    if (term.scalar.data) check(term.scalar, "a scalar");
    if (term.kind == ops::TermKind::kBaseProduct) {
      check_base_product(term.p, out);
      result.right = factors_of(term, term.p.up, adapter);
    } else {
      check_product(term.p);
      check_fit(term.p.out(), term.p.in(), term.p.kernel_holder(), term, out);
      result.added = factors_of(term, rows_from(term.p.up, term.row_begin), adapter);
    }
  }
  return result;
}

void schedule(BaseGroup &group, int clusters) {
  constexpr std::int64_t kLongRun = 8;  // where runs follow each other, their beginnings do not tell then
  std::int64_t runs = 0;
  group.first_run.clear();
  for (BaseTarget &target : group.targets) {
    const std::int64_t tiles = ceil_div(target.rows, kBaseRows);
    const std::int64_t wanted = group.targets.size() == 1 ? tiles : ceil_div(tiles, kLongRun);
    target.runs = static_cast<std::int32_t>(std::min<std::int64_t>(wanted, clusters));
    group.first_run.push_back(static_cast<std::uint32_t>(runs));
    runs += target.runs;
  }
  group.run_count = static_cast<std::uint32_t>(narrow(runs, "the number of runs"));
}

std::string describe(const BaseGroup &group) {
  return concat("products of the weight, streamed: ", group.targets.size(), " weights, each row in ", group.cluster,
                " blocks\n");
}

}  // namespace lyc::cuda
