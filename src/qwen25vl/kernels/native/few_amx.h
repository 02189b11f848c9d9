// Products of 8-bit and 4-bit weights with a few rows by AMX's tiles: nothing is transposed. The
// weights' rows are the left factor, as they lie in memory, 16 outputs by 64 inputs; up to 64 rows
// of activations are columns of the right one. The sums begin at what takes the zero point out.
//
//     tiles 0–3: sums [16 outputs][16 rows]    4, 5: weights of a block    6, 7: activations
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

// The same of kTiles times 16 rows of activations; each tile has its own values and starts.
template <int64_t kTiles, bool kZeros, class Between>
FORCE_INLINE void multiply_few(TileSums& n, const CodesOfBlock& w, const Activations& x,
                               int64_t block, const Between& between) {
    const int64_t step = kTileRows * x.blocks;  // rows of blocks from tile to tile
    const int8_t* values = x.values + block * kTileRows * kBlock;
    const int32_t* starts = x.starts + block * kTileRows;
    const auto start = [&](int64_t tile) -> const void* {
        return kZeros ? (const void*)kNoSums : starts + tile * step;
    };
    const auto half = [&](int64_t tile, int64_t which) {
        return values + tile * step * kBlock + which * kTileRows * kTileBytes;
    };
    settle();
    _tile_loadd(0, start(0), 0);  // the same for every output
    if constexpr (kTiles > 1) _tile_loadd(1, start(1), 0);
    if constexpr (kTiles > 2) _tile_loadd(2, start(2), 0);
    if constexpr (kTiles > 3) _tile_loadd(3, start(3), 0);
// the instructions take the numbers of tiles as they are written
#define MULTIPLY(tile, weights, right, which)              \
    if constexpr (kTiles > tile) {                         \
        _tile_loadd(right, half(tile, which), kTileBytes); \
        _tile_dpbusd(tile, weights, right);                \
        between(which * kTiles + tile);                    \
    }
    _tile_loadd(4, w.low, w.stride);
    MULTIPLY(0, 4, 6, 0)
    MULTIPLY(1, 4, 7, 0)
    MULTIPLY(2, 4, 6, 0)
    MULTIPLY(3, 4, 7, 0)
    _tile_loadd(5, w.high, w.stride);
    MULTIPLY(0, 5, 6, 1)
    MULTIPLY(1, 5, 7, 1)
    MULTIPLY(2, 5, 6, 1)
    MULTIPLY(3, 5, 7, 1)
#undef MULTIPLY
    _tile_stored(0, n.words[0], kTileBytes);
    if constexpr (kTiles > 1) _tile_stored(1, n.words[1], kTileBytes);
    if constexpr (kTiles > 2) _tile_stored(2, n.words[2], kTileBytes);
    if constexpr (kTiles > 3) _tile_stored(3, n.words[3], kTileBytes);
    settle();
}

// kTiles times 16 rows, outputs [begin, end) · kOutputs.
template <int64_t kBits, bool kZeros, int64_t kTiles>
class FewByAmx {
public:
    FewByAmx(const IntProduct& product, const FewArrays& arrays) : p(product), arrays_(arrays) {}

    void run(int64_t begin, int64_t end) {
        const int64_t stop = end * kOutputs < p.outputs ? end * kOutputs : p.outputs;
        for (int64_t first = begin * kOutputs; first < stop; first += kOutputs) {
            if (kBits == 4) fill_scales<1>(arrays_.scales, p, first, p.x.blocks);
            if (kZeros) fill_zero_points<1>(arrays_.zero_points, p, first, p.x.blocks);
            for (int64_t i = 0; i < kTiles * kTileRows * kLanes; i += kLanes)
                store(sums_ + i, zeros());
            const int64_t outputs = stop - first < kOutputs ? stop - first : kOutputs;
            TileSums n[2];
            multiply_few<kTiles, kZeros>(n[0], codes_of(first, outputs, 0), p.x, 0, [](int64_t) {});
            for (int64_t b = 1; b < p.x.blocks; b++) {
                const TileSums& before = n[(b - 1) % 2];
                multiply_few<kTiles, kZeros>(
                    n[b % 2], codes_of(first, outputs, b), p.x, b,
                    [&](int64_t i) { add_outputs(before, b - 1, i / 2, i % 2 * kHalf); });
            }
            for (int64_t i = 0; i < 2 * kTiles; i++)
                add_outputs(n[(p.x.blocks - 1) % 2], p.x.blocks - 1, i / 2, i % 2 * kHalf);
            store_tiles(first);
        }
    }

private:
    static constexpr int64_t kBlockBytes = kBlock * kBits / 8, kHalf = kOutputs / 2;

    // Block b of these outputs, and reading ahead. Where an edge cuts it off, or where codes have 4
    // bits, it goes through memory.
    CodesOfBlock codes_of(int64_t first, int64_t outputs, int64_t b) {
        const uint8_t* from = p.weight + first * p.stride + b * kBlockBytes;
        const int64_t left = p.stride - b * kBlockBytes;
        int64_t stride = p.stride;
        const uint8_t* later = from + kOutputs * p.stride + b * (kOutputs - 1) * kBlockBytes;
        for (int64_t i = 0; i < kBlockBytes; i += kBytes)
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

    // Block b of outputs [first, first + kHalf) for the rows of a tile, added to the floats.
    FORCE_INLINE void add_outputs(const TileSums& n, int64_t b, int64_t tile, int64_t first) {
        const int64_t at = (tile * p.x.blocks + b) * kTileRows;
        const Floats rows = load(p.x.scales + at);
        const Floats start = kZeros ? to_floats(load_words(p.x.starts + at)) : zeros();
        UNROLL for (int64_t o = first; o < first + kHalf; o++) {
            Floats total = to_floats(load_words(n.words[tile][o]));
            if constexpr (kZeros)
                total = multiply_add(start, broadcast(arrays_.zero_points[b * kLanes + o]), total);
            const Floats scale =
                kBits == 4 ? multiply(rows, broadcast(arrays_.scales[b * kLanes + o])) : rows;
            float* sum = sums_ + (tile * kOutputs + o) * kLanes;
            store(sum, multiply_add(total, scale, load(sum)));
        }
    }

    void store_tiles(int64_t first) {
        for (int64_t tile = 0; tile < kTiles; tile++) {
            Words r[kLanes];
            float* sums = sums_ + tile * kOutputs * kLanes;
            for (int64_t o = 0; o < kOutputs; o++) r[o] = load_words(sums + o * kLanes);
            transpose(r);
            for (int64_t m = 0; m < kLanes; m++) store_words(sums + m * kLanes, r[m]);
            const int64_t row = tile * kTileRows, left = p.rows - row;
            store_int_outputs<1>(p, row, left < kTileRows ? left : kTileRows, first, sums);
        }
    }

    const IntProduct& p;
    const FewArrays& arrays_;
    alignas(64) uint8_t codes_[2][2 * kOutputs * kTileBytes], edge_[kOutputs * kBlockBytes];
    alignas(64) float sums_[kTiles * kOutputs * kLanes];
};

template <int64_t kBits, bool kZeros>
void int_few_rows_by_amx(const IntProduct& p, int64_t begin, int64_t end, const FewArrays& arrays) {
    static_assert(kMaxFewRows == 4 * kTileRows);
    switch ((p.rows + kTileRows - 1) / kTileRows) {
    case 1: return FewByAmx<kBits, kZeros, 1>(p, arrays).run(begin, end);
    case 2: return FewByAmx<kBits, kZeros, 2>(p, arrays).run(begin, end);
    case 3: return FewByAmx<kBits, kZeros, 3>(p, arrays).run(begin, end);
    default: return FewByAmx<kBits, kZeros, 4>(p, arrays).run(begin, end);
    }
}

}  // namespace

#endif
