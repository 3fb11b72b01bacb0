// A node of autograd's for an operator, in C++: one in Python takes longer than many an operator.
#pragma once

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

#include <ATen/ATen.h>

#include <string>
#include <tuple>
#include <utility>

namespace merc {

using at::Tensor, torch::autograd::AutogradContext, torch::autograd::variable_list;

template <typename Operation, typename... Inputs>
[[gnu::noinline]] Tensor compute_once(AutogradContext* context, const Inputs&... inputs) {
  return Operation::compute(context, inputs...);
}

// An Operation has compute(context, inputs…), which keeps for the backward pass what gradients(context, gradient) needs for
// those of its inputs; trailing ones that have none may be left out. Gradients have no gradients.
template <typename Operation>
struct Node : torch::autograd::Function<Operation> {
  template <typename... Inputs>
  static Tensor forward(AutogradContext* context, const Inputs&... inputs) {
    const at::AutoDispatchBelowADInplaceOrView unrecorded;
    return compute_once<Operation>(context, inputs...);
  }

  [[gnu::noinline]] static variable_list backward(AutogradContext* context, const variable_list& of_out) {
    variable_list gradients;
    {
      const at::AutoDispatchBelowADInplaceOrView unrecorded;
      gradients = Operation::gradients(context, of_out[0]);
    }
    if (at::GradMode::is_enabled() && of_out[0].requires_grad()) gradients = refusing(std::move(gradients));
    gradients.resize(count(&Operation::compute));
    return gradients;
  }

  // Nothing where there is no context, since no gradient is recorded.
  template <typename... Settings>
  static void keep(AutogradContext* context, variable_list tensors, Settings... settings) {
    if (!context) return;
    context->save_for_backward(std::move(tensors));
    context->saved_data["settings"] = std::tuple<Settings...>(settings...);
  }
  template <typename... Settings>
  static std::tuple<Settings...> settings(AutogradContext* context) {
    return context->saved_data["settings"].template to<std::tuple<Settings...>>();
  }

 private:
  template <typename... Inputs>
  static constexpr size_t count(Tensor (*)(AutogradContext*, Inputs...)) {
    return sizeof...(Inputs);
  }

  // The same, with nodes that refuse to be differentiated.
  static variable_list refusing(variable_list gradients) {
    const auto refusal = c10::make_intrusive<torch::autograd::DelayedError>(
        "merc's operators cannot be differentiated twice; MERC_KERNELS=off leaves most of them to PyTorch, whose can.",
        static_cast<int64_t>(gradients.size()));
    for (Tensor& gradient : gradients)  // what needs no gradient would get no node
      if (gradient.defined()) gradient = gradient.detach().requires_grad_();
    return refusal->apply(std::move(gradients));
  }
};

// Functions for the dispatcher, whose inputs are those of compute(): with a node where gradients are recorded, and without.
template <typename Operation, typename... Inputs>
auto with_node(Tensor (*)(AutogradContext*, Inputs...)) {
  return +[](Inputs... inputs) {
    return at::GradMode::is_enabled() ? Operation::apply(inputs...) : compute_once<Operation>(nullptr, inputs...);
  };
}
template <typename Operation, typename... Inputs>
auto without_node(Tensor (*)(AutogradContext*, Inputs...)) {
  return +[](Inputs... inputs) { return compute_once<Operation>(nullptr, inputs...); };
}

}  // namespace merc
