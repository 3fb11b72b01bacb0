// W dropout(gain · GELU(x)) + b.
#pragma once

#include "gelu.h"
#include "linear.h"

namespace merc {

// If it is `ours` by merc's product, which is of bfloat16 if it is `half`; otherwise by PyTorch's, of numbers of one type.
inline Tensor gelu_linear(
    const Tensor& x, const Tensor& weight, const Tensor& bias, double gain, bool tanh, int64_t seed, int64_t dropped,
    bool ours, bool half) {
  const Tensor hidden = gelu(x, gain, tanh, seed, dropped);
  return ours ? product(hidden, weight.t(), bias, half) : at::linear(hidden, weight, bias);
}

// Gradients of x, W and b that are wanted, as those of a linear map.
inline std::tuple<Tensor, Tensor, Tensor> gelu_linear_backward(
    const Tensor& of_out, const Tensor& x, const Tensor& weight, double gain, bool tanh, int64_t seed, int64_t dropped,
    bool ours, std::array<bool, 3> wanted) {
  const auto times = [=](const Tensor& a, const Tensor& b, at::ScalarType type) {
    return ours ? product(a, b, std::nullopt, type == at::kBFloat16) : at::mm(a, b).to(type);
  };
  Tensor of_x, of_weight, of_bias;
  // What is computed again for the weight is gone before there is a gradient of the input.
  if (wanted[1]) of_weight = times(of_out.t(), gelu(x, gain, tanh, seed, dropped), weight.scalar_type());
  if (wanted[0]) {
    of_x = times(of_out, weight, x.scalar_type()).contiguous();
    gelu_backward(of_x, x, gain, tanh, seed, dropped);
  }
  if (wanted[2]) of_bias = column_sums(of_out);
  return {of_x, of_weight, of_bias};
}

}  // namespace merc
