#include "core/network.hpp"

#include "base/error.hpp"
#include "core/operand.hpp"

using namespace lyc;

lyc_network::lyc_network(lyc_context &owner, const std::string &file, const lyc_network_options &options)
    : context(Ref<lyc_context>::share(owner)), path(file) {
  const AdapterFile adapter = open_adapter(file, options.dora_rule);
  Stream stream(owner);
  Uploader uploader(owner, &stream);
  for (const AdapterLayer &layer : adapter.layers) uploader.expect(room_for(adapter, layer));
  for (const AdapterLayer &layer : adapter.layers) {
    std::vector<DeviceBuffer> owned;
    Definition definition = load_layer(adapter, layer, uploader, owned);
    entries.push_back({layer.name, Ref<lyc_module>(new lyc_module(context, std::move(definition), std::move(owned)))});
  }
  uploader.finish();
  leftovers = describe_leftovers(adapter);
  if (!adapter.leftovers.empty()) first_leftover = leftover_text(adapter);
}

namespace lyc {
namespace {

std::vector<MatchSource> sources_of(const std::vector<lyc_network *> &networks) {
  std::vector<MatchSource> sources;
  for (const lyc_network *network : networks) {
    MatchSource source;
    source.name = network->path;
    source.leftover_count = network->leftovers.size();
    source.first_leftover = network->first_leftover;
    for (const lyc_network::Entry &entry : network->entries) {
      source.layers.push_back(entry.name);
      source.definitions.push_back(&entry.module->definition);
    }
    sources.push_back(std::move(source));
  }
  return sources;
}

/// The caller's weights with canonical axes, and the table that names are resolved in.
struct BaseTable {
  std::vector<ops::Operand> operands;
  std::vector<Shape> shapes;
  std::vector<io::TensorEntry> entries;
};

BaseTable base_table(const lyc_context &context, const std::vector<std::string> &names, const lyc_tensor *tensors) {
  BaseTable table;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const lyc_tensor &tensor = tensors[i];
    // Tensors that no adapter can change (position tables, counters) may be in the caller's table too.
    const bool weight = is_arithmetic(tensor.dtype) && tensor.ndim >= 1 && tensor.ndim <= 5;
    table.operands.push_back(weight ? operand_on(context, tensor, names[i]) : ops::Operand{});
    const ops::Operand &operand = table.operands.back();
    Shape shape = {operand.out};
    if (tensor.ndim > 1) shape.push_back(operand.in);
    for (int d = 0; d < operand.kernel_dims; ++d) shape.push_back(operand.kernel[d]);
    table.shapes.push_back(weight ? std::move(shape) : Shape{});
  }
  for (std::size_t i = 0; i < names.size(); ++i)
    table.entries.push_back(
        {names[i], tensors[i].dtype, table.shapes[i].data(), static_cast<std::int32_t>(table.shapes[i].size())});
  return table;
}

/// A weight that the base stores as [in, out].
ops::Operand flipped(ops::Operand operand) {
  std::swap(operand.out, operand.in);
  std::swap(operand.stride_out, operand.stride_in);
  return operand;
}

std::vector<BatchItem> items_of(const Match &match, const BaseTable &table, const lyc_tensor *tensors,
                                const std::vector<lyc_network *> &networks) {
  std::vector<BatchItem> items;
  const Assignment *all = match.assignments.data(), *end = all + match.assignments.size();
  for (const Assignment *first = all; first != end;) {
    const Assignment *last = first;
    while (last != end && last->tensor == first->tensor) ++last;
    require(!(tensors[first->tensor].flags & LYC_TENSOR_READ_ONLY), table.entries[first->tensor].name, " is read-only");
    const ops::Operand &whole = table.operands[first->tensor];
    require(writable_once(whole), table.entries[first->tensor].name, " has strides by which elements share memory");
    for (const Segment &segment : segments(first, last))
      for (const Assignment *a : segment.assignments) {
        const lyc_network &network = *networks[a->source];
        const lyc_network::Entry &entry = network.entries[a->layer];
        const ops::Operand rows =
            slice_rows(a->transposed ? flipped(whole) : whole, segment.row_begin, segment.row_count);
        const Placement placement = placement_in(segment, *a, static_cast<std::int32_t>(a->source));
        try {
          check_fits(entry.module->definition, rows, placement);
        } catch (const Error &error) {
          throw Error(error.status(), concat(network.path, ": ", entry.name, ": ", error.what()));
        }
        BatchItem item{entry.module.get(), rows, rows, placement, {}};
        if (a->part == LYC_PART_BIAS && entry.module->definition.shape.bias_reads_weight && a->weight)
          item.weight = slice_rows(table.operands[*a->weight], a->base_row, a->rows);
        items.push_back(item);
      }
    first = last;
  }
  return items;
}

}  // namespace

MatchedBatch create_batch(lyc_context &context, const std::vector<lyc_network *> &networks,
                          const std::vector<std::string> &names, const lyc_tensor *tensors, const MatchFilter &filter,
                          bool allow_unmatched) {
  for (const lyc_network *network : networks)
    require(network->context.get() == &context, network->path, " was loaded into another context");
  const BaseTable table = base_table(context, names, tensors);
  const std::vector<MatchSource> sources = sources_of(networks);
  const std::string base_name = "the given tensors";
  const Match found = match(table.entries, base_name, sources, filter);
  require_matched(found, base_name, sources, allow_unmatched);

  MatchedBatch result;
  result.batch =
      create_batch(context, items_of(found, table, tensors, networks), static_cast<std::int32_t>(networks.size()));
  Json content = {{"operation", "match"}, {"layers", describe_match(found, table.entries, sources)}};
  for (const lyc_network *network : networks)
    content["adapters"].push_back({{"path", network->path}, {"leftovers", network->leftovers}});
  lyc_report_info figures{};
  count_match(found, figures);
  figures.tensor_count = names.size();
  result.report = Ref<lyc_report>(new lyc_report(figures, content));
  return result;
}

}  // namespace lyc
