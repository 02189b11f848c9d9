// The two products of attention, in tiles of sums that stay in registers: scores = queries · keysᵀ,
// mixed = chances · values.
//
// The factor on the left holds a few rows of Numbers, the other is a panel [depth][width /
// kLanes][kLanes] of kDeep inputs each: for every kDeep inputs one vector of kLanes outputs.
// AVX-512 with BF16 multiplies pairs of bfloat16 numbers (kDeep = 2), the others floats, widened
// once for a whole panel.
//
// A few rows would wait for panels to be written and read again, so they have products of their own
// (attention_few.h). Both ways add the same numbers in the same order: a row's bits are the same.
#pragma once

#include "attention.h"

namespace {

constexpr int64_t kKeys = 128;  // of one block

#ifdef __AVX512BF16__

using Number = bf16;
using Factor = Pairs;
constexpr int64_t kDeep = 2, kSumRows = 6, kSumVectors = 4;  // sums that stay in registers
inline Number to_number(bf16 x) { return x; }
inline void store_numbers(Number* p, Floats x) {
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x));
}
inline Factor load_factor(const Number* p) { return load_pairs(p); }
inline Factor broadcast_factor(const Number* p) { return broadcast_pair(p); }
inline Floats product(Floats sum, Factor a, Factor b) { return dot(sum, a, b); }
inline Factor factor_of(Words pairs, int64_t) { return pairs; }
inline void store_factor(Number* p, Factor x) { store_words(p, x); }
inline Factor load_values(const bf16* key, int64_t stride) { return interleave(key, key + stride); }

#else

using Number = float;
using Factor = Floats;
constexpr int64_t kDeep = 1, kSumRows = 6, kSumVectors = kLanes == 16 ? 4 : 2;
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
inline Factor factor_of(Words pairs, int64_t which) {
    return which ? odd_of(pairs) : even_of(pairs);
}
inline void store_factor(Number* p, Factor x) { store(p, x); }
inline Factor load_values(const bf16* key, int64_t) { return load(key); }

#endif

constexpr int64_t kHalves = 2 / kDeep;  // factors in a word of two bfloat16 numbers

// The operands of to[r][v][lane] = (more ? to : 0) + Σ_k a[r][k] · panel[k][v][lane]: rows of `to`
// are `width` floats apart, those of `a` `stride` numbers, and the panel has `depth` steps.
struct SumOperands {
    float* to;
    const Number* a;
    int64_t stride;
    const Number* panel;
    int64_t width, depth;
    bool more;
};

template <int64_t R, int64_t V>
void sum_tile(const SumOperands& o) {
    const int64_t stride = o.stride, width = o.width, depth = o.depth;
    float* to = o.to;
    const Number *a = o.a, *panel = o.panel;
    Floats s[R][V];
    UNROLL for (int64_t r = 0; r < R; r++)
        UNROLL for (int64_t v = 0; v < V; v++)
            s[r][v] = o.more ? load(to + r * width + v * kLanes) : zeros();
    for (int64_t k = 0; k < depth; k++) {
        Factor w[V];
        UNROLL for (int64_t v = 0; v < V; v++)
            w[v] = load_factor(panel + kDeep * (k * width + v * kLanes));
        UNROLL for (int64_t r = 0; r < R; r++) {
            const Factor x = broadcast_factor(a + r * stride + kDeep * k);
            UNROLL for (int64_t v = 0; v < V; v++) s[r][v] = product(s[r][v], w[v], x);
        }
    }
    UNROLL for (int64_t r = 0; r < R; r++)
        UNROLL for (int64_t v = 0; v < V; v++) store(to + r * width + v * kLanes, s[r][v]);
}

// `sum_tile` for so many rows and vectors, at most R and V.
template <int64_t R, int64_t V>
void sum_tile_of(int64_t rows, int64_t vectors, const SumOperands& o) {
    if constexpr (R > 1)
        if (rows < R) return sum_tile_of<R - 1, V>(rows, vectors, o);
    if constexpr (V > 1)
        if (vectors < V) return sum_tile_of<R, V - 1>(rows, vectors, o);
    sum_tile<R, V>(o);
}

// All rows, by tiles of nearly equal size: 5 vectors are 3 and 2, 8 rows are 4 and 4.
inline void sum_products(int64_t rows, const SumOperands& all) {
    const int64_t vectors = all.width / kLanes;
    const int64_t parts = (vectors + kSumVectors - 1) / kSumVectors;
    const int64_t tiles = (rows + kSumRows - 1) / kSumRows;
    for (int64_t part = 0; part < parts; part++) {
        const int64_t begin = vectors * part / parts, end = vectors * (part + 1) / parts;
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t row = rows * tile / tiles, stop = rows * (tile + 1) / tiles;
            SumOperands some = all;
            some.to += row * all.width + begin * kLanes;
            some.a += row * all.stride;
            some.panel += kDeep * begin * kLanes;
            sum_tile_of<kSumRows, kSumVectors>(stop - row, end - begin, some);
        }
    }
}

}  // namespace
