// Panels of 8-bit and 4-bit weights, and what multiplies one with a tile of activations.
#pragma once

#include "dots.h"

namespace {

// Whether many rows go through AMX's tiles, which have 64 inputs at a time: not where scales change more often.
constexpr bool by_tiles(int64_t groups) {
#ifdef HAS_TILES
    return groups == 1;
#else
    return groups < 0;
#endif
}
constexpr int64_t many_rows(int64_t groups) { return by_tiles(groups) ? kMostRows : kTile; }

// Where a panel's numbers come from. weight: rows of `stride` bytes; scales of 4-bit weights [outputs, groups] float16.
struct Problem {
    const uint8_t* weight;
    int64_t stride;
    const uint16_t* halves;
    int64_t groups;
    const float* scale;  // of 8-bit weights [outputs]
    const bf16* bias;
    bf16* y;
    Activations x;
    int64_t rows, outputs;
};

// Turn blocks [start, start + count) of kLanes outputs from `first` on into every kVectors-th vector of the panel.
template <int64_t kBits, int64_t kVectors>
void fill_panel(uint8_t* panel, const Problem& p, int64_t first, int64_t start, int64_t count, bool ahead) {
    constexpr int64_t kBlockBytes = kBlock * kBits / 8;
    for (int64_t at = start * kBlockBytes; at < (start + count) * kBlockBytes; at += kBytes) {
        Words r[kLanes];
        const uint8_t* from = p.weight + first * p.stride + at;
        if (ahead) ask_ahead(from, p.stride, p.weight + (first + kLanes) * p.stride + at * kLanes);
        if (first + kLanes <= p.outputs && p.stride - at >= kBytes)
            for (int64_t i = 0; i < kLanes; i++) r[i] = load_words(from + i * p.stride);
        else
            for (int64_t i = 0; i < kLanes; i++)
                r[i] = first + i < p.outputs ? load_bytes(from + i * p.stride, p.stride - at) : Words{};
        transpose(r);
        int64_t block = at / kBlockBytes - start, step = at % kBlockBytes / 4;
        uint8_t* to = panel + (block * kSteps + step) * kVectors * kBytes;
        for (int64_t i = 0; i < kLanes; i++, to += kVectors * kBytes)
            if constexpr (kBits == 8) {
                store_words(to, for_panel(r[i]));
            } else {
                store_words(to, low_halves(r[i]));
                store_words(to + kSteps / 2 * kVectors * kBytes, high_halves(r[i]));
            }
    }
}

// The scales of kLanes outputs from `first` on, group by group: [count, kVectors, kLanes]; zeros after the last group,
// which may end before its block does.
template <int64_t kVectors>
void fill_scales(float* scales, const Problem& p, int64_t first, int64_t count) {
    for (int64_t g = 0; g < count; g += kLanes) {
        Words r[kLanes];
        for (int64_t i = 0; i < kLanes; i++) {
            bool inside = first + i < p.outputs && g < p.groups;
            Floats row = inside ? load_halves(p.halves + (first + i) * p.groups + g, p.groups - g) : zeros();
            std::memcpy(&r[i], &row, sizeof row);
        }
        transpose(r);
        for (int64_t i = 0; i < kLanes && g + i < count; i++) store_words(scales + (g + i) * kVectors * kLanes, r[i]);
    }
}

// sums[m, v, lane] += the blocks [start, start + count) of a tile by the panel; kGroups scales for each block.
template <int64_t kBits, int64_t kGroups, int64_t kRows, int64_t kVectors>
void multiply_tile(float* sums, const Activations& x, int64_t first, int64_t start, int64_t count, const uint8_t* panel,
                   const float* scales, ReadAhead* ahead) {
    constexpr int64_t kHalves = kGroups == 1 ? 1 : 2, kRun = kSteps / kGroups / kHalves;
    constexpr int64_t kChains = kRows * kVectors <= 2 ? 4 : kRows * kVectors <= 4 ? 2 : 1;  // of sums that wait for none
    int64_t at = first * x.blocks + start * kRows;
    const int8_t* values = x.values + at * kBlock;
    const int32_t* starts = x.starts + at * kGroups;
    const float* row_scales = x.scales + at;
    for (int64_t b = 0; b < count; b++, row_scales += kRows, values += kRows * kBlock) {
        if (ahead) ahead->step();
        for (int64_t g = 0; g < kGroups; g++, starts += kRows) {
            Words n[kChains][kRows][kVectors];
            UNROLL for (int64_t c = 0; c < kChains; c++)
                UNROLL for (int64_t m = 0; m < kRows; m++)
                    UNROLL for (int64_t v = 0; v < kVectors; v++) n[c][m][v] = all_words(c == 0 ? starts[m] : 0);
            for (int64_t half = 0; half < kHalves; half++)
                for (int64_t s = half * kSteps / 2 + g * kRun; s < half * kSteps / 2 + (g + 1) * kRun; s += kChains)
                    UNROLL for (int64_t c = 0; c < kChains; c++) {
                        Words w[kVectors];
                        UNROLL for (int64_t v = 0; v < kVectors; v++)
                            w[v] = load_words(panel + ((s + c) * kVectors + v) * kBytes);
                        UNROLL for (int64_t m = 0; m < kRows; m++) {
                            int32_t four;
                            std::memcpy(&four, values + ((s + c) * kRows + m) * 4, 4);
                            UNROLL for (int64_t v = 0; v < kVectors; v++)
                                n[c][m][v] = dot4<kBits>(n[c][m][v], w[v], all_words(four));
                        }
                    }
            UNROLL for (int64_t c = 1; c < kChains; c++)
                UNROLL for (int64_t m = 0; m < kRows; m++)
                    UNROLL for (int64_t v = 0; v < kVectors; v++) n[0][m][v] = add_words(n[0][m][v], n[c][m][v]);
            UNROLL for (int64_t m = 0; m < kRows; m++)
                UNROLL for (int64_t v = 0; v < kVectors; v++) {
                    float* sum = sums + (m * kVectors + v) * kLanes;
                    Floats scale = broadcast(row_scales[m]);
                    if constexpr (kBits == 4) scale = multiply(scale, load(scales + v * kLanes));
                    store(sum, multiply_add(to_floats(n[0][m][v]), scale, load(sum)));
                }
            if constexpr (kBits == 4) scales += kVectors * kLanes;
        }
        panel += kSteps * kVectors * kBytes;
    }
}

#ifdef HAS_TILES
// The same for up to kMostRows rows and two vectors: the sums of each block leave the tiles to be scaled.
template <int64_t kBits>
void multiply_by_tiles(int64_t rows, float* sums, const Activations& x, int64_t first, int64_t start, int64_t count,
                       const uint8_t* panel, const float* scales, ReadAhead* ahead) {
    constexpr int64_t kStride = 2 * kBytes;
    int64_t at = first * x.blocks + start * rows;
    const int8_t* values = x.values + at * kBlock;
    bool more = rows > kTileRows;
    alignas(64) int32_t n[kMostRows][2 * kLanes];
    Tiles tiles(rows);
    for (int64_t b = 0; b < count; b++, at += rows) {
        if (ahead) ahead->step();
        _tile_zero(0);
        _tile_zero(1);
        if (more) {
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t half = 0; half < 2; half++, values += rows * kTileBytes, panel += kTileRows * kStride) {
            _tile_loadd(4, values, kTileBytes);
            _tile_loadd(6, panel, kStride);
            _tile_dpbsud(0, 4, 6);
            _tile_loadd(7, panel + kBytes, kStride);
            _tile_dpbsud(1, 4, 7);
            if (!more) continue;
            _tile_loadd(5, values + kTileRows * kTileBytes, kTileBytes);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
        _tile_stored(0, n[0], kStride);
        _tile_stored(1, n[0] + kLanes, kStride);
        if (more) {
            _tile_stored(2, n[kTileRows], kStride);
            _tile_stored(3, n[kTileRows] + kLanes, kStride);
        }
        for (int64_t m = 0; m < rows; m++)
            for (int64_t v = 0; v < 2; v++) {
                Words total = add_words(all_words(x.starts[at + m]), load_words(n[m] + v * kLanes));
                Floats scale = broadcast(x.scales[at + m]);
                if constexpr (kBits == 4) scale = multiply(scale, load(scales + (2 * b + v) * kLanes));
                float* sum = sums + (2 * m + v) * kLanes;
                store(sum, multiply_add(to_floats(total), scale, load(sum)));
            }
    }
}
#endif

template <int64_t kBits, int64_t kGroups, int64_t kRows, int64_t kVectors>
void multiply_rows(int64_t rows, float* sums, const Activations& x, int64_t row, int64_t start, int64_t count,
                   const uint8_t* panel, const float* scales, ReadAhead* ahead) {
#ifdef HAS_TILES
    if constexpr (kRows == kMostRows)
        return multiply_by_tiles<kBits>(rows, sums, x, row, start, count, panel, scales, ahead);
#endif
    if (rows == kRows)
        return multiply_tile<kBits, kGroups, kRows, kVectors>(sums, x, row, start, count, panel, scales, ahead);
    if constexpr (kRows > 1)
        multiply_rows<kBits, kGroups, kRows - 1, kVectors>(rows, sums, x, row, start, count, panel, scales, ahead);
}

void store_outputs(const Problem& p, int64_t row, int64_t first, const float* sums, int64_t width) {
    for (int64_t o = first; o < p.outputs && o < first + width; o += kLanes, sums += kLanes) {
        int64_t some = p.outputs - o < kLanes ? p.outputs - o : kLanes;
        Floats value = load(sums);
        if (p.scale) value = multiply(value, load_first(p.scale + o, some));
        if (p.bias) value = add(value, load_first(p.bias + o, some));
        store_first(p.y + row * p.outputs + o, value, some);
    }
}

}  // namespace
