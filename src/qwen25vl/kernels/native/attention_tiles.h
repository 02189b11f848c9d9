// The two products of attention, in tiles of sums that stay in registers: scores = queries · keysᵀ, mixed = chances · values.
//
// The factor on the left holds a few rows of Numbers, the other is a panel: for every kDeep inputs one vector of kLanes
// outputs. AVX-512 multiplies pairs of bfloat16 numbers (kDeep = 2), AVX2 floats, widened once for a whole panel.
//
// Up to kFew rows would wait for panels to be written and read again, so they have products of their own: keys are turned,
// values are paired in registers. Both ways add the same numbers in the same order: a row's bits are the same.
#pragma once

#include "panel.h"

namespace {

constexpr int64_t kFew = 8, kKeys = 128;  // kKeys: of one block

#ifdef __AVX512F__

using Number = bf16;
using Factor = Pairs;
constexpr int64_t kDeep = 2, kTileRows = 6, kTileVectors = 4;
inline Number to_number(bf16 x) { return x; }
inline void store_numbers(Number* p, Floats x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }
inline Factor load_factor(const Number* p) { return load_pairs(p); }
inline Factor broadcast_factor(const Number* p) { return broadcast_pair(p); }
inline Floats product(Floats sum, Factor a, Factor b) { return dot(sum, a, b); }
inline Factor factor_of(Words pairs, int64_t) { return pairs; }
inline Factor interleave(const bf16* even, const bf16* odd) {
    const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)even));
    const __m512i both = _mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i*)odd), 1);
    const __m512i first = _mm512_set_epi32(0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008,
                                           0x170007, 0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
    return _mm512_permutexvar_epi16(first, both);
}
inline void store_factor(Number* p, Factor x) { store_words(p, x); }
inline Factor load_values(const bf16* key, int64_t stride) { return interleave(key, key + stride); }

#else

using Number = float;
using Factor = Floats;
constexpr int64_t kDeep = 1, kTileRows = 6, kTileVectors = 2;
inline Number to_number(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}
inline void store_numbers(Number* p, Floats x) { store(p, round_to_bf16(x)); }
inline Factor load_factor(const Number* p) { return load(p); }
inline Factor broadcast_factor(const Number* p) { return broadcast(*p); }
inline Floats product(Floats sum, Factor a, Factor b) { return multiply_add(a, b, sum); }
inline Factor factor_of(Words pairs, int64_t which) { return which ? odd_of(pairs) : even_of(pairs); }
inline void store_factor(Number* p, Factor x) { store(p, x); }
inline Factor load_values(const bf16* key, int64_t) { return load(key); }

#endif

constexpr int64_t kHalves = 2 / kDeep;  // factors in a word of two bfloat16 numbers

// to[r, v, lane] = (more ? to : 0) + Σ_k a[r, k] · panel[k, v, lane]; rows of `to` are `width` floats apart, those of `a`
// `stride` numbers; the panel has `width / kLanes` vectors for each of `depth` steps.
template <int64_t R, int64_t V>
void multiply_tile(float* to, const Number* a, int64_t stride, const Number* panel, int64_t width, int64_t depth, bool more) {
    Floats s[R][V];
    UNROLL for (int64_t r = 0; r < R; r++)
        UNROLL for (int64_t v = 0; v < V; v++) s[r][v] = more ? load(to + r * width + v * kLanes) : zeros();
    for (int64_t k = 0; k < depth; k++) {
        Factor w[V];
        UNROLL for (int64_t v = 0; v < V; v++) w[v] = load_factor(panel + kDeep * (k * width + v * kLanes));
        UNROLL for (int64_t r = 0; r < R; r++) {
            Factor x = broadcast_factor(a + r * stride + kDeep * k);
            UNROLL for (int64_t v = 0; v < V; v++) s[r][v] = product(s[r][v], w[v], x);
        }
    }
    UNROLL for (int64_t r = 0; r < R; r++)
        UNROLL for (int64_t v = 0; v < V; v++) store(to + r * width + v * kLanes, s[r][v]);
}

template <int64_t R, int64_t V>
void choose_tile(int64_t rows, int64_t vectors, float* to, const Number* a, int64_t stride, const Number* panel,
                 int64_t width, int64_t depth, bool more) {
    if constexpr (R > 1)
        if (rows < R) return choose_tile<R - 1, V>(rows, vectors, to, a, stride, panel, width, depth, more);
    if constexpr (V > 1)
        if (vectors < V) return choose_tile<R, V - 1>(rows, vectors, to, a, stride, panel, width, depth, more);
    multiply_tile<R, V>(to, a, stride, panel, width, depth, more);
}

inline void multiply(float* to, const Number* a, int64_t rows, int64_t stride, const Number* panel, int64_t width,
                     int64_t numbers, bool more) {
    const int64_t vectors = width / kLanes;
    const int64_t parts = (vectors + kTileVectors - 1) / kTileVectors, tiles = (rows + kTileRows - 1) / kTileRows;
    for (int64_t part = 0; part < parts; part++) {  // of nearly equal size: 5 vectors are 3 and 2, 8 rows are 4 and 4
        const int64_t begin = vectors * part / parts, count = vectors * (part + 1) / parts - begin;
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t row = rows * tile / tiles;
            choose_tile<kTileRows, kTileVectors>(rows * (tile + 1) / tiles - row, count, to + row * width + begin * kLanes,
                                                 a + row * stride, stride, panel + kDeep * begin * kLanes, width,
                                                 numbers / kDeep, more);
        }
    }
}

// Reading ahead: a few rows wait for memory, not for arithmetic. While a block of keys or values is used, the next one is
// asked for, in the order in which it lies there: asked for as it is used, row beside row, it arrives at half the speed.
struct Ahead {
    const char* next;  // or null
    void step(int64_t bytes) {
        if (!next) return;
        for (int64_t i = 0; i < bytes; i += 64) ask_for(next + i);
        next += bytes;
    }
};

// Words of two numbers of kLanes keys, one vector for each two numbers; zeros behind the last key and number.
inline void turn(Words r[kLanes], const bf16* from, int64_t stride, int64_t keys, int64_t numbers) {
    if (keys >= kLanes && numbers >= 2 * kLanes)
        UNROLL for (int64_t j = 0; j < kLanes; j++) r[j] = load_words(from + j * stride);
    else
        for (int64_t j = 0; j < kLanes; j++) r[j] = j < keys ? load_bytes(from + j * stride, 2 * numbers) : Words{};
    transpose(r);
}

// to[r, key] = Σ_i a[r, i] · key[i] for kKeys keys, `size` a multiple of 2 · kLanes
template <int64_t R>
void score_few(int64_t rows, float* to, const Number* a, const bf16* keys, int64_t stride, int64_t size, Ahead ahead) {
    if constexpr (R > 1)
        if (rows < R) return score_few<R - 1>(rows, to, a, keys, stride, size, ahead);
    for (int64_t key = 0; key < kKeys; key += kLanes) {
        Floats s[R];
        UNROLL for (int64_t r = 0; r < R; r++) s[r] = zeros();
        for (int64_t i = 0; i < size; i += 2 * kLanes) {
            Words w[kLanes];
            ahead.step(4 * kLanes * kLanes);
            turn(w, keys + key * stride + i, stride, kLanes, 2 * kLanes);
            UNROLL for (int64_t j = 0; j < kLanes; j++)
                UNROLL for (int64_t h = 0; h < kHalves; h++)
                    UNROLL for (int64_t r = 0; r < R; r++)
                        s[r] = product(s[r], factor_of(w[j], h), broadcast_factor(a + r * size + i + 2 * j + h));
        }
        UNROLL for (int64_t r = 0; r < R; r++) store(to + r * kKeys + key, s[r]);
    }
}

// to[r, i] = (more ? to : 0) + Σ_key chances[r, key] · value[key, i] for kKeys keys
template <int64_t R>
void mix_few(int64_t rows, float* to, const Number* chances, const bf16* values, int64_t stride, int64_t size, bool more,
             Ahead ahead) {
    if constexpr (R > 1)
        if (rows < R) return mix_few<R - 1>(rows, to, chances, values, stride, size, more, ahead);
    for (int64_t i = 0; i < size; i += 2 * kLanes) {
        Floats s[R][2];
        UNROLL for (int64_t r = 0; r < R; r++)
            UNROLL for (int64_t v = 0; v < 2; v++) s[r][v] = more ? load(to + r * size + i + v * kLanes) : zeros();
        for (int64_t key = 0; key < kKeys; key += kDeep) {
            const bf16* from = values + key * stride + i;
            ahead.step(4 * kLanes * kDeep);
            const Factor w[2] = {load_values(from, stride), load_values(from + kLanes, stride)};
            UNROLL for (int64_t r = 0; r < R; r++) {
                Factor x = broadcast_factor(chances + r * kKeys + key);
                UNROLL for (int64_t v = 0; v < 2; v++) s[r][v] = product(s[r][v], w[v], x);
            }
        }
        UNROLL for (int64_t r = 0; r < R; r++)
            UNROLL for (int64_t v = 0; v < 2; v++) store(to + r * size + i + v * kLanes, s[r][v]);
    }
}

}  // namespace
