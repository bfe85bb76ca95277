// out = round(base + s (base a_up) a_down + t b_up b_down) for bf16 matrices, the base read once: what a row is
// multiplied by is known only at its end, so rows stay on the chip until then.
//
// Work.     A cluster of blocks takes kBaseRows whole rows at a time, each block its own columns of them, each warp the
//           same ones all the time, whose factors it keeps in registers. One warp moves rows to and from a ring of
//           slots in shared memory by bulk copies. Warps multiply their part of the rows by that of a_up; two more
//           warps add up what they found and what the other blocks of the cluster send, and make three bf16 parts of
//           each sum, the factor of a_down. Meanwhile the warps are at the next rows.
// Traffic.  base read once, out written once, factors once a cluster.
// Numerics. Tensor cores multiply bf16 factors exactly and sum in float32, warps and blocks are added in one order; the
//           sums' parts add up to their float32 values. One rounding, at the store. A term whose multiplier is 0 adds
//           nothing, not even NaN.
#include <algorithm>

#include "base_product_kernels.hpp"
#include "cluster.cuh"
#include "copy_engine.cuh"

namespace lyc::cuda {
namespace {

constexpr int kSlots = 6;
constexpr int kOctets = kBaseRows / 8;  // rows that one instruction takes
constexpr int kSums = kBaseRows * kChunkRanks, kOwnSums = 4, kSumThreads = kSums / kOwnSums;
constexpr int kComputing = kBaseWarps * 32, kThreads = kComputing + kSumThreads + 32;
constexpr int kRowGap = 16;  // bytes between rows of a slot, so that columns do not share banks
constexpr int kSlotBytes = kBaseRows * (kBaseColumns * 2 + kRowGap);
constexpr int kSumPitch = 20;     // floats of a row's 16 sums, spread over the banks
constexpr unsigned kBuffers = 2;  // for the sums of rows that are under way
constexpr int kMerging = 1;       // named barrier of the threads that compute

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// What blocks and warps tell each other; rows take turns with the buffers.
struct Shared {
  union {
    float of_warps[kBuffers][kBaseWarps][kBaseRows * kSumPitch];
    char factor[kBaseWarps][kWarpColumns * kChunkRanks * 2];  // of a_up, on its way into registers
  };
  float of_blocks[kBuffers][kMostBaseCluster][kSums];
  std::uint32_t parts[kBuffers][kPackedParts][kBaseRows][kChunkRanks / 2];  // of two ranks
  std::uint64_t full_barriers[kSlots], merged_barriers[kSlots];
  std::uint64_t summed_barriers[kBuffers], sent_barriers[kBuffers], found_barriers[kBuffers];

  __device__ Barrier full(unsigned item) { return {shared_address(full_barriers + item % kSlots)}; }
  __device__ Barrier merged(unsigned item) { return {shared_address(merged_barriers + item % kSlots)}; }
  __device__ Barrier summed(unsigned item) { return {shared_address(summed_barriers + item % kBuffers)}; }
  __device__ Barrier sent(unsigned item) { return {shared_address(sent_barriers + item % kBuffers)}; }
  __device__ Barrier found(unsigned item) { return {shared_address(found_barriers + item % kBuffers)}; }

  __device__ void init() {
    for (unsigned slot = 0; slot < kSlots; ++slot) {
      full(slot).init(1);
      merged(slot).init(kBaseWarps);
    }
    for (unsigned buffer = 0; buffer < kBuffers; ++buffer) {
      summed(buffer).init(kComputing);
      sent(buffer).init(1);
      found(buffer).init(kSumThreads);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
};

/// Rows that a block works on, run after run.
class Cursor {
 public:
  explicit __device__ Cursor(const BaseRun &p) : p_(p), run_(blockIdx.x / static_cast<unsigned>(p.cluster)) {
    find_run();
  }

  __device__ bool at_end() const { return run_ >= p_.table.run_count; }
  __device__ bool begins_run() const { return begins_run_; }
  __device__ const BaseTarget &target() const { return p_.table.targets ? p_.table.targets[index_] : p_.only; }
  __device__ int row() const { return tile_ * kBaseRows; }
  __device__ int rows() const { return min(kBaseRows, rows_ - row()); }

  __device__ void next() {
    begins_run_ = false;
    tile_ += runs_;
    if (row() < rows_) return;
    run_ += static_cast<unsigned>(p_.clusters);
    find_run();
  }

 private:
  __device__ void find_run() {
    if (at_end()) return;
    if (p_.table.targets)
      while (index_ + 1 < p_.table.target_count && p_.table.first_run[index_ + 1] <= run_) ++index_;
    tile_ = static_cast<int>(run_ - (p_.table.targets ? p_.table.first_run[index_] : 0));
    rows_ = target().rows;
    runs_ = target().runs;
    begins_run_ = true;
  }

  const BaseRun &p_;
  std::uint32_t run_;
  int index_ = 0, tile_ = 0, rows_ = 0, runs_ = 0;
  bool begins_run_ = true;
};

/// The block's columns of a target.
struct Columns {
  int begin, count;

  explicit __device__ Columns(const BaseTarget &target)
      : begin(rank_in_cluster() * target.columns_of_block),
        count(min(target.columns_of_block, target.columns - begin)) {}
};

__device__ int pitch_of(const BaseTarget &target) {
  return (target.columns_of_block + kWarpColumns - 1) / kWarpColumns * kWarpColumns * 2 + kRowGap;
}

// -- the warp that copies ---------------------------------------------------------------------------------------------

__device__ void load_rows(Shared &shared, char *slots, unsigned item, const Cursor &at) {
  const BaseTarget &target = at.target();
  const Columns columns(target);
  const int row = static_cast<int>(threadIdx.x) % 32, rows = at.rows();
  if (row == 0) shared.full(item).arrive_expecting(rows * columns.count * 2);
  __syncwarp();
  if (row >= rows) return;
  const auto *from =
      static_cast<const std::uint16_t *>(target.base) + (at.row() + row) * target.base_row + columns.begin;
  copy_in(shared_address(slots + item % kSlots * kSlotBytes + row * pitch_of(target)),
          reinterpret_cast<const char *>(from), columns.count * 2, shared.full(item));
}

__device__ void store_rows(const char *slots, unsigned item, const Cursor &at) {
  const BaseTarget &target = at.target();
  const Columns columns(target);
  const int row = static_cast<int>(threadIdx.x) % 32;
  if (row >= at.rows()) return;
  auto *to = static_cast<std::uint16_t *>(target.out) + (at.row() + row) * target.out_row + columns.begin;
  copy_out(reinterpret_cast<char *>(to), shared_address(slots + item % kSlots * kSlotBytes + row * pitch_of(target)),
           columns.count * 2);
}

/// Each lane sees to a row, and waits for its own copies.
__device__ void feed(const BaseRun &p, Shared &shared, char *slots) {
  Cursor load(p), store(p);
  unsigned loaded = 0;
  for (; loaded < kSlots && !load.at_end(); ++loaded, load.next()) load_rows(shared, slots, loaded, load);
  for (unsigned item = 0; !store.at_end(); ++item, store.next()) {
    shared.merged(item).wait(item / kSlots);
    store_rows(slots, item, store);
    commit_copies();
    if (item == 0 || load.at_end()) continue;
    wait_until_read<1>();  // the slot before this one is free
    __syncwarp();
    load_rows(shared, slots, loaded, load);
    ++loaded;
    load.next();
  }
  wait_for_copies();
}

// -- the threads that add up ------------------------------------------------------------------------------------------

__device__ float scale_of(const BaseRun &p, const StreamTerm &term) {
  const float multiplier = multiplier_at(p.multipliers, term.multiplier_index);
  return multiplier == 0.0f ? 0.0f : multiplier * term.coefficient * element(term.scalar, 0);
}

/// A thread for four ranks of a row. No buffer is sent to before its owner has read it: who sends sums of some rows has
/// had those of the rows before from every block, which had then read those of the rows before these.
__device__ void add_up(const BaseRun &p, Shared &shared, int thread) {
  const int row = thread / (kChunkRanks / kOwnSums), rank = thread % (kChunkRanks / kOwnSums) * kOwnSums;
  const int here = rank_in_cluster();
  const auto add = [](float4 &sum, const float *at) {
    const float4 more = *reinterpret_cast<const float4 *>(at);
    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
  };
  float scale = 0.0f;
  unsigned item = 0;
  for (Cursor at(p); !at.at_end(); at.next(), ++item) {
    if (at.begins_run()) scale = scale_of(p, at.target().right.term);
    const unsigned buffer = item % kBuffers;
    const Barrier sent = shared.sent(item);
    if (thread == 0) sent.arrive_expecting(p.cluster * kSums * 4);
    shared.summed(item).wait(item / kBuffers);
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int warp = 0; warp < kBaseWarps; ++warp) add(sum, &shared.of_warps[buffer][warp][row * kSumPitch + rank]);
    const std::uint32_t place = shared_address(&shared.of_blocks[buffer][here][thread * kOwnSums]);
    for (int to = 0; to < p.cluster; ++to) send(address_in(to, place), sum, address_in(to, sent.address));
    sent.wait(item / kBuffers);
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int from = 0; from < p.cluster; ++from) add(total, &shared.of_blocks[buffer][from][thread * kOwnSums]);
    float2 value[] = {{scale * total.x, scale * total.y}, {scale * total.z, scale * total.w}};  // 0: nobody looks
#pragma unroll
    for (int part = 0; part < kPackedParts; ++part) {
      std::uint32_t bits[2];
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        Bf16::put(bits, pair, value[pair]);
        const float2 taken = Bf16::get(bits, pair);
        value[pair].x = isfinite(taken.x) ? value[pair].x - taken.x : 0.0f;
        value[pair].y = isfinite(taken.y) ? value[pair].y - taken.y : 0.0f;
      }
      *reinterpret_cast<uint2 *>(&shared.parts[buffer][part][row][rank / 2]) = make_uint2(bits[0], bits[1]);
    }
    shared.found(item).arrive();
  }
}

// -- the warps that compute -------------------------------------------------------------------------------------------

/// What one warp does with its columns of all rows. Factors are operand A of the tensor cores, rows columns of operand
/// B: of eight rows, lane (g, q) = (lane / 4, lane % 4) has two vectors of row g when they are multiplied by a_up, and
/// of the result eight neighbours of the rows 2 q and 2 q + 1.
class Worker {
  static constexpr int kVectors = 2, kPairs = 4;  // words of a vector

 public:
  __device__ Worker(const BaseRun &p, Shared &shared, int warp) : p_(p), shared_(shared), warp_(warp) {}

  __device__ void enter(const BaseTarget &target) {
    const Columns columns(target);
    end_ = min((warp_ + 1) * kWarpColumns, columns.count);
    pitch_ = pitch_of(target);
    right_scale_ = scale_of(p_, target.right.term);
    added_scale_ = target.added.rank > 0 ? scale_of(p_, target.added.term) : 0.0f;
    added_up_ = static_cast<const std::uint16_t *>(target.added.up);
    added_row_ = target.added.up_row, added_rank_ = target.added.rank;
    load_up(target.right, columns.begin);
    load_down(target.right, columns.begin, right_);
    load_down(target.added, columns.begin, added_);
  }

  /// The rows' ranks of b_up, fetched before they are needed.
  __device__ void prepare(int row, int rows) {
    const int g = lane() / 4, q = lane() % 4;
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      next_[octet] = make_uint2(0, 0);
      if (added_scale_ == 0.0f || octet * 8 + g >= rows) continue;
      const std::uint16_t *at = added_up_ + (row + octet * 8 + g) * added_row_ + 2 * q;
      if (2 * q < added_rank_) next_[octet].x = __ldg(reinterpret_cast<const std::uint32_t *>(at));
      if (2 * q + 8 < added_rank_) next_[octet].y = __ldg(reinterpret_cast<const std::uint32_t *>(at + 8));
    }
  }

  /// The warp's part of base a_up.
  __device__ void multiply_base(const char *slot, float *to) const {
    const int g = lane() / 4, q = lane() % 4, column = warp_ * kWarpColumns + q * kVectors * 8;
    float sum[kOctets][4] = {};
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (column + i * 8 < end_)
          v = *reinterpret_cast<const uint4 *>(slot + (octet * 8 + g) * pitch_ + (column + i * 8) * 2);
        multiply<true>(sum[octet], up_[i][0], make_uint2(v.x, v.y));
        multiply<true>(sum[octet], up_[i][1], make_uint2(v.z, v.w));
      }
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet)
#pragma unroll
      for (int i = 0; i < 4; ++i) to[(octet * 8 + 2 * q + i % 2) * kSumPitch + i / 2 * 8 + g] = sum[octet][i];
  }

  /// What multiply_base() has just seen is the next to merge.
  __device__ void keep_rows() {
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) rows_[octet] = next_[octet];
  }

  __device__ void merge(char *slot, unsigned buffer) const {
    const int g = lane() / 4, q = lane() % 4, column = warp_ * kWarpColumns + g * 8;
    if (right_scale_ == 0.0f && added_scale_ == 0.0f && p_.op != ops::WeightOp::kDiff) return;
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      float delta[kPairs][4];
      find_delta(delta, octet, buffer);
      if (column >= end_) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        auto *at = reinterpret_cast<uint4 *>(slot + (octet * 8 + 2 * q + half) * pitch_ + column * 2);
        uint4 v = make_uint4(0, 0, 0, 0);
        if (p_.op != ops::WeightOp::kDiff) v = *at;
        std::uint32_t *word[] = {&v.x, &v.y, &v.z, &v.w};
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
          const float2 base = Bf16::get(word[n], 0);
          Bf16::put(word[n], 0, make_float2(base.x + delta[n][half], base.y + delta[n][2 + half]));
        }
        *at = v;
      }
    }
  }

 private:
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

  __device__ void find_delta(float (&delta)[kPairs][4], int octet, unsigned buffer) const {
#pragma unroll
    for (int n = 0; n < kPairs; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) delta[n][i] = 0.0f;
    if (added_scale_ != 0.0f) {
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
        multiply<true>(delta[n], added_[n], rows_[octet]);
#pragma unroll
        for (int i = 0; i < 4; ++i) delta[n][i] *= added_scale_;
      }
    }
    if (right_scale_ == 0.0f) return;
#pragma unroll
    for (int part = 0; part < kPackedParts; ++part) {
      const std::uint32_t *at = &shared_.parts[buffer][part][octet * 8 + lane() / 4][lane() % 4];
      const uint2 sums = make_uint2(at[0], at[4]);
#pragma unroll
      for (int n = 0; n < kPairs; ++n) multiply<true>(delta[n], right_[n], sums);
    }
  }

  /// A lower factor's columns 8 g to 8 g + 7, as words of two ranks: of each pair of columns the first one for a lane's
  /// first row of operand A, the second one for the other.
  __device__ void load_down(const BaseFactors &factors, int begin, uint4 (&to)[kPairs]) const {
    const int column = warp_ * kWarpColumns + lane() / 4 * 8, q = lane() % 4;
    uint4 ranks[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int rank = 2 * q + i % 2 + i / 2 * 8;
      const auto *from = static_cast<const std::uint16_t *>(factors.down) + rank * factors.down_row + begin + column;
      ranks[i] = make_uint4(0, 0, 0, 0);
      if (column < end_ && rank < factors.rank) ranks[i] = __ldg(reinterpret_cast<const uint4 *>(from));
    }
    const auto pair = [&](int rank, std::uint32_t uint4::*word) {
      const std::uint32_t a = ranks[rank].*word, b = ranks[rank + 1].*word;
      return make_uint2(__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632));
    };
    std::uint32_t uint4::*const words[] = {&uint4::x, &uint4::y, &uint4::z, &uint4::w};
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const uint2 near = pair(0, words[n]), far = pair(2, words[n]);
      to[n] = make_uint4(near.x, near.y, far.x, far.y);
    }
  }

  /// The upper factor of the base's product, through shared memory. A lane's vector i has the columns 16 q + 8 i to
  /// 16 q + 8 i + 7, four for the first instruction and four for the second.
  __device__ void load_up(const BaseFactors &factors, int begin) {
    constexpr int kPieces = kWarpColumns / 16;
    char *staged = shared_.factor[warp_];
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int place = (lane() + piece * 32) / 2, rank = lane() % 2 * 8, column = warp_ * kWarpColumns + place;
      const auto *from = static_cast<const std::uint16_t *>(factors.up) + (begin + column) * factors.up_row + rank;
      uint4 ranks = make_uint4(0, 0, 0, 0);
      if (column < end_ && rank < factors.rank) ranks = __ldg(reinterpret_cast<const uint4 *>(from));
      *reinterpret_cast<uint4 *>(staged + swizzled_32(place, lane() % 2)) = ranks;
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        // Lane l has row l % 8 of the matrix l / 8: ranks to 7 and from 8 on, the same of the other two columns.
        const int row = lane() % 8, matrix = lane() / 8;
        const int place = row / 2 * 16 + i * 8 + part * 4 + matrix / 2 * 2 + row % 2;
        up_[i][part] = load_matrices<true>(shared_address(staged) + swizzled_32(place, matrix % 2));
      }
    asm volatile("bar.sync %0, %1;" ::"n"(kMerging), "n"(kComputing) : "memory");  // sums may take its place
  }

  const BaseRun &p_;
  Shared &shared_;
  const int warp_;
  int end_ = 0, pitch_ = 0, added_rank_ = 0;
  float right_scale_ = 0.0f, added_scale_ = 0.0f;
  const std::uint16_t *added_up_ = nullptr;
  std::int64_t added_row_ = 0;
  uint2 next_[kOctets] = {}, rows_[kOctets] = {};  // of b_up
  uint4 up_[kVectors][2], right_[kPairs], added_[kPairs];
};

__device__ void compute(const BaseRun &p, Shared &shared, char *slots, int warp) {
  Worker worker(p, shared, warp);
  Cursor at(p);
  const auto slot = [&](unsigned item) { return slots + item % kSlots * kSlotBytes; };
  bool waits = false;  // the item before this one is to be merged
  for (unsigned item = 0; !at.at_end() || waits;) {
    // What a run has is there until its last rows are merged.
    const bool has_next = !at.at_end() && !(at.begins_run() && waits);
    if (has_next) {
      if (at.begins_run()) worker.enter(at.target());
      worker.prepare(at.row(), at.rows());
      shared.full(item).wait(item / kSlots);
      worker.multiply_base(slot(item), shared.of_warps[item % kBuffers][warp]);
      shared.summed(item).arrive();
    }
    if (waits) {
      const unsigned last = item - 1;
      shared.found(last).wait(last / kBuffers);
      worker.merge(slot(last), last % kBuffers);
      publish_shared();  // the copy engine reads what was written here
      __syncwarp();
      if (threadIdx.x % 32 == 0) shared.merged(last).arrive();
      waits = false;
    }
    if (!has_next) continue;
    worker.keep_rows();
    waits = true;
    ++item;
    at.next();
  }
}

#endif

__global__ void __launch_bounds__(kThreads, 1) base_product_kernel(const __grid_constant__ BaseRun p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ char raw[];
  __shared__ alignas(16) Shared shared;
  char *slots = raw + (16 - reinterpret_cast<std::uintptr_t>(raw) % 16) % 16;
  if (threadIdx.x == 0) shared.init();
  __syncthreads();
  wait_for_cluster();  // nobody sends to barriers that are not there
  begin_kernel();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < kBaseWarps)
    compute(p, shared, slots, warp);
  else if (warp < (kComputing + kSumThreads) / 32)
    add_up(p, shared, static_cast<int>(threadIdx.x) - kComputing);
  else
    feed(p, shared, slots);
#endif
}

constexpr int kDynamicBytes = kSlots * kSlotBytes + 16;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
static_assert(sizeof(Shared) + kDynamicBytes <= kBaseSharedBytes);
#endif

}  // namespace

cudaError_t resident_base_clusters(int cluster, int *clusters) {
  const auto *kernel = reinterpret_cast<const void *>(base_product_kernel);
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kDynamicBytes);
  if (status != cudaSuccess) return status;
  return resident_clusters(kernel, kThreads, kDynamicBytes, cluster, clusters);
}

cudaError_t launch_base_products(const BaseRun &run, const Launch &on) {
  void *arguments[] = {const_cast<BaseRun *>(&run)};
  const auto blocks =
      std::min<unsigned>(run.table.run_count, static_cast<unsigned>(run.clusters)) * static_cast<unsigned>(run.cluster);
  return launch_kernel(reinterpret_cast<const void *>(base_product_kernel), blocks, kThreads, kDynamicBytes, on,
                       arguments, run.cluster);
}

}  // namespace lyc::cuda
