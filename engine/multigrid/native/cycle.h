// The preconditioner: one multigrid cycle M, balanced with the coarse space Q of the stiff bodies
// (Mandel 1993; "BNN" of Tang et al. 2009, table 1),
//     P = Q + (I − Q K) M (I − K Q).
//
// Needs hierarchy.h, which brings the smoother, the transfer, the direct solve and the bodies.

#pragma once

#include <vector>

#include "hierarchy.h"

namespace {

struct CycleSettings {
  Smoother smoother;
  size_t repeat_from;  // levels from here on are visited twice (W-cycle)
};

// x = M b of the first right-hand sides on level l (b and x are the level's own work space), or a
// further cycle from x.
void cycle(Hierarchy& h, size_t l, int batch, CycleSettings s, bool from_x) {
  Level& v = h.level[l];
  bool last = l + 1 == h.level.size();
  const Packing& coarse = last ? h.coarsest : h.level[l + 1].p;
  for (int k = 0; k < batch; ++k) {
    Work& w = v.work[k];
    chebyshev(v, w, s.smoother, from_x);
    sweep(v, w.d.data(), [&](size_t first, size_t count, const float* kd) {
#pragma GCC ivdep
      for (size_t i = 0; i < count; ++i) w.r[first + i] -= kd[i];
    });
    if (l == 0) zero(v.fixed, w.r.data());
    restrict_to(v.p, coarse, w.r.data(), last ? h.cb[k].data() : h.level[l + 1].work[k].b.data());
  }
  if (last) {
    h.direct.solve(coarse.unknowns(), batch, h.cb, h.cx);
  } else {
    cycle(h, l + 1, batch, s, false);
    if (l + 1 >= s.repeat_from) cycle(h, l + 1, batch, s, true);
  }
  for (int k = 0; k < batch; ++k) {
    Work& w = v.work[k];
    prolong_add(coarse, v.p, last ? h.cx[k].data() : h.level[l + 1].work[k].x.data(), w.x.data());
    if (l == 0) zero(v.fixed, w.x.data());
    chebyshev(v, w, s.smoother, true);
  }
}

// y = (Wᵀ K W)⁻¹ x.
std::vector<double> scaled(const Bodies& b, const std::vector<double>& x) {
  int rows = b.size();
  std::vector<double> out(rows, 0.0);
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < rows; ++j) out[i] += b.inverse[i * rows + j] * x[j];
  return out;
}

// r −= K W t.
void subtract_forces(const Bodies& b, const std::vector<double>& t, Buffer& r) {
  for (int k = 0; k < b.count; ++k) {
    const Bodies::Force& f = b.force[k];
    for (size_t n = 0; n < f.at.size(); ++n)
      for (int m = 0; m < 6; ++m)
        for (int c = 0; c < 3; ++c)
          r[f.at[n] + c * f.stride[n]] -= (float)(t[6 * k + m] * f.value[(6 * n + m) * 3 + c]);
  }
}

// (K W)ᵀ x.
std::vector<double> along_forces(const Bodies& b, const Buffer& x) {
  std::vector<double> sum(b.size(), 0.0);
  for (int k = 0; k < b.count; ++k) {
    const Bodies::Force& f = b.force[k];
    for (size_t n = 0; n < f.at.size(); ++n)
      for (int m = 0; m < 6; ++m)
        for (int c = 0; c < 3; ++c)
          sum[6 * k + m] += (double)f.value[(6 * n + m) * 3 + c] * x[f.at[n] + c * f.stride[n]];
  }
  return sum;
}

// work[k].x = P work[k].b on the finest level for the first right-hand sides.
void precondition(Hierarchy& h, int batch, CycleSettings s) {
  Bodies& b = h.bodies;
  Level& v = h.level[0];
  for (Level& l : h.level) work_space(l, batch);
  h.cb.resize(batch), h.cx.resize(batch);
  for (int k = 0; k < batch; ++k)
    for (Buffer* c : {&h.cb[k], &h.cx[k]}) c->resize(h.coarsest.unknowns() + kPadding, 0.0f);
  if (!b.count) return cycle(h, 0, batch, s, false);
  std::vector<std::vector<double>> along(batch);
  for (int q = 0; q < batch; ++q) {
    Work& w = v.work[q];
    along[q] = scaled(b, pull_motions(v.p, b, w.b.data()));
    subtract_forces(b, along[q], w.b);
  }
  cycle(h, 0, batch, s, false);
  for (int q = 0; q < batch; ++q) {
    Work& w = v.work[q];
    std::vector<double> second = scaled(b, along_forces(b, w.x));
    for (int i = 0; i < b.size(); ++i) along[q][i] -= second[i];
    push_motions(v.p, b, along[q], w.x.data());
    zero(v.fixed, w.x.data());
  }
}

}  // namespace
