// The copy engine (TMA) of Hopper and later, and how warps read what it has put into shared memory.
#pragma once

#include "device.cuh"
#include "stream_table.hpp"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

namespace lyc::cuda {

__device__ inline std::uint32_t shared_address(const void *pointer) {
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

// -- copies -----------------------------------------------------------------------------------------------------------

/// A place in a weight: column and block across, row and block down.
struct Place {
  int x, j, y, i;
};

/// A map that is soon wanted.
__device__ inline void prefetch(const TensorMap &map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// A box of a matrix.
__device__ inline void copy_in(std::uint32_t to, const TensorMap &map, int x, int y, Barrier barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier.address)
      : "memory");
}

/// A box of a weight.
__device__ inline void copy_in(std::uint32_t to, const TensorMap &map, const Place &at, Barrier barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(to),
      "l"(&map), "r"(at.x), "r"(at.j), "r"(at.y), "r"(at.i), "r"(barrier.address)
      : "memory");
}

__device__ inline void copy_in(std::uint32_t to, const char *from, int bytes, Barrier barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier.address)
               : "memory");
}

__device__ inline void copy_out(const TensorMap &map, const Place &at, std::uint32_t from) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
               "r"(from), "r"(at.x), "r"(at.j), "r"(at.y), "r"(at.i)
               : "memory");
}

__device__ inline void copy_out(char *to, std::uint32_t from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
               : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int kPending>
__device__ void wait_until_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

/// The copy engine sees what this thread has written to shared memory.
__device__ inline void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// -- fragments --------------------------------------------------------------------------------------------------------

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

/// What load_matrices<false>() would load, back.
__device__ inline void store_matrices(std::uint32_t at, uint4 m) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(m.x), "r"(m.y),
               "r"(m.z), "r"(m.w)
               : "memory");
}

// Where the copy engine puts 16 bytes of a row: it swaps them about so that columns do not share banks.
__device__ inline int swizzled_64(int row, int part) { return row * 64 + (part ^ (row / 2 & 3)) * 16; }
__device__ inline int swizzled_128(int row, int part) { return row * 128 + (part ^ (row & 7)) * 16; }

/// Operand A of mma: 16 rows x 16 ranks. `y` is 0 or 16, which the swapping leaves apart from the lane's row.
__device__ inline uint4 load_row_factor(std::uint32_t chunk, bool transposed, int y) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (transposed) {  // [rank][row]
    const int rank = lane % 8 + lane / 16 * 8;
    return load_matrices<true>(chunk + (swizzled_64(rank, lane / 8 % 2) ^ y * 2));
  }
  return load_matrices<false>(chunk + swizzled_32(lane % 16, lane / 16) + y * 32);
}

/// Operand B of mma for two neighbouring n tiles: 16 ranks x 16 columns.
__device__ inline uint4 load_column_factor(std::uint32_t chunk, bool transposed, int pair) {
  const int lane = static_cast<int>(threadIdx.x % 32), n = pair + lane / 16;
  if (transposed)  // [column][rank]
    return load_matrices<false>(chunk + swizzled_32(n * 8 + lane % 8, lane / 8 % 2));
  return load_matrices<true>(chunk + swizzled_128(lane % 16, n));
}

}  // namespace lyc::cuda

#endif
