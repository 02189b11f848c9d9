// Weights to 8 or 4 bits: the scale of each group with the least error, and the levels themselves.
//
// For a scale s the levels are q = round(w / s), from −half to half − 1. For given levels the best
// scale is Σwq / Σq², which takes (Σwq)² / Σq² off the squared error Σw². A trial puts the group's
// extreme weight at so many parts of the lowest level; the best trial is refined once.
//
// Several trials go side by side: each weight is read once for them, and sums do not wait.
#include "kernels.h"

namespace {

constexpr int64_t kTrials = 4;                        // side by side
constexpr float kSmallestScale = 1.f / (1 << 20);     // of which float16 still keeps five bits
constexpr int64_t kChunk = 256;                       // levels that are packed at a time

struct Group {
    const float* weights;
    int64_t size;
    float half;

    Floats vector(int64_t i) const {
        return size - i >= kLanes ? load(weights + i) : load_first(weights + i, size - i);
    }
    Floats levels(Floats x, Floats inverse) const {
        const Floats scaled = multiply(x, inverse);
        return round_to_int(
            minimum(maximum(scaled, broadcast(-half)), broadcast(half - 1)));
    }
};

inline float off_zero(float scale) {
    return scale < kSmallestScale && scale > -kSmallestScale ? kSmallestScale : scale;
}

// The best so far.
struct Best {
    float scale = 0, reduction = 0;

    // Try the levels of N scales.
    template <int64_t N>
    void try_scales(const Group& group, const float* scales) {
        Floats inverse[N], products[N], squares[N];
        for (int64_t n = 0; n < N; n++) {
            inverse[n] = broadcast(1 / off_zero(scales[n]));
            products[n] = squares[n] = zeros();
        }
        for (int64_t i = 0; i < group.size; i += kLanes) {
            const Floats x = group.vector(i);
            UNROLL for (int64_t n = 0; n < N; n++) {
                const Floats q = group.levels(x, inverse[n]);
                products[n] = multiply_add(x, q, products[n]);
                squares[n] = multiply_add(q, q, squares[n]);
            }
        }
        for (int64_t n = 0; n < N; n++) {
            const float product = sum(products[n]), all = sum(squares[n]);
            const float square = all > 1 ? all : 1, less = product * product / square;
            if (less > reduction) *this = {product / square, less};
        }
    }
};

// The weight that is farthest from zero; NaN where one is not finite.
float extreme_of(const Group& group) {
    Floats low = zeros(), high = zeros(), no_number = zeros();
    for (int64_t i = 0; i < group.size; i += kLanes) {
        const Floats x = group.vector(i);
        low = minimum(low, x), high = maximum(high, x);
        no_number = multiply_add(x, zeros(), no_number);
    }
    const float most = largest(high), least = -largest(subtract(zeros(), low));
    return (-least > most ? least : most) + sum(no_number);
}

float search_scale(const Group& group, const float* parts, int64_t num_parts) {
    const float extreme = extreme_of(group);
    if (!(extreme == extreme)) return extreme;
    float scales[kTrials];
    Best best;
    for (int64_t part = 0; part < num_parts; part += kTrials) {
        const int64_t count = num_parts - part < kTrials ? num_parts - part : kTrials;
        for (int64_t n = 0; n < count; n++) scales[n] = extreme / (-group.half * parts[part + n]);
        if (count == kTrials) best.try_scales<kTrials>(group, scales);
        else
            for (int64_t n = 0; n < count; n++) best.try_scales<1>(group, scales + n);
    }
    const float refined = best.scale;
    best.try_scales<1>(group, &refined);
    return off_zero(best.scale);
}

// kBits of level + half for each weight, the even one in the low half of a byte.
template <int64_t kBits>
void pack_group(uint8_t* codes, const Group& group, float scale) {
    const Floats inverse = broadcast(1 / scale);
    alignas(64) int8_t levels[kChunk];
    for (int64_t start = 0; start < group.size; start += kChunk) {
        const int64_t count = group.size - start < kChunk ? group.size - start : kChunk;
        for (int64_t i = 0; i < count; i += kLanes)
            store_as_bytes(levels + i, to_words(group.levels(group.vector(start + i), inverse)));
        uint8_t* to = codes + start * kBits / 8;
        if (kBits == 8)
            for (int64_t i = 0; i < count; i++) to[i] = (uint8_t)(levels[i] + 128);
        else
            for (int64_t i = 0; i < count / 2; i++)
                to[i] = (uint8_t)((levels[2 * i] + 8) | (levels[2 * i + 1] + 8) << 4);
    }
}

}  // namespace

// weights [groups, size] -> scales [groups]: of those tried, the one with the least squared error.
extern "C" int64_t KERNEL(search_scales)(float* scales, const float* weights, const float* parts,
                                         int64_t groups, int64_t size, int64_t half,
                                         int64_t num_parts, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(guided)
    for (int64_t i = 0; i < groups; i++)
        scales[i] = search_scale({weights + i * size, size, (float)half}, parts, num_parts);
    return 0;
}

// weights [groups, size], scales [groups] -> codes [groups, size · bits / 8]; 4 bits: size even.
extern "C" int64_t KERNEL(pack_levels)(uint8_t* codes, const float* weights, const float* scales,
                                       int64_t groups, int64_t size, int64_t bits,
                                       int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(guided)
    for (int64_t i = 0; i < groups; i++) {
        const Group group{weights + i * size, size, bits == 4 ? 8.f : 128.f};
        uint8_t* to = codes + i * size * bits / 8;
        if (bits == 4) pack_group<4>(to, group, scales[i]);
        else pack_group<8>(to, group, scales[i]);
    }
    return 0;
}
