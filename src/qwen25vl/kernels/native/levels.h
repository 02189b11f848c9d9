// Activations as 8-bit levels, which are multiplied with weights of 8 or 4 bits.
#pragma once

#include "tiles.h"

namespace {

constexpr int64_t kBlock = 128;         // inputs that share an activation scale
constexpr int64_t kSteps = kBlock / 4;  // vectors of a panel for one block
constexpr int64_t kMostTileRows = 32;
#ifdef HAS_TILES
constexpr int64_t kMostColumns = kTileRows;  // rows of a tile that is not in rows
#else
constexpr int64_t kMostColumns = kIntTileRows;
#endif

// Activations in 8 bits, laid out as the products walk them: tile by tile of R rows (fewer in the
// last one), in a tile block by block.
//
//     values  tile 0: │ block 0: step 0 ┆ step 1 ┆ … │ block 1: … │ …    tile 1: …
//                                 └ R rows of 4 levels, side by side
//     starts  [tile][block][group][R]   −zero · Σ of the group's levels: where the sums begin; −Σ
//                                       where each output has zero points of its own
//     scales  [tile][block][R]
//
// For 4-bit weights the even inputs of a block come before the odd ones, since a byte of the
// weights holds both. For AMX's tiles rows are filled up with zeros to 16 or 32, and where they are
// many a block is [2][R][64]: rows as they are.
struct Activations {
    int8_t* values;
    int32_t* starts;
    float* scales;
    int64_t blocks;
};

// How activations are to be laid out; zero: the weights' zero point, or 1 where each output has its
// own.
struct Layout {
    int64_t tile_rows, grain;  // rows of a tile at most, filled up to a multiple of `grain`
    int64_t groups, zero;
    bool in_rows;  // for many rows by AMX

    // Rows of the tile that begins at row `first` of so many, filled up.
    int64_t rows_of(int64_t first, int64_t count) const {
        const int64_t rows = count - first < tile_rows ? count - first : tile_rows;
        return (rows + grain - 1) / grain * grain;
    }
    int64_t rows_of_all(int64_t count) const {
        const int64_t last = (count - 1) / tile_rows * tile_rows;
        return count > 0 ? last + rows_of(last, count) : 0;
    }
};

// bfloat16 activations [rows, inputs].
struct Rows {
    const bf16* x;
    int64_t count, inputs;
};

// A block of one row: levels in the order of the panel, their sums over each `kBlock / groups`
// inputs, and the scale. `count` inputs are there, zeros after them.
template <int64_t kBits>
float quantise_block(const bf16* x, int64_t count, int8_t* levels, int32_t* sums, int64_t groups) {
    constexpr int64_t kParts = kBlock / kLanes;
    Floats numbers[kParts], top = zeros(), no_number = zeros();
    for (int64_t i = 0; i < kParts; i++) {
        const int64_t left = count - i * kLanes;
        const bf16* from = x + i * kLanes;
        numbers[i] = left >= kLanes ? load(from) : left > 0 ? load_first(from, left) : zeros();
        top = maximum(top, maximum(numbers[i], subtract(zeros(), numbers[i])));
        no_number = multiply_add(numbers[i], zeros(), no_number);  // the maximum may miss a NaN
    }
    const float most = largest(top);
    const Floats inverse = broadcast(most > 0 ? 127.f / most : 0.f);
    alignas(64) int8_t in_order[kBlock];
    for (int64_t group = 0; group < groups; group++) {
        Words total{};
        for (int64_t i = group * kParts / groups; i < (group + 1) * kParts / groups; i++) {
            const Words level = to_words(multiply(numbers[i], inverse));
            total = add_words(total, level);
            store_as_bytes(in_order + i * kLanes, level);
        }
        sums[group] = sum_of(total);
    }
    if (kBits == 8) std::memcpy(levels, in_order, kBlock);
    else split_pairs(in_order, levels, levels + kBlock / 2, kBlock);
    return (most + sum(no_number)) / 127.f;
}

// One block of the tile that begins at row `first` of x.
template <int64_t kBits>
void quantise_tile(const Activations& a, const Layout& layout, const Rows& x, int64_t first,
                   int64_t block) {
    const int64_t R = layout.rows_of(first, x.count);
    const int64_t at = first * a.blocks + block * R, input = block * kBlock;
    int32_t* values = (int32_t*)(a.values + at * kBlock);
    int32_t* starts = a.starts + at * layout.groups;
    alignas(64) int32_t levels[kMostTileRows][kSteps];
    for (int64_t m = 0; m < R; m++) {
        int32_t sums[4] = {};
        a.scales[at + m] = 0;
        if (first + m < x.count)
            a.scales[at + m] =
                quantise_block<kBits>(x.x + (first + m) * x.inputs + input, x.inputs - input,
                                      (int8_t*)levels[m], sums, layout.groups);
        else std::memset(levels[m], 0, sizeof levels[m]);
        for (int64_t g = 0; g < layout.groups; g++)
            starts[g * R + m] = (int32_t)(0u - (uint32_t)layout.zero * (uint32_t)sums[g]);
    }
    for (int64_t step = 0; step < kSteps; step += kLanes) {
        if (layout.in_rows) {
            for (int64_t m = 0; m < R; m++)
                store_words(values + step * R + m * kLanes, load_words(levels[m] + step));
            continue;
        }
        Words r[kLanes];
        for (int64_t m = 0; m < kLanes; m++)
            r[m] = m < R && m < kMostColumns ? load_words(levels[m] + step) : Words{};
        transpose(r);
        for (int64_t i = 0; i < kLanes; i++) store_first_words(values + (step + i) * R, r[i], R);
    }
}

// What a group's products and zero points come to: whole numbers below 2²⁴, so exact in floats too.
template <bool kZeros>
FORCE_INLINE Floats total_of(Words products, int32_t start, const float* zero_points) {
    if constexpr (kZeros)
        return multiply_add(to_floats(all_words(start)), load(zero_points), to_floats(products));
    else return to_floats(add_words(all_words(start), products));
}

}  // namespace
