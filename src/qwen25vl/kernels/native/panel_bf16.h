// Panels of bfloat16 weights, and what multiplies one with a tile of activations.
#pragma once

#include "tiles.h"

namespace {

// y = x·wᵀ + bias: x [rows, inputs], weight [outputs, inputs], bias [outputs] or none.
struct Bf16Product {
    bf16* y;
    const bf16 *x, *weight, *bias;
    int64_t rows, inputs, outputs;

    int64_t pairs() const {  // of inputs in a row laid out anew
#ifdef HAS_TILES
        return (inputs + 2 * kLanes - 1) / (2 * kLanes) * kLanes;
#else
        return (inputs + 1) / 2;
#endif
    }
};

#ifdef HAS_TILES

constexpr int64_t kBf16TileRows = 2 * kTileRows;

// Tiles of x one after the other, each [pairs / kLanes][R][kLanes][2] for its R rows
// (kBf16TileRows, fewer in the last one), with zeros after the inputs. This is one step: kLanes
// pairs of a tile, from row `first` and pair `start` on.
inline void lay_out(bf16* tiles, const Bf16Product& p, int64_t first, int64_t start) {
    const int64_t left = p.rows - first, R = left < kBf16TileRows ? left : kBf16TileRows;
    bf16* to = tiles + 2 * (first * p.pairs() + start * R);
    for (int64_t m = 0; m < R; m++) {
        const bf16* from = p.x + (first + m) * p.inputs + 2 * start;
        store_words(to + 2 * m * kLanes, load_bytes(from, 2 * (p.inputs - 2 * start)));
    }
}

#else

constexpr int64_t kBf16TileRows = kFloatTileRows;

// Tiles of x one after the other, each [pairs][R][2] for its R rows (kBf16TileRows, fewer in the
// last one); an odd input has a zero at its side. This is one step: kLanes pairs of a tile, from
// row `first` and pair `start` on.
inline void lay_out(bf16* tiles, const Bf16Product& p, int64_t first, int64_t start) {
    const int64_t rows = p.rows - first, R = rows < kBf16TileRows ? rows : kBf16TileRows;
    const int64_t left = p.pairs() - start;
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

// A panel is [pair][kVectors][kLanes][2] for kVectors · kLanes outputs. Transpose these inputs of
// kLanes outputs from `first` on into every kVectors-th vector; outputs and inputs beyond the end
// are zeros.
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
        for (int64_t i = 0; i < kLanes; i++)
            store_words(panel + (k / 2 + i) * kVectors * 2 * kLanes, r[i]);
    }
}

#ifdef HAS_TILES

// sums[m][v][lane] += Σ_k x[k / kLanes][m][k % kLanes] · panel[k][v][lane] over pairs k, for a tile
// of so many rows.
template <int64_t, int64_t kVectors>
void bf16_tile_of(int64_t rows, float* sums, const bf16* x, const bf16* panel, int64_t pairs,
                  ReadAhead* ahead) {
    constexpr int64_t kStride = kVectors * kBytes;
    const bool more = rows > kTileRows;
    float* below = sums + kTileRows * kVectors * kLanes;
    Tiles tiles(rows);
    _tile_loadd(0, sums, kStride);
    if (kVectors > 1) _tile_loadd(1, sums + kLanes, kStride);
    if (more) _tile_loadd(2, below, kStride);
    if (more && kVectors > 1) _tile_loadd(3, below + kLanes, kStride);
    for (int64_t k = 0; k < pairs; k += kLanes) {
        if (ahead) ahead->step();
        _tile_loadd(4, x, kTileBytes);
        _tile_loadd(6, panel, kStride);
        _tile_dpbf16ps(0, 4, 6);
        if (kVectors > 1) {
            _tile_loadd(7, panel + 2 * kLanes, kStride);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (more) {
            _tile_loadd(5, x + kTileRows * 2 * kLanes, kTileBytes);
            _tile_dpbf16ps(2, 5, 6);
            if (kVectors > 1) _tile_dpbf16ps(3, 5, 7);
        }
        x += rows * 2 * kLanes;
        panel += kVectors * 2 * kLanes * kLanes;
    }
    _tile_stored(0, sums, kStride);
    if (kVectors > 1) _tile_stored(1, sums + kLanes, kStride);
    if (more) _tile_stored(2, below, kStride);
    if (more && kVectors > 1) _tile_stored(3, below + kLanes, kStride);
}

#else

// sums[m][v][lane] += Σ_k x[k][m] · panel[k][v][lane] over pairs k
template <int64_t kRows, int64_t kVectors>
void bf16_tile(float* sums, const bf16* x, const bf16* panel, int64_t pairs, ReadAhead* ahead) {
    Floats s[kRows][kVectors];
    for (int64_t m = 0; m < kRows; m++)
        for (int64_t v = 0; v < kVectors; v++) s[m][v] = load(sums + (m * kVectors + v) * kLanes);
    for (int64_t k = 0; k < pairs; k++) {
        if (ahead && k % 16 == 0) ahead->step();
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
                  ReadAhead* ahead) {
    if (rows == kRows) return bf16_tile<kRows, kVectors>(sums, x, panel, pairs, ahead);
    if constexpr (kRows > 1) bf16_tile_of<kRows - 1, kVectors>(rows, sums, x, panel, pairs, ahead);
}

#endif

inline void store_bf16_outputs(const Bf16Product& p, int64_t row, int64_t first, int64_t width,
                               const float* sums) {
    for (int64_t o = first; o < p.outputs && o < first + width; o += kLanes, sums += kLanes) {
        const int64_t count = p.outputs - o < kLanes ? p.outputs - o : kLanes;
        Floats value = load(sums);
        if (p.bias) value = add(value, load_first(p.bias + o, count));
        store_first(p.y + row * p.outputs + o, value, count);
    }
}

}  // namespace
