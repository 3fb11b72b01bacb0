// The operators that are differentiable, as autograd knows them.
#pragma once

#include "attention.h"
#include "difference_norm.h"
#include "dropout.h"
#include "gelu_linear.h"
#include "head_norm.h"
#include "lambdas.h"
#include "linear.h"
#include "mix.h"
#include "neighbours.h"
#include "node.h"
#include "sum_norm.h"

namespace merc {

struct Dropout : Node<Dropout> {
  static Tensor compute(AutogradContext* context, const Tensor& x, int64_t seed, int64_t dropped) {
    keep(context, {}, seed, dropped);
    return dropout(x, seed, dropped, x.scalar_type());
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    const auto [seed, dropped] = settings<int64_t, int64_t>(context);
    return {dropout(of_out, seed, dropped, of_out.scalar_type())};
  }
};

// What begins with x + dropout(y).
template <typename Operation>
struct NodeOfSum : Node<Operation> {
  static void keep_sum(
      AutogradContext* context, variable_list tensors, const Tensor& x, const Tensor& y, int64_t seed, int64_t dropped) {
    Node<Operation>::keep(context, std::move(tensors), x.scalar_type(), y.scalar_type(), seed, dropped);
  }
  // Gradients of x and y, where they are wanted, from that of the sum.
  static variable_list gradients_of_sum(AutogradContext* context, const Tensor& of_sum) {
    const auto [of_x, of_y, seed, dropped] =
        Node<Operation>::template settings<at::ScalarType, at::ScalarType, int64_t, int64_t>(context);
    variable_list gradients(2);
    if (context->needs_input_grad(0)) gradients[0] = of_sum.to(of_x);
    if (context->needs_input_grad(1)) gradients[1] = dropped ? dropout(of_sum, seed, dropped, of_y) : of_sum.to(of_y);
    return gradients;
  }
};

struct AddDropped : NodeOfSum<AddDropped> {
  static Tensor compute(AutogradContext* context, const Tensor& x, const Tensor& y, int64_t seed, int64_t dropped) {
    keep_sum(context, {}, x, y, seed, dropped);
    return add_dropped(x, y, seed, dropped);
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    return gradients_of_sum(context, of_out);
  }
};

struct SumNorm : NodeOfSum<SumNorm> {
  static Tensor compute(
      AutogradContext* context, const Tensor& x, const Tensor& y, const Tensor& weight, const Tensor& bias,
      double epsilon, int64_t seed, int64_t dropped) {
    const auto [out, sums, moments] = sum_norm(x, y, weight, bias, epsilon, seed, dropped);
    keep_sum(context, {sums, moments, weight}, x, y, seed, dropped);
    return out;
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    const variable_list kept = context->get_saved_variables();
    const auto [of_sums, of_weight, of_bias] = sum_norm_backward(of_out, kept[0], kept[1], kept[2]);
    variable_list gradients = gradients_of_sum(context, of_sums);
    gradients.insert(gradients.end(), {of_weight, of_bias});
    return gradients;
  }
};

struct HeadNormGelu : Node<HeadNormGelu> {
  static Tensor compute(
      AutogradContext* context, const Tensor& x, const Tensor& weight, const Tensor& bias, double scale, double epsilon,
      int64_t seed, int64_t dropped) {
    const auto [out, moments] = head_norm_gelu(x, weight, bias, scale, epsilon, seed, dropped);
    keep(context, {x, moments, weight, bias}, scale, seed, dropped);
    return out;
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    const auto [scale, seed, dropped] = settings<double, int64_t, int64_t>(context);
    const variable_list kept = context->get_saved_variables();
    const auto [of_x, of_weight, of_bias] =
        head_norm_gelu_backward(of_out, kept[0], kept[1], kept[2], kept[3], scale, seed, dropped);
    return {of_x, of_weight, of_bias};
  }
};

struct DifferenceNorm : Node<DifferenceNorm> {
  static Tensor compute(
      AutogradContext* context, const Tensor& x, const Tensor& coefficient, const Tensor& weight, double epsilon,
      double scale) {
    keep(context, {x, coefficient, weight}, epsilon, scale);
    return difference_norm(x, coefficient, weight, epsilon, scale);
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    const auto [epsilon, scale] = settings<double, double>(context);
    const variable_list kept = context->get_saved_variables();
    const auto [of_x, of_coefficient, of_weight] =
        difference_norm_backward(of_out, kept[0], kept[1], kept[2], epsilon, scale);
    return {of_x, of_coefficient, of_weight};
  }
};

struct Lambdas : Node<Lambdas> {
  static Tensor compute(AutogradContext* context, const Tensor& left, const Tensor& right, double initial) {
    keep(context, {left, right});
    return lambdas(left, right, initial);
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    const variable_list kept = context->get_saved_variables();
    const auto [of_left, of_right] = lambdas_backward(of_out, kept[0], kept[1]);
    return {of_left, of_right};
  }
};

struct Linear : Node<Linear> {
  static Tensor compute(
      AutogradContext* context, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool half) {
    keep(context, {x, weight}, bias.has_value());
    return product(x, weight.t(), bias, half);
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    const auto [biased] = settings<bool>(context);
    const variable_list kept = context->get_saved_variables();
    const auto [of_x, of_weight, of_bias] = merc::linear_backward(
        of_out, kept[0], kept[1],
        {context->needs_input_grad(0), context->needs_input_grad(1), biased && context->needs_input_grad(2)});
    return {of_x, of_weight, of_bias};
  }
};

// Keeps its input only: what enters the product is computed again.
struct GeluLinear : Node<GeluLinear> {
  static Tensor compute(
      AutogradContext* context, const Tensor& x, const Tensor& weight, const Tensor& bias, double gain, bool tanh,
      int64_t seed, int64_t dropped, bool ours, bool half) {
    keep(context, {x, weight}, gain, tanh, seed, dropped, ours);
    return gelu_linear(x, weight, bias, gain, tanh, seed, dropped, ours, half);
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    const auto [gain, tanh, seed, dropped, ours] = settings<double, bool, int64_t, int64_t, bool>(context);
    const variable_list kept = context->get_saved_variables();
    const auto [of_x, of_weight, of_bias] = gelu_linear_backward(
        of_out, kept[0], kept[1], gain, tanh, seed, dropped, ours,
        {context->needs_input_grad(0), context->needs_input_grad(1), context->needs_input_grad(2)});
    return {of_x, of_weight, of_bias};
  }
};

struct Ends : Node<Ends> {
  static Tensor compute(AutogradContext* context, const Tensor& z, const Tensor& vectors) {
    keep(context, {z, vectors});
    return ends(z, vectors);
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    const variable_list kept = context->get_saved_variables();
    const Tensor of_z = at::zeros(kept[0].sizes(), kept[0].options());
    const Tensor of_vectors = ends_backward(of_out, of_z, kept[0], kept[1]);
    return {of_z, of_vectors};
  }
};

struct Mix : Node<Mix> {
  static Tensor compute(AutogradContext* context, const Tensor& attention, const Tensor& values, int64_t past) {
    keep(context, {attention, values}, past);
    return mix(attention, values, past);
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    const auto [past] = settings<int64_t>(context);
    const variable_list kept = context->get_saved_variables();
    const auto [of_attention, of_values] = mix_backward(
        of_out, kept[0], kept[1], past, {context->needs_input_grad(0), context->needs_input_grad(1)});
    return {of_attention, of_values};
  }
};

using Numbers = std::vector<int64_t>;

struct Attend : Node<Attend> {
  static Tensor compute(
      AutogradContext* context, const Tensor& query, const Tensor& key, const Tensor& value, at::IntArrayRef starts,
      const std::optional<Tensor>& visible, int64_t past, int64_t future, bool difference, double scale, int64_t seed,
      int64_t dropped) {
    keep(context, {query, key, value}, starts.vec(), visible, past, future, difference, scale, seed, dropped);
    return attend(query, key, value, starts, visible, past, future, difference, scale, seed, dropped);
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    const auto [starts, visible, past, future, difference, scale, seed, dropped] =
        settings<Numbers, std::optional<Tensor>, int64_t, int64_t, bool, double, int64_t, int64_t>(context);
    const variable_list kept = context->get_saved_variables();
    const auto [of_query, of_key, of_value] = attend_backward(
        of_out, kept[0], kept[1], kept[2], starts, visible, past, future, difference, scale, seed, dropped);
    return {of_query, of_key, of_value};
  }
};

// The attention of heads is kept for the backward pass, that of maps is computed again.
struct AttendNeighbours : Node<AttendNeighbours> {
  static Tensor compute(
      AutogradContext* context, const Tensor& x, const Tensor& weight, const Tensor& scores,
      const std::optional<Tensor>& tables, const std::optional<Tensor>& coefficients, const Tensor& connected,
      int64_t past, at::IntArrayRef kinds, double slope, int64_t seed, int64_t dropped,
      const std::optional<Tensor>& present, int64_t length, bool ours) {
    const auto [out, between, attention, of_maps, seen] = attend_neighbours(
        x, weight, scores, tables, coefficients, connected, past, kinds, slope, seed, dropped, present, length, ours);
    keep(context, {between, attention, of_maps, seen, x, weight, scores, tables.value_or(Tensor()),
                   coefficients.value_or(Tensor())},
         connected, past, kinds.vec(), slope, seed, dropped, present, length, ours);
    return out;
  }
  static variable_list gradients(AutogradContext* context, const Tensor& of_out) {
    const auto [connected, past, kinds, slope, seed, dropped, present, length, ours] =
        settings<Tensor, int64_t, Numbers, double, int64_t, int64_t, std::optional<Tensor>, int64_t, bool>(context);
    const variable_list kept = context->get_saved_variables();
    const auto given = [](const Tensor& x) { return x.defined() ? std::optional(x) : std::nullopt; };
    const auto [of_x, of_weight, of_scores, of_tables, of_coefficients] = attend_neighbours_backward(
        of_out, kept[0], kept[1], kept[2], given(kept[3]), kept[4], kept[5], kept[6], given(kept[7]), given(kept[8]),
        connected, past, kinds, slope, seed, dropped, present, length, ours);
    return {of_x, of_weight, of_scores, of_tables, of_coefficients};
  }
};

}  // namespace merc
