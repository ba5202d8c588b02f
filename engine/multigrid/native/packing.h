// Packed storage: which nodes and elements are stored, where, and the ways to visit them.
//
// Only columns that hold material are stored, one z-run for each column of nodes and for each row
// of elements (from the first to the last voxel of material).
// A packed nodal vector: column after column (x outer, y inner), in a column [component][z].
//
// Needs simd.h (kPadding).

#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "simd.h"

namespace {

// Node a of the eight of an element (or child of a coarse one): its steps along the axes.
constexpr int step_x(int a) { return a >> 2; }
constexpr int step_y(int a) { return (a >> 1) & 1; }
constexpr int step_z(int a) { return a & 1; }

// The grid of one level, and where its nodes and elements are in packed arrays.
struct Packing {
  int nx = 0, ny = 0, nz = 0;  // elements
  std::vector<int> elo, elen;  // element rows [nx][ny]: first z, length
  std::vector<size_t> eoff;    // their offsets; last entry: total
  std::vector<int> lo, len;    // node columns [nx+1][ny+1]
  std::vector<size_t> off;     // their offsets in nodes; last entry: total
  int longest = 0;             // element row

  int row(int x, int y) const { return x * ny + y; }
  int column(int x, int y) const { return x * (ny + 1) + y; }
  size_t nodes() const { return off.back(); }
  size_t unknowns() const { return 3 * off.back(); }
  size_t elements() const { return eoff.back(); }
  // The first unknown of a plane of nodes.
  size_t plane(int x) const { return 3 * off[(size_t)x * (ny + 1)]; }

  // Offsets and node columns from the element rows (elo, elen): a column holds every node that an
  // element of its four rows touches.
  void finish() {
    eoff.assign(elo.size() + 1, 0);
    for (size_t i = 0; i < elo.size(); ++i) {
      eoff[i + 1] = eoff[i] + elen[i];
      longest = std::max(longest, elen[i]);
    }
    int columns = (nx + 1) * (ny + 1);
    lo.assign(columns, 0);
    len.assign(columns, 0);
    for (int x = 0; x <= nx; ++x)
      for (int y = 0; y <= ny; ++y) {
        int low = nz + 1, high = 0;
        for (int i = std::max(0, x - 1); i <= std::min(nx - 1, x); ++i)
          for (int j = std::max(0, y - 1); j <= std::min(ny - 1, y); ++j)
            if (elen[row(i, j)]) {
              low = std::min(low, elo[row(i, j)]);
              high = std::max(high, elo[row(i, j)] + elen[row(i, j)] + 1);
            }
        if (high > low) lo[column(x, y)] = low, len[column(x, y)] = high - low;
      }
    off.assign(columns + 1, 0);
    for (int i = 0; i < columns; ++i) off[i + 1] = off[i] + len[i];
  }

  // Of half as many elements along each axis.
  Packing coarser() const {
    Packing c;
    c.nx = nx / 2, c.ny = ny / 2, c.nz = nz / 2;
    c.elo.assign(c.nx * c.ny, 0);
    c.elen.assign(c.nx * c.ny, 0);
    for (int x = 0; x < c.nx; ++x)
      for (int y = 0; y < c.ny; ++y) {
        int low = nz, high = 0;
        for (int i = 0; i < 2; ++i)
          for (int j = 0; j < 2; ++j) {
            int r = row(2 * x + i, 2 * y + j);
            if (elen[r])
              low = std::min(low, elo[r] / 2), high = std::max(high, (elo[r] + elen[r] + 1) / 2);
          }
        if (high > low) c.elo[c.row(x, y)] = low, c.elen[c.row(x, y)] = high - low;
      }
    c.finish();
    return c;
  }

  // The packed number of a stored node's component.
  size_t unknown(int x, int y, int z, int component) const {
    int c = column(x, y);
    return 3 * off[c] + (size_t)component * len[c] + (z - lo[c]);
  }

  // The packed position of a node's first component and the stride to the next, or false when it is
  // not stored.
  bool find(int x, int y, int z, size_t* at, int* stride) const {
    int c = column(x, y);
    if (z < lo[c] || z >= lo[c] + len[c]) return false;
    *at = 3 * off[c] + (z - lo[c]);
    *stride = len[c];
    return true;
  }
};

// Copies dense nodal arrays [3][nx+1][ny+1][nz+1] to packed ones and back.
template <class T>
void pack(const Packing& p, const T* dense, T* packed) {
  size_t line = p.nz + 1, component = (size_t)(p.nx + 1) * (p.ny + 1) * line;
#pragma omp parallel for
  for (int c = 0; c < (p.nx + 1) * (p.ny + 1); ++c)
    for (int k = 0; k < 3; ++k)
      std::memcpy(packed + 3 * p.off[c] + k * p.len[c], dense + k * component + c * line + p.lo[c],
                  p.len[c] * sizeof(T));
}

template <class T>
void unpack(const Packing& p, const T* packed, T* dense) {
  size_t line = p.nz + 1, component = (size_t)(p.nx + 1) * (p.ny + 1) * line;
#pragma omp parallel for
  for (int c = 0; c < (p.nx + 1) * (p.ny + 1); ++c)
    for (int k = 0; k < 3; ++k) {
      T* out = dense + k * component + c * line;
      std::memset(out, 0, line * sizeof(T));
      std::memcpy(out + p.lo[c], packed + 3 * p.off[c] + k * p.len[c], p.len[c] * sizeof(T));
    }
}

// The same of dense element arrays [nx][ny][nz], times a factor.
template <class T, class S>
void pack_elements(const Packing& p, const S* dense, T factor, T* packed) {
#pragma omp parallel for
  for (int r = 0; r < p.nx * p.ny; ++r)
#pragma GCC ivdep
    for (int z = 0; z < p.elen[r]; ++z)
      packed[p.eoff[r] + z] = factor * (T)dense[(size_t)r * p.nz + p.elo[r] + z];
}

// Rows from the first to the last voxel with mu > 0 (a NaN is none).
template <class S>
Packing packing_of(int nx, int ny, int nz, const S* mu) {
  Packing p;
  p.nx = nx, p.ny = ny, p.nz = nz;
  p.elo.assign(nx * ny, 0);
  p.elen.assign(nx * ny, 0);
#pragma omp parallel for
  for (int r = 0; r < nx * ny; ++r) {
    const S* m = mu + (size_t)r * nz;
    int low = 0, high = nz;
    while (low < nz && !(m[low] > 0)) ++low;
    while (high > low && !(m[high - 1] > 0)) --high;
    if (high > low) p.elo[r] = low, p.elen[r] = high - low;
  }
  p.finish();
  return p;
}

// Calls f(first unknown, count, x) on every plane of nodes, in parallel.
template <class F>
void for_planes(const Packing& p, F&& f) {
#pragma omp parallel for schedule(static)
  for (int x = 0; x <= p.nx; ++x) f(p.plane(x), p.plane(x + 1) - p.plane(x), x);
}

// Σ f(first unknown, end) over the planes; by planes, so that the result does not depend on the
// threads' timing.
template <class F>
double plane_sum(const Packing& p, F&& f) {
  std::vector<double> part(p.nx + 1, 0.0);
#pragma omp parallel for schedule(static)
  for (int x = 0; x <= p.nx; ++x) part[x] = f(p.plane(x), p.plane(x + 1));
  double sum = 0;
  for (double s : part) sum += s;
  return sum;
}

// Calls f(x, y, z, packed number) on every element, planes of one parity in parallel, so that
// neighbours never write to the same node.
template <class F>
void for_elements(const Packing& p, F&& f) {
  for (int parity = 0; parity < 2; ++parity)
#pragma omp parallel for schedule(dynamic, 1)
    for (int x = parity; x < p.nx; x += 2)
      for (int y = 0; y < p.ny; ++y) {
        int r = p.row(x, y);
        for (int z = 0; z < p.elen[r]; ++z) f(x, y, p.elo[r] + z, p.eoff[r] + z);
      }
}

}  // namespace
