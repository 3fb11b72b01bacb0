// Products in single precision on a processor's matrix units, which multiply numbers of bfloat16 only.
//
// A number of single precision is the sum of three of bfloat16, a = a₁ + a₂ + a₃, each 2⁸ times smaller than the one
// before it. Of the nine products of two such numbers, six are added up in single precision:
// a₁b₁ + a₁b₂ + a₂b₁ + a₁b₃ + a₂b₂ + a₃b₁. The other three are smaller than what rounding to single precision costs.
// The units take numbers below 2⁻¹²⁶ for 0, so that numbers below some 2⁻¹⁰⁹ lose their last part.
#pragma once

#include <ATen/MemoryOverlap.h>

#include <atomic>
#include <optional>

#include "rows.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__linux__)
#define MERC_MATRIX_UNITS

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace merc {

#ifdef MERC_MATRIX_UNITS

namespace matrix_units {

constexpr int64_t PARTS = 3;
constexpr int64_t SIDE = 16;   // rows of a tile
constexpr int64_t DEPTH = 32;  // numbers in each of them
constexpr int64_t TILE = SIDE * DEPTH;
constexpr int64_t BLOCK = 2 * SIDE;  // rows and columns of the result that are computed at a time
// What is packed of A at a time, so that it stays in a core's cache: inner numbers and rows.
constexpr int64_t INNER = 512;
constexpr int64_t ROWS = 384;
constexpr int64_t AHEAD = 2 * DEPTH;  // how far ahead memory is asked for them

// Whether the operating system lets this process use them.
inline bool allowed() {
  static const bool yes = [] {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  }();
  return yes;
}

struct alignas(64) Shapes {  // the layout is that of LDTILECFG
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};
};

// A, or B transposed: `outer` rows of numbers that are summed over.
struct Operand {
  Operand(const Tensor& x, int64_t outer_dim)
      : at(x.const_data_ptr<float>()), outer(x.size(outer_dim)), along(x.stride(1 - outer_dim) == 1),
        step(along ? x.stride(outer_dim) : x.stride(1 - outer_dim)) {}

  const float* at;
  int64_t outer;
  bool along;    // a row's numbers lie together; otherwise those of the same place in all rows do
  int64_t step;  // to the next row, or to the next place
};

inline __m512 rounded(__m512 x) {
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
  return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff0000)));
}

inline __m512i pairs(__m512 first, __m512 second) {
  const __m512i high = _mm512_and_si512(_mm512_castps_si512(second), _mm512_set1_epi32(0xffff0000));
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(first), 16), high);
}

// The parts of 16 pairs of numbers; marks in `strange` those that are too large, infinite or no numbers.
inline void split(__m512 a, __m512 b, __m512i (&parts)[PARTS], __mmask16& strange) {
  constexpr int NOT_FINITE = 0x99;
  __m512 a_part = rounded(a), b_part = rounded(b);
  parts[0] = pairs(a_part, b_part);
  a = _mm512_sub_ps(a, a_part);  // exact, and no number where there was none or the part is infinite
  b = _mm512_sub_ps(b, b_part);
  strange |= _mm512_fpclass_ps_mask(_mm512_add_ps(a, b), NOT_FINITE);
  a_part = rounded(a);
  b_part = rounded(b);
  parts[1] = pairs(a_part, b_part);
  parts[2] = pairs(_mm512_sub_ps(a, a_part), _mm512_sub_ps(b, b_part));
}

// 16 × 16 pairs.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
  }
}

inline __mmask16 first(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1);
}

// Writes a tile for each part, two tiles apart, of at most 16 rows and 32 inner numbers at x; 0 where there are fewer.
// A tile has a line for each row (A), or one for each pair of inner numbers (B).
template <bool along, bool lines_of_pairs>
inline void pack_tile(const float* x, int64_t step, int64_t rows, int64_t inner, int16_t* to, __mmask16& strange) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  __m512i lines[PARTS][16];
  for (int64_t i = 0; i < 16; ++i) {
    const float *at = x + (along ? 1 : 2) * i * step, *ahead = at + (along ? AHEAD : AHEAD * step);
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead + (along ? 16 : step));
    __m512 a, b;
    if constexpr (along) {
      const int64_t there = i < rows ? inner : 0;
      const __m512 low = _mm512_maskz_loadu_ps(first(there), at);
      const __m512 high = _mm512_maskz_loadu_ps(first(there - 16), at + 16);
      a = _mm512_permutex2var_ps(low, even, high);
      b = _mm512_permutex2var_ps(low, odd, high);
    } else {
      a = _mm512_maskz_loadu_ps(first(2 * i < inner ? rows : 0), at);
      b = _mm512_maskz_loadu_ps(first(2 * i + 1 < inner ? rows : 0), at + step);
    }
    __m512i parts[PARTS];
    split(a, b, parts, strange);
    for (int64_t part = 0; part < PARTS; ++part) lines[part][i] = parts[part];
  }
  for (int64_t part = 0; part < PARTS; ++part) {
    if constexpr (along == lines_of_pairs) transpose(lines[part]);
    for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(to + 2 * part * TILE + i * DEPTH, lines[part][i]);
  }
}

// Packs rows [begin, end) of inner numbers [from, until): block by block, depth by depth and part by part, two tiles.
template <bool along, bool lines_of_pairs>
inline bool pack(const Operand& x, int64_t begin, int64_t end, int64_t from, int64_t until, int16_t* to) {
  __mmask16 strange = 0;
  for (int64_t block = begin; block < end; block += BLOCK)
    for (int64_t k = from; k < until; k += DEPTH, to += 2 * PARTS * TILE)
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t row = std::min(block + half * SIDE, x.outer);
        const float* at = x.at + (along ? row * x.step + k : k * x.step + row);
        pack_tile<along, lines_of_pairs>(at, x.step, x.outer - row, until - k, to + half * TILE, strange);
      }
  return strange == 0;
}

template <bool lines_of_pairs>
inline bool pack(const Operand& x, int64_t begin, int64_t end, int64_t from, int64_t until, int16_t* to) {
  return x.along ? pack<true, lines_of_pairs>(x, begin, end, from, until, to)
                 : pack<false, lines_of_pairs>(x, begin, end, from, until, to);
}

// A block of C = initial + A B; `initial_step` 0 means the same numbers in all rows.
inline void multiply_block(
    const int16_t* a, const int16_t* b, int64_t depths, const float* initial, int64_t initial_step, float* c,
    int64_t step) {
  asm volatile("" ::: "memory");  // gcc does not know that loading a tile reads memory
  _tile_loadd(0, initial, initial_step * 4);
  _tile_loadd(1, initial + SIDE, initial_step * 4);
  _tile_loadd(2, initial + SIDE * initial_step, initial_step * 4);
  _tile_loadd(3, initial + SIDE * initial_step + SIDE, initial_step * 4);
  const auto load_a = [&](int64_t part) {
    _tile_loadd(4, a + 2 * part * TILE, 64);
    _tile_loadd(5, a + (2 * part + 1) * TILE, 64);
  };
  const auto load_b = [&](int64_t part) {
    _tile_loadd(6, b + 2 * part * TILE, 64);
    _tile_loadd(7, b + (2 * part + 1) * TILE, 64);
  };
  const auto multiply = [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  };
  for (int64_t k = 0; k < depths; ++k, a += 2 * PARTS * TILE, b += 2 * PARTS * TILE) {
    // Each time one of the two parts is there already.
    load_a(0), load_b(2), multiply();
    load_b(1), multiply();
    load_a(1), multiply();
    load_b(0), multiply();
    load_a(2), multiply();
    load_a(0), multiply();
  }
  _tile_stored(0, c, step * 4);
  _tile_stored(1, c + SIDE, step * 4);
  _tile_stored(2, c + SIDE * step, step * 4);
  _tile_stored(3, c + SIDE * step + SIDE, step * 4);
}

struct Product {
  Operand a, b;
  int64_t inner;
  const float* bias;  // of all columns of all blocks
  float* c;
  int64_t step;

  // Some blocks of C; false if a number was not finite.
  bool compute(int64_t top, int64_t bottom, int64_t left, int64_t right) const {
    // The pages of memory from malloc would have to be made anew in each call.
    thread_local std::vector<int16_t> room((ROWS + BLOCK) * INNER * PARTS + 32);
    int16_t* packed_a = reinterpret_cast<int16_t*>((reinterpret_cast<uintptr_t>(room.data()) + 63) / 64 * 64);
    int16_t* packed_b = packed_a + ROWS * INNER * PARTS;
    static const Shapes shapes;  // on the stack its numbers might not have been written when they are read
    _tile_loadconfig(&shapes);
    bool finite = true;
    for (int64_t from = 0; from == 0 || from < inner; from += INNER) {
      const int64_t until = std::min(inner, from + INNER), depths = (until - from + DEPTH - 1) / DEPTH;
      for (int64_t upper = top; upper < bottom; upper += ROWS) {
        const int64_t lower = std::min(bottom, upper + ROWS);
        finite &= pack<false>(a, upper, lower, from, until, packed_a);
        for (int64_t j = left; j < right; j += BLOCK) {
          finite &= pack<true>(b, j, j + BLOCK, from, until, packed_b);
          for (int64_t i = upper; i < lower; i += BLOCK)
            put(packed_a + (i - upper) * depths * DEPTH * PARTS, packed_b, depths, i, j, from > 0);
        }
      }
    }
    _tile_release();
    return finite;
  }

 private:
  void put(const int16_t* of_a, const int16_t* of_b, int64_t depths, int64_t i, int64_t j, bool more) const {
    float* to = c + i * step + j;
    const int64_t height = std::min(BLOCK, a.outer - i), width = std::min(BLOCK, b.outer - j);
    if (height == BLOCK && width == BLOCK)
      return multiply_block(of_a, of_b, depths, more ? to : bias + j, more ? step : 0, to, step);
    alignas(64) float corner[BLOCK * BLOCK];
    if (more)
      for (int64_t row = 0; row < height; ++row) std::copy_n(to + row * step, width, corner + row * BLOCK);
    multiply_block(of_a, of_b, depths, more ? corner : bias + j, more ? BLOCK : 0, corner, BLOCK);
    for (int64_t row = 0; row < height; ++row) std::copy_n(corner + row * BLOCK, width, to + row * step);
  }
};

// Computes all blocks, in as many rectangles as there are threads; false if a number was not finite.
inline bool compute(const Product& product) {
  const int64_t threads = at::get_num_threads();
  const auto rows = static_cast<double>(product.a.outer), columns = static_cast<double>(product.b.outer);
  int64_t down = 1;  // how many rectangles lie below each other: so that little is packed
  const auto packed = [&](int64_t n) { return rows / n + columns / (threads / n); };
  for (int64_t n = 2; n <= threads; ++n)
    if (threads % n == 0 && packed(n) <= packed(down)) down = n;
  const int64_t across = threads / down;
  const auto edge = [](int64_t size, int64_t part, int64_t parts) {
    return (size + BLOCK - 1) / BLOCK * part / parts * BLOCK;
  };
  std::atomic<bool> finite{true};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t i = n / across, j = n % across, height = product.a.outer, width = product.b.outer;
      if (!product.compute(edge(height, i, down), edge(height, i + 1, down), edge(width, j, across),
                           edge(width, j + 1, across)))
        finite = false;
    }
  });
  return finite;
}

// Rows or columns whose numbers lie together.
inline Tensor readable(const Tensor& x) { return x.stride(0) == 1 || x.stride(1) == 1 ? x : x.contiguous(); }

}  // namespace matrix_units

inline bool has_matrix_units() { return matrix_units::allowed(); }

#else

inline bool has_matrix_units() { return false; }

#endif

inline void check_product(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0), "no product of ", a.sizes(), " and ", b.sizes());
  TORCH_CHECK(a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat, "products are of float32");
}

// Writes A B + bias to `out`, rows of numbers that lie together. Without matrix units, and where something is not
// finite, the BLAS computes it.
inline void multiply_into(const Tensor& a_, const Tensor& b_, const std::optional<Tensor>& bias, Tensor out) {
#ifdef MERC_MATRIX_UNITS
  using namespace matrix_units;
  if (allowed() && out.numel() > 0) {
    const Tensor a = readable(a_), b = readable(b_);
    std::vector<float> added((out.size(1) + BLOCK - 1) / BLOCK * BLOCK);
    if (bias) {
      const Tensor together = bias->contiguous();
      std::copy_n(together.const_data_ptr<float>(), together.numel(), added.begin());
    }
    const Product product{{a, 0}, {b, 1}, a.size(1), added.data(), out.mutable_data_ptr<float>(), out.stride(0)};
    if (compute(product)) return;
  }
#endif
  bias ? at::addmm_out(out, *bias, a_, b_) : at::mm_out(out, a_, b_);
}

// A B + bias.
inline Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  check_product(a, b);
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == b.size(1) && bias->scalar_type() == at::kFloat),
              "no bias of ", b.size(1), " columns");
  Tensor out = at::empty({a.size(0), b.size(1)}, a.options());
  multiply_into(a, b, bias, out);
  return out;
}

// C = A B, where C may be a part of every row of something wider.
inline void product_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  check_product(a, b);
  TORCH_CHECK(out.dim() == 2 && out.size(0) == a.size(0) && out.size(1) == b.size(1) && out.stride(1) == 1 &&
              out.scalar_type() == at::kFloat, "no place for the product of ", a.sizes(), " and ", b.sizes());
  at::assert_no_overlap(out, a);
  at::assert_no_overlap(out, b);
  multiply_into(a, b, std::nullopt, out);
}

}  // namespace merc
