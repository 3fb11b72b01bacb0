// Attention among the utterances of each dialogue, on packed rows: no row is padded and no map is kept.
#pragma once

#include <array>
#include <optional>
#include <tuple>

#include "dropout.h"
#include "small_products.h"
#include "softmax.h"

namespace merc {

constexpr int64_t PIECE = 64;  // receiving utterances at a time

// Whether products can be computed where the rows of a head lie, of whole vectors in single precision.
template <typename T>
inline bool in_place(const Tensor& x) {
  return std::is_same_v<T, float> && x.size(2) % LANES == 0;
}

// Rows of one head in one dialogue, of whole vectors in single precision.
template <typename T>
class Slab {
 public:
  Slab() = default;
  Slab(const Tensor& x, int64_t first, int64_t count, int64_t head, Scratch& scratch) {
    const T* from = x.const_data_ptr<T>() + first * x.stride(0) + head * x.stride(1);
    if (in_place<T>(x)) {
      matrix_ = {reinterpret_cast<const float*>(from), x.stride(0)};
      return;
    }
    const int64_t width = x.size(2), step = whole(width);
    float* copy = scratch.take(count * step);
    for (int64_t row = 0; row < count; ++row)
      pieces(width, [&](int64_t i, int64_t there) {
        store(copy + row * step + i, load(from + row * x.stride(0) + i, there), LANES);
      });
    matrix_ = {copy, step};
  }
  Matrix from(int64_t row) const { return {matrix_.at + row * matrix_.step, matrix_.step}; }
  Matrix across(int64_t count, int64_t width, Scratch& scratch) const {
    return transposed(matrix_, count, width, scratch);
  }

 private:
  Matrix matrix_{};
};

// The same to be written, 0 at first; stored at the end where rows lie otherwise.
template <typename T>
class Target {
 public:
  Target(const Tensor& x, int64_t first, int64_t count, int64_t head, Scratch& scratch)
      : to_(x.mutable_data_ptr<T>() + first * x.stride(0) + head * x.stride(1)), stride_(x.stride(0)), width_(x.size(2)),
        count_(count), in_place_(in_place<T>(x)) {
    step = in_place_ ? stride_ : whole(width_);
    data_ = in_place_ ? reinterpret_cast<float*>(to_) : scratch.take(count * step);
    for (int64_t row = 0; row < count; ++row) std::fill_n(data_ + row * step, whole(width_), 0.f);
  }
  ~Target() {
    for (int64_t row = 0; row < (in_place_ ? 0 : count_); ++row)
      pieces(width_, [&](int64_t i, int64_t count) {
        store(to_ + row * stride_ + i, load(data_ + row * step + i, LANES), count);
      });
  }
  float* from(int64_t row) { return data_ + row * step; }
  int64_t step;

 private:
  T* to_;
  const int64_t stride_, width_, count_;
  const bool in_place_;
  float* data_;
};

// Which utterances receive from which, and which entries are dropped.
struct Reach {
  at::IntArrayRef starts;  // first row of each dialogue, and the number of rows
  const bool* visible;     // rows that are attended to; null: all
  int64_t past, future, heads;
  bool difference;
  float scale;  // of the scores
  Mask mask;

  int64_t dialogues() const { return static_cast<int64_t>(starts.size()) - 1; }
  int64_t maps() const { return difference ? 2 : 1; }
  // Utterances that a piece of a dialogue receives from, at most, with or without an effect.
  int64_t sources(int64_t length) const { return std::min(length, past + PIECE + future); }
  // Numbers of one map of a piece, at most.
  int64_t area(int64_t length) const { return std::min(PIECE, length) * whole(sources(length)); }

  // Calls f(head, first row, length, first random byte, scratch) for every head of every dialogue. Heads of the same rows
  // follow each other, since memory is fetched in lines that hold several.
  template <typename F>
  void each(const F& f) const {
    int64_t all_pairs = 0;
    for (int64_t dialogue = 0; dialogue < dialogues(); ++dialogue) all_pairs += heads * pairs_of(length(dialogue));
    in_parts(all_pairs, [&](int64_t, int64_t begin, int64_t end) {
      Scratch scratch;
      int64_t before = 0, bytes = 0;  // of the heads that are done, by whichever thread
      for (int64_t dialogue = 0; dialogue < dialogues(); ++dialogue)
        for (int64_t head = 0; head < heads; ++head) {
          const int64_t pairs = pairs_of(length(dialogue)), middle = before + pairs / 2;
          if (begin <= middle && middle < end && pairs) {
            f(head, starts[dialogue], length(dialogue), bytes, scratch);
            scratch.give_back_all();
          }
          before += pairs;
          bytes += length(dialogue) * Mask::stretch(length(dialogue));
        }
    });
  }

 private:
  int64_t length(int64_t dialogue) const { return starts[dialogue + 1] - starts[dialogue]; }
  int64_t pairs_of(int64_t length) const { return length * sources(length); }
};

// A piece of receiving utterances of one head and dialogue with those that they may receive from.
template <typename T>
class Piece {
 public:
  Piece(const Reach& reach, int64_t row, int64_t length, int64_t start)
      : start(start),
        count(std::min(PIECE, length - start)),
        first(std::max<int64_t>(0, start - reach.past)),
        sources(std::min(length, start + count + reach.future) - first),
        step(whole(sources)),
        reach_(reach),
        row_(row) {}

  // (Q, K) softmax of the scores.
  void map(const Slab<T>& query, Matrix keys_across, int64_t width, float* out) const {
    a_b(count, sources, width, query.from(start), {keys_across.at + first, keys_across.step}, false, out, step);
    for (int64_t i = 0; i < count; ++i) {
      float* scores = out + i * step;
      const int64_t begin = std::max<int64_t>(0, start + i - reach_.past - first);
      const int64_t end = std::min(sources, start + i + reach_.future + 1 - first);
      std::fill(scores, scores + begin, 0.f);
      std::fill(scores + end, scores + sources, 0.f);
      const Lanes scale(reach_.scale);
      pieces(end - begin, [&](int64_t k, int64_t there) {
        store(scores + begin + k, load(scores + begin + k, there) * scale, there);
      });
      bool any = !reach_.visible;
      for (int64_t k = begin; reach_.visible && k < end; ++k) {
        const bool seen = reach_.visible[row_ + first + k];
        any = any || seen;
        if (!seen) scores[k] = NOTHING;
      }
      any ? softmax(scores + begin, end - begin) : static_cast<void>(std::fill(scores + begin, scores + end, 0.f));
    }
  }

  // x · mask for all rows of the piece; `bytes` are those of the head.
  void drop(float* x, int64_t bytes, int64_t length) const {
    for (int64_t i = 0; i < count; ++i)
      reach_.mask.apply(x + i * step, bytes + (start + i) * Mask::stretch(length), sources);
  }

  const int64_t start, count, first, sources;
  const int64_t step;  // from a row of a map to the next

 private:
  const Reach& reach_;
  const int64_t row_;
};

// The maps that make one head in one dialogue.
template <typename T>
class HeadMaps {
 public:
  HeadMaps(
      const Tensor& query, const Tensor& key, const Reach& reach, int64_t head, int64_t row, int64_t length,
      Scratch& scratch)
      : maps_(reach.maps()), width_(query.size(2)) {
    for (int64_t map = 0; map < maps_; ++map) {
      queries[map] = Slab<T>(query, row, length, head * maps_ + map, scratch);
      keys[map] = Slab<T>(key, row, length, head * maps_ + map, scratch);
      keys_across_[map] = keys[map].across(length, width_, scratch);
    }
  }

  // (maps, Q, K) of a piece.
  void compute(const Piece<T>& piece, float* out) const {
    for (int64_t map = 0; map < maps_; ++map)
      piece.map(queries[map], keys_across_[map], width_, out + map * piece.count * piece.step);
  }

  std::array<Slab<T>, 2> queries, keys;

 private:
  const int64_t maps_, width_;
  std::array<Matrix, 2> keys_across_;
};

inline void check_attention(
    const Tensor& query, const Tensor& key, const Tensor& value, at::IntArrayRef starts,
    const std::optional<Tensor>& visible, bool difference) {
  TORCH_CHECK(query.dim() == 3 && value.dim() == 3, "queries, keys and values are (rows, heads, width)");
  TORCH_CHECK(query.sizes() == key.sizes() && query.size(0) == value.size(0), "as many keys as queries, as many values");
  TORCH_CHECK(query.size(1) == value.size(1) * (difference ? 2 : 1), "one or two maps for each head");
  TORCH_CHECK(query.scalar_type() == value.scalar_type() && key.scalar_type() == value.scalar_type(), "one precision");
  TORCH_CHECK(!starts.empty() && starts.front() == 0 && starts.back() == value.size(0) &&
                  std::is_sorted(starts.begin(), starts.end()), "dialogues lie one behind the other and hold all rows");
  TORCH_CHECK(!visible || (visible->numel() == value.size(0) && visible->scalar_type() == at::kBool), "a bool for each row");
}

// (N, M, Q) queries and keys, (N, H, V) values → (N, H, V).
inline Tensor attend(
    const Tensor& query_, const Tensor& key_, const Tensor& value_, at::IntArrayRef starts,
    const std::optional<Tensor>& visible_, int64_t past, int64_t future, bool difference, double scale, int64_t seed,
    int64_t dropped) {
  check_attention(query_, key_, value_, starts, visible_, difference);
  const Tensor query = strided(query_), key = strided(key_), value = strided(value_);
  const Tensor visible = visible_ ? visible_->contiguous() : Tensor();
  const int64_t depth = value.size(2);
  Tensor out = at::empty(value.sizes(), value.options());
  const Reach reach{starts, visible.defined() ? visible.const_data_ptr<bool>() : nullptr, past, future, value.size(1),
                    difference, static_cast<float>(scale), Mask(seed, dropped)};
  with_type(value, [&]<typename T>() {
    reach.each([&](int64_t head, int64_t row, int64_t length, int64_t bytes, Scratch& scratch) {
      const HeadMaps<T> maps(query, key, reach, head, row, length, scratch);
      const Slab<T> values(value, row, length, head, scratch);
      Target<T> target(out, row, length, head, scratch);
      float* all_maps = scratch.take(reach.maps() * reach.area(length));
      for (int64_t start = 0; start < length; start += PIECE) {
        const Piece<T> piece(reach, row, length, start);
        const int64_t area = piece.count * piece.step;
        maps.compute(piece, all_maps);
        if (difference) add(all_maps, -1, all_maps + area, area);
        piece.drop(all_maps, bytes, length);
        a_b(piece.count, depth, piece.sources, {all_maps, piece.step}, values.from(piece.first), false,
            target.from(start), target.step);
      }
    });
  });
  return out;
}

// Gradients of queries, keys and values.
inline std::tuple<Tensor, Tensor, Tensor> attend_backward(
    const Tensor& of_out_, const Tensor& query_, const Tensor& key_, const Tensor& value_, at::IntArrayRef starts,
    const std::optional<Tensor>& visible_, int64_t past, int64_t future, bool difference, double scale, int64_t seed,
    int64_t dropped) {
  check_attention(query_, key_, value_, starts, visible_, difference);
  TORCH_CHECK(of_out_.sizes() == value_.sizes(), "a gradient for each number");
  const Tensor query = strided(query_), key = strided(key_), value = strided(value_), of_out = strided(of_out_);
  const Tensor visible = visible_ ? visible_->contiguous() : Tensor();
  const int64_t width = query.size(2), depth = value.size(2);
  Tensor of_query = at::empty(query.sizes(), query.options()), of_key = at::empty(key.sizes(), key.options());
  Tensor of_value = at::empty(value.sizes(), value.options());
  const Reach reach{starts, visible.defined() ? visible.const_data_ptr<bool>() : nullptr, past, future, value.size(1),
                    difference, static_cast<float>(scale), Mask(seed, dropped)};
  with_type(value, [&]<typename T>() {
    reach.each([&](int64_t head, int64_t row, int64_t length, int64_t bytes, Scratch& scratch) {
      const HeadMaps<T> maps(query, key, reach, head, row, length, scratch);
      std::array<std::optional<Target<T>>, 2> of_queries, of_keys;
      for (int64_t map = 0; map < reach.maps(); ++map) {
        of_queries[map].emplace(of_query, row, length, head * reach.maps() + map, scratch);
        of_keys[map].emplace(of_key, row, length, head * reach.maps() + map, scratch);
      }
      const Slab<T> values(value, row, length, head, scratch), incoming(of_out, row, length, head, scratch);
      const Matrix values_across = values.across(length, depth, scratch);
      Target<T> of_values(of_value, row, length, head, scratch);
      const int64_t most = reach.area(length);
      float *all_maps = scratch.take(reach.maps() * most), *attention = scratch.take(most);
      float* of_attention = scratch.take(most);
      for (int64_t start = 0; start < length; start += PIECE) {
        const Piece<T> piece(reach, row, length, start);
        const int64_t count = piece.count, first = piece.first, sources = piece.sources;
        const int64_t step = piece.step, area = count * step;
        maps.compute(piece, all_maps);
        std::copy_n(all_maps, area, attention);
        if (difference) add(attention, -1, all_maps + area, area);
        piece.drop(attention, bytes, length);
        at_b(sources, depth, count, {attention, step}, incoming.from(start), true, of_values.from(first),
             of_values.step);
        a_b(count, sources, depth, incoming.from(start), {values_across.at + first, values_across.step}, false,
            of_attention, step);
        piece.drop(of_attention, bytes, length);
        for (int64_t map = 0; map < reach.maps(); ++map) {
          float* of_scores = attention;  // no longer needed
          for (int64_t i = 0; i < count; ++i)
            softmax_backward(all_maps + map * area + i * step, of_attention + i * step, map ? -reach.scale : reach.scale,
                             of_scores + i * step, sources);
          a_b(count, width, sources, {of_scores, step}, maps.keys[map].from(first), false, of_queries[map]->from(start),
              of_queries[map]->step);
          at_b(sources, width, count, {of_scores, step}, maps.queries[map].from(start), true, of_keys[map]->from(first),
               of_keys[map]->step);
        }
      }
    });
  });
  return {of_query, of_key, of_value};
}

}  // namespace merc
