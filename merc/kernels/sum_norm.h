// Layer norm of x + dropout(y), as behind a layer with a residual.
#pragma once

#include <tuple>

#include "dropout.h"
#include "moments.h"

namespace merc {

// (N, D) x and y, (D,) weight and bias → (N, D) and, for the backward pass, the sums and (N, 2) mean and 1/sd.
inline std::tuple<Tensor, Tensor, Tensor> sum_norm(
    const Tensor& x, const Tensor& y, const Tensor& weight_, const Tensor& bias_, double epsilon, int64_t seed,
    int64_t dropped) {
  const Tensor sums = add_dropped(x, y, seed, dropped), weight = weight_.contiguous(), bias = bias_.contiguous();
  const int64_t dim = sums.size(-1);
  TORCH_CHECK(sums.dim() == 2 && weight.numel() == dim && bias.numel() == dim, "a weight and a bias for each channel");
  TORCH_CHECK(weight.scalar_type() == at::kFloat && bias.scalar_type() == at::kFloat, "both of single precision");
  Tensor out = at::empty_like(sums), moments = at::empty({sums.size(0), 2}, weight.options());
  float* moment = moments.mutable_data_ptr<float>();
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  with_type(sums, [&]<typename T>() {
    in_parts(sums.size(0), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* in = sums.const_data_ptr<T>() + row * dim;
        T* to = out.mutable_data_ptr<T>() + row * dim;
        const auto [mean, scale] = moments_of(in, dim, epsilon);
        moment[2 * row] = mean;
        moment[2 * row + 1] = scale;
        const Lanes level(mean), factor(scale);
        pieces(dim, [&](int64_t i, int64_t count) {
          const Lanes normed = (load(in + i, count) - level) * factor;
          store(to + i, at::vec::fmadd(normed, load(w + i, count), load(b + i, count)), count);
        });
      }
    });
  });
  return {out, sums, moments};
}

// Gradients of the sums, weight and bias.
inline std::tuple<Tensor, Tensor, Tensor> sum_norm_backward(
    const Tensor& of_out_, const Tensor& sums, const Tensor& moments, const Tensor& weight_) {
  TORCH_CHECK(of_out_.sizes() == sums.sizes() && of_out_.scalar_type() == sums.scalar_type(), "a gradient for each number");
  const Tensor of_out = of_out_.contiguous(), weight = weight_.contiguous();
  const int64_t dim = sums.size(1);
  Tensor of_sums = at::empty_like(sums), totals = at::zeros({at::get_num_threads(), 2, dim}, weight.options());
  const float *moment = moments.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
  with_type(sums, [&]<typename T>() {
    in_parts(sums.size(0), [&](int64_t part, int64_t begin, int64_t end) {
      float *of_w = totals.mutable_data_ptr<float>() + 2 * part * dim, *of_b = of_w + dim;
      for (int64_t row = begin; row < end; ++row) {
        const T *in = sums.const_data_ptr<T>() + row * dim, *incoming = of_out.const_data_ptr<T>() + row * dim;
        T* to = of_sums.mutable_data_ptr<T>() + row * dim;
        const Lanes mean(moment[2 * row]), scale(moment[2 * row + 1]);
        Lanes level(0.f), along(0.f);
        pieces(dim, [&](int64_t i, int64_t count) {
          const Lanes normed = (load(in + i, count) - mean) * scale, of_it = load(incoming + i, count);
          store(of_w + i, at::vec::fmadd(of_it, normed, load(of_w + i, count)), count);
          store(of_b + i, load(of_b + i, count) + of_it, count);
          const Lanes of_normed = of_it * load(w + i, count);  // 0 in lanes behind the end, as the weight is
          level = level + of_normed;
          along = at::vec::fmadd(of_normed, normed, along);
        });
        const Lanes shift(sum(level) / static_cast<float>(dim)), tilt(sum(along) / static_cast<float>(dim));
        pieces(dim, [&](int64_t i, int64_t count) {
          const Lanes normed = (load(in + i, count) - mean) * scale;
          const Lanes of_normed = load(incoming + i, count) * load(w + i, count);
          store(to + i, (of_normed - shift - tilt * normed) * scale, count);
        });
      }
    });
  });
  const Tensor both = totals.sum(0);
  return {of_sums, both[0], both[1]};
}

}  // namespace merc
