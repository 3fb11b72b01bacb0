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

  // y[i] = x[i] · mask[start + i]; start is a multiple of 4.
  void apply(const float* x, float* y, int64_t start, int64_t n) const {
    if (!any()) {
      if (x != y) std::copy_n(x, n, y);
      return;
    }
    alignas(64) uint32_t words[CHUNK / 4];
    alignas(64) uint8_t bytes[CHUNK];
    const int32_t dropped = dropped_;  // on the stack no result can lie over them
    const float scale = scale_;
    for (int64_t i = 0; i < n; i += CHUNK) {
      const int64_t count = std::min<int64_t>(CHUNK, n - i);
      fill(words, static_cast<uint32_t>((start + i) / 4), static_cast<uint32_t>((count + 63) / 64 * 16));
      std::memcpy(bytes, words, CHUNK);
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        const float factor = bytes[j] >= dropped ? scale : 0.f;
        y[i + j] = x[i + j] * factor;
      }
    }
  }

 private:
  static constexpr int64_t CHUNK = 256;

  // A counter-based generator: a multiply-and-shift hash of a Weyl sequence.
  void fill(uint32_t* words, uint32_t first, uint32_t count) const {
    const uint32_t offset = offset_, key = key_;
#pragma omp simd
    for (uint32_t i = 0; i < count; ++i) {
      uint32_t x = (first + i) * 0x9E3779B9u + offset;
      x = ((x ^ (x >> 16)) + key) * 0x7FEB352Du;
      x = ((x ^ (x >> 15)) + key) * 0x846CA68Bu;
      words[i] = (x ^ (x >> 16)) + key;
    }
  }

  uint32_t offset_, key_;
  int32_t dropped_;
  float scale_;
};

// x · mask; its own gradient as well.
inline Tensor dropout(const Tensor& x_, int64_t seed, int64_t dropped) {
  const Tensor x = x_.contiguous();
  Tensor y = at::empty_like(x);
  const Mask mask(seed, dropped);
  with_type(x, [&]<typename T>() {
    const T* from = x.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    in_blocks(x.numel(), [&](int64_t start, int64_t count, float* scratch, float* result) {
      float* out = place(to + start, result);
      mask.apply(single(from + start, scratch, count), out, start, count);
      keep(to + start, out, count);
    });
  });
  return y;
}

}  // namespace merc
