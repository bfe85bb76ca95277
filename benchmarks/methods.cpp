#include "methods.hpp"

#include <algorithm>

namespace lyc::bench {
namespace {

using test::Half;
using test::Shape;
using test::TermChoice;

TermChoice term(ops::TermKind kind, Half p, Half q, std::int64_t rank, std::int64_t parts = 1) {
  TermChoice choice;
  choice.kind = kind;
  choice.p = p;
  choice.q = q;
  choice.rank = rank;
  choice.p_out = choice.p_in = parts;
  return choice;
}

TermChoice rotation(std::int64_t block, ops::Rotation::Order order, bool inputs = false) {
  TermChoice choice;
  choice.kind = ops::TermKind::kRotation;
  choice.rotation.block_size = block;
  choice.rotation.order = order;
  if (inputs) {
    choice.rotation.axis = ops::Rotation::Axis::kIn;
    choice.rotation.storage = ops::Rotation::Storage::kTriangle;
    choice.rotation.map = ops::Rotation::Map::kNeumann;
  }
  return choice;
}

/// Stages until all rows turn together; 0 if they are no whole windows.
int butterfly_stages(std::int64_t rows, std::int64_t block) {
  int stages = 1;
  while (block << (stages - 1) < rows) ++stages;
  return block << (stages - 1) == rows ? stages : 0;
}

}  // namespace

std::vector<Method> methods() {
  using ops::TermKind;
  constexpr auto kPlain = ops::Rotation::Order::kPlain, kButterfly = ops::Rotation::Order::kInterleave;
  const Half any = Half::kLowRank;
  const TermChoice base_product = term(TermKind::kBaseProduct, Half::kLowRank, any, 16);
  TermChoice diagonal = term(TermKind::kProduct, Half::kLowRank, any, 16);
  diagonal.diagonal = true;
  const TermChoice low_rank = term(TermKind::kProduct, Half::kLowRank, Half::kLowRank, 16);
  return {
      {"locon r16", {{low_rank}}, 2 * 16},
      {"loha r16", {{term(TermKind::kHadamard, Half::kLowRank, Half::kLowRank, 16)}}, 2 * 33 + 1},
      {"lokr f16", {{term(TermKind::kKronecker, Half::kWhole, Half::kWhole, 16, 16)}}, 2},
      {"lokr f16 r16", {{term(TermKind::kKronecker, Half::kWhole, Half::kLowRank, 16, 16)}}, 2},
      {"dora out locon r16", {{low_rank}, ops::DoraAxis::kOut}, 2 * 16 + 4},
      {"dora out prepared", {{low_rank}, ops::DoraAxis::kOut}, 2 * 16 + 2, false, true},
      {"dora in locon r16", {{low_rank}, ops::DoraAxis::kIn}, 2 * 16 + 4},
      {"dora in prepared", {{low_rank}, ops::DoraAxis::kIn}, 2 * 16 + 2, false, true},
      {"ia3 out", {{term(TermKind::kBaseHadamard, Half::kByRow, any, 0)}}, 2},
      {"ia3 in", {{term(TermKind::kBaseHadamard, Half::kByColumn, any, 0)}}, 2},
      {"glora r16", {{low_rank, base_product}}, 3 * 2 * 16},
      {"tlora r16", {{diagonal, diagonal}}, 2 * 2 * 16},
      {"oft b32", {{rotation(32, kPlain)}}, 2 * 32},
      {"oft inputs b32", {{rotation(32, kPlain, true)}}, 2 * 32},
      {"boft b24", {{rotation(24, kButterfly)}}, 2 * 24},
      {"boft b20", {{rotation(20, kButterfly)}}, 2 * 20},
      {"locon tucker r16", {{term(TermKind::kProduct, Half::kTucker, any, 16)}}, 2 * 16, true},
      {"loha tucker r16", {{term(TermKind::kHadamard, Half::kTucker, Half::kTucker, 16)}}, 2 * 33 + 1, true},
      {"lokr f16 tucker r16", {{term(TermKind::kKronecker, Half::kWhole, Half::kTucker, 16, 16)}}, 2, true},
  };
}

bool complete(Method &method, const Shape &shape) {
  if (method.only_kernels && shape.kernel[0] == 1) return false;
  test::RotationChoice &rotation = method.adapter.terms[0].rotation;
  if (rotation.order == ops::Rotation::Order::kPlain) return true;
  rotation.stages = butterfly_stages(shape.out, rotation.block_size);
  method.operations *= rotation.stages;
  return rotation.stages > 0;
}

void use_family_coefficients(test::WeightCase &weights) {
  for (ops::Term &term : weights.terms())
    if (term.kind == ops::TermKind::kRotation) term.coefficient = 1.0;
}

void use_norms(test::WeightCase &weights, std::vector<float> &memory) {
  std::int64_t most = 0;
  for (const ops::Adapter &adapter : weights.adapters()) most = std::max(most, adapter.magnitude.numel());
  memory.assign(static_cast<std::size_t>(most), 1.0f);
  for (ops::Adapter &adapter : weights.adapters()) adapter.norms = test::norms_from(adapter, memory.data());
}

}  // namespace lyc::bench
