// y = x·wᵀ + b for bfloat16 x [rows, inputs] and w [outputs, inputs], sums in float32.
//
// Arithmetic: a tile of kTile activation rows by one panel (32 outputs with AVX-512) keeps its sums in registers, 12 × 2
// of the 32; each step of two inputs loads 2 panel vectors and broadcasts 12 pairs for 24 multiply-add instructions, so
// that loads (14 at two a cycle) hide behind arithmetic (24 at two a cycle). A panel of 2048 inputs is 128 KiB: it stays
// in the second-level cache while all rows pass by.
//
// A row's sum runs over the inputs in order, whatever rows stand beside it: a row alone gives the same bits.
#include "panel.h"

namespace {

#ifdef __AVX512F__
constexpr int64_t kTile = 12;
#else
constexpr int64_t kTile = 4;
#endif
constexpr int64_t kChunk = 2048;  // inputs of one panel

// Turn inputs [start, start + count) of kLanes outputs from `first` on into every kVectors-th vector of the panel;
// outputs and inputs beyond the end are zeros.
template <int64_t kVectors>
void fill_panel(bf16* panel, const bf16* weight, int64_t first, int64_t outputs, int64_t inputs, int64_t start,
                int64_t count, ReadAhead* ahead) {
    for (int64_t k = 0; k < count; k += 2 * kLanes) {
        Words r[kLanes];
        if (ahead) ahead->step();
        const bf16* from = weight + first * inputs + start + k;
        if (first + kLanes <= outputs && count - k >= 2 * kLanes)
            for (int64_t i = 0; i < kLanes; i++) r[i] = load_words(from + i * inputs);
        else
            for (int64_t i = 0; i < kLanes; i++)
                r[i] = first + i < outputs ? load_bytes(from + i * inputs, 2 * (count - k)) : Words{};
        transpose(r);
        for (int64_t i = 0; i < kLanes; i++) store_words(panel + (k / 2 + i) * kVectors * 2 * kLanes, r[i]);
    }
}

// sums[m, v, lane] += Σ_k x[m, k] · panel[k, v, lane]
template <int64_t kRows, int64_t kVectors>
void multiply_tile(float* sums, const bf16* x, int64_t stride, const bf16* panel, int64_t count) {
    Floats s[kRows][kVectors];
    for (int64_t m = 0; m < kRows; m++)
        for (int64_t v = 0; v < kVectors; v++) s[m][v] = load(sums + (m * kVectors + v) * kLanes);
    for (int64_t k = 0; k < count / 2; k++) {
        Pairs w[kVectors];
        for (int64_t v = 0; v < kVectors; v++) w[v] = load_pairs(panel + (k * kVectors + v) * 2 * kLanes);
        for (int64_t m = 0; m < kRows; m++) {
            Pairs a = broadcast_pair(x + m * stride + 2 * k);
            for (int64_t v = 0; v < kVectors; v++) s[m][v] = dot(s[m][v], w[v], a);
        }
    }
    for (int64_t m = 0; m < kRows && count % 2; m++)
        for (int64_t v = 0; v < kVectors; v++) {
            bf16 last[2] = {x[m * stride + count - 1], 0};
            s[m][v] = dot(s[m][v], load_pairs(panel + (count / 2 * kVectors + v) * 2 * kLanes), broadcast_pair(last));
        }
    for (int64_t m = 0; m < kRows; m++)
        for (int64_t v = 0; v < kVectors; v++) store(sums + (m * kVectors + v) * kLanes, s[m][v]);
}

template <int64_t kRows, int64_t kVectors>
void multiply_rows(int64_t rows, float* sums, const bf16* x, int64_t stride, const bf16* panel, int64_t count) {
    if (rows == kRows) return multiply_tile<kRows, kVectors>(sums, x, stride, panel, count);
    if constexpr (kRows > 1) multiply_rows<kRows - 1, kVectors>(rows, sums, x, stride, panel, count);
}

void store_outputs(bf16* y, const float* sums, const bf16* bias, int64_t count) {
    for (int64_t o = 0; o < count; o += kLanes, sums += kLanes) {
        int64_t some = count - o < kLanes ? count - o : kLanes;
        Floats value = load(sums);
        if (bias) value = add(value, load_first(bias + o, some));
        store_first(y + o, value, some);
    }
}

struct Problem {
    bf16* y;
    const bf16 *x, *weight, *bias;
    int64_t rows, inputs, outputs;
};

// The outputs of panels [begin, end), `chunk` inputs at a time.
template <int64_t kVectors>
void multiply_panels(const Problem& p, int64_t begin, int64_t end, int64_t chunk) {
    constexpr int64_t kWidth = kVectors * kLanes;
    static thread_local Scratch panels, all_sums;
    bf16* panel = panels.take<bf16>(chunk * kWidth);
    float* sums = all_sums.take<float>(p.rows * kWidth);
    for (int64_t first = begin * kWidth; first < p.outputs && first < end * kWidth; first += kWidth) {
        for (int64_t i = 0; i < p.rows * kWidth; i += kLanes) store(sums + i, zeros());
        int64_t left = (p.outputs < end * kWidth ? p.outputs : end * kWidth) - first - kWidth;
        ReadAhead ahead(p.weight + (first + kWidth) * p.inputs,
                        2 * p.inputs * (left < 0 ? 0 : left < kWidth ? left : kWidth), p.inputs / (2 * kLanes));
        for (int64_t start = 0; start < p.inputs; start += chunk) {
            int64_t count = p.inputs - start < chunk ? p.inputs - start : chunk;
            for (int64_t v = 0; v < kVectors; v++)
                fill_panel<kVectors>(panel + v * 2 * kLanes, p.weight, first + v * kLanes, p.outputs, p.inputs, start,
                                     count, kVectors == 1 ? &ahead : nullptr);
            for (int64_t m = 0; m < p.rows; m += kTile)
                multiply_rows<kTile, kVectors>(p.rows - m < kTile ? p.rows - m : kTile, sums + m * kWidth,
                                               p.x + m * p.inputs + start, p.inputs, panel, count);
        }
        for (int64_t m = 0; m < p.rows; m++)
            store_outputs(p.y + m * p.outputs + first, sums + m * kWidth, p.bias ? p.bias + first : nullptr,
                          p.outputs - first < kWidth ? p.outputs - first : kWidth);
    }
}

}  // namespace

extern "C" void KERNEL(linear_bf16)(bf16* y, const bf16* x, const bf16* weight, const bf16* bias, int64_t rows,
                                    int64_t inputs, int64_t outputs, int64_t threads) {
    const Problem problem{y, x, weight, bias, rows, inputs, outputs};
    if (rows <= kTile) {
        int64_t num_panels = (outputs + kLanes - 1) / kLanes;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t part = 0; part < threads; part++)
            multiply_panels<1>(problem, num_panels * part / threads, num_panels * (part + 1) / threads, 2 * kLanes);
        return;
    }
    int64_t num_panels = (outputs + 2 * kLanes - 1) / (2 * kLanes);
    int64_t even = (inputs + 2 * kLanes - 1) / (2 * kLanes) * 2 * kLanes;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t panel = 0; panel < num_panels; panel++)
        multiply_panels<2>(problem, panel, panel + 1, even < kChunk ? even : kChunk);
}
