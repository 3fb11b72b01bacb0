// Sums of columns, such as the gradient of a bias.
#pragma once

#include "rows.h"

namespace merc {

// (N, D) of either type → (D,) in single precision. How many threads there are does not matter.
inline Tensor column_sums(const Tensor& x_) {
  TORCH_CHECK(x_.dim() == 2, "columns of a matrix");
  constexpr int64_t VECTORS = 8, COLUMNS = VECTORS * LANES, ROWS = 64;  // rows whose sums are added up: less is rounded
  const Tensor x = strided(x_);
  const int64_t rows = x.size(0), columns = x.size(1), step = x.stride(0);
  Tensor sums = at::empty({columns}, x.options().dtype(at::kFloat));
  float* to = sums.mutable_data_ptr<float>();
  with_type(x, [&]<typename T>() {
    const T* from = x.const_data_ptr<T>();
    in_parts((columns + COLUMNS - 1) / COLUMNS, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t column = begin * COLUMNS; column < std::min(columns, end * COLUMNS); column += COLUMNS) {
        const int64_t count = std::min(COLUMNS, columns - column);
        const auto add_up = [&](int64_t first, int64_t last, Lanes* totals) {
          for (int64_t row = first; row < last; ++row)
#pragma GCC unroll 8
            for (int64_t v = 0; v < VECTORS; ++v) {
              const int64_t there = std::clamp<int64_t>(count - v * LANES, 0, LANES);
              if (there > 0) totals[v] = totals[v] + load(from + row * step + column + v * LANES, there);
            }
        };
        Lanes totals[VECTORS];
        std::fill_n(totals, VECTORS, Lanes(0.f));
        for (int64_t row = 0; row < rows; row += ROWS) {
          Lanes some[VECTORS];
          std::fill_n(some, VECTORS, Lanes(0.f));
          add_up(row, std::min(rows, row + ROWS), some);
          for (int64_t v = 0; v < VECTORS; ++v) totals[v] = totals[v] + some[v];
        }
        for (int64_t v = 0; v * LANES < count; ++v)
          store(to + column + v * LANES, totals[v], std::min(LANES, count - v * LANES));
      }
    });
  });
  return sums;
}

}  // namespace merc
