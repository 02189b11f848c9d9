// Frames resized a band of rows at a time: torch's antialiased bicubic on uint8, to the bit.
//
// First along rows, then along columns, each with its own table of weights: rounded to int16 with
// as many binary places as the largest weight allows, summed in int32, half a unit added, shifted,
// clipped to 0..255 and kept as bytes.
//
// A thread takes neighbouring bands and keeps the input rows that the next one shares. Both of its
// buffers, rows resized along rows (about 33 for a band of 28) and rows resized along both, fit
// into the second-level cache for a width of 4,000 pixels. Per pixel of 5 taps with AVX2: 3
// multiply-adds for two rows at once along rows, 3 for 16 bytes along columns.
#pragma once

#ifdef __AVX2__
#include "pixels_avx2.h"
#else
#include "pixels_base.h"
#endif

namespace {

struct Frames {
    const uint8_t* pixels;  // [count][height][width][3]
    int64_t count, height, width;
};

// How large a thread's buffers must be, in bytes, for bands of `band_height` output rows.
struct BandSizes {
    int64_t stride;      // from row to row, of rows resized along rows
    int64_t source;      // of an input row, with room behind it
    int64_t wide, band;  // rows resized along rows; along both

    BandSizes(int64_t width, const Axis& down, const Axis& across, int64_t band_height)
        : stride((int64_t)across.first.size() * 3 + kSlack),
          source((width + across.taps) * 3 + kSlack), wide(0), band(0) {
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
    Bands(const BandArrays& arrays, const Frames& frames, const Axis& down, const Axis& across,
          int64_t stride)
        : BandArrays(arrays), frames_(frames), down_(down), across_(across), stride_(stride) {}

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
            const int16_t* weights = &down_.values[y * down_.taps];
            resize_column(out, from, stride_, count, weights, down_, stride_ - kSlack);
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
                std::memcpy(a, row(frame, next), frames_.width * 3);
                std::memcpy(b, row(frame, other), frames_.width * 3);
                continue;
            }
            std::memcpy(source_a, row(frame, next), frames_.width * 3);
            std::memcpy(source_b, row(frame, other), frames_.width * 3);
            resize_rows(a, b, source_a, source_b, across_);
        }
        frame_ = frame, first_ = first, last_ = last;
    }

    const uint8_t* row(int64_t frame, int64_t y) const {
        return frames_.pixels + (frame * frames_.height + y) * frames_.width * 3;
    }

    const Frames& frames_;
    const Axis &down_, &across_;
    int64_t stride_, frame_ = -1, first_ = 0, last_ = 0;
};

}  // namespace
