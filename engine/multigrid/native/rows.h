// Products by rows of elements: the trilinear modes of a row, its forces, and the sweep over all
// rows that adds them up in planes of nodes.
//
// An element's forces are computed kWidth elements at a time along z, in the trilinear modes (sums
// and differences of the corners along each axis), where its matrix is sparse.
//
// Needs packing.h.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "packing.h"

namespace {

// The trilinear modes of the elements z, z + 1, … of a row: sums and differences of the corners
// along each axis.
template <class T>
inline void trilinear_modes(const T* const* p, int z, Vec<T>* m) {
  using V = Vec<T>;
#pragma GCC unroll 3
  for (int c = 0; c < 3; ++c) {
    V q[2][2][2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        V a = load(p[(i * 2 + j) * 3 + c] + z), b = load(p[(i * 2 + j) * 3 + c] + z + 1);
        q[i][j][0] = a + b, q[i][j][1] = b - a;
      }
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      V s0 = q[0][0][k] + q[0][1][k], d0 = q[0][1][k] - q[0][0][k];
      V s1 = q[1][0][k] + q[1][1][k], d1 = q[1][1][k] - q[1][0][k];
      m[(0 * 4 + 0 * 2 + k) * 3 + c] = s0 + s1, m[(1 * 4 + 0 * 2 + k) * 3 + c] = s1 - s0;
      m[(0 * 4 + 1 * 2 + k) * 3 + c] = d0 + d1, m[(1 * 4 + 1 * 2 + k) * 3 + c] = d1 - d0;
    }
  }
}

// Forces of one row of elements. p[12]: the four columns' components at the row's first node;
// g[2][12][cap]: even and odd part in z.
template <class T, class Modes>
inline void row_forces(int n, const T* const* p, T* g, int cap, Modes&& modes) {
  using V = Vec<T>;
  for (int z = 0; z < n; z += kWidth<T>) {
    V m[24], f[24];
    trilinear_modes<T>(p, z, m);
    modes(z, m, f);
#pragma GCC unroll 3
    for (int c = 0; c < 3; ++c)
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        V x0y0 = f[(0 + 0 + k) * 3 + c], x1y0 = f[(4 + 0 + k) * 3 + c],
          x0y1 = f[(0 + 2 + k) * 3 + c], x1y1 = f[(4 + 2 + k) * 3 + c];
        V a0 = x0y0 - x1y0, a1 = x0y0 + x1y0, b0 = x0y1 - x1y1, b1 = x0y1 + x1y1;
        T* out = g + (size_t)k * 12 * cap + z;
        store(out + (0 + c) * cap, a0 - b0), store(out + (3 + c) * cap, a0 + b0);
        store(out + (6 + c) * cap, a1 - b1), store(out + (9 + c) * cap, a1 + b1);
      }
  }
}

// Adds the forces g of a row of n elements to its four columns' components out[12].
template <class T>
inline void add_row(int n, const T* g, int cap, T* const* out) {
  for (int k = 0; k < 12; ++k) {
    const T *even = g + (size_t)k * cap, *odd = g + (size_t)(12 + k) * cap;
    T* o = out[k];
    o[0] += even[0] - odd[0];
#pragma GCC ivdep
    for (int z = 1; z < n; ++z) o[z] += (even[z] - odd[z]) + (even[z - 1] + odd[z - 1]);
    o[n] += even[n - 1] + odd[n - 1];
  }
}

// A thread's own: two planes of nodes, and the forces of a row.
template <class T>
struct Scratch {
  std::vector<T> plane[2], g;
};

// Calls sink(first unknown, count, w) for every plane of nodes, with w = K v there;
// row(x, y, r, n, in, g, cap) gives the forces g of the row r at x, y of n elements.
template <class T, class Row, class Sink>
void sweep_rows(const Packing& p, const T* v, Row&& row, Sink&& sink) {
#pragma omp parallel
  {
    int threads = omp_get_num_threads(), me = omp_get_thread_num();
    // chunks of planes with equal work
    size_t total = p.unknowns();
    auto cut = [&](int i) {
      if (i <= 0) return 0;
      if (i >= threads) return p.nx + 1;
      int x = 0;
      while (x <= p.nx && p.plane(x) < total * i / threads) ++x;
      return x;
    };
    int a = cut(me), b = cut(me + 1);
    if (a < b) {
      size_t largest = 0;
      for (int x = 0; x <= p.nx; ++x) largest = std::max(largest, p.plane(x + 1) - p.plane(x));
      int cap = p.longest + kPadding;
      Scratch<T> s;
      s.plane[0].assign(largest + kPadding, 0);
      s.plane[1].assign(largest + kPadding, 0);
      s.g.assign((size_t)24 * cap, 0);
      T *now = s.plane[0].data(), *next = s.plane[1].data();
      for (int x = std::max(0, a - 1); x < b; ++x) {
        if (x < p.nx) {
          std::fill(next, next + (p.plane(x + 2) - p.plane(x + 1)), T(0));
          for (int y = 0; y < p.ny; ++y) {
            int r = p.row(x, y), n = p.elen[r];
            if (!n) continue;
            const T* in[12];
            T* out[12];
            for (int i = 0; i < 2; ++i)
              for (int j = 0; j < 2; ++j) {
                int c = p.column(x + i, y + j);
                size_t at = 3 * p.off[c] + (p.elo[r] - p.lo[c]);
                for (int k = 0; k < 3; ++k) {
                  in[(i * 2 + j) * 3 + k] = v + at + (size_t)k * p.len[c];
                  out[(i * 2 + j) * 3 + k] =
                      (i ? next : now) + (at - p.plane(x + i)) + (size_t)k * p.len[c];
                }
              }
            row(x, y, r, n, in, s.g.data(), cap);
            add_row(n, s.g.data(), cap, out);
          }
        }
        if (x >= a) sink(x, p.plane(x), p.plane(x + 1) - p.plane(x), now);
        std::swap(now, next);
      }
    }
  }
}

}  // namespace
