// GLORA as PEFT has it, another method than LyCORIS' under one name:
//
//   dW = W o A + B      db = b o D + E + W C
//
// glora_A, glora_B   .Xd [O, r] .Xu [r, I]    .X [O, 1], one value a row    .X [1]
// glora_C            .Xd [I, r] .Xu [r, 1]    .X [I, 1]                     .X [1]
// glora_D, glora_E                            .X [O]                        .X [1]
//
// A path that is not used leaves .zeros in the file, of any shape. There is no rank to divide by, and no alpha.
#include "algo/families.hpp"
#include "base/error.hpp"

namespace lyc::algo {
namespace {

/// One of the five: a product, or values that repeat.
struct Path {
  const char *left, *right, *values;
};
constexpr Path kA = {"glora_A.Xd", "glora_A.Xu", "glora_A.X"}, kB = {"glora_B.Xd", "glora_B.Xu", "glora_B.X"},
               kC = {"glora_C.Xd", "glora_C.Xu", "glora_C.X"}, kD = {nullptr, nullptr, "glora_D.X"},
               kE = {nullptr, nullptr, "glora_E.X"};
constexpr const char *kSuffixes[] = {kA.left,         kA.right,        kA.values,       kB.left,         kB.right,
                                     kB.values,       kC.left,         kC.right,        kC.values,       kD.values,
                                     kE.values,       "glora_A.zeros", "glora_B.zeros", "glora_C.zeros", "glora_D.zeros",
                                     "glora_E.zeros", nullptr};

bool is_product(const Factors &f, const Path &path) { return path.left && (f.has(path.left) || f.has(path.right)); }
bool is_used(const Factors &f, const Path &path) { return is_product(f, path) || f.has(path.values); }

/// Factors that show an extent show the same.
void agree(std::int64_t &extent, std::int64_t seen, const char *name, const char *what) {
  if (extent == 0) extent = seen;
  if (extent != seen) fail(LYC_ERROR_FORMAT, name, " has ", what, " ", seen, ", others have ", extent);
}

/// What a path shows of its own two extents; single values show none.
void describe_path(const Factors &f, const Path &path, std::int64_t &rows, std::int64_t *columns) {
  if (is_product(f, path)) {
    require_equal(matrix_columns_of(f, path.left), path.left, rows_of(f, path.right), path.right, "rank");
    agree(rows, rows_of(f, path.left), path.left, "rows");
    const std::int64_t right = matrix_columns_of(f, path.right);
    if (columns)
      agree(*columns, right, path.right, "columns");
    else
      require_equal(right, path.right, 1, "a bias", "columns");
  } else if (f.has(path.values) && values_of(f, path.values) != 1) {
    agree(rows, values_of(f, path.values), path.values, "values");
  }
}

DeltaShape describe(const Factors &f, const Traits &) {
  DeltaShape shape;
  describe_path(f, kA, shape.out, &shape.columns);
  describe_path(f, kB, shape.out, &shape.columns);
  describe_path(f, kC, shape.columns, nullptr);
  describe_path(f, kD, shape.out, nullptr);
  describe_path(f, kE, shape.out, nullptr);
  shape.weight = is_used(f, kA) || is_used(f, kB);
  shape.bias_reads_weight = is_used(f, kC);
  shape.bias = shape.bias_reads_weight || is_used(f, kD) || is_used(f, kE);
  shape.bias_optional = true;
  shape.reads_base = true;
  return shape;
}

void add_path(Lowering &to, const Path &path, ops::TermKind kind) {
  if (!is_used(to.factors, path)) return;
  ops::Product &product = to.add(kind).p;
  if (is_product(to.factors, path)) {
    product.up = matrix(to.factors.at(path.left));
    product.down = matrix(to.factors.at(path.right));
  } else {
    product.down = along_rows(to.factors.at(path.values), to.layer);
  }
}

void lower(Lowering &to) {
  add_path(to, kA, ops::TermKind::kBaseHadamard);
  add_path(to, kB, ops::TermKind::kProduct);
}

/// W C, with the weight as the left factor of a product.
void add_weight_product(Lowering &to) {
  const ops::Operand &weight = to.weight;
  require(weight.data != nullptr, "the bias's difference is made from the layer's weight, which is not given");
  if (weight.out != to.layer.out || weight.kernel_size() != 1 || (to.shape.columns && weight.in != to.shape.columns))
    fail(LYC_ERROR_MISMATCH, "the layer's weight is ", weight.out, " x ", weight.in * weight.kernel_size(),
         ", the factors are for ", to.layer.out, " x ", to.shape.columns);
  ops::Product &product = to.add().p;
  product.up = weight;
  if (is_product(to.factors, kC)) {
    product.core = matrix(to.factors.at(kC.left));
    product.down = matrix(to.factors.at(kC.right));
  } else {
    product.down = along_rows(to.factors.at(kC.values), {weight.in, 1, {}});
  }
}

void lower_bias(Lowering &to) {
  add_path(to, kD, ops::TermKind::kBaseHadamard);
  add_path(to, kE, ops::TermKind::kProduct);
  if (is_used(to.factors, kC)) add_weight_product(to);
}

}  // namespace

const Algorithm kPeftGlora = {LYC_ALGO_PEFT_GLORA, "peft_glora", kNone, kSuffixes, kSuffixes, {}, 0, false,
                              false,               nullptr,      describe, lower,  lower_bias};

}  // namespace lyc::algo
