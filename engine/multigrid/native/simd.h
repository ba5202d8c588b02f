// Vectors of the processor, Vec<T> with its loads and stores, and what library.py generates from
// engine.elasticity:
//     modes0(m[24], mu, lam, f[24])  forces of an element of the finest level, in trilinear modes
//     modes1(m[24], w[16], f[24])    the same of the first coarse level, from its moments w
//     kMode1Entries                  the matrices of modes1 by entries
//     kDiagonal, kElement            the element matrices' diagonal blocks; the matrices, for h = 1
//
// Needs multigrid_tables.h, which library.py writes when it compiles.

#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#else
constexpr int kVectorBytes = 32;
#endif

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename Simd<T>::V;
template <class T>
constexpr int kWidth = kVectorBytes / sizeof(T);

// Entries past the end of every array that a vector load or store may touch.
constexpr size_t kPadding = 64;

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// In this namespace, since it uses Vec.
#include "multigrid_tables.h"

using Buffer = std::vector<float>;

}  // namespace
