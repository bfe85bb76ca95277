// Tensors as matrices. A weight [O, I, K...] becomes rows x columns so that the columns follow memory: where the output
// features are the fastest axis (HWIO) they are the columns, otherwise they are the rows. Each side may still be made
// of several axes; an operand of other strides has the same indices at other places.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/kernels.hpp"
#include "ops/weight.hpp"

namespace lyc::cpu {

/// One side of a matrix, outermost axis first. Axes of extent 1 are left out, and neighbours that continue each other
/// in memory are one.
struct Axes {
  static constexpr int kMax = 1 + ops::kMaxKernelDims;
  int count = 0;
  std::int64_t extent[kMax] = {}, stride[kMax] = {};

  /// Adds an axis inside the others.
  void add(std::int64_t extent, std::int64_t stride);
  std::int64_t size() const;
  std::int64_t offset(std::int64_t index) const;
  bool constant() const {
    return std::all_of(stride, stride + count, [](std::int64_t s) { return s == 0; });
  }
  bool contiguous() const { return count == 0 || (count == 1 && stride[0] == 1); }
};

struct Matrix {
  char *data = nullptr;
  lyc_dtype dtype = LYC_DTYPE_NONE;
  Axes rows, columns;

  explicit operator bool() const { return data != nullptr; }
  bool contiguous() const { return columns.contiguous(); }
  /// Contiguous, and rows at one distance.
  bool in_rows() const { return contiguous() && rows.count <= 1; }
  /// Address of an element. Rows of contiguous matrices go on from there.
  char *at(std::int64_t row, std::int64_t column) const;
};

/// How one weight's axes are dealt to rows and columns; its terms follow.
class Frame {
 public:
  /// From the strides of the output.
  explicit Frame(const ops::Operand &out);

  bool out_in_columns() const { return out_in_columns_; }
  /// [O, I, K] tensors: weights, whole differences.
  Matrix weight(const ops::Operand &operand) const;
  /// Rows x rank, and rank x columns, of a low-rank product.
  Matrix left(const ops::Operand &up, const ops::Operand &down) const;
  Matrix right(const ops::Operand &up, const ops::Operand &down) const;
  /// (kernel positions x r_up) x r_down, kernel positions in the frame's order.
  Matrix core(const ops::Operand &core) const;
  /// I and the kernel axes in the frame's order.
  Axes inner(const ops::Operand &operand) const;
  /// Number of indices on the inner side that share one input feature and follow each other.
  std::int64_t inside_in(const ops::Operand &operand) const;
  /// Index on the inner side of kernel position `position`, counted in the frame's order, at input feature 0.
  std::int64_t kernel_index(const ops::Operand &operand, std::int64_t position) const;
  /// For each index on the inner side i * kernel_size + k, k counted row-major over the kernel axes.
  std::vector<std::int64_t> inner_indices(const ops::Operand &operand) const;

 private:
  // The inner axes, outermost first: 0 is I, 1.. are the kernel's.
  int order_[Axes::kMax];
  bool out_in_columns_;
};

/// Elements row, column .. column + n - 1, converted to float32, and back.
void load(const Kernels &kernels, const Matrix &matrix, std::int64_t row, std::int64_t column, std::int64_t n,
          float *values);
/// Of a 16-bit type, as they are.
void load(const Kernels &kernels, const Matrix &matrix, std::int64_t row, std::int64_t column, std::int64_t n,
          std::uint16_t *values);
/// Pairs of them in the place of float32, from two rows of n.
void zip(const std::uint16_t *a, const std::uint16_t *b, std::int64_t n, float *pairs);
void store(const Kernels &kernels, const float *values, std::int64_t n, const Matrix &matrix, std::int64_t row,
           std::int64_t column, bool stream);

/// One row into another: bit for bit if the types agree, rounded otherwise. `buffer` holds n floats.
void copy(const Kernels &kernels, const Matrix &from, const Matrix &to, std::int64_t row, std::int64_t column,
          std::int64_t n, float *buffer);

/// One value.
float read(const ops::Operand &operand, std::int64_t offset);
std::int64_t read_index(const ops::Operand &operand, std::int64_t offset);  // of an I64 operand

}  // namespace lyc::cpu
