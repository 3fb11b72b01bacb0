// Products of matrices in single precision or bfloat16, by what computes them fastest on this processor.
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

// Whether factors and products may be of bfloat16.
inline bool multiplies_bfloat16() {
#ifdef MERC_VECTORS_OF_PAIRS
  return true;
#else
  return false;
#endif
}

// Computes a product of numbers rounded to bfloat16; false if this processor has nothing for them.
inline bool try_to_compute_rounded([[maybe_unused]] const Product& product) {
#ifdef MERC_VECTORS_OF_PAIRS
  using vector_units::Pairs;
  product.half ? vector_units::compute<Pairs, at::BFloat16>(product) : vector_units::compute<Pairs, float>(product);
  return true;
#else
  return false;
#endif
}

// Computes a product by these units, of numbers that are rounded to bfloat16 if it says so; false if they cannot, as
// matrix units cannot what is not finite.
inline bool try_to_compute(const Product& product, bool rounded) {
  if (rounded) return try_to_compute_rounded(product);
#if defined(MERC_MATRIX_UNITS)
  return matrix_units::allowed() && matrix_units::compute_as_exactly_as_asked(product);
#elif defined(MERC_VECTOR_UNITS)
  const bool roughly = at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::MEDIUM;
  if (!(roughly && try_to_compute_rounded(product))) vector_units::compute<vector_units::Singles, float>(product);
  return true;
#else
  return false;
#endif
}

// How many products are added up before the sum goes to memory.
inline int64_t most_at_once() {
#ifdef MERC_VECTORS_OF_PAIRS
  return vector_units::Pairs::NUMBERS * vector_units::INNER;
#else
  return 0;
#endif
}

inline bool fits(const Tensor& x) {
  return x.scalar_type() == at::kFloat || (x.scalar_type() == at::kBFloat16 && multiplies_bfloat16());
}

inline void check_product(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0), "no product of ", a.sizes(), " and ", b.sizes());
  TORCH_CHECK(fits(a) && fits(b), "products are of float32, or of bfloat16 where the processor multiplies it");
}

// Rows or columns whose numbers lie together.
inline Tensor readable(const Tensor& x) { return x.stride(0) == 1 || x.stride(1) == 1 ? x : x.contiguous(); }

// Writes A B + bias to `out`, rows of numbers that lie together. If it is `rounded`, A and B are rounded to bfloat16.
[[gnu::noinline]] inline void multiply_into(
    const Tensor& a_, const Tensor& b_, const std::optional<Tensor>& bias, bool rounded, const Tensor& out) {
  if (out.numel() == 0) return;
  if (out.scalar_type() == at::kBFloat16 && a_.size(1) > most_at_once()) {  // sums of sums would be rounded, too
    const Tensor exact = at::empty(out.sizes(), out.options().dtype(at::kFloat));
    multiply_into(a_, b_, bias, rounded, exact);
    out.copy_(exact);
    return;
  }
  const Tensor a = readable(a_), b = readable(b_);
  std::vector<float> added(rounded_up(out.size(1), BIAS_UNIT));
  if (bias) {
    const Tensor together = bias->to(at::kFloat).contiguous();
    std::copy_n(together.const_data_ptr<float>(), together.numel(), added.begin());
  }
  if (try_to_compute({a, b, added.data(), out}, rounded)) return;
  Tensor plain = out;
  bias ? at::addmm_out(plain, *bias, a_, b_) : at::mm_out(plain, a_, b_);
}

// Whether there is a number of bfloat16 in a product; it rounds both factors then.
inline bool of_halves(const Tensor& a, const Tensor& b, const Tensor& out) {
  return a.scalar_type() == at::kBFloat16 || b.scalar_type() == at::kBFloat16 || out.scalar_type() == at::kBFloat16;
}

// A B + bias, of bfloat16 or of single precision.
inline Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias, bool half) {
  check_product(a, b);
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == b.size(1) && fits(*bias)),
              "no bias of ", b.size(1), " columns");
  Tensor out = at::empty({a.size(0), b.size(1)}, a.options().dtype(half ? at::kBFloat16 : at::kFloat));
  TORCH_CHECK(fits(out), "products are of float32, or of bfloat16 where the processor multiplies it");
  multiply_into(a, b, bias, of_halves(a, b, out), out);
  return out;
}

// C = A B, where C may be a part of every row of something wider.
inline void product_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  check_product(a, b);
  TORCH_CHECK(out.dim() == 2 && out.size(0) == a.size(0) && out.size(1) == b.size(1) && out.stride(1) == 1 && fits(out),
              "no place for the product of ", a.sizes(), " and ", b.sizes());
  at::assert_no_overlap(out, a);
  at::assert_no_overlap(out, b);
  multiply_into(a, b, std::nullopt, of_halves(a, b, out), out);
}

}  // namespace merc
