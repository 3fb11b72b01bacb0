// Sums over bands: what the rows of a graph receive from their sources, weighted by their attention.
#pragma once

#include <tuple>
#include <utility>

#include "product.h"
#include "small_products.h"

namespace merc {

// A band of attention, (G, S, H, K): the H lines of a receiving row, each with what it receives from its candidates.
// A row receives from as many rows before it as lie before its block, and likewise behind; all other entries are 0.
struct Lines {
  Lines(const Tensor& attention, const Tensor& values, int64_t past)
      : size(attention.size(1)), heads(attention.size(2)), width(attention.size(3)), rows(values.size(0)),
        count(rows * heads), past(past), future(width - size - past) {}

  int64_t row(int64_t line) const { return line / heads; }
  // Where the entry of a line for the source `row` lies.
  int64_t entry(int64_t line, int64_t source) const {
    return line * width + source - (row(line) / size * size - past);
  }
  // The first row that a row receives from, and the one behind the last.
  int64_t first_source(int64_t row) const { return std::max<int64_t>(0, row - past); }
  int64_t behind_sources(int64_t row) const { return std::min(rows, row + future + 1); }
  // The first row that receives from a row, and the one behind the last.
  int64_t first_receiver(int64_t row) const { return std::max<int64_t>(0, row - future); }
  int64_t behind_receivers(int64_t row) const { return std::min(rows, row + past + 1); }

  const int64_t size, heads, width, rows, count, past, future;
};

inline Lines lines_of(const Tensor& attention, const Tensor& values, int64_t past) {
  TORCH_CHECK(attention.dim() == 4 && values.dim() == 2, "a band of attention, rows of values");
  TORCH_CHECK(attention.scalar_type() == at::kFloat, "attention of single precision");
  const int64_t blocks = attention.size(0), size = attention.size(1), rows = values.size(0);
  TORCH_CHECK(blocks * size >= rows && rows > (blocks - 1) * size && past >= 0 && past + size <= attention.size(3),
              "blocks of rows with their candidates");
  return {attention, values, past};
}

using vector_units::HEIGHT, vector_units::WIDTH, vector_units::OF_A, vector_units::OF_B;

// What matrices of rows are multiplied from: strips of columns, in the order in which they are needed.
template <typename Entries>
class Strips {
 public:
  template <typename T>
  Strips(const T* rows, int64_t count, int64_t dim)
      : entries_(ceil_div(count, Entries::NUMBERS)),
        room_(at::empty({entries_ * rounded_up(dim, WIDTH)}, at::kFloat)),
        at_(room_.template mutable_data_ptr<float>()) {
    const auto columns = Operand::columns(rows, count, dim, dim);
    in_parts(ceil_div(dim, WIDTH), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t strip = begin; strip < end; ++strip)
        vector_units::pack<Entries, OF_B>(columns, strip * WIDTH, 0, entries_, at_ + strip * entries_ * OF_B);
    });
  }

  // From a row on, the first number of an entry.
  const float* from(int64_t row, int64_t column) const {
    return at_ + (column / WIDTH * entries_ + row / Entries::NUMBERS) * OF_B;
  }

 private:
  const int64_t entries_;
  const Tensor room_;
  float* at_;
};

// The first row of the entry that a row is in.
template <typename Entries>
inline int64_t at_entry(int64_t row) { return row / Entries::NUMBERS * Entries::NUMBERS; }

// Writes `count` weighted sums of rows in strips, HEIGHT at a time. Of so many sums from one on, weigh(sum, height, room)
// returns the weights, a row for each sum, and the first row that they are for, where an entry begins.
template <typename Entries, typename T, typename F>
inline void weighted_sums_of(const Strips<Entries>& strips, int64_t count, int64_t dim, const F& weigh, T* to) {
  static const float nothing[WIDTH] = {};
  in_parts(ceil_div(count, HEIGHT), [&](int64_t, int64_t begin, int64_t end) {
    std::vector<float> room, packed;
    vector_units::Ahead nothing_ahead;
    for (int64_t sum = begin * HEIGHT; sum < std::min(count, end * HEIGHT); sum += HEIGHT) {
      const int64_t height = std::min(HEIGHT, count - sum);
      const auto [weights, first] = weigh(sum, height, room);
      const int64_t entries = ceil_div(weights.inner, Entries::NUMBERS);
      packed.resize(rounded_up(entries, LANES) * OF_A);
      vector_units::pack<Entries, OF_A>(weights, 0, 0, entries, packed.data());
      for (int64_t column = 0; column < dim; column += WIDTH)
        vector_units::multiply_strips<Entries, T>(packed.data(), strips.from(first, column), entries, nothing,
                                                  {to + sum * dim + column, dim, height, dim - column, false},
                                                  nothing_ahead);
    }
  });
}

// What each line receives: its sources' values, weighted.
template <typename Entries, typename T>
inline void add_up_sources(const Lines& lines, const float* weights, const T* values, int64_t dim, T* out) {
  const auto weigh = [&](int64_t line, int64_t height, std::vector<float>& near) {
    const int64_t first = at_entry<Entries>(lines.first_source(lines.row(line)));
    const int64_t count = lines.behind_sources(lines.row(line + height - 1)) - first;
    near.assign(height * count, 0.f);
    for (int64_t i = 0; i < height; ++i) {
      const int64_t row = lines.row(line + i), from = lines.first_source(row);
      std::copy_n(weights + lines.entry(line + i, from), lines.behind_sources(row) - from,
                  near.data() + i * count + from - first);
    }
    return std::pair(Operand::rows(near.data(), height, count, count), first);
  };
  weighted_sums_of(Strips<Entries>(values, lines.rows, dim), lines.count, dim, weigh, out);
}

// What each row gets back from the lines that receive from it, weighted.
template <typename Entries, typename T>
inline void gradient_of_values(const Lines& lines, const float* weights, const T* of_out, int64_t dim, T* of_values) {
  const auto weigh = [&](int64_t source, int64_t height, std::vector<float>& near) {
    const int64_t first = at_entry<Entries>(lines.first_receiver(source) * lines.heads);
    const int64_t count = lines.behind_receivers(source + height - 1) * lines.heads - first;
    near.assign(count * HEIGHT, 0.f);
    for (int64_t line = first; line < first + count; ++line) {
      const int64_t row = lines.row(line), from = std::max(source, lines.first_source(row));
      const int64_t until = std::min(source + height, lines.behind_sources(row));
      if (from < until)
        std::copy_n(weights + lines.entry(line, from), until - from,
                    near.data() + (line - first) * HEIGHT + from - source);
    }
    return std::pair(Operand::columns(near.data(), count, HEIGHT, HEIGHT), first);
  };
  weighted_sums_of(Strips<Entries>(of_out, lines.count, dim), lines.rows, dim, weigh, of_values);
}

// What a line's gradient and a source's value have in common. Entries beyond what a row receives from stay 0.
template <typename Entries, typename T>
inline void gradient_of_attention(const Lines& lines, const T* of_out, const T* values, int64_t dim, float* of_weights) {
  in_parts(ceil_div(lines.count, TALL), [&](int64_t, int64_t begin, int64_t end) {
    float products[LANES];
    std::array<const T*, TALL> received;
    std::array<const T*, BROAD> near;
    for (int64_t line = begin * TALL; line < std::min(lines.count, end * TALL); line += TALL) {
      const int64_t last = std::min(line + TALL, lines.count) - 1, behind = lines.behind_sources(lines.row(last));
      for (int64_t i = 0; i < TALL; ++i) received[i] = of_out + std::min(line + i, last) * dim;
      for (int64_t source = lines.first_source(lines.row(line)); source < behind; source += BROAD) {
        for (int64_t j = 0; j < BROAD; ++j) near[j] = values + std::min(source + j, behind - 1) * dim;
        inner_products<Entries>(received, near, dim, products);
        for (int64_t i = 0; line + i <= last; ++i) {
          const int64_t row = lines.row(line + i), from = std::max(source, lines.first_source(row));
          const int64_t until = std::min(source + BROAD, lines.behind_sources(row));
          if (from < until)
            copy_few(products + i * BROAD + from - source, until - from, of_weights + lines.entry(line + i, from));
        }
      }
    }
  });
}

// Whether numbers are multiplied as they are stored, not in single precision.
inline bool multiplied_as_stored(const Tensor& x) { return x.scalar_type() == at::kFloat || multiplies_bfloat16(); }

// Calls f<entries, T>() for the type of some numbers.
template <typename F>
inline void with_entries(const Tensor& x, const F& f) {
#ifdef MERC_VECTORS_OF_PAIRS
  if (x.scalar_type() == at::kBFloat16) return f.template operator()<vector_units::Pairs, at::BFloat16>();
#endif
  TORCH_CHECK(x.scalar_type() == at::kFloat, "merc's kernels compute in float32 and bfloat16, not in ", x.scalar_type());
  f.template operator()<vector_units::Singles, float>();
}

// (G, S, H, K) attention and (N, D) values → (N, H, D): what each row receives, for every head.
inline Tensor mix(const Tensor& attention_, const Tensor& values_, int64_t past) {
  const Lines lines = lines_of(attention_, values_, past);
  if (!multiplied_as_stored(values_)) return mix(attention_, values_.to(at::kFloat), past).to(values_.scalar_type());
  const Tensor attention = attention_.contiguous(), values = values_.contiguous();
  Tensor out = at::empty({lines.rows, lines.heads, values.size(1)}, values.options());
  with_entries(values, [&]<typename Entries, typename T>() {
    add_up_sources<Entries>(lines, attention.const_data_ptr<float>(), values.const_data_ptr<T>(), values.size(1),
                            out.mutable_data_ptr<T>());
  });
  return out;
}

// Gradients of attention and values that are wanted.
inline std::tuple<Tensor, Tensor> mix_backward(
    const Tensor& of_out_, const Tensor& attention_, const Tensor& values_, int64_t past,
    std::array<bool, 2> wanted = {true, true}) {
  const Lines lines = lines_of(attention_, values_, past);
  TORCH_CHECK(of_out_.numel() == values_.numel() * lines.heads && of_out_.scalar_type() == values_.scalar_type(),
              "a gradient for each number");
  if (!multiplied_as_stored(values_)) {
    const auto [of_attention, of_values] =
        mix_backward(of_out_.to(at::kFloat), attention_, values_.to(at::kFloat), past, wanted);
    return {of_attention, wanted[1] ? of_values.to(values_.scalar_type()) : of_values};
  }
  const Tensor attention = attention_.contiguous(), values = values_.contiguous(), of_out = of_out_.contiguous();
  Tensor of_attention, of_values;
  if (wanted[0]) of_attention = at::zeros_like(attention);
  if (wanted[1]) of_values = at::empty_like(values);
  const int64_t dim = values.size(1);
  with_entries(values, [&]<typename Entries, typename T>() {
    const T* incoming = of_out.const_data_ptr<T>();
    if (wanted[0])
      gradient_of_attention<Entries>(lines, incoming, values.const_data_ptr<T>(), dim,
                                     of_attention.mutable_data_ptr<float>());
    if (wanted[1])
      gradient_of_values<Entries>(lines, attention.const_data_ptr<float>(), incoming, dim,
                                  of_values.mutable_data_ptr<T>());
  });
  return {of_attention, of_values};
}

}  // namespace merc
