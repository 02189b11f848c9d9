// One row or two: dot products along the weights' own rows, as they lie in memory; nothing is
// transposed but the sums.
//
// For kLanes outputs side by side, each vector of weights is multiplied with the vector of
// activations that meets it: for 4 bits one load, three instructions that part the halves, two
// multiplications. After 128 inputs the kLanes vectors of partial sums are added crosswise into one
// vector with a sum for each output, 45 instructions with AVX-512: about 9 for 64 bytes of weights,
// where transposing them takes twice as many. The sums are whole numbers, so they are those of
// `int_tile`, and so is the order in which the groups are added to the floats.
#pragma once

#include "levels.h"

namespace {

constexpr int64_t kQuarters = kLanes / 4;  // runs of 16 bytes in a vector

// n[o]: words whose sum over a quarter belongs to output o -> n[q]: these sums of quarter q, output
// by output.
inline void add_crosswise(Words n[kLanes]) {
    UNROLL for (int64_t i = 0; i < kLanes / 2; i++)
        n[i] = add_words(low_words(n[2 * i], n[2 * i + 1]), high_words(n[2 * i], n[2 * i + 1]));
    UNROLL for (int64_t i = 0; i < kQuarters; i++)
        n[i] = add_words(low_doubles(n[2 * i], n[2 * i + 1]), high_doubles(n[2 * i], n[2 * i + 1]));
    turn_quarters(n);
}

// A block of kLanes rows of weights, `stride` bytes apart, with kGroups scales for each output, and
// as many zero points or none.
// `later`: where to ask for as many lines of later rows, or null for all but the first row that
// meets these weights (panel.h: reading ahead).
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

// The outputs' sum, and to it the product of a block of weights and one of a row. A call of its
// own: inside the loop over rows gcc keeps the addresses of all lines on the stack (up to 1.3 times
// the time).
template <int64_t kBits, int64_t kGroups, bool kZeros>
NO_INLINE Floats add_block(Floats sum, const BlockAsStored& block, const BlockOfRow& row) {
    const bool ahead = block.later != nullptr;
    constexpr int64_t kVectors = kBlock * kBits / 8 / kBytes;           // of weights for a block
    constexpr int64_t kSums = kGroups < kVectors ? kGroups : kVectors;  // times that sums are made
    constexpr int64_t kRun = kVectors / kSums;                          // vectors each time
    constexpr int64_t kEach = kGroups / kSums;                          // groups each time
    UNROLL for (int64_t s = 0; s < kSums; s++) {
        Words n[kLanes];
        UNROLL for (int64_t o = 0; o < kLanes; o++) {
            n[o] = all_words(0);
            UNROLL for (int64_t v = s * kRun; v < (s + 1) * kRun; v++) {
                const uint8_t* from = block.weight + o * block.stride + v * kBytes;
                if (ahead) ask_for(from + 2 * kVectors * kBytes);
                if (ahead) ask_for_later(block.later + (o * kVectors + v) * kBytes);
                add_vector<kBits>(n[o], load_words(from), row.values + v * kBytes);
            }
            if constexpr (kInShorts<kBits>) n[o] = add_shorts(all_words(0), n[o]);
        }
        add_crosswise(n);
        UNROLL for (int64_t g = 0; g < kEach; g++) {
            constexpr int64_t kShare = kQuarters / kEach;
            Words total = n[g * kShare];
            UNROLL for (int64_t q = 1; q < kShare; q++) total = add_words(total, n[g * kShare + q]);
            const int64_t at = s * kEach + g;
            Floats scale = broadcast(row.scale);
            if constexpr (kBits == 4)
                scale = multiply(scale, load(block.scales + at * kLanes));
            const float* zero_points = kZeros ? block.zero_points + at * kLanes : nullptr;
            sum = multiply_add(total_of<kZeros>(total, row.starts[at], zero_points), scale, sum);
        }
    }
    return sum;
}

}  // namespace
