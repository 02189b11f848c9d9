// A row or a few: dot products along the weights' own rows, as they lie in memory; nothing is
// transposed but the sums.
//
// For kLanes outputs side by side, each vector of weights is multiplied with the vector of
// activations that meets it: for 4 bits one load and three instructions that part the halves, for
// all rows, and two multiplications for each. After 128 inputs the kLanes vectors of partial sums
// are added crosswise into one vector with a sum for each output, 45 instructions a row with
// AVX-512, where transposing the weights takes 144 for all rows. The sums are whole numbers, so
// they are those of `int_tile`, and so is the order in which the groups are added to the floats.
#pragma once

#include "levels.h"

namespace {

constexpr int64_t kQuarters = kLanes / 4;  // runs of 16 bytes in a vector

// Words whose sum over a quarter belongs to one output each -> these sums of four outputs, one
// after the other in each quarter, in two steps.
FORCE_INLINE Words add_pairwise(Words a, Words b) {
    return add_words(low_words(a, b), high_words(a, b));
}
FORCE_INLINE Words add_pairs_of_pairs(Words a, Words b) {
    return add_words(low_doubles(a, b), high_doubles(a, b));
}

// A block of kLanes rows of weights, `stride` bytes apart, with kGroups scales for each output, and
// as many zero points or none.
// `later`: where to ask for as many lines of later rows (panel.h: reading ahead).
struct BlockAsStored {
    const uint8_t* weight;
    int64_t stride;
    const float *scales, *zero_points;
    const uint8_t* later;
};

// A block of one row of activations; starts: of each group, as in Activations.
struct BlockOfRow {
    const int8_t* values;
    const int32_t* starts;
    float scale;
};

// Whether sums of a block's products fit in 16 bits until they are added crosswise.
template <int64_t kBits>
constexpr bool kInShorts = steps_in_shorts(kBits) >= 2 * (kBlock * kBits / 8 / kBytes);

// The products of a vector of weights with the activations that meet it, added to n.
template <int64_t kBits>
FORCE_INLINE void add_vector(Words& n, Words w, const int8_t* a) {
    if constexpr (kBits == 8) {
        n = dot4<8>(n, for_panel(w), load_words(a));
    } else if constexpr (kInShorts<kBits>) {
        n = add_pairs(n, low_halves(w), load_words(a));
        n = add_pairs(n, high_halves(w), load_words(a + kBlock / 2));
    } else {
        n = dot4<4>(n, low_halves(w), load_words(a));
        n = dot4<4>(n, high_halves(w), load_words(a + kBlock / 2));
    }
}

// The products of the weights of output `o` and kRows rows, vectors [begin, end) of the block. Each
// vector of weights is loaded and parted once.
template <int64_t kBits, int64_t kRows>
FORCE_INLINE void multiply_output(Words (&n)[kRows], const BlockAsStored& block, int64_t o,
                                  int64_t begin, int64_t end, const BlockOfRow* rows) {
    constexpr int64_t kVectors = kBlock * kBits / 8 / kBytes;
    UNROLL for (int64_t m = 0; m < kRows; m++) n[m] = all_words(0);
    UNROLL for (int64_t v = begin; v < end; v++) {
        const uint8_t* from = block.weight + o * block.stride + v * kBytes;
        ask_for(from + 2 * kVectors * kBytes);
        ask_for_later(block.later + (o * kVectors + v) * kBytes);
        const Words w = load_words(from);
        UNROLL for (int64_t m = 0; m < kRows; m++)
            add_vector<kBits>(n[m], w, rows[m].values + v * kBytes);
    }
    if constexpr (kInShorts<kBits>)
        UNROLL for (int64_t m = 0; m < kRows; m++) n[m] = add_shorts(all_words(0), n[m]);
}

// sums[row][output] += the product of a block of weights and one of each of kRows rows. The sums of
// two outputs are added crosswise as soon as they are there, so that those of several rows stay in
// registers. A call of its own: inside the loop over rows gcc keeps the addresses of all lines on
// the stack (up to 1.3 times the time).
template <int64_t kBits, int64_t kGroups, bool kZeros, int64_t kRows>
NO_INLINE void add_block(float (*sums)[kLanes], const BlockAsStored& block,
                         const BlockOfRow* rows) {
    constexpr int64_t kVectors = kBlock * kBits / 8 / kBytes;           // of weights for a block
    constexpr int64_t kSums = kGroups < kVectors ? kGroups : kVectors;  // times that sums are made
    constexpr int64_t kRun = kVectors / kSums;                          // vectors each time
    constexpr int64_t kEach = kGroups / kSums;                          // groups each time
    constexpr int64_t kShare = kQuarters / kEach;
    UNROLL for (int64_t s = 0; s < kSums; s++) {
        Words fours[kRows][kQuarters];  // of four outputs each
        UNROLL for (int64_t four = 0; four < kLanes / 4; four++) {
            Words pairs[2][kRows];
            UNROLL for (int64_t pair = 0; pair < 2; pair++) {
                Words n[2][kRows];
                UNROLL for (int64_t i = 0; i < 2; i++)
                    multiply_output<kBits, kRows>(n[i], block, 4 * four + 2 * pair + i, s * kRun,
                                                  (s + 1) * kRun, rows);
                UNROLL for (int64_t m = 0; m < kRows; m++)
                    pairs[pair][m] = add_pairwise(n[0][m], n[1][m]);
            }
            UNROLL for (int64_t m = 0; m < kRows; m++)
                fours[m][four] = add_pairs_of_pairs(pairs[0][m], pairs[1][m]);
        }
        UNROLL for (int64_t m = 0; m < kRows; m++) {
            turn_quarters(fours[m]);
            Floats sum = load(sums[m]);
            UNROLL for (int64_t g = 0; g < kEach; g++) {
                Words total = fours[m][g * kShare];
                UNROLL for (int64_t q = 1; q < kShare; q++)
                    total = add_words(total, fours[m][g * kShare + q]);
                const int64_t at = s * kEach + g;
                Floats scale = broadcast(rows[m].scale);
                if constexpr (kBits == 4)
                    scale = multiply(scale, load(block.scales + at * kLanes));
                const float* zero_points = kZeros ? block.zero_points + at * kLanes : nullptr;
                sum = multiply_add(total_of<kZeros>(total, rows[m].starts[at], zero_points), scale,
                                   sum);
            }
            store(sums[m], sum);
        }
    }
}

}  // namespace
