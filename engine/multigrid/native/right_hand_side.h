// One right-hand side of the block iteration, packed, and its way from and to dense arrays
// [3][nodes]. Needs level.h.

#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "level.h"
#include "packing.h"

namespace {

// Of a load's squared norm: less than this on nodes without material is rounding.
constexpr double kNoLoad = 1e-12;

struct Result {
  int iterations = 0;
  double residual = 0;  // relative, of the solution itself
  bool stalled = false;
};

struct Column {
  std::vector<double> x, r;             // solution and residual
  double lost = 0;                      // squared norm of the load on nodes that hold no material
  double norm = 0, size = 0, best = 0;  // of the load; of the residual now and at its best
  int since = 0;                        // iterations since the best
  Result out;
};

// The load, packed, nothing on fixed unknowns.
void pack_load(const Level& l, const double* load, double* r) {
  pack(l.p, load, r);
  for (size_t f : l.fixed) r[f] = 0;
}

Column column_of(const Level& l, const double* load, const double* start) {
  const Packing& p = l.p;
  size_t dense = 3 * (size_t)(p.nx + 1) * (p.ny + 1) * (p.nz + 1);
  Column c;
  for (auto* v : {&c.x, &c.r}) v->assign(p.unknowns() + kPadding, 0.0);
  pack_load(l, load, c.r.data());
  pack(p, start, c.x.data());
  for (size_t f : l.fixed) c.x[f] = 0;
  double all = 0, held = 0;
  for (size_t j = 0; j < dense; ++j) all += load[j] * load[j];
  for (size_t j = 0; j < p.unknowns(); ++j) held += c.r[j] * c.r[j];
  c.lost = all - held > kNoLoad * all || !std::isfinite(all) ? all - held : 0;
  if (!l.fixed.empty())
    c.lost = std::isfinite(all) ? 0 : all;  // loads on fixed unknowns go into the support
  return c;
}

// The solution, dense. Nodes inside a run that no material touches carry what interpolation put
// there; they have no displacement.
void unpack_solution(const Level& l, Column& k, double* dense) {
  const Packing& p = l.p;
  for (int c = 0; c < (int)p.len.size(); ++c) {
    const float* d = l.inverse.data() + 6 * p.off[c];
    for (int z = 0, n = p.len[c]; z < n; ++z)
      for (int q = 0; q < 3; ++q)
        if (d[q * n + z] == 0) k.x[3 * p.off[c] + (size_t)q * n + z] = 0;
  }
  unpack(p, k.x.data(), dense);
}

}  // namespace
