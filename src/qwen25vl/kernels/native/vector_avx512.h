// The SIMD vocabulary for AVX-512 with VNNI, and for that with BF16 too: see vector.h.
#pragma once

#include <immintrin.h>

namespace {

using Floats = __m512;  // 16 numbers
using Pairs = __m512i;  // 32 bfloat16 numbers, neighbours are multiplied and added together
using Words = __m512i;  // 16 words of 32 bits
constexpr int64_t kLanes = 16;

// Sizes of the tiles whose sums stay in the 32 registers.
constexpr int64_t kFloatTileRows = 12, kIntTileRows = 6;

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats broadcast(float x) { return _mm512_set1_ps(x); }
inline __mmask16 first_lanes(int64_t count) { return (__mmask16)((1u << count) - 1); }

inline Floats widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
inline Floats load_first(const float* p, int64_t count) {
    return _mm512_maskz_loadu_ps(first_lanes(count), p);
}
inline Floats load_first(const bf16* p, int64_t count) {
    return widen(_mm256_maskz_loadu_epi16(first_lanes(count), p));
}
inline Floats load_halves(const uint16_t* p, int64_t count) {  // float16
    __mmask16 mask = (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1);
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}

// The rounded numbers in the upper halves; not vcvtneps2bf16, which takes subnormal numbers for
// zero.
inline __m512i rounded_bits(Floats x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
}
inline __m256i to_bf16(Floats x) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_bits(x), 16));
}
inline Floats round_to_bf16(Floats x) {
    __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    return _mm512_castsi512_ps(_mm512_and_si512(rounded_bits(x), upper));
}
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline void store(bf16* p, Floats x) { _mm256_storeu_si256((__m256i*)p, to_bf16(x)); }
#ifdef __AVX512BF16__
inline void store_two(bf16* p, Floats a, Floats b) {
    constexpr int kNan = 0x81, kSubnormal = 0x20;  // what the instruction turns into other numbers
    const __mmask16 rare =
        _mm512_fpclass_ps_mask(a, kNan | kSubnormal) | _mm512_fpclass_ps_mask(b, kNan | kSubnormal);
    if (rare) {
        store(p, a);
        store(p + kLanes, b);
    } else {
        _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
}
#else
inline void store_two(bf16* p, Floats a, Floats b) {
    store(p, a);
    store(p + kLanes, b);
}
#endif
inline void store_first(float* p, Floats x, int64_t count) {
    _mm512_mask_storeu_ps(p, first_lanes(count), x);
}
inline void store_first(bf16* p, Floats x, int64_t count) {
    _mm256_mask_storeu_epi16(p, first_lanes(count), to_bf16(x));
}

inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats round_to_int(Floats x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Floats times_power_of_two(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }
inline float sum(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }

inline Pairs load_pairs(const bf16* p) { return _mm512_loadu_si512(p); }
inline Pairs broadcast_pair(const bf16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
}
#ifdef __AVX512BF16__
inline Floats dot(Floats sum, Pairs a, Pairs b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
#else
inline Floats even_of(Pairs x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
inline Floats odd_of(Pairs x) {
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000)));
}
inline Floats dot(Floats sum, Pairs a, Pairs b) {
    return multiply_add(odd_of(a), odd_of(b), multiply_add(even_of(a), even_of(b), sum));
}
#endif

inline Words load_words(const void* p) { return _mm512_loadu_si512(p); }
inline Words load_bytes(const void* p, int64_t count) {
    __mmask64 mask = count >= 64 ? ~0ull : count <= 0 ? 0 : (1ull << count) - 1;
    return _mm512_maskz_loadu_epi8(mask, p);
}
inline void store_words(void* p, Words x) { _mm512_storeu_si512(p, x); }
inline void store_first_words(void* p, Words x, int64_t count) {
    _mm512_mask_storeu_epi32(p, first_lanes(count), x);
}
inline Words all_words(int32_t x) { return _mm512_set1_epi32(x); }
inline Words add_words(Words a, Words b) { return _mm512_add_epi32(a, b); }
inline int32_t sum_of(Words x) {  // wraps around; gcc's reduce_add may not
    __m256i z = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(z), _mm256_extracti128_si256(z, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}
inline Floats to_floats(Words x) { return _mm512_cvtepi32_ps(x); }
inline Words to_words(Floats x) { return _mm512_cvtps_epi32(x); }

inline void transpose(Words r[16]) {
    Words t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

inline Words low_words(Words a, Words b) { return _mm512_unpacklo_epi32(a, b); }
inline Words high_words(Words a, Words b) { return _mm512_unpackhi_epi32(a, b); }
inline Words low_doubles(Words a, Words b) { return _mm512_unpacklo_epi64(a, b); }
inline Words high_doubles(Words a, Words b) { return _mm512_unpackhi_epi64(a, b); }
inline void turn_quarters(Words u[4]) {
    Words t[4] = {_mm512_shuffle_i32x4(u[0], u[1], 0x88), _mm512_shuffle_i32x4(u[2], u[3], 0x88),
                  _mm512_shuffle_i32x4(u[0], u[1], 0xdd), _mm512_shuffle_i32x4(u[2], u[3], 0xdd)};
    for (int i = 0; i < 2; i++) {
        u[i] = _mm512_shuffle_i32x4(t[2 * i], t[2 * i + 1], 0x88);
        u[i + 2] = _mm512_shuffle_i32x4(t[2 * i], t[2 * i + 1], 0xdd);
    }
}

constexpr int64_t zero_point(int64_t bits) { return bits == 4 ? 8 : 128; }
inline Words for_panel(Words codes) { return codes; }
inline Words low_halves(Words x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Words high_halves(Words x) { return low_halves(_mm512_srli_epi16(x, 4)); }
inline Words half_bytes(uint64_t x) {
    const Words places =
        _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const Words low = all_words((int)x), high = all_words((int)(x >> 32));
    const Words words = _mm512_mask_mov_epi32(low, 0xff00, high);
    return _mm512_and_si512(_mm512_srlv_epi32(words, places), all_words(15));
}
inline void store_as_bytes(int8_t* p, Words x) {
    _mm_store_si128((__m128i*)p, _mm512_cvtepi32_epi8(x));
}
// kLanes numbers of two rows, side by side.
inline Pairs interleave(const bf16* even, const bf16* odd) {
    const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)even));
    const __m512i both = _mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i*)odd), 1);
    const __m512i first = _mm512_set_epi32(
        0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008, 0x170007,
        0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
    return _mm512_permutexvar_epi16(first, both);
}
inline void split_pairs(const int8_t* from, int8_t* even, int8_t* odd, int64_t count) {
    for (int64_t i = 0; i < count / 64; i++) {
        Words x = load_words(from + 64 * i);
        _mm256_storeu_si256((__m256i*)(even + 32 * i), _mm512_cvtepi16_epi8(x));
        x = _mm512_srli_epi16(x, 8);
        _mm256_storeu_si256((__m256i*)(odd + 32 * i), _mm512_cvtepi16_epi8(x));
    }
}
template <int64_t kBits>
Words dot4(Words sum, Words w, Words a) {  // with the intrinsic gcc 12 stores every sum each time
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(a));
    return sum;
}
constexpr int64_t steps_in_shorts(int64_t) { return 0; }  // dot4 is one instruction
inline Words add_pairs(Words sum, Words w, Words a) { return dot4<4>(sum, w, a); }
inline Words add_shorts(Words sum, Words others) { return add_words(sum, others); }

}  // namespace
