// Small dense matrices in double precision, by rows: the inverse of a positive definite one (blocks
// of the coarsest level), eigenvectors and pseudo-inverse, an orthonormal basis from a Gram matrix.
//
// Needs simd.h.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

namespace {

// Of the largest eigenvalue: less than this is rounding of a singular matrix.
constexpr double kSingular = 1e-12;
// Jacobi's rotations stop when the squares off the diagonal are this part of those on it, or after
// so many sweeps.
constexpr double kDiagonalised = 1e-30;
constexpr int kJacobiSweeps = 60;

// out[i][j] = Σ_t p_i[t] q_j[t] over t in [from, to), for four rows p and four rows q: sixteen
// products from eight loads.
inline void dots(const double* const* p, const double* const* q, int from, int to,
                 double (*out)[4]) {
  using V = Vec<double>;
  V sum[4][4] = {};
  int t = from;
  for (; t + kWidth<double> <= to; t += kWidth<double>) {
    V a[4], b[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) a[i] = load(p[i] + t), b[i] = load(q[i] + t);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * b[j];
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      double s = 0;
      for (int k = 0; k < kWidth<double>; ++k) s += sum[i][j][k];
      for (int k = t; k < to; ++k) s += p[i][k] * q[j][k];
      out[i][j] = s;
    }
}

// Columns factored at a time.
constexpr int kBlockColumns = 32;

// Pointers to four rows from `first`, the last one again where there are fewer.
struct FourRows {
  const double* row[4];
  FourRows(const std::vector<double>& a, int m, int first) {
    for (int i = 0; i < 4; ++i) row[i] = &a[(size_t)std::min(first + i, m - 1) * m];
  }
};

// The Cholesky factor L of a symmetric matrix a [m][m] in place of its lower triangle, left-looking
// by blocks of columns; returns the least pivot over `scale`, or −1 when a pivot is not positive.
double cholesky(std::vector<double>& a, int m, const std::vector<double>& scale) {
  double least = 1e300;
  for (int k = 0; k < m; k += kBlockColumns) {
    int e = std::min(m, k + kBlockColumns);
#pragma omp parallel for schedule(dynamic, 4)
    for (int i = k; i < m; i += 4)  // a[i][k..e) −= Σ over the columns done
      for (int j = k; j < e; j += 4) {
        FourRows p(a, m, i), q(a, m, j);
        double d[4][4];
        dots(p.row, q.row, 0, k, d);
        for (int u = 0; u < 4 && i + u < m; ++u)
          for (int v = 0; v < 4 && j + v < e; ++v) a[(size_t)(i + u) * m + j + v] -= d[u][v];
      }
    for (int i = k; i < e; ++i)
      for (int j = k; j <= i; ++j) {
        double s = a[(size_t)i * m + j];
        for (int t = k; t < j; ++t) s -= a[(size_t)i * m + t] * a[(size_t)j * m + t];
        if (i == j) {
          least = std::min(least, s / scale[i]);
          if (!(s > 0)) return -1;
          a[(size_t)i * m + i] = std::sqrt(s);
        } else {
          a[(size_t)i * m + j] = s / a[(size_t)j * m + j];
        }
      }
#pragma omp parallel for schedule(static)
    for (int i = e; i < m; ++i)
      for (int j = k; j < e; ++j) {
        double s = a[(size_t)i * m + j];
        for (int t = k; t < j; ++t) s -= a[(size_t)i * m + t] * a[(size_t)j * m + t];
        a[(size_t)i * m + j] = s / a[(size_t)j * m + j];
      }
  }
  return least;
}

// L⁻¹ of a lower triangle a [m][m], kept by columns: u[j][i] = (L⁻¹)_ij for i ≥ j, with three empty
// columns at the end so that four can be read from any.
std::vector<double> lower_inverse(const std::vector<double>& a, int m) {
  std::vector<double> u((size_t)(m + 3) * m, 0.0);
#pragma omp parallel for schedule(dynamic, 2)
  for (int j = 0; j < m; j += 4) {
    double* t[4] = {&u[(size_t)j * m], &u[(size_t)(j + 1) * m], &u[(size_t)(j + 2) * m],
                    &u[(size_t)(j + 3) * m]};
    int columns = std::min(4, m - j);
    for (int i = j; i < m; ++i) {
      const double* l = &a[(size_t)i * m];
      for (int c = 0; c < columns; ++c) {
        if (i < j + c) continue;
        if (i == j + c) {
          t[c][i] = 1 / l[i];
          continue;
        }
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int q = j; q < i; ++q) sum += l[q] * t[c][q];
        t[c][i] = -sum / l[i];
      }
    }
  }
  return u;
}

// a = TᵀT in full from the columns u of T = L⁻¹: a_ij = Σ_{t ≥ i} T_ti T_tj for j ≤ i.
void product_of_inverse(const std::vector<double>& u, int m, std::vector<double>& a) {
#pragma omp parallel for schedule(dynamic, 2)
  for (int i = 0; i < m; i += 4)
    for (int j = 0; j <= i; j += 4) {
      auto column = [&](int k) { return &u[(size_t)k * m]; };
      const double* p[4] = {column(i), column(i + 1), column(i + 2), column(i + 3)};
      const double* q[4] = {column(j), column(j + 1), column(j + 2), column(j + 3)};
      double d[4][4];
      dots(p, q, i, m, d);
      for (int x = 0; x < 4 && i + x < m; ++x)
        for (int y = 0; y < 4 && j + y < m; ++y) a[(size_t)(i + x) * m + j + y] = d[x][y];
    }
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < i; ++j) a[(size_t)j * m + i] = a[(size_t)i * m + j];
}

// The inverse of a symmetric positive definite matrix a [m][m] in place; returns the least pivot
// over `scale`, or −1 when it is not positive definite.
double invert(std::vector<double>& a, int m, const std::vector<double>& scale) {
  double least = cholesky(a, m, scale);
  if (least > 0) product_of_inverse(lower_inverse(a, m), m, a);
  return least;
}

// Eigenvalues of a symmetric matrix and its eigenvectors, the columns of v, by Jacobi's rotations.
struct Eigen {
  std::vector<double> value, v;
};
Eigen eigen(std::vector<double> a, int n) {
  std::vector<double> v((size_t)n * n, 0.0);
  for (int i = 0; i < n; ++i) v[i * n + i] = 1;
  for (int sweep = 0; sweep < kJacobiSweeps; ++sweep) {
    double offd = 0, diag = 0;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) (i == j ? diag : offd) += a[i * n + j] * a[i * n + j];
    if (offd <= kDiagonalised * diag) break;
    for (int p = 0; p < n; ++p)
      for (int q = p + 1; q < n; ++q) {
        if (a[p * n + q] == 0) continue;
        double theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q]);
        double t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1)),
               c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (int k = 0; k < n; ++k) {
          double x = a[k * n + p], y = a[k * n + q];
          a[k * n + p] = c * x - s * y, a[k * n + q] = s * x + c * y;
        }
        for (int k = 0; k < n; ++k) {
          double x = a[p * n + k], y = a[q * n + k];
          a[p * n + k] = c * x - s * y, a[q * n + k] = s * x + c * y;
          x = v[k * n + p], y = v[k * n + q];
          v[k * n + p] = c * x - s * y, v[k * n + q] = s * x + c * y;
        }
      }
  }
  std::vector<double> value(n);
  for (int i = 0; i < n; ++i) value[i] = a[i * n + i];
  return {value, v};
}

// Pseudo-inverse of a symmetric positive semidefinite matrix.
std::vector<double> pseudo_inverse(const std::vector<double>& a, int n) {
  std::vector<double> out((size_t)n * n, 0.0);
  Eigen e = eigen(a, n);
  double top = *std::max_element(e.value.begin(), e.value.end());
  for (int k = 0; k < n; ++k) {
    if (!(e.value[k] > kSingular * top)) continue;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) out[i * n + j] += e.v[i * n + k] * e.v[j * n + k] / e.value[k];
  }
  return out;
}

// A Gram matrix scaled to unit diagonal, and the scale.
std::vector<double> unit_diagonal(std::vector<double>& g, int n) {
  std::vector<double> scale(n, 0.0);
  for (int i = 0; i < n; ++i) scale[i] = g[i * n + i] > 0 ? 1 / std::sqrt(g[i * n + i]) : 0;
  for (int i = 0; i < n; ++i)
    for (int j = 0; j <= i; ++j)
      g[i * n + j] = g[j * n + i] = 0.5 * (g[i * n + j] + g[j * n + i]) * scale[i] * scale[j];
  return scale;
}

// T [n][m], m ≤ n, such that the columns of R T are orthonormal and span those of R, from Rᵀ R;
// near-dependent ones are left out.
std::vector<double> orthonormal(std::vector<double> gram, int n, int* m) {
  std::vector<double> scale = unit_diagonal(gram, n);
  Eigen e = eigen(gram, n);
  double top = *std::max_element(e.value.begin(), e.value.end());
  std::vector<int> kept;
  for (int k = 0; k < n; ++k)
    if (e.value[k] > kSingular * top) kept.push_back(k);
  *m = kept.size();
  std::vector<double> t((size_t)n * *m);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < *m; ++j)
      t[i * *m + j] = scale[i] * e.v[i * n + kept[j]] / std::sqrt(e.value[kept[j]]);
  return t;
}

// a [rows][inner] times b [inner][columns].
std::vector<double> times(const std::vector<double>& a, const std::vector<double>& b, int rows,
                          int inner, int columns) {
  std::vector<double> out((size_t)rows * columns, 0.0);
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < inner; ++k)
      for (int j = 0; j < columns; ++j)
        out[i * columns + j] += a[i * inner + k] * b[k * columns + j];
  return out;
}

}  // namespace
