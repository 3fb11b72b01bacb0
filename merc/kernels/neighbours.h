// What the rows of a graph receive from their neighbours, weighted by attention whose scores hang on the rows.
#pragma once

#include "graph.h"
#include "mix.h"

namespace merc {

// The rows as those of heads: the same rows for every map that sees whole rows, or one head that the maps share out.
inline Tensor as_heads(const Tensor& values, const Tensor& vectors) {
  const bool whole = vectors.size(2) == values.size(1);
  return values.unsqueeze(1).expand({-1, whole ? vectors.size(0) : 1, -1});
}

inline std::optional<Tensor> scores_of(const std::optional<Tensor>& vectors, const std::optional<Tensor>& tables) {
  TORCH_CHECK(vectors.has_value() == tables.has_value(), "relations have vectors and tables");
  return vectors ? std::optional(relation_scores(*vectors, *tables)) : std::nullopt;
}

// (N, I) values and (M, 2, C) vectors → (N, H, I) and, for the backward pass, the attention of the heads and the ends of
// the maps: those of the maps themselves are computed again.
inline std::tuple<Tensor, Tensor, Tensor> attend_neighbours(
    const Tensor& values_, const Tensor& vectors, const std::optional<Tensor>& coefficients,
    const std::optional<Tensor>& relation_vectors, const std::optional<Tensor>& relation_tables, const Tensor& connected,
    int64_t past, at::IntArrayRef kinds, double slope, int64_t seed, int64_t dropped) {
  TORCH_CHECK(values_.dim() == 2 && vectors.dim() == 3, "rows of values, two vectors for each map");
  const Tensor values = values_.contiguous();
  const Tensor of_maps = ends(as_heads(values, vectors), vectors);
  const Tensor attention = attention_band(of_maps, scores_of(relation_vectors, relation_tables), coefficients, connected,
                                          past, kinds, slope, seed, dropped);
  return {mix(attention, values, past), attention, of_maps};
}

// Gradients of values, vectors and, where they are given, coefficients and the vectors and tables of relations.
inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attend_neighbours_backward(
    const Tensor& of_out, const Tensor& attention, const Tensor& of_maps, const Tensor& values_, const Tensor& vectors,
    const std::optional<Tensor>& coefficients, const std::optional<Tensor>& relation_vectors,
    const std::optional<Tensor>& relation_tables, const Tensor& connected, int64_t past, at::IntArrayRef kinds,
    double slope, int64_t seed, int64_t dropped) {
  const Tensor values = values_.contiguous();
  const auto [of_attention, of_values] = mix_backward(of_out, attention, values, past);
  const auto [of_ends, of_scores, of_coefficients] =
      attention_band_backward(of_attention, of_maps, scores_of(relation_vectors, relation_tables), coefficients,
                              connected, past, kinds, slope, seed, dropped);
  const Tensor of_vectors =
      ends_backward(of_ends, as_heads(of_values, vectors), as_heads(values, vectors), vectors);  // adds to of_values
  Tensor of_relation_vectors, of_relation_tables;
  if (relation_vectors)
    std::tie(of_relation_vectors, of_relation_tables) =
        relation_scores_backward(of_scores, *relation_vectors, *relation_tables);
  return {of_values, of_vectors, coefficients ? of_coefficients : Tensor(), of_relation_vectors, of_relation_tables};
}

}  // namespace merc
