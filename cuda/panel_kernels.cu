// out[y, x] = round(base[y, x] + s * sum_r row[y, r] * column[r, x]),  s = multiplier * coefficient * scalar, or with
// s * P o Q for two such products P and Q
//
// for 16-bit weights in contiguous rows, 16-bit factors and few ranks. out may be base.
//
// Work.     A warp takes a panel, 64 columns of a few rows, and has all of it in registers at once: what it reads of
// the
//           base is on its way while factors are. It shares nothing but the caches, and neither waits for others nor
//           goes through shared memory. Panels follow each other in the order of memory; blocks end, and the next ones
//           go on from there.
// Traffic.  base read once, out written once, 16 bytes for each thread and access: bound by DRAM, which likes that
//           order. Factors come from the caches: rank / (rows of a panel) of the base's bytes along columns, rank / 256
//           along rows, which the warps of a block share.
// Numerics. Tensor cores multiply 16-bit factors exactly and sum in float32. One rounding, at the store. A product
// whose
//           multiplier is 0 is not touched: out gets base's bits.
//
// A panel is transposed in the fragments of mma.m16n8k16: m runs along columns, n along rows, k along ranks. Which
// column an m stands for is ours to choose, so that lane (g, q) = (lane / 4, lane % 4) has 8 neighbours, 16 bytes, and
// the eight g make up a row's 128 bytes. Ranks are dealt out the same way: q has ranks 4 q to 4 q + 3 of each 16.
#include "device.cuh"
#include "panel_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kThreads = kPanelWarps * 32;
constexpr int kLaneColumns = 8;              // that a lane has in each of its rows
constexpr int kMTiles = kLaneColumns / 2;    // a lane has columns 2 j and 2 j + 1 of m tile j
constexpr int kLaneRanks = kChunkRanks / 4;  // of a chunk

/// An instance's properties as a type.
template <StreamForm kForm, int kMostChunks, bool kBf16, bool kIsAlone, bool kWithBase>
struct Kind {
  static constexpr bool kAlone = kIsAlone;
  static constexpr bool kHadamard = kForm == StreamForm::kHadamard, kBf16Factors = kBf16, kMerges = kWithBase;
  static constexpr int kChunks = kMostChunks, kAll = (kHadamard ? 2 : 1) * kChunks;
  static constexpr int kRows = panel_rows(kForm, kChunks, kAlone, kMerges), kGroups = kRows / 8;  // n tiles
  // Wanted on a multiprocessor.
  static constexpr int kBlocks = kAll > 1 ? (kMerges ? 4 : 5) : kMerges && !kAlone ? 5 : 8;
};

/// A panel, and where a lane is in it: its columns from `x` on, in rows y + 8 group + 2 q + half.
struct Panel {
  int g, q, x, y;
  bool inside;  // what is not can be loaded, but not stored

  __device__ Panel(const PanelTarget &target, int number, int rows)
      : g(static_cast<int>(threadIdx.x % 32) / 4), q(static_cast<int>(threadIdx.x % 4)) {
    const int down = divide(number, target.strips);
    const int column = (number - down * static_cast<int>(target.strips.value)) * kPanelColumns + g * kLaneColumns;
    inside = column < target.columns;
    x = min(column, target.columns - kLaneColumns);
    y = down * rows;
  }
};

// -- factors ----------------------------------------------------------------------------------------------------------

__device__ inline std::uint32_t load_16(const char *from) {
  return __ldg(reinterpret_cast<const std::uint16_t *>(from));
}

/// A lane's ranks in one line, from `rank` on; 0 beyond the last rank.
__device__ inline uint2 load_ranks(const PanelFactor &factor, int rank_count, int rank, int line) {
  const char *data = static_cast<const char *>(factor.data);
  if (factor.order == PanelOrder::kRanks) {
    const auto *from = reinterpret_cast<const uint2 *>(data + std::int64_t{line} * factor.step + rank * 2);
    return rank < rank_count ? __ldg(from) : make_uint2(0, 0);
  }
  std::uint32_t value[kLaneRanks];
#pragma unroll
  for (int r = 0; r < kLaneRanks; ++r)
    value[r] = rank + r < rank_count ? load_16(data + std::int64_t{rank + r} * factor.step + line * 2) : 0;
  return make_uint2(value[0] | value[1] << 16, value[2] | value[3] << 16);
}

/// Operand A of mma: 16 ranks of a panel's columns.
struct Columns {
  uint4 m_tile[kMTiles];

  __device__ void load(const PanelProduct &product, int rank, const Panel &panel) {
    if (product.column.order == PanelOrder::kLines)
      load_lines(product, rank, panel);
    else
      load_by_ranks(product, rank, panel);
  }

 private:
  __device__ void load_lines(const PanelProduct &product, int first, const Panel &panel) {
    std::uint32_t word[kLaneRanks][kMTiles];  // two columns of a rank
    const char *data = static_cast<const char *>(product.column.data) + panel.x * 2;
#pragma unroll
    for (int r = 0; r < kLaneRanks; ++r) {
      const int rank = first + r;
      const auto *from = reinterpret_cast<const uint4 *>(data + std::int64_t{rank} * product.column.step);
      const uint4 v = rank < product.rank ? __ldg(from) : make_uint4(0, 0, 0, 0);
      word[r][0] = v.x, word[r][1] = v.y, word[r][2] = v.z, word[r][3] = v.w;
    }
#pragma unroll
    for (int j = 0; j < kMTiles; ++j) {
      constexpr unsigned kLow = 0x5410, kHigh = 0x7632;
      m_tile[j] = make_uint4(__byte_perm(word[0][j], word[1][j], kLow), __byte_perm(word[0][j], word[1][j], kHigh),
                             __byte_perm(word[2][j], word[3][j], kLow), __byte_perm(word[2][j], word[3][j], kHigh));
    }
  }

  __device__ void load_by_ranks(const PanelProduct &product, int rank, const Panel &panel) {
    const auto ranks = [&](int c) { return load_ranks(product.column, product.rank, rank, panel.x + c); };
#pragma unroll
    for (int j = 0; j < kMTiles; ++j) {
      const uint2 first = ranks(2 * j), second = ranks(2 * j + 1);
      m_tile[j] = make_uint4(first.x, second.x, first.y, second.y);
    }
  }
};

/// Of a group of 8 rows, in the fragments of mma's operand C: of m tile j columns 2 j (0, 1) and 2 j + 1 (2, 3), rows
/// 2 q (0, 2) and 2 q + 1 (1, 3).
struct Sums {
  float value[kMTiles][4];

  template <bool kBf16, bool kFirst>
  __device__ void multiply(const Columns &columns, uint2 row) {
#pragma unroll
    for (int j = 0; j < kMTiles; ++j) cuda::multiply<kBf16, kFirst>(value[j], columns.m_tile[j], row);
  }
};

/// The factors of a panel: groups of rows are multiplied when they are wanted.
template <typename K>
struct Products {
  Columns columns[K::kAll];
  uint2 rows[K::kAll][K::kGroups];

  __device__ Products(const PanelTarget &target, const Panel &panel) {
#pragma unroll
    for (int c = 0; c < K::kAll; ++c) {
      const PanelProduct &product = target.product[c / K::kChunks];
      const int rank = c % K::kChunks * kChunkRanks + panel.q * kLaneRanks;
#pragma unroll
      for (int n = 0; n < K::kGroups; ++n)
        rows[c][n] = load_ranks(product.row, product.rank, rank, min(panel.y + 8 * n + panel.g, target.rows - 1));
      columns[c].load(product, rank, panel);
    }
  }

  __device__ Sums group(int n) const {
    Sums sums = product<0>(n);
    if constexpr (K::kHadamard) {
      const Sums other = product<K::kChunks>(n);
#pragma unroll
      for (int j = 0; j < kMTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums.value[j][i] *= other.value[j][i];
    }
    return sums;
  }

 private:
  template <int kFirst>
  __device__ Sums product(int n) const {
    Sums sums;
    sums.multiply<K::kBf16Factors, true>(columns[kFirst], rows[kFirst][n]);
#pragma unroll
    for (int c = kFirst + 1; c < kFirst + K::kChunks; ++c)
      sums.multiply<K::kBf16Factors, false>(columns[c], rows[c][n]);
    return sums;
  }
};

// -- panels -----------------------------------------------------------------------------------------------------------

/// A lane's two rows of each group as they are in memory.
template <typename K>
struct Words {
  uint4 row[K::kGroups][2];

  __device__ void load(const PanelTarget &target, const Panel &panel) {
    const char *from = static_cast<const char *>(target.base) + panel.x * 2;
#pragma unroll
    for (int n = 0; n < K::kGroups; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t y = min(panel.y + 8 * n + 2 * panel.q + half, target.rows - 1);
        row[n][half] = *reinterpret_cast<const uint4 *>(from + y * target.base_row);
      }
  }

  __device__ void store(const PanelTarget &target, const Panel &panel, int n) const {
    char *to = static_cast<char *>(target.out) + panel.x * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t y = panel.y + 8 * n + 2 * panel.q + half;
      if (panel.inside && y < target.rows) *reinterpret_cast<uint4 *>(to + y * target.out_row) = row[n][half];
    }
  }

  template <typename Type>
  __device__ void add(int n, const Sums &sums, float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint32_t word[kMTiles] = {row[n][half].x, row[n][half].y, row[n][half].z, row[n][half].w};
#pragma unroll
      for (int j = 0; j < kMTiles; ++j) {
        float2 value = make_float2(scale * sums.value[j][half], scale * sums.value[j][2 + half]);
        if constexpr (K::kMerges) {
          const float2 base = Type::get(word, j);
          value = make_float2(base.x + value.x, base.y + value.y);
        }
        Type::put(word, j, value);
      }
      row[n][half] = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
};

template <typename K>
__device__ void merge(const PanelTarget &target, const Panel &panel, Words<K> &words, float scale) {
  const Products<K> products(target, panel);
  with_type<false>(target.bf16 ? LYC_DTYPE_BF16 : LYC_DTYPE_F16, [&](auto type) {
#pragma unroll
    for (int n = 0; n < K::kGroups; ++n) {
      words.template add<decltype(type)>(n, products.group(n), scale);
      words.store(target, panel, n);
    }
  });
}

template <typename K>
__device__ void work_on(const PanelRun &run, const PanelTarget &target, int number) {
  const Panel panel(target, number, K::kRows);
  if (panel.y >= target.rows) return;
  Words<K> words = {};
  if (K::kMerges) words.load(target, panel);  // before there is anything else to wait for
  const PanelProduct &product = target.product[0];
  const float multiplier = multiplier_at(run.multipliers, product.multiplier_index);
  if (multiplier != 0.0f) {
    const float scale = multiplier * product.coefficient * element(product.scalar, 0);
    return merge<K>(target, panel, words, run.op == ops::WeightOp::kUnmerge ? -scale : scale);
  }
  if (K::kMerges && target.base == target.out) return;
#pragma unroll
  for (int n = 0; n < K::kGroups; ++n) words.store(target, panel, n);
}

template <typename K>
__global__ void __launch_bounds__(kThreads, K::kBlocks) panel_kernel(const __grid_constant__ PanelRun run) {
  begin_kernel();
  const int warp = static_cast<int>(threadIdx.x / 32);
  if constexpr (K::kAlone) {  // all that it takes came with the launch
    work_on<K>(run, run.only, static_cast<int>(blockIdx.x) * kPanelWarps + warp);
  } else {
    const int index = find_entry(run.blocks.first, run.blocks.count, blockIdx.x);
    const PanelTarget &target = run.targets[index];
    work_on<K>(run, target, static_cast<int>(blockIdx.x - run.blocks.first[index]) * kPanelWarps + warp);
  }
}

using Kernel = void (*)(PanelRun);

struct Instance {
  PanelKind kind;
  Kernel kernel[2][2];  // for several targets or one alone; a difference or a merge
};

template <StreamForm kForm, int kChunks, bool kBf16>
constexpr Instance instance() {
  return {{kForm, kChunks, kBf16},
          {{panel_kernel<Kind<kForm, kChunks, kBf16, false, false>>,
            panel_kernel<Kind<kForm, kChunks, kBf16, false, true>>},
           {panel_kernel<Kind<kForm, kChunks, kBf16, true, false>>,
            panel_kernel<Kind<kForm, kChunks, kBf16, true, true>>}}};
}

// What panel_kind() makes: ranks of 16 and 32, halves of a Hadamard product of 16.
constexpr Instance kInstances[] = {
    instance<StreamForm::kSingle, 1, true>(),   instance<StreamForm::kSingle, 1, false>(),
    instance<StreamForm::kSingle, 2, true>(),   instance<StreamForm::kSingle, 2, false>(),
    instance<StreamForm::kHadamard, 1, true>(), instance<StreamForm::kHadamard, 1, false>(),
};

}  // namespace

cudaError_t launch_panels(const PanelKind &kind, const PanelRun &run, const Launch &on) {
  const Instance *instance = kInstances;
  while (!(instance->kind == kind)) ++instance;  // kinds are made of what is here
  const bool alone = run.blocks.count == 1, merges = run.op != ops::WeightOp::kDiff;
  const auto rows = static_cast<unsigned>(panel_rows(kind.form, kind.chunks, alone, merges));
  const unsigned panels = (static_cast<unsigned>(run.only.rows) + rows - 1) / rows * run.only.strips.value;
  const unsigned blocks = alone ? (panels + kPanelWarps - 1) / kPanelWarps : run.blocks.pieces;
  void *arguments[] = {const_cast<PanelRun *>(&run)};
  return launch_kernel(reinterpret_cast<const void *>(instance->kernel[alone][merges]), blocks, kThreads, 0, on,
                       arguments);
}

}  // namespace lyc::cuda
