// The smoother: a Chebyshev polynomial of D⁻¹ K on [λ/ratio, λ], where D are the 3×3 diagonal
// blocks of the nodes and λ the largest eigenvalue; and both of these.
//
// Needs operators.h.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "operators.h"

namespace {

// Of a block's largest diagonal entry: a component with less has no stiffness.
constexpr double kDeadComponent = 1e-12;
// Steps of the power iteration for λ, and the margin on what it gives.
constexpr int kPowerSteps = 20;
constexpr double kEigenvalueMargin = 1.1;

// d = alpha d_old + beta D⁻¹ r on the columns of unknowns [first, first + count); old may be null.
inline void scale_plane(const Level& l, size_t first, size_t count, float alpha, const float* old,
                        float beta, const float* r, float* d) {
  const Packing& p = l.p;
  size_t node = first / 3, last = (first + count) / 3;
  size_t c = std::upper_bound(p.off.begin(), p.off.end(), node) - p.off.begin() - 1;
  for (; c + 1 < p.off.size() && p.off[c] < last; ++c) {
    int n = p.len[c];
    size_t at = 3 * p.off[c];
    const float* __restrict q = l.inverse.data() + 6 * p.off[c];
    const float* __restrict x = r + at;
    float* __restrict y = d + at;
    const float* o = old ? old + at : nullptr;
    for (int z = 0; z < n; z += kWidth<float>) {
      int rest = n - z;
      Vec<float> a = load(x + z), b = load(x + n + z), e = load(x + 2 * n + z);
      Vec<float> f[3] = {
          beta * (load(q + z) * a + load(q + 3 * n + z) * b + load(q + 4 * n + z) * e),
          beta * (load(q + 3 * n + z) * a + load(q + n + z) * b + load(q + 5 * n + z) * e),
          beta * (load(q + 4 * n + z) * a + load(q + 5 * n + z) * b + load(q + 2 * n + z) * e),
      };
      for (int k = 0; k < 3; ++k) {
        if (o) f[k] += alpha * load(o + k * n + z);
        if (rest >= kWidth<float>)
          store(y + k * n + z, f[k]);
        else
          std::memcpy(y + k * n + z, &f[k], rest * sizeof(float));
      }
    }
  }
}

struct Smoother {
  int degree;   // costs degree − 1 products with K, and one more from x
  float ratio;  // of the largest eigenvalue to the lower end
};

// Chebyshev semi-iteration on K x = b from x = 0, or from x with its residual still to be computed.
// Leaves r = the residual before the last direction, d = the last direction (already in x).
void chebyshev(const Level& l, Work& v, Smoother s, bool start_from_x) {
  float upper = l.eigenvalue, lower = upper / s.ratio;
  float theta = 0.5f * (upper + lower), delta = 0.5f * (upper - lower), sigma = theta / delta,
        rho = 1.0f / sigma;
  float *b = v.b.data(), *x = v.x.data(), *r = v.r.data(), *d = v.d.data(), *e = v.e.data();
  if (start_from_x) {
    sweep(l, x, [&](size_t first, size_t count, const float* w) {
#pragma GCC ivdep
      for (size_t i = 0; i < count; ++i) r[first + i] = b[first + i] - w[i];
      scale_plane(l, first, count, 0, nullptr, 1 / theta, r, d);
    });
  } else {
    for_planes(l.p, [&](size_t first, size_t count, int) {
      scale_plane(l, first, count, 0, nullptr, 1 / theta, b, d);
      std::memcpy(x + first, d + first, count * sizeof(float));
      if (s.degree == 1) std::memcpy(r + first, b + first, count * sizeof(float));
    });
  }
  bool first_step = true;
  for (int k = 1; k < s.degree; ++k) {
    float rho_next = 1.0f / (2.0f * sigma - rho), alpha = rho_next * rho,
          beta = 2.0f * rho_next / delta;
    const float* source = first_step && !start_from_x ? b : r;
    bool add_first = first_step && start_from_x;
    sweep(l, d, [&](size_t first, size_t count, const float* w) {
#pragma GCC ivdep
      for (size_t i = 0; i < count; ++i) r[first + i] = source[first + i] - w[i];
      scale_plane(l, first, count, alpha, d, beta, r, e);
      if (add_first) {
#pragma GCC ivdep
        for (size_t i = first; i < first + count; ++i) x[i] += d[i] + e[i];
      } else {
#pragma GCC ivdep
        for (size_t i = first; i < first + count; ++i) x[i] += e[i];
      }
    });
    std::swap(v.d, v.e);
    std::swap(d, e);
    rho = rho_next, first_step = false;
  }
  if (s.degree == 1 && start_from_x)
    for_planes(l.p, [&](size_t first, size_t count, int) {
#pragma GCC ivdep
      for (size_t i = first; i < first + count; ++i) x[i] += d[i];
    });
}

// v = 0 on fixed unknowns.
void zero(const std::vector<size_t>& fixed, float* v) {
  for (size_t i : fixed) v[i] = 0;
}

// Inverse of a symmetric block (xx yy zz xy xz yz); components without stiffness stay at zero.
void invert_block(const double* m, float* out, int stride) {
  double a[3][3] = {{m[0], m[3], m[4]}, {m[3], m[1], m[5]}, {m[4], m[5], m[2]}};
  double top = std::max({m[0], m[1], m[2]});
  bool dead[3];
  for (int i = 0; i < 3; ++i) {
    dead[i] = !(a[i][i] > kDeadComponent * top) || top <= 0;
    if (dead[i])
      for (int j = 0; j < 3; ++j) a[i][j] = a[j][i] = i == j ? 1 : 0;
  }
  double c00 = a[1][1] * a[2][2] - a[1][2] * a[1][2], c01 = a[0][2] * a[1][2] - a[0][1] * a[2][2];
  double c02 = a[0][1] * a[1][2] - a[0][2] * a[1][1],
         det = a[0][0] * c00 + a[0][1] * c01 + a[0][2] * c02;
  double c11 = a[0][0] * a[2][2] - a[0][2] * a[0][2], c12 = a[0][1] * a[0][2] - a[0][0] * a[1][2];
  double c22 = a[0][0] * a[1][1] - a[0][1] * a[0][1];
  double v[6] = {c00 / det, c11 / det, c22 / det, c01 / det, c02 / det, c12 / det};
  for (int i = 0; i < 3; ++i)
    if (dead[i]) v[i] = 0;
  for (int i = 0; i < 6; ++i) out[(size_t)i * stride] = (float)v[i];
}

// Adds an element matrix's diagonal blocks to those of its nodes [column][6][z].
void add_diagonal(const Packing& p, int x, int y, int z, const double* k,
                  std::vector<double>& diagonal) {
  for (int a = 0; a < 8; ++a) {
    int c = p.column(x + step_x(a), y + step_y(a)), n = p.len[c];
    double* d = diagonal.data() + 6 * p.off[c] + (z + step_z(a) - p.lo[c]);
    const double* m = k + 24 * 3 * a + 3 * a;
    d[0] += m[0], d[n] += m[25], d[2 * n] += m[50], d[3 * n] += m[1], d[4 * n] += m[2],
        d[5 * n] += m[26];
  }
}

// l.inverse = D⁻¹.
void invert_diagonal(Level& l, const std::vector<double>& diagonal) {
  l.inverse.assign(6 * l.p.nodes() + kPadding, 0.0f);
#pragma omp parallel for schedule(dynamic, 16)
  for (int c = 0; c < (int)l.p.len.size(); ++c) {
    int n = l.p.len[c];
    for (int z = 0; z < n; ++z) {
      double m[6];
      for (int i = 0; i < 6; ++i) m[i] = diagonal[6 * l.p.off[c] + (size_t)i * n + z];
      invert_block(m, l.inverse.data() + 6 * l.p.off[c] + z, n);
    }
  }
}

// l.eigenvalue by power iteration from a fixed start; uses work[0].
void largest_eigenvalue(Level& l) {
  size_t n = l.p.unknowns();
  float *v = l.work[0].x.data(), *d = l.work[0].d.data(), *r = l.work[0].r.data();
  for (size_t i = 0; i < n; ++i)
    v[i] =
        std::sin(12.9898f * (float)(i % 1000003)) + 0.1f * std::cos(78.233f * (float)(i % 1000003));
  double size = 1;
  for (int step = 0; step < kPowerSteps; ++step) {
    sweep(l, v, [&](size_t first, size_t count, const float* w) {
      std::memcpy(r + first, w, count * sizeof(float));
      scale_plane(l, first, count, 0, nullptr, 1, r, d);
    });
    double norm = plane_sum(l.p, [&](size_t first, size_t last) {
      double part = 0;
      for (size_t i = first; i < last; ++i) part += (double)d[i] * d[i];
      return part;
    });
    size = std::sqrt(norm);
    float scale = size > 0 ? (float)(1 / size) : 1;
    for_planes(l.p, [&](size_t first, size_t count, int) {
#pragma GCC ivdep
      for (size_t i = first; i < first + count; ++i) v[i] = scale * d[i];
    });
  }
  l.eigenvalue = (float)(kEigenvalueMargin * size);
}

}  // namespace
