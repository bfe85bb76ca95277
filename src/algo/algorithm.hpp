// One adapter family. An algorithm computes nothing: it names its factors and says which terms they make; back ends run
// terms. It knows neither devices nor files. A family is one file here, one line in families.def, one test.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/tensor.hpp"
#include "lycoris.h"
#include "ops/weight.hpp"

namespace lyc::algo {

/// A layer's weight in canonical order: [out, in, kernel...]. Norm layers have in = 1 and no kernel.
struct LayerShape {
  std::int64_t out = 0, in = 1;
  Shape kernel;

  std::int64_t kernel_size() const;
  bool has_kernel() const { return kernel_size() != 1; }  // a 1x1 convolution is a linear layer
};

/// What a caller asks for when a module is created.
struct Spec {
  std::int64_t rank = 0;
  std::uint32_t flags = 0;  // LYC_MODULE_*
  std::int32_t factor = -1;
};

struct FactorSpec {
  std::string name;  // the suffix in files
  Shape shape;
};

/// The tensors of one module by suffix. Contiguous; data may be null while only shapes are looked at.
class Factors {
 public:
  void set(std::string name, const lyc_tensor &tensor);
  void erase(std::string_view name);
  const lyc_tensor *find(std::string_view name) const;
  const lyc_tensor &at(std::string_view name) const;  // FORMAT error naming what is missing
  bool has(std::string_view name) const { return find(name) != nullptr; }

 private:
  std::vector<std::pair<std::string, lyc_tensor>> tensors_;
};

/// What tells modules with the same tensors apart: who wrote them, and what stands beside them.
struct Traits {
  std::optional<double> alpha;  // as stored; families for which it is no scale read it here
  lyc_origin origin = LYC_ORIGIN_LYCORIS;
  std::uint32_t flags = 0;         // LYC_MODULE_* that were asked for
  std::int32_t neumann_terms = 0;  // OFT; 0: what the origin's programs do by default
  double coft_epsilon = 0;         // OFT; 0: no limit
  std::int64_t experts = 1;        // matrices of a stack that the factors are for
  Shape dense;                     // sparse: the extents of the difference
};

/// The delta that factors make: `out` rows, `columns` = in * kernel size. 0: as many as the weight has.
struct DeltaShape {
  std::int64_t out = 0, columns = 0;
  std::int64_t rank = 0;           // what alpha is divided by; 0: nothing is low-rank, and the scale is 1
  Shape kernel;                    // where the factors show it
  std::uint32_t flags = 0;         // LYC_MODULE_* that the factors show
  bool weight = true;              // changes the weight
  bool bias = false;               // changes the bias, by lower_bias
  bool bias_optional = false;      // and is none the worse where the layer has none
  bool bias_reads_weight = false;  // lower_bias needs Lowering::weight
  bool reads_base = false;         // depends on the weight
  bool whole_rows = false;         // rows cannot be computed without the others
  bool replaces = false;           // is the new weight, not a difference
  bool transposed = false;         // factors are those of the transpose: a magnitude of one axis is for columns
  std::int64_t experts = 1;        // so many deltas, for the matrices of a stack [experts, out, in]
  std::int64_t dealt = 1;          // groups of a convolution among which the rank is dealt: forward only
};

/// What `lower` sees, and where it puts terms; their coefficients are multiplied by the scale afterwards.
struct Lowering {
  const Factors &factors;
  const LayerShape &layer;
  const DeltaShape &shape;
  const Traits &traits;
  std::int64_t expert;         // of DeltaShape::experts
  const ops::Operand &weight;  // lower_bias: the layer's weight, if it is at hand
  std::vector<ops::Term> &terms;
  std::vector<ops::Rotation> &rotations;
  double scale = 1;  // lower_bias: what the terms of the weight are multiplied by

  ops::Term &add(ops::TermKind kind = ops::TermKind::kProduct) {
    terms.emplace_back().kind = kind;
    return terms.back();
  }
  ops::Rotation &add_rotation() {
    add(ops::TermKind::kRotation).rotation = static_cast<std::int32_t>(rotations.size());
    return rotations.emplace_back();
  }
};

/// Factors that are not in files: singular triplets of the pristine weight, as many as the rank.
struct BaseState {
  const char *u, *sigma, *v;  // suffixes: [O, r], [1, r], [r, I]
};

/// Factors that files store otherwise than terms need them: rewritten once, when a module is made.
struct Rewritten {
  std::string name;
  lyc_dtype dtype;
  Shape shape;
  std::vector<char> bytes;
};
struct Rewriting {
  const char *const *stored;                                           // suffixes; nullptr-terminated
  std::vector<Rewritten> (*rewrite)(const Factors &, const Traits &);  // factors in CPU memory
};

struct Algorithm {
  lyc_algo id;
  std::string_view name;
  const char *const *aliases;    // other names that people give it; nullptr-terminated
  const char *const *suffixes;   // tensors it can have, in the order of files; nullptr-terminated
  const char *const *signature;  // any of these present: the tensors are of this family
  std::string_view bias;         // suffix of its bias difference; empty: none
  std::uint32_t flags;           // LYC_MODULE_* that lyc_module_create accepts
  bool low_rank;                 // takes a rank and alpha
  bool dora;                     // a DoRA magnitude may go on top
  std::vector<FactorSpec> (*factors)(const Spec &, const LayerShape &);  // null: comes from tensors only
  DeltaShape (*describe)(const Factors &, const Traits &);  // throws FORMAT where shapes contradict each other
  void (*lower)(Lowering &);                                // the weight's terms
  void (*lower_bias)(Lowering &) = nullptr;                 // the bias's, where that is more than `bias`
  const BaseState *base_state = nullptr;
  const Rewriting *rewriting = nullptr;
  bool rank_mask = false;                   // a mask of ranks may go with it
  bool (*owns)(const Factors &) = nullptr;  // tells families with the same signature apart; null: all are its own
  std::string_view marker = {};             // suffix whose values do not count, of any type; empty: none
};

/// Whether a nullptr-terminated list has the name.
bool contains(const char *const *names, std::string_view name);

/// All families, in the order in which files are recognised.
struct AlgorithmList {
  const Algorithm *const *first, *const *last;
  const Algorithm *const *begin() const { return first; }
  const Algorithm *const *end() const { return last; }
};
AlgorithmList algorithms();
const Algorithm *find_algorithm(lyc_algo id);                     // nullptr if unknown
const Algorithm *find_algorithm(std::string_view name_or_alias);  // nullptr if unknown
const Algorithm *recognise(const Factors &factors);               // nullptr if of no known family

// -- factor tensors as operands -------------------------------------------------------------------------------------

/// [rows, cols, 1...] -> out = rows, in = cols.
ops::Operand matrix(const lyc_tensor &tensor);
/// [cols, rows, 1...] -> out = rows, in = cols.
ops::Operand transposed(const lyc_tensor &tensor);
/// [rows, in, K...] or [rows, in*K] -> out = rows, in, kernel of the layer.
ops::Operand taps(const lyc_tensor &tensor, std::int64_t in, const Shape &kernel);
/// A single vector [n, 1...] or [1, n, 1...] -> out = n.
ops::Operand column(const lyc_tensor &tensor);
/// One value for each row or each input of the layer's weight, or a single one -> the weight's extents, by strides of
/// 0.
ops::Operand along_rows(const lyc_tensor &tensor, const LayerShape &layer);
ops::Operand along_inputs(const lyc_tensor &tensor, const LayerShape &layer);

/// Values of a vector: at most one axis is above 1.
std::int64_t values_of(const Factors &factors, std::string_view suffix);
/// Extent of axis 0, and the product of the others; FORMAT errors name `suffix`.
std::int64_t rows_of(const Factors &factors, std::string_view suffix);
std::int64_t columns_of(const Factors &factors, std::string_view suffix);
/// Axis 1 of a tensor whose further axes are all 1 ("[rows, cols, 1, 1]").
std::int64_t matrix_columns_of(const Factors &factors, std::string_view suffix);
/// Axis 1 of a Tucker core [r, r, K...].
std::int64_t core_columns_of(const Factors &factors, std::string_view suffix);
/// Axes from the third on.
Shape kernel_of(const Factors &factors, std::string_view suffix);
/// columns * the taps of the kernel; throws when that overflows.
std::int64_t with_taps(std::int64_t columns, const Shape &kernel);
/// FORMAT error "<a> has 4 ..., <b> has 8" unless equal.
void require_equal(std::int64_t a, std::string_view a_name, std::int64_t b, std::string_view b_name,
                   std::string_view what);

}  // namespace lyc::algo
