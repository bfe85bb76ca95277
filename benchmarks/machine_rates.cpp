#include "machine_rates.hpp"

#include <atomic>
#include <cstring>
#include <time.h>
#ifdef __linux__
#include <sched.h>
#endif
#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace lyc::bench {
namespace {

clockid_t g_clock = CLOCK_MONOTONIC;

// A register's width, and as many sums as registers hold beside two factors: enough of them to hide a multiply-add's
// latency.
#if defined __AVX512F__
constexpr int kWidth = 64, kSums = 16;
#elif defined __AVX__
constexpr int kWidth = 32, kSums = 12;
#else
constexpr int kWidth = 16, kSums = 12;
#endif
using Wide [[gnu::vector_size(kWidth)]] = float;

constexpr int kRepeats = 100;                             // short ones: other programs leave gaps of milliseconds only
constexpr std::int64_t kSize = std::int64_t{128} << 20;   // far beyond any cache
constexpr std::int64_t kWindow = std::int64_t{16} << 20;  // moved at a time
constexpr std::int64_t kPart = std::int64_t{1} << 16;
constexpr int kWindows = 6, kFirstWindows = 3;  // the first ones fill the caches with what is to be written back

// Past the caches, a line at a time where there is such a store: a copy, or fours. Zeros may be stored without being
// written.
void stream_lines(const char *from, char *to, std::int64_t size) {
#if defined __AVX512F__
  for (std::int64_t i = 0; i < size; i += 64)
    _mm512_stream_si512(reinterpret_cast<__m512i *>(to + i), from ? _mm512_loadu_si512(from + i) : _mm512_set1_epi8(4));
#elif defined __SSE2__
  for (std::int64_t i = 0; i < size; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i *>(to + i),
                     from ? _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + i)) : _mm_set1_epi8(4));
#else
  if (from)
    std::memcpy(to, from, static_cast<std::size_t>(size));
  else
    std::memset(to, 4, static_cast<std::size_t>(size));
#endif
}

}  // namespace

double now() {
  timespec time;
  clock_gettime(g_clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void by_processor_time() { g_clock = CLOCK_PROCESS_CPUTIME_ID; }

void spread([[maybe_unused]] ThreadPool &pool) {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < pool.threads()) return;
  std::vector<int> processors;
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &allowed)) processors.push_back(i);
  std::atomic<int> here{0};
  pool.parallel_for(pool.threads(), [&](std::int64_t, int worker) {
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(processors[static_cast<std::size_t>(worker)], &own);
    sched_setaffinity(0, sizeof own, &own);
    for (++here; here < pool.threads();) continue;  // so that each takes one
  });
#endif
}

Memory::Memory(ThreadPool &pool) : pool_(pool), from_(kSize + 64, 1), to_(kSize + 64, 2) {}

template <typename Body>
double Memory::seconds(Body &&body) {
  const auto aligned = [this](std::vector<char> &bytes) {
    return bytes.data() + -reinterpret_cast<std::uintptr_t>(bytes.data()) % 64 + window_;
  };
  const char *from = aligned(from_);
  char *to = aligned(to_);
  window_ = (window_ + kWindow) % kSize;
  const double start = now();
  pool_.parallel_for(kWindow / kPart, [&](std::int64_t part, int) { body(from + part * kPart, to + part * kPart); });
  return now() - start;
}

double Memory::rate(Move move) {
  for (int window = 0; window < kFirstWindows; ++window) window_rate(move);
  double best = 0.0;
  for (int window = kFirstWindows; window < kWindows; ++window) best = std::max(best, window_rate(move));
  return best;
}

double Memory::window_rate(Move move) {
  switch (move) {
    case Move::kCopy: {
      const double copied = seconds([](const char *from, char *to) { std::memcpy(to, from, std::size_t{kPart}); });
      const double streamed = seconds([](const char *from, char *to) { stream_lines(from, to, kPart); });
      return 2.0 * static_cast<double>(kWindow) / std::min(copied, streamed);
    }
    case Move::kChange:
      return 2.0 * static_cast<double>(kWindow) / seconds([](const char *, char *to) {
               float *values = reinterpret_cast<float *>(to);
               for (std::int64_t i = 0; i < kPart / 4; ++i) values[i] += 1.0f;
             });
    case Move::kWrite: {
      const double stored = seconds([](const char *, char *to) { std::memset(to, 3, std::size_t{kPart}); });
      const double streamed = seconds([](const char *, char *to) { stream_lines(nullptr, to, kPart); });
      return static_cast<double>(kWindow) / std::min(stored, streamed);
    }
    case Move::kRead:
      return static_cast<double>(kWindow) / seconds([](const char *from, char *) {
               const std::uint64_t *words = reinterpret_cast<const std::uint64_t *>(from);
               std::uint64_t sum = 0;
               for (std::int64_t i = 0; i < kPart / 8; ++i) sum += words[i];
               [[maybe_unused]] volatile std::uint64_t sink = sum;
             });
  }
  return 0.0;
}

double fma_rate(ThreadPool &pool) {
  constexpr std::int64_t kSteps = 200000;
  std::vector<float> sinks(static_cast<std::size_t>(pool.threads()) * 16);
  const double seconds = best_seconds(kRepeats, [&] {
    pool.parallel_for(pool.threads(), [&](std::int64_t, int worker) {
      Wide sum[kSums], a = {}, b = {};
      for (Wide &s : sum) s = Wide{} + sinks[static_cast<std::size_t>(worker) * 16];
      a += 0.999f;
      b += 0.001f;
      for (std::int64_t step = 0; step < kSteps; ++step)
        for (Wide &s : sum) s = s * a + b;
      for (int i = 1; i < kSums; ++i) sum[0] += sum[i];
      sinks[static_cast<std::size_t>(worker) * 16] = sum[0][0];
    });
  });
  return 2.0 * (kWidth / 4) * kSums * static_cast<double>(kSteps) * pool.threads() / seconds;
}

}  // namespace lyc::bench
