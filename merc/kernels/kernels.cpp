// Operators of PyTorch for the stages that a CPU spends its time in (merc/kernels/__init__.py).

#include <torch/library.h>

#include "allocator.h"
#include "attention.h"
#include "column_sums.h"
#include "difference_norm.h"
#include "dropout.h"
#include "gelu.h"
#include "graph.h"
#include "head_norm.h"
#include "lambdas.h"
#include "linear.h"
#include "mix.h"
#include "neighbours.h"
#include "product.h"
#include "sum_norm.h"

#define NEIGHBOURS                                                                                         \
  "Tensor x, Tensor weight, Tensor scores, Tensor? tables, Tensor? coefficients, Tensor connected, int past," \
  " int[] kinds, float slope, int seed, int dropped, Tensor? present, int length, bool ours"
#define REACH \
  "int[] starts, Tensor? visible, int past, int future, bool difference, float scale, int seed, int dropped"

TORCH_LIBRARY(merc, library) {
  library.def("allocate_tensors() -> ()", &merc::allocate_tensors);
  library.def("dropout(Tensor x, int seed, int dropped, ScalarType? type=None) -> Tensor");
  library.def("add_dropped(Tensor x, Tensor y, int seed, int dropped) -> Tensor");
  library.def("gelu(Tensor x, float gain, bool tanh, int seed, int dropped) -> Tensor");
  library.def("gelu_backward(Tensor(a!) of_y, Tensor x, float gain, bool tanh, int seed, int dropped) -> ()");
  library.def(
      "head_norm_gelu(Tensor x, Tensor weight, Tensor bias, float scale, float epsilon, int seed, int dropped)"
      " -> (Tensor, Tensor)");
  library.def(
      "head_norm_gelu_backward(Tensor of_y, Tensor x, Tensor moments, Tensor weight, Tensor bias, float scale, int seed,"
      " int dropped) -> (Tensor, Tensor, Tensor)");
  library.def("ends(Tensor z, Tensor vectors) -> Tensor");
  library.def("ends_backward(Tensor of_ends, Tensor(a!) of_z, Tensor z, Tensor vectors) -> Tensor");
  library.def("attend_neighbours(" NEIGHBOURS ") -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "attend_neighbours_backward(Tensor of_out, Tensor between, Tensor attention, Tensor ends, Tensor? seen, " NEIGHBOURS
      ") -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def("difference_norm(Tensor x, Tensor coefficient, Tensor weight, float epsilon, float scale) -> Tensor");
  library.def(
      "difference_norm_backward(Tensor of_y, Tensor x, Tensor coefficient, Tensor weight, float epsilon, float scale)"
      " -> (Tensor, Tensor, Tensor)");
  library.def("lambdas(Tensor left, Tensor right, float initial) -> Tensor");
  library.def("lambdas_backward(Tensor of_out, Tensor left, Tensor right) -> (Tensor, Tensor)");
  library.def("units() -> str", &merc::units);
  library.def("multiplies_bfloat16() -> bool", &merc::multiplies_bfloat16);
  library.def("product(Tensor a, Tensor b, Tensor? bias, bool half=False) -> Tensor");
  library.def("product_out(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  library.def("linear_backward(Tensor of_out, Tensor x, Tensor weight, bool[3] wanted) -> (Tensor, Tensor, Tensor)");
  library.def(
      "sum_norm(Tensor x, Tensor y, Tensor weight, Tensor bias, float epsilon, int seed, int dropped)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "sum_norm_backward(Tensor of_out, Tensor sums, Tensor moments, Tensor weight) -> (Tensor, Tensor, Tensor)");
  library.def("column_sums(Tensor x) -> Tensor");
  library.def("mix(Tensor attention, Tensor values, int past) -> Tensor");
  library.def("mix_backward(Tensor of_out, Tensor attention, Tensor values, int past) -> (Tensor, Tensor)");
  library.def("attend(Tensor query, Tensor key, Tensor value, " REACH ") -> Tensor");
  library.def(
      "attend_backward(Tensor of_out, Tensor query, Tensor key, Tensor value, " REACH ") -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(merc, CPU, library) {
  library.impl("dropout", &merc::dropout);
  library.impl("add_dropped", &merc::add_dropped);
  library.impl("gelu", &merc::gelu);
  library.impl("gelu_backward", &merc::gelu_backward);
  library.impl("head_norm_gelu", &merc::head_norm_gelu);
  library.impl("head_norm_gelu_backward", &merc::head_norm_gelu_backward);
  library.impl("ends", &merc::ends);
  library.impl("ends_backward", &merc::ends_backward);
  library.impl("attend_neighbours", &merc::attend_neighbours);
  library.impl("attend_neighbours_backward", &merc::attend_neighbours_backward);
  library.impl("difference_norm", &merc::difference_norm);
  library.impl("difference_norm_backward", &merc::difference_norm_backward);
  library.impl("lambdas", &merc::lambdas);
  library.impl("lambdas_backward", &merc::lambdas_backward);
  library.impl("product", &merc::product);
  library.impl("product_out", &merc::product_out);
  library.impl("linear_backward", &merc::linear_backward);
  library.impl("sum_norm", &merc::sum_norm);
  library.impl("sum_norm_backward", &merc::sum_norm_backward);
  library.impl("column_sums", &merc::column_sums);
  library.impl("mix", &merc::mix);
  library.impl("mix_backward", &merc::mix_backward);
  library.impl("attend", &merc::attend);
  library.impl("attend_backward", &merc::attend_backward);
}
