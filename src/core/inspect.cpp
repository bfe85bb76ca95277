// What is in a file: an adapter's layers with the norms of their deltas, or the tensors of a model.
#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "core/execute.hpp"
#include "core/merge_files.hpp"
#include "core/operand.hpp"
#include "io/container/tensor_file.hpp"

namespace lyc {
namespace {

constexpr std::int64_t kBlockElements = 4 << 20;  // of a delta, when its norm is taken
constexpr std::size_t kMetadataLimit = 512;       // characters of a metadata value that are shown

/// Frobenius norm of the delta without DoRA, at multiplier 1; NaN or infinite where a factor is.
double delta_norm(const Definition &definition, lyc_context &context, Stream &stream) {
  const std::int64_t columns = definition.shape.columns, rows = definition.shape.out;
  algo::LayerShape layer{rows, columns, {}};
  if (definition.shape.flags & LYC_MODULE_TUCKER) {
    layer.kernel = definition.shape.kernel;
    layer.in = columns / layer.kernel_size();
  }
  Definition plain = definition;
  plain.dora_axis = ops::DoraAxis::kNone;
  const std::int64_t step = std::clamp<std::int64_t>(kBlockElements / std::max<std::int64_t>(1, columns), 1, rows);
  std::vector<float> block(static_cast<std::size_t>(step * columns));
  double squares = 0;
  for (std::int64_t row = 0; row < rows; row += step) {
    Shape shape = {std::min(step, rows - row), layer.in};
    shape.insert(shape.end(), layer.kernel.begin(), layer.kernel.end());
    const ops::Operand out = weight_operand(make_tensor(block.data(), LYC_DTYPE_F32, shape), "the delta");
    WeightArrays arrays;
    arrays.begin_target({}, out);
    lower(plain, out, {row, out.out, 0, LYC_PART_WEIGHT}, arrays);
    run_weights(context, stream, arrays, {1.0f}, ops::WeightOp::kDiff);
    for (std::int64_t i = 0; i < out.out * columns; ++i)
      squares += static_cast<double>(block[static_cast<std::size_t>(i)]) * block[static_cast<std::size_t>(i)];
  }
  return std::sqrt(squares);
}

/// Whether there is a delta without a base weight, whose extents the factors show.
bool has_norm(const Definition &definition) {
  const algo::DeltaShape &shape = definition.shape;
  return definition.has_part(LYC_PART_WEIGHT) && !shape.reads_base && !definition.lacks_base_state() && shape.out > 0 &&
         shape.columns > 0 && shape.experts == 1;
}

Json describe_tensors(const io::TensorFile &file) {
  std::map<std::string, std::uint64_t> counts, bytes;
  std::uint64_t parameters = 0;
  for (const io::TensorInfo &info : file.tensors()) {
    ++counts[info.dtype_text];
    bytes[info.dtype_text] += info.size;
    std::uint64_t elements = 1;
    for (std::int64_t extent : info.shape) elements *= static_cast<std::uint64_t>(extent);
    parameters += elements;
  }
  return {{"tensors", file.tensors().size()}, {"elements", parameters}, {"dtypes", counts}, {"bytes", bytes}};
}

/// Metadata is somebody else's text and may be long: a value is shown up to a limit, and not into a character of UTF-8.
std::string shortened(const std::string &value) {
  if (value.size() <= kMetadataLimit) return value;
  std::size_t end = kMetadataLimit;
  while (end > 0 && (static_cast<unsigned char>(value[end]) & 0xc0) == 0x80) --end;
  return value.substr(0, end) + "... (" + std::to_string(value.size()) + " bytes)";
}

Json describe_metadata(const io::TensorFile &file) {
  Json metadata = Json::object();
  for (const auto &[key, value] : file.metadata()) metadata[key] = shortened(value);
  return metadata;
}

void describe_adapter(const AdapterFile &adapter, lyc_context &context, Json &content, lyc_report_info &figures) {
  Stream stream(context);
  Uploader uploader(context, &stream);
  std::vector<const Definition *> definitions;
  Json layers = Json::array(), anomalies = adapter.notes;
  for (const AdapterLayer &layer : adapter.layers) {
    definitions.push_back(&layer.definition);
    Json entry = describe_layer(layer.name, layer.definition);
    std::vector<DeviceBuffer> buffers;
    const Definition loaded = load_layer(adapter, layer, uploader, buffers);
    uploader.finish();
    if (has_norm(loaded)) {
      const double norm = delta_norm(loaded, context, stream);
      entry["norm"] = norm;  // null in JSON where it is not finite
      if (!std::isfinite(norm)) anomalies.push_back(layer.name + ": values that are not finite");
      if (norm == 0) anomalies.push_back(layer.name + ": the delta is zero");
    }
    layers.push_back(std::move(entry));
  }
  content["kind"] = "adapter";
  content["dialect"] = adapter.dialect;
  content["algorithms"] = count_algorithms(definitions);
  content["layers"] = std::move(layers);
  content["leftovers"] = describe_leftovers(adapter);
  content["anomalies"] = std::move(anomalies);
  figures.layer_count = adapter.layers.size();
}

/// An adapter, if the file is one of any dialect; a plain model otherwise.
bool looks_like_adapter(const io::TensorFile &file) {
  const std::vector<io::TensorEntry> entries = entries_of(file);
  try {
    io::find_dialect({entries, file.metadata(), nullptr, family_suffixes()});
    return true;
  } catch (const Error &) {
    return false;
  }
}

}  // namespace

Ref<lyc_report> inspect_file(lyc_context &context, const std::string &path) {
  if (context.options.device_type != LYC_DEVICE_CPU)
    fail(LYC_ERROR_UNSUPPORTED, "files are inspected on the CPU only; use a CPU context");
  const io::TensorFile file = io::TensorFile::open(path);
  lyc_report_info figures{};
  figures.tensor_count = file.tensors().size();
  Json content = {{"operation", "inspect"}, {"path", path}, {"container", io::source_kind_name(file.kind())}};
  content.update(describe_tensors(file));
  content["metadata"] = describe_metadata(file);
  if (looks_like_adapter(file))
    describe_adapter(open_adapter(path, LYC_DORA_RULE_DEFAULT), context, content, figures);
  else
    content["kind"] = "model";
  return Ref<lyc_report>(new lyc_report(figures, content));
}

}  // namespace lyc
