// What the machine can do: the two sides of a roofline.
#pragma once

#include "base/threads.hpp"

namespace lyc::bench {

/// Every thread on a processor of its own, where there are as many: some systems leave two on one for a long time.
void spread(ThreadPool &pool);

/// Bytes per second, read and written both counted, to another place and in place, and where nothing is read. What is
/// only written goes the better way of through the caches and past them.
double copy_rate(ThreadPool &pool);
double change_rate(ThreadPool &pool);
double write_rate(ThreadPool &pool);

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
