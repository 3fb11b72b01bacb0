// What all kernels share: rows in single precision whatever they are stored in, and work split among threads.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#ifdef CPU_CAPABILITY_AVX512
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

namespace merc {

using at::Tensor;
using Lanes = at::vec::Vectorized<float>;
constexpr int64_t LANES = Lanes::size();

#ifdef CPU_CAPABILITY_AVX512
// The first so many of sixteen numbers; none or all of them where there are fewer or more.
inline __mmask16 first(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1);
}
#endif

inline int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
inline int64_t rounded_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }
inline int64_t whole(int64_t n) { return rounded_up(n, LANES); }  // numbers in vectors that hold n

// Calls f(start, count) for each piece of n numbers that fits a register.
template <typename F>
inline void pieces(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) f(i, LANES);
  if (i < n) f(i, n - i);
}

// What is stored at x in single precision, 0 behind the end.
inline Lanes load(const float* x, int64_t count) { return count == LANES ? Lanes::loadu(x) : Lanes::loadu(x, count); }

inline Lanes load(const at::BFloat16* x, int64_t count) {
#ifdef CPU_CAPABILITY_AVX512
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(count), x)), 16));
#else
  float there[LANES] = {};
  at::vec::convert(x, there, count);
  return Lanes::loadu(there);
#endif
}

inline void store(float* y, const Lanes& x, int64_t count) {
  count == LANES ? x.store(y) : x.store(y, count);
}

inline void store(at::BFloat16* y, const Lanes& x, int64_t count) {
#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512BF16__)
  _mm256_mask_storeu_epi16(y, first(count), (__m256i)_mm512_cvtneps_pbh(x));
#else
  float here[LANES];
  x.store(here);
  at::vec::convert(here, y, count);
#endif
}

// The same with another number than 0 behind the end.
inline Lanes load(const float* x, int64_t count, float behind) {
  if (count == LANES) return Lanes::loadu(x);
#ifdef CPU_CAPABILITY_AVX512
  return _mm512_mask_loadu_ps(_mm512_set1_ps(behind), first(count), x);
#else
  return Lanes::set(Lanes(behind), Lanes::loadu(x, count), count);
#endif
}

inline float sum(const Lanes& x) {
  return at::vec::vec_reduce_all<float>([](Lanes a, Lanes b) { return a + b; }, x);
}

inline float highest(const Lanes& x) {
  return at::vec::vec_reduce_all<float>([](Lanes a, Lanes b) { return at::vec::maximum(a, b); }, x);
}

// Writes the sums of LANES vectors.
inline void sums(const Lanes* x, float* out) {
#ifdef CPU_CAPABILITY_AVX512
  __m512 of_2[8], of_4[4], of_8[2];  // what is left of so many vectors, whose lanes take turns
#pragma GCC unroll 16
  for (int i = 0; i < 8; ++i) {
    const __m512 a = x[i % 4 + i / 4 * 8], b = x[i % 4 + i / 4 * 8 + 4];
    of_2[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    const __m512 a = of_2[i], b = of_2[i + 4];
    of_4[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512 a = of_4[2 * i], b = of_4[2 * i + 1];
    of_8[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  const __m512d a = _mm512_castps_pd(of_8[0]), b = _mm512_castps_pd(of_8[1]);
  const __m512 low = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), high = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  _mm512_storeu_ps(out, _mm512_add_ps(low, high));
#else
  for (int64_t i = 0; i < LANES; ++i) out[i] = sum(x[i]);
#endif
}

// The sum of f(start, count) over all pieces, lanes behind the end included; several sums wait less for each other.
template <typename F>
inline float total(int64_t n, const F& f) {
  Lanes a(0.f), b(0.f), c(0.f), d(0.f);
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES) {
    a = a + f(i, LANES);
    b = b + f(i + LANES, LANES);
    c = c + f(i + 2 * LANES, LANES);
    d = d + f(i + 3 * LANES, LANES);
  }
  for (; i + LANES <= n; i += LANES) a = a + f(i, LANES);
  if (i < n) b = b + f(i, n - i);
  return sum((a + b) + (c + d));
}

template <typename T>
inline float sum(const T* x, int64_t n) {
  return total(n, [&](int64_t i, int64_t count) { return load(x + i, count); });  // 0 behind the end
}

template <typename T>
inline float dot(const T* x, const float* y, int64_t n) {
  return total(n, [&](int64_t i, int64_t count) { return load(x + i, count) * load(y + i, count); });
}

// y += a x
inline void add(float* y, float a, const float* x, int64_t n) {
  const Lanes factor(a);
  pieces(n, [&](int64_t i, int64_t count) {
    store(y + i, at::vec::fmadd(factor, load(x + i, count), load(y + i, count)), count);
  });
}

// Calls f<T>() with the type of the numbers.
template <typename F>
void with_type(const Tensor& x, const F& f) {
  if (x.scalar_type() == at::kFloat) return f.template operator()<float>();
  if (x.scalar_type() == at::kBFloat16) return f.template operator()<at::BFloat16>();
  TORCH_CHECK(false, "merc's kernels compute in float32 and bfloat16, not in ", x.scalar_type());
}

// Room for numbers that is used again and again: asking the C library for it takes longer than filling little of it.
class Scratch {
 public:
  float* take(int64_t count) {
    if (used_ + count > static_cast<int64_t>(room_.back().size())) {
      room_.emplace_back(std::max<int64_t>(count, 2 * room_.back().size()));  // what was taken stays where it is
      used_ = 0;
    }
    used_ += count;
    return room_.back().data() + used_ - count;
  }
  void give_back_all() {
    if (room_.size() > 1) room_.erase(room_.begin(), room_.end() - 1);
    used_ = 0;
  }

 private:
  std::vector<std::vector<float>> room_{std::vector<float>(1 << 14)};
  int64_t used_ = 0;
};

// One part of [0, count) for each thread: calls f(part, begin, end).
template <typename F>
void in_parts(int64_t count, const F& f) {
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), count));
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) f(part, count * part / parts, count * (part + 1) / parts);
  });
}

// Calls f(start, count) for each block of n numbers.
template <typename F>
inline void in_blocks(int64_t n, const F& f) {
  constexpr int64_t BLOCK = 2048;
  at::parallel_for(0, (n + BLOCK - 1) / BLOCK, 8, [&](int64_t begin, int64_t end) {
    for (int64_t start = begin * BLOCK; start < std::min(n, end * BLOCK); start += BLOCK)
      f(start, std::min(BLOCK, n - start));
  });
}

// Rows as BLAS can read them: not on top of each other, the numbers of each together.
inline Tensor strided(const Tensor& x) {
  return x.stride(-1) == 1 && (x.size(0) <= 1 || x.stride(0) >= x.size(-1)) ? x : x.clone(at::MemoryFormat::Contiguous);
}

}  // namespace merc
