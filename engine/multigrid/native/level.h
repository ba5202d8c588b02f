// A level of the hierarchy: what it stores for its operator, its smoother and the vectors of a
// cycle. The three kinds of operators are applied in operators.h and built in hierarchy.h.
//
// Needs packing.h and links.h.

#pragma once

#include <algorithm>
#include <vector>

#include "links.h"
#include "packing.h"

namespace {

// Elements of the first coarse level with supports or fixed unknowns in them: their matrices in
// full.
struct Special {
  int x, y, z;
  std::vector<float> k;
};

// The operator of the finest level in one precision: λ h, μ h of the elements; κ h³/8 summed at the
// nodes, empty where there is none.
template <class T>
struct Finest {
  std::vector<T> lam, mu, kappa;
};

// Vectors of a cycle: right-hand side, solution, residual, the smoother's direction and its next.
struct Work {
  Buffer b, x, r, d, e;
};

enum class Kind { finest, moments, stencil };

struct Level {
  Packing p;
  Kind kind = Kind::stencil;
  Finest<float> finest;
  Buffer moments;                             // [element][16] as [row][16][z]
  std::vector<std::vector<Special>> special;  // by element plane x
  Buffer stencil;                             // [column][27][9][z]
  Buffer inverse;                             // D⁻¹ [column][6][z]: xx yy zz xy xz yz
  float eigenvalue = 1;                       // largest of D⁻¹ K
  LinkRows links;
  std::vector<size_t> fixed;  // unknowns held at zero (finest level)
  std::vector<Work> work;     // one for each right-hand side
};

// From dense moduli [nx][ny][nz] and the spacing h.
template <class T, class S>
void fill_finest(const Packing& p, double h, const S* lam, const S* mu, const S* kappa,
                 Finest<T>& f) {
  f.lam.assign(p.elements() + kPadding, T(0));
  f.mu.assign(p.elements() + kPadding, T(0));
  pack_elements<T>(p, lam, (T)h, f.lam.data());
  pack_elements<T>(p, mu, (T)h, f.mu.data());
  bool any = false;
#pragma omp parallel for reduction(| : any)
  for (int r = 0; r < p.nx * p.ny; ++r)
    for (int z = 0; z < p.elen[r]; ++z) any |= kappa[(size_t)r * p.nz + p.elo[r] + z] != 0;
  f.kappa.clear();
  if (!any) return;
  f.kappa.assign(p.nodes() + kPadding, T(0));
  T weight = (T)(h * h * h / 8);
  for (int x = 0; x < p.nx; ++x)
    for (int y = 0; y < p.ny; ++y) {
      int r = p.row(x, y);
      for (int z = 0; z < p.elen[r]; ++z) {
        T k = (T)kappa[(size_t)r * p.nz + p.elo[r] + z] * weight;
        if (k == 0) continue;
        for (int i = 0; i < 2; ++i)
          for (int j = 0; j < 2; ++j) {
            int c = p.column(x + i, y + j);
            T* at = f.kappa.data() + p.off[c] + (p.elo[r] + z - p.lo[c]);
            at[0] += k, at[1] += k;
          }
      }
    }
}

// Room for so many right-hand sides.
void work_space(Level& l, size_t batch) {
  while (l.work.size() < batch) {
    Work w;
    for (Buffer* v : {&w.b, &w.x, &w.r, &w.d, &w.e}) v->assign(l.p.unknowns() + kPadding, 0.0f);
    l.work.push_back(std::move(w));
  }
}

}  // namespace
