// Products of 8-bit and 4-bit weights with a few rows by AMX's tiles: nothing is transposed. The
// weights' rows are the left factor, as they lie in memory, 16 outputs by 64 inputs; 16 or 32 rows
// of activations are columns of the right one, and further ones find the weights in the caches. The
// sums begin at what takes the zero point out.
//
//     tiles 0, 1: sums [16 outputs][16 rows]    4, 5: weights of a block    6, 7: activations
#pragma once

#include "few_int.h"
#include "tiles_int.h"

#ifdef HAS_TILES

namespace {

constexpr int64_t kOutputs = kTileRows;

// Blocks of weights of kOutputs outputs, `stride` bytes apart, one byte for each code.
struct CodesOfBlock {
    const uint8_t *low, *high;  // inputs 0–63 and 64–127, or the even and the odd ones
    int64_t stride;
};

// Tiles of 16 rows of activations.
struct Columns {
    const int8_t* values;
    const int32_t* starts;
    const float* scales;
    int64_t blocks;

    // Block b of a tile.
    int64_t at(int64_t tile, int64_t b) const { return (tile * blocks + b) * kTileRows; }
};

// Block b of one or two tiles of rows. After each product between(i) is called.
template <int64_t kTiles, bool kZeros, class Between>
FORCE_INLINE void multiply_few(TileSums& n, const CodesOfBlock& w, const Columns& x, int64_t b,
                               const Between& between) {
    constexpr int64_t kHalf = kTileRows * kTileBytes;
    const int8_t *first = x.values + x.at(0, b) * kBlock, *second = x.values + x.at(1, b) * kBlock;
    const void* none = kNoSums;
    settle();
    _tile_loadd(0, kZeros ? none : x.starts + x.at(0, b), 0);  // the same for every output
    if constexpr (kTiles > 1) _tile_loadd(1, kZeros ? none : x.starts + x.at(1, b), 0);
    _tile_loadd(4, w.low, w.stride);
    _tile_loadd(6, first, kTileBytes);
    _tile_dpbusd(0, 4, 6);
    between(0);
    if constexpr (kTiles > 1) {
        _tile_loadd(7, second, kTileBytes);
        _tile_dpbusd(1, 4, 7);
        between(1);
    }
    _tile_loadd(5, w.high, w.stride);
    _tile_loadd(6, first + kHalf, kTileBytes);
    _tile_dpbusd(0, 5, 6);
    between(kTiles);
    if constexpr (kTiles > 1) {
        _tile_loadd(7, second + kHalf, kTileBytes);
        _tile_dpbusd(1, 5, 7);
        between(kTiles + 1);
    }
    _tile_stored(0, n.words[0], kTileBytes);
    if constexpr (kTiles > 1) _tile_stored(1, n.words[1], kTileBytes);
    settle();
}

// Outputs [begin, end) · kOutputs of all rows, two tiles at a time.
template <int64_t kBits, bool kZeros>
class FewByAmx {
public:
    FewByAmx(const IntProduct& product, const FewArrays& arrays) : p(product), arrays_(arrays) {}

    void run(int64_t begin, int64_t end) {
        const int64_t stop = end * kOutputs < p.outputs ? end * kOutputs : p.outputs;
        for (int64_t first = begin * kOutputs; first < stop; first += kOutputs) {
            if (kBits == 4) fill_scales<1>(arrays_.scales, p, first, p.x.blocks);
            if (kZeros) fill_zero_points<1>(arrays_.zero_points, p, first, p.x.blocks);
            for (int64_t row = 0; row < p.rows; row += 2 * kTileRows)
                if (p.rows - row > kTileRows) run_tiles<2>(first, row);
                else run_tiles<1>(first, row);
        }
    }

private:
    static constexpr int64_t kBlockBytes = kBlock * kBits / 8;

    template <int64_t kTiles>
    void run_tiles(int64_t first, int64_t row) {
        constexpr int64_t kParts = 2 * kTiles;
        const int64_t at = row * p.x.blocks, last = p.x.blocks - 1;
        const bool ahead = row == 0;
        const Columns x{p.x.values + at * kBlock, p.x.starts + at, p.x.scales + at, p.x.blocks};
        for (int64_t i = 0; i < kTiles * kOutputs * kLanes; i += kLanes) store(sums_ + i, zeros());
        TileSums n[2];
        multiply_few<kTiles, kZeros>(n[0], codes_of(first, 0, ahead), x, 0, [](int64_t) {});
        for (int64_t b = 1; b <= last; b++)
            multiply_few<kTiles, kZeros>(n[b % 2], codes_of(first, b, ahead), x, b, [&](int64_t i) {
                add_scaled(n[(b - 1) % 2], x, b - 1, i);
            });
        for (int64_t i = 0; i < kParts; i++) add_scaled(n[last % 2], x, last, i);
        for (int64_t tile = 0; tile < kTiles; tile++)
            store_tile(first, row + tile * kTileRows, sums_ + tile * kOutputs * kLanes);
    }

    // Block b of these outputs, and reading ahead. Where an edge cuts it off, or where codes have 4
    // bits, it goes through memory.
    CodesOfBlock codes_of(int64_t first, int64_t b, bool ahead) {
        const int64_t outputs = p.outputs - first < kOutputs ? p.outputs - first : kOutputs;
        const uint8_t* from = p.weight + first * p.stride + b * kBlockBytes;
        const int64_t left = p.stride - b * kBlockBytes;
        int64_t stride = p.stride;
        const uint8_t* later = from + kOutputs * p.stride + b * (kOutputs - 1) * kBlockBytes;
        for (int64_t i = 0; i < kBlockBytes && ahead; i += kBytes)
            ask_ahead(from + i, p.stride, later + i * kOutputs);
        if (outputs < kOutputs || left < kBlockBytes) {
            const int64_t bytes = left < kBlockBytes ? left : kBlockBytes;
            copy_block<kBits>(edge_, from, stride, outputs, bytes);
            from = edge_, stride = kBlockBytes;
        }
        if (kBits == 8) return {from, from + kTileBytes, stride};
        uint8_t* to = codes_[b % 2];
        for (int64_t o = 0; o < kOutputs; o++) {
            const Words both = load_words(from + o * stride);
            store_words(to + o * kTileBytes, low_halves(both));
            store_words(to + (kOutputs + o) * kTileBytes, high_halves(both));
        }
        return {to, to + kOutputs * kTileBytes, kTileBytes};
    }

    // Half of the outputs of a tile's block, added to the floats.
    FORCE_INLINE void add_scaled(const TileSums& n, const Columns& x, int64_t b, int64_t part) {
        const int64_t tile = part / 2, half = part % 2 * kOutputs / 2, at = x.at(tile, b);
        const Floats rows = load(x.scales + at);
        const Floats start = kZeros ? to_floats(load_words(x.starts + at)) : zeros();
        UNROLL for (int64_t o = half; o < half + kOutputs / 2; o++) {
            Floats total = to_floats(load_words(n.words[tile][o])), scale = rows;
            if constexpr (kZeros)
                total = multiply_add(start, broadcast(arrays_.zero_points[b * kLanes + o]), total);
            if constexpr (kBits == 4)
                scale = multiply(rows, broadcast(arrays_.scales[b * kLanes + o]));
            float* sum = sums_ + (tile * kOutputs + o) * kLanes;
            store(sum, multiply_add(total, scale, load(sum)));
        }
    }

    void store_tile(int64_t first, int64_t row, float* sums) const {
        const int64_t left = p.rows - row;
        Words r[kLanes];
        for (int64_t o = 0; o < kOutputs; o++) r[o] = load_words(sums + o * kLanes);
        transpose(r);
        for (int64_t m = 0; m < kLanes; m++) store_words(sums + m * kLanes, r[m]);
        store_outputs<1>(p.results(), row, left < kTileRows ? left : kTileRows, first, sums);
    }

    const IntProduct& p;
    const FewArrays& arrays_;
    alignas(64) uint8_t codes_[2][2 * kOutputs * kTileBytes], edge_[kOutputs * kBlockBytes];
    alignas(64) float sums_[2 * kOutputs * kLanes];
};

template <int64_t kBits, bool kZeros>
void int_few_rows_by_amx(const IntProduct& p, int64_t begin, int64_t end, const FewArrays& arrays) {
    FewByAmx<kBits, kZeros>(p, arrays).run(begin, end);
}

}  // namespace

#endif
