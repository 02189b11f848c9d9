// The SIMD vocabulary for AVX2 with FMA and F16C: see vector.h.
#pragma once

#include <immintrin.h>

namespace {

using Floats = __m256;  // 8 numbers
using Pairs = __m256i;  // 16 bfloat16 numbers
using Words = __m256i;  // 8 words of 32 bits
constexpr int64_t kLanes = 8;

// Sizes of the tiles whose sums stay in the 16 registers.
constexpr int64_t kFloatTileRows = 4, kIntTileRows = 4;

inline Floats zeros() { return _mm256_setzero_ps(); }
inline Floats broadcast(float x) { return _mm256_set1_ps(x); }
inline __m256i first_lanes(int64_t count) {
    __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), places);
}

inline Floats widen(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats load(const bf16* p) { return widen(_mm_loadu_si128((const __m128i*)p)); }
inline Floats load_first(const float* p, int64_t count) {
    return _mm256_maskload_ps(p, first_lanes(count));
}
inline Floats load_first(const bf16* p, int64_t count) {
    alignas(16) bf16 padded[8] = {};
    for (int64_t i = 0; i < count; i++) padded[i] = p[i];
    return load(padded);
}
inline Floats load_halves(const uint16_t* p, int64_t count) {  // float16
    if (count >= 8) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
    alignas(16) uint16_t padded[8] = {};
    for (int64_t i = 0; i < count; i++) padded[i] = p[i];
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i*)padded));
}

inline __m256i rounded_bits(Floats x) {  // in the upper halves
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
}
inline __m128i to_bf16(Floats x) {
    __m256i bits = _mm256_srli_epi32(rounded_bits(x), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}
inline Floats round_to_bf16(Floats x) {
    __m256i upper = _mm256_set1_epi32((int)0xffff0000);
    return _mm256_castsi256_ps(_mm256_and_si256(rounded_bits(x), upper));
}
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
inline void store(bf16* p, Floats x) { _mm_storeu_si128((__m128i*)p, to_bf16(x)); }
inline void store_two(bf16* p, Floats a, Floats b) {
    store(p, a);
    store(p + kLanes, b);
}
inline void store_first(float* p, Floats x, int64_t count) {
    _mm256_maskstore_ps(p, first_lanes(count), x);
}
inline void store_first(bf16* p, Floats x, int64_t count) {
    alignas(16) bf16 all[8];
    store(all, x);
    for (int64_t i = 0; i < count; i++) p[i] = all[i];
}

inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats divide(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats round_to_int(Floats x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Floats times_power_of_two(Floats x, Floats n) {  // in two steps: subnormal results are right
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    __m256i rest = _mm256_sub_epi32(whole, half), bias = _mm256_set1_epi32(127);
    __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i second = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    return multiply(multiply(x, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
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
inline Pairs broadcast_pair(const bf16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm256_set1_epi32(pair);
}
inline Floats even_of(Pairs x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
inline Floats odd_of(Pairs x) {
    return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000)));
}
inline Floats dot(Floats sum, Pairs a, Pairs b) {
    return multiply_add(odd_of(a), odd_of(b), multiply_add(even_of(a), even_of(b), sum));
}

inline Words load_words(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline Words load_bytes(const void* p, int64_t count) {
    if (count >= 32) return load_words(p);
    alignas(32) uint8_t padded[32] = {};
    for (int64_t i = 0; i < count; i++) padded[i] = ((const uint8_t*)p)[i];
    return load_words(padded);
}
inline void store_words(void* p, Words x) { _mm256_storeu_si256((__m256i*)p, x); }
inline void store_first_words(void* p, Words x, int64_t count) {
    _mm256_maskstore_epi32((int*)p, first_lanes(count), x);
}
inline Words all_words(int32_t x) { return _mm256_set1_epi32(x); }
inline Words add_words(Words a, Words b) { return _mm256_add_epi32(a, b); }
inline int32_t sum_of(Words x) {
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}
inline Floats to_floats(Words x) { return _mm256_cvtepi32_ps(x); }
inline Words to_words(Floats x) { return _mm256_cvtps_epi32(x); }

inline void transpose(Words r[8]) {
    Words t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

inline Words low_words(Words a, Words b) { return _mm256_unpacklo_epi32(a, b); }
inline Words high_words(Words a, Words b) { return _mm256_unpackhi_epi32(a, b); }
inline Words low_doubles(Words a, Words b) { return _mm256_unpacklo_epi64(a, b); }
inline Words high_doubles(Words a, Words b) { return _mm256_unpackhi_epi64(a, b); }
inline void turn_quarters(Words u[2]) {
    Words t = _mm256_permute2x128_si256(u[0], u[1], 0x20);
    u[1] = _mm256_permute2x128_si256(u[0], u[1], 0x31);
    u[0] = t;
}

constexpr int64_t zero_point(int64_t bits) { return bits == 4 ? 8 : 0; }
inline Words for_panel(Words codes) {
    return _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80));
}
inline Words low_halves(Words x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline Words high_halves(Words x) { return low_halves(_mm256_srli_epi16(x, 4)); }
inline Words half_bytes(uint64_t x) {
    const Words places = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    return _mm256_and_si256(_mm256_srlv_epi32(all_words((int)x), places), all_words(15));
}
inline void store_as_bytes(int8_t* p, Words x) {
    __m128i y = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(y, y));
}
inline void split_pairs(const int8_t* from, int8_t* even, int8_t* odd, int64_t count) {
    for (int64_t k = 0; k < count / 2; k++) {
        even[k] = from[2 * k];
        odd[k] = from[2 * k + 1];
    }
}
constexpr int64_t steps_in_shorts(int64_t bits) { return bits == 4 ? 8 : 0; }  // 8·2·15·127 fits
inline Words add_pairs(Words shorts, Words w, Words a) {  // gcc 12 runs out of registers otherwise
    Words pairs;
    asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(shorts), "=&x"(pairs) : "x"(w), "x"(a));
    return shorts;
}
inline Words add_shorts(Words sum, Words shorts) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(shorts, _mm256_set1_epi16(1)));
}
template <int64_t kBits>
Words dot4(Words sum, Words w, Words a) {  // pairs in 16 bits: at most 2·128·127, which still fits
    Words pairs = kBits == 4 ? _mm256_maddubs_epi16(w, a)
                             : _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return add_shorts(sum, pairs);
}

}  // namespace
