// Panels of bfloat16 weights, and what multiplies one with a tile of activations.
#pragma once

#include "tiles.h"

namespace {

#ifdef HAS_TILES
// Rows of a tile at most, and what rows and pairs of inputs are filled up to a multiple of.
constexpr int64_t kBf16TileRows = 2 * kTileRows, kRowsOfStep = kTileRows, kPairsOfStep = kLanes;
#else
constexpr int64_t kBf16TileRows = kFloatTileRows, kRowsOfStep = 1, kPairsOfStep = 1;
#endif

// y = x·wᵀ + bias: x [rows, inputs], weight [outputs, inputs], bias [outputs] or none.
struct Bf16Product {
    bf16* y;
    const bf16 *x, *weight, *bias;
    int64_t rows, inputs, outputs;

    Results results() const { return {y, nullptr, bias, outputs}; }
    int64_t pairs() const {  // of inputs in a row laid out anew
        return (inputs + kPairsOfStep * 2 - 1) / (kPairsOfStep * 2) * kPairsOfStep;
    }
    // Rows of the tile that begins at row `first`, laid out anew; none after the last row.
    int64_t tile_rows(int64_t first) const {
        const int64_t left = rows - first, whole = (left + kRowsOfStep - 1) / kRowsOfStep;
        return left <= 0 ? 0 : left < kBf16TileRows ? whole * kRowsOfStep : kBf16TileRows;
    }
    int64_t laid_out() const {  // rows of all tiles
        const int64_t whole = rows / kBf16TileRows * kBf16TileRows;
        return whole + tile_rows(whole);
    }
};

#ifdef HAS_TILES

// Tiles of x one after the other, each [pairs / kLanes][R][kLanes][2] for its R rows
// (kBf16TileRows, or half as many in the last one), with zeros after the rows and the inputs. This
// is one step: kLanes pairs of a tile, from row `first` and pair `start` on.
inline void lay_out(bf16* tiles, const Bf16Product& p, int64_t first, int64_t start) {
    const int64_t R = p.tile_rows(first);
    bf16* to = tiles + 2 * (first * p.pairs() + start * R);
    for (int64_t m = 0; m < R; m++) {
        const bf16* from = p.x + (first + m) * p.inputs + 2 * start;
        const bool is_row = first + m < p.rows;
        store_words(to + 2 * m * kLanes,
                    is_row ? load_bytes(from, 2 * (p.inputs - 2 * start)) : Words{});
    }
}

#else

// Tiles of x one after the other, each [pairs][R][2] for its R rows (kBf16TileRows, fewer in the
// last one); an odd input has a zero at its side. This is one step: kLanes pairs of a tile, from
// row `first` and pair `start` on.
inline void lay_out(bf16* tiles, const Bf16Product& p, int64_t first, int64_t start) {
    const int64_t R = p.tile_rows(first), left = p.pairs() - start;
    Words r[kLanes];
    for (int64_t m = 0; m < kLanes; m++) {
        const bf16* from = p.x + (first + m) * p.inputs + 2 * start;
        r[m] = m < R ? load_bytes(from, 2 * (p.inputs - 2 * start)) : Words{};
    }
    transpose(r);
    bf16* to = tiles + 2 * (first * p.pairs() + start * R);
    for (int64_t k = 0; k < kLanes && k < left; k++) store_first_words(to + 2 * k * R, r[k], R);
}

#endif

struct Inputs {
    int64_t start, count;
};

// A panel is [pair][kVectors][kLanes][2] for kVectors · kLanes outputs; for tiles it is
// [pair / kLanes][kVectors][kLanes][kLanes][2]. Here its vectors of kLanes outputs begin, and so
// far apart are the pairs of one.
#ifdef HAS_TILES
constexpr int64_t vector_of_panel(int64_t v) { return v * 2 * kLanes * kLanes; }
constexpr int64_t pair_stride(int64_t) { return 2 * kLanes; }
#else
constexpr int64_t vector_of_panel(int64_t v) { return v * 2 * kLanes; }
constexpr int64_t pair_stride(int64_t vectors) { return vectors * 2 * kLanes; }
#endif

// Transpose these inputs of kLanes outputs from `first` on into a vector of a panel; outputs and
// inputs beyond the end are zeros.
template <int64_t kVectors>
void fill_bf16_panel(bf16* panel, const Bf16Product& p, int64_t first, Inputs inputs, bool ahead) {
    for (int64_t k = 0; k < inputs.count; k += 2 * kLanes) {
        Words r[kLanes];
        const bf16* from = p.weight + first * p.inputs + inputs.start + k;
        const bf16* later = p.weight + (first + kLanes) * p.inputs + (inputs.start + k) * kLanes;
        if (ahead) ask_ahead(from, 2 * p.inputs, later);
        const int64_t left = inputs.count - k;
        if (first + kLanes <= p.outputs && left >= 2 * kLanes)
            for (int64_t i = 0; i < kLanes; i++) r[i] = load_words(from + i * p.inputs);
        else
            for (int64_t i = 0; i < kLanes; i++) {
                const bool is_output = first + i < p.outputs;
                r[i] = is_output ? load_bytes(from + i * p.inputs, 2 * left) : Words{};
            }
        transpose(r);
        bf16* to = panel + k * kVectors * kLanes;
        for (int64_t i = 0; i < kLanes; i++) store_words(to + i * pair_stride(kVectors), r[i]);
    }
}

// How a tile's product begins and what it asks for on the way.
struct TileRun {
    bool is_fresh;     // no sums yet
    ReadAhead* ahead;  // or null
};

#ifdef HAS_TILES

// sums[m][v][lane] (+)= Σ_k x[k / kLanes][m][k % kLanes] · panel[k / kLanes][v][k % kLanes][lane]
// over pairs k, for a tile of one or two times kTileRows rows.
template <int64_t, int64_t kVectors>
void bf16_tile_of(int64_t rows, float* sums, const bf16* x, const bf16* panel, int64_t pairs,
                  const TileRun& run) {
    constexpr int64_t kStride = kVectors * kBytes, kTile = 2 * kTileRows * kLanes;
    const bool more = rows > kTileRows;
    float* below = sums + kTileRows * kVectors * kLanes;
    const void* none = kNoSums;
    const int64_t stride = run.is_fresh ? kTileBytes : kStride;
    settle();
    _tile_loadd(0, run.is_fresh ? none : sums, stride);
    if (kVectors > 1) _tile_loadd(1, run.is_fresh ? none : sums + kLanes, stride);
    if (more) _tile_loadd(2, run.is_fresh ? none : below, stride);
    if (more && kVectors > 1) _tile_loadd(3, run.is_fresh ? none : below + kLanes, stride);
    for (int64_t k = 0; k < pairs; k += kLanes) {
        if (run.ahead) run.ahead->step();
        _tile_loadd(4, x, kTileBytes);
        _tile_loadd(6, panel, kTileBytes);
        _tile_dpbf16ps(0, 4, 6);
        if (kVectors > 1) {
            _tile_loadd(7, panel + kTile, kTileBytes);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (more) {
            _tile_loadd(5, x + kTile, kTileBytes);
            _tile_dpbf16ps(2, 5, 6);
            if (kVectors > 1) _tile_dpbf16ps(3, 5, 7);
        }
        x += rows * 2 * kLanes;
        panel += kVectors * kTile;
    }
    _tile_stored(0, sums, kStride);
    if (kVectors > 1) _tile_stored(1, sums + kLanes, kStride);
    if (more) _tile_stored(2, below, kStride);
    if (more && kVectors > 1) _tile_stored(3, below + kLanes, kStride);
    settle();
}

#else

// sums[m][v][lane] (+)= Σ_k x[k][m] · panel[k][v][lane] over pairs k
template <int64_t kRows, int64_t kVectors>
void bf16_tile(float* sums, const bf16* x, const bf16* panel, int64_t pairs, const TileRun& run) {
    Floats s[kRows][kVectors];
    for (int64_t m = 0; m < kRows; m++)
        for (int64_t v = 0; v < kVectors; v++)
            s[m][v] = run.is_fresh ? zeros() : load(sums + (m * kVectors + v) * kLanes);
    for (int64_t k = 0; k < pairs; k++) {
        if (run.ahead && k % 16 == 0) run.ahead->step();
        Pairs w[kVectors];
        for (int64_t v = 0; v < kVectors; v++)
            w[v] = load_pairs(panel + (k * kVectors + v) * 2 * kLanes);
        for (int64_t m = 0; m < kRows; m++) {
            const Pairs a = broadcast_pair(x + 2 * (k * kRows + m));
            for (int64_t v = 0; v < kVectors; v++) s[m][v] = dot(s[m][v], w[v], a);
        }
    }
    for (int64_t m = 0; m < kRows; m++)
        for (int64_t v = 0; v < kVectors; v++) store(sums + (m * kVectors + v) * kLanes, s[m][v]);
}

// `bf16_tile` for a tile of so many rows, at most kRows.
template <int64_t kRows, int64_t kVectors>
void bf16_tile_of(int64_t rows, float* sums, const bf16* x, const bf16* panel, int64_t pairs,
                  const TileRun& run) {
    if (rows == kRows) return bf16_tile<kRows, kVectors>(sums, x, panel, pairs, run);
    if constexpr (kRows > 1) bf16_tile_of<kRows - 1, kVectors>(rows, sums, x, panel, pairs, run);
}

#endif

}  // namespace
