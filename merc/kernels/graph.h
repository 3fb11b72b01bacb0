// Attention over relation graphs, on bands: G blocks of S receiving rows with K candidates each.
#pragma once

#include <optional>
#include <tuple>

#include <ATen/MemoryOverlap.h>

#include "dropout.h"
#include "softmax.h"

namespace merc {

inline void check_ends(const Tensor& z, const Tensor& vectors) {
  TORCH_CHECK(z.dim() == 3 && vectors.dim() == 3 && vectors.size(1) == 2, "rows of heads, two vectors for each map");
  TORCH_CHECK(vectors.size(0) % z.size(1) == 0 && vectors.size(0) * vectors.size(2) == z.size(1) * z.size(2),
              "maps share out the channels of each head");
}

// (L, H, D) rows and (M, 2, C) vectors → (L, M, 2) inner products of each map's part of a row.
inline Tensor ends(const Tensor& z_, const Tensor& vectors_) {
  const Tensor z = strided(z_), vectors = vectors_.contiguous();
  check_ends(z, vectors);
  const int64_t maps = vectors.size(0), width = vectors.size(2), per_head = maps / z.size(1);
  Tensor out = at::empty({z.size(0), maps, 2}, vectors.options());
  float* to = out.mutable_data_ptr<float>();
  const float* vector = vectors.const_data_ptr<float>();
  with_type(z, [&]<typename T>() {
    const T* from = z.const_data_ptr<T>();
    in_parts(z.size(0), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t head = 0; head < z.size(1); ++head) {
          const T* in = from + row * z.stride(0) + head * z.stride(1);
          for (int64_t part = 0; part < per_head; ++part) {
            const int64_t map = head * per_head + part;
            for (int64_t side = 0; side < 2; ++side)
              to[(row * maps + map) * 2 + side] = dot(in + part * width, vector + (map * 2 + side) * width, width);
          }
        }
    });
  });
  return out;
}

inline void check_relations(const Tensor& vectors, const Tensor& tables) {
  TORCH_CHECK(vectors.dim() == 2 && tables.dim() == 3 && vectors.size(1) == tables.size(2) && tables.size(0) > 0 &&
                  vectors.size(0) % tables.size(0) == 0, "a table of relation vectors for every so many maps");
}

// (M, V) vectors and (T, R, V) tables → (M, R): each map's inner products with the vectors of its table.
inline Tensor relation_scores(const Tensor& vectors_, const Tensor& tables_) {
  check_relations(vectors_, tables_);
  const Tensor vectors = vectors_.contiguous(), tables = tables_.contiguous();
  const int64_t maps = vectors.size(0), kinds = tables.size(1), dim = tables.size(2), shared = maps / tables.size(0);
  Tensor out = at::empty({maps, kinds}, vectors.options());
  const float *vector = vectors.const_data_ptr<float>(), *table = tables.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t map = 0; map < maps; ++map)
    for (int64_t kind = 0; kind < kinds; ++kind)
      to[map * kinds + kind] = dot(vector + map * dim, table + (map / shared * kinds + kind) * dim, dim);
  return out;
}

inline std::tuple<Tensor, Tensor> relation_scores_backward(
    const Tensor& of_scores_, const Tensor& vectors_, const Tensor& tables_) {
  check_relations(vectors_, tables_);
  const Tensor of_scores = of_scores_.contiguous(), vectors = vectors_.contiguous(), tables = tables_.contiguous();
  const int64_t maps = vectors.size(0), kinds = tables.size(1), dim = tables.size(2), shared = maps / tables.size(0);
  Tensor of_vectors = at::zeros_like(vectors), of_tables = at::zeros_like(tables);
  const float *vector = vectors.const_data_ptr<float>(), *table = tables.const_data_ptr<float>();
  const float* incoming = of_scores.const_data_ptr<float>();
  float *to_vectors = of_vectors.mutable_data_ptr<float>(), *to_tables = of_tables.mutable_data_ptr<float>();
  for (int64_t map = 0; map < maps; ++map)
    for (int64_t kind = 0; kind < kinds; ++kind) {
      const int64_t entry = (map / shared * kinds + kind) * dim;
      add(to_vectors + map * dim, incoming[map * kinds + kind], table + entry, dim);
      add(to_tables + entry, incoming[map * kinds + kind], vector + map * dim, dim);
    }
  return {of_vectors, of_tables};
}

// Adds what comes from the inner products to the gradient of the rows; returns the gradient of the vectors. Where the
// heads are the same rows (their stride is 0), the gradients of all maps are added up.
inline Tensor ends_backward(const Tensor& of_ends_, Tensor of_z, const Tensor& z_, const Tensor& vectors_) {
  const Tensor z = strided(z_), vectors = vectors_.contiguous(), of_ends = of_ends_.contiguous();
  check_ends(z, vectors);
  TORCH_CHECK(of_z.sizes() == z.sizes() && of_z.scalar_type() == z.scalar_type() && of_z.stride(-1) == 1,
              "a gradient like the rows, whose numbers lie together");
  TORCH_CHECK(of_ends.size(0) == z.size(0) && of_ends.size(1) == vectors.size(0), "a gradient for each number");
  const bool shared = of_z.stride(1) == 0;
  TORCH_CHECK(!shared || (z.stride(1) == 0 && z.size(1) == vectors.size(0)), "the same rows for every map");
  at::assert_no_internal_overlap(shared ? of_z.select(1, 0) : of_z);
  const int64_t maps = vectors.size(0), width = vectors.size(2), per_head = maps / z.size(1);
  const int64_t at_once = shared ? maps : 1;  // maps whose gradient is added to the same numbers
  Tensor sums = at::zeros({at::get_num_threads(), maps, 2, width}, vectors.options());
  float* all_sums = sums.mutable_data_ptr<float>();
  const float *vector = vectors.const_data_ptr<float>(), *incoming = of_ends.const_data_ptr<float>();
  with_type(z, [&]<typename T>() {
    const T* from = z.const_data_ptr<T>();
    T* to = of_z.mutable_data_ptr<T>();
    in_parts(z.size(0), [&](int64_t part, int64_t begin, int64_t end) {
      float* own = all_sums + part * maps * 2 * width;
      for (int64_t row = begin; row < end; ++row)
        for (int64_t map = 0; map < maps; map += at_once) {
          const int64_t head = map / per_head, channel = map % per_head * width;
          const T* in = from + row * z.stride(0) + head * z.stride(1) + channel;
          T* out = to + row * of_z.stride(0) + head * of_z.stride(1) + channel;
          pieces(width, [&](int64_t i, int64_t count) {
            const Lanes x = load(in + i, count);
            Lanes of_x = load(out + i, count);
            for (int64_t end = 2 * map; end < 2 * (map + at_once); ++end) {
              const Lanes factor(incoming[row * maps * 2 + end]);
              of_x = at::vec::fmadd(factor, load(vector + end * width + i, count), of_x);
              float* sum = own + end * width + i;
              store(sum, at::vec::fmadd(factor, x, load(sum, count)), count);
            }
            store(out + i, of_x, count);
          });
        }
    });
  });
  return sums.sum(0);
}

// What the scores of all edges are made of. A row reaches as many rows before it as lie before its block, and likewise
// behind it; what else there is among the candidates of its block is not connected to it.
struct Band {
  Band(
      const Tensor& ends, const std::optional<Tensor>& relation, const std::optional<Tensor>& coefficients,
      const Tensor& connected, int64_t past, at::IntArrayRef kinds, double slope)
      : rows(ends.size(0)),
        maps(ends.size(1)),
        heads(coefficients ? maps / 2 : maps),
        blocks(connected.size(0)),
        size(connected.size(1)),
        width(connected.size(2)),
        past(past),
        reach(width - size + 1),
        columns(rows + reach - 1),
        slope(static_cast<float>(slope)),
        connected(connected.contiguous()),
        coefficients(coefficients ? coefficients->contiguous() : Tensor()),
        left(maps * rows),
        right(maps * columns),
        shifts(maps * reach) {
    TORCH_CHECK(ends.dim() == 3 && ends.size(2) == 2, "two numbers for each row and map");
    TORCH_CHECK(connected.scalar_type() == at::kBool && blocks * size >= rows && past >= 0 && past + size <= width &&
                    kinds.size() == 3, "blocks of rows with their candidates");
    TORCH_CHECK(!coefficients || coefficients->numel() * 2 == maps, "a coefficient for every two maps");
    const Tensor together = ends.contiguous();
    const float* end = together.const_data_ptr<float>();
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t map = 0; map < maps; ++map, end += 2) {
        left[map * rows + row] = end[0];
        right[map * columns + past + row] = end[1];
      }
    if (!relation) return;
    for (int64_t kind : kinds)
      TORCH_CHECK(relation->dim() == 2 && relation->size(0) == maps && 0 <= kind && kind < relation->size(1),
                  "a score for each map and kind of relation");
    const auto score = relation->accessor<float, 2>();
    for (int64_t map = 0; map < maps; ++map)
      for (int64_t place = 0; place < reach; ++place) shifts[map * reach + place] = score[map][kinds[direction(place)]];
  }

  bool difference() const { return coefficients.defined(); }
  float coefficient(int64_t head) const { return coefficients.const_data_ptr<float>()[head]; }
  int64_t stretch() const { return Mask::stretch(reach); }  // for one row of a head
  // Whether what a row reaches first, second … is an earlier row, itself or a later one.
  int64_t direction(int64_t place) const { return place < past ? 0 : place == past ? 1 : 2; }
  // Where the attention of a head of a row to the first row that it reaches is.
  int64_t entry(int64_t row, int64_t head) const { return (row * heads + head) * width + row % size; }
  const bool* edges(int64_t row) const { return connected.const_data_ptr<bool>() + row * width + row % size; }

  const int64_t rows, maps, heads, blocks, size, width, past, reach, columns;
  const float slope;
  const Tensor connected, coefficients;
  // Of every map: what a row gives to its scores; what a column, `past` behind its row, gives; what the relation does.
  std::vector<float> left, right, shifts;
};

// The maps of one receiving row after the other, of what it reaches.
class BandRow {
 public:
  BandRow(const Band& band, bool differentiated)
      : band_(band), maps_(band.maps * band.reach), slopes_(differentiated ? band.maps * band.reach : 0),
        absent_(band.reach) {}

  const float* map(int64_t map) const { return maps_.data() + map * band_.reach; }
  const float* slopes(int64_t map) const { return slopes_.data() + map * band_.reach; }  // of LeakyReLU

  void compute(int64_t row) {
    const bool* there = band_.edges(row);
    bool any = false;
    for (int64_t k = 0; k < band_.reach; ++k) {
      any |= there[k];
      absent_[k] = there[k] ? 0.f : NOTHING;
    }
    if (!any) {  // nothing to attend to, nothing to learn
      std::fill(maps_.begin(), maps_.end(), 0.f);
      std::fill(slopes_.begin(), slopes_.end(), 0.f);
      return;
    }
    const Lanes slope(band_.slope), one(1.f), zero(0.f);
    for (int64_t map = 0; map < band_.maps; ++map) {
      const Lanes left(band_.left[map * band_.rows + row]);
      const float *right = band_.right.data() + map * band_.columns + row, *shift = band_.shifts.data() + map * band_.reach;
      float* score = maps_.data() + map * band_.reach;
      pieces(band_.reach, [&](int64_t k, int64_t count) {
        const Lanes raw = load(right + k, count) + (left + load(shift + k, count));
        if (!slopes_.empty())
          store(slopes_.data() + map * band_.reach + k, Lanes::blendv(slope, one, raw > zero), count);
        store(score + k, at::vec::maximum(raw, raw * slope) + load(absent_.data() + k, count), count);
      });
      softmax(score, band_.reach);
    }
  }

 private:
  const Band& band_;
  std::vector<float> maps_, slopes_, absent_;
};

// dropout(P) or dropout(P_1 − λ P_2): (G, S, H, K), 0 where there is no edge.
inline Tensor attention_band(
    const Tensor& ends, const std::optional<Tensor>& relation, const std::optional<Tensor>& coefficients,
    const Tensor& connected, int64_t past, at::IntArrayRef kinds, double slope, int64_t seed, int64_t dropped) {
  const Band band(ends, relation, coefficients, connected, past, kinds, slope);
  const Mask mask(seed, dropped);
  Tensor out = at::zeros({band.blocks, band.size, band.heads, band.width}, ends.options());
  float* to = out.mutable_data_ptr<float>();
  in_parts(band.rows, [&](int64_t, int64_t begin, int64_t end) {
    BandRow maps(band, false);
    for (int64_t row = begin; row < end; ++row) {
      maps.compute(row);
      for (int64_t head = 0; head < band.heads; ++head) {
        float* attention = to + band.entry(row, head);
        std::copy_n(maps.map(band.difference() ? 2 * head : head), band.reach, attention);
        if (band.difference()) add(attention, -band.coefficient(head), maps.map(2 * head + 1), band.reach);
        mask.apply(attention, (row * band.heads + head) * band.stretch(), band.reach);
      }
    }
  });
  return out;
}

// Gradients of ends, relation scores (M, R) and coefficients; those of what is not given mean nothing.
inline std::tuple<Tensor, Tensor, Tensor> attention_band_backward(
    const Tensor& of_attention_, const Tensor& ends, const std::optional<Tensor>& relation,
    const std::optional<Tensor>& coefficients, const Tensor& connected, int64_t past, at::IntArrayRef kinds,
    double slope, int64_t seed, int64_t dropped) {
  const Band band(ends, relation, coefficients, connected, past, kinds, slope);
  const Mask mask(seed, dropped);
  TORCH_CHECK(of_attention_.sizes() == at::IntArrayRef({band.blocks, band.size, band.heads, band.width}),
              "a gradient for each number");
  const Tensor of_attention = of_attention_.contiguous();
  const float* incoming = of_attention.const_data_ptr<float>();
  const int64_t threads = at::get_num_threads(), reach = band.reach;
  Tensor of_ends = at::empty({band.rows, band.maps, 2}, ends.options());
  float* of_end = of_ends.mutable_data_ptr<float>();
  // What threads sum up, each by itself; what their rows reach overlaps.
  std::vector<float> of_right(threads * band.maps * band.columns), of_shifts(threads * band.maps * reach);
  std::vector<float> of_factors(threads * band.heads);
  in_parts(band.rows, [&](int64_t part, int64_t begin, int64_t end) {
    BandRow maps(band, true);
    std::vector<float> of_head(reach), of_score(reach);
    for (int64_t row = begin; row < end; ++row) {
      maps.compute(row);
      for (int64_t map = 0; map < band.maps; ++map) {
        const int64_t head = band.difference() ? map / 2 : map;
        float factor = 1;
        if (!band.difference() || map % 2 == 0) {
          std::copy_n(incoming + band.entry(row, head), reach, of_head.data());
          mask.apply(of_head.data(), (row * band.heads + head) * band.stretch(), reach);
        } else {
          factor = -band.coefficient(head);
          of_factors[part * band.heads + head] -= dot(of_head.data(), maps.map(map), reach);
        }
        softmax_backward(maps.map(map), of_head.data(), factor, of_score.data(), reach);
        float* right = of_right.data() + (part * band.maps + map) * band.columns + row;
        float* shift = of_shifts.data() + (part * band.maps + map) * reach;
        of_end[(row * band.maps + map) * 2] = total(reach, [&](int64_t k, int64_t count) {
          const Lanes score = load(of_score.data() + k, count) * load(maps.slopes(map) + k, count);
          store(right + k, load(right + k, count) + score, count);
          store(shift + k, load(shift + k, count) + score, count);
          return score;
        });
      }
    }
  });
  const auto sum_of_parts = [&](const std::vector<float>& parts, int64_t i) {
    float sum = 0;
    for (int64_t part = 0, size = parts.size() / threads; part < threads; ++part) sum += parts[part * size + i];
    return sum;
  };
  in_parts(band.rows, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t map = 0; map < band.maps; ++map)
        of_end[(row * band.maps + map) * 2 + 1] = sum_of_parts(of_right, map * band.columns + band.past + row);
  });
  Tensor of_relation = at::zeros(relation ? relation->sizes() : at::IntArrayRef{0, 0}, ends.options());
  auto of_kind = of_relation.accessor<float, 2>();
  for (int64_t map = 0; relation && map < band.maps; ++map)
    for (int64_t place = 0; place < reach; ++place)
      of_kind[map][kinds[band.direction(place)]] += sum_of_parts(of_shifts, map * reach + place);
  Tensor of_coefficients = at::empty({band.heads}, ends.options());
  for (int64_t head = 0; head < band.heads; ++head)
    of_coefficients.mutable_data_ptr<float>()[head] = sum_of_parts(of_factors, head);
  return {of_ends, of_relation, of_coefficients};
}

}  // namespace merc
