// out[y, x] = round(base[y, x] + s * D[y, x]),  s = multiplier * coefficient * scalar, and D one of
//
//   P          P[y, x] = sum_r row[y, r] * column[r, x]
//   P o Q      of two such products
//   L (x) P    L[y / R, x / C] * P[y mod R, x mod C], a Kronecker product whose right half is [R, C]
//
// for 16-bit weights in contiguous rows and 16-bit factors as files have them. out may be base.
//
// Work.     A warp takes a panel, 64 columns of some rows, and goes down it a few rows at a time. All that it needs is
//           in registers: the column factors of the panel, and of a step the base and the row factors, on their way
//           while the step before is computed. Where column factors leave room for few warps, the base comes two steps
//           ahead, through shared memory. Warps share nothing but the caches; there is no barrier. Panels follow each
//           other in the order of memory; blocks end, and the next ones go on from there.
// Traffic.  base read once, out written once, 16 bytes for each thread and access: bound by DRAM, which likes that
//           order. Factors come from the caches: rank / (rows of a panel) of the base's bytes along columns, rank / 256
//           along rows, which the warps of a block share. So panels are low where ranks are few, and there is one for
//           each warp that the device holds where they are many.
// Numerics. Tensor cores multiply 16-bit factors exactly and sum in float32. One rounding, at the store. A product
//           whose multiplier is 0 adds nothing, not even NaN: out gets base's bits.
//
// A panel is transposed in the fragments of mma.m16n8k16: m runs along columns, n along rows, k along ranks. Which
// column an m stands for is ours to choose, so that lane (g, q) = (lane / 4, lane % 4) has 8 neighbours, 16 bytes, and
// the eight g make up a row's 128 bytes. Ranks are dealt out the same way: q has ranks 4 q to 4 q + 3 of each 16.
//
// A Kronecker product takes the same way: factors of row y mod R and column x mod C are loaded instead of those of y
// and x. C is a multiple of 8, so that a lane's columns are of one block, and R is a step at least, so that a step's
// rows are of two blocks at most: a lane has L's elements for both at hand, and a row takes one of them times s.
#include <algorithm>
#include <iterator>
#include <type_traits>
#include <utility>

#include "device.cuh"
#include "panel_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kThreads = kPanelWarps * 32;
constexpr int kLaneColumns = 8;              // that a lane has in each of its rows
constexpr int kMTiles = kLaneColumns / 2;    // a lane has columns 2 j and 2 j + 1 of m tile j
constexpr int kLaneRanks = kChunkRanks / 4;  // of a chunk

/// The first of a lane's ranks in a chunk. Of two chunks it has eight neighbours, which are loaded at once.
template <typename K>
__device__ int rank_of(int chunk, int q) {
  if (K::kChunks == 1) return q * kLaneRanks;
  return chunk / 2 * (2 * kChunkRanks) + q * (2 * kLaneRanks) + chunk % 2 * kLaneRanks;
}

/// What an instance is made for, by trial on an H200. Column factors take 16 registers a chunk.
struct Pace {
  int groups;     // of 8 rows, that are a step
  int blocks;     // wanted on a multiprocessor
  int steps;      // of a panel of a target alone; 0: so many that all panels are at work at once
  int ahead = 1;  // steps that the base is on its way before it is needed; 1: in registers
};
constexpr Pace pace(StreamForm form, int chunks, bool alone, bool merges) {
  const int all = all_chunks(form, chunks);
  if (all == 1 && form == StreamForm::kKronecker) return merges ? Pace{2, 7, 2} : Pace{2, 7, 4};
  if (all == 1) return merges ? Pace{2, 7, 1} : Pace{4, 8, 1};
  if (all == 2 && form == StreamForm::kHadamard && alone && merges) return {4, 4, 1};
  if (all == 2) return merges ? Pace{2, 5, 2} : Pace{2, form == StreamForm::kHadamard ? 5 : 6, 4};
  if (all > 4) return {2, 2, 0, merges ? 2 : 1};
  return {2, form == StreamForm::kHadamard ? 3 : 4, 0};
}

/// An instance's properties as a type; the same one where the pace is.
template <StreamForm kForm, int kMostChunks, bool kBf16, bool kWithBase, int kGroupsOfStep, int kBlocksWanted,
          int kStepsAhead>
struct Kind {
  static constexpr bool kHadamard = kForm == StreamForm::kHadamard, kKronecker = kForm == StreamForm::kKronecker;
  static constexpr bool kBf16Factors = kBf16, kMerges = kWithBase;
  static constexpr int kChunks = kMostChunks, kAll = all_chunks(kForm, kChunks);
  static constexpr int kGroups = kGroupsOfStep, kStep = kGroups * 8, kBlocks = kBlocksWanted;
  static constexpr int kAhead = kStepsAhead;
};

// -- panels -----------------------------------------------------------------------------------------------------------

/// A lane's part of a weight: 8 columns of rows from y to end, two of each group. A lane beyond the columns has others'
/// to load and no rows to store.
struct Panel {
  const char *base;
  char *out;
  int base_row, out_row;
  int g, q, x, y, end, last;  // last: row of the weight

  __device__ Panel(const PanelTarget &target, int number, int rows)
      : g(static_cast<int>(threadIdx.x % 32) / 4), q(static_cast<int>(threadIdx.x % 4)) {
    const int down = divide(number, target.strips);
    const int column = (number - down * static_cast<int>(target.strips.value)) * kPanelColumns + g * kLaneColumns;
    x = min(column, target.columns - kLaneColumns);
    y = down * rows;
    end = column < target.columns ? min(y + rows, target.rows) : 0;
    last = target.rows - 1;
    base = static_cast<const char *>(target.base) + x * 2;
    out = static_cast<char *>(target.out) + x * 2;
    base_row = target.base_row, out_row = target.out_row;
  }

  /// The row, or what stands in for one that is not there.
  __device__ int row(int number) const { return min(number, last); }
};

// -- factors ----------------------------------------------------------------------------------------------------------

/// Of a group of 8 rows, in the fragments of mma's operand C: of m tile j columns 2 j (0, 1) and 2 j + 1 (2, 3), rows
/// 2 q (0, 2) and 2 q + 1 (1, 3).
struct Sums {
  float value[kMTiles][4];
};

/// 16 ranks of a lane's columns: first as they are in memory, a row of 8 for each of its ranks, then as operand A of
/// mma.
struct Columns {
  uint4 word[kMTiles];

  __device__ void load(const PanelProduct &product, int first, int x) {
    const char *data = static_cast<const char *>(product.column.data) + x * 2;
#pragma unroll
    for (int r = 0; r < kLaneRanks; ++r) {
      const auto *from = reinterpret_cast<const uint4 *>(data + std::int64_t{first + r} * product.column.step);
      word[r] = first + r < product.rank ? __ldg(from) : make_uint4(0, 0, 0, 0);
    }
  }

  __device__ void make_operand() {
    const uint4 rank[kLaneRanks] = {word[0], word[1], word[2], word[3]};
    const auto tile = [&](std::uint32_t uint4::*columns) {
      constexpr unsigned kLow = 0x5410, kHigh = 0x7632;
      const std::uint32_t a = rank[0].*columns, b = rank[1].*columns, c = rank[2].*columns, d = rank[3].*columns;
      return make_uint4(__byte_perm(a, b, kLow), __byte_perm(a, b, kHigh), __byte_perm(c, d, kLow),
                        __byte_perm(c, d, kHigh));
    };
    word[0] = tile(&uint4::x), word[1] = tile(&uint4::y), word[2] = tile(&uint4::z), word[3] = tile(&uint4::w);
  }
};

/// What a lane meets in a Kronecker product, step after step: the block that a step begins in, and the one below it.
template <typename K>
class Blocks {
 public:
  Blocks() = default;
  __device__ Blocks(const PanelLeft &left, const Panel &panel)
      : left_(static_cast<const char *>(left.data)), left_row_(left.row), rows_(static_cast<int>(left.rows.value)) {
    const int across = divide(panel.x, left.columns), down = divide(panel.y + left.row_begin, left.rows);
    left_ += std::int64_t{down} * left.row + std::int64_t{across} * left.column;
    column_ = panel.x - across * static_cast<int>(left.columns.value);
    lower_row_ = (down + 1) * rows_ - left.row_begin;
    load(panel);
  }

  /// On to the step from y on.
  __device__ void go_to(const Panel &panel, int y) {
    if (y >= lower_row_) lower_row_ += rows_, left_ += left_row_;
    load(panel);
  }

  /// The lane's first column in its block.
  __device__ int column() const { return column_; }

  /// A row of this step or the next one in its block.
  __device__ int row(int y) const {
    const int row = y - lower_row_;
    return row < 0 ? row + rows_ : row < rows_ ? row : row - rows_;
  }

  /// The element of the left half for a row of this step.
  __device__ float left(int y) const {
    const std::uint32_t word = y < lower_row_ ? upper_ : lower_;
    return std::conditional_t<K::kBf16Factors, Bf16, F16>::get(&word, 0).x;
  }

 private:
  static_assert(!K::kKronecker || K::kStep <= kPanelBlockRows);

  __device__ void load(const Panel &panel) {
    const auto at = [](const char *from) { return __ldg(reinterpret_cast<const std::uint16_t *>(from)); };
    upper_ = at(left_);
    lower_ = at(lower_row_ <= panel.last ? left_ + left_row_ : left_);
  }

  const char *left_;  // of the block that the step begins in
  int left_row_, rows_, column_;
  int lower_row_;  // the first of the block below
  std::uint32_t upper_, lower_;
};

/// What a warp adds to its columns: the column factors of its panel, and the row factors of a step.
template <typename K>
class Products {
 public:
  __device__ Products(const PanelTarget &target, const Panel &panel) {
    int x = panel.x;
    if constexpr (K::kKronecker) {
      blocks_ = Blocks<K>(target.left, panel);
      x = blocks_.column();
    }
#pragma unroll
    for (int p = 0; p < kProducts; ++p) {
      const PanelProduct &product = target.product[p];
      rank_[p] = product.rank;
      row_step_[p] = product.row.step;
      rows_data_[p] = static_cast<const char *>(product.row.data);
    }
#pragma unroll
    for (int c = 0; c < K::kAll; ++c)
      columns_[c].load(target.product[c / K::kChunks], rank_of<K>(c % K::kChunks, panel.q), x);
#pragma unroll
    for (int n = 0; n < K::kGroups; ++n) load_rows(panel, n, panel.y + 8 * n);
#pragma unroll
    for (int c = 0; c < K::kAll; ++c) columns_[c].make_operand();
  }

  /// Of a group of rows from y on.
  __device__ void load_rows(const Panel &panel, int group, int y) {
    int row = panel.row(y + panel.g);
    if constexpr (K::kKronecker) row = blocks_.row(row);
#pragma unroll
    for (int c = 0; c < K::kAll; c += kTogether) {
      const int p = c / K::kChunks, rank = rank_of<K>(c % K::kChunks, panel.q);
      const char *from = rows_data_[p] + std::int64_t{row} * row_step_[p] + rank * 2;
      const bool inside = rank < rank_[p];
      if constexpr (kTogether == 1) {
        rows_[c][group] = inside ? __ldg(reinterpret_cast<const uint2 *>(from)) : make_uint2(0, 0);
      } else {
        const uint4 two = inside ? __ldg(reinterpret_cast<const uint4 *>(from)) : make_uint4(0, 0, 0, 0);
        rows_[c][group] = make_uint2(two.x, two.y), rows_[c + 1][group] = make_uint2(two.z, two.w);
      }
    }
  }

  /// On to the step from y on, whose rows have been loaded.
  __device__ void go_to(const Panel &panel, int y) {
    if constexpr (K::kKronecker) blocks_.go_to(panel, y);
  }

  __device__ Sums multiply(int group) const {
    Sums sums = product<0>(group);
    if constexpr (K::kHadamard) {
      const Sums other = product<K::kChunks>(group);
#pragma unroll
      for (int j = 0; j < kMTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums.value[j][i] *= other.value[j][i];
    }
    return sums;
  }

  /// What the sums of row y are multiplied by.
  __device__ float scale_of(int y, float scale) const {
    if constexpr (K::kKronecker) scale *= blocks_.left(y);
    return scale;
  }

 private:
  static constexpr int kProducts = K::kHadamard ? 2 : 1, kTogether = K::kChunks == 1 ? 1 : 2;

  /// P of the chunks from kFirst on; beyond its ranks they are 0.
  template <int kFirst>
  __device__ Sums product(int group) const {
    Sums sums;
#pragma unroll
    for (int j = 0; j < kMTiles; ++j)
      cuda::multiply<K::kBf16Factors, true>(sums.value[j], columns_[kFirst].word[j], rows_[kFirst][group]);
#pragma unroll
    for (int c = kFirst + 1; c < kFirst + K::kChunks; ++c)
#pragma unroll
      for (int j = 0; j < kMTiles; ++j)
        cuda::multiply<K::kBf16Factors>(sums.value[j], columns_[c].word[j], rows_[c][group]);
    return sums;
  }

  int rank_[kProducts], row_step_[kProducts];
  const char *rows_data_[kProducts];
  Columns columns_[K::kAll];
  uint2 rows_[K::kAll][K::kGroups];
  Blocks<K> blocks_;
};

// -- weights ----------------------------------------------------------------------------------------------------------

/// A lane's two rows of a group as they are in memory.
struct Words {
  uint4 row[2];

  __device__ void load(const Panel &panel, int y) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t place = panel.row(y + 2 * panel.q + half);
      row[half] = load_vector(reinterpret_cast<const uint4 *>(panel.base + place * panel.base_row));
    }
  }

  __device__ void store(const Panel &panel, int y) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t place = y + 2 * panel.q + half;
      if (place < panel.end) store_vector(reinterpret_cast<uint4 *>(panel.out + place * panel.out_row), row[half]);
    }
  }

  template <typename Type, bool kMerges>
  __device__ void add(const Sums &sums, float2 scales) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = half ? scales.y : scales.x;
      std::uint32_t word[kMTiles] = {row[half].x, row[half].y, row[half].z, row[half].w};
#pragma unroll
      for (int j = 0; j < kMTiles; ++j) {
        const float2 base = kMerges ? Type::get(word, j) : make_float2(0.0f, 0.0f);
        Type::put(word, j,
                  make_float2(fmaf(scale, sums.value[j][half], base.x), fmaf(scale, sums.value[j][2 + half], base.y)));
      }
      row[half] = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
};

/// What a panel has of the base, step after step: each group of rows is taken, and that of a later step asked for. With
/// few warps on a multiprocessor it waits in shared memory, each lane's in places of its own, so nobody waits for
/// others; otherwise it is in registers.
template <typename K, bool kInRegisters = K::kAhead == 1>
class Base {
 public:
  __device__ explicit Base(const Panel &panel) {
#pragma unroll
    for (int n = 0; n < K::kGroups; ++n) fetch(panel, n, panel.y);
  }
  __device__ Words take(int group) const { return words_[group]; }
  /// What comes after the step from y on.
  __device__ void fetch_after(const Panel &panel, int group, int y) {
    if (__any_sync(~0u, y + K::kStep < panel.end)) fetch(panel, group, y + K::kStep);
  }

 private:
  __device__ void fetch(const Panel &panel, int group, int y) {
    if (K::kMerges) words_[group].load(panel, y + 8 * group);
  }

  Words words_[K::kGroups];
};

template <typename K>
class Base<K, false> {
 public:
  __device__ explicit Base(const Panel &panel)
      : first_(static_cast<std::uint32_t>(__cvta_generic_to_shared(places_of_block())) + threadIdx.x * kBytes) {
#pragma unroll
    for (int step = 0; step < K::kAhead; ++step)
#pragma unroll
      for (int n = 0; n < K::kGroups; ++n) fetch(panel, n, panel.y + step * K::kStep);
  }

  __device__ Words take(int group) const {
    asm volatile("cp.async.wait_group %0;" ::"n"(K::kAhead * K::kGroups - 1) : "memory");
    Words words;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 &v = words.row[half];
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                   : "r"(place(group, half))
                   : "memory");
    }
    return words;
  }
  __device__ void fetch_after(const Panel &panel, int group, int y) { fetch(panel, group, y + K::kAhead * K::kStep); }

 private:
  static constexpr int kBytes = 16;

  static __device__ uint4 *places_of_block() {
    __shared__ uint4 places[K::kAhead * K::kGroups * 2 * kThreads];
    return places;
  }
  __device__ std::uint32_t place(int group, int half) const {
    return first_ + ((step_ * K::kGroups + group) * 2 + half) * (kThreads * kBytes);
  }

  /// Into the places of the step that has been taken.
  __device__ void fetch(const Panel &panel, int group, int y) {
    if (y < panel.end)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t row = panel.row(y + 8 * group + 2 * panel.q + half);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place(group, half)),
                     "l"(panel.base + row * panel.base_row)
                     : "memory");
      }
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (group == K::kGroups - 1) step_ = step_ + 1 < K::kAhead ? step_ + 1 : 0;
  }

  std::uint32_t first_;
  int step_ = 0;
};

/// What a multiplier of 0 leaves: base's bits, or no difference.
__device__ inline void keep(const Panel &panel, bool merges) {
  if (merges && panel.base == panel.out) return;
#pragma unroll 1
  for (int y = panel.y; y < panel.end; y += 8) {
    Words words = {};
    if (merges) words.load(panel, y);
    words.store(panel, y);
  }
}

template <typename K>
__device__ void merge(const Panel &panel, Products<K> &products, Base<K> &base, float scale, lyc_dtype dtype) {
#pragma unroll 1
  for (int y = panel.y;;) {
    const int next = y + K::kStep;
    const bool more = __any_sync(~0u, next < panel.end);
#pragma unroll
    for (int n = 0; n < K::kGroups; ++n) {
      const Sums sums = products.multiply(n);
      if (more) products.load_rows(panel, n, next + 8 * n);
      const int first = y + 8 * n + 2 * panel.q;
      const float2 scales = make_float2(products.scale_of(first, scale), products.scale_of(first + 1, scale));
      Words words = base.take(n);
      with_type<false>(dtype, [&](auto type) { words.template add<decltype(type), K::kMerges>(sums, scales); });
      words.store(panel, y + 8 * n);
      base.fetch_after(panel, n, y);
    }
    if (!more) return;
    products.go_to(panel, next);
    y = next;
  }
}

template <typename K>
__device__ void work_on(const PanelRun &run, const PanelTarget &target, int number) {
  const Panel panel(target, number, run.rows);
  if (panel.y > panel.last) return;
  Base<K> base(panel);  // before there is anything else to wait for
  const PanelProduct &product = target.product[0];
  const float multiplier = multiplier_at(run.multipliers, product.multiplier_index);
  if (multiplier == 0.0f) return keep(panel, K::kMerges);
  Products<K> products(target, panel);
  float scale = multiplier * product.coefficient * element(product.scalar, 0);
  if (run.op == ops::WeightOp::kUnmerge) scale = -scale;
  merge<K>(panel, products, base, scale, target.bf16 ? LYC_DTYPE_BF16 : LYC_DTYPE_F16);
}

__host__ __device__ inline bool travels_alone(const PanelRun &run) { return run.blocks.count == 1; }

template <typename K>
__global__ void __launch_bounds__(kThreads, K::kBlocks) panel_kernel(const __grid_constant__ PanelRun run) {
  begin_kernel();
  PanelTarget target;
  std::uint32_t block = blockIdx.x;
  if (travels_alone(run)) {
    target = run.only;  // came with the launch
  } else {
    const int index = find_entry(run.blocks.first, run.blocks.count, block);
    block -= run.blocks.first[index];
    target = run.targets[index];
  }
  work_on<K>(run, target, static_cast<int>(block * kPanelWarps + threadIdx.x / 32));
}

using Kernel = void (*)(PanelRun);

template <std::size_t kIndex, bool kAlone, bool kMerges>
constexpr Kernel instance() {
  constexpr PanelKind kKind = kPanelKinds[kIndex];
  constexpr Pace kPace = pace(kKind.form, kKind.chunks, kAlone, kMerges);
  return panel_kernel<
      Kind<kKind.form, kKind.chunks, kKind.bf16_factors, kMerges, kPace.groups, kPace.blocks, kPace.ahead>>;
}

template <std::size_t... kIndex>
Kernel kernel_at(std::size_t index, bool alone, bool merges, std::index_sequence<kIndex...>) {
  constexpr Kernel kKernels[][2][2] = {{{instance<kIndex, false, false>(), instance<kIndex, false, true>()},
                                        {instance<kIndex, true, false>(), instance<kIndex, true, true>()}}...};
  return kKernels[index][alone ? 1 : 0][merges ? 1 : 0];
}

Kernel kernel_of(const PanelKind &kind, bool alone, bool merges) {
  const auto index = static_cast<std::size_t>(std::find(std::begin(kPanelKinds), std::end(kPanelKinds), kind) -
                                              std::begin(kPanelKinds));
  return kernel_at(index, alone, merges, std::make_index_sequence<std::size(kPanelKinds)>());
}

/// Rows of a panel of a target alone.
int rows_alone(const PanelKind &kind, const PanelRun &run, bool merges) {
  const Pace of_kind = pace(kind.form, kind.chunks, true, merges);
  const int step = of_kind.groups * 8;
  if (of_kind.steps > 0) return of_kind.steps * step;
  const int resident = run.multiprocessors * of_kind.blocks * kPanelWarps;
  const int panels = std::max(1, resident / static_cast<int>(run.only.strips.value)), rows = run.only.rows;
  return ((rows + panels - 1) / panels + step - 1) / step * step;
}

}  // namespace

cudaError_t launch_panels(const PanelKind &kind, const PanelRun &run, const Launch &on) {
  const bool alone = travels_alone(run), merges = run.op != ops::WeightOp::kDiff;
  PanelRun now = run;
  unsigned blocks = run.blocks.pieces;
  now.rows = alone ? rows_alone(kind, run, merges) : panel_rows(kind);
  if (alone) {
    const int panels = (run.only.rows + now.rows - 1) / now.rows * static_cast<int>(run.only.strips.value);
    blocks = static_cast<unsigned>((panels + kPanelWarps - 1) / kPanelWarps);
  }
  void *arguments[] = {&now};
  const auto *kernel = reinterpret_cast<const void *>(kernel_of(kind, alone, merges));
  return launch_kernel(kernel, blocks, kThreads, 0, on, arguments);
}

}  // namespace lyc::cuda
