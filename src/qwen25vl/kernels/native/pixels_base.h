// What is done with bytes of pixels, in plain C++ for any processor.
#pragma once

#include "axis.h"
#include "vector.h"

namespace {

constexpr int64_t kPixels = 16;  // that are taken apart at once

inline uint8_t to_byte(int32_t sum, int places) {
    return (uint8_t)std::clamp(sum >> places, 0, 255);
}

// 16 pixels of three colours as 16 bytes of each colour.
class Colours {
public:
    explicit Colours(const uint8_t* pixels) {
        for (int64_t i = 0; i < kPixels; i++)
            for (int colour = 0; colour < 3; colour++) bytes_[colour][i] = pixels[3 * i + colour];
    }

    Floats numbers(int colour, int64_t start) const {  // kLanes of them
        const uint8_t* from = bytes_[colour] + start;
        return Floats{(float)from[0], (float)from[1], (float)from[2], (float)from[3]};
    }

private:
    uint8_t bytes_[3][kPixels];
};

inline void resize_row(uint8_t* out, const uint8_t* pixels, const Axis& axis) {
    const int16_t* weights = axis.values.data();
    for (size_t x = 0; x < axis.first.size(); x++, weights += axis.taps) {
        const uint8_t* from = pixels + 3 * axis.first[x];
        int32_t sums[3] = {axis.half(), axis.half(), axis.half()};
        for (int64_t k = 0; k < axis.taps; k++)
            for (int colour = 0; colour < 3; colour++)
                sums[colour] += weights[k] * from[3 * k + colour];
        for (int colour = 0; colour < 3; colour++)
            out[3 * x + colour] = to_byte(sums[colour], axis.places);
    }
}

// Two rows of [pixels][3] bytes.
inline void resize_rows(uint8_t* out_a, uint8_t* out_b, const uint8_t* a, const uint8_t* b,
                        const Axis& axis) {
    resize_row(out_a, a, axis);
    if (out_b != out_a) resize_row(out_b, b, axis);
}

// One output row of `bytes` bytes from input rows that lie `stride` bytes apart; `count` of them
// are there. kSlack bytes at a time.
inline void resize_column(uint8_t* out, const uint8_t* rows, int64_t stride, int64_t count,
                          const int16_t* weights, const Axis& axis, int64_t bytes) {
    for (int64_t x = 0; x < bytes; x += kSlack) {
        int32_t sums[kSlack];
        for (int64_t i = 0; i < kSlack; i++) sums[i] = axis.half();
        for (int64_t k = 0; k < count; k++) {
            const uint8_t* row = rows + k * stride + x;
            for (int64_t i = 0; i < kSlack; i++) sums[i] += weights[k] * (int16_t)row[i];
        }
        for (int64_t i = 0; i < kSlack; i++) out[x + i] = to_byte(sums[i], axis.places);
    }
}

}  // namespace
