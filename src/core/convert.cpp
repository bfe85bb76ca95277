#include "core/convert.hpp"

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "core/operand.hpp"

namespace lyc {
namespace {

/// A matrix of a device, read back.
class Values {
 public:
  Values(lyc_context &context, const ops::Operand &operand) : operand_(operand) {
    if (!operand.data) return;
    bytes_.resize(operand_bytes(operand));
    read_device(context, bytes_.data(), operand.data, bytes_.size());
  }
  /// Column `column` counts the kernel, too. 1 where the operand is absent.
  double at(std::int64_t row, std::int64_t column) const {
    if (!operand_.data) return 1.0;
    const std::int64_t taps = operand_.kernel_size();  // kernels of factors are contiguous
    return read_element(bytes_.data(), operand_.dtype,
                        row * operand_.stride_out + column / taps * operand_.stride_in + column % taps);
  }

 private:
  ops::Operand operand_;
  std::vector<char> bytes_;
};

void check_convertible(const Definition &definition) {
  const auto require_none = [&](bool there, const char *what) {
    if (there)
      fail(LYC_ERROR_UNSUPPORTED, "a ", definition.algorithm->name, " module cannot be written as locon: it has ", what);
  };
  require_none(definition.has_part(LYC_PART_BIAS), "a bias difference");
  require_none(definition.dora_axis != ops::DoraAxis::kNone, "a DoRA magnitude");
  require_none(definition.shape.experts > 1, "a delta for each expert");
}

/// The terms of the whole delta.
std::vector<ops::Term> terms_of(const Definition &definition) {
  ops::Operand weight;
  weight.data = nowhere();
  weight.dtype = LYC_DTYPE_F32;
  weight.out = definition.shape.out;
  weight.kernel_dims = static_cast<std::int32_t>(definition.shape.kernel.size());
  std::copy(definition.shape.kernel.begin(), definition.shape.kernel.end(), weight.kernel);
  weight.in = definition.shape.columns / weight.kernel_size();
  WeightArrays arrays;
  arrays.begin_target({}, weight);
  lower(definition, weight, {}, arrays);
  for (const ops::Term &term : arrays.terms)
    if (term.kind != ops::TermKind::kProduct || term.p.whole() || term.p.tucker())
      fail(LYC_ERROR_UNSUPPORTED, "a ", definition.algorithm->name,
           " module cannot be written as locon: its delta is no sum of low-rank products");
  return arrays.terms;
}

}  // namespace

Ref<lyc_module> convert(const lyc_module &module, lyc_algo to) {
  if (to != LYC_ALGO_LOCON) fail(LYC_ERROR_UNSUPPORTED, "modules can be converted to locon only");
  const Definition &definition = module.definition;
  check_convertible(definition);
  const std::vector<ops::Term> terms = terms_of(definition);
  const std::int64_t rows = definition.shape.out, columns = definition.shape.columns;
  std::int64_t rank = 0;
  for (const ops::Term &term : terms) rank += term.p.rank();

  std::vector<float> up(static_cast<std::size_t>(rows * rank)), down(static_cast<std::size_t>(rank * columns));
  std::int64_t first = 0;
  for (const ops::Term &term : terms) {
    lyc_context &context = *module.context;
    const Values left(context, term.p.up), right(context, term.p.down), scalar(context, term.scalar);
    const Values diagonal(context, term.p.diagonal), mask(context, term.p.mask);
    const double factor = term.coefficient / definition.scale * scalar.at(0, 0);
    for (std::int64_t r = 0; r < term.p.rank(); ++r) {
      const double strength = factor * diagonal.at(r, 0) * mask.at(r, 0);
      for (std::int64_t o = 0; o < rows; ++o)
        up[static_cast<std::size_t>(o * rank + first + r)] = static_cast<float>(strength * left.at(o, r));
      for (std::int64_t i = 0; i < columns; ++i)
        down[static_cast<std::size_t>((first + r) * columns + i)] = static_cast<float>(right.at(r, i));
    }
    first += term.p.rank();
  }

  const Shape &kernel = definition.shape.kernel;
  Shape up_shape = {rows, rank}, down_shape = {rank, terms.front().p.down.in};
  up_shape.resize(2 + kernel.size(), 1);
  down_shape.insert(down_shape.end(), kernel.begin(), kernel.end());
  const lyc_tensor tensors[] = {make_tensor(up.data(), LYC_DTYPE_F32, up_shape),
                                make_tensor(down.data(), LYC_DTYPE_F32, down_shape)};
  lyc_module_options options{};
  options.alpha = definition.scale * static_cast<double>(rank);
  return lyc_module::create(*module.context, options, {"lora_up.weight", "lora_down.weight"}, tensors);
}

}  // namespace lyc
