#include "core/merge_files.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "base/os.hpp"
#include "base/tensor.hpp"
#include "base/text.hpp"
#include "base/threads.hpp"
#include "base/wildcard.hpp"
#include "core/execute.hpp"
#include "core/operand.hpp"
#include "core/prepare.hpp"
#include "core/transfer.hpp"
#include "io/container/model_writer.hpp"

// The output is cut into jobs: runs of untouched tensors, copied as bytes, and row blocks of touched ones, each read,
// brought to the device, computed, fetched and written by one thread. Threads take jobs in the order of the file, so
// one reads while another computes and a third writes, and memory is bounded by threads times the size of a block. The
// blocks of a tensor share its factors.
namespace lyc {
namespace {

constexpr std::uint64_t kBlockBytes = 4u << 20;  // of a touched tensor; rows of more than that make a block of one
constexpr std::uint64_t kDeviceBlockBytes = 8u << 20;  // the same where a block costs copies and launches
constexpr std::uint64_t kCopyBytes = 64u << 20;        // of a run of untouched ones
constexpr std::uint64_t kMemoryBudget = 640u << 20;    // for all blocks in flight, as far as single ones allow
constexpr int kDeviceThreads = 16;                     // more only wait for the device
constexpr const char *kOperationsKey = "lycoris.operations", *kStaleHashKey = "modelspec.hash_sha256";

/// What the blocks of one tensor are computed with: made by the first thread that wants it, gone with the last block.
struct Factors {
  std::vector<Definition> definitions;  // beside the tensor's assignments
  std::vector<ops::Operand> weights;    // beside them, too: of biases that are made from the weight
  std::vector<DeviceBuffer> memory;
};
struct SharedFactors {
  std::mutex mutex;
  std::optional<Factors> factors;
};

struct Job {
  std::size_t tensor = 0;                     // first, or only one
  std::size_t tensor_end = 0;                 // copies: one past the last
  bool compute = false;                       // else the bytes are copied
  std::int64_t row_begin = 0, row_count = 0;  // compute: of the tensor, or numbers where it is only converted
  std::uint64_t bytes = 0;                    // of output
  std::shared_ptr<SharedFactors> factors;     // compute
};

/// What belongs to one thread.
struct Worker {
  explicit Worker(const lyc_context_options &options)
      : context(new lyc_context(options, /*private_runs=*/true)),
        input(*context),
        output(*context),
        stream(*context),
        uploader(*context, &stream) {}

  Ref<lyc_context> context;
  Staging input, output;
  Stream stream;
  Uploader uploader;
};

/// Everything that is decided before the first byte is written.
class Merge {
 public:
  Merge(lyc_context &context, const MergeRequest &request);

  Ref<lyc_report> run();

 private:
  // Deciding
  void check_paths() const;
  void pad_tensors();
  void check_tensors() const;
  float multiplier_of(const Assignment &assignment) const;
  lyc_dtype out_dtype(std::size_t tensor) const;
  bool is_changed(std::size_t tensor) const;
  void plan_tensor(std::size_t tensor);
  void plan_blocks(std::size_t tensor, std::int64_t rows, std::uint64_t row_bytes, bool whole);
  void plan();

  // Writing
  io::ModelWriter make_writer() const;
  io::Metadata out_metadata(const io::Shard &shard) const;
  Json operation() const;
  int threads() const;
  void run_jobs();
  void run_job(Job &job, Worker &worker);
  void copy(const Job &job);
  Factors load_factors(std::size_t tensor, Worker &worker) const;
  const Factors &factors_of(const Job &job, Worker &worker) const;
  ops::Operand layer_weight(const Assignment &assignment, Worker &worker, Factors &factors) const;
  void read_rows(std::size_t tensor, std::int64_t row, std::int64_t count, char *to) const;
  void compute(const Job &job, Worker &worker);
  void tell_progress() const;
  Ref<lyc_report> report(double seconds) const;

  lyc_context &context_;
  const MergeRequest &request_;
  io::TensorFile base_;
  std::vector<io::TensorEntry> entries_;
  std::vector<Shape> shapes_;  // of the output's tensors
  std::vector<AdapterFile> adapters_;
  std::vector<MatchSource> sources_;
  Match match_;
  std::vector<Assignment> active_;  // of match_.assignments: those that are not switched off
  std::vector<float> multipliers_;  // beside active_, never 0
  std::vector<std::pair<std::ptrdiff_t, std::ptrdiff_t>> active_of_;  // by tensor: range in active_
  std::vector<Job> jobs_;
  std::optional<io::ModelWriter> writer_;
  std::uint64_t out_bytes_ = 0, changed_ = 0;
  std::atomic<std::uint64_t> done_bytes_{0};
};

std::vector<AdapterFile> open_adapters(const MergeRequest &request) {
  std::vector<AdapterFile> adapters;
  for (const std::string &path : request.adapters) adapters.push_back(open_adapter(path, request.dora_rule));
  return adapters;
}

MatchSource source_of(const AdapterFile &adapter) {
  MatchSource source;
  source.name = adapter.path;
  source.leftover_count = adapter.leftovers.size();
  if (!adapter.leftovers.empty()) source.first_leftover = leftover_text(adapter);
  for (const AdapterLayer &layer : adapter.layers) {
    source.layers.push_back(layer.name);
    source.definitions.push_back(&layer.definition);
  }
  return source;
}

Merge::Merge(lyc_context &context, const MergeRequest &request)
    : context_(context),
      request_(request),
      base_(io::TensorFile::open(request.base)),
      entries_(entries_of(base_)),
      adapters_(open_adapters(request)) {
  check_paths();
  for (const AdapterFile &adapter : adapters_) sources_.push_back(source_of(adapter));
  match_ = match(entries_, request.base, sources_, request.filter);
  require_matched(match_, request.base, sources_, request.allow_unmatched);
  pad_tensors();
  check_tensors();
  plan();
}

/// Everything about the paths that can be known before the work.
void Merge::check_paths() const {
  const std::string &out = request_.output;
  const bool gives_folder = base_.kind() != io::SourceKind::kFile;
  require(!out.empty(), "the output has no name");
  require(!base_.is_input(out), out, " is the base itself; name another output");
  for (const AdapterFile &adapter : adapters_)
    require(!adapter.file.is_input(out), out, " is one of the adapters; name another output");
  require(!gives_folder || !ends_with(out, ".safetensors"), request_.base,
          " is a folder of several files; the output must be a folder too, not ", out);
  const os::FileType type = os::file_type(out);
  require(type == os::FileType::kMissing || request_.overwrite, out, " exists already");
  require(type == os::FileType::kMissing || (type == os::FileType::kFolder) == gives_folder, out,
          gives_folder ? " is a file; a folder has to be written there" : " is a folder; a file has to be written");
}

/// Adapters may ask for a larger weight (reshape_weight): zeros at the end of its axes, before anything is added.
void Merge::pad_tensors() {
  for (const io::TensorInfo &info : base_.tensors()) shapes_.push_back(info.shape);
  for (const Assignment &assignment : match_.assignments) {
    const Shape &wanted = sources_[assignment.source].definitions[assignment.layer]->reshape;
    if (wanted.empty() || assignment.part != LYC_PART_WEIGHT) continue;
    const io::TensorInfo &info = base_.tensors()[assignment.tensor];
    Shape &shape = shapes_[assignment.tensor];
    bool fits = wanted.size() == info.shape.size() && (shape == info.shape || shape == wanted);
    for (std::size_t d = 0; fits && d < wanted.size(); ++d) fits = wanted[d] >= info.shape[d];
    if (!fits)
      fail(LYC_ERROR_MISMATCH, sources_[assignment.source].name, ": reshape_weight asks for ", shape_text(wanted), ", ",
           info.name, " is ", shape_text(info.shape), "; a weight can be padded to one larger size only");
    shape = wanted;
  }
}

/// What an adapter changes must be something that can be computed with.
void Merge::check_tensors() const {
  for (const Assignment &assignment : match_.assignments) {
    const io::TensorInfo &info = base_.tensors()[assignment.tensor];
    if (!is_arithmetic(info.dtype))
      fail(LYC_ERROR_UNSUPPORTED, request_.base, ": ", info.name, " is ", info.dtype_text,
           "; an adapter can be merged into F32, F16 and BF16 only");
    try {
      lyc_tensor tensor = make_tensor(nowhere(), info.dtype, shapes_[assignment.tensor]);
      tensor.capacity = 0;
      if (assignment.transposed) tensor.layout = LYC_LAYOUT_HWIO;
      const ops::Operand rows = slice_rows(weight_operand(tensor, info.name), assignment.base_row, assignment.rows);
      check_fits(*sources_[assignment.source].definitions[assignment.layer], rows,
                 {assignment.adapter_row, assignment.rows, 0, assignment.part});
    } catch (const Error &error) {
      throw Error(error.status(),
                  concat(sources_[assignment.source].name, " does not fit ", request_.base, ": ",
                         sources_[assignment.source].layers[assignment.layer], " on ", info.name, ": ", error.what()));
    }
  }
}

float Merge::multiplier_of(const Assignment &assignment) const {
  float multiplier = 1;
  const std::string_view tensor = entries_[assignment.tensor].name;
  for (const MultiplierRule &rule : request_.multipliers) {
    if (rule.adapter >= 0 && static_cast<std::size_t>(rule.adapter) != assignment.source) continue;
    if (!rule.pattern || matches_wildcard(*rule.pattern, tensor) ||
        matches_wildcard(*rule.pattern, sources_[assignment.source].layers[assignment.layer]))
      multiplier = rule.multiplier;
  }
  return multiplier;
}

lyc_dtype Merge::out_dtype(std::size_t tensor) const {
  const lyc_dtype dtype = base_.tensors()[tensor].dtype;
  return request_.dtype != LYC_DTYPE_NONE && is_arithmetic(dtype) ? request_.dtype : dtype;
}

void Merge::plan_blocks(std::size_t tensor, std::int64_t rows, std::uint64_t row_bytes, bool whole) {
  const std::uint64_t block = context_.backend->stream_create ? kDeviceBlockBytes : kBlockBytes;
  const auto fitting = static_cast<std::int64_t>(block / std::max<std::uint64_t>(1, row_bytes));
  const std::int64_t step = whole ? rows : std::clamp<std::int64_t>(fitting, 1, rows);
  const auto factors = std::make_shared<SharedFactors>();
  for (std::int64_t row = 0; row < rows; row += step) {
    const std::int64_t count = std::min(step, rows - row);
    jobs_.push_back({tensor, tensor + 1, true, row, count, static_cast<std::uint64_t>(count) * row_bytes, factors});
  }
}

/// Whether anything of the tensor in the file will be different.
bool Merge::is_changed(std::size_t tensor) const {
  return shapes_[tensor] != base_.tensors()[tensor].shape || active_of_[tensor].first != active_of_[tensor].second ||
         out_dtype(tensor) != base_.tensors()[tensor].dtype;
}

void Merge::plan_tensor(std::size_t tensor) {
  const io::TensorInfo &info = base_.tensors()[tensor];
  const auto [first, last] = active_of_[tensor];
  changed_ += first != last;
  if (is_changed(tensor) && info.size > 0) {
    const bool whole = std::any_of(active_.begin() + first, active_.begin() + last, [&](const Assignment &a) {
      return a.transposed || !sources_[a.source].definitions[a.layer]->row_separable();
    });
    const Shape &shape = shapes_[tensor];
    const std::int64_t elements = checked_numel(shape.data(), shape.size(), info.name);
    const std::int64_t rows = first == last && shape == info.shape ? elements : shape[0];
    plan_blocks(tensor, rows, static_cast<std::uint64_t>(elements / rows) * dtype_size(out_dtype(tensor)), whole);
    return;
  }
  Job *previous = jobs_.empty() ? nullptr : &jobs_.back();
  if (previous && !previous->compute && previous->bytes + info.size <= kCopyBytes) {
    previous->tensor_end = tensor + 1;
    previous->bytes += info.size;
  } else {
    jobs_.push_back({tensor, tensor + 1, false, 0, 0, info.size, nullptr});
  }
}

void Merge::plan() {
  auto next = match_.assignments.begin();
  for (std::size_t tensor = 0; tensor < entries_.size(); ++tensor) {
    const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(active_.size());
    for (; next != match_.assignments.end() && next->tensor == tensor; ++next) {
      const float multiplier = multiplier_of(*next);
      if (multiplier == 0) continue;
      active_.push_back(*next);
      multipliers_.push_back(multiplier);
    }
    active_of_.emplace_back(first, static_cast<std::ptrdiff_t>(active_.size()));
    if (first == active_of_.back().second) shapes_[tensor] = base_.tensors()[tensor].shape;  // nobody asks for more
    plan_tensor(tensor);
  }
  for (const Job &job : jobs_) out_bytes_ += job.bytes;
}

Json Merge::operation() const {
  Json adapters = Json::array();
  for (std::size_t s = 0; s < adapters_.size(); ++s) {
    std::set<float> multipliers;
    for (std::size_t i = 0; i < active_.size(); ++i)
      if (active_[i].source == s) multipliers.insert(multipliers_[i]);
    adapters.push_back({{"file", os::file_name(adapters_[s].path)}, {"multipliers", multipliers}});
  }
  Json operation = {{"operation", "merge"}, {"lycoris", LYCORIS_VERSION}, {"adapters", adapters}};
  if (request_.dtype != LYC_DTYPE_NONE) operation["dtype"] = dtype_name(request_.dtype);
  return operation;
}

/// What was there, and what was done, where something was.
io::Metadata Merge::out_metadata(const io::Shard &shard) const {
  io::Metadata metadata = shard.metadata;
  bool changed = false;
  for (std::size_t i = shard.first; i < shard.first + shard.count; ++i) changed = changed || is_changed(i);
  if (!changed) return metadata;
  metadata.erase(kStaleHashKey);
  Json chain = Json::parse(metadata[kOperationsKey], nullptr, false);
  if (!chain.is_array()) chain = Json::array();
  chain.push_back(operation());
  metadata[kOperationsKey] = chain.dump(-1, ' ', false, Json::error_handler_t::replace);
  return metadata;
}

io::ModelWriter Merge::make_writer() const {
  std::vector<io::TensorInfo> tensors = base_.tensors();
  for (std::size_t i = 0; i < tensors.size(); ++i)
    if (out_dtype(i) != tensors[i].dtype || shapes_[i] != tensors[i].shape)
      tensors[i] = io::make_tensor_info(tensors[i].name, out_dtype(i), shapes_[i]);
  return io::ModelWriter(request_.output, base_, std::move(tensors),
                         [this](const io::Shard &shard) { return out_metadata(shard); });
}

void Merge::copy(const Job &job) {
  for (std::size_t tensor = job.tensor; tensor < job.tensor_end; ++tensor)
    if (base_.tensors()[tensor].size > 0) writer_->copy(tensor, 0, base_.tensors()[tensor].size);
}

Factors Merge::load_factors(std::size_t tensor, Worker &worker) const {
  Factors factors;
  const auto [first, last] = active_of_[tensor];
  for (std::ptrdiff_t i = first; i < last; ++i) {
    const AdapterFile &adapter = adapters_[active_[static_cast<std::size_t>(i)].source];
    worker.uploader.expect(room_for(adapter, adapter.layers[active_[static_cast<std::size_t>(i)].layer]));
  }
  for (std::ptrdiff_t i = first; i < last; ++i) {
    const Assignment &assignment = active_[static_cast<std::size_t>(i)];
    const AdapterFile &adapter = adapters_[assignment.source];
    factors.definitions.push_back(
        load_layer(adapter, adapter.layers[assignment.layer], worker.uploader, factors.memory));
    Definition &definition = factors.definitions.back();
    const bool reads_weight = assignment.part == LYC_PART_BIAS && definition.shape.bias_reads_weight;
    const bool needs_weight = reads_weight || definition.lacks_base_state();
    const ops::Operand weight = needs_weight ? layer_weight(assignment, worker, factors) : ops::Operand{};
    factors.weights.push_back(reads_weight ? weight : ops::Operand{});
    if (!definition.lacks_base_state()) continue;
    worker.uploader.finish();
    derive_base_state(*worker.context, definition, weight, {assignment.adapter_row, assignment.rows},
                      worker.stream.handle(), factors.memory);
  }
  worker.uploader.finish();
  return factors;
}

const Factors &Merge::factors_of(const Job &job, Worker &worker) const {
  SharedFactors &shared = *job.factors;
  const std::lock_guard<std::mutex> lock(shared.mutex);
  if (!shared.factors) shared.factors = load_factors(job.tensor, worker);
  return *shared.factors;
}

/// The pristine weight of an assignment's layer, on the device when the uploader has finished.
ops::Operand Merge::layer_weight(const Assignment &assignment, Worker &worker, Factors &factors) const {
  const std::size_t index = assignment.part == LYC_PART_WEIGHT ? assignment.tensor : assignment.weight.value();
  const io::TensorInfo &info = base_.tensors()[index];
  const auto read = [&](char *to, std::uint64_t begin, std::size_t size) { base_.read(index, to, begin, size); };
  lyc_tensor tensor = worker.uploader.place(info.dtype, info.shape, read, factors.memory);
  if (assignment.transposed) tensor.layout = LYC_LAYOUT_HWIO;
  return slice_rows(weight_operand(tensor, info.name), assignment.base_row, assignment.rows);
}

/// Rows of the base, padded with zeros to the shape of the output.
void Merge::read_rows(std::size_t tensor, std::int64_t row, std::int64_t count, char *to) const {
  const io::TensorInfo &info = base_.tensors()[tensor];
  const Shape &wide = shapes_[tensor], &narrow = info.shape;
  const auto element = static_cast<std::int64_t>(dtype_size(info.dtype));
  const std::int64_t wide_row = checked_numel(wide.data() + 1, wide.size() - 1, info.name);
  const std::int64_t narrow_row = checked_numel(narrow.data() + 1, narrow.size() - 1, info.name);
  const std::int64_t stored = std::clamp<std::int64_t>(narrow[0] - row, 0, count);
  std::vector<char> bytes(static_cast<std::size_t>(stored * narrow_row * element));
  base_.read(tensor, bytes.data(), static_cast<std::uint64_t>(row * narrow_row * element), bytes.size());
  std::memset(to, 0, static_cast<std::size_t>(count * wide_row * element));
  const std::int64_t run = narrow.back();
  for (std::int64_t from = 0; from < stored * narrow_row; from += run) {
    std::int64_t rest = from / run, at = 0, stride = wide.back();
    for (std::size_t d = narrow.size() - 1; d-- > 0;) {
      const std::int64_t extent = d == 0 ? stored : narrow[d];
      at += rest % extent * stride;
      rest /= extent;
      stride *= wide[d];
    }
    std::memcpy(to + at * element, bytes.data() + from * element, static_cast<std::size_t>(run * element));
  }
}

void Merge::compute(const Job &job, Worker &worker) {
  const io::TensorInfo &info = base_.tensors()[job.tensor];
  const auto [first, last] = active_of_[job.tensor];
  const Assignment *const begin = active_.data() + first, *const end = active_.data() + last;
  const lyc_dtype dtype = out_dtype(job.tensor);

  const bool padded = shapes_[job.tensor] != info.shape;
  Shape shape = begin != end || padded ? shapes_[job.tensor] : Shape{job.row_count};
  shape[0] = job.row_count;
  const std::int64_t row_elements = checked_numel(shape.data() + 1, shape.size() - 1, info.name);
  const auto elements = static_cast<std::size_t>(row_elements * job.row_count);
  const auto offset = static_cast<std::uint64_t>(job.row_begin * row_elements);
  const std::size_t in_size = elements * dtype_size(info.dtype), out_size = elements * dtype_size(dtype);
  Staging &input = worker.input, &output = dtype == info.dtype ? worker.input : worker.output;
  input.reserve(in_size);
  output.reserve(out_size);
  if (padded)
    read_rows(job.tensor, job.row_begin, job.row_count, input.host());
  else
    base_.read(job.tensor, input.host(), offset * dtype_size(info.dtype), in_size);
  input.send(worker.stream, in_size);

  lyc_tensor from = make_tensor(input.device(), info.dtype, shape), to = make_tensor(output.device(), dtype, shape);
  if (begin != end && begin->transposed) from.layout = to.layout = LYC_LAYOUT_HWIO;
  const ops::Operand base = weight_operand(from, info.name), out = weight_operand(to, info.name);

  const Factors &factors = factors_of(job, worker);
  WeightArrays arrays;
  std::vector<float> multipliers;
  std::int64_t row = 0;  // of the block
  const auto pass_through = [&](std::int64_t until) {
    if (until > row && base.data != out.data)
      arrays.begin_target(slice_rows(base, row, until - row), slice_rows(out, row, until - row));
  };
  for (const Segment &segment : segments(begin, end)) {
    const std::int64_t from_row = std::max(segment.row_begin - job.row_begin, std::int64_t{0});
    const std::int64_t to_row = std::min(segment.row_begin + segment.row_count - job.row_begin, base.out);
    if (from_row >= to_row) continue;
    pass_through(from_row);
    const Segment part{job.row_begin + from_row, to_row - from_row, {}};
    const ops::Operand weight = slice_rows(out, from_row, part.row_count);
    arrays.begin_target(slice_rows(base, from_row, part.row_count), weight);
    for (const Assignment *a : segment.assignments) {
      const auto index = static_cast<std::size_t>(a - begin);
      lower(factors.definitions[index], weight, placement_in(part, *a, static_cast<std::int32_t>(multipliers.size())),
            arrays, factors.weights[index]);
      multipliers.push_back(multipliers_[static_cast<std::size_t>(a - active_.data())]);
    }
    row = to_row;
  }
  pass_through(base.out);
  run_weights(*worker.context, worker.stream, arrays, multipliers);
  output.fetch(worker.stream, out_size);
  worker.stream.wait();
  writer_->write(job.tensor, offset * dtype_size(dtype), output.host(), out_size);
}

void Merge::run_job(Job &job, Worker &worker) try {
  if (job.compute)
    compute(job, worker);
  else
    copy(job);
  job.factors.reset();
  done_bytes_ += job.bytes;
} catch (const Error &error) {
  throw Error(error.status(), concat(base_.tensors()[job.tensor].name, ": ", error.what()), error.native_code());
}

void Merge::tell_progress() const {
  if (request_.progress && request_.progress(request_.user_data, done_bytes_, out_bytes_) != 0)
    fail(LYC_ERROR_CANCELLED, "the merge was cancelled");
}

/// The CPU's own, or those that feed a device.
int Merge::threads() const {
  const std::int32_t own = context_.backend->context_threads(context_.device), asked = context_.options.threads;
  return own > 0 ? own : std::min(asked > 0 ? asked : os::cpu_count(), kDeviceThreads);
}

void Merge::run_jobs() {
  std::uint64_t largest = 1;
  for (const Job &job : jobs_)
    if (job.compute) largest = std::max(largest, job.bytes);
  const auto fitting = static_cast<int>(std::clamp<std::uint64_t>(kMemoryBudget / largest, 1, 4096));
  ThreadPool pool(std::min(fitting, threads()));
  lyc_context_options options = context_.options;
  options.threads = 1;
  std::deque<Worker> workers;
  for (int i = 0; i < pool.threads(); ++i) workers.emplace_back(options);
  tell_progress();
  pool.parallel_for(static_cast<std::int64_t>(jobs_.size()), [&](std::int64_t index, int worker) {
    run_job(jobs_[static_cast<std::size_t>(index)], workers[static_cast<std::size_t>(worker)]);
    if (worker == 0) tell_progress();  // worker 0 is the calling thread
  });
  tell_progress();
}

Ref<lyc_report> Merge::report(double seconds) const {
  lyc_report_info figures{};
  count_match(match_, figures);
  figures.tensor_count = entries_.size();
  figures.changed_count = changed_;
  figures.bytes_written = out_bytes_;
  figures.seconds = seconds;
  for (const io::TensorInfo &info : base_.tensors()) figures.bytes_read += info.size;
  Json content = {{"operation", "merge"}, {"lycoris", LYCORIS_VERSION}};
  content["base"] = {{"path", request_.base},
                     {"kind", io::source_kind_name(base_.kind())},
                     {"tensors", entries_.size()},
                     {"bytes", figures.bytes_read}};
  for (std::size_t s = 0; s < adapters_.size(); ++s)
    content["adapters"].push_back({{"path", adapters_[s].path},
                                   {"dialect", adapters_[s].dialect},
                                   {"layers", adapters_[s].layers.size()},
                                   {"algorithms", count_algorithms(sources_[s].definitions)},
                                   {"leftovers", describe_leftovers(adapters_[s])},
                                   {"notes", adapters_[s].notes}});
  content["output"] = {{"path", request_.output}, {"changed_tensors", changed_}, {"bytes", out_bytes_}};
  content["seconds"] = seconds;
  content["layers"] = describe_match(match_, entries_, sources_);
  return Ref<lyc_report>(new lyc_report(figures, content));
}

Ref<lyc_report> Merge::run() {
  const double start = os::monotonic_seconds();
  writer_.emplace(make_writer());
  run_jobs();
  writer_->finish(request_.overwrite ? os::Replace::kYes : os::Replace::kNo);
  return report(os::monotonic_seconds() - start);
}

}  // namespace

Ref<lyc_report> merge_files(lyc_context &context, const MergeRequest &request) {
  require(!request.adapters.empty(), "there is no adapter to merge");
  require(request.dtype == LYC_DTYPE_NONE || is_arithmetic(request.dtype), "dtype is ", dtype_name(request.dtype),
          ", must be f32, f16, bf16 or none");
  for (const MultiplierRule &rule : request.multipliers) {
    require(std::isfinite(rule.multiplier), "a multiplier is not a finite number");
    require(rule.adapter >= -1 && rule.adapter < static_cast<int>(request.adapters.size()),
            "a multiplier is for adapter ", rule.adapter, ", there are ", request.adapters.size());
  }
  return Merge(context, request).run();
}

}  // namespace lyc
