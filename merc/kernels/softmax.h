// Softmax of scores, of which some may take no part.
#pragma once

#include <limits>

#include "rows.h"

namespace merc {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();  // score of a source that takes no part

// In place, of a row that so many registers hold.
template <int64_t VECTORS>
inline void softmax_in_registers(float* x, int64_t n) {
  const int64_t rest = n - (VECTORS - 1) * LANES;
  const auto count = [=](int64_t i) { return i < VECTORS - 1 ? LANES : rest; };
  Lanes parts[VECTORS];
#pragma GCC unroll 16
  for (int64_t i = 0; i < VECTORS; ++i) parts[i] = load(x + i * LANES, count(i), NOTHING);
  Lanes most = parts[0];
#pragma GCC unroll 16
  for (int64_t i = 1; i < VECTORS; ++i) most = at::vec::maximum(most, parts[i]);
  const Lanes peak(highest(most));
  Lanes total(0.f);
#pragma GCC unroll 16
  for (int64_t i = 0; i < VECTORS; ++i) {
    parts[i] = (parts[i] - peak).exp_u20();
    total = total + parts[i];
  }
  const Lanes share(1.f / sum(total));
#pragma GCC unroll 16
  for (int64_t i = 0; i < VECTORS; ++i) store(x + i * LANES, parts[i] * share, count(i));
}

inline void softmax_in_memory(float* x, int64_t n) {
  Lanes most(NOTHING), total(0.f);
  pieces(n, [&](int64_t i, int64_t count) { most = at::vec::maximum(most, load(x + i, count, NOTHING)); });
  const Lanes peak(highest(most));
  pieces(n, [&](int64_t i, int64_t count) {
    const Lanes part = (load(x + i, count, NOTHING) - peak).exp_u20();
    store(x + i, part, count);
    total = total + part;
  });
  const Lanes share(1.f / sum(total));
  pieces(n, [&](int64_t i, int64_t count) { store(x + i, load(x + i, count) * share, count); });
}

// In place.
inline void softmax(float* x, int64_t n) {
  switch (ceil_div(n, LANES)) {
    case 0: return;
    case 1: return softmax_in_registers<1>(x, n);
    case 2: return softmax_in_registers<2>(x, n);
    case 3: return softmax_in_registers<3>(x, n);
    case 4: return softmax_in_registers<4>(x, n);
    default: return softmax_in_memory(x, n);
  }
}

// Calls f<VECTORS>(column) for blocks of columns that so many registers hold.
template <typename F>
inline void in_column_blocks(int64_t columns, const F& f) {
  for (int64_t column = 0; column < columns;) {
    const int64_t vectors = std::min<int64_t>(ceil_div(columns - column, LANES), 4);
    switch (vectors) {
      case 1: f.template operator()<1>(column); break;
      case 2: f.template operator()<2>(column); break;
      case 3: f.template operator()<3>(column); break;
      default: f.template operator()<4>(column);
    }
    column += vectors * LANES;
  }
}

// In place, of every column of a matrix of whole vectors whose rows are `step` numbers apart: lanes do not wait for each
// other, as those of a row do.
inline void softmax_of_columns(float* x, int64_t rows, int64_t columns, int64_t step) {
  in_column_blocks(columns, [&]<int64_t VECTORS>(int64_t column) {
    float* const first = x + column;
    Lanes peaks[VECTORS], totals[VECTORS];
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) {
      peaks[v] = Lanes(NOTHING);
      totals[v] = Lanes(0.f);
    }
    for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
      for (int64_t v = 0; v < VECTORS; ++v)
        peaks[v] = at::vec::maximum(peaks[v], Lanes::loadu(first + row * step + v * LANES));
    for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
      for (int64_t v = 0; v < VECTORS; ++v) {
        float* const at = first + row * step + v * LANES;
        const Lanes part = (Lanes::loadu(at) - peaks[v]).exp_u20();
        part.store(at);
        totals[v] = totals[v] + part;
      }
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) totals[v] = Lanes(1.f) / totals[v];
    for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
      for (int64_t v = 0; v < VECTORS; ++v) {
        float* const at = first + row * step + v * LANES;
        (Lanes::loadu(at) * totals[v]).store(at);
      }
  });
}

// Gradient of the scores from y = softmax of their columns and factor · of_y, all of which lie alike.
inline void softmax_of_columns_backward(const float* y, const float* of_y, float factor, float* of_scores, int64_t rows,
                                        int64_t columns, int64_t step) {
  const Lanes factors(factor);
  in_column_blocks(columns, [&]<int64_t VECTORS>(int64_t column) {
    Lanes levels[VECTORS];
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) levels[v] = Lanes(0.f);
    for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
      for (int64_t v = 0; v < VECTORS; ++v) {
        const int64_t at = row * step + column + v * LANES;
        levels[v] = at::vec::fmadd(Lanes::loadu(y + at), Lanes::loadu(of_y + at), levels[v]);
      }
    for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
      for (int64_t v = 0; v < VECTORS; ++v) {
        const int64_t at = row * step + column + v * LANES;
        (Lanes::loadu(y + at) * (Lanes::loadu(of_y + at) - levels[v]) * factors).store(of_scores + at);
      }
  });
}

// Gradient of the scores from y = softmax(scores) and factor · of_y.
inline void softmax_backward(const float* y, const float* of_y, float factor, float* of_scores, int64_t n) {
  const Lanes level(dot(y, of_y, n)), scale(factor);
  pieces(n, [&](int64_t i, int64_t count) {
    store(of_scores + i, load(y + i, count) * (load(of_y + i, count) - level) * scale, count);
  });
}

}  // namespace merc
