// The gradients of a linear map, X Wᵀ + b.
#pragma once

#include <array>
#include <tuple>

#include "column_sums.h"
#include "product.h"

namespace merc {

// Those of X, W and b that are wanted, of the types of X and W, the last in single precision.
inline std::tuple<Tensor, Tensor, Tensor> linear_backward(
    const Tensor& of_out, const Tensor& x, const Tensor& weight, std::array<bool, 3> wanted) {
  const auto half = [](const Tensor& like) { return like.scalar_type() == at::kBFloat16; };
  Tensor of_x, of_weight, of_bias;
  if (wanted[0]) of_x = product(of_out, weight, std::nullopt, half(x));
  if (wanted[1]) of_weight = product(of_out.t(), x, std::nullopt, half(weight));
  if (wanted[2]) of_bias = column_sums(of_out);
  return {of_x, of_weight, of_bias};
}

}  // namespace merc
