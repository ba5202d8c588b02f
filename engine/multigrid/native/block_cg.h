// Block conjugate gradients (O'Leary 1980) in double precision: all right-hand sides search the
// space of all of them.
//     Z = M Q,   P ← Z − P G⁺ (KP)ᵀ Z,   G = Pᵀ K P,   X ← X + P G⁺ Pᵀ R,   R ← R − KP G⁺ Pᵀ R
// Q is an orthonormal basis of the residuals (Dubrulle 2001): they grow alike, and in the single
// precision of M their differences would be lost. One that has converged leaves the block.
//
// Needs cycle.h (M), operators.h (K in double precision), dense.h (the small matrices) and
// right_hand_side.h.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cycle.h"
#include "dense.h"
#include "operators.h"
#include "packing.h"
#include "right_hand_side.h"

namespace {

// A residual under this part of the best one is progress; engine.multigrid.krylov has the same.
constexpr double kProgress = 0.98;

struct Limits {
  double tolerance;  // on ‖b − K x‖/‖b‖
  int iterations;
  int stall;  // iterations without progress
};

// P, K P and G⁺ of the last iteration.
struct Directions {
  int count = 0;
  std::vector<std::vector<double>> direction, force;
  std::vector<double> inverse;
};

// out[i][j] = Σ_n a_i[n] b_j[n], summed by planes so that it does not depend on the threads'
// timing.
template <class A, class B>
std::vector<double> products(const Packing& p, const std::vector<const A*>& a,
                             const std::vector<const B*>& b) {
  size_t rows = a.size(), columns = b.size();
  std::vector<double> part((size_t)(p.nx + 1) * rows * columns, 0.0), out(rows * columns, 0.0);
  for_planes(p, [&](size_t first, size_t count, int x) {
    constexpr size_t kBlock = 512;  // stays in cache while every pair is multiplied
    double* sum = part.data() + (size_t)x * rows * columns;
    for (size_t n = first; n < first + count; n += kBlock) {
      size_t end = std::min(n + kBlock, first + count);
      for (size_t i = 0; i < rows; ++i)
        for (size_t j = 0; j < columns; ++j) {
          double t = 0;
          const A* u = a[i];
          const B* v = b[j];
#pragma omp simd reduction(+ : t)
          for (size_t m = n; m < end; ++m) t += (double)u[m] * (double)v[m];
          sum[i * columns + j] += t;
        }
    }
  });
  for (int x = 0; x <= p.nx; ++x)
#pragma GCC ivdep
    for (size_t i = 0; i < rows * columns; ++i) out[i] += part[(size_t)x * rows * columns + i];
  return out;
}

// to_j = base(j, ·) + Σ_i f_ij from_i; `to` may be among `from`.
template <class Base>
void combine(const Packing& p, const std::vector<double>& f, const std::vector<double*>& from,
             const std::vector<double*>& to, Base&& base) {
  int rows = from.size(), columns = to.size();
  constexpr size_t kBlock = 256;
  for_planes(p, [&](size_t first, size_t count, int) {
    std::vector<double> sum((size_t)columns * kBlock);
    for (size_t n = first; n < first + count; n += kBlock) {
      size_t m = std::min(kBlock, first + count - n);
      for (int j = 0; j < columns; ++j) {
        double* t = sum.data() + (size_t)j * kBlock;
#pragma GCC ivdep
        for (size_t i = 0; i < m; ++i) t[i] = base(j, n + i);
        for (int k = 0; k < rows; ++k) {
          double w = f[k * columns + j];
          const double* u = from[k] + n;
#pragma GCC ivdep
          for (size_t i = 0; i < m; ++i) t[i] += w * u[i];
        }
      }
      for (int j = 0; j < columns; ++j)
        std::memcpy(to[j] + n, sum.data() + (size_t)j * kBlock, m * sizeof(double));
    }
  });
}

double length(const Packing& p, const Column& c) {
  return std::sqrt(c.lost + products<double, double>(p, {c.r.data()}, {c.r.data()})[0]);
}

// r = r − K x, and its norm.
double subtract(const Level& v, const Finest<double>& op, Column& c) {
  sweep_finest<double>(v.p, op, v.links, c.x.data(),
                       [&](size_t first, size_t count, const double* w) {
#pragma GCC ivdep
                         for (size_t i = 0; i < count; ++i) c.r[first + i] -= w[i];
                       });
  for (size_t i : v.fixed) c.r[i] = 0;
  return length(v.p, c);
}

// First residuals and norms; the columns that have to be solved.
template <class Load>
std::vector<int> begin(const Level& v, const Finest<double>& op, double tolerance, Load&& load,
                       std::vector<Column>& columns) {
  std::vector<int> active;
  for (int k = 0; k < (int)columns.size(); ++k) {
    Column& c = columns[k];
    load(k, c.r.data());
    c.norm = length(v.p, c);
    if (c.norm == 0) std::fill(c.x.begin(), c.x.end(), 0.0);  // a warm start of nothing
    c.size = c.best = subtract(v, op, c);
    if (std::isfinite(c.size) && c.size > tolerance * c.norm) active.push_back(k);
  }
  return active;
}

std::vector<double*> first_of(std::vector<std::vector<double>>& block, int n) {
  std::vector<double*> out;
  for (int i = 0; i < n; ++i) out.push_back(block[i].data());
  return out;
}

std::vector<const double*> fixed(const std::vector<double*>& block) {
  return std::vector<const double*>(block.begin(), block.end());
}

// work[j].b = Q = R T in single precision, T [n][m].
void write_basis(Level& v, const std::vector<double>& basis, const std::vector<double*>& r, int m) {
  int n = r.size();
  for_planes(v.p, [&](size_t first, size_t count, int) {
    for (int j = 0; j < m; ++j) {
      float* b = v.work[j].b.data();
      for (size_t i = first; i < first + count; ++i) {
        double sum = 0;
        for (int k = 0; k < n; ++k) sum += basis[k * m + j] * r[k][i];
        b[i] = (float)sum;
      }
    }
  });
}

// The next m directions from Z = work[j].x: P, K P and G⁺.
void turn(const Level& v, const Finest<double>& op, int m, Directions& s) {
  const Packing& p = v.p;
  std::vector<const float*> z(m);
  for (int j = 0; j < m; ++j) z[j] = v.work[j].x.data();
  std::vector<double> beta;
  if (s.count)
    beta = times(s.inverse, products<double, float>(p, fixed(first_of(s.force, s.count)), z),
                 s.count, s.count, m);
  for (double& b : beta) b = -b;
  std::vector<double*> d = first_of(s.direction, m), f = first_of(s.force, m);
  combine(p, beta, first_of(s.direction, s.count), d, [&](int j, size_t i) { return z[j][i]; });
  for (int j = 0; j < m; ++j) {
    sweep_finest<double>(p, op, v.links, d[j], [&](size_t first, size_t count, const double* w) {
      std::memcpy(f[j] + first, w, count * sizeof(double));
    });
    for (size_t i : v.fixed) f[j][i] = 0;
  }
  std::vector<double> gram = products<double, double>(p, fixed(d), fixed(f));
  std::vector<double> scale = unit_diagonal(gram, m);
  s.inverse = pseudo_inverse(gram, m);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < m; ++j) s.inverse[i * m + j] *= scale[i] * scale[j];
  s.count = m;
}

// X and R along the directions.
void advance(const Packing& p, Directions& s, const std::vector<double*>& x,
             const std::vector<double*>& r) {
  int m = s.count, n = r.size();
  std::vector<double*> d = first_of(s.direction, m), f = first_of(s.force, m);
  std::vector<double> alpha =
      times(s.inverse, products<double, double>(p, fixed(d), fixed(r)), m, m, n);
  combine(p, alpha, d, x, [&](int j, size_t i) { return x[j][i]; });
  for (double& a : alpha) a = -a;
  combine(p, alpha, f, r, [&](int j, size_t i) { return r[j][i]; });
}

// Notes how far a column has come after so many iterations; whether it stays in the block.
bool goes_on(const Packing& p, Limits limits, int iterations, Column& c) {
  c.size = length(p, c);
  c.out.iterations = iterations;
  if (c.size < kProgress * c.best)
    c.best = c.size, c.since = 0;
  else
    ++c.since;
  c.out.stalled = c.since >= limits.stall;
  return std::isfinite(c.size) && c.size > limits.tolerance * c.norm && !c.out.stalled;
}

// Solves K x = b for all columns from their x; `load(k, r)` gives right-hand side k, packed.
template <class Load>
void block_conjugate_gradients(Hierarchy& h, const Finest<double>& op, Limits limits,
                               CycleSettings settings, Load&& load, std::vector<Column>& columns) {
  Level& v = h.level[0];
  const Packing& p = v.p;
  std::vector<int> active = begin(v, op, limits.tolerance, load, columns);
  Directions s;
  for (auto* block : {&s.direction, &s.force}) {
    block->resize(active.size());
    for (auto& d : *block) d.assign(p.unknowns() + kPadding, 0.0);
  }
  for (int iteration = 0; !active.empty() && iteration < limits.iterations; ++iteration) {
    int n = active.size(), m;
    std::vector<double*> r, x;
    for (int k : active) r.push_back(columns[k].r.data()), x.push_back(columns[k].x.data());
    std::vector<double> basis = orthonormal(products<double, double>(p, fixed(r), fixed(r)), n, &m);
    if (!m) {  // what is left lies on nodes without material
      for (int k : active) columns[k].out.stalled = true;
      break;
    }
    work_space(v, m);
    write_basis(v, basis, r, m);
    precondition(h, m, settings);
    turn(v, op, m, s);
    advance(p, s, x, r);
    std::vector<int> going;
    for (int k : active)
      if (goes_on(p, limits, iteration + 1, columns[k])) going.push_back(k);
    active.swap(going);
  }
  for (int k = 0; k < (int)columns.size(); ++k) {  // the true residual
    Column& c = columns[k];
    load(k, c.r.data());
    c.out.residual = subtract(v, op, c) / (c.norm > 0 ? c.norm : 1);
  }
}

}  // namespace
