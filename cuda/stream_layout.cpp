#include "stream_layout.hpp"

#include <algorithm>
#include <limits>

#include "base/error.hpp"

namespace lyc::cuda {
namespace {

constexpr std::int64_t kElement = 2;     // bytes
constexpr std::int64_t kAlignment = 16;  // of addresses and pitches, for the copy engine

bool narrow(lyc_dtype dtype) { return dtype == LYC_DTYPE_BF16 || dtype == LYC_DTYPE_F16; }

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

bool copyable(const MapSpec &map) {
  return reinterpret_cast<std::uintptr_t>(map.data) % kAlignment == 0 && map.pitch_bytes % kAlignment == 0 &&
         map.pitch_bytes >= map.inner * kElement && map.pitch_bytes < (std::int64_t{1} << 40);
}

/// [outer, inner] if its rows are contiguous and it can be copied.
std::optional<MapSpec> matrix_map(const void *data, lyc_dtype dtype, std::int64_t outer, std::int64_t outer_stride,
                                  std::int64_t inner, std::int64_t inner_stride, std::int32_t box_outer,
                                  std::int32_t box_inner) {
  const MapSpec map{
      const_cast<void *>(data), dtype == LYC_DTYPE_BF16, inner, outer, outer_stride * kElement, box_inner, box_outer};
  if (inner_stride != 1 || !narrow(dtype) || !copyable(map)) return std::nullopt;
  return map;
}

std::optional<MapSpec> weight_map(const Matrix &matrix, const MatrixTarget &target) {
  return matrix_map(matrix.data, matrix.dtype, target.rows.size, matrix.row.level[0], target.columns.size,
                    matrix.column.level[0], kStreamRows, kBoxColumns);
}

struct FactorMap {
  MapSpec map;
  bool rank_inside;  // the rank is its contiguous axis
};

/// A factor of `size` rows or columns, whichever of its two axes is the contiguous one.
std::optional<FactorMap> factor_map(const Factor &factor, std::int64_t size, std::int64_t rank, std::int32_t box) {
  const std::int64_t stride = factor.axis.level[0];
  if (const auto map = matrix_map(factor.data, factor.dtype, size, stride, rank, factor.rank_stride, box, kChunkRanks))
    return FactorMap{*map, true};
  if (const auto map = matrix_map(factor.data, factor.dtype, rank, factor.rank_stride, size, stride, kChunkRanks, box))
    return FactorMap{*map, false};
  return std::nullopt;
}

ChunkEnd end_of(Role role) {
  return role == Role::kAdd ? ChunkEnd::kAdd : role == Role::kHold ? ChunkEnd::kKeep : ChunkEnd::kAddTimesKept;
}

/// Append one product, unless it does not fit.
bool add_product(StreamWeight &weight, const MatrixTarget &matrix, const LowRankTerm &term, std::int8_t index) {
  StreamTarget &target = weight.target;
  const std::int64_t chunks = ceil_div(term.rank, kChunkRanks);
  const bool bf16 = term.row_factor.dtype == LYC_DTYPE_BF16;
  if (target.chunk_count + chunks > kMaxStreamChunks || term.row_factor.dtype != term.column_factor.dtype) return false;
  if (index > 0 && bf16 != weight.kind.bf16_factors) return false;
  if (term.row_factor.in_workspace || term.column_factor.in_workspace) return false;  // a map holds one address
  const auto row = factor_map(term.row_factor, matrix.rows.size, term.rank, kStreamRows);
  const auto column = factor_map(term.column_factor, matrix.columns.size, term.rank, kBoxColumns);
  if (!row || !column) return false;
  weight.kind.bf16_factors = bf16;
  weight.row[index] = row->map;
  weight.column[index] = column->map;
  for (std::int64_t c = 0; c < chunks; ++c)
    target.chunks[target.chunk_count++] = {index,
                                           static_cast<std::int8_t>(c),
                                           !row->rank_inside,
                                           column->rank_inside,
                                           c + 1 == chunks ? end_of(term.role) : ChunkEnd::kGoOn,
                                           index,
                                           {}};
  target.terms[index] = {term.scalar, term.scalar_dtype, term.coefficient, term.multiplier_index, 0};
  return true;
}

}  // namespace

std::optional<StreamWeight> stream_weight(const MatrixTarget &target, const std::vector<LowRankTerm> &terms) {
  if (terms.size() > kMaxStreamProducts || target.rows.levels != 1 || target.columns.levels != 1) return std::nullopt;
  if (target.base.data && target.base.dtype != target.out.dtype) return std::nullopt;
  const auto out = weight_map(target.out, target);
  const auto base = target.base.data ? weight_map(target.base, target) : out;
  if (!out || !base) return std::nullopt;
  StreamWeight weight;
  weight.out = *out;
  weight.base = *base;
  for (std::size_t i = 0; i < terms.size(); ++i)
    if (!add_product(weight, target, terms[i], static_cast<std::int8_t>(i))) return std::nullopt;
  StreamTarget &stream = weight.target;
  stream.columns = target.columns.size;
  stream.strips = static_cast<std::int32_t>(ceil_div(target.columns.size, kStreamColumns));
  stream.row_tiles = static_cast<std::int32_t>(ceil_div(target.rows.size, kStreamRows));
  stream.bf16 = target.out.dtype == LYC_DTYPE_BF16;
  stream.term_count = static_cast<std::int32_t>(terms.size());
  const bool hadamard =
      std::any_of(terms.begin(), terms.end(), [](const LowRankTerm &term) { return term.role != Role::kAdd; });
  weight.kind.form = hadamard ? StreamForm::kHadamard : terms.size() > 1 ? StreamForm::kSeveral : StreamForm::kSingle;
  weight.kind.chunks = stream.chunk_count > 2 ? 4 : stream.chunk_count > 1 ? 2 : 1;
  return weight;
}

std::vector<std::uint32_t> StreamGroup::first_tiles() const {
  std::vector<std::uint32_t> first = {0};
  for (const StreamWeight &weight : weights) {
    const std::int64_t tiles = first.back() + std::int64_t{weight.target.strips} * weight.target.row_tiles;
    require(tiles <= std::numeric_limits<std::int32_t>::max(), "a batch of more than 2^31 tiles; split it");
    first.push_back(static_cast<std::uint32_t>(tiles));
  }
  return first;
}

}  // namespace lyc::cuda
