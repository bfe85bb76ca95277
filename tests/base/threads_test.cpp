#include "base/threads.hpp"

#include <gtest/gtest.h>
#include <stdexcept>

namespace lyc {
namespace {

TEST(ThreadPool, EveryIndexOnceWhateverTheNumberOfThreads) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (std::int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<int> seen(static_cast<std::size_t>(count));  // plain: each index has one owner
      pool.parallel_for(count, [&](std::int64_t index, int worker) {
        EXPECT_GE(worker, 0);
        EXPECT_LT(worker, threads);
        ++seen[static_cast<std::size_t>(index)];
      });
      EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
    }
  }
}

TEST(ThreadPool, ResultsOfOneRunAreSeenByTheNext) {
  ThreadPool pool(3);
  std::vector<std::int64_t> values(64);
  for (int run = 0; run < 2000; ++run)
    pool.parallel_for(64, [&](std::int64_t index, int) { values[static_cast<std::size_t>(63 - index)] += run; });
  EXPECT_EQ(values, std::vector<std::int64_t>(64, 2000 * 1999 / 2));
}

TEST(ThreadPool, ExceptionsReachTheCallerAndThePoolGoesOn) {
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    EXPECT_THROW(pool.parallel_for(1000,
                                   [](std::int64_t index, int) {
                                     if (index == 10) throw std::runtime_error("ten");
                                   }),
                 std::runtime_error);
    std::atomic<int> count{0};
    pool.parallel_for(100, [&](std::int64_t, int) { ++count; });
    EXPECT_EQ(count, 100);
  }
}

TEST(ThreadPool, TwoCallersTakeTurns) {
  ThreadPool pool(2);
  const auto work = [&] {
    for (int run = 0; run < 500; ++run) {
      std::vector<int> seen(16);
      pool.parallel_for(16, [&](std::int64_t index, int) { seen[static_cast<std::size_t>(index)] = run; });
      EXPECT_EQ(seen, std::vector<int>(16, run));
    }
  };
  std::thread other(work);
  work();
  other.join();
}

TEST(ThreadPool, EndsAtOnceAfterAnything) {
  for (int i = 0; i < 100; ++i) {
    ThreadPool pool(4);
    if (i % 2) pool.parallel_for(8, [](std::int64_t, int) {});
  }
}

}  // namespace
}  // namespace lyc
