// Products of 8-bit and 4-bit weights by AMX's tiles.
//
// The sums of each block leave the tiles to be scaled and added as floats, which takes as long as
// the products. So the sums of one block are scaled between the products of the next.
#pragma once

#include "panel_int.h"

#ifdef HAS_TILES

namespace {

struct TileSums {  // of a block: [tile][row][lane]
    alignas(64) int32_t words[4][kTileRows][kLanes];
};

constexpr int64_t kRowsBetween = 4;  // that are scaled after each product

// One block of a tile of 32 rows, or 16, by the panel: 128 inputs are two steps of the tiles. After
// each product between(i) is called.
template <bool kMore, class Between>
FORCE_INLINE void multiply_block(TileSums& n, const int8_t* values, const uint8_t* codes,
                                 const Between& between) {
    constexpr int64_t kTile = kTileRows * kTileBytes, kTiles = kMore ? 4 : 2;
    settle();
    _tile_loadd(0, kNoSums, kTileBytes);
    _tile_loadd(1, kNoSums, kTileBytes);
    if constexpr (kMore) {
        _tile_loadd(2, kNoSums, kTileBytes);
        _tile_loadd(3, kNoSums, kTileBytes);
    }
    UNROLL for (int64_t half = 0; half < 2; half++) {
        _tile_loadd(4, values, kTileBytes);
        _tile_loadd(6, codes, kTileBytes);
        _tile_dpbssd(0, 4, 6);
        between(half * kTiles);
        _tile_loadd(7, codes + kTile, kTileBytes);
        _tile_dpbssd(1, 4, 7);
        between(half * kTiles + 1);
        if constexpr (kMore) {
            _tile_loadd(5, values + kTile, kTileBytes);
            _tile_dpbssd(2, 5, 6);
            between(half * kTiles + 2);
            _tile_dpbssd(3, 5, 7);
            between(half * kTiles + 3);
        }
        values += kTiles / 2 * kTile;
        codes += 2 * kTile;
    }
    _tile_stored(0, n.words[0], kTileBytes);
    _tile_stored(1, n.words[1], kTileBytes);
    if constexpr (kMore) {
        _tile_stored(2, n.words[2], kTileBytes);
        _tile_stored(3, n.words[3], kTileBytes);
    }
    settle();
}

// What the sums of a block are scaled by: of each row, and of each output.
struct BlockScales {
    const int32_t* starts;
    const float* rows;
    Floats outputs[2], zero_points[2];
};

// Rows [first, first + kRowsBetween) of a block, added to the floats [row][2][kLanes].
template <int64_t kBits, bool kZeros>
FORCE_INLINE void add_scaled(float* sums, const TileSums& n, int64_t first, const BlockScales& s) {
    UNROLL for (int64_t m = first; m < first + kRowsBetween; m++) {
        const Floats row = broadcast(s.rows[m]), start = to_floats(all_words(s.starts[m]));
        UNROLL for (int64_t v = 0; v < 2; v++) {
            Floats total = to_floats(load_words(n.words[m / kTileRows * 2 + v][m % kTileRows]));
            if constexpr (kZeros) total = multiply_add(start, s.zero_points[v], total);
            const Floats scale = kBits == 4 ? multiply(row, s.outputs[v]) : row;
            float* sum = sums + (2 * m + v) * kLanes;
            store(sum, multiply_add(total, scale, load(sum)));
        }
    }
}

template <int64_t kBits, bool kZeros, bool kMore>
void int_tile_by_amx(float* sums, const Activations& x, int64_t first, Blocks blocks,
                     IntPanel panel, ReadAhead* ahead) {
    constexpr int64_t kRows = kMore ? 2 * kTileRows : kTileRows, kLast = kRows / kRowsBetween;
    const int64_t at = first * x.blocks + blocks.start * kRows;
    const int8_t* values = x.values + at * kBlock;
    const uint8_t* codes = panel.codes;
    const auto scales_of = [&](int64_t b) {
        BlockScales scales{x.starts + at + b * kRows, x.scales + at + b * kRows, {}, {}};
        for (int64_t v = 0; v < 2; v++) {
            const int64_t lane = (2 * b + v) * kLanes;
            if constexpr (kBits == 4) scales.outputs[v] = load(panel.scales + lane);
            if constexpr (kZeros) scales.zero_points[v] = load(panel.zero_points + lane);
        }
        return scales;
    };
    TileSums n[2];
    multiply_block<kMore>(n[0], values, codes, [](int64_t) {});
    for (int64_t b = 1; b < blocks.count; b++) {
        if (ahead) ahead->step();
        const TileSums& before = n[(b - 1) % 2];
        const BlockScales scales = scales_of(b - 1);
        multiply_block<kMore>(n[b % 2], values + b * kRows * kBlock,
                              codes + b * kSteps * 2 * kBytes, [&](int64_t i) {
                                  add_scaled<kBits, kZeros>(sums, before, i * kRowsBetween, scales);
                              });
    }
    const BlockScales scales = scales_of(blocks.count - 1);
    for (int64_t i = 0; i < kLast; i++)
        add_scaled<kBits, kZeros>(sums, n[(blocks.count - 1) % 2], i * kRowsBetween, scales);
}

// `int_tile` for a tile of 16 or 32 rows, one group and two vectors.
template <int64_t kBits, bool kZeros>
void int_tile_by_amx(int64_t rows, float* sums, const Activations& x, int64_t first, Blocks blocks,
                     IntPanel panel, ReadAhead* ahead) {
    if (rows > kTileRows)
        int_tile_by_amx<kBits, kZeros, true>(sums, x, first, blocks, panel, ahead);
    else int_tile_by_amx<kBits, kZeros, false>(sums, x, first, blocks, panel, ahead);
}

}  // namespace

#endif
