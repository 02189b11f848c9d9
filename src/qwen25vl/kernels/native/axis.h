// How one axis of a picture is resized: torch's antialiased bicubic on uint8, its weights in whole
// numbers.
#pragma once

#include <algorithm>
#include <cmath>

#include "memory.h"

namespace {

constexpr int64_t kSlack = 64;  // bytes that may be read or written behind a row of pixels

double cubic(double x) {  // Keys' filter, a = −1/2, in torch's order of operations
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

// Output i is Σ_k values[i · taps + k] · input[first[i] + k], over 2^places.
struct Axis {
    bool is_kept;  // nothing to do
    int64_t taps;  // even; the last ones may be 0 and reach beyond the input
    int places;
    Vector<int64_t> first, last;  // of the inputs that count, and the one behind them
    Vector<int16_t> values;

    Axis(int64_t from, int64_t to) : is_kept(from == to), taps(0), places(0), first(to), last(to) {
        if (is_kept) {
            for (int64_t i = 0; i < to; i++) first[i] = i, last[i] = i + 1;
            return;
        }
        const double scale = (double)from / (double)to, support = 2.0 * std::max(scale, 1.0);
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
            for (int64_t k = 0; k < count; k++) {
                weights[k] = cubic((k + first[i] - centre + 0.5) * inverse);
                total += weights[k];
            }
            for (int64_t k = 0; k < count; k++) {
                if (total != 0.0) weights[k] /= total;
                largest = std::max(largest, weights[k]);
            }
        }
        auto is_room = [&](int more) { return (int)(0.5 + largest * (1 << more)) < 1 << 15; };
        while (places < 22 && is_room(places + 1)) places++;
        values.resize(exact.size());
        for (size_t i = 0; i < exact.size(); i++) {
            const double value = exact[i] * (1 << places);
            values[i] = (int16_t)(value < 0 ? value - 0.5 : value + 0.5);
        }
    }

    int32_t half() const { return 1 << (places - 1); }
};

}  // namespace
