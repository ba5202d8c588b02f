// Links: springs between averaged motions, K += Wᵀ S W, as sparse rows on packed nodes.
//
// Needs packing.h.

#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "packing.h"

namespace {

// Springs between averaged motions on one level: the rows of W that are not zero on a node, nodes
// in order.
struct LinkRows {
  int rows = 0;
  std::vector<size_t> at;     // of each node: unknown of its first component,
  std::vector<int> stride;    // and the step to the next
  std::vector<int> start{0};  // of each node in `row`
  std::vector<int> row;
  std::vector<double> weight;  // [entry][3]
  std::vector<double> stiffness;

  // Adds a node with its rows' weights [rows][3] (given as a function of row and component).
  template <class W>
  void add(size_t where, int step, W&& w) {
    bool any = false;
    for (int m = 0; m < rows; ++m) {
      double a = w(m, 0), b = w(m, 1), c = w(m, 2);
      if (a == 0 && b == 0 && c == 0) continue;
      any = true;
      row.push_back(m);
      weight.insert(weight.end(), {a, b, c});
    }
    if (!any) return;
    at.push_back(where), stride.push_back(step), start.push_back((int)row.size());
  }
  // f(node, entry, row) on every entry.
  template <class F>
  void each(F&& f) const {
    for (size_t n = 0; n < at.size(); ++n)
      for (int e = start[n]; e < start[n + 1]; ++e) f(n, e, row[e]);
  }
  template <class T>
  std::vector<double> pull(const T* v) const {  // S W v
    std::vector<double> motion(rows, 0.0), out(rows, 0.0);
    each([&](size_t n, int e, int m) {
      for (int c = 0; c < 3; ++c) motion[m] += weight[3 * e + c] * v[at[n] + (size_t)c * stride[n]];
    });
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < rows; ++j) out[i] += stiffness[i * rows + j] * motion[j];
    return out;
  }
  template <class T>
  void push(const std::vector<double>& t, size_t first, size_t last,
            T* plane) const {  // += Wᵀ t on unknowns [first, last)
    size_t n = std::lower_bound(at.begin(), at.end(), first) - at.begin();
    for (; n < at.size() && at[n] < last; ++n)
      for (int e = start[n]; e < start[n + 1]; ++e)
        for (int c = 0; c < 3; ++c)
          plane[at[n] + (size_t)c * stride[n] - first] += (T)(t[row[e]] * weight[3 * e + c]);
  }
};

// From dense weights [rows][count][3] on flat node numbers [count]; nodes that are not stored carry
// none.
LinkRows link_rows(const Packing& p, int count, int rows, const int32_t* node, const double* weight,
                   const double* stiffness) {
  LinkRows l;
  l.rows = rows;
  if (!rows) return l;
  l.stiffness.assign(stiffness, stiffness + rows * rows);
  std::vector<std::pair<size_t, int>> order;
  std::vector<int> strides(count);
  for (int n = 0; n < count; ++n) {
    bool any = false;
    for (int m = 0; m < rows; ++m)
      for (int c = 0; c < 3; ++c) any |= weight[((size_t)m * count + n) * 3 + c] != 0;
    int z = node[n] % (p.nz + 1), y = node[n] / (p.nz + 1) % (p.ny + 1),
        x = node[n] / (p.nz + 1) / (p.ny + 1);
    size_t at;
    if (any && p.find(x, y, z, &at, &strides[n])) order.push_back({at, n});
  }
  std::sort(order.begin(), order.end());
  for (auto [at, n] : order) {
    l.add(at, strides[n], [&](int m, int c) { return weight[((size_t)m * count + n) * 3 + c]; });
  }
  return l;
}

// A sink that first adds the links' forces Wᵀ S W v.
template <class T, class Sink>
auto linked(const LinkRows& links, const T* v, Sink& sink) {
  return [&links, &sink, t = links.rows ? links.pull(v) : std::vector<double>()](
             size_t first, size_t count, T* w) {
    if (links.rows) links.push(t, first, first + count, w);
    sink(first, count, w);
  };
}

}  // namespace
