// DoRA over rows, out = round(f(base, terms)), with the base read once: a row that is to be normalised stays on the
// chip until its norm is known. For what stream_kernels.cu takes of low-rank products, where rows fit into the shared
// memory of a cluster of blocks.
//
// Work.     A cluster takes band after band, kStreamRows whole rows; each of its blocks has some boxes of every band,
//           each of its warps the same columns all the time, whose factors it keeps. A block's bands lie in a ring of
//           slots, which one thread fills and empties by bulk tensor copies. Warps sum the squares of their part of a
//           band; one more warp adds up what they found and what the other blocks of the cluster send, and makes
//           factors of the sums. Meanwhile the warps are at the next band: they come back with the factors and compute
//           the terms once more, which is cheaper than to keep them.
// Traffic.  base read once, out written once, row factors once a block of the cluster, column factors once a cluster.
// Numerics. As in stream_terms.cuh. Sums of squares are added in one order: lanes, warps, blocks. One rounding, at the
//           store; where the multiplier is 0, bands pass unchanged.
#include <algorithm>
#include <utility>

#include "cluster.cuh"
#include "row_kernels.hpp"
#include "stream_terms.cuh"

namespace lyc::cuda {
namespace {

constexpr int kFewestSlots = 3;  // a band that waits for its norms, the next one, and one to load
constexpr int kMostSlots = 8;
constexpr int kServiceWarps = 2;

/// An instance's properties as a type.
template <int kMostChunks, StreamForm kTheForm, bool kBf16>
using Kind = TermsKind<kMostChunks, kTheForm, kBf16, true, row_warps_per_box(kTheForm)>;

struct Parameters {
  StreamParameters stream;
  RowShape shape;
  int cluster;
};

__host__ __device__ constexpr int slot_bytes(int chunks, int boxes) {
  return chunks * kRowChunkBytes + boxes * kBoxBytes;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// -- the order of the work --------------------------------------------------------------------------------------------

/// What a block does, slot after slot: where a run begins its column factors, then its part of the bands.
template <typename K>
class Cursor {
 public:
  explicit __device__ Cursor(const Parameters &p) : p_(p), run_(blockIdx.x / static_cast<unsigned>(p.cluster)) {
    find_run();
  }

  __device__ bool at_end() const { return run_ >= table().run_count; }
  __device__ bool on_columns() const { return column_slot_ < K::kColumnSlots; }
  __device__ bool begins_run() const { return begins_run_; }
  __device__ int column_slot() const { return column_slot_; }
  __device__ const StreamTarget &target() const { return table().targets ? table().targets[index_] : p_.stream.only; }
  __device__ int index() const { return index_; }
  __device__ int rows() const { return target().rows; }
  __device__ int columns() const { return target().columns; }

  /// That the block has of a band.
  __device__ int boxes() const {
    const StreamTarget &t = target();
    return max(0, min(t.boxes, t.boxes_across - rank_in_cluster() * t.boxes));
  }
  __device__ Place place_of_box(int box) const {
    const StreamTarget &t = target();
    return {(rank_in_cluster() * t.boxes + box) * kBoxColumns, 0, band_ * kStreamRows, 0};
  }
  /// visit(box, place) for each.
  template <typename Visit>
  __device__ void for_boxes(Visit visit) const {
    const int count = boxes();
    Place place = place_of_box(0);
    for (int box = 0; box < count; ++box) {
      visit(box, place);
      place.x += kBoxColumns;
    }
  }
  /// Of the weight, the one of the band's row `row`; the last one where there is none.
  __device__ int line(int row) const { return min(band_ * kStreamRows + row, rows() - 1); }

  __device__ void next() {
    if (on_columns()) {
      ++column_slot_;
      return;
    }
    begins_run_ = false;
    band_ += groups_;
    if (band_ < height_) return;
    run_ += gridDim.x / static_cast<unsigned>(p_.cluster);
    find_run();
  }

 private:
  __device__ const StreamTable &table() const { return p_.stream.table; }

  __device__ void find_run() {
    if (at_end()) return;
    index_ = target_of_run(table(), run_);
    const StreamTarget &t = target();
    band_ = static_cast<int>(run_ - (table().targets ? table().first_run[index_] : 0));
    height_ = t.height;
    groups_ = t.groups;
    column_slot_ = 0;
    begins_run_ = true;
  }

  // What is found as soon as it is needed is not kept: registers are few.
  const Parameters &p_;
  std::uint32_t run_;
  int index_ = 0, height_, groups_, band_, column_slot_ = 0;
  bool begins_run_ = true;
};

/// A slot of the ring, and how often it has been used before.
struct Turn {
  int index = 0;
  unsigned round = 0;

  __device__ void next(int count) {
    if (++index < count) return;
    index = 0;
    ++round;
  }
};

constexpr unsigned kBuffers = 2;  // for the norms of two bands that are under way

/// What blocks and warps tell each other of bands, which take turns with the buffers.
struct Norms {
  DoraFactors factors[kBuffers][kStreamRows];
  float of_warps[kBuffers][kMostRowWarps][kStreamRows];  // sums of squares
  float of_blocks[kBuffers][kMostCluster][kStreamRows];
  std::uint64_t full[kMostSlots], computed[kMostSlots];             // barriers of slots
  std::uint64_t summed[kBuffers], sent[kBuffers], found[kBuffers];  // and of buffers
};

/// A block's shared memory.
struct Shared {
  Norms &norms;
  char *slots;
  int slot_bytes, warps;

  __device__ char *slot(int index) const { return slots + index * slot_bytes; }
  __device__ Barrier full(int slot) const { return {shared_address(norms.full + slot)}; }
  __device__ Barrier computed(int slot) const { return {shared_address(norms.computed + slot)}; }
  __device__ Barrier summed(unsigned band) const { return {shared_address(norms.summed + band % kBuffers)}; }
  __device__ Barrier sent(unsigned band) const { return {shared_address(norms.sent + band % kBuffers)}; }
  __device__ Barrier found(unsigned band) const { return {shared_address(norms.found + band % kBuffers)}; }

  __device__ void init() const {
    for (int slot = 0; slot < kMostSlots; ++slot) {
      full(slot).init(1);
      computed(slot).init(warps);
    }
    for (unsigned buffer = 0; buffer < kBuffers; ++buffer) {
      summed(buffer).init(warps * 8);  // lanes that write sums
      sent(buffer).init(1);
      found(buffer).init(kStreamRows);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
};

// -- the thread that copies -------------------------------------------------------------------------------------------

template <typename K>
__device__ void load_columns(const Parameters &p, char *slot, Barrier full, const Cursor<K> &at) {
  const StreamTarget &target = at.target();
  const int first = at.column_slot() * kColumnSlotChunks, columns = at.columns();
  const int chunks = max(0, min(kColumnSlotChunks, target.chunk_count - first));
  full.arrive_expecting(chunks * at.boxes() * kColumnChunkBytes);
  for (int c = first; c < first + chunks; ++c)
    at.for_boxes([&](int box, const Place &place) {
      load_column_factor(p.stream, column_chunk(shared_address(slot), box, c), target, target.chunks[c], columns,
                         place.x, full);
    });
}

template <typename K>
__device__ void load_band(const Parameters &p, char *slot, Barrier full, const Cursor<K> &at) {
  const StreamTarget &target = at.target();
  const int chunks = target.chunk_count;
  full.arrive_expecting(at.boxes() * kBoxBytes + chunks * kRowChunkBytes);
  at.for_boxes(
      [&](int box, const Place &place) { copy_in(shared_address(box_of<K>(slot, box)), target.base, place, full); });
  load_row_factors<K>(p.stream, shared_address(slot), target, chunks, at.rows(), at.place_of_box(0).y, full);
}

template <typename K>
__device__ void store_band(char *slot, const Cursor<K> &at) {
  const TensorMap &out = at.target().out;
  at.for_boxes([&](int box, const Place &place) { copy_out(out, place, shared_address(box_of<K>(slot, box))); });
}

template <typename K>
__device__ void feed(const Parameters &p, const Shared &shared) {
  Cursor<K> load(p), store(p);
  Turn loaded, stored;
  const auto load_next = [&] {
    if (load.on_columns())
      load_columns<K>(p, shared.slot(loaded.index), shared.full(loaded.index), load);
    else
      load_band<K>(p, shared.slot(loaded.index), shared.full(loaded.index), load);
    loaded.next(p.shape.slots);
    load.next();
  };
  while (loaded.round == 0 && !load.at_end()) load_next();
  for (; !store.at_end(); stored.next(p.shape.slots), store.next()) {
    shared.computed(stored.index).wait(stored.round);
    if (!store.on_columns()) store_band<K>(shared.slot(stored.index), store);
    commit_copies();
    if (load.at_end()) continue;
    wait_until_read<0>();  // soon, as bands take long; then the slot is free
    load_next();
  }
  wait_for_copies();
}

// -- the warp that finds factors --------------------------------------------------------------------------------------

/// Send the block's sum of squares of each row to all blocks of the cluster.
__device__ void send_sums(const Shared &shared, unsigned band, int cluster, int rank) {
  const int row = static_cast<int>(threadIdx.x % 32);
  const Barrier sent = shared.sent(band);
  if (row == 0) sent.arrive_expecting(cluster * kStreamRows * 4);
  double sum = 0.0;
  for (int warp = 0; warp < shared.warps; ++warp)
    sum += static_cast<double>(shared.norms.of_warps[band % kBuffers][warp][row]);
  const std::uint32_t here = shared_address(&shared.norms.of_blocks[band % kBuffers][rank][row]);
  for (int to = 0; to < cluster; ++to)
    send(address_in(to, here), static_cast<float>(sum), address_in(to, sent.address));
}

/// A lane for each row of a band. No buffer is sent to before its owner has read it: who sends sums of a band has had
/// those of the one before from every block, which had then read those of the one before that.
template <typename K>
__device__ void find_factors(const Parameters &p, const Shared &shared) {
  static_assert(kStreamRows == 32 && kBuffers == 2);
  const int row = static_cast<int>(threadIdx.x % 32), rank = rank_in_cluster();
  unsigned band = 0;
  for (Cursor<K> at(p); !at.at_end(); at.next()) {
    if (at.on_columns()) continue;
    // All that comes from afar is fetched before there is somebody who waits for it.
    const StreamTarget &target = at.target();
    const DoraParameters dora = target.dora.parameters;
    const float m = multiplier_at(p.stream.multipliers, target.terms[0].multiplier_index);
    const float magnitude = element(dora.magnitude, at.line(row));
    shared.summed(band).wait(band / kBuffers);
    send_sums(shared, band, p.cluster, rank);
    shared.sent(band).wait(band / kBuffers);  // an acquire for the cluster would empty the L1 cache; this is not in it
    double squares = 0.0;
    for (int from = 0; from < p.cluster; ++from)
      squares += static_cast<double>(shared.norms.of_blocks[band % kBuffers][from][row]);
    shared.norms.factors[band % kBuffers][row] = dora_factors_for(dora, m, magnitude, squares);
    shared.found(band).arrive();
    ++band;
  }
}

// -- the warps that compute -------------------------------------------------------------------------------------------

/// What one warp does with its columns of every band.
template <typename K>
class Worker {
  static constexpr int kPairs = Sum<K>::kPairs;

 public:
  __device__ Worker(const Parameters &p, const Shared &shared, int warp)
      : p_(p), my_(warp), terms_(p.stream, my_, nullptr) {}

  __device__ void enter(const Cursor<K> &at) {
    const StreamTarget &target = at.target();
    const bool active = terms_.enter(target), clears = p_.stream.op == ops::WeightOp::kDiff;
    if (my_.box() >= at.boxes())
      work_ = Work::kNone;
    else if (active)
      work_ = target.bf16 ? Work::kBf16 : Work::kF16;
    else
      work_ = clears ? Work::kClear : Work::kNone;
    const float m = multiplier_at(p_.stream.multipliers, target.terms[0].multiplier_index);
    v_ = static_cast<float>(dora_coefficients(target.dora.parameters.rule, m).v);
  }

  __device__ void take_columns(char *slot, int column_slot) {
    if (computes()) terms_.take_columns(slot, column_slot);
  }
  /// Squares of V = W + v D, summed over the warp's part of each row.
  __device__ void sum_squares(char *slot, float *sums) const {
    if (work_ == Work::kBf16)
      sum_squares<Bf16>(slot, sums);
    else if (work_ == Work::kF16)
      sum_squares<F16>(slot, sums);
    else
      for (int row = static_cast<int>(threadIdx.x % 32) / 4; threadIdx.x % 4 == 0 && row < kStreamRows; row += 8)
        sums[row] = 0.0f;
  }

  __device__ void merge(char *slot, const DoraFactors *factors) const {
    if (work_ == Work::kBf16)
      merge<Bf16>(slot, factors);
    else if (work_ == Work::kF16)
      merge<F16>(slot, factors);
    else if (work_ == Work::kClear)
      my_.clear(slot);
  }

 private:
  enum class Work { kNone, kClear, kBf16, kF16 };  // with what the warp has of a target; the latter: compute

  __device__ bool computes() const { return work_ >= Work::kBf16; }

  template <typename Type>
  __device__ void sum_squares(char *slot, float *sums) const {
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
    const float v = v_ * terms_.factor({});
#pragma unroll
    for (int y = 0; y < kStreamRows; y += 16) {
      const auto words = my_.load(slot, y);
      const auto delta = terms_.bare_rows(slot, y);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float squares = 0.0f;
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
          const float2 base = Type::get(&words.word[half][n], 0), d = delta.pair(half, n);
          const float v0 = fmaf(v, d.x, base.x), v1 = fmaf(v, d.y, base.y);
          squares = fmaf(v0, v0, fmaf(v1, v1, squares));
        }
        const float sum = sum_over<1, 4>(squares);
        if (q == 0) sums[y + half * 8 + g] = sum;
      }
    }
  }

  template <typename Type>
  __device__ void merge(char *slot, const DoraFactors *factors) const {
    const int g = static_cast<int>(threadIdx.x % 32) / 4;
#pragma unroll 1
    for (int y = 0; y < kStreamRows; y += 16) {
      const DoraFactors of_half[] = {factors[y + g], factors[y + 8 + g]};
      if (__any_sync(~0u, of_half[0].w != 0.0f || of_half[1].w != 0.0f))
        merge_cancelling<Type>(slot, y, of_half);
      else
        merge_plain<Type>(slot, y, of_half);
    }
  }

  /// Where no row's D and W cancel: a weighted sum of them.
  template <typename Type>
  __device__ void merge_plain(char *slot, int y, const DoraFactors (&factors)[2]) const {
    float of_delta[2], of_base[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      of_delta[half] = factors[half].x * factors[half].v * terms_.factor({});
      of_base[half] = factors[half].y + kept();
    }
    const auto delta = terms_.bare_rows(slot, y);
    my_.template replace<Type>(slot, y, my_.load(slot, y), [&](int half, int n, float2 base) {
      const float2 d = delta.pair(half, n);
      return make_float2(fmaf(of_delta[half], d.x, of_base[half] * base.x),
                         fmaf(of_delta[half], d.y, of_base[half] * base.y));
    });
  }

  template <typename Type>
  __device__ void merge_cancelling(char *slot, int y, const DoraFactors (&factors)[2]) const {
    const auto delta = terms_.rows(slot, y, {});
    my_.template replace<Type>(slot, y, my_.load(slot, y), [&](int half, int n, float2 base) {
      const DoraFactors &f = factors[half];
      const float2 d = delta.pair(half, n);
      return make_float2(fmaf(kept(), base.x, dora_change(f, base.x, d.x)),
                         fmaf(kept(), base.y, dora_change(f, base.y, d.y)));
    });
  }

  /// Of the base, besides what changes.
  __device__ float kept() const { return p_.stream.op == ops::WeightOp::kDiff ? 0.0f : 1.0f; }

  const Parameters &p_;
  const WarpColumns<K> my_;
  LowRank<K> terms_;
  float v_ = 1.0f;
  Work work_ = Work::kNone;
};

/// The warp is done with a slot; the copy engine reads what was written there.
__device__ void release(const Shared &shared, int slot) {
  publish_shared();
  __syncwarp();
  if (threadIdx.x % 32 == 0) shared.computed(slot).arrive();
}

template <typename K>
__device__ void compute(const Parameters &p, const Shared &shared, int warp) {
  Worker<K> worker(p, shared, warp);
  Cursor<K> at(p);
  Turn slot;
  int entered = -1, waiting = -1;  // waiting: the slot of the last band, until it is merged
  for (unsigned band = 0; !at.at_end() || waiting >= 0;) {
    // What a strip has is there until its last band is merged.
    const bool has_next = !at.at_end() && !(at.begins_run() && waiting >= 0);
    if (has_next) {
      if (at.index() != entered) worker.enter(at);
      entered = at.index();
      shared.full(slot.index).wait(slot.round);
      if (at.on_columns()) {
        worker.take_columns(shared.slot(slot.index), at.column_slot());
        release(shared, slot.index);
      } else {
        worker.sum_squares(shared.slot(slot.index), shared.norms.of_warps[band % kBuffers][warp]);
        if (threadIdx.x % 4 == 0) shared.summed(band).arrive();
      }
    }
    if (waiting >= 0) {
      const unsigned last = band - 1;
      shared.found(last).wait(last / kBuffers);
      worker.merge(shared.slot(waiting), shared.norms.factors[last % kBuffers]);
      release(shared, waiting);
      waiting = -1;
    }
    if (!has_next) continue;
    if (!at.on_columns()) {
      waiting = slot.index;
      ++band;
    }
    slot.next(p.shape.slots);
    at.next();
  }
}

#endif

template <typename K>
__global__ void __maxnreg__(row_registers(K::kForm)) row_kernel(const __grid_constant__ Parameters p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ char raw[];
  __shared__ Norms norms;
  const auto unaligned = reinterpret_cast<std::uintptr_t>(raw);
  char *slots = raw + (kSwizzleAlignment - unaligned % kSwizzleAlignment) % kSwizzleAlignment;
  const int bytes = slot_bytes(K::kChunks, p.shape.boxes), warps = p.shape.boxes * K::kWarpsPerBox;
  const Shared shared{norms, slots, bytes, warps};
  if (threadIdx.x == 0) shared.init();
  __syncthreads();
  wait_for_cluster();  // nobody sends to barriers that are not there
  begin_kernel();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < warps)
    compute<K>(p, shared, warp);
  else if (warp == warps)
    find_factors<K>(p, shared);
  else if (threadIdx.x % 32 == 0)
    feed<K>(p, shared);
#endif
}

struct Instance {
  StreamKind kind;  // apart from the cluster
  void (*kernel)(Parameters);
  int chunks, warps_per_box;

  int threads(int boxes) const { return (boxes * warps_per_box + kServiceWarps) * 32; }
  int shared_bytes(const RowShape &shape) const {
    return kSwizzleAlignment + shape.slots * slot_bytes(chunks, shape.boxes);
  }
};

template <int kChunks, StreamForm kForm, bool kBf16Factors>
constexpr Instance instance() {
  using K = Kind<kChunks, kForm, kBf16Factors>;
  return {{kChunks, kForm, kBf16Factors, true}, row_kernel<K>, kChunks, K::kWarpsPerBox};
}

// Those of stream_kernels.cu with DoRA.
constexpr Instance kInstances[] = {
    instance<1, StreamForm::kSingle, true>(),    instance<4, StreamForm::kSeveral, true>(),
    instance<4, StreamForm::kSeveral, false>(),  instance<2, StreamForm::kHadamard, true>(),
    instance<4, StreamForm::kHadamard, true>(),  instance<2, StreamForm::kHadamard, false>(),
    instance<4, StreamForm::kHadamard, false>(),
};

const Instance &instance_of(StreamKind kind) {
  kind.cluster = 0;
  for (const Instance &instance : kInstances)
    if (instance.kind == kind) return instance;
  return kInstances[0];  // kinds are made of what is here
}

/// As many slots as leave room for `blocks` blocks on a multiprocessor; too few if it does not go.
cudaError_t find_slots(const Instance &instance, int blocks, RowShape *shape) {
  const auto *kernel = reinterpret_cast<const void *>(instance.kernel);
  int device, of_block, of_all, reserved;
  cudaError_t status = cudaGetDevice(&device);
  for (const auto &[value, attribute] : {std::pair{&of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                                         std::pair{&of_all, cudaDevAttrMaxSharedMemoryPerMultiprocessor},
                                         std::pair{&reserved, cudaDevAttrReservedSharedMemoryPerBlock}})
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(value, attribute, device);
  cudaFuncAttributes of_kernel{};
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&of_kernel, kernel);
  if (status != cudaSuccess) return status;
  const int fixed = static_cast<int>(of_kernel.sharedSizeBytes);
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, of_block - fixed);
  const int room = std::min(of_block, of_all / blocks - reserved) - fixed;
  shape->slots = kMostSlots;
  while (shape->slots > 0 && instance.shared_bytes(*shape) > room) --shape->slots;
  return status;
}

/// How many clusters of blocks of that shape the device holds at once; 0 as well where a multiprocessor holds fewer
/// than `blocks` of them.
cudaError_t count_clusters(const Instance &instance, int cluster, int blocks, RowShape *shape) {
  const auto *kernel = reinterpret_cast<const void *>(instance.kernel);
  const int threads = instance.threads(shape->boxes);
  const auto bytes = static_cast<std::size_t>(instance.shared_bytes(*shape));
  cudaError_t status = cudaSuccess;
  if (cluster > kPortableCluster)
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  int resident = 0;
  if (status == cudaSuccess) status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, bytes);
  if (status != cudaSuccess || resident < blocks) return status;
  return resident_clusters(kernel, threads, bytes, cluster, &shape->clusters);
}

}  // namespace

cudaError_t fit_rows(const StreamKind &kind, int boxes, RowShape *shape) {
  const Instance &instance = instance_of(kind);
  *shape = {boxes, 0, 0};
  constexpr int kManyBlocks = 4;
  for (int blocks = kManyBlocks; blocks > 0 && shape->clusters == 0; --blocks) {
    cudaError_t status = find_slots(instance, blocks, shape);
    if (status == cudaSuccess && shape->slots >= (blocks > 1 ? kFewestSlots + 1 : kFewestSlots))
      status = count_clusters(instance, kind.cluster, blocks, shape);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

cudaError_t launch_rows(const StreamKind &kind, const RowShape &shape, const StreamTable &table,
                        const StreamTarget &only, const StreamRun &run, const Launch &on) {
  const Instance &instance = instance_of(kind);
  Parameters parameters{
      {only, table, run.op, run.pass, run.multipliers, run.workspace}, shape, static_cast<int>(kind.cluster)};
  void *arguments[] = {&parameters};
  const unsigned clusters = std::min(table.run_count, static_cast<unsigned>(shape.clusters));
  return launch_kernel(reinterpret_cast<const void *>(instance.kernel), clusters * static_cast<unsigned>(kind.cluster),
                       instance.threads(shape.boxes), static_cast<std::size_t>(instance.shared_bytes(shape)), on,
                       arguments, kind.cluster);
}

}  // namespace lyc::cuda
