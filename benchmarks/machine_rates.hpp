// What the machine can do: the two sides of a roofline.
#pragma once

#include <cstdint>
#include <vector>

#include "base/threads.hpp"

namespace lyc::bench {

/// Every thread on a processor of its own, where there are as many: some systems leave two on one for a long time.
void spread(ThreadPool &pool);

/// What is done with memory: read and written to another place or in place, written without being read, or read alone.
enum class Move { kCopy, kChange, kWrite, kRead };

/// Two pieces of memory far beyond any cache, moved by windows of less than a millisecond: its rate depends on the
/// neighbours of a virtual machine, so it is measured beside what is to be compared with it.
class Memory {
 public:
  explicit Memory(ThreadPool &pool);

  /// Bytes per second, read and written both counted, in the best of the next windows, the better way of through the
  /// caches and past them.
  double rate(Move move);

 private:
  double window_rate(Move move);
  template <typename Body>
  double seconds(Body &&body);

  ThreadPool &pool_;
  std::vector<char> from_, to_;
  std::int64_t window_ = 0;
};

/// float32 operations per second of independent fused multiply-adds in registers.
double fma_rate(ThreadPool &pool);

/// Seconds by the wall clock; with `by_processor_time`, the process's processor time, for a machine that is not idle.
double now();
void by_processor_time();

/// Seconds of the best of `repeats` calls: neighbours on a shared machine only ever add time.
template <typename Body>
double best_seconds(int repeats, Body &&body);

}  // namespace lyc::bench

#include <algorithm>

template <typename Body>
double lyc::bench::best_seconds(int repeats, Body &&body) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double start = now();
    body();
    best = std::min(best, now() - start);
  }
  return best;
}
