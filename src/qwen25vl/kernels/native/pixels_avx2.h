// What is done with bytes of pixels, for AVX2 and above: pixels_base.h says the same in plain C++.
#pragma once

#include "axis.h"
#include "vector.h"

namespace {

// 16 pixels of three colours as 16 bytes of each colour.
class Colours {
public:
    explicit Colours(const uint8_t* pixels) {
        const __m128i a = _mm_loadu_si128((const __m128i*)pixels);
        const __m128i b = _mm_loadu_si128((const __m128i*)(pixels + 16));
        const __m128i c = _mm_loadu_si128((const __m128i*)(pixels + 32));
        for (char i = 0; i < 3; i++) {
            const __m128i first = _mm_or_si128(pick(a, i), pick(b, i - 16));
            bytes_[(int)i] = _mm_or_si128(first, pick(c, i - 32));
        }
    }

    Floats numbers(int colour, int64_t start) const {  // kLanes of them; start: 0 or kLanes
#ifdef __AVX512F__
        (void)start;
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes_[colour]));
#else
        const __m128i eight = start ? _mm_srli_si128(bytes_[colour], 8) : bytes_[colour];
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
#endif
    }

private:
    static __m128i pick(__m128i x, char base) {  // byte 3i + base of a register, where it has one
        const __m128i steps =
            _mm_setr_epi8(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45);
        const __m128i index = _mm_add_epi8(steps, _mm_set1_epi8(base));
        const __m128i outside = _mm_cmpgt_epi8(index, _mm_set1_epi8(15));
        return _mm_shuffle_epi8(x, _mm_or_si128(index, outside));  // negative ones give 0 anyway
    }

    __m128i bytes_[3];
};

inline __m256i weight_pair(const int16_t* weights) {
    int32_t pair;
    std::memcpy(&pair, weights, sizeof pair);
    return _mm256_set1_epi32(pair);
}

inline __m256i both(const uint8_t* a, const uint8_t* b) {
    const __m128i low = _mm_loadu_si128((const __m128i*)a);
    const __m128i high = _mm_loadu_si128((const __m128i*)b);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// Two rows of [pixels][3] bytes at once, one in each half of a register, four taps of three colours
// per load.
void resize_rows(uint8_t* out_a, uint8_t* out_b, const uint8_t* a, const uint8_t* b,
                 const Axis& axis) {
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
            const __m256i near = _mm256_shuffle_epi8(pixels, first_taps);
            const __m256i far = _mm256_shuffle_epi8(pixels, later_taps);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(near, weight_pair(weights + k)));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(far, weight_pair(weights + k + 2)));
        }
        if (k < axis.taps) {
            const __m256i pixels = both(from_a + k * 3, from_b + k * 3);
            const __m256i near = _mm256_shuffle_epi8(pixels, first_taps);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(near, weight_pair(weights + k)));
        }
        sum = _mm256_sra_epi32(sum, places);
        sum = _mm256_packs_epi32(sum, sum);
        sum = _mm256_packus_epi16(sum, sum);
        const int32_t pixel_a = _mm256_extract_epi32(sum, 0);
        const int32_t pixel_b = _mm256_extract_epi32(sum, 4);
        // the fourth byte is the next pixel's, which is written after it
        std::memcpy(out_a + x * 3, &pixel_a, 4);
        std::memcpy(out_b + x * 3, &pixel_b, 4);
    }
}

// One output row of `bytes` bytes from input rows that lie `stride` bytes apart; `count` of them
// are there.
void resize_column(uint8_t* out, const uint8_t* rows, int64_t stride, int64_t count,
                   const int16_t* weights, const Axis& axis, int64_t bytes) {
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
        low = _mm256_sra_epi32(low, places);
        high = _mm256_sra_epi32(high, places);
        __m256i sum = _mm256_packs_epi32(low, high);
        sum = _mm256_permute4x64_epi64(_mm256_packus_epi16(sum, sum), 0x08);
        _mm_storeu_si128((__m128i*)(out + x), _mm256_castsi256_si128(sum));
    }
}

}  // namespace
