// out = round(base + what the terms of a target come to), for contiguous 16-bit weights on GPUs that have a copy engine
// (Hopper and later). What the terms are is a StreamForm; with DoRA, sums of squares first, and the factors they give.
//
// Work.     One thread of a block's last warp feeds a ring of slots in shared memory by bulk tensor copies and sends
//           finished slots back to memory; the other warps compute a tile where it lies. Tiles are dealt out evenly,
//           whatever weights they belong to; where a strip begins, what its tiles share is taken up: column factors,
//           which come through the ring, too, into registers, a part of a Kronecker product's right half into shared
//           memory.
// Traffic.  base read once, out written once, row factors once a strip (rank / 256 of the base), column factors once.
//           What limits is memory: three blocks on a multiprocessor keep some 100 KB on the way. With DoRA the base is
//           read twice, the second time from the end, where the caches still hold it; row_kernels.cu reads it once
//           where rows fit on the chip.
// Numerics. As in stream_terms.cuh; one rounding, at the store. If no term adds anything, tiles pass unchanged.
#include "stream_terms.cuh"

namespace lyc::cuda {
namespace {

constexpr int kSlots = 4;
constexpr int kTileBytes = kBoxes * kBoxBytes;

/// An instance's properties as a type.
template <int kMostChunks, StreamForm kTheForm, bool kBf16, bool kWithDora = false>
struct Kind : TermsKind<kMostChunks, kTheForm, kBf16, kWithDora, stream_warps_per_box(kMostChunks, kTheForm)> {
  static constexpr int kWarps = kBoxes * Kind::kWarpsPerBox, kThreads = (kWarps + 1) * 32;
  static constexpr int kSlotBytes = kTileBytes + kMostChunks * kRowChunkBytes;
  static constexpr int kBlocks = kWarps == kBoxes && Kind::kLowRank ? 3 : 2;  // wanted on a multiprocessor
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// -- the order of the work --------------------------------------------------------------------------------------------

/// What a block does, slot after slot: where a run begins its column factors, then its tiles. A merge after norms goes
/// the other way.
template <typename K>
class Cursor {
 public:
  __device__ explicit Cursor(const StreamParameters &p)
      : p_(p), step_(K::kDora && p.pass == StreamPass::kMerge ? -1 : 1), run_(blockIdx.x) {
    find_run();
  }

  __device__ bool at_end() const { return run_ >= p_.table.run_count; }
  __device__ bool on_columns() const { return column_slot_ < K::kColumnSlots; }
  __device__ bool begins_run() const { return begins_run_; }
  __device__ int column_slot() const { return column_slot_; }
  /// In memory: what is wanted for every tile was read on entering.
  __device__ const StreamTarget &target() const { return *target_; }
  __device__ int chunk_count() const { return chunk_count_; }
  __device__ bool needs_base() const { return needs_base_; }
  __device__ int index() const { return index_; }
  __device__ const Place &place() const { return place_; }
  __device__ int rows() const { return rows_; }
  __device__ int columns() const { return columns_; }
  __device__ int across() const { return across_; }

  __device__ Place place_of_box(int box) const {
    const int block = K::kKronecker && boxes_across_ < 3 ? box >> (boxes_across_ - 1) : 0;
    return {place_.x + (box - block * boxes_across_) * kBoxColumns, place_.j + block, place_.y, place_.i};
  }
  /// Boxes of the tile that have columns; they are the first ones.
  __device__ int boxes() const {
    const int side_by_side = (columns_ - place_.x + kBoxColumns - 1) / kBoxColumns;
    if (!K::kKronecker || blocks_ == 1) return min(K::kKronecker ? boxes_across_ : kBoxes, side_by_side);
    return boxes_across_ * min(blocks_, across_ - place_.j);
  }

  __device__ void next() {
    if (on_columns()) {
      ++column_slot_;
      return;
    }
    begins_run_ = false;
    tile_of_strip_ += step_ * groups_;
    if (tile_of_strip_ >= 0 && tile_of_strip_ < height_) return find_place();
    run_ += gridDim.x;
    find_run();
  }

 private:
  __device__ void find_run() {
    if (at_end()) return;
    const StreamTable &table = p_.table;
    const std::uint32_t number = step_ > 0 ? run_ : table.run_count - 1 - run_;
    const int index = target_of_run(table, number);
    if (index != index_) enter(index);
    const int local = static_cast<int>(number - (table.targets ? table.first_run[index] : 0));
    const int group = local / strips_;
    strip_ = local % strips_;
    tile_of_strip_ = step_ > 0 ? group : group + (height_ - 1 - group) / groups_ * groups_;
    column_slot_ = 0;
    begins_run_ = true;
    find_place();
  }

  __device__ void enter(int index) {
    index_ = index;
    // Not one load by either address: that of a parameter alone is as near as a register.
    if (p_.table.targets)
      read(p_.table.targets[index]);
    else
      read(p_.only);
  }

  __device__ void read(const StreamTarget &target) {
    target_ = &target;
    rows_ = target.rows;
    columns_ = target.columns;
    across_ = target.across;
    boxes_across_ = target.boxes_across;
    blocks_ = boxes_across_ < 3 ? kBoxes / boxes_across_ : 1;
    strips_ = target.strips;
    height_ = target.height;
    groups_ = target.groups;
    chunk_count_ = target.chunk_count;
    needs_base_ = K::kDora || p_.op != ops::WeightOp::kDiff;
  }

  /// Where a tile of a strip is.
  __device__ void find_place() {
    if constexpr (K::kKronecker) {
      const int wide = (columns_ + kStreamColumns - 1) / kStreamColumns, sets = (across_ + blocks_ - 1) / blocks_;
      place_ = {strip_ % wide * kStreamColumns, tile_of_strip_ % sets * blocks_, strip_ / wide * kStreamRows,
                tile_of_strip_ / sets};
    } else {
      place_ = {strip_ * kStreamColumns, 0, tile_of_strip_ * kStreamRows, 0};
    }
  }

  const StreamParameters &p_;
  const StreamTarget *target_;
  const int step_;
  std::uint32_t run_;
  int index_ = -1, rows_, columns_, across_, boxes_across_, blocks_, strips_, height_, groups_, chunk_count_;
  int strip_, tile_of_strip_, column_slot_ = 0;
  bool begins_run_ = true, needs_base_ = true;
  Place place_;
};

struct Ring {
  char *slots, *held;       // held: what a form keeps of a strip
  std::uint64_t *barriers;  // kSlots for full ones, then kSlots for those that are computed

  __device__ char *slot(unsigned item, int bytes) const { return slots + item % kSlots * bytes; }
  __device__ Barrier full(unsigned item) const { return {shared_address(barriers + item % kSlots)}; }
  __device__ Barrier computed(unsigned item) const { return {shared_address(barriers + kSlots + item % kSlots)}; }
};

// -- the thread that copies -------------------------------------------------------------------------------------------

template <typename K>
__device__ void load_columns(const StreamParameters &p, const Ring &ring, unsigned item, const Cursor<K> &at) {
  const int first = at.column_slot() * kColumnSlotChunks, boxes = at.boxes();
  const int chunks = max(0, min(kColumnSlotChunks, at.chunk_count() - first));
  const Barrier full = ring.full(item);
  full.arrive_expecting(chunks * boxes * kColumnChunkBytes);
  const std::uint32_t to = shared_address(ring.slot(item, K::kSlotBytes));
#pragma unroll
  for (int c = 0; c < K::kChunks; ++c) {
    if (c < first || c >= first + chunks) continue;
#pragma unroll
    for (int box = 0; box < kBoxes; ++box)
      if (box < boxes)
        load_column_factor(p, column_chunk(to, box, c), at.target(), at.target().chunks[c], at.columns(),
                           at.place().x + box * kBoxColumns, full);
  }
}

template <typename K>
__device__ void load_tile(const StreamParameters &p, const Ring &ring, unsigned item, const Cursor<K> &at) {
  const int boxes = at.needs_base() ? at.boxes() : 0, chunks = at.chunk_count(), y = at.place().y;
  const Barrier full = ring.full(item);
  full.arrive_expecting(boxes * kBoxBytes + chunks * kRowChunkBytes);
  char *slot = ring.slot(item, K::kSlotBytes);
#pragma unroll
  for (int box = 0; box < kBoxes; ++box)
    if (box < boxes) copy_in(shared_address(box_of<K>(slot, box)), at.target().base, at.place_of_box(box), full);
  load_row_factors<K>(p, shared_address(slot), at.target(), chunks, at.rows(), y, full);
}

template <typename K>
__device__ void store_tile(const Ring &ring, unsigned item, const Cursor<K> &at) {
  char *slot = ring.slot(item, K::kSlotBytes);
  const int boxes = at.boxes();
#pragma unroll
  for (int box = 0; box < kBoxes; ++box)
    if (box < boxes) copy_out(at.target().out, at.place_of_box(box), shared_address(box_of<K>(slot, box)));
}

template <typename K>
__device__ void feed(const StreamParameters &p, const Ring &ring) {
  Cursor<K> load(p), store(p);
  unsigned loaded = 0;
  const auto load_next = [&] {
    if (load.on_columns())
      load_columns<K>(p, ring, loaded, load);
    else
      load_tile<K>(p, ring, loaded, load);
    ++loaded;
    load.next();
  };
  while (loaded < kSlots && !load.at_end()) load_next();
  for (unsigned item = 0; !store.at_end(); ++item, store.next()) {
    ring.computed(item).wait(item / kSlots);
    if (!store.on_columns() && p.pass == StreamPass::kMerge) store_tile<K>(ring, item, store);
    commit_copies();
    if (item == 0 || load.at_end()) continue;
    wait_until_read<1>();  // the slot before this one is free
    load_next();
  }
  wait_for_copies();
}

// -- the threads that compute -----------------------------------------------------------------------------------------

/// What one warp does with its columns of every tile.
template <typename K>
class Worker {
  using Words = typename WarpColumns<K>::Words;

 public:
  __device__ Worker(const StreamParameters &p, const Ring &ring, int warp)
      : p_(p), my_(warp), terms_(p, my_, ring.held + warp * (K::kHeldBytes / K::kWarpsPerBox)) {}

  __device__ int box() const { return my_.box(); }

  __device__ void enter(const StreamTarget &target) {
    active_ = terms_.enter(target);
    bf16_ = target.bf16 != 0;
    if constexpr (K::kDora) {
      dora_ = target.dora;
      v_ = static_cast<float>(
          dora_coefficients(dora_.parameters.rule, multiplier_at(p_.multipliers, target.terms[0].multiplier_index)).v);
    }
  }

  __device__ void take_columns(char *slot, int column_slot) { terms_.take_columns(slot, column_slot); }
  /// What can be fetched before the tile is there.
  __device__ void prepare(const Cursor<K> &at) {
    if (active_) tile_ = terms_.prepare(at, at.place_of_box(my_.box()));
  }

  __device__ void work_on(char *slot, const Cursor<K> &at) {
    if (bf16_)
      work_on_type<Bf16>(slot, at);
    else
      work_on_type<F16>(slot, at);
  }

 private:
  template <typename Type>
  __device__ void work_on_type(char *slot, const Cursor<K> &at) {
    if (!active_) {
      if (p_.op == ops::WeightOp::kDiff && p_.pass == StreamPass::kMerge) my_.clear(slot);
      return;
    }
    terms_.begin_tile(slot);
    if constexpr (K::kDora) {
      if (dora_.by_row)
        work_on_lines<Type, true>(slot, at);
      else
        work_on_lines<Type, false>(slot, at);
    } else {
#pragma unroll 1
      for (int y = 0; y < kStreamRows; y += 16) add<Type>(slot, y, terms_.rows(slot, y, tile_));
    }
  }

  template <typename Type, bool kByRow>
  __device__ void work_on_lines(char *slot, const Cursor<K> &at) const {
    if (p_.pass == StreamPass::kNorms)
      add_squares<Type, kByRow>(slot, at);
    else
      merge_dora<Type, kByRow>(slot, at);
  }

  template <typename Type, typename Delta>
  __device__ void add(char *slot, int y, const Delta &delta) const {
    const bool keeps_base = p_.op != ops::WeightOp::kDiff;
    Words words = {};
    if (keeps_base) words = my_.load(slot, y);
    my_.template replace<Type>(slot, y, words, [&](int half, int n, float2 base) {
      const float2 d = delta.pair(half, n);
      return make_float2(base.x + d.x, base.y + d.y);
    });
  }

  /// Squares of V = W + v D, summed over the tile's part of each line.
  template <typename Type, bool kByRow>
  __device__ void add_squares(char *slot, const Cursor<K> &at) const {
    constexpr int kPairs = Sum<K>::kPairs;
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
    auto *partial = reinterpret_cast<float *>(p_.workspace + dora_.partial);
    const Place place = at.place_of_box(my_.box());
    float column_sums[kPairs][2] = {};
#pragma unroll 1
    for (int y = 0; y < kStreamRows; y += 16) {
      const Words words = my_.load(slot, y);
      const auto delta = terms_.rows(slot, y, tile_);
      float row_sums[2] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
          const float2 base = Type::get(&words.word[half][n], 0);
          const float2 d = delta.pair(half, n);
          const float v0 = fmaf(v_, d.x, base.x), v1 = fmaf(v_, d.y, base.y);
          if constexpr (kByRow) {
            row_sums[half] = fmaf(v0, v0, fmaf(v1, v1, row_sums[half]));
          } else {
            column_sums[n][0] = fmaf(v0, v0, column_sums[n][0]);
            column_sums[n][1] = fmaf(v1, v1, column_sums[n][1]);
          }
        }
      if constexpr (!kByRow) continue;
      const int boxes = (at.columns() + kBoxColumns - 1) / kBoxColumns;
      const std::int64_t piece =
          std::int64_t{place.j * boxes + place.x / kBoxColumns} * K::kWarpsPerBox + my_.first_pair() / kPairs;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = sum_over<1, 4>(row_sums[half]);
        const int row = place.y + y + half * 8 + g;
        if (q == 0 && row < at.rows()) partial[piece * dora_.lines + place.i * at.rows() + row] = sum;
      }
    }
    if constexpr (!kByRow) {
      const int row_tiles = (at.rows() + kStreamRows - 1) / kStreamRows;
      const std::int64_t piece = std::int64_t{place.i} * row_tiles + place.y / kStreamRows;
#pragma unroll
      for (int n = 0; n < kPairs; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float sum = sum_over<4, 32>(column_sums[n][c]);
          const int column = place.x + (my_.first_pair() + n) * 8 + q * 2 + c;
          if (g == 0 && column < at.columns()) partial[piece * dora_.lines + place.j * at.columns() + column] = sum;
        }
    }
  }

  __device__ DoraFactors factors_of(int line) const {
    const auto *factors = reinterpret_cast<const float4 *>(p_.workspace + dora_.factors);
    const float4 f = __ldg(factors + min(line, dora_.lines - 1));
    return {f.x, f.y, f.z, f.w};
  }

  template <typename Type, bool kByRow>
  __device__ void merge_dora(char *slot, const Cursor<K> &at) const {
    constexpr int kPairs = Sum<K>::kPairs;
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
    const Place place = at.place_of_box(my_.box());
    const float kept = p_.op == ops::WeightOp::kDiff ? 0.0f : 1.0f;
    const auto merged = [&](const DoraFactors &factors, float base, float d) {
      return fmaf(kept, base, dora_change(factors, base, d));
    };
#pragma unroll 1
    for (int y = 0; y < kStreamRows; y += 16) {
      DoraFactors factors[2];
      if constexpr (kByRow)
        for (int half = 0; half < 2; ++half)
          factors[half] = factors_of(place.i * at.rows() + place.y + y + half * 8 + g);
      const auto delta = terms_.rows(slot, y, tile_);
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
        if constexpr (!kByRow) {
          const int column = place.j * at.columns() + place.x + (my_.first_pair() + n) * 8 + q * 2;
          for (int c = 0; c < 2; ++c) factors[c] = factors_of(column + c);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          std::uint32_t *word = my_.word_at(slot, y, half, n);
          const float2 base = Type::get(word, 0), d = delta.pair(half, n);
          Type::put(word, 0,
                    make_float2(merged(factors[kByRow ? half : 0], base.x, d.x),
                                merged(factors[kByRow ? half : 1], base.y, d.y)));
        }
      }
    }
  }

  const StreamParameters &p_;
  const WarpColumns<K> my_;
  Terms<K> terms_;
  typename Terms<K>::Tile tile_{};
  StreamDora dora_{};
  float v_ = 1.0f;
  bool active_ = false, bf16_ = false;
};

template <typename K>
__device__ void compute(const StreamParameters &p, const Ring &ring, int warp) {
  Worker<K> worker(p, ring, warp);
  int entered = -1;
  unsigned item = 0;
  for (Cursor<K> at(p); !at.at_end(); ++item, at.next()) {
    if (at.index() != entered && p.table.targets) worker.enter(p.table.targets[at.index()]);
    if (at.index() != entered && !p.table.targets) worker.enter(p.only);
    entered = at.index();
    char *slot = ring.slot(item, K::kSlotBytes);
    const bool has_work = worker.box() < at.boxes();
    if (!at.on_columns()) worker.prepare(at);
    ring.full(item).wait(item / kSlots);
    if (has_work) {
      if (at.on_columns())
        worker.take_columns(slot, at.column_slot());
      else
        worker.work_on(slot, at);
    }
    publish_shared();  // the copy engine reads what was written here
    ring.computed(item).arrive();
  }
}

#endif

template <typename K>
__global__ void __launch_bounds__(K::kThreads, K::kBlocks) stream_kernel(const __grid_constant__ StreamParameters p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ char raw[];
  __shared__ alignas(8) std::uint64_t barriers[2 * kSlots];
  const auto unaligned = reinterpret_cast<std::uintptr_t>(raw);
  char *slots = raw + (kSwizzleAlignment - unaligned % kSwizzleAlignment) % kSwizzleAlignment;
  const Ring ring{slots, slots + kSlots * K::kSlotBytes, barriers};
  if (threadIdx.x == 0) {
    for (unsigned s = 0; s < kSlots; ++s) {
      ring.full(s).init(1);
      ring.computed(s).init(K::kWarps * 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  begin_kernel();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < K::kWarps)
    compute<K>(p, ring, warp);
  else if (threadIdx.x % 32 == 0)
    feed<K>(p, ring);
#endif
}

struct Instance {
  StreamKind kind;
  void (*kernel)(StreamParameters);
  int threads, shared_bytes;
};

template <int kChunks, StreamForm kForm, bool kBf16Factors, bool kDora = false>
constexpr Instance instance() {
  using K = Kind<kChunks, kForm, kBf16Factors, kDora>;
  return {{kChunks, kForm, kBf16Factors, kDora},
          stream_kernel<K>,
          K::kThreads,
          kSlots * K::kSlotBytes + kBoxes * K::kHeldBytes + kSwizzleAlignment};
}

// What stream_kind() makes. Without DoRA and of few terms, products of factors as files have them are for
// panel_kernels.cu. Both halves of a Hadamard product have half of the chunks: three for 16 ranks that a run computes.
constexpr Instance kInstances[] = {
    instance<4, StreamForm::kSingle, true>(),          instance<8, StreamForm::kSingle, true>(),
    instance<4, StreamForm::kSeveral, true>(),         instance<4, StreamForm::kSeveral, false>(),
    instance<6, StreamForm::kHadamard, true>(),        instance<1, StreamForm::kSingle, true, true>(),
    instance<4, StreamForm::kSeveral, true, true>(),   instance<4, StreamForm::kSeveral, false, true>(),
    instance<2, StreamForm::kHadamard, true, true>(),  instance<4, StreamForm::kHadamard, true, true>(),
    instance<2, StreamForm::kHadamard, false, true>(), instance<4, StreamForm::kHadamard, false, true>(),
    instance<0, StreamForm::kKronecker, true, true>(),
};

const Instance &instance_of(const StreamKind &kind) {
  for (const Instance &instance : kInstances)
    if (instance.kind == kind) return instance;
  return kInstances[0];  // kinds are made of what is here
}

}  // namespace

cudaError_t resident_blocks(StreamKind kind, int *blocks) {
  const Instance &instance = instance_of(kind);
  const auto *kernel = reinterpret_cast<const void *>(instance.kernel);
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, instance.shared_bytes);
  if (status != cudaSuccess) return status;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, instance.threads,
                                                       static_cast<std::size_t>(instance.shared_bytes));
}

cudaError_t launch_stream(StreamKind kind, const StreamTable &table, const StreamTarget &only, int blocks,
                          const StreamRun &run, const Launch &on) {
  const Instance &instance = instance_of(kind);
  StreamParameters parameters{only, table, run.op, run.pass, run.multipliers, run.workspace};
  void *arguments[] = {&parameters};
  const unsigned grid =
      table.run_count < static_cast<unsigned>(blocks) ? table.run_count : static_cast<unsigned>(blocks);
  return launch_kernel(reinterpret_cast<const void *>(instance.kernel), grid, instance.threads,
                       static_cast<std::size_t>(instance.shared_bytes), on, arguments);
}

}  // namespace lyc::cuda
