// Products in single precision by the vectors of eight numbers of a processor without longer ones, for those whose maker
// is not that of the BLAS.
//
// Six rows by sixteen columns of the result fit the registers. Both factors are copied to strips of so many rows or
// columns, in the order in which they are needed: a strip of B stays in a core's first cache while those of A, which
// stay in the second, pass by (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008).
#pragma once

#include "factors.h"

#ifdef CPU_CAPABILITY_AVX2
#define MERC_VECTOR_UNITS
#endif

namespace merc {

#ifdef MERC_VECTOR_UNITS

namespace vector_units {

static_assert(LANES == 8);

constexpr int64_t HEIGHT = 6, WIDTH = 2 * LANES;  // of what is computed at a time
constexpr int64_t OF_A = LANES, OF_B = WIDTH;     // how many numbers a strip has for each inner one; of A's two are spare
static_assert(BIAS_UNIT % WIDTH == 0);
// What is packed at a time: inner numbers, at most; rows of A; columns of B.
constexpr int64_t INNER = 256, ROWS = 16 * HEIGHT, COLUMNS = 1024;

// Copies rows from `begin` on, as many as a strip has, 0 where there are fewer, of inner numbers [from, until). Up to
// LANES - 1 inner numbers behind the end are written to.
template <int64_t STRIP>
inline void pack(const Operand& x, int64_t begin, int64_t from, int64_t until, float* to) {
  for (int64_t row = begin; row < begin + STRIP; row += LANES, to += LANES) {
    const int64_t rows = std::clamp<int64_t>(x.outer - row, 0, LANES);
    float* out = to;
    if (!x.along) {
      const float* at = x.at + from * x.step + row;
      for (int64_t k = from; k < until; ++k, at += x.step, out += STRIP)
        (rows > 0 ? load(at, rows) : Lanes(0.f)).store(out);
      continue;
    }
    const float* at = x.at + row * x.step + from;
    for (int64_t k = from; k < until; k += LANES, at += LANES, out += LANES * STRIP) {
      const int64_t inner = std::min(LANES, until - k);
      if (rows == LANES && inner == LANES) {
        at::vec::transpose_mxn<float, LANES, LANES>(at, x.step, out, STRIP);
      } else {
        float there[LANES * LANES] = {};
        for (int64_t i = 0; i < rows; ++i) std::copy_n(at + i * x.step, inner, there + i * LANES);
        at::vec::transpose_mxn<float, LANES, LANES>(there, LANES, out, STRIP);
      }
    }
  }
}

// Where a block of C belongs.
struct Place {
  float* to;
  int64_t step, height, width;  // how much of C lies from here on, maybe more than the block
  bool more;                    // whether the block is added to what is there
};

// Every row initial + A B, or C + A B.
inline void multiply_strips(const float* a, const float* b, int64_t inner, const float* initial, const Place& place) {
  Lanes sums[HEIGHT][2];
#pragma GCC unroll 8
  for (int64_t i = 0; i < HEIGHT; ++i) {
    sums[i][0] = Lanes::loadu(initial);
    sums[i][1] = Lanes::loadu(initial + LANES);
    __builtin_prefetch(place.to + i * place.step);
    __builtin_prefetch(place.to + i * place.step + WIDTH - 1);
  }
  for (int64_t k = 0; k < inner; ++k, a += OF_A, b += OF_B) {
    const Lanes left = Lanes::loadu(b), right = Lanes::loadu(b + LANES);
    __builtin_prefetch(a + 16 * OF_A);
#pragma GCC unroll 8
    for (int64_t i = 0; i < HEIGHT; ++i) {
      const Lanes factor(a[i]);
      sums[i][0] = at::vec::fmadd(factor, left, sums[i][0]);
      sums[i][1] = at::vec::fmadd(factor, right, sums[i][1]);
    }
  }
  const auto write = [&](int64_t i, int64_t half, int64_t count) {
    float* at = place.to + i * place.step + half * LANES;
    store(at, place.more ? sums[i][half] + load(at, count) : sums[i][half], count);
  };
  if (place.height >= HEIGHT && place.width >= WIDTH) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < HEIGHT; ++i) write(i, 0, LANES), write(i, 1, LANES);
    return;
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < HEIGHT; ++i) {
    if (i >= place.height) break;
    write(i, 0, std::min(place.width, LANES));
    if (place.width > LANES) write(i, 1, std::min(place.width - LANES, LANES));
  }
}

inline void compute(const Product& product, const Rectangle& part) {
  thread_local std::vector<float> room(INNER * (COLUMNS + ROWS / HEIGHT * OF_A) + 16);
  float* packed_b = of_line(room);
  float* packed_a = packed_b + INNER * COLUMNS;
  static const float nothing[WIDTH] = {};
  const auto& [a, b, inner, bias, c, step] = product;
  const int64_t parts = std::max<int64_t>(1, ceil_div(inner, INNER));
  const int64_t at_once = rounded_up(std::max<int64_t>(1, ceil_div(inner, parts)), LANES);  // room behind the end
  for (int64_t left = part.left; left < part.right; left += COLUMNS) {
    const int64_t right = std::min(part.right, left + COLUMNS);
    for (int64_t from = 0; from == 0 || from < inner; from += at_once) {
      const int64_t until = std::min(inner, from + at_once);
      const auto strip_of_a = [&](int64_t row) { return packed_a + row / HEIGHT * OF_A * at_once; };
      const auto strip_of_b = [&](int64_t column) { return packed_b + column * at_once; };
      for (int64_t j = left; j < right; j += WIDTH) pack<OF_B>(b, j, from, until, strip_of_b(j - left));
      for (int64_t top = part.top; top < part.bottom; top += ROWS) {
        const int64_t bottom = std::min(part.bottom, top + ROWS);
        for (int64_t i = top; i < bottom; i += HEIGHT) pack<OF_A>(a, i, from, until, strip_of_a(i - top));
        for (int64_t j = left; j < right; j += WIDTH)
          for (int64_t i = top; i < bottom; i += HEIGHT)
            multiply_strips(strip_of_a(i - top), strip_of_b(j - left), until - from, from > 0 ? nothing : bias + j,
                            {c + i * step + j, step, a.outer - i, b.outer - j, from > 0});
      }
    }
  }
}

inline void compute(const Product& product) {
  const auto packed = [](int64_t height, int64_t width) { return height * ceil_div(width, COLUMNS) + width; };
  in_rectangles(product, HEIGHT, WIDTH, packed, [&](const Rectangle& part) { compute(product, part); });
}

}  // namespace vector_units

#endif

}  // namespace merc
