#include "cpu/singular.hpp"

#include <Eigen/SVD>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"

namespace lyc::cpu {
namespace {

Eigen::MatrixXd dense(const ops::Operand &w) {
  const std::int64_t taps = w.kernel_size();
  Eigen::MatrixXd matrix(w.out, w.in * taps);
  for (std::int64_t o = 0; o < w.out; ++o)
    for (std::int64_t i = 0; i < w.in; ++i)
      for (std::int64_t k = 0; k < taps; ++k) {
        const std::int64_t k2 = k % w.kernel[2], k1 = k / w.kernel[2] % w.kernel[1], k0 = k / w.kernel[2] / w.kernel[1];
        matrix(o, i * taps + k) = read_element(w.data, w.dtype,
                                               o * w.stride_out + i * w.stride_in + k0 * w.stride_kernel[0] +
                                                   k1 * w.stride_kernel[1] + k2 * w.stride_kernel[2]);
      }
  return matrix;
}

void store(const ops::Operand &to, std::int64_t row, std::int64_t column, double value) {
  static_cast<float *>(to.data)[row * to.stride_out + column * to.stride_in] = static_cast<float>(value);
}

}  // namespace

void singular_triplets(const ops::Operand &matrix, std::int64_t first, const ops::Operand &u, const ops::Operand &sigma,
                       const ops::Operand &v) {
  const Eigen::BDCSVD<Eigen::MatrixXd> svd(dense(matrix), Eigen::ComputeThinU | Eigen::ComputeThinV);
  if (svd.info() != Eigen::Success)
    fail(LYC_ERROR_INVALID_ARGUMENT, "the weight has no singular values: it holds values that are not finite");
  for (std::int64_t n = 0; n < u.in; ++n) {
    store(sigma, 0, n, svd.singularValues()(first + n));
    for (std::int64_t o = 0; o < u.out; ++o) store(u, o, n, svd.matrixU()(o, first + n));
    for (std::int64_t i = 0; i < v.in; ++i) store(v, n, i, svd.matrixV()(i, first + n));
  }
}

}  // namespace lyc::cpu
