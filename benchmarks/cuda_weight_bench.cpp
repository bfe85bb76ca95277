// Weight operations on a GPU against the time that copying the same bytes takes there.
//
//     cuda_weight_bench [words that a case's name must contain]...
//
// Device time by graph replay. Single weights rotate over more memory than any cache holds; whole networks are larger
// by themselves. floor = bytes read and written once / the copy rate measured in this run. Each case is checked against
// float64 at sampled elements before it is timed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "core/backends.hpp"

namespace lyc::bench {
namespace {

void ok(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(status));
  std::exit(1);
}

void ok(lyc_status status, const ops::Failure &failure) {
  if (status == LYC_OK) return;
  std::fprintf(stderr, "%s\n", failure.message);
  std::exit(1);
}

struct Shape {
  std::int64_t out, in;
};

/// The linear and convolution layers of SDXL's denoiser that adapters are trained on; kernels are counted into `in`.
std::vector<Shape> sdxl() {
  std::vector<Shape> shapes;
  const auto transformer = [&](std::int64_t c, int depth) {
    shapes.insert(shapes.end(), 2, {c, c});
    for (int block = 0; block < depth; ++block) {
      shapes.insert(shapes.end(), 6, {c, c});
      shapes.insert(shapes.end(), 2, {c, 2048});
      shapes.push_back({8 * c, c});
      shapes.push_back({c, 4 * c});
    }
  };
  const auto resnet = [&](std::int64_t in, std::int64_t out) {
    shapes.insert(shapes.end(), {{out, in * 9}, {out, out * 9}, {out, 1280}});
    if (in != out) shapes.push_back({out, in});
  };
  const auto sampler = [&](std::int64_t c) { shapes.push_back({c, c * 9}); };
  resnet(320, 320), resnet(320, 320), sampler(320);
  resnet(320, 640), transformer(640, 2), resnet(640, 640), transformer(640, 2), sampler(640);
  resnet(640, 1280), transformer(1280, 10), resnet(1280, 1280), transformer(1280, 10);
  resnet(1280, 1280), transformer(1280, 10), resnet(1280, 1280);
  for (std::int64_t in : {2560, 2560, 1920}) resnet(in, 1280), transformer(1280, 10);
  sampler(1280);
  for (std::int64_t in : {1920, 1280, 960}) resnet(in, 640), transformer(640, 2);
  sampler(640);
  for (std::int64_t in : {960, 640, 640}) resnet(in, 320);
  return shapes;
}

std::vector<Shape> flux() {
  std::vector<Shape> shapes;
  for (int block = 0; block < 19; ++block)
    for (int stream = 0; stream < 2; ++stream)
      shapes.insert(shapes.end(), {{18432, 3072}, {9216, 3072}, {3072, 3072}, {12288, 3072}, {3072, 12288}});
  for (int block = 0; block < 38; ++block) shapes.insert(shapes.end(), {{21504, 3072}, {3072, 15360}, {9216, 3072}});
  return shapes;
}

class Stream {
 public:
  Stream() { ok(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Device memory filled with random values of a type; a random block is made once and repeated.
class Memory {
 public:
  Memory(std::int64_t count, lyc_dtype dtype) {
    const std::size_t size = static_cast<std::size_t>(count) * dtype_size(dtype);
    ok(cudaMalloc(&data, size));
    const std::vector<char> &block = random_block(dtype);
    const std::size_t first = std::min(size, block.size());
    ok(cudaMemcpy(data, block.data(), first, cudaMemcpyHostToDevice));
    for (std::size_t done = first; done < size; done += std::min(done, size - done))
      ok(cudaMemcpy(static_cast<char *>(data) + done, data, std::min(done, size - done), cudaMemcpyDeviceToDevice));
  }
  Memory(Memory &&other) noexcept : data(std::exchange(other.data, nullptr)) {}
  ~Memory() { cudaFree(data); }

  void *data = nullptr;

 private:
  static const std::vector<char> &random_block(lyc_dtype dtype) {
    static const std::vector<char> wide = make_block(LYC_DTYPE_F32), narrow = make_block(LYC_DTYPE_BF16);
    return dtype == LYC_DTYPE_F32 ? wide : narrow;
  }
  static std::vector<char> make_block(lyc_dtype dtype) {
    constexpr std::size_t kCount = 3'000'017;  // no power of 2, so that rows differ
    std::vector<char> block(kCount * dtype_size(dtype));
    std::uint64_t state = 1;
    for (std::size_t i = 0; i < kCount; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const float value = (static_cast<float>(state >> 40) * 0x1p-24f - 0.5f) * 0.1f;
      const std::uint16_t bits = float_to_bf16(value);
      dtype == LYC_DTYPE_F32 ? std::memcpy(&block[i * 4], &value, 4) : std::memcpy(&block[i * 2], &bits, 2);
    }
    return block;
  }
};

ops::Operand matrix(const Memory &memory, std::int64_t out, std::int64_t in, lyc_dtype dtype) {
  ops::Operand operand;
  operand.data = memory.data;
  operand.dtype = dtype;
  operand.out = out;
  operand.in = in;
  operand.stride_out = in;
  operand.stride_in = 1;
  return operand;
}

struct Case {
  std::string name;
  std::vector<Shape> shapes;
  std::int64_t rank;
  bool in_place;
  lyc_dtype weights, factors;
  int copies;  // of everything, to rotate over
};

double element(const ops::Operand &operand, std::int64_t offset) {
  std::uint16_t bits = 0;
  float value = 0;
  const bool wide = operand.dtype == LYC_DTYPE_F32;
  ok(cudaMemcpy(wide ? static_cast<void *>(&value) : &bits,
                static_cast<char *>(operand.data) + offset * static_cast<std::int64_t>(dtype_size(operand.dtype)),
                dtype_size(operand.dtype), cudaMemcpyDeviceToHost));
  return static_cast<double>(wide ? value : bf16_to_float(bits));
}

constexpr float kMultiplier = 0.75f;

/// Everything that a case's runs read and write, prepared.
class Prepared {
 public:
  Prepared(const ops::Backend &backend, ops::BackendContext *context, const Case &c) : backend_(backend) {
    for (const Shape &shape : c.shapes) add(shape, c);
    ops::WeightBatch batch;
    batch.targets = targets_.data();
    batch.adapters = adapters_.data();
    batch.terms = terms_.data();
    batch.target_count = batch.adapter_count = batch.term_count = static_cast<std::int64_t>(targets_.size());
    batch.multiplier_count = 1;
    ops::Failure failure;
    ok(backend.weight_prepare(context, &batch, &plan_, &failure), failure);
  }
  Prepared(Prepared &&other) = delete;
  ~Prepared() { backend_.weight_release(plan_); }

  void run(cudaStream_t stream) {
    const ops::RunOptions options = {ops::WeightOp::kMerge, 0, &kMultiplier, stream, nullptr};
    ops::Failure failure;
    ok(backend_.weight_run(plan_, &options, &failure), failure);
  }

  /// Largest error of sampled elements, in units of the weight type's last place at 1.
  double check() {
    struct Sample {
      std::size_t target;
      std::int64_t o, i;
      double want;
    };
    std::vector<Sample> samples;
    std::uint64_t state = 7;
    const auto below = [&](std::int64_t n) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      return static_cast<std::int64_t>((state >> 33) % static_cast<std::uint64_t>(n));
    };
    for (int s = 0; s < 24; ++s) {
      const auto t = static_cast<std::size_t>(below(static_cast<std::int64_t>(targets_.size())));
      const std::int64_t o = below(targets_[t].out.out), i = below(targets_[t].out.in);
      samples.push_back({t, o, i, reference(t, o, i)});
    }
    run(nullptr);
    ok(cudaDeviceSynchronize());
    double worst = 0;
    for (const Sample &s : samples) {
      const ops::Operand &out = targets_[s.target].out;
      const double error = std::abs(element(out, s.o * out.in + s.i) - s.want);
      const double ulp = out.dtype == LYC_DTYPE_F32 ? 0x1p-23 : 0x1p-8;
      worst = std::max(worst, error / (std::max(std::abs(s.want), 0x1p-6) * ulp));
    }
    return worst;
  }

 private:
  void add(const Shape &shape, const Case &c) {
    const auto tensor = [&](std::int64_t out, std::int64_t in, lyc_dtype dtype) {
      memory_.emplace_back(out * in, dtype);
      return matrix(memory_.back(), out, in, dtype);
    };
    ops::WeightTarget target;
    target.base = tensor(shape.out, shape.in, c.weights);
    target.out = c.in_place ? target.base : tensor(shape.out, shape.in, c.weights);
    target.first_adapter = static_cast<std::int32_t>(adapters_.size());
    target.adapter_count = 1;
    targets_.push_back(target);
    ops::Adapter adapter;
    adapter.first_term = target.first_adapter;
    adapter.term_count = 1;
    adapters_.push_back(adapter);
    ops::Term term;
    term.coefficient = 0.5;
    term.p.up = tensor(shape.out, c.rank, c.factors);
    term.p.down = tensor(c.rank, shape.in, c.factors);
    terms_.push_back(term);
  }

  double reference(std::size_t t, std::int64_t o, std::int64_t i) const {
    const ops::Operand &up = terms_[t].p.up, &down = terms_[t].p.down, &base = targets_[t].base;
    double sum = 0;
    for (std::int64_t r = 0; r < up.in; ++r) sum += element(up, o * up.in + r) * element(down, r * down.in + i);
    return element(base, o * base.in + i) + static_cast<double>(kMultiplier) * terms_[t].coefficient * sum;
  }

  const ops::Backend &backend_;
  std::vector<Memory> memory_;
  std::vector<ops::WeightTarget> targets_;
  std::vector<ops::Adapter> adapters_;
  std::vector<ops::Term> terms_;
  ops::WeightPlan *plan_ = nullptr;
};

/// Median microseconds of what `enqueue` enqueues.
double time_stream(const std::function<void(cudaStream_t)> &enqueue, int repeats) {
  const Stream stream;
  cudaEvent_t begin, end;
  ok(cudaEventCreate(&begin));
  ok(cudaEventCreate(&end));
  std::vector<float> times;
  for (int repeat = -3; repeat < repeats; ++repeat) {
    float milliseconds;
    ok(cudaEventRecord(begin, stream));
    enqueue(stream);
    ok(cudaEventRecord(end, stream));
    ok(cudaEventSynchronize(end));
    ok(cudaEventElapsedTime(&milliseconds, begin, end));
    if (repeat >= 0) times.push_back(milliseconds);
  }
  ok(cudaEventDestroy(begin));
  ok(cudaEventDestroy(end));
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return 1e3 * static_cast<double>(times[times.size() / 2]);
}

/// The same, captured into a graph beforehand.
double time_graph(const std::function<void(cudaStream_t)> &enqueue, int repeats) {
  const Stream stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  enqueue(stream);
  ok(cudaStreamEndCapture(stream, &graph));
  ok(cudaGraphInstantiate(&executable, graph, 0));
  const double us = time_stream([&](cudaStream_t on) { ok(cudaGraphLaunch(executable, on)); }, repeats);
  ok(cudaGraphExecDestroy(executable));
  ok(cudaGraphDestroy(graph));
  return us;
}

/// Bytes read plus written per microsecond by a large copy. Not in a graph: there, copies take a slower way.
double copy_rate() {
  constexpr std::int64_t kCount = std::int64_t{1} << 31;
  const Memory from(kCount, LYC_DTYPE_BF16), to(kCount, LYC_DTYPE_BF16);
  const auto copy = [&](cudaStream_t stream) {
    ok(cudaMemcpyAsync(to.data, from.data, kCount * 2, cudaMemcpyDeviceToDevice, stream));
  };
  return 4.0 * kCount / time_stream(copy, 20);
}

void report(const ops::Backend &backend, ops::BackendContext *context, const Case &c, double rate) {
  std::vector<std::unique_ptr<Prepared>> copies;
  for (int copy = 0; copy < c.copies; ++copy) copies.push_back(std::make_unique<Prepared>(backend, context, c));
  const double error = copies.front()->check();
  const int replays = c.copies > 1 ? 40 : 15;
  const double us = time_graph(
                        [&](cudaStream_t stream) {
                          for (const auto &copy : copies) copy->run(stream);
                        },
                        replays) /
                    c.copies;
  double elements = 0;
  for (const Shape &shape : c.shapes) elements += static_cast<double>(shape.out * shape.in);
  const double floor = 2.0 * elements * static_cast<double>(dtype_size(c.weights)) / rate;
  std::printf("%-46s %9.1f %9.1f %7.3f   %5.2f\n", c.name.c_str(), floor, us, us / floor, error);
  std::fflush(stdout);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const Shape single[] = {{3072, 3072}, {12288, 3072}, {21504, 3072}};
  const auto add = [&](std::string name, std::vector<Shape> shapes, std::int64_t rank, bool in_place, lyc_dtype weights,
                       lyc_dtype factors, int copies) {
    name += concat(" ", dtype_name(weights), "/", dtype_name(factors), " r", rank, in_place ? " in place" : " new");
    all.push_back({std::move(name), std::move(shapes), rank, in_place, weights, factors, copies});
  };
  for (std::int64_t rank : {16, 64})
    for (bool in_place : {true, false})
      for (const Shape &shape : single)
        add(concat(shape.out, "x", shape.in), {shape}, rank, in_place, LYC_DTYPE_BF16, LYC_DTYPE_BF16,
            shape.out == 3072 ? 24 : 8);
  add("1280x11520", {{1280, 11520}}, 16, false, LYC_DTYPE_BF16, LYC_DTYPE_BF16, 16);
  add("12288x3072", {single[1]}, 128, true, LYC_DTYPE_BF16, LYC_DTYPE_BF16, 8);
  for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F32}) {
    add("12288x3072", {single[1]}, 16, true, LYC_DTYPE_F32, factors, 8);
    add("12288x3072", {single[1]}, 64, true, LYC_DTYPE_F32, factors, 8);
  }
  add("12288x3072", {single[1]}, 16, true, LYC_DTYPE_BF16, LYC_DTYPE_F32, 8);
  for (std::int64_t rank : {16, 64}) {
    add("sdxl, 788 weights", sdxl(), rank, true, LYC_DTYPE_BF16, LYC_DTYPE_BF16, 1);
    add("flux, 304 weights", flux(), rank, true, LYC_DTYPE_BF16, LYC_DTYPE_BF16, 1);
  }
  return all;
}

int run(int argc, char **argv) {
  const ops::Backend *backend = find_backend(LYC_DEVICE_CUDA);
  std::int32_t count = 0;
  if (backend) backend->device_count(&count, nullptr);
  if (count == 0) {
    std::printf("skipped: no GPU\n%s", explain_backend(LYC_DEVICE_CUDA).c_str());
    return 0;
  }
  ops::Failure failure;
  ops::BackendContext *context = nullptr;
  const ops::BackendContextOptions options = {0, 0};
  ok(backend->context_create(&options, &context, &failure), failure);
  const double rate = copy_rate();
  std::printf("copy rate %.3f TB/s\n%-46s %9s %9s %7s   %5s\n", rate * 1e-6, "case (weights/factors)", "floor us", "us",
              "ratio", "ulp");
  for (const Case &c : cases()) {
    const bool wanted =
        std::all_of(argv + 1, argv + argc, [&](const char *word) { return c.name.find(word) != std::string::npos; });
    if (wanted) report(*backend, context, c, rate);
  }
  backend->context_destroy(context);
  return 0;
}

}  // namespace
}  // namespace lyc::bench

int main(int argc, char **argv) { return lyc::bench::run(argc, argv); }
