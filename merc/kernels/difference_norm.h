// scale · w · z/√(mean of z² + ε) with z = x₁ − λ x₂, of the rows that two attention maps give to each head.
#pragma once

#include <tuple>

#include "rows.h"

namespace merc {

inline void check_difference(const Tensor& x, const Tensor& lambda, const Tensor& weight) {
  TORCH_CHECK(x.dim() == 3 && x.size(1) % 2 == 0 && weight.dim() == 1 && weight.size(0) == x.size(2),
              "rows of two maps for each head, a weight for each channel");
  TORCH_CHECK(lambda.numel() == 1 && lambda.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat,
              "one λ and weights of single precision");
}

// Some heads of a row at a time, as many as a vector has lanes: sums of narrow heads are then those of vectors.
template <typename T>
class Differences {
 public:
  Differences(const Tensor& x, float lambda, double epsilon)
      : heads(x.size(1) / 2), dim(x.size(2)), apart(heads * dim), step(whole(dim)),
        lambda_(lambda), epsilon_(static_cast<float>(epsilon)), z_(LANES * step) {}

  const float* z(int64_t head) const { return z_.data() + head * step; }
  float scale(int64_t head) const { return scales_[head]; }  // 1/√(mean of z² + ε)

  // Of so many heads whose first maps' rows begin here.
  void compute(const T* first, int64_t count) {
    Lanes squares[LANES];
    std::fill_n(squares, LANES, Lanes(0.f));
    for (int64_t head = 0; head < count; ++head, first += dim)
      pieces(dim, [&](int64_t i, int64_t there) {
        const Lanes away = load(first + i, there) - Lanes(lambda_) * load(first + apart + i, there);
        away.store(z_.data() + head * step + i);  // 0 behind the end
        squares[head] = at::vec::fmadd(away, away, squares[head]);
      });
    sums(squares, scales_);
    const Lanes means = Lanes::loadu(scales_) / Lanes(static_cast<float>(dim));
    (Lanes(1.f) / (means + Lanes(epsilon_)).sqrt()).store(scales_);
  }

  // Calls f(where the first of some heads of a row begins among the rows of all heads, how many there are).
  template <typename F>
  void each(int64_t begin, int64_t end, const F& f) const {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t head = 0; head < heads; head += LANES)
        f(row * heads + head, (2 * row * heads + head) * dim, std::min(LANES, heads - head));
  }

  const int64_t heads, dim;
  const int64_t apart;  // from the row of a head's first map to that of its second
  const int64_t step;

 private:
  const float lambda_, epsilon_;
  std::vector<float> z_;
  float scales_[LANES];
};

// (N, 2H, V) rows, those of the first maps of all heads before those of the second ones, and (V,) weights → (N, H·V).
inline Tensor difference_norm(
    const Tensor& x_, const Tensor& lambda, const Tensor& weight_, double epsilon, double scale) {
  check_difference(x_, lambda, weight_);
  const Tensor x = x_.contiguous(), weight = weight_.contiguous();
  const float* w = weight.const_data_ptr<float>();
  Tensor y = at::empty({x.size(0), x.size(1) / 2 * x.size(2)}, x.options());
  with_type(x, [&]<typename T>() {
    in_parts(x.size(0), [&](int64_t, int64_t begin, int64_t end) {
      Differences<T> some(x, lambda.const_data_ptr<float>()[0], epsilon);
      some.each(begin, end, [&](int64_t heads, int64_t first, int64_t count) {
        some.compute(x.const_data_ptr<T>() + first, count);
        T* out = y.mutable_data_ptr<T>() + heads * some.dim;
        for (int64_t head = 0; head < count; ++head, out += some.dim) {
          const Lanes factor(some.scale(head) * static_cast<float>(scale));
          pieces(some.dim, [&](int64_t i, int64_t there) {
            store(out + i, Lanes::loadu(some.z(head) + i) * factor * load(w + i, there), there);
          });
        }
      });
    });
  });
  return y;
}

// Gradients of x, λ and weight.
inline std::tuple<Tensor, Tensor, Tensor> difference_norm_backward(
    const Tensor& of_y_, const Tensor& x_, const Tensor& lambda, const Tensor& weight_, double epsilon, double scale) {
  check_difference(x_, lambda, weight_);
  TORCH_CHECK(of_y_.numel() * 2 == x_.numel() && of_y_.scalar_type() == x_.scalar_type(), "a gradient for each number");
  const Tensor of_y = of_y_.contiguous(), x = x_.contiguous(), weight = weight_.contiguous();
  const int64_t dim = x.size(2);
  const float share = lambda.const_data_ptr<float>()[0], *w = weight.const_data_ptr<float>();
  Tensor of_x = at::empty_like(x), totals = at::zeros({at::get_num_threads(), 2, whole(dim)}, weight.options());
  with_type(x, [&]<typename T>() {
    in_parts(x.size(0), [&](int64_t part, int64_t begin, int64_t end) {
      Differences<T> some(x, share, epsilon);
      float* of_w = totals.mutable_data_ptr<float>() + 2 * part * some.step;  // no line of memory is shared
      Lanes of_lambda(0.f);
      some.each(begin, end, [&](int64_t heads, int64_t first, int64_t count) {
        const T *all_first = x.const_data_ptr<T>() + first, *all_incoming = of_y.const_data_ptr<T>() + heads * dim;
        T* all_of_first = of_x.mutable_data_ptr<T>() + first;
        some.compute(all_first, count);
        Lanes along[LANES];
        std::fill_n(along, LANES, Lanes(0.f));
        for (int64_t head = 0; head < count; ++head) {
          const Lanes factor(some.scale(head) * static_cast<float>(scale));
          pieces(dim, [&](int64_t i, int64_t there) {
            const Lanes of_gain = load(all_incoming + head * dim + i, there) * factor * Lanes::loadu(some.z(head) + i);
            (Lanes::loadu(of_w + i) + of_gain).store(of_w + i);
            along[head] = at::vec::fmadd(of_gain, load(w + i, there), along[head]);
          });
        }
        float tilts[LANES];
        sums(along, tilts);
        for (int64_t head = 0; head < count; ++head) {
          const float size = some.scale(head);
          const Lanes factor(size * static_cast<float>(scale)), back(tilts[head] * size * size / static_cast<float>(dim));
          pieces(dim, [&](int64_t i, int64_t there) {
            const int64_t at = head * dim + i;
            const Lanes of_normed = load(all_incoming + at, there) * factor * load(w + i, there);
            const Lanes of_z = of_normed - back * Lanes::loadu(some.z(head) + i);
            store(all_of_first + at, of_z, there);
            store(all_of_first + some.apart + at, of_z * Lanes(-share), there);
            of_lambda = of_lambda - of_z * load(all_first + some.apart + at, there);
          });
        }
      });
      of_lambda.store(of_w + some.step);
    });
  });
  const Tensor both = totals.sum(0);
  return {of_x, both[1].sum().view(lambda.sizes()), both[0].narrow(0, 0, dim)};
}

}  // namespace merc
