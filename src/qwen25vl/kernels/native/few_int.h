// Products of 8-bit and 4-bit weights with a few rows, which wait for the weights: each is read
// once.
#pragma once

#include "kernels.h"
#include "panel_int.h"

extern "C" bool has_fast_shuffles();

namespace {

constexpr int64_t kPanel = 2 * kLanes;   // outputs of a panel
// The most rows whose weights are not transposed: their sums are, for each row, 32 shuffles for 64
// products. AMD's processors make two or four of them a cycle, Intel's one of 512 bits.
constexpr int64_t kMostAsStored = 8, kRowsAtOnce = 4;  // of them, whose sums stay in registers
inline int64_t max_rows_as_stored() {
#ifdef HAS_TILES
    return 2;
#else
    if (kBytes < 64) return kRowsAtOnce;
    static const bool is_cheap = has_fast_shuffles();
    return is_cheap ? kMostAsStored : 2;
#endif
}
// More rows go through panels that are made once for many outputs.
constexpr int64_t max_few_rows(int64_t groups) { return by_tiles(groups) ? 128 : 64; }
constexpr int64_t kFewBlocks = 8192 / (kBlock * kPanel);  // whose panel stays in the first level

// Several products of the same activations as if their outputs stood side by side: a part is of one
// or of several.
struct Together {
    IntProduct products[kMostTogether];
    int64_t count;
};

// What a thread needs for few rows.
struct FewArrays {
    uint8_t* codes;
    float *sums, *scales, *zero_points;  // the latter two of 4-bit weights
    FewArrays(Arena& arena, const Together& all, int64_t groups)
        : codes(arena.take<uint8_t>(kFewBlocks * kBlock * kPanel)),
          sums(arena.take<float>(all.products->rows * kPanel)),
          scales(arena.take<float>(all.products->x.blocks * groups * kPanel)),
          zero_points(all.products->zero_points
                          ? arena.take<float>(all.products->x.blocks * groups * kPanel)
                          : nullptr) {}
};

// Ask for what the next panel's first lines of scales are, a block's share with each block: nothing
// else is done while they are waited for.
template <int64_t kGroups, int64_t kWidth>
void ask_for_scales(const IntProduct& p, int64_t first, int64_t block) {
    constexpr int64_t kShare = kGroups * kWidth * sizeof *p.halves;
    const char* next = (const char*)(p.halves + (first + kWidth) * p.groups);
    for (int64_t at = 0; at < kShare; at += 64) ask_for_later(next + block * kShare + at);
}

// A block of `outputs` outputs that an edge cuts off, `bytes` of each, to `copy`, with zeros around
// it.
template <int64_t kBits>
void copy_block(uint8_t* copy, const uint8_t* weight, int64_t stride, int64_t outputs,
                int64_t bytes) {
    constexpr int64_t kBlockBytes = kBlock * kBits / 8;
    std::memset(copy, 0, kLanes * kBlockBytes);
    for (int64_t o = 0; o < outputs; o++)
        std::memcpy(copy + o * kBlockBytes, weight + o * stride, bytes);
}

// A block of weights as stored and `count` rows of activations from `first` on, at most kRows.
template <int64_t kBits, int64_t kGroups, bool kZeros, int64_t kRows = kRowsAtOnce>
void add_block_of(int64_t count, float (*sums)[kLanes], const BlockAsStored& weights,
                  const Activations& x, int64_t first, int64_t block) {
    if constexpr (kRows > 1)
        if (count < kRows)
            return add_block_of<kBits, kGroups, kZeros, kRows - 1>(count, sums, weights, x, first,
                                                                   block);
    BlockOfRow rows[kRows];
    for (int64_t m = 0; m < kRows; m++) {
        const int64_t at = (first + m) * x.blocks + block;
        rows[m] = {x.values + at * kBlock, x.starts + at * kGroups, x.scales[at]};
    }
    add_block<kBits, kGroups, kZeros, kRows>(sums + first, weights, rows);
}

// A row or a few, outputs [begin, end) · kLanes: from the weights' rows as they lie.
template <int64_t kBits, int64_t kGroups, bool kZeros>
void int_rows_as_stored(const IntProduct& p, int64_t begin, int64_t end, const FewArrays& arrays) {
    constexpr int64_t kBlockBytes = kBlock * kBits / 8;
    float* scales = kBits == 4 ? arrays.scales : nullptr;
    alignas(64) uint8_t copy[kLanes * kBlockBytes];
    const int64_t stop = end * kLanes < p.outputs ? end * kLanes : p.outputs;
    for (int64_t first = begin * kLanes; first < stop; first += kLanes) {
        const int64_t outputs = stop - first < kLanes ? stop - first : kLanes;
        const uint8_t* later = p.weight + (first + kLanes) * p.stride;
        if (scales) fill_scales<1>(scales, p, first, p.x.blocks * kGroups);
        if (kZeros) fill_zero_points<1>(arrays.zero_points, p, first, p.x.blocks * kGroups);
        alignas(64) float sums[kMostAsStored][kLanes] = {};
        for (int64_t block = 0; block < p.x.blocks; block++) {
            if (scales) ask_for_scales<kGroups, kLanes>(p, first, block);
            const uint8_t* weight = p.weight + first * p.stride + block * kBlockBytes;
            const int64_t left = p.stride - block * kBlockBytes;
            int64_t stride = p.stride;
            if (outputs < kLanes || left < kBlockBytes) {
                const int64_t bytes = left < kBlockBytes ? left : kBlockBytes;
                copy_block<kBits>(copy, weight, stride, outputs, bytes);
                weight = copy, stride = kBlockBytes;
            }
            const int64_t lane = block * kGroups * kLanes;
            const float* scale = scales ? scales + lane : nullptr;
            const float* zero_point = kZeros ? arrays.zero_points + lane : nullptr;
            const uint8_t* ahead = later + block * kLanes * kBlockBytes;
            const BlockAsStored whole{weight, stride, scale, zero_point, ahead};
            for (int64_t m = 0; m < p.rows; m += kRowsAtOnce)
                add_block_of<kBits, kGroups, kZeros>(p.rows - m, sums, whole, p.x, m, block);
        }
        store_outputs<1>(p.results(), 0, p.rows, first, sums[0]);
    }
}

// Few rows: some blocks of a panel are used as soon as they are transposed, so that nothing but the
// weights is read.
template <int64_t kBits, int64_t kGroups, bool kZeros>
void int_few_rows(const IntProduct& p, int64_t begin, int64_t end, const FewArrays& arrays) {
    float *sums = arrays.sums, *scales = kBits == 4 ? arrays.scales : nullptr;
    constexpr int64_t kPanelBytes = kBlock * kBits / 8 * kPanel;  // of a block
    const int64_t groups = p.x.blocks * kGroups;
    const int64_t tiles = (p.rows + kIntTileRows - 1) / kIntTileRows;
    for (int64_t first = begin * kPanel; first < p.outputs && first < end * kPanel;
         first += kPanel) {
        for (int64_t i = 0; i < p.rows * kPanel; i += kLanes) store(sums + i, zeros());
        for (int64_t v = 0; v < 2 && scales; v++)
            fill_scales<2>(scales + v * kLanes, p, first + v * kLanes, groups);
        for (int64_t v = 0; v < 2 && kZeros; v++)
            fill_zero_points<2>(arrays.zero_points + v * kLanes, p, first + v * kLanes, groups);
        for (int64_t block = 0; block < p.x.blocks; block += kFewBlocks) {
            const int64_t left = p.x.blocks - block;
            const Blocks blocks{block, left < kFewBlocks ? left : kFewBlocks};
            for (int64_t i = 0; i < blocks.count && scales; i++)
                ask_for_scales<kGroups, kPanel>(p, first, block + i);
            for (int64_t v = 0; v < 2; v++)
                fill_int_panel<kBits, 2, false>(arrays.codes + vector_of_codes<false>(v), p,
                                                first + v * kLanes, blocks, 0,
                                                tiles > 1 ? Ahead::kInRows : Ahead::kLater);
            const int64_t lane = block * kGroups * kPanel;
            const IntPanel panel{arrays.codes, scales ? scales + lane : nullptr,
                                 kZeros ? arrays.zero_points + lane : nullptr};
            ReadAhead ahead(p.weight + (first + kPanel) * p.stride + block * kPanelBytes,
                            blocks.count * kPanelBytes, blocks.count * tiles, true);
            for (int64_t m = 0; m < p.rows; m += kIntTileRows)
                int_tile_of<kBits, kGroups, kZeros, kIntTileRows, 2>(
                    p.layout.rows_of(m, p.rows), sums + m * kPanel, p.x, m, blocks, panel,
                    tiles > 1 ? &ahead : nullptr);
        }
        store_outputs<2>(p.results(), 0, p.rows, first, sums);
    }
}

}  // namespace
