// Frames resized a band of rows at a time: torch's antialiased bicubic on uint8, to the bit.
//
// First along rows, then along columns, each with its own table of weights: rounded to int16 with as many binary places
// as the largest weight allows, summed in int32, half a unit added, shifted, clipped to 0..255 and kept as bytes.
//
// A thread takes neighbouring bands and keeps the input rows that the next one shares. Both of its buffers, rows resized
// along rows (about 33 for a band of 28) and rows resized along both, fit into the second-level cache for a width of
// 4,000 pixels. Per pixel of 5 taps: 3 multiply-adds for two rows at once along rows, 3 for 16 bytes along columns.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "memory.h"
#include "vector.h"

namespace {

constexpr int64_t kSlack = 64;  // bytes that may be read or written behind a row

double cubic(double x) {  // Keys' filter, a = −1/2, in torch's order of operations
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

// How one axis is resized: output i is Σ values[i · taps + k] · input[first[i] + k], over 2^places.
struct Axis {
    bool is_kept;              // nothing to do
    int64_t taps;              // even; the last ones may be 0 and reach beyond the input
    int places;
    Vector<int64_t> first, last;  // of the inputs that count, and the one behind them
    Vector<int16_t> values;

    Axis(int64_t from, int64_t to) : is_kept(from == to), taps(0), places(0), first(to), last(to) {
        if (is_kept) {
            for (int64_t i = 0; i < to; i++) first[i] = i, last[i] = i + 1;
            return;
        }
        const double scale = (double)from / (double)to, stretch = std::max(scale, 1.0), support = 2.0 * stretch;
        const int64_t most = (int64_t)std::ceil(support) * 2 + 1;
        taps = (most + 1) / 2 * 2;
        Vector<double> exact(to * taps, 0.0);
        double largest = 0.0;
        for (int64_t i = 0; i < to; i++) {
            const double centre = scale * (i + 0.5), inverse = scale >= 1.0 ? 1.0 / scale : 1.0;
            first[i] = std::max<int64_t>((int64_t)(centre - support + 0.5), 0);
            const int64_t stop = std::min<int64_t>((int64_t)(centre + support + 0.5), from);
            const int64_t count = std::clamp<int64_t>(stop - first[i], 0, most);
            last[i] = first[i] + count;
            double* weights = &exact[i * taps];
            double total = 0.0;
            for (int64_t k = 0; k < count; k++) total += weights[k] = cubic((k + first[i] - centre + 0.5) * inverse);
            for (int64_t k = 0; k < count; k++) {
                if (total != 0.0) weights[k] /= total;
                largest = std::max(largest, weights[k]);
            }
        }
        while (places < 22 && (int)(0.5 + largest * (1 << (places + 1))) < 1 << 15) places++;
        values.resize(exact.size());
        for (size_t i = 0; i < exact.size(); i++) {
            const double value = exact[i] * (1 << places);
            values[i] = (int16_t)(value < 0 ? value - 0.5 : value + 0.5);
        }
    }

    int32_t half() const { return 1 << (places - 1); }
};

inline __m256i weight_pair(const int16_t* weights) {
    int32_t pair;
    std::memcpy(&pair, weights, sizeof pair);
    return _mm256_set1_epi32(pair);
}

inline __m256i both(const uint8_t* a, const uint8_t* b) {
    const __m128i low = _mm_loadu_si128((const __m128i*)a);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_loadu_si128((const __m128i*)b), 1);
}

// Two rows of [pixels][3] bytes at once, one in each half of a register, four taps of three colours per load.
void resize_rows(uint8_t* out_a, uint8_t* out_b, const uint8_t* a, const uint8_t* b, const Axis& axis) {
    const __m256i first_taps = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i later_taps = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    const __m256i half = _mm256_set1_epi32(axis.half());
    const __m128i places = _mm_cvtsi32_si128(axis.places);
    const int16_t* weights = axis.values.data();
    for (size_t x = 0; x < axis.first.size(); x++, weights += axis.taps) {
        const uint8_t *from_a = a + axis.first[x] * 3, *from_b = b + axis.first[x] * 3;
        __m256i sum = half;
        int64_t k = 0;
        for (; k + 4 <= axis.taps; k += 4) {
            const __m256i pixels = both(from_a + k * 3, from_b + k * 3);
            const __m256i near = _mm256_shuffle_epi8(pixels, first_taps), far = _mm256_shuffle_epi8(pixels, later_taps);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(near, weight_pair(weights + k)));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(far, weight_pair(weights + k + 2)));
        }
        if (k < axis.taps) {
            const __m256i pixels = _mm256_shuffle_epi8(both(from_a + k * 3, from_b + k * 3), first_taps);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pixels, weight_pair(weights + k)));
        }
        sum = _mm256_sra_epi32(sum, places);
        sum = _mm256_packs_epi32(sum, sum);
        sum = _mm256_packus_epi16(sum, sum);
        const int32_t pixel_a = _mm256_extract_epi32(sum, 0), pixel_b = _mm256_extract_epi32(sum, 4);
        std::memcpy(out_a + x * 3, &pixel_a, 4);  // the fourth byte is the next pixel's, which is written after it
        std::memcpy(out_b + x * 3, &pixel_b, 4);
    }
}

// One output row of `bytes` bytes from input rows that lie `stride` bytes apart; `count` of them are there.
void resize_column(uint8_t* out, const uint8_t* rows, int64_t stride, int64_t count, const int16_t* weights,
                   const Axis& axis, int64_t bytes) {
    const __m256i half = _mm256_set1_epi32(axis.half());
    const __m128i places = _mm_cvtsi32_si128(axis.places);
    for (int64_t x = 0; x < bytes; x += 16) {
        __m256i low = half, high = half;
        for (int64_t k = 0; k < count; k += 2) {
            const uint8_t* even = rows + k * stride + x;
            const uint8_t* odd = k + 1 < count ? even + stride : even;  // its weight is 0
            const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)even));
            const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)odd));
            const __m256i pair = weight_pair(weights + k);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), pair));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), pair));
        }
        __m256i sum = _mm256_packs_epi32(_mm256_sra_epi32(low, places), _mm256_sra_epi32(high, places));
        sum = _mm256_permute4x64_epi64(_mm256_packus_epi16(sum, sum), 0x08);
        _mm_storeu_si128((__m128i*)(out + x), _mm256_castsi256_si128(sum));
    }
}

// How large a thread's buffers must be, in bytes, for bands of `band_height` output rows.
struct BandSizes {
    int64_t stride;      // from row to row, of rows resized along rows
    int64_t source;      // of an input row, with room behind it
    int64_t wide, band;  // rows resized along rows; along both

    BandSizes(int64_t width, const Axis& down, const Axis& across, int64_t band_height)
        : stride((int64_t)across.first.size() * 3 + kSlack), source((width + across.taps) * 3 + kSlack), wide(0), band(0) {
        const int64_t height = (int64_t)down.first.size();
        for (int64_t top = 0; top < height; top += band_height) {
            const int64_t bottom = std::min(top + band_height, height);
            wide = std::max(wide, (down.last[bottom - 1] - down.first[top]) * stride);
        }
        if (!down.is_kept) band = std::min(band_height, height) * stride;
    }
};

// What a thread needs.
struct BandArrays {
    uint8_t *source_a, *source_b, *wide, *band;
    BandArrays(Arena& arena, const BandSizes& sizes)
        : source_a(arena.take<uint8_t>(sizes.source)), source_b(arena.take<uint8_t>(sizes.source)),
          wide(arena.take<uint8_t>(sizes.wide)), band(arena.take<uint8_t>(sizes.band)) {}
};

// A thread's view of the frames: bands of output rows, made as they are asked for.
class Bands : BandArrays {
public:
    Bands(const BandArrays& arrays, const uint8_t* frames, int64_t height, int64_t width, const Axis& down,
          const Axis& across, int64_t stride)
        : BandArrays(arrays), frames_(frames), height_(height), width_(width), down_(down), across_(across),
          stride_(stride) {}

    int64_t stride() const { return stride_; }

    // Output rows [top, bottom) of a frame, `stride` bytes apart.
    const uint8_t* rows(int64_t frame, int64_t top, int64_t bottom) {
        const int64_t first = down_.first[top], last = down_.last[bottom - 1];  // both only grow
        fetch(frame, first, last);
        if (down_.is_kept) return wide;
        for (int64_t y = top; y < bottom; y++) {
            const uint8_t* from = wide + (down_.first[y] - first) * stride_;
            const int64_t count = down_.last[y] - down_.first[y];
            uint8_t* out = band + (y - top) * stride_;
            resize_column(out, from, stride_, count, &down_.values[y * down_.taps], down_, stride_ - kSlack);
        }
        return band;
    }

private:
    // Bring input rows [first, last), resized along rows, to the beginning of `wide`.
    void fetch(int64_t frame, int64_t first, int64_t last) {
        int64_t next = first;
        if (frame == frame_ && first_ <= first && first < last_) {
            next = std::min(last_, last);
            std::memmove(wide, wide + (first - first_) * stride_, (next - first) * stride_);
        }
        for (; next < last; next += 2) {
            const int64_t other = std::min(next + 1, last - 1);
            uint8_t *a = wide + (next - first) * stride_, *b = wide + (other - first) * stride_;
            if (across_.is_kept) {
                std::memcpy(a, row(frame, next), width_ * 3);
                std::memcpy(b, row(frame, other), width_ * 3);
                continue;
            }
            std::memcpy(source_a, row(frame, next), width_ * 3);
            std::memcpy(source_b, row(frame, other), width_ * 3);
            resize_rows(a, b, source_a, source_b, across_);
        }
        frame_ = frame, first_ = first, last_ = last;
    }

    const uint8_t* row(int64_t frame, int64_t y) const { return frames_ + (frame * height_ + y) * width_ * 3; }

    const uint8_t* frames_;
    int64_t height_, width_;
    const Axis &down_, &across_;
    int64_t stride_, frame_ = -1, first_ = 0, last_ = 0;
};

}  // namespace
