// dropout(gain · GELU(x)), and nothing of it kept for the backward pass but x.
#pragma once

#include <ATen/MemoryOverlap.h>

#include "dropout.h"

namespace merc {

constexpr float SQRT_HALF = 0.70710678118654752f;
constexpr float DENSITY_AT_0 = 0.39894228040143268f;  // of the normal distribution

// x times the distribution function of the normal distribution, (1 + erf(x/√2))/2, where
// erf z = 1 − (p₁t + … + p₅t⁵) exp(−z²), t = 1/(1 + pz), for z ≥ 0 (Abramowitz and Stegun, 7.1.26: exact to 1.5·10⁻⁷).
struct Gelu {
  explicit Gelu(const Lanes& x) : bell((x * x * Lanes(-0.5f)).exp_u20()) {
    const Lanes t = Lanes(1.f) / at::vec::fmadd(Lanes(0.3275911f * SQRT_HALF), x.abs(), Lanes(1.f));
    Lanes sum(1.061405429f);
    for (float factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
      sum = at::vec::fmadd(sum, t, Lanes(factor));
    const Lanes beyond = Lanes(0.5f) * sum * t * bell;  // the smaller of what lies below x and what lies above it
    below = Lanes::blendv(Lanes(1.f) - beyond, beyond, x < Lanes(0.f));
  }

  static Lanes value(const Lanes& x) { return x * Gelu(x).below; }
  static Lanes slope(const Lanes& x) {
    const Gelu gelu(x);
    return at::vec::fmadd(x, Lanes(DENSITY_AT_0) * gelu.bell, gelu.below);
  }

  Lanes bell, below;
};

// The same with the approximation (1 + tanh y)/2 of the distribution function, y = a x + b x³, which is 1/(1 + exp(−2y)).
struct TanhGelu {
  static constexpr float A = 0.79788456080286536f, B = 0.044715f * A;

  explicit TanhGelu(const Lanes& x)
      : squared(x * x),
        below(Lanes(1.f) / (Lanes(1.f) + (x * at::vec::fmadd(Lanes(-2 * B), squared, Lanes(-2 * A))).exp_u20())) {}

  static Lanes value(const Lanes& x) { return x * TanhGelu(x).below; }
  static Lanes slope(const Lanes& x) {
    const TanhGelu gelu(x);
    const Lanes steepness = at::vec::fmadd(Lanes(6 * B), gelu.squared, Lanes(2 * A));
    return gelu.below * at::vec::fmadd(x * steepness, Lanes(1.f) - gelu.below, Lanes(1.f));
  }

  Lanes squared, below;
};

template <typename Kind>
inline Tensor gelu_of_kind(const Tensor& x, float gain, const Mask& mask) {
  Tensor y = at::empty_like(x);
  with_type(x, [&]<typename T>() {
    const T* from = x.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    in_blocks(x.numel(), [&](int64_t start, int64_t count) {
      mask.each(start, count, [&](int64_t i, int64_t n, const Lanes& factors) {
        store(to + start + i, Lanes(gain) * Kind::value(load(from + start + i, n)) * factors, n);
      });
    });
  });
  return y;
}

template <typename Kind>
inline void gelu_backward_of_kind(const Tensor& of_y, const Tensor& x, float gain, const Mask& mask) {
  with_type(x, [&]<typename T>() {
    const T* from = x.const_data_ptr<T>();
    T* to = of_y.mutable_data_ptr<T>();
    in_blocks(x.numel(), [&](int64_t start, int64_t count) {
      mask.each(start, count, [&](int64_t i, int64_t n, const Lanes& factors) {
        T* gradient = to + start + i;
        store(gradient, load(gradient, n) * factors * Lanes(gain) * Kind::slope(load(from + start + i, n)), n);
      });
    });
  });
}

[[gnu::noinline]] inline Tensor gelu(const Tensor& x_, double gain_, bool tanh, int64_t seed, int64_t dropped) {
  const Tensor x = x_.contiguous();
  const auto gain = static_cast<float>(gain_);
  const Mask mask(seed, dropped);
  return tanh ? gelu_of_kind<TanhGelu>(x, gain, mask) : gelu_of_kind<Gelu>(x, gain, mask);
}

// Makes of the gradient of the result that of x.
inline void gelu_backward(
    const Tensor& of_y, const Tensor& x_, double gain_, bool tanh, int64_t seed, int64_t dropped) {
  TORCH_CHECK(of_y.sizes() == x_.sizes() && of_y.scalar_type() == x_.scalar_type(), "a gradient for each number");
  TORCH_CHECK(of_y.is_contiguous(), "a gradient whose rows lie one behind the other");
  const Tensor x = x_.contiguous();
  at::assert_no_overlap(of_y, x);
  const auto gain = static_cast<float>(gain_);
  const Mask mask(seed, dropped);
  return tanh ? gelu_backward_of_kind<TanhGelu>(of_y, x, gain, mask) : gelu_backward_of_kind<Gelu>(of_y, x, gain, mask);
}

}  // namespace merc
