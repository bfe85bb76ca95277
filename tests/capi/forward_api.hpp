// Calls of forward as tests make them, and the operators of layers in plain loops over doubles.
#pragma once

#include <cmath>

#include "capi/api.hpp"

namespace lyc::test {

inline lyc_layer make_layer(lyc_layer_kind kind, lyc_path path = LYC_PATH_AUTO) {
  lyc_layer layer;
  lyc_layer_init(&layer, sizeof layer);
  layer.kind = kind;
  layer.path = path;
  return layer;
}

/// [N, C, S...] -> [N, S..., C], or back.
inline Tensor with_channels_last(const Tensor &from, bool back = false) {
  const std::size_t n = from.shape.size();
  const int64_t batch = from.shape[0], channels = from.shape[back ? n - 1 : 1],
                places = from.count() / batch / channels;
  Tensor to(from.shape, from.dtype);
  if (back)
    std::rotate(to.shape.begin() + 1, to.shape.end() - 1, to.shape.end());
  else
    std::rotate(to.shape.begin() + 1, to.shape.begin() + 2, to.shape.end());
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t p = 0; p < places; ++p) {
        const int64_t first = (b * channels + c) * places + p, last = (b * places + p) * channels + c;
        back ? to.set(first, from.get(last)) : to.set(last, from.get(first));
      }
  return to;
}

/// One call; returns its status. `weight` and `bias` may be null; `whole` chooses the function.
inline lyc_status call_forward(const Module &module, const lyc_layer &layer, const Tensor &x, const Tensor *weight,
                               const Tensor *bias, float multiplier, const Tensor &y, bool whole,
                               const lyc_exec *exec = nullptr) {
  const lyc_tensor x_view = x.view(), y_view = y.view();
  const lyc_tensor weight_view = weight ? weight->view() : lyc_tensor{}, bias_view = bias ? bias->view() : lyc_tensor{};
  const lyc_tensor *w = weight ? &weight_view : nullptr, *b = bias ? &bias_view : nullptr;
  return whole ? lyc_forward_fused(module.get(), &layer, &x_view, w, b, multiplier, &y_view, exec)
               : lyc_forward(module.get(), &layer, &x_view, w, multiplier, &y_view, exec);
}

/// Extents of y for x [N, C, S...] and a weight [O, I, K...].
inline std::vector<int64_t> convolved_shape(const lyc_layer &layer, const Tensor &x, const Tensor &weight) {
  std::vector<int64_t> shape = {x.shape[0], weight.shape[0]};
  for (std::size_t d = 2; d < x.shape.size(); ++d) {
    const int64_t stride = std::max<int64_t>(1, layer.stride[d - 2]),
                  dilation = std::max<int64_t>(1, layer.dilation[d - 2]);
    const int64_t reach = dilation * (weight.shape[d] - 1) + 1;
    shape.push_back((x.shape[d] + 2 * layer.padding[d - 2] - reach) / stride + 1);
  }
  return shape;
}

/// x [N, C, S...] convolved with `weight`, values of [O, I, K...].
inline std::vector<double> convolved(const lyc_layer &layer, const Tensor &x, const Tensor &weight,
                                     const std::vector<double> &values) {
  const std::vector<int64_t> shape = convolved_shape(layer, x, weight);
  const auto extent = [](const std::vector<int64_t> &of, std::size_t d) { return d < of.size() ? of[d] : int64_t{1}; };
  const int64_t groups = std::max(1, layer.groups), in = weight.shape[1], out = weight.shape[0];
  const auto place = [&](int64_t y, int64_t k, int d) {
    return y * std::max<int64_t>(1, layer.stride[d]) - layer.padding[d] + k * std::max<int64_t>(1, layer.dilation[d]);
  };
  std::vector<double> y;
  for (int64_t n = 0; n < shape[0]; ++n)
    for (int64_t o = 0; o < out; ++o)
      for (int64_t a = 0; a < extent(shape, 2); ++a)
        for (int64_t b = 0; b < extent(shape, 3); ++b)
          for (int64_t c = 0; c < extent(shape, 4); ++c) {
            double sum = 0;
            std::size_t k = static_cast<std::size_t>(o * (weight.count() / out));
            for (int64_t i = 0; i < in; ++i)
              for (int64_t ka = 0; ka < extent(weight.shape, 2); ++ka)
                for (int64_t kb = 0; kb < extent(weight.shape, 3); ++kb)
                  for (int64_t kc = 0; kc < extent(weight.shape, 4); ++kc, ++k) {
                    const int64_t at[3] = {place(a, ka, 0), place(b, kb, 1), place(c, kc, 2)};
                    bool inside = true;
                    int64_t index = n * x.shape[1] + o / (out / groups) * in + i;
                    for (std::size_t d = 0; d < 3; ++d) {
                      inside = inside && at[d] >= 0 && at[d] < extent(x.shape, 2 + d);
                      index = index * extent(x.shape, 2 + d) + at[d];
                    }
                    if (inside) sum += x.get(index) * values[k];
                  }
            y.push_back(sum);
          }
  return y;
}

/// x [..., I] times values of [O, I].
inline std::vector<double> linear(const Tensor &x, int64_t out, const std::vector<double> &values) {
  const int64_t in = x.shape.back();
  std::vector<double> y;
  for (int64_t row = 0; row < x.count() / in; ++row)
    for (int64_t o = 0; o < out; ++o) {
      double sum = 0;
      for (int64_t i = 0; i < in; ++i) sum += x.get(row * in + i) * values[static_cast<std::size_t>(o * in + i)];
      y.push_back(sum);
    }
  return y;
}

inline std::vector<double> sum(std::vector<double> a, const std::vector<double> &b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

}  // namespace lyc::test
