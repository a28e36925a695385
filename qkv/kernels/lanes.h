// Sixteen floats at a time, on any processor.
//
// GNU vectors of 64 bytes are one register with AVX-512 and are split by the compiler elsewhere, so the kernels are
// written once; only what the language cannot say (fused multiply-add, half precision, dot products of bytes) has a
// path an instruction set. The library is compiled with -ffp-contract=off and every fused operation is spelled
// `fma`: a row's bits must not depend on what the optimiser made of the loop around it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace qkv {

constexpr int LANES = 16;
typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint16_t Half;  // IEEE half precision, as bits

template <class Vector, class T>
inline Vector load(const T* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class Vector, class T>
inline void store(T* p, Vector v) {
    std::memcpy(p, &v, sizeof v);
}

inline Lanes spread(float x) { return x - Lanes{}; }  // x - 0 is x for every x, -0 included
inline Ints spread(int32_t x) { return x - Ints{}; }
inline Lanes to_float(Ints v) { return __builtin_convertvector(v, Lanes); }
inline Lanes choose(Ints mask, Lanes yes, Lanes no) { return (Lanes)(((Ints)yes & mask) | ((Ints)no & ~mask)); }
inline Lanes greater(Lanes a, Lanes b) { return choose(a > b, a, b); }
inline Lanes magnitude(Lanes v) { return (Lanes)((Ints)v & spread(int32_t(0x7fffffff))); }

// a * b + c, rounded once where the processor can.
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    __m256 x[2], y[2], z[2];
    std::memcpy(x, &a, 64), std::memcpy(y, &b, 64), std::memcpy(z, &c, 64);
    z[0] = _mm256_fmadd_ps(x[0], y[0], z[0]);
    z[1] = _mm256_fmadd_ps(x[1], y[1], z[1]);
    std::memcpy(&c, z, 64);
    return c;
#elif defined(__ARM_FEATURE_FMA)
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

inline float sum(Lanes v) {
    float t[LANES];
    store(t, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) t[i] += t[i + width];
    return t[0];
}

inline int32_t sum(Ints v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
#endif
}

inline bool all(Ints mask) {  // of a comparison
#if defined(__AVX512DQ__)
    return _mm512_movepi32_mask((__m512i)mask) == 0xffff;
#else
    return sum(mask) == -LANES;
#endif
}

inline float maximum(Lanes v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float best = v[0];
    for (int i = 1; i < LANES; i++) best = v[i] > best ? v[i] : best;
    return best;
#endif
}

inline float half_to_float(Half h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    if (rest >= 0x7c00) bits = 0x7f800000 | (rest & 0x3ff) << 13;  // infinity, not a number
    else if (rest >= 0x400) bits = (rest << 13) + (112u << 23);
    else {  // subnormal: rest * 2^-24
        float small = float(rest) * 5.9604644775390625e-8f;
        std::memcpy(&bits, &small, 4);
    }
    bits |= sign;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline Half float_to_half(float x) {  // to nearest even; too large saturates
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return Half(sign | 0x7e00);
    if (bits >= 0x477fe000) return Half(sign | 0x7bff);
    if (bits < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
        float small;
        std::memcpy(&small, &bits, 4);
        small += 0.5f;
        std::memcpy(&bits, &small, 4);
        return Half(sign | (bits - 0x3f000000));
    }
    return Half(sign | ((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13));
}

inline Lanes load_lanes(const float* p) { return load<Lanes>(p); }

inline Lanes load_lanes(const Half* p) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
    __m256 v[2] = {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
                   _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1))};
    return load<Lanes>(v);
#else
    Lanes v;
    for (int i = 0; i < LANES; i++) v[i] = half_to_float(p[i]);
    return v;
#endif
}

inline Lanes load_lanes(const int16_t* p) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)p)));
#else
    typedef int16_t Shorts __attribute__((vector_size(32)));
    return to_float(__builtin_convertvector(load<Shorts>(p), Ints));
#endif
}

struct BFloat {
    uint16_t bits;
};

inline Lanes load_lanes(const BFloat* p) {  // the upper half of a float
#if defined(__AVX512F__)
    return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#else
    typedef uint16_t Shorts __attribute__((vector_size(32)));
    return (Lanes)(__builtin_convertvector(load<Shorts>(p), Ints) << 16);
#endif
}

// e^x within two units in the last place; beyond 88 it stays at e^88, and where e^x underflows it is 0.
inline Lanes exponential(Lanes x) {
    const Lanes high = spread(88.0f);
    Ints under = x < spread(-87.33f);
    x = choose(x > high, high, x);
    const Lanes magic = spread(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    Lanes n = fma(x, spread(1.44269504f), magic) - magic;
    Lanes r = fma(n, spread(-0.693359375f), x);  // ln 2 in two parts
    r = fma(n, spread(2.12194440e-4f), r);
    Lanes p = spread(1.9875691500e-4f);  // Cephes' polynomial for e^r, |r| <= ln 2 / 2
    p = fma(p, r, spread(1.3981999507e-3f));
    p = fma(p, r, spread(8.3334519073e-3f));
    p = fma(p, r, spread(4.1665795894e-2f));
    p = fma(p, r, spread(1.6666665459e-1f));
    p = fma(p, r, spread(5.0000001201e-1f));
    p = fma(p, r * r, r + 1.0f);
    p = p * (Lanes)((__builtin_convertvector(n, Ints) + 127) << 23);
    return (Lanes)((Ints)p & ~under);
}

inline Lanes tanh_of(Lanes x) { return 1.0f - 2.0f / (exponential(x + x) + 1.0f); }

inline Lanes capped(Lanes x, float cap) { return cap * tanh_of(x / cap); }

}  // namespace qkv
