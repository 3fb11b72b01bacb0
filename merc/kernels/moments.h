// What layer norms need to know of a row.
#pragma once

#include <utility>

#include "rows.h"

namespace merc {

// Mean and 1/√(variance + ε).
template <typename T>
inline std::pair<float, float> moments_of(const T* row, int64_t dim, double epsilon) {
  const float mean = sum(row, dim) / static_cast<float>(dim);
  const float squares = total(dim, [&](int64_t i, int64_t count) {
    const Lanes away = load(row + i, count) - Lanes(mean);
    return count == LANES ? away * away : Lanes::set(Lanes(0.f), away * away, count);
  });
  return {mean, 1.f / std::sqrt(squares / static_cast<float>(dim) + static_cast<float>(epsilon))};
}

}  // namespace merc
