// Softmax of one row of scores, of which some may take no part.
#pragma once

#include <limits>

#include "rows.h"

namespace merc {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();  // score of a source that takes no part

// In place.
inline void softmax(float* x, int64_t n) {
  Lanes most(NOTHING);
  pieces(n, [&](int64_t i, int64_t count) {
    Lanes part = load(x + i, count);
    if (count < LANES) part = Lanes::set(Lanes(NOTHING), part, count);
    most = at::vec::maximum(most, part);
  });
  const float peak = at::vec::vec_reduce_all<float>([](Lanes a, Lanes b) { return at::vec::maximum(a, b); }, most);
  Lanes total(0.f);
  pieces(n, [&](int64_t i, int64_t count) {
    Lanes part = (load(x + i, count) - Lanes(peak)).exp();
    if (count < LANES) part = Lanes::set(Lanes(0.f), part, count);
    store(x + i, part, count);
    total = total + part;
  });
  const Lanes share(1.f / sum(total));
  pieces(n, [&](int64_t i, int64_t count) { store(x + i, load(x + i, count) * share, count); });
}

// Gradient of the scores from y = softmax(scores) and factor · of_y.
inline void softmax_backward(const float* y, const float* of_y, float factor, float* of_scores, int64_t n) {
  const Lanes level(dot(y, of_y, n)), scale(factor);
  pieces(n, [&](int64_t i, int64_t count) {
    store(of_scores + i, load(y + i, count) * (load(of_y + i, count) - level) * scale, count);
  });
}

}  // namespace merc
