// What the preconditioner is built from: the dense arrays of a system, as JAX hands them over.
// Needs nothing.

#pragma once

#include <cstddef>
#include <cstdint>

namespace {

struct Input {
  int nx, ny, nz, levels;         // voxels, coarsenings
  float h;                        // spacing
  const float *lam, *mu, *kappa;  // [nx][ny][nz]
  const uint8_t* fixed;           // [3][nodes] or null
  const uint8_t* label;           // [nodes]: number of the stiff body, 0 for none; or null
  int link_nodes, link_rows;
  const int32_t* link_node;                    // [link_nodes]: flat node numbers
  const double *link_weight, *link_stiffness;  // [rows][link_nodes][3], [rows][rows]

  bool is_fixed(int x, int y, int z, int component) const {
    size_t nodes = (size_t)(nx + 1) * (ny + 1) * (nz + 1);
    return fixed && fixed[component * nodes + ((size_t)x * (ny + 1) + y) * (nz + 1) + z];
  }
};

}  // namespace
