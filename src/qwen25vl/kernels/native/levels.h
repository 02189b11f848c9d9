// Activations as 8-bit levels, and the arithmetic of bytes that multiplies them with weights of 8 or 4 bits.
#pragma once

#include "tiles.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr int64_t kBlock = 128;         // inputs that share an activation scale
constexpr int64_t kSteps = kBlock / 4;  // vectors of a panel for one block
constexpr int64_t kMostRows = 32;       // of a tile

#ifdef __AVX512F__
constexpr int64_t kTile = 6;
constexpr int64_t zero_point(int64_t bits) { return bits == 4 ? 8 : 128; }
inline Words for_panel(Words codes) { return codes; }
inline Words low_halves(Words x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Words high_halves(Words x) { return low_halves(_mm512_srli_epi16(x, 4)); }
inline Words all_words(int32_t x) { return _mm512_set1_epi32(x); }
inline Words add_words(Words a, Words b) { return _mm512_add_epi32(a, b); }
inline int32_t sum_of(Words x) { return _mm512_reduce_add_epi32(x); }
inline Floats to_floats(Words x) { return _mm512_cvtepi32_ps(x); }
inline Words to_words(Floats x) { return _mm512_cvtps_epi32(x); }
inline void store_as_bytes(int8_t* p, Words x) { _mm_store_si128((__m128i*)p, _mm512_cvtepi32_epi8(x)); }
inline void split_pairs(const int8_t* from, int8_t* even, int8_t* odd) {  // the numbers of a block
    for (int i = 0; i < kBlock / 64; i++) {
        Words x = load_words(from + 64 * i);
        _mm256_storeu_si256((__m256i*)(even + 32 * i), _mm512_cvtepi16_epi8(x));
        _mm256_storeu_si256((__m256i*)(odd + 32 * i), _mm512_cvtepi16_epi8(_mm512_srli_epi16(x, 8)));
    }
}
template <int64_t kBits>
Words dot4(Words sum, Words w, Words a) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(a));  // with the intrinsic gcc 12 stores every sum each time
    return sum;
}
#else
constexpr int64_t kTile = 4;
constexpr int64_t zero_point(int64_t bits) { return bits == 4 ? 8 : 0; }
inline Words for_panel(Words codes) { return _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80)); }
inline Words low_halves(Words x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline Words high_halves(Words x) { return low_halves(_mm256_srli_epi16(x, 4)); }
inline Words all_words(int32_t x) { return _mm256_set1_epi32(x); }
inline Words add_words(Words a, Words b) { return _mm256_add_epi32(a, b); }
inline int32_t sum_of(Words x) {
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}
inline Floats to_floats(Words x) { return _mm256_cvtepi32_ps(x); }
inline Words to_words(Floats x) { return _mm256_cvtps_epi32(x); }
inline void store_as_bytes(int8_t* p, Words x) {
    __m128i y = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(y, y));
}
inline void split_pairs(const int8_t* from, int8_t* even, int8_t* odd) {
    for (int64_t k = 0; k < kBlock / 2; k++) even[k] = from[2 * k], odd[k] = from[2 * k + 1];
}
template <int64_t kBits>
Words dot4(Words sum, Words w, Words a) {  // pairs in 16 bits: at most 2·128·127, which still fits
    Words pairs = kBits == 4 ? _mm256_maddubs_epi16(w, a)
                             : _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

// Activations in 8 bits, laid out as `multiply_tile` walks them: tile by tile of kTile rows (R in the last one), in a
// tile block by block. values [steps, R, 4]: for 4-bit weights the even inputs of a block come first, then the odd ones,
// since a byte of the weights holds both. For AMX's tiles values are [2, R, 64], rows as they are.
// starts [groups, R]: −zero · Σ a, where the sums begin. scales [R].
struct Activations {
    int8_t* values;
    int32_t* starts;
    float* scales;
    int64_t blocks;
};

// A block of one row: levels in the order of the panel, their sums over each `kBlock / groups` inputs, and the scale.
template <int64_t kBits>
float quantise_block(const bf16* x, int64_t count, int8_t* levels, int32_t* sums, int64_t groups) {
    constexpr int64_t kParts = kBlock / kLanes;
    Floats numbers[kParts], top = zeros(), no_number = zeros();
    for (int64_t i = 0; i < kParts; i++) {
        int64_t some = count - i * kLanes;
        numbers[i] = some >= kLanes ? load(x + i * kLanes) : some > 0 ? load_first(x + i * kLanes, some) : zeros();
        top = maximum(top, maximum(numbers[i], subtract(zeros(), numbers[i])));
        no_number = multiply_add(numbers[i], zeros(), no_number);  // of NaN the maximum may know nothing
    }
    float most = largest(top);
    Floats inverse = broadcast(most > 0 ? 127.f / most : 0.f);
    alignas(64) int8_t in_order[kBlock];
    for (int64_t group = 0; group < groups; group++) {
        Words total{};
        for (int64_t i = group * kParts / groups; i < (group + 1) * kParts / groups; i++) {
            Words level = to_words(multiply(numbers[i], inverse));
            total = add_words(total, level);
            store_as_bytes(in_order + i * kLanes, level);
        }
        sums[group] = sum_of(total);
    }
    if (kBits == 8) __builtin_memcpy(levels, in_order, kBlock);
    else split_pairs(in_order, levels, levels + kBlock / 2);
    return (most + sum(no_number)) / 127.f;
}

// One block of a tile of R rows of x, from row `first` on; `in_rows`: as AMX has them.
template <int64_t kBits>
void quantise_tile(const Activations& a, int64_t first, int64_t block, int64_t R, const bf16* x, int64_t inputs,
                   int64_t groups, bool in_rows) {
    int32_t* values = (int32_t*)(a.values + (first * a.blocks + block * R) * kBlock);
    int32_t* starts = a.starts + (first * a.blocks + block * R) * groups;
    alignas(64) int32_t levels[kMostRows][kSteps];
    for (int64_t m = 0; m < R; m++) {
        int32_t sums[4];
        int64_t at = block * kBlock;
        a.scales[first * a.blocks + block * R + m] =
            quantise_block<kBits>(x + (first + m) * inputs + at, inputs - at, (int8_t*)levels[m], sums, groups);
        for (int64_t g = 0; g < groups; g++) starts[g * R + m] = -(int32_t)zero_point(kBits) * sums[g];
    }
    for (int64_t step = 0; step < kSteps; step += kLanes) {
        Words r[kLanes];
        if (in_rows) {
            for (int64_t m = 0; m < R; m++) store_words(values + step * R + m * kLanes, load_words(levels[m] + step));
            continue;
        }
        for (int64_t m = 0; m < kLanes; m++) r[m] = m < R && m < kTile ? load_words(levels[m] + step) : Words{};
        transpose(r);
        for (int64_t i = 0; i < kLanes; i++) store_first_words(values + (step + i) * R, r[i], R);
    }
}

}  // namespace
