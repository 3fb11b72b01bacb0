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
  Matrix across(int64_t count, int64_t width, float factor, Scratch& scratch) const {
    return transposed(matrix_, count, width, factor, scratch);
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
  int64_t area(int64_t length) const { return sources(length) * whole(std::min(PIECE, length)); }

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

// A piece of receiving utterances of one head and dialogue with those that they may receive from. Maps are (K, Q), a row
// for each source: vectors hold receivers, so that nothing is added up inside a vector.
template <typename T>
class Piece {
 public:
  Piece(const Reach& reach, int64_t row, int64_t length, int64_t start)
      : start(start),
        count(std::min(PIECE, length - start)),
        first(std::max<int64_t>(0, start - reach.past)),
        sources(std::min(length, start + count + reach.future) - first),
        step(whole(count)),
        reach_(reach),
        visible_(reach.visible ? reach.visible + row + first : nullptr) {}

  // Softmax over the sources of the scores, which are the products of keys and queries.
  void map(const Slab<T>& key, Matrix queries_across, int64_t width, float* out) const {
    a_b(sources, count, width, key.from(first), {queries_across.at + start, queries_across.step}, false, out, step);
    std::array<bool, PIECE> receives;
    receives.fill(!visible_);
    for (int64_t k = 0; k < sources; ++k) hide(k, out + k * step, receives);
    softmax_of_columns(out, sources, count, step);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; !receives[i] && k < sources; ++k) out[k * step + i] = 0;
  }

  // y = x · mask, or (x − minus) · mask; `bytes` are those of the head. It may be written where x lies.
  void drop(const float* x, const float* minus, int64_t bytes, int64_t length, float* y) const {
    if (x == y && !minus && !reach_.mask.any()) return;
    for (int64_t k = 0; k < sources; ++k) {
      const int64_t row = k * step;
      const int64_t byte = bytes + (first + k) * Mask::stretch(length) + start;
      reach_.mask.each(byte, count, [&](int64_t i, int64_t there, const Lanes& factors) {
        Lanes kept = load(x + row + i, there);
        if (minus) kept = kept - load(minus + row + i, there);
        store(y + row + i, kept * factors, there);
      });
    }
  }

  const int64_t start, count, first, sources;
  const int64_t step;  // from a row of a map to the next

 private:
  // Takes what does not receive from a source out of its scores, and notes what does.
  void hide(int64_t k, float* scores, std::array<bool, PIECE>& receives) const {
    const bool seen = !visible_ || visible_[k];
    const int64_t begin = seen ? std::clamp<int64_t>(first + k - reach_.future - start, 0, count) : count;
    const int64_t end = seen ? std::clamp<int64_t>(first + k + reach_.past + 1 - start, 0, count) : count;
    for (int64_t i = 0; i < begin; ++i) scores[i] = NOTHING;
    for (int64_t i = end; i < count; ++i) scores[i] = NOTHING;
    for (int64_t i = begin; visible_ && i < end; ++i) receives[i] = true;
  }

  const Reach& reach_;
  const bool* visible_;  // of the sources; null: all
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
      queries_across_[map] = queries[map].across(length, width_, reach.scale, scratch);
    }
  }

  // (maps, K, Q) of a piece.
  void compute(const Piece<T>& piece, float* out) const {
    for (int64_t map = 0; map < maps_; ++map)
      piece.map(keys[map], queries_across_[map], width_, out + map * piece.sources * piece.step);
  }

  std::array<Slab<T>, 2> queries, keys;

 private:
  const int64_t maps_, width_;
  std::array<Matrix, 2> queries_across_;  // times the scale of the scores
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
        maps.compute(piece, all_maps);
        piece.drop(all_maps, difference ? all_maps + piece.sources * piece.step : nullptr, bytes, length, all_maps);
        at_b(piece.count, depth, piece.sources, {all_maps, piece.step}, values.from(piece.first), false,
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
      const Matrix incoming_across = incoming.across(length, depth, 1, scratch);
      Target<T> of_values(of_value, row, length, head, scratch);
      const int64_t most = reach.area(length);
      float *all_maps = scratch.take(reach.maps() * most), *attention = scratch.take(most);
      float* of_attention = scratch.take(most);
      for (int64_t start = 0; start < length; start += PIECE) {
        const Piece<T> piece(reach, row, length, start);
        const int64_t count = piece.count, first = piece.first, sources = piece.sources;
        const int64_t step = piece.step, area = sources * step;
        maps.compute(piece, all_maps);
        piece.drop(all_maps, difference ? all_maps + area : nullptr, bytes, length, attention);
        a_b(sources, depth, count, {attention, step}, incoming.from(start), true, of_values.from(first), of_values.step);
        a_b(sources, count, depth, values.from(first), {incoming_across.at + start, incoming_across.step}, false,
            of_attention, step);
        piece.drop(of_attention, nullptr, bytes, length, of_attention);
        for (int64_t map = 0; map < reach.maps(); ++map) {
          float* of_scores = attention;  // no longer needed
          softmax_of_columns_backward(all_maps + map * area, of_attention, map ? -reach.scale : reach.scale, of_scores,
                                      sources, count, step);
          at_b(count, width, sources, {of_scores, step}, maps.keys[map].from(first), false, of_queries[map]->from(start),
               of_queries[map]->step);
          a_b(sources, width, count, {of_scores, step}, maps.queries[map].from(start), true, of_keys[map]->from(first),
              of_keys[map]->step);
        }
      }
    });
  });
  return {of_query, of_key, of_value};
}

}  // namespace merc
