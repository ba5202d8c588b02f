// The hierarchy of levels, and how it is built from the arrays of a system.
//
//     finest           applied from λ, μ, κ of its elements
//     first coarse     applied from the moments of its elements
//     below            applied as a stencil of 27 blocks a node
//     coarsest         factored (coarsest.h)
//
// Needs what it is made of: level.h, coarse_elements.h, smoother.h (block-Jacobi and its largest
// eigenvalue), transfer.h (links on coarse levels), bodies.h, coarsest.h.

#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "bodies.h"
#include "coarse_elements.h"
#include "coarsest.h"
#include "input.h"
#include "level.h"
#include "smoother.h"
#include "transfer.h"

namespace {

struct Hierarchy {
  std::vector<Level> level;  // all but the coarsest
  Packing coarsest;
  Direct direct;
  Bodies bodies;
  std::vector<Buffer> cb, cx;  // right-hand sides and solutions of the coarsest level
  std::string error;           // why it could not be built, or ""
  uint64_t key[2];             // of its content (kept.h)
};

// The diagonal blocks of the finest level [column][6][z], fixed unknowns without stiffness; they
// are listed in l.fixed.
std::vector<double> finest_diagonal(const Input& in, Level& l) {
  const Packing& p = l.p;
  const Finest<float>& f = l.finest;
  std::vector<double> diagonal(6 * p.nodes(), 0.0);
  for_elements(p, [&](int x, int y, int z, size_t e) {
    double lam = f.lam[e], mu = f.mu[e];
    if (mu == 0) return;
    for (int a = 0; a < 8; ++a) {
      int c = p.column(x + step_x(a), y + step_y(a)), n = p.len[c];
      double* d = diagonal.data() + 6 * p.off[c] + (z + step_z(a) - p.lo[c]);
      for (int i = 0; i < 6; ++i)
        d[(size_t)i * n] += lam * kDiagonal[0][a][i] + mu * kDiagonal[1][a][i];
    }
  });
  for (int x = 0; x <= p.nx; ++x)
    for (int y = 0; y <= p.ny; ++y) {
      int c = p.column(x, y), n = p.len[c];
      for (int z = 0; z < n; ++z) {
        double* d = diagonal.data() + 6 * p.off[c] + z;
        if (!f.kappa.empty())
          for (int i = 0; i < 3; ++i) d[(size_t)i * n] += f.kappa[p.off[c] + z];
        if (!in.fixed) continue;
        for (int i = 0; i < 3; ++i)
          if (in.is_fixed(x, y, p.lo[c] + z, i)) {
            l.fixed.push_back(3 * p.off[c] + (size_t)i * n + z);
            d[(size_t)i * n] = 0;
          }
      }
    }
  return diagonal;
}

// What the smoother needs, once a level can be applied.
void finish_level(Level& l, const std::vector<double>& diagonal) {
  invert_diagonal(l, diagonal);
  work_space(l, 1);
  largest_eigenvalue(l);
}

// A level's packing must be there.
void build_finest(const Input& in, Level& l) {
  l.kind = Kind::finest;
  fill_finest<float>(l.p, in.h, in.lam, in.mu, in.kappa, l.finest);
  l.links =
      link_rows(l.p, in.link_nodes, in.link_rows, in.link_node, in.link_weight, in.link_stiffness);
  finish_level(l, finest_diagonal(in, l));
}

void build_first_coarse(const FirstCoarse& one, Level& l) {
  const Packing& p = l.p;
  std::vector<double> diagonal(6 * p.nodes(), 0.0);
  l.kind = Kind::moments;
  for_elements(p, [&](int x, int y, int z, size_t) {
    double k[576];
    one.matrix(x, y, z, k);
    add_diagonal(p, x, y, z, k, diagonal);
  });
  l.moments = one.moments;
  l.special = one.special;
  finish_level(l, diagonal);
}

// From its element matrices [element][576].
void build_below(const std::vector<double>& elements, Level& l) {
  const Packing& p = l.p;
  std::vector<double> diagonal(6 * p.nodes(), 0.0);
  l.kind = Kind::stencil;
  l.stencil.assign(243 * p.nodes() + kPadding, 0.0f);
  for_elements(p, [&](int x, int y, int z, size_t e) {
    const double* k = elements.data() + 576 * e;
    add_diagonal(p, x, y, z, k, diagonal);
    for (int a = 0; a < 8; ++a) {
      int col = p.column(x + step_x(a), y + step_y(a)), n = p.len[col];
      float* s = l.stencil.data() + 243 * p.off[col] + (z + step_z(a) - p.lo[col]);
      for (int b = 0; b < 8; ++b) {
        int q = (step_x(b) - step_x(a) + 1) * 9 + (step_y(b) - step_y(a) + 1) * 3 +
                (step_z(b) - step_z(a) + 1);
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j)
            s[(size_t)(9 * q + 3 * i + j) * n] += (float)k[24 * (3 * a + i) + 3 * b + j];
      }
    }
  });
  finish_level(l, diagonal);
}

// Element matrices of the coarse level l ≥ 1 with packing `to`, from those of the level before
// with packing `from`. Level 1 has them in full only where it is the coarsest.
std::vector<double> elements_of(int l, const FirstCoarse& one, const Packing& from,
                                const std::vector<double>& elements, const Packing& to) {
  if (l == 1) {
    std::vector<double> out(576 * to.elements(), 0.0);
    for_elements(to,
                 [&](int x, int y, int z, size_t e) { one.matrix(x, y, z, out.data() + 576 * e); });
    return out;
  }
  if (l == 2)
    return coarsen_elements(
        from, to, [&](int x, int y, int z, size_t, double* k) { one.matrix(x, y, z, k); });
  return coarsen_elements(from, to, [&](int, int, int, size_t at, double* k) {
    std::memcpy(k, elements.data() + 576 * at, 576 * sizeof(double));
  });
}

// Builds every level. The error is "" or a reason.
void build(const Input& in, Hierarchy& h) {
  h.level.resize(in.levels);
  Level& first = h.level[0];
  first.p = packing_of(in.nx, in.ny, in.nz, in.mu);
  if (!first.p.elements()) {
    h.error = "there is no stiffness in the domain";
    return;
  }
  build_finest(in, first);
  make_bodies(first, in, h.bodies);
  FirstCoarse one = first_coarse(in, first.p);
  std::vector<double> elements;
  Packing packing = first.p;
  LinkRows links = first.links;
  for (int l = 1; l <= in.levels; ++l) {
    Packing next = packing.coarser();
    LinkRows coarse_links;
    coarsen_links(packing, links, next, coarse_links);
    if (l > 1 || l == in.levels) elements = elements_of(l, one, packing, elements, next);
    packing = next;
    links = coarse_links;
    if (l == in.levels) break;
    Level& level = h.level[l];
    level.p = packing;
    level.links = links;
    if (l == 1)
      build_first_coarse(one, level);
    else
      build_below(elements, level);
  }
  h.coarsest = packing;
  h.error = factor(packing, elements, links, h.direct);
}

}  // namespace
