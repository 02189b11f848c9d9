// The SIMD vocabulary of the kernels, written once for AVX-512 and once for AVX2: which one is chosen by the compiler's
// flags, since every kernel file is compiled once for each instruction set. A kernel exported as KERNEL(name) is called
// name_avx512 or name_avx2.
//
// bfloat16 numbers are the upper halves of floats. They are kept as uint16_t, and rounded to nearest, ties to even.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define JOIN_NAME(name, isa) name##_##isa
#define NAME_FOR(name, isa) JOIN_NAME(name, isa)
#define UNROLL _Pragma("GCC unroll 16")
#define OWN(name) NAME_FOR(name, ISA)
#define KERNEL(name) __attribute__((visibility("default"))) OWN(name)

namespace {

using bf16 = uint16_t;

#ifdef __AVX512F__

using Floats = __m512;  // 16 numbers
using Pairs = __m512i;  // 32 bfloat16 numbers, neighbours are multiplied and added together
constexpr int64_t kLanes = 16;

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats broadcast(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline __mmask16 first_lanes(int64_t count) { return (__mmask16)((1u << count) - 1); }
inline Floats load_first(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first_lanes(count), p); }
inline Floats load_first(const bf16* p, int64_t count) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), p)), 16));
}
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline __m512i rounded_bits(Floats x) {  // in the upper halves; not vcvtneps2bf16, which takes subnormal numbers for zero
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
}
inline __m256i to_bf16(Floats x) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_bits(x), 16)); }
inline void store(bf16* p, Floats x) { _mm256_storeu_si256((__m256i*)p, to_bf16(x)); }
inline void store_first(float* p, Floats x, int64_t count) { _mm512_mask_storeu_ps(p, first_lanes(count), x); }
inline void store_first(bf16* p, Floats x, int64_t count) {
    _mm256_mask_storeu_epi16(p, first_lanes(count), to_bf16(x));
}
inline Floats round_to_bf16(Floats x) {
    return _mm512_castsi512_ps(_mm512_and_si512(rounded_bits(x), _mm512_set1_epi32((int)0xffff0000)));
}
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }  // a·b + c
inline Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats round_to_int(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats times_power_of_two(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }  // x · 2ⁿ, n whole
inline float sum(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }

inline Pairs load_pairs(const bf16* p) { return _mm512_loadu_si512(p); }
inline Pairs load_first_pairs(const bf16* p, int64_t count) {  // count bfloat16 numbers, zeros after them
    return _mm512_maskz_loadu_epi16((__mmask32)((1ull << count) - 1), p);
}
inline Pairs broadcast_pair(const bf16* p) { return _mm512_set1_epi32(*(const int32_t*)p); }
inline Floats dot(Floats sum, Pairs a, Pairs b) {  // lane i: sum + a₂ᵢ·b₂ᵢ + a₂ᵢ₊₁·b₂ᵢ₊₁
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

#else

using Floats = __m256;  // 8 numbers
using Pairs = __m256i;  // 16 bfloat16 numbers
constexpr int64_t kLanes = 8;

inline Floats zeros() { return _mm256_setzero_ps(); }
inline Floats broadcast(float x) { return _mm256_set1_ps(x); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline Floats load(const bf16* p) { return widen(_mm_loadu_si128((const __m128i*)p)); }
inline __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Floats load_first(const float* p, int64_t count) { return _mm256_maskload_ps(p, first_lanes(count)); }
inline Floats load_first(const bf16* p, int64_t count) {
    alignas(16) bf16 padded[8] = {};
    for (int64_t i = 0; i < count; i++) padded[i] = p[i];
    return load(padded);
}
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
inline __m256i rounded_bits(Floats x) {  // in the upper halves
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
}
inline __m128i to_bf16(Floats x) {
    __m256i rounded = _mm256_srli_epi32(rounded_bits(x), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
inline void store(bf16* p, Floats x) { _mm_storeu_si128((__m128i*)p, to_bf16(x)); }
inline void store_first(float* p, Floats x, int64_t count) { _mm256_maskstore_ps(p, first_lanes(count), x); }
inline void store_first(bf16* p, Floats x, int64_t count) {
    alignas(16) bf16 all[8];
    store(all, x);
    for (int64_t i = 0; i < count; i++) p[i] = all[i];
}
inline Floats round_to_bf16(Floats x) {
    return _mm256_castsi256_ps(_mm256_and_si256(rounded_bits(x), _mm256_set1_epi32((int)0xffff0000)));
}
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats divide(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats round_to_int(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats times_power_of_two(Floats x, Floats n) {  // in two steps, so that results down to the subnormal are right
    __m256i half = _mm256_srai_epi32(_mm256_cvtps_epi32(n), 1), rest = _mm256_sub_epi32(_mm256_cvtps_epi32(n), half);
    __m256i bias = _mm256_set1_epi32(127);
    Floats first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    Floats second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return multiply(multiply(x, first), second);
}
inline float sum(Floats x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline float largest(Floats x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

inline Pairs load_pairs(const bf16* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline Pairs load_first_pairs(const bf16* p, int64_t count) {
    alignas(32) bf16 padded[16] = {};
    for (int64_t i = 0; i < count; i++) padded[i] = p[i];
    return load_pairs(padded);
}
inline Pairs broadcast_pair(const bf16* p) { return _mm256_set1_epi32(*(const int32_t*)p); }
inline Floats even_of(Pairs x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
inline Floats odd_of(Pairs x) { return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000))); }
inline Floats dot(Floats sum, Pairs a, Pairs b) {
    return multiply_add(odd_of(a), odd_of(b), multiply_add(even_of(a), even_of(b), sum));
}

#endif

// eˣ within 2 units of the last place, 0 below −104, +∞ above 89: 2ⁿ · e^r with |r| ≤ ln 2 / 2, e^r by its series. Step by
// step for N vectors at once: each step waits for the one before, and the processor does not look far enough ahead to fill
// the time with other vectors by itself.
template <int64_t N>
void exponentials(Floats (&x)[N]) {
    Floats n[N], p[N];
    UNROLL for (int64_t i = 0; i < N; i++) {
        x[i] = minimum(broadcast(89.f), maximum(broadcast(-104.f), x[i]));  // in this order NaN stays NaN
        n[i] = round_to_int(multiply(x[i], broadcast(1.44269504f)));
        x[i] = multiply_add(n[i], broadcast(-0.693359375f), x[i]);  // ln 2 in two parts, the first of few bits
        x[i] = multiply_add(n[i], broadcast(2.12194440e-4f), x[i]);
    }
    UNROLL for (int64_t i = 0; i < N; i++) {
        p[i] = multiply_add(broadcast(1.9875691500e-4f), x[i], broadcast(1.3981999507e-3f));
        p[i] = multiply_add(p[i], x[i], broadcast(8.3334519073e-3f));
        p[i] = multiply_add(p[i], x[i], broadcast(4.1665795894e-2f));
    }
    UNROLL for (int64_t i = 0; i < N; i++) {
        p[i] = multiply_add(p[i], x[i], broadcast(1.6666665459e-1f));
        p[i] = multiply_add(p[i], x[i], broadcast(5.0000001201e-1f));
        p[i] = multiply_add(multiply(p[i], x[i]), x[i], add(x[i], broadcast(1.f)));
    }
    UNROLL for (int64_t i = 0; i < N; i++) x[i] = times_power_of_two(p[i], n[i]);
}

}  // namespace
