#include "machine_rates.hpp"

#include <cstring>
#include <vector>

namespace lyc::bench {
namespace {

using Wide [[gnu::vector_size(64)]] = float;

constexpr int kRepeats = 20;
constexpr std::int64_t kSize = std::int64_t{128} << 20;  // far beyond any cache
constexpr std::int64_t kPart = std::int64_t{1} << 16;

}  // namespace

double copy_rate(ThreadPool &pool) {
  std::vector<char> from(kSize, 1), to(kSize, 2);
  const double copy = best_seconds(kRepeats, [&] {
    const std::int64_t part = kSize / pool.threads();
    pool.parallel_for(pool.threads(), [&](std::int64_t index, int) {
      std::memcpy(to.data() + index * part, from.data() + index * part, static_cast<std::size_t>(part));
    });
  });
  const double change = best_seconds(kRepeats, [&] {
    pool.parallel_for(kSize / kPart, [&](std::int64_t index, int) {
      float *values = reinterpret_cast<float *>(to.data() + index * kPart);
      for (std::int64_t i = 0; i < kPart / 4; ++i) values[i] += 1.0f;
    });
  });
  return 2.0 * static_cast<double>(kSize) / std::min(copy, change);
}

double fma_rate(ThreadPool &pool) {
  constexpr int kChains = 16;
  constexpr std::int64_t kSteps = 2000000;
  std::vector<float> sinks(static_cast<std::size_t>(pool.threads()) * 16);
  const double seconds = best_seconds(kRepeats, [&] {
    pool.parallel_for(pool.threads(), [&](std::int64_t, int worker) {
      Wide sum[kChains], a = {}, b = {};
      for (Wide &s : sum) s = Wide{} + sinks[static_cast<std::size_t>(worker) * 16];
      a += 0.999f;
      b += 0.001f;
      for (std::int64_t step = 0; step < kSteps; ++step)
        for (Wide &s : sum) s = s * a + b;
      for (int i = 1; i < kChains; ++i) sum[0] += sum[i];
      sinks[static_cast<std::size_t>(worker) * 16] = sum[0][0];
    });
  });
  const double lanes = sizeof(Wide) / sizeof(float);
  return 2.0 * lanes * kChains * static_cast<double>(kSteps) * pool.threads() / seconds;
}

}  // namespace lyc::bench
