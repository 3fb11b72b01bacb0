// What the rows of a graph receive from their neighbours, weighted by attention whose scores hang on the rows.
#pragma once

#include "graph.h"
#include "mix.h"

namespace merc {

// Where there are edges, and what their attention is.
struct Edges {
  const Tensor& connected;
  int64_t past;
  at::IntArrayRef kinds;
  double slope;
  int64_t seed, dropped;
};

// Of every map what the ends of an edge and its relation are multiplied with: (M, 2, C), and (M, V) with (T, R, V) tables.
struct ScoreVectors {
  ScoreVectors(const Tensor& together, const std::optional<Tensor>& tables) : tables(tables) {
    const int64_t width = tables ? tables->size(-1) : 0, of_ends = together.size(-1) - width;
    TORCH_CHECK(together.dim() == 2 && of_ends > 0 && of_ends % 2 == 0, "of every map two vectors and that of relations");
    ends = together.narrow(1, 0, of_ends).reshape({together.size(0), 2, -1});
    if (tables) relations = together.narrow(1, of_ends, width);
  }

  std::optional<Tensor> of_relations() const {
    return tables ? std::optional(relation_scores(relations, *tables)) : std::nullopt;
  }

  Tensor ends, relations;
  const std::optional<Tensor>& tables;
};

// The rows as those of heads: the same rows for every map that sees whole rows, or one head that the maps share out.
inline Tensor as_heads(const Tensor& values, const Tensor& vectors) {
  const bool whole = vectors.size(2) == values.size(1);
  return values.unsqueeze(1).expand({-1, whole ? vectors.size(0) : 1, -1});
}

// (N, I) values and (M, 2, C) vectors → (N, H, I) and, for the backward pass, the attention of the heads and the ends of
// the maps: those of the maps themselves are computed again.
inline std::tuple<Tensor, Tensor, Tensor> receive(
    const Tensor& values, const Tensor& vectors, const std::optional<Tensor>& of_relations,
    const std::optional<Tensor>& coefficients, const Edges& edges) {
  const Tensor of_maps = ends(as_heads(values, vectors), vectors);
  const Tensor attention = attention_band(of_maps, of_relations, coefficients, edges.connected, edges.past, edges.kinds,
                                          edges.slope, edges.seed, edges.dropped);
  return {mix(attention, values, edges.past), attention, of_maps};
}

// Gradients of values, vectors, scores of relations and coefficients; those of what is not given mean nothing.
inline std::tuple<Tensor, Tensor, Tensor, Tensor> receive_backward(
    const Tensor& of_sums, const Tensor& attention, const Tensor& of_maps, const Tensor& values, const Tensor& vectors,
    const std::optional<Tensor>& of_relations, const std::optional<Tensor>& coefficients, const Edges& edges) {
  const auto [of_attention, of_values] = mix_backward(of_sums, attention, values, edges.past);
  const auto [of_ends, of_scores, of_coefficients] =
      attention_band_backward(of_attention, of_maps, of_relations, coefficients, edges.connected, edges.past,
                              edges.kinds, edges.slope, edges.seed, edges.dropped);
  const Tensor of_vectors =
      ends_backward(of_ends, as_heads(of_values, vectors), as_heads(values, vectors), vectors);  // adds to of_values
  return {of_values, of_vectors, of_scores, of_coefficients};
}

// Rows that stand for nothing, in dialogues of so many rows each. They have no edges, and receive what a softmax over
// nothing gives: the mean of their dialogue, for every head.
struct Padding {
  Padding(const std::optional<Tensor>& present, int64_t length, int64_t rows) : length(length) {
    if (!present) return;
    TORCH_CHECK(present->numel() == rows && present->scalar_type() == at::kBool && length > 0 && rows % length == 0,
                "a bool for each row, dialogues of one length");
    there = present->contiguous();
  }

  // Calls f(where it begins) for every head of every row of padding of a dialogue.
  template <typename F>
  void each(const Tensor& x, int64_t dialogue, const F& f) const {
    const int64_t width = x.size(1) * x.size(2);
    for (int64_t row = dialogue * length; row < (dialogue + 1) * length; ++row)
      for (int64_t head = 0; !there.const_data_ptr<bool>()[row] && head < x.size(1); ++head)
        f(row * width + head * x.size(2));
  }

  void fill(const Tensor& sums, const Tensor& values) const {
    if (!there.defined()) return;
    const Tensor means = values.unflatten(0, {-1, length}).mean(1);
    with_type(sums, [&]<typename T>() {
      in_parts(means.size(0), [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t dialogue = begin; dialogue < end; ++dialogue) {
          const T* mean = means.const_data_ptr<T>() + dialogue * means.size(1);
          each(sums, dialogue, [&](int64_t at) { std::copy_n(mean, means.size(1), sums.mutable_data_ptr<T>() + at); });
        }
      });
    });
  }

  void add_gradient(const Tensor& of_values, const Tensor& of_sums) const {
    if (!there.defined()) return;
    const int64_t dim = of_values.size(1);
    with_type(of_values, [&]<typename T>() {
      in_parts(of_values.size(0) / length, [&](int64_t, int64_t begin, int64_t end) {
        std::vector<float> sum(dim);
        for (int64_t dialogue = begin; dialogue < end; ++dialogue) {
          std::fill(sum.begin(), sum.end(), 0.f);
          each(of_sums, dialogue, [&](int64_t at) {
            pieces(dim, [&](int64_t i, int64_t count) {
              const Lanes of_head = load(of_sums.const_data_ptr<T>() + at + i, count);
              store(sum.data() + i, load(sum.data() + i, count) + of_head, count);
            });
          });
          const Lanes share(1.f / static_cast<float>(length));
          for (int64_t row = dialogue * length; row < (dialogue + 1) * length; ++row) {
            T* of_row = of_values.mutable_data_ptr<T>() + row * dim;
            pieces(dim, [&](int64_t i, int64_t count) {
              store(of_row + i, at::vec::fmadd(load(sum.data() + i, count), share, load(of_row + i, count)), count);
            });
          }
        }
      });
    });
  }

  Tensor there;
  const int64_t length;
};

// A B for every head, by merc's products or by PyTorch's.
inline void multiply_heads(const Tensor& a, const Tensor& b, const Tensor& out, bool ours) {
  for (int64_t head = 0; head < out.size(0); ++head) {
    Tensor place = out.select(0, head);
    ours ? product_out(a.select(0, head), b.select(0, head), place)
         : static_cast<void>(at::mm_out(place, a.select(0, head), b.select(0, head)));
  }
}

// Whether W comes before the sum over neighbours: of the two orders the one that moves the narrower rows. Without this
// operator merc/models/graphs/additive.py chooses likewise.
inline bool maps_first(const Tensor& weight) { return weight.size(0) == 1 && weight.size(1) > weight.size(2); }

// (N, I) rows, (H, I, D) weights of heads and scores of M maps → (N, H·D): Σ_j A_ij W_h x_j. For the backward pass the
// rows between the two steps, the attention of the heads, the ends of the maps and what their inner products were with.
inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attend_neighbours(
    const Tensor& x_, const Tensor& weight, const Tensor& scores, const std::optional<Tensor>& tables,
    const std::optional<Tensor>& coefficients, const Tensor& connected, int64_t past, at::IntArrayRef kinds, double slope,
    int64_t seed, int64_t dropped, const std::optional<Tensor>& present, int64_t length, bool ours) {
  TORCH_CHECK(x_.dim() == 2 && weight.dim() == 3 && weight.size(1) == x_.size(1), "rows, and a map of them for each head");
  TORCH_CHECK(ours || x_.scalar_type() == weight.scalar_type(), "PyTorch multiplies numbers of one type");
  const Tensor x = x_.contiguous();
  const ScoreVectors vectors(scores, tables);
  const Edges edges{connected, past, kinds, slope, seed, dropped};
  const Padding padding(present, length, x.size(0));
  const bool first = maps_first(weight);
  Tensor values = x, seen;
  if (first) {
    values = at::empty({x.size(0), weight.size(2)}, x.options());
    multiply_heads(x.unsqueeze(0), weight, values.unsqueeze(0), ours);
  } else {  // ⟨a, W x⟩ = ⟨Wᵀ a, x⟩: rows of all heads are made only where they are summed
    seen = ends(weight.transpose(0, 1), vectors.ends).permute({1, 2, 0}).contiguous();
  }
  const auto [sums, attention, of_maps] =
      receive(values, first ? vectors.ends : seen, vectors.of_relations(), coefficients, edges);
  padding.fill(sums, values);
  if (first) return {sums.flatten(1), values, attention, of_maps, seen};
  const Tensor out = at::empty({x.size(0), weight.size(0), weight.size(2)}, x.options());
  multiply_heads(sums.transpose(0, 1), weight, out.transpose(0, 1), ours);
  return {out.flatten(1), sums, attention, of_maps, seen};
}

// Gradients of rows, weights, scores and, where they are given, tables and coefficients.
inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attend_neighbours_backward(
    const Tensor& of_out_, const Tensor& between, const Tensor& attention, const Tensor& of_maps,
    const std::optional<Tensor>& seen, const Tensor& x_, const Tensor& weight, const Tensor& scores,
    const std::optional<Tensor>& tables, const std::optional<Tensor>& coefficients, const Tensor& connected, int64_t past,
    at::IntArrayRef kinds, double slope, int64_t seed, int64_t dropped, const std::optional<Tensor>& present,
    int64_t length, bool ours) {
  const Tensor x = x_.contiguous(), of_out = of_out_.contiguous().view({x.size(0), weight.size(0), weight.size(2)});
  const ScoreVectors vectors(scores, tables);
  const Edges edges{connected, past, kinds, slope, seed, dropped};
  const Padding padding(present, length, x.size(0));
  const auto of_relations = vectors.of_relations();
  const Tensor of_weight = at::empty(weight.sizes(), weight.options());
  Tensor of_sums = of_out;
  if (seen) {
    of_sums = at::empty_like(between);
    const Tensor of_heads = of_out.transpose(0, 1);
    multiply_heads(of_heads, weight.mT(), of_sums.transpose(0, 1), ours);
    multiply_heads(between.permute({1, 2, 0}), of_heads, of_weight, ours);
  }
  auto [of_x, of_vectors, of_scores, of_coefficients] = receive_backward(
      of_sums, attention, of_maps, seen ? x : between, seen.value_or(vectors.ends), of_relations, coefficients, edges);
  padding.add_gradient(of_x, of_sums);
  if (seen) {
    of_vectors = ends_backward(of_vectors.permute({2, 0, 1}), of_weight.transpose(0, 1), weight.transpose(0, 1),
                               vectors.ends);  // adds to of_weight
  } else {
    const Tensor of_values = of_x.unsqueeze(0);
    of_x = at::empty_like(x);
    multiply_heads(of_values, weight.mT(), of_x.unsqueeze(0), ours);
    multiply_heads(x.t().unsqueeze(0), of_values, of_weight, ours);
  }
  of_vectors = of_vectors.flatten(1);
  if (!tables) return {of_x, of_weight, of_vectors, Tensor(), coefficients ? of_coefficients : Tensor()};
  const auto [of_relation_vectors, of_tables] = relation_scores_backward(of_scores, vectors.relations, *tables);
  return {of_x, of_weight, at::cat({of_vectors, of_relation_vectors}, 1), of_tables,
          coefficients ? of_coefficients : Tensor()};
}

}  // namespace merc
