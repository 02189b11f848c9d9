// Panels of 8-bit and 4-bit weights, and what multiplies one with a tile of activations.
#pragma once

#include "dots.h"

namespace {

// Whether more rows than those that take weights as stored go through AMX's tiles, which have 64
// inputs at a time: not where scales change more often.
constexpr bool by_tiles(int64_t groups) {
#ifdef HAS_TILES
    return groups == 1;
#else
    return groups < 0;
#endif
}
constexpr int64_t rows_at_once(int64_t groups) {
    return by_tiles(groups) ? kMostTileRows : kIntTileRows;
}

// y = x·wᵀ + bias for one layer. weight: rows of `stride` bytes; scales of 4-bit weights
// [outputs, groups] in float16, of 8-bit weights [outputs] in float32, the other one is null. Zero
// points [outputs / 8, groups] of 4-bit weights, or null: a word holds those of eight outputs, the
// first in its lowest bits.
struct IntProduct {
    const uint8_t* weight;
    int64_t stride;
    const uint16_t* halves;
    const uint32_t* zero_points;
    int64_t groups;
    const float* scale;
    const bf16* bias;
    bf16* y;
    Activations x;
    Layout layout;  // of x
    int64_t rows, outputs;

    Results results() const { return {y, scale, bias, outputs}; }
};

struct Blocks {
    int64_t start, count;
};

// A panel holds the weights of kVectors · kLanes outputs; where they have 4 bits their scales, and
// their zero points if they have any:
//
//     codes   [block][step][kVectors][kLanes][4 inputs], bytes; kSteps steps for each block
//     scales, zero_points  [block][group][kVectors][kLanes]
//
// For tiles the codes are [block][step / kLanes][kVectors][step % kLanes][kLanes][4 inputs], and
// signed.
struct IntPanel {
    const uint8_t* codes;
    const float *scales, *zero_points;
};

template <bool kAsTiles>
constexpr int64_t vector_of_codes(int64_t v) {
    return kAsTiles ? v * kLanes * kBytes : v * kBytes;
}
template <int64_t kVectors, bool kAsTiles>
constexpr int64_t step_of_codes(int64_t step) {
    return kAsTiles ? step / kLanes * kVectors * kLanes * kBytes + step % kLanes * kBytes
                    : step * kVectors * kBytes;
}

#ifdef HAS_TILES
inline Words signed_codes(Words codes, int64_t zero) {
    return _mm512_sub_epi8(codes, _mm512_set1_epi8((char)zero));
}
#else
inline Words signed_codes(Words codes, int64_t) { return codes; }
#endif

// What is asked for while a panel is filled: nothing, the rows' next lines, or also those of the
// next panel.
enum class Ahead { kNot, kInRows, kLater };

// Transpose blocks of kLanes outputs from `first` on into a vector of a panel's codes. `zero`: what
// tiles have to subtract.
template <int64_t kBits, int64_t kVectors, bool kAsTiles>
void fill_int_panel(uint8_t* codes, const IntProduct& p, int64_t first, Blocks blocks, int64_t zero,
                    Ahead ahead) {
    constexpr int64_t kBlockBytes = kBlock * kBits / 8;
    const int64_t begin = blocks.start * kBlockBytes, end = begin + blocks.count * kBlockBytes;
    const auto put = [&](int64_t step, Words w) {
        uint8_t* to = codes + step_of_codes<kVectors, kAsTiles>(step);
        if constexpr (kAsTiles) store_words(to, signed_codes(w, zero));
        else store_words(to, kBits == 8 ? for_panel(w) : w);
    };
    for (int64_t at = begin; at < end; at += kBytes) {
        Words r[kLanes];
        const uint8_t* from = p.weight + first * p.stride + at;
        const uint8_t* later = p.weight + (first + kVectors * kLanes) * p.stride + at * kLanes;
        if (ahead == Ahead::kInRows) ask_ahead(from, p.stride);
        if (ahead == Ahead::kLater) ask_ahead(from, p.stride, later);
        if (first + kLanes <= p.outputs && p.stride - at >= kBytes)
            for (int64_t i = 0; i < kLanes; i++) r[i] = load_words(from + i * p.stride);
        else
            for (int64_t i = 0; i < kLanes; i++) {
                const bool is_output = first + i < p.outputs;
                r[i] = is_output ? load_bytes(from + i * p.stride, p.stride - at) : Words{};
            }
        transpose(r);
        const int64_t block = at / kBlockBytes - blocks.start;
        const int64_t step = block * kSteps + at % kBlockBytes / 4;
        for (int64_t i = 0; i < kLanes; i++)
            if constexpr (kBits == 8) {
                put(step + i, r[i]);
            } else {
                put(step + i, low_halves(r[i]));
                put(step + i + kSteps / 2, high_halves(r[i]));
            }
    }
}

// The scales of kLanes outputs from `first` on for `count` groups, in every kVectors-th vector;
// zeros after the last group, which may end before its block does.
template <int64_t kVectors>
void fill_scales(float* scales, const IntProduct& p, int64_t first, int64_t count) {
    for (int64_t g = 0; g < count; g += kLanes) {
        Words r[kLanes];
        for (int64_t i = 0; i < kLanes; i++) {
            const uint16_t* from = p.halves + (first + i) * p.groups + g;
            const bool is_inside = first + i < p.outputs && g < p.groups;
            const Floats row = is_inside ? load_halves(from, p.groups - g) : zeros();
            std::memcpy(&r[i], &row, sizeof row);
        }
        transpose(r);
        for (int64_t i = 0; i < kLanes && g + i < count; i++)
            store_words(scales + (g + i) * kVectors * kLanes, r[i]);
    }
}

// Their zero points, likewise.
template <int64_t kVectors>
void fill_zero_points(float* to, const IntProduct& p, int64_t first, int64_t count) {
    const int64_t row = first / 8, num_rows = (p.outputs + 7) / 8;
    for (int64_t g = 0; g < count; g++, to += kVectors * kLanes) {
        const uint32_t* from = p.zero_points + row * p.groups + g;
        uint64_t all = row < num_rows && g < p.groups ? *from : 0;
        if (kLanes > 8 && row + 1 < num_rows && g < p.groups)
            all |= (uint64_t)from[p.groups] << 32;
        store(to, to_floats(half_bytes(all >> first % 8 * 4)));
    }
}

// Call add(chain, row, vector, weights, activations) for steps [begin, end) of a block, `kChains`
// steps side by side.
template <int64_t kRows, int64_t kVectors, int64_t kChains, class Add>
FORCE_INLINE void for_steps(const int8_t* values, const uint8_t* codes, int64_t begin, int64_t end,
                            const Add& add) {
    for (int64_t s = begin; s < end; s += kChains)
        UNROLL for (int64_t c = 0; c < kChains; c++) {
            Words w[kVectors];
            UNROLL for (int64_t v = 0; v < kVectors; v++)
                w[v] = load_words(codes + ((s + c) * kVectors + v) * kBytes);
            UNROLL for (int64_t m = 0; m < kRows; m++) {
                int32_t four;
                std::memcpy(&four, values + ((s + c) * kRows + m) * 4, 4);
                UNROLL for (int64_t v = 0; v < kVectors; v++) add(c, m, v, w[v], all_words(four));
            }
        }
}

// Steps [begin, end) of a block, added to n[chain][row][vector].
template <int64_t kBits, int64_t kRows, int64_t kVectors, int64_t kChains>
FORCE_INLINE void add_steps(Words (&n)[kChains][kRows][kVectors], const int8_t* values,
                            const uint8_t* codes, int64_t begin, int64_t end) {
    constexpr int64_t kMost = steps_in_shorts(kBits);
    if constexpr (kMost == 0) {
        for_steps<kRows, kVectors, kChains>(
            values, codes, begin, end,
            [&](int64_t c, int64_t m, int64_t v, Words w, Words a) {
                n[c][m][v] = dot4<kBits>(n[c][m][v], w, a);
            });
    } else {
        for (int64_t s = begin; s < end; s += kMost) {
            Words shorts[kRows][kVectors] = {};
            for_steps<kRows, kVectors, 1>(
                values, codes, s, s + kMost < end ? s + kMost : end,
                [&](int64_t, int64_t m, int64_t v, Words w, Words a) {
                    shorts[m][v] = add_pairs(shorts[m][v], w, a);
                });
            UNROLL for (int64_t m = 0; m < kRows; m++)
                UNROLL for (int64_t v = 0; v < kVectors; v++)
                    n[0][m][v] = add_shorts(n[0][m][v], shorts[m][v]);
        }
    }
}

// sums[row][vector][lane] += the blocks of a tile of kRows rows, which begins at row `first`, by
// the panel, which begins at the first of these blocks. kGroups scales for each block.
template <int64_t kBits, int64_t kGroups, bool kZeros, int64_t kRows, int64_t kVectors>
void int_tile(float* sums, const Activations& x, int64_t first, Blocks blocks, IntPanel panel,
              ReadAhead* ahead) {
    constexpr int64_t kHalves = kGroups == 1 ? 1 : 2, kRun = kSteps / kGroups / kHalves;
    constexpr int64_t kTile = kRows * kVectors;
    constexpr int64_t kChains = kTile <= 2 ? 4 : kTile <= 4 ? 2 : 1;  // of sums that wait for none
    const int64_t at = first * x.blocks + blocks.start * kRows;
    const int8_t* values = x.values + at * kBlock;
    const int32_t* starts = x.starts + at * kGroups;
    const float* row_scales = x.scales + at;
    for (int64_t b = 0; b < blocks.count; b++, row_scales += kRows, values += kRows * kBlock) {
        if (ahead) ahead->step();
        for (int64_t g = 0; g < kGroups; g++, starts += kRows) {
            Words n[kChains][kRows][kVectors];
            UNROLL for (int64_t c = 0; c < kChains; c++)
                UNROLL for (int64_t m = 0; m < kRows; m++)
                    UNROLL for (int64_t v = 0; v < kVectors; v++)
                        n[c][m][v] = all_words(c == 0 && !kZeros ? starts[m] : 0);
            for (int64_t half = 0; half < kHalves; half++) {
                const int64_t begin = half * kSteps / 2 + g * kRun;
                add_steps<kBits>(n, values, panel.codes, begin, begin + kRun);
            }
            UNROLL for (int64_t c = 1; c < kChains; c++)
                UNROLL for (int64_t m = 0; m < kRows; m++)
                    UNROLL for (int64_t v = 0; v < kVectors; v++)
                        n[0][m][v] = add_words(n[0][m][v], n[c][m][v]);
            UNROLL for (int64_t m = 0; m < kRows; m++)
                UNROLL for (int64_t v = 0; v < kVectors; v++) {
                    float* sum = sums + (m * kVectors + v) * kLanes;
                    Floats scale = broadcast(row_scales[m]);
                    if constexpr (kBits == 4)
                        scale = multiply(scale, load(panel.scales + v * kLanes));
                    Floats total = to_floats(n[0][m][v]);
                    if constexpr (kZeros)
                        total = total_of<true>(n[0][m][v], starts[m],
                                               panel.zero_points + v * kLanes);
                    store(sum, multiply_add(total, scale, load(sum)));
                }
            if constexpr (kBits == 4) panel.scales += kVectors * kLanes;
            if constexpr (kZeros) panel.zero_points += kVectors * kLanes;
        }
        panel.codes += kSteps * kVectors * kBytes;
    }
}

// `int_tile` for a tile of so many rows, at most kRows.
template <int64_t kBits, int64_t kGroups, bool kZeros, int64_t kRows, int64_t kVectors>
void int_tile_of(int64_t rows, float* sums, const Activations& x, int64_t first, Blocks blocks,
                 IntPanel panel, ReadAhead* ahead) {
    if (rows == kRows)
        return int_tile<kBits, kGroups, kZeros, kRows, kVectors>(sums, x, first, blocks, panel,
                                                                 ahead);
    if constexpr (kRows > 1)
        int_tile_of<kBits, kGroups, kZeros, kRows - 1, kVectors>(rows, sums, x, first, blocks,
                                                                 panel, ahead);
}

}  // namespace
