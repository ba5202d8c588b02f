// Denormal numbers as zero while a call runs. Needs the processor's own switch (SSE2); elsewhere it
// does nothing.

#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include <omp.h>

namespace {

// Denormal numbers count as zero in every thread of the call. XLA calls from threads of its own
// that differ in this, and a resumed run would differ from an uninterrupted one in the last bits.
// No thread is left so: OpenMP's outlive the call, and serve whatever else of the process calls
// libgomp from the same thread.
struct FlushDenormals {
#if defined(__SSE2__)
  unsigned before = _mm_getcsr();
  FlushDenormals() {
#pragma omp parallel
    _mm_setcsr(_mm_getcsr() | 0x8040);
  }
  ~FlushDenormals() {
#pragma omp parallel
    if (omp_get_thread_num() > 0) _mm_setcsr(_mm_getcsr() & ~0x8040u);
    _mm_setcsr(before);
  }
#endif
};

}  // namespace
