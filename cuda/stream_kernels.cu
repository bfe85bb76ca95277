// out = round(base + sum over terms of s * P), or s * P o Q, where a product P is row factor x column factor: the work
// of weight_kernels.cu, for contiguous 16-bit weights on GPUs that have a copy engine (Hopper and later).
//
// Work.     A block walks down a strip of 256 columns, 32 rows at a time. One thread of its last warp feeds a ring of
//           slots in shared memory by bulk tensor copies and sends finished slots back to memory; the other warps take
//           64 columns each, multiply on the tensor cores, and change a slot's tile where it lies. Tiles are dealt out
//           evenly, whatever weights they belong to; where a strip begins, its column factors come through the ring,
//           too, and stay in registers.
// Traffic.  base read once, out written once, row factors once a strip (rank / 256 of the base), column factors once.
//           What limits is memory: three blocks on a multiprocessor keep some 100 KB on the way.
// Numerics. Tensor cores multiply 16-bit factors exactly and sum in float32; one rounding, at the store. A term whose
//           multiplier is 0 adds nothing, not even NaN; if that is all of them, tiles pass unchanged.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "stream_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr int kSlots = 4;
constexpr int kBoxes = kStreamColumns / kBoxColumns;
constexpr int kRowBytes = kBoxColumns * 2;
constexpr int kBoxBytes = kStreamRows * kRowBytes;
constexpr int kTileBytes = kBoxes * kBoxBytes;
constexpr int kRowChunkBytes = kStreamRows * kChunkRanks * 2;
constexpr int kColumnChunkBytes = kBoxColumns * kChunkRanks * 2;  // of one box
constexpr int kSwizzleAlignment = 1024;

/// Computing warps, which share a tile's columns: as many as it takes to have factors and sums in registers.
template <int kChunks, StreamForm kForm>
constexpr int kWarps = kChunks == 4 || kForm == StreamForm::kHadamard ? 8 : 4;
template <int kChunks, StreamForm kForm>
constexpr int kThreads = (kWarps<kChunks, kForm> + 1) * 32;

template <int kChunks>
constexpr int kSlotBytes = kTileBytes + kChunks *kRowChunkBytes;
/// Column factors come in slots of their own, two chunks in each.
constexpr int kColumnSlotChunks = 2;
template <int kChunks>
constexpr int kColumnSlots = (kChunks + kColumnSlotChunks - 1) / kColumnSlotChunks;
static_assert(kColumnSlotChunks * kBoxes * kColumnChunkBytes <= kTileBytes);

struct Parameters {
  StreamTarget only;  // where the table has no targets
  StreamTable table;
  ops::WeightOp op;
  Multipliers multipliers;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// -- the copy engine --------------------------------------------------------------------------------------------------

__device__ std::uint32_t shared_address(const void *pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// A barrier in shared memory that counts arrivals and bytes.
struct Barrier {
  std::uint32_t address;

  __device__ void init(int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
  }
  __device__ void arrive() const { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory"); }
  __device__ void arrive_expecting(int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
  }
  __device__ void wait(unsigned round) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(address),
        "r"(round & 1u)
        : "memory");
  }
};

__device__ void copy_in(std::uint32_t to, const TensorMap &map, int x, int y, Barrier barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier.address)
      : "memory");
}

__device__ void copy_out(const TensorMap &map, int x, int y, std::uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
               "r"(from), "r"(x), "r"(y)
               : "memory");
}

__device__ void commit_copies() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int kPending>
__device__ void wait_until_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
__device__ void wait_for_copies() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// -- the order of the work --------------------------------------------------------------------------------------------

/// What a block does, slot after slot: where a strip begins its column factors, then its tiles.
template <int kChunks>
class Cursor {
 public:
  __device__ explicit Cursor(const Parameters &p) : p_(p) {
    const StreamTable &table = p.table;
    const std::uint64_t tiles = table.tile_count;
    tile_ = static_cast<std::uint32_t>(tiles * blockIdx.x / gridDim.x);
    end_ = static_cast<std::uint32_t>(tiles * (blockIdx.x + 1) / gridDim.x);
    int first = 0, last = table.target_count - 1;  // the target is among these
    while (first < last) {
      const int middle = (first + last + 1) / 2;
      if (table.first_tile[middle] <= tile_)
        first = middle;
      else
        last = middle - 1;
    }
    enter(first, static_cast<int>(tile_ - (table.targets ? table.first_tile[first] : 0)));
  }

  __device__ bool at_end() const { return tile_ == end_; }
  __device__ bool on_columns() const { return column_slot_ < kColumnSlots<kChunks>; }
  __device__ int column_slot() const { return column_slot_; }
  /// Only its maps are for use: what else there is to know was read on entering.
  __device__ const StreamTarget &target() const { return *target_; }
  __device__ int chunk_count() const { return chunk_count_; }
  __device__ const StreamChunk &chunk(int c) const { return chunks_[c]; }
  __device__ int index() const { return index_; }
  __device__ int x() const { return strip_ * kStreamColumns; }
  __device__ int y() const { return row_tile_ * kStreamRows; }
  /// Boxes of the strip that have columns.
  __device__ int boxes() const { return min(kBoxes, (columns_ - x() + kBoxColumns - 1) / kBoxColumns); }

  __device__ void next() {
    if (on_columns()) {
      ++column_slot_;
      return;
    }
    ++tile_;
    if (++row_tile_ < row_tiles_) return;
    row_tile_ = column_slot_ = 0;
    if (++strip_ < strips_ || at_end()) return;
    enter(index_ + 1, 0);
  }

 private:
  __device__ void enter(int index, int local) {
    index_ = index;
    // Not one load by either address: that of a parameter alone is as near as a register.
    if (p_.table.targets)
      read(p_.table.targets[index]);
    else
      read(p_.only);
    strip_ = local / row_tiles_;
    row_tile_ = local % row_tiles_;
    column_slot_ = 0;
  }

  __device__ void read(const StreamTarget &target) {
    target_ = &target;
    columns_ = target.columns;
    strips_ = target.strips;
    row_tiles_ = target.row_tiles;
    chunk_count_ = target.chunk_count;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) chunks_[c] = target.chunks[c];
  }

  const Parameters &p_;
  const StreamTarget *target_;
  std::uint32_t tile_, end_;
  int index_, columns_, strips_, row_tiles_, chunk_count_, strip_, row_tile_, column_slot_;
  StreamChunk chunks_[kChunks];
};

struct Ring {
  char *slots;
  std::uint64_t *barriers;  // kSlots for full ones, then kSlots for those that are computed

  __device__ char *slot(unsigned item, int bytes) const { return slots + item % kSlots * bytes; }
  __device__ Barrier full(unsigned item) const { return {shared_address(barriers + item % kSlots)}; }
  __device__ Barrier computed(unsigned item) const { return {shared_address(barriers + kSlots + item % kSlots)}; }
};

// -- the thread that copies -------------------------------------------------------------------------------------------

template <int kChunks>
__device__ void load_columns(const Ring &ring, unsigned item, const Cursor<kChunks> &at) {
  const int first = at.column_slot() * kColumnSlotChunks, boxes = at.boxes();
  const int chunks = max(0, min(kColumnSlotChunks, at.chunk_count() - first));
  const Barrier full = ring.full(item);
  full.arrive_expecting(chunks * boxes * kColumnChunkBytes);
  const std::uint32_t to = shared_address(ring.slot(item, kSlotBytes<kChunks>));
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (c < first || c >= first + chunks) continue;
    const StreamChunk &chunk = at.chunk(c);
    const TensorMap &map = at.target().column[chunk.product];
    const int rank = chunk.first_rank * kChunkRanks;
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      if (box >= boxes) continue;
      const int x = at.x() + box * kBoxColumns;
      copy_in(to + ((c - first) * kBoxes + box) * kColumnChunkBytes, map, chunk.column_transposed ? rank : x,
              chunk.column_transposed ? x : rank, full);
    }
  }
}

template <int kChunks>
__device__ void load_tile(const Ring &ring, unsigned item, const Cursor<kChunks> &at, bool has_base) {
  const int boxes = has_base ? at.boxes() : 0, chunks = at.chunk_count();
  const Barrier full = ring.full(item);
  full.arrive_expecting(boxes * kBoxBytes + chunks * kRowChunkBytes);
  const std::uint32_t to = shared_address(ring.slot(item, kSlotBytes<kChunks>));
#pragma unroll
  for (int box = 0; box < kBoxes; ++box)
    if (box < boxes) copy_in(to + box * kBoxBytes, at.target().base, at.x() + box * kBoxColumns, at.y(), full);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (c >= chunks) continue;
    const StreamChunk &chunk = at.chunk(c);
    const int rank = chunk.first_rank * kChunkRanks;
    copy_in(to + kTileBytes + c * kRowChunkBytes, at.target().row[chunk.product], chunk.row_transposed ? at.y() : rank,
            chunk.row_transposed ? rank : at.y(), full);
  }
}

template <int kChunks>
__device__ void store_tile(const Ring &ring, unsigned item, const Cursor<kChunks> &at) {
  const std::uint32_t from = shared_address(ring.slot(item, kSlotBytes<kChunks>));
  const int boxes = at.boxes();
#pragma unroll
  for (int box = 0; box < kBoxes; ++box)
    if (box < boxes) copy_out(at.target().out, at.x() + box * kBoxColumns, at.y(), from + box * kBoxBytes);
}

template <int kChunks>
__device__ void feed(const Parameters &p, const Ring &ring) {
  Cursor<kChunks> load(p), store(p);
  unsigned loaded = 0;
  const auto load_next = [&] {
    if (load.on_columns())
      load_columns(ring, loaded, load);
    else
      load_tile(ring, loaded, load, p.op != ops::WeightOp::kDiff);
    ++loaded;
    load.next();
  };
  while (loaded < kSlots && !load.at_end()) load_next();
  for (unsigned item = 0; !store.at_end(); ++item, store.next()) {
    ring.computed(item).wait(item / kSlots);
    if (!store.on_columns()) store_tile(ring, item, store);
    commit_copies();
    if (item == 0 || load.at_end()) continue;
    wait_until_read<1>();  // the slot before this one is free
    load_next();
  }
  wait_for_copies();
}

// -- the threads that compute -----------------------------------------------------------------------------------------

/// Four 8 x 8 matrices of 16-bit elements; `at` is this lane's row of one of them.
template <bool kTransposed>
__device__ uint4 load_matrices(std::uint32_t at) {
  uint4 m;
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
                 : "r"(at));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
                 : "r"(at));
  return m;
}

// Where the copy engine put 16 bytes of a row: it swaps them about so that columns do not share banks.
__device__ int swizzled_32(int row, int part) { return row * 32 + (part ^ (row / 4 & 1)) * 16; }
__device__ int swizzled_64(int row, int part) { return row * 64 + (part ^ (row / 2 & 3)) * 16; }
__device__ int swizzled_128(int row, int part) { return row * 128 + (part ^ (row & 7)) * 16; }

/// Operand A of mma: 16 rows x 16 ranks.
__device__ uint4 load_row_factor(std::uint32_t chunk, bool transposed, int first_row) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (transposed) {  // [rank][row]
    const int rank = lane % 8 + lane / 16 * 8, rows = first_row / 8 + lane / 8 % 2;
    return load_matrices<true>(chunk + swizzled_64(rank, rows));
  }
  return load_matrices<false>(chunk + swizzled_32(first_row + lane % 16, lane / 16));
}

/// Operand B of mma for two neighbouring n tiles: 16 ranks x 16 columns.
__device__ uint4 load_column_factor(std::uint32_t chunk, bool transposed, int pair) {
  const int lane = static_cast<int>(threadIdx.x % 32), n = pair + lane / 16;
  if (transposed)  // [column][rank]
    return load_matrices<false>(chunk + swizzled_32(n * 8 + lane % 8, lane / 8 % 2));
  return load_matrices<true>(chunk + swizzled_128(lane % 16, n));
}

template <bool kBf16>
__device__ void multiply(float (&d)[4], uint4 a, uint2 b) {
  if constexpr (kBf16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

__device__ float load_scalar(const StreamTerm &term) {
  if (!term.scalar) return 1.0f;
  if (term.scalar_dtype == LYC_DTYPE_F32) return *static_cast<const float *>(term.scalar);
  if (term.scalar_dtype == LYC_DTYPE_BF16) return __bfloat162float(*static_cast<const __nv_bfloat16 *>(term.scalar));
  return __half2float(*static_cast<const __half *>(term.scalar));
}

struct Bf16 {
  static __device__ float2 widen(std::uint32_t word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
  }
  static __device__ std::uint32_t round(float x, float y) {
    const __nv_bfloat162 rounded = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<const std::uint32_t *>(&rounded);
  }
};
struct F16 {
  static __device__ float2 widen(std::uint32_t word) {
    return __half22float2(*reinterpret_cast<const __half2 *>(&word));
  }
  static __device__ std::uint32_t round(float x, float y) {
    const __half2 rounded = __floats2half2_rn(x, y);
    return *reinterpret_cast<const std::uint32_t *>(&rounded);
  }
};

/// What one warp adds to its columns of every tile.
template <int kChunks, StreamForm kForm, bool kBf16Factors>
class Worker {
  static constexpr int kColumns = kStreamColumns / kWarps<kChunks, kForm>;
  static constexpr int kPairs = kColumns / 8;  // n tiles of mma.m16n8k16

  /// 16 rows of the warp's columns in the fragments of mma's operand C.
  struct Sum {
    float value[kPairs][4] = {};
  };

 public:
  __device__ Worker(const Parameters &p, int warp)
      : p_(p), box_(warp * kColumns / kBoxColumns), first_pair_(warp * kColumns % kBoxColumns / 8) {}

  __device__ int box() const { return box_; }

  __device__ void enter(const StreamTarget &target) {
    active_ = false;
    count_ = target.chunk_count;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const bool there = c < count_;
      chunks_[c] = there ? target.chunks[c] : StreamChunk{};
      scales_[c] = there ? scale(target.terms[target.chunks[c].term]) : 0.0f;
      active_ = active_ || scales_[c] != 0.0f;
    }
    bf16_ = target.bf16 != 0;
  }

  __device__ void take_columns(char *slot, int column_slot) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c / kColumnSlotChunks != column_slot) continue;
      const std::uint32_t chunk = shared_address(slot) + (c % kColumnSlotChunks * kBoxes + box_) * kColumnChunkBytes;
#pragma unroll
      for (int n = 0; n < kPairs; n += 2) {
        const uint4 two = load_column_factor(chunk, chunks_[c].column_transposed, first_pair_ + n);
        columns_[c][n] = make_uint2(two.x, two.y);
        columns_[c][n + 1] = make_uint2(two.z, two.w);
      }
    }
  }

  __device__ void change(char *slot) const {
    if (!active_ && p_.op != ops::WeightOp::kDiff) return;
    const std::uint32_t row_chunks = shared_address(slot) + kTileBytes;
#pragma unroll
    for (int y = 0; y < kStreamRows; y += 16) {
      const Sum sum = kForm == StreamForm::kSingle ? product(row_chunks, y) : products(row_chunks, y);
      if (bf16_)
        add_to_tile<Bf16>(slot, y, sum);
      else
        add_to_tile<F16>(slot, y, sum);
    }
  }

 private:
  __device__ float scale(const StreamTerm &term) const {
    const Multipliers &m = p_.multipliers;
    const float multiplier = m.device ? m.device[term.multiplier_index] : m.values[term.multiplier_index];
    if (multiplier == 0.0f) return 0.0f;
    const float scale = multiplier * term.coefficient * load_scalar(term);
    return p_.op == ops::WeightOp::kUnmerge ? -scale : scale;
  }

  __device__ void add_chunk(Sum &sum, int c, std::uint32_t row_chunks, int y) const {
    const uint4 rows = load_row_factor(row_chunks + c * kRowChunkBytes, chunks_[c].row_transposed, y);
#pragma unroll
    for (int n = 0; n < kPairs; ++n) multiply<kBf16Factors>(sum.value[n], rows, columns_[c][n]);
  }

  /// s P, all chunks being of one product.
  __device__ Sum product(std::uint32_t row_chunks, int y) const {
    Sum sum;
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      if (c < count_) add_chunk(sum, c, row_chunks, y);
    const float scale = scales_[0];
#pragma unroll
    for (int n = 0; n < kPairs; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.value[n][i] = scale == 0.0f ? 0.0f : scale * sum.value[n][i];
    return sum;
  }

  /// The sum of s P, or s P o Q.
  __device__ Sum products(std::uint32_t row_chunks, int y) const {
    Sum total, sum, kept;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= count_) break;
      add_chunk(sum, c, row_chunks, y);
      const ChunkEnd end = chunks_[c].end;
      if (end == ChunkEnd::kGoOn) continue;
      const float scale = scales_[c];
      const bool times_kept = kForm == StreamForm::kHadamard && end == ChunkEnd::kAddTimesKept;
#pragma unroll
      for (int n = 0; n < kPairs; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float &value = sum.value[n][i];
          if (kForm == StreamForm::kHadamard && end == ChunkEnd::kKeep)
            kept.value[n][i] = value;
          else if (scale != 0.0f)
            total.value[n][i] = fmaf(scale, times_kept ? value * kept.value[n][i] : value, total.value[n][i]);
          value = 0.0f;
        }
    }
    return total;
  }

  template <typename Type>
  __device__ void add_to_tile(char *slot, int y, const Sum &sum) const {
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
    const bool has_base = p_.op != ops::WeightOp::kDiff;
    char *box = slot + box_ * kBoxBytes + q * 4;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
        auto *word = reinterpret_cast<std::uint32_t *>(box + swizzled_128(y + half * 8 + g, first_pair_ + n));
        const float2 base = has_base ? Type::widen(*word) : make_float2(0.0f, 0.0f);
        *word = Type::round(base.x + sum.value[n][2 * half], base.y + sum.value[n][2 * half + 1]);
      }
  }

  const Parameters &p_;
  const int box_, first_pair_;
  int count_ = 0;
  StreamChunk chunks_[kChunks];
  float scales_[kChunks];
  uint2 columns_[kChunks][kPairs];
  bool active_ = false, bf16_ = false;
};

template <int kChunks, StreamForm kForm, bool kBf16Factors>
__device__ void compute(const Parameters &p, const Ring &ring, int warp) {
  Worker<kChunks, kForm, kBf16Factors> worker(p, warp);
  int entered = -1;
  unsigned item = 0;
  for (Cursor<kChunks> at(p); !at.at_end(); ++item, at.next()) {
    if (at.index() != entered && p.table.targets) worker.enter(p.table.targets[at.index()]);
    if (at.index() != entered && !p.table.targets) worker.enter(p.only);
    entered = at.index();
    char *slot = ring.slot(item, kSlotBytes<kChunks>);
    ring.full(item).wait(item / kSlots);
    if (worker.box() < at.boxes()) {
      if (at.on_columns())
        worker.take_columns(slot, at.column_slot());
      else
        worker.change(slot);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // the copy engine reads what was written here
    __syncwarp();
    if (threadIdx.x % 32 == 0) ring.computed(item).arrive();
  }
}

#endif

template <int kChunks, StreamForm kForm, bool kBf16Factors>
__global__ void __launch_bounds__(kThreads<kChunks, kForm>) stream_kernel(const __grid_constant__ Parameters p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ char raw[];
  __shared__ alignas(8) std::uint64_t barriers[2 * kSlots];
  const auto unaligned = reinterpret_cast<std::uintptr_t>(raw);
  const Ring ring{raw + (kSwizzleAlignment - unaligned % kSwizzleAlignment) % kSwizzleAlignment, barriers};
  if (threadIdx.x == 0) {
    for (unsigned s = 0; s < kSlots; ++s) {
      ring.full(s).init(1);
      ring.computed(s).init(kWarps<kChunks, kForm>);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < kWarps<kChunks, kForm>)
    compute<kChunks, kForm, kBf16Factors>(p, ring, warp);
  else if (threadIdx.x % 32 == 0)
    feed<kChunks>(p, ring);
#endif
}

struct Instance {
  StreamKind kind;
  void (*kernel)(Parameters);
  int threads, slot_bytes;
};

template <int kChunks, StreamForm kForm, bool kBf16Factors>
constexpr Instance kInstance = {{kChunks, kForm, kBf16Factors},
                                stream_kernel<kChunks, kForm, kBf16Factors>,
                                kThreads<kChunks, kForm>,
                                kSlotBytes<kChunks>};

// Ranks of 16, 32 and 64 of the usual bf16 factors each have their own; the rest makes do with the largest.
constexpr Instance kInstances[] = {
    kInstance<1, StreamForm::kSingle, true>,    kInstance<2, StreamForm::kSingle, true>,
    kInstance<4, StreamForm::kSingle, true>,    kInstance<4, StreamForm::kSingle, false>,
    kInstance<4, StreamForm::kSeveral, true>,   kInstance<4, StreamForm::kSeveral, false>,
    kInstance<2, StreamForm::kHadamard, true>,  kInstance<4, StreamForm::kHadamard, true>,
    kInstance<4, StreamForm::kHadamard, false>,
};

/// The smallest that is large enough.
const Instance &instance_of(const StreamKind &kind) {
  for (const Instance &instance : kInstances)
    if (instance.kind.form == kind.form && instance.kind.bf16_factors == kind.bf16_factors &&
        instance.kind.chunks >= kind.chunks)
      return instance;
  return kInstances[0];  // kinds are made of what is here
}

std::size_t shared_bytes(const Instance &instance) {
  return static_cast<std::size_t>(kSlots * instance.slot_bytes + kSwizzleAlignment);
}

}  // namespace

cudaError_t resident_blocks(StreamKind kind, int *blocks) {
  const Instance &instance = instance_of(kind);
  const auto *kernel = reinterpret_cast<const void *>(instance.kernel);
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(shared_bytes(instance)));
  if (status != cudaSuccess) return status;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, instance.threads, shared_bytes(instance));
}

cudaError_t launch_stream(StreamKind kind, const StreamTable &table, const StreamTarget &only, int blocks,
                          ops::WeightOp op, const Multipliers &multipliers, cudaStream_t stream) {
  const Instance &instance = instance_of(kind);
  Parameters parameters{only, table, op, multipliers};
  void *arguments[] = {&parameters};
  const unsigned grid =
      table.tile_count < static_cast<unsigned>(blocks) ? table.tile_count : static_cast<unsigned>(blocks);
  return cudaLaunchKernel(reinterpret_cast<const void *>(instance.kernel), dim3(grid),
                          dim3(static_cast<unsigned>(instance.threads)), arguments, shared_bytes(instance), stream);
}

}  // namespace lyc::cuda
