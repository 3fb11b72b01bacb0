// Softmax of one row of scores, of which some may take no part.
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
  switch ((n + LANES - 1) / LANES) {
    case 0: return;
    case 1: return softmax_in_registers<1>(x, n);
    case 2: return softmax_in_registers<2>(x, n);
    case 3: return softmax_in_registers<3>(x, n);
    case 4: return softmax_in_registers<4>(x, n);
    default: return softmax_in_memory(x, n);
  }
}

// Gradient of the scores from y = softmax(scores) and factor · of_y.
inline void softmax_backward(const float* y, const float* of_y, float factor, float* of_scores, int64_t n) {
  const Lanes level(dot(y, of_y, n)), scale(factor);
  pieces(n, [&](int64_t i, int64_t count) {
    store(of_scores + i, load(y + i, count) * (load(of_y + i, count) - level) * scale, count);
  });
}

}  // namespace merc
