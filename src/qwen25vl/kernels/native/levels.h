// Activations as 8-bit levels, and the arithmetic of bytes that multiplies them with weights of 8 or 4 bits.
#pragma once

#include "tiles.h"

namespace {

constexpr int64_t kBlock = 128;         // inputs that share an activation scale
constexpr int64_t kSteps = kBlock / 4;  // vectors of a panel for one block
constexpr int64_t kMostRows = 32;       // of a tile

constexpr int64_t kTile = kIntTileRows;

// Activations in 8 bits, laid out as `multiply_tile` walks them: tile by tile of kTile rows (R in the last one), in a
// tile block by block. values [steps, R, 4]: for 4-bit weights the even inputs of a block come first, then the odd ones,
// since a byte of the weights holds both. For AMX's tiles values are [2, R, 64], rows as they are.
// starts [groups, R]: −zero · Σ a, where the sums begin. scales [R].
struct Activations {
    int8_t* values;
    int32_t* starts;
    float* scales;
    int64_t blocks;
};

// A block of one row: levels in the order of the panel, their sums over each `kBlock / groups` inputs, and the scale.
template <int64_t kBits>
float quantise_block(const bf16* x, int64_t count, int8_t* levels, int32_t* sums, int64_t groups) {
    constexpr int64_t kParts = kBlock / kLanes;
    Floats numbers[kParts], top = zeros(), no_number = zeros();
    for (int64_t i = 0; i < kParts; i++) {
        int64_t some = count - i * kLanes;
        numbers[i] = some >= kLanes ? load(x + i * kLanes) : some > 0 ? load_first(x + i * kLanes, some) : zeros();
        top = maximum(top, maximum(numbers[i], subtract(zeros(), numbers[i])));
        no_number = multiply_add(numbers[i], zeros(), no_number);  // of NaN the maximum may know nothing
    }
    float most = largest(top);
    Floats inverse = broadcast(most > 0 ? 127.f / most : 0.f);
    alignas(64) int8_t in_order[kBlock];
    for (int64_t group = 0; group < groups; group++) {
        Words total{};
        for (int64_t i = group * kParts / groups; i < (group + 1) * kParts / groups; i++) {
            Words level = to_words(multiply(numbers[i], inverse));
            total = add_words(total, level);
            store_as_bytes(in_order + i * kLanes, level);
        }
        sums[group] = sum_of(total);
    }
    if (kBits == 8) std::memcpy(levels, in_order, kBlock);
    else split_pairs(in_order, levels, levels + kBlock / 2, kBlock);
    return (most + sum(no_number)) / 127.f;
}

// One block of a tile of R rows of x, from row `first` on; `in_rows`: as AMX has them.
template <int64_t kBits>
void quantise_tile(const Activations& a, int64_t first, int64_t block, int64_t R, const bf16* x, int64_t inputs,
                   int64_t groups, bool in_rows) {
    int32_t* values = (int32_t*)(a.values + (first * a.blocks + block * R) * kBlock);
    int32_t* starts = a.starts + (first * a.blocks + block * R) * groups;
    alignas(64) int32_t levels[kMostRows][kSteps];
    for (int64_t m = 0; m < R; m++) {
        int32_t sums[4];
        int64_t at = block * kBlock;
        a.scales[first * a.blocks + block * R + m] =
            quantise_block<kBits>(x + (first + m) * inputs + at, inputs - at, (int8_t*)levels[m], sums, groups);
        for (int64_t g = 0; g < groups; g++) starts[g * R + m] = -(int32_t)zero_point(kBits) * sums[g];
    }
    for (int64_t step = 0; step < kSteps; step += kLanes) {
        Words r[kLanes];
        if (in_rows) {
            for (int64_t m = 0; m < R; m++) store_words(values + step * R + m * kLanes, load_words(levels[m] + step));
            continue;
        }
        for (int64_t m = 0; m < kLanes; m++) r[m] = m < R && m < kTile ? load_words(levels[m] + step) : Words{};
        transpose(r);
        for (int64_t i = 0; i < kLanes; i++) store_first_words(values + (step + i) * R, r[i], R);
    }
}

}  // namespace
