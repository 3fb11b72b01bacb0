// Products of small row-major matrices by one thread: nothing is copied before, as a BLAS does.
#pragma once

#include <array>
#include <cstring>

#include "vector_units.h"

namespace merc {

// Rows that are `step` numbers apart.
struct Matrix {
  const float* at;
  int64_t step;
};

// So many rows of A with so many of B: one inner product for each lane of a vector, as many sums as registers hold.
constexpr int64_t TALL = 4, BROAD = LANES / TALL;

// Their inner products, of rows of n numbers: (TALL, BROAD).
template <typename Entries, typename T>
inline void inner_products(const std::array<const T*, TALL>& a, const std::array<const T*, BROAD>& b, int64_t n,
                           float* out) {
  Lanes totals[LANES];
#pragma GCC unroll 16
  for (int64_t i = 0; i < LANES; ++i) totals[i] = Lanes(0.f);
  const auto add_up = [&](int64_t at, int64_t count) {
    Lanes right[BROAD];
#pragma GCC unroll 16
    for (int64_t j = 0; j < BROAD; ++j) right[j] = Entries::lanes(b[j] + at, count);
#pragma GCC unroll 16
    for (int64_t i = 0; i < TALL; ++i) {
      const Lanes left = Entries::lanes(a[i] + at, count);
#pragma GCC unroll 16
      for (int64_t j = 0; j < BROAD; ++j)
        totals[i * BROAD + j] = Entries::multiply_add(left, right[j], totals[i * BROAD + j]);
    }
  };
  constexpr int64_t NUMBERS = LANES * Entries::NUMBERS;
  int64_t at = 0;
  for (; at + NUMBERS <= n; at += NUMBERS) add_up(at, NUMBERS);
  if (at < n) add_up(at, n - at);
  sums(totals, out);
}

// Copies a few numbers, at most BROAD: a call would take longer.
inline void copy_few(const float* from, int64_t count, float* to) {
  if (count == BROAD) {
    std::copy_n(from, BROAD, to);
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Matrices from here on are of whole vectors: what is behind the end of a row may be read, and counts as a column.

// A matrix times a factor that lies transposed; whole vectors can be read from any of its columns on.
inline Matrix transposed(Matrix x, int64_t rows, int64_t columns, float factor, Scratch& scratch) {
  const Lanes factors(factor);
  const int64_t step = whole(rows);
  float* to = scratch.take(step * whole(columns) + LANES);
  for (int64_t row = 0; row < rows; row += LANES)
    for (int64_t column = 0; column < columns; column += LANES) {
      const int64_t count = std::min(LANES, columns - column);
      alignas(64) float there[LANES * LANES] = {};
      for (int64_t i = 0; i < std::min(LANES, rows - row); ++i)
        (load(x.at + (row + i) * x.step + column, count) * factors).store(there + i * LANES);
      at::vec::transpose_mxn<float, LANES, LANES>(there, LANES, to + column * step + row, step);
    }
  return {to, step};
}

// Factors of rows: that of row i and summand k is at[i · row + k · inner].
struct Factors {
  const float* at;
  int64_t row, inner;
};

// A vector as the compiler knows it: of its own classes it keeps arrays in memory.
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

inline Vector read(const float* x) {
  Vector y;
  std::memcpy(&y, x, sizeof(y));
  return y;
}

// `height` rows of C, at most HEIGHT, and VECTORS of its columns: Σ_k factor_k · row k of B, or that added to C.
template <int64_t HEIGHT, int64_t VECTORS>
inline void weighted_sums(int64_t height, int64_t inner, Factors a, Matrix b, bool more, float* c, int64_t step) {
  const float* factors[HEIGHT];
#pragma GCC unroll 16
  for (int64_t i = 0; i < HEIGHT; ++i) factors[i] = a.at + std::min(i, height - 1) * a.row;
  Vector totals[HEIGHT][VECTORS];
#pragma GCC unroll 16
  for (int64_t i = 0; i < HEIGHT; ++i)
#pragma GCC unroll 16
    for (int64_t v = 0; v < VECTORS; ++v) totals[i][v] = Vector{};
  for (int64_t k = 0; k < inner; ++k) {
    Vector right[VECTORS];
#pragma GCC unroll 16
    for (int64_t v = 0; v < VECTORS; ++v) right[v] = read(b.at + k * b.step + v * LANES);
#pragma GCC unroll 16
    for (int64_t i = 0; i < HEIGHT; ++i) {
      const float left = factors[i][k * a.inner];
#pragma GCC unroll 16
      for (int64_t v = 0; v < VECTORS; ++v) totals[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < HEIGHT; ++i)
    if (i < height) {
#pragma GCC unroll 16
      for (int64_t v = 0; v < VECTORS; ++v) {
        float* to = c + i * step + v * LANES;
        const Vector total = more ? read(to) + totals[i][v] : totals[i][v];
        std::memcpy(to, &total, sizeof(total));
      }
    }
}

// C (rows × columns) = Σ_k factor_k · row k of B, or that added to C.
inline void weighted_sums(int64_t rows, int64_t columns, int64_t inner, Factors a, Matrix b, bool more, float* c,
                          int64_t step) {
  constexpr int64_t CACHED = 128;  // rows of B that stay near
  for (int64_t k = 0; k == 0 || k < inner; k += CACHED) {
    const auto in_blocks = [&]<int64_t HEIGHT, int64_t VECTORS>(int64_t column) {
      for (int64_t row = 0; row < rows; row += HEIGHT)
        weighted_sums<HEIGHT, VECTORS>(std::min(HEIGHT, rows - row), std::min(CACHED, inner - k),
                                       {a.at + row * a.row + k * a.inner, a.row, a.inner},
                                       {b.at + k * b.step + column, b.step}, more || k > 0, c + row * step + column, step);
      return column + VECTORS * LANES;
    };
    for (int64_t column = 0; column < columns;) {
      const int64_t vectors = ceil_div(columns - column, LANES);
      if (vectors >= BROAD) column = in_blocks.template operator()<TALL, BROAD>(column);
      else if (vectors >= 2) column = in_blocks.template operator()<LANES / 2, 2>(column);
      else column = in_blocks.template operator()<LANES / 2, 1>(column);
    }
  }
}

// C = A B, or C + A B; then with A lying there transposed.
inline void a_b(int64_t rows, int64_t columns, int64_t inner, Matrix a, Matrix b, bool more, float* c, int64_t step) {
  weighted_sums(rows, columns, inner, {a.at, a.step, 1}, b, more, c, step);
}
inline void at_b(int64_t rows, int64_t columns, int64_t inner, Matrix a, Matrix b, bool more, float* c, int64_t step) {
  weighted_sums(rows, columns, inner, {a.at, 1, a.step}, b, more, c, step);
}

}  // namespace merc
