// Products of matrices in single precision, by what computes them fastest on this processor.
#pragma once

#include <ATen/MemoryOverlap.h>

#include <optional>
#include <string>

#include "matrix_units.h"
#include "vector_units.h"

namespace merc {

// What computes products: "matrix", "vector", or nothing but the BLAS, "".
inline std::string units() {
#if defined(MERC_MATRIX_UNITS)
  return matrix_units::allowed() ? "matrix" : "";
#elif defined(MERC_VECTOR_UNITS)
  return "vector";
#else
  return "";
#endif
}

// Computes a product by them; false if they cannot, as matrix units cannot what is not finite.
inline bool try_to_compute([[maybe_unused]] const Product& product) {
#if defined(MERC_MATRIX_UNITS)
  return matrix_units::allowed() && matrix_units::compute_as_exactly_as_asked(product);
#elif defined(MERC_VECTOR_UNITS)
  vector_units::compute(product);
  return true;
#else
  return false;
#endif
}

inline void check_product(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0), "no product of ", a.sizes(), " and ", b.sizes());
  TORCH_CHECK(a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat, "products are of float32");
}

// Rows or columns whose numbers lie together.
inline Tensor readable(const Tensor& x) { return x.stride(0) == 1 || x.stride(1) == 1 ? x : x.contiguous(); }

// Writes A B + bias to `out`, rows of numbers that lie together.
inline void multiply_into(const Tensor& a_, const Tensor& b_, const std::optional<Tensor>& bias, Tensor out) {
  if (out.numel() == 0) return;
  const Tensor a = readable(a_), b = readable(b_);
  std::vector<float> added(rounded_up(out.size(1), BIAS_UNIT));
  if (bias) {
    const Tensor together = bias->contiguous();
    std::copy_n(together.const_data_ptr<float>(), together.numel(), added.begin());
  }
  if (try_to_compute({{a, 0}, {b, 1}, a.size(1), added.data(), out.mutable_data_ptr<float>(), out.stride(0)})) return;
  bias ? at::addmm_out(out, *bias, a_, b_) : at::mm_out(out, a_, b_);
}

// A B + bias.
inline Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  check_product(a, b);
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == b.size(1) && bias->scalar_type() == at::kFloat),
              "no bias of ", b.size(1), " columns");
  Tensor out = at::empty({a.size(0), b.size(1)}, a.options());
  multiply_into(a, b, bias, out);
  return out;
}

// C = A B, where C may be a part of every row of something wider.
inline void product_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  check_product(a, b);
  TORCH_CHECK(out.dim() == 2 && out.size(0) == a.size(0) && out.size(1) == b.size(1) && out.stride(1) == 1 &&
              out.scalar_type() == at::kFloat, "no place for the product of ", a.sizes(), " and ", b.sizes());
  at::assert_no_overlap(out, a);
  at::assert_no_overlap(out, b);
  multiply_into(a, b, std::nullopt, out);
}

}  // namespace merc
