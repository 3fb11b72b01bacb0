// What products by merc's operators share: how their factors lie in memory, and which thread computes what.
#pragma once

#include "rows.h"

namespace merc {

// A, or B transposed: `outer` rows of numbers that are summed over.
struct Operand {
  Operand(const Tensor& x, int64_t outer_dim)
      : at(x.const_data_ptr()), half(x.scalar_type() == at::kBFloat16), outer(x.size(outer_dim)),
        inner(x.size(1 - outer_dim)), along(x.stride(1 - outer_dim) == 1),
        step(along ? x.stride(outer_dim) : x.stride(1 - outer_dim)) {}

  // Of numbers at `at`, in rows that lie `step` numbers apart: rows of it, or its columns.
  template <typename T>
  static Operand rows(const T* at, int64_t rows, int64_t columns, int64_t step) {
    return {at, std::is_same_v<T, at::BFloat16>, rows, columns, true, step};
  }
  template <typename T>
  static Operand columns(const T* at, int64_t rows, int64_t columns, int64_t step) {
    return {at, std::is_same_v<T, at::BFloat16>, columns, rows, false, step};
  }

  template <typename T>
  const T* numbers() const {
    return static_cast<const T*>(at);
  }

  int64_t size() const { return half ? 2 : 4; }  // of a number, in bytes

  const void* at;
  bool half;  // of bfloat16, not of single precision
  int64_t outer, inner;
  bool along;    // a row's numbers lie together; otherwise those of the same place in all rows do
  int64_t step;  // to the next row, or to the next place

 private:
  Operand(const void* at, bool half, int64_t outer, int64_t inner, bool along, int64_t step)
      : at(at), half(half), outer(outer), inner(inner), along(along), step(step) {}
};

constexpr int64_t BIAS_UNIT = 32;  // columns

// C = A B + bias.
struct Product {
  Product(const Tensor& a, const Tensor& b, const float* bias, const Tensor& c)
      : a(a, 0), b(b, 1), bias(bias), c(c.mutable_data_ptr()), half(c.scalar_type() == at::kBFloat16), step(c.stride(0)) {}

  Operand a, b;
  const float* bias;  // of all columns, and behind them up to a multiple of BIAS_UNIT
  void* c;
  bool half;  // C is of bfloat16
  int64_t step;
};

// A part of C: rows [top, bottom) and columns [left, right).
struct Rectangle {
  int64_t top, bottom, left, right;

  bool empty() const { return top >= bottom || left >= right; }
};

// Calls f(rectangle) for as many rectangles as there are threads, which make up C; but for the last ones they have
// whole blocks of so many rows and columns. `cost(height, width, alone_with_rows, alone_with_columns)` of a rectangle,
// and of whether no other has its rows of A or its columns of B, says how many of them lie below each other.
template <typename Cost, typename F>
inline void in_rectangles(const Product& product, int64_t rows_at_once, int64_t columns_at_once, const Cost& cost,
                          const F& f) {
  const int64_t threads = at::get_num_threads();
  const int64_t rows = product.a.outer, columns = product.b.outer;
  const auto cost_of = [&](int64_t down) {
    const int64_t across = threads / down;
    return cost(std::max(rows / down, rows_at_once), std::max(columns / across, columns_at_once), across == 1, down == 1);
  };
  const auto busy = [&](int64_t down) {  // threads that have something to do
    return std::min(down, ceil_div(rows, rows_at_once)) * std::min(threads / down, ceil_div(columns, columns_at_once));
  };
  int64_t down = 1;
  for (int64_t n = 2; n <= threads; ++n)
    if (threads % n == 0 && (busy(n) > busy(down) || (busy(n) == busy(down) && cost_of(n) <= cost_of(down)))) down = n;
  const int64_t across = threads / down;
  const auto edge = [](int64_t size, int64_t at_once, int64_t part, int64_t parts) {
    return ceil_div(size, at_once) * part / parts * at_once;
  };
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t i = n / across, j = n % across;
      const Rectangle rectangle{edge(rows, rows_at_once, i, down), edge(rows, rows_at_once, i + 1, down),
                                edge(columns, columns_at_once, j, across),
                                edge(columns, columns_at_once, j + 1, across)};
      if (!rectangle.empty()) f(rectangle);
    }
  });
}

// The first address of a cache line.
template <typename T>
inline T* of_line(std::vector<T>& room) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(room.data()) + 63) / 64 * 64);
}

}  // namespace merc
