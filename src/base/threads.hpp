// A pool of threads that belongs to one context. The calling thread takes part, so a pool of one has no threads at all.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace lyc {

class ThreadPool {
 public:
  /// `threads` counts the caller's; it is at least 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// body(index, worker) for every index below `count`, in no particular order; 0 <= worker < threads(), and no two
  /// bodies run under one number at once. Each worker begins with a stretch of its own, the same one for the same
  /// count, whose data may still be in its caches. Returns when all are done; the first exception ends the rest and is
  /// thrown here. Allocates nothing. Several threads may call, one after the other gets its turn; a body must not.
  template <typename Body>
  void parallel_for(std::int64_t count, Body &&body) {
    using Type = std::remove_reference_t<Body>;
    run(
        count, [](void *b, std::int64_t index, int worker) { (*static_cast<Type *>(b))(index, worker); },
        const_cast<void *>(static_cast<const void *>(std::addressof(body))));
  }

 private:
  using Invoke = void (*)(void *body, std::int64_t index, int worker);

  void run(std::int64_t count, Invoke invoke, void *body);
  void drain(int worker);
  void work(int worker);
  void stop();

  /// Where a worker begins; the others help when they have come to the end of theirs. One counter for all makes merges
  /// of rotations up to 7 % slower.
  struct alignas(64) Stretch {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  std::vector<Stretch> stretches_;  // one for each worker
  std::vector<std::thread> workers_;
  std::mutex callers_;  // held for a whole run

  std::mutex mutex_;  // guards what follows, the atomics' waiters included
  std::condition_variable wake_, idle_;
  bool open_ = false;  // workers may still join the current run
  bool stopping_ = false;
  std::exception_ptr error_;
  Invoke invoke_ = nullptr;
  void *body_ = nullptr;

  std::atomic<std::uint64_t> generation_{0};  // one more for every run; workers spin on it for a moment
  std::atomic<int> active_{0};                // workers inside the current run
};

}  // namespace lyc
