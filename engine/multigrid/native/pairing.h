// The sensitivities of a bilinear form to the moduli of each element. Needs rows.h (trilinear
// modes) and the generated modes0 (simd.h).

#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "packing.h"
#include "rows.h"
#include "simd.h"

namespace {

using Fields = std::vector<std::vector<double>>;  // packed, of each right-hand side

Fields packed_fields(const Packing& p, int batch, const double* dense) {
  size_t size = 3 * (size_t)(p.nx + 1) * (p.ny + 1) * (p.nz + 1);
  Fields out(batch);
  for (int i = 0; i < batch; ++i) {
    out[i].assign(p.unknowns() + kPadding, 0.0);
    pack(p, dense + size * i, out[i].data());
  }
  return out;
}

// The four columns' components at the first node of the element row r at x, y.
inline void row_pointers(const Packing& p, int x, int y, int r, const double* field,
                         const double** out) {
  for (int c = 0; c < 4; ++c) {
    int column = p.column(x + c / 2, y + c % 2);
    size_t at = 3 * p.off[column] + (p.elo[r] - p.lo[column]);
    for (int k = 0; k < 3; ++k) out[3 * c + k] = field + at + (size_t)k * p.len[column];
  }
}

// out[0..2] = Σ over the right-hand sides of bᵀ (∂K/∂λ_e) a and the same for μ_e and κ_e on the
// elements of the packed runs, zero elsewhere; [nx][ny][nz] each.
void pair(const Packing& p, double spacing, const Fields& a, const Fields& b, double* const* out) {
  using V = Vec<double>;
  int batch = a.size();
#pragma omp parallel for schedule(dynamic, 8)
  for (int r = 0; r < p.nx * p.ny; ++r) {
    int n = p.elen[r], x = r / p.ny, y = r % p.ny;
    for (int k = 0; k < 3; ++k) std::memset(out[k] + (size_t)r * p.nz, 0, p.nz * sizeof(double));
    for (int z = 0; z < n; z += kWidth<double>) {
      V sum[3] = {};
      for (int i = 0; i < batch; ++i) {
        const double *pa[12], *pb[12];
        row_pointers(p, x, y, r, a[i].data(), pa);
        row_pointers(p, x, y, r, b[i].data(), pb);
        V ma[24], mb[24], f[24], zero = {}, one = zero + 1.0;
        trilinear_modes<double>(pa, z, ma);
        trilinear_modes<double>(pb, z, mb);
        modes0<double>(ma, zero, one, f);
        for (int k = 0; k < 24; ++k) sum[0] += f[k] * mb[k];
        modes0<double>(ma, one, zero, f);
        for (int k = 0; k < 24; ++k) sum[1] += f[k] * mb[k], sum[2] += ma[k] * mb[k];
      }
      double scale[3] = {spacing, spacing, spacing * spacing * spacing / 64};
      for (int k = 0; k < 3; ++k) {
        sum[k] *= scale[k];
        std::memcpy(out[k] + (size_t)r * p.nz + p.elo[r] + z, &sum[k],
                    std::min(n - z, kWidth<double>) * sizeof(double));
      }
    }
  }
}

}  // namespace
