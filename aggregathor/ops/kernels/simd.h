// One vector register of float or double, for the instruction set a file is compiled for.
//
// Arithmetic and comparisons are those of GCC's and Clang's vector extensions, which every
// processor has; only what these express badly is an intrinsic.
#ifndef AGGREGATHOR_OPS_KERNELS_SIMD_H_
#define AGGREGATHOR_OPS_KERNELS_SIMD_H_

#include "aggregathor/ops/kernels/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace aggregathor::AGGREGATHOR_ISA {

#if defined(__AVX512F__)
inline constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kRegisterBytes = 32;
#else
inline constexpr int kRegisterBytes = 16;
#endif

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kRegisterBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kRegisterBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
// Values in a register.
template <typename T>
inline constexpr int64_t kWidth = kRegisterBytes / static_cast<int64_t>(sizeof(T));

template <typename T>
[[gnu::always_inline]] inline Vector<T> Load(const T* from) {
  Vector<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <typename T, typename V>
[[gnu::always_inline]] inline void Store(T* to, V v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// kWidth<double> values as doubles: sums are kept in double, whatever the values are.
inline constexpr int64_t kDoubles = kWidth<double>;
using Doubles = Vector<double>;
typedef long long Integers __attribute__((vector_size(kRegisterBytes)));  // and masks: -1 or 0

[[gnu::always_inline]] inline Doubles LoadDoubles(const double* from) { return Load(from); }
// Half a register of floats. The conversions are intrinsics because g++ 12 takes apart what
// __builtin_convertvector says of registers of different widths.
typedef float HalfFloats __attribute__((vector_size(kRegisterBytes / 2)));
#if defined(__AVX512F__)
[[gnu::always_inline]] inline Doubles Widen(HalfFloats v) { return _mm512_cvtps_pd(v); }
[[gnu::always_inline]] inline HalfFloats Narrow(Doubles v) { return _mm512_cvtpd_ps(v); }
#elif defined(__AVX2__)
[[gnu::always_inline]] inline Doubles Widen(HalfFloats v) { return _mm256_cvtps_pd(v); }
[[gnu::always_inline]] inline HalfFloats Narrow(Doubles v) { return _mm256_cvtpd_ps(v); }
#else
[[gnu::always_inline]] inline Doubles Widen(HalfFloats v) {
  return __builtin_convertvector(v, Doubles);
}
[[gnu::always_inline]] inline HalfFloats Narrow(Doubles v) {
  return __builtin_convertvector(v, HalfFloats);
}
#endif
[[gnu::always_inline]] inline Doubles LoadDoubles(const float* from) {
  HalfFloats half;
  __builtin_memcpy(&half, from, sizeof half);
  return Widen(half);
}
[[gnu::always_inline]] inline void StoreDoubles(double* to, Doubles v) { Store(to, v); }
[[gnu::always_inline]] inline void StoreDoubles(float* to, Doubles v) {
  const HalfFloats half = Narrow(v);
  __builtin_memcpy(to, &half, sizeof half);
}
[[gnu::always_inline]] inline Doubles Broadcast(double x) { return x - Doubles{}; }
// 0 where the mask is.
[[gnu::always_inline]] inline Doubles And(Doubles v, Integers mask) {
  return (Doubles)((Integers)v & mask);
}
[[gnu::always_inline]] inline double SumOf(Doubles v) {
  typedef double Half __attribute__((vector_size(kRegisterBytes / 2)));
  Half halves[2];
  __builtin_memcpy(halves, &v, sizeof v);
  const Half pairs = halves[0] + halves[1];
  double sum = pairs[0];
  for (int64_t l = 1; l < kDoubles / 2; ++l) sum += pairs[l];
  return sum;
}

// Values l and kDoubles + l of v, added as doubles.
[[gnu::always_inline]] inline Doubles SumOfHalves(Vector<float> v) {
  HalfFloats halves[2];
  __builtin_memcpy(halves, &v, sizeof v);
  return Widen(halves[0]) + Widen(halves[1]);
}

// Min, Max: of values none of which is NaN (the extensions' `a < b ? a : b` would compile to a
// comparison and a blend). MultiplyAdd: a * b + c, rounded once where the processor can.
// EitherIsNan gives a mask; masks are joined by | and asked by Any, and Bits gives a bit a lane.
#if defined(__AVX512F__)
#define AGGREGATHOR_SIMD(T, S)                                                    \
  inline Vector<T> Min(Vector<T> a, Vector<T> b) { return _mm512_min_##S(a, b); } \
  inline Vector<T> Max(Vector<T> a, Vector<T> b) { return _mm512_max_##S(a, b); } \
  inline Vector<T> MultiplyAdd(Vector<T> a, Vector<T> b, Vector<T> c) {           \
    return _mm512_fmadd_##S(a, b, c);                                             \
  }                                                                               \
  inline auto EitherIsNan(Vector<T> a, Vector<T> b) {                             \
    return _mm512_cmp_##S##_mask(a, b, _CMP_UNORD_Q);                             \
  }
inline bool Any(unsigned mask) { return mask != 0; }
template <typename T>
inline uint64_t Bits(unsigned mask) {
  return mask;
}
#elif defined(__AVX2__)
#define AGGREGATHOR_SIMD(T, S)                                                    \
  inline Vector<T> Min(Vector<T> a, Vector<T> b) { return _mm256_min_##S(a, b); } \
  inline Vector<T> Max(Vector<T> a, Vector<T> b) { return _mm256_max_##S(a, b); } \
  inline Vector<T> MultiplyAdd(Vector<T> a, Vector<T> b, Vector<T> c) {           \
    return _mm256_fmadd_##S(a, b, c);                                             \
  }                                                                               \
  inline auto EitherIsNan(Vector<T> a, Vector<T> b) {                             \
    return (__m256i)_mm256_cmp_##S(a, b, _CMP_UNORD_Q);                           \
  }
inline bool Any(__m256i mask) { return !_mm256_testz_si256(mask, mask); }
template <typename T>
inline uint64_t Bits(__m256i mask) {
  return static_cast<unsigned>(sizeof(T) == 4 ? _mm256_movemask_ps((__m256)mask)
                                              : _mm256_movemask_pd((__m256d)mask));
}
#elif defined(__SSE2__)
#define AGGREGATHOR_SIMD(T, S)                                                              \
  inline Vector<T> Min(Vector<T> a, Vector<T> b) { return _mm_min_##S(a, b); }              \
  inline Vector<T> Max(Vector<T> a, Vector<T> b) { return _mm_max_##S(a, b); }              \
  inline Vector<T> MultiplyAdd(Vector<T> a, Vector<T> b, Vector<T> c) { return a * b + c; } \
  inline auto EitherIsNan(Vector<T> a, Vector<T> b) { return (__m128i)_mm_cmpunord_##S(a, b); }
inline bool Any(__m128i mask) { return _mm_movemask_epi8(mask) != 0; }
template <typename T>
inline uint64_t Bits(__m128i mask) {
  return static_cast<unsigned>(sizeof(T) == 4 ? _mm_movemask_ps((__m128)mask)
                                              : _mm_movemask_pd((__m128d)mask));
}
#else
#define AGGREGATHOR_SIMD(T, S)                                                              \
  inline Vector<T> Min(Vector<T> a, Vector<T> b) { return a < b ? a : b; }                  \
  inline Vector<T> Max(Vector<T> a, Vector<T> b) { return a < b ? b : a; }                  \
  inline Vector<T> MultiplyAdd(Vector<T> a, Vector<T> b, Vector<T> c) { return a * b + c; } \
  inline auto EitherIsNan(Vector<T> a, Vector<T> b) { return (a != a) | (b != b); }
template <typename M>
inline bool Any(M mask) {
  const M none{};
  return __builtin_memcmp(&mask, &none, sizeof mask) != 0;
}
template <typename T, typename M>
inline uint64_t Bits(M mask) {
  uint64_t bits = 0;
  for (int64_t l = 0; l < kWidth<T>; ++l) bits |= static_cast<uint64_t>(mask[l] != 0) << l;
  return bits;
}
#endif
AGGREGATHOR_SIMD(float, ps)
AGGREGATHOR_SIMD(double, pd)
#undef AGGREGATHOR_SIMD

}  // namespace aggregathor::AGGREGATHOR_ISA

#endif  // AGGREGATHOR_OPS_KERNELS_SIMD_H_
