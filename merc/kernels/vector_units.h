// Products by the vectors of a processor, in single precision or of numbers that are rounded to bfloat16.
//
// A block of some rows by two vectors of the result fits the registers. Both factors are copied to strips of so many
// rows or columns, in the order in which they are needed: a strip of B stays in a core's first cache while those of A,
// which stay in the second, pass by (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008).
// While a strip is computed with, the memory of what is copied next is asked for.
#pragma once

#include "factors.h"

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
#define MERC_VECTOR_UNITS
#endif

#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512BF16__)
#define MERC_VECTORS_OF_PAIRS
#endif

namespace merc::vector_units {

// Rows and columns that are computed at a time: as many as 16 registers hold, or 32.
constexpr int64_t HEIGHT = LANES == 16 ? 14 : std::min<int64_t>(6, LANES), WIDTH = 2 * LANES;
constexpr int64_t OF_A = LANES, OF_B = WIDTH;  // how many entries a strip has for each inner one; of A's two are spare
static_assert(HEIGHT <= OF_A && BIAS_UNIT % WIDTH == 0);
// What is packed at a time: inner entries, at most; rows of A; columns of B.
constexpr int64_t INNER = LANES == 16 ? 512 : 256, ROWS = 96 / HEIGHT * HEIGHT, COLUMNS = LANES == 16 ? 512 : 1024;

// What strips consist of, entries of four bytes each: numbers of single precision,
struct Singles {
  static constexpr int64_t NUMBERS = 1;  // of an entry

  // The entries of place k in rows from `row` on, 0 where there are fewer.
  static Lanes across(const Operand& x, int64_t row, int64_t k) {
    const int64_t rows = std::clamp<int64_t>(x.outer - row, 0, LANES);
    return rows > 0 ? load(x.numbers<float>() + k * x.step + row, rows) : Lanes(0.f);
  }

  // The entries of a row from place k on, 0 behind the end.
  static Lanes along(const Operand& x, int64_t row, int64_t k) {
    return load(x.numbers<float>() + row * x.step + k, std::min(LANES, x.inner - k));
  }

  static Lanes lanes(const float* x, int64_t count) { return load(x, count); }

  static Lanes multiply_add(const Lanes& a, const Lanes& b, const Lanes& sum) { return at::vec::fmadd(a, b, sum); }
};

#ifdef MERC_VECTORS_OF_PAIRS

// or pairs of bfloat16, whose products are added up in single precision.
struct Pairs {
  static constexpr int64_t NUMBERS = 2;

  static Lanes across(const Operand& x, int64_t row, int64_t k) {
    const auto line = [&](int64_t place) {
      const __mmask16 there = place < x.inner ? first(x.outer - row) : 0;
      const int64_t at = place * x.step + row;
      const __m256i numbers =
          x.half ? _mm256_maskz_loadu_epi16(there, x.numbers<at::BFloat16>() + at)
                 : (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, x.numbers<float>() + at));
      return _mm512_cvtepu16_epi32(numbers);
    };
    return _mm512_castsi512_ps(_mm512_or_si512(line(2 * k), _mm512_slli_epi32(line(2 * k + 1), 16)));
  }

  static Lanes along(const Operand& x, int64_t row, int64_t k) {
    const int64_t at = row * x.step + 2 * k, count = x.inner - 2 * k;
    if (x.half) return lanes(x.numbers<at::BFloat16>() + at, count);
    const __m512 low = _mm512_maskz_loadu_ps(first(count), x.numbers<float>() + at);
    const __m512 high = _mm512_maskz_loadu_ps(first(count - 16), x.numbers<float>() + at + 16);
    return _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(high, low));
  }

  static Lanes lanes(const at::BFloat16* x, int64_t count) {
    const __mmask32 there = static_cast<__mmask32>(count >= 32 ? ~0u : (1u << count) - 1);
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(there, x));
  }

  static Lanes multiply_add(const Lanes& a, const Lanes& b, const Lanes& sum) {
    return _mm512_dpbf16_ps(sum, pairs(a), pairs(b));
  }

 private:
  static __m512bh pairs(const Lanes& x) { return (__m512bh)_mm512_castps_si512(x); }
};

#endif

// Asks for the memory of the entries of a place, or of LANES places, in rows from `row` on.
template <typename Entries>
inline void prefetch(const Operand& x, int64_t row, int64_t k) {
  constexpr int64_t LINE = 64;
  const int64_t numbers = Entries::NUMBERS * (x.along ? LANES : 1), lines = x.along ? LANES : numbers;
  const int64_t first = x.along ? row * x.step + k * Entries::NUMBERS : k * numbers * x.step + row;
  const char* at = static_cast<const char*>(x.at) + first * x.size();
  for (int64_t i = 0; i < lines; ++i, at += x.step * x.size())
    for (int64_t byte = 0; byte < (x.along ? numbers * x.size() : 1); byte += LINE) __builtin_prefetch(at + byte);
}

// Copies the entries [from, until) of as many rows as a strip has, from `begin` on; those behind the last row are 0. Up
// to LANES - 1 entries behind the end are written to.
template <typename Entries, int64_t STRIP>
inline void pack(const Operand& x, int64_t begin, int64_t from, int64_t until, float* to) {
  for (int64_t row = begin; row < begin + STRIP; row += LANES, to += LANES) {
    float* out = to;
    if (!x.along) {
      for (int64_t k = from; k < until; ++k, out += STRIP) {
        prefetch<Entries>(x, row, k + 12);
        Entries::across(x, row, k).store(out);
      }
      continue;
    }
    const int64_t rows = std::clamp<int64_t>(x.outer - row, 0, LANES);
    for (int64_t k = from; k < until; k += LANES, out += LANES * STRIP) {
      prefetch<Entries>(x, row, k + 2 * LANES);
      if (Entries::NUMBERS == 1 && rows == LANES && k + LANES <= x.inner) {
        at::vec::transpose_mxn<float, LANES, LANES>(x.numbers<float>() + row * x.step + k, x.step, out, STRIP);
        continue;
      }
      alignas(64) float there[LANES * LANES] = {};
      for (int64_t i = 0; i < rows; ++i) Entries::along(x, row + i, k).store(there + i * LANES);
      at::vec::transpose_mxn<float, LANES, LANES>(there, LANES, out, STRIP);
    }
  }
}

// Memory that is read soon: lines of rows, asked for one after the other while something else is computed.
struct Ahead {
  static constexpr int64_t LINE = 64;

  // Nothing, or the same line again and again.
  Ahead() = default;

  // The entries [from, until) of the rows [begin, end).
  template <typename Entries>
  static Ahead of(const Operand& x, int64_t begin, int64_t end, int64_t from, int64_t until) {
    const int64_t first = from * Entries::NUMBERS, inner = std::min(until * Entries::NUMBERS, x.inner) - first;
    const int64_t outer = std::min(end, x.outer) - begin;
    if (outer <= 0) return {};
    const int64_t at = x.along ? begin * x.step + first : first * x.step + begin;
    return {static_cast<const char*>(x.at) + at * x.size(), x.along ? outer : inner,
            ceil_div((x.along ? inner : outer) * x.size(), LINE), x.step * x.size()};
  }

  void line() {
    __builtin_prefetch(at_, 0, 2);
    at_ += LINE;
    if (--left_ > 0) return;
    left_ = lines_;
    at_ += --rows_ > 0 ? to_next_ : -lines_ * LINE;
  }

 private:
  Ahead(const char* at, int64_t rows, int64_t lines, int64_t step)
      : at_(at), rows_(rows), lines_(lines), left_(lines), to_next_(step - lines * LINE) {}

  static constexpr char NOTHING[LINE] = {};
  const char* at_ = NOTHING;
  int64_t rows_ = 0, lines_ = 1, left_ = 1, to_next_ = 0;
};

// Where a block of C belongs.
template <typename T>
struct Place {
  T* to;
  int64_t step, height, width;  // how much of C lies from here on, maybe more than the block
  bool more;                    // whether the block is added to what is there
};

inline void write(const Lanes& x, float* to, int64_t count, bool more) { store(to, more ? x + load(to, count) : x, count); }

#ifdef MERC_VECTORS_OF_PAIRS
inline void write(const Lanes& x, at::BFloat16* to, int64_t count, bool) {
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1), (__m256i)_mm512_cvtneps_pbh(x));
}
#endif

// Every row initial + A B, or C + A B; asks for a line of what is ahead with every entry.
template <typename Entries, typename T>
inline void multiply_strips(const float* a, const float* b, int64_t inner, const float* initial, const Place<T>& place,
                            Ahead& ahead) {
  Ahead lines = ahead;  // in registers
  Lanes sums[HEIGHT][2];
#pragma GCC unroll 16
  for (int64_t i = 0; i < HEIGHT; ++i) {
    sums[i][0] = Lanes::loadu(initial);
    sums[i][1] = Lanes::loadu(initial + LANES);
    __builtin_prefetch(place.to + i * place.step);
    __builtin_prefetch(place.to + i * place.step + WIDTH - 1);
  }
  for (int64_t k = 0; k < inner; ++k, a += OF_A, b += OF_B) {
    const Lanes left = Lanes::loadu(b), right = Lanes::loadu(b + LANES);
    __builtin_prefetch(a + 16 * OF_A);
    lines.line();
#pragma GCC unroll 16
    for (int64_t i = 0; i < HEIGHT; ++i) {
      sums[i][0] = Entries::multiply_add(Lanes(a[i]), left, sums[i][0]);
      sums[i][1] = Entries::multiply_add(Lanes(a[i]), right, sums[i][1]);
    }
  }
  ahead = lines;
  const auto write_half = [&](int64_t i, int64_t half, int64_t count) {
    write(sums[i][half], place.to + i * place.step + half * LANES, count, place.more);
  };
  if (place.height >= HEIGHT && place.width >= WIDTH) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < HEIGHT; ++i) write_half(i, 0, LANES), write_half(i, 1, LANES);
    return;
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < HEIGHT; ++i) {
    if (i >= place.height) break;
    write_half(i, 0, std::min(place.width, LANES));
    if (place.width > LANES) write_half(i, 1, std::min(place.width - LANES, LANES));
  }
}

template <typename Entries, typename T>
inline void compute(const Product& product, const Rectangle& part) {
  thread_local std::vector<float> room(INNER * (COLUMNS + ROWS / HEIGHT * OF_A) + 16);
  float* packed_b = of_line(room);
  float* packed_a = packed_b + INNER * COLUMNS;
  static const float nothing[WIDTH] = {};
  const Operand &a = product.a, &b = product.b;
  const float* bias = product.bias;
  T* c = static_cast<T*>(product.c);
  const int64_t inner = ceil_div(a.inner, Entries::NUMBERS), step = product.step;
  const int64_t parts = std::max<int64_t>(1, ceil_div(inner, INNER));
  const int64_t at_once = rounded_up(std::max<int64_t>(1, ceil_div(inner, parts)), LANES);  // room behind the end
  for (int64_t left = part.left; left < part.right; left += COLUMNS) {
    const int64_t right = std::min(part.right, left + COLUMNS);
    for (int64_t from = 0; from == 0 || from < inner; from += at_once) {
      const int64_t until = std::min(inner, from + at_once);
      const auto strip_of_a = [&](int64_t row) { return packed_a + row / HEIGHT * OF_A * at_once; };
      const auto strip_of_b = [&](int64_t column) { return packed_b + column * at_once; };
      for (int64_t top = part.top; top < part.bottom; top += ROWS) {
        const int64_t bottom = std::min(part.bottom, top + ROWS);
        for (int64_t i = top; i < bottom; i += HEIGHT) pack<Entries, OF_A>(a, i, from, until, strip_of_a(i - top));
        for (int64_t j = left; j < right; j += WIDTH) {
          const int64_t next = j + WIDTH;
          Ahead ahead;
          if (top == part.top) {
            pack<Entries, OF_B>(b, j, from, until, strip_of_b(j - left));
            ahead = Ahead::of<Entries>(b, next, std::min(right, next + WIDTH), from, until);
          }
          if (next >= right) ahead = Ahead::of<Entries>(a, bottom, std::min(part.bottom, bottom + ROWS), from, until);
          for (int64_t i = top; i < bottom; i += HEIGHT) {
            const Place<T> place{c + i * step + j, step, a.outer - i, b.outer - j, from > 0};
            multiply_strips<Entries>(strip_of_a(i - top), strip_of_b(j - left), until - from,
                                     from > 0 ? nothing : bias + j, place, ahead);
          }
        }
      }
    }
  }
}

template <typename Entries, typename T>
inline void compute(const Product& product) {
  const int64_t of_a = product.a.size(), of_b = product.b.size();
  // What several threads read at the same time comes from memory once, so that it is the smaller factor that they share
  // out: what a thread reads alone counts several times.
  const int64_t alone = 1 + at::get_num_threads();
  const auto cost = [=](int64_t height, int64_t width, bool alone_with_rows, bool alone_with_columns) {
    return height * of_a * (alone_with_rows ? alone : 1) + width * of_b * (alone_with_columns ? alone : 1);
  };
  in_rectangles(product, HEIGHT, WIDTH, cost, [&](const Rectangle& part) { compute<Entries, T>(product, part); });
}

}  // namespace merc::vector_units
