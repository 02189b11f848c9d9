// y = x·wᵀ + b for weights of 8 or 4 bits; activations are quantised on the way, 128 inputs of a row at a time.
//
//     x[m, k] ≈ a[m, k] · A[m, k / 128]                a from −127 to 127, A = largest |x| of the 128 / 127
//     y[m, o] = Σ_groups A[m, group] · S[o, group] · (Σ_k a[m, k] · level[o, k])  + b[o]
//
// The inner sum is exact in 32-bit integers, and the outer one runs over the groups in order; so a row gives the same
// bits alone and among thousands. 8-bit weights have one S for each output, which is multiplied in at the end.
//
// Arithmetic with AVX-512: one instruction multiplies 64 unsigned bytes (levels + zero point) with 64 signed bytes
// (four activations, broadcast) into 16 sums, two such instructions a cycle. A tile of 6 rows by 2 vectors keeps 12 integer
// and 12 float sums in registers: 8 loads for 12 multiplications. The zero point is taken out by starting each sum at
// −zero · Σ_k a[m, k]. Every 128 inputs the 12 integer sums are added to the floats: 36 instructions after 384.
#include "panel.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr int64_t kBlock = 128;         // inputs that share an activation scale
constexpr int64_t kSteps = kBlock / 4;  // vectors of a panel for one block
constexpr int64_t kCache = 262144;       // bytes of panels that stay in the second-level cache
constexpr int64_t kFew = 16;            // rows up to which reading the weights takes longer than multiplying

#ifdef __AVX512F__
constexpr int64_t kTile = 6;
constexpr int64_t zero_point(int64_t bits) { return bits == 4 ? 8 : 128; }
inline Words for_panel(Words codes) { return codes; }
inline Words low_halves(Words x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Words high_halves(Words x) { return low_halves(_mm512_srli_epi16(x, 4)); }
inline Words all_words(int32_t x) { return _mm512_set1_epi32(x); }
inline Words add_words(Words a, Words b) { return _mm512_add_epi32(a, b); }
inline int32_t sum_of(Words x) { return _mm512_reduce_add_epi32(x); }
inline Floats to_floats(Words x) { return _mm512_cvtepi32_ps(x); }
inline Words to_words(Floats x) { return _mm512_cvtps_epi32(x); }
inline void store_as_bytes(int8_t* p, Words x) { _mm_store_si128((__m128i*)p, _mm512_cvtepi32_epi8(x)); }
inline void split_pairs(const int8_t* from, int8_t* even, int8_t* odd) {  // the numbers of a block
    for (int i = 0; i < kBlock / 64; i++) {
        Words x = load_words(from + 64 * i);
        _mm256_storeu_si256((__m256i*)(even + 32 * i), _mm512_cvtepi16_epi8(x));
        _mm256_storeu_si256((__m256i*)(odd + 32 * i), _mm512_cvtepi16_epi8(_mm512_srli_epi16(x, 8)));
    }
}
template <int64_t kBits>
Words dot4(Words sum, Words w, Words a) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(a));  // with the intrinsic gcc 12 stores every sum each time
    return sum;
}
#else
constexpr int64_t kTile = 4;
constexpr int64_t zero_point(int64_t bits) { return bits == 4 ? 8 : 0; }
inline Words for_panel(Words codes) { return _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80)); }
inline Words low_halves(Words x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline Words high_halves(Words x) { return low_halves(_mm256_srli_epi16(x, 4)); }
inline Words all_words(int32_t x) { return _mm256_set1_epi32(x); }
inline Words add_words(Words a, Words b) { return _mm256_add_epi32(a, b); }
inline int32_t sum_of(Words x) {
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}
inline Floats to_floats(Words x) { return _mm256_cvtepi32_ps(x); }
inline Words to_words(Floats x) { return _mm256_cvtps_epi32(x); }
inline void store_as_bytes(int8_t* p, Words x) {
    __m128i y = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(y, y));
}
inline void split_pairs(const int8_t* from, int8_t* even, int8_t* odd) {
    for (int64_t k = 0; k < kBlock / 2; k++) even[k] = from[2 * k], odd[k] = from[2 * k + 1];
}
template <int64_t kBits>
Words dot4(Words sum, Words w, Words a) {  // pairs in 16 bits: at most 2·128·127, which still fits
    Words pairs = kBits == 4 ? _mm256_maddubs_epi16(w, a)
                             : _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

// Activations in 8 bits, laid out as `multiply_tile` walks them: tile by tile of kTile rows (R in the last one), in a
// tile block by block. values [steps, R, 4]: for 4-bit weights the even inputs of a block come first, then the odd ones,
// since a byte of the weights holds both. starts [groups, R]: −zero · Σ a, where the sums begin. scales [R].
struct Activations {
    int8_t* values;
    int32_t* starts;
    float* scales;
    int64_t blocks;
};

// A block of one row: levels in the order of the panel, their sums over each `kBlock / groups` inputs, and the scale.
template <int64_t kBits>
float quantise_block(const bf16* x, int64_t count, int8_t* levels, int32_t* sums, int64_t groups) {
    constexpr int64_t kParts = kBlock / kLanes;
    Floats numbers[kParts], top = zeros();
    for (int64_t i = 0; i < kParts; i++) {
        int64_t some = count - i * kLanes;
        numbers[i] = some >= kLanes ? load(x + i * kLanes) : some > 0 ? load_first(x + i * kLanes, some) : zeros();
        top = maximum(top, maximum(numbers[i], subtract(zeros(), numbers[i])));
    }
    float most = largest(top);
    Floats inverse = broadcast(most > 0 ? 127.f / most : 0.f);
    alignas(64) int8_t in_order[kBlock];
    for (int64_t group = 0; group < groups; group++) {
        Words total{};
        for (int64_t i = group * kParts / groups; i < (group + 1) * kParts / groups; i++) {
            Words level = to_words(multiply(numbers[i], inverse));
            total = add_words(total, level);
            store_as_bytes(in_order + i * kLanes, level);
        }
        sums[group] = sum_of(total);
    }
    if (kBits == 8) __builtin_memcpy(levels, in_order, kBlock);
    else split_pairs(in_order, levels, levels + kBlock / 2);
    return most / 127.f;
}

// One block of a tile of R rows of x, from row `first` on.
template <int64_t kBits>
void quantise_tile(const Activations& a, int64_t first, int64_t block, int64_t R, const bf16* x, int64_t inputs,
                   int64_t groups) {
    int32_t* values = (int32_t*)(a.values + (first * a.blocks + block * R) * kBlock);
    int32_t* starts = a.starts + (first * a.blocks + block * R) * groups;
    for (int64_t m = 0; m < R; m++) {
        alignas(64) int32_t levels[kSteps];
        int32_t sums[4];
        int64_t at = block * kBlock;
        a.scales[first * a.blocks + block * R + m] =
            quantise_block<kBits>(x + (first + m) * inputs + at, inputs - at, (int8_t*)levels, sums, groups);
        for (int64_t step = 0; step < kSteps; step++) values[step * R + m] = levels[step];
        for (int64_t g = 0; g < groups; g++) starts[g * R + m] = -(int32_t)zero_point(kBits) * sums[g];
    }
}

// Where a panel's numbers come from. weight: rows of `stride` bytes; scales of 4-bit weights [outputs, groups] float16.
struct Problem {
    const uint8_t* weight;
    int64_t stride;
    const uint16_t* halves;
    int64_t groups;
    const float* scale;  // of 8-bit weights [outputs]
    const bf16* bias;
    bf16* y;
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

// sums[m, v, lane] += the blocks [start, start + count) of a tile by the panel; kGroups scales for each block.
template <int64_t kBits, int64_t kGroups, int64_t kRows, int64_t kVectors>
void multiply_tile(float* sums, const Activations& x, int64_t first, int64_t start, int64_t count, const uint8_t* panel,
                   const float* scales) {
    constexpr int64_t kHalves = kGroups == 1 ? 1 : 2, kRun = kSteps / kGroups / kHalves;
    int64_t at = first * x.blocks + start * kRows;
    const int8_t* values = x.values + at * kBlock;
    const int32_t* starts = x.starts + at * kGroups;
    const float* row_scales = x.scales + at;
    for (int64_t b = 0; b < count; b++, row_scales += kRows, panel += kSteps * kVectors * kBytes, values += kRows * kBlock)
        for (int64_t g = 0; g < kGroups; g++, starts += kRows) {
            Words n[kRows][kVectors];
            UNROLL for (int64_t m = 0; m < kRows; m++)
                UNROLL for (int64_t v = 0; v < kVectors; v++) n[m][v] = all_words(starts[m]);
            for (int64_t half = 0; half < kHalves; half++)
                for (int64_t s = half * kSteps / 2 + g * kRun; s < half * kSteps / 2 + (g + 1) * kRun; s++) {
                    Words w[kVectors];
                    UNROLL for (int64_t v = 0; v < kVectors; v++) w[v] = load_words(panel + (s * kVectors + v) * kBytes);
                    UNROLL for (int64_t m = 0; m < kRows; m++) {
                        int32_t four;
                        __builtin_memcpy(&four, values + (s * kRows + m) * 4, 4);
                        UNROLL for (int64_t v = 0; v < kVectors; v++) n[m][v] = dot4<kBits>(n[m][v], w[v], all_words(four));
                    }
                }
            UNROLL for (int64_t m = 0; m < kRows; m++)
                UNROLL for (int64_t v = 0; v < kVectors; v++) {
                    float* sum = sums + (m * kVectors + v) * kLanes;
                    Floats scale = broadcast(row_scales[m]);
                    if constexpr (kBits == 4) scale = multiply(scale, load(scales + v * kLanes));
                    store(sum, multiply_add(to_floats(n[m][v]), scale, load(sum)));
                }
            if constexpr (kBits == 4) scales += kVectors * kLanes;
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

void store_outputs(const Problem& p, int64_t row, int64_t first, const float* sums, int64_t count) {
    for (int64_t o = first; o < first + count; o += kLanes, sums += kLanes) {
        int64_t some = first + count - o < kLanes ? first + count - o : kLanes;
        Floats value = load(sums);
        if (p.scale) value = multiply(value, load_first(p.scale + o, some));
        if (p.bias) value = add(value, load_first(p.bias + o, some));
        store_first(p.y + row * p.outputs + o, value, some);
    }
}

// Few rows: each block of a panel is used as soon as it is turned, so that nothing but the weights is read.
template <int64_t kBits, int64_t kGroups>
void multiply_few(const Problem& p, int64_t begin, int64_t end) {
    static thread_local Scratch panels, all_sums, all_scales;
    uint8_t* panel = panels.take<uint8_t>(kBlock * kLanes);
    float* sums = all_sums.take<float>(p.rows * kLanes);
    float* scales = kBits == 4 ? all_scales.take<float>(p.x.blocks * kGroups * kLanes) : nullptr;
    for (int64_t first = begin * kLanes; first < p.outputs && first < end * kLanes; first += kLanes) {
        for (int64_t m = 0; m < p.rows; m++) store(sums + m * kLanes, zeros());
        if (scales) fill_scales<1>(scales, p, first, p.x.blocks * kGroups);
        int64_t next = first + kLanes, stop = end * kLanes < p.outputs ? end * kLanes : p.outputs;
        int64_t following = next + kLanes < stop ? kLanes : next < stop ? stop - next : 0;
        ReadAhead ahead(p.weight + next * p.stride, following * p.stride, p.stride / kBytes);
        for (int64_t block = 0; block < p.x.blocks; block++) {
            fill_panel<kBits, 1>(panel, p, first, block, 1, &ahead);
            for (int64_t m = 0; m < p.rows; m += kTile)
                multiply_rows<kBits, kGroups, kTile, 1>(p.rows - m < kTile ? p.rows - m : kTile, sums + m * kLanes, p.x, m,
                                                        block, 1, panel,
                                                        scales ? scales + block * kGroups * kLanes : nullptr);
        }
        for (int64_t m = 0; m < p.rows; m++)
            store_outputs(p, m, first, sums + m * kLanes, p.outputs - first < kLanes ? p.outputs - first : kLanes);
    }
}

// Many rows: whole panels, as many as stay in the second-level cache, are turned once and used by every tile.
template <int64_t kBits, int64_t kGroups>
void multiply_many(const Problem& p, int64_t begin, int64_t end) {
    constexpr int64_t kWidth = 2 * kLanes;
    static thread_local Scratch panels, all_scales;
    int64_t panel_size = p.x.blocks * kBlock * kWidth, scales_size = p.x.blocks * kGroups * kWidth;
    uint8_t* panel = panels.take<uint8_t>((end - begin) * panel_size);
    float* scales = kBits == 4 ? all_scales.take<float>((end - begin) * scales_size) : nullptr;
    for (int64_t v = 0; v < 2 * (end - begin); v++) {
        int64_t first = (2 * begin + v) * kLanes;
        fill_panel<kBits, 2>(panel + v / 2 * panel_size + v % 2 * kBytes, p, first, 0, p.x.blocks, nullptr);
        if (scales) fill_scales<2>(scales + v / 2 * scales_size + v % 2 * kLanes, p, first, p.x.blocks * kGroups);
    }
    for (int64_t m = 0; m < p.rows; m += kTile)
        for (int64_t i = 0; i < end - begin; i++) {
            alignas(64) float sums[kTile * kWidth] = {};
            int64_t rows = p.rows - m < kTile ? p.rows - m : kTile, first = (begin + i) * kWidth;
            for (int64_t row = 0; row < rows; row++) ask_for(p.y + (m + row) * p.outputs + first);
            multiply_rows<kBits, kGroups, kTile, 2>(rows, sums, p.x, m, 0, p.x.blocks, panel + i * panel_size,
                                                    scales ? scales + i * scales_size : nullptr);
            for (int64_t row = 0; row < rows; row++)
                store_outputs(p, m + row, first, sums + row * kWidth,
                                 p.outputs - first < kWidth ? p.outputs - first : kWidth);
        }
}

template <int64_t kBits, int64_t kGroups>
void multiply_all(const Problem& p, int64_t threads) {
    bool few = p.rows <= kFew;
    int64_t width = (few ? 1 : 2) * kLanes, num_panels = (p.outputs + width - 1) / width;
    int64_t fit = kCache / (p.x.blocks * kBlock * width), fair = num_panels / (4 * threads);
    int64_t together = fit < fair ? fit : fair;
    int64_t num_parts = few ? threads : together < 2 ? num_panels : (num_panels + together - 1) / together;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t part = 0; part < num_parts; part++) {
        int64_t begin = num_panels * part / num_parts, end = num_panels * (part + 1) / num_parts;
        few ? multiply_few<kBits, kGroups>(p, begin, end) : multiply_many<kBits, kGroups>(p, begin, end);
    }
}

template <int64_t kBits>
void linear(Problem& p, const bf16* x, int64_t inputs, int64_t group_size, int64_t threads) {
    static thread_local Scratch values, starts, scales;
    int64_t blocks = (inputs + kBlock - 1) / kBlock, groups = kBlock / group_size;
    p.x = {values.take<int8_t>(p.rows * blocks * kBlock), starts.take<int32_t>(p.rows * blocks * groups),
           scales.take<float>(p.rows * blocks), blocks};
    int64_t num_tiles = (p.rows + kTile - 1) / kTile;
#pragma omp parallel for num_threads(threads) schedule(static) if (num_tiles > 1)
    for (int64_t i = 0; i < num_tiles * blocks; i++) {
        int64_t first = i / blocks * kTile;
        quantise_tile<kBits>(p.x, first, i % blocks, p.rows - first < kTile ? p.rows - first : kTile, x, inputs, groups);
    }
    if constexpr (kBits == 4) {
        if (groups == 4) return multiply_all<4, 4>(p, threads);
        if (groups == 2) return multiply_all<4, 2>(p, threads);
    }
    multiply_all<kBits, 1>(p, threads);
}

}  // namespace

// codes [outputs, inputs]: level + 128, rows `stride` bytes apart; scale [outputs].
extern "C" void KERNEL(linear_int8)(bf16* y, const bf16* x, const uint8_t* codes, const float* scale, const bf16* bias,
                                    int64_t rows, int64_t inputs, int64_t outputs, int64_t stride, int64_t threads) {
    Problem p{codes, stride, nullptr, 0, scale, bias, y, {}, rows, outputs};
    linear<8>(p, x, inputs, kBlock, threads);
}

// packed [outputs, groups · group_size / 2]: two of level + 8, the even input in the low half; scale [outputs, groups]
// float16; group_size 32, 64 or 128.
extern "C" void KERNEL(linear_int4)(bf16* y, const bf16* x, const uint8_t* packed, const uint16_t* scale,
                                    const bf16* bias, int64_t rows, int64_t inputs, int64_t outputs, int64_t group_size,
                                    int64_t threads) {
    int64_t groups = (inputs + group_size - 1) / group_size;
    Problem p{packed, groups * group_size / 2, scale, groups, nullptr, bias, y, {}, rows, outputs};
    linear<4>(p, x, inputs, group_size, threads);
}
