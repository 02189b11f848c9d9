// y = x·wᵀ + b for weights of 8 or 4 bits; activations are quantised on the way, 128 inputs of a row at a time.
//
//     x[m, k] ≈ a[m, k] · A[m, k / 128]                a from −127 to 127, A = largest |x| of the 128 / 127
//     y[m, o] = Σ_groups A[m, group] · S[o, group] · (Σ_k a[m, k] · level[o, k])  + b[o]
//
// The inner sum is exact in 32-bit integers, and the outer one runs over the groups in order; so a row gives the same
// bits alone and among thousands. 8-bit weights have one S for each output, which is multiplied in at the end.
//
// Arithmetic with AVX-512: one instruction multiplies 64 unsigned bytes (levels + zero point) with 64 signed bytes
// (four activations, broadcast) into 16 sums, two of them a cycle. A tile of 12 rows by 2 vectors keeps 24 integer sums
// in registers: 14 loads for 24 multiplications. The zero point is taken out by starting each sum at
// −zero · Σ_k a[m, k]. Every 128 inputs 24 sums become floats: 72 more instructions after 768.
#include "panel.h"

namespace {

constexpr int64_t kBlock = 128;         // inputs that share an activation scale
constexpr int64_t kSteps = kBlock / 4;  // vectors of a panel for one block
constexpr int64_t kSegments = 4;        // a block's sums are kept for each 32 inputs, the smallest group
constexpr int64_t kChunk = 16;          // blocks of one panel: 64 KiB, which stays in the second-level cache

#ifdef __AVX512F__
constexpr int64_t kTile = 12;
constexpr int64_t zero_point(int64_t bits) { return bits == 4 ? 8 : 128; }
inline Words for_panel(Words levels) { return _mm512_xor_si512(levels, _mm512_set1_epi8((char)0x80)); }
inline Words low_halves(Words x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Words high_halves(Words x) { return low_halves(_mm512_srli_epi16(x, 4)); }
inline Words all_words(int32_t x) { return _mm512_set1_epi32(x); }
inline Words add_words(Words a, Words b) { return _mm512_add_epi32(a, b); }
inline Floats to_floats(Words x) { return _mm512_cvtepi32_ps(x); }
template <int64_t kBits>
Words dot4(Words sum, Words w, Words a) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(a));  // with the intrinsic gcc 12 stores every sum each time
    return sum;
}
#else
constexpr int64_t kTile = 4;
constexpr int64_t zero_point(int64_t bits) { return bits == 4 ? 8 : 0; }
inline Words for_panel(Words levels) { return levels; }
inline Words low_halves(Words x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline Words high_halves(Words x) { return low_halves(_mm256_srli_epi16(x, 4)); }
inline Words all_words(int32_t x) { return _mm256_set1_epi32(x); }
inline Words add_words(Words a, Words b) { return _mm256_add_epi32(a, b); }
inline Floats to_floats(Words x) { return _mm256_cvtepi32_ps(x); }
template <int64_t kBits>
Words dot4(Words sum, Words w, Words a) {  // pairs in 16 bits: at most 2·128·127, which still fits
    Words pairs = kBits == 4 ? _mm256_maddubs_epi16(w, a)
                             : _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

// Activations in 8 bits. values [rows, blocks · 128], in the order in which a panel of kBits holds the weights: for 4
// bits the even inputs of a block, then the odd ones, since a byte holds both. scales [rows, blocks]; sums
// [rows, blocks, 4], of 32 neighbouring inputs each.
struct Activations {
    int8_t* values;
    float* scales;
    int32_t* sums;
    int64_t blocks;
};

template <int64_t kBits, typename T>
void quantise_block(const T* x, int64_t count, int8_t* values, float* scale, int32_t* sums) {
    Floats top = zeros(), absolute = zeros();
    float numbers[kBlock];
    for (int64_t k = 0; k < kBlock; k += kLanes) {
        int64_t some = count - k < kLanes ? count - k : kLanes;
        Floats v = some == kLanes ? load(x + k) : some > 0 ? load_first(x + k, some) : zeros();
        absolute = maximum(v, subtract(zeros(), v));
        top = maximum(top, absolute);
        store(numbers + k, v);
    }
    *scale = largest(top) / 127.f;
    float inverse = *scale > 0 ? 127.f / largest(top) : 0.f;
    int8_t levels[kBlock];
    for (int64_t k = 0; k < kBlock; k++) {
        float level = __builtin_nearbyintf(numbers[k] * inverse);
        levels[k] = (int8_t)(int32_t)level;
    }
    for (int64_t segment = 0; segment < kSegments; segment++) {
        int32_t total = 0;
        for (int64_t k = 0; k < kBlock / kSegments; k++) total += levels[segment * kBlock / kSegments + k];
        sums[segment] = total;
    }
    for (int64_t k = 0; k < kBlock; k++) {
        int64_t from = kBits == 8 ? k : k < kBlock / 2 ? 2 * k : 2 * k - kBlock + 1;
        values[k] = levels[from];
    }
}

// Where a panel's numbers come from. weight: rows of `stride` bytes; scales of 4-bit weights [outputs, groups] float16.
struct Problem {
    const uint8_t* weight;
    int64_t stride;
    const uint16_t* halves;
    int64_t groups;
    const float* scale;  // of 8-bit weights [outputs]
    const void* bias;
    void* y;
    Activations x;
    int64_t rows, outputs;
};

// Turn blocks [start, start + count) of kLanes outputs from `first` on into every kVectors-th vector of the panel.
template <int64_t kBits, int64_t kVectors>
void fill_panel(uint8_t* panel, const Problem& p, int64_t first, int64_t start, int64_t count, ReadAhead* ahead) {
    constexpr int64_t kBlockBytes = kBlock * kBits / 8;
    for (int64_t at = start * kBlockBytes; at < (start + count) * kBlockBytes; at += kBytes) {
        Words r[kLanes];
        if (ahead) ahead->step();
        const uint8_t* from = p.weight + first * p.stride + at;
        if (first + kLanes <= p.outputs && p.stride - at >= kBytes)
            for (int64_t i = 0; i < kLanes; i++) r[i] = load_words(from + i * p.stride);
        else
            for (int64_t i = 0; i < kLanes; i++)
                r[i] = first + i < p.outputs ? load_bytes(from + i * p.stride, p.stride - at) : Words{};
        transpose(r);
        int64_t block = at / kBlockBytes - start, step = at % kBlockBytes / 4;
        uint8_t* to = panel + (block * kSteps + step) * kVectors * kBytes;
        for (int64_t i = 0; i < kLanes; i++, to += kVectors * kBytes)
            if constexpr (kBits == 8) {
                store_words(to, for_panel(r[i]));
            } else {
                store_words(to, low_halves(r[i]));
                store_words(to + kSteps / 2 * kVectors * kBytes, high_halves(r[i]));
            }
    }
}

// The scales of kLanes outputs from `first` on, group by group: [count, kVectors, kLanes]; zeros after the last group,
// which may end before its block does.
template <int64_t kVectors>
void fill_scales(float* scales, const Problem& p, int64_t first, int64_t count) {
    for (int64_t g = 0; g < count; g += kLanes) {
        Words r[kLanes];
        for (int64_t i = 0; i < kLanes; i++) {
            bool inside = first + i < p.outputs && g < p.groups;
            Floats row = inside ? load_halves(p.halves + (first + i) * p.groups + g, p.groups - g) : zeros();
            __builtin_memcpy(&r[i], &row, sizeof row);
        }
        transpose(r);
        for (int64_t i = 0; i < kLanes && g + i < count; i++) store_words(scales + (g + i) * kVectors * kLanes, r[i]);
    }
}

// sums[m, v, lane] += the blocks [start, start + count) of kRows rows by the panel; kGroups scales for each block.
template <int64_t kBits, int64_t kGroups, int64_t kRows, int64_t kVectors>
void multiply_tile(float* sums, const Activations& x, int64_t row, int64_t start, int64_t count, const uint8_t* panel,
                   const float* scales) {
    constexpr int64_t kHalves = kGroups == 1 ? 1 : 2, kRun = kSteps / kGroups / kHalves;
    const int8_t* values = x.values + (row * x.blocks + start) * kBlock;
    for (int64_t b = 0; b < count; b++, panel += kSteps * kVectors * kBytes, values += kBlock)
        for (int64_t g = 0; g < kGroups; g++) {
            Words n[kRows][kVectors];
#pragma GCC unroll 16
            for (int64_t m = 0; m < kRows; m++) {
                const int32_t* all = x.sums + ((row + m) * x.blocks + start + b) * kSegments + g * kSegments / kGroups;
                int32_t total = 0;
                for (int64_t i = 0; i < kSegments / kGroups; i++) total += all[i];
#pragma GCC unroll 16
                for (int64_t v = 0; v < kVectors; v++) n[m][v] = all_words(-(int32_t)zero_point(kBits) * total);
            }
            for (int64_t half = 0; half < kHalves; half++)
                for (int64_t s = half * kSteps / 2 + g * kRun; s < half * kSteps / 2 + (g + 1) * kRun; s++) {
                    Words w[kVectors];
#pragma GCC unroll 16
                    for (int64_t v = 0; v < kVectors; v++) w[v] = load_words(panel + (s * kVectors + v) * kBytes);
#pragma GCC unroll 16
                    for (int64_t m = 0; m < kRows; m++) {
                        int32_t four;
                        __builtin_memcpy(&four, values + m * x.blocks * kBlock + 4 * s, 4);
#pragma GCC unroll 16
                        for (int64_t v = 0; v < kVectors; v++) n[m][v] = dot4<kBits>(n[m][v], w[v], all_words(four));
                    }
                }
#pragma GCC unroll 16
            for (int64_t m = 0; m < kRows; m++)
#pragma GCC unroll 16
                for (int64_t v = 0; v < kVectors; v++) {
                    float* sum = sums + (m * kVectors + v) * kLanes;
                    Floats scale = broadcast(x.scales[(row + m) * x.blocks + start + b]);
                    if (scales) scale = multiply(scale, load(scales + ((b * kGroups + g) * kVectors + v) * kLanes));
                    store(sum, multiply_add(to_floats(n[m][v]), scale, load(sum)));
                }
        }
}

template <int64_t kBits, int64_t kGroups, int64_t kRows, int64_t kVectors>
void multiply_rows(int64_t rows, float* sums, const Activations& x, int64_t row, int64_t start, int64_t count,
                   const uint8_t* panel, const float* scales) {
    if (rows == kRows)
        return multiply_tile<kBits, kGroups, kRows, kVectors>(sums, x, row, start, count, panel, scales);
    if constexpr (kRows > 1)
        multiply_rows<kBits, kGroups, kRows - 1, kVectors>(rows, sums, x, row, start, count, panel, scales);
}

template <typename T>
void store_outputs(const Problem& p, int64_t row, int64_t first, const float* sums, int64_t count) {
    for (int64_t o = first; o < first + count; o += kLanes, sums += kLanes) {
        int64_t some = first + count - o < kLanes ? first + count - o : kLanes;
        Floats value = load(sums);
        if (p.scale) value = multiply(value, load_first(p.scale + o, some));
        if (p.bias) value = add(value, load_first((const T*)p.bias + o, some));
        store_first((T*)p.y + row * p.outputs + o, value, some);
    }
}

// The outputs of panels [begin, end), `chunk` blocks at a time.
template <int64_t kBits, int64_t kGroups, int64_t kVectors, typename T>
void multiply_panels(const Problem& p, int64_t begin, int64_t end, int64_t chunk) {
    constexpr int64_t kWidth = kVectors * kLanes;
    static thread_local Scratch panels, all_sums, all_scales;
    uint8_t* panel = panels.take<uint8_t>(chunk * kBlock * kWidth);
    float* sums = all_sums.take<float>(p.rows * kWidth);
    float* scales = kBits == 4 ? all_scales.take<float>(p.x.blocks * kGroups * kWidth) : nullptr;
    for (int64_t first = begin * kWidth; first < p.outputs && first < end * kWidth; first += kWidth) {
        for (int64_t i = 0; i < p.rows * kWidth; i += kLanes) store(sums + i, zeros());
        for (int64_t v = 0; v < kVectors && scales; v++)
            fill_scales<kVectors>(scales + v * kLanes, p, first + v * kLanes, p.x.blocks * kGroups);
        int64_t left = (p.outputs < end * kWidth ? p.outputs : end * kWidth) - first - kWidth;
        ReadAhead ahead(p.weight + (first + kWidth) * p.stride, p.stride * (left < 0 ? 0 : left < kWidth ? left : kWidth),
                        p.stride / kBytes);
        for (int64_t start = 0; start < p.x.blocks; start += chunk) {
            int64_t count = p.x.blocks - start < chunk ? p.x.blocks - start : chunk;
            for (int64_t v = 0; v < kVectors; v++)
                fill_panel<kBits, kVectors>(panel + v * kBytes, p, first + v * kLanes, start, count,
                                            kVectors == 1 ? &ahead : nullptr);
            for (int64_t m = 0; m < p.rows; m += kTile)
                multiply_rows<kBits, kGroups, kTile, kVectors>(
                    p.rows - m < kTile ? p.rows - m : kTile, sums + m * kWidth, p.x, m, start, count, panel,
                    scales ? scales + start * kGroups * kWidth : nullptr);
        }
        for (int64_t m = 0; m < p.rows; m++)
            store_outputs<T>(p, m, first, sums + m * kWidth, p.outputs - first < kWidth ? p.outputs - first : kWidth);
    }
}

template <int64_t kBits, int64_t kGroups, typename T>
void multiply_all(const Problem& p, int64_t threads) {
    if (p.rows <= kTile) {
        int64_t num_panels = (p.outputs + kLanes - 1) / kLanes;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t part = 0; part < threads; part++)
            multiply_panels<kBits, kGroups, 1, T>(p, num_panels * part / threads, num_panels * (part + 1) / threads, 1);
        return;
    }
    int64_t num_panels = (p.outputs + 2 * kLanes - 1) / (2 * kLanes);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t panel = 0; panel < num_panels; panel++)
        multiply_panels<kBits, kGroups, 2, T>(p, panel, panel + 1, p.x.blocks < kChunk ? p.x.blocks : kChunk);
}

template <int64_t kBits, typename T>
void linear(Problem& p, const T* x, int64_t inputs, int64_t group_size, int64_t threads) {
    static thread_local Scratch values, scales, sums;
    int64_t blocks = (inputs + kBlock - 1) / kBlock;
    p.x = {values.take<int8_t>(p.rows * blocks * kBlock), scales.take<float>(p.rows * blocks),
           sums.take<int32_t>(p.rows * blocks * kSegments), blocks};
#pragma omp parallel for num_threads(threads) schedule(static) if (p.rows * blocks > 256)
    for (int64_t i = 0; i < p.rows * blocks; i++) {
        int64_t start = i % blocks * kBlock;
        quantise_block<kBits>(x + i / blocks * inputs + start, inputs - start, p.x.values + i * kBlock, p.x.scales + i,
                              p.x.sums + i * kSegments);
    }
    if constexpr (kBits == 4) {
        if (group_size == 32) return multiply_all<4, 4, T>(p, threads);
        if (group_size == 64) return multiply_all<4, 2, T>(p, threads);
    }
    multiply_all<kBits, 1, T>(p, threads);
}

}  // namespace

// weight [outputs, inputs] int8, scale [outputs] float32; x, bias and y in bfloat16 or float32.
extern "C" void KERNEL(linear_int8)(void* y, const void* x, const int8_t* weight, const float* scale, const void* bias,
                                    int64_t rows, int64_t inputs, int64_t outputs, int64_t is_bf16, int64_t threads) {
    Problem p{(const uint8_t*)weight, inputs, nullptr, 0, scale, bias, y, {}, rows, outputs};
    if (is_bf16) linear<8>(p, (const bf16*)x, inputs, kBlock, threads);
    else linear<8>(p, (const float*)x, inputs, kBlock, threads);
}

// packed [outputs, groups · group_size / 2]: level + 8, the even input in the low half; scale [outputs, groups] float16;
// group_size 32, 64 or 128.
extern "C" void KERNEL(linear_int4)(void* y, const void* x, const uint8_t* packed, const uint16_t* scale,
                                    const void* bias, int64_t rows, int64_t inputs, int64_t outputs,
                                    int64_t group_size, int64_t is_bf16, int64_t threads) {
    int64_t groups = (inputs + group_size - 1) / group_size;
    Problem p{packed, groups * group_size / 2, scale, groups, nullptr, bias, y, {}, rows, outputs};
    if (is_bf16) linear<4>(p, (const bf16*)x, inputs, group_size, threads);
    else linear<4>(p, (const float*)x, inputs, group_size, threads);
}
