// Products of row-major matrices by the BLAS that PyTorch is linked with.
#pragma once

#include <cstdint>

extern "C" void sgemm_(
    const char* trans_a, const char* trans_b, const int* m, const int* n, const int* k, const float* alpha,
    const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c, const int* ldc);

namespace merc {

// A matrix inside rows that are `step` numbers apart.
struct Matrix {
  const float* at;
  int64_t step;
};

// BLAS counts columns first, so that it sees every matrix transposed: C = A B is Cᵀ = Bᵀ Aᵀ.
inline void multiply(
    char trans_a, char trans_b, int64_t rows, int64_t columns, int64_t inner, Matrix a, Matrix b, float keep,
    float* c, int64_t step) {
  if (rows == 0 || columns == 0) return;
  const int m = static_cast<int>(columns), n = static_cast<int>(rows), k = static_cast<int>(inner);
  const int lda = static_cast<int>(b.step), ldb = static_cast<int>(a.step), ldc = static_cast<int>(step);
  const float one = 1;
  sgemm_(&trans_b, &trans_a, &m, &n, &k, &one, b.at, &lda, a.at, &ldb, &keep, c, &ldc);
}

// C (rows × columns) = keep · C + A B; then with A or B lying there transposed.
inline void a_b(int64_t rows, int64_t columns, int64_t inner, Matrix a, Matrix b, float keep, float* c, int64_t step) {
  multiply('N', 'N', rows, columns, inner, a, b, keep, c, step);
}
inline void at_b(int64_t rows, int64_t columns, int64_t inner, Matrix a, Matrix b, float keep, float* c, int64_t step) {
  multiply('T', 'N', rows, columns, inner, a, b, keep, c, step);
}
inline void a_bt(int64_t rows, int64_t columns, int64_t inner, Matrix a, Matrix b, float keep, float* c, int64_t step) {
  multiply('N', 'T', rows, columns, inner, a, b, keep, c, step);
}

}  // namespace merc
