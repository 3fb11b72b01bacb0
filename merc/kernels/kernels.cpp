// Operators of PyTorch for the stages that a CPU spends its time in (merc/kernels/__init__.py).

#include <torch/library.h>

#include "allocator.h"
#include "column_sums.h"
#include "gelu.h"
#include "gradients.h"
#include "graph.h"
#include "product.h"

#define MASK "int seed, int dropped"

namespace merc {

// An operator that is differentiable.
template <typename Operation>
void define(torch::Library& library, const std::string& name, const std::string& inputs) {
  library.def((name + "(" + inputs + ") -> Tensor").c_str());
  library.impl(name.c_str(), torch::dispatch(c10::DispatchKey::CPU, without_node<Operation>(&Operation::compute)));
  library.impl(name.c_str(), torch::dispatch(c10::DispatchKey::AutogradCPU, with_node<Operation>(&Operation::compute)));
}

}  // namespace merc

TORCH_LIBRARY(merc, library) {
  library.def("allocate_tensors() -> ()", &merc::allocate_tensors);
  library.def("units() -> str", &merc::units);
  library.def("multiplies_bfloat16() -> bool", &merc::multiplies_bfloat16);
  merc::define<merc::Dropout>(library, "dropout", "Tensor x, " MASK);
  merc::define<merc::AddDropped>(library, "add_dropped", "Tensor x, Tensor y, " MASK);
  merc::define<merc::SumNorm>(
      library, "sum_norm", "Tensor x, Tensor y, Tensor weight, Tensor bias, float epsilon, " MASK);
  merc::define<merc::HeadNormGelu>(
      library, "head_norm_gelu", "Tensor x, Tensor weight, Tensor bias, float scale, float epsilon, " MASK);
  merc::define<merc::DifferenceNorm>(
      library, "difference_norm", "Tensor x, Tensor coefficient, Tensor weight, float epsilon, float scale");
  merc::define<merc::Lambdas>(library, "lambdas", "Tensor left, Tensor right, float initial");
  merc::define<merc::Linear>(library, "linear", "Tensor x, Tensor weight, Tensor? bias, bool half");
  merc::define<merc::GeluLinear>(
      library, "gelu_linear",
      "Tensor x, Tensor weight, Tensor bias, float gain, bool tanh, " MASK ", bool ours, bool half");
  merc::define<merc::Ends>(library, "ends", "Tensor z, Tensor vectors");
  merc::define<merc::Mix>(library, "mix", "Tensor attention, Tensor values, int past");
  merc::define<merc::Attend>(
      library, "attend",
      "Tensor query, Tensor key, Tensor value, int[] starts, Tensor? visible, int past, int future, bool difference,"
      " float scale, " MASK);
  merc::define<merc::AttendNeighbours>(
      library, "attend_neighbours",
      "Tensor x, Tensor weight, Tensor scores, Tensor? tables, Tensor? coefficients, Tensor connected, int past,"
      " int[] kinds, float slope, " MASK ", Tensor? present, int length, bool ours");
  library.def("product(Tensor a, Tensor b, Tensor? bias, bool half=False) -> Tensor");
  // Parts of the others, for those who look at them alone.
  library.def("product_out(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  library.def("column_sums(Tensor x) -> Tensor");
  library.def("gelu(Tensor x, float gain, bool tanh, " MASK ") -> Tensor");
  library.def("gelu_backward(Tensor(a!) of_y, Tensor x, float gain, bool tanh, " MASK ") -> ()");
}

TORCH_LIBRARY_IMPL(merc, CPU, library) {
  library.impl("product", &merc::product);
  library.impl("product_out", &merc::product_out);
  library.impl("column_sums", &merc::column_sums);
  library.impl("gelu", &merc::gelu);
  library.impl("gelu_backward", &merc::gelu_backward);
}
