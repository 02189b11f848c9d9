// The products of attention for a few rows, without panels: keys are transposed and values are
// paired in registers. Only for whole blocks of kKeys keys and sizes that are multiples of 2 ·
// kLanes.
#pragma once

#include "attention_tiles.h"

namespace {

constexpr int64_t kMaxFewRows = 8;  // with so many sums in registers

// to[r][key] = Σ_i a[r][i] · key[i]
template <int64_t R>
void score_few(int64_t rows, float* to, const Number* a, const HeadRows& keys, Ahead ahead) {
    if constexpr (R > 1)
        if (rows < R) return score_few<R - 1>(rows, to, a, keys, ahead);
    const int64_t size = keys.size;
    for (int64_t key = 0; key < kKeys; key += kLanes) {
        Floats s[R];
        UNROLL for (int64_t r = 0; r < R; r++) s[r] = zeros();
        for (int64_t i = 0; i < size; i += 2 * kLanes) {
            Words w[kLanes];
            ahead.step(4 * kLanes * kLanes);
            transpose_keys(w, keys.from + key * keys.stride + i, keys.stride, kLanes, 2 * kLanes);
            UNROLL for (int64_t j = 0; j < kLanes; j++)
                UNROLL for (int64_t h = 0; h < kHalves; h++)
                    UNROLL for (int64_t r = 0; r < R; r++) {
                        const Factor x = broadcast_factor(a + r * size + i + 2 * j + h);
                        s[r] = product(s[r], factor_of(w[j], h), x);
                    }
        }
        UNROLL for (int64_t r = 0; r < R; r++) store(to + r * kKeys + key, s[r]);
    }
}

// to[r][i] = (more ? to : 0) + Σ_key chances[r][key] · value[key][i]
template <int64_t R>
void mix_few(int64_t rows, float* to, const Number* chances, const HeadRows& values, bool more,
             Ahead ahead) {
    if constexpr (R > 1)
        if (rows < R) return mix_few<R - 1>(rows, to, chances, values, more, ahead);
    const int64_t size = values.size, stride = values.stride;
    for (int64_t i = 0; i < size; i += 2 * kLanes) {
        Floats s[R][2];
        UNROLL for (int64_t r = 0; r < R; r++)
            UNROLL for (int64_t v = 0; v < 2; v++)
                s[r][v] = more ? load(to + r * size + i + v * kLanes) : zeros();
        for (int64_t key = 0; key < kKeys; key += kDeep) {
            const bf16* from = values.from + key * stride + i;
            ahead.step(4 * kLanes * kDeep);
            const Factor w[2] = {load_values(from, stride), load_values(from + kLanes, stride)};
            UNROLL for (int64_t r = 0; r < R; r++) {
                const Factor x = broadcast_factor(chances + r * kKeys + key);
                UNROLL for (int64_t v = 0; v < 2; v++) s[r][v] = product(s[r][v], w[v], x);
            }
        }
        UNROLL for (int64_t r = 0; r < R; r++)
            UNROLL for (int64_t v = 0; v < 2; v++) store(to + r * size + i + v * kLanes, s[r][v]);
    }
}

}  // namespace
