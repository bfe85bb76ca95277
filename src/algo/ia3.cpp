// (IA)3 (arXiv:2205.05638): rows or, on the input side, columns of the weight are scaled.
//
//   D[o, i, k] = v[o] W[o, i, k]     or     v[i] W[o, i, k]
//
// weight   [n] or [1, n, 1...]   LyCORIS: v, with on_input beside it; the bias stays
// ia3_v    [n, 1], [1, n, 1...]  PEFT: v = ia3_l - 1 of the file; on the output side the bias is scaled, too
#include <algorithm>
#include <cstring>

#include "algo/families.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

constexpr const char *kV = "weight", *kPeftV = "ia3_v", *kStoredL = "ia3_l";
constexpr const char *kSuffixes[] = {kV, kPeftV, kStoredL, nullptr};
constexpr const char *kSignature[] = {"on_input", kPeftV, kStoredL, nullptr};
constexpr const char *kStored[] = {kStoredL, nullptr};

std::vector<FactorSpec> factors(const Spec &spec, const LayerShape &layer) {
  const std::int64_t count = spec.flags & LYC_MODULE_ON_INPUT ? layer.in : layer.out;
  if (layer.kernel.empty()) return {{kV, {count}}};
  return {{kV, join({1, count}, Shape(layer.kernel.size(), 1))}};
}

const char *name_of(const Factors &f) { return f.has(kV) ? kV : f.has(kPeftV) ? kPeftV : kStoredL; }

/// PEFT's shapes say it for linear layers; its convolutions have [1, n, 1, 1] on both sides.
bool on_input(const Factors &f, const Traits &traits) {
  const bool asked = traits.flags & LYC_MODULE_ON_INPUT;
  const Shape shape = shape_of(f.at(name_of(f)));
  if (f.has(kV) || shape.size() != 2 || shape[0] == shape[1]) return asked;
  if (asked && shape[0] != 1) fail(LYC_ERROR_FORMAT, name_of(f), " has shape ", shape_text(shape), ", one value a row");
  return shape[0] == 1;
}

DeltaShape describe(const Factors &f, const Traits &traits) {
  DeltaShape shape;
  const std::int64_t count = values_of(f, name_of(f));
  shape.reads_base = true;
  if (on_input(f, traits)) {
    shape.flags = LYC_MODULE_ON_INPUT;
  } else {
    shape.out = count;
    shape.bias = shape.bias_optional = !f.has(kV);
  }
  return shape;
}

void lower(Lowering &to) {
  const lyc_tensor &v = to.factors.at(name_of(to.factors));
  to.add(ops::TermKind::kBaseHadamard).p.down =
      to.shape.flags & LYC_MODULE_ON_INPUT ? along_inputs(v, to.layer) : along_rows(v, to.layer);
}

std::vector<Rewritten> rewrite(const Factors &stored, const Traits &) {
  const lyc_tensor &l = stored.at(kStoredL);
  Rewritten v{kPeftV, LYC_DTYPE_F32, shape_of(l), {}};
  for (std::int64_t i = 0; i < numel(l); ++i) {
    const auto value = static_cast<float>(read_element(l.data, l.dtype, i) - 1.0);
    const auto *bytes = reinterpret_cast<const char *>(&value);
    v.bytes.insert(v.bytes.end(), bytes, bytes + sizeof value);
  }
  return {std::move(v)};
}

constexpr Rewriting kRewriting = {kStored, rewrite};

}  // namespace

const Algorithm kIa3 = {LYC_ALGO_IA3,
                        "ia3",
                        kNone,
                        kSuffixes,
                        kSignature,
                        {},
                        LYC_MODULE_ON_INPUT,
                        false,
                        false,
                        factors,
                        describe,
                        lower,
                        lower,  // of the bias: the same, on one column
                        nullptr,
                        &kRewriting};

}  // namespace lyc::algo
