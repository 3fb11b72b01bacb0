// Products in single precision on a processor's matrix units, which multiply numbers of bfloat16 only.
//
// A number of single precision is the sum of three of bfloat16, a = a₁ + a₂ + a₃, each 2⁸ times smaller than the one
// before it. Of the nine products of two such numbers, six are added up in single precision:
// a₁b₁ + a₁b₂ + a₂b₁ + a₁b₃ + a₂b₂ + a₃b₁. The other three are smaller than what rounding to single precision costs.
// The units take numbers below 2⁻¹²⁶ for 0, so that numbers below some 2⁻¹⁰⁹ lose their last part.
//
// With fewer parts there are fewer products: with two a₁b₁ + a₁b₂ + a₂b₁, with one a₁b₁. How many there are is said by
// torch.set_float32_matmul_precision: three for "highest", two for "high", one for "medium".
#pragma once

#include <ATen/Context.h>

#include <atomic>

#include "factors.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(CPU_CAPABILITY_AVX512) && defined(__AVX512DQ__) && defined(__linux__)
#define MERC_MATRIX_UNITS

#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace merc {

#ifdef MERC_MATRIX_UNITS

namespace matrix_units {

constexpr int64_t SIDE = 16;   // rows of a tile
constexpr int64_t DEPTH = 32;  // numbers in each of them
constexpr int64_t TILE = SIDE * DEPTH;
constexpr int64_t BLOCK = 2 * SIDE;  // rows and columns of the result that are computed at a time
static_assert(BIAS_UNIT % BLOCK == 0);
// What is packed of B at a time, so that it stays in a core's cache: inner numbers, and columns times parts.
constexpr int64_t INNER = 512;
constexpr int64_t PANEL_OF_PARTS = 1152;
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

inline __m512 rounded(__m512 x) {
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
  return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff0000)));
}

inline __m512i pairs(__m512 first, __m512 second) {
  const __m512i high = _mm512_and_si512(_mm512_castps_si512(second), _mm512_set1_epi32(0xffff0000));
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(first), 16), high);
}

// The parts of 16 pairs of numbers; marks in `strange` those that are too large, infinite or no numbers.
template <int64_t PARTS>
inline void split(__m512 a, __m512 b, __m512i (&parts)[PARTS], __mmask16& strange) {
  constexpr int NOT_FINITE = 0x99;
  for (int64_t part = 0; part < PARTS; ++part) {
    const __m512 a_part = rounded(a), b_part = rounded(b);
    parts[part] = pairs(a_part, b_part);
    a = _mm512_sub_ps(a, a_part);  // exact, and no number where there was none or the part is infinite
    b = _mm512_sub_ps(b, b_part);
    if (part == 0) strange |= _mm512_fpclass_ps_mask(_mm512_add_ps(a, b), NOT_FINITE);
  }
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

// Writes a tile for each part, two tiles apart, of at most 16 rows and 32 inner numbers at x; 0 where there are fewer.
// A tile has a line for each row (A), or one for each pair of inner numbers (B).
template <int64_t PARTS, bool along, bool lines_of_pairs>
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
template <int64_t PARTS, bool along, bool lines_of_pairs>
inline bool pack(const Operand& x, int64_t begin, int64_t end, int64_t from, int64_t until, int16_t* to) {
  __mmask16 strange = 0;
  for (int64_t block = begin; block < end; block += BLOCK)
    for (int64_t k = from; k < until; k += DEPTH, to += 2 * PARTS * TILE)
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t row = std::min(block + half * SIDE, x.outer);
        const float* at = x.numbers<float>() + (along ? row * x.step + k : k * x.step + row);
        pack_tile<PARTS, along, lines_of_pairs>(at, x.step, x.outer - row, until - k, to + half * TILE, strange);
      }
  return strange == 0;
}

template <int64_t PARTS, bool lines_of_pairs>
inline bool pack(const Operand& x, int64_t begin, int64_t end, int64_t from, int64_t until, int16_t* to) {
  return x.along ? pack<PARTS, true, lines_of_pairs>(x, begin, end, from, until, to)
                 : pack<PARTS, false, lines_of_pairs>(x, begin, end, from, until, to);
}

// A block of C, 64 lines of 16 numbers, on its way to where it belongs: memory is slow to write to, so that it is
// written while the next block is computed.
struct Block {
  static constexpr int64_t LINES = 64;

  alignas(64) float numbers[BLOCK * BLOCK];
  float* to = nullptr;
  int64_t step = 0, height = 0, width = 0;  // a height of at most BLOCK
  bool more = false;  // whether it is added to what is there

  void write(int64_t begin, int64_t end) const {
    for (int64_t line = begin; line < std::min(end, 2 * height); ++line) {
      const int64_t row = line / 2, column = line % 2 * SIDE;
      const __mmask16 there = first(width - column);
      float* at = to + row * step + column;
      __m512 x = _mm512_load_ps(numbers + row * BLOCK + column);
      if (more) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(there, at));
      _mm512_mask_storeu_ps(at, there, x);
    }
  }
};

// Computes a block, every row of it initial + A B, and writes the one before it.
template <int64_t PARTS>
inline void multiply_block(
    const int16_t* a, const int16_t* b, int64_t depths, const float* initial, Block& block, const Block& before) {
  constexpr int64_t STEP = 2 * PARTS * TILE;
  const int64_t written = (Block::LINES + depths) / (depths + 1);
  asm volatile("" ::: "memory");  // gcc does not know that loading a tile reads memory
  _tile_loadd(0, initial, 0);
  _tile_loadd(1, initial + SIDE, 0);
  _tile_loadd(2, initial, 0);
  _tile_loadd(3, initial + SIDE, 0);
  for (int64_t k = 0; k < depths; ++k, a += STEP, b += STEP) {
    before.write(written * k, written * (k + 1));
    const auto load_a = [&](int64_t part) {
      _tile_loadd(4, a + 2 * part * TILE, 64);
      _tile_loadd(5, a + (2 * part + 1) * TILE, 64);
    };
    const auto load_b = [&](int64_t part) {
      _tile_loadd(6, b + 2 * part * TILE, 64);
      _tile_loadd(7, b + (2 * part + 1) * TILE, 64);
    };
    const int16_t *next_a = a + STEP, *next_b = b + STEP;
    const auto fetch = [&] {  // some lines of the next tiles, which lie behind these but for those of the next block
      constexpr int64_t LINE = 32, TIMES = 4 * (PARTS * (PARTS + 1) / 2), LINES = (STEP / LINE + TIMES - 1) / TIMES;
      for (int64_t i = 0; i < LINES; ++i, next_a += LINE, next_b += LINE) {
        __builtin_prefetch(next_a);
        __builtin_prefetch(next_b);
      }
    };
    const auto multiply = [&] {
      _tile_dpbf16ps(0, 4, 6); fetch();
      _tile_dpbf16ps(1, 4, 7); fetch();
      _tile_dpbf16ps(2, 5, 6); fetch();
      _tile_dpbf16ps(3, 5, 7); fetch();
    };
    // Small products first; each time one of the two parts is there already.
    load_a(0), load_b(PARTS - 1), multiply();
    if constexpr (PARTS == 3) {
      load_b(1), multiply();
      load_a(1), multiply();
      load_b(0), multiply();
      load_a(2), multiply();
      load_a(0), multiply();
    }
    if constexpr (PARTS == 2) {
      load_b(0), multiply();
      load_a(1), multiply();
    }
  }
  before.write(written * depths, Block::LINES);
  _tile_stored(0, block.numbers, BLOCK * 4);
  _tile_stored(1, block.numbers + SIDE, BLOCK * 4);
  _tile_stored(2, block.numbers + SIDE * BLOCK, BLOCK * 4);
  _tile_stored(3, block.numbers + SIDE * BLOCK + SIDE, BLOCK * 4);
}

template <int64_t PARTS>
inline int64_t panels(int64_t columns) {
  constexpr int64_t MOST = PANEL_OF_PARTS / PARTS;
  return ceil_div(columns, MOST);
}

// Some blocks of C, row by row, since memory is written to faster in order; false if a number was not finite.
template <int64_t PARTS>
inline bool compute(const Product& product, const Rectangle& part) {
  // The pages of memory from malloc would have to be made anew in each call.
  thread_local std::vector<int16_t> room((PANEL_OF_PARTS + BLOCK * PARTS) * INNER + 32);
  int16_t* packed_b = of_line(room);
  int16_t* packed_a = packed_b + PANEL_OF_PARTS * INNER;
  static const Shapes shapes;  // on the stack its numbers might not have been written when they are read
  static const float nothing[BLOCK] = {};
  const Operand &a = product.a, &b = product.b;
  const int64_t inner = a.inner, step = product.step;
  const float* bias = product.bias;
  float* c = static_cast<float*>(product.c);
  const auto& [top, bottom, left, right] = part;
  _tile_loadconfig(&shapes);
  const int64_t blocks_of_all = (right - left) / BLOCK, count_of_panels = panels<PARTS>(right - left);
  const int64_t panel = ceil_div(blocks_of_all, count_of_panels) * BLOCK;
  bool finite = true;
  Block blocks[2];
  int64_t count = 0;
  for (int64_t from = 0; from == 0 || from < inner; from += INNER) {
    const int64_t until = std::min(inner, from + INNER), depths = ceil_div(until - from, DEPTH);
    for (int64_t first = left; first < right; first += panel) {
      const int64_t last = std::min(right, first + panel);
      finite &= pack<PARTS, true>(b, first, last, from, until, packed_b);
      for (int64_t i = top; i < bottom; i += BLOCK) {
        finite &= pack<PARTS, false>(a, i, i + BLOCK, from, until, packed_a);
        for (int64_t j = first; j < last; j += BLOCK) {
          Block &block = blocks[count % 2], &before = blocks[++count % 2];
          const int16_t* of_b = packed_b + (j - first) * depths * DEPTH * PARTS;
          block.to = c + i * step + j, block.step = step, block.more = from > 0;
          block.height = std::min(BLOCK, a.outer - i), block.width = b.outer - j;
          multiply_block<PARTS>(packed_a, of_b, depths, from > 0 ? nothing : bias + j, block, before);
        }
      }
    }
    blocks[(count + 1) % 2].write(0, Block::LINES);
    blocks[0].height = blocks[1].height = 0;
  }
  _tile_release();
  return finite;
}

// False if a number was not finite.
template <int64_t PARTS>
inline bool compute(const Product& product) {
  const auto packed = [](int64_t height, int64_t width, bool, bool) { return height * panels<PARTS>(width) + width; };
  std::atomic<bool> finite{true};
  in_rectangles(product, BLOCK, BLOCK, packed, [&](const Rectangle& part) {
    if (!compute<PARTS>(product, part)) finite = false;
  });
  return finite;
}

// As exactly as PyTorch is told to multiply numbers of single precision.
inline bool compute_as_exactly_as_asked(const Product& product) {
  switch (at::globalContext().float32MatmulPrecision()) {
    case at::Float32MatmulPrecision::MEDIUM: return compute<1>(product);
    case at::Float32MatmulPrecision::HIGH: return compute<2>(product);
    default: return compute<3>(product);
  }
}

}  // namespace matrix_units

#endif

}  // namespace merc
