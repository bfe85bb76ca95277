#include "stream_layout.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace lyc::cuda {
namespace {

using ops::Operand;

constexpr std::int64_t kElement = 2;                               // bytes
constexpr std::int64_t kAlignment = 16;                            // of addresses and pitches, for the copy engine
constexpr std::int64_t kMinBlockColumns = 32, kMinBlockRows = 16;  // smaller blocks would leave tiles empty

bool is_narrow(lyc_dtype dtype) { return dtype == LYC_DTYPE_BF16 || dtype == LYC_DTYPE_F16; }

bool aligned(const void *data, std::int64_t bytes) { return reinterpret_cast<std::uintptr_t>(data) % bytes == 0; }

bool copyable(const MapSpec &map) {
  return aligned(map.data, kAlignment) &&
         std::all_of(map.pitch_bytes, map.pitch_bytes + map.axes - 1, [](std::int64_t pitch) {
           return pitch > 0 && pitch % kAlignment == 0 && pitch < (std::int64_t{1} << 40);
         });
}

// -- weights ----------------------------------------------------------------------------------------------------------

/// A matrix with contiguous rows, [down][rows] x [across][columns].
struct Grid {
  std::int64_t rows, columns, down = 1, across = 1;
};

std::optional<MapSpec> weight_map(const void *data, lyc_dtype dtype, const Grid &grid, std::int64_t row_stride) {
  const std::int64_t row = row_stride * kElement;
  const MapSpec map{const_cast<void *>(data),
                    dtype == LYC_DTYPE_BF16,
                    4,
                    {grid.columns, grid.across, grid.rows, grid.down},
                    {grid.across > 1 ? grid.columns * kElement : row, row, grid.rows * row},
                    {kBoxColumns, 1, kStreamRows, 1}};
  const bool fits = grid.rows * grid.down == 1 || row >= grid.columns * grid.across * kElement;
  if (!is_narrow(dtype) || !fits || !copyable(map)) return std::nullopt;
  return map;
}

void set_grid(StreamTarget &target, const Grid &grid, StreamForm form) {
  target.rows = narrow(grid.rows, "the number of rows");
  target.columns = narrow(grid.columns, "the number of columns");
  target.down = narrow(grid.down, "the number of blocks");
  target.across = narrow(grid.across, "the number of blocks");
  const std::int64_t tall = ceil_div(grid.rows, kStreamRows), wide = ceil_div(grid.columns, kStreamColumns);
  target.boxes_across = static_cast<std::int32_t>(std::min<std::int64_t>(kBoxes, ceil_div(grid.columns, kBoxColumns)));
  const bool blocks = form == StreamForm::kKronecker;
  const std::int64_t groups = ceil_div(grid.across, kBoxes / target.boxes_across);
  target.strips = narrow(blocks ? tall * wide : wide, "the number of tiles");
  target.height = narrow(blocks ? groups * grid.down : tall, "the number of tiles");
}

/// Where there is an instance of the kernel.
StreamKind stream_kind(StreamForm form, std::int64_t chunks, bool bf16, bool dora) {
  const auto at_least = [&](std::initializer_list<int> sizes) {
    return *std::find_if(sizes.begin(), sizes.end() - 1, [&](int size) { return size >= chunks; });
  };
  switch (form) {
    case StreamForm::kKronecker:
      return {0, form, true, dora};
    case StreamForm::kRotation:
      return {0, form, bf16, false};
    case StreamForm::kHadamard:
      return {static_cast<std::int32_t>(chunks), form, bf16, dora};
    case StreamForm::kSingle:
      if (bf16 && dora && chunks == 1) return {1, form, bf16, dora};
      if (bf16 && !dora) return {at_least({4, 8}), form, bf16, dora};
      [[fallthrough]];
    default:
      return {4, StreamForm::kSeveral, bf16, dora};
  }
}

bool has_instance(const StreamKind &kind, std::int64_t chunks) {
  if (kind.form != StreamForm::kHadamard) return chunks <= kind.chunks;
  return kind.dora ? kind.chunks == 2 || kind.chunks == 4 : kind.chunks == 6 && kind.bf16_factors;
}

/// Blocks of the cluster that holds whole rows: so many that two of them share a multiprocessor, else as many as there
/// can be; 0 where that is not enough. At least two: one alone has nobody to send to, which the device takes for an
/// error.
std::int32_t row_cluster(std::int64_t boxes, StreamForm form, int largest) {
  std::int32_t cluster = 2;
  while (cluster < largest && ceil_div(boxes, cluster) > kRowBoxes) cluster *= 2;
  const bool fits = cluster <= largest && ceil_div(boxes, cluster) * row_warps_per_box(form) <= most_row_warps(form);
  return fits ? cluster : 0;
}

/// DoRA over rows of low-rank products, each row with a magnitude of its own, if they fit on the chip.
bool take_whole_rows(StreamWeight &weight, const StreamMagnitudes &magnitudes, int largest_cluster) {
  StreamTarget &target = weight.target;
  const std::int64_t boxes = ceil_div(target.columns, kBoxColumns);
  const std::int32_t cluster = row_cluster(boxes, weight.kind.form, largest_cluster);
  if (weight.kind.form == StreamForm::kKronecker || !magnitudes.by_row || magnitudes.inside != 1 ||
      magnitudes.count != target.rows || cluster == 0)
    return false;
  weight.kind.cluster = cluster;
  target.boxes_across = static_cast<std::int32_t>(boxes);
  target.boxes = static_cast<std::int32_t>(ceil_div(boxes, cluster));
  target.strips = 1;
  target.height = static_cast<std::int32_t>(ceil_div(target.rows, kStreamRows));
  target.dora = {1, target.rows, magnitudes.dora, 0, 0};
  return true;
}

void add_dora(StreamWeight &weight, const StreamMagnitudes &magnitudes, std::int32_t multiplier_index,
              int largest_cluster, Products &products) {
  if (take_whole_rows(weight, magnitudes, largest_cluster)) return;
  StreamTarget &target = weight.target;
  const int halves = stream_warps_per_box(weight.kind.chunks, weight.kind.form);
  const std::int64_t rows = std::int64_t{target.rows} * target.down;
  const std::int64_t columns = std::int64_t{target.columns} * target.across;
  const std::int64_t lines = magnitudes.by_row ? rows : columns;
  const std::int64_t pieces = magnitudes.by_row ? target.across * ceil_div(target.columns, kBoxColumns) * halves
                                                : target.down * ceil_div(target.rows, kStreamRows);
  const std::uint64_t partial = products.reserve(pieces * lines);
  const std::uint64_t factors =
      products.reserve(lines * static_cast<std::int64_t>(sizeof(DoraFactors) / sizeof(float)));
  target.dora = {magnitudes.by_row, narrow(lines, "the number of lines"), magnitudes.dora, partial, factors};
  products.add(FactorTask{magnitudes.dora, multiplier_index, 1, narrow(pieces, "the number of tiles"),
                          target.dora.lines, narrow(magnitudes.inside, "a kernel"),
                          narrow(magnitudes.count, "the number of magnitudes"), partial, factors});
}

// -- low-rank products ------------------------------------------------------------------------------------------------

struct FactorMap {
  MapSpec map;       // or, if a run computes it, none
  bool rank_inside;  // the rank is its contiguous axis
};

/// A factor of `size` rows or columns, whichever of its two axes is the contiguous one.
std::optional<FactorMap> factor_map(const Factor &factor, std::int64_t size, std::int64_t rank, std::int32_t box) {
  const std::int64_t stride = factor.axis.level[0];
  const auto map = [&](bool rank_inside) {
    return MapSpec{const_cast<void *>(factor.data),
                   factor.dtype == LYC_DTYPE_BF16,
                   2,
                   {rank_inside ? rank : size, rank_inside ? size : rank},
                   {(rank_inside ? stride : factor.rank_stride) * kElement},
                   {rank_inside ? kChunkRanks : box, rank_inside ? box : kChunkRanks}};
  };
  const auto takes = [&](const MapSpec &spec) {
    return (spec.extent[1] == 1 || spec.pitch_bytes[0] >= spec.extent[0] * kElement) && copyable(spec);
  };
  if (factor.rank_stride == 1 && takes(map(true))) return FactorMap{map(true), true};
  if (stride == 1 && takes(map(false))) return FactorMap{map(false), false};
  return std::nullopt;
}

/// Computed by a run as [size, rank] or [rank, size], so that it can be packed.
std::optional<FactorMap> packed_map(const Factor &factor, std::int64_t size, std::int64_t rank) {
  const std::int64_t stride = factor.axis.level[0];
  if (factor.rank_stride == 1 && stride == rank) return FactorMap{{}, true};
  if (stride == 1 && factor.rank_stride == size) return FactorMap{{}, false};
  return std::nullopt;
}

class LowRankBuilder {
 public:
  LowRankBuilder(const MatrixTarget &matrix, const std::vector<LowRankTerm> &terms) : matrix_(matrix), terms_(terms) {}

  /// Whether it fits; nothing is changed but this.
  bool build(bool dora) {
    if (terms_.empty() || terms_.size() > kMaxStreamProducts || matrix_.rows.levels != 1 ||
        matrix_.columns.levels != 1 || !add_weight())
      return false;
    bf16_ = std::any_of(terms_.begin(), terms_.end(), [](const LowRankTerm &term) {
      return term.row_factor.dtype == LYC_DTYPE_BF16 || term.column_factor.dtype == LYC_DTYPE_BF16;
    });
    for (std::size_t i = 0; i < terms_.size(); ++i)
      if (!add_product(terms_[i], static_cast<std::int8_t>(i))) return false;
    const bool hadamard =
        std::any_of(terms_.begin(), terms_.end(), [](const LowRankTerm &term) { return term.role != Role::kAdd; });
    // One product of two halves, each of half the chunks.
    if (hadamard &&
        (terms_.size() != 2 || weight_.target.chunks[weight_.target.chunk_count / 2].product != 1 ||
         weight_.target.chunk_count % 2 != 0 || weight_.target.chunks[weight_.target.chunk_count / 2 - 1].product != 0))
      return false;
    const StreamForm form = hadamard            ? StreamForm::kHadamard
                            : terms_.size() > 1 ? StreamForm::kSeveral
                                                : StreamForm::kSingle;
    StreamTarget &target = weight_.target;
    weight_.kind = stream_kind(form, target.chunk_count, bf16_, dora);
    return has_instance(weight_.kind, target.chunk_count);
  }

  StreamWeight commit(Products &products) {
    for (std::size_t i = 0; i < terms_.size(); ++i) {
      const LowRankTerm &term = terms_[i];
      const auto pack = [&](const Factor &factor, const Axis &lines, std::uint64_t &packed) {
        if (factor.in_workspace)
          packed = products.pack(factor.stage, factor.contraction, factor.rank_stride == 1 && term.rank > 1, term.rank,
                                 lines.size);
      };
      pack(term.row_factor, matrix_.rows, weight_.target.packed_row[i]);
      pack(term.column_factor, matrix_.columns, weight_.target.packed_column[i]);
    }
    return weight_;
  }

 private:
  bool add_weight() {
    const Grid grid{matrix_.rows.size, matrix_.columns.size};
    const auto map = [&](const Matrix &matrix) -> std::optional<MapSpec> {
      if (matrix.column.level[0] != 1) return std::nullopt;
      return weight_map(matrix.data, matrix.dtype, grid, matrix.row.level[0]);
    };
    if (matrix_.base.data && matrix_.base.dtype != matrix_.out.dtype) return false;
    const auto out = map(matrix_.out);
    const auto base = matrix_.base.data ? map(matrix_.base) : out;
    if (!out || !base) return false;
    weight_.out = *out;
    weight_.base = *base;
    weight_.target.bf16 = matrix_.out.dtype == LYC_DTYPE_BF16;
    set_grid(weight_.target, grid, StreamForm::kSingle);
    return true;
  }

  bool add_product(const LowRankTerm &term, std::int8_t index) {
    StreamTarget &target = weight_.target;
    const Factor &row = term.row_factor, &column = term.column_factor;
    const auto fits = [&](const Factor &factor) {
      return factor.in_workspace ? bf16_ : factor.dtype == (bf16_ ? LYC_DTYPE_BF16 : LYC_DTYPE_F16);
    };
    if (!fits(row) || !fits(column) || (row.in_workspace && column.in_workspace)) return false;
    const std::int64_t rows = matrix_.rows.size, columns = matrix_.columns.size;
    const auto row_map =
        row.in_workspace ? packed_map(row, rows, term.rank) : factor_map(row, rows, term.rank, kStreamRows);
    const auto column_map = column.in_workspace ? packed_map(column, columns, term.rank)
                                                : factor_map(column, columns, term.rank, kBoxColumns);
    if (!row_map || !column_map) return false;
    weight_.row[index] = row_map->map;
    weight_.column[index] = column_map->map;
    const std::int64_t chunks = ceil_div(term.rank, kChunkRanks);
    const int parts = row.in_workspace || column.in_workspace ? kPackedParts : 1;
    if (target.chunk_count + parts * chunks > kMaxStreamChunks) return false;
    for (int part = 0; part < parts; ++part)
      for (std::int64_t c = 0; c < chunks; ++c) {
        StreamChunk &chunk = target.chunks[target.chunk_count++];
        const auto of_part = static_cast<std::int8_t>(part * chunks + c);
        chunk.product = chunk.term = index;
        chunk.row_chunk = row.in_workspace ? of_part : static_cast<std::int8_t>(c);
        chunk.column_chunk = column.in_workspace ? of_part : static_cast<std::int8_t>(c);
        chunk.row_packed = row.in_workspace != 0;
        chunk.column_packed = column.in_workspace != 0;
        chunk.row_transposed = !row.in_workspace && !row_map->rank_inside;
        chunk.column_transposed = column.in_workspace || column_map->rank_inside;
        chunk.ends = part + 1 == parts && c + 1 == chunks && term.role != Role::kMultiply;
      }
    target.terms[index] = {{term.scalar, term.scalar_dtype, 0}, term.coefficient, term.multiplier_index};
    target.term_count = index + 1;
    return true;
  }

  const MatrixTarget &matrix_;
  const std::vector<LowRankTerm> &terms_;
  StreamWeight weight_;
  bool bf16_ = false;
};

// -- one term on a grid of blocks, or on blocks of rows
// -------------------------------------------------------------------

/// [I, O] as [O, I].
Operand transposed(Operand t) {
  std::swap(t.out, t.in);
  std::swap(t.stride_out, t.stride_in);
  return t;
}

/// A target with one adapter of one term; turned round where its columns are O.
class TermBuilder {
 public:
  TermBuilder(const ops::WeightBatch &batch, const ops::WeightTarget &target, int largest_cluster, Products &products)
      : adapter_(batch.adapters[target.first_adapter]),
        term_(batch.terms[adapter_.first_term]),
        batch_(batch),
        target_(target),
        largest_cluster_(largest_cluster),
        products_(products),
        turned_(!has_plain_columns(target.out)) {}

  std::optional<StreamWeight> build() {
    const bool same = !target_.base.data || target_.base.dtype == target_.out.dtype;
    if (!same || (turned_ && target_.out.kernel_size() != 1)) return std::nullopt;
    return term_.kind == ops::TermKind::kKronecker ? kronecker() : rotation(batch_.rotations[term_.rotation]);
  }

 private:
  Operand seen(const Operand &t) const { return turned_ ? transposed(t) : t; }

  bool add_weight(const Grid &grid, StreamForm form) {
    const auto map = [&](const Operand &t) -> std::optional<MapSpec> {
      if (!has_plain_columns(t)) return std::nullopt;
      return weight_map(t.data, t.dtype, grid, t.stride_out);
    };
    const auto out = map(seen(target_.out));
    const auto base = target_.base.data ? map(seen(target_.base)) : out;
    if (!out || !base) return false;
    weight_.out = *out;
    weight_.base = *base;
    StreamTarget &target = weight_.target;
    set_grid(target, grid, form);
    target.bf16 = target_.out.dtype == LYC_DTYPE_BF16;
    target.term_count = 1;
    target.terms[0] = {
        {term_.scalar.data, term_.scalar.dtype, 0}, static_cast<float>(term_.coefficient), adapter_.multiplier_index};
    return true;
  }

  void check_term() const {
    check_multiplier(adapter_, batch_);
    if (term_.scalar.data) check(term_.scalar, "a scalar");
  }

  std::optional<StreamWeight> kronecker() {
    const std::int64_t left_rows = turned_ ? term_.p.in() : term_.p.out();
    const std::int64_t left_columns = turned_ ? term_.p.out() : term_.p.in();
    const std::int64_t rows = turned_ ? term_.q.in() : term_.q.out();
    const std::int64_t columns = turned_ ? term_.q.out() : term_.q.in() * term_.q.kernel_holder().kernel_size();
    const Operand out = seen(target_.out);
    if (adapter_.dora_axis == ops::DoraAxis::kNone || term_.row_begin != 0 || rows < kMinBlockRows ||
        columns < kMinBlockColumns || columns % 2 != 0 || left_rows * rows != out.out ||
        left_columns * columns != columns_of(out) || !has_even_steps(term_.q) ||
        !add_weight({rows, columns, left_rows, left_columns}, StreamForm::kKronecker))
      return std::nullopt;
    check_term();
    check_kronecker(term_, target_.out);
    const Source left = products_.whole(term_.p, target_.out), right = products_.whole(term_.q, target_.out);
    const Operand left_seen = seen(left.operand);
    StreamKronecker &product = weight_.target.kronecker;
    product.left = left.operand.data;
    product.left_dtype = left.operand.dtype;
    product.left_in_workspace = left.in_workspace;
    product.left_row = left_seen.stride_out;
    product.left_column = left_seen.stride_in;
    set_right(right, column_step(seen(right.operand)));
    weight_.kind = stream_kind(StreamForm::kKronecker, 0, true, true);
    add_dora(weight_, magnitudes(), adapter_.multiplier_index, largest_cluster_, products_);
    return weight_;
  }

  void set_right(const Source &right, std::int64_t column) {
    StreamKronecker &product = weight_.target.kronecker;
    const Operand &t = right.operand;
    product.right = t.data;
    product.right_dtype = t.dtype;
    product.right_in_workspace = right.in_workspace;
    product.right_row = seen(t).stride_out;
    product.right_column = column;
    product.right_pairs = column == 1 && product.right_row % 2 == 0 &&
                          aligned(t.data, 2 * static_cast<std::int64_t>(dtype_size(t.dtype)));
  }

  /// Whether columns of the right half lie equally far apart; a run makes its own halves so.
  bool has_even_steps(const ops::Product &right) const { return !right.whole() || has_even_columns(seen(right.down)); }

  StreamMagnitudes magnitudes() const {
    require(target_.base.data, "DoRA needs the base weight");
    const bool out = adapter_.dora_axis == ops::DoraAxis::kOut;
    return {dora_parameters(adapter_, target_.out), out != turned_, out ? 1 : target_.out.kernel_size(),
            out ? target_.out.out : target_.out.in};
  }

  std::optional<StreamWeight> rotation(const ops::Rotation &rotation) {
    const Operand &out = target_.out;
    if (turned_ || adapter_.dora_axis != ops::DoraAxis::kNone || !target_.base.data || term_.scalar.data ||
        term_.coefficient != 1.0 || rotation.axis != ops::Rotation::Axis::kOut || rotation.stages != 1 ||
        rotation.order != ops::Rotation::Order::kPlain || rotation.block_size < 2 ||
        kTurnRows % rotation.block_size != 0 || rotation.begin != 0 || rotation.extent() != out.out ||
        !add_weight({out.out, columns_of(out)}, StreamForm::kRotation))
      return std::nullopt;
    check_term();
    RotationTask &task = weight_.rotation;
    task = products_.rotation(rotation, adapter_.multiplier_index);
    task.late = !task.prepared && task.map == ops::Rotation::Map::kCayley;
    task.rescale = rescale_of(rotation, term_.row_begin);
    products_.add(task);
    weight_.kind = stream_kind(StreamForm::kRotation, 0, out.dtype == LYC_DTYPE_BF16, false);
    return weight_;
  }

  const ops::Adapter &adapter_;
  const ops::Term &term_;
  const ops::WeightBatch &batch_;
  const ops::WeightTarget &target_;
  const int largest_cluster_;
  Products &products_;
  const bool turned_;
  StreamWeight weight_;
};

}  // namespace

std::optional<StreamWeight> stream_low_rank(const MatrixTarget &target, const std::vector<LowRankTerm> &terms,
                                            const StreamMagnitudes *magnitudes, int largest_cluster,
                                            Products &products) {
  LowRankBuilder builder(target, terms);
  if (!builder.build(magnitudes != nullptr)) return std::nullopt;
  StreamWeight weight = builder.commit(products);
  if (magnitudes) add_dora(weight, *magnitudes, terms.front().multiplier_index, largest_cluster, products);
  return weight;
}

std::optional<StreamWeight> stream_term(const ops::WeightBatch &batch, const ops::WeightTarget &target,
                                        int largest_cluster, Products &products) {
  if (target.adapter_count != 1) return std::nullopt;
  const ops::Adapter &adapter = batch.adapters[target.first_adapter];
  if (adapter.term_count != 1 || adapter.replaces) return std::nullopt;
  const ops::TermKind kind = batch.terms[adapter.first_term].kind;
  if (kind != ops::TermKind::kKronecker && kind != ops::TermKind::kRotation) return std::nullopt;
  return TermBuilder(batch, target, largest_cluster, products).build();
}

std::int64_t StreamGroup::tiles() const {
  std::int64_t tiles = 0;
  for (const StreamWeight &weight : weights) tiles += std::int64_t{weight.target.strips} * weight.target.height;
  return tiles;
}

namespace {

/// Runs of a strip. For one weight as they are done soonest, where beginning a run costs half a tile. Several weights
/// follow each other without a break, and where there is work for long, runs need not be so short that their beginnings
/// tell.
std::int32_t groups_of(const StreamTarget &target, bool alone, std::int64_t all_tiles, std::int64_t resident_blocks) {
  constexpr std::int64_t kLongRun = 4, kManyTiles = 16, kMostRounds = 4;
  if (!alone) {
    const std::int64_t length = std::clamp<std::int64_t>(all_tiles / (kManyTiles * resident_blocks), 1, kLongRun);
    return static_cast<std::int32_t>(
        std::min(std::max<std::int64_t>(1, resident_blocks / target.strips), ceil_div(target.height, length)));
  }
  const std::int64_t strips = target.strips, height = target.height, fewest = ceil_div(strips, resident_blocks);
  std::int64_t best = std::numeric_limits<std::int64_t>::max();
  std::int32_t groups = 1;
  for (std::int64_t rounds = fewest; rounds < fewest + kMostRounds; ++rounds) {
    const std::int64_t length = ceil_div(height, std::min(height, rounds * resident_blocks / strips));
    const std::int64_t halves = rounds * (2 * length + 1);
    if (halves >= best) continue;
    best = halves;
    groups = static_cast<std::int32_t>(ceil_div(height, length));
  }
  return groups;
}

}  // namespace

PieceCounter pieces_of_turns(const StreamGroup &group) {
  PieceCounter pieces;
  for (const StreamWeight &weight : group.weights)
    pieces.add(ceil_div(weight.target.rows, kTurnRows) * ceil_div(weight.target.columns, kBoxColumns));
  return pieces;
}

void schedule(StreamGroup &group, std::int64_t resident_blocks) {
  const std::int64_t tiles = group.tiles();
  std::int64_t runs = 0;
  group.first_run.clear();
  for (StreamWeight &weight : group.weights) {
    weight.target.groups = groups_of(weight.target, group.weights.size() == 1, tiles, resident_blocks);
    group.first_run.push_back(static_cast<std::uint32_t>(runs));
    runs += std::int64_t{weight.target.strips} * weight.target.groups;
    require(runs <= std::numeric_limits<std::int32_t>::max(), "a batch of more than 2^31 tiles; split it");
  }
  group.run_count = static_cast<std::uint32_t>(runs);
}

std::int32_t StreamGroup::boxes() const {
  const auto fewer = [](const StreamWeight &a, const StreamWeight &b) { return a.target.boxes < b.target.boxes; };
  return std::max_element(weights.begin(), weights.end(), fewer)->target.boxes;
}

std::string describe(const StreamGroup &group) {
  const StreamKind &kind = group.kind;
  const auto ranks = [&](const char *what) {
    return concat(what, " of up to ", kind.chunks * kChunkRanks, " ranks in registers");
  };
  const std::string what = kind.form == StreamForm::kKronecker  ? "Kronecker products"
                           : kind.form == StreamForm::kRotation ? "rotations of blocks of rows"
                           : kind.form == StreamForm::kHadamard ? ranks("Hadamard products")
                                                                : ranks("low-rank products");
  const std::string tiles = kind.cluster > 0
                                ? concat(" bands of ", kStreamRows, " rows, each in ", kind.cluster, " blocks\n")
                                : concat(" tiles of ", kStreamRows, " x ", kStreamColumns, "\n");
  return concat(what, kind.dora ? " with DoRA" : "", ", streamed: ", group.weights.size(), " weights, ", group.tiles(),
                tiles);
}

}  // namespace lyc::cuda
