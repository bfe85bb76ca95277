#include "base/threads.hpp"

#include <algorithm>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace lyc {
namespace {

// Some tens of microseconds: the phases of one weight follow each other faster than a sleeping thread wakes.
constexpr int kSpins = 1000;

void pause_briefly() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

template <typename Condition>
void spin_until(Condition condition) {
  for (int i = 0; i < kSpins && !condition(); ++i) pause_briefly();
}

#if defined(__unix__) || defined(__APPLE__)
// Threads inherit the mask: the host's signal handlers must not run on ours.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &previous_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }

 private:
  sigset_t previous_;
};
#else
struct SignalsBlocked {};
#endif

}  // namespace

ThreadPool::ThreadPool(int threads) : stretches_(static_cast<std::size_t>(std::max(threads, 1))) {
  [[maybe_unused]] const SignalsBlocked blocked;
  try {
    workers_.reserve(static_cast<std::size_t>(std::max(threads, 1) - 1));
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { work(worker); });
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread &worker : workers_) worker.join();
}

void ThreadPool::run(std::int64_t count, Invoke invoke, void *body) {
  if (workers_.empty() || count <= 1) {
    for (std::int64_t index = 0; index < count; ++index) invoke(body, index, 0);
    return;
  }
  const std::lock_guard<std::mutex> turn(callers_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    invoke_ = invoke;
    body_ = body;
    const std::int64_t workers = this->threads();
    for (std::int64_t worker = 0; worker < workers; ++worker) {
      Stretch &stretch = stretches_[static_cast<std::size_t>(worker)];
      stretch.next.store(count / workers * worker + std::min(count % workers, worker), std::memory_order_relaxed);
      stretch.end = count / workers * (worker + 1) + std::min(count % workers, worker + 1);
    }
    open_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  drain(0);

  // A worker that has not woken by now is not waited for: it finds the run closed.
  std::exception_ptr error;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_ = false;
  }
  spin_until([this] { return active_.load(std::memory_order_acquire) == 0; });
  {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return active_.load(std::memory_order_relaxed) == 0; });
    error = std::exchange(error_, nullptr);
  }
  if (error) std::rethrow_exception(error);
}

void ThreadPool::drain(int worker) {
  try {
    for (int i = 0; i < threads(); ++i) {
      Stretch &stretch = stretches_[static_cast<std::size_t>((worker + i) % threads())];
      for (std::int64_t index; (index = stretch.next.fetch_add(1, std::memory_order_relaxed)) < stretch.end;)
        invoke_(body_, index, worker);
    }
  } catch (...) {
    for (Stretch &stretch : stretches_) stretch.next.store(stretch.end, std::memory_order_relaxed);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::work(int worker) {
  std::uint64_t seen = 0;
  for (;;) {
    spin_until([&] { return generation_.load(std::memory_order_acquire) != seen; });
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
      seen = generation_.load(std::memory_order_relaxed);
      if (stopping_) return;
      if (!open_) continue;
      active_.fetch_add(1, std::memory_order_relaxed);
    }
    drain(worker);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      active_.fetch_sub(1, std::memory_order_release);
    }
    idle_.notify_one();
  }
}

}  // namespace lyc
