// Stiff bodies: the six rigid motions W of each, and the coarse space that they span,
//     Q = W (Wᵀ K W)⁻¹ Wᵀ,
// with which the cycle is balanced (cycle.h). A motion is three translations, then three rotations
// about the body's centre with lengths in units of `scale`.
//
// Needs input.h, level.h, operators.h (K W) and dense.h (the pseudo-inverse).

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "dense.h"
#include "input.h"
#include "level.h"
#include "operators.h"

namespace {

// Of a motion's largest force: nodes with less in all motions carry none.
constexpr double kNoForce = 1e-10;

struct Bodies {
  int count = 0;
  double scale = 1, h = 1;
  std::vector<std::array<double, 3>> centre;
  std::vector<uint8_t> label;  // of packed nodes: number of the body, 0 for none
  struct Force {
    std::vector<size_t> at;
    std::vector<int> stride;
    std::vector<float> value;  // [node][6][3]
  };
  std::vector<Force> force;     // K W of each body where it does not vanish
  std::vector<double> inverse;  // (Wᵀ K W)⁻¹
  int size() const { return 6 * count; }
};

// Calls f(unknown of the first component, stride to the next, plane, x, y, z, body) on every node
// of a body; x, y, z from its centre in units of `scale`, bodies from 0.
template <class F>
void for_bodies(const Packing& p, const Bodies& b, F&& f) {
#pragma omp parallel for schedule(static)
  for (int x = 0; x <= p.nx; ++x)
    for (int y = 0; y <= p.ny; ++y) {
      int c = p.column(x, y), n = p.len[c];
      for (int z = 0; z < n; ++z) {
        int k = b.label[p.off[c] + z];
        if (!k) continue;
        const auto& m = b.centre[k - 1];
        f(3 * p.off[c] + z, n, x, (b.h * x - m[0]) / b.scale, (b.h * y - m[1]) / b.scale,
          (b.h * (p.lo[c] + z) - m[2]) / b.scale, k - 1);
      }
    }
}

// Wᵀ f of all bodies, summed by planes.
template <class T>
std::vector<double> pull_motions(const Packing& p, const Bodies& b, const T* f) {
  std::vector<std::vector<double>> part(p.nx + 1, std::vector<double>(b.size(), 0.0));
  for_bodies(p, b, [&](size_t at, int n, int plane, double x, double y, double z, int body) {
    double f0 = f[at], f1 = f[at + n], f2 = f[at + 2 * (size_t)n];
    double* q = part[plane].data() + 6 * body;
    q[0] += f0, q[1] += f1, q[2] += f2, q[3] += y * f2 - z * f1, q[4] += z * f0 - x * f2,
        q[5] += x * f1 - y * f0;
  });
  std::vector<double> sum(b.size(), 0.0);
  for (auto& q : part)
    for (int i = 0; i < b.size(); ++i) sum[i] += q[i];
  return sum;
}

// v += W t.
template <class T>
void push_motions(const Packing& p, const Bodies& b, const std::vector<double>& t, T* v) {
  for_bodies(p, b, [&](size_t at, int n, int, double x, double y, double z, int body) {
    const double* q = t.data() + 6 * body;
    v[at] += (T)(q[0] + q[4] * z - q[5] * y);
    v[at + n] += (T)(q[1] + q[5] * x - q[3] * z);
    v[at + 2 * (size_t)n] += (T)(q[2] + q[3] * y - q[4] * x);
  });
}

// Labels, number and centres of the bodies.
void place_bodies(const Packing& p, const Input& in, Bodies& b) {
  b.h = in.h;
  b.label.assign(p.nodes(), 0);
  size_t line = p.nz + 1;
  for (int c = 0; c < (int)p.len.size(); ++c)
    for (int z = 0; z < p.len[c]; ++z) {
      b.label[p.off[c] + z] = in.label[c * line + p.lo[c] + z];
      b.count = std::max<int>(b.count, b.label[p.off[c] + z]);
    }
  if (!b.count) return;
  b.scale = 0.5 * in.h * std::max({p.nx, p.ny, p.nz});
  b.centre.assign(b.count, {0, 0, 0});
  std::vector<double> number(b.count, 0);
  for (int x = 0; x <= p.nx; ++x)
    for (int y = 0; y <= p.ny; ++y) {
      int c = p.column(x, y);
      for (int z = 0; z < p.len[c]; ++z)
        if (int k = b.label[p.off[c] + z]) {
          number[k - 1] += 1;
          double at[3] = {b.h * x, b.h * y, b.h * (p.lo[c] + z)};
          for (int i = 0; i < 3; ++i) b.centre[k - 1][i] += at[i];
        }
    }
  for (int k = 0; k < b.count; ++k)
    for (int i = 0; i < 3; ++i) b.centre[k][i] /= std::max(number[k], 1.0);
}

using Forces = std::vector<std::vector<double>>;  // [6][unknowns]

// K W of body k.
Forces forces_of_body(const Level& l, const Finest<double>& exact, const Bodies& b, int k) {
  const Packing& p = l.p;
  Forces force(6);
  for (int m = 0; m < 6; ++m) {
    std::vector<double> v(p.unknowns() + kPadding, 0.0);
    force[m].assign(p.unknowns() + kPadding, 0.0);
    std::vector<double> unit(b.size(), 0.0);
    unit[6 * k + m] = 1;
    push_motions(p, b, unit, v.data());
    for (size_t i : l.fixed) v[i] = 0;
    sweep_finest<double>(p, exact, l.links, v.data(),
                         [&](size_t first, size_t count, const double* w) {
                           std::memcpy(force[m].data() + first, w, count * sizeof(double));
                         });
    for (size_t i : l.fixed) force[m][i] = 0;
  }
  return force;
}

// The nodes on which K W does not vanish, in single precision.
Bodies::Force sparse_force(const Packing& p, const Forces& force) {
  Bodies::Force out;
  std::vector<double> limit(6, 0);
  for (int m = 0; m < 6; ++m)
    for (double f : force[m]) limit[m] = std::max(limit[m], kNoForce * std::abs(f));
  for (int c = 0; c < (int)p.len.size(); ++c)
    for (int z = 0; z < p.len[c]; ++z) {
      size_t at = 3 * p.off[c] + z;
      bool any = false;
      for (int m = 0; m < 6; ++m)
        for (int i = 0; i < 3; ++i) any |= std::abs(force[m][at + (size_t)i * p.len[c]]) > limit[m];
      if (!any) continue;
      out.at.push_back(at);
      out.stride.push_back(p.len[c]);
      for (int m = 0; m < 6; ++m)
        for (int i = 0; i < 3; ++i) out.value.push_back((float)force[m][at + (size_t)i * p.len[c]]);
    }
  return out;
}

// The coarse space of the bodies that `in` labels; in double precision, on a medium widened from
// single (rigid motions of stiff bodies cancel in K W).
void make_bodies(const Level& finest, const Input& in, Bodies& b) {
  const Packing& p = finest.p;
  if (!in.label) return;
  place_bodies(p, in, b);
  if (!b.count) return;
  Finest<double> exact;
  fill_finest<double>(p, in.h, in.lam, in.mu, in.kappa, exact);
  int rows = b.size();
  std::vector<double> gram((size_t)rows * rows, 0.0);
  b.force.resize(b.count);
  for (int k = 0; k < b.count; ++k) {
    Forces force = forces_of_body(finest, exact, b, k);
    b.force[k] = sparse_force(p, force);
    for (int m = 0; m < 6; ++m) {  // columns Wᵀ (K W_k)
      std::vector<double> sum = pull_motions(p, b, force[m].data());
      for (int i = 0; i < rows; ++i) gram[(size_t)i * rows + 6 * k + m] = sum[i];
    }
  }
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < i; ++j)
      gram[i * rows + j] = gram[j * rows + i] = 0.5 * (gram[i * rows + j] + gram[j * rows + i]);
  b.inverse = pseudo_inverse(gram, rows);
}

}  // namespace
