// Products of 8-bit and 4-bit weights by AMX's tiles.
#pragma once

#include "panel_int.h"

#ifdef HAS_TILES

namespace {

struct TileSums {
    alignas(64) int32_t words[kMostTileRows][2 * kLanes];
};

// One block of a tile of so many rows by the panel: 128 inputs are two steps of the tiles.
inline void multiply_block(TileSums& n, int64_t rows, const int8_t* values, const uint8_t* codes) {
    constexpr int64_t kStride = 2 * kBytes;
    const bool more = rows > kTileRows;
    _tile_zero(0);
    _tile_zero(1);
    if (more) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t half = 0; half < 2; half++) {
        _tile_loadd(4, values, kTileBytes);
        _tile_loadd(6, codes, kStride);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(7, codes + kBytes, kStride);
        _tile_dpbsud(1, 4, 7);
        if (more) {
            _tile_loadd(5, values + kTileRows * kTileBytes, kTileBytes);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
        values += rows * kTileBytes;
        codes += kTileRows * kStride;
    }
    _tile_stored(0, n.words[0], kStride);
    _tile_stored(1, n.words[0] + kLanes, kStride);
    if (more) {
        _tile_stored(2, n.words[kTileRows], kStride);
        _tile_stored(3, n.words[kTileRows] + kLanes, kStride);
    }
}

// `int_tile` for up to kMostTileRows rows, one group and two vectors: the sums of each block leave
// the tiles to be scaled.
template <int64_t kBits, bool kZeros>
void int_tile_by_amx(int64_t rows, float* sums, const Activations& x, int64_t first, Blocks blocks,
                     IntPanel panel, ReadAhead* ahead) {
    int64_t at = first * x.blocks + blocks.start * rows;
    TileSums n;
    Tiles tiles(rows);
    for (int64_t b = 0; b < blocks.count; b++, at += rows) {
        if (ahead) ahead->step();
        multiply_block(n, rows, x.values + at * kBlock, panel.codes + b * kSteps * 2 * kBytes);
        for (int64_t m = 0; m < rows; m++)
            for (int64_t v = 0; v < 2; v++) {
                const Words words = load_words(n.words[m] + v * kLanes);
                const int64_t lane = (2 * b + v) * kLanes;
                const float* zero_points = kZeros ? panel.zero_points + lane : nullptr;
                const Floats total = total_of<kZeros>(words, x.starts[at + m], zero_points);
                Floats scale = broadcast(x.scales[at + m]);
                if constexpr (kBits == 4)
                    scale = multiply(scale, load(panel.scales + lane));
                float* sum = sums + (2 * m + v) * kLanes;
                store(sum, multiply_add(total, scale, load(sum)));
            }
    }
}

}  // namespace

#endif
