// Transfer between a level f and the next coarser one c: trilinear interpolation P of coarse nodal
// vectors, its transpose as restriction, and links under it.
//
// Needs packing.h and links.h.

#pragma once

#include <algorithm>
#include <vector>

#include "links.h"
#include "packing.h"

namespace {

// coarse = Pᵀ fine.
void restrict_to(const Packing& f, const Packing& c, const float* fine, float* coarse) {
#pragma omp parallel
  {
    Buffer line(f.nz + 8);
#pragma omp for schedule(dynamic, 4)
    for (int col = 0; col < (c.nx + 1) * (c.ny + 1); ++col) {
      int n = c.len[col];
      if (!n) continue;
      int X = col / (c.ny + 1), Y = col % (c.ny + 1);
      int base = 2 * c.lo[col] - 1, width = 2 * n + 1;  // fine z of line[0]
      for (int k = 0; k < 3; ++k) {
        std::fill(line.begin(), line.begin() + width, 0.0f);
        for (int dx = -1; dx <= 1; ++dx)
          for (int dy = -1; dy <= 1; ++dy) {
            int x = 2 * X + dx, y = 2 * Y + dy;
            if (x < 0 || y < 0 || x > f.nx || y > f.ny) continue;
            int o = f.column(x, y);
            if (!f.len[o]) continue;
            float weight = (dx ? 0.5f : 1.0f) * (dy ? 0.5f : 1.0f);
            const float* v = fine + 3 * f.off[o] + (size_t)k * f.len[o];
            int z0 = std::max(base, f.lo[o]), z1 = std::min(base + width, f.lo[o] + f.len[o]);
            for (int z = z0; z < z1; ++z) line[z - base] += weight * v[z - f.lo[o]];
          }
        float* out = coarse + 3 * c.off[col] + (size_t)k * n;
        for (int z = 0; z < n; ++z)
          out[z] = line[2 * z + 1] + 0.5f * (line[2 * z] + line[2 * z + 2]);
      }
    }
  }
}

// fine += P coarse.
void prolong_add(const Packing& c, const Packing& f, const float* coarse, float* fine) {
#pragma omp parallel
  {
    Buffer line(c.nz + 8);
#pragma omp for schedule(dynamic, 8)
    for (int col = 0; col < (f.nx + 1) * (f.ny + 1); ++col) {
      int n = f.len[col];
      if (!n) continue;
      int x = col / (f.ny + 1), y = col % (f.ny + 1);
      int base = f.lo[col] / 2,
          width = (f.lo[col] + n - 1 + 1) / 2 - base + 1;  // coarse nodes that the run needs
      for (int k = 0; k < 3; ++k) {
        std::fill(line.begin(), line.begin() + width + 1, 0.0f);
        for (int i = 0; i <= x % 2; ++i)
          for (int j = 0; j <= y % 2; ++j) {
            int o = c.column(x / 2 + i, y / 2 + j);
            float weight = (x % 2 ? 0.5f : 1.0f) * (y % 2 ? 0.5f : 1.0f);
            const float* v = coarse + 3 * c.off[o] + (size_t)k * c.len[o];
            int z0 = std::max(base, c.lo[o]), z1 = std::min(base + width, c.lo[o] + c.len[o]);
            for (int z = z0; z < z1; ++z) line[z - base] += weight * v[z - c.lo[o]];
          }
        float* out = fine + 3 * f.off[col] + (size_t)k * n;
        for (int z = 0; z < n; ++z) {
          int Z = f.lo[col] + z;
          out[z] +=
              Z % 2 ? 0.5f * (line[Z / 2 - base] + line[Z / 2 + 1 - base]) : line[Z / 2 - base];
        }
      }
    }
  }
}

// W P, the links on the coarse level.
void coarsen_links(const Packing& fine, const LinkRows& from, const Packing& coarse, LinkRows& to) {
  to.rows = from.rows;
  to.stiffness = from.stiffness;
  if (!from.rows) return;
  std::vector<Buffer> rows(from.rows);
  Buffer dense(fine.unknowns() + kPadding);
  for (int m = 0; m < from.rows; ++m) {
    std::fill(dense.begin(), dense.end(), 0.0f);
    from.each([&](size_t n, int e, int row) {
      if (row == m)
        for (int c = 0; c < 3; ++c)
          dense[from.at[n] + (size_t)c * from.stride[n]] = (float)from.weight[3 * e + c];
    });
    rows[m].assign(coarse.unknowns() + kPadding, 0.0f);
    restrict_to(fine, coarse, dense.data(), rows[m].data());
  }
  for (int c = 0; c < (int)coarse.len.size(); ++c)
    for (int z = 0; z < coarse.len[c]; ++z) {
      size_t at = 3 * coarse.off[c] + z;
      to.add(at, coarse.len[c],
             [&](int m, int k) { return rows[m][at + (size_t)k * coarse.len[c]]; });
    }
}

}  // namespace
