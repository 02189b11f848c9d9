// The operations between the products: each reads its input once and writes its result once. They
// round where their equations in torch round (reference.py), so only the order of rms_norm's sum
// and the exponential of silu may differ.
#include <cmath>

#include "kernels.h"

namespace {

constexpr int64_t kSide = 8;              // vectors whose exponentials are computed side by side
constexpr int64_t kWorthThreads = 32768;  // numbers: with fewer, threads cost more than they save
constexpr int64_t kRun = 16384;           // numbers that a thread takes at a time

template <typename T>
Floats load_some(const T* p, int64_t count) {
    return count >= kLanes ? load(p) : load_first(p, count);
}

inline void store_some(bf16* p, Floats x, int64_t count) {
    if (count >= kLanes) store(p, x);
    else store_first(p, x, count);
}

// bf16: every product and sum is rounded; float32: the result only
inline Floats rounded(Floats x, bool each) { return each ? round_to_bf16(x) : x; }

template <typename T>
void rotate_head(bf16* y, const bf16* x, const T* cosine, const T* sine, int64_t half) {
    constexpr bool kEach = sizeof(T) == sizeof(bf16);
    for (int64_t i = 0; i < half; i += kLanes) {
        int64_t some = half - i;
        Floats a = load_some(x + i, some), b = load_some(x + half + i, some);
        Floats c = load_some(cosine + i, some), s = load_some(sine + i, some);
        const Floats ac = rounded(multiply(a, c), kEach), bs = rounded(multiply(b, s), kEach);
        const Floats bc = rounded(multiply(b, c), kEach), as = rounded(multiply(a, s), kEach);
        store_some(y + i, subtract(ac, bs), some);
        store_some(y + half + i, add(bc, as), some);
    }
}

// N vectors, or `count` numbers of one
template <int64_t N>
void gate_some(bf16* y, const bf16* gate, const bf16* up, int64_t count) {
    Floats g[N], x[N];
    UNROLL for (int64_t v = 0; v < N; v++) {
        g[v] = load_some(gate + v * kLanes, count);
        x[v] = subtract(zeros(), g[v]);
    }
    exponentials(x);
    UNROLL for (int64_t v = 0; v < N; v++) {
        Floats silu = round_to_bf16(divide(g[v], add(broadcast(1.f), x[v])));
        store_some(y + v * kLanes, multiply(silu, load_some(up + v * kLanes, count)), count);
    }
}

}  // namespace

// y = weight · bf16(x / sqrt(mean(x²) + eps)), x and y [rows, width]
extern "C" int64_t KERNEL(rms_norm)(bf16* y, const bf16* x, const bf16* weight, float eps,
                                    int64_t rows, int64_t width, int64_t threads) {
    const int64_t run = kRun / width + 1;
    const bool worth = rows * width > kWorthThreads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, run) if (worth)
    for (int64_t row = 0; row < rows; row++) {
        const bf16* from = x + row * width;
        bf16* to = y + row * width;
        Floats squares = zeros();
        for (int64_t i = 0; i < width; i += kLanes) {
            Floats v = load_some(from + i, width - i);
            squares = multiply_add(v, v, squares);
        }
        Floats scale = broadcast(1 / std::sqrt(sum(squares) / (float)width + eps));
        for (int64_t i = 0; i < width; i += kLanes) {
            Floats v = round_to_bf16(multiply(load_some(from + i, width - i), scale));
            store_some(to + i, multiply(v, load_some(weight + i, width - i)), width - i);
        }
    }
    return kDone;
}

// y = bf16(gate / (1 + e^−gate)) · up
extern "C" int64_t KERNEL(silu_mul)(bf16* y, const bf16* gate, const bf16* up, int64_t count,
                                    int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (count > kWorthThreads)
    for (int64_t start = 0; start < count; start += kRun) {
        const int64_t end = start + kRun < count ? start + kRun : count;
        const int64_t whole = end - (end - start) % (kSide * kLanes);
        for (int64_t i = start; i < whole; i += kSide * kLanes)
            gate_some<kSide>(y + i, gate + i, up + i, kLanes);
        for (int64_t i = whole; i < end; i += kLanes)
            gate_some<1>(y + i, gate + i, up + i, end - i);
    }
    return kDone;
}

// Rotary embedding: number j of a head is paired with number j + size / 2 (model/rope.py). y [rows,
// heads, size]; rows of x are x_row_stride apart, its heads side by side; cosine, sine [rows, size
// / 2] in bfloat16 or float32.
extern "C" int64_t KERNEL(rotate)(bf16* y, const bf16* x, int64_t x_row_stride, const void* cosine,
                                  const void* sine, int64_t is_bf16, int64_t rows, int64_t heads,
                                  int64_t size, int64_t threads) {
    const int64_t half = size / 2, run = kRun / (heads * size) + 1;
    const bool worth = rows * heads * size > kWorthThreads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, run) if (worth)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < heads; head++) {
            bf16* to = y + (row * heads + head) * size;
            const bf16* from = x + row * x_row_stride + head * size;
            const int64_t at = row * half;
            if (is_bf16)
                rotate_head(to, from, (const bf16*)cosine + at, (const bf16*)sine + at, half);
            else rotate_head(to, from, (const float*)cosine + at, (const float*)sine + at, half);
        }
    return kDone;
}
