// The operators of the levels: sweeps that give K v plane by plane to a sink(first unknown, count,
// w).
//
// Needs level.h and rows.h.

#pragma once

#include <algorithm>
#include <cstddef>

#include "level.h"
#include "rows.h"

namespace {

template <class T, class Sink>
void sweep_finest(const Packing& p, const Finest<T>& f, const LinkRows& links, const T* v,
                  Sink&& sink) {
  auto done = linked(links, v, sink);
  auto row = [&](int, int, int r, int n, const T* const* in, T* g, int cap) {
    const T *mu = f.mu.data() + p.eoff[r], *lam = f.lam.data() + p.eoff[r];
    row_forces<T>(n, in, g, cap, [&](int z, const Vec<T>* m, Vec<T>* out) {
      modes0<T>(m, load(mu + z), load(lam + z), out);
    });
  };
  sweep_rows<T>(p, v, row, [&](int x, size_t first, size_t count, T* w) {
    if (!f.kappa.empty())
      for (int y = 0; y <= p.ny; ++y) {
        int c = p.column(x, y), n = p.len[c];
        const T* kappa = f.kappa.data() + p.off[c];
        for (int k = 0; k < 3; ++k) {
          size_t at = 3 * p.off[c] + (size_t)k * n;
#pragma GCC ivdep
          for (int z = 0; z < n; ++z) w[at - first + z] += kappa[z] * v[at + z];
        }
      }
    done(first, count, w);
  });
}

template <class Sink>
void sweep_moments(const Level& l, const float* v, Sink&& sink) {
  const Packing& p = l.p;
  auto done = linked(l.links, v, sink);
  auto row = [&](int x, int y, int r, int n, const float* const* in, float* g, int cap) {
    const float* w = l.moments.data() + 16 * p.eoff[r];
    row_forces<float>(n, in, g, cap, [&](int z, const Vec<float>* m, Vec<float>* out) {
      Vec<float> field[16];
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) field[k] = load(w + (size_t)k * n + z);
      modes1<float>(m, field, out);
    });
    for (const Special& s : l.special[x]) {
      if (s.y != y) continue;
      int z = s.z - p.elo[r];
      float u[24], f[24];
      for (int c = 0; c < 4; ++c)
        for (int k = 0; k < 2; ++k)
          for (int d = 0; d < 3; ++d) u[(2 * c + k) * 3 + d] = in[3 * c + d][z + k];
      for (int i = 0; i < 24; ++i) {
        float sum = 0;
        for (int j = 0; j < 24; ++j) sum += s.k[24 * i + j] * u[j];
        f[i] = sum;
      }
      for (int c = 0; c < 4; ++c)
        for (int d = 0; d < 3; ++d) {  // low = even − odd, high = even + odd
          float low = f[(2 * c) * 3 + d], high = f[(2 * c + 1) * 3 + d];
          g[(size_t)(3 * c + d) * cap + z] += 0.5f * (low + high);
          g[(size_t)(12 + 3 * c + d) * cap + z] += 0.5f * (high - low);
        }
    }
  };
  sweep_rows<float>(p, v, row,
                    [&](int, size_t first, size_t count, float* w) { done(first, count, w); });
}

template <class Sink>
void sweep_stencil(const Level& l, const float* v, Sink&& sink) {
  const Packing& p = l.p;
  auto done = linked(l.links, v, sink);
#pragma omp parallel
  {
    Buffer w;
#pragma omp for schedule(dynamic, 1)
    for (int x = 0; x <= p.nx; ++x) {
      size_t first = p.plane(x), last = p.plane(x + 1);
      w.assign(last - first + kPadding, 0.0f);
      for (int y = 0; y <= p.ny; ++y) {
        int c = p.column(x, y), n = p.len[c];
        if (!n) continue;
        const float* s = l.stencil.data() + 243 * p.off[c];
        float* out = w.data() + (3 * p.off[c] - first);
        for (int q = 0; q < 27; ++q) {
          int i = x + q / 9 - 1, j = y + (q / 3) % 3 - 1, dz = q % 3 - 1;
          if (i < 0 || j < 0 || i > p.nx || j > p.ny) continue;
          int o = p.column(i, j), shift = p.lo[c] + dz - p.lo[o];
          int z0 = std::max(0, -shift), z1 = std::min(n, p.len[o] - shift);
          if (z1 <= z0) continue;
          const float* u = v + 3 * p.off[o] + shift;
          const float* k = s + (size_t)9 * q * n;
          for (int a = 0; a < 3; ++a) {
            float* f = out + (size_t)a * n;
            const float *k0 = k + (size_t)(3 * a) * n, *k1 = k0 + n, *k2 = k1 + n;
            const float *u0 = u, *u1 = u + p.len[o], *u2 = u1 + p.len[o];
#pragma GCC ivdep
            for (int z = z0; z < z1; ++z) f[z] += k0[z] * u0[z] + k1[z] * u1[z] + k2[z] * u2[z];
          }
        }
      }
      done(first, last - first, w.data());
    }
  }
}

template <class Sink>
void sweep(const Level& l, const float* v, Sink&& sink) {
  if (l.kind == Kind::finest)
    sweep_finest<float>(l.p, l.finest, l.links, v, sink);
  else if (l.kind == Kind::moments)
    sweep_moments(l, v, sink);
  else
    sweep_stencil(l, v, sink);
}

}  // namespace
