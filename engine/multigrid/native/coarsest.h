// The coarsest level, solved exactly: its operator K = T + Wᵀ S W with the links W, S.
//
// T is block-tridiagonal by planes of nodes across the longest axis: diagonal blocks D_k, and B_k
// between planes k and k + 1. The factors are the inverses of its Schur complements,
//     S_0 = D_0,   S_k = D_k − B_{k−1}ᵀ S_{k−1}⁻¹ B_{k−1},
// and the links enter by Woodbury's formula,
//     K⁻¹ = T⁻¹ − Z C Zᵀ,   Z = T⁻¹ Wᵀ,   C = (1 + S W Z)⁻¹ S.
// Factored in double precision, kept and solved in single.
//
// Needs packing.h, links.h and dense.h (the inverse of a block). `factor` makes it, Direct::solve
// applies it.

#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "dense.h"
#include "links.h"
#include "packing.h"

namespace {

struct Direct {
  std::vector<std::vector<int>> plane;      // packed numbers of the unknowns in each plane
  std::vector<Buffer> inverse;              // S_k⁻¹ [m][m]
  std::vector<std::vector<int>> start, to;  // B_k, compressed rows: of plane k, to plane k + 1
  std::vector<Buffer> value;
  int rows = 0;    // of the links
  Buffer z, core;  // Zᵀ [rows][n] and C [rows][rows]

  // x = K⁻¹ r of every right-hand side; together, since reading the inverses is what it costs.
  void solve(size_t n, int batch, const std::vector<Buffer>& r, std::vector<Buffer>& x) const {
    size_t planes = plane.size();
    for (int b = 0; b < batch; ++b) std::fill_n(x[b].begin(), n, 0.0f);
    std::vector<std::vector<Buffer>> y(planes, std::vector<Buffer>(batch));
    std::vector<Buffer> right(batch), out(batch);
    for (size_t k = 0; k < planes; ++k) {
      size_t m = plane[k].size();
      for (int b = 0; b < batch; ++b) {
        right[b].resize(m);
        for (size_t i = 0; i < m; ++i) right[b][i] = r[b][plane[k][i]];
        if (k)
          for (size_t i = 0; i < plane[k - 1].size(); ++i)
            for (int e = start[k - 1][i]; e < start[k - 1][i + 1]; ++e)
              right[b][to[k - 1][e]] -= value[k - 1][e] * y[k - 1][b][i];
      }
      multiply(inverse[k], m, right, y[k]);
    }
    for (size_t k = planes; k-- > 0;) {
      size_t m = plane[k].size();
      if (k + 1 < planes && m) {
        for (int b = 0; b < batch; ++b) {
          right[b].resize(m);
          for (size_t i = 0; i < m; ++i) {
            float sum = 0;
            for (int e = start[k][i]; e < start[k][i + 1]; ++e)
              sum += value[k][e] * y[k + 1][b][to[k][e]];
            right[b][i] = sum;
          }
        }
        multiply(inverse[k], m, right, out);
        for (int b = 0; b < batch; ++b)
#pragma GCC ivdep
          for (size_t i = 0; i < m; ++i) y[k][b][i] -= out[b][i];
      }
      for (int b = 0; b < batch; ++b)
        for (size_t i = 0; i < m; ++i) x[b][plane[k][i]] = y[k][b][i];
    }
    if (rows) subtract_links(n, batch, r, x);
  }

  // x −= Z C Zᵀ r.
  void subtract_links(size_t n, int batch, const std::vector<Buffer>& r,
                      std::vector<Buffer>& x) const {
    for (int b = 0; b < batch; ++b) {
      std::vector<double> along(rows, 0.0), back(rows, 0.0);
      for (int m = 0; m < rows; ++m)
        for (size_t i = 0; i < n; ++i) along[m] += (double)z[m * n + i] * r[b][i];
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < rows; ++j) back[i] += core[i * rows + j] * along[j];
      for (int m = 0; m < rows; ++m)
#pragma GCC ivdep
        for (size_t i = 0; i < n; ++i) x[b][i] -= (float)back[m] * z[m * n + i];
    }
  }

  // y_b = A x_b for a matrix of m rows.
  static void multiply(const Buffer& a, int m, const std::vector<Buffer>& x,
                       std::vector<Buffer>& y) {
    int batch = x.size();
    for (Buffer& v : y) v.resize(m);
#pragma omp parallel for if (m > 256) schedule(static)
    for (int i = 0; i < m; ++i) {
      const float* row = a.data() + (size_t)i * m;
      for (int b = 0; b < batch; ++b) {
        const float* v = x[b].data();
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < m; ++j) sum += row[j] * v[j];
        y[b][i] = sum;
      }
    }
  }
};

// Of the largest diagonal entry: less than this is rounding of sums that cancel, no stiffness.
constexpr double kNoStiffness = 1e-14;
// Of a diagonal entry: a pivot under this is a motion that nothing holds. [M]
constexpr double kLeastPivot = 1e-7;

using SparseRow = std::vector<std::pair<int, double>>;  // (column, value)

// T by planes in double precision, while it is factored.
struct Planes {
  std::vector<int> plane_of, place;        // of an unknown: its plane and its number there, or −1
  std::vector<std::vector<double>> block;  // D_k [m][m]; emptied as the planes are factored
  std::vector<std::vector<SparseRow>> upper;  // B_k by rows
  std::vector<std::vector<double>> inverse;   // S_k⁻¹ [m][m]
};

// Calls f(unknowns [24], number) on every element in packed order.
template <class F>
void for_dofs(const Packing& p, F&& f) {
  size_t e = 0;
  for (int x = 0; x < p.nx; ++x)
    for (int y = 0; y < p.ny; ++y) {
      int r = p.row(x, y);
      for (int z = p.elo[r]; z < p.elo[r] + p.elen[r]; ++z, ++e) {
        size_t dof[24];
        for (int a = 0; a < 8; ++a)
          for (int c = 0; c < 3; ++c)
            dof[3 * a + c] = p.unknown(x + step_x(a), y + step_y(a), z + step_z(a), c);
        f(dof, e);
      }
    }
}

// Diagonal of T by unknown.
std::vector<double> stiffness_diagonal(const Packing& p, const std::vector<double>& elements) {
  std::vector<double> diagonal(p.unknowns(), 0.0);
  for_dofs(p, [&](const size_t* dof, size_t e) {
    for (int a = 0; a < 24; ++a) diagonal[dof[a]] += elements[576 * e + 25 * a];
  });
  return diagonal;
}

// Numbers the unknowns by planes across the longest axis; those without stiffness
// are left out.
void number(const Packing& p, const std::vector<double>& diagonal, double top, Direct& d,
            Planes& t) {
  int extent[3] = {p.nx + 1, p.ny + 1, p.nz + 1};
  int axis = extent[0] >= extent[1] && extent[0] >= extent[2] ? 0 : extent[1] >= extent[2] ? 1 : 2;
  t.plane_of.assign(p.unknowns(), -1), t.place.assign(p.unknowns(), -1);
  d.plane.assign(extent[axis], {});
  for (int x = 0; x <= p.nx; ++x)
    for (int y = 0; y <= p.ny; ++y) {
      int col = p.column(x, y);
      for (int z = p.lo[col]; z < p.lo[col] + p.len[col]; ++z)
        for (int c = 0; c < 3; ++c) {
          size_t u = p.unknown(x, y, z, c);
          if (diagonal[u] <= kNoStiffness * top) continue;
          int k = axis == 0 ? x : axis == 1 ? y : z;
          t.plane_of[u] = k;
          t.place[u] = d.plane[k].size();
          d.plane[k].push_back((int)u);
        }
    }
}

// Sums the element matrices [576 each] into D_k and B_k.
void assemble(const Packing& p, const std::vector<double>& elements, const Direct& d, Planes& t) {
  size_t planes = d.plane.size();
  t.block.resize(planes), t.upper.resize(planes);
  for (size_t k = 0; k < planes; ++k) {
    t.block[k].assign(d.plane[k].size() * d.plane[k].size(), 0.0);
    t.upper[k].resize(d.plane[k].size());
  }
  for_dofs(p, [&](const size_t* dof, size_t e) {
    for (int a = 0; a < 24; ++a)
      for (int b = 0; b < 24; ++b) {
        double v = elements[576 * e + 24 * a + b];
        int ka = t.plane_of[dof[a]], kb = t.plane_of[dof[b]];
        int row = t.place[dof[a]], column = t.place[dof[b]];
        if (v == 0 || ka < 0 || kb < 0) continue;
        if (ka == kb) {
          t.block[ka][(size_t)row * d.plane[ka].size() + column] += v;
        } else if (kb == ka + 1) {
          SparseRow& entries = t.upper[ka][row];
          auto it = std::find_if(entries.begin(), entries.end(),
                                 [&](auto& entry) { return entry.first == column; });
          if (it == entries.end())
            entries.push_back({column, v});
          else
            it->second += v;
        }
      }
  });
}

// s = D_k − Bᵀ S_{k−1}⁻¹ B in place of D_k [m][m], made symmetric; B and S_{k−1}⁻¹ [q][q] are those
// of the plane before.
void eliminate(const std::vector<SparseRow>& upper, const std::vector<double>& inverse, int m,
               std::vector<double>& s) {
  int q = upper.size();
  std::vector<double> c((size_t)q * m, 0.0);  // S_{k−1}⁻¹ B
#pragma omp parallel for schedule(dynamic, 8)
  for (int i = 0; i < q; ++i)
    for (int j = 0; j < q; ++j) {
      double f = inverse[(size_t)i * q + j];
      for (auto& [col, v] : upper[j]) c[(size_t)i * m + col] += f * v;
    }
  for (int j = 0; j < q; ++j)
    for (auto& [col, v] : upper[j])
#pragma GCC ivdep
      for (int t = 0; t < m; ++t) s[(size_t)col * m + t] -= v * c[(size_t)j * m + t];
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < i; ++j)
      s[(size_t)i * m + j] = s[(size_t)j * m + i] =
          0.5 * (s[(size_t)i * m + j] + s[(size_t)j * m + i]);
}

// The Schur complements' inverses; false when one is not positive definite.
bool factor_planes(Planes& t, Direct& d) {
  size_t planes = d.plane.size();
  d.inverse.resize(planes), d.start.resize(planes), d.to.resize(planes), d.value.resize(planes);
  t.inverse.resize(planes);
  for (size_t k = 0; k < planes; ++k) {
    int m = d.plane[k].size();
    std::vector<double>& s = t.block[k];
    std::vector<double> scale(m);
    for (int i = 0; i < m; ++i) scale[i] = s[(size_t)i * m + i];
    if (k && m && !d.plane[k - 1].empty()) eliminate(t.upper[k - 1], t.inverse[k - 1], m, s);
    if (m && invert(s, m, scale) < kLeastPivot) return false;
    d.inverse[k].assign(s.begin(), s.end());
    t.inverse[k].swap(s);
    d.start[k].assign(m + 1, 0);
    for (int i = 0; i < m; ++i) {
      for (auto& [col, v] : t.upper[k][i]) d.to[k].push_back(col), d.value[k].push_back((float)v);
      d.start[k][i + 1] = d.to[k].size();
    }
  }
  return true;
}

// z = T⁻¹ w in double precision on packed vectors.
void solve_exactly(const Direct& d, const Planes& t, const float* w, float* z) {
  size_t planes = d.plane.size();
  std::vector<std::vector<double>> y(planes);
  for (size_t k = 0; k < planes; ++k) {
    int s = d.plane[k].size();
    std::vector<double> right(s);
    for (int i = 0; i < s; ++i) right[i] = w[d.plane[k][i]];
    if (k)
      for (size_t i = 0; i < d.plane[k - 1].size(); ++i)
        for (auto& [col, v] : t.upper[k - 1][i]) right[col] -= v * y[k - 1][i];
    y[k].assign(s, 0.0);
    for (int i = 0; i < s; ++i)
      for (int j = 0; j < s; ++j) y[k][i] += t.inverse[k][(size_t)i * s + j] * right[j];
  }
  for (size_t k = planes; k-- > 0;) {
    int s = d.plane[k].size();
    if (k + 1 < planes) {
      std::vector<double> right(s, 0.0);
      for (int i = 0; i < s; ++i)
        for (auto& [col, v] : t.upper[k][i]) right[i] += v * y[k + 1][col];
      for (int i = 0; i < s; ++i)
        for (int j = 0; j < s; ++j) y[k][i] -= t.inverse[k][(size_t)i * s + j] * right[j];
    }
    for (int i = 0; i < s; ++i) z[d.plane[k][i]] = (float)y[k][i];
  }
}

// C = (1 + S W Z)⁻¹ S of q rows, symmetric, by Gauss-Jordan elimination with pivoting; W and Zᵀ are
// [q][n], S [q][q].
Buffer woodbury_core(const Buffer& w, const Buffer& z, const std::vector<double>& stiffness, int q,
                     size_t n) {
  std::vector<double> wz((size_t)q * q, 0.0), a((size_t)q * q, 0.0), c(stiffness);
  for (int i = 0; i < q; ++i)
    for (int j = 0; j < q; ++j)
      for (size_t t = 0; t < n; ++t) wz[i * q + j] += (double)w[i * n + t] * z[j * n + t];
  for (int i = 0; i < q; ++i)
    for (int j = 0; j < q; ++j) {
      a[i * q + j] = i == j;
      for (int t = 0; t < q; ++t) a[i * q + j] += stiffness[i * q + t] * wz[t * q + j];
    }
  for (int k = 0; k < q; ++k) {
    int best = k;
    for (int i = k + 1; i < q; ++i)
      if (std::abs(a[i * q + k]) > std::abs(a[best * q + k])) best = i;
    for (int j = 0; j < q; ++j)
      std::swap(a[k * q + j], a[best * q + j]), std::swap(c[k * q + j], c[best * q + j]);
    for (int i = 0; i < q; ++i) {
      if (i == k) continue;
      double f = a[i * q + k] / a[k * q + k];
      for (int j = 0; j < q; ++j)
        a[i * q + j] -= f * a[k * q + j], c[i * q + j] -= f * c[k * q + j];
    }
  }
  Buffer core((size_t)q * q, 0.0f);
  for (int i = 0; i < q; ++i)
    for (int j = 0; j < q; ++j)
      core[i * q + j] = (float)(0.5 * (c[i * q + j] / a[i * q + i] + c[j * q + i] / a[j * q + j]));
  return core;
}

// Factors the coarsest operator from its element matrices [element][576] and links. Returns an
// error or "".
std::string factor(const Packing& p, const std::vector<double>& elements, const LinkRows& links,
                   Direct& d) {
  std::vector<double> diagonal = stiffness_diagonal(p, elements);
  double top = *std::max_element(diagonal.begin(), diagonal.end());
  if (!(top > 0) || !std::isfinite(top)) return "there is no stiffness in the domain";
  Planes t;
  number(p, diagonal, top, d, t);
  assemble(p, elements, d, t);
  if (!factor_planes(t, d)) return "not held";
  d.rows = 0;
  if (!links.rows) return "";
  int q = links.rows;
  size_t n = p.unknowns();
  Buffer w((size_t)q * n, 0.0f), z((size_t)q * n, 0.0f);
  links.each([&](size_t i, int e, int m) {
    for (int c = 0; c < 3; ++c)
      w[m * n + links.at[i] + (size_t)c * links.stride[i]] = (float)links.weight[3 * e + c];
  });
  for (int m = 0; m < q; ++m) solve_exactly(d, t, w.data() + m * n, z.data() + m * n);
  d.core = woodbury_core(w, z, links.stiffness, q, n);
  d.rows = q;
  d.z = std::move(z);
  return "";
}

}  // namespace
