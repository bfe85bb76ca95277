// Weight operations on a GPU against the time that copying the same bytes takes there.
//
//     cuda_weight_bench [words that a case's name must contain]...
//     cuda_weight_bench --shapes sdxl|flux
//
// The second form prints the layers of a network, for peers.
//
// Device time by graph replay. Single weights rotate over more memory than any cache holds; whole networks are larger
// by themselves. floor = bytes read and written once / the copy rate measured in this run. Each case is checked against
// float64 at sampled elements before it is timed.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <functional>
#include <map>
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
  std::int64_t out, in, kernel = 1;
};

/// The linear and convolution layers of SDXL's denoiser that adapters are trained on.
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
    shapes.insert(shapes.end(), {{out, in, 9}, {out, out, 9}, {out, 1280}});
    if (in != out) shapes.push_back({out, in});
  };
  const auto sampler = [&](std::int64_t c) { shapes.push_back({c, c, 9}); };
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

enum class Algorithm {
  kLoCon,
  kTucker,
  kLoHa,
  kLoHaTucker,
  kLoKr,
  kLoKrRank,
  kLoKrTucker,
  kGLoRA,
  kIA3Out,
  kIA3In,
  kOFT,
  kBOFT
};
constexpr std::int64_t kLoKrFactor = 16, kOFTBlock = 32, kBOFTBlock = 24;

struct Case {
  std::string name;
  Algorithm algorithm;
  std::vector<Shape> shapes;
  std::int64_t rank;
  ops::DoraAxis dora;
  ops::WeightOp op;
  bool in_place;
  lyc_dtype weights, factors;
  int copies;  // of everything, to rotate over
};

/// Copies of device tensors, read element by element.
class Mirror {
 public:
  double at(const ops::Operand &t, std::int64_t out, std::int64_t in, std::int64_t k = 0) {
    return at(t, out * t.stride_out + in * t.stride_in + k * t.stride_kernel[2]);
  }

  /// Read first for many elements: all of a tensor.
  void copy(const ops::Operand &t) {
    std::vector<char> &bytes = copies_[t.data];
    bytes.resize(static_cast<std::size_t>(t.numel()) * dtype_size(t.dtype));
    ok(cudaMemcpy(bytes.data(), t.data, bytes.size(), cudaMemcpyDeviceToHost));
  }

 private:
  double at(const ops::Operand &t, std::int64_t offset) {
    const std::size_t size = dtype_size(t.dtype), place = static_cast<std::size_t>(offset) * size;
    char bytes[4] = {};
    const auto copy = copies_.find(t.data);
    if (copy != copies_.end())
      std::memcpy(bytes, copy->second.data() + place, size);
    else
      ok(cudaMemcpy(bytes, static_cast<char *>(t.data) + place, size, cudaMemcpyDeviceToHost));
    std::uint16_t bits;
    float value;
    std::memcpy(&bits, bytes, 2);
    std::memcpy(&value, bytes, 4);
    return static_cast<double>(t.dtype == LYC_DTYPE_F32 ? value : bf16_to_float(bits));
  }

  std::map<const void *, std::vector<char>> copies_;
};

constexpr float kMultiplier = 0.75f;

/// Everything that a case's runs read and write, prepared.
class Prepared {
 public:
  Prepared(const ops::Backend &backend, ops::BackendContext *context, const Case &c) : backend_(backend), case_(c) {
    for (const Shape &shape : c.shapes) add(shape);
    ops::WeightBatch batch;
    batch.targets = targets_.data();
    batch.adapters = adapters_.data();
    batch.terms = terms_.data();
    batch.rotations = rotations_.data();
    batch.rotation_count = static_cast<std::int64_t>(rotations_.size());
    batch.target_count = batch.adapter_count = batch.term_count = static_cast<std::int64_t>(targets_.size());
    batch.multiplier_count = 1;
    ops::Failure failure;
    ok(backend.weight_prepare(context, &batch, &plan_, &failure), failure);
    ops::WeightPlanInfo info;
    backend.weight_info(plan_, &info);
    workspace_ = std::make_unique<Memory>(static_cast<std::int64_t>(info.workspace_size / 2 + 1), LYC_DTYPE_BF16);
  }
  Prepared(Prepared &&other) = delete;
  ~Prepared() { backend_.weight_release(plan_); }

  void run(cudaStream_t stream) {
    const ops::RunOptions options = {case_.op, 0, &kMultiplier, stream, workspace_->data};
    ops::Failure failure;
    ok(backend_.weight_run(plan_, &options, &failure), failure);
  }

  /// Largest error of sampled elements, in units of the weight type's last place at 1.
  double check() {
    struct Sample {
      std::size_t target;
      std::int64_t o, x;
      double want;
    };
    std::vector<Sample> samples;
    std::uint64_t state = 7;
    const auto below = [&](std::int64_t n) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      return static_cast<std::int64_t>((state >> 33) % static_cast<std::uint64_t>(n));
    };
    for (int s = 0; s < 12; ++s) {
      const auto t = static_cast<std::size_t>(below(static_cast<std::int64_t>(targets_.size())));
      const std::int64_t o = below(targets_[t].out.out), x = below(targets_[t].out.in * targets_[t].out.kernel_size());
      samples.push_back({t, o, x, reference(t, o, x)});
    }
    run(nullptr);
    ok(cudaDeviceSynchronize());
    double worst = 0;
    for (const Sample &s : samples) {
      const ops::Operand &out = targets_[s.target].out;
      Mirror mirror;
      const double error = std::abs(mirror.at(out, s.o, s.x / out.kernel_size(), s.x % out.kernel_size()) - s.want);
      const double ulp = out.dtype == LYC_DTYPE_F32 ? 0x1p-23 : 0x1p-8;
      worst = std::max(worst, error / (std::max(std::abs(s.want), 0x1p-6) * ulp));
    }
    return worst;
  }

 private:
  ops::Operand tensor(std::int64_t out, std::int64_t in, std::int64_t kernel, lyc_dtype dtype) {
    memory_.emplace_back(out * in * kernel, dtype);
    ops::Operand operand;
    operand.data = memory_.back().data;
    operand.dtype = dtype;
    operand.out = out;
    operand.in = in;
    operand.kernel[2] = kernel;
    operand.stride_out = in * kernel;
    operand.stride_in = kernel;
    operand.stride_kernel[2] = 1;
    return operand;
  }

  ops::Product low_rank(std::int64_t out, std::int64_t in, std::int64_t kernel = 1) {
    ops::Product product;
    product.up = tensor(out, case_.rank, 1, case_.factors);
    product.down = tensor(case_.rank, in, kernel, case_.factors);
    return product;
  }

  ops::Product tucker(std::int64_t out, std::int64_t in, std::int64_t kernel) {
    ops::Product product = low_rank(out, in);
    product.core = tensor(case_.rank, case_.rank, kernel, case_.factors);
    return product;
  }

  ops::Product whole(std::int64_t out, std::int64_t in, std::int64_t kernel = 1) {
    ops::Product product;
    product.down = tensor(out, in, kernel, case_.factors);
    return product;
  }

  void add(const Shape &shape) {
    const std::int64_t out = shape.out, in = shape.in, kernel = shape.kernel, f = kLoKrFactor;
    ops::WeightTarget target;
    target.base = tensor(out, in, kernel, case_.weights);
    target.out = case_.in_place ? target.base : tensor(out, in, kernel, case_.weights);
    target.first_adapter = static_cast<std::int32_t>(adapters_.size());
    target.adapter_count = 1;
    targets_.push_back(target);
    ops::Adapter adapter;
    adapter.first_term = target.first_adapter;
    adapter.term_count = 1;
    adapter.dora_axis = case_.dora;
    adapter.dora_rule = ops::DoraRule::kLycoris;
    adapter.epsilon = 0x1p-23f;
    if (case_.dora == ops::DoraAxis::kOut) adapter.magnitude = tensor(out, 1, 1, case_.factors);
    if (case_.dora == ops::DoraAxis::kIn) adapter.magnitude = tensor(1, in, 1, case_.factors);
    adapters_.push_back(adapter);
    ops::Term term;
    term.coefficient = 0.5;
    switch (case_.algorithm) {
      case Algorithm::kLoCon:
        term.p = low_rank(out, in, kernel);
        break;
      case Algorithm::kTucker:
        term.p = tucker(out, in, kernel);
        break;
      case Algorithm::kLoHa:
      case Algorithm::kLoHaTucker:
        term.kind = ops::TermKind::kHadamard;
        for (ops::Product *half : {&term.p, &term.q})
          *half = case_.algorithm == Algorithm::kLoHa ? low_rank(out, in, kernel) : tucker(out, in, kernel);
        break;
      case Algorithm::kLoKr:
      case Algorithm::kLoKrRank:
      case Algorithm::kLoKrTucker:
        term.kind = ops::TermKind::kKronecker;
        term.p = whole(f, f);
        term.q = case_.algorithm == Algorithm::kLoKr       ? whole(out / f, in / f, kernel)
                 : case_.algorithm == Algorithm::kLoKrRank ? low_rank(out / f, in / f, kernel)
                                                           : tucker(out / f, in / f, kernel);
        break;
      case Algorithm::kGLoRA:
        term.kind = ops::TermKind::kBaseProduct;
        term.p = low_rank(in, in);
        break;
      case Algorithm::kIA3Out:
      case Algorithm::kIA3In:
        term.kind = ops::TermKind::kBaseHadamard;
        term.p = case_.algorithm == Algorithm::kIA3Out ? whole(out, 1) : whole(1, in);
        (case_.algorithm == Algorithm::kIA3Out ? term.p.down.stride_in : term.p.down.stride_out) = 0;
        term.p.down.stride_kernel[2] = 0;
        term.p.down.out = out, term.p.down.in = in, term.p.down.kernel[2] = kernel;
        break;
      case Algorithm::kOFT:
      case Algorithm::kBOFT:
        term.kind = ops::TermKind::kRotation;
        term.coefficient = 1.0;
        term.rotation = static_cast<std::int32_t>(rotations_.size());
        rotations_.push_back(rotation(out));
        break;
    }
    terms_.push_back(term);
  }

  /// BOFT has as many stages as its blocks allow.
  ops::Rotation rotation(std::int64_t out) {
    ops::Rotation rotation;
    rotation.block_size = case_.algorithm == Algorithm::kOFT ? kOFTBlock : kBOFTBlock;
    rotation.blocks = out / rotation.block_size;
    if (case_.algorithm == Algorithm::kBOFT) {
      rotation.order = ops::Rotation::Order::kInterleave;
      while (rotation.blocks % (1 << rotation.stages) == 0) ++rotation.stages;
    }
    const std::int64_t size = rotation.block_size * rotation.block_size;
    rotation.generators = tensor(rotation.stages * rotation.blocks, size, 1, case_.factors);
    return rotation;
  }

  /// The inverse of I - q, in place.
  static void invert(std::vector<double> &q, std::int64_t b) {
    const auto at = [&](std::int64_t i, std::int64_t j) -> double & { return q[static_cast<std::size_t>(i * b + j)]; };
    for (std::int64_t i = 0; i < b; ++i)
      for (std::int64_t j = 0; j < b; ++j) at(i, j) = (i == j ? 1.0 : 0.0) - at(i, j);
    for (std::int64_t k = 0; k < b; ++k) {
      const double pivot = 1.0 / at(k, k);
      at(k, k) = 1.0;
      for (std::int64_t j = 0; j < b; ++j) at(k, j) *= pivot;
      for (std::int64_t i = 0; i < b; ++i) {
        if (i == k) continue;
        const double by = std::exchange(at(i, k), 0.0);
        for (std::int64_t j = 0; j < b; ++j) at(i, j) -= by * at(k, j);
      }
    }
  }

  /// What becomes of a column of the weight, less the weight: R' = I + m 2 Q (I - Q)^-1 for each block of each stage.
  static std::vector<double> rotated(Mirror &mirror, const ops::Rotation &rotation, std::vector<double> column) {
    const std::int64_t b = rotation.block_size, half = b / 2;
    const std::vector<double> before = column;
    for (std::int64_t stage = 0; stage < rotation.stages; ++stage) {
      const std::vector<double> in = column;
      const auto place = [&](std::int64_t position) {
        if (rotation.order == ops::Rotation::Order::kPlain) return static_cast<std::size_t>(position);
        const std::int64_t width = half << stage, window = 2 * width, inside = position % window;
        return static_cast<std::size_t>(position / window * window + inside % 2 * width + inside / 2);
      };
      for (std::int64_t block = 0; block < rotation.blocks; ++block) {
        std::vector<double> q(static_cast<std::size_t>(b * b)), inverse;
        for (std::int64_t i = 0; i < b; ++i)
          for (std::int64_t j = 0; j < b; ++j)
            q[static_cast<std::size_t>(i * b + j)] =
                mirror.at(rotation.generators, stage * rotation.blocks + block, i * b + j) -
                mirror.at(rotation.generators, stage * rotation.blocks + block, j * b + i);
        inverse = q;
        invert(inverse, b);
        std::vector<double> turned(static_cast<std::size_t>(b));
        for (std::int64_t i = 0; i < b; ++i)
          for (std::int64_t j = 0; j < b; ++j)
            turned[static_cast<std::size_t>(i)] +=
                inverse[static_cast<std::size_t>(i * b + j)] * in[place(block * b + j)];
        for (std::int64_t i = 0; i < b; ++i)
          for (std::int64_t j = 0; j < b; ++j)
            column[place(block * b + i)] += static_cast<double>(kMultiplier) * 2.0 *
                                            q[static_cast<std::size_t>(i * b + j)] *
                                            turned[static_cast<std::size_t>(j)];
      }
    }
    for (std::size_t o = 0; o < column.size(); ++o) column[o] -= before[o];
    return column;
  }

  static double product_at(Mirror &mirror, const ops::Product &p, std::int64_t o, std::int64_t i, std::int64_t k) {
    if (p.whole()) return mirror.at(p.down, o, i, k);
    double sum = 0;
    for (std::int64_t r = 0; r < p.rank(); ++r) {
      double inner = p.tucker() ? 0.0 : mirror.at(p.down, r, i, k);
      for (std::int64_t q = 0; p.tucker() && q < p.down.out; ++q)
        inner += mirror.at(p.core, r, q, k) * mirror.at(p.down, q, i);
      sum += mirror.at(p.up, o, r) * inner;
    }
    return sum;
  }

  double delta_at(Mirror &mirror, std::size_t t, std::int64_t o, std::int64_t x) const {
    const ops::Term &term = terms_[t];
    const ops::Operand &base = targets_[t].base;
    const std::int64_t i = x / base.kernel_size(), k = x % base.kernel_size();
    double value = 0;
    if (term.kind == ops::TermKind::kKronecker) {
      const std::int64_t rows = term.q.out(), columns = term.q.in();
      value =
          product_at(mirror, term.p, o / rows, i / columns, 0) * product_at(mirror, term.q, o % rows, i % columns, k);
    } else if (term.kind == ops::TermKind::kBaseHadamard) {
      value = mirror.at(base, o, i, k) * mirror.at(term.p.down, o, i, k);
    } else if (term.kind == ops::TermKind::kBaseProduct) {
      for (std::int64_t j = 0; j < base.in; ++j) value += mirror.at(base, o, j) * product_at(mirror, term.p, j, i, 0);
    } else {
      value = product_at(mirror, term.p, o, i, k);
      if (term.kind == ops::TermKind::kHadamard) value *= product_at(mirror, term.q, o, i, k);
    }
    return term.coefficient * value;
  }

  double reference(std::size_t t, std::int64_t o, std::int64_t x) const {
    Mirror mirror;
    const bool by_element = terms_[t].kind == ops::TermKind::kBaseHadamard;  // of few elements, with strides of 0
    for (const ops::Product *p : {&terms_[t].p, &terms_[t].q})
      for (const ops::Operand *factor : {&p->up, &p->core, &p->down})
        if (factor->data && !by_element) mirror.copy(*factor);
    const ops::Operand &base = targets_[t].base;
    const bool rotates = terms_[t].kind == ops::TermKind::kRotation;
    if (case_.dora != ops::DoraAxis::kNone || ops::reads_base(terms_[t].kind)) mirror.copy(base);
    const std::int64_t kernel = base.kernel_size();
    const auto weight_at = [&](std::int64_t row, std::int64_t column) {
      return mirror.at(base, row, column / kernel, column % kernel);
    };
    if (rotates) {
      const ops::Rotation &rotation = rotations_[static_cast<std::size_t>(terms_[t].rotation)];
      mirror.copy(rotation.generators);
      std::vector<double> column;
      for (std::int64_t row = 0; row < base.out; ++row) column.push_back(weight_at(row, x));
      return rotated(mirror, rotation, column)[static_cast<std::size_t>(o)] + weight_at(o, x);
    }
    const double w = weight_at(o, x), delta = delta_at(mirror, t, o, x), m = static_cast<double>(kMultiplier);
    double change = m * delta;
    if (case_.dora != ops::DoraAxis::kNone) {
      const bool out = case_.dora == ops::DoraAxis::kOut;
      double squares = 0;
      const auto add_square = [&](std::int64_t row, std::int64_t column) {
        const double v = weight_at(row, column) + delta_at(mirror, t, row, column);
        squares += v * v;
      };
      for (std::int64_t column = 0; out && column < base.in * kernel; ++column) add_square(o, column);
      for (std::int64_t row = 0; !out && row < base.out; ++row)
        for (std::int64_t k = 0; k < kernel; ++k) add_square(row, x / kernel * kernel + k);
      const ops::Adapter &adapter = adapters_[t];
      const double g = out ? mirror.at(adapter.magnitude, o, 0) : mirror.at(adapter.magnitude, 0, x / kernel);
      change = (1.0 - m + m * g / (std::sqrt(squares) + static_cast<double>(adapter.epsilon))) * (w + delta) - w;
    }
    return case_.op == ops::WeightOp::kDiff ? change : w + change;
  }

  const ops::Backend &backend_;
  const Case case_;
  std::vector<Memory> memory_;
  std::vector<ops::WeightTarget> targets_;
  std::vector<ops::Adapter> adapters_;
  std::vector<ops::Term> terms_;
  std::vector<ops::Rotation> rotations_;
  std::unique_ptr<Memory> workspace_;
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

constexpr int kCallsPerGraph = 96;

void report(const ops::Backend &backend, ops::BackendContext *context, const Case &c, double rate) {
  std::vector<std::unique_ptr<Prepared>> copies;
  for (int copy = 0; copy < c.copies; ++copy) copies.push_back(std::make_unique<Prepared>(backend, context, c));
  const double error = copies.front()->check();
  // A graph's own start is paid once: so many calls in one that it does not count.
  const int rounds = c.copies > 1 ? (kCallsPerGraph + c.copies - 1) / c.copies : 1;
  const int replays = 15;
  const double us = time_graph(
                        [&](cudaStream_t stream) {
                          for (int round = 0; round < rounds; ++round)
                            for (const auto &copy : copies) copy->run(stream);
                        },
                        replays) /
                    (rounds * c.copies);
  double elements = 0;
  for (const Shape &shape : c.shapes) elements += static_cast<double>(shape.out * shape.in * shape.kernel);
  const double passes = c.op == ops::WeightOp::kDiff && c.dora == ops::DoraAxis::kNone ? 1.0 : 2.0;
  const double floor = passes * elements * static_cast<double>(dtype_size(c.weights)) / rate;
  std::printf("%-58s %9.1f %9.1f %7.3f   %5.2f\n", c.name.c_str(), floor, us, us / floor, error);
  std::fflush(stdout);
}

std::string name_of(const Case &c, const std::string &shapes) {
  static const std::map<Algorithm, const char *> kNames = {{Algorithm::kLoCon, "locon"},
                                                           {Algorithm::kTucker, "locon tucker"},
                                                           {Algorithm::kLoHa, "loha"},
                                                           {Algorithm::kLoHaTucker, "loha tucker"},
                                                           {Algorithm::kLoKr, "lokr full"},
                                                           {Algorithm::kLoKrRank, "lokr"},
                                                           {Algorithm::kLoKrTucker, "lokr tucker"},
                                                           {Algorithm::kGLoRA, "glora"},
                                                           {Algorithm::kIA3Out, "ia3 out"},
                                                           {Algorithm::kIA3In, "ia3 in"},
                                                           {Algorithm::kOFT, "oft"},
                                                           {Algorithm::kBOFT, "boft"}};
  const char *dora = c.dora == ops::DoraAxis::kNone ? "" : c.dora == ops::DoraAxis::kOut ? " dora-out" : " dora-in";
  const char *how = c.op == ops::WeightOp::kDiff ? " delta" : c.in_place ? " in-place" : " new";
  return concat(shapes, " ", kNames.at(c.algorithm), dora, " ", dtype_name(c.weights), "/", dtype_name(c.factors), " r",
                c.rank, how);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const Shape single[] = {{3072, 3072}, {12288, 3072}, {21504, 3072}};
  const Shape convolution = {1280, 1280, 9};
  const auto add = [&](const std::string &shapes_name, Case c) {
    c.name = name_of(c, shapes_name);
    all.push_back(std::move(c));
  };
  const auto add_single = [&](Algorithm algorithm, const Shape &shape, std::int64_t rank, ops::WeightOp op,
                              bool in_place, ops::DoraAxis dora = ops::DoraAxis::kNone,
                              lyc_dtype weights = LYC_DTYPE_BF16, lyc_dtype factors = LYC_DTYPE_BF16) {
    const std::int64_t size = shape.out * shape.in * shape.kernel;
    const int copies = size < 16'000'000 ? 24 : size < 64'000'000 ? 8 : 6;
    add(concat(shape.out, "x", shape.in, shape.kernel > 1 ? "x3x3" : ""),
        {{}, algorithm, {shape}, rank, dora, op, in_place, weights, factors, copies});
  };
  using ops::WeightOp;
  for (Algorithm algorithm : {Algorithm::kLoCon, Algorithm::kLoHa, Algorithm::kLoKr, Algorithm::kLoKrRank})
    for (std::int64_t rank : {16, 32, 64}) {
      if (rank > 16 && algorithm != (rank == 32 ? Algorithm::kLoKrRank : Algorithm::kLoCon)) continue;
      for (const Shape &shape : single) {
        add_single(algorithm, shape, rank, WeightOp::kDiff, false);
        add_single(algorithm, shape, rank, WeightOp::kMerge, false);
        add_single(algorithm, shape, rank, WeightOp::kMerge, true);
      }
    }
  for (Algorithm algorithm : {Algorithm::kLoCon, Algorithm::kLoHa, Algorithm::kLoKr, Algorithm::kLoKrRank,
                              Algorithm::kTucker, Algorithm::kLoHaTucker, Algorithm::kLoKrTucker})
    for (WeightOp op : {WeightOp::kDiff, WeightOp::kMerge}) add_single(algorithm, convolution, 16, op, false);
  for (ops::DoraAxis axis : {ops::DoraAxis::kOut, ops::DoraAxis::kIn})
    for (Algorithm algorithm : {Algorithm::kLoCon, Algorithm::kLoHa, Algorithm::kLoKr}) {
      add_single(algorithm, single[0], 16, WeightOp::kMerge, false, axis);
      add_single(algorithm, single[1], 16, WeightOp::kMerge, false, axis);
      add_single(algorithm, single[1], 16, WeightOp::kMerge, true, axis);
      add_single(algorithm, single[1], 16, WeightOp::kDiff, false, axis);
    }
  for (Algorithm algorithm :
       {Algorithm::kOFT, Algorithm::kBOFT, Algorithm::kIA3Out, Algorithm::kIA3In, Algorithm::kGLoRA})
    for (int shape : {0, 1}) add_single(algorithm, single[shape], 16, WeightOp::kMerge, false);
  add_single(Algorithm::kLoCon, single[1], 128, WeightOp::kMerge, true);
  constexpr ops::DoraAxis kNoDora = ops::DoraAxis::kNone;
  for (std::int64_t rank : {16, 64})
    for (lyc_dtype factors : {LYC_DTYPE_BF16, LYC_DTYPE_F32})
      add_single(Algorithm::kLoCon, single[1], rank, WeightOp::kMerge, true, kNoDora, LYC_DTYPE_F32, factors);
  add_single(Algorithm::kLoCon, single[1], 16, WeightOp::kMerge, true, kNoDora, LYC_DTYPE_BF16, LYC_DTYPE_F32);
  for (Algorithm algorithm : {Algorithm::kLoCon, Algorithm::kLoHa, Algorithm::kLoKr, Algorithm::kLoKrRank}) {
    const auto add_network = [&](const char *name, std::vector<Shape> shapes, std::int64_t rank, ops::DoraAxis dora) {
      add(name,
          {{}, algorithm, std::move(shapes), rank, dora, WeightOp::kMerge, true, LYC_DTYPE_BF16, LYC_DTYPE_BF16, 1});
    };
    add_network("sdxl, 788 weights", sdxl(), 16, kNoDora);
    add_network("flux, 304 weights", flux(), 16, kNoDora);
    if (algorithm != Algorithm::kLoCon) continue;
    add_network("sdxl, 788 weights", sdxl(), 64, kNoDora);
    add_network("flux, 304 weights", flux(), 64, kNoDora);
    add_network("sdxl, 788 weights", sdxl(), 16, ops::DoraAxis::kOut);
  }
  return all;
}

/// One eager call of the C functions on an empty queue: microseconds until it returns, and until the result is there.
/// The same weight again and again, as a program that moves a slider does, or another one each time.
void report_eager(const std::string &name, std::int64_t size, std::size_t weight_count) {
  const auto status = [](lyc_status got) {
    if (got != LYC_OK) std::fprintf(stderr, "%s\n", lyc_last_error_message()), std::exit(1);
  };
  lyc_context_options options;
  lyc_context_options_init(&options, sizeof options);
  options.device_type = LYC_DEVICE_CUDA;
  lyc_context *context = nullptr;
  status(lyc_context_create(&options, &context));
  const auto tensor = [](const Memory &memory, std::int64_t out, std::int64_t in) {
    const std::int64_t shape[] = {out, in};
    lyc_tensor result;
    lyc_tensor_init(&result, memory.data, LYC_DTYPE_BF16, shape, 2);
    result.device_type = LYC_DEVICE_CUDA;
    return result;
  };
  constexpr std::int64_t kRank = 16;
  const Memory up(size * kRank, LYC_DTYPE_BF16), down(size * kRank, LYC_DTYPE_BF16);
  const char *const names[] = {"lora_up.weight", "lora_down.weight"};
  const lyc_tensor factors[] = {tensor(up, size, kRank), tensor(down, kRank, size)};
  lyc_module *module = nullptr;
  status(lyc_module_create_from_tensors(context, nullptr, names, factors, 2, &module));
  std::vector<Memory> weights;
  for (std::size_t i = 0; i < weight_count; ++i) weights.emplace_back(size * size, LYC_DTYPE_BF16);
  const Stream stream;
  lyc_exec exec;
  lyc_exec_init(&exec, sizeof exec);
  exec.stream = stream;
  constexpr std::size_t kCalls = 1000, kWarm = 50;
  std::vector<double> returned, finished;
  for (std::size_t call = 0; call < kWarm + kCalls; ++call) {
    const lyc_tensor weight = tensor(weights[call % weight_count], size, size);
    ok(cudaStreamSynchronize(stream));
    const auto begin = std::chrono::steady_clock::now();
    status(lyc_merge(module, &weight, 1e-6f, nullptr, &exec));
    const auto back = std::chrono::steady_clock::now();
    ok(cudaStreamSynchronize(stream));
    const auto end = std::chrono::steady_clock::now();
    if (call < kWarm) continue;
    returned.push_back(std::chrono::duration<double, std::micro>(back - begin).count());
    finished.push_back(std::chrono::duration<double, std::micro>(end - begin).count());
  }
  for (std::vector<double> *times : {&returned, &finished}) std::sort(times->begin(), times->end());
  std::printf("%-58s returns %.2f us (best tenth %.2f), result after %.2f us\n", name.c_str(), returned[kCalls / 2],
              returned[kCalls / 10], finished[kCalls / 2]);
  lyc_module_release(module);
  lyc_context_release(context);
}

int list_shapes(const std::string &network) {
  if (network != "sdxl" && network != "flux") return 2;
  for (const Shape &shape : network == "sdxl" ? sdxl() : flux())
    std::printf("%lld %lld %lld\n", static_cast<long long>(shape.out), static_cast<long long>(shape.in),
                static_cast<long long>(shape.kernel));
  return 0;
}

int run(int argc, char **argv) {
  if (argc == 3 && argv[1] == std::string("--shapes")) return list_shapes(argv[2]);
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
  std::printf("copy rate %.3f TB/s\n%-58s %9s %9s %7s   %5s\n", rate * 1e-6, "case (weights/factors)", "floor us", "us",
              "ratio", "ulp");
  for (const Case &c : cases()) {
    const bool wanted =
        std::all_of(argv + 1, argv + argc, [&](const char *word) { return c.name.find(word) != std::string::npos; });
    if (wanted) report(*backend, context, c, rate);
  }
  backend->context_destroy(context);
  for (const auto &[size, weights] : {std::pair<std::int64_t, std::size_t>{3072, 1}, {3072, 8}, {512, 1}, {512, 8}}) {
    const std::string name = concat("eager ", size, "x", size, " locon bf16/bf16 r16 in-place, ",
                                    weights == 1 ? "the same weight" : "weights by turns");
    const bool wanted =
        std::all_of(argv + 1, argv + argc, [&](const char *word) { return name.find(word) != std::string::npos; });
    if (wanted) report_eager(name, size, weights);
  }
  return 0;
}

}  // namespace
}  // namespace lyc::bench

int main(int argc, char **argv) { return lyc::bench::run(argc, argv); }
