// Dropout whose masks are never stored: a hash of the position says what is dropped, in the backward pass again.
#pragma once

#include <cstring>

#include "rows.h"

namespace merc {

// Entry i is dropped where byte i of a stream of random bytes is less than `dropped`, of 256.
class Mask {
 public:
  Mask(int64_t seed, int64_t dropped)
      : offset_(static_cast<uint32_t>(seed)),
        key_(static_cast<uint32_t>(seed >> 32)),
        dropped_(static_cast<int32_t>(dropped)),
        scale_(dropped < 256 ? 256.f / static_cast<float>(256 - dropped) : 0.f) {}

  bool any() const { return dropped_ > 0; }

  // Bytes that a row of n entries uses: the next one starts at a multiple of 4.
  static int64_t stretch(int64_t n) { return (n + 3) / 4 * 4; }

  // Calls f(i, count, factors) for each piece of n entries, `start` being a multiple of 4: 0 for what is dropped.
  template <typename F>
  void each(int64_t start, int64_t n, const F& f) const {
    int64_t i = 0;
    const auto some = [&](int64_t end) {
      const Multipliers multipliers(*this, static_cast<uint32_t>((start + i) / 4));
      pieces(end - i, [&](int64_t j, int64_t count) { f(i + j, count, multipliers.from(j)); });
    };
    for (; i + UNIT <= n; i += UNIT) some(i + UNIT);
    if (i < n) some(n);
  }

  // x[i] becomes x[i] · mask[start + i].
  void apply(float* x, int64_t start, int64_t n) const {
    if (!any()) return;
    each(start, n, [&](int64_t i, int64_t count, const Lanes& factors) {
      store(x + i, load(x + i, count) * factors, count);
    });
  }

 private:
  static constexpr int64_t UNIT = 64;  // entries whose random bytes are computed at a time
  typedef uint32_t Words __attribute__((vector_size(UNIT)));

  // A counter-based generator: a multiply-and-shift hash of a Weyl sequence.
  Words bytes(uint32_t first) const {
    Words x = (first + Words{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}) * 0x9E3779B9u + offset_;
    x = ((x ^ (x >> 16)) + key_) * 0x7FEB352Du;
    x = ((x ^ (x >> 15)) + key_) * 0x846CA68Bu;
    return (x ^ (x >> 16)) + key_;
  }

  // What the entries of so many bytes are multiplied by.
#ifdef CPU_CAPABILITY_AVX512
  class Multipliers {
   public:
    Multipliers(const Mask& mask, uint32_t word) : kept_(~uint64_t{0}), scale_(_mm512_set1_ps(mask.scale_)) {
      // Where all are dropped, what is kept is multiplied by 0.
      const __m512i dropped = _mm512_set1_epi8(static_cast<char>(std::min(mask.dropped_, 255)));
      if (mask.any()) kept_ = _mm512_cmpge_epu8_mask(reinterpret_cast<__m512i>(mask.bytes(word)), dropped);
    }
    Lanes from(int64_t i) const { return _mm512_maskz_mov_ps(static_cast<__mmask16>(kept_ >> i), scale_); }

   private:
    uint64_t kept_;
    __m512 scale_;
  };
#else
  class Multipliers {
   public:
    Multipliers(const Mask& mask, uint32_t word) {
      uint8_t random[UNIT] = {};
      if (mask.any()) {
        const Words words = mask.bytes(word);
        std::memcpy(random, &words, UNIT);
      }
      const int32_t dropped = mask.dropped_;
      const float scale = mask.scale_;
#pragma omp simd
      for (int64_t i = 0; i < UNIT; ++i) factors_[i] = random[i] >= dropped ? scale : 0.f;
    }
    Lanes from(int64_t i) const { return Lanes::loadu(factors_ + i); }

   private:
    float factors_[UNIT];
  };
#endif

  uint32_t offset_, key_;
  int32_t dropped_;
  float scale_;
};

// x · mask, of a type; its gradient is the same of the gradient, with the type of x.
[[gnu::noinline]] inline Tensor dropout(const Tensor& x_, int64_t seed, int64_t dropped, at::ScalarType type) {
  const Tensor x = x_.contiguous();
  Tensor y = at::empty_like(x, x.options().dtype(type));
  const Mask mask(seed, dropped);
  with_type(x, [&]<typename X>() {
    with_type(y, [&]<typename Y>() {
      const X* from = x.const_data_ptr<X>();
      Y* to = y.mutable_data_ptr<Y>();
      in_blocks(x.numel(), [&](int64_t start, int64_t count) {
        mask.each(start, count, [&](int64_t i, int64_t some, const Lanes& factors) {
          store(to + start + i, load(from + start + i, some) * factors, some);
        });
      });
    });
  });
  return y;
}

// x + y · mask, of single precision if one of them is.
inline Tensor add_dropped(const Tensor& x_, const Tensor& y_, int64_t seed, int64_t dropped) {
  TORCH_CHECK(x_.sizes() == y_.sizes(), "no sum of ", x_.sizes(), " and ", y_.sizes());
  const Tensor x = x_.contiguous(), y = y_.contiguous();
  Tensor sum = at::empty_like(x, x.options().dtype(at::promote_types(x.scalar_type(), y.scalar_type())));
  const Mask mask(seed, dropped);
  with_type(x, [&]<typename X>() {
    with_type(y, [&]<typename Y>() {
      with_type(sum, [&]<typename S>() {
        const X* first = x.const_data_ptr<X>();
        const Y* second = y.const_data_ptr<Y>();
        S* to = sum.mutable_data_ptr<S>();
        in_blocks(x.numel(), [&](int64_t start, int64_t count) {
          mask.each(start, count, [&](int64_t i, int64_t some, const Lanes& factors) {
            const int64_t at = start + i;
            store(to + at, load(first + at, some) + load(second + at, some) * factors, some);
          });
        });
      });
    });
  });
  return sum;
}

}  // namespace merc
