// dropout(GELU(scale · (w · (x − mean)/sd + b))) of rows.
#pragma once

#include <tuple>

#include "gelu.h"
#include "moments.h"

namespace merc {

inline Tensor scaled(const Tensor& x, double scale) { return (scale == 1 ? x : x * scale).contiguous(); }

// (N, H·D), (H, D), (H, D) → (N, H·D) and, for the backward pass, (N, H, 2) mean and 1/sd.
inline std::tuple<Tensor, Tensor> head_norm_gelu(
    const Tensor& x_, const Tensor& weight_, const Tensor& bias_, double scale_of_all, double epsilon, int64_t seed,
    int64_t dropped) {
  TORCH_CHECK(x_.dim() == 2 && weight_.dim() == 2 && weight_.numel() == x_.size(1) && bias_.sizes() == weight_.sizes(),
              "a weight and a bias for each channel of each head");
  const Tensor x = x_.contiguous(), weight = scaled(weight_, scale_of_all), bias = scaled(bias_, scale_of_all);
  const int64_t heads = weight.size(0), dim = weight.size(1), stretch = Mask::stretch(dim);
  const Mask mask(seed, dropped);
  Tensor y = at::empty_like(x), moments = at::empty({x.size(0), heads, 2}, weight.options());
  float* moment = moments.mutable_data_ptr<float>();
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  with_type(x, [&]<typename T>() {
    const T* from = x.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    in_parts(x.size(0) * heads, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* in = from + row * dim;
        const auto [mean, scale] = moments_of(in, dim, epsilon);
        moment[2 * row] = mean;
        moment[2 * row + 1] = scale;
        const Lanes level(mean), factor(scale);
        T* out = to + row * dim;
        const float *w_row = w + row % heads * dim, *b_row = b + row % heads * dim;
        mask.each(row * stretch, dim, [&](int64_t i, int64_t count, const Lanes& factors) {
          const Lanes normed = (load(in + i, count) - level) * factor;
          const Lanes inner = at::vec::fmadd(normed, load(w_row + i, count), load(b_row + i, count));
          store(out + i, Gelu::value(inner) * factors, count);
        });
      }
    });
  });
  return {y, moments};
}

// Gradients of x, weight and bias.
inline std::tuple<Tensor, Tensor, Tensor> head_norm_gelu_backward(
    const Tensor& of_y_, const Tensor& x_, const Tensor& moments, const Tensor& weight_, const Tensor& bias_,
    double scale_of_all, int64_t seed, int64_t dropped) {
  TORCH_CHECK(of_y_.sizes() == x_.sizes() && of_y_.scalar_type() == x_.scalar_type(), "a gradient for each number");
  const Tensor of_y = of_y_.contiguous(), x = x_.contiguous();
  const Tensor weight = scaled(weight_, scale_of_all), bias = scaled(bias_, scale_of_all);
  const int64_t heads = weight.size(0), dim = weight.size(1), stretch = Mask::stretch(dim);
  const Mask mask(seed, dropped);
  Tensor of_x = at::empty_like(x);
  Tensor sums = at::zeros({at::get_num_threads(), 2, heads, dim}, weight.options());
  const float* moment = moments.const_data_ptr<float>();
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  float* all_sums = sums.mutable_data_ptr<float>();
  with_type(x, [&]<typename T>() {
    const T *incoming = of_y.const_data_ptr<T>(), *from = x.const_data_ptr<T>();
    T* to = of_x.mutable_data_ptr<T>();
    in_parts(x.size(0) * heads, [&](int64_t part, int64_t begin, int64_t end) {
      std::vector<float> normed_row(dim), of_normed_row(dim);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t head = row % heads;
        const T *in = from + row * dim, *of_out = incoming + row * dim;
        const Lanes mean(moment[2 * row]), scale(moment[2 * row + 1]);
        const float *w_row = w + head * dim, *b_row = b + head * dim;
        float *of_w = all_sums + (2 * part * heads + head) * dim, *of_b = of_w + heads * dim;
        Lanes total(0.f), along(0.f);
        mask.each(row * stretch, dim, [&](int64_t i, int64_t count, const Lanes& factors) {
          const Lanes normed = (load(in + i, count) - mean) * scale, gain = load(w_row + i, count);
          const Lanes inner = at::vec::fmadd(normed, gain, load(b_row + i, count));
          const Lanes of_inner = load(of_out + i, count) * factors * Gelu::slope(inner);
          store(of_w + i, at::vec::fmadd(of_inner, normed, load(of_w + i, count)), count);
          store(of_b + i, load(of_b + i, count) + of_inner, count);
          const Lanes of_normed = of_inner * gain;  // 0 in lanes behind the end, as the gain is
          store(normed_row.data() + i, normed, count);
          store(of_normed_row.data() + i, of_normed, count);
          total = total + of_normed;
          along = at::vec::fmadd(of_normed, normed, along);
        });
        const Lanes level(sum(total) / static_cast<float>(dim)), tilt(sum(along) / static_cast<float>(dim));
        pieces(dim, [&](int64_t i, int64_t count) {
          const Lanes of_normed = load(of_normed_row.data() + i, count), normed = load(normed_row.data() + i, count);
          store(to + row * dim + i, (of_normed - level - tilt * normed) * scale, count);
        });
      }
    });
  });
  const Tensor both = scaled(sums.sum(0), scale_of_all);
  return {of_x, both[0], both[1]};
}

}  // namespace merc
