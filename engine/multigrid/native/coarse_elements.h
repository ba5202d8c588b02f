// Element matrices of the coarse levels, exact Galerkin operators: K_c = Σ_children (D P)ᵀ K (D P),
// where D zeroes fixed unknowns and P interpolates.
//
// Most elements of the first coarse level are kept as sixteen numbers, the Walsh moments of λ (8)
// and μ (8) over their children, instead of 576; those with a support or fixed unknowns are kept in
// full (Special). Deeper levels are made of the level before.
//
// Needs level.h (Special), input.h and the generated kMode1Entries and kElement (simd.h).

#pragma once

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "input.h"
#include "level.h"
#include "packing.h"
#include "simd.h"

namespace {

// k ← Aᵀ k A for a matrix A that couples the two nodes of every edge along one axis: pair(low,
// high) on rows, then on columns.
template <class Pair>
void along_axis(double* k, int bit, Pair&& pair) {
  for (int node = 0; node < 8; ++node)
    if (!(node & bit))
      for (int c = 0; c < 3; ++c)
        for (int j = 0; j < 24; ++j)
          pair(k[24 * (3 * node + c) + j], k[24 * (3 * (node | bit) + c) + j]);
  for (int i = 0; i < 24; ++i)
    for (int node = 0; node < 8; ++node)
      if (!(node & bit))
        for (int c = 0; c < 3; ++c)
          pair(k[24 * i + 3 * node + c], k[24 * i + 3 * (node | bit) + c]);
}

// P_cᵀ K P_c added to `out`, one axis after the other.
void add_child(const double* k, int child, double* out) {
  double a[576];
  std::memcpy(a, k, sizeof a);
  for (int bit = 4; bit; bit >>= 1) {
    bool upper = child & bit;
    along_axis(a, bit, [upper](double& low, double& high) {
      double f0 = low, f1 = high;
      low = upper ? 0.5 * f0 : f0 + 0.5 * f1;
      high = upper ? 0.5 * f0 + f1 : 0.5 * f1;
    });
  }
  for (int i = 0; i < 576; ++i) out[i] += a[i];
}

// The nodal element matrix of the first coarse level from its 16 moments: Hᵀ K H.
void from_moments(const float* w, int stride, double* k) {
  std::fill(k, k + 576, 0.0);
  for (const Entry& e : kMode1Entries) k[24 * e.i + e.j] += e.value * w[(size_t)e.field * stride];
  for (int bit = 4; bit; bit >>= 1)
    along_axis(k, bit, [](double& low, double& high) {
      double f0 = low, f1 = high;
      low = f0 - f1, high = f0 + f1;
    });
}

// λ h, μ h, κ h³ of the eight children of an element of the first coarse level.
struct Children {
  double lam[8], mu[8], kappa[8];
};

Children children_of(const Input& in, int X, int Y, int Z) {
  Children out;
  float cube = in.h * in.h * in.h;
  for (int k = 0; k < 8; ++k) {
    int x = 2 * X + step_x(k), y = 2 * Y + step_y(k), z = 2 * Z + step_z(k);
    size_t at = ((size_t)x * in.ny + y) * in.nz + z;
    out.lam[k] = in.h * in.lam[at], out.mu[k] = in.h * in.mu[at];
    out.kappa[k] = cube * in.kappa[at];
  }
  return out;
}

// Whether moments do not describe it: it stands on a foundation, or one of its 27 nodes is fixed.
bool is_special(const Input& in, const Children& e, int X, int Y, int Z) {
  bool whole = false;
  for (int k = 0; k < 8; ++k) whole |= e.kappa[k] != 0;
  if (in.fixed)
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j)
        for (int k = 0; k < 3; ++k)
          for (int d = 0; d < 3; ++d) whole |= in.is_fixed(2 * X + i, 2 * Y + j, 2 * Z + k, d);
  return whole;
}

// The matrix of such an element.
Special special_of(const Input& in, const Children& e, int X, int Y, int Z) {
  Special out{X, Y, Z, std::vector<float>(576)};
  double sum[576] = {0};
  for (int k = 0; k < 8; ++k) {
    int x = 2 * X + step_x(k), y = 2 * Y + step_y(k), z = 2 * Z + step_z(k);
    double child[576];
    for (int i = 0; i < 576; ++i)
      child[i] = e.lam[k] * kElement[0][i] + e.mu[k] * kElement[1][i] + e.kappa[k] * kElement[2][i];
    for (int a = 0; a < 8; ++a)
      for (int d = 0; d < 3; ++d)
        if (in.is_fixed(x + step_x(a), y + step_y(a), z + step_z(a), d))
          for (int j = 0; j < 24; ++j) child[24 * (3 * a + d) + j] = child[24 * j + 3 * a + d] = 0;
    add_child(child, k, sum);
  }
  for (int i = 0; i < 576; ++i) out.k[i] = (float)sum[i];
  return out;
}

// The moments w_m = Σ_k f_k/8 Π over the axes in m of (−1 for a low child, +1 for a high one), of
// λ, then of μ; `stride` apart.
void set_moments(const Children& e, int stride, float* w) {
  for (int m = 0; m < 8; ++m) {
    double a = 0, b = 0;
    for (int k = 0; k < 8; ++k) {
      double sign = __builtin_popcount(m & ~k & 7) & 1 ? -0.125 : 0.125;
      a += sign * e.lam[k], b += sign * e.mu[k];
    }
    w[(size_t)m * stride] = (float)a;
    w[(size_t)(8 + m) * stride] = (float)b;
  }
}

// The elements of the first coarse level.
struct FirstCoarse {
  Packing p;
  Buffer moments;                             // as in Level
  std::vector<std::vector<Special>> special;  // as in Level

  // The element matrix [24][24] at x, y, z.
  void matrix(int x, int y, int z, double* k) const {
    int r = p.row(x, y);
    from_moments(moments.data() + 16 * p.eoff[r] + (z - p.elo[r]), p.elen[r], k);
    for (const Special& s : special[x])
      if (s.y == y && s.z == z)
        for (int i = 0; i < 576; ++i) k[i] += s.k[i];
  }
};

FirstCoarse first_coarse(const Input& in, const Packing& fine) {
  FirstCoarse out;
  out.p = fine.coarser();
  const Packing& c = out.p;
  out.moments.assign(16 * c.elements() + 16 * kPadding, 0.0f);
  out.special.resize(c.nx);
#pragma omp parallel for schedule(dynamic, 1)
  for (int X = 0; X < c.nx; ++X)
    for (int Y = 0; Y < c.ny; ++Y) {
      int r = c.row(X, Y), n = c.elen[r];
      for (int t = 0; t < n; ++t) {
        int Z = c.elo[r] + t;
        Children e = children_of(in, X, Y, Z);
        if (is_special(in, e, X, Y, Z))
          out.special[X].push_back(special_of(in, e, X, Y, Z));
        else
          set_moments(e, n, out.moments.data() + 16 * c.eoff[r] + t);
      }
    }
  return out;
}

// Element matrices [element][576] of `coarse` from those of `fine`: matrix(x, y, z, element, k)
// gives one.
template <class Matrix>
std::vector<double> coarsen_elements(const Packing& fine, const Packing& coarse, Matrix&& matrix) {
  std::vector<double> out(576 * coarse.elements(), 0.0);
  for_elements(coarse, [&](int X, int Y, int Z, size_t e) {
    double child[576];
    for (int k = 0; k < 8; ++k) {
      int x = 2 * X + step_x(k), y = 2 * Y + step_y(k), z = 2 * Z + step_z(k), r = fine.row(x, y);
      if (z < fine.elo[r] || z >= fine.elo[r] + fine.elen[r]) continue;
      matrix(x, y, z, fine.eoff[r] + (z - fine.elo[r]), child);
      add_child(child, k, out.data() + 576 * e);
    }
  });
  return out;
}

}  // namespace
