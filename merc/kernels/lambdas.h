// λ = exp⟨l₁, r₁⟩ − exp⟨l₂, r₂⟩ + λ_init, the share of the second of two attention maps that is taken away.
#pragma once

#include <tuple>

#include "rows.h"

namespace merc {

inline void check_lambdas(const Tensor& left, const Tensor& right) {
  TORCH_CHECK(left.dim() >= 2 && left.size(-2) == 2 && left.sizes() == right.sizes(), "two pairs of vectors for each λ");
  TORCH_CHECK(left.scalar_type() == at::kFloat && right.scalar_type() == at::kFloat, "vectors of single precision");
}

// (…, 2, C) left and right vectors → (…).
inline Tensor lambdas(const Tensor& left_, const Tensor& right_, double initial) {
  check_lambdas(left_, right_);
  const Tensor left = left_.contiguous(), right = right_.contiguous();
  const int64_t width = left.size(-1);
  Tensor out = at::empty(left.sizes().slice(0, left.dim() - 2), left.options());
  const float *l = left.const_data_ptr<float>(), *r = right.const_data_ptr<float>();
  for (int64_t i = 0; i < out.numel(); ++i, l += 2 * width, r += 2 * width)
    out.mutable_data_ptr<float>()[i] =
        std::exp(dot(l, r, width)) - std::exp(dot(l + width, r + width, width)) + static_cast<float>(initial);
  return out;
}

// Gradients of both.
inline std::tuple<Tensor, Tensor> lambdas_backward(const Tensor& of_out_, const Tensor& left_, const Tensor& right_) {
  check_lambdas(left_, right_);
  TORCH_CHECK(of_out_.numel() * 2 * left_.size(-1) == left_.numel(), "a gradient for each λ");
  const Tensor left = left_.contiguous(), right = right_.contiguous(), of_out = of_out_.contiguous();
  const int64_t width = left.size(-1);
  Tensor of_left = at::zeros_like(left), of_right = at::zeros_like(right);
  for (int64_t i = 0; i < 2 * of_out.numel(); ++i) {
    const float *l = left.const_data_ptr<float>() + i * width, *r = right.const_data_ptr<float>() + i * width;
    const float of_inner = of_out.const_data_ptr<float>()[i / 2] * std::exp(dot(l, r, width)) * (i % 2 ? -1.f : 1.f);
    add(of_left.mutable_data_ptr<float>() + i * width, of_inner, r, width);
    add(of_right.mutable_data_ptr<float>() + i * width, of_inner, l, width);
  }
  return {of_left, of_right};
}

}  // namespace merc
